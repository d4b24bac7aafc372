//! Delivers the leaves after a cursor to one sink whose lease this replica holds.
//!
//! `tell` reads the leaves, makes the messages, delivers them and advances the cursor. Lines are
//! written as one batch. Requests are sent one for each message (`post`): messages of one session
//! one after the other (`lanes`), and a message of no session or of several alone (`run_length`).
//!
//! The rule: the cursor advances only over delivered leaves. [`Ahead`] remembers those that were
//! delivered beyond a failed one, so that they are not sent again. Failures: an undelivered message
//! or a lost lease is a [`RoundError`]; [`super::Exporter`] decides when to try again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;

use super::event::Message;
use super::reading::RecordedLeaf;
use super::sink::{BUDGET, Sink, SinkOutput};
use super::webhook::{Undelivered, Webhook};
use super::{Exporter, ExporterParts, RoundError};
use crate::store::leaves::StoredLeaf;

/// Leaves that a sink received beyond its cursor, because an earlier one failed. They are not sent
/// again. Only this process knows them, so they are after a crash.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    cursor: u64,
    delivered: BTreeSet<u64>,
}

impl Ahead {
    /// This replica has the lease again, with the cursor at `next`. If the cursor moved meanwhile,
    /// another replica continued, or an operator set it back.
    pub(super) fn go_on_at(&mut self, next: u64) {
        if next != self.cursor {
            self.delivered.clear();
        }
        self.moved_to(next);
    }

    fn moved_to(&mut self, next: u64) {
        self.cursor = next;
        self.delivered = self.delivered.split_off(&next);
    }
}

impl Exporter {
    /// Delivers the leaves from `next` on to a sink whose lease this replica holds, until there are
    /// no more.
    pub(super) async fn tell(
        &self,
        sink: &Sink,
        mut next: u64,
        ahead: &mut Ahead,
        stop: &CancellationToken,
    ) -> Result<(), RoundError> {
        let store = self.store();
        let ExporterParts {
            replica,
            clock,
            metrics,
            ..
        } = &self.parts;
        while !stop.is_cancelled() && (self.parts.goes_by_the_right_clock)() {
            let there = self.size().await?.saturating_sub(next);
            let leaves = store.leaves(next, there.min(sink.at_once())).await?;
            let Some(last) = leaves.last() else {
                break;
            };
            let end = last.index + 1;
            let messages = self.messages(sink, &leaves).await?;
            let (until, failed) = match &sink.to {
                SinkOutput::Lines(writer) => {
                    match writer.write(lines(&messages), sink.timeout).await {
                        Ok(()) => (end, None),
                        Err(error) => (next, Some(Undelivered::later(error.to_string()))),
                    }
                }
                SinkOutput::Webhook(webhook) => {
                    self.post(sink, webhook, &messages, ahead, stop).await
                }
            };
            if until > next {
                let lease = sink.leased_from(clock.now());
                let moved = store.advance_export(&sink.key, replica, next, until, lease);
                if !moved.await? {
                    return Err(RoundError::Lost);
                }
                metrics.export_delivered(&sink.key.name, until - next);
                next = until;
                ahead.moved_to(next);
            }
            if let Some(why) = failed {
                let mut events = messages.into_iter();
                let event = events.find(|message| message.index == until);
                let event = event.map_or_else(String::new, |message| message.id);
                return Err(RoundError::Undelivered { event, why });
            }
        }
        Ok(())
    }

    /// Sends one request per message, except for messages that were delivered `ahead`; several at
    /// once where the order does not matter. Returns the first leaf that was not delivered, and
    /// why.
    async fn post(
        &self,
        sink: &Sink,
        webhook: &Webhook,
        messages: &[Message],
        ahead: &mut Ahead,
        stop: &CancellationToken,
    ) -> (u64, Option<Undelivered>) {
        let begun = Instant::now();
        let clock = &self.parts.clock;
        let mut rest = messages;
        while let Some(first) = rest.first() {
            let (run, after) = rest.split_at(run_length(rest));
            let known = &ahead.delivered;
            let posted = lanes(run, sink.concurrency)
                .into_iter()
                .map(|lane| async move {
                    let mut delivered = Vec::new();
                    for message in lane {
                        if known.contains(&message.index) {
                            continue;
                        }
                        let over = stop.is_cancelled() || begun.elapsed() > BUDGET;
                        if over && message.index != first.index {
                            return (delivered, Some((message.index, None)));
                        }
                        if let Err(failed) = webhook.deliver(message, clock.now()).await {
                            return (delivered, Some((message.index, Some(failed))));
                        }
                        delivered.push(message.index);
                    }
                    (delivered, None)
                });
            let posted = join_all(posted).await;
            let mut undelivered = None;
            let mut failed = None;
            for (delivered, missed) in posted {
                ahead.delivered.extend(delivered);
                let Some((index, why)) = missed else {
                    continue;
                };
                undelivered = Some(undelivered.map_or(index, |least: u64| least.min(index)));
                failed = match (failed, why) {
                    (Some(Undelivered::Gone), _) | (_, Some(Undelivered::Gone)) => {
                        Some(Undelivered::Gone)
                    }
                    (old, new) => old.or(new),
                };
            }
            if let Some(index) = undelivered {
                return (index, failed);
            }
            rest = after;
            if begun.elapsed() > BUDGET || stop.is_cancelled() {
                break;
            }
        }
        let end = messages.last().map_or(0, |last| last.index + 1);
        (rest.first().map_or(end, |next| next.index), None)
    }

    async fn messages(
        &self,
        sink: &Sink,
        leaves: &[StoredLeaf],
    ) -> Result<Vec<Message>, RoundError> {
        let mut messages = Vec::with_capacity(leaves.len());
        for leaf in leaves {
            let text = if sink.free_text {
                let openings = self.store().openings(leaf.index).await?;
                let bytes = openings.purpose.map(|opening| opening.bytes);
                bytes.and_then(|bytes| String::from_utf8(bytes).ok())
            } else {
                None
            };
            messages.push(Message::write(
                sink.format,
                RecordedLeaf {
                    issuer: &self.issuer,
                    origin: &sink.key.origin,
                    index: leaf.index,
                    hash: &leaf.hash,
                    body: leaf.body.as_deref(),
                    at: Some(leaf.at),
                    subject: leaf.subject.as_deref(),
                    free_text: text.as_deref(),
                },
            )?);
        }
        Ok(messages)
    }
}

fn lines(messages: &[Message]) -> Vec<u8> {
    let mut lines = Vec::new();
    for message in messages {
        lines.extend_from_slice(&message.body);
        lines.push(b'\n');
    }
    lines
}

/// How many of the next messages can be sent at once: one that must go alone, or all before the
/// next such message.
pub(super) fn run_length(messages: &[Message]) -> usize {
    let alone = messages
        .iter()
        .position(|message| message.session.is_none());
    match alone {
        Some(0) => 1,
        Some(at) => at,
        None => messages.len(),
    }
}

/// Groups messages by session into at most `most` lanes, each in order.
pub(super) fn lanes(run: &[Message], most: u32) -> Vec<Vec<&Message>> {
    let mut lanes: BTreeMap<u128, Vec<&Message>> = BTreeMap::new();
    for message in run {
        let session = message.session.map_or(0, |session| session.as_u128());
        lanes
            .entry(session % u128::from(most.max(1)))
            .or_default()
            .push(message);
    }
    lanes.into_values().collect()
}
