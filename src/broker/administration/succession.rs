//! A new log succeeds one that cannot continue. Restrictions in the old log's store are always
//! carried over; roles, workload keys and the active generation only if the operator asks for them.
//!
//! `OldLogRecords::read` reads the old store. `LogSuccession::succeed` records a cutoff of all
//! earlier sessions, then carries the data over. An interrupted run can be repeated: data that was
//! carried over already is skipped. Credentials that are verified with the broker end: their
//! sessions are not in the new store, their signing keys are no longer published, and their status
//! lists report them all as invalid. Back ends with a deny list are made to deny all earlier
//! sessions, at each target where the old log may have had sessions. At back ends without one, the
//! sessions live until they expire, and the broker reports them (`ExpiresNaturally`).
//!
//! Failures: a row of the old store with a wrong MAC, an active generation that does not match its
//! digest, and an entry that is not recorded are `FailClosed`. A target that cannot be denied is no
//! error: the answer lists it. `app::succession` calls this module before the new log serves. It
//! writes no deny list: `broker::revocation` does later.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Serialize;
use tracing::info;

use super::Administration;
use crate::broker::core::Core;
use crate::broker::error::BrokerError;
use crate::clock::Timestamp;
use crate::crypto::digest::Mac;
use crate::domain::catalog::Resource;
use crate::domain::cutoff::{Block, Cutoff, Selector, True};
use crate::domain::deny_list::DenyPolicyTarget;
use crate::domain::generation::Generation;
use crate::domain::generation_digest::GenerationDigest;
use crate::domain::kind::MinterKind;
use crate::domain::limits::MAX_TTL_SECONDS;
use crate::ids::CutoffId;
use crate::ledger::Appended;
use crate::ledger::entry::{AdminBindingChange, Entry, NewCutoff, WorkloadKeyChange};
use crate::mint::{DenyList, MintMode, Minters};
use crate::store::Store;
use crate::store::admins::AdminBinding;
use crate::store::deny_lists::SessionGroup;
use crate::store::workload_keys::WorkloadKeyRow;

/// The actor that the ledger records for a succession.
const BY: &str = "new-origin";

/// Why sessions at a target are not denied.
const NO_LIST: &str = "it has no deny list";
const NO_MINTER: &str = "no back end of its kind is configured";
const UNREADABLE: &str = "the generation's document is missing or changed";

/// Sessions that the new log cannot end before they expire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ExpiresNaturally {
    /// The role at the back end, or the generation whose roles are unknown.
    pub target: String,
    /// Why its sessions are not denied.
    pub reason: String,
    /// When the last of them has expired.
    pub until: Timestamp,
}

/// A summary of the data that was carried over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CarriedOver {
    /// The number of blocks that were in effect.
    pub blocks: u64,
    /// The targets whose older sessions are denied as soon as a broker writes their lists.
    pub denied: Vec<String>,
    /// The targets whose older sessions live until they expire.
    pub expires_naturally: Vec<ExpiresNaturally>,
    /// The number of registered workload keys.
    pub workload_keys: u64,
    /// The number of roles that are bound to identities.
    pub admin_bindings: u64,
    /// The generation that was active. `None` if none was carried over.
    pub generation: Option<GenerationDigest>,
}

/// The data of an old store that can be carried over.
#[derive(Default)]
pub struct OldLogRecords {
    blocks: Vec<Cutoff>,
    keys: Vec<WorkloadKeyChange>,
    bindings: Vec<AdminBindingChange>,
    generation: Option<Generation>,
    /// The resources of each generation that may have permitted a session that still lives.
    resources: Vec<Resource>,
    /// Those of these generations whose documents are missing or changed.
    unreadable: Vec<GenerationDigest>,
    /// The targets of the lists that the old broker wrote.
    targets: Vec<DenyPolicyTarget>,
    /// The groups of its external sessions that have not expired.
    sessions: Vec<SessionGroup>,
}

/// A target at a back end where sessions may live.
#[derive(Default)]
struct FoundTarget {
    /// The name of one of its resources. `None` if none is known.
    resource: Option<String>,
    /// The target of its deny list, once for each known registration.
    lists: Vec<DenyPolicyTarget>,
}

impl FoundTarget {
    /// The first list that this replica can write. If it can write none, the first list with the
    /// reason. `None` if there is no list.
    fn list(
        self,
        back_end: Option<&dyn DenyList>,
    ) -> Option<(DenyPolicyTarget, Result<(), String>)> {
        let back_end = back_end?;
        let checked = self.lists.into_iter().map(|list| {
            let usable = back_end.check(&list);
            (list, usable)
        });
        let (mut usable, mut unusable): (Vec<_>, Vec<_>) = checked.partition(|(_, it)| it.is_ok());
        let mut all = usable.drain(..).chain(unusable.drain(..));
        all.next()
    }
}

impl OldLogRecords {
    /// Reads the data of an old store. Checks the MAC of each row with `old_mac`, the old broker's
    /// key.
    pub async fn read(old: &Store, old_mac: &Mac, now: Timestamp) -> Result<Self, BrokerError> {
        let foreign = |row: &str| {
            BrokerError::store(format!(
                "a row of the old store was changed by something other than the broker: {row}"
            ))
        };
        let mut old_records = Self::default();
        for sealed in old.cutoffs(u32::MAX >> 1).await? {
            let cutoff = sealed.open(old_mac);
            let cutoff = cutoff.map_err(|_| foreign(&sealed.name()))?;
            // Whether it blocks new requests now.
            if cutoff.stops(u64::MAX, now) {
                old_records.blocks.push(cutoff.clone());
            }
        }
        for row in old.all_workload_keys(u32::MAX >> 1).await? {
            row.open(old_mac).map_err(|_| foreign(&row.name()))?;
            if row.jwk.is_some() {
                old_records.keys.push(WorkloadKeyChange {
                    attestor: row.attestor,
                    workload: row.workload,
                    thumbprint: row.thumbprint,
                    jwk: row.jwk,
                    by: BY.to_owned(),
                });
            }
        }
        for row in old.admin_bindings().await? {
            row.open(old_mac).map_err(|_| foreign(&row.name()))?;
            let unreadable =
                |_| BrokerError::store("a binding of the old store has an invalid identity");
            if row.bound {
                old_records.bindings.push(AdminBindingChange {
                    identity: row.identity.clone().try_into().map_err(unreadable)?,
                    role: row.role,
                    bound: true,
                    by: BY.to_owned(),
                });
            }
        }
        if let Some(active) = old.active_generation().await? {
            let digest = active.sealed.open(old_mac);
            let digest = digest.map_err(|_| foreign(&active.sealed.name()))?;
            let bytes = old.generation(digest).await?.unwrap_or_default();
            let fits = GenerationDigest::new(crate::crypto::digest::sha256(&bytes)) == digest;
            let generation = serde_json::from_slice(&bytes).ok().filter(|_| fits);
            old_records.generation = Some(generation.ok_or_else(|| {
                BrokerError::store("the old store's active generation does not match its digest")
            })?);
        }
        old_records.read_targets(old, now).await?;
        Ok(old_records)
    }

    /// Finds the targets at back ends where sessions may live: from the rows of the old store, and
    /// from each generation that was active within the longest lifetime of a session. After a loss
    /// of data, both can be incomplete.
    async fn read_targets(&mut self, old: &Store, now: Timestamp) -> Result<(), BrokerError> {
        self.targets = old.deny_policy_targets().await?;
        self.sessions = old.external_session_groups(now).await?;
        let since = now.minus_seconds(MAX_TTL_SECONDS);
        let decided = old.generations_since(since).await?.into_iter();
        let of_sessions = self.sessions.iter().map(|session| session.generation);
        let all: BTreeSet<GenerationDigest> = decided.chain(of_sessions).collect();
        for digest in all {
            let bytes = old.generation(digest).await?.unwrap_or_default();
            let fits = GenerationDigest::new(crate::crypto::digest::sha256(&bytes)) == digest;
            let generation: Option<Generation> = serde_json::from_slice(&bytes).ok();
            match generation.filter(|_| fits) {
                Some(generation) => self.resources.extend(generation.resources),
                None => self.unreadable.push(digest),
            }
        }
        Ok(())
    }

    /// The generation that was active. `None` if there was none.
    #[must_use]
    pub fn generation(&self) -> Option<&Generation> {
        self.generation.as_ref()
    }
}

/// Carries over the data of a log that this one succeeds.
pub struct LogSuccession {
    core: Core,
    administration: Arc<Administration>,
    minters: Minters,
    mac: Mac,
}

impl LogSuccession {
    pub(in crate::broker) fn new(
        core: Core,
        administration: Arc<Administration>,
        minters: Minters,
        mac: Mac,
    ) -> Self {
        Self {
            core,
            administration,
            minters,
            mac,
        }
    }

    /// Records a cutoff of all sessions before this log, and carries over the restrictions of
    /// `old_records`; with `all` also its keys, roles and generation. `registered` are further
    /// resources for which the old log may have issued credentials. Data that an interrupted run
    /// carried over already is not carried over again.
    #[expect(clippy::disallowed_methods, reason = "a new log has no callers yet")]
    pub async fn succeed(
        &self,
        old_records: OldLogRecords,
        registered: &[Resource],
        all: bool,
    ) -> Result<CarriedOver, BrokerError> {
        let mut carried = CarriedOver::default();
        let now = self.core.now();
        let reason = "issued under a log that was given up";
        let mut before = self.carried_cutoffs().await?;
        let mut carry = async |selector, block, reason: &str, to: Option<String>| {
            let same = before.iter().position(|cutoff| {
                cutoff.selector == selector
                    && cutoff.block == block
                    && cutoff.reason == reason
                    && cutoff.deny_policy_target == to
            });
            if let Some(same) = same {
                before.swap_remove(same);
                return Ok(());
            }
            self.carry_cutoff(selector, block, reason, to, now).await
        };
        carry(Selector::All(True), Block::No, reason, None).await?;
        let left = |target: String, reason: &str| ExpiresNaturally {
            target,
            reason: reason.to_owned(),
            until: now.plus_seconds(MAX_TTL_SECONDS),
        };
        for ((kind, name), mut found) in self.targets_of(&old_records, registered) {
            let minter = self.minters.of_kind(kind);
            let resource = found.resource.take();
            let Some((target, usable)) = found.list(minter.and_then(|it| it.deny_list())) else {
                let why = minter.map_or(NO_MINTER, |_| NO_LIST);
                carried.expires_naturally.push(left(name, why));
                continue;
            };
            let selector = match resource {
                Some(resource) => Selector::Resource(resource),
                None => Selector::All(True),
            };
            carry(selector, Block::No, reason, Some(name)).await?;
            // Insert the target even if this replica cannot write its list: it is written as soon
            // as the configuration is corrected.
            self.core
                .store()
                .upsert_and_schedule_deny_policy(&target, now)
                .await?;
            match usable {
                Ok(()) => carried.denied.push(target.name),
                Err(why) => carried.expires_naturally.push(left(target.name, &why)),
            }
        }
        for generation in &old_records.unreadable {
            carried
                .expires_naturally
                .push(left(generation.to_string(), UNREADABLE));
        }
        for block in old_records.blocks {
            carry(block.selector, block.block, &block.reason, None).await?;
            carried.blocks += 1;
        }
        if !all {
            return Ok(carried);
        }
        let keys = self.core.store().registered_keys(u32::MAX >> 1).await?;
        for change in old_records.keys {
            let same = |row: &WorkloadKeyRow| {
                (&row.attestor, &row.workload, &row.thumbprint)
                    == (&change.attestor, &change.workload, &change.thumbprint)
            };
            if !keys.iter().any(same) {
                self.carry(Entry::WorkloadKey(change)).await?;
            }
            carried.workload_keys += 1;
        }
        let bindings = self.core.store().bound_roles().await?;
        for change in old_records.bindings {
            let same = |row: &AdminBinding| {
                row.identity == change.identity.as_str() && row.role == change.role
            };
            if !bindings.iter().any(same) {
                self.carry(Entry::AdminBinding(change)).await?;
            }
            carried.admin_bindings += 1;
        }
        if let Some(generation) = old_records.generation {
            let activated = self.administration.activate_carried(BY, generation).await;
            let activated = activated.map_err(|error| match error {
                BrokerError::Unfit(unfit) => BrokerError::policy(format!(
                    "the old store's active generation cannot decide here: {unfit}"
                )),
                other => other,
            });
            carried.generation = Some(activated?);
        }
        info!(?carried, "the data of the old log was carried over");
        Ok(carried)
    }

    /// The targets at back ends where sessions of the old log may live, by kind and name. The
    /// present registration of a list comes before older ones.
    fn targets_of(
        &self,
        old_records: &OldLogRecords,
        registered: &[Resource],
    ) -> BTreeMap<(MinterKind, String), FoundTarget> {
        let mut all: BTreeMap<(MinterKind, String), FoundTarget> = BTreeMap::new();
        for resource in registered.iter().chain(&old_records.resources) {
            let kind = resource.kind.minter();
            let minter = self.minters.of_kind(kind);
            let Some(minter) = minter.filter(|minter| minter.mode() != MintMode::Local) else {
                continue;
            };
            let list = minter
                .deny_list()
                .and_then(|list| list.deny_target(resource));
            let name = resource.audience().to_owned();
            let found = all.entry((kind, name)).or_default();
            found.resource.get_or_insert_with(|| resource.name.clone());
            found.lists.extend(list);
        }
        for session in &old_records.sessions {
            let key = (session.minter, session.audience.clone());
            let found = all.entry(key).or_default();
            found
                .resource
                .get_or_insert_with(|| session.resource.clone());
        }
        for target in &old_records.targets {
            let key = (target.minter, target.name.clone());
            let found = all.entry(key).or_default();
            found.lists.push(target.clone());
        }
        all
    }

    /// The cutoffs that were carried over already.
    async fn carried_cutoffs(&self) -> Result<Vec<Cutoff>, BrokerError> {
        let rows = self.core.store().cutoffs(u32::MAX >> 1).await?;
        let carried = rows.into_iter().filter(|sealed| {
            let genuine = sealed.open(&self.mac);
            genuine.is_ok_and(|cutoff| cutoff.by == BY)
        });
        Ok(carried.map(|sealed| sealed.claimed().clone()).collect())
    }

    async fn carry_cutoff(
        &self,
        selector: Selector,
        block: Block,
        reason: &str,
        deny_policy_target: Option<String>,
        now: Timestamp,
    ) -> Result<(), BrokerError> {
        let cutoff = Cutoff {
            id: CutoffId::new(now, self.core.random())?,
            index: 0,
            selector,
            block,
            deny_policy_target,
            reason: reason.to_owned(),
            by: BY.to_owned(),
            requested_at: now,
            committed_at: now,
            lifted_index: None,
        };
        let reason = self.core.commitment(reason.as_bytes().to_vec())?;
        self.carry(Entry::Cutoff(Box::new(NewCutoff { cutoff, reason })))
            .await
    }

    async fn carry(&self, entry: Entry) -> Result<(), BrokerError> {
        match self
            .core
            .ledger()
            .append_own(entry, self.core.now())
            .await?
        {
            Appended::Recorded(_) | Appended::Unchanged => Ok(()),
            _ => Err(BrokerError::ledger(
                "an entry of the succession was not recorded",
            )),
        }
    }
}
