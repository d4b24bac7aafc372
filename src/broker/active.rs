//! The generation that decides on this replica: compiled, and with its attestors.
//!
//! `Active` bundles a `CompiledGeneration` and its `Attestors`. It gives out the digest, the
//! catalog, the policies and the limits, and answers whether an identity, or the owner of a task,
//! can still be attested. The rule: a task's owner counts as attested only if the attestor that
//! attested it still exists, can still give that identity, and determines identities by the same
//! configuration as then (equal digests).
//!
//! Failures: nothing here returns an error. The answer for unknown values is `false`: an
//! attestor that no longer exists, or an identity without a `:`. Only `broker` can make an
//! `Active`: `broker::generations` does, after `broker::check` has accepted the generation.
//! `broker::core` keeps the one that decides. Verifying evidence is left to `attest`, and decisions
//! to `policy`.

use crate::attest::Attestors;
use crate::domain::catalog::Catalog;
use crate::domain::generation::DecisionLimits;
use crate::domain::generation_digest::GenerationDigest;
use crate::domain::task::Task;
use crate::domain::workload::Identity;
use crate::policy::CompiledGeneration;

/// A checked generation, ready to decide. The one that `Core` holds decides.
pub struct Active {
    pub(super) compiled: CompiledGeneration,
    pub(super) attestors: Attestors,
}

impl Active {
    /// Takes the parts of a generation that `broker::check` has accepted. Checks nothing itself.
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

    /// Whether a task's owner can still be attested as the same identity: the attestor that
    /// attested it exists, can give the identity, and determines identities as it did then. False
    /// if any of this is unknown.
    #[must_use]
    pub fn attests(&self, task: &Task) -> bool {
        self.attestors.could_attest(&task.attestor, &task.owner)
            && self.attestor_digest(&task.attestor) == task.attestor_digest
    }

    /// The digest of the parts of an attestor's configuration that determine which identities it
    /// gives. For an attestor that does not exist, the digest of no bytes, which no task has.
    pub(super) fn attestor_digest(&self, attestor: &str) -> [u8; 32] {
        self.attestors.digest_of(attestor)
    }

    /// Whether an identity could be attested: its attestor exists and can give this identity.
    pub(super) fn could_attest(&self, identity: &Identity) -> bool {
        let parts = identity.as_str().split_once(':');
        parts.is_some_and(|(attestor, _)| self.attestors.could_attest(attestor, identity))
    }

    /// The limits that take part in decisions.
    #[must_use]
    pub fn limits(&self) -> DecisionLimits {
        self.compiled.limits()
    }
}
