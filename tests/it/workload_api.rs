//! `taskpass exec` with SPIFFE's Workload API: a JWT-SVID becomes a credential.
//!
//! A test gRPC server on a real socket plays the API. It shares no code with the client: it reads
//! and writes frames, messages and metadata by hand, as the standards define them.

use std::path::Path;
use std::sync::{Arc, Mutex};

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http_body_util::{BodyExt as _, Full};
use serde_json::json;
use tempfile::TempDir;
use tokio::net::{TcpListener, UnixListener};

use crate::support::fleet::{Fleet, Replica};
use crate::support::issuer::{AUDIENCE, unix_seconds};
use crate::support::keys::{Algorithm, Key, sign_jwt};
use crate::support::process::Ended;
use crate::support::random_hex;

const ID: &str = "spiffe://prod.acme.example/ns/jobs/sa/report";

const POLICY: &str = r#"
@id("mesh-open") @description("opens")
permit (principal == Workload::mesh::"mesh:ns/jobs/sa/report", action == Action::"openTask", resource);
@id("mesh-read") @description("reads") @max_ttl("600")
permit (principal == Workload::mesh::"mesh:ns/jobs/sa/report", action == Action::"orders:read", resource);
"#;

/// The state of the API: its requests and its behaviour.
#[derive(Default)]
struct Api {
    key: Option<Key>,
    /// The audiences of each request.
    asked: Mutex<Vec<Vec<String>>>,
    /// The gRPC status code of a refusal; `None` to grant.
    refuses: Mutex<Option<u16>>,
}

/// The values of field `number` in a message that has only text fields.
fn texts(mut message: &[u8], number: u8) -> Vec<String> {
    let mut found = Vec::new();
    while let [tag, length, rest @ ..] = message {
        assert!(*length < 128, "the parser handles only lengths below 128");
        let (value, next) = rest.split_at(usize::from(*length));
        if *tag == number << 3 | 2 {
            found.push(String::from_utf8(value.to_vec()).unwrap());
        }
        message = next;
    }
    found
}

/// A bytes field in the encoding of protocol buffers.
fn field(number: u8, value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2];
    let mut length = value.len();
    while length >= 0x80 {
        bytes.push(u8::try_from(length & 0x7f).unwrap() | 0x80);
        length >>= 7;
    }
    bytes.push(u8::try_from(length).unwrap());
    bytes.extend_from_slice(value);
    bytes
}

fn status(code: u16) -> HeaderMap {
    HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from(code))])
}

fn answer(body: Body, headers: HeaderMap) -> Response<Body> {
    let mut answer = Response::new(body);
    *answer.headers_mut() = headers;
    let kind = HeaderValue::from_static("application/grpc");
    answer.headers_mut().insert("content-type", kind);
    answer
}

async fn fetch_jwt_svid(State(api): State<Arc<Api>>, request: Request) -> Response<Body> {
    // The standard requires this header, which protects against forwarded requests.
    let security = request.headers().get("workload.spiffe.io");
    if security.is_none_or(|value| value != "true") {
        return answer(Body::empty(), status(3));
    }
    if let Some(code) = *api.refuses.lock().unwrap() {
        return answer(Body::empty(), status(code));
    }
    let frame = to_bytes(request.into_body(), 4_096).await.unwrap();
    assert_eq!(frame[0], 0, "not compressed");
    let audiences = texts(&frame[5..], 1);
    let now = unix_seconds();
    // A random id makes two SVIDs of the same second different, because each can be used once.
    let jti = random_hex(8);
    let claims = json!({"sub": ID, "aud": audiences, "iat": now, "exp": now + 300, "jti": jti});
    api.asked.lock().unwrap().push(audiences);
    let key = api.key.as_ref().unwrap();
    let header = json!({"alg": key.algorithm.name(), "kid": key.kid, "typ": "JWT"});
    let token = sign_jwt(&header, &claims, key);
    let svid = [field(1, ID.as_bytes()), field(2, token.as_bytes())].concat();
    let message = field(1, &svid);
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    let framed = Bytes::from([&[0][..], &length, &message].concat());
    let trailers = async { Some(Ok(status(0))) };
    let body = Full::new(framed).with_trailers(trailers);
    answer(Body::new(body), HeaderMap::new())
}

struct World {
    api: Arc<Api>,
    directory: TempDir,
    tcp: u16,
    fleet: Fleet,
    replica: Replica,
}

impl World {
    async fn new() -> Self {
        let key = Key::generate(Algorithm::Es256);
        let mut jwk = key.jwk();
        jwk["use"] = json!("jwt-svid");
        let bundle = json!({"keys": [jwk], "spiffe_sequence": 1});
        let api = Arc::new(Api {
            key: Some(key),
            ..Api::default()
        });
        let service = Router::new()
            .route("/SpiffeWorkloadAPI/FetchJWTSVID", post(fetch_jwt_svid))
            .with_state(Arc::clone(&api));
        let directory = TempDir::new().unwrap();
        let socket = UnixListener::bind(directory.path().join("api.sock")).unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = tcp.local_addr().unwrap().port();
        tokio::spawn(axum::serve(socket, service.clone()).into_future());
        tokio::spawn(axum::serve(tcp, service).into_future());

        let bundles = Router::new().route("/bundle", get(async move || Json(bundle)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let bundles_at = listener.local_addr().unwrap();
        tokio::spawn(axum::serve(listener, bundles).into_future());

        let attestor = format!(
            "\n[[attestors]]\nkind = \"spiffe\"\nname = \"mesh\"\n\
             trust_domain = \"prod.acme.example\"\naudience = \"{AUDIENCE}\"\n\
             bundle = \"bundles\"\n[endpoints.bundles]\n\
             url = \"http://{bundles_at}/bundle\"\nuse = [\"keys\"]\n"
        );
        let (fleet, replica) = Fleet::sqlite()
            .tables(&attestor)
            .more_policies(POLICY)
            .start()
            .await;
        Self {
            api,
            directory,
            tcp: port,
            fleet,
            replica,
        }
    }

    fn unix(&self) -> String {
        socket_at(&self.directory.path().join("api.sock"))
    }

    fn exec(&self, socket: &str) -> Ended {
        self.replica
            .exec(&["--audience", AUDIENCE], &["echo", "ran"])
            .env("SPIFFE_ENDPOINT_SOCKET", socket)
            .env("TASKPASS_RETRY_SECONDS", "0")
            .run()
    }
}

fn socket_at(path: &Path) -> String {
    format!("unix://{}", path.display())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_svid_from_a_unix_or_tcp_socket_becomes_a_credential() {
    let world = World::new().await;
    for socket in [world.unix(), format!("tcp://127.0.0.1:{}", world.tcp)] {
        let ran = world.exec(&socket);
        assert_eq!(
            (ran.code(), ran.stdout.as_str()),
            (Some(0), "ran\n"),
            "{socket}: {}",
            ran.stderr
        );
        let asked = world.api.asked.lock().unwrap().pop().unwrap();
        assert_eq!(asked, [AUDIENCE], "the SVID's only audience is the broker");
        let listed = world
            .replica
            .client
            .get_as(&world.fleet.admin, "/v1/sessions")
            .await
            .expect(200);
        let newest = &listed["sessions"][0];
        assert_eq!(newest["workload"], "mesh:ns/jobs/sa/report");
        assert_eq!(newest["end_reason"], "completed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_pod_with_a_token_for_the_api_server_a_named_socket_comes_first() {
    let world = World::new().await;
    let ran = world
        .replica
        .exec(&["--audience", AUDIENCE], &["echo", "ran"])
        .env("SPIFFE_ENDPOINT_SOCKET", world.unix())
        .file("account/token", "of the service account")
        .env("TASKPASS_SERVICE_ACCOUNT_DIR", "account")
        .env("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        .env("KUBERNETES_SERVICE_PORT", "9")
        .env("TASKPASS_RETRY_SECONDS", "0")
        .run();
    assert_eq!(
        (ran.code(), ran.stdout.as_str()),
        (Some(0), "ran\n"),
        "{}",
        ran.stderr
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_svid_nothing_runs_and_it_is_said_why() {
    let world = World::new().await;
    // The standard's code for an unknown workload is `PERMISSION_DENIED`.
    for code in [7, 14, 2] {
        *world.api.refuses.lock().unwrap() = Some(code);
        let refused = world.exec(&world.unix());
        assert_eq!((refused.code(), refused.stdout.as_str()), (Some(3), ""));
        assert!(
            refused.stderr.contains("SPIFFE Workload API"),
            "{}",
            refused.stderr
        );
    }
    let nobody = world.exec(&socket_at(&world.directory.path().join("nobody.sock")));
    assert_eq!((nobody.code(), nobody.stdout.as_str()), (Some(3), ""));
    for socket in [
        "",
        "nonsense",
        "http://127.0.0.1:80",
        "unix://host/api.sock",
        "unix:///api.sock?x=1",
        "tcp://localhost:80",
        "tcp://127.0.0.1",
        "tcp://127.0.0.1:80/path",
        "tcp://192.0.2.1:80",
    ] {
        let bad = world.exec(socket);
        assert_eq!((bad.code(), bad.stdout.as_str()), (Some(2), ""), "{socket}");
        assert!(
            bad.stderr.contains("SPIFFE_ENDPOINT_SOCKET"),
            "{}",
            bad.stderr
        );
    }
    assert!(world.api.asked.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_api_of_these_tests_refuses_who_does_not_say_the_standards_word() {
    let world = World::new().await;
    let url = format!(
        "http://127.0.0.1:{}/SpiffeWorkloadAPI/FetchJWTSVID",
        world.tcp
    );
    crate::support::http::install_crypto_provider();
    let http = reqwest::Client::builder().build().unwrap();
    for word in [None, Some("false"), Some("TRUE")] {
        let mut request = http.post(&url).header("content-type", "application/grpc");
        if let Some(word) = word {
            request = request.header("workload.spiffe.io", word);
        }
        let answer = request.send().await.unwrap();
        assert_eq!(answer.headers()["grpc-status"], "3", "{word:?}");
    }
    assert!(world.api.asked.lock().unwrap().is_empty());
    // With the header the API grants, as it did to the product's client.
    assert_eq!(world.exec(&world.unix()).code(), Some(0));
}
