//! Requested and granted rights: typed `authorization_details` (RFC 9396), and the order between
//! them.
//!
//! [`ActionName`] and [`Location`] are single values, [`AuthorizationDetail`] is one object, and
//! [`Grant`] a nonempty list of objects. The rights of one object are the product of its actions
//! and locations; several objects are a union. [`Grant::covers_within`] alone decides whether one
//! grant is within another.
//!
//! Reading refuses every text that servers could interpret in two ways, with [`InvalidAction`] or
//! [`InvalidLocation`], and changes only a trailing slash, which it removes. A list that is empty
//! or too long, or with values that do not fit the type, is an [`InvalidGrant`]. A comparison whose
//! [`Budget`] runs out answers *not covered* or *overlapping*.
//!
//! [`super::pattern`] compares wildcards, and [`super::kind`] says which values a type permits.
//! Whether a resource registers the rights is checked in [`super::catalog`].

use std::collections::BTreeSet;
use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use url::Url;

use super::kind::{DetailType, api, aws};
use super::limits::{
    MAX_ACTIONS, MAX_DETAILS, MAX_GRANT_TEXT_BYTES, MAX_LOCATION_BYTES, MAX_LOCATIONS,
    MAX_WILDCARDS,
};
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
/// `https://h/v1/42`, not `https://h/v10`. An ARN may have the wildcards of [`super::pattern`] and
/// covers everything that it matches.
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

/// The name of an action, as the resource registers it: `orders:read`. For AWS it may be a pattern,
/// such as `s3:Get*`, and covers everything that it matches.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ActionName(String);

/// A text that is not a valid action: empty, too long, with characters other than letters, digits
/// and `:._-/*?`, or with too many wildcards.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "an action is 1 to {MAX_GRANT_TEXT_BYTES} letters, digits, or one of : . _ - / * ?, of which \
     at most {MAX_WILDCARDS} are * or ?"
)]
pub struct InvalidAction;

impl ActionName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is an AWS action or a pattern of AWS actions: a service, a colon and a name.
    #[must_use]
    pub fn is_aws(&self) -> bool {
        let fine = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let named = |b: u8| b.is_ascii_alphanumeric() || b == b'*' || b == b'?';
        self.0.split_once(':').is_some_and(|(service, name)| {
            !service.is_empty()
                && service.bytes().all(fine)
                && !name.is_empty()
                && name.bytes().all(named)
        })
    }

    /// Whether it is a pattern.
    #[must_use]
    pub fn has_wildcards(&self) -> bool {
        pattern::has_wildcards(&self.0)
    }

    /// Whether it is `other` or a pattern that matches all of it; `false` if `budget` runs out.
    #[must_use]
    pub fn covers_within(&self, other: &Self, budget: &Budget) -> bool {
        if !budget.spend(1) {
            return false;
        }
        if self == other || !self.has_wildcards() {
            return self == other;
        }
        pattern::covers_within(&self.folded(), &other.folded(), budget)
    }

    /// Like [`Self::covers_within`] for AWS actions, ignoring case as AWS does.
    #[must_use]
    pub fn covers_on_aws(&self, other: &Self, budget: &Budget) -> bool {
        self.0.eq_ignore_ascii_case(&other.0) || self.covers_within(other, budget)
    }

    /// Whether it matches more than `other` and all of it. If `budget` runs out, discard the
    /// result.
    #[must_use]
    pub fn is_wider_than(&self, other: &Self, budget: &Budget) -> bool {
        self.covers_within(other, budget) && !other.covers_within(self, budget)
    }

    /// Whether both cover a common action; `true` if `budget` runs out.
    #[must_use]
    pub fn overlaps_within(&self, other: &Self, budget: &Budget) -> bool {
        self == other
            || !budget.spend(1)
            || pattern::overlap_within(&self.folded(), &other.folded(), budget)
    }

    /// The name in lower case, because AWS ignores the case of actions.
    #[must_use]
    pub fn folded(&self) -> String {
        self.0.to_ascii_lowercase()
    }
}

impl TryFrom<String> for ActionName {
    type Error = InvalidAction;

    fn try_from(text: String) -> Result<Self, InvalidAction> {
        let fine = |b: u8| b.is_ascii_alphanumeric() || b":._-/*?".contains(&b);
        if text.is_empty()
            || text.len() > MAX_GRANT_TEXT_BYTES
            || !text.bytes().all(fine)
            || pattern::count_wildcards(&text) > MAX_WILDCARDS
        {
            return Err(InvalidAction);
        }
        Ok(Self(text))
    }
}

impl From<ActionName> for String {
    fn from(action: ActionName) -> Self {
        action.0
    }
}

impl fmt::Display for ActionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One object of `authorization_details`. An unknown type or field is an error (RFC 9396 §5), and
/// so is an empty list: an omitted list means everything that is registered.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum AuthorizationDetail {
    /// Rights on an HTTP API.
    Api {
        /// Actions that the resource registers.
        actions: BTreeSet<ActionName>,
        /// URLs; empty if omitted, which means all that the resource registers.
        #[serde(skip_serializing_if = "BTreeSet::is_empty")]
        locations: BTreeSet<Location>,
    },
    /// Rights in an AWS account.
    Aws {
        /// AWS actions or patterns of them.
        actions: BTreeSet<ActionName>,
        /// ARNs or patterns of them; empty if omitted, which means all that the resource registers.
        #[serde(skip_serializing_if = "BTreeSet::is_empty")]
        resources: BTreeSet<Location>,
        /// The only region; `None` means all that the resource registers.
        #[serde(skip_serializing_if = "Option::is_none")]
        region: Option<String>,
    },
}

/// An [`AuthorizationDetail`] in its JSON form.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenDetail {
    r#type: DetailType,
    actions: Listed<ActionName>,
    #[serde(default, deserialize_with = "present")]
    locations: Option<Listed<Location>>,
    #[serde(default, deserialize_with = "present")]
    resources: Option<Listed<Location>>,
    #[serde(default, deserialize_with = "present")]
    region: Option<String>,
}

/// A list with at least one member.
struct Listed<T>(BTreeSet<T>);

impl<'de, T: Ord + Deserialize<'de>> Deserialize<'de> for Listed<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let members = BTreeSet::deserialize(deserializer)?;
        if members.is_empty() {
            return Err(de::Error::custom(
                "an empty list: name at least one value; omit `locations` or `resources` to \
                request everything that is registered",
            ));
        }
        Ok(Self(members))
    }
}

/// Deserializes a member that is present; `null` is an error, unlike an omitted member.
fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

impl<'de> Deserialize<'de> for AuthorizationDetail {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(DetailVisitor)
    }
}

/// Accepts JSON objects only. By default, serde would also accept an array for a struct.
struct DetailVisitor;

impl<'de> Visitor<'de> for DetailVisitor {
    type Value = AuthorizationDetail;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with `type` and `actions`")
    }

    fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<AuthorizationDetail, A::Error> {
        let written = WrittenDetail::deserialize(MapAccessDeserializer::new(members))?;
        let all = |listed: Option<Listed<Location>>| listed.map_or_else(BTreeSet::new, |own| own.0);
        let unknown = |name: &str, kind: &str| {
            de::Error::custom(format!(
                "unknown field `{name}` in an object of type `{kind}`"
            ))
        };
        match written.r#type {
            DetailType::Api if written.resources.is_some() => Err(unknown("resources", "api")),
            DetailType::Api if written.region.is_some() => Err(unknown("region", "api")),
            DetailType::Api => Ok(AuthorizationDetail::Api {
                actions: written.actions.0,
                locations: all(written.locations),
            }),
            DetailType::Aws if written.locations.is_some() => Err(unknown("locations", "aws")),
            DetailType::Aws => Ok(AuthorizationDetail::Aws {
                actions: written.actions.0,
                resources: all(written.resources),
                region: written.region,
            }),
        }
    }
}

impl AuthorizationDetail {
    /// Creates an object of this type. `region` is ignored for types without regions.
    #[must_use]
    pub fn of_type(
        detail_type: DetailType,
        actions: BTreeSet<ActionName>,
        locations: BTreeSet<Location>,
        region: Option<String>,
    ) -> Self {
        match detail_type {
            DetailType::Api => Self::Api { actions, locations },
            DetailType::Aws => Self::Aws {
                actions,
                resources: locations,
                region,
            },
        }
    }

    /// The `type` member.
    #[must_use]
    pub fn detail_type(&self) -> DetailType {
        match self {
            Self::Api { .. } => DetailType::Api,
            Self::Aws { .. } => DetailType::Aws,
        }
    }

    /// The actions.
    #[must_use]
    pub fn actions(&self) -> &BTreeSet<ActionName> {
        match self {
            Self::Api { actions, .. } | Self::Aws { actions, .. } => actions,
        }
    }

    /// The locations: URLs for an API, ARNs for AWS.
    #[must_use]
    pub fn locations(&self) -> &BTreeSet<Location> {
        match self {
            Self::Api { locations, .. } => locations,
            Self::Aws { resources, .. } => resources,
        }
    }

    /// The only region, for AWS; `None` for an API, or if the object names no region.
    #[must_use]
    pub fn region(&self) -> Option<&str> {
        match self {
            Self::Api { .. } => None,
            Self::Aws { region, .. } => region.as_deref(),
        }
    }

    /// An object of the same type and region with these rights.
    #[must_use]
    pub fn with_rights(
        &self,
        actions: BTreeSet<ActionName>,
        locations: BTreeSet<Location>,
    ) -> Self {
        let region = self.region().map(str::to_owned);
        Self::of_type(self.detail_type(), actions, locations, region)
    }

    /// Replaces the locations by `everywhere`; for an object that names none.
    pub(super) fn locate(&mut self, everywhere: &BTreeSet<Location>) {
        let (Self::Api { locations, .. }
        | Self::Aws {
            resources: locations,
            ..
        }) = self;
        locations.clone_from(everywhere);
    }

    /// Whether this object alone permits `action` at `location`, in `region` only if one is named.
    #[cfg(test)]
    fn permits(&self, action: &ActionName, location: &Location, region: Option<&str>) -> bool {
        let budget = Budget::new(u64::MAX);
        let (mut actions, mut locations) = (self.actions().iter(), self.locations().iter());
        (self.region().is_none() || self.region() == region)
            && actions.any(|own| own.covers_within(action, &budget))
            && locations.any(|own| own.covers_within(location, &budget))
    }

    /// For each action and each location of `other`, in order: whether this object permits it. The
    /// permitted rights are the product of both lists.
    fn part_of(&self, other: &Self, budget: &Budget) -> (Vec<bool>, Vec<bool>) {
        let elsewhere = self.region().is_some() && self.region() != other.region();
        if elsewhere || budget.is_exhausted() {
            return (
                vec![false; other.actions().len()],
                vec![false; other.locations().len()],
            );
        }
        let detail_type = self.detail_type();
        let gives =
            |own: &ActionName, asked: &ActionName| detail_type.covers_action(own, asked, budget);
        let action = |asked: &ActionName| {
            self.actions().contains(asked) || self.actions().iter().any(|own| gives(own, asked))
        };
        let location = |asked: &Location| {
            self.locations().contains(asked)
                || self
                    .locations()
                    .iter()
                    .any(|own| own.covers_within(asked, budget))
        };
        (
            other.actions().iter().map(action).collect(),
            other.locations().iter().map(location).collect(),
        )
    }

    /// Whether its values fit its type: no wildcards for an API, no URLs for AWS.
    fn is_of_its_type(&self) -> bool {
        match self {
            Self::Api { actions, locations } => {
                actions.iter().all(api::is_action) && locations.iter().all(api::is_location)
            }
            Self::Aws {
                actions,
                resources,
                region,
            } => {
                actions.iter().all(ActionName::is_aws)
                    && resources.iter().all(Location::is_arn)
                    && region.as_deref().is_none_or(aws::is_region)
            }
        }
    }
}

/// An error in a list of objects.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidGrant {
    /// The list is empty.
    #[error("authorization_details must not be empty")]
    Empty,
    /// More objects than a request may have.
    #[error("at most {MAX_DETAILS} objects in authorization_details")]
    TooManyDetails,
    /// No actions in an object, or too many.
    #[error("1 to {MAX_ACTIONS} actions in each object")]
    Actions,
    /// Too many locations in an object.
    #[error("at most {MAX_LOCATIONS} locations in each object")]
    Locations,
    /// A wildcard or an ARN in an `api` object, or a value in an `aws` object that AWS does not
    /// have.
    #[error(
        "an `api` object has plain actions and https locations, an `aws` object AWS actions, ARNs \
         and a region"
    )]
    Type,
}

/// The rights that are requested or granted on one resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    try_from = "Vec<AuthorizationDetail>",
    into = "Vec<AuthorizationDetail>"
)]
pub struct Grant(Vec<AuthorizationDetail>);

impl Grant {
    /// The objects.
    #[must_use]
    pub fn details(&self) -> &[AuthorizationDetail] {
        &self.0
    }

    /// Every action at every location, with the region of its object. Policy decides about each of
    /// them.
    pub fn atoms(&self) -> impl Iterator<Item = (&ActionName, &Location, Option<&str>)> {
        self.0.iter().flat_map(|detail| {
            detail.actions().iter().flat_map(move |action| {
                detail
                    .locations()
                    .iter()
                    .map(move |location| (action, location, detail.region()))
            })
        })
    }

    /// Whether `action` at `location` is granted, in `region` only if one is named.
    #[cfg(test)]
    fn permits(&self, action: &ActionName, location: &Location, region: Option<&str>) -> bool {
        self.0
            .iter()
            .any(|detail| detail.permits(action, location, region))
    }

    /// Whether this grant contains everything in `other`; `false` if `budget` runs out.
    #[must_use]
    pub fn covers_within(&self, other: &Self, budget: &Budget) -> bool {
        other.0.iter().all(|asked| {
            if budget.is_exhausted() {
                return false;
            }
            // Compare each action and each location once, not once for each right.
            let parts: Vec<_> = self
                .0
                .iter()
                .map(|own| own.part_of(asked, budget))
                .collect();
            let within = (0..asked.actions().len()).all(|action| {
                (0..asked.locations().len()).all(|location| {
                    parts.iter().any(|(actions, locations)| {
                        actions.get(action) == Some(&true) && locations.get(location) == Some(&true)
                    })
                })
            });
            within && !budget.is_exhausted()
        })
    }

    /// The grant as an OAuth `scope`: its distinct actions, sorted.
    #[must_use]
    pub fn scope(&self) -> String {
        let all: BTreeSet<&str> = self
            .0
            .iter()
            .flat_map(|detail| detail.actions().iter().map(ActionName::as_str))
            .collect();
        all.into_iter().collect::<Vec<_>>().join(" ")
    }
}

impl TryFrom<Vec<AuthorizationDetail>> for Grant {
    type Error = InvalidGrant;

    fn try_from(details: Vec<AuthorizationDetail>) -> Result<Self, InvalidGrant> {
        if details.is_empty() {
            return Err(InvalidGrant::Empty);
        }
        if details.len() > MAX_DETAILS {
            return Err(InvalidGrant::TooManyDetails);
        }
        for detail in &details {
            if detail.actions().is_empty() || detail.actions().len() > MAX_ACTIONS {
                return Err(InvalidGrant::Actions);
            }
            if detail.locations().len() > MAX_LOCATIONS {
                return Err(InvalidGrant::Locations);
            }
            if !detail.is_of_its_type() {
                return Err(InvalidGrant::Type);
            }
        }
        Ok(Self(details))
    }
}

impl From<Grant> for Vec<AuthorizationDetail> {
    fn from(grant: Grant) -> Self {
        grant.0
    }
}

#[cfg(test)]
mod tests;
