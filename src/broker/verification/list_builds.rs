//! The builds of status lists, and the lists that they made.
//!
//! [`ListBuilds::kept`] is a list that may still be served; [`ListBuilds::get`] builds one, or waits
//! for the build that runs. Clients without authentication cause this work, so each list has one
//! build at most, and one list of each [`Lane`] is built at a time.
//!
//! The rule: a build is tracked work that does not depend on the request that caused it. Its list is
//! kept for the next request, so a request that times out loses nothing. A build that waits for its
//! turn ends when the replica stops. Failures: every failure of a build is `FailClosed` for all
//! requests that wait for it, and is not kept. `super::status_lists` builds.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::Shared;
use moka::sync::Cache;
use tokio::sync::Semaphore;

use crate::broker::error::BrokerError;
use crate::clock::Timestamp;
use crate::domain::limits::MAX_CLOCK_STEP_SECONDS;
use crate::domain::status_list::STATUS_LIST_SECONDS;
use crate::shutdown::{Shutdown, Task};

/// For how many seconds a built list is served.
pub(super) const BUILT_FOR_SECONDS: u64 = 10;

/// The number of kept lists, about 11 KB each: those of the last 64 million credentials.
const MAX_KEPT: u64 = 1_024;

/// The failure of a build that took too long.
pub(super) const TOO_SLOW: &str = "the status list took longer to build than it would be valid";

/// A signed status list.
#[derive(Debug)]
pub struct StatusList {
    /// The list as a signed token.
    pub token: String,
    /// The expiry in the token.
    pub expires_at: Timestamp,
    /// The time from which on a new list is built.
    pub(super) served_until: Timestamp,
}

/// The builds that wait for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// Lists for which the rows of sessions are read.
    Rows,
    /// Lists of which every credential is invalid. They only have to be signed.
    Over,
}

/// The result of a build. The error is its text, because all that wait for it share it.
type Built = Result<Arc<StatusList>, String>;

/// The builds that run, and their results.
pub(super) struct ListBuilds {
    /// The lists that were built, by number.
    kept: Cache<u64, Arc<StatusList>>,
    /// The builds that run or wait for their turn, by the number of the list.
    running: Mutex<HashMap<u64, Shared<Task<Built>>>>,
    rows: Semaphore,
    over: Semaphore,
}

impl Default for ListBuilds {
    fn default() -> Self {
        Self {
            kept: Cache::builder()
                .max_capacity(MAX_KEPT)
                .time_to_live(Duration::from_secs(BUILT_FOR_SECONDS))
                .build(),
            running: Mutex::default(),
            rows: Semaphore::new(1),
            over: Semaphore::new(1),
        }
    }
}

/// Marks a build as running until it is dropped.
struct Running<'b> {
    builds: &'b ListBuilds,
    list: u64,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.builds.running().remove(&self.list);
    }
}

impl ListBuilds {
    fn running(&self) -> MutexGuard<'_, HashMap<u64, Shared<Task<Built>>>> {
        // No code panics while it holds the lock.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turns(&self, lane: Lane) -> &Semaphore {
        match lane {
            Lane::Rows => &self.rows,
            Lane::Over => &self.over,
        }
    }

    /// The list of this number, if one was built that may be served at `now`.
    pub(super) fn kept(&self, list: u64, now: Timestamp) -> Option<Arc<StatusList>> {
        let kept = self.kept.get(&list)?;
        // The clock may have been set back.
        let latest = now.plus_seconds(BUILT_FOR_SECONDS + MAX_CLOCK_STEP_SECONDS);
        (now < kept.served_until && kept.served_until <= latest).then_some(kept)
    }

    /// The list of this number: the one that may be served at `now`, the result of the build that
    /// runs, or that of `build`.
    pub(super) async fn get(
        self: &Arc<Self>,
        (list, now): (u64, Timestamp),
        lane: Lane,
        shutdown: &Shutdown,
        build: impl Future<Output = Result<StatusList, BrokerError>> + Send + 'static,
    ) -> Result<Arc<StatusList>, BrokerError> {
        let result = {
            let mut running = self.running();
            // A build that has just ended has left its list here.
            if let Some(kept) = self.kept(list, now) {
                return Ok(kept);
            }
            let begin = || self.begin(list, lane, shutdown, build).shared();
            running.entry(list).or_insert_with(begin).clone()
        };
        result
            .await
            .map_err(|_| BrokerError::bug("the build of a status list ended without a result"))?
            .map_err(BrokerError::store)
    }

    fn begin(
        self: &Arc<Self>,
        list: u64,
        lane: Lane,
        shutdown: &Shutdown,
        build: impl Future<Output = Result<StatusList, BrokerError>> + Send + 'static,
    ) -> Task<Built> {
        let (builds, stopping) = (Arc::clone(self), shutdown.stopping());
        shutdown.spawn("status_list", async move {
            let _running = Running {
                builds: &builds,
                list,
            };
            let turn = tokio::select! {
                biased;
                turn = builds.turns(lane).acquire() => turn.map_err(|error| error.to_string())?,
                () = stopping => return Err("the replica stops".to_owned()),
            };
            // A list that took longer would be out of date.
            let patience = Duration::from_secs(STATUS_LIST_SECONDS);
            let ended = tokio::time::timeout(patience, build).await;
            drop(turn);
            let outcome = ended.map_err(|_| TOO_SLOW.to_owned())?;
            let made = Arc::new(outcome.map_err(|error| error.to_string())?);
            builds.kept.insert(list, Arc::clone(&made));
            Ok(made)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::sync::oneshot;

    use super::*;
    use crate::metrics::Metrics;

    fn begin() -> (Arc<ListBuilds>, Shutdown) {
        let shutdown = Shutdown::new(Arc::new(Metrics::new()));
        (Arc::default(), shutdown)
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_seconds(1_800_000_000 + seconds)
    }

    /// A list that was built at `seconds`.
    fn list(token: &str, seconds: i64) -> StatusList {
        StatusList {
            token: token.to_owned(),
            expires_at: at(seconds + 30),
            served_until: at(seconds + 10),
        }
    }

    #[tokio::test]
    async fn a_request_that_does_not_wait_loses_nothing() {
        let (builds, shutdown) = begin();
        let (finish, finished) = oneshot::channel::<()>();
        let slow = async move {
            finished.await.unwrap();
            Ok(list("slow", 12))
        };
        let first = builds.get((0, at(0)), Lane::Rows, &shutdown, slow);
        assert!(first.now_or_never().is_none());
        let other = || async { Ok(list("other", 0)) };
        let second = builds.get((0, at(1)), Lane::Rows, &shutdown, other());
        assert!(second.now_or_never().is_none());
        finish.send(()).unwrap();
        let third = builds.get((0, at(12)), Lane::Rows, &shutdown, other());
        assert_eq!(third.await.unwrap().token, "slow");
        assert_eq!(builds.kept(0, at(21)).unwrap().token, "slow");
        assert!(builds.running().is_empty());
    }

    #[tokio::test]
    async fn a_list_is_kept_until_its_time_and_by_the_right_clock() {
        let (builds, shutdown) = begin();
        for (now, token, expected) in [
            (0, "a", "a"),
            (9, "b", "a"),
            (10, "c", "c"),
            (-100, "d", "d"),
        ] {
            let build = async move { Ok(list(token, now)) };
            let shown = builds.get((7, at(now)), Lane::Rows, &shutdown, build);
            assert_eq!(shown.await.unwrap().token, expected, "{now}");
        }
    }

    #[tokio::test]
    async fn a_failure_is_told_and_not_kept() {
        let (builds, shutdown) = begin();
        let fails = async { Err(BrokerError::keys("no key may sign now")) };
        let failed = builds.get((0, at(0)), Lane::Rows, &shutdown, fails);
        let told = failed.await.unwrap_err().to_string();
        assert!(told.contains("no key may sign now"), "{told}");
        let panics = async { panic!("on purpose") };
        let lost = builds.get((0, at(0)), Lane::Rows, &shutdown, panics);
        lost.await.unwrap_err();
        let works = builds.get((0, at(0)), Lane::Rows, &shutdown, async {
            Ok(list("a", 0))
        });
        assert_eq!(works.await.unwrap().token, "a");
    }

    #[tokio::test]
    async fn one_list_is_built_at_a_time_and_those_that_are_over_do_not_wait() {
        let (builds, shutdown) = begin();
        let (finish, finished) = oneshot::channel::<()>();
        let slow = async move {
            finished.await.unwrap();
            Ok(list("slow", 0))
        };
        let mut first = pin!(builds.get((0, at(0)), Lane::Rows, &shutdown, slow));
        assert!(first.as_mut().now_or_never().is_none());
        let begun = Arc::new(AtomicBool::new(false));
        let begins = Arc::clone(&begun);
        let next = async move {
            begins.store(true, Ordering::SeqCst);
            Ok(list("next", 0))
        };
        let mut second = pin!(builds.get((1, at(0)), Lane::Rows, &shutdown, next));
        assert!(second.as_mut().now_or_never().is_none());
        let over = builds.get((2, at(0)), Lane::Over, &shutdown, async {
            Ok(list("over", 0))
        });
        assert_eq!(over.await.unwrap().token, "over");
        assert!(!begun.load(Ordering::SeqCst));
        finish.send(()).unwrap();
        assert_eq!(first.await.unwrap().token, "slow");
        assert_eq!(second.await.unwrap().token, "next");
    }

    #[tokio::test]
    async fn a_build_that_waits_for_its_turn_does_not_hold_up_a_stop() {
        let (builds, shutdown) = begin();
        let hangs = builds.get((0, at(0)), Lane::Rows, &shutdown, std::future::pending());
        assert!(hangs.now_or_never().is_none());
        let waits = builds.get((1, at(0)), Lane::Rows, &shutdown, async {
            Ok(list("a", 0))
        });
        let mut waits = pin!(waits);
        assert!(waits.as_mut().now_or_never().is_none());
        let stopped = shutdown.drain_then_stop(Duration::ZERO, Duration::ZERO);
        assert_eq!(stopped.await.unfinished_workers, 0);
        let told = waits.await.unwrap_err().to_string();
        assert!(told.contains("the replica stops"), "{told}");
    }
}
