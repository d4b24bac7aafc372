//! `[[export]]`: sinks outside that are told what the ledger says.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use url::{Host, Url};

use super::Config;
use super::check::{Checker, read_secret};
use super::sections::File;
use crate::crypto::webhook::WebhookSecrets;
use crate::domain::limits::MAX_NAME_BYTES;

/// Sinks of one broker.
const MAX_EXPORTS: usize = 16;

/// How events are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ExportFormat {
    /// OCSF
    Ocsf,
    /// CloudEvents 1.0, structured, in JSON
    Cloudevents,
}

/// Where to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExportTo {
    /// Lines of JSON in a file of this machine.
    File,
    /// Lines of JSON on standard output.
    Stdout,
    /// A request for each event, signed as Standard Webhooks has it.
    Webhook,
}

/// The longest that one attempt may take.
pub const MAX_TIMEOUT_SECONDS: u64 = 30;

/// Where a sink that was never told anything begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExportFrom {
    /// With the first entry of the log.
    #[default]
    Beginning,
    /// With what comes next.
    Now,
}

/// `[[export]]`: one sink.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Export {
    /// Its name: how far it was told is kept under it.
    pub name: String,
    /// How events are written.
    pub format: ExportFormat,
    /// Where to.
    pub to: ExportTo,
    /// The file, for `file`.
    #[serde(default)]
    pub path: Option<PathBuf>,
    /// The address, for `webhook`.
    #[serde(default)]
    pub url: Option<String>,
    /// The file with the secret that signs, for `webhook`; nobody else may read it.
    #[serde(default)]
    pub secret_file: Option<PathBuf>,
    /// The only authorities that are believed, as PEM, for `webhook`.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// How long one attempt may take.
    #[serde(default = "default_timeout_seconds")]
    pub timeout_seconds: u64,
    /// Requests at once, for `webhook`: those of one session stay in order.
    #[serde(default = "default_concurrency")]
    pub concurrency: u32,
    /// Where a new sink begins.
    #[serde(default)]
    pub from: ExportFrom,
    /// Whether what people wrote goes with it: purposes and reasons.
    #[serde(default)]
    pub free_text: bool,
    /// Whether each new checkpoint of the log goes there, too, for `webhook`.
    #[serde(default)]
    pub checkpoints: bool,
    /// Another number has a sink tried again that said that it is gone.
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
    /// The files that it names.
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

impl Checker<'_> {
    /// What the sections' shape cannot say.
    pub(super) fn exports(&mut self, file: &File) {
        if file.export.len() > MAX_EXPORTS {
            let remedy = format!("keep at most {MAX_EXPORTS}");
            self.refuse("export", "has too many sinks", remedy);
        }
        let mut names = BTreeSet::new();
        let mut paths = BTreeSet::new();
        let mut to_stdout = false;
        for (index, export) in file.export.iter().enumerate() {
            let key = |part: &str| format!("export.{index}.{part}");
            let plain =
                |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
            let name = &export.name;
            if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.bytes().all(plain) {
                let remedy = format!("use 1 to {MAX_NAME_BYTES} of a-z, 0-9, `-` and `_`");
                self.refuse(&key("name"), "is empty, too long or oddly spelt", remedy);
            }
            if !names.insert(name) {
                let remedy = "give each sink a name of its own";
                self.refuse(&key("name"), "stands twice", remedy);
            }
            self.range(
                &key("timeout_seconds"),
                export.timeout_seconds,
                1,
                MAX_TIMEOUT_SECONDS,
            );
            self.range(&key("concurrency"), u64::from(export.concurrency), 1, 16);
            let webhook = export.to == ExportTo::Webhook;
            if export.checkpoints && !(webhook && export.format == ExportFormat::Cloudevents) {
                self.refuse(
                    &key("checkpoints"),
                    "is for webhooks that take cloudevents",
                    "remove it; a file is [ledger.shared_checkpoint]'s, and OCSF has no class for it",
                );
            }
            let parts = [
                (
                    "path",
                    export.path.is_some(),
                    export.to == ExportTo::File,
                    true,
                ),
                ("url", export.url.is_some(), webhook, true),
                ("secret_file", export.secret_file.is_some(), webhook, true),
                ("ca_file", export.ca_file.is_some(), webhook, false),
            ];
            for (part, given, used, needed) in parts {
                if given && !used {
                    let remedy = "remove it, or say another `to`";
                    self.refuse(&key(part), "is not used by this kind of sink", remedy);
                } else if used && needed && !given {
                    let problem = format!("needs {part}, which is missing");
                    self.refuse(&key("to"), problem, format!("add {part} beside it"));
                }
            }
            if let Some(path) = &export.path
                && !paths.insert(path)
            {
                let remedy = "give each sink a file of its own";
                self.refuse(&key("path"), "is another sink's too", remedy);
            }
            if export.to == ExportTo::Stdout && std::mem::replace(&mut to_stdout, true) {
                let remedy = "keep one sink on standard output";
                self.refuse(&key("to"), "is another sink's too", remedy);
            }
            if let Some(url) = &export.url {
                self.webhook_url(&key("url"), url);
            }
        }
    }

    fn webhook_url(&mut self, key: &str, text: &str) {
        let Ok(url) = Url::parse(text) else {
            return self.refuse(key, "is not a URL", "give one, with https");
        };
        let loopback = match url.host() {
            Some(Host::Ipv4(ip)) => ip.is_loopback(),
            Some(Host::Ipv6(ip)) => ip.is_loopback(),
            Some(Host::Domain(name)) => name == "localhost",
            None => false,
        };
        if url.scheme() != "https" && !(url.scheme() == "http" && loopback) {
            let remedy = "use https; http is for loopback addresses only";
            return self.refuse(key, "is neither https nor http on loopback", remedy);
        }
        if !url.username().is_empty() || url.password().is_some() {
            let remedy = "remove it: the signature says who sends";
            return self.refuse(key, "has a user or a password", remedy);
        }
        if url.fragment().is_some() {
            self.refuse(key, "has a fragment", "remove it");
        }
    }

    /// The secrets of webhooks, by the sink's name, and whether the other files are there.
    pub(super) fn webhook_secrets(&mut self, config: &Config) -> Vec<(String, WebhookSecrets)> {
        let mut all = Vec::new();
        for (index, export) in config.export.iter().enumerate() {
            if let Some(path) = &export.ca_file {
                let key = format!("export.{index}.ca_file");
                let pem = std::fs::read(path).ok();
                let chain = pem.and_then(|pem| reqwest::Certificate::from_pem_bundle(&pem).ok());
                if chain.is_none_or(|chain| chain.is_empty()) {
                    let remedy = "name a readable file with certificates as PEM";
                    self.refuse(&key, "names no file of certificates", remedy);
                }
            }
            let directory = export.path.as_ref().and_then(|path| path.parent());
            if directory
                .is_some_and(|directory| !directory.as_os_str().is_empty() && !directory.is_dir())
            {
                let key = format!("export.{index}.path");
                let remedy = "make it, writable by us";
                self.refuse(&key, "is in a directory that is not there", remedy);
            }
            let Some(path) = &export.secret_file else {
                continue;
            };
            let key = format!("export.{index}.secret_file");
            match read_secret(path) {
                Err((problem, remedy)) => self.refuse(&key, problem, remedy),
                Ok(text) => match WebhookSecrets::parse(&text) {
                    Ok(secrets) => all.push((export.name.clone(), secrets)),
                    Err(error) => {
                        let remedy = "write one a line, as `openssl rand -base64 32` gives them \
                                      after whsec_";
                        self.refuse(&key, error.to_string(), remedy);
                    }
                },
            }
        }
        all
    }
}
