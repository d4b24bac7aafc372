//! The acts that revoke one session, the session of a token, or all sessions that a selector
//! matches; and the act that lifts a cutoff.
//!
//! `revoke_session` and `revoke_token` end one session. `revoke_many` records a cutoff;
//! `revocation` and `revocations` report cutoffs; `lift` ends the block of one. From the commit of
//! the leaf on, the broker reports the sessions as ended.
//!
//! Failures: a session or cutoff that does not exist, or that the caller may not see, is
//! `NotFound`. `Forbidden`, `LastAdmin` and `UnknownSelector` refuse a mass revocation, and
//! `Forbidden` a lift by an admin whom the cutoff concerns. A foreign token is no error: the caller
//! learns nothing. If the sessions of a committed cutoff cannot be counted, or those of a dry run
//! not in time, `radius` is `None`.
//! `http::sessions`, `http::revocations` and `http::oauth::revoke` call this module. `selectors`
//! checks selectors, `super::deny_lists` and the sweeper make back ends deny, and the ledger checks
//! blocks and lifts under its lock.

use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use tracing::{info, instrument, warn};

use super::Revocation;
use super::selectors::{BlockRequest, block_until, check_name};
use crate::attest::Evidence;
use crate::broker::access::{Removal, Unverified};
use crate::broker::error::BrokerError;
use crate::broker::verification::sessions::SessionReport;
use crate::clock::Timestamp;
use crate::domain::cutoff::{Block, Cutoff, Selector};
use crate::domain::limits::{DEFAULT_BLOCK_SECONDS, MAX_COUNTED_SESSIONS};
use crate::domain::session::{EndReason, Session, SessionState};
use crate::ids::{CutoffId, SessionId};
use crate::ledger::Appended;
use crate::ledger::entry::{EndSession, Entry, Lift, NewCutoff};
use crate::metrics::RevocationLag;
use crate::policy::AdminAction;
use crate::store::cutoffs::CutoffFilter;

/// The maximum number of sessions that an answer names. The others are only counted.
const NAMED: u32 = 100;

/// Seconds until a new role is reconciled if nothing schedules it earlier, because the replica
/// crashed between inserting the role's row and committing the cutoff.
const RECONCILE_DUE_SECONDS: u64 = 60;

/// The maximum time that the answer of a revocation or of a dry run waits for the count of its
/// sessions.
const COUNT_TIMEOUT: Duration = Duration::from_secs(4);

/// A request for a mass revocation.
#[derive(Clone, Debug)]
pub struct RevokeRequest {
    /// Selects the sessions that end.
    pub selector: Selector,
    /// For how long new requests that it matches are refused.
    pub block: BlockRequest,
    /// Whether the back end is to deny all sessions that it created earlier, and not only those
    /// that its deny list names.
    pub deny_all_earlier_sessions: bool,
    /// The reason, for people.
    pub reason: String,
    /// Whether to revoke even if the broker has no record of the selector's name, for example
    /// before its first use.
    pub allow_unknown: bool,
    /// Whether to only report the sessions that would end.
    pub dry_run: bool,
}

/// The result of a mass revocation or of its dry run.
#[derive(Debug)]
pub struct Revoked {
    /// The cutoff. `None` in a dry run.
    pub cutoff: Option<Cutoff>,
    /// The sessions that it ends. `None` if they could not be counted in time, or if the cutoff is
    /// committed but its sessions could not be counted.
    pub radius: Option<BlastRadius>,
}

/// The sessions that a selector matches.
#[derive(Debug)]
pub struct BlastRadius {
    /// The number of matched sessions, at most [`MAX_COUNTED_SESSIONS`].
    pub matched: u64,
    /// Whether there are more. `ended` and `ending` are then numbers among those counted.
    pub has_more: bool,
    /// Some of them, at most 100.
    pub sessions: Vec<SessionReport>,
    /// The number of matched sessions that are refused at every use; in a dry run, those that would
    /// be.
    pub ended: u64,
    /// The number of matched sessions that the broker has ended, but that their back end may still
    /// accept until it confirms the end or they expire.
    pub ending: u64,
}

impl Revocation {
    /// Ends one session, for its workload or an admin. Changes nothing if it has ended already.
    #[instrument(skip_all)]
    pub async fn revoke_session(
        &self,
        evidence: &Evidence,
        id: SessionId,
    ) -> Result<SessionReport, BrokerError> {
        let call = self.access.call(evidence);
        call.run(|unverified| self.revoke_session_by(unverified, id))
            .await
    }

    async fn revoke_session_by(
        &self,
        unverified: Unverified<'_>,
        id: SessionId,
    ) -> Result<SessionReport, BrokerError> {
        let requested_at = self.core.now();
        let actor = unverified.authenticate().await?.act().await?;
        let session = self.core.store().session(id).await?;
        let admin = actor.may(AdminAction::RevokeSession)?;
        let caller = actor.caller();
        let own = |session: &Session| caller.owns(&session.workload, session.instance.as_ref());
        let permitted = session.filter(|session| admin || own(session));
        let session = permitted.ok_or(BrokerError::NotFound("session"))?;
        let by_admin = admin && !own(&session);
        let not_ended = session.state != SessionState::Ended;
        if by_admin && not_ended {
            // The request to deny is written before the entry, so check first that the call may
            // write.
            actor.use_up().await?;
        }
        if by_admin
            && not_ended
            && let Err(error) = self.deny_lists.note_admin_request(&session).await
        {
            // The session ends nevertheless, but without priority on its deny list.
            warn!(session = %id, %error, "an admin's request to deny a session was not recorded");
        }
        let entry = EndSession {
            session: id,
            state: session.state_once_ended(),
            reason: EndReason::Revoked,
            never_made: false,
            by: actor.name(),
            owner: session.workload.clone(),
        };
        let appended = actor.append(Entry::EndSession(entry), requested_at).await?;
        match appended {
            Appended::Replayed(_) => return Err(BrokerError::Replayed),
            Appended::Recorded(_) => {
                self.core.metrics().sessions_ended(EndReason::Revoked, 1);
                self.lag(requested_at);
                self.core.wake_sweeper();
            }
            _ => {}
        }
        let view = self.core.store().session_view(id).await?;
        let view = view.ok_or(BrokerError::NotFound("session"))?;
        if by_admin && view.session.state == SessionState::Ending {
            // The broker has ended the session in any case. If this fails, the sweeper tries again.
            if let Err(error) = self.deny_lists.deny_for_admin(&view.session).await {
                warn!(session = %id, %error, "denying a session was left to the sweeper");
            }
        }
        Ok(SessionReport::new(view, self.core.now()))
    }

    /// Ends the session of a token. Changes nothing if the token is not the broker's or its session
    /// has ended.
    #[instrument(skip_all)]
    pub async fn revoke_token(
        &self,
        evidence: &Evidence,
        token: &SecretString,
    ) -> Result<(), BrokerError> {
        let call = self.access.call(evidence);
        call.run(|unverified| self.revoke_token_by(unverified, token))
            .await
    }

    async fn revoke_token_by(
        &self,
        unverified: Unverified<'_>,
        token: &SecretString,
    ) -> Result<(), BrokerError> {
        let known = match self.verification.recognise(token) {
            Some((session, _)) => self.core.store().session(session).await?,
            None => None,
        };
        if let Some(session) = known {
            return self
                .revoke_session_by(unverified, session.id)
                .await
                .map(drop);
        }
        self.core.metrics().foreign_token();
        unverified.read().await?;
        Ok(())
    }

    /// Ends all sessions that a selector matches, and blocks new ones as requested. The work
    /// continues even if the caller disconnects.
    #[instrument(skip_all)]
    pub async fn revoke_many(
        self: &Arc<Self>,
        evidence: &Evidence,
        ask: RevokeRequest,
    ) -> Result<Revoked, BrokerError> {
        let (revocation, evidence) = (Arc::clone(self), evidence.clone());
        let revoking = async move {
            let call = revocation.access.call(&evidence);
            let revoked = call
                .run(|unverified| revocation.revoke_tracked(unverified, ask.clone()))
                .await;
            if let Err(error @ BrokerError::FailClosed(_)) = &revoked {
                // The caller may have disconnected and not get this error.
                warn!(%error, "a mass revocation failed");
            }
            revoked
        };
        let revoked = self.core.shutdown().spawn("revoke", revoking).await;
        revoked.map_err(|_| BrokerError::bug("the revocation ended without a result; try again"))?
    }

    async fn revoke_tracked(
        &self,
        unverified: Unverified<'_>,
        ask: RevokeRequest,
    ) -> Result<Revoked, BrokerError> {
        let RevokeRequest {
            selector,
            block,
            deny_all_earlier_sessions,
            reason,
            allow_unknown,
            dry_run,
        } = ask;
        let requested_at = self.core.now();
        let admin = unverified.act_as(AdminAction::RevokeMany).await?;
        if allow_unknown {
            check_name(&selector)?;
        } else {
            self.check_known(&selector, requested_at).await?;
        }
        let target = if deny_all_earlier_sessions {
            Some(self.deny_policy_target(&selector, requested_at).await?)
        } else {
            None
        };
        if dry_run {
            admin.into_reader().await?;
            let counting = self.blast_radius(&selector, u64::MAX, requested_at);
            let counted = tokio::time::timeout(COUNT_TIMEOUT, counting).await;
            return Ok(Revoked {
                cutoff: None,
                radius: counted.ok().transpose()?,
            });
        }
        let block = block_until(&selector, block, requested_at)?;
        let is_long = match block {
            Block::No => false,
            Block::Until(end) => end > requested_at.plus_seconds(DEFAULT_BLOCK_SECONDS),
            Block::UntilLifted => true,
        };
        // Other selectors cannot lock all admins out: they block no caller, or an admin can lift
        // them.
        if let Some(identity) = selector.workload()
            && is_long
            && admin.caller().identity().is_some()
        {
            let gone = Removal::Identity(identity);
            self.access.check_successor_without(gone).await?;
        }
        let (commitment, opening) = self.core.commitment(reason.clone().into_bytes())?;
        if let Some(target) = &target {
            admin.use_up().await?;
            // Create the reconcile job before committing the cutoff, so that a crash in between
            // cannot lose it. Schedule it later, so that it does not run before the cutoff is
            // visible.
            let due = requested_at.plus_seconds(RECONCILE_DUE_SECONDS);
            self.core.store().upsert_deny_policy(target, due).await?;
        }
        let cutoff = Cutoff {
            id: CutoffId::new(requested_at, self.core.random())?,
            index: 0,
            selector: selector.clone(),
            block,
            deny_policy_target: target.as_ref().map(|target| target.name.clone()),
            reason,
            by: admin.name(),
            requested_at,
            committed_at: requested_at,
            lifted_index: None,
        };
        let entry = Entry::Cutoff(Box::new(NewCutoff {
            cutoff: cutoff.clone(),
            reason: (commitment, opening),
        }));
        let appended = admin.append(entry, requested_at).await?;
        let recorded = match appended {
            Appended::Recorded(recorded) => recorded,
            Appended::Replayed(_) => return Err(BrokerError::Replayed),
            _ => {
                return Err(BrokerError::ledger("the cutoff was not recorded"));
            }
        };
        self.core.metrics().revocation(&selector);
        self.lag(requested_at);
        if let Some(target) = &target
            && let Err(error) = self
                .core
                .store()
                .schedule_deny_policy(target, self.core.now())
                .await
        {
            // The job that was created before the commit runs it later.
            warn!(place = %target.name, %error, "the denial of earlier sessions is delayed");
        }
        self.core.wake_sweeper();
        let cutoff = Cutoff {
            index: recorded.index,
            committed_at: recorded.committed_at,
            ..cutoff
        };
        info!(
            cutoff = %cutoff.id,
            selector = selector.kind(),
            index = cutoff.index,
            "a cutoff was recorded"
        );
        Ok(self.counted(cutoff).await)
    }

    /// The answer to a committed revocation, with its sessions if they can be counted. The
    /// revocation is committed even if counting fails. Returning only an error would make callers
    /// retry it or believe that it had no effect.
    async fn counted(&self, cutoff: Cutoff) -> Revoked {
        let (index, at) = (cutoff.index, cutoff.committed_at);
        let counting = self.blast_radius(&cutoff.selector, index, at);
        let radius = match tokio::time::timeout(COUNT_TIMEOUT, counting).await {
            Ok(Ok(radius)) => Some(radius),
            Ok(Err(error)) => {
                warn!(cutoff = %cutoff.id, %error, "the sessions of a cutoff were not counted");
                None
            }
            Err(_) => {
                warn!(cutoff = %cutoff.id, "the sessions of a cutoff were not counted in time");
                None
            }
        };
        Revoked {
            cutoff: Some(cutoff),
            radius,
        }
    }

    /// The progress of a mass revocation.
    pub async fn revocation(
        &self,
        evidence: &Evidence,
        id: CutoffId,
    ) -> Result<Revoked, BrokerError> {
        let call = self.access.call(evidence);
        call.run(|unverified| self.revocation_by(unverified, id))
            .await
    }

    async fn revocation_by(
        &self,
        unverified: Unverified<'_>,
        id: CutoffId,
    ) -> Result<Revoked, BrokerError> {
        let reader = unverified.read().await?;
        if !reader.may(AdminAction::ReadRevocations)? && !reader.may(AdminAction::RevokeMany)? {
            return Err(BrokerError::NotFound("revocation"));
        }
        let names =
            reader.may(AdminAction::ListSessions)? || reader.may(AdminAction::RevokeMany)?;
        let cutoff = self.genuine_cutoff(id).await?;
        let mut revocation = self.counted(cutoff).await;
        if let Some(radius) = &mut revocation.radius
            && !names
        {
            radius.sessions.clear();
        }
        Ok(revocation)
    }

    /// The revocations of a listing, newest first, for admins.
    pub async fn revocations(
        &self,
        evidence: &Evidence,
        filter: CutoffFilter,
    ) -> Result<Vec<Cutoff>, BrokerError> {
        let call = self.access.call(evidence);
        call.run(|unverified| self.revocations_by(unverified, filter.clone()))
            .await
    }

    async fn revocations_by(
        &self,
        unverified: Unverified<'_>,
        filter: CutoffFilter,
    ) -> Result<Vec<Cutoff>, BrokerError> {
        let reader = unverified.read().await?;
        if !reader.may(AdminAction::ReadRevocations)? && !reader.may(AdminAction::RevokeMany)? {
            return Err(BrokerError::Forbidden("readRevocations"));
        }
        Ok(reader.list_cutoffs(&filter).await?)
    }

    /// Ends the block of a cutoff. The sessions that the cutoff ended stay ended.
    ///
    /// An admin that the cutoff itself blocks cannot lift it. There is one exception: an admin that
    /// no narrower cutoff blocks can lift a cutoff of an attestor or of everything, because that
    /// may block all admins. The ledger checks this rule under its lock.
    #[instrument(skip_all)]
    pub async fn lift(&self, evidence: &Evidence, id: CutoffId) -> Result<Cutoff, BrokerError> {
        let call = self.access.call(evidence);
        call.run(|unverified| self.lift_by(unverified, id)).await
    }

    async fn lift_by(
        &self,
        unverified: Unverified<'_>,
        id: CutoffId,
    ) -> Result<Cutoff, BrokerError> {
        let now = self.core.now();
        let admin = unverified.act_as(AdminAction::LiftCutoff).await?;
        let cutoff = self.genuine_cutoff(id).await?;
        if let Some(own) = admin.caller().identity()
            && self.concerns(&cutoff.selector, own).await?
        {
            // No caller lifts a cutoff of itself or its tasks, not even after its block has
            // expired.
            return Err(BrokerError::Forbidden("liftCutoff"));
        }
        if cutoff.selector.issued_after().is_some() {
            return Err(BrokerError::Invalid {
                pointer: "",
                detail: "this cutoff comes from an accepted time and blocks nothing, so it cannot \
                         be lifted"
                    .into(),
            });
        }
        if cutoff.lifted_index.is_some() {
            admin.into_reader().await?;
            return Ok(cutoff);
        }
        let entry = Entry::Lift(Box::new(Lift {
            cutoff: cutoff.clone(),
            by: admin.name(),
        }));
        let appended = admin.append(entry, now).await?;
        match appended {
            Appended::Recorded(recorded) => Ok(Cutoff {
                lifted_index: Some(recorded.index),
                ..cutoff
            }),
            // Another call lifted it meanwhile.
            Appended::Unchanged => self.genuine_cutoff(id).await,
            Appended::Replayed(_) => Err(BrokerError::Replayed),
            _ => Err(BrokerError::ledger("the lift was not recorded")),
        }
    }

    /// A cutoff whose row has the broker's MAC. Lifting computes a new MAC over this row, so a row
    /// that was changed outside the broker must be refused here.
    async fn genuine_cutoff(&self, id: CutoffId) -> Result<Cutoff, BrokerError> {
        let cutoff = self.core.store().cutoff(id).await?;
        cutoff.ok_or(BrokerError::NotFound("revocation"))
    }

    /// The sessions that a selector matches as of a leaf and an instant: their numbers, and some of
    /// them by name.
    async fn blast_radius(
        &self,
        selector: &Selector,
        index: u64,
        at: Timestamp,
    ) -> Result<BlastRadius, BrokerError> {
        let views = self
            .core
            .store()
            .list_matching(selector, index, at, NAMED)
            .await?;
        let now = self.core.now();
        let counted = self
            .core
            .store()
            .count_matching(selector, index, at, now, MAX_COUNTED_SESSIONS)
            .await?;
        let sessions = views
            .into_iter()
            .map(|view| SessionReport::new(view, now))
            .collect();
        Ok(BlastRadius {
            matched: counted.matched,
            has_more: counted.has_more,
            sessions,
            ended: counted.cut_off,
            ending: counted.matched.saturating_sub(counted.cut_off),
        })
    }

    fn lag(&self, requested_at: Timestamp) {
        let lag: Duration = requested_at.distance(self.core.now());
        self.core
            .metrics()
            .revocation_lag(RevocationLag::RequestedToDurable, lag);
    }
}
