//! A cached AWS session, and its renewal before it ends.
//!
//! AWS's tools request credentials early and often: botocore does so if less than 15 minutes are
//! left, which is always true for a short session, and other SDKs behave similarly. They get the
//! same session until little of its life is left. Then they get another session within the same
//! task, as long as the task lasts and a fresh attestation is available. After a failed renewal
//! there is a pause. `taskpass exec` and `taskpass aws credential-process` share this code.
//!
//! A failed renewal is an error that changes nothing: the old session stays. `super::credentials`
//! requests the next session.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::ClientError;
use super::credentials::CredentialRequester;
use super::evidence::Source;
use crate::clock::{Clock as _, SystemClock, Timestamp};
use crate::domain::kind::MinterKind;
use crate::ids::SessionId;
use crate::wire::credentials::{CredentialBody, IssuedBody, TaskBody};

/// A session is renewed when less than this fraction of its life is left: one fifth.
const LAST_PART: u64 = 5;

/// The pause after each renewal, failed or not, in seconds. If this machine's clock is ahead of the
/// broker's, a new session may be due for renewal at once.
const PAUSE_SECONDS: u64 = 5;

/// The current session, and the task within which it can be renewed.
///
/// It has no `Debug`, because it holds a credential.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CachedSession {
    /// The task and its handle, in the form of a request that joins it.
    pub(crate) task: TaskBody,
    /// The latest end of the task.
    pub(crate) deadline: Timestamp,
    pub(crate) session: SessionId,
    /// The credential as in the broker's answer.
    pub(crate) credential: CredentialBody,
    /// When the credential expires.
    pub(crate) expires_at: Timestamp,
    taken_at: Timestamp,
    tried_at: Option<Timestamp>,
    /// A mark of the used attestation if the source has only one; `None` otherwise.
    spent: Option<String>,
}

impl CachedSession {
    /// Caches a credential granted within `task`; if `joined` is `None`, the task that the answer
    /// opened. Fails if the credential has already expired by this machine's clock.
    pub(crate) fn of(
        granted: &IssuedBody,
        joined: Option<&TaskBody>,
        source: &Source,
        now: Timestamp,
    ) -> Result<Self, ClientError> {
        let task = joined.cloned().unwrap_or_else(|| joining(granted));
        let expires_at = match &granted.credential {
            CredentialBody::AwsSts { expiration, .. } => *expiration,
            CredentialBody::Jwt { .. } | CredentialBody::Unknown => granted.session.expires_at,
        };
        let deadline = granted.task.deadline;
        if now >= expires_at.min(deadline) {
            return Err(ClientError::Unavailable(format!(
                "the credential that the broker issued has already ended, at {expires_at} by the \
                 broker's clock: this machine's clock shows {now} and is ahead of it; set the clock"
            )));
        }
        Ok(Self {
            task,
            deadline,
            session: granted.session.id,
            credential: granted.credential.clone(),
            expires_at,
            taken_at: now,
            tried_at: None,
            spent: source.spent(),
        })
    }

    /// Like [`Self::of`], for an AWS session.
    pub(crate) fn of_aws(
        granted: &IssuedBody,
        joined: Option<&TaskBody>,
        source: &Source,
        now: Timestamp,
    ) -> Result<Self, ClientError> {
        if granted.credential.made_by() != Some(MinterKind::Aws) {
            return Err(ClientError::Unavailable(
                "the broker issued a credential that is not an AWS session: request a resource that \
                 is a role"
                    .into(),
            ));
        }
        Self::of(granted, joined, source, now)
    }

    /// Whether the session has not expired at `now`; a revocation is not known here.
    pub(crate) fn is_good(&self, now: Timestamp) -> bool {
        now < self.expires_at && now < self.deadline
    }

    /// When the session is due for renewal.
    pub(crate) fn due_at(&self) -> Timestamp {
        let life = self.taken_at.seconds_until(self.expires_at);
        self.expires_at.minus_seconds(life / LAST_PART)
    }

    /// Whether the session is due for renewal at `now`, and may be renewed: its task has not ended,
    /// and the pause after the last renewal is over.
    pub(crate) fn may_be_renewed(&self, source: &Source, now: Timestamp) -> bool {
        let resting = |at: Timestamp| now < at.plus_seconds(PAUSE_SECONDS);
        now >= self.due_at()
            && now < self.deadline
            && !self.lasts_as_long_as_its_task()
            && !self.tried_at.is_some_and(resting)
            && !self.is_last(source)
    }

    /// Whether a renewed session would end no later, because both end with the task.
    pub(crate) fn lasts_as_long_as_its_task(&self) -> bool {
        // Credentials end at a whole second.
        self.expires_at.plus_seconds(1) >= self.deadline
    }

    /// Whether no attestation is left for a renewal: the only one was used up, and the broker would
    /// refuse it.
    pub(crate) fn is_last(&self, source: &Source) -> bool {
        self.spent.is_some() && self.spent == source.spent()
    }

    /// Renews the session within the task if it is due. After a failure the current session stays,
    /// expired or not.
    pub(crate) async fn renew_if_due(
        &mut self,
        requester: &CredentialRequester,
        now: Timestamp,
    ) -> Result<(), ClientError> {
        if !self.may_be_renewed(&requester.source, now) {
            return Ok(());
        }
        self.tried_at = Some(now);
        let granted = requester.request(&self.task).await?.read()?;
        let renewed = Self::of(
            &granted,
            Some(&self.task),
            &requester.source,
            SystemClock.now(),
        )?;
        *self = Self {
            tried_at: Some(now),
            ..renewed
        };
        Ok(())
    }

    /// The document that AWS's tools read, for an AWS session. `token` is the name of the member
    /// with the session token, and `more` are further members.
    pub(crate) fn spoken(&self, token: &str, more: &[(&str, Value)]) -> Value {
        let mut body = Map::new();
        for (name, value) in more {
            body.insert((*name).to_owned(), value.clone());
        }
        if let CredentialBody::AwsSts {
            access_key_id,
            secret_access_key,
            session_token,
            expiration,
            ..
        } = &self.credential
        {
            for (name, value) in [
                ("AccessKeyId", access_key_id.clone()),
                ("SecretAccessKey", secret_access_key.expose().to_owned()),
                (token, session_token.expose().to_owned()),
                ("Expiration", expiration.to_string()),
            ] {
                body.insert(name.to_owned(), Value::String(value));
            }
        }
        Value::Object(body)
    }
}

/// The task of an answer, in the form of a request that joins it.
fn joining(granted: &IssuedBody) -> TaskBody {
    TaskBody {
        id: Some(granted.task.id),
        handle: granted.task.handle.clone(),
        ..TaskBody::default()
    }
}
