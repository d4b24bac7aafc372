//! The registered resources and task types of a configuration.
//!
//! [`Resource`] is a target of credentials, [`TaskType`] a kind of task, and [`Catalog`] holds both
//! by name. [`Catalog::new`] checks them: names, limits, references from task types to resources,
//! and the conditions of each kind ([`super::kind`]). [`Resource::check_serves`] checks a request
//! against one resource.
//!
//! Every entry of a catalog has passed these checks; the first failure is a [`CatalogError`] with
//! the name and the reason. A request for an action, a location or a region that is not registered
//! gets a [`Refusal`], as does one whose patterns take too many steps to compare.
//!
//! `config::check` and `policy::generation` make catalogs. [`super::request`] and `policy` look
//! names up in them. Whether a workload may have a right is decided by policy, not here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::action::ActionName;
use super::decision::{Refusal, RefusalCode};
use super::grant::AuthorizationDetail;
use super::kind::api::Verification;
use super::kind::aws::AwsRole;
use super::kind::{KindMembers, Registration, ResourceKind};
use super::limits::{
    MAX_DEADLINE_SECONDS, MAX_HEARTBEAT_SECONDS, MAX_NAME_BYTES, MAX_REQUEST_STEPS,
    MAX_SESSIONS_PER_TASK, MAX_TTL_SECONDS, MIN_HEARTBEAT_SECONDS,
};
use super::location::Location;
use super::name::is_name;
use super::pattern::Budget;
use super::workload::Identity;

/// The risk class of a resource. Policies may only observe at a resource of class `low`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Risk {
    /// Low enough to try a policy without enforcing it.
    Low,
    /// Any other resource; the default.
    #[default]
    Normal,
}

/// A registered resource: a target of credentials.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "WrittenResource", into = "WrittenResource")]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct Resource {
    /// Name, unique among resources.
    pub name: String,
    /// Its kind, with the members that this kind registers.
    pub kind: ResourceKind,
    /// The team that is responsible for it.
    pub owner: String,
    /// Every action of the resource; for kind `aws`, patterns of actions.
    pub actions: BTreeSet<ActionName>,
    /// Every location that it serves: URLs; for kind `aws`, patterns of ARNs.
    pub locations: BTreeSet<Location>,
    /// Life in seconds of a credential whose request names none, if policy permits it.
    pub default_ttl_seconds: u64,
    /// Maximum life of a credential in seconds, regardless of policy.
    pub max_ttl_seconds: u64,
    pub risk: Risk,
}

/// A [`Resource`] in the flat form of configuration and generation documents, with the members of
/// every kind. The document's digest covers these bytes: keep the order of the members, and omit a
/// new member if it is absent.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename = "Resource", deny_unknown_fields)]
pub(crate) struct WrittenResource {
    name: String,
    /// The name of the minter, [`MinterKind::as_str`](super::kind::MinterKind::as_str).
    kind: String,
    owner: String,
    #[serde(default)]
    audience: String,
    actions: BTreeSet<ActionName>,
    locations: BTreeSet<Location>,
    #[serde(default)]
    verifiers: BTreeSet<Identity>,
    #[serde(default)]
    verification: Option<Verification>,
    #[serde(default)]
    aws: Option<AwsRole>,
    #[serde(default = "default_ttl_seconds")]
    default_ttl_seconds: u64,
    #[serde(default = "default_max_ttl_seconds")]
    max_ttl_seconds: u64,
    #[serde(default)]
    risk: Risk,
}

impl TryFrom<WrittenResource> for Resource {
    type Error = CatalogError;

    fn try_from(written: WrittenResource) -> Result<Self, CatalogError> {
        let members = KindMembers {
            audience: written.audience,
            verifiers: written.verifiers,
            verification: written.verification,
            aws: written.aws,
        };
        let kind = ResourceKind::read(&written.kind, members);
        let kind = kind.map_err(|problem| CatalogError::Invalid {
            what: "resource",
            name: written.name.clone(),
            problem,
        })?;
        Ok(Self {
            name: written.name,
            kind,
            owner: written.owner,
            actions: written.actions,
            locations: written.locations,
            default_ttl_seconds: written.default_ttl_seconds,
            max_ttl_seconds: written.max_ttl_seconds,
            risk: written.risk,
        })
    }
}

impl From<Resource> for WrittenResource {
    fn from(resource: Resource) -> Self {
        let kind = resource.kind.minter().as_str().to_owned();
        let members = resource.kind.into_members();
        Self {
            name: resource.name,
            kind,
            owner: resource.owner,
            audience: members.audience,
            actions: resource.actions,
            locations: resource.locations,
            verifiers: members.verifiers,
            verification: members.verification,
            aws: members.aws,
            default_ttl_seconds: resource.default_ttl_seconds,
            max_ttl_seconds: resource.max_ttl_seconds,
            risk: resource.risk,
        }
    }
}

impl Resource {
    /// Checks that it serves an object of `authorization_details`. Comparisons use steps of
    /// `budget`.
    pub fn check_serves(
        &self,
        detail: &AuthorizationDetail,
        budget: &Budget,
    ) -> Result<(), Refusal> {
        let expected = self.kind.detail_type();
        if detail.detail_type() != expected {
            return Err(Refusal::new(
                RefusalCode::UnknownAction,
                format!(
                    "`{}` takes authorization_details of type `{}`",
                    self.name,
                    expected.as_str()
                ),
            ));
        }
        let unknown = |action: &&ActionName| {
            let own = |own: &ActionName| expected.covers_action(own, action, budget);
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
        match detail.region() {
            Some(region) if !self.kind.serves_region(region) => Err(Refusal::new(
                RefusalCode::UnknownLocation,
                format!("`{}` does not serve region `{region}`", self.name),
            )),
            Some(_) | None => Ok(()),
        }
    }

    /// The registered actions that policy decides about if `asked` is requested. If `budget` runs
    /// out, discard the result.
    #[must_use]
    pub fn decided_as(&self, asked: &ActionName, budget: &Budget) -> Vec<&ActionName> {
        self.kind.decided_as(&self.actions, asked, budget)
    }

    /// The audience of its credentials: the `aud` of its tokens, or the ARN of its role.
    #[must_use]
    pub fn audience(&self) -> &str {
        self.kind.audience()
    }
}

/// The refusal of a request whose patterns take too many steps to compare.
#[must_use]
pub fn too_many_steps() -> Refusal {
    Refusal::new(
        RefusalCode::TooManyRights,
        format!(
            "comparing the patterns of this request takes more than {MAX_REQUEST_STEPS} steps; \
            request fewer actions and locations, or fewer wildcards"
        ),
    )
}

fn default_ttl_seconds() -> u64 {
    300
}

fn default_max_ttl_seconds() -> u64 {
    900
}

/// A registered type of task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskType {
    /// Name, unique among task types.
    pub name: String,
    /// Maximum seconds from opening to deadline. Also the default deadline.
    pub max_deadline_seconds: u64,
    /// Names of the resources for which such a task may request credentials.
    pub resources: BTreeSet<String>,
    /// Longest heartbeat interval, in seconds, that a task of this type may request. If it is set,
    /// a heartbeat is required.
    #[serde(default)]
    pub max_heartbeat_seconds: Option<u64>,
    /// Maximum number of credentials for the task and its descendants together.
    #[serde(default = "default_max_sessions")]
    pub max_sessions: u32,
    /// Maximum number of open tasks of this type for one workload.
    #[serde(default = "default_max_open")]
    pub max_open_per_workload: u32,
}

fn default_max_sessions() -> u32 {
    16
}

fn default_max_open() -> u32 {
    1_000
}

/// An error in the registrations.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the other names say it all")]
pub enum CatalogError {
    /// A name that is empty, too long or has other characters.
    #[error("{what} `{name}`: a name is 1 to {MAX_NAME_BYTES} of a-z, 0-9, `-` and `_`")]
    Name {
        /// Either `resource` or `task type`.
        what: &'static str,
        name: String,
    },
    /// A name that is registered twice.
    #[error("{what} `{name}` is registered twice")]
    Duplicate {
        /// Either `resource` or `task type`.
        what: &'static str,
        name: String,
    },
    /// Any other error.
    #[error("{what} `{name}`: {problem}")]
    Invalid {
        /// Either `resource` or `task type`.
        what: &'static str,
        name: String,
        /// The error and its remedy.
        problem: String,
    },
}

/// The registered resources and task types, by name.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    resources: BTreeMap<String, Arc<Resource>>,
    task_types: BTreeMap<String, Arc<TaskType>>,
}

impl Catalog {
    /// Checks the registrations against each other and against the limits.
    ///
    /// `own_audiences` are the audiences of the broker itself (its issuer, and the audience of
    /// attestations). No resource may have one of them, because its tokens would be valid at the
    /// broker.
    pub fn new(
        resources: Vec<Resource>,
        task_types: Vec<TaskType>,
        own_audiences: &[String],
    ) -> Result<Self, CatalogError> {
        let mut catalog = Self::default();
        for resource in resources {
            check_resource(&resource, own_audiences)?;
            catalog.check_conflicts(&resource)?;
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

    /// The resource with this name; `None` if no resource has it.
    #[must_use]
    pub fn resource(&self, name: &str) -> Option<&Arc<Resource>> {
        self.resources.get(name)
    }

    /// The task type with this name; `None` if no task type has it.
    #[must_use]
    pub fn task_type(&self, name: &str) -> Option<&Arc<TaskType>> {
        self.task_types.get(name)
    }

    /// All resources, sorted by name.
    pub fn resources(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.resources.values()
    }

    /// All task types, sorted by name.
    pub fn task_types(&self) -> impl Iterator<Item = &Arc<TaskType>> {
        self.task_types.values()
    }

    /// Refuses a resource that conflicts with another registered one.
    fn check_conflicts(&self, resource: &Resource) -> Result<(), CatalogError> {
        let conflict = self
            .resources
            .values()
            .find_map(|other| resource.kind.conflict_with(&other.kind, &other.name));
        match conflict {
            None => Ok(()),
            Some(problem) => Err(CatalogError::Invalid {
                what: "resource",
                name: resource.name.clone(),
                problem,
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
    if !is_name(name) {
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
    let registration = Registration {
        actions: &resource.actions,
        locations: &resource.locations,
        max_ttl_seconds: resource.max_ttl_seconds,
        own_audiences,
    };
    resource.kind.check(&registration).map_err(invalid)?;
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

    fn with_audience(audience: &str) -> Resource {
        let mut written = WrittenResource::from(resource());
        written.audience = audience.into();
        written.try_into().unwrap()
    }

    #[test]
    fn an_audience_of_the_brokers_own_does_not_load() {
        let own = ["https://broker.example".to_owned()];
        for audience in [
            "https://broker.example",
            "https://broker.example/",
            "https://broker.example/federation/aws",
        ] {
            let bad = with_audience(audience);
            assert!(Catalog::new(vec![bad], vec![], &own).is_err(), "{audience}");
        }
        let neighbour = with_audience("https://broker.example.org");
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
