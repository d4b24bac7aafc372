//! Tests of the policy module: shared samples and helpers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::json;

use super::admin::{AdminAction, AdminPrincipal};
use super::bundle::{read_directory, read_tests};
use super::decide::{Bounds, Question};
use super::error::PolicyError;
use super::generation::{self, CompiledGeneration, GenerationParts, build};
use super::input::Input;
use super::mapping::{self, TaskFacts};
use super::problem::PolicyProblem;
use super::replay::UnknownReason;
use super::slice;
use super::suite;
use crate::clock::Timestamp;
use crate::domain::decision::{Decision, Outcome, Refusal, RefusalCode};
use crate::domain::generation::{Generation, PolicyFile};
use crate::domain::grant::{AuthorizationDetail, Grant};
use crate::domain::limits::{MAX_EVALUATIONS, MAX_REQUEST_STEPS};
use crate::domain::pattern::Budget;
use crate::domain::request::{CredentialRequest, NewTask, ResolvedRequest, TaskSelector};
use crate::domain::revocability::{ExpiresBy, OpenSessions, Revocability, RevocationClass};
use crate::domain::trust::AttestorSpec;
use crate::domain::workload::{ClaimValue, OneTime, Reuse, Workload};

mod decisions;
mod depth;
mod lives;
mod loading;
mod observe;
mod properties;
mod revocability;
mod suites;
mod unused;
mod whole;

const NOW: i64 = 1_795_000_000;

/// The revocability of an access token whose resource server introspects it.
const REVOCABILITY: Revocability = Revocability {
    class: RevocationClass::Immediate { bound_seconds: 5 },
    open_sessions: OpenSessions::None,
    expires_by: ExpiresBy::Itself,
};

fn dev_attestor() -> AttestorSpec {
    serde_json::from_value(json!({
        "kind": "oidc", "name": "dev", "issuer": "http://127.0.0.1:7070/dev",
        "audience": "http://127.0.0.1:7070", "algorithms": ["ES256"], "single_tenant": true,
        "identity": "{sub}", "claims": {"sub": {"type": "string", "immutable": true}}
    }))
    .unwrap()
}

/// An attestor with one claim of every kind.
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
        policies: read_directory(Path::new("policies")).unwrap(),
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

/// The samples' configuration with one more attestor and resource, and other policies. Adds
/// annotations to policies that have none.
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

/// All problems of a bundle that must not load, as one text.
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
            issued_at: Timestamp::EPOCH,
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

/// Parses objects of `authorization_details`. Removes empty members.
fn details(mut value: serde_json::Value) -> Vec<AuthorizationDetail> {
    for detail in value.as_array_mut().into_iter().flatten() {
        let members = detail.as_object_mut().unwrap();
        members.retain(|_, value| *value != json!([]));
    }
    serde_json::from_value(value).unwrap()
}

fn ask(
    compiled: &CompiledGeneration,
    resource: &str,
    details: Vec<AuthorizationDetail>,
    ttl_seconds: Option<u64>,
) -> ResolvedRequest {
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
    ask: &ResolvedRequest,
    task: TaskFacts,
) -> Decision {
    let roles = roles.iter().map(|role| (*role).to_owned()).collect();
    compiled.decide(&Question {
        workload,
        roles: Some(&roles),
        ask,
        revocability: REVOCABILITY,
        task,
        bounds: None,
        now: Timestamp::from_seconds(NOW),
    })
}

/// The decision about `agent` asking for `actions` at all locations of `resource`.
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

/// A generation of generated policies. It is not validated, so that errors occur.
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
