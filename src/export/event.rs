//! One leaf of the log as one event in the format of a sink.
//!
//! [`Message::write`] reads a [`RecordedLeaf`] and writes it in one of the two formats.
//!
//! The rules: no leaf is skipped, not even one that this build cannot read (`reading`). A leaf
//! holds no secret and no free text; free text is added only for a sink that is configured to get
//! it. [`Message::session`] is `None` for an event of no session or of several, which is then sent
//! alone. The only failure is that of serialisation, and the caller then sends nothing. `delivery`
//! and `cli::ledger::events` call this file; `cloudevents` and `ocsf` write the formats.

use uuid::Uuid;

use super::reading::{Reading, RecordedLeaf};
use super::{cloudevents, ocsf};
use crate::config::ExportFormat;

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
