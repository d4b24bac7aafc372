//! Time is a parameter.
//!
//! Only this file reads the machine's clock. All other code receives a [`Clock`] or a
//! [`Timestamp`], and SQL never says `now()`. Tests of expiry can therefore use a [`ManualClock`],
//! and both databases see the same instant to the microsecond.
//!
//! Arithmetic on a [`Timestamp`] cannot fail: it stops at the years 1970 and 9999, so an overflow
//! never turns a late instant into an early one. A text that is not RFC 3339 is refused. Whether
//! the clock is right is not known here: `ledger::clock_watch` compares it with other clocks, and
//! the broker closes in doubt.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// An instant in UTC, in whole microseconds since 1970-01-01: the precision of both databases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// The latest instant that RFC 3339 can write: the end of the year 9999.
    pub const MAX: Self = Self(253_402_300_799_999_999);
    /// 1970-01-01T00:00:00Z.
    pub const EPOCH: Self = Self(0);

    /// From microseconds since 1970; values outside the years 1970–9999 are clamped to them.
    #[must_use]
    pub fn from_micros(micros: i64) -> Self {
        Self(micros.clamp(Self::EPOCH.0, Self::MAX.0))
    }

    /// From seconds since 1970, as a JWT's `NumericDate`; clamped like [`Self::from_micros`].
    #[must_use]
    pub fn from_seconds(seconds: i64) -> Self {
        Self::from_micros(seconds.saturating_mul(1_000_000))
    }

    /// Microseconds since 1970.
    #[must_use]
    pub fn micros(self) -> i64 {
        self.0
    }

    /// Whole seconds since 1970, rounded down: a JWT's `NumericDate`.
    #[must_use]
    pub fn seconds(self) -> i64 {
        self.0 / 1_000_000
    }

    /// This instant, rounded down to a whole second: the precision of a JWT's times.
    #[must_use]
    pub fn floor_to_second(self) -> Self {
        Self::from_seconds(self.seconds())
    }

    /// Later by `seconds`, saturating at [`Self::MAX`].
    #[must_use]
    pub fn plus_seconds(self, seconds: u64) -> Self {
        let micros = i64::try_from(seconds)
            .unwrap_or(i64::MAX)
            .saturating_mul(1_000_000);
        Self::from_micros(self.0.saturating_add(micros))
    }

    /// Earlier by `seconds`, saturating at [`Self::EPOCH`].
    #[must_use]
    pub fn minus_seconds(self, seconds: u64) -> Self {
        let micros = i64::try_from(seconds)
            .unwrap_or(i64::MAX)
            .saturating_mul(1_000_000);
        Self::from_micros(self.0.saturating_sub(micros))
    }

    /// Earlier by `duration`, saturating at [`Self::EPOCH`].
    #[must_use]
    pub fn minus(self, duration: Duration) -> Self {
        let micros = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        Self::from_micros(self.0.saturating_sub(micros))
    }

    /// Whole seconds from `self` until `later`, rounded down; zero when `later` is not later.
    #[must_use]
    pub fn seconds_until(self, later: Self) -> u64 {
        u64::try_from(later.0.saturating_sub(self.0)).unwrap_or(0) / 1_000_000
    }

    /// How far the two instants are apart, in either direction.
    #[must_use]
    pub fn distance(self, other: Self) -> Duration {
        Duration::from_micros(self.0.abs_diff(other.0))
    }
}

impl From<OffsetDateTime> for Timestamp {
    fn from(at: OffsetDateTime) -> Self {
        let micros = at.unix_timestamp_nanos() / 1_000;
        Self::from_micros(i64::try_from(micros).unwrap_or(i64::MAX))
    }
}

impl From<Timestamp> for OffsetDateTime {
    fn from(at: Timestamp) -> Self {
        // Every Timestamp lies within the years 1970–9999, which OffsetDateTime covers.
        Self::from_unix_timestamp_nanos(i128::from(at.0) * 1_000).unwrap_or(Self::UNIX_EPOCH)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = OffsetDateTime::from(*self)
            .format(&Rfc3339)
            .map_err(|_| fmt::Error)?;
        f.write_str(&text)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// RFC 3339, with an offset.
impl FromStr for Timestamp {
    type Err = time::error::Parse;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        OffsetDateTime::parse(text, &Rfc3339).map(Self::from)
    }
}

/// A source of time.
pub trait Clock: Send + Sync + 'static {
    /// The current instant.
    fn now(&self) -> Timestamp;

    /// Time since the machine was booted, suspension included. Setting the wall clock does not
    /// change it, so a wall clock that advanced by a different amount was set.
    fn since_boot(&self) -> Duration;

    /// A duration that grows while the machine runs and stands still while it is suspended. Its
    /// starting point is arbitrary.
    fn running(&self) -> Duration;

    /// Whether this clock shows real time and must therefore agree with other real clocks.
    fn is_real(&self) -> bool;
}

/// A shared clock.
pub type SharedClock = Arc<dyn Clock>;

/// The machine's clock. Only this type reads it.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "the only code that reads the machine's clock"
    )]
    fn now(&self) -> Timestamp {
        OffsetDateTime::now_utc().into()
    }

    fn since_boot(&self) -> Duration {
        #[cfg(target_os = "linux")]
        let id = ClockId::Boottime;
        // On other systems than Linux, only the monotonic clock counts time in suspension.
        #[cfg(not(target_os = "linux"))]
        let id = ClockId::Monotonic;
        Duration::try_from(clock_gettime(id)).unwrap_or_default()
    }

    fn running(&self) -> Duration {
        Duration::try_from(clock_gettime(ClockId::Monotonic)).unwrap_or_default()
    }

    fn is_real(&self) -> bool {
        true
    }
}

/// An instant of [`SystemClock::since_boot`]. It measures the age of answers from other machines:
/// setting the wall clock and suspending the machine do not make an answer younger. It never
/// decides whether a credential is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootInstant(Duration);

impl BootInstant {
    /// The current instant.
    #[must_use]
    pub fn now() -> Self {
        Self(SystemClock.since_boot())
    }

    /// Time since this instant.
    #[must_use]
    pub fn elapsed(self) -> Duration {
        Self::now().0.saturating_sub(self.0)
    }

    /// Earlier by `duration`.
    #[must_use]
    pub fn minus(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(duration))
    }
}

/// A clock that changes only when told to, for tests and models.
#[derive(Debug)]
pub struct ManualClock {
    wall: AtomicI64,
    since_boot: AtomicU64,
    running: AtomicU64,
}

impl ManualClock {
    /// A clock that shows `start`.
    #[must_use]
    pub fn new(start: Timestamp) -> Arc<Self> {
        Arc::new(Self {
            wall: AtomicI64::new(start.micros()),
            since_boot: AtomicU64::new(0),
            running: AtomicU64::new(0),
        })
    }

    /// Lets `seconds` pass.
    pub fn advance(&self, seconds: u64) {
        self.pass(self.now().plus_seconds(seconds));
    }

    /// Lets time pass until `at`, which must not be earlier than the current instant.
    pub fn pass(&self, at: Timestamp) {
        let passed = u64::try_from(at.micros().saturating_sub(self.now().micros())).unwrap_or(0);
        self.since_boot.fetch_add(passed, Ordering::SeqCst);
        self.running.fetch_add(passed, Ordering::SeqCst);
        self.wall.store(at.micros(), Ordering::SeqCst);
    }

    /// Suspends the machine for `seconds`.
    pub fn suspend(&self, seconds: u64) {
        let passed = seconds.saturating_mul(1_000_000);
        self.since_boot.fetch_add(passed, Ordering::SeqCst);
        self.set(self.now().plus_seconds(seconds));
    }

    /// Sets the wall clock to `at`, earlier or later, without letting time pass.
    pub fn set(&self, at: Timestamp) {
        self.wall.store(at.micros(), Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.wall.load(Ordering::SeqCst))
    }

    fn since_boot(&self) -> Duration {
        Duration::from_micros(self.since_boot.load(Ordering::SeqCst))
    }

    fn running(&self) -> Duration {
        Duration::from_micros(self.running.load(Ordering::SeqCst))
    }

    fn is_real(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_survives_its_text() {
        let at = Timestamp::from_micros(1_795_000_000_123_456);
        let json = serde_json::to_string(&at).unwrap();
        assert_eq!(json, "\"2026-11-18T11:06:40.123456Z\"");
        assert_eq!(serde_json::from_str::<Timestamp>(&json).unwrap(), at);
    }

    #[test]
    fn sums_saturate_instead_of_wrapping() {
        assert_eq!(Timestamp::MAX.plus_seconds(u64::MAX), Timestamp::MAX);
        assert_eq!(Timestamp::EPOCH.minus_seconds(u64::MAX), Timestamp::EPOCH);
        assert_eq!(Timestamp::MAX.seconds_until(Timestamp::EPOCH), 0);
    }

    #[test]
    fn the_machines_clocks_go_on() {
        let (boot, running) = (SystemClock.since_boot(), SystemClock.running());
        assert!(boot > Duration::ZERO && running > Duration::ZERO);
        assert!(SystemClock.since_boot() >= boot && SystemClock.running() >= running);
    }

    #[test]
    fn a_clock_that_is_set_moves_no_other() {
        let start = Timestamp::from_seconds(1_000);
        let clock = ManualClock::new(start);
        clock.advance(10);
        clock.suspend(100);
        clock.set(start);
        let told = (clock.now(), clock.since_boot(), clock.running());
        let seconds = Duration::from_secs;
        assert_eq!(told, (start, seconds(110), seconds(10)));
    }
}
