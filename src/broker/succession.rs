//! A new log takes the place of one that cannot go on: what the old one's store still says is
//! carried over as far as it forbids, and as far as somebody asked for the rest.
//!
//! Nothing that was issued lives on. Its sessions are not in the new store, its signing keys are not
//! published any more, its status lists call all invalid, and back ends that deny by a list of ours
//! are made to deny whatever is older than this.

use std::collections::BTreeMap;

use tracing::info;

use super::admin::BINDING_MAC;
use super::workloads::{self, KEY_MAC};
use super::{Broker, BrokerError};
use crate::clock::Timestamp;
use crate::domain::catalog::Resource;
use crate::domain::cutoff::{Block, Cutoff, Selector, True};
use crate::domain::generation::{Generation, GenerationDigest};
use crate::ids::CutoffId;
use crate::ledger::entry::{AdminBindingChange, Entry, Request, WorkloadKeyChange};
use crate::ledger::{ACTIVATION_MAC, Appended, CUTOFF_MAC};
use crate::store::Store;
use crate::store::cutoffs::SealedCutoff;
use crate::store::generations::Activation;

/// On whose word all of this stands in the log.
const BY: &str = "new-origin";

/// What was carried over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CarriedOver {
    /// Blocks that still stood.
    pub blocks: u64,
    /// Places whose older sessions are denied.
    pub denied: Vec<String>,
    /// Registered workload keys.
    pub workload_keys: u64,
    /// Roles of admins.
    pub admin_bindings: u64,
    /// The generation that decided.
    pub generation: Option<GenerationDigest>,
}

/// What an old store says that a new one can take over.
#[derive(Default)]
pub struct Legacy {
    blocks: Vec<Cutoff>,
    keys: Vec<WorkloadKeyChange>,
    bindings: Vec<AdminBindingChange>,
    generation: Option<Generation>,
}

impl Broker {
    /// Reads what an old store says, each row checked to be the broker's own.
    pub async fn legacy(&self, old: &Store, now: Timestamp) -> Result<Legacy, BrokerError> {
        let mac = &self.parts.mac;
        let genuine = |purpose: &str, fields: &[Vec<u8>], tag: &[u8]| {
            let fields: Vec<&[u8]> = fields.iter().map(Vec::as_slice).collect();
            mac.verify(purpose, &fields, tag).map_err(|_| {
                let what = "a row of the old store was changed by something other than the broker";
                BrokerError::FailClosed(format!("{what}: {purpose}"))
            })
        };
        let mut legacy = Legacy::default();
        for sealed in old.cutoffs(u32::MAX >> 1).await? {
            genuine(
                CUTOFF_MAC,
                &SealedCutoff::mac_fields(&sealed.cutoff),
                &sealed.mac,
            )?;
            // As it stands against whoever comes now.
            if sealed.cutoff.stops(u64::MAX, now) {
                legacy.blocks.push(sealed.cutoff);
            }
        }
        for row in old.all_workload_keys(u32::MAX >> 1).await? {
            let fields: Vec<Vec<u8>> = workloads::fields(&row).map(<[u8]>::to_vec).to_vec();
            genuine(KEY_MAC, &fields, &row.mac)?;
            legacy.keys.push(WorkloadKeyChange {
                mac: mac.tag(KEY_MAC, &workloads::fields(&row)),
                attestor: row.attestor,
                workload: row.workload,
                thumbprint: row.thumbprint,
                jwk: Some(row.jwk),
                by: BY.to_owned(),
            });
        }
        for row in old.admin_bindings().await? {
            let fields = [row.identity.as_bytes(), row.role.as_bytes()];
            genuine(BINDING_MAC, &fields.map(<[u8]>::to_vec), &row.mac)?;
            let unreadable = |_| BrokerError::FailClosed("an unreadable identity".into());
            legacy.bindings.push(AdminBindingChange {
                mac: mac.tag(BINDING_MAC, &fields),
                identity: row.identity.clone().try_into().map_err(unreadable)?,
                role: row.role,
                bound: true,
                by: BY.to_owned(),
            });
        }
        if let Some(active) = old.active_generation().await? {
            let fields = Activation::mac_fields(active.index, active.digest);
            genuine(ACTIVATION_MAC, &fields, &active.mac)?;
            let bytes = old.generation(active.digest).await?.unwrap_or_default();
            let fits =
                GenerationDigest::new(crate::crypto::digest::sha256(&bytes)) == active.digest;
            let generation = serde_json::from_slice(&bytes).ok().filter(|_| fits);
            legacy.generation = Some(generation.ok_or_else(|| {
                BrokerError::FailClosed("the old generation does not fit its digest".into())
            })?);
        }
        Ok(legacy)
    }

    /// Cuts off what came before this log, and takes over what `legacy` says: what forbids always,
    /// what permits if `all`. `registered` are resources of which the old log may have issued, too.
    pub async fn succeed(
        &self,
        legacy: Legacy,
        registered: &[Resource],
        all: bool,
    ) -> Result<CarriedOver, BrokerError> {
        let mut carried = CarriedOver::default();
        let now = self.now();
        let reason = "issued under a log that was given up";
        self.carry_cutoff(Selector::All(True), Block::No, reason, None, now)
            .await?;
        let known = legacy.generation.iter().flat_map(|known| &known.resources);
        let mut resources: BTreeMap<&str, Vec<&Resource>> = BTreeMap::new();
        for resource in known.chain(registered) {
            resources.entry(&resource.name).or_default().push(resource);
        }
        for (name, registrations) in resources {
            for resource in registrations {
                let list = self.minters().of_kind(&resource.kind);
                let place = list
                    .and_then(|minter| minter.deny_list()?.deny_place(resource))
                    .filter(|place| !carried.denied.contains(&place.name));
                if let Some(place) = place {
                    let selector = Selector::Resource(name.to_owned());
                    let to = Some(place.name.clone());
                    self.carry_cutoff(selector, Block::No, reason, to, now)
                        .await?;
                    self.store().put_deny_place(&place, now).await?;
                    carried.denied.push(place.name);
                }
            }
        }
        for block in legacy.blocks {
            let (selector, until) = (block.selector, block.block);
            self.carry_cutoff(selector, until, &block.reason, None, now)
                .await?;
            carried.blocks += 1;
        }
        if !all {
            return Ok(carried);
        }
        for change in legacy.keys {
            self.carry(Entry::WorkloadKey(change)).await?;
            carried.workload_keys += 1;
        }
        for change in legacy.bindings {
            self.carry(Entry::AdminBinding(change)).await?;
            carried.admin_bindings += 1;
        }
        if let Some(generation) = legacy.generation {
            let activated = self.activate_carried(BY, generation).await?;
            carried.generation = Some(activated.map_err(|unfit| {
                BrokerError::FailClosed(format!("the old generation decides no more: {unfit}"))
            })?);
        }
        info!(?carried, "carried over");
        Ok(carried)
    }

    async fn carry_cutoff(
        &self,
        selector: Selector,
        block: Block,
        reason: &str,
        widened_to: Option<String>,
        now: Timestamp,
    ) -> Result<(), BrokerError> {
        let (commitment, opening) = self.commitment(reason.as_bytes().to_vec())?;
        let cutoff = Cutoff {
            id: CutoffId::new(now, &self.random)?,
            index: 0,
            selector,
            block,
            widened_to,
            reason: reason.to_owned(),
            by: BY.to_owned(),
            requested_at: now,
            committed_at: now,
            lifted_index: None,
        };
        self.carry(Entry::Cutoff(Box::new(cutoff), commitment, opening))
            .await
    }

    async fn carry(&self, entry: Entry) -> Result<(), BrokerError> {
        let request = Request {
            entry,
            one_time: Vec::new(),
            at: self.now(),
        };
        match self.ledger().append(request).await? {
            Appended::Recorded(_) | Appended::Unchanged => Ok(()),
            _ => Err(BrokerError::FailClosed("it was not recorded".into())),
        }
    }
}
