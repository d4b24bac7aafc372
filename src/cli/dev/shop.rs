//! The demonstration's resource server. It has one order, and asks the broker by introspection (RFC
//! 7662) whether the credential permits the request before it serves it.
//!
//! It authenticates with its own attestation, because the resource names it as a verifier.
//!
//! A request without a valid credential for it gets 401 or 403. A port that cannot be opened is
//! [`CliError::Unavailable`]. `super::story` runs the server.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;
use tokio::net::TcpListener;
use url::Url;

use super::super::CliError;
use super::issuer::attest;
use crate::client::Client;
use crate::wire::oauth::{ActiveTokenBody, IntrospectionBody};

/// The server, listening but not yet serving.
pub(super) struct Shop {
    listener: TcpListener,
    asks: Arc<Asks>,
}

/// The addresses of the broker and of the issuer.
struct Asks {
    broker: Url,
    issuer: Url,
}

impl Shop {
    /// Listens on any free loopback port.
    pub(super) async fn bind(broker: &Url, issuer: &Url) -> Result<Self, CliError> {
        let listener = TcpListener::bind(("127.0.0.1", 0))
            .await
            .map_err(CliError::unavailable)?;
        Ok(Self {
            listener,
            asks: Arc::new(Asks {
                broker: broker.clone(),
                issuer: issuer.clone(),
            }),
        })
    }

    /// The server's base URL.
    pub(super) fn url(&self) -> Result<Url, CliError> {
        let address = self.listener.local_addr().map_err(CliError::unavailable)?;
        Url::parse(&format!("http://{address}")).map_err(CliError::unavailable)
    }

    /// Serves until this future is dropped.
    pub(super) async fn serve(self) -> Result<(), CliError> {
        let router = Router::new()
            .route("/v1/{order}", get(order).post(order))
            .with_state(self.asks);
        axum::serve(self.listener, router)
            .await
            .map_err(CliError::unavailable)
    }
}

async fn order(
    State(asks): State<Arc<Asks>>,
    Path(order): Path<String>,
    method: Method,
    headers: HeaderMap,
) -> Response {
    let action = if method == Method::GET {
        "orders:read"
    } else {
        "orders:write"
    };
    let token = headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    let token = token.and_then(|value| value.strip_prefix("Bearer "));
    let Some(token) = token else {
        return refused(StatusCode::UNAUTHORIZED, "send a credential");
    };
    match asks.about(token).await {
        Ok(IntrospectionBody::Active(token)) if permits(&token, action) => {
            Json(json!({"order": order, "total": "120.00"})).into_response()
        }
        Ok(IntrospectionBody::Active(_)) => {
            refused(StatusCode::FORBIDDEN, "the credential does not permit this")
        }
        Ok(IntrospectionBody::Inactive(_)) => {
            refused(StatusCode::UNAUTHORIZED, "the broker answers: not active")
        }
        // Fail closed.
        Err(_) => refused(
            StatusCode::SERVICE_UNAVAILABLE,
            "the broker cannot be asked",
        ),
    }
}

impl Asks {
    async fn about(&self, token: &str) -> Result<IntrospectionBody, CliError> {
        let own = attest(&self.issuer, "service:orders").await?;
        let client = Client::new(&self.broker)?.with_bearer(&own)?;
        let form = [("token", token)];
        let answer = client.post_form("/oauth2/introspect", &form).await?;
        Ok(answer.success()?.read()?)
    }
}

/// Whether an active credential is meant for this server and action.
fn permits(token: &ActiveTokenBody, action: &str) -> bool {
    token.aud == "https://orders.example" && token.scope.split(' ').any(|own| own == action)
}

fn refused(status: StatusCode, why: &'static str) -> Response {
    (status, Json(json!({"detail": why}))).into_response()
}

#[cfg(test)]
mod tests {
    use serde::Deserialize as _;
    use serde_json::Value;

    use super::*;

    #[test]
    fn only_an_active_credential_for_this_server_and_action_is_served() {
        const ID: &str = "01890a5d-ac96-774b-bcce-b302099a8057";
        let good = json!({
            "active": true, "iss": "https://broker.example", "sub": "ci:a",
            "aud": "https://orders.example", "client_id": "ci:a", "iat": 1, "exp": 2, "jti": ID,
            "scope": "orders:list orders:read",
            "authorization_details": [{"type": "api", "actions": ["orders:list", "orders:read"]}],
            "token_type": "Bearer", "task": ID, "sid": ID, "dec": "x"
        });
        let permitted = |answer: &Value, action: &str| {
            let read = IntrospectionBody::deserialize(answer);
            matches!(read, Ok(IntrospectionBody::Active(token)) if permits(&token, action))
        };
        assert!(permitted(&good, "orders:read"));
        assert!(!permitted(&good, "orders:write"));
        for (name, value) in [
            ("active", json!(false)),
            ("active", json!("true")),
            ("aud", json!("https://other.example")),
            ("scope", json!("orders:readall")),
        ] {
            let mut bad = good.clone();
            bad[name] = value;
            assert!(!permitted(&bad, "orders:read"), "{bad}");
        }
        assert!(!permitted(&json!({}), "orders:read"));
    }
}
