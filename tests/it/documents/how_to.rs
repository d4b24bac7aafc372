//! The how-to guides and the page about troubles, against a broker as in production, on
//! SQLite.

use super::broker::production;

/// Registers a key for the workload `reports`, as the guides about keys assume.
const REGISTERED_KEY: &str =
    "taskpass workloads new-key reports --key-file reports-1.pem --json > reports-1.jwk
taskpass workloads add reports --key-file reports-1.jwk";

/// Binds a role, because the broker refuses to revoke an identity of which it has no record.
const KNOWN_REPOSITORY: &str = "taskpass admins bind github:repo:74 --role admin";

#[test]
fn change_policies() {
    production("docs/how-to/change-policies.md")
        .set_up("cp -r policies next")
        .run()
        .printed(3, "decides from now on");
}

#[test]
fn add_a_resource() {
    production("docs/how-to/add-a-resource.md")
        .run()
        .printed(1, "decides from now on")
        .printed(2, "eyJ");
}

#[test]
fn bind_an_admin() {
    production("docs/how-to/bind-an-admin.md")
        .run()
        .printed(1, "workload:alice has the role admin")
        .printed(3, "workload:oncall has the role admin")
        .printed(4, "decides from now on");
}

#[test]
fn find_who_had_access() {
    production("docs/how-to/find-who-had-access.md")
        .run()
        .printed(1, "\"workload:reports\"")
        .printed(2, "\"workload:reports\"")
        .printed(4, "\"generation\"");
}

#[test]
fn export_events() {
    production("docs/how-to/export-events.md")
        .run()
        .printed(2, "taskpass.decision.permit");
}

#[test]
fn leaked_signing_key() {
    production("docs/how-to/leaked-signing-key.md").run();
}

#[test]
fn delete_text() {
    production("docs/how-to/delete-text.md").run();
}

#[test]
fn back_up() {
    production("docs/how-to/back-up.md").run();
}

#[test]
fn measure_coverage() {
    // An access log with one use of the credential, before the end of its task.
    let access = r#"cat > access.toml <<'END'
time = "/ts"
principal = "/client"
action = ["/method", "/route"]
location = "/path"
location_prefix = "https://orders.example"
[credential]
jwt = "/authorization"
[actions]
"GET /orders" = "orders:read"
END
jq -c '{ts: (now | todate), client: "reports", method: "GET", route: "/orders", path: "/v1/42",
  authorization: .credential.access_token}' answer.json > access.jsonl
TASKPASS_HANDLE=$(jq -r .task.handle answer.json) \
  taskpass task complete "$(jq -r .task.id answer.json)""#;
    production("docs/how-to/measure-coverage.md")
        .set_up(access)
        .run()
        .printed(2, "covered: all 1 actions are proven");
}

#[test]
fn run_on_sqlite() {
    production("docs/how-to/run-on-sqlite.md").run();
}

#[test]
fn stolen_attestation() {
    production("docs/how-to/stolen-attestation.md")
        .set_up(KNOWN_REPOSITORY)
        .set_up(REGISTERED_KEY)
        .run();
}

#[test]
fn aws_roles() {
    production("docs/how-to/aws-roles.md")
        .run()
        .printed(1, "sts:AssumeRoleWithWebIdentity");
}

#[test]
fn rotate_a_key() {
    production("docs/how-to/rotate-a-key.md")
        .set_up(REGISTERED_KEY)
        .run();
}

#[test]
fn verify_a_receipt() {
    production("docs/how-to/verify-a-receipt.md")
        .run()
        .printed(1, "decided: permit")
        .printed(1, "logged: yes");
}

#[test]
fn explain_a_decision() {
    production("docs/how-to/explain-a-decision.md").run();
}

#[test]
fn revoke() {
    production("docs/how-to/revoke.md")
        .set_up(KNOWN_REPOSITORY)
        .run();
}

#[test]
fn remove_unused_rights() {
    // With the permit of the set-up, three permits are recorded.
    let requests = "for purpose in second third; do
  attest reports | taskpass request --token-file - --resource orders-api --action orders:read \\
    --task-type nightly-report --purpose \"$purpose\" > request.txt
done";
    production("docs/how-to/remove-unused-rights.md")
        .set_up(requests)
        .run();
}

#[test]
fn deliver_with_exec() {
    let workload = r#"export TASKPASS_WORKLOAD=reports TASKPASS_KEY_FILE=reports.pem
export TASKPASS_AUDIENCE=https://broker.example
unset TASKPASS_TOKEN_FILE
printf '#!/bin/sh\ntest -n "$TASKPASS_ACCESS_TOKEN" && echo reported\n' > report.py
chmod +x report.py"#;
    production("docs/how-to/deliver-with-exec.md")
        .set_up(workload)
        .run()
        .printed(1, "reported\n");
}

#[test]
fn add_a_team() {
    let resource = r#"cat >> taskpass.toml <<'END'
[[resources]]
name = "invoices-api"
kind = "jwt"
owner = "billing"
audience = "https://invoices.example"
actions = ["invoices:read"]
locations = ["https://invoices.example/v1"]
verifiers = ["workload:invoices-server"]
verification = "introspection"
END"#;
    production("docs/how-to/add-a-team.md")
        .set_up(resource)
        .run()
        .printed(1, "github_billing:repo:815 has the role billing");
}

#[test]
fn lost_admin() {
    let alice = "taskpass admins bind workload:alice --role admin
taskpass workloads new-key alice --key-file alice-1.pem --json > alice-1.jwk
taskpass workloads add alice --key-file alice-1.jwk";
    production("docs/how-to/lost-admin.md").set_up(alice).run();
}

#[test]
fn troubleshooting() {
    let token = "taskpass workloads new-key reports --key-file other.pem --json > other.jwk
jq '{keys: [.]}' other.jwk > issuer-keys.json
taskpass workloads assert reports --key-file other.pem --audience https://broker.example > token";
    production("docs/troubleshooting.md")
        .set_up(token)
        .run()
        .printed(1, "holds        signature")
        .printed(2, "healthy");
}
