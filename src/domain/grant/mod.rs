//! Requested and granted rights: typed `authorization_details` (RFC 9396), and the order between
//! them.
//!
//! [`AuthorizationDetail`] is one object, with [`ActionName`]s and [`Location`]s as its values, and
//! [`Grant`] a nonempty list of objects. The rights of one object are the product of its actions
//! and locations; several objects are a union. [`Grant::covers_within`] alone decides whether one
//! grant is within another.
//!
//! A list that is empty or too long, or with values that do not fit the type, is an
//! [`InvalidGrant`]. [`super::action`] and [`super::location`] refuse every text that servers could
//! interpret in two ways. A comparison whose [`Budget`] runs out answers *not covered*.
//!
//! [`super::pattern`] compares wildcards, and [`super::kind`] says which values a type permits.
//! Whether a resource registers the rights is checked in [`super::catalog`].

mod detail;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

pub use self::detail::AuthorizationDetail;
use super::action::ActionName;
use super::limits::{MAX_ACTIONS, MAX_DETAILS, MAX_LOCATIONS};
use super::location::Location;
use super::pattern::Budget;

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
