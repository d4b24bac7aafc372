//! Protection against lock-out: a bound identity, or the bootstrap token, can always activate the
//! next generation.

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use serde_json::{Value, json};

use crate::support::fleet::{Fleet, Replica, body};
use crate::support::http::{Answer, assert_problem, send};
use crate::support::issuer::unix_seconds;
use crate::support::keys::{Algorithm, Key, base64url, sign_jwt};
use crate::support::process::Launch;
use crate::support::random_hex;
use crate::support::rig::{Kind, POLICIES};

/// The broker's issuer URL. The broker listens at another address in each test.
const BROKER: &str = "http://127.0.0.1:7070";

const ADMIN: &str = r#"
@id("admin") @description("admins read, activate and bind")
permit (principal in Role::"admin", action in [Action::"activateGeneration",
  Action::"readGeneration", Action::"manageAdmins", Action::"manageWorkloads",
  Action::"revokeMany"], resource == Broker::"taskpass");
"#;

const REGISTRAR: &str = r#"
@id("registrar") @description("the bootstrap token registers keys")
permit (principal == Bootstrap::"token", action == Action::"manageWorkloads",
  resource == Broker::"taskpass");
"#;

const BY_CLAIM: &str = r#"
@id("admin") @description("admins activate if their claim says so")
permit (principal is Workload::dev in Role::"admin", action == Action::"activateGeneration",
  resource == Broker::"taskpass") when { principal.claims.sub == "alice" };
"#;

const FROZEN: &str = r#"
@id("freeze") @description("no workload changes what decides")
forbid (principal is Workload::dev, action == Action::"activateGeneration",
  resource == Broker::"taskpass");
"#;

const OTHER_ROLE: &str = r#"
@id("operator") @description("operators activate")
permit (principal in Role::"operator", action == Action::"activateGeneration",
  resource == Broker::"taskpass");
"#;

async fn begin(kind: Kind) -> (Fleet, Replica) {
    Fleet::on(kind).more_policies(ADMIN).start().await
}

/// An attestation of the admin.
fn alice(fleet: &Fleet) -> String {
    let claims = json!({"sub": "alice", "run": random_hex(8)});
    fleet.issuer.token(claims)
}

/// The active generation with other policies.
fn with(good: &Value, policies: &[&str]) -> Value {
    let mut generation = good.clone();
    generation["policies"] = json!([{"name": "fleet.cedar", "text": policies.concat()}]);
    generation
}

async fn activate(replica: &Replica, token: &str, generation: &Value) -> Answer {
    let client = &replica.client;
    client.post_json(token, "/v1/generations", generation).await
}

async fn check(replica: &Replica, token: &str, generation: &Value) -> Answer {
    let client = &replica.client;
    client
        .post_json(token, "/v1/generations/check", generation)
        .await
}

async fn bind(fleet: &Fleet, replica: &Replica, workload: &str) {
    let body = json!({"workload": workload, "role": "admin"});
    let bound = replica.client.post_json(&fleet.admin, "/v1/admins", &body);
    assert_eq!(bound.await.status, 204);
}

on_both_stores! {
    by reference;

    fn a_bundle_by_which_no_bound_admin_could_activate_the_next_is_refused;
    fn an_admin_who_is_kept_out_is_no_successor;
    fn the_last_admin_who_could_activate_is_not_blocked_until_lifted;
    fn the_bootstrap_token_activates_and_binds_whatever_policies_say;
}

async fn a_bundle_by_which_no_bound_admin_could_activate_the_next_is_refused(
    (fleet, replica): &(Fleet, Replica),
) {
    let good = fleet.generation(replica);
    bind(fleet, replica, "dev:alice").await;
    let locking = [
        with(&good, &[POLICIES]),
        with(&good, &[POLICIES, BY_CLAIM]),
        with(&good, &[POLICIES, OTHER_ROLE]),
        with(&good, &[POLICIES, ADMIN, FROZEN]),
    ];
    for generation in &locking {
        for token in [alice(fleet), fleet.admin.clone()] {
            let refused = activate(replica, &token, generation).await;
            assert_eq!(refused.status, 400, "{}", refused.text());
            assert!(
                refused.text().contains("none of the 1 bound"),
                "{}",
                refused.text()
            );
        }
        let refused = check(replica, &alice(fleet), generation).await;
        assert_eq!(refused.status, 400, "{}", refused.text());
    }
    // The admin's rights are unchanged, and the refused bundle had no effect.
    let active = replica
        .client
        .get_as(&alice(fleet), "/v1/generations/active")
        .await;
    let active = active.expect(200);
    let checked = check(replica, &alice(fleet), &good).await.expect(200);
    assert_eq!(
        (&checked["bound_identities"], &checked["able_to_activate"]),
        (&json!(1), &json!(1))
    );
    assert_eq!(checked["generation"], active["digest"]);
    // A permit that needs a claim may be added to one that needs none.
    let wider = BY_CLAIM.replace("\"admin\")", "\"by-claim\")");
    let wider = with(&good, &[POLICIES, ADMIN, &wider]);
    activate(replica, &alice(fleet), &wider).await.expect(201);
    activate(replica, &alice(fleet), &good).await.expect(201);
    // A caller without the right to read generations learns nothing.
    let stranger = fleet.token();
    assert_eq!(check(replica, &stranger, &good).await.status, 403);
}

async fn an_admin_who_is_kept_out_is_no_successor((fleet, replica): &(Fleet, Replica)) {
    let good = fleet.generation(replica);
    bind(fleet, replica, "dev:alice").await;
    bind(fleet, replica, "dev:bob").await;
    let block = |workload: &str| {
        json!({
            "selector": {"workload": workload}, "block_seconds": "until_lifted", "reason": "lost laptop",
        })
    };
    let bob = block("dev:bob");
    let revoked = replica
        .client
        .post_json(&fleet.admin, "/v1/revocations", &bob);
    revoked.await.expect(200);
    let checked = check(replica, &alice(fleet), &good).await.expect(200);
    assert_eq!(
        (&checked["bound_identities"], &checked["able_to_activate"]),
        (&json!(2), &json!(1))
    );
    // The blocked admin is no successor, so an admin may not unbind the other one.
    let body = json!({"workload": "dev:alice", "role": "admin"});
    let client = &replica.client;
    let unbind = client
        .request(reqwest::Method::DELETE, "/v1/admins")
        .bearer_auth(&fleet.admin)
        .json(&body);
    assert_eq!(
        send(unbind).await.status,
        204,
        "the bootstrap token may unbind"
    );
    let refused = activate(replica, &fleet.admin, &good).await;
    assert_eq!(refused.status, 400, "{}", refused.text());
}

async fn the_last_admin_who_could_activate_is_not_blocked_until_lifted(
    (fleet, replica): &(Fleet, Replica),
) {
    let revoke = |token: &str, workload: &str, seconds: Value| {
        let body = json!({
            "selector": {"workload": workload}, "block_seconds": seconds, "reason": "a slip",
            "allow_unknown": true,
        });
        let (token, client) = (token.to_owned(), replica.client.clone());
        async move { client.post_json(&token, "/v1/revocations", &body).await }
    };
    let forever = || json!("until_lifted");
    bind(fleet, replica, "dev:alice").await;
    for long in [forever(), json!(3_601)] {
        let refused = revoke(&alice(fleet), "dev:alice", long).await;
        assert_problem(&refused, 409, "last-admin");
    }
    // She may block others, and herself once another admin exists.
    revoke(&alice(fleet), "dev:mallory", forever())
        .await
        .expect(200);
    bind(fleet, replica, "dev:bob").await;
    revoke(&alice(fleet), "dev:alice", forever())
        .await
        .expect(200);
    assert_problem(
        &revoke(&alice(fleet), "dev:bob", forever()).await,
        403,
        "blocked",
    );
    // A block of at most an hour is permitted, and so is one by the bootstrap token.
    let claims = json!({"sub": "bob", "run": random_hex(8)});
    revoke(&fleet.issuer.token(claims), "dev:bob", json!(1))
        .await
        .expect(200);
    revoke(&fleet.admin, "dev:bob", forever()).await.expect(200);
}

async fn the_bootstrap_token_activates_and_binds_whatever_policies_say(
    (fleet, replica): &(Fleet, Replica),
) {
    let good = fleet.generation(replica);
    let bare = with(&good, &[POLICIES]);
    // With no bound identity it may activate any bundle, because it can still bind an admin.
    activate(replica, &fleet.admin, &bare).await.expect(201);
    let reads = replica
        .client
        .get_as(&fleet.admin, "/v1/generations/active")
        .await;
    assert_eq!(reads.status, 403, "no policy permits it anything");
    replica
        .client
        .get_as(&fleet.admin, "/v1/admins")
        .await
        .expect(200);
    // Binding a role that no policy names is refused, because it would give no rights.
    let early = json!({"workload": "dev:alice", "role": "admin"});
    let early = replica
        .client
        .post_json(&fleet.admin, "/v1/admins", &early)
        .await;
    assert_eq!(early.status, 400, "{}", early.text());
    assert!(
        early
            .text()
            .contains("no policy of the active generation names"),
        "{}",
        early.text()
    );
    activate(replica, &fleet.admin, &good).await.expect(201);
    bind(fleet, replica, "dev:alice").await;
    // A bound admin could activate nothing under the bare bundle.
    assert_eq!(activate(replica, &fleet.admin, &bare).await.status, 400);
    activate(replica, &fleet.admin, &good).await.expect(201);
    activate(replica, &alice(fleet), &good).await.expect(201);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn before_anything_is_activated_callers_are_told_so_and_what_to_do() {
    let fleet = Fleet::postgres();
    let replica = fleet.launch();
    let token = fleet.token();
    let client = &replica.client;
    let asked = client.post_json(&token, "/v1/credentials", &body()).await;
    let bound = json!({"workload": "dev:alice", "role": "admin"});
    let bound = client.post_json(&fleet.admin, "/v1/admins", &bound).await;
    for answer in [asked, bound] {
        let problem = assert_problem(&answer, 503, "no-generation");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains("taskpass policy activate"), "{detail}");
    }
    let told = Launch::taskpass(["sessions", "list", "--url"])
        .arg(format!("http://{}", replica.address))
        .env("TASKPASS_TOKEN", &fleet.admin)
        .run();
    assert_eq!(told.code(), Some(3), "{}", told.stdout);
    assert!(
        told.stderr.contains("no generation is active"),
        "{}",
        told.stderr
    );
    // The broker has not read the attestation, so it is unused and accepted after the activation.
    let generation = fleet.generation(&replica);
    activate(&replica, &fleet.admin, &generation)
        .await
        .expect(201);
    client
        .post_json(&token, "/v1/credentials", &body())
        .await
        .expect(201);
}

/// The identity provider is down.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_admin_by_a_key_file_acts_without_any_identity_provider() {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let point = key.public_key_raw();
    let keys = format!(
        "[[attestors]]\nkind = \"key\"\nname = \"operator\"\nkeys = [{{ workload = \"oncall\", \
         jwk = {{ kty = \"EC\", crv = \"P-256\", x = \"{}\", y = \"{}\" }} }}]\n",
        base64url(&point[1..33]),
        base64url(&point[33..65]),
    );
    let (fleet, replica) = Fleet::sqlite()
        .tables(&keys)
        .more_policies(ADMIN)
        .start()
        .await;
    bind(&fleet, &replica, "operator:oncall").await;
    fleet.issuer.go_down();
    let assert = || {
        let made = Launch::taskpass(["workloads", "assert", "oncall", "--key-file", "key.pem"])
            .arg("--audience")
            .arg("http://127.0.0.1:7070")
            .file("key.pem", key.serialize_pem())
            .run();
        assert_eq!(made.code(), Some(0), "{}", made.stderr);
        made.stdout.trim().to_owned()
    };
    let good = fleet.generation(&replica);
    activate(&replica, &assert(), &good).await.expect(201);
    let locking = with(&good, &[POLICIES]);
    assert_eq!(activate(&replica, &assert(), &locking).await.status, 400);
    // A generation that removes the admin's key is refused too.
    let mut keyless = good.clone();
    for attestor in keyless["attestors"].as_array_mut().unwrap() {
        if attestor["name"] == "operator" {
            attestor["keys"] = json!([]);
        }
    }
    assert_ne!(keyless, good);
    for token in [assert(), fleet.admin.clone()] {
        let refused = activate(&replica, &token, &keyless).await;
        assert_eq!(refused.status, 400, "{}", refused.text());
        assert!(
            refused.text().contains("none of the 1 bound"),
            "{}",
            refused.text()
        );
    }
    let token = assert();
    activate(&replica, &token, &good).await.expect(201);
    assert_eq!(
        activate(&replica, &token, &good).await.status,
        401,
        "each once"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_admin_who_could_activate_keeps_its_key() {
    let keys = "[[attestors]]\nkind = \"key\"\nname = \"operator\"\n";
    let policies = format!("{ADMIN}{REGISTRAR}");
    let (fleet, replica) = Fleet::sqlite()
        .tables(keys)
        .more_policies(&policies)
        .start()
        .await;
    let (first, second) = (
        Key::generate(Algorithm::Es256),
        Key::generate(Algorithm::Es256),
    );
    let register = async |key: &Key| {
        let body = json!({"attestor": "operator", "workload": "oncall", "jwk": key.jwk()});
        let client = &replica.client;
        let added = client.post_json(&fleet.admin, "/v1/workloads", &body).await;
        added.expect(201)["thumbprint"].as_str().unwrap().to_owned()
    };
    let remove = async |by: String, thumbprint: &str| {
        let body = json!({
            "attestor": "operator", "workload": "oncall", "thumbprint": thumbprint,
        });
        let client = &replica.client;
        let remove = client.request(reqwest::Method::DELETE, "/v1/workloads");
        send(remove.bearer_auth(by).json(&body)).await
    };
    let first_thumbprint = register(&first).await;
    bind(&fleet, &replica, "operator:oncall").await;
    let refused = remove(assertion(&first), &first_thumbprint).await;
    assert_problem(&refused, 409, "last-admin");
    let second_thumbprint = register(&second).await;
    let removed = remove(assertion(&first), &first_thumbprint).await;
    assert_eq!(removed.status, 204, "{}", removed.text());
    let refused = remove(assertion(&second), &second_thumbprint).await;
    assert_problem(&refused, 409, "last-admin");
    let removed = remove(fleet.admin.clone(), &second_thumbprint).await;
    assert_eq!(
        removed.status,
        204,
        "the bootstrap token may activate: {}",
        removed.text()
    );
}

/// A client assertion of the workload `oncall`.
fn assertion(key: &Key) -> String {
    let now = unix_seconds();
    let mut header = key.header();
    header["typ"] = json!("client-authentication+jwt");
    let claims = json!({
        "iss": "oncall", "sub": "oncall", "aud": BROKER, "jti": random_hex(16),
        "iat": now, "exp": now + 120,
    });
    sign_jwt(&header, &claims, key)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policy_check_asks_the_bindings_of_a_broker_and_says_when_it_did_not() {
    let (fleet, replica) = begin(Kind::Sqlite).await;
    bind(&fleet, &replica, "dev:alice").await;
    let directory = replica.process.dir();
    let config = directory.join("taskpass.toml").display().to_string();
    let url = format!("http://{}", replica.address);
    let run = |policies: &str, arguments: &[&str]| {
        Launch::taskpass(["policy", "check", "policies", "--config", &config])
            .file("policies/fleet.cedar", policies)
            .env("TASKPASS_TOKEN", &fleet.admin)
            .arguments(arguments)
            .run()
    };
    let good = fleet.policies_text();
    let offline = run(good, &[]);
    assert_eq!(offline.code(), Some(0), "{}", offline.stderr);
    assert!(offline.stdout.contains("not checked"), "{}", offline.stdout);
    let asked = run(good, &["--url", &url]);
    assert_eq!(asked.code(), Some(0), "{}", asked.stderr);
    let says = "1 of 1 bound identities could activate the next generation";
    assert!(asked.stdout.contains(says), "{}", asked.stdout);
    assert!(!asked.stdout.contains("not checked"), "{}", asked.stdout);
    let told = run(good, &["--url", &url, "--json"]);
    let told: Value = serde_json::from_str(&told.stdout).unwrap();
    assert_eq!(
        (&told["bound_identities"], &told["able_to_activate"]),
        (&json!(1), &json!(1))
    );
    let locking = good.replace(ADMIN, "");
    assert_eq!(
        run(&locking, &[]).code(),
        Some(0),
        "offline the bound identities are unknown"
    );
    let refused = run(&locking, &["--url", &url]);
    assert_eq!(refused.code(), Some(2), "{}", refused.stdout);
    assert!(
        refused.stderr.contains("none of the 1 bound"),
        "{}",
        refused.stderr
    );
}
