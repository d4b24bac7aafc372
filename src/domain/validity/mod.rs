//! Decides whether a session or a task is valid at an instant. Only this module decides it.
//!
//! [`StatusFacts::status_at`] is the rule. It derives an [`EffectiveStatus`] from the session's
//! record, its task and the ancestors of the task, the sessions from which it was derived, the
//! first matching cutoff, and the present instant. The store reads these facts into
//! [`ValidityFacts`] and decides nothing. The ledger calls the same functions under its lock, and
//! the coverage report calls them with facts that it rebuilt from leaves.
//!
//! Nothing here returns an error, and a missing ancestor never makes a session valid: a task whose
//! row or ancestor is missing counts as aborted, and a session whose ancestor session is missing as
//! revoked. A session with an end that its back end has not confirmed is [`SessionState::Ending`],
//! which is not valid either.
//!
//! SQL statements that filter or count many rows decide in SQL. `store/validity_sql.rs` has their
//! fragments, each with the name of the function here that it mirrors. A property test on both
//! databases shows that they are equal.

mod cutoffs;
mod sessions;
mod tasks;
mod view;

pub use self::cutoffs::is_dated_ahead;
pub use self::sessions::SessionLife;
pub use self::tasks::TaskLink;
pub use self::view::{Ancestor, SessionView, ValidityFacts};
use super::session::{EndReason, SessionState};
use super::task::{TaskChain, TaskEnd};
use crate::clock::Timestamp;

/// The status of a session at an instant, derived from all facts. The session's record may lag
/// behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EffectiveStatus {
    /// Only `Active` is valid.
    pub state: SessionState,
    /// The reason for the end; `None` while the session has not ended.
    pub end_reason: Option<EndReason>,
    /// The time of the end at the broker.
    pub ended_at: Option<Timestamp>,
    /// The time from which every use is refused: by the back end's confirmation or by expiry.
    pub confirmed_at: Option<Timestamp>,
}

impl EffectiveStatus {
    /// The status of a session that was just released.
    pub const ACTIVE: Self = Self {
        state: SessionState::Active,
        end_reason: None,
        ended_at: None,
        confirmed_at: None,
    };

    /// Whether the credential is valid.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.state == SessionState::Active
    }
}

/// The end of a session or a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// The time of the end at the broker.
    pub at: Timestamp,
    /// The kind of event that caused it.
    pub cause: EndCause,
    /// Whether it comes from an ancestor task or from a session from which this one was derived.
    pub inherited: bool,
}

/// The kind of event that caused an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndCause {
    /// The session reached its expiry.
    Expired,
    /// The session's record has an end.
    Recorded(EndReason),
    /// Its task or an ancestor of the task ended.
    Task(TaskEnd),
    /// A matching cutoff was committed.
    CutOff,
}

impl Ending {
    /// The end reason of the session.
    #[must_use]
    pub fn reason(&self) -> EndReason {
        match self.cause {
            EndCause::Expired => EndReason::Expired,
            EndCause::Recorded(_) if self.inherited => EndReason::Revoked,
            EndCause::Recorded(reason) => reason,
            EndCause::Task(end) => end.end_reason(),
            EndCause::CutOff => EndReason::Revoked,
        }
    }
}

/// The first cutoff that matches a session, its task or an ancestor of the task, or a session from
/// which it was derived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CutOff {
    /// The time of its commit.
    pub at: Timestamp,
    /// Whether it matches only ancestors, not the session itself.
    pub inherited: bool,
}

/// The facts from which the status of a session follows.
#[derive(Clone, Debug)]
pub struct StatusFacts<'a> {
    /// The session's own record.
    pub life: SessionLife,
    /// Its task and the ancestors of the task.
    pub tasks: &'a TaskChain,
    /// The first matching cutoff; `None` if none matches.
    pub cut_off: Option<CutOff>,
    /// The sessions from which it was derived, nearest first.
    pub ancestors: Vec<SessionLife>,
    /// If the record of a session from which it was derived is missing: the time of issue. Such a
    /// session is revoked from the start.
    pub orphaned_at: Option<Timestamp>,
}

impl StatusFacts<'_> {
    /// The status at `now`.
    #[must_use]
    pub fn status_at(&self, now: Timestamp) -> EffectiveStatus {
        let life = &self.life;
        let recorded = EffectiveStatus {
            state: life.state,
            end_reason: life.end_reason,
            ended_at: life.ended_at,
            confirmed_at: life.confirmed_at,
        };
        if life.state == SessionState::Ended {
            return recorded;
        }
        let ending = life.recorded(now).or_else(|| self.inherited_end(now));
        // Expiry ends it for every use, even if no back end confirmed anything.
        if life.is_expired(now) {
            let (reason, at) = match ending {
                Some(ending) => (ending.reason(), ending.at.min(life.expires_at)),
                None => (EndReason::Expired, life.expires_at),
            };
            return EffectiveStatus {
                state: SessionState::Ended,
                end_reason: Some(reason),
                ended_at: Some(at),
                confirmed_at: Some(life.expires_at),
            };
        }
        let Some(ending) = ending else {
            return recorded;
        };
        let known_everywhere = life
            .known_after_seconds
            .map(|seconds| ending.at.plus_seconds(seconds));
        let confirmed_at = known_everywhere
            .filter(|confirmed| life.state == SessionState::Active && *confirmed <= now);
        EffectiveStatus {
            state: match confirmed_at {
                Some(_) => SessionState::Ended,
                None => SessionState::Ending,
            },
            end_reason: Some(ending.reason()),
            ended_at: Some(ending.at),
            confirmed_at,
        }
    }

    /// The end at `now` that does not come from the session's own record or expiry. A cutoff takes
    /// precedence over a task, and a task over an ancestor session.
    #[must_use]
    pub fn inherited_end(&self, now: Timestamp) -> Option<Ending> {
        self.inherited(now).next()
    }

    /// The earliest of all ends, at the latest the session's own expiry.
    #[must_use]
    pub fn first_end(&self) -> Ending {
        let expiry = Ending {
            at: self.life.expires_at,
            cause: EndCause::Expired,
            inherited: false,
        };
        let recorded = self.life.recorded(Timestamp::MAX);
        let others = self.inherited(Timestamp::MAX);
        recorded
            .into_iter()
            .chain(others)
            .fold(
                expiry,
                |first, next| {
                    if next.at < first.at { next } else { first }
                },
            )
    }

    /// Every end by `now` that does not come from the session itself. A cutoff counts as soon as it
    /// is known, regardless of the clock of the replica that committed it.
    fn inherited(&self, now: Timestamp) -> impl Iterator<Item = Ending> {
        let cut_off = self.cut_off.map(|cut_off| Ending {
            at: cut_off.at,
            cause: EndCause::CutOff,
            inherited: cut_off.inherited,
        });
        let orphaned = self.orphaned_at.map(|at| Ending {
            at,
            cause: EndCause::Recorded(EndReason::Revoked),
            inherited: true,
        });
        let ancestors = self.ancestors.iter();
        cut_off
            .into_iter()
            .chain(orphaned)
            .chain(self.tasks.endings(now))
            .chain(ancestors.flat_map(move |life| life.passed_on(now)))
    }
}

#[cfg(test)]
mod tests;
