//! One sink: its settings, the registration that its cursor belongs to, and the lease of a
//! delivery.
//!
//! [`Sink::new`] opens the target and derives the registration, a digest of everything that makes
//! the target and the content of the sink. A sink with another registration starts at another
//! cursor. [`SinkOutput`] is a writer of lines or a webhook.
//!
//! A file or setting that is not as it was when it was checked is a [`SinkError`] at the start.
//! [`super::Exporter`] holds the sinks; `super::delivery` sends to them.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tracing::error;

use super::webhook::{MAX_PAUSE_SECONDS, Webhook};
use super::writer::{SinkTarget, Truncated, Writer};
use super::{cloudevents, ocsf};
use crate::clock::Timestamp;
use crate::config::{Config, Export, ExportFormat, ExportFrom, ExportTo, MAX_TIMEOUT_SECONDS};
use crate::crypto::digest::sha256_parts;
use crate::merkle::Hash;
use crate::metrics::Metrics;
use crate::store::exports::{BelievedTimes, ExportKey};

/// How long requests are sent before the cursor is advanced.
pub(super) const BUDGET: Duration = Duration::from_secs(2);

/// The time by which a lease exceeds [`BUDGET`] and one attempt: for reading and advancing the
/// cursor, and for clocks that differ by a second.
const LEASE_MARGIN: Duration = Duration::from_secs(4);

/// The largest difference between the clocks of two replicas that are both correct.
const CLOCKS_SECONDS: u64 = 2;

/// How many leaves are read at once: for requests, and for lines.
const REQUESTS: u64 = 64;
const LINES: u64 = 512;

pub(super) struct Sink {
    pub(super) key: ExportKey,
    pub(super) registration: String,
    pub(super) format: ExportFormat,
    pub(super) from: ExportFrom,
    pub(super) free_text: bool,
    pub(super) timeout: Duration,
    pub(super) concurrency: u32,
    pub(super) checkpoints: bool,
    pub(super) to: SinkOutput,
    /// Whether a warning was logged that another replica has other settings for this sink.
    pub(super) told_foreign: AtomicBool,
}

pub(super) enum SinkOutput {
    Lines(Writer),
    Webhook(Webhook),
}

/// Why the exporter could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// A file or a setting is not as it was when it was checked.
    #[error("the sink `{0}` {1}")]
    Unfit(String, &'static str),
    /// The sink's HTTP client could not be made.
    #[error("the HTTP client of the sink `{0}` cannot be made")]
    Client(String, #[source] reqwest::Error),
    /// The sink's thread could not be started.
    #[error("the thread of the sink `{0}` cannot be started")]
    Thread(String, #[source] std::io::Error),
}

impl Sink {
    pub(super) fn new(
        export: &Export,
        config: &Config,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, SinkError> {
        let name = || export.name.clone();
        let unfit = |why| SinkError::Unfit(name(), why);
        let timeout = Duration::from_secs(export.timeout_seconds);
        let start = |target| {
            let told = tell_truncation(name(), Arc::clone(metrics));
            Writer::start(target, told).map_err(|error| SinkError::Thread(name(), error))
        };
        let (to, location) = match export.to {
            ExportTo::Stdout => (
                SinkOutput::Lines(start(SinkTarget::Stdout)?),
                "-".to_owned(),
            ),
            ExportTo::File => {
                let path = export.path.as_ref().ok_or_else(|| unfit("has no file"))?;
                let location = path.to_string_lossy().into_owned();
                (
                    SinkOutput::Lines(start(SinkTarget::File(path.clone()))?),
                    location,
                )
            }
            ExportTo::Webhook => {
                let url = export.url.as_ref().ok_or_else(|| unfit("has no url"))?;
                let secrets = config.secrets.webhooks.iter();
                let secrets = secrets.clone().find(|(of, _)| *of == export.name);
                let (_, secrets) = secrets.ok_or_else(|| unfit("has no secret"))?;
                let authorities = export.ca_file.as_ref().map(std::fs::read).transpose();
                let authorities = authorities.map_err(|_| unfit("has an unreadable ca_file"))?;
                let webhook = Webhook::new(
                    url,
                    secrets.clone(),
                    content_type(export.format),
                    timeout,
                    authorities.as_deref(),
                )
                .map_err(|error| SinkError::Client(name(), error.without_url()))?;
                (SinkOutput::Webhook(webhook), url.clone())
            }
        };
        let kind = format!("{:?}", export.to);
        let revision = export.revision.to_be_bytes();
        // The content counts like the target: a sink with another format must not continue at an
        // old cursor.
        let told = format!("{:?} {}", export.format, export.free_text);
        let parts: [&[u8]; 4] = [
            kind.as_bytes(),
            location.as_bytes(),
            &revision,
            told.as_bytes(),
        ];
        Ok(Self {
            key: ExportKey {
                name: name(),
                origin: config.ledger.origin.clone(),
            },
            // A digest, because an address may contain secrets.
            registration: Hash::from(sha256_parts("export registration", &parts)).to_string(),
            format: export.format,
            from: export.from,
            free_text: export.free_text,
            timeout,
            concurrency: export.concurrency,
            checkpoints: export.checkpoints,
            to,
            told_foreign: AtomicBool::new(false),
        })
    }

    /// The end of a lease that begins `now`.
    pub(super) fn leased_from(&self, now: Timestamp) -> Timestamp {
        now.plus_seconds((BUDGET + self.timeout + LEASE_MARGIN).as_secs())
    }

    pub(super) fn at_once(&self) -> u64 {
        match self.to {
            SinkOutput::Lines(_) => LINES,
            SinkOutput::Webhook(_) => REQUESTS,
        }
    }
}

/// Logs that a sink's file was truncated while the broker wrote to it.
fn tell_truncation(sink: String, metrics: Arc<Metrics>) -> impl Fn(Truncated) + Send + 'static {
    move |Truncated { was, is }| {
        metrics.export_truncated(&sink);
        error!(
            sink,
            was,
            is,
            "the file was cut while the broker wrote to it, as `copytruncate` does: lines may be \
             lost; rotate it by renaming"
        );
    }
}

/// The latest times that a replica with a correct clock can have written by `now`.
pub(super) fn believed_at(now: Timestamp) -> BelievedTimes {
    let lease = BUDGET + Duration::from_secs(MAX_TIMEOUT_SECONDS) + LEASE_MARGIN;
    BelievedTimes {
        due_at: now.plus_seconds(MAX_PAUSE_SECONDS + CLOCKS_SECONDS),
        lease_until: now.plus_seconds(lease.as_secs() + CLOCKS_SECONDS),
    }
}

/// The media type of one event.
fn content_type(format: ExportFormat) -> &'static str {
    match format {
        ExportFormat::Cloudevents => cloudevents::CONTENT_TYPE,
        ExportFormat::Ocsf => ocsf::CONTENT_TYPE,
    }
}
