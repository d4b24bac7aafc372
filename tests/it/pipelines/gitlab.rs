//! GitLab: refusing forks, and protected branches.

use serde_json::{Value, json};

use super::{World, instance};

const ATTESTOR: &str = r#"
[[attestors]]
kind = "oidc"
preset = "gitlab"
name = "gitlab"
issuer = "https://gitlab.com"
audience = "https://broker.example"
required = { namespace_id = "72" }
"#;

/// A token as GitLab 18 signs it, of a job on a protected branch.
fn good() -> Value {
    json!({
        "sub": "project_path:my-group/my-project:ref_type:branch:ref:main",
        "namespace_id": "72", "namespace_path": "my-group", "project_id": "20",
        "project_path": "my-group/my-project", "user_id": "1", "user_login": "sample",
        "pipeline_id": "574", "pipeline_source": "push", "job_id": "302", "ref": "main",
        "ref_type": "branch", "ref_path": "refs/heads/main", "ref_protected": "true",
        "runner_id": 1, "runner_environment": "self-hosted", "sha": "714a",
        "job_project_id": "20", "job_project_path": "my-group/my-project",
        "job_namespace_id": "72", "project_visibility": "private",
    })
}

fn world() -> World {
    World::new(ATTESTOR, good())
}

#[tokio::test]
async fn identity_and_instance_are_made_of_ids_in_old_versions_and_new() {
    let world = world();
    for over in [
        json!({}),
        json!({"job_project_id": null, "job_namespace_id": null}),
    ] {
        let workload = world.see(over).await.unwrap();
        assert_eq!(workload.identity.as_str(), "gitlab:project:20");
        assert_eq!(instance(&workload), Some("574:302"));
    }
}

#[tokio::test]
async fn a_fork_is_refused_however_its_version_tells_it() {
    let cases = [
        // Before 18.2.2, a fork's job has the parent's ids.
        json!({"pipeline_source": "merge_request_event"}),
        json!({"pipeline_source": "external_pull_request_event"}),
        json!({"pipeline_source": "parent_pipeline"}),
        // In 18.2.2, it has the fork's own project, in the parent's namespace or another.
        json!({"project_id": "21", "namespace_id": "99", "job_project_id": null, "job_namespace_id": null}),
        // From 18.3, the claims tell the fork apart when it runs in the parent project, and the
        // reverse.
        json!({"project_id": "21"}),
        json!({"job_project_id": "21"}),
        json!({"job_namespace_id": "99"}),
        json!({"job_project_id": 20}),
        // Later, the source project is the fork.
        json!({"source_project_id": "21"}),
    ]
    .map(|over| (over, "required_claim"));
    world().refuses(&cases).await;
}

#[tokio::test]
async fn a_branch_that_anybody_may_push_to_is_refused() {
    let cases = [json!("false"), json!(true), json!("True"), json!(null)]
        .map(|value| (json!({"ref_protected": value}), "required_claim"));
    world().refuses(&cases).await;
}

#[tokio::test]
async fn another_group_of_the_same_path_is_refused_and_a_project_of_the_same_path_is_another() {
    let world = world();
    let cases = [
        (
            json!({"namespace_id": "73", "job_namespace_id": null}),
            "required_claim",
        ),
        (
            json!({"namespace_id": 72, "job_namespace_id": null}),
            "required_claim",
        ),
        (
            json!({"project_id": 20, "job_project_id": null}),
            "claim_type",
        ),
    ];
    world.refuses(&cases).await;
    let new = json!({"project_id": "22", "job_project_id": "22"});
    let workload = world.see(new).await.unwrap();
    assert_eq!(workload.identity.as_str(), "gitlab:project:22");
}
