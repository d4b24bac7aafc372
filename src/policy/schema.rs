//! The Cedar schema, generated from attestors, resources and task types.
//!
//! [`text`] writes the schema that policies are written against, and [`evaluated_text`] that of the
//! form in which they are evaluated. [`entity_types`] writes only the types of entities. Each attestor has a principal type of its own,
//! `Workload::<attestor>`, with only the claims that it declares: a claim of another issuer with
//! the same name cannot satisfy a policy about GitHub's `repository_id`. A `-` in an attestor's
//! name becomes `_` in the type's name, because Cedar identifiers cannot contain `-`.
//!
//! Policies can permit only actions that are in the schema. The schema offers credentials and tasks
//! to workload types alone, so no policy can give them to the bootstrap token.
//!
//! A name that Cedar cannot express, that is reserved or ambiguous, and AWS actions that take too
//! many steps to compare, are returned as problems. `super::generation` calls this file and lets
//! Cedar validate policies by the schema; `super::mapping` builds the entities of its types.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};

use super::admin::AdminAction;
use super::problem::PolicyProblem;
use crate::domain::action::ActionName;
use crate::domain::catalog::Catalog;
use crate::domain::kind::DetailType;
use crate::domain::limits::MAX_LOAD_STEPS;
use crate::domain::name::is_name;
use crate::domain::pattern::Budget;
use crate::domain::trust::{AttestorSpec, ClaimType};

/// The entity type of actions.
pub(super) const ACTION: &str = "Action";
/// The parent of every resource's actions.
pub(super) const ANY: &str = "any";
/// The action of opening a task.
pub(super) const OPEN_TASK: &str = "openTask";
/// The namespace of the principal types.
pub(super) const WORKLOAD: &str = "Workload";
/// The entity type of task types.
pub(super) const TASK_TYPE: &str = "TaskType";
/// The entity type of the broker itself.
pub(super) const BROKER: &str = "Broker";
/// The only id of that type.
pub(super) const BROKER_ID: &str = "taskpass";
/// The entity type of roles.
pub(super) const ROLE: &str = "Role";
/// The entity type of tokens that belong to no workload.
pub(super) const BOOTSTRAP: &str = "Bootstrap";
/// The id of the bootstrap token.
pub(super) const BOOTSTRAP_ID: &str = "token";
/// The id of the development mode's admin token.
pub(super) const DEV_ID: &str = "dev";

/// The entity type of resources whose `authorization_details` have the type `asked`.
pub(super) fn resource_type(asked: DetailType) -> &'static str {
    match asked {
        DetailType::Api => "Api",
        DetailType::Aws => "Aws",
    }
}

/// Whether `name` is an entity type of resources.
pub(super) fn is_resource_type(name: &str) -> bool {
    DetailType::ALL
        .into_iter()
        .any(|asked| resource_type(asked) == name)
}

/// The comment above an entity type of resources.
fn describe_resources(of: DetailType) -> &'static str {
    match of {
        DetailType::Api => "What credentials are for: resources of kind `jwt`, by name.",
        DetailType::Aws => "Resources of kind `aws`, by name; the audience is the role.",
    }
}

/// The party that defines the action names of this type of resources.
fn owner_of_actions(of: DetailType) -> &'static str {
    match of {
        DetailType::Api => "an API",
        DetailType::Aws => "AWS",
    }
}

/// The comment above the actions of this type of resources.
fn describe_actions(of: DetailType) -> &'static str {
    match of {
        DetailType::Api => "",
        DetailType::Aws => {
            "\n// Actions of AWS, each within the wider ones that are registered. `action` is what was\n// asked for.\n"
        }
    }
}

/// The name of an attestor's principal type, without the namespace.
pub(super) fn type_name(attestor: &str) -> String {
    attestor.replace('-', "_")
}

/// Writes the schema that policies are written against.
pub(super) fn text(
    attestors: &[AttestorSpec],
    catalog: &Catalog,
) -> Result<String, Vec<PolicyProblem>> {
    let budget = Budget::new(MAX_LOAD_STEPS);
    write(attestors, catalog, &Contexts::WRITTEN, &budget)
}

/// Writes the schema of the evaluated form: as [`text`], but with `asked` instead of the requested
/// facts. See [`super::asked`].
pub(super) fn evaluated_text(
    attestors: &[AttestorSpec],
    catalog: &Catalog,
) -> Result<String, Vec<PolicyProblem>> {
    let budget = Budget::new(MAX_LOAD_STEPS);
    write(attestors, catalog, &Contexts::EVALUATED, &budget)
}

/// Writes the entity types of both schemas, without an action. Cedar adds every action of a schema
/// to the entities that it checks by it.
pub(super) fn entity_types(attestors: &[AttestorSpec]) -> Result<String, Vec<PolicyProblem>> {
    let mut out = String::new();
    write_principals(&mut out, attestors)
        .and_then(|()| write_resources(&mut out))
        .map_err(unwritten)?;
    Ok(out)
}

/// The context members of each kind of action.
struct Contexts {
    api: &'static str,
    aws: &'static str,
    task: &'static str,
    broker: &'static str,
}

impl Contexts {
    fn of(&self, asked: DetailType) -> &'static str {
        match asked {
            DetailType::Api => self.api,
            DetailType::Aws => self.aws,
        }
    }

    const WRITTEN: Self = Self {
        api: "task: Task, location: String, ttl_seconds: Long, revocability: Revocability",
        aws: "task: Task, location: String, action: String, region?: String, ttl_seconds: Long, \
              revocability: Revocability",
        task: "task: Task",
        broker: "",
    };
    const EVALUATED: Self = Self {
        api: "task: Task, asked: Set<Long>, ttl_seconds: Long, revocability: Revocability",
        aws: "task: Task, asked: Set<Long>, ttl_seconds: Long, revocability: Revocability",
        task: "task: Task, asked: Set<Long>",
        broker: ", context: { asked: Set<Long> }",
    };
}

fn write(
    attestors: &[AttestorSpec],
    catalog: &Catalog,
    contexts: &Contexts,
    budget: &Budget,
) -> Result<String, Vec<PolicyProblem>> {
    let problems = check(attestors, catalog);
    if !problems.is_empty() {
        return Err(problems);
    }
    let workloads: Vec<String> = attestors
        .iter()
        .map(|spec| format!("{WORKLOAD}::{}", type_name(spec.name())))
        .collect();
    let workloads = workloads.join(", ");
    let mut out = String::from(
        "// Generated from attestors, resources and task types. Do not edit: change those.\n\n",
    );
    write_principals(&mut out, attestors)
        .and_then(|()| write_resources(&mut out))
        .and_then(|()| write_actions(&mut out, catalog, &workloads, contexts, budget))
        .map_err(unwritten)?;
    if budget.is_exhausted() {
        return Err(vec![PolicyProblem::of_file(
            "resources",
            format!(
                "comparing the registered AWS actions with each other takes more than \
                {MAX_LOAD_STEPS} steps"
            ),
            "register fewer of them, or with fewer wildcards",
        )]);
    }
    Ok(out)
}

fn unwritten(error: fmt::Error) -> Vec<PolicyProblem> {
    vec![PolicyProblem::of_file("schema", error.to_string(), "")]
}

fn write_principals(out: &mut String, attestors: &[AttestorSpec]) -> fmt::Result {
    out.push_str("// Who asks: one type for each attestor, with the claims that it declares.\n");
    writeln!(out, "namespace {WORKLOAD} {{")?;
    for spec in attestors {
        writeln!(out, "  entity {} in [{ROLE}] = {{", type_name(spec.name()))?;
        out.push_str("    identity: String,\n");
        let claims: Vec<_> = spec.visible_claims().collect();
        if claims.is_empty() {
            out.push_str("    claims: {},\n");
        } else {
            out.push_str("    claims: {\n");
            for (name, claim) in claims {
                let optional = if claim.optional { "?" } else { "" };
                let kind = match claim.kind {
                    ClaimType::String => "String",
                    ClaimType::Long => "Long",
                    ClaimType::Bool => "Bool",
                    ClaimType::Set => "Set<String>",
                };
                let note = match (claim.caller_shaped, claim.immutable) {
                    (true, _) => " // the caller can shape it",
                    (false, true) => " // immutable",
                    (false, false) => "",
                };
                writeln!(out, "      \"{name}\"{optional}: {kind},{note}")?;
            }
            out.push_str("    },\n");
        }
        out.push_str("  };\n");
    }
    writeln!(
        out,
        "}}\n\n// Bound to identities by an admin.\nentity {ROLE};\n\n// \"{BOOTSTRAP_ID}\", and in the development mode \"{DEV_ID}\".\nentity {BOOTSTRAP};\n"
    )
}

fn write_resources(out: &mut String) -> fmt::Result {
    for asked in DetailType::ALL {
        writeln!(
            out,
            "// {}\nentity {} = {{\n  owner: String,\n  audience: String,\n  risk: String,\n}};\n",
            describe_resources(asked),
            resource_type(asked)
        )?;
    }
    writeln!(
        out,
        "// Registered kinds of task, by name.\nentity {TASK_TYPE};\n\n// \"{BROKER_ID}\".\nentity {BROKER};\n"
    )?;
    out.push_str(
        "// The task as admitted. Its type is the caller's choice among the registered ones.\ntype Task = {\n  type: String,\n  depth: Long,\n  deadline_seconds: Long,\n  has_parent: Bool,\n};\n\n",
    );
    out.push_str(
        "// What a revocation of the credential achieves. `class`: \"immediate\", \"bounded\" or\n// \"expiry_only\", which has no bound. `open_sessions`: \"ended\", \"kept\" or \"none\". `expires_by`:\n// \"itself\", \"back_end\" or \"broker\".\ntype Revocability = {\n  class: String,\n  bound_seconds?: Long,\n  open_sessions: String,\n  expires_by: String,\n};\n\n",
    );
    Ok(())
}

fn write_actions(
    out: &mut String,
    catalog: &Catalog,
    workloads: &str,
    contexts: &Contexts,
    budget: &Budget,
) -> fmt::Result {
    writeln!(
        out,
        "// The parent of every action on a resource.\naction \"{ANY}\";\n"
    )?;
    for asked in DetailType::ALL {
        let actions = actions_of(catalog, asked);
        if !actions.is_empty() {
            out.push_str(describe_actions(asked));
        }
        for action in &actions {
            if budget.is_exhausted() {
                return Ok(());
            }
            let wider = actions
                .iter()
                .filter(|other| asked.has_action_patterns() && other.is_wider_than(action, budget));
            let parents: Vec<String> = wider.map(|other| format!("\"{other}\", ")).collect();
            writeln!(
                out,
                "action \"{action}\" in [{}\"{ANY}\"] appliesTo {{\n  principal: [{workloads}],\n  resource: [{}],\n  context: {{ {} }},\n}};",
                parents.concat(),
                resource_type(asked),
                contexts.of(asked)
            )?;
        }
    }
    writeln!(
        out,
        "\naction \"{OPEN_TASK}\" appliesTo {{\n  principal: [{workloads}],\n  resource: [{TASK_TYPE}],\n  context: {{ {} }},\n}};\n\n// Acts on the broker itself.",
        contexts.task
    )?;
    for action in AdminAction::ALL {
        let tokens = if action.open_to_bootstrap() {
            format!(", {BOOTSTRAP}")
        } else {
            String::new()
        };
        writeln!(
            out,
            "action \"{}\" appliesTo {{ principal: [{workloads}{tokens}], resource: [{BROKER}]{} }};",
            action.as_str(),
            contexts.broker
        )?;
    }
    Ok(())
}

/// Every distinct action of all resources.
pub(super) fn resource_actions(catalog: &Catalog) -> BTreeSet<&str> {
    let resources = catalog.resources();
    resources
        .flat_map(|resource| resource.actions.iter().map(ActionName::as_str))
        .collect()
}

/// Every distinct action of the resources with this type of details.
fn actions_of(catalog: &Catalog, asked: DetailType) -> BTreeSet<&ActionName> {
    let resources = catalog.resources();
    resources
        .filter(|resource| resource.kind.detail_type() == asked)
        .flat_map(|resource| &resource.actions)
        .collect()
}

fn check(attestors: &[AttestorSpec], catalog: &Catalog) -> Vec<PolicyProblem> {
    let mut problems = Vec::new();
    let mut complain = |part: &str, message: String, remedy: &str| {
        problems.push(PolicyProblem::of_file(part, message, remedy));
    };
    if attestors.is_empty() {
        complain(
            "attestors",
            "there is no attestor".into(),
            "without one no evidence is accepted; configure at least one",
        );
    }
    let mut types: BTreeMap<String, &str> = BTreeMap::new();
    for spec in attestors {
        let name = spec.name();
        let parses = type_name(name)
            .parse::<cedar_policy::EntityTypeName>()
            .is_ok();
        let starts = name.starts_with(|c: char| c.is_ascii_lowercase());
        if !(starts && is_name(name) && parses) {
            complain(
                "attestors",
                format!("`{}` cannot name an attestor", name.escape_debug()),
                "use a-z, 0-9, `-` and `_`, begin with a letter, and use no reserved word of \
                Cedar such as `in`",
            );
        }
        if let Some(other) = types.insert(type_name(name), name) {
            complain(
                "attestors",
                format!("`{name}` and `{other}` are the same principal type"),
                "give each attestor a name of its own; `-` and `_` count as one",
            );
        }
        for (claim, _) in spec.visible_claims() {
            let plain = |b: u8| b.is_ascii_graphic() && b != b'"' && b != b'\\';
            if claim.is_empty() || !claim.bytes().all(plain) {
                complain(
                    "attestors",
                    format!(
                        "`{name}`: policy cannot read the claim `{}`",
                        claim.escape_debug()
                    ),
                    "declare it hidden, or remove it",
                );
            }
        }
    }
    for action in resource_actions(catalog) {
        if action == ANY || action == OPEN_TASK || AdminAction::parse(action).is_some() {
            complain(
                "resources",
                format!("the action `{action}` is reserved for the broker"),
                "give the resource's action another name, such as `orders:…`",
            );
        }
    }
    let of_apis = actions_of(catalog, DetailType::Api);
    let others = DetailType::ALL
        .into_iter()
        .filter(|other| *other != DetailType::Api);
    for other in others {
        for action in of_apis.intersection(&actions_of(catalog, other)) {
            complain(
                "resources",
                format!(
                    "the action `{action}` is one of {} and of {}",
                    owner_of_actions(other),
                    owner_of_actions(DetailType::Api)
                ),
                "give the API's action another name",
            );
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn registered_actions_of_aws_were_compared_with_each_other_without_a_bound() {
        let actions: Vec<String> = (0..20).map(|n| format!("s3:*a?a?a*aaaa{n}")).collect();
        let resource = serde_json::from_value(json!({
            "name": "reports", "kind": "aws", "owner": "data", "actions": actions,
            "locations": ["arn:aws:s3:::reports/*"],
            "aws": {
                "role_arn": "arn:aws:iam::123456789012:role/reports", "mode": "web_identity",
                "region": "eu-west-1"
            }
        }))
        .unwrap();
        let catalog = Catalog::new(vec![resource], Vec::new(), &[]).unwrap();
        let attestor: AttestorSpec = serde_json::from_value(json!({
            "kind": "oidc", "name": "dev", "issuer": "http://127.0.0.1:7070/dev",
            "audience": "http://127.0.0.1:7070", "algorithms": ["ES256"], "single_tenant": true,
            "identity": "{sub}", "claims": {"sub": {"type": "string", "immutable": true}}
        }))
        .unwrap();
        let within = |steps| {
            write(
                std::slice::from_ref(&attestor),
                &catalog,
                &Contexts::WRITTEN,
                &Budget::new(steps),
            )
        };
        assert!(within(MAX_LOAD_STEPS).is_ok());
        let problems = within(100).unwrap_err();
        assert!(problems[0].message.contains("steps"), "{problems:?}");
        assert!(!problems[0].remedy.is_empty());
    }
}
