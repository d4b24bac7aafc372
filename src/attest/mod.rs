//! Attestation: evidence goes in, a verified [`Workload`] comes out.
//!
//! # The seam
//! An [`Attestor`] is one way to be believed: the tokens of one issuer ([`AttestorSpec::Oidc`]),
//! registered keys ([`AttestorSpec::Key`]), or a trust domain's SVIDs ([`AttestorSpec::Spiffe`]). [`Evidence`] is all that a request presents, headers
//! and TLS connection alike, so that an attestor for certificates or cloud signatures needs no
//! change here. [`Attestors`] asks which one *recognises* the evidence, from what the evidence
//! says of itself and before anything is verified. It must be exactly one, and only that one is
//! asked to appraise: no evidence is tried against a second attestor after a first refused it.
//!
//! # What is verified, and what is not
//! A workload's identity comes from signed, immutable claims alone, and policy sees only claims
//! that the attestor declares, in their declared types. Everything is checked at the `now` that the
//! caller passes. The one thing that cannot be checked here is whether evidence was used before:
//! each [`Workload`] carries its [`OneTime`] ids, and the ledger's append consumes them together
//! with what they are used for. A replay therefore loses in the store, on whichever replica.
//!
//! # What a caller learns
//! Nothing before the signature of its token has verified; afterwards, which condition of its own
//! token failed ([`error`]). An issuer that cannot be reached is a fault of ours, to everyone.
//!
//! [`OneTime`]: crate::domain::workload::OneTime

mod api;
pub mod certificate;
mod checks;
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

/// In which way a token is presented.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TokenScheme {
    /// `Authorization: Bearer` (RFC 6750).
    #[default]
    Bearer,
    /// `Authorization: DPoP` (RFC 9449 §7.1).
    Dpop,
    /// As a parameter of a form: a subject token, or a client assertion.
    Parameter,
    /// `Authorization` is there twice, or has a scheme that is not served: no token is read.
    Unreadable,
}

/// All that a request presents.
#[derive(Clone, Default)]
pub struct Evidence {
    /// The token, in whichever way it is presented.
    pub bearer: Option<SecretString>,
    /// In which way.
    pub scheme: TokenScheme,
    /// The id by which the answer and the log lines of this request are found.
    pub request_id: Option<String>,
    /// Every `DPoP` header.
    pub dpop: Vec<String>,
    /// The client's certificates in DER, its own first, as the TLS connection verified possession.
    pub client_certificates: Vec<Vec<u8>>,
    /// Other headers that an attestor may read, by their names in lower case.
    pub headers: BTreeMap<String, Vec<SecretString>>,
    /// The request's method.
    pub method: String,
    /// The configured external URL of the endpoint; never taken from the request's `Host`.
    pub url: String,
    /// One of whose nonces a `DPoP` proof has to contain; none where proofs go without.
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
    /// The issuer that its token names, as a log line may have it. Nothing vouches for it.
    #[must_use]
    pub fn claimed_issuer(&self) -> Option<String> {
        let presented = Presented::new(self);
        let issuer = presented.token().ok()?.unverified_issuer();
        issuer.map(printable_issuer)
    }
}

/// Evidence whose token was taken apart, once for all attestors, and not verified.
#[derive(Debug)]
pub struct Presented<'a> {
    evidence: &'a Evidence,
    token: Option<Result<UnverifiedJwt, JwtError>>,
}

impl<'a> Presented<'a> {
    /// Takes the bearer token apart.
    #[must_use]
    pub fn new(evidence: &'a Evidence) -> Self {
        let bearer = evidence.bearer.as_ref();
        Self {
            evidence,
            token: bearer.map(|token| UnverifiedJwt::parse(token.expose_secret())),
        }
    }

    /// All that the request presents.
    #[must_use]
    pub fn evidence(&self) -> &'a Evidence {
        self.evidence
    }

    /// The bearer token, with nothing verified.
    pub fn token(&self) -> Result<&UnverifiedJwt, AttestError> {
        match &self.token {
            None => Err(AttestError::Missing),
            Some(Ok(token)) => Ok(token),
            Some(Err(error)) => Err((*error).into()),
        }
    }
}

/// One way to be believed.
trait Attestor: Send + Sync {
    /// Its configured name.
    fn name(&self) -> &str;

    /// Whether the evidence says of itself that it is for this attestor. Nothing is verified yet,
    /// so nothing but the choice of the attestor may follow from it.
    fn recognises(&self, presented: &Presented<'_>) -> bool;

    /// Whether it is from this attestor's issuer, be it for us or for another audience. Such a token
    /// is verified, so that its holder may be told; it is never believed.
    fn issued(&self, presented: &Presented<'_>) -> bool;

    /// How far its issuer's clock may be ahead of ours, in seconds.
    fn leeway_seconds(&self) -> u64;

    /// The algorithms that are believed.
    fn algorithms(&self) -> &[Algorithm];

    /// Verifies the evidence, all of it, as of `now`.
    fn appraise<'a>(
        &'a self,
        presented: &'a Presented<'a>,
        now: Timestamp,
    ) -> BoxFuture<'a, Result<Workload, Refused>>;

    /// What a token's claims have to fulfil as of `now`, beside its signature.
    fn conditions(&self, claims: &Claims, now: Timestamp) -> Conditions;

    /// What the configuration wants of a claim, for its operator.
    fn expected(&self, name: &str) -> Option<String>;

    /// Whether it could give this name, which stands behind its own in an identity.
    fn could_name(&self, name: &str) -> bool;

    /// Keys in the configuration itself that the token may be signed with.
    fn configured_keys(&self, _token: &UnverifiedJwt) -> Vec<VerificationKey> {
        Vec::new()
    }

    /// What the keys of its issuer's set have to be for.
    fn key_use(&self) -> jwks::KeyUse {
        jwks::KeyUse::Signatures
    }

    /// Whether a cluster is asked about each token.
    fn is_reviewed(&self) -> bool {
        false
    }
}

/// Registered keys cannot be read now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the registered keys cannot be read")]
pub struct WorkloadKeysUnavailable;

/// Where keys are kept that were registered beside the configuration.
pub trait WorkloadKeys: Send + Sync {
    /// The public keys of `workload`, as JWK; none if there is no such workload.
    fn find<'a>(
        &'a self,
        attestor: &'a str,
        workload: &'a str,
    ) -> BoxFuture<'a, Result<Vec<serde_json::Value>, WorkloadKeysUnavailable>>;
}

/// No keys beside those of the configuration.
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

/// What attestors need beside their specification.
#[derive(Clone)]
pub struct AttestContext {
    /// Our issuer: the sole audience of a client assertion.
    pub own_issuer: String,
    /// Every value that we sign as issuer or answer to; no attestor may have one as its issuer.
    pub own_issuers: Vec<String>,
    /// Evidence that was made before counts no more: which of it was used is not known.
    pub not_before: Option<Timestamp>,
    /// Tracks fetches of keys.
    pub tracker: TaskTracker,
    /// Registered workload keys.
    pub workload_keys: Arc<dyn WorkloadKeys>,
    /// This replica's endpoints.
    pub endpoints: Arc<EndpointTable>,
    /// Whether issuers may have http URLs: in development mode alone.
    pub plain_issuers: bool,
}

impl AttestContext {
    /// For a check of a configuration, beside no store.
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
    /// For an honest word in the logs when an issuer is known and the audience is not.
    issuers: BTreeSet<String>,
    not_before: Option<Timestamp>,
    /// The digest of what each attestor's identities rest on, by its name.
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
    /// Checks and builds the attestors of a configuration. Nothing is fetched yet.
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

    /// Who presents this evidence. A `DPoP` header must hold whatever the attestor is, and where
    /// evidence may be used again, a proof is demanded and binds it.
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

    /// Whether an identity could still be attested: its attestor is there, and gives such names.
    #[must_use]
    pub fn could_attest(&self, attestor: &str, identity: &Identity) -> bool {
        let name = identity.as_str().strip_prefix(attestor);
        let name = name.and_then(|rest| rest.strip_prefix(':'));
        let attestor = self.all.iter().find(|known| known.name() == attestor);
        matches!((attestor, name), (Some(attestor), Some(name)) if attestor.could_name(name))
    }

    /// The digest of what an attestor's identities rest on; of nothing where there is no such attestor.
    #[must_use]
    pub fn digest_of(&self, attestor: &str) -> [u8; 32] {
        let known = self.foundations.get(attestor).copied();
        known.unwrap_or_else(|| sha256(&[]))
    }

    /// What goes for every attestor, once it has verified a token: its age, its key, its proof.
    fn with_proof(
        &self,
        attestor: &dyn Attestor,
        presented: &Presented<'_>,
        mut workload: Workload,
        now: Timestamp,
    ) -> Result<Workload, Unproven> {
        let evidence = presented.evidence();
        // An issuer whose clock is ahead may have dated so what it gave out before.
        let dated = |at: Timestamp| at.plus_seconds(attestor.leeway_seconds());
        if self
            .not_before
            .is_some_and(|at| workload.issued_at < dated(at))
        {
            return Err(AttestError::BeforeOurLog.into());
        }
        let confirmation = Confirmation::of(presented.token()?.unverified_claims())?;
        // A token that its issuer bound to a key is of no use without that key, so a caller that does
        // not have it uses nothing up.
        let own = confirmation.is_empty().then_some(workload.evidence);
        // A proof is made for this one request; the certificate is the connection's, which a proxy
        // beside the workload may share among many. Where there are both the proof binds, and a
        // proof that is no good is never made up for by the certificate.
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
            // Evidence that its holder cannot renew at will serves one task, or one key where its
            // holder has one.
            (Reuse::Bound | Reuse::PerTask, Some(key)) => {
                workload.reuse = Reuse::Bound;
                workload.evidence.binding = Some(key_digest(key));
            }
            // It may have been shown before, by this key and without a nonce. That it is used once
            // is what a second id says.
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

    /// Why a token is refused that no attestor, or more than one, takes for its own. Where a known
    /// issuer's key signed it, its holder may learn the reason; it is never believed.
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
                // Its audience is not this attestor's, or not this one's alone, so this is not
                // reached; if it were, the token would not be believed for it.
                Ok(_) => return (only, Refused::signed(AttestError::WrongAudience)),
                // Whether it is the issuer's was not found out, so nothing else is said of it.
                Err(refused) if refused.error.is_transient() => unknown = Some(refused),
                Err(_) => {}
            }
        }
        let refused = unknown.unwrap_or_else(|| self.refusal(presented).into());
        (only, refused)
    }

    /// Why not exactly one attestor recognises it.
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

/// A token that was verified, and that is refused for what goes for every attestor.
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

/// The binding of evidence to a key.
fn key_digest(key: &KeyBinding) -> [u8; 32] {
    sha256(key.to_text().as_bytes())
}

/// A one-time id over several texts, none of which can be taken for a part of another, of evidence
/// that was issued and may be forgotten at these times. It is forgotten earlier where it would live on for
/// long after it is refused for its age.
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
pub(crate) mod fake;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
