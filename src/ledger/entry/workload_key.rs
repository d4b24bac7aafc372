//! A workload key, added or removed.

use super::{Draft, EntryKind};
use crate::domain::leaf::Event;
use crate::domain::workload::Identity;
use crate::ledger::locked::LockedState;
use crate::ledger::outcome::{AppendError, Outcome};
use crate::store::append::ActWrite;
use crate::store::workload_keys::WorkloadKeyRow;

/// A workload key, added or removed.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct WorkloadKeyChange {
    pub attestor: String,
    pub workload: String,
    pub thumbprint: String,
    /// The key; `None` removes it.
    pub jwk: Option<String>,
    /// The actor recorded in the ledger.
    pub by: String,
}

impl EntryKind for WorkloadKeyChange {
    fn event(&self) -> Option<Event> {
        let change = match &self.jwk {
            Some(_) => "workload_key_added",
            None => "workload_key_removed",
        };
        Some(Event::Admin {
            change: change.into(),
            subject: format!("{}:{}", self.attestor, self.workload),
            value: Some(self.thumbprint.clone()),
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
        // Callers of later entries may rest on a removed key. An added key takes nothing from them.
        if self.jwk.is_none() {
            state.note_binding();
        }
        let row = WorkloadKeyRow {
            attestor: self.attestor.clone(),
            workload: self.workload.clone(),
            thumbprint: self.thumbprint.clone(),
            jwk: self.jwk.clone(),
            index: state.index(),
            mac: Vec::new(),
        };
        let row = row.seal(state.mac());
        state.write(ActWrite::WorkloadKey(Box::new(row)));
        Ok(Outcome::recorded())
    }
}
