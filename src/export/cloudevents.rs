//! Events of CloudEvents 1.0.2, structured, in JSON.
//!
//! `write` turns a [`Reading`] into one event. `data` holds the leaf byte for byte, with its index
//! and its hash. `sequence` (an extension of CloudEvents) orders the events of one source as text;
//! `partitionkey` (another extension) is the session, if the event has one.
//!
//! The rule: an event is one line of JSON, and its leaf has the hash that the event names. A leaf
//! with a line break, and one that is no JSON, is left out; a pruned one is marked `pruned`. The
//! only error is that of serialisation, and the caller then sends nothing. Only `super::event`
//! calls this module; `super::reading` parses the leaf and makes the id.

use serde::Serialize;
use serde_json::value::RawValue;

use super::reading::Reading;
use crate::clock::Timestamp;
use crate::domain::leaf::RecordedDecision;

/// The media type of one event.
pub(super) const CONTENT_TYPE: &str = "application/cloudevents+json; charset=utf-8";

#[derive(Serialize)]
struct CloudEvent<'a> {
    specversion: &'static str,
    id: &'a str,
    source: &'a str,
    #[serde(rename = "type")]
    kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<Timestamp>,
    datacontenttype: &'static str,
    sequence: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    partitionkey: Option<String>,
    data: Data<'a>,
}

#[derive(Serialize)]
struct Data<'a> {
    origin: &'a str,
    index: u64,
    leaf_hash: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    leaf: Option<&'a RawValue>,
    /// Whether the leaf's bytes were pruned; its hash stays.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pruned: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    free_text: Option<&'a str>,
}

pub(super) fn write(reading: &Reading<'_>) -> Result<Vec<u8>, serde_json::Error> {
    let recorded = &reading.recorded;
    let facets = reading.leaf.as_ref().map(|leaf| leaf.event.facets());
    let kind = match facets.as_ref().and_then(|facets| facets.decision) {
        Some(RecordedDecision::Request(decision)) => {
            format!("taskpass.decision.{}", decision.outcome.as_str())
        }
        Some(RecordedDecision::TaskOpened(_)) | None => format!("taskpass.{}", reading.name),
    };
    let subject = facets.as_ref().and_then(|facets| facets.about.text());
    let session = facets.as_ref().and_then(|facets| facets.session);
    // The leaf is embedded byte for byte. A leaf with a line break is left out, because an event is
    // one line.
    let line = reading.text.filter(|text| !text.contains(['\n', '\r']));
    let leaf = line.map(serde_json::from_str).transpose()?;
    serde_json::to_vec(&CloudEvent {
        specversion: "1.0",
        id: &reading.id,
        source: recorded.issuer,
        kind,
        // CloudEvents does not allow an empty subject.
        subject: subject.filter(|subject| !subject.is_empty()),
        time: recorded.at,
        datacontenttype: "application/json",
        sequence: format!("{:020}", recorded.index),
        partitionkey: session.map(|session| session.to_string()),
        data: Data {
            origin: recorded.origin,
            index: recorded.index,
            leaf_hash: recorded.hash.to_string(),
            leaf,
            pruned: recorded.body.is_none(),
            free_text: recorded.free_text,
        },
    })
}
