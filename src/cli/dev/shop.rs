//! The story's resource server: it has one order, and before it serves it asks the broker whether
//! the credential is good for that, now (RFC 7662).
//!
//! It asks as itself, with an attestation of its own, because the resource names it as a verifier.

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

use super::super::Failure;
use super::super::client::Client;
use super::story::attest;

/// The server, listening and not yet serving.
pub(super) struct Shop {
    listener: TcpListener,
    asks: Arc<Asks>,
}

/// What it needs to ask the broker.
struct Asks {
    broker: Url,
    issuer: Url,
}

impl Shop {
    /// Listens on any port of this machine.
    pub(super) async fn bind(broker: &Url, issuer: &Url) -> Result<Self, Failure> {
        let listener = TcpListener::bind(("127.0.0.1", 0))
            .await
            .map_err(Failure::unestablished)?;
        Ok(Self {
            listener,
            asks: Arc::new(Asks {
                broker: broker.clone(),
                issuer: issuer.clone(),
            }),
        })
    }

    /// Its base URL.
    pub(super) fn url(&self) -> Result<Url, Failure> {
        let address = self.listener.local_addr().map_err(Failure::unestablished)?;
        Url::parse(&format!("http://{address}")).map_err(Failure::unestablished)
    }

    /// Serves until it is dropped.
    pub(super) async fn serve(self) -> Result<(), Failure> {
        let router = Router::new()
            .route("/v1/{order}", get(order).post(order))
            .with_state(self.asks);
        axum::serve(self.listener, router)
            .await
            .map_err(Failure::unestablished)
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
        return refused(StatusCode::UNAUTHORIZED, "show a credential");
    };
    match asks.about(token).await {
        Ok(answer) if permits(&answer, action) => {
            Json(json!({"order": order, "total": "120.00"})).into_response()
        }
        Ok(answer) if answer.get("active") == Some(&Value::Bool(true)) => {
            refused(StatusCode::FORBIDDEN, "the credential is not for that")
        }
        Ok(_) => refused(StatusCode::UNAUTHORIZED, "the broker says: not active"),
        // Closed when in doubt.
        Err(_) => refused(
            StatusCode::SERVICE_UNAVAILABLE,
            "the broker cannot be asked",
        ),
    }
}

impl Asks {
    async fn about(&self, token: &str) -> Result<Value, Failure> {
        let own = attest(&self.issuer, "service:orders").await?;
        let client = Client::new(&self.broker)?.with_bearer(&own)?;
        client
            .post_form("/oauth2/introspect", &[("token", token)])
            .await?
            .success()
    }
}

/// Whether an answer says that the credential is good, meant for this server, and for this action.
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
