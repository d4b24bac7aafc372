//! The task for as long as the command runs: heartbeats, and its end.

use std::convert::Infallible;
use std::time::Duration;

use reqwest::Method;
use secrecy::SecretString;
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::cli::client::Client;
use crate::cli::{Failure, output};

/// How long the end of a task may take: the broker ends it by silence anyway.
const END_TIMEOUT: Duration = Duration::from_secs(10);

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

    /// Heartbeats until the task is over; why it is.
    pub(super) async fn keep(&self) -> String {
        let mut ticks = interval(self.silence / 3);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = Instant::now();
        loop {
            ticks.tick().await;
            let beat = self.post("heartbeat");
            match timeout(self.silence / 3, beat).await {
                Ok(Ok(())) => heard = Instant::now(),
                Ok(Err(Failure::Refused(why))) => return format!("the task is over: {why}"),
                Ok(Err(_)) | Err(_) => {}
            }
            if heard.elapsed() >= self.silence {
                return "the broker has not heard of the task for too long".into();
            }
        }
    }

    /// Ends it: completed, or aborted.
    pub(super) async fn end(&self, well: bool) {
        let what = if well { "complete" } else { "abort" };
        let ended = timeout(END_TIMEOUT, self.post(what)).await;
        let failed = match ended {
            Ok(Ok(()) | Err(Failure::Refused(_))) => return,
            Ok(Err(failure)) => failure.to_string(),
            Err(_) => "no answer in time".to_owned(),
        };
        // Nothing is left to be done when even this cannot be written.
        drop(output::note(format!(
            "taskpass: the task could not be ended ({failed}); its silence ends it in {} s",
            self.silence.as_secs()
        )));
    }

    async fn post(&self, what: &str) -> Result<(), Failure> {
        let path = format!("{}/{what}", self.path);
        let answer = self
            .client
            .send(Method::POST, &path, Some(&json!({})))
            .await?;
        let body = answer.success()?;
        match over(&body).filter(|_| what == "heartbeat") {
            Some(why) => Err(Failure::Refused(why)),
            None => Ok(()),
        }
    }
}

/// Why a task, as its heartbeat tells of it, is of no more use: it is over, or what it had was
/// revoked. A credential that merely expired is no reason to stop who had it.
fn over(body: &Value) -> Option<String> {
    let text = |value: &Value, name: &str| {
        let text = value.get(name).and_then(Value::as_str);
        text.unwrap_or_default().to_owned()
    };
    let state = text(body.get("task")?, "state");
    if state != "open" {
        return Some(state);
    }
    let sessions = body.get("sessions")?.as_array()?;
    let alive = |session: &Value| ["active", "minting"].contains(&text(session, "state").as_str());
    let revoked = |session: &Value| text(session, "end_reason") == "revoked";
    let gone = !sessions.iter().any(alive) && sessions.iter().any(revoked);
    gone.then(|| "revoked".to_owned())
}

/// What never comes.
pub(super) type Never = Infallible;
