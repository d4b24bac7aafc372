//! An endpoint on this machine that gives AWS's tools their credentials, in the form that they ask
//! containers for (`AWS_CONTAINER_CREDENTIALS_FULL_URI`).
//!
//! The tools ask early and often: botocore with less than 15 minutes left, which a short session
//! never has. They get the same credential until little of it is left, and then, as long as the
//! task lasts and a fresh attestation is to be had, another one within the same task.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Json, Router};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use subtle::ConstantTimeEq as _;
use tokio::net::TcpListener;
use tokio::sync::Mutex;

use super::deliver::Renewal;
use super::lease::Never;
use super::{ask, joining};
use crate::cli::{Failure, output};
use crate::clock::{Clock as _, SystemClock, Timestamp};
use crate::crypto::random::SystemRandom;
use crate::ids::Random as _;

/// A credential is renewed when less than this part of its life is left.
const LAST_PART: u64 = 5;

/// An endpoint that listens.
pub(super) struct Endpoint {
    listener: TcpListener,
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    /// What the command has to say for itself.
    secret: SecretString,
    renewal: Renewal,
    current: Mutex<Current>,
}

/// The credential of now.
struct Current {
    granted: Value,
    /// The task and its handle, as the first answer named them.
    task: Value,
    taken_at: Timestamp,
}

impl Endpoint {
    /// Listens on a port of this machine.
    pub(super) async fn start(granted: Value, renewal: Renewal) -> Result<Self, Failure> {
        let failed =
            |error: std::io::Error| Failure::Unestablished(format!("no endpoint: {error}"));
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(failed)?;
        let port = listener.local_addr().map_err(failed)?.port();
        let mut bytes = [0; 16];
        SystemRandom::default()
            .fill(&mut bytes)
            .map_err(Failure::unestablished)?;
        let secret = format!("{:032x}", u128::from_be_bytes(bytes));
        let task = joining(&granted);
        Ok(Self {
            listener,
            port,
            shared: Arc::new(Shared {
                secret: SecretString::from(secret),
                renewal,
                current: Mutex::new(Current {
                    granted,
                    task,
                    taken_at: SystemClock.now(),
                }),
            }),
        })
    }

    /// How AWS's tools are told of it.
    pub(super) fn variables(&self) -> [(String, SecretString); 2] {
        let url = format!("http://127.0.0.1:{}/credentials", self.port);
        [
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI".into(), url.into()),
            (
                "AWS_CONTAINER_AUTHORIZATION_TOKEN".into(),
                self.shared.secret.clone(),
            ),
        ]
    }

    /// Answers for ever.
    pub(super) async fn serve(self) -> Never {
        let app = Router::new()
            .route("/credentials", get(credentials))
            .with_state(self.shared);
        if let Err(error) = axum::serve(self.listener, app).await {
            // Nothing is left to be done when even this cannot be written.
            drop(output::note(format!(
                "taskpass: the endpoint ended: {error}"
            )));
        }
        std::future::pending().await
    }
}

async fn credentials(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    let given = headers.get(header::AUTHORIZATION);
    let given = given.map_or(&[][..], |value| value.as_bytes());
    if !bool::from(given.ct_eq(shared.secret.expose_secret().as_bytes())) {
        return refused(StatusCode::UNAUTHORIZED, "not for you");
    }
    let mut current = shared.current.lock().await;
    let now = SystemClock.now();
    if current.is_nearly_over(now) && shared.renewal.source.is_renewable() {
        let renewal = &shared.renewal;
        let body = renewal.wanted.body(&current.task);
        match ask(&renewal.client, &renewal.source, &body).await {
            Ok(granted) => {
                current.granted = granted;
                current.taken_at = now;
            }
            // The old one serves as long as it is good.
            Err(failure) => drop(output::note(format!("taskpass: not renewed: {failure}"))),
        }
    }
    if current.expiration().is_none_or(|end| end <= now) {
        return refused(StatusCode::FORBIDDEN, "the credential is over");
    }
    let credential = &current.granted["credential"];
    let body = json!({
        "AccessKeyId": credential["access_key_id"],
        "SecretAccessKey": credential["secret_access_key"],
        "Token": credential["session_token"],
        "Expiration": credential["expiration"],
    });
    ([(header::CACHE_CONTROL, "no-store")], Json(body)).into_response()
}

fn refused(status: StatusCode, why: &str) -> Response {
    (status, Json(json!({"code": "Refused", "message": why}))).into_response()
}

impl Current {
    fn expiration(&self) -> Option<Timestamp> {
        let text = self.granted.pointer("/credential/expiration")?;
        serde_json::from_value(text.clone()).ok()
    }

    fn is_nearly_over(&self, now: Timestamp) -> bool {
        self.expiration().is_none_or(|end| {
            let life = self.taken_at.seconds_until(end);
            now.seconds_until(end) <= life / LAST_PART
        })
    }
}
