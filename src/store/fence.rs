//! Keeps reads away from a database server that is no longer the primary.
//!
//! After a failover a connection of the pool can lead to the old primary, which still answers
//! reads. [`super::postgres::Postgres::acquire`] makes three checks each time it takes a connection
//! from the pool:
//! - The server must show at least as many leaves as this process knows to be committed. A server
//!   only ever gains leaves, so every later statement on that connection sees at least as many.
//! - The server must not be in recovery, as a standby is.
//! - Connections from before a failure of a server are not used again ([`Fence::retire`]).
//!
//! Rows that decide validity are also subject to the read lease ([`Fence::check_lease`]): they are
//! returned only within a few seconds of a synchronous commit that the same server acknowledged to
//! this process ([`super::lease`]). A process that has seen nothing newer cannot tell an isolated
//! old primary by the number of leaves. It can by the commit: without its synchronous standby,
//! which was promoted, the old primary acknowledges none.
//!
//! A refused read is `NotPrimary` with the reason. [`Fence`] only keeps the state and judges it:
//! `super::postgres` makes the connections, and `super::lease` the commits.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tracing::warn;

use super::StoreError;
use crate::clock::{BootInstant, Timestamp};

/// How long a server that was refused on a new connection stays refused without another check, so
/// that a burst of requests does not cause a burst of connections.
const REFUSED_FOR: Duration = Duration::from_millis(200);

/// The state of a connection's server.
#[derive(Clone, Copy, Debug)]
pub(super) struct ServerState {
    /// The number of leaves in its newest head.
    pub(super) size: u64,
    /// The server's start time; it differs between two servers with the same data.
    pub(super) since: Timestamp,
    /// Whether it is in recovery, as a standby is.
    pub(super) in_recovery: bool,
}

/// A synchronous commit that a server acknowledged.
#[derive(Clone, Copy, Debug)]
struct Proof {
    /// The server's start time.
    since: Timestamp,
    /// An instant before the commit was sent.
    asked: BootInstant,
}

/// The state that all connections of one process are checked against.
#[derive(Debug, Default)]
pub(super) struct Fence {
    /// The number of leaves that are known to be committed.
    known: AtomicU64,
    /// Connections that were made before this instant are not used.
    retired: Mutex<Option<Instant>>,
    /// The last refusal on a new connection, and its time.
    refused: Mutex<Option<(Instant, String)>>,
    /// The last acknowledged commit.
    proof: Mutex<Option<Proof>>,
    /// The longest age of `proof`. Unset for tools, whose reads need no lease.
    lease: OnceLock<Duration>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each mutex guards one value that is always replaced whole, so a poisoned lock is harmless.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Fence {
    /// The number of leaves that are known to be committed.
    pub(super) fn known(&self) -> u64 {
        self.known.load(Ordering::SeqCst)
    }

    /// Records that this many leaves are committed.
    pub(super) fn raise(&self, size: u64) {
        self.known.fetch_max(size, Ordering::SeqCst);
    }

    /// Retires the connections that exist now: they are not used again.
    pub(super) fn retire(&self) {
        *lock(&self.retired) = Some(Instant::now());
    }

    /// Whether a connection of this age may be used. False if it was made before the last
    /// [`Self::retire`].
    pub(super) fn admits(&self, age: Duration) -> bool {
        let Some(retired) = *lock(&self.retired) else {
            return true;
        };
        retired.elapsed() > age
    }

    /// The reason not to read from a server. `None` if it may be read from. `known` was read before
    /// `shown`.
    pub(super) fn refusal(known: u64, shown: ServerState) -> Option<String> {
        if shown.in_recovery {
            return Some("it is in recovery, as a standby is".to_owned());
        }
        (shown.size < known).then(|| {
            format!(
                "it shows {} leaves, and {known} are known to be committed",
                shown.size
            )
        })
    }

    /// Records that a new connection led to a server that was refused.
    pub(super) fn note_refusal(&self, why: &str) {
        let mut refused = lock(&self.refused);
        let news = refused.as_ref().is_none_or(|(_, known)| known != why);
        *refused = Some((Instant::now(), why.to_owned()));
        drop(refused);
        if news {
            warn!(
                why,
                "the database's address leads to a server that is not the primary"
            );
        }
    }

    /// Records that a connection led to a server that was accepted.
    pub(super) fn note_admission(&self) {
        lock(&self.refused).take();
    }

    /// The last refusal, if it is not older than [`REFUSED_FOR`]. `None` if a connection may be
    /// tried.
    pub(super) fn recent_refusal(&self) -> Option<StoreError> {
        let refused = lock(&self.refused);
        let (at, why) = refused.as_ref()?;
        (at.elapsed() < REFUSED_FOR).then(|| StoreError::NotPrimary(why.clone()))
    }

    /// From now on rows that decide validity are returned only within `bound` of a commit.
    pub(super) fn demand_lease(&self, bound: Duration) {
        // A second call has no effect; there is one configuration.
        self.lease.get_or_init(|| bound);
    }

    /// Records that a server acknowledged a synchronous commit that was sent at or after `asked`.
    pub(super) fn prove(&self, since: Timestamp, asked: BootInstant) {
        let before = lock(&self.proof).replace(Proof { since, asked });
        if before.is_some_and(|before| before.since != since) {
            self.retire();
        }
    }

    /// The time since the last acknowledged commit was sent. `None` if none was acknowledged yet.
    pub(super) fn lease_age(&self) -> Option<Duration> {
        (*lock(&self.proof)).map(|proof| proof.asked.elapsed())
    }

    /// Checks that the lease holds; with `since`, also that it is a lease of the server with this
    /// start time. Call it after the read: the result was then true at the time of the commit or
    /// later.
    pub(super) fn check_lease(&self, since: Option<Timestamp>) -> Result<(), StoreError> {
        let Some(bound) = self.lease.get() else {
            return Ok(());
        };
        let proof = *lock(&self.proof);
        let lapsed = |age: Option<Duration>| {
            let since = age.map_or_else(
                || "yet".to_owned(),
                |age| format!("for {} ms", age.as_millis()),
            );
            StoreError::NotPrimary(format!(
                "it acknowledged no synchronous commit {since}, and read_lease_seconds is {}",
                bound.as_secs()
            ))
        };
        let Some(proof) = proof else {
            return Err(lapsed(None));
        };
        let age = proof.asked.elapsed();
        if age > *bound {
            return Err(lapsed(Some(age)));
        }
        if since.is_some_and(|since| since != proof.since) {
            self.retire();
            return Err(StoreError::NotPrimary(
                "it is not the server that acknowledges this replica's commits".to_owned(),
            ));
        }
        Ok(())
    }
}

/// Whether an error makes a connection, or its server, unusable: the connection broke, the server
/// shuts down, or it accepts no writes.
pub(super) fn ends_connection(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::Protocol(_) | sqlx::Error::Tls(_) => true,
        sqlx::Error::Database(error) => {
            let code = error.code().unwrap_or_default();
            // Connection exceptions; operator intervention except cancelled statements; a read-only
            // transaction.
            code.starts_with("08") || code.starts_with("57P") || code == "25006"
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(size: u64) -> ServerState {
        ServerState {
            size,
            since: Timestamp::EPOCH,
            in_recovery: false,
        }
    }

    #[test]
    fn a_server_that_lacks_a_known_leaf_or_is_a_standby_is_refused() {
        let fence = Fence::default();
        fence.raise(5);
        fence.raise(3);
        assert_eq!(fence.known(), 5);
        assert!(Fence::refusal(fence.known(), shown(5)).is_none());
        assert!(Fence::refusal(fence.known(), shown(6)).is_none());
        let behind = Fence::refusal(fence.known(), shown(4)).unwrap();
        assert!(behind.contains("shows 4 leaves, and 5"), "{behind}");
        let standby = ServerState {
            in_recovery: true,
            ..shown(9)
        };
        assert!(Fence::refusal(0, standby).unwrap().contains("recovery"));
    }

    #[test]
    fn connections_from_before_a_retirement_are_not_used() {
        let fence = Fence::default();
        assert!(fence.admits(Duration::from_hours(1)));
        fence.retire();
        assert!(!fence.admits(Duration::from_hours(1)));
        std::thread::sleep(Duration::from_millis(2));
        assert!(fence.admits(Duration::ZERO));
    }

    #[test]
    fn the_lease_is_of_one_server_and_lapses() {
        let (one, other) = (Timestamp::EPOCH, Timestamp::from_seconds(1));
        let fence = Fence::default();
        // Tools that only read a store hold no lease.
        fence.check_lease(Some(one)).unwrap();
        fence.demand_lease(Duration::from_secs(5));
        fence.check_lease(None).unwrap_err();
        fence.prove(one, BootInstant::now());
        fence.check_lease(Some(one)).unwrap();
        fence.check_lease(None).unwrap();
        fence.check_lease(Some(other)).unwrap_err();
        let long_ago = BootInstant::now().minus(Duration::from_secs(6));
        fence.prove(one, long_ago);
        let lapsed = fence.check_lease(Some(one)).unwrap_err().to_string();
        assert!(lapsed.contains("no synchronous commit for 60"), "{lapsed}");
    }

    #[test]
    fn a_commit_on_another_server_retires_what_leads_to_the_old_one() {
        let fence = Fence::default();
        fence.prove(Timestamp::EPOCH, BootInstant::now());
        assert!(fence.admits(Duration::from_hours(1)));
        fence.prove(Timestamp::from_seconds(1), BootInstant::now());
        assert!(!fence.admits(Duration::from_hours(1)));
    }
}
