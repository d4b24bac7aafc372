//! The limit by address, before anything is read or verified.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};

use axum::extract::{ConnectInfo, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use governor::clock::{Clock, DefaultClock};
use governor::{Quota, RateLimiter};

use super::AppState;
use super::problem::Problem;
use crate::broker::Exceeded;
use crate::metrics::RateLimit;

/// How many requests go by between two looks at addresses that have gone quiet.
const SWEEP_EVERY: u32 = 10_000;

/// Requests a second by address. An IPv6 host has a whole /64 and counts as one.
pub(super) struct AddressLimiter {
    limiter: governor::DefaultKeyedRateLimiter<IpAddr>,
    clock: DefaultClock,
    quota: u32,
    seen: AtomicU32,
}

impl AddressLimiter {
    pub(super) fn new(per_second: u32, burst: u32) -> Self {
        let at_least_one = |n| NonZeroU32::new(n).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::per_second(at_least_one(per_second)).allow_burst(at_least_one(burst));
        Self {
            limiter: RateLimiter::keyed(quota),
            clock: DefaultClock::default(),
            quota: per_second,
            seen: AtomicU32::new(0),
        }
    }

    fn check(&self, address: IpAddr) -> Result<(), u64> {
        if self.seen.fetch_add(1, Ordering::Relaxed) % SWEEP_EVERY == SWEEP_EVERY - 1 {
            self.limiter.retain_recent();
        }
        // On a dual-stack listener IPv4 comes as ::ffff:a.b.c.d, all of it in one /64.
        let address = match address.to_canonical() {
            address @ IpAddr::V4(_) => address,
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
            }
        };
        self.limiter
            .check_key(&address)
            .map_err(|not_until| not_until.wait_time_from(self.clock.now()).as_secs() + 1)
    }
}

pub(super) async fn by_address(
    State(state): State<AppState>,
    request: Request,
    next: Next,
) -> Response {
    let address = request.extensions().get::<ConnectInfo<SocketAddr>>();
    if let Some(ConnectInfo(address)) = address
        && let Err(seconds) = state.addresses.check(address.ip())
    {
        state.broker.metrics().rate_limited(RateLimit::Address);
        let exceeded = Exceeded {
            policy: "address",
            quota: state.addresses.quota,
            window_seconds: 1,
            retry_seconds: seconds,
        };
        return Problem::rate_limited(exceeded).into_response();
    }
    next.run(request).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_its_burst_and_then_waits() {
        let limiter = AddressLimiter::new(1, 3);
        let address: IpAddr = "192.0.2.1".parse().unwrap();
        for _ in 0..3 {
            assert!(limiter.check(address).is_ok());
        }
        let seconds = limiter.check(address).unwrap_err();
        assert!((1..=2).contains(&seconds), "{seconds}");
        assert!(limiter.check("192.0.2.2".parse().unwrap()).is_ok());
    }

    #[test]
    fn a_host_with_a_whole_network_of_addresses_counts_once() {
        let limiter = AddressLimiter::new(1, 1);
        assert!(limiter.check("2001:db8::1".parse().unwrap()).is_ok());
        assert!(limiter.check("2001:db8::ffff:1".parse().unwrap()).is_err());
        assert!(limiter.check("2001:db8:0:1::1".parse().unwrap()).is_ok());
    }
}
