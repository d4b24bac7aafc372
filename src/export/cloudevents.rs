//! CloudEvents 1.0.2, structured, in JSON.
//!
//! `data` holds the leaf as it stands in the log, byte for byte, beside its index and its hash.
//! `sequence` (an extension of CloudEvents) orders events of one source as text; `partitionkey`
//! (another) is the session, where there is one.

use serde::Serialize;
use serde_json::value::RawValue;

use super::event::Reading;
use crate::clock::Timestamp;
use crate::domain::leaf::Event;

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
    /// The leaf's bytes are gone; its hash stays.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pruned: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    free_text: Option<&'a str>,
}

pub(super) fn write(reading: &Reading<'_>) -> Result<Vec<u8>, serde_json::Error> {
    let recorded = &reading.recorded;
    let event = reading.leaf.as_ref().map(|leaf| &leaf.event);
    let kind = match event {
        Some(Event::Decision(decision)) => {
            format!("taskpass.decision.{}", decision.outcome.as_str())
        }
        _ => format!("taskpass.{}", reading.name),
    };
    let (subject, session) = match event {
        Some(Event::Decision(decision)) => (
            Some(decision.workload.to_string()),
            decision.session.map(|session| session.to_string()),
        ),
        Some(Event::TaskOpened(task)) => (Some(task.workload.to_string()), None),
        Some(Event::TaskEnded { task, .. } | Event::Delegated { task, .. }) => {
            (Some(task.to_string()), None)
        }
        Some(Event::SessionEnded { session, .. } | Event::EndConfirmed { session, .. }) => {
            (Some(session.to_string()), Some(session.to_string()))
        }
        Some(
            Event::Cutoff { id, .. }
            | Event::CutoffLifted { id, .. }
            | Event::TimeAccepted { id, .. },
        ) => (Some(id.to_string()), None),
        Some(Event::Activated { generation, .. }) => (Some(generation.to_string()), None),
        Some(Event::Key { kid, .. }) => (Some(kid.clone()), None),
        Some(Event::Admin { subject, .. }) => (Some(subject.clone()), None),
        Some(Event::DenialsOmitted { subject, .. }) => (Some(subject.clone()), None),
        Some(Event::Genesis { .. }) | None => (None, None),
    };
    // As it is, byte for byte; but an event is one line, whoever wrote the leaf.
    let line = reading.text.filter(|text| !text.contains(['\n', '\r']));
    let leaf = line.map(serde_json::from_str).transpose()?;
    serde_json::to_vec(&CloudEvent {
        specversion: "1.0",
        id: &reading.id,
        source: recorded.issuer,
        kind,
        // A subject that is there must say something.
        subject: subject.filter(|subject| !subject.is_empty()),
        time: recorded.at,
        datacontenttype: "application/json",
        sequence: format!("{:020}", recorded.index),
        partitionkey: session,
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
