//! Locations at which a credential is valid: absolute URLs and ARNs.
//!
//! [`Location`] is read strictly: a text that servers could interpret in two ways is an
//! [`InvalidLocation`], and only a trailing slash is removed. A URL covers everything below it, by
//! path segment. An ARN may have wildcards and is compared part by part.
//!
//! A comparison whose [`Budget`] runs out answers *not covered*. [`super::grant`] puts locations
//! into grants, [`super::kind`] says which of them a kind of resource permits, and
//! [`super::pattern`] compares wildcards.

use std::fmt;

use serde::{Deserialize, Serialize};
use url::Url;

use super::limits::{MAX_GRANT_TEXT_BYTES, MAX_LOCATION_BYTES, MAX_WILDCARDS};
use super::pattern::{self, Budget};

/// Text that is neither an absolute `https` URL in its one normal form nor an ARN.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a location is an absolute https URL without user, query, fragment, parameters (`;`), escapes \
    or dot segments, and with no `*`, since a URL covers everything below it; or an ARN whose \
    partition and service have no wildcards, and of which at most \
     {MAX_WILDCARDS} characters are wildcards"
)]
pub struct InvalidLocation;

/// A location at which a credential is valid.
///
/// An absolute URL covers itself and everything below it, by path segment: `https://h/v1` covers
/// `https://h/v1/42`, not `https://h/v10`. An ARN may have the wildcards of
/// [`super::pattern`] and covers everything that it matches.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Location(String);

impl Location {
    /// The text; a URL has no trailing slash.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The location of an access on record. Written like a location in a grant, but it may be as
    /// long as the names of objects and paths can be.
    pub fn accessed(text: String) -> Result<Self, InvalidLocation> {
        Self::within(text, MAX_LOCATION_BYTES)
    }

    /// Whether it is an ARN and not a URL.
    #[must_use]
    pub fn is_arn(&self) -> bool {
        self.0.starts_with(ARN)
    }

    /// Whether `other` is this location or within it; `false` if `budget` runs out.
    #[must_use]
    pub fn covers_within(&self, other: &Self, budget: &Budget) -> bool {
        if !budget.spend(1) {
            return false;
        }
        if self.is_arn() || other.is_arn() {
            return arn_covers(&self.0, &other.0, budget);
        }
        match other.0.strip_prefix(&self.0) {
            Some(rest) => rest.is_empty() || rest.starts_with('/'),
            None => false,
        }
    }

    fn within(text: String, bytes: usize) -> Result<Self, InvalidLocation> {
        if text.len() > bytes {
            return Err(InvalidLocation);
        }
        if text.starts_with(ARN) {
            return if is_arn(&text) {
                Ok(Self(text))
            } else {
                Err(InvalidLocation)
            };
        }
        let url = Url::parse(&text).map_err(|_| InvalidLocation)?;
        let plain = url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none();
        let secure = url.scheme() == "https" && url.host().is_some();
        // A server could read an escape or an empty segment differently from the broker.
        let unambiguous = !text.contains('%')
            && !url.path().contains("//")
            && !text.contains('\\')
            // Some servers remove parameters (`/payroll;x/42`), others read them as part of the
            // name.
            && !text.contains(';');
        // Refuse a URL that the parser had to normalise; never reinterpret it.
        let normal = url.as_str().trim_end_matches('/') == text.trim_end_matches('/');
        if plain && secure && unambiguous && normal {
            return Ok(Self(url.as_str().trim_end_matches('/').to_owned()));
        }
        Err(InvalidLocation)
    }
}

impl TryFrom<String> for Location {
    type Error = InvalidLocation;

    fn try_from(text: String) -> Result<Self, InvalidLocation> {
        let location = Self::within(text, MAX_GRANT_TEXT_BYTES)?;
        // A `*` in a URL would be a literal character but would look like a wildcard.
        let fits = if location.is_arn() {
            pattern::count_wildcards(&location.0) <= MAX_WILDCARDS
        } else {
            !location.0.contains('*')
        };
        if !fits {
            return Err(InvalidLocation);
        }
        Ok(location)
    }
}

impl From<Location> for String {
    fn from(location: Location) -> Self {
        location.0
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The prefix of ARNs.
pub const ARN: &str = "arn:";

/// Number of parts of an ARN: `arn`, partition, service, region, account and resource. The resource
/// may contain colons.
pub const ARN_PARTS: usize = 6;

/// Whether this is an ARN in the supported form: literal partition and service; a region and an
/// account that are each a literal, empty or `*`; and no character with another meaning in AWS
/// policies.
fn is_arn(text: &str) -> bool {
    let parts: Vec<&str> = text.splitn(ARN_PARTS, ':').collect();
    let [_, partition, service, region, account, resource] = parts[..] else {
        return false;
    };
    let name = |part: &str| {
        let fine = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        !part.is_empty() && part.bytes().all(fine)
    };
    // AWS would substitute a policy variable such as `${aws:username}`.
    let plain = |b: u8| b.is_ascii_graphic() && b != b'"' && b != b'\\' && b != b'$';
    name(partition)
        && name(service)
        && (region.is_empty() || region == "*" || name(region))
        && (account.is_empty() || account == "*" || account.bytes().all(|b| b.is_ascii_digit()))
        && !resource.is_empty()
        && resource.bytes().all(plain)
}

/// Compares part by part, so that no wildcard before the resource matches a colon.
fn arn_covers(outer: &str, inner: &str, budget: &Budget) -> bool {
    let (mut outer, mut inner) = (outer.splitn(ARN_PARTS, ':'), inner.splitn(ARN_PARTS, ':'));
    for _ in 0..ARN_PARTS {
        let (Some(outer), Some(inner)) = (outer.next(), inner.next()) else {
            return false;
        };
        if !pattern::covers_within(outer, inner, budget) {
            return false;
        }
    }
    true
}
