//! What is asked and given: typed `authorization_details` (RFC 9396), and the order between them.
//!
//! Within one object the rights are the product of its actions and locations; several objects are
//! a union. [`Grant::covers`] is the only place that says when one is within another.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};
use url::Url;

use super::limits::{MAX_ACTIONS, MAX_DETAILS, MAX_GRANT_TEXT_BYTES, MAX_LOCATIONS};

/// Text that is not an absolute `https` URL in its one normal form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a location is an absolute https URL without user, query, fragment, escapes or dot segments"
)]
pub struct InvalidLocation;

/// A place that a credential is good for: an absolute URL that stands for itself and everything
/// below it, path segment by path segment. `https://h/v1` covers `https://h/v1/42`, not
/// `https://h/v10`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Location(String);

impl Location {
    /// The URL's text, without a trailing slash.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether `other` is this place or below it.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        match other.0.strip_prefix(&self.0) {
            Some(rest) => rest.is_empty() || rest.starts_with('/'),
            None => false,
        }
    }
}

impl TryFrom<String> for Location {
    type Error = InvalidLocation;

    fn try_from(text: String) -> Result<Self, InvalidLocation> {
        if text.len() > MAX_GRANT_TEXT_BYTES {
            return Err(InvalidLocation);
        }
        let url = Url::parse(&text).map_err(|_| InvalidLocation)?;
        let plain = url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none();
        let secure = url.scheme() == "https" && url.host().is_some();
        // An escape or an empty segment could mean one thing to us and another to the server.
        let unambiguous = !text.contains('%') && !url.path().contains("//") && !text.contains('\\');
        // What the parser had to rewrite was not in its normal form: refuse, never reinterpret.
        let normal = url.as_str().trim_end_matches('/') == text.trim_end_matches('/');
        if plain && secure && unambiguous && normal {
            return Ok(Self(url.as_str().trim_end_matches('/').to_owned()));
        }
        Err(InvalidLocation)
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

/// The name of an action, as the resource registers it: `orders:read`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ActionName(String);

/// An action's name that is empty, too long or holds other than letters, digits and `:._-/*`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an action is 1 to {MAX_GRANT_TEXT_BYTES} letters, digits, or one of : . _ - /")]
pub struct InvalidAction;

impl ActionName {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ActionName {
    type Error = InvalidAction;

    fn try_from(text: String) -> Result<Self, InvalidAction> {
        let fine = |b: u8| b.is_ascii_alphanumeric() || b":._-/".contains(&b);
        if text.is_empty() || text.len() > MAX_GRANT_TEXT_BYTES || !text.bytes().all(fine) {
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

/// One object of `authorization_details`. An unknown type or field is an error (RFC 9396 §5).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum AuthorizationDetail {
    /// Actions on an HTTP API.
    Api {
        /// What may be done.
        actions: BTreeSet<ActionName>,
        /// Where; left out, everywhere that the resource registers.
        #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
        locations: BTreeSet<Location>,
    },
}

impl AuthorizationDetail {
    /// The actions.
    #[must_use]
    pub fn actions(&self) -> &BTreeSet<ActionName> {
        let Self::Api { actions, .. } = self;
        actions
    }

    /// The locations.
    #[must_use]
    pub fn locations(&self) -> &BTreeSet<Location> {
        let Self::Api { locations, .. } = self;
        locations
    }

    /// Whether this object alone permits `action` at `location`.
    #[must_use]
    pub fn permits(&self, action: &ActionName, location: &Location) -> bool {
        self.actions().contains(action) && self.locations().iter().any(|own| own.covers(location))
    }
}

/// Why a list of objects is not a grant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidGrant {
    /// Nothing asked.
    #[error("authorization_details must not be empty")]
    Empty,
    /// Too many objects.
    #[error("at most {MAX_DETAILS} objects in authorization_details")]
    TooManyDetails,
    /// No or too many actions in an object.
    #[error("1 to {MAX_ACTIONS} actions in each object")]
    Actions,
    /// Too many locations in an object.
    #[error("at most {MAX_LOCATIONS} locations in each object")]
    Locations,
}

/// What is asked or given on one resource.
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

    /// Every single action at every single location: what policy is asked about, one by one.
    pub fn atoms(&self) -> impl Iterator<Item = (&ActionName, &Location)> {
        self.0.iter().flat_map(|detail| {
            detail.actions().iter().flat_map(move |action| {
                detail
                    .locations()
                    .iter()
                    .map(move |location| (action, location))
            })
        })
    }

    /// Whether `action` at `location` is given.
    #[must_use]
    pub fn permits(&self, action: &ActionName, location: &Location) -> bool {
        self.0.iter().any(|detail| detail.permits(action, location))
    }

    /// Whether everything in `other` is in this grant too.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        other
            .atoms()
            .all(|(action, location)| self.permits(action, location))
    }

    /// The grant as an OAuth `scope`: its actions, each once, in order.
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
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn location(text: &str) -> Location {
        Location::try_from(text.to_owned()).unwrap()
    }

    #[test]
    fn a_location_covers_what_is_below_it_and_not_what_looks_alike() {
        let base = location("https://orders.example/v1");
        assert!(base.covers(&location("https://orders.example/v1")));
        assert!(base.covers(&location("https://orders.example/v1/42")));
        assert!(!base.covers(&location("https://orders.example/v10")));
        assert!(!base.covers(&location("https://orders.example")));
        let host = location("https://orders.example");
        assert!(!host.covers(&location("https://orders.example.evil.example/v1")));
    }

    #[test]
    fn a_location_with_two_readings_is_refused() {
        for bad in [
            "http://orders.example/v1",
            "https://user@orders.example/v1",
            "https://orders.example/v1?all",
            "https://orders.example/v1#top",
            "https://orders.example/v1/../admin",
            "https://orders.example/v1/%2e%2e/admin",
            "https://orders.example//v1",
            "https://orders.example\\v1",
            "HTTPS://orders.example/v1",
            "https://ORDERS.example/v1",
            "https://orders.example:443/v1",
            " https://orders.example/v1",
            "/v1",
            "",
        ] {
            assert_eq!(
                Location::try_from(bad.to_owned()),
                Err(InvalidLocation),
                "{bad}"
            );
        }
    }

    #[test]
    fn an_unknown_type_or_field_is_an_error() {
        for bad in [
            r#"[{"type":"aws","actions":["a"]}]"#,
            r#"[{"type":"api","actions":["a"],"extra":1}]"#,
            r#"[{"actions":["a"]}]"#,
            r#"[{"type":"api"}]"#,
            r#"[{"type":"api","actions":[]}]"#,
            r"[]",
        ] {
            assert!(serde_json::from_str::<Grant>(bad).is_err(), "{bad}");
        }
    }

    fn any_grant() -> impl Strategy<Value = Grant> {
        let action = prop::sample::select(vec!["a", "b", "c"]);
        let place = prop::sample::select(vec![
            "https://h",
            "https://h/x",
            "https://h/x/y",
            "https://h/xy",
        ]);
        let detail = (
            prop::collection::btree_set(action, 1..3),
            prop::collection::btree_set(place, 1..3),
        )
            .prop_map(|(actions, places)| AuthorizationDetail::Api {
                actions: actions
                    .into_iter()
                    .map(|a| ActionName(a.to_owned()))
                    .collect(),
                locations: places.into_iter().map(location).collect(),
            });
        prop::collection::vec(detail, 1..3).prop_map(Grant)
    }

    proptest! {
        #[test]
        fn covering_is_reflexive_and_transitive(a in any_grant(), b in any_grant(), c in any_grant()) {
            prop_assert!(a.covers(&a));
            if a.covers(&b) && b.covers(&c) {
                prop_assert!(a.covers(&c));
            }
        }

        #[test]
        fn nothing_outside_a_grant_is_permitted_by_what_it_covers(a in any_grant(), b in any_grant()) {
            if a.covers(&b) {
                for (action, place) in b.atoms() {
                    prop_assert!(a.permits(action, place));
                }
            } else {
                prop_assert!(b.atoms().any(|(action, place)| !a.permits(action, place)));
            }
        }
    }
}
