//! One leaf of the log, parsed as far as this version can.
//!
//! [`RecordedLeaf`] is the input, `Reading` the result: the event's id, its name, the leaf, and the
//! only session that it concerns.
//!
//! The rule: the id is derived from the leaf, so it is equal for every attempt, replica and sink,
//! and a receiver can detect duplicates. Failures: a leaf that this build cannot read is named
//! `unknown`, a pruned one `pruned`; neither is an error. `event` reads leaves here, and
//! `cloudevents` and `ocsf` write readings. The leaf is not verified here: `store::leaves` compares
//! its hash.

use serde_json::Value;
use uuid::Uuid;

use crate::clock::Timestamp;
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

impl<'a> Reading<'a> {
    /// Parses the leaf and makes the event's id.
    pub(super) fn of(recorded: RecordedLeaf<'a>) -> Self {
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

    /// The only session of the event; `None` if the event concerns no session or several.
    pub(super) fn session(&self) -> Option<Uuid> {
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
