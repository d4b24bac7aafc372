//! What credentials can be for, and which kinds of task there are: the configuration's nouns.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::aws::AwsRole;
use super::decision::{Refusal, RefusalCode};
use super::grant::{ActionName, AuthorizationDetail, Location};
use super::limits::{
    MAX_DEADLINE_SECONDS, MAX_HEARTBEAT_SECONDS, MAX_NAME_BYTES, MAX_REQUEST_STEPS,
    MAX_SESSIONS_PER_TASK, MAX_TTL_SECONDS, MIN_HEARTBEAT_SECONDS,
};
use super::pattern::Budget;
use super::workload::Identity;

/// How a resource's server learns whether a credential is still good. It decides what we may
/// truthfully say of its revocability.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verification {
    /// It asks the broker at each use (RFC 7662).
    Introspection,
    /// It polls a status list, whose answers may be this old.
    StatusList,
    /// It checks the signature and the expiry and nothing else.
    Offline,
}

/// How much harm a resource can do; only a `low` one may have policies that merely observe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Risk {
    /// Harmless enough to try a policy on.
    Low,
    /// Everything else.
    #[default]
    Normal,
}

/// Something that credentials can be for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resource {
    /// Its name, unique.
    pub name: String,
    /// The minter that makes its credentials: `jwt` or `aws`.
    pub kind: String,
    /// The team that answers for it.
    pub owner: String,
    /// The `aud` of its tokens. For kind `jwt`.
    #[serde(default)]
    pub audience: String,
    /// Every action that exists on it; for kind `aws` patterns of them.
    pub actions: BTreeSet<ActionName>,
    /// Every place that it serves: URLs, or for kind `aws` patterns of ARNs.
    pub locations: BTreeSet<Location>,
    /// Identities that may ask about its tokens.
    #[serde(default)]
    pub verifiers: BTreeSet<Identity>,
    /// How its server verifies. For kind `jwt`.
    #[serde(default)]
    pub verification: Option<Verification>,
    /// The role whose sessions it gives. For kind `aws`.
    #[serde(default)]
    pub aws: Option<AwsRole>,
    /// The life of a credential whose request names none, where policy allows that much.
    #[serde(default = "default_ttl_seconds")]
    pub default_ttl_seconds: u64,
    /// The longest life of a credential, whatever policy says.
    #[serde(default = "default_max_ttl_seconds")]
    pub max_ttl_seconds: u64,
    /// How much harm it can do.
    #[serde(default)]
    pub risk: Risk,
}

impl Resource {
    /// Whether it serves what an object of `authorization_details` names; if not, why. Comparisons
    /// take their steps out of `budget`.
    pub fn check_serves(
        &self,
        detail: &AuthorizationDetail,
        budget: &Budget,
    ) -> Result<(), Refusal> {
        let kind = match detail {
            AuthorizationDetail::Api { .. } => "jwt",
            AuthorizationDetail::Aws { .. } => "aws",
        };
        if self.kind != kind {
            return Err(Refusal::new(
                RefusalCode::UnknownAction,
                format!(
                    "`{}` takes authorization_details of type `{}`",
                    self.name,
                    if self.aws.is_some() { "aws" } else { "api" }
                ),
            ));
        }
        let unknown = |action: &&ActionName| {
            let own = |own: &ActionName| match detail {
                AuthorizationDetail::Api { .. } => own == *action,
                AuthorizationDetail::Aws { .. } => own.covers_on_aws(action, budget),
            };
            !self.actions.contains(*action) && !self.actions.iter().any(own)
        };
        let action = detail.actions().iter().find(unknown);
        let outside = |location: &&Location| {
            let own = |own: &Location| own.covers_within(location, budget);
            !self.locations.contains(*location) && !self.locations.iter().any(own)
        };
        let location = detail.locations().iter().find(outside);
        if budget.is_exhausted() {
            return Err(too_many_steps());
        }
        if let Some(action) = action {
            return Err(Refusal::new(
                RefusalCode::UnknownAction,
                format!("`{}` has no action `{action}`", self.name),
            ));
        }
        if let Some(location) = location {
            return Err(Refusal::new(
                RefusalCode::UnknownLocation,
                format!("`{}` does not serve `{location}`", self.name),
            ));
        }
        match (&self.aws, detail.region()) {
            (Some(role), Some(region))
                if !role.regions.is_empty() && !role.regions.contains(region) =>
            {
                Err(Refusal::new(
                    RefusalCode::UnknownLocation,
                    format!("`{}` does not serve region `{region}`", self.name),
                ))
            }
            _ => Ok(()),
        }
    }

    /// The registered actions that policy is asked about where `asked` is asked for.
    ///
    /// At an API that is the action itself. On AWS both can be patterns: policy is asked about the
    /// narrowest registered ones that match all of what is asked, and about every other one that
    /// has something in common with it, so that a policy about a part holds for who asks for more.
    /// Wider ones are reached by `action in`. So a request for less is asked about no other ones.
    /// Where the steps of `budget` do not suffice, the answer is worth nothing.
    #[must_use]
    pub fn decided_as(&self, asked: &ActionName, budget: &Budget) -> Vec<&ActionName> {
        if self.aws.is_none() {
            return self.actions.get(asked).into_iter().collect();
        }
        let concerned = self.actions.iter();
        let concerned: Vec<_> = concerned
            .filter(|own| own.overlaps_within(asked, budget))
            .map(|own| (own, own.covers_on_aws(asked, budget)))
            .collect();
        if budget.is_exhausted() {
            return Vec::new();
        }
        // Of those that match all of it, the ones without a narrower one among them.
        let is_wider = |own: &ActionName| {
            let mut covering = concerned.iter().filter(|(_, covers)| *covers);
            covering.any(|(other, _)| own.is_wider_than(other, budget))
        };
        concerned
            .iter()
            .filter(|(own, covers)| !covers || !is_wider(own))
            .map(|(own, _)| *own)
            .collect()
    }

    /// What its credentials name as the place where they are good: the `aud` of its tokens, or the
    /// role.
    #[must_use]
    pub fn audience(&self) -> &str {
        match &self.aws {
            Some(role) => &role.role_arn,
            None => &self.audience,
        }
    }
}

/// The refusal of a request whose patterns take too long to compare.
#[must_use]
pub fn too_many_steps() -> Refusal {
    Refusal::new(
        RefusalCode::TooManyRights,
        format!(
            "to compare the patterns of this request takes more than {MAX_REQUEST_STEPS} steps; ask \
             for fewer actions and locations at once, or with fewer wildcards"
        ),
    )
}

fn default_ttl_seconds() -> u64 {
    300
}

fn default_max_ttl_seconds() -> u64 {
    900
}

/// A registered kind of task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskType {
    /// Its name, unique.
    pub name: String,
    /// The longest time from opening to deadline; also the deadline when the caller names none.
    pub max_deadline_seconds: u64,
    /// The resources that such a task may ask for.
    pub resources: BTreeSet<String>,
    /// The longest silence that a task of this type may ask for. With it, a heartbeat is required.
    #[serde(default)]
    pub max_heartbeat_seconds: Option<u64>,
    /// Credentials for the task and its descendants together.
    #[serde(default = "default_max_sessions")]
    pub max_sessions: u32,
    /// Tasks of this type that one workload may have open at once.
    #[serde(default = "default_max_open")]
    pub max_open_per_workload: u32,
}

fn default_max_sessions() -> u32 {
    16
}

fn default_max_open() -> u32 {
    1_000
}

/// What is wrong with a catalogue.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CatalogError {
    /// A name that is empty, too long or oddly spelt.
    #[error("{what} `{name}`: a name is 1 to {MAX_NAME_BYTES} of a-z, 0-9, `-` and `_`")]
    Name {
        /// Resource or task type.
        what: &'static str,
        /// As configured.
        name: String,
    },
    /// A name that stands twice.
    #[error("{what} `{name}` is registered twice")]
    Duplicate {
        /// Resource or task type.
        what: &'static str,
        /// As configured.
        name: String,
    },
    /// Anything else, with its remedy.
    #[error("{what} `{name}`: {problem}")]
    Invalid {
        /// Resource or task type.
        what: &'static str,
        /// As configured.
        name: String,
        /// What is wrong and what to do.
        problem: String,
    },
}

/// The registered resources and task types, looked up by name.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    resources: BTreeMap<String, Arc<Resource>>,
    task_types: BTreeMap<String, Arc<TaskType>>,
}

impl Catalog {
    /// Checks the registrations against each other and our limits.
    ///
    /// `own_audiences` are the names by which the broker itself is known (its issuer, the audience
    /// of attestations): no resource may have one of them, or its tokens would be good here.
    pub fn new(
        resources: Vec<Resource>,
        task_types: Vec<TaskType>,
        own_audiences: &[String],
    ) -> Result<Self, CatalogError> {
        let mut catalog = Self::default();
        for resource in resources {
            check_resource(&resource, own_audiences)?;
            catalog.check_role(&resource)?;
            let name = resource.name.clone();
            if catalog
                .resources
                .insert(name.clone(), Arc::new(resource))
                .is_some()
            {
                return Err(CatalogError::Duplicate {
                    what: "resource",
                    name,
                });
            }
        }
        for task_type in task_types {
            catalog.check_task_type(&task_type)?;
            let name = task_type.name.clone();
            if catalog
                .task_types
                .insert(name.clone(), Arc::new(task_type))
                .is_some()
            {
                return Err(CatalogError::Duplicate {
                    what: "task type",
                    name,
                });
            }
        }
        Ok(catalog)
    }

    /// The resource of this name.
    #[must_use]
    pub fn resource(&self, name: &str) -> Option<&Arc<Resource>> {
        self.resources.get(name)
    }

    /// The task type of this name.
    #[must_use]
    pub fn task_type(&self, name: &str) -> Option<&Arc<TaskType>> {
        self.task_types.get(name)
    }

    /// All resources, by name.
    pub fn resources(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.resources.values()
    }

    /// All task types, by name.
    pub fn task_types(&self) -> impl Iterator<Item = &Arc<TaskType>> {
        self.task_types.values()
    }

    /// What denies the sessions of a role is the role's: of several resources that have it, each
    /// must say the same of it.
    fn check_role(&self, resource: &Resource) -> Result<(), CatalogError> {
        let Some(role) = &resource.aws else {
            return Ok(());
        };
        let other = self.resources.values().find(|other| {
            other.aws.as_ref().is_some_and(|other| {
                other.role_arn == role.role_arn && other.revocation != role.revocation
            })
        });
        match other {
            None => Ok(()),
            Some(other) => Err(CatalogError::Invalid {
                what: "resource",
                name: resource.name.clone(),
                problem: format!(
                    "`{}` has the same role with another [resources.aws.revocation]; give both the \
                     same, or each its own role",
                    other.name
                ),
            }),
        }
    }

    fn check_task_type(&self, task_type: &TaskType) -> Result<(), CatalogError> {
        let what = "task type";
        check_name(what, &task_type.name)?;
        let invalid = |problem: String| CatalogError::Invalid {
            what,
            name: task_type.name.clone(),
            problem,
        };
        if !(1..=MAX_DEADLINE_SECONDS).contains(&task_type.max_deadline_seconds) {
            return Err(invalid(format!(
                "max_deadline_seconds must be 1 to {MAX_DEADLINE_SECONDS}"
            )));
        }
        if let Some(seconds) = task_type.max_heartbeat_seconds
            && !(MIN_HEARTBEAT_SECONDS..=MAX_HEARTBEAT_SECONDS).contains(&seconds)
        {
            return Err(invalid(format!(
                "max_heartbeat_seconds must be {MIN_HEARTBEAT_SECONDS} to {MAX_HEARTBEAT_SECONDS}"
            )));
        }
        if !(1..=MAX_SESSIONS_PER_TASK).contains(&task_type.max_sessions) {
            return Err(invalid(format!(
                "max_sessions must be 1 to {MAX_SESSIONS_PER_TASK}"
            )));
        }
        if task_type.max_open_per_workload == 0 {
            return Err(invalid("max_open_per_workload must be at least 1".into()));
        }
        if task_type.resources.is_empty() {
            return Err(invalid("name at least one resource".into()));
        }
        for resource in &task_type.resources {
            if !self.resources.contains_key(resource) {
                return Err(invalid(format!(
                    "there is no resource `{resource}`; register it or remove it here"
                )));
            }
        }
        Ok(())
    }
}

fn check_name(what: &'static str, name: &str) -> Result<(), CatalogError> {
    let fine = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.bytes().all(fine) {
        return Err(CatalogError::Name {
            what,
            name: name.to_owned(),
        });
    }
    Ok(())
}

fn check_resource(resource: &Resource, own_audiences: &[String]) -> Result<(), CatalogError> {
    let what = "resource";
    check_name(what, &resource.name)?;
    let invalid = |problem: String| CatalogError::Invalid {
        what,
        name: resource.name.clone(),
        problem,
    };
    if resource.owner.is_empty() {
        return Err(invalid(
            "owner must name the team that answers for it".into(),
        ));
    }
    match resource.kind.as_str() {
        "jwt" => check_jwt(resource, own_audiences),
        "aws" => super::aws::check(resource),
        other => Err(format!(
            "unknown kind `{other}`; this version mints `jwt` and `aws`"
        )),
    }
    .map_err(invalid)?;
    if resource.actions.is_empty() {
        return Err(invalid("register at least one action".into()));
    }
    if resource.locations.is_empty() {
        return Err(invalid("register at least one location".into()));
    }
    if !(1..=MAX_TTL_SECONDS).contains(&resource.max_ttl_seconds) {
        return Err(invalid(format!(
            "max_ttl_seconds must be 1 to {MAX_TTL_SECONDS}"
        )));
    }
    if !(1..=resource.max_ttl_seconds).contains(&resource.default_ttl_seconds) {
        return Err(invalid(format!(
            "default_ttl_seconds must be 1 to max_ttl_seconds ({})",
            resource.max_ttl_seconds
        )));
    }
    Ok(())
}

fn check_jwt(resource: &Resource, own_audiences: &[String]) -> Result<(), String> {
    if resource.aws.is_some() {
        return Err("[resources.aws] is for kind `aws`".into());
    }
    if resource.audience.is_empty() {
        return Err("audience must not be empty".into());
    }
    // A trailing slash or a path does not make the broker's own name somebody else's.
    let same_place = |own: &String| {
        own.trim_end_matches('/') == resource.audience.trim_end_matches('/')
            || resource
                .audience
                .strip_prefix(own.trim_end_matches('/'))
                .is_some_and(|rest| rest.starts_with('/'))
    };
    if own_audiences.iter().any(same_place) {
        return Err("its audience is the broker's own; tokens for it would be good here".into());
    }
    if super::aws::FEDERATION_AUDIENCES.contains(&resource.audience.as_str()) {
        return Err("its audience is that of federation with AWS; choose another".into());
    }
    if resource.actions.iter().any(ActionName::has_wildcards) {
        return Err("an action must not have wildcards".into());
    }
    if resource.locations.iter().any(Location::is_arn) {
        return Err("a location must be an https URL".into());
    }
    if resource.verification.is_none() {
        return Err(
            "verification must say how its server verifies: introspection, status_list or offline"
                .into(),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource() -> Resource {
        serde_json::from_value(serde_json::json!({
            "name": "orders-api", "kind": "jwt", "owner": "orders",
            "audience": "https://orders.example", "actions": ["orders:read"],
            "locations": ["https://orders.example/v1"], "verification": "introspection"
        }))
        .unwrap()
    }

    #[test]
    fn an_audience_of_the_brokers_own_does_not_load() {
        let own = ["https://broker.example".to_owned()];
        for audience in [
            "https://broker.example",
            "https://broker.example/",
            "https://broker.example/federation/aws",
        ] {
            let bad = Resource {
                audience: audience.into(),
                ..resource()
            };
            assert!(Catalog::new(vec![bad], vec![], &own).is_err(), "{audience}");
        }
        let neighbour = Resource {
            audience: "https://broker.example.org".into(),
            ..resource()
        };
        assert!(Catalog::new(vec![neighbour], vec![], &own).is_ok());
    }

    #[test]
    fn a_resource_names_its_owner() {
        let bad = Resource {
            owner: String::new(),
            ..resource()
        };
        let refused = Catalog::new(vec![bad], vec![], &[]).unwrap_err();
        assert!(refused.to_string().contains("owner"), "{refused}");
    }

    #[test]
    fn a_name_stands_once() {
        let twice = Catalog::new(vec![resource(), resource()], vec![], &[]);
        assert!(matches!(twice, Err(CatalogError::Duplicate { .. })));
    }

    #[test]
    fn a_task_type_names_resources_that_exist() {
        let task_type: TaskType = serde_json::from_value(serde_json::json!({
            "name": "t", "max_deadline_seconds": 60, "resources": ["nowhere"]
        }))
        .unwrap();
        assert!(Catalog::new(vec![resource()], vec![task_type], &[]).is_err());
    }

    #[test]
    fn resources_that_share_a_role_end_its_sessions_alike() {
        let bucket = |name: &str, revocation: Option<&str>| {
            let mut resource = serde_json::json!({
                "name": name, "kind": "aws", "owner": "data", "actions": ["s3:GetObject"],
                "locations": ["arn:aws:s3:::b/*"],
                "aws": {
                    "role_arn": "arn:aws:iam::123456789012:role/r", "mode": "assume_role",
                    "region": "eu-central-1"
                }
            });
            if let Some(policy_name) = revocation {
                resource["aws"]["revocation"] = serde_json::json!({"policy_name": policy_name});
            }
            serde_json::from_value(resource).unwrap()
        };
        let together = |one, other| {
            let resources = vec![bucket("one", one), bucket("other", other)];
            Catalog::new(resources, Vec::new(), &[])
        };
        together(None, None).unwrap();
        together(Some("Denied"), Some("Denied")).unwrap();
        for other in [None, Some("AlsoDenied")] {
            let refused = together(Some("Denied"), other).unwrap_err();
            assert!(refused.to_string().contains("same role"), "{refused}");
        }
    }
}
