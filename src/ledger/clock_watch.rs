//! Checks whether this replica's clock can be relied on.
//!
//! A wrong clock does harm that cannot be undone: it accepts expired evidence, deletes the record
//! of used evidence, and dates leaves so that the correct clock is rejected afterwards. So
//! [`ClockWatch::judge`] compares the clock with four values:
//!
//! - the machine's boot-time clock, which no setting moves. If the difference between the two
//!   changes by more than [`MAX_CLOCK_STEP_SECONDS`], the clock was set while this process ran.
//!   Smaller corrections by a time service are followed slowly. Both clocks count the time for
//!   which a machine was suspended, so a resumed machine causes no doubt;
//! - the database's clock, if the database is PostgreSQL: at the start, once a second, and in the
//!   statement with which each batch of the ledger reads under its lock. No leaf is dated by a
//!   clock that is [`MAX_CLOCK_SKEW_SECONDS`] off;
//! - the time of the newest leaf: if the clock is more than [`MAX_CLOCK_STEP_SECONDS`] before it,
//!   either the clock is wrong, or the clock that dated the leaf was;
//! - the largest expiry of evidence whose use was deleted: if the clock is more than
//!   [`MAX_CLOCK_STEP_SECONDS`] before it, either the clock is wrong, or the clock by which that
//!   evidence had expired was.
//!
//! While the clock is in doubt, the broker decides, accepts, expires and deletes nothing. The doubt
//! ends when the clock agrees again, or when an admin accepts the present time, which is recorded
//! in a leaf ([`Entry::AcceptTime`](super::entry::Entry::AcceptTime)). A difference from the
//! database's clock cannot be accepted.
//!
//! A doubt is a [`ClockDoubt`], never an error; `None` means that the clock can be relied on. Only
//! a store that does not answer is an error. The appender and `broker::health` feed in the values;
//! the callers refuse their work.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::{SharedClock, Timestamp};
use crate::domain::limits::{MAX_CLOCK_SKEW_SECONDS, MAX_CLOCK_STEP_SECONDS};
use crate::store::{Store, StoreError};

/// Small corrections are followed by 1/1000 of the elapsed time: 3.6 seconds an hour. Faster
/// corrections add up to a doubt.
const FOLLOWED_PART: u128 = 1_000;

/// For how many seconds an accepted time counts as the present; a batch of the ledger takes up to
/// ten seconds.
const ACCEPTANCE_SECONDS: u64 = 30;

/// Reading both clocks takes longer than this only if the machine was paused in between.
const READING: Duration = Duration::from_secs(1);

/// Why the clock is in doubt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClockDoubt {
    /// It differs from the database's clock.
    Database {
        /// The difference between the two clocks.
        apart: Duration,
    },
    /// It was set while this process ran.
    Set {
        /// The size of the step, in seconds.
        seconds: u64,
        /// Whether it was set to a later time.
        ahead: bool,
    },
    /// It is before the expiry of evidence whose use was deleted. That evidence had expired by the
    /// clock of the deletion.
    BehindForgotten {
        /// The time of the clock.
        now: Timestamp,
        /// The largest expiry of such evidence.
        forgotten: Timestamp,
    },
    /// It is before the newest leaf.
    BehindLedger {
        /// The time of the clock.
        now: Timestamp,
        /// The time in that leaf.
        newest: Timestamp,
    },
}

impl ClockDoubt {
    /// Whether an admin can end the doubt by accepting the time. Two clocks that differ now cannot
    /// both be correct, so that doubt cannot be accepted.
    #[must_use]
    pub fn can_be_accepted(&self) -> bool {
        !matches!(self, Self::Database { .. })
    }
}

impl fmt::Display for ClockDoubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Database { apart } => write!(
                f,
                "this replica's clock and the database's are {} ms apart; correct the wrong one",
                apart.as_millis()
            ),
            Self::Set { seconds, ahead } => write!(
                f,
                "this replica's clock was set {} by {seconds} s while the process ran; correct the \
                 clock, or accept its time with `taskpass ledger accept-time`",
                if *ahead { "forward" } else { "back" }
            ),
            Self::BehindForgotten { now, forgotten } => write!(
                f,
                "this replica's clock shows {now}, and the store no longer knows the use of \
                 evidence that expires by {forgotten}; correct the clock, or accept its time with \
                 `taskpass ledger accept-time` and the bootstrap token: attested evidence is \
                 refused until then"
            ),
            Self::BehindLedger { now, newest } => write!(
                f,
                "this replica's clock shows {now}, before the newest ledger entry of {newest}; \
                 correct the clock, or accept its time with `taskpass ledger accept-time`"
            ),
        }
    }
}

/// The time of the clock, and whether it can be relied on.
#[derive(Clone, Debug)]
pub struct Reading {
    /// The present instant by the clock.
    pub now: Timestamp,
    /// The reason not to rely on it. `None` if it can be relied on.
    pub doubt: Option<ClockDoubt>,
}

/// Watches one replica's clock.
pub struct ClockWatch {
    clock: SharedClock,
    state: Mutex<State>,
}

struct State {
    /// The lead of the wall clock over the boot-time clock, in microseconds, when the clock was
    /// last relied on.
    offset: i64,
    /// The boot-time instant up to which corrections were followed.
    followed: Duration,
    /// The difference from the database's clock at the last comparison.
    apart: Duration,
    /// The time of the newest leaf.
    newest: Option<Timestamp>,
    /// The largest expiry of evidence whose use was deleted since a time was last accepted.
    forgotten: Option<Timestamp>,
    /// The index of the newest acceptance that was considered.
    acceptance: Option<u64>,
}

impl ClockWatch {
    /// Relies on the clock as it is now, until a comparison fails.
    #[must_use]
    pub fn new(clock: SharedClock) -> Self {
        let (now, boot) = read(&clock);
        Self {
            clock,
            state: Mutex::new(State {
                offset: offset(now, boot),
                followed: boot,
                apart: Duration::ZERO,
                newest: None,
                forgotten: None,
                acceptance: None,
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock, and the state would be consistent even then.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the clock and judges it.
    #[must_use]
    pub fn judge(&self) -> Reading {
        let (now, boot) = read(&self.clock);
        let mut state = self.state();
        let moved = offset(now, boot).saturating_sub(state.offset);
        let was_set = moved.unsigned_abs() > MAX_CLOCK_STEP_SECONDS * 1_000_000;
        let passed = boot.saturating_sub(state.followed);
        if passed >= READING {
            if !was_set {
                let most = i64::try_from(passed.as_micros() / FOLLOWED_PART).unwrap_or(i64::MAX);
                state.offset = state.offset.saturating_add(moved.clamp(-most, most));
            }
            state.followed = boot;
        }
        let newest = state.newest.filter(|newest| is_behind(now, *newest));
        let doubt = if state.apart.as_secs() >= MAX_CLOCK_SKEW_SECONDS {
            Some(ClockDoubt::Database { apart: state.apart })
        } else if was_set {
            Some(ClockDoubt::Set {
                seconds: moved.unsigned_abs() / 1_000_000,
                ahead: moved > 0,
            })
        } else if let Some(newest) = newest {
            Some(ClockDoubt::BehindLedger { now, newest })
        } else {
            let forgotten = state.forgotten.filter(|until| is_behind(now, *until));
            forgotten.map(|forgotten| ClockDoubt::BehindForgotten { now, forgotten })
        };
        Reading { now, doubt }
    }

    /// The reason not to rely on the clock now. `None` if it can be relied on.
    #[must_use]
    pub fn doubt(&self) -> Option<ClockDoubt> {
        self.judge().doubt
    }

    /// The time of the newest leaf that this replica knows. `None` if it knows none.
    #[must_use]
    pub fn newest(&self) -> Option<Timestamp> {
        self.state().newest
    }

    /// Reads the newest leaf's time and then the database's clock. Returns the difference between
    /// the clocks; `None` on SQLite or with a simulated clock.
    pub async fn check(&self, store: &Store) -> Result<Option<Duration>, StoreError> {
        self.see_newest(store.newest_leaf_at().await?);
        self.see_forgotten(store.forgotten().await?);
        if !self.clock.is_real() {
            return Ok(None);
        }
        let asked = self.clock.now();
        let theirs = store.clock().await?;
        Ok(theirs.map(|theirs| self.compare(asked, theirs)))
    }

    /// Compares the clock with the database's, which showed `theirs` at some instant between
    /// `asked` and now. A slow answer is not mistaken for a wrong clock.
    pub(super) fn compare(&self, asked: Timestamp, theirs: Timestamp) -> Duration {
        let answered = self.clock.now().max(asked);
        let apart = theirs.distance(theirs.clamp(asked, answered));
        self.state().apart = apart;
        apart
    }

    /// Compares the clock with the database's, which was asked `ago` before now and showed
    /// `theirs`. `None` with a simulated clock.
    pub(super) fn compare_within(&self, ago: Duration, theirs: Timestamp) -> Option<Duration> {
        let asked = self.clock.now().minus(ago);
        self.clock.is_real().then(|| self.compare(asked, theirs))
    }

    /// Records the time of the newest leaf.
    pub(super) fn see_newest(&self, at: Option<Timestamp>) {
        self.state().newest = at;
    }

    /// Records the largest expiry of evidence whose use was deleted.
    pub(super) fn see_forgotten(&self, until: Option<Timestamp>) {
        self.state().forgotten = until;
    }

    /// Records that an admin accepted a time, in the leaf at `index`. If the clock shows that time,
    /// it is relied on again; otherwise it stays in doubt.
    pub(super) fn see_acceptance(&self, index: u64, accepted: Timestamp) {
        let (now, boot) = read(&self.clock);
        let mut state = self.state();
        if state.acceptance.is_some_and(|seen| seen >= index) {
            return;
        }
        state.acceptance = Some(index);
        let until = accepted.plus_seconds(ACCEPTANCE_SECONDS);
        if !is_behind(now, accepted) && now <= until {
            state.offset = offset(now, boot);
            state.followed = boot;
        }
    }
}

/// Whether a clock that shows `now` is before a recorded time by more than the tolerance.
#[must_use]
pub fn is_behind(now: Timestamp, recorded: Timestamp) -> bool {
    now.plus_seconds(MAX_CLOCK_STEP_SECONDS) < recorded
}

/// Reads both clocks at one instant.
fn read(clock: &SharedClock) -> (Timestamp, Duration) {
    for _ in 0..3 {
        let before = clock.since_boot();
        let now = clock.now();
        let after = clock.since_boot();
        if after.saturating_sub(before) < READING {
            return (now, after);
        }
    }
    (clock.now(), clock.since_boot())
}

fn offset(now: Timestamp, boot: Duration) -> i64 {
    let boot = i64::try_from(boot.as_micros()).unwrap_or(i64::MAX);
    now.micros().saturating_sub(boot)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, ManualClock};
    use std::sync::Arc;

    const DAY: u64 = 86_400;

    fn begin() -> (Arc<ManualClock>, ClockWatch) {
        let clock = ManualClock::new(Timestamp::from_seconds(1_800_000_000));
        let watch = ClockWatch::new(Arc::clone(&clock) as SharedClock);
        (clock, watch)
    }

    #[test]
    fn a_clock_that_jumps_is_in_doubt_until_it_is_back() {
        let (clock, watch) = begin();
        for ahead in [true, false] {
            let right = clock.now();
            let wrong = if ahead {
                right.plus_seconds(31 * DAY)
            } else {
                right.minus_seconds(31 * DAY)
            };
            clock.set(wrong);
            let told = ClockDoubt::Set {
                seconds: 31 * DAY,
                ahead,
            };
            assert_eq!(watch.doubt(), Some(told.clone()));
            clock.advance(75);
            assert_eq!(
                watch.doubt(),
                Some(told),
                "the doubt must not end by itself"
            );
            clock.set(right.plus_seconds(75));
            assert_eq!(watch.doubt(), None);
        }
    }

    #[test]
    fn five_seconds_are_no_jump_and_six_are() {
        for (step, doubted) in [(5, false), (6, true)] {
            let (clock, watch) = begin();
            clock.set(clock.now().plus_seconds(step));
            assert_eq!(watch.doubt().is_some(), doubted, "{step}");
        }
    }

    #[test]
    fn small_steps_are_followed_and_many_at_once_are_a_jump() {
        let (clock, watch) = begin();
        // One second each half hour: a leap second or a time service.
        for _ in 0..200 {
            clock.set(clock.now().minus_seconds(1));
            for _ in 0..180 {
                clock.advance(10);
                assert_eq!(watch.doubt(), None);
            }
        }
        for step in 0..8 {
            clock.set(clock.now().minus_seconds(1));
            clock.advance(10);
            assert_eq!(watch.doubt().is_some(), step >= 5, "{step}");
        }
    }

    #[test]
    fn asking_often_does_not_keep_a_small_step_from_being_followed() {
        let (clock, watch) = begin();
        clock.set(clock.now().plus_seconds(3));
        for _ in 0..40_000 {
            clock.pass(Timestamp::from_micros(clock.now().micros() + 100_000));
            assert_eq!(watch.doubt(), None);
        }
        clock.set(clock.now().plus_seconds(5));
        assert_eq!(watch.doubt(), None);
    }

    #[test]
    fn a_suspended_machine_is_in_no_doubt() {
        let (clock, watch) = begin();
        clock.suspend(30 * DAY);
        assert_eq!(watch.doubt(), None);
    }

    #[test]
    fn a_clock_behind_the_newest_entry_is_in_doubt_until_that_time() {
        let (clock, watch) = begin();
        let newest = clock.now().plus_seconds(3_600);
        watch.see_newest(Some(newest));
        let now = clock.now();
        assert_eq!(
            watch.doubt(),
            Some(ClockDoubt::BehindLedger { now, newest })
        );
        clock.advance(3_594);
        assert!(watch.doubt().is_some());
        clock.advance(1);
        assert_eq!(watch.doubt(), None, "replicas may differ by the tolerance");
    }

    #[test]
    fn a_clock_behind_what_was_forgotten_is_in_doubt_and_can_be_accepted() {
        let (clock, watch) = begin();
        let now = clock.now();
        watch.see_forgotten(Some(now.plus_seconds(5)));
        assert_eq!(watch.doubt(), None);
        let forgotten = now.plus_seconds(31 * DAY);
        watch.see_forgotten(Some(forgotten));
        let doubt = watch.doubt().unwrap();
        assert_eq!(doubt, ClockDoubt::BehindForgotten { now, forgotten });
        assert!(doubt.can_be_accepted());
        assert!(doubt.to_string().contains("ledger accept-time"), "{doubt}");
        watch.see_forgotten(None);
        assert_eq!(watch.doubt(), None);
    }

    #[test]
    fn an_acceptance_counts_for_a_clock_that_shows_its_time_and_once() {
        let (clock, watch) = begin();
        let before = clock.now();
        clock.set(before.plus_seconds(DAY));
        watch.see_acceptance(7, before);
        assert!(
            watch.doubt().is_some(),
            "an accepted time must be the clock's own"
        );
        watch.see_acceptance(8, clock.now());
        assert_eq!(watch.doubt(), None);
        clock.set(before);
        watch.see_acceptance(8, before);
        assert!(watch.doubt().is_some(), "an acceptance must count once");
        watch.see_acceptance(9, before.minus_seconds(ACCEPTANCE_SECONDS + 1));
        assert!(watch.doubt().is_some(), "an old acceptance must not count");
        watch.see_acceptance(10, before.minus_seconds(3));
        assert_eq!(watch.doubt(), None);
    }

    #[test]
    fn clocks_that_differ_now_cannot_be_accepted() {
        let (clock, watch) = begin();
        let now = clock.now();
        watch.compare(now, now.plus_seconds(31 * DAY));
        let doubt = watch.doubt().unwrap();
        assert!(!doubt.can_be_accepted(), "{doubt}");
        watch.see_acceptance(1, now);
        assert_eq!(watch.doubt(), Some(doubt));
        watch.compare(now, now);
        assert_eq!(watch.doubt(), None);
    }
}
