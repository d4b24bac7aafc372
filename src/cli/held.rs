//! A session that is held, and taken anew before it ends.
//!
//! AWS's tools ask early and often: botocore asks whenever less than 15 minutes are left, which a
//! short session never has; other SDKs do much the same. They get the same session until little of
//! it is left, and then another one within the same task, as long as the task lasts and a fresh
//! attestation is to be had. A renewal that failed is not tried again at once. Shared by `taskpass
//! exec` and by `taskpass aws credential-process`.

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

/// A session is renewed when less than this part of its life is left.
const LAST_PART: u64 = 5;

/// The pause after each renewal, failed or not. By a clock that is ahead of the broker's, a new
/// session may be due for renewal at once.
const PAUSE_SECONDS: u64 = 5;

/// Who asks the broker, and for what: all that is needed to ask again.
pub(super) struct Asker {
    /// Where the broker is.
    pub(super) client: Client,
    /// Where fresh attestations come from.
    pub(super) source: Source,
    /// What is asked for.
    pub(super) wanted: Wanted,
    /// After this time a request is not repeated.
    pub(super) retry: Duration,
}

/// The tries of one request.
struct Tries {
    /// The broker takes requests with the same key for one.
    key: String,
    /// An attestation that no server has seen.
    unseen: Option<SecretString>,
    /// The attestation of an earlier try that a server may have seen.
    seen: Option<SecretString>,
}

impl Asker {
    /// Asks for a credential within `task`, and tells what policies that merely observe say of it.
    pub(super) async fn ask(&self, task: &Value) -> Result<Value, Failure> {
        let answer = self.ask_silently(task).await?;
        if let Some(text) = observed(&answer) {
            output::note(text);
        }
        Ok(answer)
    }

    /// Asks for a credential within `task`. What fails for a moment is asked again, with a fresh
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
            // Granted to an earlier try, whose answer was lost with the credential.
            self.end_lost_session(&answer).await;
            tries.key = new_key()?;
            return Err(Fault::transient(answer.failure(), None));
        }
        if answer.status.as_u16() == 401 && seen.expose_secret() == token.expose_secret() {
            return Err(Failure::Refused(format!(
                "{}\n  an earlier try with this attestation was not answered, and may have used it up",
                answer.failure()
            ))
            .into());
        }
        Ok(answer.success()?)
    }

    /// Ends a session whose credential was lost, as far as a fresh attestation is to be had for it.
    /// Otherwise its own time ends it.
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

/// The session of now, and the task under which there may be another.
///
/// No `Debug`: it holds what was issued.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Held {
    /// The task and its handle, as a request joins it.
    pub(super) task: Value,
    /// When the task is over at the latest.
    pub(super) deadline: Timestamp,
    /// The session's id.
    pub(super) session: String,
    /// The credential, as the broker gave it.
    pub(super) credential: Value,
    /// When the credential is over.
    pub(super) expires_at: Timestamp,
    taken_at: Timestamp,
    tried_at: Option<Timestamp>,
    /// What marks the attestation that was used up, where there is only the one.
    spent: Option<String>,
}

impl Held {
    /// Holds what was granted within `task`, which is the answer's own where it was opened by it.
    /// Fails if the credential has ended by this machine's clock.
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
                "the broker's answer does not say what it granted, or until when".into(),
            ));
        };
        if now >= expires_at.min(deadline) {
            return Err(Failure::Unestablished(format!(
                "the credential that the broker issued has ended already, at {expires_at} by the \
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

    /// The same, of a session of AWS.
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
                "the broker gave no session of AWS: is the resource a role?".into(),
            ));
        }
        Self::of(granted, joined, source, now)
    }

    /// Whether it is good at `now`, as far as its times tell.
    pub(super) fn is_good(&self, now: Timestamp) -> bool {
        now < self.expires_at && now < self.deadline
    }

    /// When it is to be renewed.
    pub(super) fn due_at(&self) -> Timestamp {
        let life = self.taken_at.seconds_until(self.expires_at);
        self.expires_at.minus_seconds(life / LAST_PART)
    }

    /// Whether it is to be renewed at `now`, and may be: within its task, and not soon after another
    /// renewal.
    pub(super) fn may_be_renewed(&self, source: &Source, now: Timestamp) -> bool {
        let resting = |at: Timestamp| now < at.plus_seconds(PAUSE_SECONDS);
        now >= self.due_at()
            && now < self.deadline
            && !self.lasts_as_long_as_its_task()
            && !self.tried_at.is_some_and(resting)
            && !self.is_last(source)
    }

    /// Whether another would be over no later: both end with the task.
    pub(super) fn lasts_as_long_as_its_task(&self) -> bool {
        // A credential's end is a whole second.
        self.expires_at.plus_seconds(1) >= self.deadline
    }

    /// Whether there is no attestation for another: the one that there is was used up, and to show it
    /// again is to be refused.
    pub(super) fn is_last(&self, source: &Source) -> bool {
        self.spent.is_some() && self.spent == source.spent()
    }

    /// Takes another session within the task where little is left of this one. When it fails this
    /// one stays, good or not.
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

    /// What AWS's tools read, with the names that `token` and `more` give.
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

/// The task of an answer, as a later request joins it.
fn joining(granted: &Value) -> Value {
    json!({
        "id": granted.pointer("/task/id"),
        "handle": granted.pointer("/task/handle"),
    })
}
