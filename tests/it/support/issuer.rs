//! An OIDC issuer on loopback: discovery and key set over real HTTP, tokens made in process. For
//! either document a test can choose among the faults that a verifier must handle.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::stream;
use serde_json::{Value, json};

use super::keys::{Algorithm, Key, sign_jwt};
use super::server::Server;
use super::{free_address, random_hex};

/// The audience of tokens that name no other.
pub const AUDIENCE: &str = "https://taskpass.test";
/// Lifetime of tokens without an own `exp`, in seconds.
pub const TOKEN_SECONDS: i64 = 300;

/// The issuer's answer to a request for one of its documents.
#[derive(Clone, Debug)]
pub enum Behaviour {
    Good,
    /// Accepts the request and never answers.
    Hang,
    /// The right document, one byte after each of these pauses.
    Drip(Duration),
    /// Redirects to another path with the right document; see [`Fetches::moved`].
    Redirect,
    /// This status without a body.
    Status(u16),
    /// The right document with these members replaced, to make false statements; `null` removes a
    /// member.
    Merge(Value),
    /// The right document, padded by so many bytes.
    Oversize(usize),
    /// Text that is not JSON.
    Garbage,
    /// A body without an end.
    Flood,
}

/// Numbers of requests for the documents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fetches {
    pub discovery: u64,
    pub jwks: u64,
    /// Requests for either document after a redirect, which no client should follow.
    pub moved: u64,
}

/// A running issuer. It stops when dropped.
pub struct Issuer {
    shared: Arc<Shared>,
    server: Mutex<Option<Server>>,
}

struct Shared {
    address: SocketAddr,
    /// The URL at which it listens.
    base: String,
    /// The identifier in `iss`, whose host name does not resolve.
    url: String,
    keys: Mutex<Keys>,
    discovery: Mutex<Behaviour>,
    jwks: Mutex<Behaviour>,
    fetched_discovery: AtomicU64,
    fetched_jwks: AtomicU64,
    fetched_moved: AtomicU64,
}

struct Keys {
    /// The last key signs.
    published: Vec<Arc<Key>>,
    /// JWKs that are served before the issuer's own, unchanged.
    raw: Vec<Value>,
}

impl Issuer {
    /// An issuer with one ES256 key.
    pub fn start() -> Self {
        Self::start_with(Algorithm::Es256)
    }

    /// An issuer with one key for `algorithm`.
    pub fn start_with(algorithm: Algorithm) -> Self {
        let address = free_address();
        let url = format!("https://issuer-{}.test", address.port());
        Self::begin(algorithm, address, url)
    }

    /// The same with the identifier `url`.
    pub fn start_as(algorithm: Algorithm, url: &str) -> Self {
        Self::begin(algorithm, free_address(), url.to_owned())
    }

    fn begin(algorithm: Algorithm, address: SocketAddr, url: String) -> Self {
        let issuer = Self {
            shared: Arc::new(Shared {
                address,
                base: format!("http://{address}"),
                url,
                keys: Mutex::new(Keys {
                    published: vec![Arc::new(Key::generate(algorithm))],
                    raw: Vec::new(),
                }),
                discovery: Mutex::new(Behaviour::Good),
                jwks: Mutex::new(Behaviour::Good),
                fetched_discovery: AtomicU64::default(),
                fetched_jwks: AtomicU64::default(),
                fetched_moved: AtomicU64::default(),
            }),
            server: Mutex::new(None),
        };
        issuer.go_up();
        issuer
    }

    /// The issuer's identifier, whose host name does not resolve.
    pub fn url(&self) -> &str {
        &self.shared.url
    }

    /// The URL at which it listens.
    pub fn base(&self) -> &str {
        &self.shared.base
    }

    /// Adds an endpoint for this issuer's discovery to the configuration, and refers every attestor
    /// of this issuer to it.
    pub fn served(&self, configuration: &str) -> String {
        let name = format!("issuer-{}", self.shared.address.port());
        let line = format!("issuer = \"{}\"\n", self.url());
        let named = format!("{line}discovery = \"{name}\"\n");
        let base = self.base();
        format!(
            "{}\n[endpoints.{name}]\nurl = \"{base}\"\nuse = [\"discovery\"]\n",
            configuration.replace(&line, &named)
        )
    }

    /// The key that signs new tokens.
    pub fn key(&self) -> Arc<Key> {
        let keys = self.shared.keys.lock().unwrap();
        Arc::clone(keys.published.last().unwrap())
    }

    /// A token with these claims, and with `iss`, `aud`, `iat`, `exp` and `jti` where they are
    /// missing. `null` leaves a claim out.
    pub fn token(&self, claims: Value) -> String {
        let key = self.key();
        sign_jwt(&key.header(), &self.claims(claims), &key)
    }

    /// A token with exactly this header and these claims, signed by any key.
    #[expect(
        clippy::unused_self,
        reason = "callers read better with the issuer in front"
    )]
    pub fn token_with(&self, header: &Value, claims: &Value, key: &Key) -> String {
        sign_jwt(header, claims, key)
    }

    /// The claims that [`Self::token`] would sign.
    pub fn claims(&self, claims: Value) -> Value {
        let now = unix_seconds();
        let mut all = json!({
            "iss": self.url(),
            "aud": AUDIENCE,
            "iat": now,
            "exp": now + TOKEN_SECONDS,
            "jti": random_hex(16),
        });
        merge(&mut all, claims);
        all
    }

    /// Publishes another key, which signs from now on.
    pub fn add_key(&self, algorithm: Algorithm) -> Arc<Key> {
        let key = Arc::new(Key::generate(algorithm));
        let mut keys = self.shared.keys.lock().unwrap();
        keys.published.push(Arc::clone(&key));
        key
    }

    /// Replaces all keys by a new one of the same algorithm, and returns it.
    pub fn rotate(&self) -> Arc<Key> {
        let key = Arc::new(Key::generate(self.key().algorithm));
        self.shared.keys.lock().unwrap().published = vec![Arc::clone(&key)];
        key
    }

    /// Serves these JWKs unchanged, before the issuer's own: see [`super::keys::odd_jwks`].
    pub fn serve_raw_jwks(&self, raw: Vec<Value>) {
        self.shared.keys.lock().unwrap().raw = raw;
    }

    /// Sets the behaviour for the discovery document.
    pub fn discovery(&self, behaviour: Behaviour) {
        *self.shared.discovery.lock().unwrap() = behaviour;
    }

    /// Sets the behaviour for the key set.
    pub fn jwks(&self, behaviour: Behaviour) {
        *self.shared.jwks.lock().unwrap() = behaviour;
    }

    /// The numbers of requests so far.
    pub fn fetches(&self) -> Fetches {
        Fetches {
            discovery: self.shared.fetched_discovery.load(Ordering::SeqCst),
            jwks: self.shared.fetched_jwks.load(Ordering::SeqCst),
            moved: self.shared.fetched_moved.load(Ordering::SeqCst),
        }
    }

    /// Refuses connections, and closes those that are open.
    pub fn go_down(&self) {
        drop(self.server.lock().unwrap().take());
        // The runtime closes the port with a delay.
        let address = self.shared.address;
        super::wait_until("the issuer is down", super::SOON, || {
            std::net::TcpStream::connect(address).is_err()
        });
    }

    /// Listens again, at the same address.
    pub fn go_up(&self) {
        let mut server = self.server.lock().unwrap();
        if server.is_some() {
            return;
        }
        let app = Router::new()
            .route("/.well-known/openid-configuration", get(discovery))
            .route("/jwks", get(jwks))
            .route("/moved/openid-configuration", get(moved_discovery))
            .route("/moved/jwks", get(moved_jwks))
            .with_state(Arc::clone(&self.shared));
        *server = Some(Server::start_at(self.shared.address, app));
    }
}

impl Shared {
    fn discovery_document(&self) -> Value {
        json!({
            "issuer": self.url,
            "jwks_uri": format!("{}/jwks", self.base),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": Algorithm::ALL.map(Algorithm::name),
        })
    }

    fn jwks_document(&self) -> Value {
        let keys = self.keys.lock().unwrap();
        let good = keys.published.iter().map(|key| key.jwk());
        json!({"keys": keys.raw.iter().cloned().chain(good).collect::<Vec<_>>()})
    }
}

async fn discovery(State(shared): State<Arc<Shared>>) -> Response {
    shared.fetched_discovery.fetch_add(1, Ordering::SeqCst);
    let behaviour = shared.discovery.lock().unwrap().clone();
    let document = shared.discovery_document();
    answer(behaviour, document, "/moved/openid-configuration").await
}

async fn jwks(State(shared): State<Arc<Shared>>) -> Response {
    shared.fetched_jwks.fetch_add(1, Ordering::SeqCst);
    let behaviour = shared.jwks.lock().unwrap().clone();
    let document = shared.jwks_document();
    answer(behaviour, document, "/moved/jwks").await
}

async fn moved_discovery(State(shared): State<Arc<Shared>>) -> Response {
    shared.fetched_moved.fetch_add(1, Ordering::SeqCst);
    json_body(shared.discovery_document().to_string())
}

async fn moved_jwks(State(shared): State<Arc<Shared>>) -> Response {
    shared.fetched_moved.fetch_add(1, Ordering::SeqCst);
    json_body(shared.jwks_document().to_string())
}

async fn answer(behaviour: Behaviour, mut document: Value, moved: &'static str) -> Response {
    match behaviour {
        Behaviour::Good => json_body(document.to_string()),
        Behaviour::Hang => std::future::pending().await,
        Behaviour::Drip(pause) => {
            let bytes = document.to_string().into_bytes().into_iter();
            let drops = stream::unfold(bytes, move |mut bytes| async move {
                tokio::time::sleep(pause).await;
                let byte = bytes.next()?;
                Some((Ok::<_, std::io::Error>(Bytes::from(vec![byte])), bytes))
            });
            json_body(Body::from_stream(drops))
        }
        Behaviour::Redirect => (StatusCode::FOUND, [(header::LOCATION, moved)]).into_response(),
        Behaviour::Status(status) => StatusCode::from_u16(status).unwrap().into_response(),
        Behaviour::Merge(over) => {
            merge(&mut document, over);
            json_body(document.to_string())
        }
        Behaviour::Oversize(bytes) => {
            document["padding"] = json!("x".repeat(bytes));
            json_body(document.to_string())
        }
        Behaviour::Garbage => json_body("<html>busy, come back later</html>"),
        Behaviour::Flood => {
            let chunk = Bytes::from(vec![b' '; 16 * 1024]);
            let chunks = std::iter::repeat(chunk).map(Ok::<_, std::io::Error>);
            json_body(Body::from_stream(stream::iter(chunks)))
        }
    }
}

fn json_body(body: impl Into<Body>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], body.into()).into_response()
}

/// Replaces members of `object` by those of `over`; `null` removes a member.
fn merge(object: &mut Value, over: Value) {
    let object = object.as_object_mut().unwrap();
    let Value::Object(over) = over else {
        panic!("claims and documents are JSON objects, not {over}");
    };
    for (name, value) in over {
        if value.is_null() {
            object.remove(&name);
        } else {
            object.insert(name, value);
        }
    }
}

/// The current time in Unix seconds, as in a JWT.
pub fn unix_seconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(since.as_secs()).unwrap()
}

mod tests {
    use super::*;
    use crate::support::http::Client;
    use crate::support::keys::{odd_jwks, peek, verifies};

    const DISCOVERY: &str = "/.well-known/openid-configuration";

    /// The key of the served set that has the token's `kid`.
    async fn served_key(client: &Client, token: &str) -> Option<Value> {
        let kid = peek(token).0["kid"].clone();
        let set = client.get("/jwks").await.json();
        let keys = set["keys"].as_array().unwrap().clone();
        keys.into_iter().find(|key| key.get("kid") == Some(&kid))
    }

    #[tokio::test]
    async fn tokens_verify_by_what_discovery_leads_to() {
        for algorithm in Algorithm::ALL {
            let issuer = Issuer::start_with(algorithm);
            let client = Client::new(issuer.base());
            let document = client.get(DISCOVERY).await.json();
            assert_eq!(document["issuer"], json!(issuer.url()));
            assert_eq!(
                document["jwks_uri"],
                json!(format!("{}/jwks", issuer.base()))
            );

            let token = issuer.token(json!({"sub": "agent:reports", "jti": null}));
            let key = served_key(&client, &token).await.unwrap();
            assert!(verifies(&token, &key));
            let (_, claims) = peek(&token);
            assert_eq!(claims["aud"], json!(AUDIENCE));
            assert_eq!(claims["sub"], json!("agent:reports"));
            assert!(claims.get("jti").is_none());
            let expected = Fetches {
                discovery: 1,
                jwks: 1,
                moved: 0,
            };
            assert_eq!(issuer.fetches(), expected);
        }
    }

    #[tokio::test]
    async fn rotation_replaces_and_addition_keeps() {
        let issuer = Issuer::start();
        let client = Client::new(issuer.base());
        let old = issuer.token(json!({"sub": "a"}));
        issuer.add_key(Algorithm::EdDsa);
        assert!(served_key(&client, &old).await.is_some());
        issuer.rotate();
        assert!(served_key(&client, &old).await.is_none());
        let new = issuer.token(json!({"sub": "a"}));
        issuer.serve_raw_jwks(odd_jwks());
        let key = served_key(&client, &new).await.unwrap();
        assert!(verifies(&new, &key));
    }

    #[tokio::test]
    async fn it_misbehaves_as_told_and_only_as_long() {
        let issuer = Issuer::start();
        let client = Client::new(issuer.base());
        let impatient = Client::with_timeout(issuer.base(), Duration::from_millis(300));

        issuer.discovery(Behaviour::Merge(json!({"issuer": "https://evil.test"})));
        let lie = client.get(DISCOVERY).await.json();
        assert_eq!(lie["issuer"], json!("https://evil.test"));

        issuer.discovery(Behaviour::Redirect);
        let redirect = client.get(DISCOVERY).await;
        assert_eq!(redirect.status, 302);
        let elsewhere = redirect.header("location").unwrap();
        assert_eq!(
            client.get(elsewhere).await.json()["issuer"],
            json!(issuer.url())
        );
        assert_eq!(issuer.fetches().moved, 1);

        issuer.jwks(Behaviour::Status(500));
        assert_eq!(client.get("/jwks").await.status, 500);
        issuer.jwks(Behaviour::Oversize(100_000));
        assert!(client.get("/jwks").await.body.len() > 100_000);
        issuer.jwks(Behaviour::Garbage);
        let garbage = client.get("/jwks").await.body;
        assert!(serde_json::from_slice::<Value>(&garbage).is_err());

        for endless in [
            Behaviour::Hang,
            Behaviour::Drip(Duration::from_millis(50)),
            Behaviour::Flood,
        ] {
            issuer.jwks(endless.clone());
            let error = impatient.try_get("/jwks").await.unwrap_err();
            assert!(
                error.is_timeout() || error.is_body(),
                "{endless:?}: {error:?}"
            );
        }
        issuer.jwks(Behaviour::Good);
        assert_eq!(client.get("/jwks").await.status, 200);

        issuer.go_down();
        assert!(client.try_get("/jwks").await.is_err());
        issuer.go_up();
        assert_eq!(client.get("/jwks").await.status, 200);
    }
}
