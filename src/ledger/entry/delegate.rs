//! A delegation token: a parent task admits one child.

use super::{Draft, EntryKind};
use crate::clock::Timestamp;
use crate::domain::leaf::Event;
use crate::domain::workload::Identity;
use crate::ids::TaskId;
use crate::ledger::locked::LockedState;
use crate::ledger::outcome::{AppendError, Outcome};
use crate::store::append::{ActWrite, Needs};

/// A delegation token.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct Delegate {
    /// SHA-256 of the token.
    pub digest: [u8; 32],
    /// The parent task of the child.
    pub task: TaskId,
    /// The identity that may open the child.
    pub child: Identity,
    /// The number of credentials that the child may get.
    pub sessions: u32,
    pub expires_at: Timestamp,
    /// The owner of the parent task.
    pub owner: Identity,
}

impl EntryKind for Delegate {
    fn event(&self) -> Option<Event> {
        Some(Event::Delegated {
            task: self.task,
            child: self.child.clone(),
            expires_at: self.expires_at,
            max_credentials: self.sessions,
        })
    }

    fn subject(&self) -> Option<&Identity> {
        Some(&self.owner)
    }

    fn needs_free_space(&self) -> bool {
        true
    }

    fn need(&self, needs: &mut Needs) {
        needs.tasks.push(self.task);
    }

    fn settle(&self, state: &mut LockedState<'_>) -> Result<Outcome<Draft>, AppendError> {
        if !state.chain_is_open(self.task) {
            return Ok(Outcome::Unchanged);
        }
        state.write(ActWrite::Delegation {
            digest: self.digest,
            task: self.task,
            child: self.child.to_string(),
            sessions: self.sessions,
            expires_at: self.expires_at,
        });
        Ok(Outcome::recorded())
    }
}
