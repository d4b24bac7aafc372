//! Health, readiness, metrics.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

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

/// The broker can serve; if not, the reason.
#[utoipa::path(get, path = "/readyz", responses((status = 200), (status = 503, body = super::problem::ProblemBody)))]
pub(super) async fn readyz(State(state): State<AppState>) -> Result<StatusCode, Problem> {
    if state.broker.shutdown().phase() != Phase::Running {
        return Err(Problem::unready("stopping"));
    }
    match state.broker.unready() {
        None => Ok(StatusCode::OK),
        Some(why) => Err(Problem::unready(&why)),
    }
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
