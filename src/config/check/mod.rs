//! The checks of a configuration that the types of its sections cannot make: ranges,
//! contradictions, the secrets, and the files that the configuration names.
//!
//! `Checker` collects the faults, and `Checker::finish` returns all of them as [`ConfigErrors`]. A
//! fault in one section does not hide those of the others, but can hide further ones of its own. A
//! setting without effect is refused like a wrong one, if this module detects it: its author
//! believes that it works. Secrets come from environment variables, or from files that other users
//! cannot access (`secrets`).
//!
//! `Config::parse` checks the text and the environment variables. Only if these have no fault does
//! `Config::load` check the certificates, keys and secrets in the other files. Rules of the domain
//! are checked by the domain's types (`Catalog`, `KeySchedule`); this module adds the line of the
//! configuration to their errors. Each group of sections has a file: `server`, `store`, `ledger`,
//! `keys`, `generation`, `exports`; `secrets` checks the environment variables and the files. The
//! checks of endpoints are in `crate::config`.

mod exports;
mod generation;
mod keys;
mod ledger;
mod secrets;
mod server;
mod store;

use url::Url;

use super::document::Document;
use super::error::{ConfigError, ConfigErrors};
use super::{Mode, sections};
use crate::domain::limits::MAX_NAME_BYTES;
use crate::domain::name::is_name;
pub(super) use generation::own_audiences;

/// Collects the errors of a configuration.
pub(super) struct Checker<'d> {
    document: &'d Document<'d>,
    errors: Vec<ConfigError>,
}

impl<'d> Checker<'d> {
    pub(super) fn new(document: &'d Document<'d>) -> Self {
        Self {
            document,
            errors: Vec::new(),
        }
    }

    pub(super) fn finish(self) -> Result<(), ConfigErrors> {
        ConfigErrors::check(self.errors)
    }

    pub(super) fn refuse(
        &mut self,
        key: &str,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.errors.push(self.document.error(key, problem, remedy));
    }

    fn refuse_variable(&mut self, name: &str, problem: &str, remedy: impl Into<String>) {
        let path = self.document.path();
        self.errors
            .push(ConfigError::unplaced(path, name, problem, remedy));
    }

    pub(super) fn range(&mut self, key: &str, value: u64, min: u64, max: u64) {
        if !(min..=max).contains(&value) {
            self.refuse(
                key,
                format!("is {value}"),
                format!("give a whole number from {min} to {max}"),
            );
        }
    }

    /// Checks the name of a `kind` of thing. `is_first` is false if another one has the name.
    fn name(&mut self, key: &str, name: &str, is_first: bool, kind: &str) {
        if !is_name(name) {
            self.refuse(
                key,
                "is empty, too long or has a character that is not allowed",
                format!("use 1 to {MAX_NAME_BYTES} of a-z, 0-9, `-` and `_`"),
            );
        }
        if !is_first {
            self.refuse(
                key,
                "is used twice",
                format!("give each {kind} a different name"),
            );
        }
    }

    pub(super) fn check(&mut self, file: &sections::File, mode: Mode) {
        self.issuer(file);
        self.tls(file);
        self.trusted_proxies(file);
        self.metrics(file);
        self.times(file);
        self.store(file, mode);
        self.ledger(file, mode);
        self.keys(file);
        self.admin(file);
        self.attestors(file);
        self.catalog(file);
        self.limits(file);
        self.exports(file);
    }
}

fn is_plain_on_loopback(url: &Url) -> bool {
    url.scheme() == "http" && sections::is_loopback(url)
}

#[cfg(test)]
mod tests;
