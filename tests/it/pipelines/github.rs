//! GitHub Actions: ids identify a workload, not names and not `sub`; and the events that may not
//! start a job.

use serde_json::{Value, json};

use super::{World, instance, text};

const ATTESTOR: &str = r#"
[[attestors]]
kind = "oidc"
preset = "github-actions"
name = "github"
issuer = "https://token.actions.githubusercontent.com"
audience = "https://broker.example"
required = { repository_owner_id = "65" }
"#;

/// A token as GitHub documents it, of a job with an environment.
pub fn good() -> Value {
    json!({
        "sub": "repo:octo-org/octo-repo:environment:prod",
        "environment": "prod", "ref": "refs/heads/main", "sha": "0a1b",
        "repository": "octo-org/octo-repo", "repository_owner": "octo-org",
        "actor_id": "12", "repository_visibility": "private", "repository_id": "74",
        "repository_owner_id": "65", "run_id": "1001", "run_number": "10", "run_attempt": "2",
        "check_run_id": "5005", "runner_environment": "github-hosted", "actor": "octocat",
        "workflow": "deploy", "head_ref": "", "base_ref": "", "event_name": "workflow_dispatch",
        "ref_type": "branch", "ref_protected": "true",
        "job_workflow_ref": "octo-org/automation/.github/workflows/oidc.yml@refs/heads/main",
        "job_workflow_sha": "1111111111111111111111111111111111111111",
    })
}

fn world() -> World {
    World::new(ATTESTOR, good())
}

#[tokio::test]
async fn identity_and_instance_are_made_of_ids() {
    let workload = world().see(json!({})).await.unwrap();
    assert_eq!(workload.identity.as_str(), "github:repo:74");
    assert_eq!(instance(&workload), Some("1001:2:5005"));
    assert_eq!(workload.claims["repository_id"], text("74"));
    assert_eq!(workload.claims["environment"], text("prod"));
    for hidden in ["sub", "repository", "actor", "run_id", "check_run_id"] {
        assert!(!workload.claims.contains_key(hidden), "{hidden}");
    }
}

#[tokio::test]
async fn either_format_of_sub_and_a_customised_one_are_the_same_workload() {
    let world = world();
    for sub in [
        "repo:octo-org/octo-repo:ref:refs/heads/main",
        "repo:octo-org@65/octo-repo@74:ref:refs/heads/main",
        "repo:octo-org@65/octo-repo@74:environment:prod",
        "repository_visibility:private",
    ] {
        let workload = world.see(json!({"sub": sub})).await.unwrap();
        assert_eq!(workload.identity.as_str(), "github:repo:74", "{sub}");
    }
}

#[tokio::test]
async fn a_name_that_changed_hands_is_another_workload_or_none() {
    let world = world();
    // The owner created a new repository with the old name: the same names, a new id.
    let renamed = world.see(json!({"repository_id": "99"})).await.unwrap();
    assert_eq!(renamed.identity.as_str(), "github:repo:99");
    // Another owner took the old owner's name, or a name with the same prefix.
    let foreign = json!({"repository_owner_id": "66"});
    let prefix = json!({
        "repository_owner_id": "66", "repository_owner": "octo-org-evil",
        "repository": "octo-org-evil/octo-repo", "sub": "repo:octo-org-evil/octo-repo:environment:prod",
    });
    // Another owner's repository has an environment with the same name.
    let spoofed = json!({"repository_owner_id": "66", "environment": "prod"});
    let cases = [foreign, prefix, spoofed].map(|over| (over, "required_claim"));
    world.refuses(&cases).await;
}

#[tokio::test]
async fn strangers_events_and_foreign_runners_are_refused() {
    let mut cases: Vec<_> = [
        "pull_request",
        "pull_request_target",
        "workflow_run",
        "issue_comment",
        "PUSH",
        "",
    ]
    .map(|event| (json!({"event_name": event}), "required_claim"))
    .into();
    cases.push((json!({"event_name": null}), "required_claim"));
    cases.push((json!({"event_name": ["push"]}), "required_claim"));
    cases.push((
        json!({"runner_environment": "self-hosted"}),
        "required_claim",
    ));
    world().refuses(&cases).await;
}

#[tokio::test]
async fn an_id_that_is_a_number_or_missing_is_no_id() {
    let cases = [
        (json!({"repository_owner_id": 65}), "required_claim"),
        (json!({"repository_owner_id": null}), "required_claim"),
        (json!({"repository_id": 74}), "claim_type"),
        (json!({"repository_id": null}), "claim_type"),
        (json!({"repository_id": ""}), "claim_type"),
        (json!({"run_id": 1001}), "claim_type"),
        (json!({"check_run_id": null}), "claim_type"),
    ];
    world().refuses(&cases).await;
}

#[tokio::test]
async fn a_reusable_workflow_is_pinned_by_its_commit_and_not_by_a_branch_that_moves() {
    let pinned = ATTESTOR.replace(
        "\"65\" }",
        "\"65\", job_workflow_sha = \"1111111111111111111111111111111111111111\" }",
    );
    let moved = json!({"job_workflow_sha": "2222222222222222222222222222222222222222"});
    let cases = [
        (moved, "required_claim"),
        (json!({"job_workflow_sha": null}), "required_claim"),
    ];
    World::new(&pinned, good()).refuses(&cases).await;
}

#[tokio::test]
async fn each_run_attempt_and_job_is_an_instance_of_its_own() {
    let world = world();
    let first = world.see(json!({})).await.unwrap();
    for (claim, value) in [
        ("run_id", "1002"),
        ("run_attempt", "3"),
        ("check_run_id", "1"),
    ] {
        let other = world.see(json!({ claim: value })).await.unwrap();
        assert_eq!(other.identity, first.identity);
        assert_ne!(other.instance, first.instance, "{claim}");
    }
}

#[tokio::test]
async fn an_enterprise_issuer_is_believed_only_where_it_is_written() {
    let world = world();
    for iss in ["/acme", "/", "/acme/"] {
        let iss = format!("{}{iss}", world.issuer.url());
        let seen = world.see(json!({"iss": iss})).await.map(|w| w.identity);
        assert_eq!(seen, Err("unknown_issuer"), "{iss}");
    }
}
