//! From a permit to the credential: made, activated, or ended again.

use std::sync::Arc;
use std::time::Instant;

use tracing::{error, info, warn};

use super::Issuance;
use super::decisions::{DecisionContext, RefusedRequest};
use super::issue::{CredentialPermit, Issued};
use crate::broker::error::BrokerError;
use crate::broker::minters::minter_of;
use crate::domain::decision::{Refusal, RefusalCode};
use crate::domain::permit::Permit;
use crate::domain::session::{EndReason, Session, SessionState};
use crate::domain::task::{Task, TaskEnd};
use crate::ledger::Appended;
use crate::ledger::entry::{EndSession, EndTask, Entry};
use crate::metrics::{Ended, Stage};
use crate::mint::{Credential, MintError, MintPlace};

/// Why a permitted credential was not made.
pub(super) struct NotMade {
    error: BrokerError,
    /// Whether it is certain that there is none.
    never_made: bool,
    /// The back end would refuse the same request again, and this is what the caller is told.
    too_many_rights: Option<&'static str>,
}

impl From<BrokerError> for NotMade {
    fn from(error: BrokerError) -> Self {
        Self {
            error,
            never_made: false,
            too_many_rights: None,
        }
    }
}

impl From<MintError> for NotMade {
    fn from(failed: MintError) -> Self {
        let closed = || BrokerError::FailClosed("the credential was not made".into());
        let (error, never_made, too_many_rights) = match failed {
            MintError::TooManyRights { detail, .. } => (closed(), true, Some(detail)),
            MintError::Refused(_) => (closed(), true, None),
            MintError::Throttled(_) => (BrokerError::Overloaded, true, None),
            MintError::Unknown(_) => (closed(), false, None),
        };
        Self {
            error,
            never_made,
            too_many_rights,
        }
    }
}

impl Issuance {
    /// Makes the credential, and releases it only if its session is still to be had.
    pub(super) async fn mint_and_activate(
        &self,
        permit: Permit,
    ) -> Result<(Credential, Session), NotMade> {
        let minting = Instant::now();
        let minter = Arc::clone(minter_of(&self.minters, permit.session().minter)?);
        let made = minter.mint(&permit).await;
        self.core.metrics().stage(Stage::Mint, minting.elapsed());
        self.core
            .metrics()
            .mint(minter.kind().as_str(), Ended::from(&made));
        let session = permit.into_session();
        let credential = match made {
            Ok(credential) => credential,
            Err(failed) => {
                error!(session = %session.id, error = %failed, "a mint failed");
                let failed = NotMade::from(failed);
                let state = if failed.never_made {
                    SessionState::Ended
                } else {
                    // It may exist: the sweeper ends it under the name we chose.
                    SessionState::Ending
                };
                self.end_own(&session, state, EndReason::Failed, failed.never_made)
                    .await;
                return Err(failed);
            }
        };
        if minter.place() == MintPlace::Local {
            return Ok((credential, session));
        }
        let settling = Instant::now();
        let active = self.activate_session(session).await;
        self.core.metrics().stage(Stage::Settle, settling.elapsed());
        // Where it was lost the secret is dropped here.
        Ok((credential, active?))
    }

    /// Finishes a request whose credential was not made. A task that it opened is ended where the back
    /// end refused for certain: its handle is in no answer. A refusal for too many rights is recorded.
    pub(super) async fn not_made(
        &self,
        context: &DecisionContext<'_>,
        permit: &CredentialPermit,
        failed: NotMade,
    ) -> BrokerError {
        if failed.never_made
            && let Some(task) = permit.opens()
        {
            self.end_unused(task).await;
        }
        let Some(detail) = failed.too_many_rights else {
            return failed.error;
        };
        let refusal = Refusal::new(RefusalCode::TooManyRights, detail);
        let refused = self.refuse_after_permit(context, permit, refusal).await;
        refused.unwrap_or_else(|error| error)
    }

    /// Records that a request was refused after its permit, which stands in the log beside it.
    async fn refuse_after_permit(
        &self,
        context: &DecisionContext<'_>,
        permit: &CredentialPermit,
        refusal: Refusal,
    ) -> Result<BrokerError, BrokerError> {
        self.spend_denial(context)?;
        let resource = permit.request.resource.name.clone();
        let purpose = permit.request.task.purpose().map(ToOwned::to_owned);
        let active = context.active;
        let refused = RefusedRequest::before_policy(refusal, active, Some(resource), purpose);
        let decide = self.refusal_entry(context, &refused)?;
        let id = decide.id;
        // The permit used the evidence up.
        let entry = Entry::Decide(Box::new(decide));
        match self
            .core
            .ledger()
            .append_own(entry, self.core.now())
            .await?
        {
            Appended::Recorded(recorded) => {
                let refusal = refused.refusal.clone();
                let denied = self.refusal_on_record(id, &refused, refusal, recorded.receipt);
                Ok(BrokerError::Denied(Box::new(denied)))
            }
            _ => Err(BrokerError::FailClosed(
                "the back end refused the credential, and the refusal was not recorded".into(),
            )),
        }
    }

    /// Ends a task that a request opened in vain.
    async fn end_unused(&self, task: &Task) {
        let entry = Entry::EndTask(EndTask {
            task: task.id,
            end: TaskEnd::Abort,
            by: "broker".into(),
            owner: task.owner.clone(),
        });
        if let Err(error) = self.core.ledger().append_own(entry, self.core.now()).await {
            warn!(task = %task.id, %error, "it stays open until its deadline");
        }
    }

    /// `minting → active`, by compare-and-set, with chain and cutoffs checked at a fresh clock.
    async fn activate_session(&self, session: Session) -> Result<Session, BrokerError> {
        let now = self.core.now();
        let won = self
            .core
            .store()
            .settle_mint(session.id, self.core.replica(), now)
            .await?;
        let view = if won {
            self.core.store().session_view(session.id).await?
        } else {
            None
        };
        match view {
            Some(view) if view.is_valid_at(self.core.now()) => Ok(view.session),
            _ => {
                warn!(session = %session.id, "a credential was lost before its release");
                self.end_own(&session, SessionState::Ending, EndReason::Revoked, false)
                    .await;
                // Whoever ended it may have asked the back end before there was anything to end.
                // Where that cannot be done at once, the sweeper does it.
                if let Err(error) = self.deny_lists.end_external(&session).await {
                    warn!(session = %session.id, %error, "its ending waits for the sweeper");
                }
                Err(BrokerError::FailClosed(
                    "the credential was ended before it was released".into(),
                ))
            }
        }
    }

    /// Ends a session of which nobody has the credential.
    pub(super) async fn end_unclaimed(&self, issued: Issued) {
        info!(session = %issued.session.id, "its caller has gone");
        let state = issued.session.state_once_ended();
        self.end_own(&issued.session, state, EndReason::Failed, false)
            .await;
    }

    async fn end_own(
        &self,
        session: &Session,
        state: SessionState,
        reason: EndReason,
        never_made: bool,
    ) {
        let entry = Entry::EndSession(EndSession {
            session: session.id,
            state,
            reason,
            never_made,
            by: "broker".into(),
            owner: session.workload.clone(),
        });
        match self.core.ledger().append_own(entry, self.core.now()).await {
            Ok(_) => self.core.metrics().sessions_ended(reason, 1),
            // The lease runs out, or it expires; either way it is on record and in nobody's hands.
            Err(error) => warn!(session = %session.id, %error, "not recorded as ended"),
        }
        self.core.wake_sweeper();
    }
}
