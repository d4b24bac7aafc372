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
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::AppState;
use super::evidence::Presented;
use super::json::Strict;
use super::params::{Named, Unrepeatable};
use super::problem::Problem;
use crate::clock::Timestamp;
use crate::domain::generation::Generation;
use crate::domain::workload::Identity;

/// A role of an identity.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AdminBody {
    /// The identity, for example `ci:repo-1`.
    #[schema(value_type = String)]
    workload: Identity,
    /// The role's name in policies.
    role: String,
}

/// Lists the identities and their roles.
#[utoipa::path(get, path = "/v1/admins", responses((status = 200, body = Object), (status = 403, body = super::problem::ProblemBody)))]
pub(super) async fn list_admins(
    State(state): State<AppState>,
    presented: Presented,
) -> Result<Json<Value>, Problem> {
    let bindings = state
        .broker
        .administration
        .admin_bindings(&presented.evidence)
        .await?;
    let admins: Vec<Value> = bindings
        .into_iter()
        .map(|(workload, role)| json!({"workload": workload, "role": role}))
        .collect();
    Ok(Json(json!({ "admins": admins })))
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

/// A workload key to register.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WorkloadKeyBody {
    /// The name of the attestor.
    attestor: String,
    /// The name of the workload.
    workload: String,
    /// The public key as a JWK: Ed25519 or P-256.
    #[schema(value_type = Object)]
    jwk: Value,
}

/// A workload key to remove.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WorkloadKeyRef {
    /// The name of the attestor.
    attestor: String,
    /// The name of the workload.
    workload: String,
    /// The key's thumbprint (RFC 7638).
    thumbprint: String,
}

/// Lists the registered workload keys.
#[utoipa::path(get, path = "/v1/workloads", responses((status = 200, body = Object), (status = 403, body = super::problem::ProblemBody)))]
pub(super) async fn list_workloads(
    State(state): State<AppState>,
    presented: Presented,
) -> Result<Json<Value>, Problem> {
    let rows = state
        .broker
        .administration
        .list_workload_keys(&presented.evidence)
        .await?;
    let workloads: Vec<Value> = rows
        .into_iter()
        .map(|row| {
            json!({
                "attestor": row.attestor,
                "workload": row.workload,
                "thumbprint": row.thumbprint,
                "jwk": row.jwk.as_deref().and_then(|jwk| serde_json::from_str::<Value>(jwk).ok()),
            })
        })
        .collect();
    Ok(Json(json!({ "workloads": workloads })))
}

/// Registers a workload key.
#[utoipa::path(post, path = "/v1/workloads", request_body = WorkloadKeyBody, responses((status = 201, body = Object), (status = 403, body = super::problem::ProblemBody)))]
pub(super) async fn add_workload(
    State(state): State<AppState>,
    presented: Presented,
    body: Strict<WorkloadKeyBody>,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let body = body.value;
    let thumbprint = state
        .broker
        .administration
        .add_workload_key(&presented.evidence, body.attestor, body.workload, &body.jwk)
        .await?;
    Ok((
        StatusCode::CREATED,
        Json(json!({ "thumbprint": thumbprint })),
    ))
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
#[utoipa::path(get, path = "/v1/keys", responses((status = 200, body = Object), (status = 403, body = super::problem::ProblemBody)))]
pub(super) async fn list_keys(
    State(state): State<AppState>,
    presented: Presented,
) -> Result<Json<Value>, Problem> {
    let keys = state
        .broker
        .signing_keys
        .list_keys(&presented.evidence)
        .await?;
    let keys: Vec<Value> = keys
        .into_iter()
        .map(|key| {
            let record = key.record;
            json!({
                "kid": record.kid,
                "purpose": record.purpose,
                "algorithm": record.algorithm.as_str(),
                "published_at": record.published_at,
                "active_from": record.active_from,
                "retire_at": record.retire_at,
                "remove_at": record.remove_at,
                "revoked_at": record.revoked_at,
                "signing": key.signing,
            })
        })
        .collect();
    Ok(Json(json!({ "keys": keys })))
}

/// Creates the next access-token key; it signs once it has been published long enough.
#[utoipa::path(post, path = "/v1/keys/rotate", responses((status = 201, body = Object), (status = 409, body = super::problem::ProblemBody)))]
pub(super) async fn rotate_key(
    State(state): State<AppState>,
    presented: Presented,
    _: Unrepeatable,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let kid = state
        .broker
        .signing_keys
        .rotate_keys(&presented.evidence)
        .await?;
    Ok((StatusCode::CREATED, Json(json!({ "kid": kid }))))
}

/// Rotates the log's key; for a while both keys sign each checkpoint.
#[utoipa::path(post, path = "/v1/keys/rotate-ledger", responses((status = 201, body = Object), (status = 409, body = super::problem::ProblemBody)))]
pub(super) async fn rotate_ledger_key(
    State(state): State<AppState>,
    presented: Presented,
    _: Unrepeatable,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let vkey = state
        .broker
        .signing_keys
        .rotate_ledger_key(&presented.evidence)
        .await?;
    Ok((StatusCode::CREATED, Json(json!({ "vkey": vkey }))))
}

/// Seals every key again, with the first sealing key.
#[utoipa::path(post, path = "/v1/keys/reseal", responses((status = 200, body = Object), (status = 403, body = super::problem::ProblemBody)))]
pub(super) async fn reseal(
    State(state): State<AppState>,
    presented: Presented,
) -> Result<Json<Value>, Problem> {
    let resealed = state
        .broker
        .signing_keys
        .reseal_keys(&presented.evidence)
        .await?;
    Ok(Json(json!({ "resealed": resealed })))
}

/// The revocation of a signing key.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RevokeKeyBody {
    /// Whether to report the consequences without revoking the key.
    #[serde(default)]
    dry_run: bool,
}

/// The consequences of the revocation of a signing key.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct KeyWithdrawalBody {
    /// The id of the key.
    kid: String,
    /// Whether the key was revoked.
    withdrawn: bool,
    /// Whether it signed new tokens until now.
    signing: bool,
    /// The key that signs new tokens afterwards. `null` if no key can at once.
    successor: Option<String>,
    /// When new tokens are signed again. `null` if there is a successor, or if the operator has to
    /// provide another key.
    #[schema(value_type = Option<String>, format = DateTime)]
    issuance_resumes_at: Option<Timestamp>,
    /// In a dry run: the number of live sessions whose tokens it signed.
    matched: Option<u64>,
    /// Until when verifiers that do not ask the broker may accept its tokens by a cached key set.
    #[schema(value_type = String, format = DateTime)]
    cached_until: Timestamp,
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
        cached_until: withdrawal.cached_until,
    }))
}

/// Shows the active generation.
#[utoipa::path(get, path = "/v1/generations/active", responses((status = 200, body = Object), (status = 404, body = super::problem::ProblemBody)))]
pub(super) async fn active_generation(
    State(state): State<AppState>,
    presented: Presented,
) -> Result<Json<Value>, Problem> {
    let (activation, bytes) = state
        .broker
        .administration
        .generation(&presented.evidence)
        .await?;
    Ok(Json(json!({
        "digest": activation.sealed.claimed(),
        "index": activation.sealed.index(),
        "by": activation.by,
        "at": activation.at,
        "generation": serde_json::from_slice::<Value>(&bytes).unwrap_or_default(),
    })))
}

/// Shows a generation that was active at some time, as the exact bytes of its digest.
#[utoipa::path(get, path = "/v1/generations/{digest}", params(("digest" = String, Path)), responses((status = 200, body = Object), (status = 404, body = super::problem::ProblemBody)))]
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

/// Stores a generation, checks it, and activates it.
///
/// The answer has its digest and, as `observed_policies`, the policies that are not enforced yet.
#[utoipa::path(post, path = "/v1/generations", request_body = Object, responses((status = 201, body = Object), (status = 409, body = super::problem::ProblemBody)))]
pub(super) async fn activate(
    State(state): State<AppState>,
    presented: Presented,
    request: Request,
) -> Result<Response, Problem> {
    // This body may be large, so it is read only if the caller may activate generations.
    let mut unreadable = None;
    let document = async {
        let read = Strict::<Generation>::from_request(request, &state).await;
        let read = read.map_err(|problem| unreadable = Some(problem));
        read.ok().map(|body| body.value)
    };
    let activated = state
        .broker
        .administration
        .activate(&presented.evidence, document);
    let activated = Box::pin(activated).await?;
    let Some(activated) = activated else {
        return Err(unreadable.unwrap_or_else(Problem::internal));
    };
    let observing = activated.observing.iter();
    let observing: Vec<Value> = observing
        .map(|(policy, until)| json!({"policy": policy, "enforced_from": until}))
        .collect();
    let answer = json!({"generation": activated.digest, "observed_policies": observing});
    Ok((StatusCode::CREATED, Json(answer)).into_response())
}

/// Checks a generation as an activation would, without activating it.
///
/// The answer says how many of the bound identities could activate the next generation by their
/// roles alone. Readers of generations may call it.
#[utoipa::path(post, path = "/v1/generations/check", request_body = Object, responses((status = 200, body = CheckedBody), (status = 400, body = super::problem::ProblemBody), (status = 403, body = super::problem::ProblemBody)))]
pub(super) async fn check(
    State(state): State<AppState>,
    presented: Presented,
    request: Request,
) -> Result<Json<CheckedBody>, Problem> {
    let mut unreadable = None;
    let document = async {
        let read = Strict::<Generation>::from_request(request, &state).await;
        let read = read.map_err(|problem| unreadable = Some(problem));
        read.ok().map(|body| body.value)
    };
    let checked = state
        .broker
        .administration
        .try_generation(&presented.evidence, document)
        .await?;
    let Some(checked) = checked else {
        return Err(unreadable.unwrap_or_else(Problem::internal));
    };
    let observing = checked.observing.into_iter();
    Ok(Json(CheckedBody {
        generation: checked.digest.to_string(),
        observed_policies: observing
            .map(|(policy, until)| ObservingBody {
                policy,
                enforced_from: until.to_string(),
            })
            .collect(),
        bound_identities: checked.bound,
        able_to_activate: checked.can_activate,
    }))
}

/// The result of a generation's check.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct CheckedBody {
    /// The digest of the generation.
    generation: String,
    /// Policies that would not be enforced yet.
    observed_policies: Vec<ObservingBody>,
    /// The number of identities that have a role.
    bound_identities: usize,
    /// How many of them could activate the next generation by their roles alone.
    able_to_activate: usize,
}

/// A policy that is not enforced yet.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ObservingBody {
    /// The id of the policy.
    policy: String,
    /// From when on it is enforced.
    enforced_from: String,
}
