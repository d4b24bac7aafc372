//! Administrators' tokens: the bootstrap token, of which only the hash is configured, and which ends
//! one day after it was first seen or as soon as another one is seen; and the development mode's, which
//! exists in no other mode and lives as long as its process.

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

/// The prefix of administrators' tokens.
pub const ADMIN_PREFIX: &str = "tpa_";

/// How long a bootstrap token is good after it was first seen.
pub const BOOTSTRAP_SECONDS: u64 = 86_400;

/// The tokens that are configured, by their digests.
#[derive(Clone, Debug, Default)]
pub struct AdminTokens {
    /// The bootstrap token's digest.
    pub bootstrap: Option<[u8; 32]>,
    /// The development token's digest.
    pub dev: Option<[u8; 32]>,
}

/// Why a bootstrap token is good no more by a clock that shows `now`, if it is not. `latest` is the
/// latest time that is known: of the clock, the newest entry and the horizon. There is no way back: a
/// token that is over stays over, whatever is configured afterwards.
#[must_use]
pub fn bootstrap_fault(
    seen: &BootstrapToken,
    now: Timestamp,
    latest: Timestamp,
) -> Option<&'static str> {
    let day = BOOTSTRAP_SECONDS;
    if seen.ended {
        Some(
            "it was ended: its day was over, or an admin accepted an earlier time; configure a new one",
        )
    } else if seen.replaced {
        Some(
            "another bootstrap token was configured after it, here or on another replica; configure \
             one new token on every replica",
        )
    } else if seen.first_seen > now.plus_seconds(MAX_CLOCK_STEP_SECONDS) {
        Some("it was first seen at a time that is ahead of our clock; configure a new one")
    } else if now >= seen.first_seen.plus_seconds(day) || latest >= seen.log_time.plus_seconds(day)
    {
        Some("its day is over; bind an admin, or configure a new one")
    } else {
        None
    }
}

/// The latest time that is known: of the clock, the newest entry and the horizon.
pub async fn latest_time(
    store: &Store,
    clock: &ClockWatch,
    now: Timestamp,
) -> Result<Timestamp, StoreError> {
    let horizon = store.horizon().await?;
    let known = [clock.newest(), horizon].into_iter().flatten();
    Ok(known.fold(now, Timestamp::max))
}

/// Why the bootstrap token with this digest is good no more, if it is not. One whose day has passed
/// by a clock that can be relied on is ended in the store.
pub async fn judge_bootstrap(
    store: &Store,
    clock: &ClockWatch,
    digest: &[u8; 32],
    now: Timestamp,
) -> Result<Option<&'static str>, StoreError> {
    // The store knows since when it is configured, and whether another replica was given another one
    // meanwhile.
    let Some(seen) = store.bootstrap_token(digest).await? else {
        return Ok(Some("the store does not know it"));
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
    /// The caller of an administrator's token.
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

    /// Notes that the configured bootstrap token is over once its day has passed, so that no clock
    /// that goes back gives it another.
    pub async fn end_bootstrap_token(&self, now: Timestamp) -> Result<(), BrokerError> {
        if let Some(digest) = &self.admin_tokens.bootstrap {
            judge_bootstrap(self.core.store(), self.core.ledger().clock(), digest, now).await?;
        }
        Ok(())
    }
}

/// An administrator's token is bound to no key, so no proof can add to it: one that comes with a
/// proof was meant for something else.
pub(super) fn only_as_bearer(evidence: &Evidence) -> Result<(), AttestFailure> {
    if evidence.scheme == TokenScheme::Dpop || !evidence.dpop.is_empty() {
        let why = "an administrator's token is sent as `Bearer`, without a proof";
        return Err(AttestFailure::of_proof(AttestError::BadProof(why)));
    }
    Ok(())
}
