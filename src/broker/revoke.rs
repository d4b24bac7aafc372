//! Revocation: one session, or everything that a selector matches.
//!
//! A mass revocation is one row, a cutoff, however many sessions it kills: they are dead for every
//! use from its commit on. What an external back end has yet to confirm is the sweeper's work.

use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use tracing::{info, instrument, warn};

use super::access::Unverified;
use super::generations::Gone;
use super::sessions::SessionReport;
use super::{Broker, BrokerError};
use crate::attest::Evidence;
use crate::clock::Timestamp;
use crate::domain::cutoff::{Block, Cutoff, Selector};
use crate::domain::deny_list::DenyPlace;
use crate::domain::limits::{DEFAULT_BLOCK_SECONDS, MAX_BLOCK_SECONDS, MAX_NAME_BYTES};
use crate::domain::session::{EndReason, Session, SessionState};
use crate::domain::text::is_unprintable;
use crate::domain::workload::Identity;
use crate::ids::{CutoffId, SessionId};
use crate::ledger::Appended;
use crate::ledger::entry::{EndSession, Entry, Lift, NewCutoff};
use crate::metrics::RevocationLag;
use crate::policy::AdminAction;
use crate::store::cutoffs::CutoffFilter;
use crate::store::tasks::TaskFilter;

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
pub struct Revocation {
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

impl Broker {
    /// Ends one session, for its workload or an admin. Ending it again changes nothing.
    #[instrument(skip_all)]
    pub async fn revoke_session(
        &self,
        evidence: &Evidence,
        id: SessionId,
    ) -> Result<SessionReport, BrokerError> {
        let call = self.call(evidence);
        call.run(|unverified| self.revoke_session_by(unverified, id))
            .await
    }

    async fn revoke_session_by(
        &self,
        unverified: Unverified<'_>,
        id: SessionId,
    ) -> Result<SessionReport, BrokerError> {
        let asked = self.now();
        let actor = unverified.authenticate().await?.act().await?;
        let session = self.store().session(id).await?;
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
            && let Err(error) = self.note_insistence(&session).await
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
                self.metrics().sessions_ended(EndReason::Revoked, 1);
                self.lag(asked);
                self.wake_sweeper();
            }
            _ => {}
        }
        let view = self.store().session_view(id).await?;
        let view = view.ok_or(BrokerError::NotFound("session"))?;
        if insisted && view.session.state == SessionState::Ending {
            // It is over for us either way; the sweeper asks again if this fails.
            if let Err(error) = self.insist_on_end(&view.session).await {
                warn!(session = %id, %error, "its place among the denied ones waits for the sweeper");
            }
        }
        Ok(SessionReport::new(view, self.now()))
    }

    /// Ends the session of a token. One that is not ours, or over, needs no ending.
    #[instrument(skip_all)]
    pub async fn revoke_token(
        &self,
        evidence: &Evidence,
        token: &SecretString,
    ) -> Result<(), BrokerError> {
        let call = self.call(evidence);
        call.run(|unverified| self.revoke_token_by(unverified, token))
            .await
    }

    async fn revoke_token_by(
        &self,
        unverified: Unverified<'_>,
        token: &SecretString,
    ) -> Result<(), BrokerError> {
        let known = match self.recognise(token) {
            Some((session, _)) => self.store().session(session).await?,
            None => None,
        };
        if let Some(session) = known {
            return self
                .revoke_session_by(unverified, session.id)
                .await
                .map(drop);
        }
        self.metrics().foreign_token();
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
    ) -> Result<Revocation, BrokerError> {
        let (broker, evidence) = (Arc::clone(self), evidence.clone());
        let revoking = async move {
            let call = broker.call(&evidence);
            let revoked = call
                .run(|unverified| broker.revoke_tracked(unverified, ask.clone()))
                .await;
            if let Err(error @ BrokerError::FailClosed(_)) = &revoked {
                // Nobody may be there any more to be told.
                warn!(%error, "nothing is known to be revoked");
            }
            revoked
        };
        let revoked = self.shutdown().spawn("revoke", revoking).await;
        revoked.map_err(|_| BrokerError::FailClosed("the revocation was lost".into()))?
    }

    async fn revoke_tracked(
        &self,
        unverified: Unverified<'_>,
        ask: RevokeAsk,
    ) -> Result<Revocation, BrokerError> {
        let RevokeAsk {
            selector,
            block,
            deny_all_earlier_sessions,
            reason,
            allow_unknown,
            dry_run,
        } = ask;
        let asked = self.now();
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
            return Ok(Revocation {
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
            self.check_successor_without(gone).await?;
        }
        let (commitment, opening) = self.commitment(reason.clone().into_bytes())?;
        if let Some(place) = &place {
            admin.use_up().await?;
            // Create the reconcile job before committing the cutoff, so that a crash in between cannot
            // lose it. Schedule it later, so that it does not run before the cutoff is visible.
            let due = asked.plus_seconds(RECONCILE_DUE_SECONDS);
            self.store().know_deny_place(place, due).await?;
        }
        let cutoff = Cutoff {
            id: CutoffId::new(asked, &self.random)?,
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
        self.metrics().revocation(&selector);
        self.lag(asked);
        if let Some(place) = &place
            && let Err(error) = self.store().nudge_deny_place(place, self.now()).await
        {
            warn!(place = %place.name, %error, "the deny of earlier sessions waits until its role is due");
        }
        self.wake_sweeper();
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
    async fn counted(&self, cutoff: Cutoff) -> Revocation {
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
        Revocation {
            cutoff: Some(cutoff),
            radius,
        }
    }

    /// How far a mass revocation has come.
    pub async fn revocation(
        &self,
        evidence: &Evidence,
        id: CutoffId,
    ) -> Result<Revocation, BrokerError> {
        let call = self.call(evidence);
        call.run(|unverified| self.revocation_by(unverified, id))
            .await
    }

    async fn revocation_by(
        &self,
        unverified: Unverified<'_>,
        id: CutoffId,
    ) -> Result<Revocation, BrokerError> {
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
        let call = self.call(evidence);
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
        Ok(self.store().list_cutoffs(&filter).await?)
    }

    /// Lets in again what a cutoff keeps out. What it killed stays dead.
    ///
    /// A caller that the cutoff itself blocks never lifts it, with one exception: a cutoff of an
    /// attestor or of everything can be lifted by an admin whom no narrower one blocks, since there
    /// may be no admin left whom it does not block. Each lift is judged so under the ledger's lock.
    #[instrument(skip_all)]
    pub async fn lift(&self, evidence: &Evidence, id: CutoffId) -> Result<Cutoff, BrokerError> {
        let call = self.call(evidence);
        call.run(|unverified| self.lift_by(unverified, id)).await
    }

    async fn lift_by(
        &self,
        unverified: Unverified<'_>,
        id: CutoffId,
    ) -> Result<Cutoff, BrokerError> {
        let now = self.now();
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

    /// Whether a selector names an identity, or a task of which the identity owns a part: the task, one
    /// above it or one below it. No part changes its owner, and none is added while it is cut off.
    async fn concerns(&self, selector: &Selector, own: &Identity) -> Result<bool, BrokerError> {
        Ok(match selector {
            Selector::Workload(identity) => identity == own,
            Selector::Task(task) => self.store().owns_part_of(own.as_str(), *task).await?,
            Selector::Resource(_)
            | Selector::Attestor(_)
            | Selector::Generation(_)
            | Selector::Policy(_)
            | Selector::SigningKey(_)
            | Selector::IssuedAfter(_)
            | Selector::All(_) => false,
        })
    }

    /// A cutoff whose row is as the broker wrote it. Lifting makes a new MAC over what is read here,
    /// which must not bless what somebody else wrote.
    async fn genuine_cutoff(&self, id: CutoffId) -> Result<Cutoff, BrokerError> {
        let cutoff = self.store().cutoff(id).await?;
        cutoff.ok_or(BrokerError::NotFound("revocation"))
    }

    /// Refuses a selector of something that does not exist and of which nothing is on record, which is
    /// more likely a slip than a precaution.
    async fn check_known(&self, selector: &Selector, now: Timestamp) -> Result<(), BrokerError> {
        if self.exists(selector).await? || self.is_on_record(selector, now).await? {
            return Ok(());
        }
        Err(BrokerError::UnknownSelector(Box::new(selector.clone())))
    }

    /// Whether what a selector names exists now.
    async fn exists(&self, selector: &Selector) -> Result<bool, BrokerError> {
        let active = self.active()?;
        Ok(match selector {
            Selector::Workload(identity) => self.knows_workload(identity).await?,
            Selector::Task(task) => self.store().task(*task).await?.is_some(),
            Selector::Resource(name) => active.catalog().resource(name).is_some(),
            Selector::Attestor(name) => active
                .policy()
                .attestors()
                .iter()
                .any(|attestor| attestor.name() == name),
            Selector::Generation(digest) => self.store().generation(*digest).await?.is_some(),
            Selector::Policy(id) => active.policy().policy_ids().any(|known| known == id),
            Selector::SigningKey(kid) => {
                let keys = self.store().signing_keys().await?;
                keys.iter().any(|key| key.kid == *kid)
            }
            Selector::IssuedAfter(_) | Selector::All(_) => true,
        })
    }

    /// Whether an identity has a role, a registered key or an open task.
    async fn knows_workload(&self, identity: &Identity) -> Result<bool, BrokerError> {
        let tasks = TaskFilter {
            owner: Some(identity.to_string()),
            limit: 1,
            ..TaskFilter::default()
        };
        if !self.roles(identity).await?.is_empty() || !self.store().tasks(&tasks).await?.is_empty()
        {
            return Ok(true);
        }
        let Some((attestor, workload)) = identity.as_str().split_once(':') else {
            return Ok(false);
        };
        let keys = self.store().workload_keys(attestor, workload).await?;
        Ok(!keys.is_empty())
    }

    async fn is_on_record(&self, selector: &Selector, now: Timestamp) -> Result<bool, BrokerError> {
        let any = self.store().list_matching(selector, u64::MAX, now, 1);
        Ok(!any.await?.is_empty())
    }

    /// What a selector matches: counted as of a leaf and an instant, the first named.
    pub(super) async fn blast_radius(
        &self,
        selector: &Selector,
        index: u64,
        at: Timestamp,
    ) -> Result<BlastRadius, BrokerError> {
        let views = self
            .store()
            .list_matching(selector, index, at, NAMED)
            .await?;
        let now = self.now();
        let (matched, ended) = self
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

    /// The role of a resource, to deny every earlier session of it at once. A role that another
    /// resource uses is refused: its sessions would die and stay recorded as good.
    async fn deny_policy_target(
        &self,
        selector: &Selector,
        now: Timestamp,
    ) -> Result<DenyPlace, BrokerError> {
        let invalid = |detail: String| BrokerError::Invalid {
            pointer: "/deny_all_earlier_sessions",
            detail,
        };
        let name = match selector {
            Selector::Resource(name) => name,
            Selector::Workload(_)
            | Selector::Task(_)
            | Selector::Attestor(_)
            | Selector::Generation(_)
            | Selector::Policy(_)
            | Selector::SigningKey(_)
            | Selector::IssuedAfter(_)
            | Selector::All(_) => {
                return Err(invalid(
                    "only the revocation of a resource can deny all earlier sessions".into(),
                ));
            }
        };
        let active = self.active()?;
        let catalog = active.catalog();
        let resource = catalog
            .resource(name)
            .ok_or_else(|| invalid(format!("there is no resource `{name}`")))?;
        let minter = self.minter(resource.kind.minter())?;
        let list = minter.deny_list();
        let place = list
            .and_then(|list| list.deny_place(resource))
            .ok_or_else(|| {
                invalid(format!(
                    "sessions of `{name}` are not ended by a list at their back end"
                ))
            })?;
        let other = catalog.resources().find(|other| {
            other.name != *name
                && other.kind.minter() == resource.kind.minter()
                && other.audience() == place.name
        });
        if let Some(other) = other {
            return Err(invalid(format!(
                "`{}` uses the same role: its sessions would die with those of `{name}`; revoke \
                 both by name, or give each its own role",
                other.name
            )));
        }
        if self.store().others_live_at(&place, name, now).await? {
            return Err(invalid(format!(
                "sessions of a resource that used the same role still live; they would die with \
                 those of `{name}`"
            )));
        }
        Ok(place)
    }

    fn lag(&self, asked: Timestamp) {
        let lag: Duration = asked.distance(self.now());
        self.metrics()
            .revocation_lag(RevocationLag::RequestedToDurable, lag);
    }
}

/// Refuses a selector whose name nothing can have.
fn check_name(selector: &Selector) -> Result<(), BrokerError> {
    let name = selector.value();
    let named = match selector {
        Selector::Resource(_)
        | Selector::Attestor(_)
        | Selector::Policy(_)
        | Selector::SigningKey(_) => {
            (1..=MAX_NAME_BYTES).contains(&name.len()) && !name.chars().any(is_unprintable)
        }
        Selector::Workload(_)
        | Selector::Task(_)
        | Selector::Generation(_)
        | Selector::IssuedAfter(_)
        | Selector::All(_) => true,
    };
    if named {
        return Ok(());
    }
    Err(BrokerError::Invalid {
        pointer: "/selector",
        detail: format!(
            "a name has 1 to {MAX_NAME_BYTES} bytes, and no character that is not shown"
        ),
    })
}

fn block_until(selector: &Selector, asked: BlockAsk, now: Timestamp) -> Result<Block, BrokerError> {
    match asked {
        BlockAsk::Default if selector.blocks_by_default() => {
            Ok(Block::Until(now.plus_seconds(DEFAULT_BLOCK_SECONDS)))
        }
        BlockAsk::Default | BlockAsk::Seconds(0) => Ok(Block::No),
        BlockAsk::Seconds(seconds) if seconds <= MAX_BLOCK_SECONDS => {
            Ok(Block::Until(now.plus_seconds(seconds)))
        }
        BlockAsk::Seconds(_) => Err(BrokerError::Invalid {
            pointer: "/block_seconds",
            detail: format!("at most {MAX_BLOCK_SECONDS}, or \"until_lifted\""),
        }),
        BlockAsk::UntilLifted => Ok(Block::UntilLifted),
    }
}
