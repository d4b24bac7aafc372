//! Retries of requests: the pauses between attempts, and the conditions for giving up.
//!
//! Transient failures are retried: no connection, no answer in time, an interrupted answer, a
//! server that reports that it cannot serve now. The pauses grow, are jittered, and honour
//! `Retry-After`. Permanent failures are not retried.
//!
//! [`retried`] returns the error of the last attempt. The requests are those of
//! `super::credentials`, `super::task_lease` and `super::evidence`.

use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use tokio::time::{Instant, sleep};

use super::{ClientError, Notify};
use crate::clock::{Clock as _, SystemClock};
use crate::crypto::random::SystemRandom;
use crate::ids::Random as _;

/// The longest time for one attempt.
pub(crate) const TRY_TIMEOUT: Duration = Duration::from_secs(10);

/// The pause after the first attempt. It doubles with each further attempt up to the longest pause.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The error of one attempt.
#[derive(Debug)]
pub(crate) struct AttemptError {
    /// The failure to report if there is no further attempt.
    pub(crate) failure: ClientError,
    /// Whether the request may have been received.
    pub(crate) sent: bool,
    advice: RetryAdvice,
}

#[derive(Debug)]
enum RetryAdvice {
    Never,
    /// After a pause of at least this length.
    After(Duration),
}

impl From<ClientError> for AttemptError {
    /// A permanent failure.
    fn from(failure: ClientError) -> Self {
        Self {
            failure,
            sent: true,
            advice: RetryAdvice::Never,
        }
    }
}

impl AttemptError {
    /// A transient failure; `retry_after` is the pause that the server requested.
    pub(crate) fn transient(failure: ClientError, retry_after: Option<Duration>) -> Self {
        Self {
            failure,
            sent: true,
            advice: RetryAdvice::After(retry_after.unwrap_or_default()),
        }
    }

    /// The fault of a request without an answer; `failure` describes it.
    pub(crate) fn of_transport(error: &reqwest::Error, failure: ClientError) -> Self {
        if error.is_builder() || is_refused_certificate(error) {
            return failure.into();
        }
        Self {
            sent: !error.is_connect(),
            ..Self::transient(failure, None)
        }
    }
}

/// Whether a server that answers with this status may serve soon.
pub(crate) fn is_transient(status: StatusCode) -> bool {
    matches!(status.as_u16(), 429 | 502 | 503 | 504)
}

/// The pause that an answer requests, as seconds or as a date.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = httpdate::parse_http_date(value).ok()?;
    let at = at.duration_since(std::time::UNIX_EPOCH).ok()?.as_secs();
    let now = u64::try_from(SystemClock.now().seconds()).unwrap_or_default();
    Some(Duration::from_secs(at.saturating_sub(now)))
}

/// Whether TLS refused the server's certificate, which another attempt would not change.
pub(crate) fn is_refused_certificate(error: &reqwest::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.is::<rustls::Error>() {
            return true;
        }
        // `std::io::Error::source` skips the error that it wraps and returns that error's
        // source. The connector wraps one I/O error in another.
        let wrapped = error.downcast_ref::<std::io::Error>();
        cause = match wrapped.and_then(std::io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    false
}

/// Repeats `attempt` until it succeeds, fails permanently, or `limit` has passed.
/// The first pause is announced with `notify`.
pub(crate) async fn retried<T>(
    limit: Duration,
    notify: Notify,
    mut attempt: impl AsyncFnMut() -> Result<T, AttemptError>,
) -> Result<T, ClientError> {
    let begin = Instant::now();
    let mut tries = 0;
    loop {
        let fault = match attempt().await {
            Ok(done) => return Ok(done),
            Err(fault) => fault,
        };
        let RetryAdvice::After(at_least) = fault.advice else {
            return Err(fault.failure);
        };
        let left = limit.saturating_sub(begin.elapsed());
        let Some(pause) = pause_after(tries, at_least, left) else {
            return Err(fault.failure);
        };
        if tries == 0 {
            notify(&format!(
                "taskpass: {}; retrying for up to {} s",
                fault.failure,
                left.as_secs()
            ));
        }
        tries += 1;
        sleep(pause).await;
    }
}

/// The pause after `earlier` attempts and one more; `None` if it is longer than the time left.
fn pause_after(earlier: u32, at_least: Duration, left: Duration) -> Option<Duration> {
    let doubled = 2_u32.checked_pow(earlier).unwrap_or(u32::MAX);
    let pause = FIRST_PAUSE.saturating_mul(doubled).min(LONGEST_PAUSE);
    let pause = at_least.saturating_add(jittered(pause));
    (pause <= left).then_some(pause)
}

/// A random pause between half of `pause` and all of it, so that clients that failed together do
/// not return together.
pub(crate) fn jittered(pause: Duration) -> Duration {
    let mut random = [0; 4];
    // Without randomness there is no jitter, which is acceptable.
    SystemRandom::default().fill(&mut random).ok();
    let part = f64::from(u32::from_be_bytes(random)) / f64::from(u32::MAX);
    pause.mul_f64(0.5 + part / 2.0)
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;
    use crate::client::silent;

    fn unreachable() -> ClientError {
        ClientError::Unavailable("unreachable".into())
    }

    #[tokio::test]
    async fn a_passing_failure_is_tried_again_and_a_lasting_one_is_not() {
        let mut tries = 0;
        let done = retried(Duration::from_mins(1), silent, async || {
            tries += 1;
            match tries {
                1..3 => Err(AttemptError::transient(unreachable(), None)),
                _ => Ok(tries),
            }
        });
        assert_eq!(done.await.unwrap(), 3);

        let mut tries = 0;
        let refused = retried(Duration::from_mins(1), silent, async || {
            tries += 1;
            Err::<(), _>(ClientError::Refused("no".into()).into())
        });
        assert!(matches!(refused.await, Err(ClientError::Refused(_))));
        assert_eq!(tries, 1);

        let mut tries = 0;
        let failed = retried(Duration::ZERO, silent, async || {
            tries += 1;
            Err::<(), _>(AttemptError::transient(unreachable(), None))
        });
        assert!(matches!(failed.await, Err(ClientError::Unavailable(_))));
        assert_eq!(tries, 1, "a limit of 0 makes one attempt");
    }

    #[test]
    fn pauses_grow_honour_the_server_and_end_with_the_limit() {
        let none = Duration::ZERO;
        let minute = Duration::from_mins(1);
        for (earlier, longest) in [
            (0, 250),
            (1, 500),
            (2, 1_000),
            (9, 5_000),
            (u32::MAX, 5_000),
        ] {
            let longest = Duration::from_millis(longest);
            let pause = pause_after(earlier, none, minute).unwrap();
            assert!(
                pause >= longest / 2 && pause <= longest,
                "{earlier}: {pause:?}"
            );
        }
        let named = Duration::from_secs(7);
        assert!(pause_after(0, named, minute).unwrap() >= named);
        assert_eq!(pause_after(0, named, named), None);
        assert_eq!(pause_after(0, Duration::MAX, minute), None);
        assert_eq!(pause_after(0, none, none), None);
    }

    #[test]
    fn a_named_pause_is_seconds_or_a_date() {
        let named = |text: &str| {
            let value = HeaderValue::from_str(text).unwrap();
            retry_after(&HeaderMap::from_iter([(RETRY_AFTER, value)]))
        };
        assert_eq!(named("3"), Some(Duration::from_secs(3)));
        assert_eq!(named(" 3 "), Some(Duration::from_secs(3)));
        assert_eq!(named("soon"), None);
        assert_eq!(named("-1"), None);
        let past = "Sun, 06 Nov 1994 08:49:37 GMT";
        assert_eq!(named(past), Some(Duration::ZERO));
        let far = named("Fri, 31 Dec 9999 23:59:59 GMT").unwrap();
        assert!(far > Duration::from_hours(24));
    }

    #[test]
    fn jitter_stays_between_half_and_all() {
        let whole = Duration::from_secs(4);
        for _ in 0..1_000 {
            let pause = jittered(whole);
            assert!(pause >= whole / 2 && pause <= whole, "{pause:?}");
        }
    }
}
