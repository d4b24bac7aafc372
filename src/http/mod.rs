//! The HTTP interface: routes, and the layers around them.
//!
//! Each resource has a file with thin handlers: they read a request, call one method of the broker,
//! and write the answer. The shapes of both are in [`crate::wire`]. [`router`] has all routes and
//! layers, [`openapi()`] their description. The order of layers, outermost first:
//!
//! 1. secrets in a request are marked, so that nothing logs them;
//! 2. the client's address, metrics, trace context and a request id, for every request, refused
//!    ones included;
//! 3. security headers, for every answer;
//! 4. a 401 gets its challenge, and refusals of the layers below at OAuth endpoints get OAuth's
//!    form;
//! 5. panics become a problem, and the connection stays open; in development mode, requests by a
//!    page in a browser are refused;
//! 6. the limit by address, before a byte of a body is read or a signature checked;
//! 7. ambiguous requests are refused;
//! 8. the timeout, which ends the wait and not the work;
//! 9. an answer to a DPoP proof gets the next nonce, and a body has a limit.
//!
//! `bodies` reads a body, within the memory for the bodies of all requests.
//!
//! The rule: a handler gets every check that it needs from a layer, an extractor or the broker, and
//! decides nothing. Failures: all refusals have the form of [`problem`]. At the timeout the caller
//! gets a 503, or a 408 if its body did not arrive, and the work continues. `server` and tests call
//! [`router`]; the handlers call only services of `broker`.

pub mod admin;
mod bodies;
mod challenge;
mod client_address;
mod client_certificates;
mod cors;
pub mod credentials;
mod decisions;
mod evidence;
pub mod federation;
mod head;
mod json;
pub mod ledger;
mod limits;
pub mod oauth;
mod oauth_path;
mod openapi;
mod ops;
mod params;
pub(crate) mod problem;
mod receipt;
pub mod revocations;
pub mod server;
pub mod sessions;
mod status_lists;
pub mod tasks;
pub mod tls;
pub mod unread;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{ConnectInfo, DefaultBodyLimit, FromRef, MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Version, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::sensitive_headers::SetSensitiveRequestHeadersLayer;
use tower_http::set_header::SetResponseHeaderLayer;
use tracing::Instrument;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use self::bodies::Bodies;
use self::client_address::{ClientAddress, TrustedProxies};
use self::evidence::RequestId;
pub(crate) use self::head::hosts;
use self::limits::AddressLimiter;
use self::problem::Problem;
use crate::attest::nonce::DpopNonces;
use crate::broker::Broker;
use crate::config::{ClientCertificates, Config};
use crate::crypto::random::SystemRandom;
use crate::domain::limits::{MAX_ADMIN_BODY_BYTES, MAX_BODY_BYTES};
use crate::telemetry::TraceContext;

/// The state that every handler has.
#[derive(Clone)]
pub struct AppState {
    broker: Arc<Broker>,
    addresses: Arc<AddressLimiter>,
    bodies: Bodies,
    settings: Arc<Settings>,
}

/// The settings that handlers need.
struct Settings {
    request_timeout: Duration,
    trusted_proxies: TrustedProxies,
    public_ledger: bool,
    metrics_open: bool,
    jwks_cache_seconds: u64,
    nonces: Option<DpopNonces>,
    client_certificates: ClientCertificates,
    dev: bool,
    host: String,
}

impl AppState {
    /// The state for this broker under this configuration.
    #[must_use]
    pub fn new(broker: Arc<Broker>, config: &Config) -> Self {
        Self {
            addresses: Arc::new(AddressLimiter::new(
                config.limits.address_requests_per_second,
                config.limits.address_burst,
            )),
            bodies: Bodies::default(),
            settings: Arc::new(Settings {
                request_timeout: Duration::from_secs(config.server.request_timeout_seconds),
                trusted_proxies: TrustedProxies::new(&config.server.trusted_proxies),
                public_ledger: config.server.public_ledger,
                metrics_open: config.metrics.listen.is_none()
                    && config.server.is_of_this_machine_alone(),
                jwks_cache_seconds: config.keys.jwks_cache_seconds,
                nonces: config
                    .server
                    .require_dpop_nonce
                    .then(|| broker.access.dpop_nonces()),
                client_certificates: config.server.tls.client_certificates,
                dev: config.mode == crate::config::Mode::Dev,
                host: config.server.listen.to_string(),
            }),
            broker,
        }
    }
}

impl FromRef<AppState> for Bodies {
    fn from_ref(state: &AppState) -> Self {
        state.bodies.clone()
    }
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Taskpass",
        description = "A just-in-time credential broker: policy decides before the credential exists.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    paths(ledger::tile),
    components(schemas(problem::ProblemBody))
)]
struct Document;

fn api() -> OpenApiRouter<AppState> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(credentials::request))
        .routes(routes!(tasks::open, tasks::list))
        .routes(routes!(tasks::show))
        .routes(routes!(tasks::heartbeat))
        .routes(routes!(tasks::complete))
        .routes(routes!(tasks::abort))
        .routes(routes!(tasks::delegate))
        .routes(routes!(sessions::list))
        .routes(routes!(sessions::show))
        .routes(routes!(sessions::revoke))
        .routes(routes!(revocations::revoke, revocations::list))
        .routes(routes!(revocations::show))
        .routes(routes!(revocations::lift))
        .routes(routes!(decisions::list))
        .routes(routes!(ledger::decision))
        .routes(routes!(decisions::record))
        .routes(routes!(decisions::forget))
        .routes(routes!(ledger::keys))
        .routes(routes!(ledger::accept_time))
        .routes(routes!(ledger::entry))
        .routes(routes!(ledger::proof))
        .routes(routes!(ledger::consistency))
        .routes(routes!(ledger::export))
        .routes(routes!(oauth::token::token))
        .routes(routes!(oauth::introspect::introspect))
        .routes(routes!(oauth::revoke::revoke))
        .routes(routes!(admin::list_admins, admin::bind, admin::unbind))
        .routes(routes!(
            admin::list_workloads,
            admin::add_workload,
            admin::remove_workload
        ))
        .routes(routes!(admin::list_keys))
        .routes(routes!(admin::rotate_key))
        .routes(routes!(admin::rotate_ledger_key))
        .routes(routes!(admin::reseal))
        .routes(routes!(admin::revoke_key))
        .routes(routes!(admin::active_generation))
        .routes(routes!(admin::generation))
        .routes(routes!(openapi::openapi_json))
        .routes(routes!(ops::livez))
        .routes(routes!(ops::readyz))
        .routes(routes!(ops::metrics))
}

/// Public documents, also for pages in browsers.
fn public() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(oauth::authorization_server))
        .routes(routes!(oauth::openid_configuration))
        .routes(routes!(oauth::jwks))
        .routes(routes!(status_lists::status_list))
        .routes(routes!(federation::federation_configuration))
        .routes(routes!(federation::federation_jwks))
}

/// Documents that are public if the ledger is.
fn public_with_ledger() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(ledger::checkpoint))
}

/// The routes whose bodies may be large.
fn large() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(admin::activate))
        .routes(routes!(admin::check))
}

/// The OpenAPI description of the whole interface.
#[must_use]
pub fn openapi() -> utoipa::openapi::OpenApi {
    let all = api().merge(public()).merge(public_with_ledger());
    let mut document = all.merge(large()).into_openapi();
    openapi::complete(&mut document);
    document
}

/// The route of the log's tiles and checkpoint, as C2SP names them.
const TILES: &str = "/ledger/{*path}";

/// The router with all layers.
pub fn router(state: AppState) -> Router {
    let (routes, _) = api()
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .split_for_parts();
    let (large, _) = large()
        .layer(DefaultBodyLimit::max(MAX_ADMIN_BODY_BYTES))
        .split_for_parts();
    // A preflight uses a method that no route has, so the layers must also wrap that refusal.
    let (public, _) = public().split_for_parts();
    let public = public
        .method_not_allowed_fallback(refuse_method)
        .layer(middleware::from_fn(cors::always));
    let (ledger, _) = public_with_ledger().split_for_parts();
    let ledger = ledger
        .route(TILES, axum::routing::get(ledger::tile))
        .method_not_allowed_fallback(refuse_method)
        .layer(middleware::from_fn_with_state(
            state.clone(),
            cors::with_ledger,
        ));
    for route in openapi().paths.paths.keys() {
        // The router's pattern for a path of any length differs from the one in the description.
        let is_tile = route == "/ledger/{path}";
        let route = if is_tile { TILES } else { route };
        state.broker.core.metrics().route_begins(route);
    }
    let secret = [header::AUTHORIZATION, HeaderName::from_static("dpop")];
    routes
        .merge(large)
        .merge(public)
        .merge(ledger)
        .fallback(|| async { Problem::not_found("resource") })
        .method_not_allowed_fallback(refuse_method)
        .layer(middleware::from_fn_with_state(state.clone(), give_nonce))
        .layer(middleware::from_fn_with_state(state.clone(), timeout))
        .layer(middleware::from_fn(head::check))
        .layer(middleware::from_fn_with_state(
            state.clone(),
            limits::by_address,
        ))
        .layer(middleware::from_fn_with_state(state.clone(), dev_only))
        .layer(CatchPanicLayer::custom(|_| {
            Problem::internal().into_response()
        }))
        .layer(middleware::from_fn(oauth::answer_in_form))
        .layer(middleware::from_fn(challenge::write))
        .layer(set(header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .layer(set(header::REFERRER_POLICY, "no-referrer"))
        .layer(set(
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; frame-ancestors 'none'",
        ))
        .layer(set(header::CACHE_CONTROL, "no-store"))
        .layer(middleware::from_fn_with_state(state.clone(), observe))
        .layer(SetSensitiveRequestHeadersLayer::new(secret))
        .with_state(state)
}

async fn refuse_method() -> Problem {
    Problem::method_not_allowed()
}

fn set(name: HeaderName, value: &'static str) -> SetResponseHeaderLayer<HeaderValue> {
    SetResponseHeaderLayer::if_not_present(name, HeaderValue::from_static(value))
}

/// Counts and times every request under its route, in a span that continues the caller's trace. The
/// request id is the broker's own span id, never a value that the caller chose.
async fn observe(State(state): State<AppState>, mut request: Request, next: Next) -> Response {
    let began = Instant::now();
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map(|path| path.as_str().to_owned());
    let method = request.method().as_str().to_owned();
    let parent = request.headers().get("traceparent");
    let parent = parent.and_then(|value| value.to_str().ok());
    let trace = TraceContext::continue_from(parent, &SystemRandom::new()).ok();
    let id = trace.as_ref().map(|trace| trace.span_id.to_string());
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>();
    let client = peer.map(|ConnectInfo(peer)| {
        let proxies = &state.settings.trusted_proxies;
        proxies.client(peer.ip(), request.headers())
    });
    // An error span, so that each log line has its fields at any configured level.
    let span = tracing::error_span!(
        "request",
        method,
        route = route.as_deref().unwrap_or("none"),
        request_id = id,
        client = client.map(|ClientAddress(address)| address.to_string()),
        trace = trace.as_ref().map(ToString::to_string)
    );
    if let Some(client) = client {
        request.extensions_mut().insert(client);
    }
    if let Some(id) = &id {
        request.extensions_mut().insert(RequestId(id.clone()));
    }
    let mut response = next.run(request).instrument(span.clone()).await;
    if let Some(value) = trace.and_then(|trace| trace.to_string().parse().ok()) {
        response.headers_mut().insert("traceparent", value);
    }
    if let Some(value) = id.and_then(|id| id.parse().ok()) {
        response.headers_mut().insert("x-request-id", value);
    }
    let status = response.status().as_u16();
    span.in_scope(|| tracing::debug!(status, "answered"));
    let metrics = state.broker.core.metrics();
    metrics.http_request(route.as_deref(), &method, status, began.elapsed());
    response
}

/// Gives a caller with a DPoP proof the nonce for the next proof (RFC 9449 §8.2).
async fn give_nonce(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let nonces = state.settings.nonces.as_ref();
    let nonces = nonces.filter(|_| request.headers().contains_key("dpop"));
    let mut response = next.run(request).await;
    let nonce = nonces.map(|nonces| nonces.current(state.broker.core.now()));
    if let Some(nonce) = nonce.and_then(|nonce| nonce.parse().ok()) {
        response.headers_mut().insert("dpop-nonce", nonce);
    }
    response
}

/// Stops waiting after the configured time. The work itself is tracked and continues.
async fn timeout(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let closes = request.version() <= Version::HTTP_11;
    let (request, arrival) = head::Arrival::of(request);
    match tokio::time::timeout(state.settings.request_timeout, next.run(request)).await {
        Ok(response) => response,
        Err(_) if arrival.is_awaited() => {
            let mut response = Problem::body_timeout().into_response();
            if closes {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(header::CONNECTION, close);
            }
            response
        }
        Err(_) => Problem::timeout().into_response(),
    }
}

/// Development mode serves programs on this machine: it refuses every page in a browser.
async fn dev_only(State(state): State<AppState>, request: Request, next: Next) -> Response {
    if !state.settings.dev {
        return next.run(request).await;
    }
    let own = &state.settings.host;
    let port = own.rsplit(':').next().unwrap_or_default();
    let local = format!("localhost:{port}");
    let is_own = |host: &str| host == own || host.eq_ignore_ascii_case(&local);
    if !head::hosts(&request).all(is_own) || request.headers().contains_key(header::ORIGIN) {
        return Problem::forbidden("development mode serves programs on this machine only")
            .into_response();
    }
    next.run(request).await
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    /// Routes are declared in two ways: with the macro, which also describes them, and with the
    /// router's own method for the one path that cannot be described as it is routed.
    #[test]
    fn no_route_is_made_that_is_not_described() {
        let source = include_str!("mod.rs");
        let (source, _) = source.split_once("#[cfg(test)]").unwrap();
        assert_eq!(source.matches(".route(").count(), 1);
        for other in [
            ".route_service(",
            ".nest(",
            ".nest_service(",
            ".fallback_service(",
        ] {
            assert!(!source.contains(other), "{other}");
        }
        let document = serde_json::to_value(super::openapi()).unwrap();
        let paths: BTreeSet<_> = document["paths"].as_object().unwrap().keys().collect();
        let handlers = source.matches("routes!(").count();
        assert_eq!(paths.len(), handlers + 1, "{paths:?}");
    }
}
