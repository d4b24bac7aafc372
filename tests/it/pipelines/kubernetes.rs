//! Kubernetes: pods are identified by their uids, keys come from the cluster's own API, and
//! `TokenReview` is answered by a small test API server that behaves like the real one.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use axum_server::tls_rustls::RustlsConfig;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::super::support::issuer::Issuer;
use super::super::support::keys::Algorithm;
use super::super::support::server::Server;
use super::{AUDIENCE, World, appraise, instance, issuer_of, load, text};

const ATTESTOR: &str = r#"
[[attestors]]
kind = "oidc"
preset = "kubernetes"
name = "cluster"
issuer = "https://oidc.cluster.example"
audience = "https://broker.example"
single_tenant = true
"#;

const POD: &str = "5e0bd49b-f040-43b0-99b7-22765a53f7f3";
const ACCOUNT: &str = "14ee3fa4-a7e2-420f-9f9a-dbc4507c3798";

/// A projected token as the API server signs it.
fn good() -> Value {
    json!({
        "sub": "system:serviceaccount:jobs:report", "aud": [AUDIENCE],
        "kubernetes.io": {
            "namespace": "jobs",
            "node": {"name": "n1", "uid": "646e7c5e-32d6-4d42-9dbd-e504e6cbe6b1"},
            "pod": {"name": "report-x7", "uid": POD},
            "serviceaccount": {"name": "report", "uid": ACCOUNT},
        },
    })
}

/// The valid token's `kubernetes.io` claim with one member of one part changed.
fn with(part: &str, member: &str, value: Value) -> Value {
    let mut claims = good()["kubernetes.io"].clone();
    claims[part][member] = value;
    json!({"kubernetes.io": claims})
}

#[tokio::test]
async fn a_pod_is_its_service_accounts_uid_and_its_own() {
    let world = World::new(ATTESTOR, good());
    let workload = world.see(json!({})).await.unwrap();
    assert_eq!(workload.identity.as_str(), format!("cluster:sa:{ACCOUNT}"));
    assert_eq!(instance(&workload), Some(POD));
    assert_eq!(workload.claims["namespace"], text("jobs"));
    assert_eq!(workload.claims["service_account_name"], text("report"));
    // A service account with the same name, created again after a deletion.
    let again = with(
        "serviceaccount",
        "uid",
        json!("00000000-a7e2-420f-9f9a-dbc4507c3798"),
    );
    let again = world.see(again).await.unwrap();
    assert_ne!(again.identity, workload.identity);
}

#[tokio::test]
async fn a_token_of_no_pod_or_with_its_ids_elsewhere_is_refused() {
    let flat = json!({
        "kubernetes.io": null, "service_account_uid": ACCOUNT, "pod_uid": POD,
        "namespace": "jobs", "service_account_name": "report", "pod_name": "report-x7",
    });
    let mut no_pod = good()["kubernetes.io"].clone();
    no_pod.as_object_mut().unwrap().remove("pod");
    let cases = [
        (json!({"kubernetes.io": no_pod}), "claim_type"),
        (flat, "claim_type"),
        (with("pod", "uid", json!("")), "claim_type"),
        (with("pod", "uid", json!(7)), "claim_type"),
        (
            with("serviceaccount", "uid", json!([ACCOUNT])),
            "claim_type",
        ),
        (json!({"kubernetes.io": "jobs"}), "claim_type"),
        (
            json!({"kubernetes.io/pod/uid": POD, "kubernetes.io": {}}),
            "claim_type",
        ),
        // A token for the API server itself.
        (
            json!({"aud": ["https://kubernetes.default.svc.cluster.local"]}),
            "wrong_audience",
        ),
        (json!({"aud": [AUDIENCE, "k3s"]}), "wrong_audience"),
    ];
    World::new(ATTESTOR, good()).refuses(&cases).await;
}

/// A test API server with its keys and its reviews.
struct ApiServer {
    server: Server,
    shared: Arc<Shared>,
    directory: TempDir,
}

struct Shared {
    jwks: Mutex<Value>,
    answer: Mutex<Answer>,
    seen: Mutex<Vec<(Option<String>, Value)>>,
}

#[derive(Clone)]
enum Answer {
    Status(Value),
    Code(u16),
    Text(&'static str),
    Large,
    Hang,
}

/// The review of an existing pod's token.
fn vouched() -> Value {
    json!({
        "authenticated": true, "audiences": [AUDIENCE],
        "user": {
            "username": "system:serviceaccount:jobs:report", "uid": ACCOUNT,
            "groups": ["system:serviceaccounts"],
            "extra": {
                "authentication.kubernetes.io/pod-name": ["report-x7"],
                "authentication.kubernetes.io/pod-uid": [POD],
            },
        },
    })
}

impl ApiServer {
    fn url(&self) -> String {
        format!("http://{}", self.server.address)
    }

    fn start(jwks: Value) -> Self {
        let shared = Arc::new(Shared {
            jwks: Mutex::new(jwks),
            answer: Mutex::new(Answer::Status(vouched())),
            seen: Mutex::default(),
        });
        let app = router(Arc::clone(&shared));
        let server = Server::start(app);
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("token"), "first\n").unwrap();
        Self {
            server,
            shared,
            directory,
        }
    }

    fn answers(&self, answer: Answer) {
        *self.shared.answer.lock().unwrap() = answer;
    }

    fn token_file(&self) -> std::path::PathBuf {
        self.directory.path().join("token")
    }

    /// An attestor that uses this server's review.
    fn attestor(&self, extra: &str) -> String {
        format!(
            "{ATTESTOR}token_review = \"review\"\n{extra}[endpoints.review]\nurl = \"{}/review\"\n\
             use = [\"token_review\"]\ntoken_file = \"{}\"\n",
            self.url(),
            self.token_file().display()
        )
    }

    fn seen(&self) -> Vec<(Option<String>, Value)> {
        self.shared.seen.lock().unwrap().clone()
    }
}

fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/openid/v1/jwks", get(jwks_of))
        .route("/review", post(review))
        .with_state(shared)
}

async fn jwks_of(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
) -> axum::response::Response {
    // Require credentials, as a cluster whose discovery is not public.
    if authorization(&headers).as_deref() != Some("Bearer first") {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    Json(shared.jwks.lock().unwrap().clone()).into_response()
}

async fn review(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> axum::response::Response {
    let seen = (authorization(&headers), body);
    shared.seen.lock().unwrap().push(seen.clone());
    let answer = shared.answer.lock().unwrap().clone();
    match answer {
        Answer::Status(status) => {
            let mut answer = seen.1;
            answer["status"] = status;
            (StatusCode::CREATED, Json(answer)).into_response()
        }
        Answer::Code(code) => StatusCode::from_u16(code).unwrap().into_response(),
        Answer::Text(text) => text.into_response(),
        Answer::Large => {
            let mut answer = json!({"status": vouched()});
            answer["padding"] = json!("x".repeat(2 * 1024 * 1024));
            Json(answer).into_response()
        }
        Answer::Hang => std::future::pending().await,
    }
}

fn authorization(headers: &HeaderMap) -> Option<String> {
    let value = headers.get("authorization")?;
    Some(value.to_str().unwrap().to_owned())
}

#[tokio::test]
async fn the_cluster_is_asked_about_our_audience_with_its_current_token() {
    let api = ApiServer::start(json!({}));
    let world = World::new(&api.attestor(""), good());
    let token = world.token(json!({}));
    let workload = world.appraise(&token).await.unwrap();
    assert_eq!(workload.identity.as_str(), format!("cluster:sa:{ACCOUNT}"));
    let (shown, question) = api.seen().remove(0);
    assert_eq!(shown.as_deref(), Some("Bearer first"));
    assert_eq!(question["kind"], "TokenReview");
    assert_eq!(
        question["spec"],
        json!({"token": token, "audiences": [AUDIENCE]})
    );
    // The kubelet replaces the broker's own token while the broker runs.
    std::fs::write(api.token_file(), "second").unwrap();
    world.see(json!({})).await.unwrap();
    assert_eq!(api.seen()[1].0.as_deref(), Some("Bearer second"));
}

#[tokio::test]
async fn a_deleted_pods_token_that_still_verifies_is_refused() {
    let api = ApiServer::start(json!({}));
    let world = World::new(&api.attestor(""), good());
    world.see(json!({})).await.unwrap();
    let gone = json!({"authenticated": false, "error": "pod report-x7 not found"});
    api.answers(Answer::Status(gone));
    let seen = world.see(json!({})).await.map(|w| w.identity);
    assert_eq!(seen, Err("reviewed"));
}

#[tokio::test]
async fn a_review_that_means_anything_else_is_a_refusal() {
    let api = ApiServer::start(json!({}));
    let world = World::new(&api.attestor(""), good());
    let pod = "authentication.kubernetes.io/pod-uid";
    let changes: [(&str, Value); 9] = [
        ("/authenticated", json!(false)),
        // An API server that ignores audiences vouches only for its own tokens.
        ("/audiences", json!([])),
        ("/audiences", json!(["https://kubernetes.default.svc"])),
        ("/user/uid", json!("another")),
        ("/user/uid", json!("")),
        ("/user/extra", json!({})),
        ("/user/extra", json!({pod: ["another"]})),
        ("/user/extra", json!({pod: [POD, "another"]})),
        ("/user", json!({})),
    ];
    for (place, value) in changes {
        let mut status = vouched();
        *status.pointer_mut(place).unwrap() = value.clone();
        api.answers(Answer::Status(status));
        let seen = world.see(json!({})).await.map(|w| w.identity);
        assert_eq!(seen, Err("reviewed"), "{place} {value}");
    }
    api.answers(Answer::Text("{}"));
    assert_eq!(world.see(json!({})).await.unwrap_err(), "reviewed");
    api.answers(Answer::Status(vouched()));
    world.see(json!({})).await.unwrap();
}

#[tokio::test]
async fn a_cluster_that_cannot_be_asked_believes_nobody_and_does_so_in_time() {
    let api = ApiServer::start(json!({}));
    let world = World::new(&api.attestor(""), good());
    for answer in [
        Answer::Code(500),
        Answer::Code(401),
        Answer::Code(302),
        Answer::Text("<html>"),
        Answer::Large,
        Answer::Hang,
    ] {
        api.answers(answer);
        let asked = tokio::time::timeout(Duration::from_secs(30), world.see(json!({})));
        let seen = asked.await.expect("an answer in time").map(|w| w.identity);
        assert_eq!(seen, Err("review_unreachable"));
    }
    api.answers(Answer::Status(vouched()));
    std::fs::remove_file(api.token_file()).unwrap();
    let seen = world.see(json!({})).await.map(|w| w.identity);
    assert_eq!(seen, Err("review_unreachable"));
}

#[tokio::test]
async fn the_cluster_is_shown_only_what_its_keys_signed_for_us() {
    let api = ApiServer::start(json!({}));
    let world = World::new(&api.attestor(""), good());
    let stranger = Issuer::start_with(Algorithm::Es256);
    let claims = world.issuer.claims(world.claims(&json!({})));
    let key = stranger.key();
    let forged = stranger.token_with(&key.header(), &claims, &key);
    world.appraise(&forged).await.unwrap_err();
    for over in [json!({"aud": "else"}), with("pod", "uid", json!(null))] {
        world.see(over).await.unwrap_err();
    }
    assert!(api.seen().is_empty());
}

#[tokio::test]
async fn clusters_that_call_themselves_the_same_are_told_apart_by_keys_and_audience() {
    let same = "https://kubernetes.default.svc";
    let bare = ATTESTOR.replace(issuer_of(ATTESTOR), same);
    assert!(load(&bare).unwrap_err().contains("keys_from"));
    let issuers = [Algorithm::Rs256, Algorithm::Es256].map(Issuer::start_with);
    let mut servers = Vec::new();
    let mut both = String::new();
    for (n, issuer) in issuers.iter().enumerate() {
        let server = ApiServer::start(json!({"keys": [issuer.key().jwk()]}));
        both += &ATTESTOR
            .replace(issuer_of(ATTESTOR), same)
            .replace("\"cluster\"", &format!("\"cluster{n}\""))
            .replace(AUDIENCE, &format!("{AUDIENCE}/{n}"));
        let keys = format!("{}/openid/v1/jwks", server.url());
        let token_file = server.token_file();
        writeln!(
            both,
            "keys_from = \"keys{n}\"\n[endpoints.keys{n}]\nurl = {keys:?}\nuse = [\"keys\"]\n\
             token_file = {token_file:?}"
        )
        .unwrap();
        servers.push(server);
    }
    let attestors = load(&both).unwrap();
    for (n, issuer) in issuers.iter().enumerate() {
        let token = |audience: usize| {
            let mut claims = good();
            claims["iss"] = json!(same);
            claims["aud"] = json!(format!("{AUDIENCE}/{audience}"));
            issuer.token(claims)
        };
        let workload = appraise(&attestors, &token(n)).await.unwrap();
        assert_eq!(
            workload.identity.as_str(),
            format!("cluster{n}:sa:{ACCOUNT}")
        );
        // One cluster's token under the other cluster's audience.
        let crossed = appraise(&attestors, &token(1 - n)).await.unwrap_err();
        assert!(
            ["unknown_key", "wrong_algorithm"].contains(&crossed),
            "{crossed}"
        );
    }
}

#[tokio::test]
async fn a_cluster_with_a_certificate_of_its_own_is_believed_by_its_own_authority_alone() {
    let api = ApiServer::start(json!({}));
    let (address, right) = tls_server(Arc::clone(&api.shared)).await;
    let other = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let ca_file = api.directory.path().join("ca.pem");
    let attestor = format!(
        "{ATTESTOR}token_review = \"review\"\n[endpoints.review]\nurl = \"https://{address}/review\"\n\
         use = [\"token_review\"]\nca_file = \"{}\"\n",
        ca_file.display()
    );
    let world = World::new(&attestor, good());
    let seen = async || world.see(json!({})).await.map(|_| ());
    assert_eq!(seen().await, Err("review_unreachable"), "no file");
    std::fs::write(&ca_file, other.cert.pem()).unwrap();
    assert_eq!(seen().await, Err("review_unreachable"), "another authority");
    std::fs::write(&ca_file, "no certificate").unwrap();
    assert_eq!(seen().await, Err("review_unreachable"), "no certificate");
    // The authority is replaced while the broker runs.
    std::fs::write(&ca_file, &right).unwrap();
    assert_eq!(seen().await, Ok(()));
}

/// Serves reviews over TLS with a new certificate. Returns its address and certificate.
async fn tls_server(shared: Arc<Shared>) -> (std::net::SocketAddr, String) {
    drop(rustls::crypto::ring::default_provider().install_default());
    let own = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let (pem, key) = (own.cert.pem(), own.signing_key.serialize_pem());
    let tls = RustlsConfig::from_pem(pem.clone().into(), key.into())
        .await
        .unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let server = axum_server::from_tcp_rustls(listener, tls).unwrap();
    tokio::spawn(server.serve(router(shared).into_make_service()));
    (address, pem)
}
