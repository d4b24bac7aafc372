//! Why evidence was refused, and how much of that its bearer may learn.
//!
//! Logs and metrics get all of it. A caller learns which condition failed only once the signature
//! of its token has verified: then it is a fault of the caller's own token, and the answer names
//! the claim and never the value that the configuration wants. Until then every refusal is the
//! same, so that nobody can try forged tokens against us and see how far they get.

use crate::crypto::jwt::{JwtError, TimeError};
use crate::domain::workload::{OneTime, Workload};

/// The longest issuer that is written into a log line.
const MAX_ISSUER_BYTES: usize = 200;

/// How long a caller waits before a key set is fetched again, or a cluster asked again.
const ISSUER_RETRY_SECONDS: u64 = super::jwks::COOL_DOWN_SECONDS;

/// The name in metrics and logs for evidence that no attestor, or more than one, is configured for.
pub const NO_ATTESTOR: &str = "none";

/// Which condition evidence did not meet.
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
    #[error("its `aud` names another audience than this broker's, or more than one")]
    WrongAudience,
    /// Another kind of token.
    #[error("its header's `typ`, or another header parameter, is not that of an attestation")]
    WrongType,
    /// An algorithm that its issuer may not use.
    #[error("its header's `alg` is not believed from its issuer")]
    WrongAlgorithm,
    /// The issuer or the workload has no such key.
    #[error("its header's `kid` names no key that is known")]
    UnknownKey,
    /// The signature does not verify.
    #[error("its signature does not verify")]
    BadSignature,
    /// `exp` has passed.
    #[error("it has expired: its `exp` has passed")]
    Expired,
    /// Too old, from the future, or without usable dates.
    #[error("its dates are refused: {0}")]
    WrongTimes(TimeError),
    /// Made before the log began anew: whether it was used is not known.
    #[error("it was made before the broker's log began anew, by its `iat`")]
    BeforeOurLog,
    /// A required claim has another value.
    #[error("its claim `{0}` does not have a value that is accepted here")]
    RequiredClaim(String),
    /// A claim is missing, or not of its declared type, or too long.
    #[error("its claim `{0}` is missing, too long, or not of the declared type")]
    ClaimType(String),
    /// The cluster does not vouch for it: revoked, its pod gone, or meant for another audience.
    #[error("the cluster does not vouch for it")]
    Reviewed,
    /// The cluster that must vouch for it cannot be asked.
    #[error("the cluster could not be asked about it")]
    ReviewUnreachable,
    /// Identity or instance cannot be written.
    #[error("the identity that its claims make is empty or too long")]
    Identity,
    /// The attestor's tokens may be used again, but only with a proof of possession.
    #[error("it needs a DPoP proof or a client certificate beside it")]
    ReplayUnbound,
    /// It is bound to a key that the caller did not prove, or by a method that is not known.
    #[error("its `cnf` does not hold: {0}")]
    Confirmation(&'static str),
    /// A `DPoP` header that proves nothing.
    #[error("the DPoP proof is refused: {0}")]
    BadProof(&'static str),
    /// A `DPoP` header without a nonce of ours, or with one that is too old.
    #[error("the DPoP proof has no good nonce")]
    NonceWanted,
    /// No token of an administrator's.
    #[error("it is no administrator's token")]
    UnknownAdminToken,
    /// The configured bootstrap token, which is good no more.
    #[error("the bootstrap token is good no more: {0}")]
    AdminTokenOver(&'static str),
    /// It was used before.
    #[error("it was used before")]
    Replayed,
    /// It was issued before a time was accepted, and which evidence of then was used is not known any
    /// more.
    #[error(
        "it was issued before the clock's time was accepted, and whether it was used may have been \
         forgotten"
    )]
    UseForgotten,
    /// The issuer's keys cannot be fetched.
    #[error("the issuer's keys could not be fetched")]
    IssuerUnreachable,
    /// Registered keys cannot be read.
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

    /// A stable short word, for logs, metrics and callers.
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

    /// The claim or header parameter that did not hold, where it is one.
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

    /// Whether the fault is ours or the issuer's, so that the same caller may succeed later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        self.retry_seconds().is_some()
    }

    /// After how many seconds it is worth trying again, where the fault is ours or the issuer's.
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

/// What an attestor says of evidence that it refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Which condition did not hold.
    pub error: AttestError,
    /// Whether the token's signature had verified by then.
    pub signed: bool,
}

impl Refused {
    /// Of a token whose signature verified.
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

/// Evidence that was refused: by which attestor, for what, and who may know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{error}")]
pub struct AttestFailure {
    /// Which condition did not hold.
    pub error: AttestError,
    /// The attestor that the evidence is for; `None` where it is for none, or for several.
    pub attestor: Option<String>,
    /// The issuer that the token names, in printable characters and bounded: nothing vouches for
    /// it before the signature has verified.
    pub issuer: Option<String>,
    /// Whether the caller may learn the reason: the signature of its token has verified, or the
    /// reason is read from what the caller itself made, as of a DPoP proof.
    pub told: bool,
    /// What had been verified of it, and is used up with the refusal.
    pub verified: Option<Box<VerifiedEvidence>>,
}

/// Evidence that was verified before something else of its request was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedEvidence {
    /// The workload that the token names.
    pub workload: Workload,
    /// The one-time ids that are used up.
    pub one_time: Vec<OneTime>,
}

impl AttestFailure {
    /// A refusal that belongs to no attestor, and whose reason the caller does not learn.
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

    /// A proof that the caller made itself, beside evidence that is no token of an issuer.
    #[must_use]
    pub fn of_proof(error: AttestError) -> Self {
        Self {
            told: true,
            ..Self::unattributed(error)
        }
    }

    /// The stable short word of the reason.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        self.error.reason()
    }

    /// What the caller may learn: the reason, or nothing.
    #[must_use]
    pub fn for_caller(&self) -> Option<&AttestError> {
        Some(&self.error).filter(|_| self.told)
    }
}

/// A claimed issuer as a log line may have it.
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
