//! Admission of a retry: a request with an `Idempotency-Key` that was used before.
//!
//! `first_try` finds the result of the first request, and `readmit` admits the retry to the same
//! task with a new handle. `retry_plan` records the use of the key.
//!
//! The rule: a retry gets a credential only if the first one is still valid, was never released, or
//! was not made. The answer to a retry holds a handle, so it requires the owner and key of the
//! first request. Failures: `RetryMismatch` for another request with the same key, `InProgress`
//! while the first one runs, and `AlreadyIssued` with the reason. [`super::admit`] calls this file.

use secrecy::ExposeSecret;

use super::Issuance;
use super::admitted::{AdmittedTask, HANDLE_PREFIX, Unadmitted, joined, task_ended};
use super::decisions::DecisionContext;
use crate::broker::error::{BrokerError, NotRepeated};
use crate::clock::Timestamp;
use crate::crypto::digest::sha256;
use crate::crypto::random::{random_token, token_digest};
use crate::domain::limits::{IDEMPOTENCY_SECONDS, MAX_SUPERSEDES};
use crate::domain::request::RetryKey;
use crate::domain::revocability::RevocationClass;
use crate::domain::session::{EndReason, SessionState};
use crate::domain::task::TaskState;
use crate::domain::workload::Workload;
use crate::ledger::entry::{RetryPlan, TaskPlan};
use crate::store::append::RetryFacts;

impl Issuance {
    /// The result of the first request with this key. `None` if this is the first one.
    pub(super) async fn first_try(
        &self,
        context: &DecisionContext<'_>,
        retry: &RetryKey,
    ) -> Result<Option<FirstTry>, BrokerError> {
        let key = retry_key(context.workload, &retry.key);
        let used = self.core.store().retry(&key, context.now).await?;
        let Some(facts) = used.filter(|facts| facts.stands(context.now)) else {
            return Ok(None);
        };
        if facts.fingerprint != retry.fingerprint {
            return Err(BrokerError::RetryMismatch);
        }
        let Some(view) = self.core.store().session_view(facts.session).await? else {
            return Err(BrokerError::AlreadyIssued(facts.session, NotRepeated::Over));
        };
        let status = view.status_at(context.now);
        // Another retry superseded the session in between.
        let succeeded = status.end_reason == Some(EndReason::Superseded);
        if status.state == SessionState::Minting || succeeded {
            return Err(BrokerError::InProgress);
        }
        // A retry gets a credential if the first one is still valid, if its caller disconnected
        // before it was released, or if its back end did not make it.
        let unclaimed =
            status.state == SessionState::Ended && status.end_reason == Some(EndReason::Failed);
        let immediate = matches!(
            view.session.revocability.class,
            RevocationClass::Immediate { .. }
        );
        let can_be_superseded =
            (unclaimed || immediate && status.is_valid()) && facts.supersedes < MAX_SUPERSEDES;
        if !can_be_superseded {
            let ended = status.state == SessionState::Ended && !unclaimed;
            let why = if ended {
                NotRepeated::Over
            } else {
                NotRepeated::NotSuperseded
            };
            return Err(BrokerError::AlreadyIssued(facts.session, why));
        }
        Ok(Some(FirstTry {
            expires_at: view.session.expires_at,
            facts,
        }))
    }

    /// Admits the retry of a request that opened a task: to the same task, with a new handle.
    pub(super) async fn readmit(
        &self,
        context: &DecisionContext<'_>,
        first: &FirstTry,
    ) -> Result<AdmittedTask<TaskPlan>, Unadmitted> {
        let refused = |why| {
            let error = BrokerError::AlreadyIssued(first.facts.session, why);
            Err(Unadmitted::Failed(error))
        };
        let Some((task, chain)) = self.task_with_chain(first.facts.task).await? else {
            return refused(NotRepeated::Over);
        };
        // The answer to the retry holds a handle, so it requires the owner and key of the first
        // request.
        if !context
            .workload
            .is(&task.owner, task.owner_instance.as_ref())
            || !task.fits_key(context.workload.key.as_ref())
        {
            return refused(NotRepeated::AnotherKey);
        }
        // Neither an instance nor a key shows that the same run of the workload sends the retry.
        if task.owner_instance.is_none() && task.handle_key.is_none() {
            return refused(NotRepeated::NoInstance);
        }
        if chain.state_at(context.now) != TaskState::Open {
            return Err(task_ended().into());
        }
        let handle = random_token(HANDLE_PREFIX, self.core.random())?;
        let digest = token_digest(handle.expose_secret());
        let mut admitted = joined(context, &task, &chain, Some(digest));
        admitted.handle = Some(handle);
        // Otherwise a captured copy of the first request would get the credential and the handle. A
        // task with a key needs no such rule: each request needs a fresh proof by the key.
        admitted.evidence.must_be_new = task.handle_key.is_none();
        Ok(admitted)
    }
}

/// The result of the first request with an `Idempotency-Key`.
pub(super) struct FirstTry {
    pub(super) facts: RetryFacts,
    pub(super) expires_at: Timestamp,
}

pub(super) fn retry_plan(
    context: &DecisionContext<'_>,
    retry: &RetryKey,
    first: Option<FirstTry>,
) -> RetryPlan {
    let facts = first.map(|first| first.facts);
    RetryPlan {
        key: retry_key(context.workload, &retry.key),
        fingerprint: retry.fingerprint,
        expires_at: facts.as_ref().map_or_else(
            || context.now.plus_seconds(IDEMPOTENCY_SECONDS),
            |facts| facts.expires_at,
        ),
        replaces: facts,
    }
}

/// The key under which an `Idempotency-Key` is stored. It includes the sender: two senders can use
/// the same `Idempotency-Key`.
fn retry_key(workload: &Workload, key: &str) -> [u8; 32] {
    let instance = workload.instance.as_ref().map_or("", |own| own.as_str());
    // None of the three can hold a line feed.
    sha256(format!("retry\n{}\n{instance}\n{key}", workload.identity).as_bytes())
}
