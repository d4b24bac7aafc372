//! The limit by identity, once it is verified and before anything is decided or recorded.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

use crate::broker::error::{BrokerError, Exceeded};
use crate::domain::workload::Identity;

/// The number of requests after which the limiter drops identities that have sent none recently.
const SWEEP_EVERY: u32 = 10_000;

/// Limits the requests of each identity. Only verified identities are counted, so unauthenticated
/// callers cannot make the map grow.
pub struct IdentityLimiter {
    limiter: DefaultKeyedRateLimiter<Identity>,
    clock: DefaultClock,
    per_second: u32,
    seen: AtomicU32,
}

impl IdentityLimiter {
    /// A limiter of `per_second` requests a second and `burst` requests at once for each identity.
    /// Zero counts as one.
    #[must_use]
    pub fn new(per_second: u32, burst: u32) -> Self {
        let at_least_one = |n| NonZeroU32::new(n).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::per_second(at_least_one(per_second)).allow_burst(at_least_one(burst));
        Self {
            limiter: RateLimiter::keyed(quota),
            clock: DefaultClock::default(),
            per_second,
            seen: AtomicU32::new(0),
        }
    }

    /// Counts a request of this identity.
    pub(super) fn check(&self, identity: &Identity) -> Result<(), BrokerError> {
        if self.seen.fetch_add(1, Ordering::Relaxed) % SWEEP_EVERY == SWEEP_EVERY - 1 {
            self.limiter.retain_recent();
        }
        self.limiter.check_key(identity).map_err(|not_until| {
            let wait = not_until.wait_time_from(self.clock.now());
            BrokerError::RateLimited(Exceeded {
                policy: "identity",
                quota: self.per_second,
                window_seconds: 1,
                retry_seconds: wait.as_secs() + 1,
            })
        })
    }
}
