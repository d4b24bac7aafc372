//! One entry of the log as one event: its id, its place in the order, its bytes.
//!
//! The id follows from the entry, so every attempt, every replica and every sink has the same, and
//! whoever receives an event twice can tell. A leaf holds no secret and no free text; what people
//! wrote is added only where a sink was configured to get it.

use serde_json::Value;
use uuid::Uuid;

use super::{cloudevents, ocsf};
use crate::clock::Timestamp;
use crate::config::ExportFormat;
use crate::domain::leaf::{Leaf, RecordedDecision};
use crate::ids::SessionId;
use crate::merkle::Hash;

/// What an event is made of.
#[derive(Clone, Copy, Debug)]
pub struct Recorded<'a> {
    /// The broker's issuer: where events come from.
    pub issuer: &'a str,
    /// The log.
    pub origin: &'a str,
    /// The entry's place.
    pub index: u64,
    /// Its hash.
    pub hash: &'a Hash,
    /// Its bytes; none where they were pruned.
    pub body: Option<&'a [u8]>,
    /// When it was decided, where that is known.
    pub at: Option<Timestamp>,
    /// The identity whose own it is, where that is known.
    pub subject: Option<&'a str>,
    /// What a person wrote about it, where the sink gets that.
    pub free_text: Option<&'a str>,
}

/// An event, written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The entry's place.
    pub index: u64,
    /// The same at every attempt.
    pub id: String,
    /// The one session that it is about. One that is about none, or about several, is alone: all
    /// before it come before, and all after it after.
    pub session: Option<Uuid>,
    /// JSON, without a line break.
    pub body: Vec<u8>,
}

/// An entry that was read as far as this version can.
#[derive(Debug)]
pub(super) struct Reading<'a> {
    pub(super) recorded: Recorded<'a>,
    pub(super) id: String,
    /// The leaf, where this build reads its format.
    pub(super) leaf: Option<Leaf>,
    /// The leaf's text, where it is JSON.
    pub(super) text: Option<&'a str>,
    /// What the leaf calls its event.
    pub(super) name: String,
}

impl Message {
    /// Writes an entry as an event.
    pub fn write(format: ExportFormat, recorded: Recorded<'_>) -> Result<Self, serde_json::Error> {
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
    fn of(recorded: Recorded<'a>) -> Self {
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

/// Whether a name can stand in an event's type.
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
