//! The kinds of resources: their registrations, the rights that can be requested, and the order
//! between rights.
//!
//! Each kind has one file. This file holds the enums that distinguish the kinds for the rest of the
//! crate: [`MinterKind`], [`DetailType`], and [`ResourceKind`] with the registration of a kind.
//! Every match on them is exhaustive, so the compiler lists the matches that a new kind must
//! extend.
//!
//! Reading and checking a registration returns the reason of a refusal as a text, and
//! [`super::catalog`] adds the resource's name. A name of a kind that this version does not know is
//! `None`, or a refusal when a resource is read. A comparison whose budget runs out answers *not
//! covered*. The credentials are made in `mint`, not here.

pub mod api;
pub mod aws;

use std::collections::BTreeSet;

use serde::Deserialize;

use self::api::{ApiResource, Verification};
use self::aws::AwsRole;
use super::action::ActionName;
use super::endpoint::{EndpointName, EndpointUse};
use super::location::Location;
use super::pattern::Budget;
use super::revocability::Revocability;
use super::workload::Identity;

/// The minter of a kind of resource. Configuration, leaves and the store name it by
/// [`Self::as_str`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MinterKind {
    /// The broker signs access tokens (JWTs).
    Jwt,
    /// STS creates sessions of AWS roles.
    Aws,
}

impl MinterKind {
    /// Every kind.
    pub const ALL: [Self; 2] = [Self::Jwt, Self::Aws];

    /// The name: the `kind` of a resource and the `minter` of a leaf.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Jwt => "jwt",
            Self::Aws => "aws",
        }
    }

    /// The inverse of [`Self::as_str`]; `None` for an unknown name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }

    /// Whether the broker creates the credential in this process. Ending such a credential needs no
    /// call to a back end.
    #[must_use]
    pub fn is_local(self) -> bool {
        match self {
            Self::Jwt => true,
            Self::Aws => false,
        }
    }

    /// Whether its credentials are access tokens: OAuth requests can ask for them, and servers can
    /// poll status lists for them.
    #[must_use]
    pub fn makes_access_tokens(self) -> bool {
        match self {
            Self::Jwt => true,
            Self::Aws => false,
        }
    }

    /// The `type` of the credential in a response.
    #[must_use]
    pub fn credential_type(self) -> &'static str {
        match self {
            Self::Jwt => "jwt",
            Self::Aws => "aws_sts",
        }
    }

    /// The inverse of [`Self::credential_type`].
    #[must_use]
    pub fn of_credential_type(text: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.credential_type() == text)
    }
}

/// The `type` of an object of `authorization_details`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DetailType {
    /// Rights on an HTTP API.
    Api,
    /// Rights in an AWS account.
    Aws,
}

impl DetailType {
    /// Every type.
    pub const ALL: [Self; 2] = [Self::Api, Self::Aws];

    /// The name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Aws => "aws",
        }
    }

    /// The name of the object's member that lists its locations.
    #[must_use]
    pub fn locations_member(self) -> &'static str {
        match self {
            Self::Api => "locations",
            Self::Aws => "resources",
        }
    }

    /// Whether its actions can be patterns, so that one can cover others.
    #[must_use]
    pub fn has_action_patterns(self) -> bool {
        match self {
            Self::Api => false,
            Self::Aws => true,
        }
    }

    /// Whether `own` covers all of `asked`; `false` if `budget` runs out.
    #[must_use]
    pub fn covers_action(self, own: &ActionName, asked: &ActionName, budget: &Budget) -> bool {
        match self {
            Self::Api => api::covers_action(own, asked),
            Self::Aws => aws::covers_action(own, asked, budget),
        }
    }
}

/// The kind of a resource, with the members that only this kind registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResourceKind {
    /// An HTTP API whose server accepts access tokens.
    Jwt(ApiResource),
    /// A role in AWS, whose sessions it gives.
    Aws(Box<AwsRole>),
}

/// The members of a resource's JSON that depend on its kind.
#[derive(Debug, Default)]
pub(super) struct KindMembers {
    pub(super) audience: String,
    pub(super) verifiers: BTreeSet<Identity>,
    pub(super) verification: Option<Verification>,
    pub(super) aws: Option<AwsRole>,
}

/// The common members of a resource that the check of its kind reads.
pub(super) struct Registration<'a> {
    pub(super) actions: &'a BTreeSet<ActionName>,
    pub(super) locations: &'a BTreeSet<Location>,
    pub(super) max_ttl_seconds: u64,
    /// The audiences of the broker itself, which no token may have.
    pub(super) own_audiences: &'a [String],
}

impl ResourceKind {
    /// Reads the members of a resource of the kind `name`. The error names a member that is missing
    /// or does not belong to the kind.
    pub(super) fn read(name: &str, members: KindMembers) -> Result<Self, String> {
        match MinterKind::parse(name) {
            Some(MinterKind::Jwt) => ApiResource::read(members).map(Self::Jwt),
            Some(MinterKind::Aws) => AwsRole::read(members).map(|role| Self::Aws(Box::new(role))),
            None => {
                let known = MinterKind::ALL.map(|kind| format!("`{}`", kind.as_str()));
                Err(format!(
                    "unknown kind `{name}`; this version mints {}",
                    known.join(" and ")
                ))
            }
        }
    }

    /// The inverse of [`Self::read`].
    pub(super) fn into_members(self) -> KindMembers {
        match self {
            Self::Jwt(api) => api.into_members(),
            Self::Aws(role) => role.into_members(),
        }
    }

    /// Checks that a resource can be served as registered. The error is the reason.
    pub(super) fn check(&self, registration: &Registration<'_>) -> Result<(), String> {
        match self {
            Self::Jwt(api) => api.check(registration),
            Self::Aws(role) => role.check(registration),
        }
    }

    /// The reason why the resource cannot be registered together with `other`, the registration of
    /// the resource `name`; `None` if it can.
    pub(super) fn conflict_with(&self, other: &Self, name: &str) -> Option<String> {
        match (self, other) {
            (Self::Aws(role), Self::Aws(other)) => role.conflict_with(other, name),
            (Self::Jwt(_), _) | (Self::Aws(_), Self::Jwt(_)) => None,
        }
    }

    /// The minter that makes its credentials.
    #[must_use]
    pub fn minter(&self) -> MinterKind {
        match self {
            Self::Jwt(_) => MinterKind::Jwt,
            Self::Aws(_) => MinterKind::Aws,
        }
    }

    /// The `type` of its `authorization_details`.
    #[must_use]
    pub fn detail_type(&self) -> DetailType {
        match self {
            Self::Jwt(_) => DetailType::Api,
            Self::Aws(_) => DetailType::Aws,
        }
    }

    /// The revocability of its credentials.
    ///
    /// `read_lease_seconds`: the maximum age of the facts that an introspection reads from the
    /// store, which is a property of the replica. Zero if the store cannot fail over.
    #[must_use]
    pub fn revocability(&self, read_lease_seconds: u64) -> Revocability {
        match self {
            Self::Jwt(api) => api.verification.revocability(read_lease_seconds),
            Self::Aws(role) => role.revocability(),
        }
    }

    /// The audience of its credentials: the `aud` of its tokens, or the ARN of its role.
    #[must_use]
    pub fn audience(&self) -> &str {
        match self {
            Self::Jwt(api) => &api.audience,
            Self::Aws(role) => &role.role_arn,
        }
    }

    /// The registered actions among `actions` that policy decides about if `asked` is requested. If
    /// `budget` runs out, discard the result.
    #[must_use]
    pub fn decided_as<'a>(
        &self,
        actions: &'a BTreeSet<ActionName>,
        asked: &ActionName,
        budget: &Budget,
    ) -> Vec<&'a ActionName> {
        match self {
            Self::Jwt(_) => api::decided_as(actions, asked),
            Self::Aws(_) => aws::decided_as(actions, asked, budget),
        }
    }

    /// Whether requests can be restricted to `region`.
    #[must_use]
    pub fn serves_region(&self, region: &str) -> bool {
        match self {
            Self::Jwt(_) => false,
            Self::Aws(role) => role.regions.is_empty() || role.regions.contains(region),
        }
    }

    /// Whether `caller` may introspect the credentials of the resource.
    #[must_use]
    pub fn is_verified_by(&self, caller: &Identity) -> bool {
        match self {
            Self::Jwt(api) => api.verifiers.contains(caller),
            Self::Aws(_) => false,
        }
    }

    /// Whether AWS must trust the broker as an OpenID provider.
    #[must_use]
    pub fn needs_federation(&self) -> bool {
        match self {
            Self::Jwt(_) => false,
            Self::Aws(role) => role.is_federated(),
        }
    }

    /// The API whose server takes the tokens; `None` for other kinds than `jwt`.
    #[must_use]
    pub fn api(&self) -> Option<&ApiResource> {
        match self {
            Self::Jwt(api) => Some(api),
            Self::Aws(_) => None,
        }
    }

    /// The AWS role; `None` for other kinds than `aws`.
    #[must_use]
    pub fn aws_role(&self) -> Option<&AwsRole> {
        match self {
            Self::Jwt(_) => None,
            Self::Aws(role) => Some(role),
        }
    }

    /// The endpoints that it names, each with the JSON pointer of its member in the resource.
    #[must_use]
    pub fn endpoints(&self) -> Vec<(&'static str, &EndpointName, EndpointUse)> {
        match self {
            Self::Jwt(_) => Vec::new(),
            Self::Aws(role) => role.endpoints(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::domain::catalog::Resource;

    #[test]
    fn every_kind_is_in_the_list_of_all_and_has_names_of_its_own() {
        // A new variant needs a position here and in the lists.
        let index_of = |kind: MinterKind| match kind {
            MinterKind::Jwt => 0,
            MinterKind::Aws => 1,
        };
        for kind in MinterKind::ALL {
            assert_eq!(MinterKind::ALL[index_of(kind)], kind);
            assert_eq!(MinterKind::parse(kind.as_str()), Some(kind));
            let credential = MinterKind::of_credential_type(kind.credential_type());
            assert_eq!(credential, Some(kind));
        }
        let index_of = |detail: DetailType| match detail {
            DetailType::Api => 0,
            DetailType::Aws => 1,
        };
        for detail in DetailType::ALL {
            assert_eq!(DetailType::ALL[index_of(detail)], detail);
            let read: DetailType = serde_json::from_value(json!(detail.as_str())).unwrap();
            assert_eq!(read, detail);
        }
        assert_eq!(MinterKind::parse("postgres"), None);
        assert_eq!(MinterKind::parse("JWT"), None);
        assert_eq!(MinterKind::of_credential_type("aws"), None);
    }

    fn api() -> serde_json::Value {
        json!({
            "name": "orders-api", "kind": "jwt", "owner": "orders",
            "audience": "https://orders.example", "actions": ["orders:read"],
            "locations": ["https://orders.example/v1"], "verifiers": ["ci:orders"],
            "verification": "status_list", "aws": null, "default_ttl_seconds": 300,
            "max_ttl_seconds": 900, "risk": "normal"
        })
    }

    fn role() -> serde_json::Value {
        json!({
            "name": "reports", "kind": "aws", "owner": "data", "audience": "",
            "actions": ["s3:GetObject"], "locations": ["arn:aws:s3:::reports/*"], "verifiers": [],
            "verification": null,
            "aws": {
                "role_arn": "arn:aws:iam::123456789012:role/reports", "mode": "web_identity",
                "region": "eu-central-1", "endpoint": null, "external_id": null, "regions": [],
                "source_networks": [], "may_leave": false, "revocation": null
            },
            "default_ttl_seconds": 300, "max_ttl_seconds": 900, "risk": "low"
        })
    }

    #[test]
    fn a_resource_is_written_as_it_was_read() {
        for written in [api(), role()] {
            let text = serde_json::to_string(&written).unwrap();
            let resource: Resource = serde_json::from_str(&text).unwrap();
            assert_eq!(serde_json::to_value(&resource).unwrap(), written);
            let again = serde_json::to_string(&resource).unwrap();
            let order = [
                "name",
                "kind",
                "owner",
                "audience",
                "actions",
                "locations",
                "verifiers",
                "verification",
                "aws",
                "default_ttl_seconds",
                "max_ttl_seconds",
                "risk",
            ];
            let positions = order.map(|name| again.find(&format!("\"{name}\":")).unwrap());
            assert!(positions.is_sorted(), "{again}");
        }
    }

    #[test]
    fn members_of_another_kind_are_refused_by_name() {
        for (mut written, member, value, why) in [
            (
                api(),
                "aws",
                role()["aws"].clone(),
                "[resources.aws] is for kind `aws`",
            ),
            (
                api(),
                "verification",
                json!(null),
                "verification must say how its server verifies",
            ),
            (
                api(),
                "kind",
                json!("aws"),
                "kind `aws` needs [resources.aws] with the role",
            ),
            (
                role(),
                "audience",
                json!("https://x.example"),
                "audience and verification are for kind `jwt`",
            ),
            (
                role(),
                "verification",
                json!("offline"),
                "audience and verification are for kind `jwt`",
            ),
            (
                role(),
                "verifiers",
                json!(["a:b"]),
                "verifiers are for kind `jwt`",
            ),
            (
                role(),
                "kind",
                json!("jwt"),
                "[resources.aws] is for kind `aws`",
            ),
            (
                api(),
                "kind",
                json!("postgres"),
                "resource `orders-api`: unknown kind `postgres`; this version mints `jwt` and `aws`",
            ),
            (api(), "postgres", json!({}), "unknown field `postgres`"),
        ] {
            written[member] = value;
            let refused = serde_json::from_value::<Resource>(written).unwrap_err();
            assert!(refused.to_string().contains(why), "{member}: {refused}");
        }
    }

    #[test]
    fn a_kind_says_what_is_asked_and_where_it_is_good() {
        let kind = |written| serde_json::from_value::<Resource>(written).unwrap().kind;
        let (api, role) = (kind(api()), kind(role()));
        assert_eq!(api.detail_type(), DetailType::Api);
        assert_eq!(role.detail_type(), DetailType::Aws);
        assert_eq!(api.audience(), "https://orders.example");
        assert_eq!(role.audience(), "arn:aws:iam::123456789012:role/reports");
        assert!(api.aws_role().is_none() && role.aws_role().is_some());
        assert!(!api.needs_federation() && role.needs_federation());
        let verifier = Identity::try_from("ci:orders".to_owned()).unwrap();
        assert!(api.is_verified_by(&verifier) && !role.is_verified_by(&verifier));
    }
}
