//! Why a call came to nothing: one variant a reason. Each door has one place that turns these into
//! its own language.

use super::check::Unfit;
use crate::attest::AttestFailure;
use crate::clock::Timestamp;
use crate::domain::cutoff::Selector;
use crate::domain::decision::{Observed, Outcome, Refusal};
use crate::domain::generation::GenerationDigest;
use crate::ids::{DecisionId, SessionId};
use crate::ledger::AppendError;
use crate::ledger::entry::Blocked;
use crate::merkle::Receipt;
use crate::policy::PolicyError;
use crate::store::StoreError;
use crate::store::heads::HeadError;

/// A limit that was exceeded, in the words of the `RateLimit` header fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exceeded {
    /// Its name.
    pub policy: &'static str,
    /// How many are allowed in a window.
    pub quota: u32,
    /// The window's length.
    pub window_seconds: u64,
    /// When it is worth coming again.
    pub retry_seconds: u64,
}

/// A refusal that is on record.
#[derive(Debug)]
pub struct Denied {
    /// The decision.
    pub decision: DecisionId,
    /// What was decided.
    pub outcome: Outcome,
    /// Why, as its caller may read it.
    pub refusal: Refusal,
    /// What decided.
    pub generation: GenerationDigest,
    /// What policies that merely observe would have made of it.
    pub observed: Option<Box<Observed>>,
    /// The proof that it is on record.
    pub receipt: Receipt,
}

/// Why a request that comes again is not answered with a new credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotRepeated {
    /// The first credential cannot be ended at once, or was superseded as often as may be.
    #[error(
        "the first credential cannot be superseded: its class is not `immediate`, or it was \
         superseded three times"
    )]
    NotSuperseded,
    /// The first credential is over.
    #[error("the first credential is over")]
    Over,
    /// The first request was another run's, or proved a key that this one did not.
    #[error("the first request was another run's, or proved another key than this one")]
    AnotherKey,
    /// Neither an instance nor a key tells one run of the workload from another.
    #[error(
        "its attestor does not tell one run of a workload from another, so a request is repeated \
         with the key that the first one proved, by a DPoP proof or a client certificate, and the \
         first one proved none"
    )]
    NoInstance,
}

/// Why a call came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// The evidence does not show who calls. The caller learns the reason only where
    /// [`AttestFailure::for_caller`] gives it.
    #[error("attestation failed: {0}")]
    Attestation(#[source] Box<AttestFailure>),
    /// It cannot be found out now whether the evidence is good: the issuer, the cluster or the
    /// registered keys cannot be read. It was not used up.
    #[error("attestation is not possible now: {0}")]
    AttestationUnavailable(#[source] Box<AttestFailure>),
    /// The evidence was used before.
    #[error("the attestation was used before")]
    Replayed,
    /// The evidence was used before, and its holder cannot renew it at will.
    #[error("the attestation was used before, the next is to be had at {next_at}")]
    UsedUp {
        /// When the next is to be had.
        next_at: Timestamp,
    },
    /// The state upon which the caller was let in changed while the call was under way. The call is
    /// judged anew, so no caller is told.
    #[error("what decides, or a role, changed while this was under way")]
    Superseded,
    /// The caller is known, and may not do this.
    #[error("not allowed: {0}")]
    Forbidden(&'static str),
    /// The caller is known, and a revocation blocks it. It learns no more than that.
    #[error("{} is refused: a revocation blocks the caller", .0.act)]
    Blocked(Blocked),
    /// No bound identity could activate the next generation afterwards.
    #[error(
        "afterwards no bound identity could activate the next generation; bind another one to such a \
         role first, or use the bootstrap token if policy lets it do this"
    )]
    LastAdmin,
    /// A caller binds or unbinds its own identity.
    #[error(
        "nobody binds a role to their own identity, or takes one from it: another admin does, or the \
         bootstrap token"
    )]
    OwnBinding,
    /// Nothing was ever activated, so nothing is decided and no evidence but an admin's token is read.
    #[error(
        "no generation is active, so nothing can be decided; activate one with `taskpass policy \
         activate`, by the bootstrap token where there is no admin yet"
    )]
    NoGeneration,
    /// There is no such thing, or it is not the caller's to know.
    #[error("there is no such {0}")]
    NotFound(&'static str),
    /// A selector names something that does not exist, and nothing on record matches it.
    #[error(
        "nothing is known of `{0}`: nothing of this name exists, and no session on record matches it. Check \
         the name, or set `unknown` to revoke it all the same"
    )]
    UnknownSelector(Box<Selector>),
    /// Policy refused, on record.
    #[error("refused: {}", .0.refusal.detail)]
    Denied(Box<Denied>),
    /// The task, or one that it is part of, is over.
    #[error("the task is over")]
    TaskEnded,
    /// The attestor of the task's owner, or of one above it, was removed or gives other identities.
    #[error("the task's owner is attested no more")]
    OwnerWithdrawn,
    /// The key's first request got a credential that cannot be taken back.
    #[error("this Idempotency-Key was answered already")]
    AlreadyIssued(SessionId, NotRepeated),
    /// The key's first request is still under way.
    #[error("the first request with this Idempotency-Key is under way")]
    InProgress,
    /// The key was used for another request.
    #[error("this Idempotency-Key was used for another request")]
    RetryMismatch,
    /// As many keys of a purpose are published as may be.
    #[error("{most} keys are published already; the next rotation is possible from {until}")]
    TooManyKeys {
        /// How many may be.
        most: usize,
        /// When one of them is gone.
        until: Timestamp,
    },
    /// What was sent contradicts itself or our limits.
    #[error("{detail}")]
    Invalid {
        /// Where in the request, as a JSON pointer.
        pointer: &'static str,
        /// What is wrong.
        detail: String,
    },
    /// A generation that was sent cannot decide here.
    #[error(transparent)]
    Unfit(Box<Unfit>),
    /// Too many of these.
    #[error("too many requests")]
    RateLimited(Exceeded),
    /// Too much is waiting.
    #[error("overloaded")]
    Overloaded,
    /// Store, ledger, policy or keys cannot be relied on now: nothing is released.
    #[error("closed: {0}")]
    FailClosed(String),
}

impl BrokerError {
    /// Whether the fault is ours, so that the same request may succeed later.
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
}

impl From<Unfit> for BrokerError {
    fn from(unfit: Unfit) -> Self {
        Self::Unfit(Box::new(unfit))
    }
}

impl From<StoreError> for BrokerError {
    fn from(error: StoreError) -> Self {
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        Self::FailClosed(match cause {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        })
    }
}

impl From<HeadError> for BrokerError {
    fn from(error: HeadError) -> Self {
        match error {
            HeadError::Store(error) => error.into(),
            HeadError::Foreign(why) => Self::FailClosed(why.to_string()),
        }
    }
}

impl From<AppendError> for BrokerError {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::Overloaded => Self::Overloaded,
            other => Self::FailClosed(other.to_string()),
        }
    }
}

impl From<PolicyError> for BrokerError {
    fn from(error: PolicyError) -> Self {
        Self::FailClosed(error.to_string())
    }
}

impl From<crate::ids::NoRandomness> for BrokerError {
    fn from(error: crate::ids::NoRandomness) -> Self {
        Self::FailClosed(error.to_string())
    }
}
