//! Admins' tokens: the bootstrap token and the development token.
//!
//! - Of the bootstrap token, only the hash is configured. It expires one day after a replica first
//!   saw it, or as soon as a replica sees another one.
//! - The development token exists in development mode only, and lives as long as its process.
//!
//! `Access::token_bearer` authenticates a token, `judge_bootstrap` asks the store about the
//! bootstrap token, and `bootstrap_fault` applies the rule. A bootstrap token that has become
//! invalid stays invalid: its end is recorded in the store, unless the clock is in doubt.
//!
//! Failures: an unknown token, a token that has ended, and a token that comes with a DPoP proof are
//! all `Attestation`, and the reason is logged. A store that cannot be read is an error, never a
//! valid token. `access::evidence`, the start (`app`) and the sweeper call this module.

use super::Access;
use super::caller::Caller;
use crate::attest::{AttestError, AttestFailure, Evidence, TokenScheme};
use crate::broker::error::BrokerError;
use crate::clock::Timestamp;
use crate::crypto::digest::digests_equal;
use crate::crypto::random::token_digest;
use crate::domain::limits::MAX_CLOCK_STEP_SECONDS;
use crate::ledger::clock_watch::ClockWatch;
use crate::store::meta::BootstrapToken;
use crate::store::{Store, StoreError};

/// The prefix of admins' tokens.
pub const ADMIN_PREFIX: &str = "tpa_";

/// For how many seconds a bootstrap token is valid after it was first seen.
pub const BOOTSTRAP_SECONDS: u64 = 86_400;

/// The digests of the configured tokens. `None` if a token is not configured.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "the names say it all")]
pub struct AdminTokens {
    pub bootstrap: Option<[u8; 32]>,
    pub dev: Option<[u8; 32]>,
}

/// Why a bootstrap token is invalid by a clock that shows `now`. `None` if it is valid. `latest` is
/// the latest known time: of the clock, the newest leaf and the horizon. A token that has become
/// invalid stays invalid, even if it is configured again.
#[must_use]
pub fn bootstrap_fault(
    seen: &BootstrapToken,
    now: Timestamp,
    latest: Timestamp,
) -> Option<&'static str> {
    let day = BOOTSTRAP_SECONDS;
    if seen.ended {
        Some(
            "it has ended: its day had passed, or an admin accepted an earlier time; configure a \
             new one",
        )
    } else if seen.replaced {
        Some(
            "another bootstrap token was configured after it, here or on another replica; \
             configure one new token on all replicas",
        )
    } else if seen.first_seen > now.plus_seconds(MAX_CLOCK_STEP_SECONDS) {
        Some("it was first seen at a time that is ahead of the broker's clock; configure a new one")
    } else if now >= seen.first_seen.plus_seconds(day) || latest >= seen.log_time.plus_seconds(day)
    {
        Some("it expired one day after it was first seen; bind an admin, or configure a new one")
    } else {
        None
    }
}

/// The latest known time: of the clock, the newest leaf and the horizon.
pub async fn latest_time(
    store: &Store,
    clock: &ClockWatch,
    now: Timestamp,
) -> Result<Timestamp, StoreError> {
    let horizon = store.horizon().await?;
    let known = [clock.newest(), horizon].into_iter().flatten();
    Ok(known.fold(now, Timestamp::max))
}

/// Why the bootstrap token with this digest is invalid. `None` if it is valid. An expired token is
/// also ended in the store if the clock can be relied on.
pub async fn judge_bootstrap(
    store: &Store,
    clock: &ClockWatch,
    digest: &[u8; 32],
    now: Timestamp,
) -> Result<Option<&'static str>, StoreError> {
    // The store knows when the token was first seen, and whether a replica has seen another one
    // since.
    let Some(seen) = store.bootstrap_token(digest).await? else {
        return Ok(Some("the store does not know it; restart the replica"));
    };
    let latest = latest_time(store, clock, now).await?;
    let fault = bootstrap_fault(&seen, now, latest);
    if fault.is_some() && !seen.ended && !seen.replaced && clock.doubt().is_none() {
        let ahead = now.plus_seconds(MAX_CLOCK_STEP_SECONDS);
        store
            .end_bootstrap_tokens(now.minus_seconds(BOOTSTRAP_SECONDS), ahead)
            .await?;
    }
    Ok(fault)
}

impl Access {
    /// The bearer of an admin's token.
    pub(super) async fn token_bearer(
        &self,
        token: &str,
        evidence: &Evidence,
        now: Timestamp,
    ) -> Result<Caller, BrokerError> {
        let refused = |error| self.refuse_evidence(evidence, AttestFailure::unattributed(error));
        let digest = token_digest(token);
        let tokens = &self.admin_tokens;
        if tokens.dev.is_some_and(|own| digests_equal(&own, &digest)) {
            return Ok(Caller::dev());
        }
        let bootstrap = tokens.bootstrap.as_ref();
        if !bootstrap.is_some_and(|own| digests_equal(own, &digest)) {
            return Err(refused(AttestError::UnknownAdminToken));
        }
        match judge_bootstrap(self.core.store(), self.core.ledger().clock(), &digest, now).await? {
            None => Ok(Caller::bootstrap()),
            Some(why) => Err(refused(AttestError::AdminTokenOver(why))),
        }
    }

    /// Records the end of the configured bootstrap token in the store once its day has passed. A
    /// clock that goes back then does not make it valid again.
    pub async fn end_bootstrap_token(&self, now: Timestamp) -> Result<(), BrokerError> {
        if let Some(digest) = &self.admin_tokens.bootstrap {
            judge_bootstrap(self.core.store(), self.core.ledger().clock(), digest, now).await?;
        }
        Ok(())
    }
}

/// Refuses an admin's token that comes with a proof. Such a token is bound to no key, so the proof
/// was meant for another credential.
pub(super) fn only_as_bearer(evidence: &Evidence) -> Result<(), AttestFailure> {
    if evidence.scheme == TokenScheme::Dpop || !evidence.dpop.is_empty() {
        let why = "an admin's token must be sent as `Bearer`, without a DPoP proof";
        return Err(AttestFailure::of_proof(AttestError::BadProof(why)));
    }
    Ok(())
}
