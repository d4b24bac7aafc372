//! Requests for credentials.
//!
//! The last failed attempt is the error; a refusal of the broker is not repeated. `super::retry`
//! decides whether to repeat, and `super::evidence` gets the attestations. `cli::exec`,
//! `cli::request` and `super::session` call this file.

use std::time::Duration;

use reqwest::Method;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::evidence::Source;
use super::retry::{AttemptError, retried};
use super::{Answer, Client, ClientError, Reply, observed};
use crate::crypto::random::SystemRandom;
use crate::ids::Random as _;
use crate::wire::credentials::{IssuedBody, TaskBody, UncheckedRequestBody};
use crate::wire::sessions::RevokeBody;

/// A request for a credential, apart from its task.
#[derive(Clone, Debug)]
pub(crate) struct CredentialRequest {
    /// The name of a registered resource.
    pub(crate) resource: String,
    /// The requested rights, as an object of `authorization_details` (RFC 9396).
    pub(crate) detail: Map<String, Value>,
    /// The life of the credential; `None` for the default of the policy.
    pub(crate) ttl_seconds: Option<u64>,
}

impl CredentialRequest {
    /// The body of the request within `task`.
    pub(crate) fn within(&self, task: &TaskBody) -> UncheckedRequestBody {
        UncheckedRequestBody {
            task: task.clone(),
            resource: self.resource.clone(),
            authorization_details: vec![self.detail.clone()],
            ttl_seconds: self.ttl_seconds,
        }
    }
}

/// Requests credentials from the broker, as often as necessary.
pub(crate) struct CredentialRequester {
    /// The client of the broker.
    pub(crate) client: Client,
    /// The source of fresh attestations.
    pub(crate) source: Source,
    pub(crate) request: CredentialRequest,
    /// How long a request is retried.
    pub(crate) retry: Duration,
}

/// The attempts of one request.
struct Attempts {
    /// The `Idempotency-Key`: the broker treats requests with the same key as one.
    key: String,
    /// An attestation that no server has seen.
    unseen: Option<SecretString>,
    /// The attestation of an earlier attempt that a server may have seen.
    seen: Option<SecretString>,
}

impl CredentialRequester {
    /// Requests a credential within `task`, and notes the findings of policies that only observe.
    ///
    /// The answer is not read here, so that the caller can end a task whose answer cannot be used.
    pub(crate) async fn request(&self, task: &TaskBody) -> Result<Reply<IssuedBody>, ClientError> {
        let reply = self.request_silently(task).await?;
        let issued = reply.read().ok();
        let findings = issued.and_then(|issued| issued.decision.observed);
        if let Some(text) = observed(findings.as_ref()) {
            (self.client.notify())(&text);
        }
        Ok(reply)
    }

    /// Requests a credential within `task`. Retries after transient failures with a fresh
    /// attestation and the same `Idempotency-Key`.
    pub(crate) async fn request_silently(
        &self,
        task: &TaskBody,
    ) -> Result<Reply<IssuedBody>, ClientError> {
        let body = self.request.within(task);
        let mut attempts = Attempts {
            key: new_key()?,
            unseen: None,
            seen: None,
        };
        let notify = self.client.notify();
        retried(self.retry, notify, async || {
            self.try_once(&body, &mut attempts).await
        })
        .await
    }

    async fn try_once(
        &self,
        body: &UncheckedRequestBody,
        attempts: &mut Attempts,
    ) -> Result<Reply<IssuedBody>, AttemptError> {
        let token = match attempts.unseen.take() {
            Some(token) => token,
            None => self.source.attestation(self.client.notify()).await?,
        };
        let client = self.client.clone().with_bearer(&token)?;
        let path = "/v1/credentials";
        let sent = client.try_once(Method::POST, path, body, Some(&attempts.key));
        let answer = match sent.await {
            Ok(answer) => answer,
            Err(fault) if fault.sent => {
                attempts.seen = Some(token);
                return Err(fault);
            }
            Err(fault) => {
                attempts.unseen = Some(token);
                return Err(fault);
            }
        };
        let Some(seen) = &attempts.seen else {
            return Ok(answer.success()?);
        };
        if answer.slug() == "already-issued" {
            // The broker granted an earlier attempt, but the answer with the credential was lost.
            self.end_lost_session(&answer).await;
            attempts.key = new_key()?;
            return Err(AttemptError::transient(answer.failure(), None));
        }
        if answer.status.as_u16() == 401 && seen.expose_secret() == token.expose_secret() {
            return Err(ClientError::Refused(format!(
                "{}\n  an earlier attempt with this attestation got no answer, and may have used the attestation up",
                answer.failure()
            ))
            .into());
        }
        Ok(answer.success()?)
    }

    /// Ends a session whose credential was lost, if a fresh attestation is available. Otherwise the
    /// session expires.
    async fn end_lost_session(&self, answer: &Answer) {
        let problem = answer.problem();
        let session = problem.and_then(|problem| problem.members.session_id);
        let (Some(session), None) = (session, self.source.spent()) else {
            return;
        };
        let path = format!("/v1/sessions/{session}/revoke");
        let reason = RevokeBody {
            reason: Some("the answer with the credential was lost".to_owned()),
        };
        let ending = async {
            let token = self.source.attestation(self.client.notify()).await?;
            let client = self.client.clone().with_bearer(&token)?;
            client.try_once(Method::POST, &path, &reason, None).await
        };
        if let Err(fault) = ending.await {
            let failure = fault.failure;
            let notify = self.client.notify();
            notify(&format!(
                "taskpass: session {session} could not be ended: {failure}"
            ));
        }
    }
}

fn new_key() -> Result<String, ClientError> {
    let mut id = [0; 16];
    SystemRandom::default()
        .fill(&mut id)
        .map_err(ClientError::unavailable)?;
    Ok(Uuid::from_bytes(id).to_string())
}
