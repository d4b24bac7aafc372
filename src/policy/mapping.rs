//! Maps the broker's types to Cedar's entities and context.
//!
//! [`Model`] has the types and constant entities of one generation, [`Scene`] one principal and
//! resource. [`credential_context`], [`task_context`] and [`broker_context`] build the contexts.
//!
//! All values are built directly and checked against the schema at once: entities by its entity
//! types, requests by the whole schema. Entities that are built with the whole schema would get
//! every registered action, which costs milliseconds for thousands. So [`Model::entities`] adds
//! only the actions that an evaluation looks up, with their ancestors. Without them
//! `action in Action::"any"` would match nothing, and a `forbid` that uses it would silently have
//! no effect. Therefore a [`Scene`] cannot be evaluated by itself.
//!
//! Cedar looks an action up only on the left side of `in`, where it reads the ancestors. On the
//! right side and in `==` it compares names. The left side is the requested action or one that the
//! policy names (`super::asked::rewrite::Rule::looked_up`). No action has attributes or tags.
//!
//! A value that does not fit the schema is [`Unmappable`]; its text is for the broker's logs, and
//! `super::decide` turns it into an indeterminate decision. `super::inquiry`, `super::decide` and
//! `super::roles` call this file. It evaluates nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use cedar_policy::{
    Context, Entities, Entity, EntityId, EntityTypeName, EntityUid, Request, RestrictedExpression,
    Schema,
};
use serde::{Deserialize, Serialize};

use super::asked::ASKED;
use super::schema;
use crate::domain::catalog::{Catalog, Resource, Risk};
use crate::domain::revocability::{Revocability, RevocationClass};
use crate::domain::trust::AttestorSpec;
use crate::domain::workload::{ClaimValue, Identity};

/// A value that does not fit the schema. The text is for the broker's logs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Unmappable(pub(super) String);

impl Unmappable {
    fn because(error: impl std::fmt::Display) -> Self {
        Self(error.to_string())
    }
}

/// The caller as policies see it and as the input records it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PrincipalInput {
    /// The attestor's name, which gives the principal's type.
    pub(super) attestor: String,
    /// The id of the principal entity.
    pub(super) identity: Identity,
    /// The roles of the principal; `None` if they were not read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) roles: Option<BTreeSet<String>>,
    /// The content of `principal.claims`.
    pub(super) claims: BTreeMap<String, ClaimValue>,
}

/// Typed facts about the task; never its free text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskFacts {
    /// The name of the registered type.
    pub task_type: String,
    /// Depth in the chain of tasks; 1 for a root.
    pub depth: u8,
    /// Whole seconds until the task or one of its ancestors ends.
    pub deadline_seconds_left: u64,
    /// Whether it has a parent task.
    pub has_parent: bool,
    /// Whether this request opens the task, which policy must permit too.
    pub opens: bool,
}

/// One principal, and the resource if there is one.
pub(super) struct Scene {
    pub(super) principal: EntityUid,
    /// The roles of the principal.
    pub(super) ancestors: Vec<EntityUid>,
    /// Both as entities, without any action. Only [`Model::entities`] gives them to an evaluation.
    without_actions: Entities,
}

/// The types and constant entities of one generation.
#[derive(Debug)]
pub(super) struct Model {
    /// The schema that policies are written against.
    pub(super) written: Schema,
    /// The schema of the evaluated form.
    pub(super) schema: Schema,
    /// The entity types of both schemas.
    entity_types: Schema,
    /// Every action, with its ancestors.
    pub(super) actions: Entities,
    workloads: BTreeMap<String, EntityTypeName>,
    resources: BTreeMap<String, Entity>,
    task_type: EntityTypeName,
    role: EntityTypeName,
    action: EntityTypeName,
    bootstrap: EntityTypeName,
    broker: EntityUid,
}

impl Model {
    pub(super) fn new(
        written: Schema,
        schema: Schema,
        entity_types: Schema,
        attestors: &[AttestorSpec],
        catalog: &Catalog,
    ) -> Result<Self, Unmappable> {
        let actions = schema.action_entities().map_err(Unmappable::because)?;
        let name = |text: &str| text.parse::<EntityTypeName>().map_err(Unmappable::because);
        let mut workloads = BTreeMap::new();
        for spec in attestors {
            let full = format!("{}::{}", schema::WORKLOAD, schema::type_name(spec.name()));
            workloads.insert(spec.name().to_owned(), name(&full)?);
        }
        let mut resources = BTreeMap::new();
        for resource in catalog.resources() {
            let of_kind = name(schema::resource_type(resource.kind.detail_type()))?;
            resources.insert(resource.name.clone(), resource_entity(&of_kind, resource)?);
        }
        Ok(Self {
            written,
            schema,
            entity_types,
            actions,
            workloads,
            resources,
            task_type: name(schema::TASK_TYPE)?,
            role: name(schema::ROLE)?,
            action: name(schema::ACTION)?,
            bootstrap: name(schema::BOOTSTRAP)?,
            broker: uid(&name(schema::BROKER)?, schema::BROKER_ID),
        })
    }

    /// The attestor whose workloads have this type; `None` if the type is not one of workloads.
    pub(super) fn attestor_of(&self, kind: &EntityTypeName) -> Option<&str> {
        self.workloads
            .iter()
            .find(|(_, own)| *own == kind)
            .map(|(name, _)| name.as_str())
    }

    pub(super) fn action(&self, name: &str) -> EntityUid {
        uid(&self.action, name)
    }

    pub(super) fn task_type(&self, name: &str) -> EntityUid {
        uid(&self.task_type, name)
    }

    pub(super) fn broker(&self) -> EntityUid {
        self.broker.clone()
    }

    /// The entity of a resource; `None` if the catalog has no resource of this name.
    pub(super) fn resource(&self, name: &str) -> Option<EntityUid> {
        self.resources.get(name).map(Entity::uid)
    }

    /// A workload, and the requested resource if there is one.
    pub(super) fn workload_scene(
        &self,
        who: &PrincipalInput,
        resource: Option<&str>,
    ) -> Result<Scene, Unmappable> {
        let kind = self
            .workloads
            .get(&who.attestor)
            .ok_or_else(|| Unmappable(format!("no attestor `{}`", who.attestor)))?;
        let principal = uid(kind, who.identity.as_str());
        let ancestors: Vec<EntityUid> = who
            .roles
            .iter()
            .flatten()
            .map(|r| uid(&self.role, r))
            .collect();
        let claims = who
            .claims
            .iter()
            .map(|(name, value)| (name.clone(), claim(value)));
        let attributes = HashMap::from([
            (
                "identity".to_owned(),
                RestrictedExpression::new_string(who.identity.to_string()),
            ),
            (
                "claims".to_owned(),
                RestrictedExpression::new_record(claims).map_err(Unmappable::because)?,
            ),
        ]);
        let parents: HashSet<EntityUid> = ancestors.iter().cloned().collect();
        let entity =
            Entity::new(principal.clone(), attributes, parents).map_err(Unmappable::because)?;
        let mut all = vec![entity];
        if let Some(name) = resource {
            let resource = self.resources.get(name);
            all.push(
                resource
                    .ok_or_else(|| Unmappable(format!("no resource `{name}`")))?
                    .clone(),
            );
        }
        Ok(Scene {
            principal,
            ancestors,
            without_actions: self.checked(all)?,
        })
    }

    /// A workload of which only the identity and roles are known. It has no claims, even if
    /// the schema requires some. `None` if this generation has no such attestor.
    pub(super) fn unclaimed_scene(
        &self,
        identity: &Identity,
        roles: &BTreeSet<String>,
    ) -> Option<Scene> {
        let (attestor, _) = identity.as_str().split_once(':')?;
        let principal = uid(self.workloads.get(attestor)?, identity.as_str());
        let ancestors: Vec<EntityUid> = roles.iter().map(|r| uid(&self.role, r)).collect();
        let no_claims = RestrictedExpression::new_record(std::iter::empty()).ok()?;
        let attributes = HashMap::from([
            (
                "identity".to_owned(),
                RestrictedExpression::new_string(identity.to_string()),
            ),
            ("claims".to_owned(), no_claims),
        ]);
        let parents: HashSet<EntityUid> = ancestors.iter().cloned().collect();
        let entity = Entity::new(principal.clone(), attributes, parents).ok()?;
        Some(Scene {
            principal,
            ancestors,
            // The schema could require claims.
            without_actions: Entities::from_entities([entity], None).ok()?,
        })
    }

    /// The scene of a token that belongs to no workload.
    pub(super) fn token_scene(&self, id: &str) -> Result<Scene, Unmappable> {
        let principal = uid(&self.bootstrap, id);
        let entity = Entity::new_no_attrs(principal.clone(), HashSet::new());
        Ok(Scene {
            principal,
            ancestors: Vec::new(),
            without_actions: self.checked(vec![entity])?,
        })
    }

    fn checked(&self, all: Vec<Entity>) -> Result<Entities, Unmappable> {
        Entities::from_entities(all, Some(&self.entity_types)).map_err(Unmappable::because)
    }

    /// The entities for evaluations that look up these actions, by name: those of the scene, and
    /// the actions with all their ancestors. The schema's other actions are not added. A name that
    /// the schema does not have adds nothing.
    pub(super) fn entities<'n>(
        &self,
        scene: &Scene,
        actions: impl IntoIterator<Item = &'n str>,
    ) -> Result<Entities, Unmappable> {
        let mut uids = BTreeSet::new();
        for name in actions {
            let uid = self.action(name);
            uids.extend(self.actions.ancestors(&uid).into_iter().flatten().cloned());
            uids.insert(uid);
        }
        let actions = uids.iter().filter_map(|uid| self.actions.get(uid)).cloned();
        let all = scene.without_actions.clone().add_entities(actions, None);
        all.map_err(Unmappable::because)
    }

    /// The entities with every action, as Cedar builds them with the whole schema. Evaluations with
    /// [`Model::entities`] must give the same answers.
    #[cfg(test)]
    pub(super) fn entities_by_schema(&self, scene: &Scene) -> Entities {
        let all = scene.without_actions.iter().cloned();
        Entities::from_entities(all, Some(&self.schema)).unwrap()
    }

    /// A request, checked against the schema.
    pub(super) fn request(
        &self,
        scene: &Scene,
        action: &EntityUid,
        resource: &EntityUid,
        context: Context,
    ) -> Result<Request, Unmappable> {
        Request::new(
            scene.principal.clone(),
            action.clone(),
            resource.clone(),
            context,
            Some(&self.schema),
        )
        .map_err(Unmappable::because)
    }
}

/// The context of an act on the broker. `asked`: the numbers of the questions that hold.
pub(super) fn broker_context(asked: &[u32]) -> Result<Context, Unmappable> {
    Context::from_pairs([numbers(asked)]).map_err(Unmappable::because)
}

/// The context for opening a task.
pub(super) fn task_context(task: &TaskFacts, asked: &[u32]) -> Result<Context, Unmappable> {
    let pairs = [("task".to_owned(), task_record(task)?), numbers(asked)];
    Context::from_pairs(pairs).map_err(Unmappable::because)
}

/// The context for a right on a resource.
pub(super) fn credential_context(
    task: &TaskFacts,
    asked: &[u32],
    ttl_seconds: u64,
    revocability: Revocability,
) -> Result<Context, Unmappable> {
    let ttl_seconds = RestrictedExpression::new_long(long(ttl_seconds)?);
    let pairs = [
        ("task".to_owned(), task_record(task)?),
        ("ttl_seconds".to_owned(), ttl_seconds),
        (
            "revocability".to_owned(),
            revocability_record(revocability)?,
        ),
        numbers(asked),
    ];
    Context::from_pairs(pairs).map_err(Unmappable::because)
}

fn numbers(asked: &[u32]) -> (String, RestrictedExpression) {
    let numbers = asked.iter().copied().map(i64::from);
    let set = RestrictedExpression::new_set(numbers.map(RestrictedExpression::new_long));
    (ASKED.to_owned(), set)
}

fn task_record(task: &TaskFacts) -> Result<RestrictedExpression, Unmappable> {
    RestrictedExpression::new_record([
        (
            "type".to_owned(),
            RestrictedExpression::new_string(task.task_type.clone()),
        ),
        (
            "depth".to_owned(),
            RestrictedExpression::new_long(i64::from(task.depth)),
        ),
        (
            "deadline_seconds".to_owned(),
            RestrictedExpression::new_long(long(task.deadline_seconds_left)?),
        ),
        (
            "has_parent".to_owned(),
            RestrictedExpression::new_bool(task.has_parent),
        ),
    ])
    .map_err(Unmappable::because)
}

/// Revocability as policies read it.
pub(super) fn revocability_record(own: Revocability) -> Result<RestrictedExpression, Unmappable> {
    let text = |value: &str| RestrictedExpression::new_string(value.to_owned());
    let mut pairs = vec![
        ("class".to_owned(), text(own.class.as_str())),
        ("open_sessions".to_owned(), text(own.open_sessions.as_str())),
        ("expires_by".to_owned(), text(own.expires_by.as_str())),
    ];
    match own.class {
        RevocationClass::Bounded { bound_seconds } => {
            let bound = RestrictedExpression::new_long(long(bound_seconds)?);
            pairs.push(("bound_seconds".to_owned(), bound));
        }
        // The bound of an immediate revocation is a setting of the replica, and replicas that
        // decide by one generation must decide alike.
        RevocationClass::Immediate { .. } | RevocationClass::ExpiryOnly => {}
    }
    RestrictedExpression::new_record(pairs).map_err(Unmappable::because)
}

/// Refuses a number that Cedar cannot represent. Saturating it would change the facts of the
/// decision.
fn long(value: u64) -> Result<i64, Unmappable> {
    i64::try_from(value).map_err(Unmappable::because)
}

fn claim(value: &ClaimValue) -> RestrictedExpression {
    match value {
        ClaimValue::Bool(value) => RestrictedExpression::new_bool(*value),
        ClaimValue::Long(value) => RestrictedExpression::new_long(*value),
        ClaimValue::String(value) => RestrictedExpression::new_string(value.clone()),
        ClaimValue::Set(values) => RestrictedExpression::new_set(
            values
                .iter()
                .map(|value| RestrictedExpression::new_string(value.clone())),
        ),
    }
}

fn uid(kind: &EntityTypeName, id: &str) -> EntityUid {
    EntityUid::from_type_name_and_id(kind.clone(), EntityId::new(id))
}

fn resource_entity(kind: &EntityTypeName, resource: &Resource) -> Result<Entity, Unmappable> {
    let risk = match resource.risk {
        Risk::Low => "low",
        Risk::Normal => "normal",
    };
    let text = |value: &str| RestrictedExpression::new_string(value.to_owned());
    let attributes = HashMap::from([
        ("owner".to_owned(), text(&resource.owner)),
        ("audience".to_owned(), text(resource.audience())),
        ("risk".to_owned(), text(risk)),
    ]);
    Entity::new(uid(kind, &resource.name), attributes, HashSet::new()).map_err(Unmappable::because)
}
