//! The arguments for the broker's address, its certificate authorities, and the token.
//!
//! A combination of arguments that cannot be used is [`CliError::Usage`]. [`crate::client`] makes
//! the requests, and `super::evidence` finds an attestation if no token was given.

use std::path::{Path, PathBuf};

use clap::Args;
use secrecy::SecretString;
use url::Url;
use zeroize::Zeroizing;

use super::{CliError, output};
use crate::client::evidence::Source;
use crate::client::{Client, read_file, read_secret, secret_of};
use crate::config::{Environment, ProcessEnvironment};

/// The longest file of authorities that is read, in bytes: four times the size of the system's
/// file.
const MAX_AUTHORITIES_BYTES: u64 = 1024 * 1024;

/// The address of the broker.
#[derive(Args, Clone, Debug)]
pub(super) struct Address {
    /// The broker's base URL
    #[arg(
        long,
        env = "TASKPASS_URL",
        default_value = "http://127.0.0.1:7070",
        value_name = "URL"
    )]
    pub(super) url: Url,
    #[command(flatten)]
    pub(super) authorities: Authorities,
}

/// The trusted certificate authorities.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct Authorities {
    /// A PEM file with the only authorities that are trusted for the server's certificate; without
    /// it, the system's, or those of `SSL_CERT_FILE`
    #[arg(long, env = "TASKPASS_CA_FILE", value_name = "FILE")]
    ca_file: Option<PathBuf>,
}

impl Authorities {
    /// The certificates in `ca_file`; `None` if no file was given.
    pub(super) fn read(&self) -> Result<Option<Vec<reqwest::Certificate>>, CliError> {
        let Some(file) = &self.ca_file else {
            return Ok(None);
        };
        let pem = read_file(file, MAX_AUTHORITIES_BYTES)?;
        let read = reqwest::Certificate::from_pem_bundle(&pem).unwrap_or_default();
        if read.is_empty() {
            return Err(CliError::Usage(format!(
                "--ca-file {}: the file holds no PEM certificate",
                file.display()
            )));
        }
        Ok(Some(read))
    }

    /// A client without a token. Its notes go to standard error. A wrong URL is reported before an
    /// unreadable file.
    pub(super) fn client_at(&self, url: &Url) -> Result<Client, CliError> {
        Client::check_base(url)?;
        let client = Client::trusting(url, self.read()?)?;
        Ok(client.with_notify(output::notify))
    }
}

impl Address {
    /// A client without a token.
    pub(super) fn client(&self) -> Result<Client, CliError> {
        self.authorities.client_at(&self.url)
    }
}

/// The broker's address, and the token.
#[derive(Args, Clone, Debug)]
pub(super) struct Connection {
    #[command(flatten)]
    pub(super) address: Address,
    #[command(flatten)]
    token: Token,
}

/// The source of the token: an attestation, or an admin's token.
#[derive(Args, Clone, Debug)]
pub(super) struct Token {
    /// The file with the token, an attestation or an admin's; `-` is standard input
    #[arg(long, env = "TASKPASS_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The variable with the token
    #[arg(long, value_name = "NAME", default_value = "TASKPASS_TOKEN")]
    token_env: String,
}

impl Connection {
    /// A client that presents the token.
    pub(super) fn client(&self) -> Result<Client, CliError> {
        let Address { url, authorities } = &self.address;
        self.token.client_at(url, authorities)
    }

    /// The source of the attestation.
    pub(super) fn source(&self) -> Result<Source, CliError> {
        match &self.token.token_file {
            Some(file) if file != Path::new("-") => Ok(Source::File(file.clone())),
            _ => self.token.read().map(Source::Variable),
        }
    }
}

impl Token {
    /// A client of the broker at `url` that presents the token.
    pub(super) fn client_at(
        &self,
        url: &Url,
        authorities: &Authorities,
    ) -> Result<Client, CliError> {
        Ok(authorities.client_at(url)?.with_bearer(&self.read()?)?)
    }

    fn read(&self) -> Result<SecretString, CliError> {
        let name = self.token_env.as_str();
        if let Some(file) = &self.token_file {
            return Ok(read_secret(file)?);
        }
        match ProcessEnvironment.get(name) {
            Ok(Some(token)) => Ok(secret_of(&Zeroizing::new(token), name)?),
            Ok(None) => Err(CliError::Usage(format!(
                "no token: give a file with --token-file, or set {name}"
            ))),
            Err(_) => Err(CliError::Usage(format!("{name} is not UTF-8"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_url_is_reported_before_an_unreadable_file() {
        let authorities = Authorities {
            ca_file: Some("/nowhere/ca.pem".into()),
        };
        for (url, code, says) in [
            ("http://broker.example", 2, "neither https"),
            ("https://broker.example", 3, "/nowhere/ca.pem"),
        ] {
            let url = Url::parse(url).unwrap();
            let error = authorities.client_at(&url).unwrap_err();
            assert_eq!(error.code(), code, "{url}: {error}");
            assert!(error.to_string().contains(says), "{url}: {error}");
        }
    }
}
