//! An endpoint on this machine that gives AWS's tools their credentials, in the form that they ask
//! containers for (`AWS_CONTAINER_CREDENTIALS_FULL_URI`).
//!
//! How often it is asked makes no difference: it answers with the session that is held, and takes
//! another only when little of that is left. When the task is over nobody gets anything any more,
//! not even who was being answered.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Json, Router};
use axum_server::Handle;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use subtle::ConstantTimeEq as _;
use tokio::sync::Mutex;

use crate::cli::held::{Asker, Held};
use crate::cli::lease::Never;
use crate::cli::{Failure, output};
use crate::clock::{Clock as _, SystemClock};
use crate::crypto::random::SystemRandom;
use crate::http::server::Bounded;
use crate::ids::Random as _;

/// Connections at once, and the longest time for a request's head.
const MAX_CONNECTIONS: usize = 16;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// An endpoint that listens.
pub(super) struct Endpoint {
    listener: TcpListener,
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    /// What the command has to say for itself.
    secret: SecretString,
    asker: Asker,
    held: Mutex<Held>,
    closed: AtomicBool,
}

/// Closes it when it goes: an answer that is being made does not end with who listens.
struct Closing(Arc<Shared>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.closed.store(true, Ordering::SeqCst);
    }
}

impl Endpoint {
    /// Listens on a port of this machine.
    pub(super) fn start(granted: &Value, asker: Asker) -> Result<Self, Failure> {
        let failed =
            |error: std::io::Error| Failure::Unestablished(format!("no endpoint: {error}"));
        let listener = TcpListener::bind("127.0.0.1:0").map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let port = listener.local_addr().map_err(failed)?.port();
        let mut bytes = [0; 16];
        SystemRandom::default()
            .fill(&mut bytes)
            .map_err(Failure::unestablished)?;
        let secret = format!("{:032x}", u128::from_be_bytes(bytes));
        let held = Held::of(granted, None, &asker.source, SystemClock.now())?;
        Ok(Self {
            listener,
            port,
            shared: Arc::new(Shared {
                secret: SecretString::from(secret),
                asker,
                held: Mutex::new(held),
                closed: AtomicBool::new(false),
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
        let _closing = Closing(Arc::clone(&self.shared));
        let app = Router::new()
            .route("/credentials", get(credentials))
            .with_state(self.shared);
        if let Err(error) = bounded(self.listener, app).await {
            // Nothing is left to be done when even this cannot be written.
            drop(output::note(format!(
                "taskpass: the endpoint ended: {error}"
            )));
        }
        std::future::pending().await
    }
}

/// Others on this machine can reach the port: they get no answer, and must not take up our files
/// and memory either.
async fn bounded(listener: TcpListener, app: Router) -> io::Result<()> {
    let handle = Handle::new();
    let mut server = axum_server::from_tcp(listener)?
        .handle(handle.clone())
        .first_request_timeout(REQUEST_TIMEOUT)
        .acceptor(Bounded::new(handle, MAX_CONNECTIONS, MAX_CONNECTIONS));
    let http = server.http_builder();
    http.http1().header_read_timeout(REQUEST_TIMEOUT);
    server.serve(app.into_make_service()).await
}

async fn credentials(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    let given = headers.get(header::AUTHORIZATION);
    let given = given.map_or(&[][..], |value| value.as_bytes());
    if !bool::from(given.ct_eq(shared.secret.expose_secret().as_bytes())) {
        return refused(StatusCode::UNAUTHORIZED, "not for you");
    }
    let mut held = shared.held.lock().await;
    let now = SystemClock.now();
    if let Err(failure) = held.renew_if_due(&shared.asker, now).await {
        // Nothing is left to be done when even this cannot be written.
        drop(output::note(format!("taskpass: not renewed: {failure}")));
    }
    // Read last: the task may have ended while it was asked for more.
    if shared.closed.load(Ordering::SeqCst) || !held.is_good(SystemClock.now()) {
        return refused(StatusCode::FORBIDDEN, "the credential is over");
    }
    let body = held.spoken("Token", &[]);
    ([(header::CACHE_CONTROL, "no-store")], Json(body)).into_response()
}

fn refused(status: StatusCode, why: &str) -> Response {
    (status, Json(json!({"code": "Refused", "message": why}))).into_response()
}
