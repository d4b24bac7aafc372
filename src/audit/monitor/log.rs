//! Reads a log over HTTP as it is served (C2SP tlog-tiles): its checkpoint and its tiles.
//!
//! The server is not trusted: time and bytes are limited, and redirects are not followed. Each
//! request has its own connection, so that several replicas behind one address take turns.
//!
//! A URL or token that cannot be used is [`AuditError::Input`]. Later failures are a [`LogError`]:
//! `Unreachable` without an answer, `Unreadable` for an answer that a log does not give. Neither
//! proves a fault of the log. [`super::check`] reads through this file.

use std::collections::HashMap;
use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::{AUTHORIZATION, HeaderValue};
use secrecy::{ExposeSecret, SecretString};
use url::Url;
use zeroize::Zeroizing;

use crate::audit::AuditError;
use crate::merkle::{Hash, MAX_NOTE_BYTES, TILE_WIDTH, TileId, hashes_from_bytes};
use crate::outgoing::{self, BodyError, innermost, is_loopback};

/// The longest time for connecting, for a pause, and for a whole answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const READ_TIMEOUT: Duration = Duration::from_secs(5);
const TOTAL_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a missing tile is requested: one of several replicas may be behind.
const TRIES: usize = 3;

/// Why the log's state is unknown. It does not prove a fault of the log.
#[derive(Debug)]
pub(super) enum LogError {
    /// There was no answer, or a refusal.
    Unreachable(String),
    /// The answer is neither a checkpoint nor a tile of a tree that the log signed.
    Unreadable(String),
}

/// A log, by its URL.
#[derive(Debug)]
pub(super) struct Log {
    http: reqwest::Client,
    base: String,
    authorization: Option<HeaderValue>,
}

impl Log {
    /// Checks that a log can be monitored at this URL.
    pub(super) fn check_base(base: &Url) -> Result<(), AuditError> {
        if base.scheme() != "https" && !(base.scheme() == "http" && is_loopback(base)) {
            return Err(AuditError::Input(format!(
                "{base} is neither https nor on this machine: an attacker on the network could cause a false alarm"
            )));
        }
        let plain = base.username().is_empty()
            && base.password().is_none()
            && base.query().is_none()
            && base.fragment().is_none();
        if !plain {
            return Err(AuditError::Input(
                "a log's URL must have no user, no query and no fragment; give a token with --token-file".into(),
            ));
        }
        Ok(())
    }

    /// A log whose server must have a certificate of `authorities`; without them, of the system's.
    pub(super) fn new(
        base: &Url,
        token: Option<&SecretString>,
        authorities: Option<Vec<reqwest::Certificate>>,
    ) -> Result<Self, AuditError> {
        Self::check_base(base)?;
        let authorization = match token {
            None => None,
            Some(token) => {
                let value = Zeroizing::new(format!("Bearer {}", token.expose_secret()));
                let value = HeaderValue::from_str(&value);
                let mut value = value.map_err(|_| {
                    AuditError::Input(
                        "the token has characters that are not valid in a header".into(),
                    )
                })?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        let mut builder = outgoing::direct_client();
        if let Some(authorities) = authorities {
            builder = builder.tls_certs_only(authorities);
        }
        let http = builder
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .timeout(TOTAL_TIMEOUT)
            .pool_max_idle_per_host(0)
            .build()
            .map_err(AuditError::unavailable)?;
        Ok(Self {
            http,
            base: base.as_str().trim_end_matches('/').to_owned(),
            authorization,
        })
    }

    pub(super) fn base(&self) -> &str {
        &self.base
    }

    /// Reads the newest checkpoint, unverified.
    pub(super) async fn checkpoint(&self) -> Result<Vec<u8>, LogError> {
        match self.get("checkpoint", MAX_NOTE_BYTES).await? {
            (StatusCode::OK, bytes) => Ok(bytes),
            (StatusCode::NOT_FOUND, _) => Err(LogError::Unreachable(format!(
                "{}/checkpoint does not exist or is not readable with this token; a broker's log is under /ledger",
                self.base
            ))),
            (status, _) => Err(self.answered("checkpoint", status)),
        }
    }

    /// Reads the tiles. Each has the requested number of hashes, or all 256.
    pub(super) async fn tiles(
        &self,
        ids: &[TileId],
    ) -> Result<HashMap<TileId, Vec<Hash>>, LogError> {
        let mut tiles = HashMap::new();
        for id in ids {
            tiles.insert(*id, self.tile(*id).await?);
        }
        Ok(tiles)
    }

    async fn tile(&self, id: TileId) -> Result<Vec<Hash>, LogError> {
        let full = TileId { width: 256, ..id };
        // A log may delete an incomplete tile once the full one exists.
        let forms: &[TileId] = if id == full { &[full] } else { &[id, full] };
        for form in forms.iter().cycle().take(forms.len() * TRIES) {
            let path = form.to_string();
            let bytes = match self.get(&path, TILE_WIDTH * Hash::BYTES).await? {
                (StatusCode::OK, bytes) => bytes,
                (StatusCode::NOT_FOUND, _) => continue,
                (status, _) => return Err(self.answered(&path, status)),
            };
            let hashes = hashes_from_bytes(&bytes).unwrap_or_default();
            if hashes.len() != usize::from(form.width) {
                return Err(LogError::Unreadable(format!(
                    "{}/{path} has {} bytes, not {} hashes",
                    self.base,
                    bytes.len(),
                    form.width
                )));
            }
            return Ok(hashes);
        }
        Err(LogError::Unreadable(format!(
            "{}/{id} does not exist, although the signed checkpoint's tree includes it",
            self.base
        )))
    }

    fn answered(&self, path: &str, status: StatusCode) -> LogError {
        let why = if status.is_redirection() {
            ": redirects are not followed"
        } else {
            ""
        };
        LogError::Unreachable(format!("{}/{path} answered {status}{why}", self.base))
    }

    async fn get(&self, path: &str, at_most: usize) -> Result<(StatusCode, Vec<u8>), LogError> {
        let failed = |error: reqwest::Error| LogError::Unreachable(self.reason(path, &error));
        let mut request = self.http.get(format!("{}/{path}", self.base));
        if let Some(value) = &self.authorization {
            request = request.header(AUTHORIZATION, value.clone());
        }
        let response = request.send().await.map_err(failed)?;
        let status = response.status();
        if status != StatusCode::OK {
            return Ok((status, Vec::new()));
        }
        match outgoing::body(response, at_most).await {
            Ok(bytes) => Ok((status, bytes)),
            Err(BodyError::Broken(error)) => Err(failed(error)),
            Err(BodyError::Large(_)) => Err(LogError::Unreadable(format!(
                "{}/{path} has more than {at_most} bytes",
                self.base
            ))),
        }
    }

    /// Describes why there was no answer, with the innermost cause.
    fn reason(&self, path: &str, error: &reqwest::Error) -> String {
        if error.is_timeout() {
            return format!("{}/{path} was not answered in time", self.base);
        }
        let why = innermost(error);
        format!("cannot reach {}/{path}: {why}", self.base)
    }
}
