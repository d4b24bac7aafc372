//! The broker's clock: whether it can be relied on, what follows a slow horizon instead of it, and
//! the administrator's act that accepts it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::{instrument, warn};

use super::admin::Caller;
use super::call::Call;
use super::{Broker, BrokerError};
use crate::attest::Evidence;
use crate::clock::Timestamp;
use crate::domain::cutoff::{Block, Cutoff, Selector};
use crate::domain::limits::HORIZON_PACE;
use crate::ids::CutoffId;
use crate::ledger::Appended;
use crate::ledger::clock_watch::ClockDoubt;
use crate::ledger::entry::{AcceptTime, Entry, Request};
use crate::policy::AdminAction;

/// The horizon is written when it may move on by so much: once in ten seconds while it is up to date.
const HORIZON_STEP_SECONDS: u64 = 10;

/// Up to this lag the horizon is up to date. It is more than the step between two writes.
const HORIZON_LAG_SECONDS: u64 = 60;

/// For how long a process must have relied on its clock before the sweeper records the end of tasks
/// by it, where the horizon is not up to date.
const SETTLED_AFTER: Duration = Duration::from_mins(10);

/// How far an administrator's clock may be from the one whose time it accepts.
const ACCEPTED_WITHIN_SECONDS: u64 = 60;

/// How often an acceptance is tried again because an entry came in between.
const TRIES: u32 = 3;

/// An acceptance, as it is asked for.
#[derive(Clone, Debug)]
pub struct AcceptAsk {
    /// What time it is, by the administrator's clock.
    pub time: Timestamp,
    /// Why, for people.
    pub reason: String,
}

/// A time that was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// The cutoff of what is dated later.
    pub id: CutoffId,
    /// The leaf that says so.
    pub index: u64,
    /// When the newest leaf before it was decided, as that one says itself.
    pub recorded: Timestamp,
    /// What was accepted.
    pub accepted: Timestamp,
}

/// What this process knows of the stored horizon.
///
/// All replicas move the same row. Each computes how far the horizon may be from the first value
/// that it saw and from how long it has run since, and never from what another one added: so the row
/// moves at the pace of one, however many there are and however often they start.
#[derive(Debug, Default)]
pub(super) struct Horizon(Mutex<Option<Observed>>);

#[derive(Clone, Copy, Debug)]
struct Observed {
    /// The first value that was seen.
    first: Timestamp,
    /// When that was, by the running clock.
    since: Duration,
    /// The last value that was seen.
    last: Timestamp,
    /// Where it may be: a little further than what is stored.
    may_be: Timestamp,
}

impl Horizon {
    fn state(&self) -> MutexGuard<'_, Option<Observed>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was seen so far counts no more: the clock was in doubt.
    fn forget(&self) {
        *self.state() = None;
    }

    /// Where the horizon may be at `now`, if it is `stored` and the process has run until `running`.
    fn may_be(&self, stored: Timestamp, running: Duration, now: Timestamp) -> Timestamp {
        let mut state = self.state();
        let begin = Observed {
            first: stored,
            since: running,
            last: stored,
            may_be: stored,
        };
        // One that was set back was restored, or an accepted time set it back.
        let known = state.filter(|known| stored >= known.last).unwrap_or(begin);
        let passed = running.saturating_sub(known.since);
        let credit = u64::try_from(passed.as_millis()).unwrap_or(u64::MAX) / 1_000 * HORIZON_PACE;
        let may_be = known.first.plus_seconds(credit).max(stored).min(now);
        *state = Some(Observed {
            last: stored,
            may_be,
            ..known
        });
        may_be
    }

    /// Where it may be, as it was last computed.
    fn known(&self) -> Timestamp {
        self.state().map_or(Timestamp::EPOCH, |known| known.may_be)
    }

    fn moved_to(&self, at: Timestamp) {
        if let Some(known) = self.state().as_mut() {
            known.last = at;
        }
    }

    /// By when a task must be over for the sweeper to record it.
    fn tasks_over_by(&self, running: Duration, now: Timestamp) -> Timestamp {
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

impl Broker {
    /// Why the clock cannot be relied on now.
    #[must_use]
    pub fn clock_doubt(&self) -> Option<ClockDoubt> {
        self.ledger().clock().doubt()
    }

    /// The present instant, unless the clock is in doubt.
    pub(super) fn certain_now(&self) -> Option<Timestamp> {
        let reading = self.ledger().clock().judge();
        reading.doubt.is_none().then_some(reading.now)
    }

    /// Refuses while the clock is in doubt: no evidence can be judged by it, and no credential.
    pub(super) fn check_clock(&self) -> Result<(), BrokerError> {
        match self.clock_doubt() {
            None => Ok(()),
            Some(doubt) => Err(in_doubt(&doubt)),
        }
    }

    /// Looks at the database's clock and the newest entry; readiness shows what is found.
    pub(super) async fn look_at_clock(&self) -> Result<(), BrokerError> {
        if let Some(apart) = self.ledger().clock().check(self.store()).await? {
            self.metrics().clock_skew(apart.as_secs_f64());
        }
        let checked = self.check_clock();
        self.metrics().clock_in_doubt(checked.is_err());
        if checked.is_err() {
            // What others appended tells whether an administrator has accepted the time.
            self.follow_ledger().await?;
            return self.check_clock();
        }
        checked
    }

    /// Reads what others appended.
    async fn follow_ledger(&self) -> Result<(), BrokerError> {
        let probe = Request {
            entry: Entry::Consume,
            one_time: Vec::new().into(),
            at: self.now(),
        };
        self.ledger().append(probe).await?;
        Ok(())
    }

    /// Whether our clock can be relied on: without that nothing is over by it, and nothing is
    /// deleted.
    pub(crate) fn goes_by_the_right_clock(&self) -> bool {
        self.clock_doubt().is_none()
    }

    /// The instant that whatever deletes for good takes for the present: the stored horizon, which is
    /// moved on first as far as it may be. While the clock is in doubt it is the beginning of time.
    pub async fn horizon(&self) -> Result<Timestamp, BrokerError> {
        let reading = self.ledger().clock().judge();
        if reading.doubt.is_some() {
            self.horizon.forget();
            return Ok(Timestamp::EPOCH);
        }
        let now = reading.now;
        let Some(stored) = self.store().horizon().await? else {
            return Ok(Timestamp::EPOCH);
        };
        let may_be = self.horizon.may_be(stored, self.parts.clock.running(), now);
        if may_be >= stored.plus_seconds(HORIZON_STEP_SECONDS)
            && self.store().advance_horizon(stored, may_be).await?
        {
            self.horizon.moved_to(may_be);
        }
        self.metrics().horizon_lag(may_be.seconds_until(now));
        Ok(may_be)
    }

    /// The horizon as it was when it was last looked at, without asking the store.
    pub(super) fn known_horizon(&self) -> Timestamp {
        self.horizon.known().min(self.now())
    }

    /// By when a task must be over for its end to be recorded. A clock that was wrong at the start
    /// must not have ended what the right one knows to be alive.
    pub(crate) fn tasks_over_by(&self, now: Timestamp) -> Timestamp {
        self.horizon.tasks_over_by(self.parts.clock.running(), now)
    }

    /// Accepts the present time although the ledger, or this process, had seen another: an
    /// administrator's act. What was permitted under a later date is dead with it.
    ///
    /// It is the one act that goes by a clock that is in doubt, so evidence is judged by that clock
    /// here. Evidence that was used before is known even so, and evidence whose use may have been
    /// forgotten is refused.
    #[instrument(skip_all)]
    pub async fn accept_time(
        &self,
        evidence: &Evidence,
        ask: AcceptAsk,
    ) -> Result<Accepted, BrokerError> {
        let call = self.call_by_any_clock(evidence);
        call.run(|| self.accept_time_by(&call, &ask)).await
    }

    async fn accept_time_by(
        &self,
        call: &Call<'_>,
        ask: &AcceptAsk,
    ) -> Result<Accepted, BrokerError> {
        let caller = self.admin(call, AdminAction::AcceptTime).await?;
        self.check_acceptable(ask)?;
        let (commitment, opening) = self.commitment(ask.reason.clone().into_bytes())?;
        for _ in 0..TRIES {
            let now = self.now();
            let recorded = self.ledger().clock().newest().unwrap_or(now);
            let accept = AcceptTime {
                cutoff: self.cut_off_later(now, ask, &caller)?,
                recorded,
                accepted: now,
                reason: (commitment.clone(), opening.clone()),
            };
            let id = accept.cutoff.id;
            match call
                .append(Entry::AcceptTime(Box::new(accept)), now)
                .await?
            {
                Appended::Recorded(done) => {
                    warn!(%recorded, accepted = %now, by = caller.name(), "the clock's time was accepted");
                    self.wake_sweeper();
                    return Ok(Accepted {
                        id,
                        index: done.index,
                        recorded,
                        accepted: now,
                    });
                }
                Appended::Replayed(_) => return Err(BrokerError::Replayed),
                Appended::Unchanged => return Err(nothing_to_accept()),
                Appended::Stale => {}
                _ => break,
            }
        }
        Err(BrokerError::FailClosed(
            "the time was not accepted: entries came in between".into(),
        ))
    }

    /// Whether there is a doubt that an administrator's word can end, and the word is about the time
    /// that our clock shows.
    fn check_acceptable(&self, ask: &AcceptAsk) -> Result<(), BrokerError> {
        let reading = self.ledger().clock().judge();
        let doubt = reading.doubt.ok_or_else(nothing_to_accept)?;
        if !doubt.can_be_accepted() {
            return Err(in_doubt(&doubt));
        }
        if ask.time.distance(reading.now) > Duration::from_secs(ACCEPTED_WITHIN_SECONDS) {
            return Err(BrokerError::Invalid {
                pointer: "/time",
                detail: format!(
                    "the broker's clock shows {}, more than {ACCEPTED_WITHIN_SECONDS} s from the time \
                     that was given; set the broker's clock right first",
                    reading.now
                ),
            });
        }
        Ok(())
    }

    fn cut_off_later(
        &self,
        now: Timestamp,
        ask: &AcceptAsk,
        caller: &Caller,
    ) -> Result<Cutoff, BrokerError> {
        Ok(Cutoff {
            id: CutoffId::new(now, &self.random)?,
            index: 0,
            selector: Selector::IssuedAfter(now),
            block: Block::No,
            deny_policy_target: None,
            reason: ask.reason.clone(),
            by: caller.name(),
            requested_at: now,
            committed_at: now,
            lifted_index: None,
        })
    }
}

fn nothing_to_accept() -> BrokerError {
    BrokerError::Invalid {
        pointer: "",
        detail: "the clock is not in doubt: there is nothing to accept".into(),
    }
}

fn in_doubt(doubt: &ClockDoubt) -> BrokerError {
    BrokerError::FailClosed(format!("the clock is in doubt: {doubt}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_seconds(1_800_000_000).plus_seconds(seconds)
    }

    /// A replica with its own clock, which looks at the shared row and moves it on.
    struct Replica(Horizon);

    impl Replica {
        fn new() -> Self {
            Self(Horizon::default())
        }

        fn look(&self, row: &mut Timestamp, running: u64, now: Timestamp) {
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
            replica.look(&mut row, second, at(AHEAD + second));
        }
        assert_eq!(row, at(75 * HORIZON_PACE));
        // By the right clock it is not past that, and never goes back by itself.
        replica.look(&mut row, 76, at(76));
        assert_eq!(row, at(75 * HORIZON_PACE));
    }

    #[test]
    fn many_replicas_move_the_horizon_no_faster_than_one() {
        let mut row = at(0);
        let replicas: Vec<Replica> = (0..20).map(|_| Replica::new()).collect();
        for second in 0..=75 {
            for (number, replica) in (0..).zip(&replicas) {
                // Each counts from a beginning of its own.
                replica.look(&mut row, 1_000 * number + second, at(AHEAD));
            }
        }
        assert_eq!(row, at(75 * HORIZON_PACE));
    }

    #[test]
    fn restarts_in_a_loop_move_the_horizon_no_faster() {
        let mut row = at(0);
        for begin in 0..75 {
            // It looks a hundred times within its one second.
            let replica = Replica::new();
            for _ in 0..100 {
                replica.look(&mut row, begin, at(AHEAD));
            }
            replica.look(&mut row, begin + 1, at(AHEAD));
        }
        assert!(row <= at(75 * HORIZON_PACE), "{row}");
    }

    #[test]
    fn the_horizon_never_passes_the_clock_and_catches_up_with_it() {
        let (replica, mut row) = (Replica::new(), at(0));
        // After a day of standstill.
        let day = 86_400;
        for second in 0..=3_757 {
            replica.look(&mut row, second, at(day + second));
            assert!(row <= at(day + second));
        }
        assert_eq!(row, at(day + 3_757));
    }

    #[test]
    fn a_horizon_that_was_set_back_is_a_new_beginning() {
        let (replica, mut row) = (Replica::new(), at(AHEAD));
        replica.look(&mut row, 0, at(AHEAD));
        replica.look(&mut row, 10_000, at(AHEAD));
        row = at(0);
        replica.look(&mut row, 10_001, at(AHEAD));
        assert_eq!(row, at(0), "what it ran before is no credit");
        replica.look(&mut row, 10_002, at(AHEAD));
        assert_eq!(row, at(HORIZON_PACE));
        replica.0.forget();
        replica.look(&mut row, 20_000, at(AHEAD));
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
