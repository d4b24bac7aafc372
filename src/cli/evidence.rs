//! Where a workload finds its own attestation: each kind of pipeline keeps it in another place.
//!
//! In this order: a key of the workload's own, a file that was named, the variable that was named,
//! GitHub's endpoint for tokens, the Workload API of SPIFFE, the API server of Kubernetes or a token
//! that it projected. A pod has a token for the API server unless that is turned off, so a named
//! SPIFFE socket comes first. A source that was named is used, or its failure is the error: no other
//! source is tried.

mod kubernetes;
mod spiffe;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::Args;
use reqwest::header::AUTHORIZATION;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Map, Value, json};
use url::Url;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::Failure;
use super::client::{innermost, is_loopback, read_file, read_secret};
use super::retry::{self, Fault, TRY_TIMEOUT};
use crate::clock::{Clock, SystemClock};
use crate::config::{Environment, ProcessEnvironment};
use crate::crypto::digest::sha256_parts;
use crate::crypto::jwk::Algorithm;
use crate::crypto::random::SystemRandom;
use crate::crypto::signer::{LocalSigner, PrivateKey, Signer, sign_jwt};
use crate::ids::Random as _;
use crate::outgoing::{self, BodyError};

/// Where Kubernetes is told to project a token for us.
const PROJECTED_TOKEN: &str = "/var/run/secrets/taskpass/token";

/// The variable that holds a token, where no other is named: GitLab's `id_tokens` can be called so.
const TOKEN_VARIABLE: &str = "TASKPASS_TOKEN";

/// How long an assertion by a key of our own is good.
const ASSERTION_SECONDS: i64 = 60;

/// The longest key file that is read.
const MAX_KEY_BYTES: u64 = 64 * 1024;

/// The longest answer with a token in it.
const MAX_TOKEN_BYTES: usize = 64 * 1024;

/// Where the attestation is.
#[derive(Args, Clone, Debug)]
pub(super) struct EvidenceArgs {
    /// The file that holds the attestation; it is read anew whenever one is needed, but a pipe, or
    /// standard input for `-`, only once
    #[arg(long, env = "TASKPASS_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The variable that holds the attestation [default: `TASKPASS_TOKEN`]
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
    /// The registered workload whose key that is
    #[arg(long, env = "TASKPASS_WORKLOAD", value_name = "NAME")]
    workload: Option<String>,
    /// The audience to ask GitHub, Kubernetes or SPIFFE for [default: the broker's URL]
    #[arg(long, env = "TASKPASS_AUDIENCE", value_name = "URL")]
    audience: Option<String>,
    /// On Kubernetes: where the pod's own token for the API server is mounted, by which a token for
    /// each task is requested
    #[arg(
        long,
        env = "TASKPASS_SERVICE_ACCOUNT_DIR",
        value_name = "DIR",
        default_value = kubernetes::DIRECTORY
    )]
    service_account_dir: PathBuf,
}

/// Where fresh attestations come from.
pub(super) enum Source {
    /// Signed here.
    Key {
        /// Signs.
        signer: Box<LocalSigner>,
        /// Whose key that is.
        workload: String,
        /// Whom it is for.
        audience: String,
    },
    /// Read anew each time.
    File(PathBuf),
    /// A file that can be read once. Its attestation is used up by its first use.
    Once(ReadOnce),
    /// There once, and used up by its first use.
    Variable(SecretString),
    /// GitHub's endpoint, asked each time.
    GitHub {
        /// With the audience.
        url: Url,
        /// The job's right to ask.
        token: SecretString,
    },
    /// The API server of Kubernetes, asked each time.
    Kubernetes(kubernetes::ServiceAccount),
    /// SPIFFE's Workload API, asked each time.
    Spiffe(spiffe::WorkloadApi),
}

/// Standard input, a pipe, or another file that is not regular. It is read when an attestation is first
/// needed, and the text is kept.
pub(super) struct ReadOnce {
    file: PathBuf,
    token: OnceLock<SecretString>,
}

impl ReadOnce {
    async fn token(&self) -> Result<SecretString, Failure> {
        if let Some(token) = self.token.get() {
            return Ok(token.clone());
        }
        let token = read_apart(&self.file).await?;
        Ok(self.token.get_or_init(|| token).clone())
    }

    /// The same for callers that are not asynchronous.
    fn token_blocking(&self) -> Result<SecretString, Failure> {
        if let Some(token) = self.token.get() {
            return Ok(token.clone());
        }
        let token = read_secret(&self.file)?;
        Ok(self.token.get_or_init(|| token).clone())
    }
}

impl EvidenceArgs {
    /// The variable that was named to hold the attestation.
    pub(super) fn variable(&self) -> Option<String> {
        self.token_env.clone()
    }

    /// Finds out where attestations for the broker at `broker` come from.
    pub(super) fn source(&self, broker: &Url) -> Result<Source, Failure> {
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
        let get = |name: &str| -> Result<Option<String>, Failure> {
            environment
                .get(name)
                .map_err(|_| Failure::Usage(format!("{name} is not text")))
        };
        let name = self.token_env.as_deref().unwrap_or(TOKEN_VARIABLE);
        match get(name)? {
            Some(token) if !token.trim().is_empty() => {
                return Ok(Source::Variable(SecretString::from(token.trim())));
            }
            _ if self.token_env.is_some() => {
                return Err(Failure::Usage(format!("{name} holds no token")));
            }
            _ => {}
        }
        let (url, token) = (
            get("ACTIONS_ID_TOKEN_REQUEST_URL")?,
            get("ACTIONS_ID_TOKEN_REQUEST_TOKEN")?,
        );
        if let (Some(url), Some(token)) = (url, token) {
            let mut url = Url::parse(&url)
                .map_err(|_| Failure::Usage("ACTIONS_ID_TOKEN_REQUEST_URL is no URL".into()))?;
            if url.scheme() != "https" && !(url.scheme() == "http" && is_loopback(&url)) {
                return Err(Failure::Usage(
                    "ACTIONS_ID_TOKEN_REQUEST_URL is not https".into(),
                ));
            }
            url.query_pairs_mut().append_pair("audience", &audience);
            return Ok(Source::GitHub {
                url,
                token: SecretString::from(token),
            });
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
        Err(Failure::Usage(format!(
            "no attestation found: give --token-file, --key-file with --workload, or {TOKEN_VARIABLE} \
             in the environment; on GitHub the job needs `permissions: id-token: write`, on \
             Kubernetes a token projected to {PROJECTED_TOKEN}, with SPIFFE {}",
            spiffe::SOCKET_VARIABLE
        )))
    }
}

impl Source {
    /// The attestation in a file that was named, or on standard input for `-`.
    fn in_file(file: &Path) -> Self {
        let irregular = |file: &Path| std::fs::metadata(file).is_ok_and(|found| !found.is_file());
        if file == Path::new("-") || irregular(file) {
            return Self::Once(ReadOnce {
                file: file.to_owned(),
                token: OnceLock::new(),
            });
        }
        Self::File(file.to_owned())
    }

    /// What marks the attestation, where there is only the one: its first use uses it up.
    pub(super) fn spent(&self) -> Option<String> {
        match self {
            Self::Variable(token) => Some(digest(&["variable", token.expose_secret()])),
            Self::Once(once) => {
                let token = once.token.get()?;
                Some(digest(&["variable", token.expose_secret()]))
            }
            _ => None,
        }
    }

    /// What tells whom it speaks for, as far as it can be told here, so that two jobs of one
    /// machine do not take each other's. A digest: no secret can be read from it. A token that is
    /// merely fresher than the last gives the same.
    pub(super) fn fingerprint(&self) -> Result<String, Failure> {
        Ok(match self {
            Self::Key {
                signer,
                workload,
                audience,
            } => digest(&["key", workload, audience, signer.kid()]),
            Self::Once(once) if once.file == Path::new("-") => {
                return Err(Failure::Usage(
                    "standard input holds an attestation once, and it may be needed again".into(),
                ));
            }
            Self::File(file) => {
                let token = read_secret(file)?;
                let name = place(file)?;
                digest(&["file", &name, &lasting(token.expose_secret())])
            }
            Self::Once(once) => {
                let token = once.token_blocking()?;
                digest(&["variable", &lasting(token.expose_secret())])
            }
            Self::Variable(token) => digest(&["variable", &lasting(token.expose_secret())]),
            Self::GitHub { url, token } => digest(&["github", url.as_str(), token.expose_secret()]),
            Self::Kubernetes(account) => {
                let marks = account.marks()?;
                digest(&["kubernetes", &marks[0], &marks[1], &marks[2]])
            }
            Self::Spiffe(api) => digest(&["spiffe", api.socket(), api.audience()]),
        })
    }

    /// A fresh attestation: one try to get it.
    pub(super) async fn attestation(&self) -> Result<SecretString, Fault> {
        Ok(match self {
            Self::Key {
                signer,
                workload,
                audience,
            } => assertion(signer, workload, audience).await?,
            Self::File(file) => read_apart(file).await?,
            Self::Once(once) => once.token().await?,
            Self::Variable(token) => token.clone(),
            Self::GitHub { url, token } => from_github(url, token).await?,
            Self::Kubernetes(account) => account.token().await?,
            Self::Spiffe(api) => api.fetch().await?,
        })
    }
}

/// Reads a secret on another thread, so that the caller can be cancelled: a pipe may have no writer,
/// and a file server may not answer.
async fn read_apart(file: &Path) -> Result<SecretString, Failure> {
    let file = file.to_owned();
    tokio::task::spawn_blocking(move || read_secret(&file))
        .await
        .map_err(Failure::unestablished)?
}

/// A name for the file that is the same however it is spelt. A link in its last part is not followed:
/// Kubernetes points it elsewhere with each new token.
fn place(file: &Path) -> Result<String, Failure> {
    let unread = |error| Failure::Unestablished(format!("cannot read {}: {error}", file.display()));
    let parent = file
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let parent = std::fs::canonicalize(parent.unwrap_or(Path::new("."))).map_err(unread)?;
    let name = file.file_name().map(|name| parent.join(name));
    Ok(name.unwrap_or(parent).to_string_lossy().into_owned())
}

/// What stays the same when a token is made anew: its claims without its times and its id. Nothing
/// is believed of it. Where it is no JWT, all of it.
fn lasting(token: &str) -> String {
    let claims = token.split('.').nth(1);
    let claims = claims.and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
    let claims = claims.and_then(|bytes| serde_json::from_slice::<Map<String, Value>>(&bytes).ok());
    let Some(mut claims) = claims else {
        return token.to_owned();
    };
    claims.retain(|name, _| !["iat", "exp", "nbf", "jti"].contains(&name.as_str()));
    Value::Object(claims).to_string()
}

fn digest(parts: &[&str]) -> String {
    let parts: Vec<&[u8]> = parts.iter().map(|part| part.as_bytes()).collect();
    URL_SAFE_NO_PAD.encode(sha256_parts("taskpass:evidence", &parts))
}

pub(super) fn read_key(file: &Path) -> Result<LocalSigner, Failure> {
    let pem = Zeroizing::new(read_file(file, MAX_KEY_BYTES)?);
    let place = file.display();
    let refused = || {
        Failure::Usage(format!(
            "{place} is no PKCS#8 PEM of an Ed25519 or P-256 key: `openssl genpkey -algorithm ed25519`"
        ))
    };
    let der = PrivatePkcs8KeyDer::from_pem_slice(&pem).map_err(|_| refused())?;
    [Algorithm::EdDsa, Algorithm::Es256]
        .into_iter()
        .find_map(|algorithm| {
            let bytes = Zeroizing::new(der.secret_pkcs8_der().to_vec());
            let key = PrivateKey::from_pkcs8(algorithm, bytes).ok()?;
            LocalSigner::new(&key).ok()
        })
        .ok_or_else(refused)
}

/// A client assertion (RFC 7523bis). The audience is what the caller named as the broker, never
/// what a server says of itself.
pub(super) async fn assertion(
    signer: &LocalSigner,
    workload: &str,
    audience: &str,
) -> Result<SecretString, Failure> {
    let now = SystemClock.now().seconds();
    let mut id = [0; 16];
    SystemRandom::default()
        .fill(&mut id)
        .map_err(Failure::unestablished)?;
    let claims = json!({
        "iss": workload, "sub": workload, "aud": audience, "iat": now,
        "exp": now + ASSERTION_SECONDS, "jti": Uuid::from_bytes(id).to_string(),
    });

    sign_jwt("client-authentication+jwt", &claims, signer as &dyn Signer)
        .await
        .map_err(Failure::unestablished)
}

async fn from_github(url: &Url, token: &SecretString) -> Result<SecretString, Fault> {
    let failed = |why: String| Failure::Unestablished(format!("GitHub gave no token: {why}"));
    // The address is the job's own: only the cause is told.
    let broken = |error: reqwest::Error| {
        let why = if error.is_timeout() {
            "no answer in time".into()
        } else {
            innermost(&error)
        };
        Fault::of_transport(&error, failed(why))
    };
    // A proxy would read the job's token on a connection to this machine without TLS.
    let client = if is_loopback(url) {
        outgoing::direct_client()
    } else {
        outgoing::client()
    };
    let client = client
        .timeout(TRY_TIMEOUT)
        .build()
        .map_err(|error| failed(innermost(&error)))?;
    let answer = client
        .get(url.clone())
        .header(AUTHORIZATION, format!("bearer {}", token.expose_secret()))
        .send()
        .await
        .map_err(broken)?;
    let status = answer.status();
    let pause = retry::retry_after(answer.headers());
    let body = outgoing::body(answer, MAX_TOKEN_BYTES).await;
    let body = body.map_err(|error| match error {
        BodyError::Broken(error) => broken(error),
        BodyError::Large(_) => failed(error.to_string()).into(),
    })?;
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let text = |name: &str| body.get(name).and_then(Value::as_str);
    if !status.is_success() {
        let message = text("message").or_else(|| text("error_description"));
        let why = match message {
            Some(message) => format!("{status}: {message}"),
            None => status.to_string(),
        };
        return Err(if retry::is_transient(status) {
            Fault::transient(failed(why), pause)
        } else {
            failed(why).into()
        });
    }
    text("value")
        .map(SecretString::from)
        .ok_or_else(|| failed("the answer holds none".into()).into())
}
