//! Checks of `[[export]]`: the sinks, their files and the secrets of webhooks.
//!
//! A sink is accepted only if no setting contradicts its kind, no two sinks share a name, a file or
//! standard output, and a webhook's URL is https (or http on loopback) without credentials. The
//! signing secrets are read from files that other users cannot read.
//!
//! Each fault is a complaint of the whole configuration ([`ConfigErrors`]), also a file that cannot
//! be read. [`crate::config::exports`] has the types, and [`crate::export`] delivers to the sinks;
//! whether one can be reached is seen there only.
//!
//! [`ConfigErrors`]: crate::config::ConfigErrors

use std::collections::BTreeSet;

use url::{Host, Url};

use super::super::Config;
use super::super::exports::{ExportFormat, ExportTo, MAX_TIMEOUT_SECONDS};
use super::super::sections::File;
use super::Checker;
use super::secrets::read_secret;
use crate::crypto::webhook::WebhookSecrets;

/// The most sinks of one broker.
const MAX_EXPORTS: usize = 16;

impl Checker<'_> {
    /// Checks that the sections' types cannot make.
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
            let name = &export.name;
            self.name(&key("name"), name, names.insert(name), "sink");
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
                    "is only for webhooks with the format cloudevents",
                    "remove it; [ledger.shared_checkpoint] writes a file, and OCSF has no such event",
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
                    let remedy = "remove it, or set another `to`";
                    self.refuse(&key(part), "is not used by this kind of sink", remedy);
                } else if used && needed && !given {
                    let problem = format!("needs {part}, which is missing");
                    self.refuse(&key("to"), problem, format!("add {part}"));
                }
            }
            if let Some(path) = &export.path
                && !paths.insert(path)
            {
                let remedy = "give each sink a different file";
                self.refuse(&key("path"), "is also another sink's file", remedy);
            }
            if export.to == ExportTo::Stdout && std::mem::replace(&mut to_stdout, true) {
                let remedy = "keep only one sink on standard output";
                self.refuse(&key("to"), "is also another sink's destination", remedy);
            }
            if let Some(url) = &export.url {
                self.webhook_url(&key("url"), url);
            }
        }
    }

    fn webhook_url(&mut self, key: &str, text: &str) {
        let Ok(url) = Url::parse(text) else {
            return self.refuse(key, "is not a URL", "give an https URL");
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
            let remedy = "remove it: the signature authenticates the sender";
            return self.refuse(key, "has a user or a password", remedy);
        }
        if url.fragment().is_some() {
            self.refuse(key, "has a fragment", "remove it");
        }
    }

    /// Reads the secrets of webhooks, by the sink's name, and checks the other files of sinks.
    pub(in crate::config) fn webhook_secrets(
        &mut self,
        config: &Config,
    ) -> Vec<(String, WebhookSecrets)> {
        let mut all = Vec::new();
        for (index, export) in config.export.iter().enumerate() {
            if let Some(path) = &export.ca_file {
                let key = format!("export.{index}.ca_file");
                let pem = std::fs::read(path).ok();
                let chain = pem.and_then(|pem| reqwest::Certificate::from_pem_bundle(&pem).ok());
                if chain.is_none_or(|chain| chain.is_empty()) {
                    let remedy = "give a readable file with certificates as PEM";
                    self.refuse(&key, "names a file without certificates", remedy);
                }
            }
            let directory = export.path.as_ref().and_then(|path| path.parent());
            if directory
                .is_some_and(|directory| !directory.as_os_str().is_empty() && !directory.is_dir())
            {
                let key = format!("export.{index}.path");
                let remedy = "create the directory, writable by the broker";
                self.refuse(&key, "is in a directory that does not exist", remedy);
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
                        let remedy = "write one secret per line: `whsec_` and the output of \
                                      `openssl rand -base64 32`";
                        self.refuse(&key, error.to_string(), remedy);
                    }
                },
            }
        }
        all
    }
}
