//! Ends single sessions by the deny list of their back end: decides which sessions are listed, and
//! when a denial is confirmed.
//!
//! `end_external` ends one session for the sweeper, `deny_for_admin` and `note_admin_request` serve
//! an admin's revocation, and `ensure_revocation_capacity` guards the issuing of credentials. The
//! end of a session is a row; [`DenyLists::reconcile_due_deny_lists`] then writes the lists
//! according to the rows.
//!
//! The rule: a denial is confirmed after the list was read back with the session, the back end's
//! propagation time has passed, and the list still had the session when it was read again. While a
//! list names sessions, it is read regularly, so that a change by a slow replica or by a person is
//! noticed and corrected. Failures: a list without room is no error: the session then ends by its
//! expiry, which is logged and counted. No credential is issued that the list could not end; its
//! caller gets `Overloaded`. A replica without the minter is `FailClosed`. `issuance`, `revoke` and
//! the sweeper call this module; `reconcile` talks to the back ends, and `store::deny_entries`
//! assigns the room.

use std::sync::Arc;

use tracing::{debug, warn};

use crate::broker::core::Core;
use crate::broker::error::BrokerError;
use crate::broker::minters::minter_of;
use crate::clock::Timestamp;
use crate::domain::catalog::Resource;
use crate::domain::deny_list::{DenyPolicyTarget, DenyReason, DenyRequest, RevocationProgress};
use crate::domain::generation::Generation;
use crate::domain::generation_digest::GenerationDigest;
use crate::domain::kind::MinterKind;
use crate::domain::limits::MAX_TTL_SECONDS;
use crate::domain::session::{EndReason, Session};
use crate::ids::SessionId;
use crate::mint::{EndOutcome, MintMode, Minter, Minters};
use crate::store::deny_entries::SKEW_SECONDS;

/// The number of consecutive failures, a few minutes, after which the broker issues no session that
/// would need this list.
const UNWRITABLE_AFTER: u32 = 6;

/// Seconds between two reads of a list that names sessions.
pub(super) const WATCH_SECONDS: u64 = 60;
/// Seconds between two reads of a list that names none.
pub(super) const REST_SECONDS: u64 = 86_400;

/// The minimum number of seconds for which a session of unknown outcome is listed: a back end's
/// default session duration.
const LATE_SECONDS: u64 = 900;

/// Manages the deny lists at back ends.
pub struct DenyLists {
    pub(super) core: Core,
    minters: Minters,
}

impl DenyLists {
    /// Manages the lists at the back ends of these minters.
    pub(in crate::broker) fn new(core: Core, minters: Minters) -> Self {
        Self { core, minters }
    }

    pub(super) fn minter(&self, kind: MinterKind) -> Result<&Arc<dyn Minter>, BrokerError> {
        minter_of(&self.minters, kind)
    }

    /// The target whose list can deny sessions of a resource. `None` if its back end has no deny
    /// list.
    pub(in crate::broker) fn target_for(
        &self,
        resource: &Resource,
    ) -> Result<Option<DenyPolicyTarget>, BrokerError> {
        let list = self.minter(resource.kind.minter())?.deny_list();
        Ok(list.and_then(|list| list.deny_target(resource)))
    }

    /// Makes the back end of a session end its credential.
    pub async fn end_external(&self, session: &Session) -> Result<EndOutcome, BrokerError> {
        let minter = self.minter(session.minter)?;
        let now = self.core.now();
        if let Some(target) = self.target_of(minter.as_ref(), session).await? {
            return self.deny(&target, minter.as_ref(), session, now).await;
        }
        Ok(minter.end(session, now).await)
    }

    /// Records that an admin revokes a session, so that it is listed before sessions that have
    /// ended for other reasons. It is not denied before its end is recorded.
    pub(in crate::broker) async fn note_admin_request(
        &self,
        session: &Session,
    ) -> Result<(), BrokerError> {
        let minter = self.minter(session.minter)?;
        if let Some(target) = self.target_of(minter.as_ref(), session).await? {
            let request = deny_request(session, DenyReason::Admin, self.core.now());
            let due = request.at.plus_seconds(WATCH_SECONDS);
            self.core.store().upsert_deny_policy(&target, due).await?;
            self.core.store().note_deny_wish(&target, &request).await?;
        }
        Ok(())
    }

    /// Requests the denial of a session that an admin ended.
    pub(in crate::broker) async fn deny_for_admin(
        &self,
        session: &Session,
    ) -> Result<(), BrokerError> {
        let minter = self.minter(session.minter)?;
        if let Some(target) = self.target_of(minter.as_ref(), session).await? {
            let now = self.core.now();
            self.request_denial(&target, session, DenyReason::Admin, now)
                .await?;
        }
        Ok(())
    }

    /// The target whose list can deny a session. It comes from the registration of its resource
    /// now, or else from the generation that permitted the session.
    async fn target_of(
        &self,
        minter: &dyn Minter,
        session: &Session,
    ) -> Result<Option<DenyPolicyTarget>, BrokerError> {
        let Some(list) = minter.deny_list() else {
            return Ok(None);
        };
        let same = |resource: &Resource| resource.audience() == session.audience;
        let active = self.core.active()?;
        let registered = active.catalog().resource(&session.resource);
        let target = registered
            .filter(|resource| same(resource))
            .and_then(|resource| list.deny_target(resource));
        if target.is_some() {
            return Ok(target);
        }
        let Some(bytes) = self.core.store().generation(session.generation).await? else {
            return Ok(None);
        };
        let genuine = GenerationDigest::new(crate::crypto::digest::sha256(&bytes));
        let decided: Option<Generation> = serde_json::from_slice(&bytes).ok();
        Ok(decided
            .filter(|_| genuine == session.generation)
            .and_then(|generation| {
                let mut resources = generation.resources.into_iter();
                let found =
                    resources.find(|resource| resource.name == session.resource && same(resource));
                list.deny_target(&found?)
            }))
    }

    /// Lists one session at its target if it is not covered yet and there is room, and returns the
    /// progress of its denial.
    async fn deny(
        &self,
        target: &DenyPolicyTarget,
        minter: &dyn Minter,
        session: &Session,
        now: Timestamp,
    ) -> Result<EndOutcome, BrokerError> {
        let bound = target.propagation_seconds;
        let progress = match self
            .covered_by_blanket_deny(target, minter, session)
            .await?
        {
            Some(progress) => progress,
            None => match self.core.store().revocation_progress(session.id).await? {
                Some(progress) if progress.listed => progress,
                // Room may be available now, or a new cutoff may match the session.
                _ => {
                    let wish = self.wish_for(session).await?;
                    self.request_denial(target, session, wish, now).await?
                }
            },
        };
        if progress.is_confirmed(bound) {
            return Ok(EndOutcome::Confirmed);
        }
        if !progress.listed {
            let again = now.plus_seconds(WATCH_SECONDS);
            return Ok(EndOutcome::NotBefore(again.min(session.expires_at)));
        }
        match progress.holds_from(bound) {
            Some(from) if now < from => Ok(EndOutcome::NotBefore(from)),
            Some(_) => {
                // The propagation time has passed; the list must be read once more.
                self.core.store().schedule_deny_policy(target, now).await?;
                Ok(EndOutcome::Pending)
            }
            None => {
                // A replica may have crashed before it scheduled the target.
                self.core
                    .store()
                    .upsert_and_schedule_deny_policy(target, now)
                    .await?;
                Ok(EndOutcome::Pending)
            }
        }
    }

    /// The progress of a blanket deny of all earlier sessions of the target. `None` if no admin
    /// requested one, or if this session may have been created after it.
    async fn covered_by_blanket_deny(
        &self,
        target: &DenyPolicyTarget,
        minter: &dyn Minter,
        session: &Session,
    ) -> Result<Option<RevocationProgress>, BrokerError> {
        let MintMode::External { lease_seconds } = minter.mode() else {
            return Ok(None);
        };
        let made_by = session.issued_at.plus_seconds(lease_seconds + SKEW_SECONDS);
        let Some(issued_before) = self.issued_before(target, self.core.now()).await? else {
            return Ok(None);
        };
        if made_by >= issued_before {
            return Ok(None);
        }
        let read = self.core.store().blanket_deny(target).await?;
        let read = read.filter(|read| made_by < read.issued_before);
        Ok(Some(RevocationProgress {
            requested_at: issued_before,
            listed: true,
            written_at: read.map(|read| read.written_at),
            read_at: read.and_then(|read| read.read_at),
        }))
    }

    /// The blanket deny of the target covers all sessions that were created before this instant.
    /// `None` if there is none, or if it is so old that all these sessions have expired.
    pub(super) async fn issued_before(
        &self,
        target: &DenyPolicyTarget,
        now: Timestamp,
    ) -> Result<Option<Timestamp>, BrokerError> {
        let since = now.minus_seconds(MAX_TTL_SECONDS);
        let at = self
            .core
            .store()
            .last_blanket_deny(&target.name, since)
            .await?;
        Ok(at.map(Timestamp::floor_to_second))
    }

    /// The reason to deny a session, from its cutoffs and its record. An admin's request for this
    /// session alone is in its deny entry instead.
    async fn wish_for(&self, session: &Session) -> Result<DenyReason, BrokerError> {
        let view = self.core.store().session_view(session.id).await?;
        if view.is_some_and(|view| view.cut_off_at.is_some()) {
            return Ok(DenyReason::Admin);
        }
        Ok(match session.end_reason {
            Some(EndReason::Failed) => DenyReason::Unknown,
            _ => DenyReason::Over,
        })
    }

    async fn request_denial(
        &self,
        target: &DenyPolicyTarget,
        session: &Session,
        wish: DenyReason,
        now: Timestamp,
    ) -> Result<RevocationProgress, BrokerError> {
        let before = self.core.store().revocation_progress(session.id).await?;
        self.core
            .store()
            .upsert_and_schedule_deny_policy(target, now)
            .await?;
        let request = deny_request(session, wish, now);
        self.core.store().request_denial(target, &request).await?;
        let progress = self.core.store().revocation_progress(session.id).await?;
        let progress = progress.ok_or(BrokerError::NotFound("session"))?;
        if before.is_none() && !progress.listed {
            // A session that expires before the list is sure to hold needs no warning.
            let holds_at = now.plus_seconds(target.propagation_seconds + SKEW_SECONDS);
            if wish == DenyReason::Admin || request.keep_until > holds_at {
                self.report_natural_expiry(target, &[session.id]);
            } else {
                self.core.metrics().expires_naturally(1);
            }
        }
        Ok(progress)
    }

    /// Logs and counts the sessions for which a list has no room. They end by their expiry.
    pub(super) fn report_natural_expiry(&self, target: &DenyPolicyTarget, sessions: &[SessionId]) {
        self.core.metrics().expires_naturally(sessions.len() as u64);
        for session in sessions {
            warn!(
                %session,
                place = target.name,
                "a deny list has no room for a session; its back end accepts the session until \
                 there is room or the session expires"
            );
        }
    }

    /// Refuses to issue a credential if its revocation would find no room on the deny list.
    pub(in crate::broker) async fn ensure_revocation_capacity(
        &self,
        resource: &Resource,
        now: Timestamp,
    ) -> Result<(), BrokerError> {
        let Some(target) = self.target_for(resource)? else {
            return Ok(());
        };
        let room = self.core.store().deny_room(&target, now).await?;
        // The caller learns of each refusal. Metrics show the state of the list to the operator.
        let why = if room.is_short {
            "the back end has no room for a list of the registered size"
        } else if room.listed >= u64::from(target.issues_below()) {
            "the deny list is nearly full"
        } else if room.failures >= UNWRITABLE_AFTER {
            "the deny list cannot be written"
        } else {
            return Ok(());
        };
        debug!(
            place = target.name,
            ?room,
            why,
            "a credential was refused, because it could not be revoked"
        );
        Err(BrokerError::Overloaded)
    }
}

/// The request to deny a session.
fn deny_request(session: &Session, wish: DenyReason, now: Timestamp) -> DenyRequest {
    // A session of unknown outcome may have been created late, and for longer than was requested.
    let life = session.issued_at.seconds_until(session.expires_at);
    let keep_until = match session.end_reason {
        Some(EndReason::Failed) => now.plus_seconds(life.max(LATE_SECONDS)),
        _ => session.expires_at,
    };
    DenyRequest {
        session: session.id,
        at: now,
        // The back end's clock may be behind the broker's.
        keep_until: keep_until
            .max(session.expires_at)
            .plus_seconds(SKEW_SECONDS),
        wish,
    }
}
