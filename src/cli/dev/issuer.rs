//! The development mode's OIDC issuer: it serves discovery and keys over HTTP, and `POST /token`,
//! which signs any claims. It is therefore suitable for development only. [`attest`] gets such a
//! token for the demonstration.
//!
//! A port that cannot be opened is [`CliError::Unavailable`]. `super::guard` refuses requests of
//! web pages. `super::run` starts the issuer next to the broker.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use url::Url;

use super::super::CliError;
use super::guard;
use crate::client::{Client, Reply};
use crate::clock::{Clock as _, SystemClock};
use crate::crypto::{
    Algorithm, LocalSigner, PrivateKey, Signer as _, SystemRandom, random_token, sign_jwt,
};

/// The default life of an attestation, in seconds.
const TOKEN_SECONDS: i64 = 300;
/// The longest claims that are signed, in bytes.
const MAX_CLAIMS_BYTES: usize = 64 * 1024;

/// The issuer, listening but not yet serving.
pub(super) struct Issuer {
    listener: TcpListener,
    shared: Arc<Shared>,
}

struct Shared {
    address: SocketAddr,
    url: String,
    signer: LocalSigner,
    audience: OnceLock<String>,
}

impl Issuer {
    /// Listens on the port after the broker's, or on any free port if that one is in use.
    pub(super) async fn bind(broker: SocketAddr) -> Result<Self, CliError> {
        let next = SocketAddr::new(broker.ip(), broker.port().saturating_add(1));
        let listener = match TcpListener::bind(next).await {
            Ok(listener) => listener,
            Err(_) => TcpListener::bind(SocketAddr::new(broker.ip(), 0))
                .await
                .map_err(CliError::unavailable)?,
        };
        let address = listener.local_addr().map_err(CliError::unavailable)?;
        let key = PrivateKey::generate(Algorithm::Es256).map_err(CliError::unavailable)?;
        let signer = LocalSigner::new(&key).map_err(CliError::unavailable)?;
        Ok(Self {
            listener,
            shared: Arc::new(Shared {
                address,
                url: format!("http://{address}/dev"),
                signer,
                audience: OnceLock::new(),
            }),
        })
    }

    /// The issuer's `iss` claim.
    pub(super) fn url(&self) -> &str {
        &self.shared.url
    }

    /// Sets the default `aud` of tokens.
    pub(super) fn for_audience(&self, audience: &str) {
        self.shared.audience.get_or_init(|| audience.to_owned());
    }

    /// Serves until this future is dropped.
    pub(super) async fn serve(self) -> Result<(), CliError> {
        let router = Router::new()
            .route("/dev/.well-known/openid-configuration", get(discovery))
            .route("/dev/jwks.json", get(keys))
            .route("/dev/token", post(token))
            .layer(DefaultBodyLimit::max(MAX_CLAIMS_BYTES))
            .layer(middleware::from_fn_with_state(
                Arc::clone(&self.shared),
                guarded,
            ))
            .with_state(self.shared);
        axum::serve(self.listener, router)
            .await
            .map_err(CliError::unavailable)
    }
}

async fn guarded(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    match guard::refusal(shared.address, &request) {
        Some(refusal) => refusal.into_response(),
        None => next.run(request).await,
    }
}

async fn discovery(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let url = &shared.url;
    Json(json!({
        "issuer": url,
        "jwks_uri": format!("{url}/jwks.json"),
        "token_endpoint": format!("{url}/token"),
        "response_types_supported": ["none"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
    }))
}

async fn keys(State(shared): State<Arc<Shared>>) -> Json<Value> {
    Json(json!({"keys": [shared.signer.public_jwk()]}))
}

async fn token(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    let claims = match serde_json::from_slice::<Map<String, Value>>(&body) {
        Ok(claims) if claims.contains_key("sub") => claims,
        Ok(_) => return (StatusCode::BAD_REQUEST, "the claim `sub` is required").into_response(),
        Err(_) => return (StatusCode::BAD_REQUEST, "send a JSON object of claims").into_response(),
    };
    let unavailable = |_| StatusCode::INTERNAL_SERVER_ERROR.into_response();
    let filled = match fill_in(&shared, claims) {
        Ok(claims) => claims,
        Err(error) => return unavailable(error.to_string()),
    };
    match sign_jwt("JWT", &filled, &shared.signer).await {
        Ok(token) => (
            [(header::CACHE_CONTROL, "no-store")],
            Json(json!({"token": token.expose_secret()})),
        )
            .into_response(),
        Err(error) => unavailable(error.to_string()),
    }
}

/// Adds the claims that are missing. Given claims stay unchanged, valid or not.
fn fill_in(shared: &Shared, given: Map<String, Value>) -> Result<Value, CliError> {
    let now = SystemClock.now().seconds();
    let id = random_token("", &SystemRandom::new()).map_err(CliError::unavailable)?;
    let audience = shared.audience.get().map_or("", String::as_str);
    let mut claims = json!({
        "iss": shared.url,
        "aud": audience,
        "iat": now,
        "exp": now + TOKEN_SECONDS,
        "jti": id.expose_secret(),
    });
    if let Some(claims) = claims.as_object_mut() {
        claims.extend(given);
    }
    Ok(claims)
}

/// The answer of the development issuer to a request for a token.
#[derive(Deserialize)]
struct TokenAnswer {
    token: SecretString,
}

/// Gets an attestation from the development issuer.
pub(super) async fn attest(issuer: &Url, subject: &str) -> Result<SecretString, CliError> {
    let reply: Reply<TokenAnswer> = Client::new(issuer)?
        .post("/token", &json!({"sub": subject}))
        .await?;
    Ok(reply.read()?.token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::{UnverifiedJwt, VerificationKey, verify};

    #[tokio::test]
    async fn its_tokens_verify_with_the_keys_that_discovery_leads_to() {
        drop(rustls::crypto::ring::default_provider().install_default());
        crate::crypto::jwt_provider::install();
        let issuer = Issuer::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await;
        let issuer = issuer.unwrap();
        issuer.for_audience("http://127.0.0.1:7070");
        let url = Url::parse(issuer.url()).unwrap();
        let client = Client::new(&url).unwrap();
        let asked = async {
            let path = "/.well-known/openid-configuration";
            let discovery = client.get::<Value>(path).await.unwrap();
            let discovery = discovery.raw();
            assert_eq!(discovery["issuer"], url.as_str());
            assert_eq!(discovery["jwks_uri"], format!("{url}/jwks.json"));
            let keys = client.get::<Value>("/jwks.json").await.unwrap();
            let key = VerificationKey::parse(keys.raw()["keys"][0].to_string().as_bytes()).unwrap();

            let given = json!({"sub": "agent:reports", "exp": 1, "extra": [1]});
            let reply: Reply<TokenAnswer> = client.post("/token", &given).await.unwrap();
            let token = reply.read().ok().unwrap().token;
            let token = UnverifiedJwt::parse(token.expose_secret()).unwrap();
            let claims = verify(&token, &key, &[Algorithm::Es256]).unwrap();
            assert_eq!(claims.issuer(), Ok(url.as_str()));
            assert_eq!(claims.get("aud"), Some(&json!("http://127.0.0.1:7070")));
            assert_eq!(claims.get("exp"), Some(&json!(1)), "a given claim changed");
            assert_eq!(claims.get("extra"), Some(&json!([1])));
            assert!(claims.token_id().unwrap().is_some());

            for bad in [json!({}), json!([]), json!({"iss": "x"})] {
                let refused = client.post::<TokenAnswer>("/token", &bad).await;
                assert!(refused.is_err(), "{bad}");
            }
            let form = client.post_form("/token", &[("sub", "agent:reports")]);
            assert_eq!(form.await.unwrap().status.as_u16(), 415);
        };
        tokio::select! {
            ended = issuer.serve() => panic!("{ended:?}"),
            () = asked => {}
        }
    }
}
