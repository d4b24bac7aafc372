//! Attestation: verifies evidence and returns a [`Workload`].
//!
//! # Attestors
//! An [`Attestor`] accepts one kind of evidence: the tokens of one issuer ([`AttestorSpec::Oidc`]),
//! registered keys ([`AttestorSpec::Key`]), or the SVIDs of a trust domain
//! ([`AttestorSpec::Spiffe`]). [`Evidence`] contains everything that a request presents, headers
//! and TLS connection alike, so an attestor for certificates or cloud signatures needs no change
//! here. [`Attestors`] finds the attestor that *recognises* the evidence, from its unverified
//! contents. There must be exactly one, and only that one verifies it: if it refuses, no second
//! attestor is tried.
//!
//! # Verification
//! A workload's identity comes from signed, immutable claims alone. Policy sees only claims that
//! the attestor declares, with their declared types. Everything is checked at the caller's `now`.
//! This module cannot check whether evidence was used before. So each [`Workload`] carries its
//! [`OneTime`] ids, and the ledger's append consumes them together with their use. A replay
//! therefore fails in the store, on every replica.
//!
//! # Disclosure to callers
//! Before the signature of its token has verified, a caller learns nothing. Afterwards it learns
//! which condition of its own token failed ([`error`]). An unreachable issuer is reported to all
//! callers as a fault of the broker.
//!
//! [`OneTime`]: crate::domain::workload::OneTime

mod api;
pub mod certificate;
mod checks;
pub mod condition_result;
mod confirmation;
pub mod dpop;
pub mod error;
pub mod explain;
mod jwks;
pub(crate) mod key;
pub mod nonce;
mod oidc;
mod review;
mod spiffe;
mod spiffe_id;
mod template;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use secrecy::{ExposeSecret as _, SecretString};
use tokio_util::task::TaskTracker;

pub use self::checks::{AttestorConfigError, check};
use self::confirmation::Confirmation;
pub use self::error::{AttestError, AttestFailure, NO_ATTESTOR, VerifiedEvidence};
use self::error::{Refused, printable_issuer};
use self::explain::Conditions;
use self::nonce::DpopNonces;
use crate::clock::Timestamp;
use crate::crypto::digest::sha256;
use crate::crypto::jwk::{Algorithm, VerificationKey};
use crate::crypto::jwt::{Claims, JwtError, UnverifiedJwt};
use crate::domain::limits::MAX_EVIDENCE_SECONDS;
use crate::domain::trust::AttestorSpec;
use crate::domain::workload::{Identity, KeyBinding, OneTime, Reuse, Workload};
use crate::endpoints::EndpointTable;

/// The way in which a token is presented.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TokenScheme {
    /// In the header `Authorization: Bearer` (RFC 6750).
    #[default]
    Bearer,
    /// In the header `Authorization: DPoP` (RFC 9449 §7.1).
    Dpop,
    /// As a form parameter: a subject token or a client assertion.
    Parameter,
    /// `Authorization` occurs twice or has an unsupported scheme; no token is read.
    Unreadable,
}

/// The evidence in a request.
#[derive(Clone, Default)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct Evidence {
    /// The token, regardless of its scheme; `None` if the request has none.
    pub bearer: Option<SecretString>,
    pub scheme: TokenScheme,
    /// The id that identifies the request in the response and in log lines.
    pub request_id: Option<String>,
    /// The values of all `DPoP` headers.
    pub dpop: Vec<String>,
    /// The client's certificates in DER, its own first. The TLS connection verified possession.
    pub client_certificates: Vec<Vec<u8>>,
    /// Other headers that an attestor may read, by their names in lower case.
    pub headers: BTreeMap<String, Vec<SecretString>>,
    pub method: String,
    /// The configured external URL of the endpoint; never taken from the request's `Host`.
    pub url: String,
    /// The source of the nonces that a `DPoP` proof must contain; `None` if proofs need none.
    pub nonces: Option<DpopNonces>,
}

impl fmt::Debug for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Evidence")
            .field("bearer", &self.bearer.is_some())
            .field("scheme", &self.scheme)
            .field("request_id", &self.request_id)
            .field("dpop", &self.dpop.len())
            .field("client_certificates", &self.client_certificates.len())
            .field("headers", &self.headers.keys())
            .field("method", &self.method)
            .field("url", &self.url)
            .field("nonces", &self.nonces)
            .finish()
    }
}

impl Evidence {
    /// The unverified issuer in its token, in a form that is safe in a log line; `None` if there is
    /// no readable token, or it names none.
    #[must_use]
    pub fn claimed_issuer(&self) -> Option<String> {
        let presented = Presented::new(self);
        let issuer = presented.token().ok()?.unverified_issuer();
        issuer.map(printable_issuer)
    }
}

/// Evidence with its token parsed, once for all attestors, but not verified.
#[derive(Debug)]
pub struct Presented<'a> {
    evidence: &'a Evidence,
    token: Option<Result<UnverifiedJwt, JwtError>>,
}

impl<'a> Presented<'a> {
    /// Parses the bearer token.
    #[must_use]
    pub fn new(evidence: &'a Evidence) -> Self {
        let bearer = evidence.bearer.as_ref();
        Self {
            evidence,
            token: bearer.map(|token| UnverifiedJwt::parse(token.expose_secret())),
        }
    }

    /// The evidence of the request.
    #[must_use]
    pub fn evidence(&self) -> &'a Evidence {
        self.evidence
    }

    /// The bearer token, unverified.
    pub fn token(&self) -> Result<&UnverifiedJwt, AttestError> {
        match &self.token {
            None => Err(AttestError::Missing),
            Some(Ok(token)) => Ok(token),
            Some(Err(error)) => Err((*error).into()),
        }
    }
}

/// Verifies one kind of evidence.
trait Attestor: Send + Sync {
    /// Its configured name.
    fn name(&self) -> &str;

    /// Whether the unverified evidence claims to be for this attestor. Use the result only to
    /// choose the attestor.
    fn recognises(&self, presented: &Presented<'_>) -> bool;

    /// Whether the token names this attestor's issuer, with any audience. Such a token is verified
    /// so that its holder may learn the reason of the refusal; it is never accepted.
    fn issued(&self, presented: &Presented<'_>) -> bool;

    /// How far its issuer's clock may be ahead of the broker's, in seconds.
    fn leeway_seconds(&self) -> u64;

    /// The accepted algorithms.
    fn algorithms(&self) -> &[Algorithm];

    /// Verifies all of the evidence at `now`.
    fn appraise<'a>(
        &'a self,
        presented: &'a Presented<'a>,
        now: Timestamp,
    ) -> BoxFuture<'a, Result<Workload, Refused>>;

    /// The conditions on a token's claims at `now`, other than its signature.
    fn conditions(&self, claims: &Claims, now: Timestamp) -> Conditions;

    /// The value that the configuration requires of a claim, for its operator; `None` if it
    /// requires none.
    fn expected(&self, name: &str) -> Option<String>;

    /// Whether it could yield an identity with this name after its own.
    fn could_name(&self, name: &str) -> bool;

    /// The keys in the configuration that the token may be signed with.
    fn configured_keys(&self, _token: &UnverifiedJwt) -> Vec<VerificationKey> {
        Vec::new()
    }

    /// The use for which the keys of its issuer's set must be intended.
    fn key_use(&self) -> jwks::KeyUse {
        jwks::KeyUse::Signatures
    }

    /// Whether a cluster reviews each token.
    fn is_reviewed(&self) -> bool {
        false
    }
}

/// The registered keys cannot be read at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the registered keys cannot be read")]
pub struct WorkloadKeysUnavailable;

/// The store of keys that were registered outside the configuration.
pub trait WorkloadKeys: Send + Sync {
    /// The public keys of `workload` as JWK; empty if there is no such workload.
    fn find<'a>(
        &'a self,
        attestor: &'a str,
        workload: &'a str,
    ) -> BoxFuture<'a, Result<Vec<serde_json::Value>, WorkloadKeysUnavailable>>;
}

/// A store without keys.
struct NoStoredKeys;

impl WorkloadKeys for NoStoredKeys {
    fn find<'a>(
        &'a self,
        _: &'a str,
        _: &'a str,
    ) -> BoxFuture<'a, Result<Vec<serde_json::Value>, WorkloadKeysUnavailable>> {
        Box::pin(async { Ok(Vec::new()) })
    }
}

/// The environment that attestors need in addition to their specification.
#[derive(Clone)]
pub struct AttestContext {
    /// The broker's issuer: the only audience of a client assertion.
    pub own_issuer: String,
    /// Every issuer and audience of the broker itself. No attestor may have one of them as its
    /// issuer.
    pub own_issuers: Vec<String>,
    /// Evidence from before this time is refused, because the broker does not know which of it was
    /// used. `None` if it knows all of it.
    pub not_before: Option<Timestamp>,
    /// Tracks the tasks that fetch keys.
    pub tracker: TaskTracker,
    /// The store of registered workload keys.
    pub workload_keys: Arc<dyn WorkloadKeys>,
    /// The endpoints of this replica.
    pub endpoints: Arc<EndpointTable>,
    /// Whether issuers may have http URLs; only in development mode.
    pub plain_issuers: bool,
}

impl AttestContext {
    /// A context for checking a configuration without a store.
    #[must_use]
    pub fn without_store(
        own_issuer: String,
        endpoints: Arc<EndpointTable>,
        plain_issuers: bool,
    ) -> Self {
        Self {
            own_issuer,
            own_issuers: Vec::new(),
            not_before: None,
            tracker: TaskTracker::new(),
            workload_keys: Arc::new(NoStoredKeys),
            endpoints,
            plain_issuers,
        }
    }
}

/// All configured attestors.
pub struct Attestors {
    all: Vec<Box<dyn Attestor>>,
    /// Every configured issuer, for precise log lines if only the audience is unknown.
    issuers: BTreeSet<String>,
    not_before: Option<Timestamp>,
    /// The digest of each attestor's foundation, by its name.
    foundations: BTreeMap<String, [u8; 32]>,
}

impl fmt::Debug for Attestors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.all.iter().map(|attestor| attestor.name()))
            .finish()
    }
}

impl Attestors {
    /// Checks the configuration and creates its attestors. Fetches nothing.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "a context belongs to the attestors that are built with it"
    )]
    pub fn new(
        specs: &[AttestorSpec],
        context: AttestContext,
    ) -> Result<Self, AttestorConfigError> {
        let mut own_issuers = context.own_issuers.clone();
        own_issuers.push(context.own_issuer.clone());
        check(specs, &own_issuers, context.plain_issuers)?;
        let mut attestors: Vec<Box<dyn Attestor>> = Vec::with_capacity(specs.len());
        let mut issuers = BTreeSet::new();
        let mut foundations = BTreeMap::new();
        for spec in specs {
            let foundation = sha256(spec.foundation().to_string().as_bytes());
            foundations.insert(spec.name().to_owned(), foundation);
            attestors.push(match spec {
                AttestorSpec::Oidc(spec) => {
                    issuers.insert(spec.issuer.clone());
                    Box::new(oidc::Oidc::new(spec, &context)?)
                }
                AttestorSpec::Key(spec) => Box::new(key::Keys::new(spec, &context)?),
                AttestorSpec::Spiffe(spec) => Box::new(spiffe::Spiffe::new(spec, &context)?),
            });
        }
        Ok(Self {
            all: attestors,
            issuers,
            not_before: context.not_before,
            foundations,
        })
    }

    /// Verifies the evidence and returns its workload. A `DPoP` header must be valid for every
    /// attestor. If evidence may be used repeatedly, a proof is required and binds it.
    pub async fn appraise(
        &self,
        evidence: &Evidence,
        now: Timestamp,
    ) -> Result<Workload, AttestFailure> {
        let presented = Presented::new(evidence);
        let failure = |attestor: Option<&dyn Attestor>, refused: Refused| {
            let token = presented.token().ok();
            let issuer = token.and_then(UnverifiedJwt::unverified_issuer);
            AttestFailure {
                error: refused.error,
                attestor: attestor.map(|attestor| attestor.name().to_owned()),
                issuer: issuer.map(printable_issuer),
                told: refused.signed,
                verified: None,
            }
        };
        let mut matching = self.all.iter().filter(|a| a.recognises(&presented));
        let (Some(attestor), None) = (matching.next(), matching.next()) else {
            let (attestor, refused) = self.not_for_us(&presented, now).await;
            return Err(failure(attestor, refused));
        };
        let attestor = attestor.as_ref();
        let appraised = attestor.appraise(&presented, now).await;
        let workload = appraised.map_err(|refused| failure(Some(attestor), refused))?;
        let proven = self.with_proof(attestor, &presented, workload, now);
        proven.map_err(|unproven| AttestFailure {
            verified: unproven.verified,
            ..failure(Some(attestor), Refused::signed(unproven.error))
        })
    }

    /// Whether an identity can still be attested: its attestor exists and can yield its name.
    #[must_use]
    pub fn could_attest(&self, attestor: &str, identity: &Identity) -> bool {
        let name = identity.as_str().strip_prefix(attestor);
        let name = name.and_then(|rest| rest.strip_prefix(':'));
        let attestor = self.all.iter().find(|known| known.name() == attestor);
        matches!((attestor, name), (Some(attestor), Some(name)) if attestor.could_name(name))
    }

    /// The digest of an attestor's foundation; that of an empty one if there is no such attestor.
    #[must_use]
    pub fn digest_of(&self, attestor: &str) -> [u8; 32] {
        let known = self.foundations.get(attestor).copied();
        known.unwrap_or_else(|| sha256(&[]))
    }

    /// The checks for every attestor after verification of the token: its age, its key, its proof.
    fn with_proof(
        &self,
        attestor: &dyn Attestor,
        presented: &Presented<'_>,
        mut workload: Workload,
        now: Timestamp,
    ) -> Result<Workload, Unproven> {
        let evidence = presented.evidence();
        // An issuer whose clock is ahead may have given an earlier token this date.
        let dated = |at: Timestamp| at.plus_seconds(attestor.leeway_seconds());
        if self
            .not_before
            .is_some_and(|at| workload.issued_at < dated(at))
        {
            return Err(AttestError::BeforeOurLog.into());
        }
        let confirmation = Confirmation::of(presented.token()?.unverified_claims())?;
        // A token that its issuer bound to a key is useless without that key, so a caller without
        // the key consumes nothing.
        let own = confirmation.is_empty().then_some(workload.evidence);
        // A proof is made for this one request. The certificate belongs to the connection, which a
        // proxy in front of several workloads may share. If both are present, the proof binds, and
        // a valid certificate never compensates for an invalid proof.
        workload.key = certificate::key(evidence);
        let proof = match dpop::of_request(evidence, now) {
            Ok(proof) => proof,
            Err(error) => {
                // The caller comes again with the same token and the nonce, by the same key.
                let shown = Some(&error).filter(|error| **error == AttestError::NonceWanted);
                let key = shown.and_then(|_| dpop::shown_key(evidence));
                let binding = key.as_ref().map(key_digest);
                let own = own.map(|own| OneTime { binding, ..own });
                return Err(Unproven::new(error, workload, own));
            }
        };
        if let Err(error) = confirmation.check(evidence, proof.as_ref().map(|proof| &proof.key)) {
            let shown = proof.map(|proof| proof.one_time);
            return Err(Unproven::new(error, workload, shown));
        }
        let by_proof = proof.is_some();
        if let Some(proof) = proof {
            workload.key = Some(proof.key);
            workload.proofs.push(proof.one_time);
        }
        match (workload.reuse, &workload.key) {
            (Reuse::Bound, None) => {
                return Err(Unproven::new(AttestError::ReplayUnbound, workload, own));
            }
            // Evidence that its holder cannot renew at will serves one task, or one key if the
            // holder has one.
            (Reuse::Bound | Reuse::PerTask, Some(key)) => {
                workload.reuse = Reuse::Bound;
                workload.evidence.binding = Some(key_digest(key));
            }
            // This key may have presented it before without a nonce. A second id ensures that it is
            // used once.
            (Reuse::Once, Some(key)) if by_proof && evidence.nonces.is_some() => {
                let own = &mut workload.evidence;
                own.binding = Some(key_digest(key));
                let used = one_time("used by a key", &[&own.key], own.issued_at..own.expires_at);
                workload.proofs.push(used);
            }
            (Reuse::PerTask, None) | (Reuse::Once, _) => {}
        }
        Ok(workload)
    }

    /// The refusal of a token that not exactly one attestor recognises. If a known issuer's key
    /// signed it, its holder may learn the reason; the token is never accepted.
    async fn not_for_us(
        &self,
        presented: &Presented<'_>,
        now: Timestamp,
    ) -> (Option<&dyn Attestor>, Refused) {
        let issuing = self.all.iter().filter(|a| a.issued(presented));
        let issuing: Vec<_> = issuing.map(AsRef::as_ref).collect();
        let only = issuing.first().copied().filter(|_| issuing.len() == 1);
        let mut unknown = None;
        for attestor in issuing {
            match attestor.appraise(presented, now).await {
                Err(refused) if refused.signed => return (only, refused),
                // Not reached: its audience is not that of this attestor alone. If it were reached,
                // the token would still be refused.
                Ok(_) => return (only, Refused::signed(AttestError::WrongAudience)),
                // The signature could not be checked, so the refusal reveals nothing else.
                Err(refused) if refused.error.is_transient() => unknown = Some(refused),
                Err(_) => {}
            }
        }
        let refused = unknown.unwrap_or_else(|| self.refusal(presented).into());
        (only, refused)
    }

    /// The reason why not exactly one attestor recognises it.
    fn refusal(&self, presented: &Presented<'_>) -> AttestError {
        match presented.token() {
            Err(error) => error,
            Ok(token) if token.unverified_is_type(key::ASSERTION) => AttestError::WrongAudience,
            Ok(token) => match token.unverified_issuer() {
                Some(issuer) if self.issuers.contains(issuer) => AttestError::WrongAudience,
                _ => AttestError::UnknownIssuer,
            },
        }
    }
}

/// A verified token that is refused by a check for every attestor.
struct Unproven {
    error: AttestError,
    verified: Option<Box<VerifiedEvidence>>,
}

impl Unproven {
    fn new(
        error: AttestError,
        workload: Workload,
        one_time: impl IntoIterator<Item = OneTime>,
    ) -> Self {
        let verified = VerifiedEvidence {
            workload,
            one_time: one_time.into_iter().collect(),
        };
        Self {
            error,
            verified: Some(Box::new(verified)),
        }
    }
}

impl From<AttestError> for Unproven {
    fn from(error: AttestError) -> Self {
        Self {
            error,
            verified: None,
        }
    }
}

/// The digest of the key to which evidence is bound.
fn key_digest(key: &KeyBinding) -> [u8; 32] {
    sha256(key.to_text().as_bytes())
}

/// A one-time id over several texts, whose boundaries are unambiguous. `lives` has the times of
/// issue and of deletion; deletion is earlier if the evidence would otherwise be kept long after it
/// is refused for its age.
fn one_time(kind: &str, parts: &[&[u8]], lives: Range<Timestamp>) -> OneTime {
    OneTime {
        must_be_new: false,
        key: one_time_key(kind, parts),
        binding: None,
        issued_at: lives.start,
        expires_at: lives
            .end
            .min(lives.start.plus_seconds(MAX_EVIDENCE_SECONDS)),
    }
}

/// The key of a one-time id.
fn one_time_key(kind: &str, parts: &[&[u8]]) -> [u8; 32] {
    let mut input = Vec::new();
    for part in std::iter::once(&kind.as_bytes()).chain(parts) {
        input.extend_from_slice(&(part.len() as u64).to_be_bytes());
        input.extend_from_slice(part);
    }
    sha256(&input)
}

#[cfg(test)]
pub(crate) mod tests;
