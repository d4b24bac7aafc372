//! A role, given to an identity or removed from it.

use super::{Draft, EntryKind};
use crate::domain::leaf::Event;
use crate::domain::workload::Identity;
use crate::ledger::locked::LockedState;
use crate::ledger::outcome::{AppendError, Outcome};
use crate::store::admins::AdminBinding;
use crate::store::append::ActWrite;

/// A role, given or removed.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct AdminBindingChange {
    pub identity: Identity,
    pub role: String,
    /// Whether the role is given; `false` removes it.
    pub bound: bool,
    /// The actor recorded in the ledger.
    pub by: String,
}

impl EntryKind for AdminBindingChange {
    fn event(&self) -> Option<Event> {
        let change = if self.bound {
            "admin_bound"
        } else {
            "admin_unbound"
        };
        Some(Event::Admin {
            change: change.into(),
            subject: self.identity.to_string(),
            value: Some(self.role.clone()),
            by: self.by.clone(),
        })
    }

    fn subject(&self) -> Option<&Identity> {
        None
    }

    fn needs_free_space(&self) -> bool {
        false
    }

    fn settle(&self, state: &mut LockedState<'_>) -> Result<Outcome<Draft>, AppendError> {
        state.note_binding();
        let row = AdminBinding {
            identity: self.identity.to_string(),
            role: self.role.clone(),
            bound: self.bound,
            index: state.index(),
            mac: Vec::new(),
        };
        let row = row.seal(state.mac());
        state.write(ActWrite::AdminBinding(Box::new(row)));
        Ok(Outcome::recorded())
    }
}
