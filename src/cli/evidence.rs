//! Finds a workload's attestation by the arguments, the environment and the machine.
//!
//! The order is: the workload's own key, the named file, the named variable, GitHub's token
//! endpoint, the SPIFFE Workload API, and the API server of Kubernetes or a token that it
//! projected. A pod has a token for the API server unless that is turned off, so a configured
//! SPIFFE socket comes first. If a source was named, it is used, or its failure is the error; no
//! other source is tried.
//!
//! [`CliError::Usage`] if there is no source at all. `client::evidence` gets attestations from the
//! source.

use std::path::{Path, PathBuf};

use clap::Args;
use secrecy::SecretString;
use url::Url;

use super::CliError;
use crate::client::evidence::{Source, kubernetes, read_key, spiffe};
use crate::config::{Environment, ProcessEnvironment};

/// The path to which Kubernetes is configured to project a token for the broker.
const PROJECTED_TOKEN: &str = "/var/run/secrets/taskpass/token";

/// The default variable with a token. GitLab's `id_tokens` can have this name.
const TOKEN_VARIABLE: &str = "TASKPASS_TOKEN";

/// The arguments that name the source of attestations.
#[derive(Args, Clone, Debug)]
pub(super) struct EvidenceArgs {
    /// The file with the attestation; it is read each time one is needed, but a pipe, or standard
    /// input for `-`, only once
    #[arg(long, env = "TASKPASS_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The variable with the attestation [default: `TASKPASS_TOKEN`]
    #[arg(long, value_name = "NAME")]
    token_env: Option<String>,
    /// The private key of a registered workload, as PKCS#8 PEM: Ed25519 or P-256
    #[arg(
        long,
        env = "TASKPASS_KEY_FILE",
        value_name = "FILE",
        requires = "workload"
    )]
    key_file: Option<PathBuf>,
    /// The registered workload that owns the key
    #[arg(long, env = "TASKPASS_WORKLOAD", value_name = "NAME")]
    workload: Option<String>,
    /// The audience of tokens from GitHub, Kubernetes or SPIFFE [default: the broker's URL]
    #[arg(long, env = "TASKPASS_AUDIENCE", value_name = "URL")]
    audience: Option<String>,
    /// On Kubernetes: the directory with the pod's own token for the API server, which requests a
    /// token for each task
    #[arg(
        long,
        env = "TASKPASS_SERVICE_ACCOUNT_DIR",
        value_name = "DIR",
        default_value = kubernetes::DIRECTORY
    )]
    service_account_dir: PathBuf,
}

impl EvidenceArgs {
    /// The variable that was named as the source.
    pub(super) fn variable(&self) -> Option<String> {
        self.token_env.clone()
    }

    /// Finds the source of attestations for the broker at `broker`.
    pub(super) fn source(&self, broker: &Url) -> Result<Source, CliError> {
        let own_name = broker.as_str().trim_end_matches('/').to_owned();
        let audience = self.audience.clone().unwrap_or(own_name);
        if let (Some(file), Some(workload)) = (&self.key_file, &self.workload) {
            return Ok(Source::Key {
                signer: Box::new(read_key(file)?),
                workload: workload.clone(),
                audience,
            });
        }
        if let Some(file) = &self.token_file {
            return Ok(Source::in_file(file));
        }
        let environment = ProcessEnvironment;
        let get = |name: &str| -> Result<Option<String>, CliError> {
            environment
                .get(name)
                .map_err(|_| CliError::Usage(format!("{name} is not UTF-8")))
        };
        let name = self.token_env.as_deref().unwrap_or(TOKEN_VARIABLE);
        match get(name)? {
            Some(token) if !token.trim().is_empty() => {
                return Ok(Source::Variable(SecretString::from(token.trim())));
            }
            _ if self.token_env.is_some() => {
                return Err(CliError::Usage(format!("{name} holds no token")));
            }
            _ => {}
        }
        let (url, token) = (
            get("ACTIONS_ID_TOKEN_REQUEST_URL")?,
            get("ACTIONS_ID_TOKEN_REQUEST_TOKEN")?,
        );
        if let (Some(url), Some(token)) = (url, token) {
            return Ok(Source::github(&url, token.into(), &audience)?);
        }
        if let Some(socket) = get(spiffe::SOCKET_VARIABLE)? {
            let api = spiffe::WorkloadApi::at(&socket, audience)?;
            return Ok(Source::Spiffe(api));
        }
        let projected = Path::new(PROJECTED_TOKEN);
        let projected = projected.exists().then(|| projected.to_owned());
        let (host, port) = (
            get(kubernetes::HOST_VARIABLE)?,
            get(kubernetes::PORT_VARIABLE)?,
        );
        if let (Some(host), Some(port)) = (host, port) {
            let found = kubernetes::ServiceAccount::found(
                &self.service_account_dir,
                (&host, &port),
                audience,
                projected.clone(),
            );
            if let Some(found) = found? {
                return Ok(Source::Kubernetes(found));
            }
        }
        if let Some(projected) = projected {
            return Ok(Source::File(projected));
        }
        Err(CliError::Usage(format!(
            "no attestation found: give --token-file, --key-file with --workload, or {TOKEN_VARIABLE} \
             in the environment; a GitHub job needs `permissions: id-token: write`, a Kubernetes pod a \
             token projected to {PROJECTED_TOKEN}, a SPIFFE workload {}",
            spiffe::SOCKET_VARIABLE
        )))
    }
}
