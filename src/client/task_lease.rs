//! An open task that this process keeps alive by heartbeats and finally ends.
//!
//! A heartbeat without an answer is an error and is repeated; [`TaskLease::keep`] returns the
//! reason when the task can no longer be used. `cli::exec` and `cli::aws::credential_process` hold
//! the lease.

use std::convert::Infallible;
use std::time::Duration;

use reqwest::Method;
use serde::Deserialize;
use tokio::time::{Instant, sleep, timeout};

use super::retry::{AttemptError, TRY_TIMEOUT, jittered, retried};
use super::{Client, ClientError, Nothing, Reply};
use crate::domain::session::{EndReason, SessionState};
use crate::domain::task::TaskState;
use crate::ids::{SessionId, TaskId};
use crate::wire::credentials::{IssuedBody, TaskBody};
use crate::wire::open::Open;
use crate::wire::secret::SecretText;
use crate::wire::tasks::{EndedSessionBody, TaskSessionsBody};

/// How long the end of a task is retried. The broker ends the task anyway when its heartbeats stop.
const END_RETRY: Duration = Duration::from_secs(15);

/// The longest pause between a failed heartbeat and the next one.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The problems that show that a task has ended. The broker prunes old tasks, so an unknown task
/// has ended, too.
const ENDED: [&str; 2] = ["task-ended", "not-found"];

/// The problems of a heartbeat that show that a task can no longer be used.
const UNUSABLE: [&str; 4] = ["task-ended", "not-found", "owner-withdrawn", "blocked"];

/// The part of the answer to a granted request that suffices to end its task. It is read alone, so
/// that the task can be ended even if the rest of the answer cannot be used.
#[derive(Deserialize)]
struct Opened {
    task: OpenedTask,
}

#[derive(Deserialize)]
struct OpenedTask {
    id: TaskId,
    handle: SecretText,
}

/// An open task, with its handle.
pub(crate) struct TaskLease {
    client: Client,
    path: String,
    silence: Duration,
}

impl TaskLease {
    /// The task in the answer to a granted request. `silence` is the longest time between two
    /// heartbeats, in seconds.
    pub(crate) fn of(
        client: &Client,
        granted: &Reply<IssuedBody>,
        silence: u64,
    ) -> Result<Self, ClientError> {
        let opened = Opened::deserialize(granted.raw()).map_err(|_| no_handle())?;
        Self::new(client, opened.task.id, opened.task.handle, silence)
    }

    /// A task with its handle, in the form of a request that joins it.
    pub(crate) fn joined(
        client: &Client,
        task: &TaskBody,
        silence: u64,
    ) -> Result<Self, ClientError> {
        let (Some(id), Some(handle)) = (task.id, task.handle.clone()) else {
            return Err(no_handle());
        };
        Self::new(client, id, handle, silence)
    }

    fn new(
        client: &Client,
        id: TaskId,
        handle: SecretText,
        silence: u64,
    ) -> Result<Self, ClientError> {
        let handle = handle.into_secret();
        Ok(Self {
            client: client.clone().with_authorization("Handle", &handle)?,
            path: format!("/v1/tasks/{id}"),
            silence: Duration::from_secs(silence),
        })
    }

    /// Sends heartbeats until the task ends; returns the reason.
    pub(crate) async fn keep(&self) -> String {
        let usual = self.silence / 3;
        let mut heard = Instant::now();
        loop {
            let pause = match timeout(usual.min(TRY_TIMEOUT), self.beat(None)).await {
                Ok(Ok(None)) => {
                    heard = Instant::now();
                    usual
                }
                Ok(Ok(Some(why))) => return format!("the task has ended: {why}"),
                Ok(Err(_)) | Err(_) => jittered(usual.min(LONGEST_PAUSE)),
            };
            if heard.elapsed() >= self.silence {
                return "no heartbeat reached the broker within the task's interval".into();
            }
            sleep(pause).await;
        }
    }

    /// Ends the task as completed (`well`) or aborted. A failure is only a note.
    pub(crate) async fn end(&self, well: bool) {
        let Err(failed) = self.finish(well).await else {
            return;
        };
        let notify = self.client.notify();
        notify(&format!(
            "taskpass: the task could not be ended ({failed}); without heartbeats it ends in {} s",
            self.silence.as_secs()
        ));
    }

    /// Ends the task. Succeeds only if the broker confirms the end, or answers that the task had
    /// ended.
    pub(crate) async fn finish(&self, well: bool) -> Result<(), ClientError> {
        let what = if well { "complete" } else { "abort" };
        let path = format!("{}/{what}", self.path);
        let nothing = Nothing {};
        let ended = retried(END_RETRY, self.client.notify(), async || {
            let sent = self.client.try_once(Method::POST, &path, &nothing, None);
            match sent.await?.success() {
                Ok(reply) => {
                    confirmed(&reply).map_err(|failure| AttemptError::transient(failure, None))
                }
                Err(refused) if ENDED.contains(&refused.slug()) => Ok(()),
                Err(failure) => Err(failure.into()),
            }
        });
        ended.await
    }

    /// Sends one heartbeat. Returns why the task can no longer be used, or that `session` was
    /// revoked; `None` if both are usable. Fails if the broker did not answer.
    pub(crate) async fn beat(
        &self,
        session: Option<SessionId>,
    ) -> Result<Option<String>, ClientError> {
        let path = format!("{}/heartbeat", self.path);
        match self.client.post(&path, &Nothing {}).await {
            Ok(reply) => Ok(over(&task_of(&reply)?, session)),
            Err(refused) if UNUSABLE.contains(&refused.slug()) => Ok(Some(refused.to_string())),
            Err(failure) => Err(failure),
        }
    }
}

/// The task in an answer. Fails if another server than the broker answered.
fn task_of(reply: &Reply<TaskSessionsBody>) -> Result<TaskSessionsBody, ClientError> {
    reply.read().map_err(|error| {
        ClientError::Unavailable(format!(
            "the answer holds no task (not the broker's answer): {error}"
        ))
    })
}

/// Checks that the answer to a request that ends a task confirms the end.
fn confirmed(reply: &Reply<TaskSessionsBody>) -> Result<(), ClientError> {
    if task_of(reply)?.task.state == Open::Known(TaskState::Open) {
        let open = "the broker answered that the task is open";
        return Err(ClientError::Unavailable(open.into()));
    }
    Ok(())
}

fn no_handle() -> ClientError {
    ClientError::Unavailable("the broker's answer lacks the task or its handle".into())
}

/// Why a task can no longer be used, by the answer to its heartbeat: the task ended, or the session
/// was revoked. The expiry of a credential is not a reason to stop its user.
fn over(answer: &TaskSessionsBody, session: Option<SessionId>) -> Option<String> {
    if answer.task.state != Open::Known(TaskState::Open) {
        return Some(answer.task.state.to_string());
    }
    let alive = |own: &EndedSessionBody| {
        matches!(
            own.state,
            Open::Known(SessionState::Active | SessionState::Minting)
        )
    };
    let revoked = |own: &EndedSessionBody| own.end_reason == Some(Open::Known(EndReason::Revoked));
    let sessions = &answer.sessions;
    let gone = !sessions.iter().any(alive) && sessions.iter().any(revoked);
    let named = sessions.iter().find(|own| session == Some(own.id));
    (gone || named.is_some_and(revoked)).then(|| "revoked".to_owned())
}

/// The result of work that never ends.
pub(crate) type Never = Infallible;

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const SESSION: &str = "01890a5d-ac96-774b-bcce-b302099a8057";
    const OTHER: &str = "01890a5d-ac96-774b-bcce-b302099a8058";

    fn answer(state: &str, sessions: &Value) -> TaskSessionsBody {
        let answer = json!({
            "task": {
                "id": OTHER, "state": state, "type": "report", "owner": "ci:a",
                "opened_at": "2026-01-01T00:00:00Z", "deadline": "2026-01-01T01:00:00Z",
                "credentials_left": 1
            },
            "sessions": sessions
        });
        serde_json::from_value(answer).unwrap()
    }

    #[test]
    fn a_task_is_over_when_it_is_not_open_or_its_session_was_revoked() {
        let session = |id: &str, state: &str, reason: Value| json!({"id": id, "state": state, "end_reason": reason});
        let own: SessionId = SESSION.parse().unwrap();
        let active = session(SESSION, "active", Value::Null);
        let revoked = session(SESSION, "ended", json!("revoked"));
        let other = session(OTHER, "active", Value::Null);
        let expired = session(SESSION, "ended", json!("expired"));
        for (state, sessions, named, expected) in [
            ("open", json!([active]), None, None),
            ("open", json!([]), Some(own), None),
            ("open", json!([expired]), Some(own), None),
            ("open", json!([revoked, other]), None, None),
            ("open", json!([revoked, other]), Some(own), Some("revoked")),
            ("open", json!([revoked]), None, Some("revoked")),
            ("aborted", json!([active]), None, Some("aborted")),
            ("paused", json!([active]), None, Some("paused")),
        ] {
            let over = over(&answer(state, &sessions), named);
            assert_eq!(over.as_deref(), expected, "{state} {sessions}");
        }
    }
}
