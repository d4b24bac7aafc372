//! A pipeline that a broker attests: its policies, its tokens, its decisions.

use serde_json::{Value, json};

use super::fleet::{Fleet, Replica};
use super::issuer::Issuer;
use super::process::Launch;
use super::rig::Kind;

/// The policies of the pipeline: it reads from production, for five minutes, and not from a fork.
pub const CI: &str = r#"
@id("ci-open") @description("the pipeline opens jobs")
permit (principal == Workload::ci::"ci:app", action == Action::"openTask", resource);

@id("ci-read") @description("the pipeline reads from production")
@max_ttl("300")
permit (principal == Workload::ci::"ci:app", action == Action::"orders:read",
  resource == Api::"orders-api")
when { principal.claims.env == "prod" && context.ttl_seconds <= 300 };

@id("no-forks") @description("nothing from a fork")
forbid (principal is Workload::ci, action, resource == Api::"orders-api")
when { principal.claims.fork };
"#;

/// A replica with these policies, and an attestor for the pipeline.
pub async fn begin(kind: Kind) -> (Fleet, Replica) {
    let attestors = |issuer: &Issuer| {
        format!(
            r#"
[[attestors]]
kind = "oidc"
name = "ci"
issuer = "{issuer}"
audience = "https://ci.taskpass.test"
algorithms = ["ES256"]
single_tenant = true
identity = "{{sub}}"
[attestors.claims]
sub = {{ type = "string", immutable = true }}
env = {{ type = "string" }}
fork = {{ type = "bool" }}
"#,
            issuer = issuer.url()
        )
    };
    Fleet::on(kind)
        .attestors(attestors)
        .more_policies(CI)
        .start()
        .await
}

/// A token of the pipeline, for an environment, and from a fork or not.
pub fn ci_token(fleet: &Fleet, env: &str, fork: bool) -> String {
    fleet.issuer.token(json!({
        "sub": "app", "env": env, "fork": fork, "aud": "https://ci.taskpass.test",
    }))
}

/// Sends a request and returns the id of its decision.
pub async fn decide(replica: &Replica, token: &str, body: &Value) -> String {
    let answer = replica
        .client
        .post_json(token, "/v1/credentials", body)
        .await;
    answer.json()["decision"]["id"].as_str().unwrap().to_owned()
}

/// All decisions of a replica in the last hour, as `policy decisions` writes them.
pub fn decisions(fleet: &Fleet, replica: &Replica) -> String {
    let url = format!("http://{}", replica.address);
    let ended = Launch::taskpass(["policy", "decisions", "--since", "1h", "--url", &url])
        .env("TASKPASS_TOKEN", &fleet.admin)
        .run();
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr);
    ended.stdout
}
