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
//! Nothing. [`AttestError`] is for logs and metrics; on the wire every one of them is the same 401,
//! except that an issuer which cannot be reached may be answered as a fault of ours.
//!
//! [`OneTime`]: crate::domain::workload::OneTime

mod api;
pub mod certificate;
mod checks;
pub mod dpop;
mod jwks;
pub(crate) mod key;
pub mod nonce;
mod oidc;
mod review;
mod spiffe;
mod template;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use secrecy::{ExposeSecret as _, SecretString};
use tokio_util::task::TaskTracker;

pub use self::checks::{AttestorConfigError, check};
use self::nonce::DpopNonces;
use crate::clock::Timestamp;
use crate::crypto::digest::sha256;
use crate::crypto::jwt::{JwtError, TimeError, UnverifiedJwt};
use crate::domain::trust::AttestorSpec;
use crate::domain::workload::{OneTime, Reuse, Workload};
use crate::endpoints::EndpointTable;

/// All that a request presents.
#[derive(Clone, Default)]
pub struct Evidence {
    /// The token of `Authorization: Bearer`.
    pub bearer: Option<SecretString>,
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
            .field("dpop", &self.dpop.len())
            .field("client_certificates", &self.client_certificates.len())
            .field("headers", &self.headers.keys())
            .field("method", &self.method)
            .field("url", &self.url)
            .field("nonces", &self.nonces)
            .finish()
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

/// Why evidence was refused: for logs and metrics, never for the caller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttestError {
    /// Nothing that any attestor could read.
    #[error("no evidence was presented")]
    Missing,
    /// A token that cannot be read unambiguously.
    #[error("the token is malformed")]
    Malformed(#[source] JwtError),
    /// No attestor is configured for it, or more than one.
    #[error("no attestor is configured for the token's issuer and audience")]
    UnknownIssuer,
    /// Not for us, or not for us alone.
    #[error("the token has another audience, or more than one")]
    WrongAudience,
    /// Another kind of token.
    #[error("the token is of another type")]
    WrongType,
    /// An algorithm that its issuer may not use.
    #[error("the token's algorithm is not believed from its issuer")]
    WrongAlgorithm,
    /// The issuer or the workload has no such key.
    #[error("the token's key is not known")]
    UnknownKey,
    /// The signature does not verify.
    #[error("the token's signature does not verify")]
    BadSignature,
    /// `exp` has passed.
    #[error("the token has expired")]
    Expired,
    /// Too old, from the future, or without usable dates.
    #[error("the token's dates are refused")]
    WrongTimes(#[source] TimeError),
    /// Made before the log began anew: whether it was used is not known.
    #[error("the token was made before our log began anew")]
    BeforeOurLog,
    /// A required claim has another value.
    #[error("the claim `{0}` does not have the required value")]
    RequiredClaim(String),
    /// A claim is missing, or not of its declared type, or too long.
    #[error("the claim `{0}` is missing, too long, or not of its declared type")]
    ClaimType(String),
    /// The cluster does not vouch for it: revoked, its pod gone, or meant for somebody else.
    #[error("the cluster does not vouch for the token")]
    Reviewed,
    /// The cluster that must vouch for it cannot be asked.
    #[error("the cluster could not be asked about the token")]
    ReviewUnreachable,
    /// Identity or instance cannot be written.
    #[error("the identity is empty or too long")]
    Identity,
    /// The attestor's tokens may be used again, but only with a proof of possession.
    #[error("the token needs a DPoP proof or a client certificate beside it")]
    ReplayUnbound,
    /// A `DPoP` header that proves nothing.
    #[error("the DPoP proof is refused: {0}")]
    BadProof(&'static str),
    /// A `DPoP` header without a nonce of ours, or with one that is too old.
    #[error("the DPoP proof has no good nonce")]
    NonceWanted,
    /// The issuer's keys cannot be fetched.
    #[error("the issuer's keys could not be fetched")]
    IssuerUnreachable,
    /// Registered keys cannot be read.
    #[error("the registered keys could not be read")]
    KeysUnavailable,
}

impl AttestError {
    /// A stable short word, for logs and metrics.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Malformed(_) => "malformed",
            Self::UnknownIssuer => "unknown_issuer",
            Self::WrongAudience => "wrong_audience",
            Self::WrongType => "wrong_type",
            Self::WrongAlgorithm => "wrong_algorithm",
            Self::UnknownKey => "unknown_key",
            Self::BadSignature => "bad_signature",
            Self::Expired => "expired",
            Self::WrongTimes(_) => "wrong_times",
            Self::BeforeOurLog => "before_our_log",
            Self::RequiredClaim(_) => "required_claim",
            Self::ClaimType(_) => "claim_type",
            Self::Reviewed => "reviewed",
            Self::ReviewUnreachable => "review_unreachable",
            Self::Identity => "identity",
            Self::ReplayUnbound => "replay_unbound",
            Self::BadProof(_) => "bad_proof",
            Self::NonceWanted => "use_dpop_nonce",
            Self::IssuerUnreachable => "issuer_unreachable",
            Self::KeysUnavailable => "keys_unavailable",
        }
    }

    /// Whether the fault is ours or the issuer's, so that the same caller may succeed later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::IssuerUnreachable | Self::ReviewUnreachable | Self::KeysUnavailable
        )
    }
}

impl From<JwtError> for AttestError {
    fn from(error: JwtError) -> Self {
        match error {
            JwtError::BadSignature => Self::BadSignature,
            JwtError::UnsupportedAlgorithm
            | JwtError::AlgorithmNotAllowed(_)
            | JwtError::AlgorithmNotOfKey(_) => Self::WrongAlgorithm,
            JwtError::MissingClaim(name) | JwtError::MalformedClaim(name) => {
                Self::ClaimType(name.to_owned())
            }
            other => Self::Malformed(other),
        }
    }
}

impl From<TimeError> for AttestError {
    fn from(error: TimeError) -> Self {
        match error {
            TimeError::Expired => Self::Expired,
            other => Self::WrongTimes(other),
        }
    }
}

/// One way to be believed.
pub trait Attestor: Send + Sync {
    /// Its configured name.
    fn name(&self) -> &str;

    /// Whether the evidence says of itself that it is for this attestor. Nothing is verified yet,
    /// so nothing but the choice of the attestor may follow from it.
    fn recognises(&self, presented: &Presented<'_>) -> bool;

    /// How far its issuer's clock may be ahead of ours, in seconds.
    fn leeway_seconds(&self) -> u64;

    /// Verifies the evidence, all of it, as of `now`.
    fn appraise<'a>(
        &'a self,
        presented: &'a Presented<'a>,
        now: Timestamp,
    ) -> BoxFuture<'a, Result<Workload, AttestError>>;
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

/// All configured attestors.
pub struct Attestors {
    all: Vec<Box<dyn Attestor>>,
    /// For an honest word in the logs when an issuer is known and the audience is not.
    issuers: BTreeSet<String>,
    not_before: Option<Timestamp>,
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
        for spec in specs {
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
        })
    }

    /// Who presents this evidence. A `DPoP` header must hold whatever the attestor is, and where
    /// evidence may be used again, a proof is demanded and binds it.
    pub async fn appraise(
        &self,
        evidence: &Evidence,
        now: Timestamp,
    ) -> Result<Workload, AttestError> {
        let presented = Presented::new(evidence);
        let mut matching = self.all.iter().filter(|a| a.recognises(&presented));
        let (Some(attestor), None) = (matching.next(), matching.next()) else {
            return Err(self.refusal(&presented));
        };
        let mut workload = attestor.appraise(&presented, now).await?;
        // An issuer whose clock is ahead may have dated so what it gave out before.
        let dated = |at: Timestamp| at.plus_seconds(attestor.leeway_seconds());
        if self
            .not_before
            .is_some_and(|at| workload.issued_at < dated(at))
        {
            return Err(AttestError::BeforeOurLog);
        }
        // A proof is made for this one request; the certificate is the connection's, which a proxy
        // beside the workload may share among many. Where there are both the proof binds, and a
        // proof that is no good is never made up for by the certificate.
        workload.key = certificate::key(evidence);
        if !evidence.dpop.is_empty() {
            let proof = dpop::verify(evidence, None, now)?;
            workload.key = Some(proof.key);
            workload.proofs.push(proof.one_time);
        }
        if workload.reuse == Reuse::Bound {
            let key = workload.key.as_ref().ok_or(AttestError::ReplayUnbound)?;
            workload.evidence.binding = Some(sha256(key.to_text().as_bytes()));
        }
        Ok(workload)
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

/// A one-time id over several texts, none of which can be taken for a part of another.
fn one_time(kind: &str, parts: &[&[u8]], expires_at: Timestamp) -> OneTime {
    let mut input = Vec::new();
    for part in std::iter::once(&kind.as_bytes()).chain(parts) {
        input.extend_from_slice(&(part.len() as u64).to_be_bytes());
        input.extend_from_slice(part);
    }
    OneTime {
        must_be_new: false,
        key: sha256(&input),
        binding: None,
        expires_at,
    }
}

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
