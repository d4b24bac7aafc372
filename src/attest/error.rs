//! The reasons why evidence is refused, and the part of a reason that its holder may learn.
//!
//! [`AttestError`] is the condition that failed. [`Refused`] adds whether the signature was
//! verified before, and [`AttestFailure`] the attestor and the unverified issuer.
//!
//! Logs and metrics receive the full reason. A caller learns which condition failed only after the
//! signature of its token has verified ([`AttestFailure::for_caller`]): then its own token is at
//! fault, and the response names the claim but never the value that the configuration requires.
//! Before that every refusal is the same, so that callers cannot probe the configuration with
//! forged tokens.
//!
//! Three reasons are faults of the broker or the issuer ([`AttestError::is_transient`]): the same
//! caller can succeed later. Evidence that was verified before another part of its request was
//! refused is carried along ([`VerifiedEvidence`]); `broker::access` consumes it, logs the failure
//! and counts it.

use crate::crypto::jwt::{JwtError, TimeError};
use crate::domain::workload::{OneTime, Workload};

/// The longest issuer in a log line, in bytes; the rest is cut off. The text is unverified, and a
/// caller must not be able to fill the log with it.
const MAX_ISSUER_BYTES: usize = 200;

/// How long a caller waits before the broker fetches a key set or asks a cluster again.
const ISSUER_RETRY_SECONDS: u64 = super::jwks::COOL_DOWN_SECONDS;

/// The name in metrics and logs for evidence that no attestor, or more than one, is configured for.
pub const NO_ATTESTOR: &str = "none";

/// The condition that evidence did not meet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttestError {
    /// The request has no evidence that an attestor can read.
    #[error("no evidence was presented")]
    Missing,
    /// The token cannot be read unambiguously.
    #[error("the token is malformed")]
    Malformed(#[source] JwtError),
    /// No attestor is configured for the token, or more than one.
    #[error("no attestor is configured for the token's issuer and audience")]
    UnknownIssuer,
    /// The token is not for this broker, or not for it alone.
    #[error("its `aud` names another audience than this broker's, or more than one")]
    WrongAudience,
    /// The token has another type.
    #[error("its header's `typ`, or another header parameter, is not that of an attestation")]
    WrongType,
    /// The issuer may not use the algorithm.
    #[error("its header's `alg` is not accepted from its issuer")]
    WrongAlgorithm,
    /// The issuer or the workload has no such key.
    #[error("its header's `kid` names no key that is known")]
    UnknownKey,
    /// The signature is invalid.
    #[error("its signature does not verify")]
    BadSignature,
    /// `exp` has passed.
    #[error("it has expired: its `exp` has passed")]
    Expired,
    /// The token is too old or from the future, or has no usable dates.
    #[error("its dates are refused: {0}")]
    WrongTimes(TimeError),
    /// The token was issued before the log's succession, so the broker does not know whether it was
    /// used.
    #[error("its `iat` is from before the broker's present log began")]
    BeforeOurLog,
    /// A required claim has another value.
    #[error("its claim `{0}` does not have a value that is accepted here")]
    RequiredClaim(String),
    /// A claim is missing, too long, or not of its declared type.
    #[error("its claim `{0}` is missing, too long, or not of the declared type")]
    ClaimType(String),
    /// The cluster does not confirm the token: it was revoked, its pod no longer exists, or it is
    /// for another audience.
    #[error("the cluster does not confirm it")]
    Reviewed,
    /// The cluster that must confirm the token is unreachable.
    #[error("the cluster could not be asked about it")]
    ReviewUnreachable,
    /// Identity or instance cannot be written.
    #[error("the identity formed by its claims is empty or too long")]
    Identity,
    /// The attestor's tokens may be used repeatedly, but only with a proof of possession.
    #[error("it needs a DPoP proof or a client certificate in the same request")]
    ReplayUnbound,
    /// The token is bound to a key that the caller did not prove, or by an unknown method.
    #[error("its `cnf` does not hold: {0}")]
    Confirmation(&'static str),
    /// A `DPoP` header does not have a valid proof.
    #[error("the DPoP proof is refused: {0}")]
    BadProof(&'static str),
    /// A `DPoP` proof has no nonce of this broker, or an old one.
    #[error("the DPoP proof has no valid nonce")]
    NonceWanted,
    /// The token is not that of an administrator.
    #[error("it is not an administrator's token")]
    UnknownAdminToken,
    /// The configured bootstrap token has ended.
    #[error("the bootstrap token has ended: {0}")]
    AdminTokenOver(&'static str),
    /// The evidence was used before.
    #[error("it was used before")]
    Replayed,
    /// The evidence was issued before the acceptance of a time, so the broker may no longer know
    /// whether it was used.
    #[error(
        "it was issued before an administrator accepted the clock's time, so the record of its \
        use may be lost"
    )]
    UseForgotten,
    /// The issuer's keys could not be fetched.
    #[error("the issuer's keys could not be fetched")]
    IssuerUnreachable,
    /// The registered keys could not be read.
    #[error("the registered keys could not be read")]
    KeysUnavailable,
}

impl AttestError {
    /// Every [`Self::reason`].
    pub const REASONS: [&'static str; 26] = [
        "missing",
        "malformed",
        "unknown_issuer",
        "wrong_audience",
        "wrong_type",
        "wrong_algorithm",
        "unknown_key",
        "bad_signature",
        "expired",
        "wrong_times",
        "before_our_log",
        "required_claim",
        "claim_type",
        "reviewed",
        "review_unreachable",
        "identity",
        "replay_unbound",
        "confirmation",
        "bad_proof",
        "use_dpop_nonce",
        "unknown_admin_token",
        "admin_token_over",
        "replayed",
        "use_forgotten",
        "issuer_unreachable",
        "keys_unavailable",
    ];

    /// A stable code for logs, metrics and callers.
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
            Self::Confirmation(_) => "confirmation",
            Self::BadProof(_) => "bad_proof",
            Self::NonceWanted => "use_dpop_nonce",
            Self::UnknownAdminToken => "unknown_admin_token",
            Self::AdminTokenOver(_) => "admin_token_over",
            Self::Replayed => "replayed",
            Self::UseForgotten => "use_forgotten",
            Self::IssuerUnreachable => "issuer_unreachable",
            Self::KeysUnavailable => "keys_unavailable",
        }
    }

    /// The claim or header parameter that was refused; `None` if the refusal is about neither.
    #[must_use]
    pub fn claim(&self) -> Option<&str> {
        match self {
            Self::UnknownIssuer => Some("iss"),
            Self::WrongAudience => Some("aud"),
            Self::WrongType => Some("typ"),
            Self::WrongAlgorithm => Some("alg"),
            Self::UnknownKey => Some("kid"),
            Self::Expired => Some("exp"),
            Self::WrongTimes(error) => Some(error.claim()),
            Self::BeforeOurLog | Self::UseForgotten => Some("iat"),
            Self::RequiredClaim(name) | Self::ClaimType(name) => Some(name),
            Self::Confirmation(_) => Some("cnf"),
            Self::Missing
            | Self::Malformed(_)
            | Self::BadSignature
            | Self::Reviewed
            | Self::ReviewUnreachable
            | Self::Identity
            | Self::ReplayUnbound
            | Self::BadProof(_)
            | Self::NonceWanted
            | Self::UnknownAdminToken
            | Self::AdminTokenOver(_)
            | Self::Replayed
            | Self::IssuerUnreachable
            | Self::KeysUnavailable => None,
        }
    }

    /// Whether the broker or the issuer is at fault, so that the same caller may succeed later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        self.retry_seconds().is_some()
    }

    /// Seconds until the next attempt can succeed; `None` if neither the broker nor the issuer is
    /// at fault.
    #[must_use]
    pub fn retry_seconds(&self) -> Option<u64> {
        match self {
            Self::IssuerUnreachable => Some(ISSUER_RETRY_SECONDS),
            Self::ReviewUnreachable | Self::KeysUnavailable => Some(1),
            _ => None,
        }
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

/// The refusal of evidence by an attestor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The condition that failed.
    pub error: AttestError,
    /// Whether the token's signature was verified before.
    pub signed: bool,
}

impl Refused {
    /// A refusal of a token with a verified signature.
    #[must_use]
    pub fn signed(error: AttestError) -> Self {
        Self {
            error,
            signed: true,
        }
    }
}

impl<E: Into<AttestError>> From<E> for Refused {
    fn from(error: E) -> Self {
        Self {
            error: error.into(),
            signed: false,
        }
    }
}

/// Refused evidence: the attestor, the reason, and whether the caller may learn the reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{error}")]
pub struct AttestFailure {
    /// The condition that failed.
    pub error: AttestError,
    /// The attestor of the evidence; `None` if there is none or more than one.
    pub attestor: Option<String>,
    /// The unverified issuer in the token, in printable characters and of limited length; `None` if
    /// the token cannot be read or names none.
    pub issuer: Option<String>,
    /// Whether the caller may learn the reason: the signature of its token was verified, or the
    /// reason is about data that the caller itself made, such as a DPoP proof.
    pub told: bool,
    /// The evidence that was verified before the refusal, and is consumed by it; `None` if the
    /// refusal came before the verification, so that nothing is consumed.
    pub verified: Option<Box<VerifiedEvidence>>,
}

/// Evidence that was verified before another part of its request was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedEvidence {
    /// The workload that the token identifies.
    pub workload: Workload,
    /// The one-time ids that the refusal consumes.
    pub one_time: Vec<OneTime>,
}

impl AttestFailure {
    /// A refusal without an attestor, whose reason the caller does not learn.
    #[must_use]
    pub fn unattributed(error: AttestError) -> Self {
        Self {
            error,
            attestor: None,
            issuer: None,
            told: false,
            verified: None,
        }
    }

    /// A refusal of a proof that the caller itself made, without a token of an issuer.
    #[must_use]
    pub fn of_proof(error: AttestError) -> Self {
        Self {
            told: true,
            ..Self::unattributed(error)
        }
    }

    /// The stable code of the reason.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        self.error.reason()
    }

    /// The reason if the caller may learn it.
    #[must_use]
    pub fn for_caller(&self) -> Option<&AttestError> {
        Some(&self.error).filter(|_| self.told)
    }
}

/// An unverified issuer in a form that is safe in a log line.
pub(super) fn printable_issuer(text: &str) -> String {
    let shown = |c: char| if c.is_ascii_graphic() { c } else { '?' };
    let cut = text.chars().take(MAX_ISSUER_BYTES);
    cut.map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_listed_once() {
        let name = || "x".to_owned();
        let all = [
            AttestError::Missing,
            AttestError::Malformed(JwtError::BadHeader),
            AttestError::UnknownIssuer,
            AttestError::WrongAudience,
            AttestError::WrongType,
            AttestError::WrongAlgorithm,
            AttestError::UnknownKey,
            AttestError::BadSignature,
            AttestError::Expired,
            AttestError::WrongTimes(TimeError::TooOld),
            AttestError::BeforeOurLog,
            AttestError::RequiredClaim(name()),
            AttestError::ClaimType(name()),
            AttestError::Reviewed,
            AttestError::ReviewUnreachable,
            AttestError::Identity,
            AttestError::ReplayUnbound,
            AttestError::Confirmation("x"),
            AttestError::BadProof("x"),
            AttestError::NonceWanted,
            AttestError::UnknownAdminToken,
            AttestError::AdminTokenOver("x"),
            AttestError::Replayed,
            AttestError::UseForgotten,
            AttestError::IssuerUnreachable,
            AttestError::KeysUnavailable,
        ];
        let reasons: Vec<_> = all.iter().map(AttestError::reason).collect();
        assert_eq!(reasons, AttestError::REASONS);
    }

    #[test]
    fn a_claimed_issuer_cannot_write_a_line_of_its_own() {
        assert_eq!(
            printable_issuer("https://a\n\u{1b}[2J\u{202e}b"),
            "https://a??[2J?b"
        );
        assert_eq!(printable_issuer(&"x".repeat(1_000)).len(), MAX_ISSUER_BYTES);
    }
}
