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
use serde_json::{Value, json};
use tokio::net::TcpListener;
use url::Url;

use super::super::CliError;
use super::issuer::attest;
use crate::client::Client;

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
        Ok(answer) if permits(&answer, action) => {
            Json(json!({"order": order, "total": "120.00"})).into_response()
        }
        Ok(answer) if answer.get("active") == Some(&Value::Bool(true)) => {
            refused(StatusCode::FORBIDDEN, "the credential does not permit this")
        }
        Ok(_) => refused(StatusCode::UNAUTHORIZED, "the broker answers: not active"),
        // Fail closed.
        Err(_) => refused(
            StatusCode::SERVICE_UNAVAILABLE,
            "the broker cannot be asked",
        ),
    }
}

impl Asks {
    async fn about(&self, token: &str) -> Result<Value, CliError> {
        let own = attest(&self.issuer, "service:orders").await?;
        let client = Client::new(&self.broker)?.with_bearer(&own)?;
        let form = [("token", token)];
        let answer = client.post_form("/oauth2/introspect", &form).await?;
        Ok(answer.success()?)
    }
}

/// Whether an introspection answer says that the credential is active, and meant for this server
/// and action.
fn permits(answer: &Value, action: &str) -> bool {
    let text = |name: &str| answer.get(name).and_then(Value::as_str);
    answer.get("active") == Some(&Value::Bool(true))
        && text("aud") == Some("https://orders.example")
        && text("scope").is_some_and(|scope| scope.split(' ').any(|own| own == action))
}

fn refused(status: StatusCode, why: &'static str) -> Response {
    (status, Json(json!({"detail": why}))).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_active_credential_for_this_server_and_action_is_served() {
        let good = json!({
            "active": true, "aud": "https://orders.example", "scope": "orders:list orders:read"
        });
        assert!(permits(&good, "orders:read"));
        assert!(!permits(&good, "orders:write"));
        for (name, value) in [
            ("active", json!(false)),
            ("active", json!("true")),
            ("aud", json!("https://other.example")),
            ("scope", json!("orders:readall")),
        ] {
            let mut bad = good.clone();
            bad[name] = value;
            assert!(!permits(&bad, "orders:read"), "{bad}");
        }
        assert!(!permits(&json!({}), "orders:read"));
    }
}
