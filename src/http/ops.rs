//! Health, readiness, metrics.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::AppState;
use super::evidence::Presented;
use super::problem::Problem;
use crate::metrics::CONTENT_TYPE;
use crate::shutdown::Phase;

/// The process is alive.
#[utoipa::path(get, path = "/livez", responses((status = 200)))]
pub(super) async fn livez() -> StatusCode {
    StatusCode::OK
}

/// What a ready replica says of itself.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ReadyBody {
    /// Its name in leases and logs.
    replica: String,
    /// The digest of its endpoints.
    endpoints: String,
    /// Running replicas with other endpoints than its own.
    other_endpoints: Vec<OtherEndpointsBody>,
}

/// A replica with other endpoints.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct OtherEndpointsBody {
    /// Its name.
    replica: String,
    /// The digest of its endpoints.
    endpoints: String,
}

/// The broker can serve; if not, the reason.
///
/// `other_endpoints` names the replicas that would ask other servers than this one. They do not make
/// it unready.
#[utoipa::path(get, path = "/readyz", responses((status = 200, body = ReadyBody), (status = 503, body = super::problem::ProblemBody)))]
pub(super) async fn readyz(State(state): State<AppState>) -> Result<Json<ReadyBody>, Problem> {
    let broker = &state.broker;
    if broker.shutdown().phase() != Phase::Running {
        return Err(Problem::unready("stopping"));
    }
    if let Some(why) = broker.unready() {
        return Err(Problem::unready(&why));
    }
    let others = broker.other_endpoints().into_iter();
    Ok(Json(ReadyBody {
        replica: broker.replica().to_owned(),
        endpoints: broker.endpoints_digest().to_string(),
        other_endpoints: others
            .map(|other| OtherEndpointsBody {
                replica: other.replica,
                endpoints: other.endpoints.to_string(),
            })
            .collect(),
    }))
}

/// Metrics in Prometheus' text format: on loopback for everybody, elsewhere for whoever may.
#[utoipa::path(get, path = "/metrics", responses((status = 200, body = String), (status = 403, body = super::problem::ProblemBody)))]
pub(super) async fn metrics(
    State(state): State<AppState>,
    presented: Presented,
) -> Result<Response, Problem> {
    if !state.settings.metrics_open {
        state
            .broker
            .check_metrics_reader(&presented.evidence)
            .await?;
    }
    let text = state.broker.metrics().render();
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response())
}
