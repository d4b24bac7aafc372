//! The generation that decides on this replica, compiled, with its attestors.

use crate::attest::Attestors;
use crate::domain::catalog::Catalog;
use crate::domain::generation::{DecisionLimits, GenerationDigest};
use crate::domain::task::Task;
use crate::domain::workload::Identity;
use crate::policy::CompiledGeneration;

/// A generation that can decide on this replica.
pub struct Active {
    pub(super) compiled: CompiledGeneration,
    pub(super) attestors: Attestors,
}

impl Active {
    /// Takes the parts of a generation that was checked.
    pub(super) fn new(compiled: CompiledGeneration, attestors: Attestors) -> Self {
        Self {
            compiled,
            attestors,
        }
    }

    /// The digest of the generation.
    #[must_use]
    pub fn digest(&self) -> GenerationDigest {
        self.compiled.digest()
    }

    /// The generation's resources and task types.
    #[must_use]
    pub fn catalog(&self) -> &Catalog {
        self.compiled.catalog()
    }

    /// The compiled policies.
    #[must_use]
    pub fn policy(&self) -> &CompiledGeneration {
        &self.compiled
    }

    /// Whether a task's owner can still be attested by the attestor that attested it, with the same
    /// identity.
    #[must_use]
    pub fn attests(&self, task: &Task) -> bool {
        self.attestors.could_attest(&task.attestor, &task.owner)
            && self.attestor_digest(&task.attestor) == task.attestor_digest
    }

    /// The digest of the parts of an attestor that determine its identities.
    pub(super) fn attestor_digest(&self, attestor: &str) -> [u8; 32] {
        self.attestors.digest_of(attestor)
    }

    /// Whether an identity could be attested: its attestor exists and can give this name.
    pub(super) fn could_attest(&self, identity: &Identity) -> bool {
        let name = identity.as_str().split_once(':');
        name.is_some_and(|(attestor, _)| self.attestors.could_attest(attestor, identity))
    }

    /// The limits that take part in decisions.
    #[must_use]
    pub fn limits(&self) -> DecisionLimits {
        self.compiled.limits()
    }
}
