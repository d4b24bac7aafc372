//! Follows the endings in the log, for one replica.
//!
//! [`Follower::run`] reads the table of endings by a connection of its own, at least every
//! [`INTERVAL`], and adds the rows to the replica's [`View`]. A commit of this replica and
//! a notification of PostgreSQL make it read earlier; both are hints, and neither is relied on.
//!
//! The rule: a page and the newest head come from one statement, the head carries the digest of all
//! endings under its MAC, and the server passed the fence and the lease. Only a page whose digest
//! equals that of the head makes the view complete. The view begins with the newest head, without
//! earlier endings. Failures: while the store does not answer, the view grows old, and
//! its users read the store. A head or a row that no broker of this log wrote stops the ledger. If
//! the rows do not continue those that were read before, they were deleted or belong to another
//! server: the view starts again with the newest head. A server that shows fewer leaves than before
//! is not followed. `app` runs the follower.

mod view;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

pub use self::view::{KnownEndings, STALE_AFTER, View};
use super::{Ledger, Shared};
use crate::clock::BootInstant;
use crate::merkle::EMPTY_ROOT;
use crate::metrics::Metrics;
use crate::store::StoreError;
use crate::store::endings::{ChainedEnding, EndingPosition, EndingSubject, EndingsChain};
use crate::store::endings_reader::{EndingsPage, EndingsReader};
use crate::store::heads::{ForeignHead, Head, HeadSeal, SealedHead};

/// The longest time between two reads.
pub const INTERVAL: Duration = Duration::from_millis(50);

/// The least time between two reads, however many hints come.
const LEAST_INTERVAL: Duration = Duration::from_millis(5);

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
    /// Whether the last read failed.
    is_failing: bool,
}

/// How far the table was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ReadTo {
    /// The position of the last row. `None` in an empty log.
    position: Option<EndingPosition>,
    /// The digest of the rows up to there.
    chain: EndingsChain,
}

impl ReadTo {
    /// After every ending below a head.
    fn head(head: Head, chain: EndingsChain) -> Self {
        // No row of the head's last leaf follows this position.
        let last = head.size.checked_sub(1);
        let position = last.map(|index| EndingPosition { index, n: u64::MAX });
        Self { position, chain }
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

/// Whether a page continues the rows that were read before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Continuity {
    /// It does; the digest after its last row.
    Continues(EndingsChain),
    /// It does not: rows were deleted, or the server is another one.
    Broken,
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
            is_failing: false,
        }
    }
}

impl Follower {
    /// Follows until `stop`. Calls `wake` after an act for which other parts of the broker wait: a
    /// cutoff, an activation, or a change of keys or roles.
    pub async fn run(
        mut self,
        stop: CancellationToken,
        wake: impl Fn() + Send,
    ) -> Result<(), Infallible> {
        loop {
            let began = Instant::now();
            match self.follow().await {
                Ok(wakes) => {
                    if wakes {
                        wake();
                    }
                    self.note(None);
                }
                Err(why) => self.note(Some(why)),
            }
            self.measure();
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = self.shared.endings.notified() => {}
                () = self.reader.notified() => {}
                () = tokio::time::sleep_until((began + INTERVAL).into()) => {}
            }
            tokio::time::sleep_until((began + LEAST_INTERVAL).into()).await;
        }
    }

    /// Reads all endings up to the newest head. Returns whether other parts of the broker wait for
    /// one of them.
    pub async fn read_on(&mut self) -> Result<bool, StoreError> {
        self.follow().await.map_err(|why| match why {
            FollowError::Store(error) => error,
            FollowError::TooSlow => StoreError::Unavailable(sqlx::Error::PoolTimedOut),
            FollowError::Forged(why) => StoreError::Forged(why),
        })
    }

    /// Reads all endings up to the newest head. A forged row stops the ledger.
    async fn follow(&mut self) -> Result<bool, FollowError> {
        let followed = self.try_follow().await;
        if let Err(FollowError::Forged(why)) = &followed {
            // A later reason does not replace the first.
            if self.shared.alarm.set(why.clone()).is_ok() {
                error!(why, "the ledger stops");
            }
        }
        followed
    }

    async fn try_follow(&mut self) -> Result<bool, FollowError> {
        let mut wakes = false;
        loop {
            // Taken before the statement is sent: the view is at least as recent.
            let as_of = BootInstant::now();
            let Some(read_to) = self.read_to else {
                self.begin(as_of).await?;
                return Ok(wakes);
            };
            let page = self.page(read_to.position, PAGE_ROWS).await?;
            let (head, chain) = self.open_head(page.head.as_ref())?;
            match continuity(read_to.chain, &page, head, chain)? {
                Continuity::Broken => {
                    error!(
                        read_to = ?read_to.position,
                        size = head.size,
                        "the table of endings does not continue the rows that were read before: \
                         rows were deleted, or the database failed over; the view starts again"
                    );
                    self.read_to = None;
                }
                Continuity::Continues(after) => {
                    let view = &self.shared.view;
                    view.learn(page.rows.iter().map(|row| &row.record));
                    wakes |= page.rows.iter().any(wakes_others);
                    if !page.is_full {
                        view.complete(head.size, as_of);
                        self.read_to = Some(ReadTo::head(head, after));
                        self.purge();
                        return Ok(wakes);
                    }
                    let last = page.rows.last().map(|row| row.record.position);
                    self.read_to = Some(ReadTo {
                        position: last.or(read_to.position),
                        chain: after,
                    });
                }
            }
        }
    }

    /// Begins with the newest head.
    async fn begin(&mut self, as_of: BootInstant) -> Result<(), FollowError> {
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

    /// Logs the first of several failures, and the end of them.
    fn note(&mut self, failed: Option<FollowError>) {
        let was_failing = std::mem::replace(&mut self.is_failing, failed.is_some());
        match failed {
            Some(why) if !was_failing => {
                warn!(error = %why, "the table of endings cannot be followed");
            }
            None if was_failing => info!("the table of endings is followed again"),
            Some(_) | None => {}
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

/// Whether other parts of the broker wait for an ending. The sweeper of the replica that ended a
/// task or a session finishes it.
fn wakes_others(row: &ChainedEnding) -> bool {
    match row.record.subject {
        EndingSubject::Task(_) | EndingSubject::Session(_) => false,
        EndingSubject::Cutoff(_)
        | EndingSubject::Lift(_)
        | EndingSubject::SigningKey(_)
        | EndingSubject::Activation(_)
        | EndingSubject::Roles(_)
        | EndingSubject::WorkloadKey(_) => true,
    }
}

/// Whether a page continues the rows with the digest `known`. The rows of a page come from one
/// snapshot with the head, so they must be consistent with each other and with the head; only the
/// first one may fail to continue the rows of an earlier snapshot.
fn continuity(
    known: EndingsChain,
    page: &EndingsPage,
    head: Head,
    newest: EndingsChain,
) -> Result<Continuity, FollowError> {
    let forged = |row: &ChainedEnding| {
        let EndingPosition { index, n } = row.record.position;
        FollowError::Forged(format!(
            "the table ending: row {n} of leaf {index}, or a row next to it, was not written by a \
             broker of this log; nothing is issued; find out who wrote it"
        ))
    };
    let Some((first, rest)) = page.rows.split_first() else {
        return Ok(if known == newest {
            Continuity::Continues(known)
        } else {
            Continuity::Broken
        });
    };
    let mut chain = first.after();
    let mut last = first;
    for row in rest {
        if row.before != chain || row.record.position <= last.record.position {
            return Err(forged(row));
        }
        chain = row.after();
        last = row;
    }
    let beyond = last.record.position.index >= head.size;
    if beyond || (!page.is_full && chain != newest) {
        return Err(forged(last));
    }
    if first.before == known {
        Ok(Continuity::Continues(chain))
    } else {
        Ok(Continuity::Broken)
    }
}

#[cfg(test)]
mod tests;
