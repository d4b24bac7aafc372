//! `taskpass exec` in a pod: it requests a token for each task from the API server, or uses the
//! projected one.
//!
//! The test plays the API server, over TLS. It refuses the `TokenRequest`s that the real server
//! would refuse.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use axum_server::tls_rustls::RustlsConfig;
use serde_json::{Value, json};

use crate::support::fleet::{Fleet, Replica};
use crate::support::http::install_crypto_provider;
use crate::support::issuer::{Issuer, unix_seconds};
use crate::support::keys::Algorithm;
use crate::support::process::Ended;
use crate::support::random_hex;
use crate::support::tls::Identity;

const AUDIENCE: &str = "https://broker.example";
const ISSUER: &str = "https://oidc.cluster.example";
const ACCOUNT: &str = "14ee3fa4-a7e2-420f-9f9a-dbc4507c3798";
const POD: &str = "5e0bd49b-f040-43b0-99b7-22765a53f7f3";

const POLICY: &str = r#"
@id("report-open") @description("opens")
permit (principal == Workload::cluster::"cluster:sa:14ee3fa4-a7e2-420f-9f9a-dbc4507c3798",
  action == Action::"openTask", resource);
@id("report-read") @description("reads") @max_ttl("600")
permit (principal == Workload::cluster::"cluster:sa:14ee3fa4-a7e2-420f-9f9a-dbc4507c3798",
  action == Action::"orders:read", resource);
"#;

fn attestor(issuer: &Issuer) -> String {
    issuer.add_key(Algorithm::Rs256);
    format!(
        "\n[[attestors]]\nkind = \"oidc\"\npreset = \"kubernetes\"\nname = \"cluster\"\n\
         issuer = \"{ISSUER}\"\naudience = \"{AUDIENCE}\"\nsingle_tenant = true\nkeys_from = \"cluster-keys\"\n\
         [endpoints.cluster-keys]\nurl = \"{}/jwks\"\nuse = [\"keys\"]\n",
        issuer.base()
    )
}

/// A token of the service account, bound to the pod, for this audience.
fn token(fleet: &Fleet, audience: &str) -> String {
    let now = unix_seconds();
    fleet.issuer.token(json!({
        "iss": ISSUER, "aud": [audience], "iat": now, "exp": now + 600, "jti": random_hex(16),
        "sub": "system:serviceaccount:jobs:report",
        "kubernetes.io": {
            "namespace": "jobs",
            "node": {"name": "n1", "uid": "646e7c5e-32d6-4d42-9dbd-e504e6cbe6b1"},
            "pod": {"name": "report-x7", "uid": POD},
            "serviceaccount": {"name": "report", "uid": ACCOUNT},
        },
    }))
}

/// The state of the API server.
struct Api {
    fleet: Fleet,
    /// The pod's token for the API server itself.
    own: String,
    permits: AtomicBool,
    /// The status of the next answer; `None` for a successful one.
    fails: Mutex<Option<u16>>,
    asked: Mutex<Vec<Value>>,
}

async fn request_token(
    State(api): State<Arc<Api>>,
    Path((namespace, account)): Path<(String, String)>,
    headers: HeaderMap,
    Json(request): Json<Value>,
) -> Response {
    let refused = |status: u16, message: &str| {
        let status = StatusCode::from_u16(status).unwrap();
        let body = json!({"kind": "Status", "code": status.as_u16(), "message": message});
        (status, Json(body)).into_response()
    };
    if let Some(status) = api.fails.lock().unwrap().take() {
        return refused(status, "not now");
    }
    if headers["authorization"] != format!("Bearer {}", api.own) {
        return refused(401, "Unauthorized");
    }
    if (namespace.as_str(), account.as_str()) != ("jobs", "report") {
        return refused(404, "no such service account");
    }
    api.asked.lock().unwrap().push(request.clone());
    if !api.permits.load(Ordering::SeqCst) {
        return refused(
            403,
            "serviceaccounts \"report\" is forbidden: cannot create",
        );
    }
    let spec = &request["spec"];
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "name": "report-x7", "uid": POD});
    let life = spec["expirationSeconds"].as_i64().unwrap();
    if request["kind"] != "TokenRequest" || life < 600 || spec["boundObjectRef"] != pod {
        return refused(422, "invalid");
    }
    let audience = spec["audiences"][0].as_str().unwrap();
    let mut answer = request.clone();
    answer["status"] = json!({"token": token(&api.fleet, audience)});
    (StatusCode::CREATED, Json(answer)).into_response()
}

struct World {
    api: Arc<Api>,
    replica: Replica,
    port: u16,
    authority: String,
}

impl World {
    async fn new() -> Self {
        install_crypto_provider();
        let (fleet, replica) = Fleet::sqlite()
            .attestors(attestor)
            .more_policies(POLICY)
            .start()
            .await;
        let own = token(&fleet, "https://kubernetes.default.svc");
        let api = Arc::new(Api {
            fleet,
            own,
            permits: AtomicBool::new(true),
            fails: Mutex::default(),
            asked: Mutex::default(),
        });
        let identity = Identity::server();
        let pem = identity.pem.clone().into_bytes();
        let tls = RustlsConfig::from_pem(pem, identity.key_pem.clone().into_bytes());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let path = "/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token";
        let app = Router::new()
            .route(path, post(request_token))
            .with_state(Arc::clone(&api));
        let server = axum_server::from_tcp_rustls(listener, tls.await.unwrap()).unwrap();
        tokio::spawn(server.serve(app.into_make_service()));
        Self {
            api,
            replica,
            port,
            authority: identity.pem,
        }
    }

    /// Runs `exec` in a pod that has only these tokens.
    fn exec(&self, own: &str, authority: &str) -> Ended {
        let options = ["--audience", AUDIENCE, "--retry-seconds", "1"];
        self.replica
            .exec(&options, &["echo", "ran"])
            .file("account/token", own)
            .file("account/ca.crt", authority)
            .env("TASKPASS_SERVICE_ACCOUNT_DIR", "account")
            .env("KUBERNETES_SERVICE_HOST", "127.0.0.1")
            .env("KUBERNETES_SERVICE_PORT", self.port.to_string())
            .run()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_exec_of_a_pod_has_a_token_of_its_own_from_the_api_server() {
    let world = World::new().await;
    for _ in 0..3 {
        let ran = world.exec(&world.api.own, &world.authority);
        assert_eq!(
            (ran.code(), ran.stdout.as_str()),
            (Some(0), "ran\n"),
            "{}",
            ran.stderr
        );
    }
    let asked = world.api.asked.lock().unwrap();
    assert_eq!(asked.len(), 3);
    for request in asked.iter() {
        assert_eq!(
            request["spec"]["audiences"],
            json!([AUDIENCE]),
            "the token's only audience is the broker"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_may_not_request_tokens_is_told_which_right_it_lacks() {
    let world = World::new().await;
    world.api.permits.store(false, Ordering::SeqCst);
    let refused = world.exec(&world.api.own, &world.authority);
    assert_eq!((refused.code(), refused.stdout.as_str()), (Some(3), ""));
    for says in [
        "jobs/report",
        "is forbidden",
        "`serviceaccounts/token` named `report`",
    ] {
        assert!(refused.stderr.contains(says), "{}", refused.stderr);
    }
    let broken = world.exec("no-token", &world.authority);
    assert_eq!(broken.code(), Some(2), "{}", broken.stderr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_server_that_fails_for_a_moment_is_asked_again() {
    let world = World::new().await;
    for status in [401, 500, 503] {
        *world.api.fails.lock().unwrap() = Some(status);
        let ran = world.exec(&world.api.own, &world.authority);
        assert_eq!(
            (ran.code(), ran.stdout.as_str()),
            (Some(0), "ran\n"),
            "{status}: {}",
            ran.stderr
        );
        assert!(world.api.fails.lock().unwrap().is_none());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pods_own_token_is_sent_to_no_server_but_the_clusters() {
    let world = World::new().await;
    let other = Identity::server().pem;
    let refused = world.exec(&world.api.own, &other);
    assert_eq!((refused.code(), refused.stdout.as_str()), (Some(3), ""));
    assert!(world.api.asked.lock().unwrap().is_empty());
    let none = world.exec(&world.api.own, "no certificate");
    assert_eq!(
        (none.code(), none.stdout.as_str()),
        (Some(3), ""),
        "{}",
        none.stderr
    );
    assert!(world.api.asked.lock().unwrap().is_empty());
}
