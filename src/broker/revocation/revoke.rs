//! The acts that revoke: one session, the session of a token, everything that a selector matches; and the
//! act that lifts a cutoff.

use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use tracing::{info, instrument, warn};

use super::Revocation;
use super::selectors::{block_until, check_name};
use crate::attest::Evidence;
use crate::broker::access::{Gone, Unverified};
use crate::broker::error::BrokerError;
use crate::broker::verification::sessions::SessionReport;
use crate::clock::Timestamp;
use crate::domain::cutoff::{Block, Cutoff, Selector};
use crate::domain::limits::DEFAULT_BLOCK_SECONDS;
use crate::domain::session::{EndReason, Session, SessionState};
use crate::ids::{CutoffId, SessionId};
use crate::ledger::Appended;
use crate::ledger::entry::{EndSession, Entry, Lift, NewCutoff};
use crate::metrics::RevocationLag;
use crate::policy::AdminAction;
use crate::store::cutoffs::CutoffFilter;

/// Sessions that an answer names; the rest are only counted.
const NAMED: u32 = 100;

/// Seconds until a new role is reconciled if nothing schedules it earlier: the crash of a revocation
/// between the role's row and the cutoff.
const RECONCILE_DUE_SECONDS: u64 = 60;

/// How long a revocation that stands is kept from its answer by counting.
const COUNT_PATIENCE: Duration = Duration::from_secs(4);

/// For how long an admin wants nothing new to be granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockAsk {
    /// As the selector's kind suggests.
    Default,
    /// So many seconds; none for zero.
    Seconds(u64),
    /// Until lifted.
    UntilLifted,
}

/// A mass revocation, as it is asked for.
#[derive(Clone, Debug)]
pub struct RevokeAsk {
    /// What is to end.
    pub selector: Selector,
    /// For how long nothing new is granted to it.
    pub block: BlockAsk,
    /// Whether the back end is to deny every session that was made earlier, instead of only those
    /// that its list names.
    pub deny_all_earlier_sessions: bool,
    /// Why, for people.
    pub reason: String,
    /// Revoke though the broker knows nothing of the selector's name, as before a first use.
    pub allow_unknown: bool,
    /// Only say what would end.
    pub dry_run: bool,
}

/// A mass revocation, done or tried.
#[derive(Debug)]
pub struct Revoked {
    /// The cutoff; none where it was only tried.
    pub cutoff: Option<Cutoff>,
    /// What it ends; none where it stands and the store did not count afterwards.
    pub radius: Option<BlastRadius>,
}

/// What a selector matches.
#[derive(Debug)]
pub struct BlastRadius {
    /// Sessions that it matches.
    pub matched: u64,
    /// The first of them.
    pub sessions: Vec<SessionReport>,
    /// Of the matched ones, over for everybody; in a dry run, those that would be.
    pub ended: u64,
    /// Of the matched ones, over for us, to be confirmed or to expire.
    pub ending: u64,
}

impl Revocation {
    /// Ends one session, for its workload or an admin. Ending it again changes nothing.
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
        let asked = self.core.now();
        let actor = unverified.authenticate().await?.act().await?;
        let session = self.core.store().session(id).await?;
        let admin = actor.may(AdminAction::RevokeSession)?;
        let caller = actor.caller();
        let own = |session: &Session| caller.owns(&session.workload, session.instance.as_ref());
        let theirs = session.filter(|session| admin || own(session));
        let session = theirs.ok_or(BrokerError::NotFound("session"))?;
        let insisted = admin && !own(&session);
        let lives = session.state != SessionState::Ended;
        if insisted && lives {
            // The note is written before the entry: first it is known that this call may write.
            actor.use_up().await?;
        }
        if insisted
            && lives
            && let Err(error) = self.deny_lists.note_insistence(&session).await
        {
            // It ends all the same, if need be without its place before others.
            warn!(session = %id, %error, "an admin's wish to have a session denied was not noted");
        }
        let entry = EndSession {
            session: id,
            state: session.state_once_ended(),
            reason: EndReason::Revoked,
            never_made: false,
            by: actor.name(),
            owner: session.workload.clone(),
        };
        let appended = actor.append(Entry::EndSession(entry), asked).await?;
        match appended {
            Appended::Replayed(_) => return Err(BrokerError::Replayed),
            Appended::Recorded(_) => {
                self.core.metrics().sessions_ended(EndReason::Revoked, 1);
                self.lag(asked);
                self.core.wake_sweeper();
            }
            _ => {}
        }
        let view = self.core.store().session_view(id).await?;
        let view = view.ok_or(BrokerError::NotFound("session"))?;
        if insisted && view.session.state == SessionState::Ending {
            // It is over for us either way; the sweeper asks again if this fails.
            if let Err(error) = self.deny_lists.insist_on_end(&view.session).await {
                warn!(session = %id, %error, "its place among the denied ones waits for the sweeper");
            }
        }
        Ok(SessionReport::new(view, self.core.now()))
    }

    /// Ends the session of a token. One that is not ours, or over, needs no ending.
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

    /// Ends everything that a selector matches, and keeps it from coming back: to the end, whoever
    /// waits for it.
    #[instrument(skip_all)]
    pub async fn revoke_many(
        self: &Arc<Self>,
        evidence: &Evidence,
        ask: RevokeAsk,
    ) -> Result<Revoked, BrokerError> {
        let (revocation, evidence) = (Arc::clone(self), evidence.clone());
        let revoking = async move {
            let call = revocation.access.call(&evidence);
            let revoked = call
                .run(|unverified| revocation.revoke_tracked(unverified, ask.clone()))
                .await;
            if let Err(error @ BrokerError::FailClosed(_)) = &revoked {
                // Nobody may be there any more to be told.
                warn!(%error, "nothing is known to be revoked");
            }
            revoked
        };
        let revoked = self.core.shutdown().spawn("revoke", revoking).await;
        revoked.map_err(|_| BrokerError::FailClosed("the revocation was lost".into()))?
    }

    async fn revoke_tracked(
        &self,
        unverified: Unverified<'_>,
        ask: RevokeAsk,
    ) -> Result<Revoked, BrokerError> {
        let RevokeAsk {
            selector,
            block,
            deny_all_earlier_sessions,
            reason,
            allow_unknown,
            dry_run,
        } = ask;
        let asked = self.core.now();
        let admin = unverified.act_as(AdminAction::RevokeMany).await?;
        if allow_unknown {
            check_name(&selector)?;
        } else {
            self.check_known(&selector, asked).await?;
        }
        let place = if deny_all_earlier_sessions {
            Some(self.deny_policy_target(&selector, asked).await?)
        } else {
            None
        };
        if dry_run {
            admin.into_reader().await?;
            let radius = self.blast_radius(&selector, u64::MAX, asked).await?;
            return Ok(Revoked {
                cutoff: None,
                radius: Some(radius),
            });
        }
        let block = block_until(&selector, block, asked)?;
        let is_long = match block {
            Block::No => false,
            Block::Until(end) => end > asked.plus_seconds(DEFAULT_BLOCK_SECONDS),
            Block::UntilLifted => true,
        };
        // Other selectors cannot lock the admins out: they block no caller, or admins lift them.
        if let Some(identity) = selector.workload()
            && is_long
            && admin.caller().identity().is_some()
        {
            let gone = Gone::Identity(identity);
            self.access.check_successor_without(gone).await?;
        }
        let (commitment, opening) = self.core.commitment(reason.clone().into_bytes())?;
        if let Some(place) = &place {
            admin.use_up().await?;
            // Create the reconcile job before committing the cutoff, so that a crash in between cannot
            // lose it. Schedule it later, so that it does not run before the cutoff is visible.
            let due = asked.plus_seconds(RECONCILE_DUE_SECONDS);
            self.core.store().know_deny_place(place, due).await?;
        }
        let cutoff = Cutoff {
            id: CutoffId::new(asked, self.core.random())?,
            index: 0,
            selector: selector.clone(),
            block,
            deny_policy_target: place.as_ref().map(|place| place.name.clone()),
            reason,
            by: admin.name(),
            requested_at: asked,
            committed_at: asked,
            lifted_index: None,
        };
        let entry = Entry::Cutoff(Box::new(NewCutoff {
            cutoff: cutoff.clone(),
            reason: (commitment, opening),
        }));
        let appended = admin.append(entry, asked).await?;
        let recorded = match appended {
            Appended::Recorded(recorded) => recorded,
            Appended::Replayed(_) => return Err(BrokerError::Replayed),
            _ => {
                return Err(BrokerError::FailClosed(
                    "the cutoff was not recorded".into(),
                ));
            }
        };
        self.core.metrics().revocation(&selector);
        self.lag(asked);
        if let Some(place) = &place
            && let Err(error) = self
                .core
                .store()
                .nudge_deny_place(place, self.core.now())
                .await
        {
            warn!(place = %place.name, %error, "the deny of earlier sessions waits until its role is due");
        }
        self.core.wake_sweeper();
        let cutoff = Cutoff {
            index: recorded.index,
            committed_at: recorded.committed_at,
            ..cutoff
        };
        info!(cutoff = %cutoff.id, selector = selector.kind(), index = cutoff.index, "cut off");
        Ok(self.counted(cutoff).await)
    }

    /// A revocation that stands, with what it ends if that can be counted. Whoever were told of the
    /// failure alone would do it again, or think that things live on.
    async fn counted(&self, cutoff: Cutoff) -> Revoked {
        let (index, at) = (cutoff.index, cutoff.committed_at);
        let counting = self.blast_radius(&cutoff.selector, index, at);
        let radius = match tokio::time::timeout(COUNT_PATIENCE, counting).await {
            Ok(Ok(radius)) => Some(radius),
            Ok(Err(error)) => {
                warn!(cutoff = %cutoff.id, %error, "what a revocation ends was not counted");
                None
            }
            Err(_) => {
                warn!(cutoff = %cutoff.id, "what a revocation ends was not counted in time");
                None
            }
        };
        Revoked {
            cutoff: Some(cutoff),
            radius,
        }
    }

    /// How far a mass revocation has come.
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

    /// Lets in again what a cutoff keeps out. What it killed stays dead.
    ///
    /// A caller that the cutoff itself blocks never lifts it, with one exception: a cutoff of an
    /// attestor or of everything can be lifted by an admin whom no narrower one blocks, since there
    /// may be no admin left whom it does not block. Each lift is judged so under the ledger's lock.
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
            // A caller never lifts what was cut off of itself, not even once the block is over.
            return Err(BrokerError::Forbidden("liftCutoff"));
        }
        if cutoff.selector.issued_after().is_some() {
            return Err(BrokerError::Invalid {
                pointer: "",
                detail: "the acceptance of a time blocks nothing: there is nothing to lift".into(),
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
            _ => Err(BrokerError::FailClosed(
                "the lifting was not recorded".into(),
            )),
        }
    }

    /// A cutoff whose row is as the broker wrote it. Lifting makes a new MAC over what is read here,
    /// which must not bless what somebody else wrote.
    async fn genuine_cutoff(&self, id: CutoffId) -> Result<Cutoff, BrokerError> {
        let cutoff = self.core.store().cutoff(id).await?;
        cutoff.ok_or(BrokerError::NotFound("revocation"))
    }

    /// What a selector matches: counted as of a leaf and an instant, the first named.
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
        let (matched, ended) = self
            .core
            .store()
            .count_matching(selector, index, at, now)
            .await?;
        let sessions = views
            .into_iter()
            .map(|view| SessionReport::new(view, now))
            .collect();
        Ok(BlastRadius {
            matched,
            sessions,
            ended,
            ending: matched.saturating_sub(ended),
        })
    }

    fn lag(&self, asked: Timestamp) {
        let lag: Duration = asked.distance(self.core.now());
        self.core
            .metrics()
            .revocation_lag(RevocationLag::RequestedToDurable, lag);
    }
}
