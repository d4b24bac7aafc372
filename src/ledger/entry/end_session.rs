//! The end of one session before its time.

use super::{Draft, EntryKind};
use crate::domain::leaf::Event;
use crate::domain::session::{EndReason, SessionState};
use crate::domain::workload::Identity;
use crate::ids::SessionId;
use crate::ledger::locked::LockedState;
use crate::ledger::outcome::{AppendError, Outcome};
use crate::store::append::Needs;

/// The end of one session.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct EndSession {
    pub session: SessionId,
    /// `Ended`, or `Ending` where a back end has yet to confirm.
    pub state: SessionState,
    pub reason: EndReason,
    /// Whether the back end certainly did not create the credential. If so, the credential returns
    /// to the task's budget.
    pub never_made: bool,
    /// The actor recorded in the ledger: an identity, or `sweeper`, `broker`.
    pub by: String,
    /// The holder of the session.
    pub owner: Identity,
}

impl EntryKind for EndSession {
    fn event(&self) -> Option<Event> {
        Some(Event::SessionEnded {
            session: self.session,
            reason: self.reason,
            by: self.by.clone(),
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
        if self.never_made {
            state.give_session_back(self.session);
        }
        let ended = state.end_session(self.session, self.state, self.reason);
        Ok(Outcome::recorded_if(ended))
    }
}
