//! The first leaf of the log.

use super::{Draft, EntryKind};
use crate::domain::leaf::Event;
use crate::domain::succession::Succession;
use crate::domain::workload::Identity;
use crate::ledger::locked::LockedState;
use crate::ledger::outcome::{AppendError, Outcome};
use crate::store::append::ActWrite;
use crate::store::keys::SigningKeyRow;

/// The first leaf of the log.
#[derive(Clone, Debug)]
pub struct Genesis {
    /// The verifier key of the log's checkpoints.
    pub vkey: String,
    /// The row of that key. It is stored only if this entry becomes the first leaf.
    pub row: SigningKeyRow,
    /// The log that this one succeeds.
    pub succeeds: Option<Succession>,
}

impl EntryKind for Genesis {
    fn event(&self) -> Option<Event> {
        Some(Event::Genesis {
            vkey: self.vkey.clone(),
            predecessor: self.succeeds.clone(),
            heads_authenticated: true,
        })
    }

    fn subject(&self) -> Option<&Identity> {
        None
    }

    fn needs_free_space(&self) -> bool {
        false
    }

    fn settle(&self, state: &mut LockedState<'_>) -> Result<Outcome<Draft>, AppendError> {
        if state.index() > 0 {
            return Ok(Outcome::Unchanged);
        }
        state.write(ActWrite::SigningKey(Box::new(self.row.clone())));
        Ok(Outcome::recorded())
    }
}
