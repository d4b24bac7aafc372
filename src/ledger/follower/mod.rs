//! Follows the endings in the log, for one replica.
//!
//! [`Follower::run`] reads the table of endings by a connection of its own, at least every
//! [`INTERVAL`], and adds the rows to the replica's [`View`]. A commit of this replica and
//! a notification of PostgreSQL make it read earlier; both are hints, and neither is relied on.
//! [`Awaited`] are the acts for which other parts of the broker wait.
//!
//! The rule: a page and the newest head come from one statement, the head carries the digest of all
//! endings under its MAC, and the server passed the fence and the lease. Only a page whose digest
//! equals that of the head makes the view complete. The view begins with the newest head, without
//! earlier endings. Failures: while the store does not answer, the view grows old, its users read
//! the store, and the follower tries again after pauses of up to a second. A head or a row that
//! no broker of this log wrote stops the ledger. If the rows do not continue those that were
//! read before, they were deleted or belong to another server: the view starts again with the
//! newest head. A server that shows fewer leaves than before is not followed. `app` runs the
//! follower.

mod view;
mod walk;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

pub use self::view::{KnownEndings, STALE_AFTER, View};
use self::walk::{ReadTo, Walk};
use super::{Ledger, Shared};
use crate::clock::BootInstant;
use crate::merkle::EMPTY_ROOT;
use crate::metrics::Metrics;
use crate::store::StoreError;
use crate::store::endings::{EndingPosition, EndingSubject, EndingsChain};
use crate::store::endings_reader::{EndingsPage, EndingsReader};
use crate::store::heads::{ForeignHead, Head, HeadSeal, SealedHead};

/// The longest time between two reads.
pub const INTERVAL: Duration = Duration::from_millis(50);

/// The least time between the end of a read and the next one, however many hints come.
const LEAST_INTERVAL: Duration = Duration::from_millis(10);

/// The longest pause after a failure. The first one is [`INTERVAL`], and each further one doubles.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How long one read may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// The largest number of endings that one statement reads.
const PAGE_ROWS: u32 = 1_000;

/// For how long an ending is kept in memory after it matters, in seconds, in case the clock is set
/// back.
const MARGIN_SECONDS: u64 = 3_600;

/// Follows the endings of one log.
pub struct Follower {
    reader: EndingsReader,
    shared: Arc<Shared>,
    heads: HeadSeal,
    metrics: Arc<Metrics>,
    /// How far the table was read. `None` until the view has begun.
    read_to: Option<ReadTo>,
    /// The acts that were read and not yet passed on.
    awaited: Awaited,
    /// The number of failures since the last success.
    failures: u32,
}

/// Acts for which other parts of the broker wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Awaited {
    /// A cutoff, which may have ended sessions at back ends.
    pub cutoff: bool,
    /// The activation of a generation.
    pub activation: bool,
    /// The revocation of a signing key.
    pub key: bool,
}

impl Awaited {
    /// All of them: some may not have been read.
    const ANY: Self = Self {
        cutoff: true,
        activation: true,
        key: true,
    };

    /// Adds the act that an ending records. Not the end of a task or a session, which the sweeper of
    /// the replica that ended it finishes.
    fn add(&mut self, subject: &EndingSubject) {
        match subject {
            EndingSubject::Cutoff(_) => self.cutoff = true,
            EndingSubject::Activation(_) => self.activation = true,
            EndingSubject::SigningKey(_) => self.key = true,
            EndingSubject::Task(_)
            | EndingSubject::Session(_)
            | EndingSubject::Lift(_)
            | EndingSubject::Roles(_)
            | EndingSubject::WorkloadKey(_) => {}
        }
    }
}

/// Why the follower did not read on.
#[derive(Debug, thiserror::Error)]
enum FollowError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the table of endings was not read within {} s", PATIENCE.as_secs())]
    TooSlow,
    /// A row of the log's tables was not written by a broker of this log.
    #[error("{0}")]
    Forged(String),
}

impl From<ForeignHead> for FollowError {
    fn from(why: ForeignHead) -> Self {
        Self::Forged(why.to_string())
    }
}

impl Ledger {
    /// The endings that this replica knows.
    #[must_use]
    pub fn view(&self) -> &View {
        &self.shared.view
    }

    /// The follower that keeps [`Self::view`]. Run one for each process.
    #[must_use]
    pub fn follower(&self) -> Follower {
        Follower {
            reader: self.parts.store.endings_reader(),
            shared: Arc::clone(&self.shared),
            heads: self.parts.head_seal(),
            metrics: Arc::clone(&self.parts.metrics),
            read_to: None,
            awaited: Awaited::default(),
            failures: 0,
        }
    }
}

impl Follower {
    /// Follows until `stop`. Calls `wake` with the acts for which other parts of the broker wait.
    pub async fn run(
        mut self,
        stop: CancellationToken,
        wake: impl Fn(Awaited) + Send,
    ) -> Result<(), Infallible> {
        loop {
            let began = Instant::now();
            let followed = self.follow().await;
            let ended = Instant::now();
            self.note(followed);
            // Also after a failure: earlier pages were read.
            let awaited = std::mem::take(&mut self.awaited);
            if awaited != Awaited::default() {
                wake(awaited);
            }
            self.measure();
            if self.failures > 0 {
                // Hints do not shorten this pause.
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return Ok(()),
                    () = tokio::time::sleep(pause_after(self.failures)) => {}
                }
                continue;
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = self.shared.endings.notified() => {}
                () = self.reader.notified() => {}
                () = tokio::time::sleep_until((began + INTERVAL).into()) => {}
            }
            tokio::time::sleep_until((ended + LEAST_INTERVAL).into()).await;
        }
    }

    /// Reads all endings up to the newest head.
    pub async fn read_on(&mut self) -> Result<(), StoreError> {
        self.follow().await.map_err(|why| match why {
            FollowError::Store(error) => error,
            FollowError::TooSlow => StoreError::Unavailable(sqlx::Error::PoolTimedOut),
            FollowError::Forged(why) => StoreError::Forged(why),
        })
    }

    /// Reads all endings up to the newest head. A forged row stops the ledger.
    async fn follow(&mut self) -> Result<(), FollowError> {
        let followed = self.try_follow().await;
        if let Err(FollowError::Forged(why)) = &followed {
            // A later reason does not replace the first.
            if self.shared.alarm.set(why.clone()).is_ok() {
                error!(why, "the ledger stops");
            }
        }
        followed
    }

    async fn try_follow(&mut self) -> Result<(), FollowError> {
        let Some(read_to) = self.read_to else {
            return self.begin().await;
        };
        let mut walk = Walk::after(read_to);
        loop {
            // Taken before the statement is sent: the view is at least as recent.
            let as_of = BootInstant::now();
            let page = self.page(walk.at().position, PAGE_ROWS).await?;
            let (head, chain) = self.open_head(page.head.as_ref())?;
            walk.step(&page, head, chain)?;
            if walk.is_broken() {
                if page.is_full {
                    // The rows up to the head show whether they are a broker's.
                    continue;
                }
                error!(
                    read_to = ?self.read_to,
                    size = head.size,
                    "the table of endings does not continue the rows that were read before: \
                     rows were deleted, or the database failed over; the view starts again"
                );
                self.read_to = None;
                self.awaited = Awaited::ANY;
                return self.begin().await;
            }
            self.shared
                .view
                .learn(page.rows.iter().map(|row| &row.record));
            for row in &page.rows {
                self.awaited.add(&row.record.subject);
            }
            self.read_to = Some(walk.at());
            if !page.is_full {
                self.shared.view.complete(head.size, as_of);
                self.purge();
                return Ok(());
            }
        }
    }

    /// Begins with the newest head.
    async fn begin(&mut self) -> Result<(), FollowError> {
        let as_of = BootInstant::now();
        // No rows, only the head.
        let page = self.page(None, 0).await?;
        let (head, chain) = self.open_head(page.head.as_ref())?;
        self.shared.view.begin(head.size, as_of);
        self.read_to = Some(ReadTo::head(head, chain));
        Ok(())
    }

    async fn page(
        &mut self,
        after: Option<EndingPosition>,
        limit: u32,
    ) -> Result<EndingsPage, FollowError> {
        let reading = self.reader.read(after, limit);
        let read = tokio::time::timeout(PATIENCE, reading).await;
        Ok(read.map_err(|_| FollowError::TooSlow)??)
    }

    /// The newest head and the digest of all endings, if a broker of this log wrote them and the
    /// view does not know a newer head.
    fn open_head(&self, sealed: Option<&SealedHead>) -> Result<(Head, EndingsChain), FollowError> {
        let head = sealed.map(|sealed| self.heads.open(sealed)).transpose()?;
        let head = head.unwrap_or(EMPTY);
        let known = self.shared.view.complete_to();
        if head.size < known {
            return Err(FollowError::Store(StoreError::NotPrimary(format!(
                "it shows {} leaves, and {known} were read before",
                head.size
            ))));
        }
        Ok((
            head,
            sealed.map_or(EndingsChain::EMPTY, SealedHead::endings),
        ))
    }

    /// Forgets endings that no longer matter. Not while the clock is in doubt.
    fn purge(&self) {
        let reading = self.shared.clock.judge();
        if reading.doubt.is_none() {
            let before = reading.now.minus_seconds(MARGIN_SECONDS);
            self.shared.view.purge(before);
        }
    }

    /// Counts the failures, and logs the first of several and the end of them.
    fn note(&mut self, followed: Result<(), FollowError>) {
        match followed {
            Ok(()) => {
                if self.failures > 0 {
                    info!("the table of endings is followed again");
                }
                self.failures = 0;
            }
            Err(why) => {
                if self.failures == 0 {
                    warn!(error = %why, "the table of endings cannot be followed");
                }
                self.failures = self.failures.saturating_add(1);
            }
        }
    }

    fn measure(&self) {
        let view = &self.shared.view;
        self.metrics
            .endings_view(view.complete_to(), view.age(), view.known());
    }
}

/// The head of an empty log.
const EMPTY: Head = Head {
    size: 0,
    root: EMPTY_ROOT,
};

/// The pause after the last of several failures.
fn pause_after(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(8);
    (INTERVAL * 2_u32.pow(doublings)).min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests;
