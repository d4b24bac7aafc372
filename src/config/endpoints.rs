//! `[endpoints.NAME]`: the servers that this replica may ask, and the files that the entries name.
//!
//! This file builds the [`EndpointTable`], and checks at the start that each named file can be
//! read, has certificates or text, and is none of the files with the broker's own secrets. A token
//! file must not contain a sealing key or the database's URL either. Otherwise an endpoint could
//! send the broker's secrets to another server.
//!
//! Each fault is a complaint of the whole configuration ([`super::ConfigErrors`]). The rules for
//! entries are in [`crate::endpoints`]. The files are read again for each use, and are not checked
//! again then.

use std::path::{Path, PathBuf};

use url::Url;

use super::check::Checker;
use super::environment::Environment;
use super::sections::File;
use super::{Config, DATABASE_URL_VARIABLE, SEALING_KEYS_VARIABLE};
use crate::domain::endpoint::EndpointName;
use crate::endpoints::secret_files::SecretFiles;
use crate::endpoints::{EndpointTable, OwnCredentials, authorities};

/// The largest file of authorities or of a token, in bytes.
const MAX_FILE_BYTES: u64 = 256 * 1024;

impl Checker<'_> {
    /// Builds the table, and adds the errors of entries that are not valid.
    pub(super) fn endpoints(&mut self, file: &File) -> EndpointTable {
        let own = file.aws.own_credentials.as_ref();
        for (key, problem, remedy) in own.map(OwnCredentials::errors).unwrap_or_default() {
            let key = format!("aws.own_credentials.{key}");
            self.refuse(key.trim_end_matches('.'), problem, remedy);
        }
        match EndpointTable::new(&file.endpoints) {
            Ok(table) => table.with_own_credentials(own.cloned()),
            Err(errors) => {
                for error in errors {
                    let key = format!("endpoints.{}.{}", error.name, error.key);
                    self.refuse(key.trim_end_matches('.'), error.problem, error.remedy);
                }
                EndpointTable::default()
            }
        }
    }

    /// Checks the files that endpoints name: each exists, has the expected content, and holds none
    /// of the broker's own secrets.
    pub(super) fn endpoint_files(&mut self, config: &Config, environment: &dyn Environment) {
        if config.endpoints.is_empty() {
            return;
        }
        let secrets = secret_files(config, environment);
        for (name, endpoint) in config.endpoints.iter() {
            for (key, path) in [
                ("ca_file", endpoint.ca_file()),
                ("token_file", endpoint.token_file()),
            ] {
                if let Some(path) = path {
                    self.endpoint_file(name, key, path, &secrets, config);
                }
            }
        }
    }

    fn endpoint_file(
        &mut self,
        name: &EndpointName,
        key: &str,
        path: &Path,
        secrets: &SecretFiles,
        config: &Config,
    ) {
        let at = format!("endpoints.{name}.{key}");
        match secrets.find(path) {
            Err(error) => {
                let problem = format!("names {}, which cannot be read: {error}", path.display());
                return self.refuse(&at, problem, "make it readable to the broker");
            }
            Ok(Some(secret)) => {
                let problem = format!("names {}, which is {secret}", path.display());
                return self.refuse(&at, problem, "give a file that serves this server only");
            }
            Ok(None) => {}
        }
        let small = std::fs::metadata(path).is_ok_and(|file| file.len() <= MAX_FILE_BYTES);
        let bytes = small.then(|| std::fs::read(path).ok()).flatten();
        let Some(bytes) = bytes else {
            let problem = format!(
                "names {}, which cannot be read or is too long",
                path.display()
            );
            return self.refuse(&at, problem, "give a readable file of at most 256 KiB");
        };
        if key == "ca_file" {
            if authorities(&bytes).is_none() {
                let remedy = "give a file with certificates as PEM";
                self.refuse(&at, "names a file without certificates", remedy);
            }
            return;
        }
        let text = String::from_utf8(bytes).unwrap_or_default();
        if text.trim().is_empty() {
            self.refuse(
                &at,
                "names a file that is empty or not text",
                "write the token to it",
            );
        } else if config.secrets.are_in(&text) {
            let problem = "names a file that holds one of the broker's own secrets";
            self.refuse(
                &at,
                problem,
                "give a file with a token for this server only",
            );
        }
    }
}

/// Every file with a secret of the broker, as far as the configuration and the environment name it.
fn secret_files(config: &Config, environment: &dyn Environment) -> SecretFiles {
    let mut secrets = SecretFiles::default();
    let variable = |name: &str| environment.get(name).ok().flatten().map(PathBuf::from);
    let shared = config.ledger.shared_checkpoint.as_ref();
    let home = variable("HOME");
    let below_home = |path: &str| home.as_ref().map(|home| home.join(path));
    let files = [
        (
            variable(&format!("{SEALING_KEYS_VARIABLE}_FILE")),
            "the file of the sealing keys",
        ),
        (
            variable(&format!("{DATABASE_URL_VARIABLE}_FILE")),
            "the file of the database's URL",
        ),
        (config.server.tls.private_key.clone(), "the TLS key"),
        (
            config.keys.rs256_private_key_file.clone(),
            "the key of access tokens",
        ),
        (
            shared.and_then(|shared| shared.authorization_file.clone()),
            "the authorization of the shared checkpoint",
        ),
        (
            config
                .ledger
                .checkpoint_file
                .parent()
                .map(|beside| beside.join("dev-sealing-key")),
            "the sealing key of development mode",
        ),
        (variable("PGPASSFILE"), "the database's password file"),
        (below_home(".pgpass"), "the database's password file"),
        (variable("PGSSLKEY"), "the key of the database's client"),
        (
            below_home(".postgresql/postgresql.key"),
            "the key of the database's client",
        ),
        (
            variable("AWS_SHARED_CREDENTIALS_FILE"),
            "the broker's AWS credentials",
        ),
        (
            below_home(".aws/credentials"),
            "the broker's AWS credentials",
        ),
        (variable("AWS_CONFIG_FILE"), "the broker's AWS credentials"),
        (below_home(".aws/config"), "the broker's AWS credentials"),
        (
            variable("AWS_WEB_IDENTITY_TOKEN_FILE"),
            "the broker's AWS credentials",
        ),
        (
            variable("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"),
            "the broker's AWS credentials",
        ),
    ];
    for (path, what) in files {
        if let Some(path) = path {
            secrets.add(&path, what);
        }
    }
    for path in database_key_files(config) {
        secrets.add(&path, "the key of the database's client");
    }
    for export in &config.export {
        if let Some(path) = &export.secret_file {
            secrets.add(path, "the secret of a sink");
        }
    }
    if let Some(sqlite) = &config.store.sqlite {
        secrets.add_directory(&sqlite.data_dir, "in the directory of the store");
    }
    secrets
}

/// The private key files that the database's URL names.
fn database_key_files(config: &Config) -> Vec<PathBuf> {
    use secrecy::ExposeSecret as _;
    let url = config.secrets.database_url.as_ref();
    let url = url.and_then(|url| Url::parse(url.expose_secret()).ok());
    let pairs = url.iter().flat_map(Url::query_pairs);
    pairs
        .filter(|(key, _)| ["sslkey", "ssl-key", "passfile"].contains(&key.as_ref()))
        .map(|(_, value)| PathBuf::from(value.into_owned()))
        .collect()
}
