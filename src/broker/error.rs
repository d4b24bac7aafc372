//! The reasons why a call failed, one variant each.
//!
//! `BrokerError` is the error of every public method of a service. `Denied` is a refusal that is in
//! the ledger, with its receipt. `NotRepeated` says why a repeated request gets no new credential,
//! and `Exceeded` describes a rate limit. The rule: if store, ledger, policy or randomness fail,
//! the error is `FailClosed`, and nothing is released. Of the ledger's errors, only a full queue
//! becomes `Overloaded`.
//!
//! `is_transient` tells failures of the broker, which the same request may not meet again, from
//! refusals of the request. `NotFound` stands both for an absent object and for one that the caller
//! may not learn of. Each interface converts these errors into its own format in one module:
//! `http::problem` and `http::oauth::error`. The text of [`FailClosed`] is for operators and the
//! log.

use super::check::Unfit;
use super::fail_closed::FailClosed;
use crate::attest::AttestFailure;
use crate::clock::Timestamp;
use crate::domain::cutoff::Selector;
use crate::domain::decision::{Observed, Outcome, Refusal};
use crate::domain::generation_digest::GenerationDigest;
use crate::ids::{DecisionId, SessionId};
use crate::ledger::AppendError;
use crate::ledger::entry::Blocked;
use crate::merkle::Receipt;
use crate::policy::PolicyError;
use crate::store::StoreError;
use crate::store::heads::HeadError;

/// A limit that was exceeded, in the terms of the `RateLimit` header fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct Exceeded {
    /// The name of the limit.
    pub policy: &'static str,
    /// How many requests are allowed in a window.
    pub quota: u32,
    pub window_seconds: u64,
    /// Seconds until a request can succeed again.
    pub retry_seconds: u64,
}

/// A refusal that is in the ledger.
#[derive(Debug)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct Denied {
    pub decision: DecisionId,
    pub outcome: Outcome,
    /// The reason, as its caller may read it.
    pub refusal: Refusal,
    /// The generation that decided.
    pub generation: GenerationDigest,
    /// The effect that observing policies would have had. `None` if there are none.
    pub observed: Option<Box<Observed>>,
    /// The proof that the refusal is in the ledger.
    pub receipt: Receipt,
}

/// Why a repeated request does not get a new credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotRepeated {
    /// The first credential cannot be ended at once, or was superseded as often as is allowed.
    #[error(
        "the first credential cannot be superseded: its class is not `immediate`, or it was \
         superseded three times"
    )]
    NotSuperseded,
    /// The first credential has ended or expired.
    #[error("the first credential has ended or expired")]
    Over,
    /// The first request came from another run of the workload, or proved a key that this one did
    /// not prove.
    #[error(
        "the first request came from another run of the workload, or proved another key than this \
         one"
    )]
    AnotherKey,
    /// Neither an instance nor a key distinguishes the runs of the workload.
    #[error(
        "the first request proved no key, and its attestor does not distinguish the runs of a \
         workload; a request can be repeated only if both prove the same key by a DPoP proof or a \
         client certificate"
    )]
    NoInstance,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// The evidence does not authenticate the caller. The caller learns the reason only if
    /// [`AttestFailure::for_caller`] returns it.
    #[error("attestation failed: {0}")]
    Attestation(#[source] Box<AttestFailure>),
    /// The evidence cannot be verified now: the issuer, the cluster or the registered keys cannot
    /// be read. The evidence was not used up.
    #[error("attestation is not possible now: {0}")]
    AttestationUnavailable(#[source] Box<AttestFailure>),
    /// The evidence was used before.
    #[error("the attestation was used before")]
    Replayed,
    /// The evidence was used before, and its holder cannot renew it at any time.
    #[error("the attestation was used before; the next one is available at {next_at}")]
    UsedUp {
        /// When the holder gets the next attestation.
        next_at: Timestamp,
    },
    /// The generation or the roles by which the caller was authorized changed during the call. The
    /// call is handled again. Its caller gets this error only if they change each time.
    #[error("the active generation or a role changed during the call; try again")]
    Superseded,
    /// The caller is authenticated, and policy does not permit it this act.
    #[error("not allowed: {0}")]
    Forbidden(&'static str),
    /// The caller is authenticated, and a revocation blocks it. It learns no more than that.
    #[error("{} is refused: a revocation blocks the caller", .0.act)]
    Blocked(Blocked),
    /// Afterwards no bound identity could activate the next generation.
    #[error(
        "afterwards no bound identity could activate the next generation; first bind another \
         identity to a role that permits it, or use the bootstrap token if policy permits it"
    )]
    LastAdmin,
    /// A caller binds a role to its own identity, or unbinds one from it.
    #[error(
        "a caller cannot bind a role to its own identity or unbind one from it; ask another admin, \
         or use the bootstrap token"
    )]
    OwnBinding,
    /// No generation was ever activated. The broker decides nothing, and accepts no evidence but
    /// admins' tokens.
    #[error(
        "no generation is active, so nothing can be decided; activate one with `taskpass policy \
         activate`, with the bootstrap token if no admin is bound yet"
    )]
    NoGeneration,
    /// The object does not exist, or the caller may not learn that it exists.
    #[error("there is no such {0}")]
    NotFound(&'static str),
    /// A selector names an object that does not exist, and no session on record matches it.
    #[error(
        "nothing is known of `{0}`: nothing of this name exists, and no session on record matches \
         it; check the name, or set `allow_unknown` to revoke it nevertheless"
    )]
    UnknownSelector(Box<Selector>),
    /// Policy refused. The refusal is in the ledger.
    #[error("refused: {}", .0.refusal.detail)]
    Denied(Box<Denied>),
    /// The task or one of its ancestors has ended.
    #[error("the task has ended")]
    TaskEnded,
    /// The attestor of the task's owner, or of an ancestor's owner, was removed or gives other
    /// identities.
    #[error("the task's owner can no longer be attested")]
    OwnerWithdrawn,
    /// The key's first request got a credential that cannot be superseded.
    #[error("this Idempotency-Key was answered already")]
    AlreadyIssued(SessionId, NotRepeated),
    /// The key's first request is still in progress.
    #[error("the first request with this Idempotency-Key is in progress")]
    InProgress,
    /// The key was used for another request.
    #[error("this Idempotency-Key was used for another request")]
    RetryMismatch,
    /// The maximum number of keys of a purpose is published.
    #[error("{most} keys are published already; the next rotation is possible from {until}")]
    TooManyKeys {
        /// The maximum number of published keys.
        most: usize,
        /// When the next one of them is no longer published.
        until: Timestamp,
    },
    /// The request contradicts itself or exceeds a limit.
    #[error("{detail}")]
    Invalid {
        /// A JSON pointer to the faulty part of the request.
        pointer: &'static str,
        /// The fault, for people.
        detail: String,
    },
    /// The generation in the request cannot decide on this replica.
    #[error(transparent)]
    Unfit(Box<Unfit>),
    /// The caller sends requests too fast.
    #[error("too many requests")]
    RateLimited(Exceeded),
    /// Too many requests or jobs are waiting.
    #[error("overloaded")]
    Overloaded,
    /// A part of the broker cannot be relied on now. Nothing is released.
    #[error("closed: {0}")]
    FailClosed(FailClosed),
}

impl BrokerError {
    /// Whether the broker is at fault, so that the same request may succeed later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::AttestationUnavailable(_)
                | Self::Superseded
                | Self::Overloaded
                | Self::NoGeneration
                | Self::FailClosed(_)
        )
    }

    pub(crate) fn store(reason: impl Into<String>) -> Self {
        Self::FailClosed(FailClosed::Store(reason.into()))
    }

    pub(crate) fn ledger(reason: impl Into<String>) -> Self {
        Self::FailClosed(FailClosed::Ledger(reason.into()))
    }

    pub(crate) fn keys(reason: impl Into<String>) -> Self {
        Self::FailClosed(FailClosed::Keys(reason.into()))
    }

    pub(crate) fn policy(reason: impl Into<String>) -> Self {
        Self::FailClosed(FailClosed::Policy(reason.into()))
    }

    pub(crate) fn minter(reason: impl Into<String>) -> Self {
        Self::FailClosed(FailClosed::Minter(reason.into()))
    }

    pub(crate) fn host(reason: impl Into<String>) -> Self {
        Self::FailClosed(FailClosed::Host(reason.into()))
    }

    pub(crate) fn bug(reason: impl Into<String>) -> Self {
        Self::FailClosed(FailClosed::Bug(reason.into()))
    }
}

impl From<Unfit> for BrokerError {
    fn from(unfit: Unfit) -> Self {
        Self::Unfit(Box::new(unfit))
    }
}

impl From<StoreError> for BrokerError {
    fn from(error: StoreError) -> Self {
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        Self::store(match cause {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        })
    }
}

impl From<HeadError> for BrokerError {
    fn from(error: HeadError) -> Self {
        match error {
            HeadError::Store(error) => error.into(),
            HeadError::Foreign(why) => Self::store(why.to_string()),
        }
    }
}

impl From<AppendError> for BrokerError {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::Overloaded => Self::Overloaded,
            other => Self::ledger(other.to_string()),
        }
    }
}

impl From<PolicyError> for BrokerError {
    fn from(error: PolicyError) -> Self {
        Self::policy(error.to_string())
    }
}

impl From<crate::ids::NoRandomness> for BrokerError {
    fn from(error: crate::ids::NoRandomness) -> Self {
        Self::host(error.to_string())
    }
}
