//! The acts of admins on generations: check, activate and read them.
//!
//! `try_generation` checks a document and changes nothing. `activate`, `activate_own` and
//! `activate_carried` lead to `activate_by`, which checks, records the leaf and then makes the
//! generation decide here. `generation` and `generation_of` read documents. The rule: a generation
//! decides only after it was checked and its activation is in the ledger. A document is read only
//! after the caller was authorized, because it may be large.
//!
//! Failures: a generation that cannot decide is `Unfit`, also if it would lock out all admins or
//! only observes for too long. `Ok(None)` means that the document could not be read; the HTTP
//! handler then answers. A reader without the right gets `Forbidden` from `generation` and
//! `NotFound` from `generation_of`, as for an unknown digest. If the leaf is not recorded, the
//! caller gets `FailClosed`. `http::admin`, `app` and `administration::succession` call this
//! module. `broker::generations` compiles and loads; the ledger records.

use futures_util::FutureExt as _;
use tracing::{info, instrument};

use super::Administration;
use crate::attest::Evidence;
use crate::broker::access::{Actor, Unverified};
use crate::broker::active::Active;
use crate::broker::check::Unfit;
use crate::broker::error::BrokerError;
use crate::clock::Timestamp;
use crate::domain::generation::Generation;
use crate::domain::generation_digest::GenerationDigest;
use crate::ledger::Appended;
use crate::ledger::entry::{Activate, Entry};
use crate::policy::AdminAction;
use crate::store::generations::Activation;

/// An activated generation.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct Activated {
    pub digest: GenerationDigest,
    /// The observing policies, each with the instant from which on it is enforced.
    pub observing: Vec<(String, Timestamp)>,
}

/// The initiator of an activation.
enum Initiator<'a> {
    /// An admin, who is authorized to activate.
    Admin(&'a Actor<'a>),
    /// The start of an embedded broker. Holds the name for the ledger.
    Start(String),
    /// The succession of a log, in which the generation was active. Holds the name for the ledger.
    Carried(String),
}

/// The result of checking a generation.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct Checked {
    pub digest: GenerationDigest,
    /// The observing policies, each with the instant from which on it would be enforced.
    pub observing: Vec<(String, Timestamp)>,
    /// The number of identities that are bound to any role.
    pub bound: usize,
    /// How many of them could activate the next generation by their roles alone.
    pub can_activate: usize,
}

/// The policies that observe at `now`, each with the instant from which on it is enforced.
fn observing(active: &Active, now: Timestamp) -> Vec<(String, Timestamp)> {
    let observing = active.policy().observing(now);
    observing
        .map(|(policy, until)| (policy.to_owned(), until))
        .collect()
}

impl Administration {
    /// Checks everything that activation would check, and activates nothing. The document is read
    /// only if the caller may read generations. Returns `None` if the document could not be read.
    #[instrument(skip_all)]
    pub async fn try_generation(
        &self,
        evidence: &Evidence,
        document: impl Future<Output = Option<Generation>> + Send,
    ) -> Result<Option<Checked>, BrokerError> {
        let (call, document) = (self.access.call(evidence), document.shared());
        call.run(async |unverified| {
            unverified.read_as(AdminAction::ReadGeneration).await?;
            let Some(generation) = document.clone().await else {
                return Ok(None);
            };
            self.checked(generation).await.map(Some)
        })
        .await
    }

    async fn checked(&self, generation: Generation) -> Result<Checked, BrokerError> {
        let files = generation.policies.clone();
        let active = self.generations.check_for_call(generation).await?;
        let now = self.core.now();
        let dates = active.policy().check_dates(&files, now);
        dates.map_err(Unfit::Late)?;
        let successors = self.access.successors(&active, None).await?;
        Ok(Checked {
            digest: active.digest(),
            observing: observing(&active, now),
            bound: successors.bound,
            can_activate: successors.can_activate,
        })
    }

    /// Stores a generation and makes it decide, for an admin. The document may be large, so it is
    /// read only if the caller may activate one. Returns `None` if the document could not be read.
    #[instrument(skip_all)]
    pub async fn activate(
        &self,
        evidence: &Evidence,
        document: impl Future<Output = Option<Generation>> + Send,
    ) -> Result<Option<Activated>, BrokerError> {
        let (call, document) = (self.access.call(evidence), document.shared());
        call.run(async |unverified| {
            let admin = unverified.act_as(AdminAction::ActivateGeneration).await?;
            // Reading, compiling and storing is expensive: first refuse evidence that was used
            // before.
            admin.use_up().await?;
            let Some(generation) = document.clone().await else {
                return Ok(None);
            };
            let initiator = Initiator::Admin(&admin);
            Box::pin(self.activate_by(initiator, generation))
                .await
                .map(Some)
        })
        .await
    }

    /// Stores a generation and makes it decide, at the start of an embedded broker. No caller is
    /// authorized; the ledger records `by` as the actor.
    pub async fn activate_own(
        &self,
        by: &str,
        generation: Generation,
    ) -> Result<Activated, BrokerError> {
        let initiator = Initiator::Start(by.to_owned());
        Box::pin(self.activate_by(initiator, generation)).await
    }

    /// Activates the generation that was active in a log that this one succeeds.
    pub(super) async fn activate_carried(
        &self,
        by: &str,
        generation: Generation,
    ) -> Result<GenerationDigest, BrokerError> {
        let initiator = Initiator::Carried(by.to_owned());
        let activated = Box::pin(self.activate_by(initiator, generation)).await?;
        Ok(activated.digest)
    }

    async fn activate_by(
        &self,
        initiator: Initiator<'_>,
        generation: Generation,
    ) -> Result<Activated, BrokerError> {
        let bytes = generation
            .to_bytes()
            .map_err(|error| BrokerError::policy(error.to_string()))?;
        let files = generation.policies.clone();
        let active = self.generations.check_for_call(generation).await?;
        let digest = active.digest();
        let now = self.core.now();
        // A generation that is active already is not refused for its dates.
        let decides = self.core.store().active_generation().await?;
        if decides.is_none_or(|own| own.sealed.claimed() != digest)
            && !matches!(initiator, Initiator::Carried(_))
            && let Err(problems) = active.policy().check_dates(&files, now)
        {
            return Err(Unfit::Late(problems).into());
        }
        if let Initiator::Admin(admin) = &initiator {
            self.access
                .successors(&active, Some(admin.caller()))
                .await?;
        }
        let activated = Activated {
            digest,
            observing: observing(&active, now),
        };
        let by = match &initiator {
            Initiator::Admin(admin) => admin.name(),
            Initiator::Start(by) | Initiator::Carried(by) => by.clone(),
        };
        let entry = Entry::Activate(Activate {
            digest,
            document: bytes.into(),
            endpoints: self.generations.endpoints_digest(),
            by,
        });
        let appended = match initiator {
            Initiator::Admin(admin) => admin.append(entry, now).await?,
            Initiator::Start(_) | Initiator::Carried(_) => {
                self.core.ledger().append_own(entry, now).await?
            }
        };
        match appended {
            Appended::Recorded(_) => {
                info!(generation = %digest, "activated");
                self.generations.take_over(active).await;
                Ok(activated)
            }
            Appended::Unchanged => {
                self.generations.follow().await?;
                Ok(activated)
            }
            Appended::Replayed(_) => Err(BrokerError::Replayed),
            _ => Err(BrokerError::ledger("the activation was not recorded")),
        }
    }

    /// The active generation's document, for admins.
    pub async fn generation(
        &self,
        evidence: &Evidence,
    ) -> Result<(Activation, Vec<u8>), BrokerError> {
        let call = self.access.call(evidence);
        call.run(|unverified| self.generation_by(unverified)).await
    }

    async fn generation_by(
        &self,
        unverified: Unverified<'_>,
    ) -> Result<(Activation, Vec<u8>), BrokerError> {
        unverified.read_as(AdminAction::ReadGeneration).await?;
        let activation = self.core.store().active_generation().await?;
        let activation = activation.ok_or(BrokerError::NotFound("generation"))?;
        let bytes = self
            .core
            .store()
            .generation(activation.sealed.claimed())
            .await?;
        Ok((
            activation,
            bytes.ok_or(BrokerError::NotFound("generation"))?,
        ))
    }

    /// The document of any generation that was ever active, by its digest, for admins. These are
    /// the bytes that the digest was computed from.
    pub async fn generation_of(
        &self,
        evidence: &Evidence,
        digest: GenerationDigest,
    ) -> Result<Vec<u8>, BrokerError> {
        let call = self.access.call(evidence);
        call.run(|unverified| self.generation_of_by(unverified, digest))
            .await
    }

    async fn generation_of_by(
        &self,
        unverified: Unverified<'_>,
        digest: GenerationDigest,
    ) -> Result<Vec<u8>, BrokerError> {
        let reader = unverified.read().await?;
        if !reader.may(AdminAction::ReadGeneration)? {
            return Err(BrokerError::NotFound("generation"));
        }
        let bytes = self.core.store().generation(digest).await?;
        bytes.ok_or(BrokerError::NotFound("generation"))
    }
}
