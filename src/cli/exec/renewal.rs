//! Keeps the credential current while the command runs. Renews it if the command can get a new one,
//! and otherwise announces its end.
//!
//! A failed renewal is a note on standard error and is repeated while the credential may be
//! renewed; it never ends the command. `client::session` decides when a renewal is due;
//! `super::deliver` and `super::endpoint` deliver the result.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::sleep;

use crate::cli::{CliError, output};
use crate::client::credentials::CredentialRequester;
use crate::client::session::CachedSession;
use crate::client::task_lease::Never;
use crate::clock::{Clock as _, SystemClock, Timestamp};

/// The longest sleep before the clock is read again: timers may not count the time in which the
/// machine was suspended.
const LONGEST_SLEEP: Duration = Duration::from_secs(10);

/// The pause after each renewal, and after a failed delivery of a new credential.
const PAUSE: Duration = Duration::from_secs(5);

/// The current credential.
#[derive(Clone)]
pub(super) struct Current {
    pub(super) held: Arc<CachedSession>,
    /// How many renewals were attempted.
    pub(super) tries: u64,
}

/// When the credential is renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RenewalTrigger {
    /// As soon as it is due.
    Due,
    /// When it is due and the command requests it.
    Asked,
    /// Never, because the variables of a running command cannot be changed.
    Never,
}

/// Keeps a credential current.
pub(super) struct Renewal {
    requester: CredentialRequester,
    current: watch::Sender<Current>,
    demand: Arc<Notify>,
}

impl Renewal {
    pub(super) fn of(held: CachedSession, requester: CredentialRequester) -> Self {
        let held = Arc::new(held);
        Self {
            requester,
            current: watch::Sender::new(Current { held, tries: 0 }),
            demand: Arc::default(),
        }
    }

    /// A receiver of the current credential and of each renewed one.
    pub(super) fn current(&self) -> watch::Receiver<Current> {
        self.current.subscribe()
    }

    /// Notify this to request a renewal, which happens only if it is due.
    pub(super) fn demand(&self) -> Arc<Notify> {
        Arc::clone(&self.demand)
    }

    /// Renews the credential as long as the task lasts. Passes each new one to `put` until `put`
    /// succeeds.
    pub(super) async fn keep(
        self,
        trigger: RenewalTrigger,
        mut put: impl FnMut(&CachedSession) -> Result<(), CliError>,
    ) -> Never {
        loop {
            let held = Arc::clone(&self.current.borrow().held);
            if trigger == RenewalTrigger::Never || held.is_last(&self.requester.source) {
                tokio::select! {
                    never = announce(&held, trigger) => return never,
                    never = self.refuse() => return never,
                }
            }
            match trigger {
                RenewalTrigger::Asked => self.demand.notified().await,
                _ => until(held.due_at()).await,
            }
            let mut next = CachedSession::clone(&held);
            let renewed = next.renew_if_due(&self.requester, SystemClock.now()).await;
            if let Err(failure) = renewed {
                say(&format!("not renewed: {failure}"));
            }
            if next.session != held.session {
                deliver(&next, &mut put).await;
            }
            self.publish(next);
            if trigger == RenewalTrigger::Due {
                // After a success, too: if this machine's clock is ahead of the broker's, the new
                // credential may be due at once.
                sleep(PAUSE).await;
            }
        }
    }

    /// Answers each request with the current credential.
    async fn refuse(&self) -> Never {
        loop {
            self.demand.notified().await;
            self.current.send_modify(|current| current.tries += 1);
        }
    }

    fn publish(&self, held: CachedSession) {
        self.current.send_modify(|current| {
            current.held = Arc::new(held);
            current.tries += 1;
        });
    }
}

/// Passes a new credential to `put` until that succeeds, or until the credential has ended and must
/// be renewed again.
async fn deliver(
    held: &CachedSession,
    put: &mut impl FnMut(&CachedSession) -> Result<(), CliError>,
) {
    while let Err(failure) = put(held) {
        say(&format!(
            "the renewed credential was not delivered: {failure}; retrying"
        ));
        sleep(PAUSE).await;
        if !held.is_good(SystemClock.now()) {
            return;
        }
    }
}

/// Announces the end of a credential in advance, and again when it ends, if the task continues
/// after it.
async fn announce(held: &CachedSession, trigger: RenewalTrigger) -> Never {
    if !held.lasts_as_long_as_its_task() {
        until(held.due_at()).await;
        let why = match trigger {
            RenewalTrigger::Never => {
                "variables cannot be renewed; use --as file or --as endpoint to renew it"
            }
            _ => "the attestation is used up, and no other is available for a renewal",
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

/// Waits until the clock shows `at`.
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
    output::note(format!("taskpass: {text}"));
}
