//! An open task of ours: heartbeats, and its end.

use std::convert::Infallible;
use std::time::Duration;

use reqwest::Method;
use secrecy::SecretString;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use super::client::Client;
use super::retry::{Fault, TRY_TIMEOUT, jittered, retried};
use super::{Failure, output};

/// After this time the end of a task is not tried again: the broker ends it by silence anyway.
const END_RETRY: Duration = Duration::from_secs(15);

/// The longest pause between a heartbeat that failed and the next.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The problems by which the broker says that a task has ended already. The broker prunes old tasks, so
/// an unknown task has ended too.
const ENDED: [&str; 2] = ["task-ended", "not-found"];

/// The problems by which the broker says at a heartbeat that a task can no longer be used.
const UNUSABLE: [&str; 4] = ["task-ended", "not-found", "owner-withdrawn", "blocked"];

/// An open task, and the right to keep and end it.
pub(super) struct Lease {
    client: Client,
    path: String,
    silence: Duration,
}

impl Lease {
    /// The task of a granted request.
    pub(super) fn of(client: &Client, granted: &Value, silence: u64) -> Result<Self, Failure> {
        let text = |pointer: &str| granted.pointer(pointer).and_then(Value::as_str);
        let (Some(id), Some(handle)) = (text("/task/id"), text("/task/handle")) else {
            return Err(Failure::Unestablished(
                "the broker's answer names no task".into(),
            ));
        };
        let handle = SecretString::from(handle);
        Ok(Self {
            client: client.clone().with_authorization("Handle", &handle)?,
            path: format!("/v1/tasks/{id}"),
            silence: Duration::from_secs(silence),
        })
    }

    /// A task that is named with its handle, as a request joins it.
    pub(super) fn joined(client: &Client, task: &Value, silence: u64) -> Result<Self, Failure> {
        Self::of(client, &json!({ "task": task }), silence)
    }

    /// Heartbeats until the task is over; why it is.
    pub(super) async fn keep(&self) -> String {
        let usual = self.silence / 3;
        let mut heard = Instant::now();
        loop {
            let pause = match timeout(usual.min(TRY_TIMEOUT), self.beat(None)).await {
                Ok(Ok(None)) => {
                    heard = Instant::now();
                    usual
                }
                Ok(Ok(Some(why))) => return format!("the task is over: {why}"),
                Ok(Err(_)) | Err(_) => jittered(usual.min(LONGEST_PAUSE)),
            };
            if heard.elapsed() >= self.silence {
                return "the broker has not heard of the task for too long".into();
            }
            sleep(pause).await;
        }
    }

    /// Ends it: completed, or aborted.
    pub(super) async fn end(&self, well: bool) {
        let Err(failed) = self.finish(well).await else {
            return;
        };
        output::note(format!(
            "taskpass: the task could not be ended ({failed}); its silence ends it in {} s",
            self.silence.as_secs()
        ));
    }

    /// Ends it. Succeeds only if the broker confirms the end, or says that the task ended before.
    pub(super) async fn finish(&self, well: bool) -> Result<(), Failure> {
        let what = if well { "complete" } else { "abort" };
        let path = format!("{}/{what}", self.path);
        let nothing = json!({});
        let ended = retried(END_RETRY, async || {
            let sent = self
                .client
                .try_once(Method::POST, &path, Some(&nothing), None);
            match sent.await?.success() {
                Ok(body) if state(&body).is_some_and(|state| state != "open") => Ok(()),
                Ok(_) => Err(Fault::transient(not_of_the_broker(), None)),
                Err(refused) if ENDED.contains(&refused.slug()) => Ok(()),
                Err(failure) => Err(failure.into()),
            }
        });
        ended.await
    }

    /// One heartbeat. Returns why the task can no longer be used, or that `session` was revoked; `None`
    /// while both are good. Fails if the broker did not answer.
    pub(super) async fn beat(&self, session: Option<&str>) -> Result<Option<String>, Failure> {
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

fn not_of_the_broker() -> Failure {
    Failure::Unestablished("the answer names no task (not the broker's answer)".into())
}

/// Why a task, as its heartbeat tells of it, is of no more use: it is over, or what it had was
/// revoked. A credential that merely expired is no reason to stop who had it.
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

/// What never comes.
pub(super) type Never = Infallible;
