//! The sources of a workload's attestation: each kind of pipeline keeps it elsewhere.
//!
//! A source that fails is an [`AttemptError`], transient or not, and [`super::retry`] repeats the
//! transient ones. A source that cannot be used at all is [`ClientError::Invalid`]. `cli::evidence`
//! chooses the source.

pub(crate) mod kubernetes;
pub(crate) mod spiffe;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::header::AUTHORIZATION;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Map, Value, json};
use url::Url;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::retry::{self, AttemptError, TRY_TIMEOUT};
use super::{ClientError, Notify, read_file, read_secret};
use crate::clock::{Clock as _, SystemClock};
use crate::crypto::digest::sha256_parts;
use crate::crypto::jwk::Algorithm;
use crate::crypto::random::SystemRandom;
use crate::crypto::signer::{LocalSigner, PrivateKey, Signer, sign_jwt};
use crate::ids::Random as _;
use crate::outgoing::{self, BodyError, innermost, is_loopback};

/// How long an assertion by the workload's own key is valid.
const ASSERTION_SECONDS: i64 = 60;

/// The longest key file that is read, in bytes.
const MAX_KEY_BYTES: u64 = 64 * 1024;

/// The longest answer with a token, in bytes.
const MAX_TOKEN_BYTES: usize = 64 * 1024;

/// The source of fresh attestations.
pub(crate) enum Source {
    /// Signed by the workload's registered key.
    Key {
        signer: Box<LocalSigner>,
        workload: String,
        audience: String,
    },
    /// A file that is read each time.
    File(PathBuf),
    /// A file that can be read once. The first use consumes its attestation.
    Once(ReadOnce),
    /// The value of a variable. The first use consumes it.
    Variable(SecretString),
    /// GitHub's token endpoint, called each time.
    GitHub {
        /// The endpoint, with the audience in its query.
        url: Url,
        /// The job's token that authenticates the call.
        token: SecretString,
    },
    /// The API server of Kubernetes, called each time.
    Kubernetes(kubernetes::ServiceAccount),
    /// The SPIFFE Workload API, called each time.
    Spiffe(spiffe::WorkloadApi),
}

/// Standard input, a pipe, or another file that is not regular. It is read when an attestation is
/// first needed, and the text is kept.
pub(crate) struct ReadOnce {
    file: PathBuf,
    token: OnceLock<SecretString>,
}

impl ReadOnce {
    async fn token(&self) -> Result<SecretString, ClientError> {
        if let Some(token) = self.token.get() {
            return Ok(token.clone());
        }
        let token = read_apart(&self.file).await?;
        Ok(self.token.get_or_init(|| token).clone())
    }

    /// Like `token`, for callers that are not asynchronous.
    fn token_blocking(&self) -> Result<SecretString, ClientError> {
        if let Some(token) = self.token.get() {
            return Ok(token.clone());
        }
        let token = read_secret(&self.file)?;
        Ok(self.token.get_or_init(|| token).clone())
    }
}

impl Source {
    /// The attestation in a named file, or on standard input for `-`.
    pub(crate) fn in_file(file: &Path) -> Self {
        let irregular = |file: &Path| std::fs::metadata(file).is_ok_and(|found| !found.is_file());
        if file == Path::new("-") || irregular(file) {
            return Self::Once(ReadOnce {
                file: file.to_owned(),
                token: OnceLock::new(),
            });
        }
        Self::File(file.to_owned())
    }

    /// GitHub's token endpoint at `url`, for a token with this audience.
    pub(crate) fn github(
        url: &str,
        token: SecretString,
        audience: &str,
    ) -> Result<Self, ClientError> {
        let mut url = Url::parse(url).map_err(|_| {
            ClientError::Invalid("ACTIONS_ID_TOKEN_REQUEST_URL is not a URL".into())
        })?;
        if url.scheme() != "https" && !(url.scheme() == "http" && is_loopback(&url)) {
            return Err(ClientError::Invalid(
                "ACTIONS_ID_TOKEN_REQUEST_URL is not https".into(),
            ));
        }
        url.query_pairs_mut().append_pair("audience", audience);
        Ok(Self::GitHub { url, token })
    }

    /// A mark of the attestation if the source has only one, which the first use consumes; `None`
    /// otherwise.
    pub(crate) fn spent(&self) -> Option<String> {
        match self {
            Self::Variable(token) => Some(digest(&["variable", token.expose_secret()])),
            Self::Once(once) => {
                let token = once.token.get()?;
                Some(digest(&["variable", token.expose_secret()]))
            }
            _ => None,
        }
    }

    /// A digest that identifies the workload as far as this machine can tell, so that two jobs do
    /// not share a cached session. It reveals no secret. A renewed token gives the same digest.
    pub(crate) fn fingerprint(&self) -> Result<String, ClientError> {
        Ok(match self {
            Self::Key {
                signer,
                workload,
                audience,
            } => digest(&["key", workload, audience, signer.kid()]),
            Self::Once(once) if once.file == Path::new("-") => {
                return Err(ClientError::Invalid(
                    "standard input yields an attestation once, and it may be needed again".into(),
                ));
            }
            Self::File(file) => {
                let token = read_secret(file)?;
                let name = stable_name(file)?;
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

    /// Gets a fresh attestation, in one attempt.
    pub(crate) async fn attestation(&self, notify: Notify) -> Result<SecretString, AttemptError> {
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
            Self::Kubernetes(account) => account.token(notify).await?,
            Self::Spiffe(api) => api.fetch().await?,
        })
    }
}

/// Reads a secret on another thread, so that the caller can be cancelled: a pipe may have no
/// writer, and a file server may not answer.
async fn read_apart(file: &Path) -> Result<SecretString, ClientError> {
    let file = file.to_owned();
    tokio::task::spawn_blocking(move || read_secret(&file))
        .await
        .map_err(ClientError::unavailable)?
}

/// A name for the file that does not depend on the spelling of its path. A link in the last part is
/// not followed, because Kubernetes redirects it with each new token.
fn stable_name(file: &Path) -> Result<String, ClientError> {
    let unread =
        |error| ClientError::Unavailable(format!("cannot read {}: {error}", file.display()));
    let parent = file
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let parent = std::fs::canonicalize(parent.unwrap_or(Path::new("."))).map_err(unread)?;
    let name = file.file_name().map(|name| parent.join(name));
    Ok(name.unwrap_or(parent).to_string_lossy().into_owned())
}

/// The part of a token that stays the same when it is renewed: its claims without its times and its
/// id, or all of it if it is not a JWT. The claims are not verified.
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

/// Reads the private key of a registered workload.
pub(crate) fn read_key(file: &Path) -> Result<LocalSigner, ClientError> {
    let pem = Zeroizing::new(read_file(file, MAX_KEY_BYTES)?);
    let name = file.display();
    let refused = || {
        ClientError::Invalid(format!(
            "{name} is not a PKCS#8 PEM file with an Ed25519 or P-256 key; create one with \
             `openssl genpkey -algorithm ed25519`"
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

/// Signs a client assertion (RFC 7523bis). The audience is the broker that the user named, never a
/// name that a server gives itself.
pub(crate) async fn assertion(
    signer: &LocalSigner,
    workload: &str,
    audience: &str,
) -> Result<SecretString, ClientError> {
    let now = SystemClock.now().seconds();
    let mut id = [0; 16];
    SystemRandom::default()
        .fill(&mut id)
        .map_err(ClientError::unavailable)?;
    let claims = json!({
        "iss": workload, "sub": workload, "aud": audience, "iat": now,
        "exp": now + ASSERTION_SECONDS, "jti": Uuid::from_bytes(id).to_string(),
    });

    sign_jwt("client-authentication+jwt", &claims, signer as &dyn Signer)
        .await
        .map_err(ClientError::unavailable)
}

async fn from_github(url: &Url, token: &SecretString) -> Result<SecretString, AttemptError> {
    let failed = |why: String| ClientError::Unavailable(format!("GitHub issued no token: {why}"));
    // The URL belongs to the job, so the message tells only the cause.
    let broken = |error: reqwest::Error| {
        let why = if error.is_timeout() {
            "no answer in time".into()
        } else {
            innermost(&error)
        };
        AttemptError::of_transport(&error, failed(why))
    };
    // On a connection to this machine without TLS, a proxy would read the job's token.
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
            AttemptError::transient(failed(why), pause)
        } else {
            failed(why).into()
        });
    }
    text("value")
        .map(SecretString::from)
        .ok_or_else(|| failed("the answer holds no token".into()).into())
}
