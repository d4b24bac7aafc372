//! Health, readiness, metrics.
//!
//! `livez` answers while the process runs, `readyz` while the replica can serve, and `metrics` with
//! all metrics as text. The rule: metrics need the right `readMetrics`, unless the configuration
//! opens them and the request was made directly on this machine. A request with an unknown peer or
//! with a header of a proxy is not direct.
//!
//! Failures: `readyz` is a 503 `unready` with the reason, also while the broker stops. Replicas
//! with other endpoints are only named. `broker::health` judges; `server` uses [`exposition`] for
//! the separate listener of metrics.

use std::net::{IpAddr, SocketAddr};

use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};

use super::AppState;
use super::evidence::Presented;
use super::problem::Problem;
use crate::metrics::{CONTENT_TYPE, Metrics};
use crate::shutdown::Phase;
use crate::wire::health::{OtherEndpointsBody, ReadyBody};

/// Answers while the process runs.
#[utoipa::path(get, path = "/livez", responses((status = 200)))]
pub(super) async fn livez() -> StatusCode {
    StatusCode::OK
}

/// Answers 200 if the broker can serve; otherwise with the reason.
///
/// `other_endpoints` names the replicas that would use other servers than this one. They do not
/// make it unready.
#[utoipa::path(get, path = "/readyz", responses((status = 200, body = ReadyBody), (status = 503, body = super::problem::ProblemBody)))]
pub(super) async fn readyz(State(state): State<AppState>) -> Result<Json<ReadyBody>, Problem> {
    let broker = &state.broker;
    if broker.core.shutdown().phase() != Phase::Running {
        return Err(Problem::unready("stopping"));
    }
    if let Some(why) = broker.health.unready() {
        return Err(Problem::unready(&why));
    }
    let others = broker.health.other_endpoints().into_iter();
    Ok(Json(ReadyBody {
        replica: broker.core.replica().to_owned(),
        endpoints: broker.generations.endpoints_digest().to_string(),
        other_endpoints: others
            .map(|other| OtherEndpointsBody {
                replica: other.replica,
                endpoints: other.endpoints.to_string(),
            })
            .collect(),
    }))
}

/// Headers by which a proxy names its client.
const FORWARDED: [&str; 6] = [
    "forwarded",
    "via",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-real-ip",
];

/// Whether a request was made on this machine, for this machine: without a header of a proxy, and
/// not by a page in a browser, which would send another host or its origin.
fn is_direct(peer: SocketAddr, headers: &HeaderMap, uri: &Uri) -> bool {
    let host = headers.get(header::HOST).map(|host| host.to_str().ok());
    let named = match (uri.host(), host) {
        (Some(host), _) => Some(host),
        (None, Some(host)) => host.map(without_port),
        (None, None) => None,
    };
    let local = named.is_some_and(|name| {
        let address = name.trim_start_matches('[').trim_end_matches(']');
        let address = address.parse::<IpAddr>();
        name == "localhost" || address.is_ok_and(|address| address.is_loopback())
    });
    peer.ip().to_canonical().is_loopback()
        && local
        && !headers.contains_key(header::ORIGIN)
        && !FORWARDED.iter().any(|name| headers.contains_key(*name))
}

/// The host of `host:port`; the port may be absent.
fn without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => authority,
    }
}

/// All metrics as text.
pub(super) fn exposition(metrics: &Metrics) -> Response {
    let text = metrics.render();
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response()
}

/// Metrics in the text format of `OpenMetrics`. They need no credentials for a direct request on
/// this machine if no proxy is configured; otherwise they need an identity with `readMetrics`.
#[utoipa::path(get, path = "/metrics", responses((status = 200, body = String, content_type = "application/openmetrics-text"), (status = 403, body = super::problem::ProblemBody)))]
pub(super) async fn metrics(
    State(state): State<AppState>,
    peer: Option<Extension<ConnectInfo<SocketAddr>>>,
    uri: Uri,
    headers: HeaderMap,
    presented: Presented,
) -> Result<Response, Problem> {
    // Without a peer address the request is not known to be direct.
    let peer = peer.map(|Extension(ConnectInfo(peer))| peer);
    let direct = peer.is_some_and(|peer| is_direct(peer, &headers, &uri));
    if !(state.settings.metrics_open && direct) {
        state
            .broker
            .administration
            .check_metrics_reader(&presented.evidence)
            .await?;
    }
    Ok(exposition(state.broker.core.metrics()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn direct(peer: &str, uri: &str, headers: &[(&'static str, &str)]) -> bool {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().unwrap());
        }
        is_direct(peer.parse().unwrap(), &map, &uri.parse().unwrap())
    }

    #[test]
    fn a_request_is_direct_that_was_made_here_for_here() {
        let path = "/metrics";
        for host in [
            "127.0.0.1:8443",
            "localhost:8443",
            "[::1]:8443",
            "[::1]",
            "127.0.0.1",
        ] {
            assert!(direct("127.0.0.1:9", path, &[("host", host)]), "{host}");
            assert!(direct("[::1]:9", path, &[("host", host)]), "{host}");
            assert!(direct("[::ffff:127.0.0.1]:9", path, &[("host", host)]));
            assert!(!direct("192.0.2.7:9", path, &[("host", host)]), "{host}");
        }
        assert!(direct("127.0.0.1:9", "http://localhost:8443/metrics", &[]));
        assert!(!direct("127.0.0.1:9", "http://broker.example/metrics", &[]));
        assert!(!direct("127.0.0.1:9", path, &[]));
    }

    #[test]
    fn what_a_proxy_passes_on_and_what_a_page_asks_is_not_direct() {
        let host = ("host", "127.0.0.1:8443");
        for name in FORWARDED.into_iter().chain(["origin"]) {
            let asked = direct("127.0.0.1:9", "/metrics", &[host, (name, "for=192.0.2.7")]);
            assert!(!asked, "{name}");
        }
        for host in [
            "broker.example",
            "rebound.example:8443",
            "127.0.0.1.example",
            "[::2]:8443",
            "",
        ] {
            assert!(
                !direct("127.0.0.1:9", "/metrics", &[("host", host)]),
                "{host}"
            );
        }
    }
}
