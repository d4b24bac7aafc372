//! The keys of an issuer: discovery (OpenID Connect Discovery 1.0) and its JWK set.
//!
//! [`KeySource`] holds the keys of one issuer. Readers never wait for the network while the
//! required key is known: they read one snapshot. The set is fetched again when it becomes old and
//! when a token names an unknown key. At most one fetch runs at a time, it completes even if the
//! caller has gone, and the next may begin only [`COOL_DOWN_SECONDS`] after it *began*. So tokens
//! with invented key ids cost the issuer one request in that time, and the broker one lookup each.
//!
//! During this cool-down a key that the issuer has just published is unknown. A lookup of an
//! unknown key waits for the end of the cool-down if that is at most [`MAX_COOL_DOWN_WAIT`] away.
//! Otherwise the result is [`KeyError::Unknown`]. It is not [`KeyError::Unreachable`], because a
//! new key cannot be distinguished from an invented one: callers could then cause 503 responses and
//! the alarm on unreachable issuers while the issuer is healthy, and could read from the status
//! which issuers are configured.
//!
//! Responses of an issuer are trusted for their purpose only. Their size and time are limited,
//! redirects are refused, and a key that the broker cannot use is skipped without refusing the
//! others. The first [`MAX_KEYS`] usable keys of a set are parsed on arrival; further ones are
//! stored unparsed and parsed when a token names their `kid`.
//!
//! A new set replaces the old one even if it has no usable key: then the issuer has none. A set
//! that is older than [`MAX_UNCONFIRMED_SECONDS`] serves only if the newest fetch failed and began
//! less than [`COOL_DOWN_SECONDS`] ago; otherwise the lookup waits for one fetch. So a key that its
//! issuer withdrew is accepted for at most [`MAX_UNCONFIRMED_SECONDS`] while the issuer answers, or
//! until [`COOL_DOWN_SECONDS`] after a failed fetch began, if that is later. While the issuer does
//! not answer, the key is accepted for `max_stale_seconds`. After that every lookup is
//! [`KeyError::Unreachable`], and the caller gets a 503.
//!
//! Discovery uses public addresses only, except for the server of the endpoint that the attestor
//! names for it. The issuer's metadata names the location of the key set, and this rule prevents it
//! from leading into the host's network.
//!
//! [`super::oidc`] and [`super::spiffe`] look keys up and verify tokens with them
//! ([`verify_with`]). [`super::api`] sends the requests to endpoints.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio_util::task::TaskTracker;
use url::Url;

use super::api::{Api, ApiError, client_builder};
use crate::clock::Timestamp;
use crate::crypto::jwk::{Algorithm, PublicJwk, VerificationKey};
use crate::crypto::jwt::{JwtError, UnverifiedJwt, VerifiedClaims, verify};
use crate::endpoints::{Endpoint, PublicClient, RefusedAddress};
use crate::outgoing::{self, BodyError};

/// The least time from the beginning of one fetch to the beginning of the next, so that tokens with
/// unknown keys cannot make the broker flood an issuer.
pub(super) const COOL_DOWN_SECONDS: u64 = 10;

const COOL_DOWN: Duration = Duration::from_secs(COOL_DOWN_SECONDS);

/// The longest time that a lookup of an unknown key waits for the end of the cool-down. A lookup
/// that would wait longer gives [`KeyError::Unknown`].
const MAX_COOL_DOWN_WAIT: Duration = Duration::from_secs(2);

/// The age at which a set is fetched again in the background.
const REFRESH_SECONDS: u64 = 300;

/// The age, in seconds, above which a set serves only if the newest fetch failed within the
/// cool-down.
const MAX_UNCONFIRMED_SECONDS: u64 = 600;

/// The longest time of one fetch: discovery and the set together.
const TOTAL_TIMEOUT: Duration = Duration::from_secs(5);

/// The largest document of an issuer. Real ones have a few KiB.
const MAX_DOCUMENT_BYTES: usize = 1024 * 1024;

/// Number of usable keys of a set that are parsed on arrival. Real issuers have fewer than ten.
const MAX_KEYS: usize = 100;

/// Maximum number of entries of one `kid` that are considered. RFC 7517 §4.5 lets keys of different
/// types share one.
const MAX_SAME_KID: usize = 8;

/// Maximum number of keys of one `kid` that are tried. An issuer with distinct ids has one.
const MAX_OF_ONE_NAME: usize = 4;

/// The reason why there is no key for verification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum KeyError {
    /// The issuer's set does not have the key.
    #[error("the issuer has no such key")]
    Unknown,
    /// There is no recent set, or the newest could not be fetched and may have the key.
    #[error("the issuer's keys could not be fetched")]
    Unreachable,
}

/// The reason why a fetch failed.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("the request failed")]
    Request(#[from] reqwest::Error),
    #[error("the answer could not be read")]
    Body(#[from] BodyError),
    #[error("the answer took too long")]
    Slow,
    #[error("the answer has status {0}")]
    Status(u16),
    #[error("the answer is not the JSON that was expected")]
    Json,
    #[error("the discovery document is that of another issuer")]
    Issuer,
    #[error("the address is refused")]
    Address(#[from] RefusedAddress),
    #[error("the issuer is not a URL")]
    NoUrl,
    #[error("the server of the keys did not give a valid answer")]
    Api(#[from] ApiError),
}

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: Url,
}

#[derive(Deserialize)]
struct Jwks {
    keys: Vec<Value>,
}

#[derive(Debug)]
struct KeySet {
    /// The first usable keys.
    keys: Vec<VerificationKey>,
    /// The further entries, unparsed, by their `kid`.
    further: HashMap<String, Vec<Value>>,
    usage: KeyUse,
    fetched_at: Timestamp,
}

impl KeySet {
    fn new(set: Jwks, usage: KeyUse, fetched_at: Timestamp) -> Self {
        let mut entries = set.keys.into_iter();
        let mut keys = Vec::new();
        while keys.len() < MAX_KEYS
            && let Some(entry) = entries.next()
        {
            keys.extend(usable_key(entry, usage));
        }
        let mut further: HashMap<String, Vec<Value>> = HashMap::new();
        for entry in entries {
            let kid = entry.get("kid").and_then(Value::as_str).map(str::to_owned);
            // An entry without `kid` cannot be named by a token.
            if let Some(kid) = kid {
                let same = further.entry(kid).or_default();
                if same.len() < MAX_SAME_KID {
                    same.push(entry);
                }
            }
        }
        Self {
            keys,
            further,
            usage,
            fetched_at,
        }
    }

    fn find(&self, kid: Option<&str>, algorithm: Algorithm) -> Vec<VerificationKey> {
        let found = select(&self.keys, kid, algorithm);
        let further = kid.and_then(|kid| self.further.get(kid));
        let Some(further) = further.filter(|_| found.is_empty()) else {
            return found;
        };
        let entries = further.iter().cloned();
        let keys: Vec<_> = entries
            .filter_map(|entry| usable_key(entry, self.usage))
            .collect();
        select(&keys, kid, algorithm)
    }
}

/// The keys of a set that a token names. Several can have the same `kid` (RFC 7517 §4.5).
pub(super) fn select(
    keys: &[VerificationKey],
    kid: Option<&str>,
    algorithm: Algorithm,
) -> Vec<VerificationKey> {
    // Without a `kid` the set must have one key only.
    if kid.is_none() && keys.len() != 1 {
        return Vec::new();
    }
    let named = |key: &&VerificationKey| kid.is_none() || key.kid() == kid;
    let fits = |key: &&VerificationKey| key.algorithms().contains(&algorithm);
    let found = keys.iter().filter(named).filter(fits);
    found.take(MAX_OF_ONE_NAME).cloned().collect()
}

/// Verifies a token with the one of these keys that signed it.
pub(super) fn verify_with(
    token: &UnverifiedJwt,
    keys: &[VerificationKey],
    allowed: &[Algorithm],
) -> Result<VerifiedClaims, JwtError> {
    let mut refused = JwtError::BadSignature;
    for key in keys {
        match verify(token, key, allowed) {
            Ok(claims) => return Ok(claims),
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

/// The usable keys of a given set; `None` if it has none.
pub(super) fn parse(bytes: &[u8], usage: KeyUse) -> Option<Vec<VerificationKey>> {
    let set: Jwks = serde_json::from_slice(bytes).ok()?;
    let keys = set.keys.into_iter();
    let usable = keys.filter_map(|key| usable_key(key, usage));
    Some(usable.collect()).filter(|keys: &Vec<_>| !keys.is_empty())
}

/// The client for issuers at public addresses.
fn public_client() -> Result<PublicClient, reqwest::Error> {
    PublicClient::new(client_builder())
}

/// The use for which the keys of a set must be intended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyUse {
    /// Signatures of any kind of token.
    Signatures,
    /// JWT-SVIDs: `use` must say so, and `kid` must be present.
    JwtSvid,
}

/// The location of a set.
#[derive(Debug)]
enum KeySetSource {
    /// The location in the issuer's discovery document. `own` is the endpoint that serves this
    /// document, if there is one.
    Discovery {
        issuer: String,
        own: Option<Api>,
        public: PublicClient,
    },
    /// The URL of an endpoint.
    Endpoint { api: Api, usage: KeyUse },
}

/// The keys of one issuer.
#[derive(Debug)]
pub(super) struct KeySource {
    attestor: String,
    source: KeySetSource,
    max_stale_seconds: u64,
    tracker: TaskTracker,
    current: ArcSwapOption<KeySet>,
    /// The start of the last completed fetch if it failed: the issuer may then have keys that are
    /// not in the set. `None` before the first fetch and after a successful one.
    failed: ArcSwapOption<Timestamp>,
    /// Locked by the running fetch. The value is the start of the last one.
    flight: Arc<Mutex<Option<Timestamp>>>,
}

impl KeySource {
    /// Keys at the location in the issuer's discovery document. `endpoint` serves this document;
    /// without one it is at the issuer's own public address.
    pub(super) fn discovered(
        attestor: &str,
        issuer: &str,
        endpoint: Option<&Endpoint>,
        max_stale_seconds: u64,
        tracker: TaskTracker,
    ) -> Result<Arc<Self>, reqwest::Error> {
        let source = KeySetSource::Discovery {
            issuer: issuer.to_owned(),
            own: endpoint.map(Api::new),
            public: public_client()?,
        };
        Ok(Self::from_source(
            attestor,
            source,
            max_stale_seconds,
            tracker,
        ))
    }

    /// Keys that an endpoint serves.
    pub(super) fn at(
        attestor: &str,
        endpoint: &Endpoint,
        usage: KeyUse,
        max_stale_seconds: u64,
        tracker: TaskTracker,
    ) -> Arc<Self> {
        let api = Api::new(endpoint);
        let source = KeySetSource::Endpoint { api, usage };
        Self::from_source(attestor, source, max_stale_seconds, tracker)
    }

    fn from_source(
        attestor: &str,
        source: KeySetSource,
        max_stale_seconds: u64,
        tracker: TaskTracker,
    ) -> Arc<Self> {
        Arc::new(Self {
            attestor: attestor.to_owned(),
            source,
            max_stale_seconds,
            tracker,
            current: ArcSwapOption::empty(),
            failed: ArcSwapOption::empty(),
            flight: Arc::new(Mutex::new(None)),
        })
    }

    /// The keys that a token names, from the snapshot or, if necessary, from the issuer. There is
    /// at least one.
    pub(super) async fn keys(
        self: &Arc<Self>,
        kid: Option<&str>,
        algorithm: Algorithm,
        now: Timestamp,
    ) -> Result<Vec<VerificationKey>, KeyError> {
        if let Some(set) = self.usable(now)
            && !self.must_be_confirmed(&set, now)
        {
            let found = set.find(kid, algorithm);
            if !found.is_empty() {
                self.refresh_if_old(&set, now);
                return Ok(found);
            }
            if kid.is_none() {
                self.refresh_if_old(&set, now);
                return Err(KeyError::Unknown);
            }
        }
        let began = self.refresh(now).await;
        match self.lookup(kid, algorithm, now) {
            // The fetch began before this lookup: the issuer may have published the key since then.
            Err(KeyError::Unknown) if began < now => {}
            answer => return answer,
        }
        let next = began.plus_seconds(COOL_DOWN_SECONDS);
        let wait = next.distance(now);
        if wait > MAX_COOL_DOWN_WAIT {
            return Err(KeyError::Unknown);
        }
        // Wait without the lock, so that other lookups can use it.
        tokio::time::sleep(wait).await;
        self.refresh(next).await;
        self.lookup(kid, algorithm, next)
    }

    /// The keys that a token names, from the present snapshot.
    fn lookup(
        &self,
        kid: Option<&str>,
        algorithm: Algorithm,
        now: Timestamp,
    ) -> Result<Vec<VerificationKey>, KeyError> {
        let set = self.usable(now).ok_or(KeyError::Unreachable)?;
        let found = set.find(kid, algorithm);
        if !found.is_empty() {
            return Ok(found);
        }
        Err(if self.failed.load().is_some() {
            KeyError::Unreachable
        } else {
            KeyError::Unknown
        })
    }

    fn usable(&self, now: Timestamp) -> Option<Arc<KeySet>> {
        self.current
            .load_full()
            .filter(|set| set.fetched_at.seconds_until(now) <= self.max_stale_seconds)
    }

    /// Whether a set is so old that the lookup must wait for the next fetch. After a failed fetch,
    /// lookups do not wait until another fetch may begin; by then the issuer may answer.
    fn must_be_confirmed(&self, set: &KeySet, now: Timestamp) -> bool {
        if set.fetched_at.seconds_until(now) <= MAX_UNCONFIRMED_SECONDS {
            return false;
        }
        let failed = self.failed.load_full();
        failed.is_none_or(|began| began.distance(now) >= COOL_DOWN)
    }

    /// Begins a fetch in the background if the set is old and no fetch is running.
    fn refresh_if_old(self: &Arc<Self>, set: &KeySet, now: Timestamp) {
        let age = set.fetched_at.seconds_until(now);
        if age < REFRESH_SECONDS.min(self.max_stale_seconds / 2) {
            return;
        }
        if let Ok(guard) = Arc::clone(&self.flight).try_lock_owned() {
            drop(self.begin(guard, now));
        }
    }

    /// Waits for the running fetch and then, unless the cool-down prevents it, for a new one.
    /// Returns the start of the newest fetch.
    async fn refresh(self: &Arc<Self>, now: Timestamp) -> Timestamp {
        let guard = Arc::clone(&self.flight).lock_owned().await;
        let last = *guard;
        let Some(fetch) = self.begin(guard, now) else {
            return last.unwrap_or(now);
        };
        if fetch.await.is_err() {
            tracing::warn!(
                attestor = self.attestor,
                "the fetch of an issuer's keys was interrupted"
            );
        }
        now
    }

    /// Begins a fetch in a task of its own, which completes even if the caller goes away.
    fn begin(
        self: &Arc<Self>,
        mut last: OwnedMutexGuard<Option<Timestamp>>,
        now: Timestamp,
    ) -> Option<tokio::task::JoinHandle<()>> {
        if last.is_some_and(|began| began.distance(now) < COOL_DOWN) {
            return None;
        }
        *last = Some(now);
        let source = Arc::clone(self);
        Some(self.tracker.spawn(async move {
            let fetched = tokio::time::timeout(TOTAL_TIMEOUT, source.fetch()).await;
            let fetched = fetched.unwrap_or(Err(FetchError::Slow));
            let failed = fetched.is_err().then(|| Arc::new(now));
            source.failed.store(failed);
            match fetched {
                Ok((set, usage)) => {
                    let set = KeySet::new(set, usage, now);
                    if set.keys.is_empty() {
                        tracing::warn!(
                            attestor = source.attestor,
                            "the issuer's key set has no usable key: all its tokens are refused"
                        );
                    }
                    source.current.store(Some(Arc::new(set)));
                }
                Err(error) => tracing::warn!(
                    attestor = source.attestor,
                    error = &error as &dyn std::error::Error,
                    "an issuer's keys could not be fetched"
                ),
            }
            drop(last);
        }))
    }

    async fn fetch(&self) -> Result<(Jwks, KeyUse), FetchError> {
        Ok(match &self.source {
            KeySetSource::Endpoint { api, usage } => (api.get().await?, *usage),
            KeySetSource::Discovery {
                issuer,
                own,
                public,
            } => {
                let found = discovered(issuer, own.as_ref(), public).await?;
                (found, KeyUse::Signatures)
            }
        })
    }
}

async fn discovered(
    issuer: &str,
    own: Option<&Api>,
    public: &PublicClient,
) -> Result<Jwks, FetchError> {
    let base = own.map_or(issuer, |own| own.endpoint().url().as_str());
    let base = base.trim_end_matches('/');
    let url = format!("{base}/.well-known/openid-configuration");
    let url = Url::parse(&url).map_err(|_| FetchError::NoUrl)?;
    let discovery: Discovery = get(&url, own, public).await?;
    if discovery.issuer != issuer {
        return Err(FetchError::Issuer);
    }
    get(&discovery.jwks_uri, own, public).await
}

/// Fetches the document at `url`: from the endpoint if it is on the endpoint's server, else from a
/// public address.
async fn get<T: DeserializeOwned>(
    url: &Url,
    own: Option<&Api>,
    public: &PublicClient,
) -> Result<T, FetchError> {
    if let Some(own) = own.filter(|own| own.endpoint().serves(url)) {
        return Ok(own.get_at(url).await?);
    }
    let response = public.get(url)?.send().await?;
    if response.status() != reqwest::StatusCode::OK {
        return Err(FetchError::Status(response.status().as_u16()));
    }
    let body = outgoing::body(response, MAX_DOCUMENT_BYTES).await?;
    serde_json::from_slice(&body).map_err(|_| FetchError::Json)
}

/// Skips keys for encryption, of unknown types or with errors, without refusing the others.
fn usable_key(entry: Value, usage: KeyUse) -> Option<VerificationKey> {
    let Value::Object(mut members) = entry else {
        return None;
    };
    if usage == KeyUse::JwtSvid {
        // SPIFFE's value of `use`, which means signatures of JWT-SVIDs only.
        let meant = members.remove("use")?.as_str() == Some("jwt-svid");
        if !meant || !members.contains_key("kid") {
            return None;
        }
    }
    PublicJwk::from_members(members).ok().map(Into::into)
}

#[cfg(test)]
mod tests;
