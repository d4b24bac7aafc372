//! The acceptance of the clock's time by an admin, while the clock is in doubt.
//!
//! [`AcceptTime`] holds the act; `settle` checks it under the lock, and `cutoff` makes the cutoff
//! of everything with a later date.
//!
//! The rule: it is the only act that is recorded while the clock is in doubt, and only for a doubt
//! that can be accepted. A block that would have expired by the doubted clock still refuses its
//! caller. Failures: without a doubt the outcome is `Unchanged`; a difference from the database's
//! clock is `ClockInDoubt`; if the clock or the newest leaf has moved since the request, the
//! outcome is `Stale`, and the caller tries again. `broker::administration::time` makes the entry;
//! `store::append` corrects the dates in the rows, and `clock_watch` relies on the clock again.

use std::time::Duration;

use super::{Blocked, Draft, EntryKind, EntryOpenings, RequestCaller};
use crate::clock::Timestamp;
use crate::domain::cutoff::{Block, Cutoff, Selector};
use crate::domain::leaf::{Commitment, Event, Opening};
use crate::domain::limits::{
    MAX_CLOCK_STEP_SECONDS, MAX_DEADLINE_SECONDS, MAX_TTL_SECONDS, ONE_TIME_KEPT_SECONDS,
};
use crate::domain::workload::Identity;
use crate::ids::CutoffId;
use crate::ledger::locked::LockedState;
use crate::ledger::outcome::{AppendError, Outcome};
use crate::store::append::ActWrite;

/// The acceptance of a time by an admin. It cuts off every permit with a later date.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct AcceptTime {
    /// The id of the cutoff of permits with a later date.
    pub id: CutoffId,
    /// The time in the newest leaf.
    pub recorded: Timestamp,
    pub accepted: Timestamp,
    /// The reason in the admin's words, stored with the cutoff.
    pub text: String,
    /// The commitment to the reason, and its opening.
    pub reason: (Commitment, Opening),
    /// The admin who accepted the time.
    pub by: String,
}

impl EntryKind for AcceptTime {
    fn event(&self) -> Option<Event> {
        Some(Event::TimeAccepted {
            id: self.id,
            recorded_time: self.recorded,
            accepted_time: self.accepted,
            reason: self.reason.0.clone(),
            by: self.by.clone(),
        })
    }

    fn subject(&self) -> Option<&Identity> {
        None
    }

    fn needs_free_space(&self) -> bool {
        false
    }

    fn openings(&self) -> EntryOpenings<'_> {
        EntryOpenings {
            purpose: Some(&self.reason.1),
            ..EntryOpenings::default()
        }
    }

    fn goes_by_any_clock(&self) -> bool {
        true
    }

    /// A block that would have expired by the doubted clock still counts if the newest leaf is
    /// within it.
    fn blocked(&self, by: &RequestCaller, state: &LockedState<'_>) -> Option<Blocked> {
        let times = std::iter::once(state.now()).chain(state.newest_at());
        let obstacle = state.obstacle(by, times)?;
        Some(obstacle.blocked(by))
    }

    fn settle(&self, state: &mut LockedState<'_>) -> Result<Outcome<Draft>, AppendError> {
        let Some(doubt) = state.doubt() else {
            return Ok(Outcome::Unchanged);
        };
        if !doubt.can_be_accepted() {
            return Err(AppendError::ClockInDoubt(doubt.clone()));
        }
        let newest = state.newest_at().unwrap_or(self.recorded);
        let step = Duration::from_secs(MAX_CLOCK_STEP_SECONDS);
        if newest.distance(self.recorded) > step || state.now().distance(self.accepted) > step {
            return Ok(Outcome::Stale);
        }
        let cutoff = self.cutoff(state.index(), newest);
        let sealed = state.seal_cutoff(cutoff);
        state.write(ActWrite::TimeAccepted {
            cutoff: sealed,
            accepted: self.accepted,
        });
        Ok(Outcome::recorded())
    }
}

impl AcceptTime {
    /// The cutoff of permits with a later date. It blocks for as long as any of them could be
    /// valid.
    fn cutoff(&self, index: u64, newest: Timestamp) -> Cutoff {
        let lives = MAX_DEADLINE_SECONDS + MAX_TTL_SECONDS + ONE_TIME_KEPT_SECONDS;
        Cutoff {
            id: self.id,
            index,
            selector: Selector::IssuedAfter(self.accepted),
            block: Block::Until(newest.max(self.accepted).plus_seconds(lives)),
            deny_policy_target: None,
            reason: self.text.clone(),
            by: self.by.clone(),
            requested_at: self.accepted,
            committed_at: self.accepted,
            lifted_index: None,
        }
    }
}
