//! Rules for policies in addition to Cedar's validation.
//!
//! **The principal rule.** Every `permit` must pin its principal to a value that the caller cannot
//! choose, in one of these ways:
//! 1. `principal == E` in its scope;
//! 2. `principal in Role::"r"` (also `is T in Role::"r"`) in its scope: roles are bound by admins;
//! 3. a `when` clause with a conjunct, at the top level of its `&&`s, that is
//!    `principal.identity == "…"`, `principal.claims.c == <literal>` or `[<literals>].contains(…)`
//!    of one of these, where `c` is declared immutable and not caller-shaped. A policy that pins a
//!    claim must apply to the workloads of one attestor alone (`principal is Workload::a`): a claim
//!    of another issuer with that name means something else.
//!
//! If the policy permits, every conjunct of its `when` holds, independent of the other conditions,
//! so the rule is sound. It is not complete: a condition under `||`, `if` or `like` does not count,
//! even where it would suffice. Write two policies then.
//!
//! The other rules:
//! - Every entity that a policy names must exist, and so must every task type and every
//!   revocability value that it compares with: a `forbid` about a misspelt name forbids nothing.
//! - A `permit` is either about resources and tasks or about the broker, never both, so that a
//!   forgotten scope does not create an admin.
//! - Obligations apply to permits for credentials and tasks only.
//! - A policy that only observes names one resource, which is registered with low risk.
//! - A `forbid` names a wide AWS action by `action in`, not by `==`, which would miss the narrower
//!   registered actions.
//!
//! [`check`] returns a [`Finding`] for each broken rule; one is enough to refuse the generation.
//! `super::generation` calls it after Cedar's strict validation, which finds wrong types and names.

use std::sync::Arc;

use cedar_policy::pst::{BinaryOp, Clause, Expr, Literal, Var};
use cedar_policy::{ActionConstraint, Effect, EntityUid, PrincipalConstraint, ResourceConstraint};

use super::admin::AdminAction;
use super::bundle::NamedPolicy;
use super::mapping::Model;
use super::schema;
use crate::domain::action::ActionName;
use crate::domain::catalog::{Catalog, Resource, Risk};
use crate::domain::name::is_name;
use crate::domain::pattern::Budget;
use crate::domain::revocability::{ExpiresBy, OpenSessions, RevocationClass};
use crate::domain::trust::AttestorSpec;
use crate::domain::workload::Identity;

/// A message and its remedy.
pub(super) type Finding = (String, &'static str);

/// Checks one policy that passed Cedar's strict validation.
pub(super) fn check(
    named: &NamedPolicy,
    model: &Model,
    attestors: &[AttestorSpec],
    catalog: &Catalog,
    budget: &Budget,
) -> Vec<Finding> {
    let mut findings: Vec<Finding> = named
        .policy
        .entity_literals()
        .iter()
        .filter_map(|entity| unknown_entity(entity, model, catalog))
        .map(|(message, remedy)| (format!("policy `{}`: {message}", named.id), remedy))
        .collect();
    findings.extend(foreign_actions(named, catalog));
    findings.extend(forbidden_by_name(named, catalog, budget));
    findings.extend(unknown_values(named, catalog));
    findings.extend(observed_where_it_may_not_be(named, catalog));
    if named.policy.effect() == Effect::Permit {
        findings.extend(check_permit(named, model, attestors));
    }
    findings
}

fn check_permit(named: &NamedPolicy, model: &Model, attestors: &[AttestorSpec]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let reach = Reach::of(named, model);
    if reach.broker && (reach.credentials || reach.tasks) {
        findings.push((
            format!(
                "policy `{}` permits both use of resources and acts on the broker",
                named.id
            ),
            "name its actions, for example action in Action::\"any\", or write two policies",
        ));
    }
    if !says_who(named, model, &reach, attestors) {
        findings.push((
            format!(
                "policy `{}` does not pin its principal: any caller could shape a request that it \
                permits",
                named.id
            ),
            "pin the principal: principal == …, principal in Role::\"…\", principal.identity == \
            …, or principal is Workload::… and an immutable claim of it ==",
        ));
    }
    if named.obligations.max_ttl_seconds.is_some() && !reach.credentials {
        findings.push((
            format!(
                "policy `{}`: @max_ttl on a permit that gives no credential",
                named.id
            ),
            "put it on the permit of the resource's action",
        ));
    }
    if named.obligations.approval.is_some() && !(reach.credentials || reach.tasks) {
        findings.push((
            format!(
                "policy `{}`: @approval on a permit for an act on the broker",
                named.id
            ),
            "approvals exist for credentials and tasks only; remove it",
        ));
    }
    findings
}

/// The entity types that a policy can apply to.
pub(super) struct Reach {
    pub(super) credentials: bool,
    pub(super) tasks: bool,
    broker: bool,
    /// The attestors whose workloads it can apply to.
    attestors: Vec<String>,
}

impl Reach {
    pub(super) fn of(named: &NamedPolicy, model: &Model) -> Self {
        let mut reach = Self {
            credentials: false,
            tasks: false,
            broker: false,
            attestors: Vec::new(),
        };
        for env in named.policy.get_valid_request_envs(&model.written) {
            let action = env.action().id().unescaped();
            if action == schema::OPEN_TASK {
                reach.tasks = true;
            } else if AdminAction::parse(action).is_some() {
                reach.broker = true;
            } else {
                reach.credentials = true;
            }
            if let Some(attestor) = model.attestor_of(env.principal())
                && !reach.attestors.iter().any(|own| own == attestor)
            {
                reach.attestors.push(attestor.to_owned());
            }
        }
        reach
    }
}

fn unknown_entity(entity: &EntityUid, model: &Model, catalog: &Catalog) -> Option<Finding> {
    let id = entity.id().unescaped();
    let complain = |what: &str, remedy| Some((format!("there is no {what} `{id}`"), remedy));
    match entity.type_name().to_string().as_str() {
        name if schema::is_resource_type(name) => {
            let known = catalog.resource(id);
            let known = known.map(|known| schema::resource_type(known.kind.detail_type()));
            if known == Some(name) {
                return None;
            }
            complain("resource", "register it, or correct the name")
        }
        schema::TASK_TYPE if catalog.task_type(id).is_none() => {
            complain("task type", "register it, or correct the name")
        }
        schema::BROKER if id != schema::BROKER_ID => {
            complain("broker", "it is called Broker::\"taskpass\"")
        }
        schema::BOOTSTRAP if id != schema::BOOTSTRAP_ID && id != schema::DEV_ID => {
            complain("bootstrap token", "it is called Bootstrap::\"token\"")
        }
        schema::ROLE if !is_role(id) => {
            complain("role", "a role is 1 to 64 of a-z, 0-9, `-` and `_`")
        }
        _ => {
            let attestor = model.attestor_of(entity.type_name())?;
            let own = id
                .strip_prefix(attestor)
                .and_then(|rest| rest.strip_prefix(':'));
            let fits = own.is_some_and(|rest| !rest.is_empty())
                && Identity::try_from(id.to_owned()).is_ok();
            if fits {
                return None;
            }
            Some((
                format!(
                    "`{}` is no identity that attestor `{attestor}` can yield",
                    id.escape_debug()
                ),
                "write the whole identity: the attestor's name, a colon, and its percent-encoded template",
            ))
        }
    }
}

/// Refuses a policy that only observes, unless its resource is registered with low risk: such a
/// policy is not enforced, so its resource must be one where little harm is possible.
fn observed_where_it_may_not_be(named: &NamedPolicy, catalog: &Catalog) -> Option<Finding> {
    named.observed_until?;
    let complain = |what: String| format!("policy `{}` may not observe: {what}", named.id);
    let ResourceConstraint::Eq(resource) = named.policy.resource_constraint() else {
        return Some((
            complain("it does not name one resource".into()),
            "write resource == …, one policy for each resource, or enforce it",
        ));
    };
    // A task type can have a resource's name.
    let is_resource = schema::is_resource_type(&resource.type_name().to_string());
    let registered = catalog.resource(resource.id().unescaped());
    let Some(resource) = registered.filter(|_| is_resource) else {
        return Some((
            complain("it is not about a registered resource".into()),
            "only policies about credentials may observe; enforce it",
        ));
    };
    // A credential for one resource is valid at every other resource with the same audience or
    // role.
    let harmful =
        |other: &&Arc<Resource>| other.audience() == resource.audience() && other.risk != Risk::Low;
    let harmful = catalog.resources().find(harmful)?;
    let what = if harmful.name == resource.name {
        format!(
            "resource `{}` is not registered with risk = \"low\"",
            harmful.name
        )
    } else {
        let other = &harmful.name;
        format!(
            "credentials for `{}` are also valid at resource `{other}`, and `{other}` is not \
             registered with risk = \"low\"",
            resource.name
        )
    };
    Some((
        complain(what),
        "enforce it; or, if misuse of that resource does little harm, register it with risk = \
        \"low\"",
    ))
}

/// Whether a text is a valid role name.
#[must_use]
pub fn is_role(name: &str) -> bool {
    is_name(name)
}

/// Cedar has one type for all APIs, so its validation does not notice an action that only another
/// resource registers.
fn foreign_actions(named: &NamedPolicy, catalog: &Catalog) -> Vec<Finding> {
    let (ResourceConstraint::Eq(resource)
    | ResourceConstraint::In(resource)
    | ResourceConstraint::IsIn(_, resource)) = named.policy.resource_constraint()
    else {
        return Vec::new();
    };
    if !schema::is_resource_type(&resource.type_name().to_string()) {
        return Vec::new();
    }
    let Some(resource) = catalog.resource(resource.id().unescaped()) else {
        return Vec::new();
    };
    let actions = match named.policy.action_constraint() {
        ActionConstraint::Any => Vec::new(),
        ActionConstraint::Eq(action) => vec![action],
        ActionConstraint::In(actions) => actions,
    };
    actions
        .iter()
        .map(|action| action.id().unescaped())
        .filter(|action| *action != schema::ANY)
        .filter(|action| !resource.actions.iter().any(|own| own.as_str() == *action))
        .map(|action| {
            (
                format!(
                    "policy `{}`: resource `{}` has no action `{action}`",
                    named.id, resource.name
                ),
                "name an action that the resource registers",
            )
        })
        .collect()
}

/// Policy decides about the narrowest registered AWS actions that a request covers. A `forbid` of a
/// wider action by `==` would miss the actions registered within it.
fn forbidden_by_name(named: &NamedPolicy, catalog: &Catalog, budget: &Budget) -> Option<Finding> {
    let ActionConstraint::Eq(action) = named.policy.action_constraint() else {
        return None;
    };
    if named.policy.effect() != Effect::Forbid {
        return None;
    }
    let wide = ActionName::try_from(action.id().unescaped().to_owned()).ok()?;
    if !wide.has_wildcards() {
        return None;
    }
    let missed = catalog
        .resources()
        .filter(|resource| resource.kind.detail_type().has_action_patterns())
        .flat_map(|resource| &resource.actions)
        .find(|narrow| wide.is_wider_than(narrow, budget));
    if budget.is_exhausted() {
        let message = format!(
            "policy `{}`: comparing `{wide}` with every registered action takes too many steps",
            named.id
        );
        return Some((message, "write action in instead of action =="));
    }
    let missed = missed?;
    let message = format!(
        "policy `{}` forbids `{wide}` and not `{missed}`, which policy decides about by its own \
        name",
        named.id
    );
    Some((message, "write action in instead of action =="))
}

/// Finds comparisons of context members with texts that are never their value. These members are
/// plain text to Cedar.
fn unknown_values(named: &NamedPolicy, catalog: &Catalog) -> Vec<Finding> {
    let Ok(policy) = named.policy.to_pst() else {
        return Vec::new();
    };
    let mut compared = Vec::new();
    for clause in policy.body().clauses() {
        let (Clause::When(condition) | Clause::Unless(condition)) = clause;
        compared_texts(condition, &mut compared);
    }
    let unknown = compared.into_iter().filter_map(|(member, text)| {
        let never = |remedy| {
            let message = format!(
                "policy `{}`: `context.{}` is never `{text}`",
                named.id,
                member.path()
            );
            Some((message, remedy))
        };
        match member {
            Member::TaskType if catalog.task_type(&text).is_none() => {
                let message = format!("policy `{}`: there is no task type `{text}`", named.id);
                Some((message, "register it, or correct the name"))
            }
            Member::Class if !RevocationClass::NAMES.contains(&text.as_str()) => {
                never("write \"immediate\", \"bounded\" or \"expiry_only\"")
            }
            Member::OpenSessions if OpenSessions::parse(&text).is_none() => {
                never("write \"ended\", \"kept\" or \"none\"")
            }
            Member::ExpiresBy if ExpiresBy::parse(&text).is_none() => {
                never("write \"itself\", \"back_end\" or \"broker\"")
            }
            Member::TaskType | Member::Class | Member::OpenSessions | Member::ExpiresBy => None,
        }
    });
    unknown.collect()
}

/// A context member whose possible values are known at load.
#[derive(Clone, Copy)]
enum Member {
    TaskType,
    Class,
    OpenSessions,
    ExpiresBy,
}

impl Member {
    const ALL: [Self; 4] = [
        Self::TaskType,
        Self::Class,
        Self::OpenSessions,
        Self::ExpiresBy,
    ];

    /// Its path in a policy, after `context.`.
    fn path(self) -> &'static str {
        match self {
            Self::TaskType => "task.type",
            Self::Class => "revocability.class",
            Self::OpenSessions => "revocability.open_sessions",
            Self::ExpiresBy => "revocability.expires_by",
        }
    }

    /// The member that an expression reads, if it reads one.
    fn of(expr: &Expr) -> Option<Self> {
        let Expr::GetAttr { expr: record, attr } = expr else {
            return None;
        };
        let Expr::GetAttr {
            expr: context,
            attr: record,
        } = record.as_ref()
        else {
            return None;
        };
        if !matches!(context.as_ref(), Expr::Var(Var::Context)) {
            return None;
        }
        let path = format!("{}.{}", record.as_str(), attr.as_str());
        Self::ALL.into_iter().find(|own| own.path() == path)
    }
}

/// Collects every text that `condition` compares with a [`Member`].
fn compared_texts(condition: &Expr, found: &mut Vec<(Member, String)>) {
    match condition {
        Expr::BinaryOp { op, left, right } => {
            let sides = [(left, right), (right, left)];
            for (this, other) in sides {
                match (op, this.as_ref(), Member::of(other)) {
                    (
                        BinaryOp::Eq | BinaryOp::NotEq,
                        Expr::Literal(Literal::String(text)),
                        Some(member),
                    ) => {
                        found.push((member, text.to_string()));
                    }
                    (BinaryOp::Contains, Expr::Set(items), Some(member)) => {
                        found.extend(items.iter().filter_map(|item| match item.as_ref() {
                            Expr::Literal(Literal::String(text)) => {
                                Some((member, text.to_string()))
                            }
                            _ => None,
                        }));
                    }
                    _ => {}
                }
            }
            compared_texts(left, found);
            compared_texts(right, found);
        }
        Expr::UnaryOp { expr, .. } => compared_texts(expr, found),
        Expr::IfThenElse {
            cond,
            then_expr,
            else_expr,
        } => [cond, then_expr, else_expr]
            .into_iter()
            .for_each(|part| compared_texts(part, found)),
        _ => {}
    }
}

fn says_who(named: &NamedPolicy, model: &Model, reach: &Reach, attestors: &[AttestorSpec]) -> bool {
    let in_role = |entity: &EntityUid| {
        entity.type_name().to_string() == schema::ROLE
            // An entity of a principal type is `in` itself only.
            || model.attestor_of(entity.type_name()).is_some()
    };
    match named.policy.principal_constraint() {
        PrincipalConstraint::Eq(_) => return true,
        PrincipalConstraint::In(entity) | PrincipalConstraint::IsIn(_, entity)
            if in_role(&entity) =>
        {
            return true;
        }
        _ => {}
    }
    // A principal that is no workload has no attestor. Only `==` pins it.
    if reach.attestors.is_empty() {
        return false;
    }
    let Ok(policy) = named.policy.to_pst() else {
        return false;
    };
    policy.body().clauses().iter().any(|clause| match clause {
        Clause::When(condition) => pins(condition, &reach.attestors, attestors),
        Clause::Unless(_) => false,
    })
}

/// Whether a conjunct of `condition` pins the principal.
fn pins(condition: &Expr, reached: &[String], attestors: &[AttestorSpec]) -> bool {
    let Expr::BinaryOp { op, left, right } = condition else {
        return false;
    };
    match op {
        BinaryOp::And => pins(left, reached, attestors) || pins(right, reached, attestors),
        BinaryOp::Eq => {
            (is_pinned(left, reached, attestors) && is_literal(right))
                || (is_literal(left) && is_pinned(right, reached, attestors))
        }
        BinaryOp::Contains => {
            let literals = match left.as_ref() {
                Expr::Set(items) => items.iter().all(|item| is_literal(item)),
                _ => false,
            };
            literals && is_pinned(right, reached, attestors)
        }
        _ => false,
    }
}

fn is_literal(expr: &Expr) -> bool {
    matches!(
        expr,
        Expr::Literal(Literal::String(_) | Literal::Long(_) | Literal::Bool(_))
    )
}

/// Whether `expr` is `principal.identity`, or `principal.claims.c` for a claim that the caller
/// cannot choose.
fn is_pinned(expr: &Expr, reached: &[String], attestors: &[AttestorSpec]) -> bool {
    let Expr::GetAttr { expr: owner, attr } = expr else {
        return false;
    };
    match owner.as_ref() {
        Expr::Var(Var::Principal) => attr.as_str() == "identity",
        Expr::GetAttr {
            expr: owner,
            attr: claims,
        } => {
            matches!(owner.as_ref(), Expr::Var(Var::Principal))
                && claims.as_str() == "claims"
                && matches!(reached, [only] if is_immutable(only, attr.as_str(), attestors))
        }
        _ => false,
    }
}

fn is_immutable(attestor: &str, claim: &str, attestors: &[AttestorSpec]) -> bool {
    attestors
        .iter()
        .filter(|spec| spec.name() == attestor)
        .flat_map(AttestorSpec::visible_claims)
        .any(|(name, spec)| name == claim && spec.immutable && !spec.caller_shaped)
}
