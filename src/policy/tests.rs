//! The module as a whole: samples, traps, properties.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::json;

use super::admin::{AdminAction, AdminPrincipal};
use super::bundle::read_directory;
use super::decide::{PolicyError, Question};
use super::generation::{self, CompiledGeneration, GenerationParts, build};
use super::mapping::TaskFacts;
use super::problem::PolicyProblem;
use super::slice;
use super::suite;
use crate::clock::Timestamp;
use crate::domain::decision::{Decision, Outcome, Refusal, RefusalCode};
use crate::domain::generation::{Generation, PolicyFile};
use crate::domain::grant::{AuthorizationDetail, Grant};
use crate::domain::limits::MAX_EVALUATIONS;
use crate::domain::request::{Ask, CredentialRequest, NewTask, TaskSelector};
use crate::domain::trust::AttestorSpec;
use crate::domain::workload::{ClaimValue, OneTime, Reuse, Workload};

mod observe;
mod unused;

const NOW: i64 = 1_795_000_000;

fn dev_attestor() -> AttestorSpec {
    serde_json::from_value(json!({
        "kind": "oidc", "name": "dev", "issuer": "http://127.0.0.1:7070/dev",
        "audience": "http://127.0.0.1:7070", "algorithms": ["ES256"], "single_tenant": true,
        "identity": "{sub}", "claims": {"sub": {"type": "string", "immutable": true}}
    }))
    .unwrap()
}

/// An attestor with one claim of every sort.
fn ci_attestor() -> AttestorSpec {
    serde_json::from_value(json!({
        "kind": "oidc", "name": "ci-main", "issuer": "https://ci.example",
        "audience": "https://broker.example", "algorithms": ["RS256"],
        "required": {"owner_id": "7"}, "identity": "repo:{repo_id}",
        "claims": {
            "repo_id": {"type": "string", "immutable": true},
            "owner_id": {"type": "string", "immutable": true, "hidden": true},
            "branch": {"type": "string", "caller_shaped": true},
            "actor": {"type": "string"},
            "attempt": {"type": "long"},
            "protected": {"type": "bool", "optional": true},
            "groups": {"type": "set", "optional": true},
            "sub": {"type": "string", "immutable": true, "optional": true}
        }
    }))
    .unwrap()
}

/// The development mode's samples.
fn samples() -> GenerationParts {
    let from = |value| serde_json::from_value(value).unwrap();
    GenerationParts {
        policies: read_directory(Path::new("policies"), "cedar").unwrap(),
        attestors: vec![dev_attestor()],
        resources: vec![from(json!({
            "name": "orders-api", "kind": "jwt", "owner": "orders",
            "audience": "https://orders.example", "actions": ["orders:read", "orders:write"],
            "locations": ["https://orders.example/v1"], "verification": "introspection"
        }))],
        task_types: vec![
            serde_json::from_value(json!({
                "name": "nightly-report", "max_deadline_seconds": 3600, "resources": ["orders-api"]
            }))
            .unwrap(),
            serde_json::from_value(json!({
                "name": "fix-order", "max_deadline_seconds": 900, "resources": ["orders-api"]
            }))
            .unwrap(),
        ],
        ..GenerationParts::default()
    }
}

/// The samples' configuration with one more attestor and resource, and other policies. A policy
/// without annotations gets them.
fn billing() -> super::mapping::Right<'static> {
    super::mapping::Right {
        location: "https://billing.example/a",
        action: "billing:read",
        region: None,
        is_aws: false,
    }
}

fn parts(policies: &str) -> GenerationParts {
    let mut count = 0;
    let mut text = String::new();
    for policy in policies.split_inclusive(';') {
        let trimmed = policy.trim();
        if trimmed.starts_with("permit") || trimmed.starts_with("forbid") {
            text.push_str(
                ["@id(\"p", &count.to_string(), "\") @description(\"d\")\n"]
                    .concat()
                    .as_str(),
            );
            count += 1;
        }
        text.push_str(policy);
    }
    let mut parts = samples();
    parts.attestors.push(ci_attestor());
    parts.resources.push(
        serde_json::from_value(json!({
            "name": "billing", "kind": "jwt", "owner": "billing",
            "audience": "https://billing.example", "actions": ["bill:read", "orders:read"],
            "locations": ["https://billing.example/a", "https://billing.example/b"],
            "verification": "offline", "risk": "low"
        }))
        .unwrap(),
    );
    parts.task_types[0].resources.insert("billing".into());
    parts.policies = vec![PolicyFile {
        name: "test.cedar".into(),
        text,
    }];
    parts
}

fn load(policies: &str) -> Result<CompiledGeneration, Vec<PolicyProblem>> {
    build(parts(policies), &[]).map(|(_, compiled)| compiled)
}

fn loaded(policies: &str) -> CompiledGeneration {
    load(policies).unwrap_or_else(|problems| {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        panic!("{policies}\n{}", lines.join("\n"))
    })
}

/// All problems of a bundle that must not load, as text.
fn refused(policies: &str) -> String {
    match load(policies) {
        Ok(_) => panic!("loaded: {policies}"),
        Err(problems) => {
            let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
            lines.join("\n")
        }
    }
}

fn workload(attestor: &str, name: &str, claims: &[(&str, ClaimValue)]) -> Workload {
    Workload {
        attestor: attestor.into(),
        identity: format!("{attestor}:{name}").try_into().unwrap(),
        instance: None,
        claims: claims
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.clone()))
            .collect(),
        issued_at: crate::clock::Timestamp::EPOCH,
        reuse: Reuse::Once,
        evidence: OneTime {
            must_be_new: false,
            key: [0; 32],
            binding: None,
            expires_at: Timestamp::MAX,
        },
        proofs: vec![],
        key: None,
    }
}

fn text(value: &str) -> ClaimValue {
    ClaimValue::String(value.into())
}

fn agent() -> Workload {
    workload("dev", "agent", &[("sub", text("agent"))])
}

fn facts() -> TaskFacts {
    TaskFacts {
        task_type: "nightly-report".into(),
        depth: 1,
        deadline_seconds_left: 3_600,
        has_parent: false,
        opens: false,
    }
}

fn details(value: serde_json::Value) -> Vec<AuthorizationDetail> {
    serde_json::from_value(value).unwrap()
}

fn ask(
    compiled: &CompiledGeneration,
    resource: &str,
    details: Vec<AuthorizationDetail>,
    ttl_seconds: Option<u64>,
) -> Ask {
    compiled
        .catalog()
        .resolve(CredentialRequest {
            task: TaskSelector::Open(NewTask {
                task_type: "nightly-report".into(),
                purpose: Some("free text".into()),
                parent: None,
                deadline_seconds: None,
                heartbeat_seconds: None,
            }),
            resource: resource.into(),
            grant: Grant::try_from(details).unwrap(),
            ttl_seconds,
            retry: None,
        })
        .unwrap()
}

fn decide_as(
    compiled: &CompiledGeneration,
    workload: &Workload,
    roles: &[&str],
    ask: &Ask,
    task: TaskFacts,
) -> Decision {
    let roles = roles.iter().map(|role| (*role).to_owned()).collect();
    compiled.decide(&Question {
        workload,
        roles: &roles,
        ask,
        task,
        bounds: None,
        now: Timestamp::from_seconds(NOW),
    })
}

/// `agent` asks for `actions` at all places of `resource`.
fn decide(
    compiled: &CompiledGeneration,
    resource: &str,
    actions: &[&str],
    ttl: Option<u64>,
) -> Decision {
    let detail = details(json!([{"type": "api", "actions": actions}]));
    let ask = ask(compiled, resource, detail, ttl);
    decide_as(compiled, &agent(), &[], &ask, facts())
}

fn refusal(decision: Decision) -> Refusal {
    decision.verdict.unwrap_err()
}

const AGENT: &str = "principal == Workload::dev::\"dev:agent\"";

// ---- samples ----

#[test]
fn the_samples_load_and_pass_their_tests() {
    let (generation, compiled) = build(samples(), &[]).unwrap();
    let files = read_directory(Path::new("policies/tests"), "toml").unwrap();
    let report = suite::run(&compiled, &files, Timestamp::from_seconds(NOW));
    assert!(report.passed(), "{report}");
    assert_eq!(report.untested, Vec::<String>::new());
    assert!(report.to_string().ends_with("cases, 0 failed"));
    assert_eq!(
        compiled.digest(),
        generation::digest_of(&generation).unwrap()
    );
}

#[test]
fn the_schema_beside_the_samples_is_the_generated_one() {
    let (generation, _) = build(samples(), &[]).unwrap();
    let path = Path::new("policies/taskpass.cedarschema");
    let current = std::fs::read_to_string(path).unwrap_or_default();
    if current != generation.schema {
        // The next run sees it; this one fails, so that nobody commits without noticing.
        std::fs::write(path, &generation.schema).unwrap();
        panic!("policies/taskpass.cedarschema was not current and has been written again");
    }
}

// ---- generations ----

#[test]
fn a_generation_survives_its_bytes_and_keeps_its_digest() {
    let (generation, compiled) = build(samples(), &[]).unwrap();
    let again: Generation = serde_json::from_slice(&generation.to_bytes().unwrap()).unwrap();
    let recompiled = CompiledGeneration::compile(&again, &[]).unwrap();
    assert_eq!(recompiled.digest(), compiled.digest());
    let mut parts = samples();
    parts.policies[0].text.push_str("// another comment\n");
    assert_ne!(build(parts, &[]).unwrap().1.digest(), compiled.digest());
}

#[test]
fn a_generation_of_another_engine_format_or_schema_does_not_load() {
    let (good, _) = build(samples(), &[]).unwrap();
    for bad in [
        Generation {
            format: 2,
            ..good.clone()
        },
        Generation {
            engine: "cedar-policy 3.0.0".into(),
            ..good.clone()
        },
        Generation {
            schema: format!("{} ", good.schema),
            ..good.clone()
        },
        Generation {
            attestors: vec![],
            ..good.clone()
        },
    ] {
        assert!(CompiledGeneration::compile(&bad, &[]).is_err());
    }
    let own = ["https://orders.example".to_owned()];
    assert!(CompiledGeneration::compile(&good, &own).is_err());
}

#[test]
fn a_catalogue_action_cannot_be_the_brokers_own() {
    for name in ["any", "openTask", "revokeSession", "approve"] {
        let mut parts = samples();
        let action = name.to_owned().try_into().unwrap();
        parts.resources[0].actions.insert(action);
        let problems = build(parts, &[]).unwrap_err();
        assert!(problems[0].message.contains("the broker's own"), "{name}");
    }
}

#[test]
fn attestors_whose_types_would_meet_or_cannot_be_named_do_not_load() {
    let named = |name: &str| {
        let mut spec = dev_attestor();
        if let AttestorSpec::Oidc(oidc) = &mut spec {
            oidc.name = name.into();
        }
        spec
    };
    for names in [
        &["a-b", "a_b"][..],
        &["dev", "dev"],
        &["in"],
        &["9x"],
        &["A"],
        &[""],
        &["a b"],
    ] {
        let mut parts = samples();
        parts.policies[0].text =
            "@id(\"x\") @description(\"d\") forbid (principal, action, resource);".into();
        parts.policies.truncate(1);
        parts.attestors = names.iter().map(|name| named(name)).collect();
        let problems = build(parts, &[]).unwrap_err();
        assert_eq!(problems[0].file, "attestors", "{names:?}: {problems:?}");
    }
}

// ---- what does not load ----

#[test]
fn a_policy_that_reads_what_is_not_declared_does_not_load() {
    for (policy, says) in [
        // An undeclared, hidden or other attestor's claim.
        (
            "permit (principal == Workload::dev::\"dev:a\", action == Action::\"orders:read\", resource) when { principal.claims.repo_id == \"1\" };",
            "repo_id",
        ),
        (
            "permit (principal is Workload::ci_main, action == Action::\"orders:read\", resource) when { principal.claims.owner_id == \"7\" };",
            "owner_id",
        ),
        // An optional one without `has`.
        (
            "forbid (principal is Workload::ci_main, action, resource) when { principal.claims.protected };",
            "protected",
        ),
        // Free text is not in the context.
        (
            "forbid (principal is Workload::dev, action == Action::\"orders:read\", resource) when { context.purpose == \"x\" };",
            "purpose",
        ),
        (
            "forbid (principal, action == Action::\"orders:reed\", resource);",
            "orders:reed",
        ),
        (
            "forbid (principal is Workload::aws, action, resource);",
            "Workload::aws",
        ),
        // Never true.
        (
            "forbid (principal is Workload::dev, action == Action::\"orders:read\", resource) when { 1 == 2 };",
            "evaluates to false",
        ),
        (
            "forbid (principal, action == Action::\"orders:read\", resource is TaskType);",
            "unable to find an applicable action",
        ),
        (
            "forbid (principal is Workload::dev, action == Action::\"orders:read\", resource) when { principal.claims.sub == 7 };",
            "7",
        ),
    ] {
        let problems = refused(policy);
        assert!(problems.contains(says), "{policy}\n{problems}");
        assert!(problems.starts_with("test.cedar:"), "{problems}");
    }
}

#[test]
fn a_policy_about_what_does_not_exist_does_not_load() {
    for (policy, says) in [
        (
            "forbid (principal, action, resource == Api::\"order-api\");",
            "no resource `order-api`",
        ),
        (
            "forbid (principal, action == Action::\"orders:read\", resource) when { resource == Api::\"nope\" };",
            "no resource `nope`",
        ),
        (
            "forbid (principal, action == Action::\"openTask\", resource == TaskType::\"nightly\");",
            "no task type `nightly`",
        ),
        (
            "forbid (principal, action, resource == Broker::\"other\");",
            "no broker",
        ),
        (
            "forbid (principal == Bootstrap::\"root\", action, resource);",
            "no bootstrap",
        ),
        (
            "forbid (principal in Role::\"The Admins\", action, resource);",
            "no role",
        ),
        (
            "forbid (principal == Workload::dev::\"agent\", action, resource);",
            "no identity",
        ),
        (
            "forbid (principal == Workload::dev::\"ci-main:repo:1\", action, resource);",
            "no identity",
        ),
        (
            "forbid (principal == Workload::ci_main::\"ci_main:repo:1\", action, resource);",
            "no identity",
        ),
        (
            "forbid (principal, action == Action::\"orders:write\", resource == Api::\"billing\");",
            "no action `orders:write`",
        ),
    ] {
        let problems = refused(policy);
        assert!(problems.contains(says), "{policy}\n{problems}");
    }
    loaded("forbid (principal == Workload::ci_main::\"ci-main:repo:1\", action, resource);");
}

#[test]
fn a_condition_on_a_task_type_that_does_not_exist_does_not_load() {
    for condition in [
        "context.task.type == \"nightly\"",
        "\"nightly\" != context.task.type",
        "[\"fix-order\", \"nightly\"].contains(context.task.type)",
        "context.task.depth > 1 && !(context.task.type == \"nightly\")",
        "if context.task.has_parent then context.task.type == \"nightly\" else false",
    ] {
        for word in ["when", "unless"] {
            let policy = format!(
                "forbid (principal, action == Action::\"openTask\", resource) {word} {{ {condition} }};"
            );
            let problems = refused(&policy);
            assert!(problems.contains("no task type `nightly`"), "{problems}");
            loaded(&policy.replace("\"nightly\"", "\"nightly-report\""));
        }
    }
}

#[test]
fn a_permit_says_who_by_something_that_the_caller_cannot_choose() {
    let read = |scope: &str, rest: &str| {
        format!("permit ({scope}, action == Action::\"orders:read\", resource) {rest};")
    };
    let ci = "principal is Workload::ci_main";
    for (scope, rest) in [
        ("principal", ""),
        (
            "principal",
            "when { context.task.type == \"nightly-report\" }",
        ),
        (ci, ""),
        (ci, "when { principal.claims.branch == \"main\" }"),
        (ci, "when { principal.claims.actor == \"alice\" }"),
        (
            ci,
            "when { principal.claims.repo_id == \"1\" || principal.claims.branch == \"main\" }",
        ),
        (ci, "when { principal.claims.repo_id != \"1\" }"),
        (ci, "when { principal.claims.repo_id like \"*\" }"),
        (
            ci,
            "when { principal.claims.repo_id == principal.claims.branch }",
        ),
        (
            ci,
            "when { [\"1\", principal.claims.branch].contains(principal.claims.repo_id) }",
        ),
        (ci, "when { !(principal.claims.repo_id == \"1\") }"),
        (
            ci,
            "when { (principal.claims.repo_id == \"1\") == (principal.claims.branch == \"x\") }",
        ),
        (
            ci,
            "when { if true then principal.claims.branch == \"x\" else principal.claims.repo_id == \"1\" }",
        ),
        (ci, "unless { principal.claims.repo_id == \"1\" }"),
        (
            "principal",
            "unless { principal.identity == \"dev:agent\" }",
        ),
    ] {
        let policy = read(scope, rest);
        let problems = refused(&policy);
        assert!(problems.contains("whoever"), "{policy}\n{problems}");
    }
    for (scope, rest) in [
        (AGENT, ""),
        ("principal in Role::\"readers\"", ""),
        ("principal is Workload::ci_main in Role::\"readers\"", ""),
        ("principal in Workload::dev::\"dev:agent\"", ""),
        (ci, "when { principal.claims.repo_id == \"1\" }"),
        (
            ci,
            "when { \"1\" == principal.claims.repo_id && principal.claims.branch == \"main\" }",
        ),
        (
            ci,
            "when { principal.claims.branch == \"main\" } when { principal.claims.repo_id == \"1\" }",
        ),
        (
            ci,
            "when { [\"1\", \"2\"].contains(principal.claims.repo_id) }",
        ),
        ("principal", "when { principal.identity == \"dev:agent\" }"),
    ] {
        loaded(&read(scope, rest));
    }
}

#[test]
fn the_rule_of_who_holds_for_tasks_and_for_acts_on_the_broker_too() {
    for policy in [
        "permit (principal, action == Action::\"openTask\", resource);",
        "permit (principal, action == Action::\"readLedger\", resource);",
        "permit (principal is Bootstrap, action == Action::\"listTasks\", resource);",
    ] {
        assert!(refused(policy).contains("whoever"), "{policy}");
    }
}

#[test]
fn a_permit_without_an_action_does_not_make_an_admin() {
    let problems = refused(&format!("permit ({AGENT}, action, resource);"));
    assert!(problems.contains("both use of resources and acts on the broker"));
    loaded(&format!(
        "permit ({AGENT}, action in Action::\"any\", resource);"
    ));
    loaded(&format!(
        "permit ({AGENT}, action, resource == Api::\"billing\");"
    ));
    loaded("forbid (principal, action, resource);");
}

#[test]
fn no_policy_gives_the_bootstrap_token_a_credential_a_task_or_an_approval() {
    for action in ["orders:read", "any", "openTask", "approve"] {
        let op = if action == "any" { "in" } else { "==" };
        let policy = format!(
            "permit (principal == Bootstrap::\"token\", action {op} Action::\"{action}\", resource);"
        );
        refused(&policy);
    }
    let everything = loaded(
        "permit (principal == Bootstrap::\"token\", action, resource == Broker::\"taskpass\");",
    );
    for action in AdminAction::ALL {
        let may = everything.may(AdminPrincipal::Bootstrap, *action).unwrap();
        assert_eq!(may, *action != AdminAction::Approve, "{action:?}");
        assert_eq!(AdminAction::parse(action.as_str()), Some(*action));
    }
}

#[test]
fn obligations_stand_only_where_they_can_apply() {
    let with = |annotation: &str, scope: &str| {
        format!("@id(\"x\")\n@description(\"d\")\n{annotation}\npermit ({scope});")
    };
    let open = format!("{AGENT}, action == Action::\"openTask\", resource");
    let admin = "principal in Role::\"a\", action == Action::\"readLedger\", resource";
    assert!(refused(&with("@max_ttl(\"6\")", &open)).contains("@max_ttl"));
    assert!(refused(&with("@max_ttl(\"6\")", admin)).contains("@max_ttl"));
    assert!(refused(&with("@approval(\"required\")", admin)).contains("@approval"));
    loaded(&with("@approval(\"required\")", &open));
}

// ---- the fail-open traps ----

#[test]
fn a_forbid_that_fails_to_evaluate_refuses_instead_of_being_skipped() {
    // It passes strict validation: types say nothing about overflow.
    let compiled = loaded(&format!(
        "permit ({AGENT}, action in Action::\"any\", resource);
         forbid (principal, action == Action::\"orders:read\", resource)
         when {{ context.ttl_seconds * 9223372036854775807 > 0 }};"
    ));
    let decision = decide(&compiled, "orders-api", &["orders:read"], Some(60));
    assert_eq!(decision.outcome(), Outcome::Indeterminate);
    assert_eq!(decision.policies, ["p1"]);
    let refusal = refusal(decision);
    assert_eq!(refusal.code, RefusalCode::PolicyError);
    assert_eq!(refusal.allowed, None);
    assert!(!refusal.detail.contains("p1"), "{}", refusal.detail);
    // One bad right spoils the request, not the policy's neighbours.
    let decision = decide(
        &compiled,
        "orders-api",
        &["orders:read", "orders:write"],
        None,
    );
    assert_eq!(decision.outcome(), Outcome::Indeterminate);
    let decision = decide(&compiled, "orders-api", &["orders:write"], None);
    assert_eq!(decision.outcome(), Outcome::Permit);
}

#[test]
fn a_forbid_that_reads_a_missing_attribute_does_not_load_and_would_refuse() {
    let policies = format!(
        "permit ({AGENT}, action in Action::\"any\", resource);
         forbid (principal, action, resource) when {{ principal.claims.tier == \"bad\" }};"
    );
    assert!(refused(&policies).contains("tier"));
    let (mut generation, _) = build(parts("forbid (principal, action, resource);"), &[]).unwrap();
    generation.policies = parts(&policies).policies;
    let slipped_through = CompiledGeneration::unvalidated(&generation);
    let decision = decide(&slipped_through, "orders-api", &["orders:read"], None);
    assert_eq!(decision.outcome(), Outcome::Indeterminate);
    assert_eq!(decision.policies, ["p1"]);
}

#[test]
fn a_permit_that_fails_to_evaluate_refuses_even_beside_one_that_holds() {
    let compiled = loaded(&format!(
        "permit ({AGENT}, action in Action::\"any\", resource);
         permit ({AGENT}, action in Action::\"any\", resource)
         when {{ context.ttl_seconds * 9223372036854775807 > 0 }};"
    ));
    let decision = decide(&compiled, "orders-api", &["orders:read"], Some(60));
    assert_eq!(decision.outcome(), Outcome::Indeterminate);
}

#[test]
fn a_workload_without_a_declared_claim_or_with_another_type_is_refused() {
    let compiled =
        loaded("permit (principal in Role::\"r\", action in Action::\"any\", resource);");
    let detail = details(json!([{"type": "api", "actions": ["orders:read"]}]));
    let ask = ask(&compiled, "orders-api", detail, None);
    for bad in [
        workload("dev", "agent", &[]),
        workload("dev", "agent", &[("sub", ClaimValue::Long(1))]),
        workload(
            "dev",
            "agent",
            &[("sub", text("a")), ("admin", ClaimValue::Bool(true))],
        ),
        workload("unknown", "agent", &[("sub", text("a"))]),
    ] {
        let decision = decide_as(&compiled, &bad, &["r"], &ask, facts());
        assert_eq!(decision.outcome(), Outcome::Indeterminate, "{bad:?}");
    }
    let good = decide_as(&compiled, &agent(), &["r"], &ask, facts());
    assert_eq!(good.outcome(), Outcome::Permit);
}

#[test]
fn the_action_hierarchy_works_in_permits_and_in_forbids() {
    let permits = format!("permit ({AGENT}, action in Action::\"any\", resource);");
    let compiled = loaded(&permits);
    assert_eq!(
        decide(
            &compiled,
            "orders-api",
            &["orders:read", "orders:write"],
            None
        )
        .outcome(),
        Outcome::Permit
    );
    let compiled = loaded(&format!(
        "{permits} forbid (principal, action in Action::\"any\", resource == Api::\"billing\");"
    ));
    assert_eq!(
        decide(&compiled, "orders-api", &["orders:read"], None).outcome(),
        Outcome::Permit
    );
    let decision = decide(&compiled, "billing", &["bill:read"], None);
    assert_eq!(
        (decision.outcome(), decision.policies),
        (Outcome::Deny, vec!["p1".to_owned()])
    );
}

#[test]
fn nothing_asked_is_nothing_permitted() {
    let compiled = loaded(&format!(
        "permit ({AGENT}, action in Action::\"any\", resource);"
    ));
    let good = decide(&compiled, "billing", &["bill:read"], None);
    let input: serde_json::Value = serde_json::from_slice(&good.input).unwrap();
    let mut empty = input.clone();
    empty["credential"]["authorization_details"] = json!([]);
    let mut no_location = input.clone();
    no_location["credential"]["authorization_details"][0]["locations"] = json!([]);
    let mut elsewhere = input.clone();
    elsewhere["credential"]["authorization_details"][0]["locations"] =
        json!(["https://evil.example"]);
    let mut foreign = input.clone();
    foreign["credential"]["authorization_details"][0]["actions"] = json!(["orders:write"]);
    for bad in [empty, no_location, elsewhere, foreign] {
        let decision = compiled.redecide(bad.to_string().as_bytes()).unwrap();
        assert_eq!(decision.outcome(), Outcome::Deny, "{bad}");
    }
}

// ---- decisions ----

#[test]
fn without_a_policy_everything_is_denied() {
    let compiled = loaded("forbid (principal in Role::\"nobody\", action, resource);");
    let decision = decide(&compiled, "orders-api", &["orders:read"], None);
    assert_eq!(decision.outcome(), Outcome::Deny);
    assert!(decision.policies.is_empty());
    let refusal = refusal(decision);
    assert_eq!(refusal.code, RefusalCode::NotPermitted);
    assert_eq!(
        refusal.detail,
        "policy does not permit `orders:read` at `https://orders.example/v1` on `orders-api`"
    );
    assert_eq!(refusal.allowed, None);
}

#[test]
fn opening_a_task_is_an_action_of_its_own() {
    let compiled = loaded(&format!(
        "permit ({AGENT}, action == Action::\"orders:read\", resource);
         permit ({AGENT}, action == Action::\"openTask\", resource == TaskType::\"fix-order\");"
    ));
    let detail = details(json!([{"type": "api", "actions": ["orders:read"]}]));
    let ask = ask(&compiled, "orders-api", detail, None);
    let opening = |task_type: &str| TaskFacts {
        task_type: task_type.into(),
        opens: true,
        ..facts()
    };
    let refused = refusal(decide_as(
        &compiled,
        &agent(),
        &[],
        &ask,
        opening("nightly-report"),
    ));
    assert_eq!(refused.code, RefusalCode::NotPermitted);
    assert!(refused.detail.contains("open a task"), "{}", refused.detail);
    assert_eq!(refused.allowed, None);
    let good = decide_as(&compiled, &agent(), &[], &ask, opening("fix-order"));
    assert_eq!(good.policies, ["p0", "p1"]);
    assert_eq!(good.outcome(), Outcome::Permit);

    let roles = BTreeSet::new();
    let now = Timestamp::from_seconds(NOW);
    let alone = compiled.decide_open_task(&agent(), &roles, opening("fix-order"), now);
    assert_eq!(alone.verdict.unwrap().ttl_seconds, 0);
    assert_eq!(
        compiled.redecide(&alone.input).unwrap().outcome(),
        Outcome::Permit
    );
    let other = compiled.decide_open_task(&agent(), &roles, opening("nightly-report"), now);
    assert_eq!(other.outcome(), Outcome::Deny);
    let unknown = compiled.decide_open_task(&agent(), &roles, opening("nope"), now);
    assert_eq!(refusal(unknown).code, RefusalCode::UnknownTaskType);
}

#[test]
fn the_strictest_of_all_satisfied_permits_sets_the_life() {
    let permit = |id: &str, ttl: &str, scope: &str| {
        format!(
            "@id(\"{id}\")\n@description(\"d\")\n@max_ttl(\"{ttl}\")\npermit ({AGENT}, {scope});\n"
        )
    };
    let compiled = loaded(
        &[
            permit("wide", "600", "action in Action::\"any\", resource"),
            permit(
                "narrow",
                "60",
                "action == Action::\"orders:write\", resource",
            ),
        ]
        .concat(),
    );
    let ttl = |actions: &[&str], asked| {
        decide(&compiled, "orders-api", actions, asked)
            .verdict
            .map(|permitted| permitted.ttl_seconds)
    };
    assert_eq!(ttl(&["orders:read"], None), Ok(300));
    assert_eq!(ttl(&["orders:read"], Some(600)), Ok(600));
    assert_eq!(ttl(&["orders:read", "orders:write"], None), Ok(60));
    assert_eq!(ttl(&["orders:write"], Some(60)), Ok(60));
    for (actions, asked, max) in [
        (&["orders:read"][..], 601, 600),
        (&["orders:read", "orders:write"], 61, 60),
    ] {
        let refusal = ttl(actions, Some(asked)).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::TtlTooLong);
        assert_eq!(refusal.allowed.unwrap().max_ttl_seconds, Some(max));
    }
}

#[test]
fn no_credential_outlives_its_task() {
    let compiled = loaded(&format!(
        "permit ({AGENT}, action in Action::\"any\", resource);"
    ));
    let decide = |asked, left| {
        let detail = details(json!([{"type": "api", "actions": ["orders:read"]}]));
        let ask = ask(&compiled, "orders-api", detail, asked);
        let task = TaskFacts {
            deadline_seconds_left: left,
            ..facts()
        };
        decide_as(&compiled, &agent(), &[], &ask, task).verdict
    };
    assert_eq!(decide(None, 40).unwrap().ttl_seconds, 40);
    assert_eq!(decide(Some(40), 40).unwrap().ttl_seconds, 40);
    let late = decide(Some(41), 40).unwrap_err();
    assert_eq!(late.code, RefusalCode::TtlTooLong);
    assert_eq!(late.allowed.unwrap().max_ttl_seconds, Some(40));
    assert_eq!(decide(None, 0).unwrap_err().code, RefusalCode::TaskEnded);
    // What Cedar cannot count is refused, not rounded.
    assert_eq!(
        decide(None, u64::MAX).unwrap_err().code,
        RefusalCode::PolicyError
    );
}

#[test]
fn one_approval_among_the_satisfied_permits_asks_for_a_person() {
    let compiled = loaded(&format!(
        "permit ({AGENT}, action in Action::\"any\", resource);
         @id(\"ask\") @description(\"d\") @approval(\"required\") @max_ttl(\"60\")
         permit ({AGENT}, action == Action::\"orders:write\", resource);"
    ));
    let decision = decide(
        &compiled,
        "orders-api",
        &["orders:read", "orders:write"],
        Some(60),
    );
    assert_eq!(decision.outcome(), Outcome::Pending);
    assert_eq!(decision.policies, ["ask", "p0"]);
    // Nobody is bothered with what can't be had.
    let long = refusal(decide(&compiled, "orders-api", &["orders:write"], Some(61)));
    assert_eq!(long.code, RefusalCode::TtlTooLong);
    let free = decide(&compiled, "orders-api", &["orders:read"], Some(61));
    assert_eq!(free.outcome(), Outcome::Permit);
}

#[test]
fn a_denial_offers_exactly_the_permitted_part() {
    let compiled = loaded(&format!(
        "@id(\"r\") @description(\"d\") @max_ttl(\"200\")
         permit ({AGENT}, action == Action::\"bill:read\", resource);
         permit ({AGENT}, action == Action::\"orders:read\", resource)
         when {{ context.location like \"https://billing.example/a*\" }};"
    ));
    let refusal = refusal(decide(
        &compiled,
        "billing",
        &["bill:read", "orders:read"],
        None,
    ));
    let allowed = refusal.allowed.unwrap();
    assert_eq!(
        allowed.authorization_details.unwrap(),
        details(json!([
            {"type": "api", "actions": ["orders:read"], "locations": ["https://billing.example/a"]},
            {"type": "api", "actions": ["bill:read"], "locations": ["https://billing.example/a", "https://billing.example/b"]}
        ]))
    );
    assert_eq!(allowed.max_ttl_seconds, Some(200));
}

#[test]
fn an_offer_leaves_out_a_place_with_a_refused_one_below_it() {
    let compiled = loaded(&format!(
        "permit ({AGENT}, action in Action::\"any\", resource);
         forbid (principal, action, resource) when {{ context has location && context.location == \"https://billing.example/a/secret\" }};"
    ));
    let asked = details(
        json!([{"type": "api", "actions": ["bill:read"], "locations":
        ["https://billing.example/a", "https://billing.example/a/secret", "https://billing.example/b"]}]),
    );
    let ask = ask(&compiled, "billing", asked, None);
    let refusal = refusal(decide_as(&compiled, &agent(), &[], &ask, facts()));
    assert_eq!(
        refusal.allowed.unwrap().authorization_details.unwrap(),
        details(
            json!([{"type": "api", "actions": ["bill:read"], "locations": ["https://billing.example/b"]}])
        )
    );
}

#[test]
fn a_denial_names_a_few_rights_and_counts_the_rest() {
    let compiled = loaded("forbid (principal, action, resource);");
    let locations: Vec<String> = (0..5)
        .map(|n| format!("https://billing.example/a/{n}"))
        .collect();
    let asked = details(json!([{"type": "api", "actions": ["bill:read"], "locations": locations}]));
    let ask = ask(&compiled, "billing", asked, None);
    let refusal = refusal(decide_as(&compiled, &agent(), &[], &ask, facts()));
    assert!(
        refusal.detail.contains(", and 1 more on `billing`"),
        "{}",
        refusal.detail
    );
}

#[test]
fn a_task_type_that_may_not_ask_for_the_resource_is_refused_when_joined_too() {
    let compiled = loaded(&format!(
        "permit ({AGENT}, action in Action::\"any\", resource);"
    ));
    let detail = details(json!([{"type": "api", "actions": ["bill:read"]}]));
    let ask = ask(&compiled, "billing", detail, None);
    let task = TaskFacts {
        task_type: "fix-order".into(),
        ..facts()
    };
    let refusal = refusal(decide_as(&compiled, &agent(), &[], &ask, task));
    assert_eq!(refusal.code, RefusalCode::ResourceNotForTask);
}

#[test]
fn the_input_holds_all_that_was_decided_on_and_no_free_text() {
    let compiled =
        loaded("permit (principal in Role::\"r\", action in Action::\"any\", resource);");
    let detail = details(json!([{"type": "api", "actions": ["orders:read"]}]));
    let ask = ask(&compiled, "orders-api", detail, Some(60));
    let decision = decide_as(&compiled, &agent(), &["r"], &ask, facts());
    let input: serde_json::Value = serde_json::from_slice(&decision.input).unwrap();
    assert_eq!(
        input,
        json!({
            "format": 1, "now": "2026-11-18T11:06:40Z",
            "principal": {"attestor": "dev", "identity": "dev:agent", "roles": ["r"], "claims": {"sub": "agent"}},
            "task": {"task_type": "nightly-report", "depth": 1, "deadline_seconds_left": 3600, "has_parent": false, "opens": false},
            "credential": {"resource": "orders-api", "ttl_seconds": 60, "authorization_details":
                [{"type": "api", "actions": ["orders:read"], "locations": ["https://orders.example/v1"]}]}
        })
    );
    assert!(
        !String::from_utf8(decision.input)
            .unwrap()
            .contains("free text")
    );
    for bad in [&b"{}"[..], b"", br#"{"format":1,"extra":1}"#] {
        assert!(matches!(compiled.redecide(bad), Err(PolicyError::Input(_))));
    }
}

#[test]
fn the_number_of_evaluations_is_bounded() {
    let compiled = loaded(&format!(
        "permit ({AGENT}, action in Action::\"any\", resource);"
    ));
    let places = |n: usize| -> Vec<String> {
        (0..n)
            .map(|n| format!("https://billing.example/a/{n}"))
            .collect()
    };
    let object =
        |n| json!({"type": "api", "actions": ["bill:read", "orders:read"], "locations": places(n)});
    let full = MAX_EVALUATIONS / 2 / 16;
    let asked = details(vec![object(16); full].into());
    let ask = ask(&compiled, "billing", asked, None);
    let decision = decide_as(&compiled, &agent(), &[], &ask, facts());
    assert_eq!(decision.outcome(), Outcome::Permit);
    let mut input: serde_json::Value = serde_json::from_slice(&decision.input).unwrap();
    input["credential"]["authorization_details"]
        .as_array_mut()
        .unwrap()
        .push(object(1));
    let over = compiled.redecide(input.to_string().as_bytes()).unwrap();
    assert_eq!(refusal(over).code, RefusalCode::TooManyRights);
}

#[test]
fn an_act_on_the_broker_that_cannot_be_decided_is_an_error() {
    let compiled = loaded(
        "permit (principal in Role::\"admin\", action == Action::\"readLedger\", resource);
         forbid (principal is Workload::ci_main, action == Action::\"readLedger\", resource)
         when { principal.claims.attempt * 9223372036854775807 > 0 };",
    );
    let roles = BTreeSet::from(["admin".to_owned()]);
    let who = agent();
    let admin = AdminPrincipal::Workload {
        workload: &who,
        roles: &roles,
    };
    assert_eq!(compiled.may(admin, AdminAction::ReadLedger), Ok(true));
    assert_eq!(compiled.may(admin, AdminAction::ManageKeys), Ok(false));
    assert_eq!(
        compiled.may(AdminPrincipal::Bootstrap, AdminAction::ReadLedger),
        Ok(false)
    );
    assert_eq!(
        compiled.may(AdminPrincipal::Dev, AdminAction::ReadLedger),
        Ok(false)
    );
    let ci = workload(
        "ci-main",
        "repo:1",
        &[
            ("repo_id", text("1")),
            ("branch", text("b")),
            ("actor", text("a")),
            ("attempt", ClaimValue::Long(2)),
        ],
    );
    let admin = AdminPrincipal::Workload {
        workload: &ci,
        roles: &roles,
    };
    assert_eq!(
        compiled.may(admin, AdminAction::ReadLedger),
        Err(PolicyError::Evaluation(vec!["p1".into()]))
    );
}

#[test]
fn roles_are_asked_for_where_a_policy_about_work_names_one() {
    for (policies, asked) in [
        (
            "permit (principal == Workload::dev::\"dev:agent\", action == Action::\"orders:read\", resource);",
            false,
        ),
        (
            "permit (principal in Role::\"admin\", action == Action::\"readLedger\", resource);",
            false,
        ),
        (
            "permit (principal in Role::\"r\", action == Action::\"orders:read\", resource);",
            true,
        ),
        (
            "permit (principal in Role::\"r\", action == Action::\"openTask\", resource);",
            true,
        ),
        ("forbid (principal in Role::\"r\", action, resource);", true),
        (
            "permit (principal == Workload::dev::\"dev:agent\", action == Action::\"orders:read\", resource) \
             unless { principal in [Role::\"a\", Role::\"b\"] };",
            true,
        ),
        (
            "forbid (principal in Role::\"r\", \
             action in [Action::\"readLedger\", Action::\"orders:read\"], resource);",
            true,
        ),
    ] {
        let all = format!(
            "permit (principal == Workload::dev::\"dev:agent\", action == Action::\"openTask\", resource);\n{policies}"
        );
        match load(&all) {
            Ok(compiled) => assert_eq!(compiled.asks_for_roles(), asked, "{policies}"),
            Err(problems) => panic!("{policies}: {problems:?}"),
        }
    }
}

// ---- suites ----

fn run_suite(toml: &str) -> suite::Report {
    let (_, compiled) = build(samples(), &[]).unwrap();
    let file = PolicyFile {
        name: "t.toml".into(),
        text: toml.into(),
    };
    suite::run(&compiled, &[file], Timestamp::from_seconds(NOW))
}

fn case(extra: &str) -> String {
    format!(
        "[[credential]]\nname = \"c\"\nattestor = \"dev\"\nidentity = \"dev:agent%3Areports\"\nclaims = {{ sub = \"s\" }}\nresource = \"orders-api\"\nactions = [\"orders:read\"]\ntask_type = \"nightly-report\"\n{extra}\n"
    )
}

#[test]
fn a_suite_in_which_nothing_is_refused_fails() {
    let report = run_suite(&case("expect = \"permit\""));
    assert!(!report.passed());
    assert!(
        report.to_string().contains("no case is refused"),
        "{report}"
    );
    assert!(!run_suite("").passed());
}

#[test]
fn a_case_that_names_what_does_not_exist_is_an_error_and_no_denial() {
    let denied = case("expect = \"deny\"");
    for (from, to, says) in [
        ("orders-api", "order-api", "no resource `order-api`"),
        ("orders:read", "orders:reed", "no action `orders:reed`"),
        ("nightly-report", "nightly", "no task type `nightly`"),
        (
            "attestor = \"dev\"",
            "attestor = \"aws\"",
            "no attestor `aws`",
        ),
        ("dev:agent", "agent", "is no identity"),
        ("sub = \"s\"", "sub = 1", "another type"),
        ("sub = \"s\"", "", "`sub` is missing"),
        (
            "sub = \"s\"",
            "sub = \"s\", tier = \"x\"",
            "no claim `tier`",
        ),
        (
            "expect =",
            "policies = [\"nope\"]\nexpect =",
            "no policy `nope`",
        ),
        (
            "expect =",
            "locations = [\"https://x.example\"]\nexpect =",
            "does not serve",
        ),
    ] {
        let report = run_suite(&denied.replacen(from, to, 1));
        assert!(!report.passed());
        assert!(report.to_string().contains(says), "{to}: {report}");
    }
    for bad in [
        denied.replace("expect", "expct"),
        denied.replace("\"deny\"", "\"maybe\""),
    ] {
        let report = run_suite(&bad);
        assert_eq!(report.problems[0].file, "t.toml");
        assert!(report.problems[0].line > 0);
    }
}

#[test]
fn a_case_says_what_was_expected_and_what_came() {
    let report = run_suite(&case(
        "expect = \"deny\"\ncode = \"ttl-too-long\"\npolicies = []\ngranted_ttl_seconds = 1",
    ));
    let failures = report.cases[0].failures.join("; ");
    assert_eq!(
        failures,
        "outcome: expected deny, got permit; code: expected ttl-too-long, got none; \
         policies: expected [], got [reports-open, reports-read]; \
         granted_ttl_seconds: expected 1, got 300"
    );
}

// ---- properties ----

/// One policy of a generated set, in the scopes that matter to the index.
fn any_policy() -> impl Strategy<Value = String> {
    let effect = prop::sample::select(vec!["permit", "permit", "permit", "forbid"]);
    let principal = prop::sample::select(vec![
        "principal",
        "principal == Workload::dev::\"dev:agent\"",
        "principal in Workload::dev::\"dev:agent\"",
        "principal == Workload::dev::\"dev:other\"",
        "principal in Role::\"r1\"",
        "principal in Role::\"r2\"",
        "principal is Workload::dev",
        "principal is Workload::ci_main",
        "principal is Workload::dev in Role::\"r1\"",
        "principal is Workload::ci_main in Role::\"r1\"",
    ]);
    let action = prop::sample::select(vec![
        "action",
        "action == Action::\"orders:read\"",
        "action == Action::\"bill:read\"",
        "action in Action::\"any\"",
        "action in [Action::\"any\", Action::\"orders:read\"]",
        "action in [Action::\"bill:read\", Action::\"openTask\"]",
    ]);
    let resource = prop::sample::select(vec![
        "resource",
        "resource == Api::\"billing\"",
        "resource in Api::\"billing\"",
        "resource == Api::\"orders-api\"",
        "resource is Api",
        "resource is TaskType",
        "resource is Api in Api::\"billing\"",
    ]);
    let when = prop::sample::select(vec![
        "",
        "",
        "",
        "when { context.task.depth == 1 }",
        "when { context has location && context.location like \"*/a\" }",
        "when { context.task.depth * 9223372036854775807 > 1 && context.task.depth > 1 }",
        "when { principal has nothing }",
        "when { principal.nothing }",
    ]);
    let annotation =
        prop::sample::select(vec!["", "", "max_ttl(\"60\")", "approval(\"required\")"]);
    (effect, principal, action, resource, when, annotation).prop_map(
        |(effect, principal, action, resource, when, annotation)| {
            let obligation = match (effect, annotation) {
                ("forbid", _) | (_, "") => String::new(),
                (_, annotation) => format!("@{annotation} "),
            };
            format!("{obligation}{effect} ({principal}, {action}, {resource}) {when};")
        },
    )
}

/// A generation whose policies were generated; it is not validated, so that errors happen.
fn generated(policies: &[String]) -> CompiledGeneration {
    thread_local! {
        static FRAME: Generation = build(parts("forbid (principal, action, resource);"), &[])
            .unwrap()
            .0;
    }
    let text = policies
        .iter()
        .enumerate()
        .fold(String::new(), |all, (index, policy)| {
            format!("{all}@id(\"g{index}\") @description(\"d\") {policy}\n")
        });
    FRAME.with(|frame| {
        CompiledGeneration::unvalidated(&Generation {
            policies: vec![PolicyFile {
                name: "g.cedar".into(),
                text,
            }],
            ..frame.clone()
        })
    })
}

fn any_workload() -> impl Strategy<Value = Workload> {
    let ci = workload(
        "ci-main",
        "repo:1",
        &[
            ("repo_id", text("1")),
            ("branch", text("main")),
            ("actor", text("a")),
            ("attempt", ClaimValue::Long(1)),
        ],
    );
    let other = workload("dev", "other", &[("sub", text("other"))]);
    prop::sample::select(vec![agent(), agent(), other, ci])
}

fn any_roles() -> impl Strategy<Value = BTreeSet<String>> {
    let role = prop::sample::select(vec!["r1".to_owned(), "r2".to_owned(), "r3".to_owned()]);
    prop::collection::btree_set(role, 0..3)
}

fn any_details() -> impl Strategy<Value = Vec<AuthorizationDetail>> {
    let action = prop::sample::select(vec!["bill:read", "orders:read"]);
    let place = prop::sample::select(vec![
        "https://billing.example/a",
        "https://billing.example/a/x",
        "https://billing.example/b",
    ]);
    let detail = (
        prop::collection::btree_set(action, 1..3),
        prop::collection::btree_set(place, 1..4),
    )
        .prop_map(
            |(actions, places)| json!({"type": "api", "actions": actions, "locations": places}),
        );
    prop::collection::vec(detail, 1..3).prop_map(|all| details(all.into()))
}

/// Few cases in a check, as each compiles policies; `PROPTEST_CASES` asks for more.
fn cases() -> ProptestConfig {
    let asked = ProptestConfig::default();
    match asked.cases {
        256 => ProptestConfig::with_cases(32),
        _ => asked,
    }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn the_slice_answers_like_the_whole_set(
        policies in prop::collection::vec(any_policy(), 0..12),
        workload in any_workload(),
        roles in any_roles(),
    ) {
        let compiled = generated(&policies);
        let whole = compiled.whole_set();
        let who = super::mapping::PrincipalInput {
            attestor: workload.attestor.clone(),
            identity: workload.identity.clone(),
            roles,
            claims: workload.claims.clone(),
        };
        let authorizer = cedar_policy::Authorizer::new();
        for resource in ["billing", "orders-api"] {
            let scene = compiled.model.workload_scene(&who, Some(resource)).unwrap();
            let uid = compiled.model.resource(resource).unwrap();
            for action in ["orders:read", "bill:read"] {
                let action = compiled.model.action(action);
                let context = super::mapping::credential_context(&facts(), billing(), 60).unwrap();
                let request = compiled.model.request(&scene, &action, &uid, context).unwrap();
                let sliced = compiled.index.evaluate(&request, &scene.ancestors, &scene.entities, Timestamp::MAX);
                let all = slice::join([authorizer.is_authorized(&request, &whole, &scene.entities)]);
                prop_assert_eq!(sliced, all);
            }
        }
        let scene = compiled.model.workload_scene(&who, None).unwrap();
        let action = compiled.model.action("openTask");
        let task_type = compiled.model.task_type("nightly-report");
        let context = super::mapping::task_context(&facts()).unwrap();
        let request = compiled.model.request(&scene, &action, &task_type, context).unwrap();
        let sliced = compiled.index.evaluate(&request, &scene.ancestors, &scene.entities, Timestamp::MAX);
        let all = slice::join([authorizer.is_authorized(&request, &whole, &scene.entities)]);
        prop_assert_eq!(sliced, all);
    }

    #[test]
    fn a_recorded_input_gives_the_same_decision_again(
        policies in prop::collection::vec(any_policy(), 0..8),
        workload in any_workload(),
        roles in any_roles(),
        asked in any_details(),
        ttl in prop::option::of(1_u64..900),
        opens: bool,
    ) {
        let compiled = generated(&policies);
        let ask = ask(&compiled, "billing", asked, ttl);
        let question = Question {
            workload: &workload,
            roles: &roles,
            ask: &ask,
            task: TaskFacts { opens, ..facts() },
            bounds: None,
            now: Timestamp::from_seconds(NOW),
        };
        let decision = compiled.decide(&question);
        let again = generated(&policies).redecide(&decision.input).unwrap();
        prop_assert_eq!(&again.verdict, &decision.verdict);
        prop_assert_eq!(&again.policies, &decision.policies);
        prop_assert_eq!(again.input, decision.input);
        prop_assert_eq!(again.generation, decision.generation);
    }

    #[test]
    fn what_is_offered_is_permitted_when_it_is_asked_for_and_was_asked_for_before(
        policies in prop::collection::vec(any_policy(), 1..8),
        asked in any_details(),
        ttl in prop::option::of(1_u64..900),
    ) {
        let compiled = generated(&policies);
        let roles = BTreeSet::from(["r1".to_owned()]);
        let decide = |ask: &Ask| compiled.decide(&Question {
            workload: &agent(),
            roles: &roles,
            ask,
            task: facts(),
            bounds: None,
            now: Timestamp::from_seconds(NOW),
        });
        let first = ask(&compiled, "billing", asked, ttl);
        if let Err(refusal) = decide(&first).verdict
            && let Some(allowed) = refusal.allowed
        {
            let wanted = first.grant.clone();
            let offered = match allowed.authorization_details {
                Some(details) => Grant::try_from(details).unwrap(),
                None => wanted.clone(),
            };
            prop_assert!(wanted.covers(&offered));
            let second = Ask {
                grant: offered,
                ttl_seconds: allowed.max_ttl_seconds.or(ttl),
                resource: Arc::clone(&first.resource),
                task: first.task.clone(),
                retry: None,
            };
            let outcome = decide(&second).outcome();
            let fine = outcome == Outcome::Permit
                || (refusal.code == RefusalCode::TtlTooLong && outcome == Outcome::Pending);
            prop_assert!(fine, "{:?}", outcome);
        }
    }

    #[test]
    fn another_permit_never_turns_a_yes_into_a_policy_denial(
        policies in prop::collection::vec(any_policy(), 1..6),
        more in any_policy(),
    ) {
        let more = more.replace("forbid", "permit");
        let before = decide(&generated(&policies), "billing", &["bill:read"], None);
        let mut wider = policies;
        wider.push(more);
        let after = decide(&generated(&wider), "billing", &["bill:read"], None);
        if before.outcome() == Outcome::Permit {
            // Obligations may tighten it and an error may make it uncertain; a no it is not.
            prop_assert_ne!(after.outcome(), Outcome::Deny);
        }
    }
}

/// The index at work: how many policies a request meets, and how long a decision takes. Run with
/// `cargo test --release --lib policy::tests::figures -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement, not a check"]
#[expect(clippy::print_stdout, reason = "a measurement is shown")]
fn figures() {
    for count in [10_usize, 100, 1_000, 10_000] {
        let policies: Vec<String> = (0..count)
            .map(|n| match n {
                0 => format!("permit ({AGENT}, action in Action::\"any\", resource == Api::\"billing\");"),
                1 => "forbid (principal, action, resource) when { context has location && context.location == \"https://billing.example/z\" };".into(),
                n => format!("permit (principal == Workload::dev::\"dev:w{n}\", action in Action::\"any\", resource == Api::\"billing\") when {{ context.task.depth == 1 }};"),
            })
            .collect();
        let compiled = generated(&policies);
        let whole = compiled.whole_set();
        let who = super::mapping::PrincipalInput {
            attestor: "dev".into(),
            identity: agent().identity,
            roles: BTreeSet::new(),
            claims: BTreeMap::from([("sub".to_owned(), text("agent"))]),
        };
        let scene = compiled
            .model
            .workload_scene(&who, Some("billing"))
            .unwrap();
        let uid = compiled.model.resource("billing").unwrap();
        let action = compiled.model.action("bill:read");
        let context = super::mapping::credential_context(&facts(), billing(), 60).unwrap();
        let request = compiled
            .model
            .request(&scene, &action, &uid, context)
            .unwrap();
        let met = compiled
            .index
            .slice_len(&scene.principal, &scene.ancestors, &action, &uid);
        let time = |work: &mut dyn FnMut(), rounds: u32| {
            let start = std::time::Instant::now();
            (0..rounds).for_each(|_| work());
            start.elapsed() / rounds
        };
        let authorizer = cedar_policy::Authorizer::new();
        let all = time(
            &mut || {
                authorizer.is_authorized(&request, &whole, &scene.entities);
            },
            20,
        );
        let sliced = time(
            &mut || {
                compiled.index.evaluate(
                    &request,
                    &scene.ancestors,
                    &scene.entities,
                    Timestamp::MAX,
                );
            },
            200,
        );
        let detail = details(
            json!([{"type": "api", "actions": ["bill:read"], "locations": ["https://billing.example/a"]}]),
        );
        let ask = ask(&compiled, "billing", detail, None);
        let whole_decision = time(
            &mut || {
                decide_as(&compiled, &agent(), &[], &ask, facts());
            },
            200,
        );
        println!(
            "{count:>6} policies: slice {met}, whole set {all:?}, slice {sliced:?}, decision {whole_decision:?}"
        );
    }
}

#[test]
fn an_action_of_aws_that_stands_for_others_is_forbidden_with_all_of_them_or_not_at_all() {
    let load = |policy: &str| {
        let mut parts = parts(policy);
        let bucket = json!({
            "name": "bucket", "kind": "aws", "owner": "data",
            "actions": ["s3:*", "s3:Get*", "s3:GetObject"], "locations": ["arn:aws:s3:::b/*"],
            "aws": {
                "role_arn": "arn:aws:iam::123456789012:role/r", "mode": "web_identity",
                "region": "eu-central-1"
            }
        });
        parts
            .resources
            .push(serde_json::from_value(bucket).unwrap());
        build(parts, &[]).map(|_| ())
    };
    for wide in ["s3:*", "s3:Get*"] {
        let by_name = format!(
            "forbid (principal, action == Action::\"{wide}\", resource == Aws::\"bucket\");"
        );
        let problems = load(&by_name).unwrap_err();
        assert!(
            problems[0].to_string().contains("action in"),
            "{}",
            problems[0]
        );
        load(&by_name.replace("action ==", "action in")).unwrap();
    }
    load("forbid (principal, action == Action::\"s3:GetObject\", resource == Aws::\"bucket\");")
        .unwrap();
}
