//! Checks the dates of a token. The caller gives the present instant; nothing here reads a clock.
//!
//! [`check_times`] checks all of them. The other functions check one claim each: the attestors use
//! them to report every condition by itself, and DPoP proofs have no `exp`. The leeway allows for
//! clock differences in comparisons with `now` only. A refused date is a [`TimeError`], which
//! quotes no value; [`TimeError::claim`] names the claim. The attestors call this module and choose
//! the leeway and the largest age.

use serde_json::{Map, Value};

use super::Claims;
use crate::clock::Timestamp;

/// The reason why a token's dates were refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimeError {
    /// A required date is missing.
    #[error("the token has no `{0}`")]
    Missing(&'static str),
    /// A date is not a number of seconds from 1970 to 9999.
    #[error("the token's `{0}` is not a date between 1970 and 9999")]
    NotADate(&'static str),
    /// `exp` has passed.
    #[error("the token has expired")]
    Expired,
    /// `nbf` is in the future.
    #[error("the token is not valid yet")]
    NotYetValid,
    /// `iat` is in the future.
    #[error("the token was issued in the future")]
    IssuedInTheFuture,
    /// `iat` is too long ago.
    #[error("the token was issued too long ago")]
    TooOld,
    /// `exp` is before `iat` or equals it.
    #[error("the token expires before it was issued")]
    Backwards,
}

impl TimeError {
    /// The name of the claim that was refused.
    #[must_use]
    pub fn claim(self) -> &'static str {
        match self {
            Self::Missing(name) | Self::NotADate(name) => name,
            Self::Expired | Self::Backwards => "exp",
            Self::NotYetValid => "nbf",
            Self::IssuedInTheFuture | Self::TooOld => "iat",
        }
    }
}

/// The dates of a token, each rounded down to a whole second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it all")]
pub struct Times {
    pub issued_at: Timestamp,
    pub not_before: Option<Timestamp>,
    pub expires_at: Timestamp,
}

/// Checks a token's dates at `now`. `exp` and `iat` are required, `nbf` is optional. The leeway
/// allows for clock differences in each comparison with `now`, and in no other.
pub fn check_times(
    claims: &Claims,
    now: Timestamp,
    leeway_seconds: u64,
    max_age_seconds: u64,
) -> Result<Times, TimeError> {
    let issued_at = check_issued_at(claims, now, leeway_seconds, max_age_seconds)?;
    Ok(Times {
        issued_at,
        expires_at: check_expiry(claims, now, leeway_seconds)?,
        not_before: check_not_before(claims, now, leeway_seconds)?,
    })
}

/// Checks `exp`, and that it is later than `iat`. An `iat` that is missing or no date is ignored
/// here: [`check_issued_at`] refuses it.
pub fn check_expiry(
    claims: &Claims,
    now: Timestamp,
    leeway_seconds: u64,
) -> Result<Timestamp, TimeError> {
    let expires_at = date(&claims.claims, "exp")?.ok_or(TimeError::Missing("exp"))?;
    let issued_at = date(&claims.claims, "iat").unwrap_or_default();
    if issued_at.is_some_and(|issued_at| expires_at <= issued_at) {
        return Err(TimeError::Backwards);
    }
    if now >= expires_at.plus_seconds(leeway_seconds) {
        return Err(TimeError::Expired);
    }
    Ok(expires_at)
}

/// Checks only `nbf`. `None` if the token has none, which is valid.
pub fn check_not_before(
    claims: &Claims,
    now: Timestamp,
    leeway_seconds: u64,
) -> Result<Option<Timestamp>, TimeError> {
    let not_before = date(&claims.claims, "nbf")?;
    if not_before.is_some_and(|from| from > now.plus_seconds(leeway_seconds)) {
        return Err(TimeError::NotYetValid);
    }
    Ok(not_before)
}

/// Checks only `iat`, against `now` and the largest age.
pub fn check_issued_at(
    claims: &Claims,
    now: Timestamp,
    leeway_seconds: u64,
    max_age_seconds: u64,
) -> Result<Timestamp, TimeError> {
    let issued_at = date(&claims.claims, "iat")?.ok_or(TimeError::Missing("iat"))?;
    if issued_at > now.plus_seconds(leeway_seconds) {
        return Err(TimeError::IssuedInTheFuture);
    }
    let oldest = now
        .minus_seconds(max_age_seconds)
        .minus_seconds(leeway_seconds);
    // The date was rounded down to a second, so round the bound down too. The age may thus exceed
    // its limit by less than a second.
    if issued_at < oldest.floor_to_second() {
        return Err(TimeError::TooOld);
    }
    Ok(issued_at)
}

fn date(claims: &Map<String, Value>, name: &'static str) -> Result<Option<Timestamp>, TimeError> {
    let Some(value) = claims.get(name) else {
        return Ok(None);
    };
    let Value::Number(number) = value else {
        return Err(TimeError::NotADate(name));
    };
    let seconds = match (number.as_i64(), number.as_f64()) {
        (Some(seconds), _) => seconds,
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the range is checked first; the maximum follows below"
        )]
        (None, Some(seconds)) if (0.0..1e12).contains(&seconds) => seconds.floor() as i64,
        _ => return Err(TimeError::NotADate(name)),
    };
    if !(0..=Timestamp::MAX.seconds()).contains(&seconds) {
        return Err(TimeError::NotADate(name));
    }
    Ok(Some(Timestamp::from_seconds(seconds)))
}
