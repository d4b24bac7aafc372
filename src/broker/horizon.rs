//! The stored horizon: an instant that slowly follows the clocks of all replicas. Deletions use it
//! as the present, so that a clock that is ahead cannot make the broker delete rows that it still
//! needs.
//!
//! `Horizon` is this process's knowledge of it. `may_be` computes how far it may advance,
//! `moved_to` registers that it was written, `forget` discards everything after a doubt about the
//! clock, and `tasks_over_by` gives the instant for the expiry of tasks.
//!
//! The rule: the horizon never passes the clock, and advances at most at `HORIZON_PACE` times the
//! running time, regardless of the number of replicas and of restarts. Nothing here fails. As long
//! as nothing was read, `known` and `tasks_over_by` return the epoch, so that nothing counts as
//! expired. Only `broker::core` calls this module; it reads and writes the row and judges the
//! clock.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::Timestamp;
use crate::domain::limits::HORIZON_PACE;

/// The horizon is written when it can advance by this many seconds: once in ten seconds while it is
/// up to date.
pub(super) const HORIZON_STEP_SECONDS: u64 = 10;

/// The horizon counts as up to date up to this lag. It exceeds the step between two writes.
const HORIZON_LAG_SECONDS: u64 = 60;

/// While the horizon is not up to date, the sweeper records the expiry of tasks by a clock only
/// after the process has relied on that clock for this long.
const SETTLED_AFTER: Duration = Duration::from_mins(10);

/// This process's knowledge of the stored horizon.
///
/// All replicas advance the same row. Each computes how far the horizon may be from the first value
/// that it read and from the time that it has run since. It never adds to the advance of another
/// replica. So the row advances at the pace of one replica, regardless of the number of replicas
/// and of restarts.
#[derive(Debug, Default)]
pub(super) struct Horizon(Mutex<Option<HorizonReading>>);

#[derive(Clone, Copy, Debug)]
struct HorizonReading {
    /// The first value that was read.
    first: Timestamp,
    /// The reading of the running clock at that moment.
    since: Duration,
    /// The last value that was read or written.
    last: Timestamp,
    /// The instant that the horizon may have reached. It can be slightly ahead of the stored value.
    may_be: Timestamp,
}

impl Horizon {
    fn state(&self) -> MutexGuard<'_, Option<HorizonReading>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Discards all values, because the clock was in doubt.
    pub(super) fn forget(&self) {
        *self.state() = None;
    }

    /// The instant that the horizon may reach at `now`. `stored` is the stored value, and `running`
    /// the reading of the running clock.
    pub(super) fn may_be(&self, stored: Timestamp, running: Duration, now: Timestamp) -> Timestamp {
        let mut state = self.state();
        let begin = HorizonReading {
            first: stored,
            since: running,
            last: stored,
            may_be: stored,
        };
        // A smaller value than before comes from a restored database or an accepted time: start
        // again.
        let known = state.filter(|known| stored >= known.last).unwrap_or(begin);
        let passed = running.saturating_sub(known.since);
        let credit = u64::try_from(passed.as_millis()).unwrap_or(u64::MAX) / 1_000 * HORIZON_PACE;
        let may_be = known.first.plus_seconds(credit).max(stored).min(now);
        *state = Some(HorizonReading {
            last: stored,
            may_be,
            ..known
        });
        may_be
    }

    /// The last result of [`Self::may_be`]; the epoch if there is none.
    pub(super) fn known(&self) -> Timestamp {
        self.state().map_or(Timestamp::EPOCH, |known| known.may_be)
    }

    /// Registers that this process wrote the horizon.
    pub(super) fn moved_to(&self, at: Timestamp) {
        if let Some(known) = self.state().as_mut() {
            known.last = at;
        }
    }

    /// The sweeper records the expiry of tasks that expired before this instant.
    pub(super) fn tasks_over_by(&self, running: Duration, now: Timestamp) -> Timestamp {
        let Some(known) = *self.state() else {
            return Timestamp::EPOCH;
        };
        let up_to_date = known.may_be.plus_seconds(HORIZON_LAG_SECONDS) >= now;
        if up_to_date || running.saturating_sub(known.since) >= SETTLED_AFTER {
            return now;
        }
        known.may_be
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_seconds(1_800_000_000).plus_seconds(seconds)
    }

    /// A replica with its own clock, which reads the shared row and advances it.
    struct Replica(Horizon);

    impl Replica {
        fn new() -> Self {
            Self(Horizon::default())
        }

        fn advance(&self, row: &mut Timestamp, running: u64, now: Timestamp) {
            let may_be = self.0.may_be(*row, Duration::from_secs(running), now);
            if may_be > *row {
                *row = may_be;
                self.0.moved_to(may_be);
            }
        }
    }

    const AHEAD: u64 = 31 * 86_400;

    #[test]
    fn a_clock_that_is_ahead_moves_the_horizon_by_its_pace_alone() {
        let (replica, mut row) = (Replica::new(), at(0));
        for second in 0..=75 {
            replica.advance(&mut row, second, at(AHEAD + second));
        }
        assert_eq!(row, at(75 * HORIZON_PACE));
        // The correct clock is behind the horizon, which then does not move, not even back.
        replica.advance(&mut row, 76, at(76));
        assert_eq!(row, at(75 * HORIZON_PACE));
    }

    #[test]
    fn many_replicas_move_the_horizon_no_faster_than_one() {
        let mut row = at(0);
        let replicas: Vec<Replica> = (0..20).map(|_| Replica::new()).collect();
        for second in 0..=75 {
            for (number, replica) in (0..).zip(&replicas) {
                // Each replica has another running time.
                replica.advance(&mut row, 1_000 * number + second, at(AHEAD));
            }
        }
        assert_eq!(row, at(75 * HORIZON_PACE));
    }

    #[test]
    fn restarts_in_a_loop_move_the_horizon_no_faster() {
        let mut row = at(0);
        for begin in 0..75 {
            // It reads the row a hundred times within one second.
            let replica = Replica::new();
            for _ in 0..100 {
                replica.advance(&mut row, begin, at(AHEAD));
            }
            replica.advance(&mut row, begin + 1, at(AHEAD));
        }
        assert!(row <= at(75 * HORIZON_PACE), "{row}");
    }

    #[test]
    fn the_horizon_never_passes_the_clock_and_catches_up_with_it() {
        let (replica, mut row) = (Replica::new(), at(0));
        // No replica ran for a day.
        let day = 86_400;
        for second in 0..=3_757 {
            replica.advance(&mut row, second, at(day + second));
            assert!(row <= at(day + second));
        }
        assert_eq!(row, at(day + 3_757));
    }

    #[test]
    fn a_horizon_that_was_set_back_is_a_new_beginning() {
        let (replica, mut row) = (Replica::new(), at(AHEAD));
        replica.advance(&mut row, 0, at(AHEAD));
        replica.advance(&mut row, 10_000, at(AHEAD));
        row = at(0);
        replica.advance(&mut row, 10_001, at(AHEAD));
        assert_eq!(row, at(0), "the time that it ran before must not count");
        replica.advance(&mut row, 10_002, at(AHEAD));
        assert_eq!(row, at(HORIZON_PACE));
        replica.0.forget();
        replica.advance(&mut row, 20_000, at(AHEAD));
        assert_eq!(row, at(HORIZON_PACE));
    }

    #[test]
    fn tasks_end_by_the_clock_once_it_was_relied_on_for_a_while() {
        let horizon = Horizon::default();
        let seconds = Duration::from_secs;
        assert_eq!(horizon.tasks_over_by(seconds(9), at(9)), Timestamp::EPOCH);
        horizon.may_be(at(0), seconds(0), at(60));
        assert_eq!(horizon.tasks_over_by(seconds(0), at(60)), at(60));
        assert_eq!(horizon.tasks_over_by(seconds(0), at(AHEAD)), at(0));
        assert_eq!(horizon.tasks_over_by(seconds(599), at(AHEAD)), at(0));
        assert_eq!(horizon.tasks_over_by(seconds(600), at(AHEAD)), at(AHEAD));
    }
}
