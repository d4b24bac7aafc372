//! What decides: the active generation, compiled, with its attestors.
//!
//! A generation is stored whole under its digest, checked, and activated by an admin's act, which is
//! a leaf. From that leaf on every append compares: whoever decided by another one decides again.
//! Each replica compiles what it finds in the store, so that files beside a replica never decide.
//! A generation that does not compile never replaces one that does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures_util::FutureExt as _;
use tracing::{error, info, instrument, warn};

use super::access::{Actor, Unverified};
use super::admin::Caller;
use super::check::{Unfit, check_generation};
use super::failures::NO_ATTESTOR;
use super::loads::LoadSlot;
use super::{Broker, BrokerError};
use crate::attest::{AttestContext, AttestError, Attestors, Evidence, WorkloadKeys};
use crate::clock::Timestamp;
use crate::domain::catalog::Catalog;
use crate::domain::generation::{DecisionLimits, Generation, GenerationDigest};
use crate::domain::task::Task;
use crate::domain::trust::AttestorSpec;
use crate::domain::workload::{Identity, encode_value};
use crate::endpoints::EndpointTable;
use crate::ledger::Appended;
use crate::ledger::entry::{Activate, Entry, OneTimeUse, Request};
use crate::policy::{AdminAction, CompiledGeneration};
use crate::store::generations::Activation;

/// What attestors need beside their specification.
#[derive(Clone)]
pub struct Trust {
    /// Our issuers and audiences: no attestor and no resource may have one of them.
    pub own_audiences: Vec<String>,
    /// Evidence that was made before counts no more.
    pub not_before: Option<Timestamp>,
    /// Registered workload keys.
    pub workload_keys: Arc<dyn WorkloadKeys>,
    /// Tracks the refreshes of keys.
    pub tracker: tokio_util::task::TaskTracker,
    /// This replica's endpoints.
    pub endpoints: Arc<EndpointTable>,
    /// Whether issuers may have http URLs: in development mode alone.
    pub plain_issuers: bool,
}

/// The generation that decides, ready to.
pub struct Active {
    compiled: CompiledGeneration,
    pub(super) attestors: Attestors,
}

impl Active {
    /// Its digest.
    #[must_use]
    pub fn digest(&self) -> GenerationDigest {
        self.compiled.digest()
    }

    /// Resources and task types.
    #[must_use]
    pub fn catalog(&self) -> &Catalog {
        self.compiled.catalog()
    }

    /// The policies.
    #[must_use]
    pub fn policy(&self) -> &CompiledGeneration {
        &self.compiled
    }

    /// Whether a task's owner could still be attested.
    #[must_use]
    pub fn attests(&self, task: &Task) -> bool {
        self.attestors.could_attest(&task.attestor, &task.owner)
            && self.attestor_digest(&task.attestor) == task.attestor_digest
    }

    /// The digest of what an attestor's identities rest on.
    pub(super) fn attestor_digest(&self, attestor: &str) -> [u8; 32] {
        self.attestors.digest_of(attestor)
    }

    /// Whether an identity could be attested: its attestor is there, and gives such names.
    pub(super) fn could_attest(&self, identity: &Identity) -> bool {
        let name = identity.as_str().split_once(':');
        name.is_some_and(|(attestor, _)| self.attestors.could_attest(attestor, identity))
    }

    /// Limits that decide.
    #[must_use]
    pub fn limits(&self) -> DecisionLimits {
        self.compiled.limits()
    }
}

/// What was activated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Activated {
    /// Its digest.
    pub digest: GenerationDigest,
    /// The policies that are not enforced yet, each with the instant from which on it is.
    pub observing: Vec<(String, Timestamp)>,
}

/// The initiator of an activation.
enum Initiator<'a> {
    /// An admin.
    Admin(&'a Actor<'a>),
    /// The start of an embedded broker, under this name.
    Start(String),
    /// The takeover of a log, under this name: the generation decided in the log before this one.
    Carried(String),
}

/// What a check of a generation found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// Its digest.
    pub digest: GenerationDigest,
    /// The policies that would not be enforced yet, each with the instant from which on it is.
    pub observing: Vec<(String, Timestamp)>,
    /// Identities that are bound to any role.
    pub bound: usize,
    /// How many of them could activate the next generation by their roles alone.
    pub can_activate: usize,
}

impl Broker {
    /// Whether a generation could decide here: everything that activation would check.
    ///
    /// It waits until no other generation is loaded, as long as that takes.
    async fn check_generation(&self, generation: Generation) -> Result<Active, Unfit> {
        let slot = self.loads.slot().await;
        self.check_in(slot, generation).await
    }

    /// The same for a call, which does not wait for long: the replica is overloaded then.
    async fn check_for_call(&self, generation: Generation) -> Result<Active, BrokerError> {
        let slot = self.loads.slot_for_call().await?;
        Ok(self.check_in(slot, generation).await?)
    }

    async fn check_in(&self, slot: LoadSlot, generation: Generation) -> Result<Active, Unfit> {
        let trust = self.parts.trust.clone();
        let issuer = self.issuer().to_owned();
        load(generation, trust, issuer, slot).await
    }

    /// Checks everything that activation would check, and activates nothing. The document is read
    /// only for a caller who may read generations; `None` where it could not be read.
    #[instrument(skip_all)]
    pub async fn try_generation(
        &self,
        evidence: &Evidence,
        document: impl Future<Output = Option<Generation>> + Send,
    ) -> Result<Option<Checked>, BrokerError> {
        let (call, document) = (self.call(evidence), document.shared());
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
        let active = self.check_for_call(generation).await?;
        let now = self.now();
        let dates = active.policy().check_dates(&files, now);
        dates.map_err(Unfit::Late)?;
        let successors = self.successors(&active, None).await?;
        Ok(Checked {
            digest: active.digest(),
            observing: observing(&active, now),
            bound: successors.bound,
            can_activate: successors.can_activate,
        })
    }

    /// Who could activate the next generation once this one decides: bound identities, and the
    /// caller itself where it is a workload. Where there is none this one is refused. As long as no
    /// identity is bound, a token may activate it nevertheless: the bootstrap token can bind one.
    async fn successors(
        &self,
        active: &Active,
        caller: Option<&Caller>,
    ) -> Result<Successors, BrokerError> {
        let mut candidates = self.bound_roles().await?;
        let bound = candidates.len();
        let own = caller.and_then(|caller| Some((caller.identity()?, caller.roles())));
        let by_token = own.is_none();
        if let Some((identity, roles)) = own {
            let known = candidates.entry(identity.to_string()).or_default();
            known.extend(roles);
        }
        let can_activate = self.able_to_activate(active, candidates, None).await?;
        if can_activate == 0 && !(bound == 0 && by_token) {
            return Err(Unfit::LockOut { bound }.into());
        }
        Ok(Successors {
            bound,
            can_activate,
        })
    }

    /// The number of these identities that could activate the next generation once `active` decides: by
    /// their roles alone, attested by an attestor of that generation, and blocked by no revocation. `gone`
    /// is counted as removed already.
    async fn able_to_activate(
        &self,
        active: &Active,
        candidates: BTreeMap<String, BTreeSet<String>>,
        gone: Option<Gone<'_>>,
    ) -> Result<usize, BrokerError> {
        let mut able = 0;
        for (identity, mut roles) in candidates {
            let Ok(identity) = Identity::try_from(identity) else {
                continue;
            };
            let mut removed = None;
            match gone {
                Some(Gone::Identity(gone)) if *gone == identity => continue,
                Some(Gone::Role { of, role }) if *of == identity => {
                    roles.remove(role);
                }
                Some(Gone::Key { of, thumbprint }) if *of == identity => {
                    removed = Some(thumbprint);
                }
                _ => {}
            }
            let action = AdminAction::ActivateGeneration;
            if active.could_attest(&identity)
                && active.policy().may_by_role(&identity, &roles, action)
                && !self.is_kept_out(&identity)
                && self.has_a_key(active, &identity, removed).await?
            {
                able += 1;
            }
        }
        Ok(able)
    }

    /// Whether a revocation keeps an identity out, as far as this replica knows.
    fn is_kept_out(&self, identity: &Identity) -> bool {
        let attestor = identity.as_str().split_once(':');
        attestor.is_some_and(|(attestor, _)| self.ledger().may_block(identity, attestor))
    }

    /// Whether an identity of an attestor of keys has one, in the generation or registered. Those of
    /// other attestors need none. The registered key with the thumbprint `removed` does not count.
    async fn has_a_key(
        &self,
        active: &Active,
        identity: &Identity,
        removed: Option<&str>,
    ) -> Result<bool, BrokerError> {
        let Some((attestor, workload)) = identity.as_str().split_once(':') else {
            return Ok(false);
        };
        let mut specs = active.policy().attestors().iter();
        let spec = specs.find(|spec| spec.name() == attestor);
        let Some(AttestorSpec::Key(keys)) = spec else {
            return Ok(true);
        };
        let is_its = |name: &str| encode_value(name) == workload;
        if keys.keys.iter().any(|key| is_its(&key.workload)) {
            return Ok(true);
        }
        let registered = self.store().registered_keys(u32::MAX >> 1).await?;
        Ok(registered.iter().any(|key| {
            key.attestor == attestor
                && is_its(&key.workload)
                && removed != Some(key.thumbprint.as_str())
        }))
    }

    /// Refuses an act after which no bound identity could activate the next generation, though one could
    /// before.
    pub(super) async fn check_successor_without(&self, gone: Gone<'_>) -> Result<(), BrokerError> {
        let active = self.active()?;
        let bound = self.bound_roles().await?;
        let before = self.able_to_activate(&active, bound.clone(), None).await?;
        if before > 0 && self.able_to_activate(&active, bound, Some(gone)).await? == 0 {
            return Err(BrokerError::LastAdmin);
        }
        Ok(())
    }

    /// Stores a generation and makes it decide, on an admin's word. A document that may be large is
    /// read only for a caller who may activate one; `None` where it could not be read.
    #[instrument(skip_all)]
    pub async fn activate(
        &self,
        evidence: &Evidence,
        document: impl Future<Output = Option<Generation>> + Send,
    ) -> Result<Option<Activated>, BrokerError> {
        let (call, document) = (self.call(evidence), document.shared());
        call.run(async |unverified| {
            let admin = unverified.act_as(AdminAction::ActivateGeneration).await?;
            // Nothing is read, compiled or kept for evidence that was used before.
            admin.use_up().await?;
            let Some(generation) = document.clone().await else {
                return Ok(None);
            };
            let initiator = Initiator::Admin(&admin);
            self.activate_by(initiator, generation).await.map(Some)
        })
        .await
    }

    /// The same, on the word of whoever started an embedded broker. Visible in the ledger.
    pub async fn activate_own(
        &self,
        by: &str,
        generation: Generation,
    ) -> Result<Activated, BrokerError> {
        let initiator = Initiator::Start(by.to_owned());
        self.activate_by(initiator, generation).await
    }

    /// Makes a generation decide that decided in a log before this one.
    pub(super) async fn activate_carried(
        &self,
        by: &str,
        generation: Generation,
    ) -> Result<GenerationDigest, BrokerError> {
        let initiator = Initiator::Carried(by.to_owned());
        let activated = self.activate_by(initiator, generation).await?;
        Ok(activated.digest)
    }

    async fn activate_by(
        &self,
        initiator: Initiator<'_>,
        generation: Generation,
    ) -> Result<Activated, BrokerError> {
        let bytes = generation
            .to_bytes()
            .map_err(|error| BrokerError::FailClosed(error.to_string()))?;
        let files = generation.policies.clone();
        let active = self.check_for_call(generation).await?;
        let digest = active.digest();
        let now = self.now();
        // The dates matter only to a change: an active generation stays active.
        let decides = self.store().active_generation().await?;
        if decides.is_none_or(|own| own.sealed.claimed() != digest)
            && !matches!(initiator, Initiator::Carried(_))
            && let Err(problems) = active.policy().check_dates(&files, now)
        {
            return Err(Unfit::Late(problems).into());
        }
        if let Initiator::Admin(admin) = &initiator {
            self.successors(&active, Some(admin.caller())).await?;
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
            endpoints: self.endpoints_digest(),
            by,
        });
        let appended = match initiator {
            Initiator::Admin(admin) => admin.append(entry, now).await?,
            Initiator::Start(_) | Initiator::Carried(_) => {
                let request = Request {
                    entry,
                    one_time: OneTimeUse::default(),
                    at: now,
                };
                self.ledger().append(request).await?
            }
        };
        match appended {
            Appended::Recorded(_) => {
                info!(generation = %digest, "activated");
                self.take_over(active);
                self.prepare_federation().await;
                Ok(activated)
            }
            Appended::Unchanged => {
                self.follow_generation().await?;
                Ok(activated)
            }
            Appended::Replayed(_) => Err(BrokerError::Replayed),
            _ => Err(BrokerError::FailClosed(
                "the activation was not recorded".into(),
            )),
        }
    }

    /// Brings this replica to the generation that is active in the store.
    pub async fn follow_generation(&self) -> Result<(), BrokerError> {
        let Some(activation) = self.store().active_generation().await? else {
            return Ok(());
        };
        let digest = activation.sealed.claimed();
        let fell_behind = |why: String| {
            error!(generation = %digest, %why, "this replica cannot follow the active generation");
            self.set_behind(Some(format!(
                "behind the active generation {digest}: {why}"
            )));
            BrokerError::FailClosed("behind the active generation".into())
        };
        // Who can write to the table must not thereby say what decides, or goes on deciding.
        let genuine = activation.sealed.open(&self.parts.mac);
        genuine.map_err(|_| fell_behind("it was not activated by the broker".into()))?;
        if self
            .active
            .load()
            .as_ref()
            .is_some_and(|own| own.digest() == digest)
        {
            self.set_behind(None);
            return Ok(());
        }
        let bytes = self.store().generation(digest).await?;
        let bytes = bytes.ok_or_else(|| fell_behind("its document is missing".into()))?;
        if GenerationDigest::new(crate::crypto::digest::sha256(&bytes)) != digest {
            return Err(fell_behind("its document does not fit its digest".into()));
        }
        let generation: Generation =
            serde_json::from_slice(&bytes).map_err(|error| fell_behind(error.to_string()))?;
        let compiled = self.check_generation(generation).await;
        let active = compiled.map_err(|unfit| {
            fell_behind(match unfit {
                // Readiness shows this to every client.
                Unfit::Policy(problems) => {
                    format!("{} problem(s) in the generation", problems.len())
                }
                other => other.to_string(),
            })
        })?;
        self.take_over(active);
        self.prepare_federation().await;
        Ok(())
    }

    /// The active generation's document, for admins.
    pub async fn generation(
        &self,
        evidence: &Evidence,
    ) -> Result<(Activation, Vec<u8>), BrokerError> {
        let call = self.call(evidence);
        call.run(|unverified| self.generation_by(unverified)).await
    }

    async fn generation_by(
        &self,
        unverified: Unverified<'_>,
    ) -> Result<(Activation, Vec<u8>), BrokerError> {
        unverified.read_as(AdminAction::ReadGeneration).await?;
        let activation = self.store().active_generation().await?;
        let activation = activation.ok_or(BrokerError::NotFound("generation"))?;
        let bytes = self.store().generation(activation.sealed.claimed()).await?;
        Ok((
            activation,
            bytes.ok_or(BrokerError::NotFound("generation"))?,
        ))
    }

    /// Any generation that ever decided, by its digest, for admins: the bytes that were hashed.
    pub async fn generation_of(
        &self,
        evidence: &Evidence,
        digest: GenerationDigest,
    ) -> Result<Vec<u8>, BrokerError> {
        let call = self.call(evidence);
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
        let bytes = self.store().generation(digest).await?;
        bytes.ok_or(BrokerError::NotFound("generation"))
    }

    fn take_over(&self, active: Active) {
        let now = self.now();
        self.metrics().generation_active(&active.digest());
        self.metrics().observing(active.policy().observing(now));
        let names = active.policy().attestors().iter().map(AttestorSpec::name);
        let names = names.chain([NO_ATTESTOR]);
        self.metrics().attestors(names, &AttestError::REASONS);
        for (policy, until) in active.policy().observing(now) {
            warn!(%policy, enforced_from = %until, "not enforced: it merely observes");
        }
        self.active.store(Some(Arc::new(active)));
        self.set_behind(None);
    }

    fn set_behind(&self, why: Option<String>) {
        self.metrics().generation_behind(why.is_some());
        self.behind.store(Arc::new(why));
    }
}

/// A role, key or access that an act is about to remove from an identity.
#[derive(Clone, Copy, Debug)]
pub(super) enum Gone<'a> {
    /// A role.
    Role { of: &'a Identity, role: &'a str },
    /// A registered key.
    Key {
        of: &'a Identity,
        thumbprint: &'a str,
    },
    /// All access, by a revocation.
    Identity(&'a Identity),
}

/// How many identities could activate the next generation.
struct Successors {
    bound: usize,
    can_activate: usize,
}

/// The policies that merely observe at `now`, each with the instant from which on it is enforced.
fn observing(active: &Active, now: Timestamp) -> Vec<(String, Timestamp)> {
    let observing = active.policy().observing(now);
    observing
        .map(|(policy, until)| (policy.to_owned(), until))
        .collect()
}

async fn load(
    generation: Generation,
    trust: Trust,
    issuer: String,
    slot: LoadSlot,
) -> Result<Active, Unfit> {
    let context = AttestContext {
        own_issuer: issuer,
        own_issuers: trust.own_audiences,
        not_before: trust.not_before,
        tracker: trust.tracker,
        workload_keys: trust.workload_keys,
        endpoints: trust.endpoints,
        plain_issuers: trust.plain_issuers,
    };
    // Parsing and validating take CPU: not on the threads that serve.
    let checked = tokio::task::spawn_blocking(move || {
        // It goes on where its caller has gone: the next load waits for its end.
        let _slot = slot;
        check_generation(&generation, context, None)
    });
    let checked = checked.await;
    let fit = checked.map_err(|error| Unfit::Unchecked(error.to_string()))??;
    Ok(Active {
        compiled: fit.compiled,
        attestors: fit.attestors,
    })
}

#[cfg(test)]
impl Broker {
    /// Replaces the attestors of the active generation by one that believes each token.
    pub(super) fn believe_fake_attestor(&self) {
        let active = self.active.swap(None).and_then(Arc::into_inner).unwrap();
        self.active.store(Some(Arc::new(Active {
            attestors: Attestors::fake(),
            ..active
        })));
    }
}
