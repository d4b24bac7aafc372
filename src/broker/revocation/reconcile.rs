//! Reconciles the deny lists at back ends with the broker's records. The replica that holds a
//! target's lease reads the target's list, writes it as a whole with the next number, and reads it
//! back.
//!
//! Start with `reconcile_due_deny_lists`, one round over the due targets, and `reconcile`, one
//! target. A back end may have less room than is registered. It reports that when a list is too
//! large. Then the list names as many sessions as fit (`write_as_much_as_fits`), the broker issues
//! no session that would need the list, and from time to time it tries a list of the registered
//! size (`probe`).
//!
//! The rule: only the holder of the lease writes, and a session that a remote list names never
//! becomes valid again through a write here. Failures: a failed target is logged and counted, and
//! is tried again after a pause that doubles up to two minutes; the round goes on with the next
//! target. Only a failure of the store or the broker itself is returned. A lost lease is no
//! failure. The sweeper calls this module. `mint` speaks to the back end; `super::deny_lists`
//! decides which sessions are to be denied.

use std::collections::BTreeSet;

use tracing::{error, info};
use uuid::Uuid;

use super::deny_lists::{DenyLists, REST_SECONDS, WATCH_SECONDS};
use crate::broker::error::BrokerError;
use crate::clock::Timestamp;
use crate::domain::deny_list::{DeniedSessions, DenyPolicyTarget};
use crate::domain::limits::MAX_TTL_SECONDS;
use crate::ids::{Random, SessionId};
use crate::mint::{DenyList, DenyWriteError, MintError};
use crate::store::deny_lists::ClaimedTarget;

/// How long a replica leases a target: longer than the calls for one target can take.
const LEASE_SECONDS: u64 = 90;

/// The maximum number of targets that are reconciled in one round.
const ROUND_TARGETS: u32 = 20;

/// The minimum rest of a lease before a list is written: longer than writing can take.
const WRITE_SECONDS: u64 = 30;

/// The longest pause after a failure, without its random part.
const MAX_PAUSE_SECONDS: u64 = 120;

/// Seconds after a back end refused a list for its size until a list of the registered size is
/// tried again.
const PROBE_SECONDS: u64 = 900;

/// The number of session ids that no session has. They fill a list to try its size.
const FILLERS: u128 = 1_024;

fn fillers() -> impl Iterator<Item = SessionId> {
    (0..FILLERS).map(|n| SessionId::from(Uuid::from_u128(u128::MAX - n)))
}

fn is_filler(id: SessionId) -> bool {
    u128::MAX - id.uuid().as_u128() < FILLERS
}

impl DenyLists {
    /// Reconciles the targets that are due. Returns the number of written lists.
    pub async fn reconcile_due_deny_lists(&self) -> Result<u64, BrokerError> {
        let mut written = 0;
        let mut result = Ok(());
        for _ in 0..ROUND_TARGETS {
            // Lease one target at a time, so that no lease runs while another target is reconciled.
            let now = self.core.now();
            let lease_until = now.plus_seconds(LEASE_SECONDS);
            let store = self.core.store();
            let claimed = store
                .claim_deny_policies(self.core.replica(), now, lease_until, 1)
                .await?;
            let Some(claimed) = claimed.first() else {
                break;
            };
            let target = &claimed.target;
            let failed = match self.reconcile(claimed).await {
                Ok(wrote) => {
                    written += u64::from(wrote);
                    continue;
                }
                Err(ReconcileError::LeaseLost) => {
                    info!(place = target.name, "the lease of a deny list has expired");
                    continue;
                }
                Err(ReconcileError::BackEnd(failed)) => failed.to_string(),
                Err(ReconcileError::Broker(error)) => {
                    let text = error.to_string();
                    result = Err(error);
                    text
                }
            };
            error!(
                place = target.name,
                error = failed,
                attempts = claimed.attempts + 1,
                "a deny list could not be reconciled; the broker tries again"
            );
            self.core.metrics().deny_list_failed();
            let due_at = self.core.now().plus_seconds(self.pause_seconds(claimed));
            store
                .mark_deny_policy_failed(target, self.core.replica(), due_at)
                .await?;
        }
        let short = self.core.store().count_short_deny_policies().await?;
        self.core.metrics().short_deny_lists(short);
        result.map(|()| written)
    }

    /// Reads the list of one target. If its content is not as required, writes it and reads it
    /// back. Returns whether it was written.
    async fn reconcile(&self, claimed: &ClaimedTarget) -> Result<bool, ReconcileError> {
        let target = &claimed.target;
        let minter = self.minter(target.minter)?;
        let Some(list) = minter.deny_list() else {
            return Err(ReconcileError::BackEnd(MintError::Refused(
                "the minter no longer has a deny list".into(),
            )));
        };
        if let Err(why) = list.check(target) {
            return self.unusable(claimed, why).await;
        }
        let (remote, read_at) = self.read_remote(list, target).await?;
        if let Some(ahead) = remote
            .as_ref()
            .filter(|remote| remote.generation > claimed.generation)
        {
            self.import_remote(target, ahead).await?;
        }
        let now = self.core.now();
        let listed = self.core.store().list_waiting(target, now).await;
        listed.map_err(BrokerError::from)?;
        let mut remote = remote;
        let refused_at = claimed.refused_at;
        if refused_at.is_some_and(|at| at.plus_seconds(PROBE_SECONDS) <= now) {
            remote = self.probe(list, claimed, remote).await?;
        }
        let desired = self.desired(target).await?;
        if remote
            .as_ref()
            .is_some_and(|remote| remote.denies_as(&desired))
            || remote.is_none() && desired.denies_as(&DeniedSessions::default())
        {
            self.mark_reconciled(target, &desired, read_at).await?;
            return Ok(false);
        }
        let Some(denied) = self
            .write_as_much_as_fits(list, claimed, remote, desired)
            .await?
        else {
            // The remote list has no room for another session.
            return Err(ReconcileError::BackEnd(MintError::Refused(
                "it has no room for another session".into(),
            )));
        };
        let (back, read_at) = self.read_remote(list, target).await?;
        if back.as_ref() != Some(&denied) {
            // Either the write has not propagated yet, or the list was written by others. The next
            // attempt finds out.
            return Err(ReconcileError::BackEnd(MintError::Unknown(
                "the list that was read back differs from the one that was written".into(),
            )));
        }
        info!(
            place = target.name,
            generation = denied.generation,
            sessions = denied.sessions.len(),
            "a deny list was written and read back"
        );
        self.mark_reconciled(target, &denied, read_at).await?;
        Ok(true)
    }

    /// Handles a target that this replica's configuration does not let it write. This fails if
    /// there is any session to deny; otherwise the target is reconciled again after
    /// [`REST_SECONDS`].
    async fn unusable(&self, claimed: &ClaimedTarget, why: String) -> Result<bool, ReconcileError> {
        let target = &claimed.target;
        if !self
            .desired(target)
            .await?
            .denies_as(&DeniedSessions::default())
        {
            return Err(ReconcileError::BackEnd(MintError::Refused(why)));
        }
        info!(
            place = target.name,
            why, "a deny list cannot be read; there is nothing to deny"
        );
        let due_at = self.core.now().plus_seconds(REST_SECONDS);
        let store = self.core.store();
        let rests = store.mark_deny_policy_failed(target, self.core.replica(), due_at);
        rests.await.map_err(BrokerError::from)?;
        Ok(false)
    }

    /// Writes a list with the next number.
    async fn write(
        &self,
        list: &dyn DenyList,
        target: &DenyPolicyTarget,
        remote: Option<&DeniedSessions>,
        desired: &DeniedSessions,
    ) -> Result<Written, ReconcileError> {
        let number = remote.map_or(0, |remote| remote.generation);
        let next = self
            .core
            .store()
            .next_deny_generation(
                target,
                self.core.replica(),
                number,
                self.core.now().plus_seconds(WRITE_SECONDS),
            )
            .await
            .map_err(BrokerError::from)?;
        let denied = DeniedSessions {
            generation: next.ok_or(ReconcileError::LeaseLost)?,
            ..desired.clone()
        };
        match list.write(target, &denied, self.core.now()).await {
            Ok(()) => Ok(Written::Whole(denied)),
            Err(DenyWriteError::TooLarge(why)) => Ok(Written::TooLarge(why)),
            Err(DenyWriteError::Other(failed)) => Err(failed.into()),
        }
    }

    /// Writes the desired list. If the back end has no room for it, drops sessions that no written
    /// list names yet, those of admins last, and tries again. The dropped sessions end by their
    /// expiry unless room becomes free, and the broker issues no session that would need the list
    /// meanwhile. Returns the written list; `None` if the back end has no room for another session.
    async fn write_as_much_as_fits(
        &self,
        list: &dyn DenyList,
        claimed: &ClaimedTarget,
        remote: Option<DeniedSessions>,
        mut desired: DeniedSessions,
    ) -> Result<Option<DeniedSessions>, ReconcileError> {
        let target = &claimed.target;
        let count = |denied: &DeniedSessions| denied.sessions.len() as u64;
        let mut short = false;
        loop {
            let why = match self.write(list, target, remote.as_ref(), &desired).await? {
                Written::Whole(denied) => {
                    if short {
                        let now = self.core.now();
                        let noted =
                            self.core
                                .store()
                                .mark_deny_policy_short(claimed, count(&denied), now);
                        noted.await.map_err(BrokerError::from)?;
                    }
                    return Ok(Some(denied));
                }
                Written::TooLarge(why) => why,
            };
            short = true;
            let now = self.core.now();
            error!(
                place = target.name,
                error = why,
                sessions = desired.sessions.len(),
                "the back end has no room for a deny list; nothing is issued there until it has: \
                 remove other inline policies of the role, or register fewer entries"
            );
            let named = remote.as_ref().map_or(0, count);
            let noted = self
                .core
                .store()
                .mark_deny_policy_short(claimed, named, now)
                .await;
            noted.map_err(BrokerError::from)?;
            let unwritten = desired.sessions.iter();
            let unwritten = unwritten
                .filter(|id| {
                    let remote = remote.as_ref();
                    remote.is_none_or(|remote| !remote.sessions.contains(*id))
                })
                .count();
            let left = self
                .core
                .store()
                .unlist_unwritten(target, unwritten / 2, now)
                .await
                .map_err(BrokerError::from)?;
            self.report_natural_expiry(target, &left);
            desired = self.desired(target).await?;
            let same = remote
                .as_ref()
                .is_some_and(|remote| remote.denies_as(&desired));
            let nothing = remote.is_none() && desired.denies_as(&DeniedSessions::default());
            if left.is_empty() || same || nothing {
                return Ok(None);
            }
        }
    }

    /// Finds out whether a back end that refused a list for its size now has the registered room.
    /// To do so, writes a list that is filled to that size with ids that no session has. Returns
    /// the remote list afterwards.
    async fn probe(
        &self,
        list: &dyn DenyList,
        claimed: &ClaimedTarget,
        remote: Option<DeniedSessions>,
    ) -> Result<Option<DeniedSessions>, ReconcileError> {
        let target = &claimed.target;
        let mut full = self.desired(target).await?;
        let missing = (target.capacity as usize).saturating_sub(full.sessions.len());
        full.sessions.extend(fillers().take(missing));
        match self.write(list, target, remote.as_ref(), &full).await? {
            Written::Whole(denied) => {
                let noted = self.core.store().mark_deny_policy_fits(target).await;
                noted.map_err(BrokerError::from)?;
                info!(
                    place = target.name,
                    "the back end has room again for a deny list of the registered size"
                );
                let listed = self
                    .core
                    .store()
                    .list_waiting(target, self.core.now())
                    .await;
                listed.map_err(BrokerError::from)?;
                Ok(Some(denied))
            }
            Written::TooLarge(why) => {
                let now = self.core.now();
                let names = remote.as_ref().map_or(0, |denied| denied.sessions.len());
                let noted = self
                    .core
                    .store()
                    .mark_deny_policy_short(claimed, names as u64, now);
                noted.await.map_err(BrokerError::from)?;
                error!(
                    place = target.name,
                    error = why,
                    entries = target.capacity,
                    "the back end has no room for a deny list of the registered size; nothing is \
                     issued there until it has: remove other inline policies of the role, or \
                     register fewer entries"
                );
                Ok(remote)
            }
        }
    }

    /// Imports the sessions of a remote list that is newer than the broker's records: the database
    /// was restored from a backup, or another deployment of the same name writes the list. A
    /// session that it names must not become valid again.
    async fn import_remote(
        &self,
        target: &DenyPolicyTarget,
        ahead: &DeniedSessions,
    ) -> Result<(), BrokerError> {
        error!(
            place = target.name,
            generation = ahead.generation,
            "a deny list is newer than the broker's records; was the database restored from a \
             backup, or does another deployment write the list?"
        );
        self.core.metrics().deny_list_failed();
        let now = self.core.now();
        let sessions = ahead.sessions.iter().copied();
        let all: Vec<_> = sessions.filter(|id| !is_filler(*id)).collect();
        let keep_until = now.plus_seconds(MAX_TTL_SECONDS);
        let left = self
            .core
            .store()
            .import_denied(target, &all, now, keep_until)
            .await?;
        self.report_natural_expiry(target, &left);
        Ok(())
    }

    /// The desired content of a target's list, without a number.
    async fn desired(&self, target: &DenyPolicyTarget) -> Result<DeniedSessions, BrokerError> {
        let now = self.core.now();
        let sessions = self.core.store().denied_sessions(target, now).await?;
        let mut sessions: BTreeSet<SessionId> = sessions.into_iter().collect();
        let horizon = self.core.known_horizon();
        if horizon < now {
            // If this replica's clock is ahead, a session that has ended would be valid again at
            // the back end. So it stays listed until the horizon has passed its expiry, if there is
            // room.
            let room = usize::try_from(target.capacity).unwrap_or(usize::MAX);
            let later = self.core.store().denied_sessions(target, horizon).await?;
            let later = later.into_iter().filter(|id| !sessions.contains(id));
            let later: Vec<SessionId> = later.take(room.saturating_sub(sessions.len())).collect();
            sessions.extend(later);
        }
        Ok(DeniedSessions {
            generation: 0,
            sessions,
            issued_before: self.issued_before(target, now.min(horizon)).await?,
        })
    }

    /// Reads a remote list and records the sessions that it names. Returns the list and the instant
    /// at which the read began.
    async fn read_remote(
        &self,
        list: &dyn DenyList,
        target: &DenyPolicyTarget,
    ) -> Result<(Option<DeniedSessions>, Timestamp), ReconcileError> {
        let began = self.core.now();
        let remote = list.read(target, self.core.now()).await?;
        let present: Vec<_> = remote
            .iter()
            .flat_map(|denied| denied.sessions.iter().copied())
            .collect();
        let before = remote.as_ref().and_then(|denied| denied.issued_before);
        let store = self.core.store();
        let noted = store
            .note_denied(target, self.core.replica(), &present, self.core.now())
            .await;
        self.core
            .metrics()
            .denied(noted.map_err(BrokerError::from)?);
        let noted = store
            .note_blanket_deny(target, self.core.replica(), before)
            .await;
        noted.map_err(BrokerError::from)?;
        Ok((remote, began))
    }

    /// Records that a target's list was read at `read_at` and was as desired.
    async fn mark_reconciled(
        &self,
        target: &DenyPolicyTarget,
        denied: &DeniedSessions,
        read_at: Timestamp,
    ) -> Result<(), BrokerError> {
        let is_empty = denied.denies_as(&DeniedSessions::default());
        let room = self.core.store().deny_room(target, read_at).await?;
        let rests = is_empty && !room.is_short;
        let pause = if rests { REST_SECONDS } else { WATCH_SECONDS };
        let due_at = read_at.plus_seconds(pause);
        let store = self.core.store();
        store
            .mark_deny_policy_reconciled(
                target,
                self.core.replica(),
                denied.issued_before,
                read_at,
                due_at,
            )
            .await?;
        self.core
            .metrics()
            .deny_list(&target.name, denied.sessions.len() as u64);
        Ok(())
    }

    /// The pause after a failure. It doubles from two seconds to two minutes. A random part of up
    /// to half of that is added, so that replicas and targets do not retry at the same time.
    fn pause_seconds(&self, claimed: &ClaimedTarget) -> u64 {
        let doubled = 2_u64.checked_shl(claimed.attempts.min(16));
        let pause = doubled.unwrap_or(MAX_PAUSE_SECONDS).min(MAX_PAUSE_SECONDS);
        let mut jitter = [0_u8];
        // Without randomness the pause has no random part.
        let drawn = self.core.random().fill(&mut jitter).is_ok();
        pause + u64::from(drawn) * (pause * u64::from(jitter[0]) / 512)
    }
}

/// Why a target was not reconciled.
enum ReconcileError {
    /// The lease has expired, or another replica holds it.
    LeaseLost,
    /// The back end failed.
    BackEnd(MintError),
    /// The store or another part of the broker failed.
    Broker(BrokerError),
}

/// The outcome of writing a list.
enum Written {
    /// The back end accepted this list.
    Whole(DeniedSessions),
    /// The back end refused the list for its size. Holds its message.
    TooLarge(String),
}

impl From<MintError> for ReconcileError {
    fn from(error: MintError) -> Self {
        Self::BackEnd(error)
    }
}

impl From<BrokerError> for ReconcileError {
    fn from(error: BrokerError) -> Self {
        Self::Broker(error)
    }
}
