//! A back end's answer about the end of a session.

use super::{Draft, EntryKind};
use crate::domain::leaf::Event;
use crate::domain::session::{EndReason, SessionState};
use crate::domain::workload::Identity;
use crate::ids::SessionId;
use crate::ledger::locked::LockedState;
use crate::ledger::outcome::{AppendError, Outcome};
use crate::store::append::Needs;

/// A back end's answer about the end of a session.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct ConfirmEnd {
    pub session: SessionId,
    /// Why the session ended.
    pub reason: EndReason,
    /// Whether the back end confirmed the end; if not, the credential is valid there until it
    /// expires.
    pub confirmed: bool,
    /// The holder of the session.
    pub owner: Identity,
}

impl EntryKind for ConfirmEnd {
    fn event(&self) -> Option<Event> {
        Some(Event::EndConfirmed {
            session: self.session,
            confirmed: self.confirmed,
        })
    }

    fn subject(&self) -> Option<&Identity> {
        Some(&self.owner)
    }

    fn needs_free_space(&self) -> bool {
        false
    }

    fn need(&self, needs: &mut Needs) {
        needs.sessions.push(self.session);
    }

    fn settle(&self, state: &mut LockedState<'_>) -> Result<Outcome<Draft>, AppendError> {
        let next = if self.confirmed {
            SessionState::Ended
        } else {
            SessionState::Ending
        };
        let changed = state.end_session(self.session, next, self.reason);
        Ok(Outcome::recorded_if(changed))
    }
}
