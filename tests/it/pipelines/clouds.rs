//! Buildkite, `CircleCI` and AWS.

use serde_json::{Value, json};

use super::{World, instance, text};

const BUILDKITE: &str = r#"
[[attestors]]
kind = "oidc"
preset = "buildkite"
name = "buildkite"
issuer = "https://agent.buildkite.com"
audience = "https://broker.example"
required = { organization_id = "0184990a-477b-4fa8-9968-496074483cee" }
"#;

fn buildkite() -> Value {
    json!({
        "sub": "organization:acme:pipeline:super:ref:refs/heads/main:commit:9f35:step:build",
        "organization_slug": "acme", "pipeline_slug": "super", "build_number": 1,
        "build_branch": "main", "build_commit": "9f35", "step_key": "build",
        "job_id": "0184990a-477b-4fa8-9968-496074483k77",
        "agent_id": "0184990a-4782-42b5-afc1-16715b10b8ff", "build_source": "ui",
        "runner_environment": "buildkite-hosted",
        "organization_id": "0184990a-477b-4fa8-9968-496074483cee",
        "pipeline_id": "0184990a-477b-4fa8-9968-496074483000",
    })
}

#[tokio::test]
async fn a_buildkite_job_is_its_pipelines_id_and_must_ask_for_it() {
    let world = World::new(BUILDKITE, buildkite());
    let workload = world.see(json!({"build_commit": "HEAD"})).await.unwrap();
    let id = "buildkite:pipeline:0184990a-477b-4fa8-9968-496074483000";
    assert_eq!(workload.identity.as_str(), id);
    let job = "0184990a-477b-4fa8-9968-496074483k77";
    assert_eq!(instance(&workload), Some(job));
    let cases = [
        // The pipeline did not request the optional claims.
        (json!({"organization_id": null}), "required_claim"),
        (json!({"pipeline_id": null}), "claim_type"),
        // The slug now belongs to another organisation.
        (
            json!({"organization_id": "0184990a-0000-4fa8-9968-496074483cee"}),
            "required_claim",
        ),
        (json!({"build_number": "1"}), "claim_type"),
        // The default audience of all tokens of the organisation.
        (
            json!({"aud": "https://buildkite.com/acme"}),
            "wrong_audience",
        ),
    ];
    world.refuses(&cases).await;
    // The broker ignores a tag that the agent set itself.
    let tagged = world.see(json!({"agent_tag:queue": "prod"})).await.unwrap();
    assert!(
        !tagged
            .claims
            .keys()
            .any(|name| name.starts_with("agent_tag"))
    );
}

const ORGANISATION: &str = "3b31b6ab-1f5c-4a5d-b1f5-0f5a9e1c7d11";

const CIRCLECI: &str = r#"
[[attestors]]
kind = "oidc"
preset = "circleci"
name = "circleci"
issuer = "https://oidc.circleci.com/org/3b31b6ab-1f5c-4a5d-b1f5-0f5a9e1c7d11"
audience = "https://broker.example"
required = { project_id = "8a9b1c2d-0000-4a5d-b1f5-0f5a9e1c7d22" }
"#;

fn circleci() -> Value {
    json!({
        "sub": format!("org/{ORGANISATION}/project/8a9b1c2d-0000-4a5d-b1f5-0f5a9e1c7d22/user/u"),
        "oidc.circleci.com/project-id": "8a9b1c2d-0000-4a5d-b1f5-0f5a9e1c7d22",
        "oidc.circleci.com/org-id": ORGANISATION,
        "oidc.circleci.com/context-ids": ["c2", "c1"],
        "oidc.circleci.com/ssh-rerun": false,
        "oidc.circleci.com/vcs-origin": "github.com/acme/app",
        "oidc.circleci.com/vcs-ref": "refs/heads/main",
    })
}

#[tokio::test]
async fn a_circleci_job_is_its_projects_id_and_has_nobody_in_it() {
    let world = World::new(CIRCLECI, circleci());
    let over =
        json!({"sub": format!("org/{ORGANISATION}/project/p/user/u/vcs-origin/o/vcs-ref/r")});
    let workload = world.see(over).await.unwrap();
    let id = "circleci:project:8a9b1c2d-0000-4a5d-b1f5-0f5a9e1c7d22";
    assert_eq!(workload.identity.as_str(), id);
    assert_eq!(workload.claims["vcs_ref"], text("refs/heads/main"));
    // The pipeline of a custom webhook has no branch.
    world
        .see(json!({"oidc.circleci.com/vcs-ref": null}))
        .await
        .unwrap();
    let cases = [
        (
            json!({"oidc.circleci.com/ssh-rerun": true}),
            "required_claim",
        ),
        (
            json!({"oidc.circleci.com/ssh-rerun": "false"}),
            "required_claim",
        ),
        (
            json!({"oidc.circleci.com/ssh-rerun": null}),
            "required_claim",
        ),
        (
            json!({"oidc.circleci.com/project-id": "other"}),
            "required_claim",
        ),
        (
            json!({"oidc.circleci.com/project-id": null, "project_id": "8a9b1c2d-0000-4a5d-b1f5-0f5a9e1c7d22"}),
            "required_claim",
        ),
        (json!({"aud": ORGANISATION}), "wrong_audience"),
    ];
    world.refuses(&cases).await;
}

const AWS: &str = r#"
[[attestors]]
kind = "oidc"
preset = "aws"
name = "aws"
issuer = "https://0f1e2d3c.tokens.sts.global.api.aws"
audience = "https://broker.example"
required = { aws_account = "123456789012", org_id = "o-abc1234567" }
"#;

const NAMESPACE: &str = "https://sts.amazonaws.com/";

fn aws() -> Value {
    json!({
        "sub": "arn:aws:iam::123456789012:role/DataProcessingRole",
        NAMESPACE: {
            "aws_account": "123456789012", "source_region": "us-east-1",
            "org_id": "o-abc1234567", "principal_tags": {"team": "data"},
            "request_tags": {"aws_account": "999999999999"},
        },
    })
}

#[tokio::test]
async fn an_aws_principal_is_its_account_and_its_arn() {
    let world = World::new(AWS, aws());
    let workload = world.see(json!({})).await.unwrap();
    let id = "aws:123456789012:arn%3Aaws%3Aiam%3A%3A123456789012%3Arole%2FDataProcessingRole";
    assert_eq!(workload.identity.as_str(), id);
    assert_eq!(workload.claims["source_region"], text("us-east-1"));
    let within = |account: Value, org: Value| {
        let claims = json!({"aws_account": account, "org_id": org});
        (json!({ NAMESPACE: claims }), "required_claim")
    };
    let cases = [
        within(json!("123456789013"), json!("o-abc1234567")),
        within(json!(123_456_789_012_i64), json!("o-abc1234567")),
        within(json!("123456789012"), json!("o-other")),
        within(json!("123456789012"), json!(null)),
        // Tags that the caller sets itself, and the right values in the wrong place.
        (
            json!({NAMESPACE: {"request_tags": {"aws_account": "123456789012", "org_id": "o-abc1234567"}}}),
            "required_claim",
        ),
        (
            json!({NAMESPACE: null, "aws_account": "123456789012", "org_id": "o-abc1234567"}),
            "required_claim",
        ),
        (json!({NAMESPACE: "123456789012"}), "required_claim"),
        (json!({"aud": "sts.amazonaws.com"}), "wrong_audience"),
    ];
    world.refuses(&cases).await;
}
