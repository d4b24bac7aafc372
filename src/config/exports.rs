//! `[[export]]`: external sinks that receive the ledger's events.
//!
//! [`Export`] is one sink as written. This file holds the values and their defaults; a value of
//! another type is an error of the deserializer. `config::check` refuses settings that contradict
//! each other, and [`crate::export`] delivers to the sinks.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The format of exported events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ExportFormat {
    /// Events of the Open Cybersecurity Schema Framework (OCSF 1.5.0)
    Ocsf,
    /// CloudEvents 1.0, structured, in JSON
    Cloudevents,
}

/// The destination of exported events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExportTo {
    /// JSON lines in a local file.
    File,
    /// JSON lines on standard output.
    Stdout,
    /// One request for each event, signed according to Standard Webhooks.
    Webhook,
}

/// The longest time for one attempt, in seconds.
pub const MAX_TIMEOUT_SECONDS: u64 = 30;

/// Where a new sink begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExportFrom {
    /// At the first entry of the log.
    #[default]
    Beginning,
    /// At the next entry.
    Now,
}

/// `[[export]]`: one sink.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct Export {
    /// The sink's name. The store keeps the sink's progress under it.
    pub name: String,
    pub format: ExportFormat,
    pub to: ExportTo,
    /// The file's path, for `file`.
    #[serde(default)]
    pub path: Option<PathBuf>,
    /// The sink's URL, for `webhook`.
    #[serde(default)]
    pub url: Option<String>,
    /// The file with the signing secret, for `webhook`; other users must not read it.
    #[serde(default)]
    pub secret_file: Option<PathBuf>,
    /// The only trusted certificate authorities, as PEM, for `webhook`. `None` for the system's.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// The longest time for one attempt.
    #[serde(default = "default_timeout_seconds")]
    pub timeout_seconds: u64,
    /// Concurrent requests, for `webhook`. Events of one session stay in order.
    #[serde(default = "default_concurrency")]
    pub concurrency: u32,
    /// Where a new sink begins.
    #[serde(default)]
    pub from: ExportFrom,
    /// Whether text written by people is exported, too: purposes and reasons.
    #[serde(default)]
    pub free_text: bool,
    /// Whether each new checkpoint of the log is sent, too, for `webhook`.
    #[serde(default)]
    pub checkpoints: bool,
    /// Changing it makes the broker retry a sink that had answered 410 Gone.
    #[serde(default = "default_revision")]
    pub revision: u32,
}

fn default_timeout_seconds() -> u64 {
    10
}

fn default_concurrency() -> u32 {
    4
}

fn default_revision() -> u32 {
    1
}

impl Export {
    /// The paths in this sink's settings.
    pub(super) fn paths_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        [
            self.path.as_mut(),
            self.secret_file.as_mut(),
            self.ca_file.as_mut(),
        ]
        .into_iter()
        .flatten()
    }
}
