//! The keys of an issuer: discovery (OpenID Connect Discovery 1.0) and its JWK set.
//!
//! Readers never wait for the network while the key they need is known: they read one snapshot.
//! It is fetched anew when it grows old and when a token names an unknown key. At most one fetch
//! runs at a time, it runs to its end even if the caller has gone, and the next may begin only
//! [`COOL_DOWN_SECONDS`] after it *began*: tokens with invented key ids cost the issuer one request
//! in that time, and us one lookup each.
//!
//! During this cool-down a key that the issuer has just published is unknown. A question for an unknown
//! key waits for the end of the cool-down where that is at most [`MAX_COOL_DOWN_WAIT`] away. Otherwise
//! the answer is [`KeyError::Unknown`]. It is not [`KeyError::Unreachable`], because a new key cannot be
//! told from an invented one: anyone could then cause 503 answers and the alarm on unreachable issuers
//! while the issuer is healthy, and could read from the status which issuers are configured.
//!
//! What an issuer answers is not trusted beyond its purpose. Its size and its time are bounded,
//! redirects are refused, and a key that we cannot use is skipped alone. The first [`MAX_KEYS`] usable
//! keys of a set are read when it comes; those beyond are kept as they are and read when a token names
//! their `kid`.
//!
//! A new set takes the place of the old one, also where it has no key that can be used: then the issuer
//! has none. A set that is older than [`MAX_UNCONFIRMED_SECONDS`] serves only if the newest fetch failed
//! and began less than [`COOL_DOWN_SECONDS`] ago; otherwise the question waits for one fetch. So a key
//! that its issuer withdrew is believed for no longer than [`MAX_UNCONFIRMED_SECONDS`] while the issuer
//! answers, or until [`COOL_DOWN_SECONDS`] after a failed fetch began, if that is later. While the issuer
//! does not answer, the key is believed for `max_stale_seconds`.
//!
//! Discovery goes to public addresses alone, except to the server of the endpoint that the attestor
//! names for it. The issuer's metadata says where the key set is, and so cannot lead elsewhere into
//! the host's network.

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

use super::api::{Api, ApiError};
use crate::clock::Timestamp;
use crate::crypto::jwk::{Algorithm, PublicJwk, VerificationKey};
use crate::crypto::jwt::{JwtError, UnverifiedJwt, VerifiedClaims, verify};
use crate::endpoints::{Endpoint, PublicClient, RefusedAddress};
use crate::outgoing::{self, BodyError};

/// The least time from the beginning of one fetch to the beginning of the next.
pub(super) const COOL_DOWN_SECONDS: u64 = 10;

const COOL_DOWN: Duration = Duration::from_secs(COOL_DOWN_SECONDS);

/// The longest that a question for an unknown key waits for the end of the cool-down.
const MAX_COOL_DOWN_WAIT: Duration = Duration::from_secs(2);

/// The age at which a set is fetched anew while it still serves.
const REFRESH_SECONDS: u64 = 300;

/// The age, in seconds, beyond which a set serves only if the newest fetch failed within the cool-down.
const MAX_UNCONFIRMED_SECONDS: u64 = 600;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const TOTAL_TIMEOUT: Duration = Duration::from_secs(5);

/// The largest document of an issuer. Real ones have a few KiB.
const MAX_DOCUMENT_BYTES: usize = 1024 * 1024;

/// Usable keys of a set that are read at once. Real issuers have fewer than ten.
const MAX_KEYS: usize = 100;

/// Entries of one `kid` that are looked at. RFC 7517 §4.5 lets keys of different types share one.
const MAX_SAME_KID: usize = 8;

/// Keys of one `kid` that are tried. An issuer that names its keys apart has one.
const MAX_OF_ONE_NAME: usize = 4;

/// Why there is no key to verify with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum KeyError {
    /// The issuer's set does not have it.
    #[error("the issuer has no such key")]
    Unknown,
    /// There is no set that is young enough, or the newest could not be fetched and may have it.
    #[error("the issuer's keys could not be fetched")]
    Unreachable,
}

/// Why one fetch gave nothing.
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
    #[error("the discovery document is another issuer's")]
    Issuer,
    #[error("the address is refused")]
    Address(#[from] RefusedAddress),
    #[error("the issuer is not a URL")]
    NoUrl,
    #[error("the server that has them did not answer as it should")]
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
    /// The first keys that can be used.
    keys: Vec<VerificationKey>,
    /// The entries beyond, by their `kid`, as they came.
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
            // Without a name it cannot be asked for.
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

/// The keys of a set that a token names: a `kid` may stand on several (RFC 7517 §4.5).
pub(super) fn select(
    keys: &[VerificationKey],
    kid: Option<&str>,
    algorithm: Algorithm,
) -> Vec<VerificationKey> {
    // Without a name there must be nothing to choose.
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

/// The usable keys of a set that somebody has at hand; `None` where there is none.
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

/// A client with no redirects, no proxy and no waiting.
pub(super) fn client_builder() -> reqwest::ClientBuilder {
    outgoing::direct_client()
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(TOTAL_TIMEOUT)
}

/// What the keys of a set must be for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyUse {
    /// Signatures in general.
    Signatures,
    /// JWT-SVIDs: `use` must say so, and `kid` must be there.
    JwtSvid,
}

/// Where a set is.
#[derive(Debug)]
enum Place {
    /// Where the issuer's discovery says. `own` is the endpoint that serves it, if there is one.
    Discovery {
        issuer: String,
        own: Option<Api>,
        public: PublicClient,
    },
    /// At an endpoint.
    Endpoint { api: Api, usage: KeyUse },
}

/// The keys of one issuer.
#[derive(Debug)]
pub(super) struct KeySource {
    attestor: String,
    place: Place,
    max_stale_seconds: u64,
    tracker: TaskTracker,
    current: ArcSwapOption<KeySet>,
    /// When the last completed fetch began, if it failed: then a key that is not in the set may exist
    /// nevertheless. `None` before the first fetch and after a successful one.
    failed: ArcSwapOption<Timestamp>,
    /// Held by the one fetch; inside, when the last one began.
    flight: Arc<Mutex<Option<Timestamp>>>,
}

impl KeySource {
    /// Keys that the issuer's discovery says where to find. `endpoint` serves the discovery; without
    /// one it is at the issuer's own, public address.
    pub(super) fn discovered(
        attestor: &str,
        issuer: &str,
        endpoint: Option<&Endpoint>,
        max_stale_seconds: u64,
        tracker: TaskTracker,
    ) -> Result<Arc<Self>, reqwest::Error> {
        let place = Place::Discovery {
            issuer: issuer.to_owned(),
            own: endpoint.map(Api::new),
            public: public_client()?,
        };
        Ok(Self::in_place(attestor, place, max_stale_seconds, tracker))
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
        let place = Place::Endpoint { api, usage };
        Self::in_place(attestor, place, max_stale_seconds, tracker)
    }

    fn in_place(
        attestor: &str,
        place: Place,
        max_stale_seconds: u64,
        tracker: TaskTracker,
    ) -> Arc<Self> {
        Arc::new(Self {
            attestor: attestor.to_owned(),
            place,
            max_stale_seconds,
            tracker,
            current: ArcSwapOption::empty(),
            failed: ArcSwapOption::empty(),
            flight: Arc::new(Mutex::new(None)),
        })
    }

    /// The keys that a token names, from the snapshot or, if it must be, from the issuer. There is at
    /// least one.
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
            // The fetch began before the question: the issuer may have published the key since then.
            Err(KeyError::Unknown) if began < now => {}
            answer => return answer,
        }
        let next = began.plus_seconds(COOL_DOWN_SECONDS);
        let wait = next.distance(now);
        if wait > MAX_COOL_DOWN_WAIT {
            return Err(KeyError::Unknown);
        }
        // Wait without the lock, so that questions that need it for another reason do not wait too.
        tokio::time::sleep(wait).await;
        self.refresh(next).await;
        self.lookup(kid, algorithm, next)
    }

    /// The keys that a token names, from the snapshot as it is.
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

    /// Whether a set is so old that the question has to wait for the next fetch. A failed fetch spares
    /// questions that wait until another fetch may begin, and no longer: by then the issuer may answer.
    fn must_be_confirmed(&self, set: &KeySet, now: Timestamp) -> bool {
        if set.fetched_at.seconds_until(now) <= MAX_UNCONFIRMED_SECONDS {
            return false;
        }
        let failed = self.failed.load_full();
        failed.is_none_or(|began| began.distance(now) >= COOL_DOWN)
    }

    /// Begins a fetch without waiting for it, if the set is old and nobody fetches already.
    fn refresh_if_old(self: &Arc<Self>, set: &KeySet, now: Timestamp) {
        let age = set.fetched_at.seconds_until(now);
        if age < REFRESH_SECONDS.min(self.max_stale_seconds / 2) {
            return;
        }
        if let Ok(guard) = Arc::clone(&self.flight).try_lock_owned() {
            drop(self.begin(guard, now));
        }
    }

    /// Waits for the running fetch and then, unless the cool-down forbids it, for a new one. Returns when
    /// the newest fetch began.
    async fn refresh(self: &Arc<Self>, now: Timestamp) -> Timestamp {
        let guard = Arc::clone(&self.flight).lock_owned().await;
        let last = *guard;
        let Some(fetch) = self.begin(guard, now) else {
            return last.unwrap_or(now);
        };
        if fetch.await.is_err() {
            tracing::warn!(
                attestor = self.attestor,
                "the fetch of an issuer's keys broke off"
            );
        }
        now
    }

    /// Begins a fetch of its own task: a caller who goes away does not end it.
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
                            "the issuer's key set has no key that can be used: none of its tokens \
                             is believed"
                        );
                    }
                    source.current.store(Some(Arc::new(set)));
                }
                Err(error) => tracing::warn!(
                    attestor = source.attestor,
                    error = &error as &dyn std::error::Error,
                    "an issuer's keys were not fetched"
                ),
            }
            drop(last);
        }))
    }

    async fn fetch(&self) -> Result<(Jwks, KeyUse), FetchError> {
        Ok(match &self.place {
            Place::Endpoint { api, usage } => (api.get().await?, *usage),
            Place::Discovery {
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

/// The document at `url`: from the endpoint where it is the endpoint's, else from a public address.
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

/// Keys for encryption, of unknown types or with mistakes are no reason to refuse the others.
fn usable_key(entry: Value, usage: KeyUse) -> Option<VerificationKey> {
    let Value::Object(mut members) = entry else {
        return None;
    };
    if usage == KeyUse::JwtSvid {
        // SPIFFE's own word for it, which means signatures of JWT-SVIDs and nothing else.
        let meant = members.remove("use")?.as_str() == Some("jwt-svid");
        if !meant || !members.contains_key("kid") {
            return None;
        }
    }
    PublicJwk::from_members(members).ok().map(Into::into)
}

#[cfg(test)]
mod tests;
