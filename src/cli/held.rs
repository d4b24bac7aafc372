//! A session of AWS that is held for tools that ask early and often.
//!
//! botocore asks whenever less than 15 minutes are left, which a short session never has; other
//! SDKs do much the same. They get the same session until little of it is left, and then another
//! one within the same task, as long as the task lasts and a fresh attestation is to be had. A
//! renewal that failed is not tried again at once. Shared by the endpoint of `taskpass exec` and by
//! `taskpass aws credential-process`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::client::{Client, observed};
use super::evidence::Source;
use super::wanted::Wanted;
use super::{Failure, output};
use crate::clock::Timestamp;

/// A session is renewed when less than this part of its life is left.
const LAST_PART: u64 = 5;

/// How long nothing is tried again after a renewal that failed.
const PAUSE_SECONDS: u64 = 5;

/// Who asks the broker, and for what: all that is needed to ask again.
pub(super) struct Asker {
    /// Where the broker is.
    pub(super) client: Client,
    /// Where fresh attestations come from.
    pub(super) source: Source,
    /// What is asked for.
    pub(super) wanted: Wanted,
}

impl Asker {
    /// Asks for a credential within `task`, with a fresh attestation.
    pub(super) async fn ask(&self, task: &Value) -> Result<Value, Failure> {
        let token = self.source.attestation().await?;
        let client = self.client.clone().with_bearer(&token)?;
        let body = self.wanted.body(task);
        let answer = client.post("/v1/credentials", &body).await?;
        // Nobody has to read it, but everybody can.
        drop(observed(&answer).map(output::note));
        Ok(answer)
    }
}

/// The session of now, and the task under which there may be another.
///
/// No `Debug`: it holds what was issued.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Held {
    /// The task and its handle, as a request joins it.
    pub(super) task: Value,
    /// When the task is over at the latest.
    pub(super) deadline: Timestamp,
    /// The session's id.
    pub(super) session: String,
    credential: Value,
    expires_at: Timestamp,
    taken_at: Timestamp,
    tried_at: Option<Timestamp>,
    /// What marks the attestation that was used up, where there is only the one.
    spent: Option<String>,
}

impl Held {
    /// Holds what was granted within `task`, which is the answer's own where it was opened by it.
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
        if text("/credential/type") != Some("aws_sts") {
            return Err(Failure::Unestablished(
                "the broker gave no session of AWS: is the resource a role?".into(),
            ));
        }
        let task = joined.cloned().unwrap_or_else(|| joining(granted));
        let (Some(deadline), Some(expires_at), Some(session)) = (
            time("/task/deadline"),
            time("/credential/expiration"),
            text("/session/id"),
        ) else {
            return Err(Failure::Unestablished(
                "the broker's answer does not say what it granted, or until when".into(),
            ));
        };
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

    /// Whether it is good at `now`, as far as its times tell.
    pub(super) fn is_good(&self, now: Timestamp) -> bool {
        now < self.expires_at && now < self.deadline
    }

    /// Takes another session within the task where little is left of this one. When it fails this
    /// one stays, good or not.
    pub(super) async fn renew_if_due(
        &mut self,
        asker: &Asker,
        now: Timestamp,
    ) -> Result<(), Failure> {
        if !self.is_nearly_over(now) || now >= self.deadline {
            return Ok(());
        }
        let resting = |at: Timestamp| now < at.plus_seconds(PAUSE_SECONDS);
        if self.tried_at.is_some_and(resting) {
            return Ok(());
        }
        if self.spent.is_some() && self.spent == asker.source.spent() {
            // The one attestation that there is was used up; to show it again is to be refused.
            return Ok(());
        }
        self.tried_at = Some(now);
        let granted = asker.ask(&self.task).await?;
        *self = Self::of(&granted, Some(&self.task), &asker.source, now)?;
        Ok(())
    }

    fn is_nearly_over(&self, now: Timestamp) -> bool {
        let life = self.taken_at.seconds_until(self.expires_at);
        now.seconds_until(self.expires_at) <= life / LAST_PART
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
