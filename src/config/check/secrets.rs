//! Reads and checks the environment's variables and the files that the configuration names.
//!
//! The rule: a secret comes only from a variable or from a file that other users cannot access, and
//! no message quotes it. A variable and its `_FILE` form are never both set. [`read_secret`] is
//! also used for the secrets of sinks.
//!
//! A missing, exposed or malformed secret is a fault in the [`Checker`] and no value. `super` and
//! `crate::config::Config::load` call this file.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret as _, SecretString};
use tracing_subscriber::EnvFilter;
use zeroize::Zeroizing;

use super::super::database::{self, DatabaseFault};
use super::super::environment::{Environment, NotText};
use super::super::sections::{self, StoreKind};
use super::super::{
    Config, DATABASE_URL_VARIABLE, LOG_VARIABLE, Mode, SEALING_KEYS_VARIABLE, Scope, Secrets,
};
use super::Checker;
use crate::crypto::sealer::SealingKeys;
use crate::crypto::signer::PrivateKey;
use crate::files::secret_in;

impl Checker<'_> {
    pub(in crate::config) fn log_filter(
        &mut self,
        environment: &dyn Environment,
    ) -> Option<String> {
        let Ok(filter) = environment.get(LOG_VARIABLE) else {
            self.refuse_variable(LOG_VARIABLE, "is not UTF-8", "set it to a filter in UTF-8");
            return None;
        };
        let filter = filter.filter(|text| !text.is_empty())?;
        if EnvFilter::builder().parse(&filter).is_err() {
            let remedy = "write it like `warn,taskpass=debug`";
            self.refuse_variable(LOG_VARIABLE, "is not a filter", remedy);
            return None;
        }
        Some(filter)
    }

    /// Reads the secrets in the environment, and checks that they fit the file.
    pub(in crate::config) fn secrets(
        &mut self,
        file: &sections::File,
        environment: &dyn Environment,
        mode: Mode,
        scope: Scope,
    ) -> Secrets {
        if scope == Scope::Text {
            return Secrets::default();
        }
        let database_url = self.database_url(file, environment);
        let sealing_keys = if scope == Scope::Replica {
            self.sealing_keys(environment, mode)
        } else {
            Vec::new()
        };
        Secrets {
            database_url,
            sealing_keys,
            rs256_private_key: None,
            webhooks: Vec::new(),
        }
    }

    fn database_url(
        &mut self,
        file: &sections::File,
        environment: &dyn Environment,
    ) -> Option<SecretString> {
        let database_url = self.secret(environment, DATABASE_URL_VARIABLE);
        match (file.store.kind, &database_url) {
            (StoreKind::Sqlite, Some(_)) => self.refuse(
                "store.kind",
                format!("is `sqlite`, but {DATABASE_URL_VARIABLE} names a database"),
                "unset the variable, or set `kind = \"postgres\"`",
            ),
            (StoreKind::Postgres, None) => self.refuse(
                "store.kind",
                "is `postgres`, but no database is named",
                format!("set {DATABASE_URL_VARIABLE} or {DATABASE_URL_VARIABLE}_FILE"),
            ),
            (StoreKind::Postgres, Some(url)) => {
                let trusted = file.store.postgres_or_default().trusted_network;
                match database::check(url, trusted) {
                    Ok(()) => {}
                    Err(DatabaseFault::NoUrl) => self.refuse_variable(
                        DATABASE_URL_VARIABLE,
                        "is not a PostgreSQL URL",
                        "write it like postgres://user:password@host/database",
                    ),
                    Err(DatabaseFault::Unknown(name)) => self.refuse_variable(
                        DATABASE_URL_VARIABLE,
                        &format!("has the parameter `{name}`, which would be ignored"),
                        "remove it or correct its spelling; put server settings into the parameter \
                         `options`",
                    ),
                    Err(DatabaseFault::Unproven) => self.refuse_variable(
                        DATABASE_URL_VARIABLE,
                        "leads, together with the environment's variables, to a database on another \
                         host without verifying its certificate",
                        "append sslmode=verify-full&sslrootcert=FILE, or set `trusted_network = \
                         true` in [store.postgres] if the network between the two is trusted",
                    ),
                }
            }
            (StoreKind::Sqlite, None) => {}
        }
        database_url.map(|url| SecretString::from(url.as_str()))
    }

    fn sealing_keys(&mut self, environment: &dyn Environment, mode: Mode) -> Vec<SecretString> {
        let keys = self.secret(environment, SEALING_KEYS_VARIABLE);
        if keys.is_none() && mode == Mode::Production {
            self.refuse_variable(
                SEALING_KEYS_VARIABLE,
                "is not set: the broker could not seal its own keys",
                format!("set it or {SEALING_KEYS_VARIABLE}_FILE to at least one sealing key"),
            );
        }
        let listed = keys.as_ref().map_or("", |keys| keys.as_str());
        let listed: Vec<&str> = listed
            .split([',', '\n'])
            .map(str::trim)
            .filter(|key| !key.is_empty())
            .collect();
        if keys.is_some() && listed.is_empty() {
            let remedy = "give sealing keys, separated by commas or lines";
            self.refuse_variable(SEALING_KEYS_VARIABLE, "holds no key", remedy);
        }
        if listed.iter().collect::<BTreeSet<_>>().len() < listed.len() {
            let remedy = "give each key once; the first seals, all of them open";
            self.refuse_variable(SEALING_KEYS_VARIABLE, "holds a key twice", remedy);
        }
        let listed: Vec<SecretString> = listed.into_iter().map(SecretString::from).collect();
        if !listed.is_empty()
            && let Err(error) = SealingKeys::parse(&listed)
        {
            let problem = format!("cannot seal: {error}");
            let remedy = "make a key with `taskpass keys sealing-key`";
            self.refuse_variable(SEALING_KEYS_VARIABLE, &problem, remedy);
        }
        listed
    }

    /// The value of `name`, or the content of the file that `name_FILE` names.
    fn secret(&mut self, environment: &dyn Environment, name: &str) -> Option<Zeroizing<String>> {
        let file_name = format!("{name}_FILE");
        let mut read = |name: &str| {
            let value = environment.get(name).unwrap_or_else(|NotText| {
                self.refuse_variable(name, "is not UTF-8", "set it in UTF-8");
                None
            });
            value.map(Zeroizing::new)
        };
        match (read(name), read(&file_name)) {
            (None, None) => None,
            (Some(_), Some(_)) => {
                let remedy = format!("unset it or {file_name}");
                self.refuse_variable(name, "is set together with its _FILE variable", remedy);
                None
            }
            (Some(value), None) if value.trim().is_empty() => {
                self.refuse_variable(name, "is set and empty", "give it a value or unset it");
                None
            }
            (Some(value), None) => Some(trimmed(&value)),
            (None, Some(path)) => {
                match read_secret(Path::new(path.as_str())) {
                    Ok(text) if secret_in(&text).is_empty() => self.refuse_variable(
                        &file_name,
                        "names an empty file",
                        "write the secret to it",
                    ),
                    Ok(text) => return Some(trimmed(&text)),
                    Err((problem, remedy)) => self.refuse_variable(&file_name, &problem, remedy),
                }
                None
            }
        }
    }

    /// Checks the files that the configuration names. Returns the RSA key if one is configured.
    pub(in crate::config) fn files(&mut self, config: &Config) -> Option<SecretString> {
        let tls = &config.server.tls;
        let open = [
            ("server.tls.certificate", &tls.certificate),
            ("server.tls.client_ca", &tls.client_ca),
        ];
        for (key, path) in open {
            if let Some(path) = path
                && let Err(error) = std::fs::read(path)
            {
                self.refuse(
                    key,
                    unreadable(path, &error),
                    "make it readable to the broker",
                );
            }
        }
        self.protected("server.tls.private_key", tls.private_key.as_ref());
        if config.mode == Mode::Production && !config.policy.directory.is_dir() {
            let problem = format!("is not a directory: {}", config.policy.directory.display());
            let remedy = "give the directory of the policies";
            self.refuse("policy.directory", problem, remedy);
        }
        let shared = config.ledger.shared_checkpoint.as_ref();
        self.protected(
            "ledger.shared_checkpoint.authorization_file",
            shared.and_then(|shared| shared.authorization_file.as_ref()),
        );
        let key = "keys.rs256_private_key_file";
        let rsa = self.protected(key, config.keys.rs256_private_key_file.as_ref())?;
        if let Err(error) = PrivateKey::import_rsa_pem(rsa.expose_secret().as_bytes()) {
            let problem = format!("names a file that cannot be used: {error}");
            let remedy = "give a PEM file with one RSA key of 2048 to 4096 bits";
            self.refuse(key, problem, remedy);
        }
        Some(rsa)
    }

    fn protected(&mut self, key: &str, path: Option<&PathBuf>) -> Option<SecretString> {
        match read_secret(path?) {
            Ok(text) => Some(SecretString::from(text.as_str())),
            Err((problem, remedy)) => {
                self.refuse(key, problem, remedy);
                None
            }
        }
    }
}

fn trimmed(text: &str) -> Zeroizing<String> {
    Zeroizing::new(secret_in(text).to_owned())
}

fn unreadable(path: &Path, error: &std::io::Error) -> String {
    format!("names {}, which cannot be read: {error}", path.display())
}

/// The directory where container engines mount secrets. Files there have the owner and mode that
/// they have outside the container, so their mode does not show who can read them: only the broker
/// runs inside.
const CONTAINER_SECRETS: &str = "/run/secrets";

/// Whether other users than the owner can access a secret file. As in PostgreSQL, a file of root
/// may be readable to its group, because orchestrators pass secrets to services that way.
pub(super) fn is_exposed(mode: u32, owned_by_root: bool) -> bool {
    let forbidden = if owned_by_root { 0o037 } else { 0o077 };
    mode & forbidden != 0
}

/// Reads a file that other users must not access. The error is the problem and the remedy.
pub(super) fn read_secret(path: &Path) -> Result<Zeroizing<String>, (String, String)> {
    let unreadable = |error: std::io::Error| {
        let remedy = "make it readable to the broker only".to_owned();
        (unreadable(path, &error), remedy)
    };
    let mut file = File::open(path).map_err(unreadable)?;
    // Check the opened file: its name may refer to another file a moment later.
    let metadata = file.metadata().map_err(unreadable)?;
    let others = !path.starts_with(CONTAINER_SECRETS);
    if others && is_exposed(metadata.mode(), metadata.uid() == 0) {
        let mode = metadata.mode() & 0o777;
        return Err((
            format!(
                "names {}, which others can read or write (mode {mode:04o})",
                path.display()
            ),
            format!("chmod 0600 {}", path.display()),
        ));
    }
    let mut text = Zeroizing::new(String::new());
    file.read_to_string(&mut text).map_err(unreadable)?;
    Ok(text)
}
