//! The limits by address, applied before anything is read or verified: requests a second,
//! simultaneous connections, and the memory for bodies.
//!
//! [`AddressLimiter`] counts requests, and [`AddressShares`] connections and memory, by IPv4
//! address and by IPv6 /64. The rule: these limits need no knowledge of the caller.
//! `broker::access` limits identities, after their evidence was verified.
//!
//! Failures: a request beyond the limit is a 429 with the time to wait. `None` from `take` means
//! that the address has its whole share. A request whose client address is unknown is not limited.
//! `http::mod` has the layer [`by_address`]; `server` takes shares for connections, and `bodies`
//! for memory.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use governor::clock::{Clock, DefaultClock};
use governor::{Quota, RateLimiter};

use super::AppState;
use super::client_address::ClientAddress;
use super::problem::Problem;
use crate::broker::Exceeded;
use crate::metrics::RateLimit;

/// The number of requests between two deletions of idle addresses.
const SWEEP_EVERY: u32 = 10_000;

/// The limiter of requests a second by address. An IPv6 host has a whole /64, which counts as one.
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
        self.limiter
            .check_key(&counted_as(address))
            .map_err(|not_until| not_until.wait_time_from(self.clock.now()).as_secs() + 1)
    }
}

/// The address or network that a request counts under.
fn counted_as(address: IpAddr) -> IpAddr {
    // A dual-stack listener shows IPv4 as `::ffff:a.b.c.d`, all of it in one /64.
    match address.to_canonical() {
        address @ IpAddr::V4(_) => address,
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
    }
}

/// The shares of addresses in a common resource: connections, or memory. An address that keeps its
/// share for ever gets nothing beyond it.
#[derive(Debug)]
pub(super) struct AddressShares {
    most: usize,
    held: Mutex<HashMap<IpAddr, usize>>,
}

/// A part of an address's share; dropping it gives the part back.
#[derive(Debug)]
pub struct AddressShare {
    address: IpAddr,
    amount: usize,
    shares: Arc<AddressShares>,
}

impl AddressShares {
    /// Of which each address may hold `most`.
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            held: Mutex::new(HashMap::new()),
        }
    }

    /// Takes an amount for this address. `None` if it would then hold more than its share.
    pub(super) fn take(self: &Arc<Self>, address: IpAddr, amount: usize) -> Option<AddressShare> {
        let address = counted_as(address);
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let count = held.get(&address).copied().unwrap_or(0);
        let count = count.checked_add(amount).filter(|sum| *sum <= self.most)?;
        held.insert(address, count);
        Some(AddressShare {
            address,
            amount,
            shares: Arc::clone(self),
        })
    }
}

impl Drop for AddressShare {
    fn drop(&mut self) {
        let held = &self.shares.held;
        let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = held.get_mut(&self.address) {
            *count = count.saturating_sub(self.amount);
            if *count == 0 {
                held.remove(&self.address);
            }
        }
    }
}

pub(super) async fn by_address(
    State(state): State<AppState>,
    request: Request,
    next: Next,
) -> Response {
    let address = request.extensions().get::<ClientAddress>();
    if let Some(ClientAddress(address)) = address
        && let Err(seconds) = state.addresses.check(*address)
    {
        state.broker.core.metrics().rate_limited(RateLimit::Address);
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
    fn an_address_has_its_share_and_gets_no_more_until_a_part_is_back() {
        let shares = Arc::new(AddressShares::new(3));
        let take = |address: &str, amount| shares.take(address.parse().unwrap(), amount);
        assert!(take("2001:db8::1", 4).is_none());
        let first = take("2001:db8::1", 2).unwrap();
        let _second = take("2001:db8::2", 1).unwrap();
        assert!(take("2001:db8::3", 1).is_none());
        let other = take("::ffff:192.0.2.1", 3).unwrap();
        drop(first);
        assert!(take("2001:db8::3", 3).is_none());
        assert!(take("2001:db8::3", 2).is_some());
        drop(other);
        assert_eq!(
            shares.held.lock().unwrap().len(),
            1,
            "an address that holds nothing must be removed"
        );
    }

    #[test]
    fn a_host_with_a_whole_network_of_addresses_counts_once() {
        let limiter = AddressLimiter::new(1, 1);
        assert!(limiter.check("2001:db8::1".parse().unwrap()).is_ok());
        assert!(limiter.check("2001:db8::ffff:1".parse().unwrap()).is_err());
        assert!(limiter.check("2001:db8:0:1::1".parse().unwrap()).is_ok());
    }
}
