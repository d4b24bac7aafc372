//! The part of a session's validity that its own record decides.
//!
//! [`SessionLife`] has the facts of the record: state, end, expiry, and how soon an end is known at
//! every use. The methods of `Session` derive them from its kind of revocability. These facts alone
//! never make a session valid: [`super::StatusFacts`] adds its task, its ancestors and the cutoffs.
//!
//! Nothing here returns an error. `store/validity_sql.rs` mirrors `stands`, `may_stand` and
//! `lived_at` in SQL.

use super::{CutOff, EndCause, Ending, StatusFacts};
use crate::clock::Timestamp;
use crate::domain::cutoff::SelectorSubject;
use crate::domain::revocability::RevocationClass;
use crate::domain::session::{EndReason, Session, SessionState};
use crate::domain::task::TaskChain;

/// The facts in one session's record that affect its validity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields of `Session` with the same names")]
pub struct SessionLife {
    pub state: SessionState,
    pub end_reason: Option<EndReason>,
    pub ended_at: Option<Timestamp>,
    pub confirmed_at: Option<Timestamp>,
    pub expires_at: Timestamp,
    /// Seconds from an end at the broker until every use refuses the credential without a back
    /// end's help; `None` if a back end must confirm the end.
    pub known_after_seconds: Option<u64>,
}

impl SessionLife {
    /// Whether it has expired.
    #[must_use]
    pub fn is_expired(&self, now: Timestamp) -> bool {
        now >= self.expires_at
    }

    /// Whether it was released and has not ended by its record or by expiry.
    #[must_use]
    pub fn stands(&self, now: Timestamp) -> bool {
        self.state == SessionState::Active && !self.is_expired(now)
    }

    /// Whether it is or can become valid: not ended by its record and not expired.
    #[must_use]
    pub fn may_stand(&self, now: Timestamp) -> bool {
        self.state != SessionState::Ended && !self.is_expired(now)
    }

    /// Whether by its record and the clock it could still be used somewhere at `at`. An end that is
    /// recorded at `at` or later counts as a later one.
    #[must_use]
    pub fn lived_at(&self, at: Timestamp) -> bool {
        let on_record = match self.state {
            SessionState::Minting | SessionState::Active | SessionState::Ending => true,
            SessionState::Ended => self.ended_at.is_some_and(|ended| ended >= at),
        };
        on_record && !self.is_expired(at)
    }

    /// Whether every use refuses it at `now`, if a cutoff that was committed at `at` is its first
    /// end.
    #[must_use]
    pub fn is_cut_off_everywhere(&self, at: Timestamp, now: Timestamp) -> bool {
        let tasks = TaskChain(Vec::new());
        let facts = StatusFacts {
            life: *self,
            tasks: &tasks,
            cut_off: Some(CutOff {
                at,
                inherited: false,
            }),
            ancestors: Vec::new(),
            orphaned_at: None,
        };
        facts.status_at(now).state == SessionState::Ended
    }

    pub(super) fn recorded(&self, now: Timestamp) -> Option<Ending> {
        let cause = EndCause::Recorded(self.end_reason?);
        Some(Ending {
            at: self.ended_at.unwrap_or(now),
            cause,
            inherited: false,
        })
    }

    /// The ends by `now` that this session passes on to a session derived from it.
    pub(super) fn passed_on(&self, now: Timestamp) -> impl Iterator<Item = Ending> + use<> {
        let recorded = (self.state != SessionState::Active).then(|| Ending {
            at: self.ended_at.unwrap_or(now),
            cause: EndCause::Recorded(self.end_reason.unwrap_or(EndReason::Revoked)),
            inherited: true,
        });
        let expired = self.is_expired(now).then_some(Ending {
            at: self.expires_at,
            cause: EndCause::Expired,
            inherited: true,
        });
        recorded.into_iter().chain(expired)
    }
}

impl Session {
    /// The facts in its record that affect its validity.
    #[must_use]
    pub fn life(&self) -> SessionLife {
        SessionLife {
            state: self.state,
            end_reason: self.end_reason,
            ended_at: self.ended_at,
            confirmed_at: self.confirmed_at,
            expires_at: self.expires_at,
            known_after_seconds: self.known_after_seconds(),
        }
    }

    /// If every use asks the broker, an end takes effect at once. If servers poll status lists, it
    /// does when the last earlier list is too old. Otherwise the back end must confirm it.
    fn known_after_seconds(&self) -> Option<u64> {
        match self.revocability.class {
            RevocationClass::Immediate { .. } => Some(0),
            RevocationClass::Bounded { bound_seconds } => {
                self.is_in_status_lists().then_some(bound_seconds)
            }
            RevocationClass::ExpiryOnly => None,
        }
    }

    /// Whether its record is active and a back end must end it within a bound. An end that its
    /// record does not show must then be started at the back end.
    #[must_use]
    pub fn is_active_at_back_end(&self) -> bool {
        self.state == SessionState::Active
            && matches!(self.revocability.class, RevocationClass::Bounded { .. })
            && !self.minter.is_local()
    }

    /// The state after its record is ended: `Ended` if every use asks the broker. A back end may
    /// still create a credential that it is minting.
    #[must_use]
    pub fn state_once_ended(&self) -> SessionState {
        if self.state == SessionState::Minting {
            return SessionState::Ending;
        }
        match self.revocability.class {
            RevocationClass::Immediate { .. } => SessionState::Ended,
            RevocationClass::Bounded { .. } | RevocationClass::ExpiryOnly => SessionState::Ending,
        }
    }

    /// The values that selectors match, other than its tasks.
    #[must_use]
    pub fn subject(&self) -> SelectorSubject<'_> {
        SelectorSubject {
            workload: &self.workload,
            attestor: &self.attestor,
            resource: &self.resource,
            generation: self.generation,
            policies: &self.policies,
            kid: Some(&self.kid),
        }
    }
}
