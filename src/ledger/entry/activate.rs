//! The activation of a generation.

use std::sync::Arc;

use super::{Draft, EntryKind};
use crate::domain::endpoint::EndpointsDigest;
use crate::domain::generation_digest::GenerationDigest;
use crate::domain::leaf::Event;
use crate::domain::workload::Identity;
use crate::ledger::locked::LockedState;
use crate::ledger::outcome::{AppendError, Outcome};
use crate::store::append::ActWrite;
use crate::store::generations::SealedActivation;

/// The activation of a generation.
#[derive(Clone, Debug)]
pub struct Activate {
    /// The digest of its document.
    pub digest: GenerationDigest,
    /// Its document, which is kept with the activation.
    pub document: Arc<[u8]>,
    /// The digest of the activating replica's endpoints.
    pub endpoints: EndpointsDigest,
    /// The actor recorded in the ledger: an admin, or the start of an embedded broker.
    pub by: String,
}

impl EntryKind for Activate {
    fn event(&self) -> Option<Event> {
        Some(Event::Activated {
            generation: self.digest,
            endpoints: self.endpoints.clone(),
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
        if state.generation() == Some(self.digest) {
            return Ok(Outcome::Unchanged);
        }
        state.set_generation(self.digest);
        state.write(ActWrite::Activation {
            sealed: SealedActivation::seal(state.index(), self.digest, state.mac()),
            document: Arc::clone(&self.document),
            by: self.by.clone(),
            at: state.now(),
        });
        Ok(Outcome::recorded())
    }
}
