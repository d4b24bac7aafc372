//! A cached AWS session, and its renewal before it ends.
//!
//! AWS's tools request credentials early and often: botocore does so if less than 15 minutes are
//! left, which is always true for a short session, and other SDKs behave similarly. They get the
//! same session until little of its life is left. Then they get another session within the same
//! task, as long as the task lasts and a fresh attestation is available. After a failed renewal
//! there is a pause. `taskpass exec` and `taskpass aws credential-process` share this code.

use std::time::Duration;

use reqwest::Method;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::client::{Answer, Client, observed};
use super::evidence::Source;
use super::retry::{Fault, retried};
use super::wanted::Wanted;
use super::{Failure, output};
use crate::clock::{Clock as _, SystemClock, Timestamp};
use crate::crypto::random::SystemRandom;
use crate::domain::kind::MinterKind;
use crate::ids::Random as _;

/// A session is renewed when less than this fraction of its life is left: one fifth.
const LAST_PART: u64 = 5;

/// The pause after each renewal, failed or not, in seconds. If this machine's clock is ahead of the
/// broker's, a new session may be due for renewal at once.
const PAUSE_SECONDS: u64 = 5;

/// Requests credentials from the broker, as often as necessary.
pub(super) struct Asker {
    /// The client of the broker.
    pub(super) client: Client,
    /// The source of fresh attestations.
    pub(super) source: Source,
    pub(super) wanted: Wanted,
    /// How long a request is retried.
    pub(super) retry: Duration,
}

/// The attempts of one request.
struct Tries {
    /// The `Idempotency-Key`: the broker treats requests with the same key as one.
    key: String,
    /// An attestation that no server has seen.
    unseen: Option<SecretString>,
    /// The attestation of an earlier attempt that a server may have seen.
    seen: Option<SecretString>,
}

impl Asker {
    /// Requests a credential within `task`, and prints the findings of policies that only observe.
    pub(super) async fn ask(&self, task: &Value) -> Result<Value, Failure> {
        let answer = self.ask_silently(task).await?;
        if let Some(text) = observed(&answer) {
            output::note(text);
        }
        Ok(answer)
    }

    /// Requests a credential within `task`. Retries after transient failures with a fresh
    /// attestation and the same `Idempotency-Key`.
    pub(super) async fn ask_silently(&self, task: &Value) -> Result<Value, Failure> {
        let body = self.wanted.body(task);
        let mut tries = Tries {
            key: new_key()?,
            unseen: None,
            seen: None,
        };
        retried(self.retry, async || self.try_once(&body, &mut tries).await).await
    }

    async fn try_once(&self, body: &Value, tries: &mut Tries) -> Result<Value, Fault> {
        let token = match tries.unseen.take() {
            Some(token) => token,
            None => self.source.attestation().await?,
        };
        let client = self.client.clone().with_bearer(&token)?;
        let path = "/v1/credentials";
        let sent = client.try_once(Method::POST, path, Some(body), Some(&tries.key));
        let answer = match sent.await {
            Ok(answer) => answer,
            Err(fault) if fault.sent => {
                tries.seen = Some(token);
                return Err(fault);
            }
            Err(fault) => {
                tries.unseen = Some(token);
                return Err(fault);
            }
        };
        let Some(seen) = &tries.seen else {
            return Ok(answer.success()?);
        };
        if answer.slug() == "already-issued" {
            // The broker granted an earlier attempt, but the answer with the credential was lost.
            self.end_lost_session(&answer).await;
            tries.key = new_key()?;
            return Err(Fault::transient(answer.failure(), None));
        }
        if answer.status.as_u16() == 401 && seen.expose_secret() == token.expose_secret() {
            return Err(Failure::Refused(format!(
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
        let session = answer.body.get("session_id").and_then(Value::as_str);
        let (Some(session), None) = (session, self.source.spent()) else {
            return;
        };
        let path = format!("/v1/sessions/{session}/revoke");
        let reason = json!({"reason": "the answer with the credential was lost"});
        let ending = async {
            let token = self.source.attestation().await?;
            let client = self.client.clone().with_bearer(&token)?;
            client
                .try_once(Method::POST, &path, Some(&reason), None)
                .await
        };
        if let Err(fault) = ending.await {
            let failure = fault.failure;
            output::note(format!(
                "taskpass: session {session} could not be ended: {failure}"
            ));
        }
    }
}

fn new_key() -> Result<String, Failure> {
    let mut id = [0; 16];
    SystemRandom::default()
        .fill(&mut id)
        .map_err(Failure::unestablished)?;
    Ok(Uuid::from_bytes(id).to_string())
}

/// The current session, and the task within which it can be renewed.
///
/// It has no `Debug`, because it holds a credential.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Held {
    /// The task and its handle, in the form of a request that joins it.
    pub(super) task: Value,
    /// The latest end of the task.
    pub(super) deadline: Timestamp,
    pub(super) session: String,
    /// The credential as in the broker's answer.
    pub(super) credential: Value,
    /// When the credential expires.
    pub(super) expires_at: Timestamp,
    taken_at: Timestamp,
    tried_at: Option<Timestamp>,
    /// A mark of the used attestation if the source has only one; `None` otherwise.
    spent: Option<String>,
}

impl Held {
    /// Caches a credential granted within `task`; if `joined` is `None`, the task that the answer
    /// opened. Fails if the credential has already expired by this machine's clock.
    pub(super) fn of(
        granted: &Value,
        joined: Option<&Value>,
        source: &Source,
        now: Timestamp,
    ) -> Result<Self, Failure> {
        let text = |pointer: &str| granted.pointer(pointer).and_then(Value::as_str);
        let time = |pointer: &str| {
            let value = granted.pointer(pointer)?.clone();
            serde_json::from_value::<Timestamp>(value).ok()
        };
        let task = joined.cloned().unwrap_or_else(|| joining(granted));
        let expires_at = time("/credential/expiration").or_else(|| time("/session/expires_at"));
        let (Some(deadline), Some(expires_at), Some(session)) =
            (time("/task/deadline"), expires_at, text("/session/id"))
        else {
            return Err(Failure::Unestablished(
                "the broker's answer lacks the session, or the time when it ends".into(),
            ));
        };
        if now >= expires_at.min(deadline) {
            return Err(Failure::Unestablished(format!(
                "the credential that the broker issued has already ended, at {expires_at} by the \
                 broker's clock: this machine's clock shows {now} and is ahead of it; set the clock"
            )));
        }
        Ok(Self {
            task,
            deadline,
            session: session.to_owned(),
            credential: granted["credential"].clone(),
            expires_at,
            taken_at: now,
            tried_at: None,
            spent: source.spent(),
        })
    }

    /// Like [`Self::of`], for an AWS session.
    pub(super) fn of_aws(
        granted: &Value,
        joined: Option<&Value>,
        source: &Source,
        now: Timestamp,
    ) -> Result<Self, Failure> {
        let credential_type = granted.pointer("/credential/type").and_then(Value::as_str);
        let made_by = credential_type.and_then(MinterKind::of_credential_type);
        if made_by != Some(MinterKind::Aws) {
            return Err(Failure::Unestablished(
                "the broker issued a credential that is not an AWS session: request a resource that \
                 is a role"
                    .into(),
            ));
        }
        Self::of(granted, joined, source, now)
    }

    /// Whether the session has not expired at `now`; a revocation is not known here.
    pub(super) fn is_good(&self, now: Timestamp) -> bool {
        now < self.expires_at && now < self.deadline
    }

    /// When the session is due for renewal.
    pub(super) fn due_at(&self) -> Timestamp {
        let life = self.taken_at.seconds_until(self.expires_at);
        self.expires_at.minus_seconds(life / LAST_PART)
    }

    /// Whether the session is due for renewal at `now`, and may be renewed: its task has not ended,
    /// and the pause after the last renewal is over.
    pub(super) fn may_be_renewed(&self, source: &Source, now: Timestamp) -> bool {
        let resting = |at: Timestamp| now < at.plus_seconds(PAUSE_SECONDS);
        now >= self.due_at()
            && now < self.deadline
            && !self.lasts_as_long_as_its_task()
            && !self.tried_at.is_some_and(resting)
            && !self.is_last(source)
    }

    /// Whether a renewed session would end no later, because both end with the task.
    pub(super) fn lasts_as_long_as_its_task(&self) -> bool {
        // Credentials end at a whole second.
        self.expires_at.plus_seconds(1) >= self.deadline
    }

    /// Whether no attestation is left for a renewal: the only one was used up, and the broker would
    /// refuse it.
    pub(super) fn is_last(&self, source: &Source) -> bool {
        self.spent.is_some() && self.spent == source.spent()
    }

    /// Renews the session within the task if it is due. After a failure the current session stays,
    /// expired or not.
    pub(super) async fn renew_if_due(
        &mut self,
        asker: &Asker,
        now: Timestamp,
    ) -> Result<(), Failure> {
        if !self.may_be_renewed(&asker.source, now) {
            return Ok(());
        }
        self.tried_at = Some(now);
        let granted = asker.ask(&self.task).await?;
        let renewed = Self::of(&granted, Some(&self.task), &asker.source, SystemClock.now())?;
        *self = Self {
            tried_at: Some(now),
            ..renewed
        };
        Ok(())
    }

    /// The document that AWS's tools read. `token` and `more` give the names of its members.
    pub(super) fn spoken(&self, token: &str, more: &[(&str, Value)]) -> Value {
        let mut body = Map::new();
        for (name, value) in more {
            body.insert((*name).to_owned(), value.clone());
        }
        for (name, member) in [
            ("AccessKeyId", "access_key_id"),
            ("SecretAccessKey", "secret_access_key"),
            (token, "session_token"),
            ("Expiration", "expiration"),
        ] {
            body.insert(name.to_owned(), self.credential[member].clone());
        }
        Value::Object(body)
    }
}

/// The task of an answer, in the form of a request that joins it.
fn joining(granted: &Value) -> Value {
    json!({
        "id": granted.pointer("/task/id"),
        "handle": granted.pointer("/task/handle"),
    })
}
