//! Sends checkpoints to a webhook, so that the receiver can compare the log with each.
//!
//! `tell_checkpoints` serves one sink; `checkpoint` writes the event, whose id is derived from the
//! checkpoint.
//!
//! The rule: only the newest checkpoint matters, so none is queued: after a failed delivery the
//! next try sends the newest one by then. Each replica sends the checkpoints that it signed,
//! without a lease. Failures: a failed delivery is logged and counted, and tried again after a
//! growing pause. A receiver that answers 410 disables the whole sink. A sink with another
//! registration gets nothing from this replica. `super::Exporter::run` calls this module; `webhook`
//! makes the request. No cursor is moved.

use std::time::Duration;

use serde::Serialize;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::event::Message;
use super::sink::{Sink, SinkOutput};
use super::webhook::Undelivered;
use super::{Exporter, backoff_seconds};
use crate::clock::Timestamp;
use crate::ledger::Signed;

/// The least time between two checkpoints.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// A checkpoint as an event of CloudEvents.
#[derive(Serialize)]
struct CheckpointEvent<'a> {
    specversion: &'static str,
    id: &'a str,
    source: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    time: Timestamp,
    datacontenttype: &'static str,
    data: serde_json::Value,
}

impl Exporter {
    /// Sends checkpoints to a sink that is configured for them, until `stop`.
    pub(super) async fn tell_checkpoints(&self, sink: &Sink, stop: &CancellationToken) {
        let SinkOutput::Webhook(webhook) = &sink.to else {
            return;
        };
        if !sink.checkpoints {
            return;
        }
        let mut newest = self.parts.ledger.checkpoints();
        // A checkpoint that was signed before this loop began is also sent.
        newest.mark_changed();
        let mut failures = 0;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                changed = newest.changed() => if changed.is_err() {
                    return;
                },
            }
            let Some(signed) = newest.borrow_and_update().clone() else {
                continue;
            };
            let known = self.store().export_cursor(&sink.key).await;
            let Ok(Some(cursor)) = known else {
                // The sink is not registered yet, or the store does not answer.
                newest.mark_changed();
                tokio::time::sleep(TELL_EVERY).await;
                continue;
            };
            if cursor.disabled_at.is_some() || cursor.registration != sink.registration {
                tokio::time::sleep(TELL_EVERY).await;
                continue;
            }
            let now = self.parts.clock.now();
            let Ok(message) = self.checkpoint(sink, &signed, now) else {
                continue;
            };
            let pause = match webhook.deliver(&message, now).await {
                Ok(()) => {
                    failures = 0;
                    TELL_EVERY
                }
                Err(Undelivered::Gone) => {
                    error!(
                        sink = sink.key.name,
                        "the sink answered 410 and gets nothing more; raise its `revision` to try \
                         again"
                    );
                    let store = self.store();
                    drop(
                        store
                            .disable_export(&sink.key, &sink.registration, now)
                            .await,
                    );
                    TELL_EVERY
                }
                Err(Undelivered::Later { why, pause_seconds }) => {
                    self.parts.metrics.export_failed(&sink.key.name);
                    let pause = backoff_seconds(failures).max(pause_seconds.unwrap_or(0));
                    failures += 1;
                    warn!(
                        sink = sink.key.name,
                        why, pause, "a checkpoint was not delivered; it is tried again"
                    );
                    newest.mark_changed();
                    Duration::from_secs(pause)
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    fn checkpoint(
        &self,
        sink: &Sink,
        signed: &Signed,
        now: Timestamp,
    ) -> Result<Message, serde_json::Error> {
        let id = format!("tp-checkpoint-{}-{}", signed.head.size, signed.head.root);
        let body = serde_json::to_vec(&CheckpointEvent {
            specversion: "1.0",
            id: &id,
            source: &self.issuer,
            kind: "taskpass.checkpoint",
            time: now,
            datacontenttype: "application/json",
            data: json!({
                "origin": sink.key.origin,
                "size": signed.head.size,
                "checkpoint": &*signed.checkpoint,
            }),
        })?;
        Ok(Message {
            index: signed.head.size,
            id,
            session: None,
            body,
        })
    }
}
