//! A local endpoint that gives AWS's tools their credentials, in the form of AWS's container
//! credentials (`AWS_CONTAINER_CREDENTIALS_FULL_URI`).
//!
//! The endpoint answers every request with the cached session. When little of the session's life is
//! left, a request starts a renewal; until it is complete, the endpoint returns the old session as
//! long as that is valid. When the task has ended, the endpoint returns no credential, not even to
//! a request in progress.
//!
//! A port that cannot be opened is [`CliError::Unavailable`]; a request without the endpoint's
//! token is refused. `super::renewal` renews the session, and `super::deliver` starts the endpoint.

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
use axum_server::accept::Accept;
use futures_util::future::BoxFuture;
use rlimit::Resource;
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;
use subtle::ConstantTimeEq as _;
use tokio::net::TcpStream;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;
use tower_http::add_extension::AddExtension;

use super::renewal::{Current, Renewal};
use crate::cli::{CliError, output};
use crate::client::session::CachedSession;
use crate::client::task_lease::Never;
use crate::clock::{Clock as _, SystemClock};
use crate::crypto::random::SystemRandom;
use crate::ids::Random as _;

/// The most connections that are served concurrently.
const MAX_CONNECTIONS: usize = 16;
/// The most connections that wait to be served.
const MAX_WAITING: usize = 112;
/// Connections may use one in this many of the permitted file descriptors. The rest is for
/// heartbeats, renewals and files.
const DESCRIPTORS_PART: u64 = 4;
/// The longest time that a connection waits to be served.
const TURN_TIMEOUT: Duration = Duration::from_secs(20);
/// The longest time for the head of a request, once the connection is served.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an answer waits for a renewal if the session has ended. AWS's tools give up earlier.
const RENEWAL_TIMEOUT: Duration = Duration::from_secs(20);

pub(super) struct Endpoint {
    listener: TcpListener,
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    /// The secret that requests must present.
    secret: SecretString,
    current: watch::Receiver<Current>,
    demand: Arc<Notify>,
    closed: AtomicBool,
}

/// Closes the endpoint on drop, because requests in progress continue after the listener ends.
struct Closing(Arc<Shared>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.closed.store(true, Ordering::SeqCst);
    }
}

impl Endpoint {
    /// Listens on a loopback port.
    pub(super) fn start(renewal: &Renewal) -> Result<Self, CliError> {
        let failed = |error: std::io::Error| {
            CliError::Unavailable(format!("cannot open the endpoint: {error}"))
        };
        let listener = TcpListener::bind("127.0.0.1:0").map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let port = listener.local_addr().map_err(failed)?.port();
        let mut bytes = [0; 16];
        SystemRandom::default()
            .fill(&mut bytes)
            .map_err(CliError::unavailable)?;
        let secret = format!("{:032x}", u128::from_be_bytes(bytes));
        Ok(Self {
            listener,
            port,
            shared: Arc::new(Shared {
                secret: SecretString::from(secret),
                current: renewal.current(),
                demand: renewal.demand(),
                closed: AtomicBool::new(false),
            }),
        })
    }

    /// The variables with which AWS's tools find the endpoint.
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

    /// Serves requests while this future is polled.
    pub(super) async fn serve(self) -> Never {
        let _closing = Closing(Arc::clone(&self.shared));
        let app = Router::new()
            .route("/credentials", get(credentials))
            .with_state(self.shared);
        if let Err(error) = serve_in_turn(self.listener, app).await {
            output::note(format!("taskpass: the endpoint stopped serving: {error}"));
        }
        std::future::pending().await
    }
}

/// Serves a limited number of connections. Other users of this machine can reach the port. They get
/// no credential, and must not exhaust this process's file descriptors and memory. A connection
/// carries one request, so that no idle connection blocks others.
async fn serve_in_turn(listener: TcpListener, app: Router) -> io::Result<()> {
    let slots = max_slots(Resource::NOFILE.get_soft().unwrap_or(u64::MAX));
    let mut server = axum_server::from_tcp(listener)?
        .first_request_timeout(REQUEST_TIMEOUT)
        .acceptor(InTurn {
            turns: Arc::new(Semaphore::new(MAX_CONNECTIONS.min(slots))),
            slots: Arc::new(Semaphore::new(slots)),
        });
    let http = server.http_builder();
    http.http1()
        .header_read_timeout(REQUEST_TIMEOUT)
        .keep_alive(false);
    server.serve(app.into_make_service()).await
}

/// The most connections that are served or wait, if this process may open `descriptors` files.
fn max_slots(descriptors: u64) -> usize {
    let part = usize::try_from(descriptors / DESCRIPTORS_PART).unwrap_or(usize::MAX);
    part.clamp(1, MAX_CONNECTIONS + MAX_WAITING)
}

/// Makes connections wait until they can be served. Closes a connection at once if too many are
/// waiting, and after [`TURN_TIMEOUT`] if it was not served until then.
#[derive(Clone)]
struct InTurn {
    turns: Arc<Semaphore>,
    slots: Arc<Semaphore>,
}

/// A connection's permits to wait and to be served. Both are released when the connection ends.
type Turn = Arc<[OwnedSemaphorePermit; 2]>;

impl<S: Send + 'static> Accept<TcpStream, S> for InTurn {
    type Stream = TcpStream;
    type Service = AddExtension<S, Turn>;
    type Future = BoxFuture<'static, io::Result<(TcpStream, Self::Service)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let turns = Arc::clone(&self.turns);
        let slot = Arc::clone(&self.slots).try_acquire_owned();
        Box::pin(async move {
            let slot = slot.map_err(io::Error::other)?;
            let turn = timeout(TURN_TIMEOUT, turns.acquire_owned()).await?;
            let turn = turn.map_err(io::Error::other)?;
            Ok((stream, AddExtension::new(service, Arc::new([slot, turn]))))
        })
    }
}

async fn credentials(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    let given = headers.get(header::AUTHORIZATION);
    let given = given.map_or(&[][..], |value| value.as_bytes());
    if !bool::from(given.ct_eq(shared.secret.expose_secret().as_bytes())) {
        return refused(StatusCode::UNAUTHORIZED, "wrong authorization token");
    }
    let held = shared.held().await;
    // Check this last: the task may have ended during a renewal.
    if shared.closed.load(Ordering::SeqCst) || !held.is_good(SystemClock.now()) {
        return refused(StatusCode::FORBIDDEN, "the credential has ended");
    }
    let body = held.spoken("Token", &[]);
    ([(header::CACHE_CONTROL, "no-store")], Json(body)).into_response()
}

impl Shared {
    /// The current session. Starts a renewal if little of its life is left, and waits for the
    /// renewal only if the session has ended.
    async fn held(&self) -> Arc<CachedSession> {
        let mut current = self.current.clone();
        let Current { held, tries } = current.borrow_and_update().clone();
        let now = SystemClock.now();
        if now >= held.due_at() {
            self.demand.notify_one();
        }
        if held.is_good(now) {
            return held;
        }
        let tried = current.wait_for(|current| current.tries > tries);
        match timeout(RENEWAL_TIMEOUT, tried).await {
            Ok(Ok(current)) => Arc::clone(&current.held),
            _ => held,
        }
    }
}

fn refused(status: StatusCode, why: &str) -> Response {
    (status, Json(json!({"code": "Refused", "message": why}))).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_use_a_part_of_the_file_descriptors() {
        assert_eq!(max_slots(u64::MAX), MAX_CONNECTIONS + MAX_WAITING);
        assert_eq!(max_slots(1_024), MAX_CONNECTIONS + MAX_WAITING);
        assert_eq!(max_slots(64), 16);
        assert_eq!(max_slots(0), 1);
    }
}
