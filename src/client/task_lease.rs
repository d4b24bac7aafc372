//! An open task that this process keeps alive by heartbeats and finally ends.
//!
//! A heartbeat without an answer is an error and is repeated; [`TaskLease::keep`] returns the
//! reason when the task can no longer be used. `cli::exec` and `cli::aws::credential_process` hold
//! the lease.

use std::convert::Infallible;
use std::time::Duration;

use reqwest::Method;
use secrecy::SecretString;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use super::retry::{AttemptError, TRY_TIMEOUT, jittered, retried};
use super::{Client, ClientError};

/// How long the end of a task is retried. The broker ends the task anyway when its heartbeats stop.
const END_RETRY: Duration = Duration::from_secs(15);

/// The longest pause between a failed heartbeat and the next one.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The problems that show that a task has ended. The broker prunes old tasks, so an unknown task
/// has ended, too.
const ENDED: [&str; 2] = ["task-ended", "not-found"];

/// The problems of a heartbeat that show that a task can no longer be used.
const UNUSABLE: [&str; 4] = ["task-ended", "not-found", "owner-withdrawn", "blocked"];

/// An open task, with its handle.
pub(crate) struct TaskLease {
    client: Client,
    path: String,
    silence: Duration,
}

impl TaskLease {
    /// The task in the answer to a granted request. `silence` is the longest time between two
    /// heartbeats, in seconds.
    pub(crate) fn of(client: &Client, granted: &Value, silence: u64) -> Result<Self, ClientError> {
        let text = |pointer: &str| granted.pointer(pointer).and_then(Value::as_str);
        let (Some(id), Some(handle)) = (text("/task/id"), text("/task/handle")) else {
            return Err(ClientError::Unavailable(
                "the broker's answer lacks the task or its handle".into(),
            ));
        };
        let handle = SecretString::from(handle);
        Ok(Self {
            client: client.clone().with_authorization("Handle", &handle)?,
            path: format!("/v1/tasks/{id}"),
            silence: Duration::from_secs(silence),
        })
    }

    /// A task with its handle, in the form of a request that joins it.
    pub(crate) fn joined(client: &Client, task: &Value, silence: u64) -> Result<Self, ClientError> {
        Self::of(client, &json!({ "task": task }), silence)
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
        let nothing = json!({});
        let ended = retried(END_RETRY, self.client.notify(), async || {
            let sent = self
                .client
                .try_once(Method::POST, &path, Some(&nothing), None);
            match sent.await?.success() {
                Ok(body) if state(&body).is_some_and(|state| state != "open") => Ok(()),
                Ok(_) => Err(AttemptError::transient(not_of_the_broker(), None)),
                Err(refused) if ENDED.contains(&refused.slug()) => Ok(()),
                Err(failure) => Err(failure.into()),
            }
        });
        ended.await
    }

    /// Sends one heartbeat. Returns why the task can no longer be used, or that `session` was
    /// revoked; `None` if both are usable. Fails if the broker did not answer.
    pub(crate) async fn beat(&self, session: Option<&str>) -> Result<Option<String>, ClientError> {
        let path = format!("{}/heartbeat", self.path);
        let nothing = json!({});
        let sent = self.client.send(Method::POST, &path, Some(&nothing));
        match sent.await?.success() {
            Ok(body) if state(&body).is_some() => Ok(over(&body, session)),
            Ok(_) => Err(not_of_the_broker()),
            Err(refused) if UNUSABLE.contains(&refused.slug()) => Ok(Some(refused.to_string())),
            Err(failure) => Err(failure),
        }
    }
}

/// The state of the task in an answer; `None` if another server than the broker answered.
fn state(body: &Value) -> Option<&str> {
    body.pointer("/task/state").and_then(Value::as_str)
}

fn not_of_the_broker() -> ClientError {
    ClientError::Unavailable("the answer holds no task (not the broker's answer)".into())
}

/// Why a task can no longer be used, by the answer to its heartbeat: the task ended, or the session
/// was revoked. The expiry of a credential is not a reason to stop its user.
fn over(body: &Value, session: Option<&str>) -> Option<String> {
    let text = |value: &Value, name: &str| {
        let text = value.get(name).and_then(Value::as_str);
        text.unwrap_or_default().to_owned()
    };
    let state = state(body)?;
    if state != "open" {
        return Some(state.to_owned());
    }
    let sessions = body.get("sessions")?.as_array()?;
    let alive = |session: &Value| ["active", "minting"].contains(&text(session, "state").as_str());
    let revoked = |session: &Value| text(session, "end_reason") == "revoked";
    let named = |it: &&Value| session.is_some_and(|id| text(it, "id") == id);
    let gone = !sessions.iter().any(alive) && sessions.iter().any(revoked);
    let gone = gone || sessions.iter().find(named).is_some_and(revoked);
    gone.then(|| "revoked".to_owned())
}

/// The result of work that never ends.
pub(crate) type Never = Infallible;
