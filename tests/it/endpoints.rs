//! A generation cannot make the broker send its own secrets anywhere or reach addresses of its
//! network.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::support::fleet::{Fleet, Replica, whole_log};
use crate::support::issuer::Behaviour;
use crate::support::keys::{Algorithm, Key, sign_jwt};
use crate::support::process::Launch;
use crate::support::rig::Kind;
use crate::support::{SOON, until};

/// A server that counts its connections and never answers.
struct Trap {
    address: SocketAddr,
    visits: Arc<AtomicUsize>,
}

impl Trap {
    fn set() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let visits = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&visits);
        std::thread::spawn(move || {
            for _ in listener.incoming() {
                seen.fetch_add(1, Ordering::SeqCst);
            }
        });
        Self { address, visits }
    }

    fn url(&self) -> String {
        format!("http://{}/x", self.address)
    }

    fn visits(&self) -> usize {
        self.visits.load(Ordering::SeqCst)
    }
}

/// A JWT-SVID signed with a key that no issuer publishes.
fn junk_svid() -> String {
    let key = Key::generate(Algorithm::Es256);
    let header = json!({"alg": "ES256", "kid": "junk", "typ": "JWT"});
    let claims = json!({
        "sub": "spiffe://junk.example/agent", "aud": ["https://junk.taskpass.test"],
        "exp": 4_000_000_000_u64,
    });
    sign_jwt(&header, &claims, &key)
}

fn spiffe(bundle: Value) -> Value {
    json!({
        "kind": "spiffe", "name": "junk", "trust_domain": "junk.example",
        "audience": "https://junk.taskpass.test", "bundle": bundle,
    })
}

fn bucket(aws: Value) -> Value {
    let mut role = json!({
        "role_arn": "arn:aws:iam::123456789012:role/reports", "mode": "web_identity",
        "region": "eu-central-1",
    });
    for (name, value) in aws.as_object().unwrap() {
        role[name] = value.clone();
    }
    json!({
        "name": "bucket", "kind": "aws", "owner": "data", "actions": ["s3:Get*"],
        "locations": ["arn:aws:s3:::reports/*"], "aws": role,
    })
}

async fn activate(fleet: &Fleet, replica: &Replica, generation: &Value) -> (u16, String) {
    let answer = replica
        .client
        .post_json(&fleet.admin, "/v1/generations", generation)
        .await;
    (answer.status, answer.text())
}

async fn begin(kind: Kind) -> (Fleet, Replica) {
    Fleet::on(kind).start().await
}

on_both_stores! {
    by reference;

    fn a_generation_that_says_where_to_send_a_secret_is_refused;
}

#[expect(clippy::too_many_lines, reason = "a table")]
async fn a_generation_that_says_where_to_send_a_secret_is_refused(
    (fleet, replica): &(Fleet, Replica),
) {
    let trap = Trap::set();
    let secret = replica.process.dir().join("sealing");
    std::fs::write(&secret, "tpk1_the-sealing-key").unwrap();
    let place = json!({"url": trap.url(), "token_file": secret});
    let good = fleet.generation(replica);
    let names = good["attestors"][0]["discovery"]
        .as_str()
        .unwrap()
        .to_owned();
    let attestor = |change: &dyn Fn(&mut Value)| {
        let mut generation = good.clone();
        change(&mut generation["attestors"][0]);
        generation
    };
    let added = |list: &str, item: Value| {
        let mut generation = good.clone();
        generation[list].as_array_mut().unwrap().push(item);
        generation
    };
    let port = trap.address.port();
    let attacks: Vec<(Value, &str)> = vec![
        // A URL in the generation itself: the generation does not load.
        (added("attestors", spiffe(place.clone())), "attestors"),
        (
            added("attestors", spiffe(json!(trap.url()))),
            "an endpoint's name",
        ),
        (
            attestor(&|own| own["keys_from"] = place.clone()),
            "attestors",
        ),
        (
            attestor(&|own| own["token_review"] = place.clone()),
            "attestors",
        ),
        (
            attestor(&|own| own["discovery"] = place.clone()),
            "attestors",
        ),
        (
            added("resources", bucket(json!({"endpoint": trap.url()}))),
            "an endpoint's name",
        ),
        (
            added("resources", bucket(json!({"endpoint": place}))),
            "resources",
        ),
        (
            added(
                "resources",
                bucket(json!({"revocation": {
                    "role_arn": "arn:aws:iam::123456789012:role/revoker", "endpoint": trap.url(),
                }})),
            ),
            "an endpoint's name",
        ),
        // A generation that lists the replica's endpoints.
        (
            {
                let mut generation = good.clone();
                generation["endpoints"] = json!({"junk": {"url": trap.url(), "use": ["keys"]}});
                generation
            },
            "endpoints",
        ),
        // Endpoints that this replica does not have, or has for another use.
        (
            added("attestors", spiffe(json!("nowhere"))),
            "[endpoints.nowhere]",
        ),
        (
            added("attestors", spiffe(json!(names))),
            "is not for `keys`",
        ),
        (
            added("resources", bucket(json!({"endpoint": names}))),
            "is not for `sts`",
        ),
        (
            added(
                "resources",
                bucket(json!({"revocation": {
                    "role_arn": "arn:aws:iam::123456789012:role/revoker", "endpoint": names,
                }})),
            ),
            "is not for `iam`",
        ),
        // The AWS credentials of the replica's host.
        (
            added("resources", bucket(json!({"mode": "assume_role"}))),
            "[aws.own_credentials]",
        ),
        (
            added(
                "resources",
                bucket(json!({
                    "mode": "assume_role", "region": "cn-north-1",
                    "role_arn": "arn:aws-cn:iam::123456789012:role/reports",
                })),
            ),
            "/resources/1/aws/mode",
        ),
        // Host names hidden in other values.
        (
            added(
                "resources",
                bucket(json!({"region": format!("{}/", trap.address)})),
            ),
            "region",
        ),
        (
            added("resources", bucket(json!({"region": "x.evil.example"}))),
            "region",
        ),
        (
            added("resources", bucket(json!({"region": "cn-north-1"}))),
            "region",
        ),
        (
            attestor(&|own| {
                own["issuer"] = json!(format!("https://127.0.0.1:{port}"));
                own.as_object_mut().unwrap().remove("discovery");
            }),
            "not a public address",
        ),
        (
            attestor(&|own| {
                own["issuer"] = json!(format!("https://localhost:{port}"));
                own.as_object_mut().unwrap().remove("discovery");
            }),
            "not a public address",
        ),
        (
            attestor(&|own| own["issuer"] = json!(format!("http://127.0.0.1:{port}"))),
            "https",
        ),
    ];
    for (generation, says) in attacks {
        let (status, text) = activate(fleet, replica, &generation).await;
        assert_eq!(status, 400, "{says}: {text}");
        assert!(text.contains(says), "{says}: {text}");
        let body = json!({"type": "job"});
        let svid = junk_svid();
        let asked = replica.client.post_json(&svid, "/v1/tasks", &body).await;
        assert_eq!(asked.status, 401, "{says}");
    }
    assert_eq!(trap.visits(), 0);
    replica.ask(&fleet.token()).await.expect(201);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metadata_of_an_issuer_does_not_lead_into_the_hosts_network() {
    for scheme in ["http", "https"] {
        for host in [
            "127.0.0.1",
            "localhost",
            "[::1]",
            "[::ffff:127.0.0.1]",
            "169.254.169.254",
        ] {
            let (fleet, replica) = Fleet::sqlite().start().await;
            let trap = Trap::set();
            let port = trap.address.port();
            let keys = format!("{scheme}://{host}:{port}/jwks");
            fleet
                .issuer
                .discovery(Behaviour::Merge(json!({"jwks_uri": keys})));
            let refused = replica.ask(&fleet.token()).await;
            assert_ne!(refused.status, 201, "{keys}");
            assert_eq!(trap.visits(), 0, "{keys}");
            assert_eq!(fleet.issuer.fetches().jwks, 0, "{keys}");
        }
    }
}

/// The environment of a pod that may exchange its token for AWS credentials. It names `sts` as the
/// URL of STS.
fn pod(sts: &str) -> Vec<(&'static str, String)> {
    let token = std::env::temp_dir().join("taskpass-test-pod-token");
    std::fs::write(&token, "the-token-of-the-host").unwrap();
    vec![
        ("AWS_WEB_IDENTITY_TOKEN_FILE", token.display().to_string()),
        ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/host".into()),
        ("AWS_ENDPOINT_URL_STS", sts.to_owned()),
        // Disable the other sources of credentials.
        ("AWS_EC2_METADATA_DISABLED", "true".into()),
    ]
}

const ASSUMED: &str = r#"
[[resources]]
name = "bucket"
kind = "aws"
owner = "data"
actions = ["s3:Get*"]
locations = ["arn:aws:s3:::reports/*"]
[resources.aws]
role_arn = "arn:aws:iam::123456789012:role/reports"
mode = "assume_role"
region = "eu-central-1"
[[task_types]]
name = "fetch"
max_deadline_seconds = 3600
resources = ["bucket"]
[aws.own_credentials]
region = "eu-central-1"
role_arns = ["arn:aws:iam::123456789012:role/reports"]
"#;

const READS_BUCKET: &str = r#"
@id("bucket") @description("reports reads its bucket")
permit (principal == Workload::dev::"dev:agent%3Areports", action in Action::"s3:Get*", resource == Aws::"bucket");
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_variable_of_the_environment_does_not_lead_the_hosts_token_elsewhere() {
    let trap = Trap::set();
    let (fleet, replica) = Fleet::sqlite()
        .environment(pod(&trap.url()))
        .tables(ASSUMED)
        .more_policies(READS_BUCKET)
        .start()
        .await;
    let body = json!({
        "task": {"type": "fetch"}, "resource": "bucket",
        "authorization_details": [{"type": "aws", "actions": ["s3:GetObject"]}],
    });
    let asked = replica
        .client
        .post_json(&fleet.token(), "/v1/credentials", &body)
        .await;
    assert!(asked.status >= 500, "{}", asked.text());
    let log = format!("{}{}", replica.process.stdout(), replica.process.stderr());
    assert!(log.contains("remove AWS_ENDPOINT_URL"), "{log}");
    assert!(!log.contains("the-token-of-the-host"), "{log}");
    assert_eq!(trap.visits(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_without_own_credentials_is_unready_where_the_generation_needs_them() {
    let (mut fleet, bare) = Fleet::postgres().start().await;
    fleet.add_to_configuration(ASSUMED);
    let full = fleet.replica();
    let generation = fleet.generation(&full);
    let (status, text) = activate(&fleet, &bare, &generation).await;
    assert_eq!(status, 400, "{text}");
    let (status, text) = activate(&fleet, &full, &generation).await;
    assert_eq!(status, 201, "{text}");
    until("the other replica is unready", SOON, async || {
        let answer = bare.client.get("/readyz").await;
        answer.status == 503 && answer.text().contains("[aws.own_credentials]")
    })
    .await;
    assert_eq!(bare.ask(&fleet.token()).await.status, 503);
}

const MESH: &str = "[[attestors]]\nkind = \"spiffe\"\nname = \"mesh\"\n\
    trust_domain = \"prod.acme.example\"\naudience = \"https://broker.test\"\nbundle = \"spire\"\n";
const SPIRE: &str =
    "[endpoints.spire]\nurl = \"https://spire.acme.example/bundle\"\nuse = [\"keys\"]\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_without_an_endpoint_that_a_generation_names_is_unready_and_says_which() {
    let (mut fleet, bare) = Fleet::postgres().start().await;
    fleet.add_to_configuration(&format!("{MESH}{SPIRE}"));
    let full = fleet.replica();
    let generation = fleet.generation(&full);
    let (status, text) = activate(&fleet, &bare, &generation).await;
    assert_eq!(status, 400, "{text}");
    assert!(text.contains("[endpoints.spire]"), "{text}");
    assert!(text.contains("/attestors/1/bundle"), "{text}");

    let (status, text) = activate(&fleet, &full, &generation).await;
    assert_eq!(status, 201, "{text}");
    until("the other replica is unready", SOON, async || {
        let answer = bare.client.get("/readyz").await;
        answer.status == 503 && answer.text().contains("`spire`")
    })
    .await;
    // The replica refuses requests; it does not continue with the earlier generation.
    assert_eq!(bare.ask(&fleet.token()).await.status, 503);
    full.ask(&fleet.token()).await.expect(201);

    // Readiness names the replica with other endpoints, and the endpoints.
    let ready = async || full.client.get("/readyz").await.expect(200);
    until("the difference is seen", SOON, async || {
        ready().await["other_endpoints"][0].is_object()
    })
    .await;
    let ready = ready().await;
    assert_ne!(ready["other_endpoints"][0]["endpoints"], ready["endpoints"]);
    let metrics = full.client.get("/metrics").await.text();
    assert!(
        metrics.contains("taskpass_replicas_with_other_endpoints 1"),
        "{metrics}"
    );

    // The activation's leaf records the meaning of the endpoints' names at the activating replica.
    let (_, leaves) = whole_log(&fleet, &full).await;
    let leaves = leaves
        .iter()
        .map(|leaf| serde_json::from_slice::<Value>(leaf).unwrap());
    let activated = leaves
        .rev()
        .find(|leaf| leaf["event"] == "activated")
        .unwrap();
    assert_eq!(activated["endpoints"], ready["endpoints"]);
}

/// A sealing key for checks, which seal nothing.
const SEALING_KEY: &str = "tpk1_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";

#[test]
fn what_would_be_unfit_here_is_told_before_it_is_activated() {
    let text = Fleet::sqlite().config(crate::support::free_address());
    let named = text.replacen("[[resources]]", &format!("{MESH}[[resources]]"), 1);
    let literal = named.replace(
        "bundle = \"spire\"",
        "bundle = { url = \"https://spire.acme.example/bundle\" }",
    );
    let checks = [&["policy", "check"][..], &["serve", "--check"][..]];
    let run = |arguments: &[&str], config: String| {
        let launch = Launch::taskpass(arguments.to_vec()).config(config);
        let launch = launch.file(
            "policies/admin.cedar",
            include_str!("../../policies/admin.cedar"),
        );
        launch.env("TASKPASS_SEALING_KEYS", SEALING_KEY).run()
    };
    for arguments in checks {
        let unknown = run(arguments, named.clone());
        assert_ne!(unknown.code(), Some(0), "{arguments:?}");
        assert!(
            unknown.stderr.contains("[endpoints.spire]"),
            "{}",
            unknown.stderr
        );
        let unreadable = run(arguments, literal.clone());
        assert_ne!(unreadable.code(), Some(0), "{arguments:?}");
        let told = unreadable.stderr;
        assert!(told.contains("expected a string"), "{told}");
        let good = run(arguments, format!("{named}{SPIRE}"));
        assert_eq!(good.code(), Some(0), "{arguments:?}: {}", good.stderr);
    }
}

/// The database driver also reads its own environment variables, for parts that the URL leaves out.
#[test]
fn a_database_that_the_environment_names_has_to_prove_itself() {
    let text = Fleet::sqlite()
        .config(crate::support::free_address())
        .replace(crate::support::configuration::SQLITE, "kind = \"postgres\"");
    let run = |url: &str, variables: &[(&str, &str)]| {
        let mut launch = Launch::taskpass(["serve", "--check"])
            .config(text.clone())
            .file(
                "policies/admin.cedar",
                include_str!("../../policies/admin.cedar"),
            )
            .env("TASKPASS_SEALING_KEYS", SEALING_KEY)
            .env("TASKPASS_DATABASE_URL", url);
        for (name, value) in variables {
            launch = launch.env(name, value);
        }
        launch.run()
    };
    let local = run("postgres://u:p@localhost/d", &[("PGHOST", "db.example")]);
    assert_eq!(local.code(), Some(0), "{}", local.stderr);
    for (url, variables) in [
        ("postgres:///d", &[("PGHOST", "db.example")][..]),
        ("postgres:///d", &[("PGHOSTADDR", "192.0.2.1")]),
        (
            "postgres:///d",
            &[("PGHOST", "db.example"), ("PGSSLMODE", "require")],
        ),
    ] {
        let refused = run(url, variables);
        assert_eq!(refused.code(), Some(2), "{variables:?}: {}", refused.stdout);
        assert!(
            refused.stderr.contains("without verifying its certificate"),
            "{}",
            refused.stderr
        );
    }
    let proven = run(
        "postgres:///d",
        &[("PGHOST", "db.example"), ("PGSSLMODE", "verify-full")],
    );
    assert_eq!(proven.code(), Some(0), "{}", proven.stderr);
}
