//! HTTP APIs whose servers accept access tokens of the broker: resources of kind `jwt`.
//!
//! [`ApiResource`] is the registration: the audience of the tokens, the identities that may
//! introspect them, and the method by which the server verifies them ([`Verification`]), which
//! determines the revocability. No API has an audience of the broker itself or of federation with
//! AWS, because its tokens would be valid there. Actions have no wildcards, so an action covers
//! only itself.
//!
//! A registration that breaks a rule is refused with the reason as a text, which `domain::catalog`
//! returns as a `CatalogError`. [`super::ResourceKind`] calls this file. `mint::jwt` makes the
//! tokens, and `broker::verification` answers introspection.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{KindMembers, Registration, aws};
use crate::domain::action::ActionName;
use crate::domain::location::Location;
use crate::domain::revocability::{ExpiresBy, OpenSessions, Revocability, RevocationClass};
use crate::domain::status_list::STATUS_LIST_SECONDS;
use crate::domain::workload::Identity;

/// The method by which a resource's server learns whether a credential is still valid. It
/// determines the revocability.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verification {
    /// The server asks the broker at each use (RFC 7662).
    Introspection,
    /// The server polls a status list, which can be [`STATUS_LIST_SECONDS`] old.
    StatusList,
    /// The server only checks the signature and the expiry.
    Offline,
}

impl Verification {
    pub(super) fn revocability(self, read_lease_seconds: u64) -> Revocability {
        Revocability {
            class: match self {
                Self::Introspection => RevocationClass::Immediate {
                    bound_seconds: read_lease_seconds,
                },
                Self::StatusList => RevocationClass::Bounded {
                    bound_seconds: STATUS_LIST_SECONDS,
                },
                Self::Offline => RevocationClass::ExpiryOnly,
            },
            open_sessions: OpenSessions::None,
            expires_by: ExpiresBy::Itself,
        }
    }
}

/// The registration of an API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiResource {
    /// The `aud` of its tokens.
    pub audience: String,
    /// Identities that may introspect its tokens.
    pub verifiers: BTreeSet<Identity>,
    /// The verification method of its server.
    pub verification: Verification,
}

impl ApiResource {
    pub(super) fn read(members: KindMembers) -> Result<Self, String> {
        let KindMembers {
            audience,
            verifiers,
            verification,
            aws,
        } = members;
        if aws.is_some() {
            return Err("[resources.aws] is for kind `aws`".into());
        }
        let verification = verification.ok_or(
            "verification must say how its server verifies: introspection, status_list or offline",
        )?;
        Ok(Self {
            audience,
            verifiers,
            verification,
        })
    }

    pub(super) fn into_members(self) -> KindMembers {
        KindMembers {
            audience: self.audience,
            verifiers: self.verifiers,
            verification: Some(self.verification),
            ..KindMembers::default()
        }
    }

    pub(super) fn check(&self, registration: &Registration<'_>) -> Result<(), String> {
        if self.audience.is_empty() {
            return Err("audience must not be empty".into());
        }
        // A trailing slash or a path does not turn the broker's audience into another one.
        let is_own_audience = |own: &String| {
            let own = own.trim_end_matches('/');
            let below = self.audience.strip_prefix(own);
            own == self.audience.trim_end_matches('/')
                || below.is_some_and(|rest| rest.starts_with('/'))
        };
        if registration.own_audiences.iter().any(is_own_audience) {
            return Err(
                "its audience is the broker's own; its tokens would be valid at the broker".into(),
            );
        }
        if aws::FEDERATION_AUDIENCES.contains(&self.audience.as_str()) {
            return Err("its audience is that of federation with AWS; choose another".into());
        }
        if !registration.actions.iter().all(is_action) {
            return Err("an action must not have wildcards".into());
        }
        if !registration.locations.iter().all(is_location) {
            return Err("a location must be an https URL".into());
        }
        Ok(())
    }
}

/// Whether it can be an action of an API: it has no wildcards.
#[must_use]
pub fn is_action(action: &ActionName) -> bool {
    !action.has_wildcards()
}

/// Whether it can be a location of an API: it is a URL.
#[must_use]
pub fn is_location(location: &Location) -> bool {
    !location.is_arn()
}

/// An API's action covers only itself.
pub(super) fn covers_action(own: &ActionName, asked: &ActionName) -> bool {
    own == asked
}

/// For an API, policy decides about the requested action itself.
pub(super) fn decided_as<'a>(
    actions: &'a BTreeSet<ActionName>,
    asked: &ActionName,
) -> Vec<&'a ActionName> {
    actions.get(asked).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(audience: &str, actions: &[&str], location: &str) -> Result<(), String> {
        let own_audiences = ["https://broker.example".to_owned()];
        let actions = actions.iter().map(|text| (*text).to_owned().try_into());
        let api = ApiResource {
            audience: audience.into(),
            verifiers: BTreeSet::new(),
            verification: Verification::Offline,
        };
        api.check(&Registration {
            actions: &actions.collect::<Result<_, _>>().unwrap(),
            locations: &[location.to_owned().try_into().unwrap()].into(),
            max_ttl_seconds: 900,
            own_audiences: &own_audiences,
        })
    }

    #[test]
    fn an_api_has_an_audience_of_its_own_plain_actions_and_urls() {
        let (audience, location) = ("https://orders.example", "https://orders.example/v1");
        checked(audience, &["orders:read"], location).unwrap();
        for (audience, action, location, why) in [
            ("", "orders:read", location, "must not be empty"),
            (
                "https://broker.example/",
                "orders:read",
                location,
                "the broker's own",
            ),
            (
                "https://broker.example/x",
                "orders:read",
                location,
                "the broker's own",
            ),
            (
                "sts.amazonaws.com",
                "orders:read",
                location,
                "federation with AWS",
            ),
            (audience, "orders:*", location, "wildcards"),
            (
                audience,
                "orders:read",
                "arn:aws:s3:::reports/*",
                "https URL",
            ),
        ] {
            let refused = checked(audience, &[action], location).unwrap_err();
            assert!(refused.contains(why), "{refused}");
        }
    }

    #[test]
    fn policy_is_asked_about_the_registered_action_itself() {
        let action = |text: &str| ActionName::try_from(text.to_owned()).unwrap();
        let registered = BTreeSet::from([action("orders:read"), action("orders:write")]);
        let asked = action("orders:read");
        assert_eq!(decided_as(&registered, &asked), [&asked]);
        assert!(decided_as(&registered, &action("orders:Read")).is_empty());
        assert!(!covers_action(&asked, &action("orders:Read")));
    }
}
