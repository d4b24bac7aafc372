//! The renewal of every envelope and MAC that an older sealing key made.

use super::{Draft, EntryKind};
use crate::domain::leaf::Event;
use crate::domain::workload::Identity;
use crate::ledger::locked::LockedState;
use crate::ledger::outcome::{AppendError, Outcome};

/// The renewal of every envelope and MAC that an older sealing key made.
#[derive(Clone, Debug)]
pub struct Resealed {
    /// The number of renewed rows.
    pub rows: u64,
    /// The admin who ordered it.
    pub by: String,
}

impl EntryKind for Resealed {
    fn event(&self) -> Option<Event> {
        Some(Event::Admin {
            change: "keys_resealed".into(),
            subject: "sealing-keys".into(),
            value: Some(self.rows.to_string()),
            by: self.by.clone(),
        })
    }

    fn subject(&self) -> Option<&Identity> {
        None
    }

    fn needs_free_space(&self) -> bool {
        false
    }

    fn settle(&self, _state: &mut LockedState<'_>) -> Result<Outcome<Draft>, AppendError> {
        Ok(Outcome::recorded())
    }
}
