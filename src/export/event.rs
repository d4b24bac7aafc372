//! One leaf of the log as one event: its id, its position in the order, its bytes.
//!
//! [`RecordedLeaf`] is the input, [`Message`] the output; `Reading` is the leaf, parsed as far as
//! this version can.
//!
//! The rules: the id is derived from the leaf, so it is equal for every attempt, replica and sink,
//! and a receiver can detect duplicates. A leaf holds no secret and no free text; free text is
//! added only for a sink that is configured to get it. Failures: a leaf that this build cannot read
//! is exported as `unknown`, a pruned one as `pruned`; neither is skipped. [`Message::session`] is
//! `None` for an event of no session or of several, which is then sent alone. `super` reads the
//! leaves and calls `Message::write`; `cloudevents` and `ocsf` write the formats. The leaf is not
//! verified here: `store::leaves` compares its hash.

use serde_json::Value;
use uuid::Uuid;

use super::{cloudevents, ocsf};
use crate::clock::Timestamp;
use crate::config::ExportFormat;
use crate::domain::leaf::{Leaf, RecordedDecision};
use crate::ids::SessionId;
use crate::merkle::Hash;

/// The parts of an event.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct RecordedLeaf<'a> {
    /// The broker's issuer, which is the source of the events.
    pub issuer: &'a str,
    pub origin: &'a str,
    pub index: u64,
    /// The hash of the leaf.
    pub hash: &'a Hash,
    /// The leaf in its stored format. `None` once it was pruned.
    pub body: Option<&'a [u8]>,
    /// The time of the decision, if it is known.
    pub at: Option<Timestamp>,
    /// The identity that the leaf belongs to, if it is known.
    pub subject: Option<&'a str>,
    /// The free text of the act, if the sink gets it.
    pub free_text: Option<&'a str>,
}

/// An event in its output format.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct Message {
    pub index: u64,
    /// The event's id, the same at every attempt.
    pub id: String,
    /// The only session of the event. `None` if the event concerns no session or several; it is
    /// then delivered alone, after everything before it and before everything after it.
    pub session: Option<Uuid>,
    /// The event as JSON without a line break.
    pub body: Vec<u8>,
}

/// A leaf, parsed as far as this version can.
#[derive(Debug)]
pub(super) struct Reading<'a> {
    pub(super) recorded: RecordedLeaf<'a>,
    pub(super) id: String,
    /// The leaf, if this build can read its format.
    pub(super) leaf: Option<Leaf>,
    /// The leaf's text, if it is JSON.
    pub(super) text: Option<&'a str>,
    /// The name of the leaf's event.
    pub(super) name: String,
}

impl Message {
    /// Writes a leaf as an event.
    pub fn write(
        format: ExportFormat,
        recorded: RecordedLeaf<'_>,
    ) -> Result<Self, serde_json::Error> {
        let reading = Reading::of(recorded);
        let body = match format {
            ExportFormat::Cloudevents => cloudevents::write(&reading)?,
            ExportFormat::Ocsf => serde_json::to_vec(&ocsf::event(&reading))?,
        };
        Ok(Self {
            index: recorded.index,
            session: reading.session(),
            id: reading.id,
            body,
        })
    }
}

impl<'a> Reading<'a> {
    fn of(recorded: RecordedLeaf<'a>) -> Self {
        let text = recorded
            .body
            .and_then(|body| std::str::from_utf8(body).ok());
        let value: Option<Value> = text.and_then(|text| serde_json::from_str(text).ok());
        let named = value
            .as_ref()
            .and_then(|value| value.get("event")?.as_str());
        let name = match (recorded.body, named) {
            (None, _) => "pruned".to_owned(),
            (Some(_), Some(name)) if is_name(name) => name.to_owned(),
            (Some(_), _) => "unknown".to_owned(),
        };
        let text = text.filter(|_| value.is_some());
        let leaf = text.and_then(|text| Leaf::from_bytes(text.as_bytes()).ok());
        Self {
            id: format!("tp-{}-{}", recorded.index, short(recorded.hash)),
            leaf,
            text,
            name,
            recorded,
        }
    }

    fn session(&self) -> Option<Uuid> {
        let facets = self.leaf.as_ref()?.event.facets();
        let names_another = match facets.decision {
            Some(RecordedDecision::Request(decision)) => {
                decision.supersedes.is_some() || decision.parent_session.is_some()
            }
            Some(RecordedDecision::TaskOpened(_)) | None => false,
        };
        let session = facets.session.filter(|_| !names_another);
        session.map(SessionId::uuid)
    }
}

/// Whether a name can be part of an event's type.
fn is_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    (1..=64).contains(&name.len()) && name.bytes().all(plain)
}

fn short(hash: &Hash) -> String {
    let (begin, _) = hash.as_bytes().split_at(8);
    begin.iter().fold(String::new(), |mut text, byte| {
        for digit in [byte >> 4, byte & 15] {
            text.extend(char::from_digit(u32::from(digit), 16));
        }
        text
    })
}
