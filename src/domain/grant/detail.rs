//! One object of `authorization_details` (RFC 9396): a type, its actions and its locations.
//!
//! [`AuthorizationDetail`] has one variant for each type. Its rights are the product of its actions
//! and locations. Reading accepts JSON objects only; an unknown type or member, `null` and an empty
//! list are errors of the deserializer, because an omitted list means everything that is
//! registered.
//!
//! [`super::Grant`] limits and compares lists of these objects. [`crate::domain::kind`] says which
//! values a type permits.

use std::collections::BTreeSet;
use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::domain::action::ActionName;
use crate::domain::kind::{DetailType, api, aws};
use crate::domain::location::Location;
use crate::domain::pattern::Budget;

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
    pub(in crate::domain) fn locate(&mut self, everywhere: &BTreeSet<Location>) {
        let (Self::Api { locations, .. }
        | Self::Aws {
            resources: locations,
            ..
        }) = self;
        locations.clone_from(everywhere);
    }

    /// Whether this object alone permits `action` at `location`, in `region` only if one is named.
    #[cfg(test)]
    pub(super) fn permits(
        &self,
        action: &ActionName,
        location: &Location,
        region: Option<&str>,
    ) -> bool {
        let budget = Budget::new(u64::MAX);
        let (mut actions, mut locations) = (self.actions().iter(), self.locations().iter());
        (self.region().is_none() || self.region() == region)
            && actions.any(|own| own.covers_within(action, &budget))
            && locations.any(|own| own.covers_within(location, &budget))
    }

    /// For each action and each location of `other`, in order: whether this object permits it. The
    /// permitted rights are the product of both lists.
    pub(super) fn part_of(&self, other: &Self, budget: &Budget) -> (Vec<bool>, Vec<bool>) {
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
    pub(super) fn is_of_its_type(&self) -> bool {
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
