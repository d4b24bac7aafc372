//! The credential while the command runs: renewed where the command can be given another, and
//! otherwise announced before it ends.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::sleep;

use crate::cli::held::{Asker, Held};
use crate::cli::lease::Never;
use crate::cli::{Failure, output};
use crate::clock::{Clock as _, SystemClock, Timestamp};

/// How long it is slept at most before the clock is looked at: a machine that was suspended has
/// another time than its timers.
const LONGEST_SLEEP: Duration = Duration::from_secs(10);

/// The pause after a renewal that failed.
const PAUSE: Duration = Duration::from_secs(5);

/// The credential that the command gets now.
#[derive(Clone)]
pub(super) struct Current {
    pub(super) held: Arc<Held>,
    /// How many renewals were tried.
    pub(super) tries: u64,
}

/// When another is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    /// As soon as it is due.
    Due,
    /// When it is due and is asked for.
    Asked,
    /// Never: what the command was given cannot be exchanged.
    Never,
}

/// Keeps a credential current.
pub(super) struct Renewal {
    asker: Asker,
    current: watch::Sender<Current>,
    demand: Arc<Notify>,
}

impl Renewal {
    pub(super) fn of(held: Held, asker: Asker) -> Self {
        let held = Arc::new(held);
        Self {
            asker,
            current: watch::Sender::new(Current { held, tries: 0 }),
            demand: Arc::default(),
        }
    }

    /// The credential, and each that comes after it.
    pub(super) fn current(&self) -> watch::Receiver<Current> {
        self.current.subscribe()
    }

    /// By this another is asked for: it is taken if it is due.
    pub(super) fn demand(&self) -> Arc<Notify> {
        Arc::clone(&self.demand)
    }

    /// Renews it as long as the task lasts. `put` is given each new one.
    pub(super) async fn keep(
        self,
        when: When,
        mut put: impl FnMut(&Held) -> Result<(), Failure>,
    ) -> Never {
        loop {
            let held = Arc::clone(&self.current.borrow().held);
            if when == When::Never || held.is_last(&self.asker.source) {
                tokio::select! {
                    never = announce(&held, when) => return never,
                    never = self.refuse() => return never,
                }
            }
            match when {
                When::Asked => self.demand.notified().await,
                _ => until(held.due_at()).await,
            }
            let mut next = Held::clone(&held);
            let renewed = next.renew_if_due(&self.asker, SystemClock.now()).await;
            let is_new = next.session != held.session;
            let renewed = if is_new { put(&next) } else { renewed };
            if let Err(failure) = renewed {
                say(&format!("not renewed: {failure}"));
            }
            self.publish(next);
            if !is_new && when == When::Due {
                sleep(PAUSE).await;
            }
        }
    }

    /// Answers each demand with the credential that there is.
    async fn refuse(&self) -> Never {
        loop {
            self.demand.notified().await;
            self.current.send_modify(|current| current.tries += 1);
        }
    }

    fn publish(&self, held: Held) {
        self.current.send_modify(|current| {
            current.held = Arc::new(held);
            current.tries += 1;
        });
    }
}

/// Says before a credential ends that it does, and that it has, where the task goes on after it.
async fn announce(held: &Held, when: When) -> Never {
    if !held.lasts_as_long_as_its_task() {
        until(held.due_at()).await;
        let why = match when {
            When::Never => "variables cannot be renewed, as a file (--as file) or an endpoint can",
            _ => "the attestation is used up, and there is no other for a new one",
        };
        say(&format!(
            "the credential ends at {}: {why}",
            held.expires_at
        ));
        until(held.expires_at).await;
        say("the credential has ended");
    }
    std::future::pending().await
}

/// Waits for an instant of the clock.
async fn until(at: Timestamp) {
    loop {
        let now = SystemClock.now();
        if now >= at {
            return;
        }
        sleep(at.distance(now).min(LONGEST_SLEEP)).await;
    }
}

fn say(text: &str) {
    // Nothing is left to be done when even this cannot be written.
    drop(output::note(format!("taskpass: {text}")));
}
