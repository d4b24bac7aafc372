//! Turns a permit into a credential: mints and activates it, or ends it after a failure.
//!
//! `mint_and_activate` calls the minter and, for an external one, `activate_session`. `not_made`
//! finishes a request whose credential was not made. `end_unclaimed` ends a credential that its
//! caller did not receive. The rule: a credential is released only if its session is still valid
//! after it was made. If its outcome is unknown, the session becomes `ending`, and the sweeper ends
//! it by the name that the broker chose.
//!
//! Failures: `MintFailure` holds the caller's error. Too many rights become a recorded refusal
//! (`Denied`); a throttled back end is `Overloaded`; all others are `FailClosed`. A failure to
//! record an end is logged; the session then ends by its lease or its expiry. `issue` calls this
//! module. `mint` talks to the back ends, `revocation::deny_lists` ends external sessions, and the
//! ledger records the ends.

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
use crate::mint::{Credential, MintError, MintMode};

/// Why a permitted credential was not made.
pub(super) struct MintFailure {
    error: BrokerError,
    /// Whether it is certain that no credential exists.
    never_made: bool,
    /// The message for the caller if the back end would refuse the same request again; otherwise
    /// `None`.
    too_many_rights: Option<&'static str>,
}

impl From<BrokerError> for MintFailure {
    fn from(error: BrokerError) -> Self {
        Self {
            error,
            never_made: false,
            too_many_rights: None,
        }
    }
}

impl From<MintError> for MintFailure {
    fn from(failed: MintError) -> Self {
        let closed = || BrokerError::minter("the credential was not made");
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
    /// Makes the credential, and releases it only if its session is still valid.
    pub(super) async fn mint_and_activate(
        &self,
        permit: Permit,
    ) -> Result<(Credential, Session), MintFailure> {
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
                let failed = MintFailure::from(failed);
                let state = if failed.never_made {
                    SessionState::Ended
                } else {
                    // It may exist: the sweeper ends it by the name that the broker chose.
                    SessionState::Ending
                };
                self.end_own(&session, state, EndReason::Failed, failed.never_made)
                    .await;
                return Err(failed);
            }
        };
        if minter.mode() == MintMode::Local {
            return Ok((credential, session));
        }
        let settling = Instant::now();
        let active = self.activate_session(session).await;
        self.core.metrics().stage(Stage::Settle, settling.elapsed());
        // If the activation failed, this drops the secret.
        Ok((credential, active?))
    }

    /// Finishes a request whose credential was not made. If it is certain that none exists, a task
    /// that the request opened is ended, because no answer holds its handle. A refusal for too many
    /// rights is recorded.
    pub(super) async fn not_made(
        &self,
        context: &DecisionContext<'_>,
        permit: &CredentialPermit,
        failed: MintFailure,
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

    /// Records that a request was refused after its permit. Both leaves are in the log.
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
        // The permit's append already used the evidence up.
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
            _ => Err(BrokerError::ledger(
                "the back end refused the credential, but the refusal was not recorded",
            )),
        }
    }

    /// Ends a task that was opened by a request whose credential was not made.
    async fn end_unused(&self, task: &Task) {
        let entry = Entry::EndTask(EndTask {
            task: task.id,
            end: TaskEnd::Abort,
            by: "broker".into(),
            owner: task.owner.clone(),
        });
        if let Err(error) = self.core.ledger().append_own(entry, self.core.now()).await {
            warn!(task = %task.id, %error, "an unused task was not ended and stays open");
        }
    }

    /// Moves the session from `minting` to `active` by compare-and-set, and then checks its task
    /// chain and the cutoffs at the present instant.
    async fn activate_session(&self, session: Session) -> Result<Session, BrokerError> {
        let now = self.core.now();
        let won = self
            .core
            .store()
            .activate_session(session.id, self.core.replica(), now)
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
                // The act that ended the session may have called the back end before the credential
                // existed. So call it again; if that fails, the sweeper does.
                if let Err(error) = self.deny_lists.end_external(&session).await {
                    warn!(session = %session.id, %error, "ending was left to the sweeper");
                }
                Err(BrokerError::minter(
                    "the credential was ended before it was released",
                ))
            }
        }
    }

    /// Ends a session whose credential was not received.
    pub(super) async fn end_unclaimed(&self, issued: Issued) {
        info!(session = %issued.session.id, "the caller disconnected: its credential is ended");
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
            Ok(Appended::Recorded(_)) => self.core.metrics().sessions_ended(reason, 1),
            Ok(_) => {}
            // Its lease or the session itself expires. No caller has the credential.
            Err(error) => {
                warn!(session = %session.id, %error, "the end of a session was not recorded");
            }
        }
        self.core.wake_sweeper();
    }
}
