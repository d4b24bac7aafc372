//! Requests to a configured receiver, signed as Standard Webhooks requires.
//!
//! [`Webhook::deliver`] makes one attempt. The id is the event's and equal at every attempt; time
//! and signature belong to the attempt.
//!
//! The rule: an attempt is bounded in time. A redirect is a failure, because the signature is for
//! one receiver only. Only the status of an answer is used, and the `Retry-After` of 429 and 503;
//! nothing of it is logged, and neither is the address, which may contain a secret. Failures:
//! [`Undelivered::Gone`] after 410, otherwise [`Undelivered::Later`] with the cause and the pause
//! that the receiver requested, at most [`MAX_PAUSE_SECONDS`]. Nothing is tried again here: `super`
//! and `checkpoints` do that. `crypto::webhook` makes the signature.

use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};

use super::event::Message;
use crate::clock::Timestamp;
use crate::crypto::webhook::WebhookSecrets;
use crate::outgoing;

/// How much of an answer is read, so that its connection can be reused.
const MAX_ANSWER_BYTES: usize = 16 * 1024;

/// How long reading the answer may take; the status counts in any case.
const ANSWER_PATIENCE: Duration = Duration::from_millis(250);

/// The longest pause that a receiver may request.
pub(super) const MAX_PAUSE_SECONDS: u64 = 900;

/// Why an event was not delivered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Undelivered {
    /// Trying again may help.
    #[error("{why}")]
    Later {
        /// The cause, for the log.
        why: String,
        /// The pause that the receiver requested. `None` if it requested none.
        pause_seconds: Option<u64>,
    },
    /// The receiver wants no more events.
    #[error("the receiver answered 410")]
    Gone,
}

impl Undelivered {
    pub(super) fn later(why: impl Into<String>) -> Self {
        Self::Later {
            why: why.into(),
            pause_seconds: None,
        }
    }
}

/// One receiver of events.
#[derive(Debug)]
pub(super) struct Webhook {
    client: reqwest::Client,
    url: String,
    secrets: WebhookSecrets,
    content_type: &'static str,
}

impl Webhook {
    /// `authorities`, in PEM, replaces the system's authorities if it is given.
    pub(super) fn new(
        url: &str,
        secrets: WebhookSecrets,
        content_type: &'static str,
        timeout: Duration,
        authorities: Option<&[u8]>,
    ) -> Result<Self, reqwest::Error> {
        let mut builder = outgoing::direct_client()
            .connect_timeout(timeout)
            .timeout(timeout)
            .retry(reqwest::retry::never());
        if let Some(pem) = authorities {
            builder = builder.tls_certs_only(reqwest::Certificate::from_pem_bundle(pem)?);
        }
        Ok(Self {
            client: builder.build()?,
            url: url.to_owned(),
            secrets,
            content_type,
        })
    }

    /// Makes one attempt at `now`.
    pub(super) async fn deliver(
        &self,
        message: &Message,
        now: Timestamp,
    ) -> Result<(), Undelivered> {
        let seconds = now.seconds();
        let signature = self.secrets.sign(&message.id, seconds, &message.body);
        let request = self
            .client
            .post(&self.url)
            .header(CONTENT_TYPE, self.content_type)
            .header("webhook-id", &message.id)
            .header("webhook-timestamp", seconds.to_string())
            .header("webhook-signature", signature)
            .body(message.body.clone());
        // The address may contain a secret. Without it, the error text has nothing that the
        // receiver wrote.
        let answer = request.send().await.map_err(|error| {
            let why = if error.is_timeout() {
                "the receiver did not answer in time"
            } else if error.is_connect() {
                "the receiver cannot be reached"
            } else {
                "the request failed"
            };
            Undelivered::later(why)
        })?;
        let status = answer.status().as_u16();
        let pause = answer.headers().get(RETRY_AFTER).cloned();
        read_away(answer).await;
        match status {
            200..300 => Ok(()),
            410 => Err(Undelivered::Gone),
            _ => Err(Undelivered::Later {
                why: format!("the receiver answered {status}"),
                pause_seconds: pause
                    .filter(|_| matches!(status, 429 | 503))
                    .and_then(|pause| pause.to_str().ok()?.trim().parse().ok())
                    .map(|seconds: u64| seconds.min(MAX_PAUSE_SECONDS)),
            }),
        }
    }
}

/// Reads a short answer to its end, and drops a long one.
async fn read_away(answer: reqwest::Response) {
    let reading = outgoing::body(answer, MAX_ANSWER_BYTES);
    // The status alone decides.
    drop(tokio::time::timeout(ANSWER_PATIENCE, reading).await);
}
