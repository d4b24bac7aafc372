//! The resources that admins change: roles, workload keys, signing keys, generations.
//!
//! Each handler passes the evidence to one act of `broker::administration` or
//! `broker::signing_keys`. The rule: nothing is authorized or decided here. `activate` and `check`
//! have large bodies, which count only if the broker authorized the caller: an error of the body is
//! returned only to a caller with the right.
//!
//! Failures: a malformed body is a 400 with a pointer. All others are the broker's errors, which
//! `problem` maps. `http::mod` routes to this module.

use axum::Json;
use axum::extract::{FromRequest, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::AppState;
use super::bodies::BodyShare;
use super::evidence::Presented;
use super::json::Strict;
use super::params::{Named, Unrepeatable};
use super::problem::Problem;
use crate::clock::Timestamp;
use crate::domain::generation::Generation;
use crate::wire::admins::{AdminBody, AdminsBody, BoundRoleBody};
use crate::wire::generations::{
    ActivatedBody, ActiveGenerationBody, CheckedBody, GenerationDocument, ObservingBody,
};
use crate::wire::keys::{
    KeyBody, KeyWithdrawalBody, KeysBody, ResealedBody, RevokeKeyBody, RotatedKeyBody,
    RotatedLedgerKeyBody,
};
use crate::wire::workload_keys::{
    RegisteredKeyBody, ThumbprintBody, WorkloadKeyBody, WorkloadKeyRef, WorkloadKeysBody,
};

/// Lists the identities and their roles.
#[utoipa::path(get, path = "/v1/admins", responses((status = 200, body = AdminsBody), (status = 403, body = super::problem::ProblemBody)))]
pub(super) async fn list_admins(
    State(state): State<AppState>,
    presented: Presented,
) -> Result<Json<AdminsBody>, Problem> {
    let bindings = state
        .broker
        .administration
        .admin_bindings(&presented.evidence)
        .await?;
    let admins = bindings
        .into_iter()
        .map(|(workload, role)| BoundRoleBody { workload, role })
        .collect();
    Ok(Json(AdminsBody { admins }))
}

/// Gives a role to an identity.
#[utoipa::path(post, path = "/v1/admins", request_body = AdminBody, responses((status = 204), (status = 403, body = super::problem::ProblemBody)))]
pub(super) async fn bind(
    State(state): State<AppState>,
    presented: Presented,
    body: Strict<AdminBody>,
) -> Result<StatusCode, Problem> {
    let AdminBody { workload, role } = body.value;
    let bound = state
        .broker
        .administration
        .bind_admin(&presented.evidence, workload, role, true);
    bound.await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Removes a role from an identity.
#[utoipa::path(delete, path = "/v1/admins", request_body = AdminBody, responses((status = 204), (status = 403, body = super::problem::ProblemBody), (status = 409, body = super::problem::ProblemBody)))]
pub(super) async fn unbind(
    State(state): State<AppState>,
    presented: Presented,
    body: Strict<AdminBody>,
) -> Result<StatusCode, Problem> {
    let AdminBody { workload, role } = body.value;
    let unbound =
        state
            .broker
            .administration
            .bind_admin(&presented.evidence, workload, role, false);
    unbound.await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Lists the registered workload keys.
#[utoipa::path(get, path = "/v1/workloads", responses((status = 200, body = WorkloadKeysBody), (status = 403, body = super::problem::ProblemBody)))]
pub(super) async fn list_workloads(
    State(state): State<AppState>,
    presented: Presented,
) -> Result<Json<WorkloadKeysBody>, Problem> {
    let rows = state
        .broker
        .administration
        .list_workload_keys(&presented.evidence)
        .await?;
    let workloads = rows
        .into_iter()
        .map(|row| RegisteredKeyBody {
            jwk: row
                .jwk
                .as_deref()
                .and_then(|jwk| serde_json::from_str(jwk).ok()),
            attestor: row.attestor,
            workload: row.workload,
            thumbprint: row.thumbprint,
        })
        .collect();
    Ok(Json(WorkloadKeysBody { workloads }))
}

/// Registers a workload key.
#[utoipa::path(post, path = "/v1/workloads", request_body = WorkloadKeyBody, responses((status = 201, body = ThumbprintBody), (status = 403, body = super::problem::ProblemBody)))]
pub(super) async fn add_workload(
    State(state): State<AppState>,
    presented: Presented,
    body: Strict<WorkloadKeyBody>,
) -> Result<(StatusCode, Json<ThumbprintBody>), Problem> {
    let body = body.value;
    let thumbprint = state
        .broker
        .administration
        .add_workload_key(&presented.evidence, body.attestor, body.workload, &body.jwk)
        .await?;
    Ok((StatusCode::CREATED, Json(ThumbprintBody { thumbprint })))
}

/// Removes a workload key.
#[utoipa::path(delete, path = "/v1/workloads", request_body = WorkloadKeyRef, responses((status = 204), (status = 403, body = super::problem::ProblemBody), (status = 409, body = super::problem::ProblemBody)))]
pub(super) async fn remove_workload(
    State(state): State<AppState>,
    presented: Presented,
    body: Strict<WorkloadKeyRef>,
) -> Result<StatusCode, Problem> {
    let body = body.value;
    state
        .broker
        .administration
        .remove_workload_key(
            &presented.evidence,
            body.attestor,
            body.workload,
            body.thumbprint,
        )
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Lists the broker's signing keys.
#[utoipa::path(get, path = "/v1/keys", responses((status = 200, body = KeysBody), (status = 403, body = super::problem::ProblemBody)))]
pub(super) async fn list_keys(
    State(state): State<AppState>,
    presented: Presented,
) -> Result<Json<KeysBody>, Problem> {
    let keys = state
        .broker
        .signing_keys
        .list_keys(&presented.evidence)
        .await?;
    let keys = keys
        .into_iter()
        .map(|key| {
            let record = key.record;
            KeyBody {
                kid: record.kid,
                purpose: record.purpose.as_str().to_owned(),
                algorithm: record.algorithm.as_str().to_owned(),
                published_at: record.published_at,
                active_from: record.active_from,
                retire_at: record.retire_at,
                remove_at: record.remove_at,
                revoked_at: record.revoked_at,
                signing: key.signing,
            }
        })
        .collect();
    Ok(Json(KeysBody { keys }))
}

/// Creates the next access-token key; it signs once it has been published long enough.
#[utoipa::path(post, path = "/v1/keys/rotate", responses((status = 201, body = RotatedKeyBody), (status = 409, body = super::problem::ProblemBody)))]
pub(super) async fn rotate_key(
    State(state): State<AppState>,
    presented: Presented,
    _: Unrepeatable,
) -> Result<(StatusCode, Json<RotatedKeyBody>), Problem> {
    let kid = state
        .broker
        .signing_keys
        .rotate_keys(&presented.evidence)
        .await?;
    Ok((StatusCode::CREATED, Json(RotatedKeyBody { kid })))
}

/// Rotates the log's key; for a while both keys sign each checkpoint.
#[utoipa::path(post, path = "/v1/keys/rotate-ledger", responses((status = 201, body = RotatedLedgerKeyBody), (status = 409, body = super::problem::ProblemBody)))]
pub(super) async fn rotate_ledger_key(
    State(state): State<AppState>,
    presented: Presented,
    _: Unrepeatable,
) -> Result<(StatusCode, Json<RotatedLedgerKeyBody>), Problem> {
    let vkey = state
        .broker
        .signing_keys
        .rotate_ledger_key(&presented.evidence)
        .await?;
    Ok((StatusCode::CREATED, Json(RotatedLedgerKeyBody { vkey })))
}

/// Seals every key again, with the first sealing key.
#[utoipa::path(post, path = "/v1/keys/reseal", responses((status = 200, body = ResealedBody), (status = 403, body = super::problem::ProblemBody)))]
pub(super) async fn reseal(
    State(state): State<AppState>,
    presented: Presented,
) -> Result<Json<ResealedBody>, Problem> {
    let resealed = state
        .broker
        .signing_keys
        .reseal_keys(&presented.evidence)
        .await?;
    Ok(Json(ResealedBody { resealed }))
}

/// Revokes an access-token key at once, and cuts off the tokens that it signed.
#[utoipa::path(post, path = "/v1/keys/{kid}/revoke", params(("kid" = String, Path)), request_body = RevokeKeyBody, responses((status = 200, body = KeyWithdrawalBody), (status = 403, body = super::problem::ProblemBody), (status = 404, body = super::problem::ProblemBody)))]
pub(super) async fn revoke_key(
    State(state): State<AppState>,
    presented: Presented,
    Named(kid): Named,
    body: Strict<RevokeKeyBody>,
) -> Result<Json<KeyWithdrawalBody>, Problem> {
    let dry_run = body.value.dry_run;
    let broker = &state.broker;
    let withdrawal = broker
        .signing_keys
        .revoke_key(&presented.evidence, &kid, dry_run)
        .await?;
    Ok(Json(KeyWithdrawalBody {
        kid: withdrawal.kid,
        withdrawn: withdrawal.done,
        signing: withdrawal.signing,
        successor: withdrawal.successor,
        issuance_resumes_at: withdrawal.resumes_at,
        matched: withdrawal.matched,
        has_more: withdrawal.has_more,
        cached_until: withdrawal.cached_until,
    }))
}

/// Shows the active generation.
#[utoipa::path(get, path = "/v1/generations/active", responses((status = 200, body = ActiveGenerationBody), (status = 404, body = super::problem::ProblemBody)))]
pub(super) async fn active_generation(
    State(state): State<AppState>,
    presented: Presented,
) -> Result<Json<ActiveGenerationBody>, Problem> {
    let (activation, bytes) = state
        .broker
        .administration
        .generation(&presented.evidence)
        .await?;
    Ok(Json(ActiveGenerationBody {
        digest: activation.sealed.claimed(),
        index: activation.sealed.index(),
        by: activation.by,
        at: activation.at,
        generation: serde_json::from_slice(&bytes).unwrap_or_default(),
    }))
}

/// Shows a generation that was active at some time, as the exact bytes of its digest.
#[utoipa::path(get, path = "/v1/generations/{digest}", params(("digest" = String, Path)), responses((status = 200, body = GenerationDocument), (status = 404, body = super::problem::ProblemBody)))]
pub(super) async fn generation(
    State(state): State<AppState>,
    presented: Presented,
    Named(text): Named,
) -> Result<Response, Problem> {
    let digest = super::sessions::id("generation", &text)?;
    let bytes = state
        .broker
        .administration
        .generation_of(&presented.evidence, digest)
        .await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], bytes).into_response())
}

/// Reads a document, which may be large. `outcome` has the error, or the document's memory: the
/// handler keeps it while the broker works on the document.
async fn read_document(
    request: Request,
    state: &AppState,
    outcome: &mut Option<Result<BodyShare, Problem>>,
) -> Option<Generation> {
    match Strict::<Generation>::from_request(request, state).await {
        Ok(body) => {
            *outcome = Some(Ok(body.share));
            Some(body.value)
        }
        Err(problem) => {
            *outcome = Some(Err(problem));
            None
        }
    }
}

/// Why there is no document.
fn unreadable(outcome: Option<Result<BodyShare, Problem>>) -> Problem {
    let error = outcome.and_then(Result::err);
    error.unwrap_or_else(Problem::internal)
}

/// Stores a generation, checks it, and activates it.
///
/// The answer has its digest and, as `observed_policies`, the policies that are not enforced yet.
#[utoipa::path(post, path = "/v1/generations", request_body = GenerationDocument, responses((status = 201, body = ActivatedBody), (status = 409, body = super::problem::ProblemBody)))]
pub(super) async fn activate(
    State(state): State<AppState>,
    presented: Presented,
    request: Request,
) -> Result<(StatusCode, Json<ActivatedBody>), Problem> {
    // This body may be large, so it is read only if the caller may activate generations.
    let mut outcome = None;
    let document = read_document(request, &state, &mut outcome);
    let activated = state
        .broker
        .administration
        .activate(&presented.evidence, document);
    let activated = Box::pin(activated).await?;
    let Some(activated) = activated else {
        return Err(unreadable(outcome));
    };
    let answer = ActivatedBody {
        generation: activated.digest,
        observed_policies: observing(activated.observing),
    };
    Ok((StatusCode::CREATED, Json(answer)))
}

fn observing(policies: Vec<(String, Timestamp)>) -> Vec<ObservingBody> {
    policies
        .into_iter()
        .map(|(policy, enforced_from)| ObservingBody {
            policy,
            enforced_from,
        })
        .collect()
}

/// Checks a generation as an activation would, without activating it.
///
/// The answer says how many of the bound identities could activate the next generation by their
/// roles alone. Readers of generations may call it.
#[utoipa::path(post, path = "/v1/generations/check", request_body = GenerationDocument, responses((status = 200, body = CheckedBody), (status = 400, body = super::problem::ProblemBody), (status = 403, body = super::problem::ProblemBody)))]
pub(super) async fn check(
    State(state): State<AppState>,
    presented: Presented,
    request: Request,
) -> Result<Json<CheckedBody>, Problem> {
    let mut outcome = None;
    let document = read_document(request, &state, &mut outcome);
    let checked = state
        .broker
        .administration
        .try_generation(&presented.evidence, document)
        .await?;
    let Some(checked) = checked else {
        return Err(unreadable(outcome));
    };
    Ok(Json(CheckedBody {
        generation: checked.digest,
        observed_policies: observing(checked.observing),
        bound_identities: checked.bound,
        able_to_activate: checked.can_activate,
    }))
}
