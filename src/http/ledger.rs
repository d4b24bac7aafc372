//! The log: decisions, keys, checkpoint, entries, proofs, tiles.
//!
//! Keys, checkpoint and hash tiles may be made public by the configuration; entries and decisions
//! are for readers of the ledger, and everybody's own.

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::AppState;
use super::evidence::Presented;
use super::params::{Asked, Named};
use super::problem::Problem;
use super::sessions::id;
use crate::broker::BrokerError;
use crate::ids::DecisionId;
use crate::ledger::proofs::{self, NoProof};
use crate::merkle::{Hash, Receipt, TILE_WIDTH, TilePath, encode_entries, hashes_to_bytes};

/// A decision, with the proof that it is on record.
#[derive(Debug, Serialize, ToSchema)]
pub struct DecisionProofBody {
    #[schema(value_type = Object)]
    receipt: Receipt,
    /// The leaf, read.
    #[schema(value_type = Object)]
    leaf: serde_json::Value,
}

/// Shows a decision with a proof in the newest tree.
#[utoipa::path(get, path = "/v1/decisions/{id}", params(("id" = String, Path)), responses((status = 200, body = DecisionProofBody), (status = 404, body = super::problem::ProblemBody)))]
pub(super) async fn decision(
    State(state): State<AppState>,
    presented: Presented,
    Named(text): Named,
) -> Result<Json<DecisionProofBody>, Problem> {
    let id: DecisionId = id("decision", &text)?;
    let receipt = state.broker.decision(&presented.evidence, id).await?;
    let leaf = serde_json::from_slice(&receipt.leaf).unwrap_or_default();
    Ok(Json(DecisionProofBody { receipt, leaf }))
}

async fn check_public(state: &AppState, presented: &Presented) -> Result<(), Problem> {
    if state.settings.public_ledger {
        return Ok(());
    }
    Ok(state
        .broker
        .check_ledger_reader(&presented.evidence)
        .await?)
}

/// The log's verifier keys.
#[derive(Debug, Serialize, ToSchema)]
pub struct VkeysBody {
    /// Signed-note verifier keys, the current one first.
    vkeys: Vec<String>,
}

/// Lists the keys of the log's checkpoints.
#[utoipa::path(get, path = "/v1/ledger/keys", responses((status = 200, body = VkeysBody), (status = 404, body = super::problem::ProblemBody)))]
pub(super) async fn keys(
    State(state): State<AppState>,
    presented: Presented,
) -> Result<Json<VkeysBody>, Problem> {
    check_public(&state, &presented).await?;
    let keys = state.broker.ledger().keys();
    let vkeys = keys.iter().map(|key| key.verifier.to_string()).collect();
    Ok(Json(VkeysBody { vkeys }))
}

/// Shows the newest signed checkpoint, as C2SP defines it.
#[utoipa::path(get, path = "/v1/ledger/checkpoint", responses((status = 200, body = String, content_type = "text/plain"), (status = 404, body = super::problem::ProblemBody)))]
pub(super) async fn checkpoint(
    State(state): State<AppState>,
    presented: Presented,
) -> Result<Response, Problem> {
    check_public(&state, &presented).await?;
    newest(&state)
}

fn newest(state: &AppState) -> Result<Response, Problem> {
    let signed = state.broker.ledger().checkpoints().borrow().clone();
    let signed = signed.ok_or_else(|| Problem::not_found("checkpoint"))?;
    Ok((
        [(header::CONTENT_TYPE, "text/plain; charset=utf-8")],
        signed.checkpoint.to_string(),
    )
        .into_response())
}

/// A leaf.
#[derive(Debug, Serialize, ToSchema)]
pub struct EntryBody {
    index: u64,
    leaf_hash: String,
    /// The leaf's bytes in base64; absent once they are pruned.
    #[serde(skip_serializing_if = "Option::is_none")]
    leaf: Option<String>,
}

/// Shows one leaf.
#[utoipa::path(get, path = "/v1/ledger/entries/{index}", params(("index" = u64, Path)), responses((status = 200, body = EntryBody), (status = 404, body = super::problem::ProblemBody)))]
pub(super) async fn entry(
    State(state): State<AppState>,
    presented: Presented,
    Named(text): Named,
) -> Result<Json<EntryBody>, Problem> {
    let index: u64 = id("ledger entry", &text)?;
    let leaf = state
        .broker
        .ledger_entry(&presented.evidence, index)
        .await?;
    Ok(Json(EntryBody {
        index,
        leaf_hash: leaf.hash.to_string(),
        leaf: leaf.body.map(|body| STANDARD.encode(body)),
    }))
}

/// In which tree.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct ProofQuery {
    /// Leaves in the tree; left out, in the newest.
    tree_size: Option<u64>,
}

/// The proof that a leaf is in a tree.
#[derive(Debug, Serialize, ToSchema)]
pub struct InclusionBody {
    index: u64,
    tree_size: u64,
    leaf_hash: String,
    #[schema(value_type = Vec<String>)]
    inclusion_proof: Vec<Hash>,
}

/// Proves that a leaf is in a tree (RFC 9162).
#[utoipa::path(get, path = "/v1/ledger/entries/{index}/proof", params(("index" = u64, Path), ProofQuery), responses((status = 200, body = InclusionBody), (status = 404, body = super::problem::ProblemBody)))]
pub(super) async fn proof(
    State(state): State<AppState>,
    presented: Presented,
    Named(text): Named,
    Asked(asked): Asked<ProofQuery>,
) -> Result<Json<InclusionBody>, Problem> {
    let index: u64 = id("ledger entry", &text)?;
    let leaf = state
        .broker
        .ledger_entry(&presented.evidence, index)
        .await?;
    let tree_size = asked
        .tree_size
        .unwrap_or_else(|| state.broker.ledger().basis());
    Ok(Json(InclusionBody {
        index,
        tree_size,
        leaf_hash: leaf.hash.to_string(),
        inclusion_proof: state.broker.inclusion(index, tree_size).await?,
    }))
}

/// Between which trees.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct ConsistencyQuery {
    /// Leaves in the earlier tree.
    from: u64,
    /// Leaves in the later tree; left out, in the newest.
    to: Option<u64>,
}

/// The proof that one tree is the beginning of another.
#[derive(Debug, Serialize, ToSchema)]
pub struct ConsistencyBody {
    from: u64,
    to: u64,
    #[schema(value_type = Vec<String>)]
    consistency_proof: Vec<Hash>,
}

/// Proves that one tree is the beginning of another (RFC 9162).
#[utoipa::path(get, path = "/v1/ledger/consistency", params(ConsistencyQuery), responses((status = 200, body = ConsistencyBody), (status = 404, body = super::problem::ProblemBody)))]
pub(super) async fn consistency(
    State(state): State<AppState>,
    presented: Presented,
    Asked(asked): Asked<ConsistencyQuery>,
) -> Result<Json<ConsistencyBody>, Problem> {
    check_public(&state, &presented).await?;
    let to = asked.to.unwrap_or_else(|| state.broker.ledger().basis());
    Ok(Json(ConsistencyBody {
        from: asked.from,
        to,
        consistency_proof: state.broker.consistency(asked.from, to).await?,
    }))
}

/// The log as others' tools read it (C2SP tlog-tiles): `checkpoint`, `tile/L/N[.p/W]` and
/// `tile/entries/N[.p/W]`. The path has as many parts as tlog-tiles gives it.
#[utoipa::path(get, path = "/ledger/{path}", params(("path" = String, Path)), responses((status = 200, body = Vec<u8>, content_type = "application/octet-stream"), (status = 404, body = super::problem::ProblemBody)))]
pub(super) async fn tile(
    State(state): State<AppState>,
    presented: Presented,
    Named(path): Named,
) -> Result<Response, Problem> {
    if path == "checkpoint" {
        check_public(&state, &presented).await?;
        return newest(&state);
    }
    let not_found = || Problem::not_found("tile");
    let tile: TilePath = path.parse().map_err(|_| not_found())?;
    let size = state.broker.ledger().basis();
    let bytes = match tile {
        TilePath::Hashes(id) => {
            check_public(&state, &presented).await?;
            let hashes = match proofs::tile(state.broker.store(), id, size).await {
                Ok(hashes) => hashes.ok_or_else(not_found)?,
                Err(NoProof::OutOfRange) => return Err(not_found()),
                // A store that is away is not a log without this tile.
                Err(error @ NoProof::Broken(_)) => {
                    return Err(BrokerError::FailClosed(error.to_string()).into());
                }
                Err(NoProof::Store(error)) => return Err(BrokerError::from(error).into()),
            };
            hashes_to_bytes(&hashes)
        }
        // Entries are never public, whatever the tiles are.
        TilePath::Entries { index, width } => {
            state
                .broker
                .check_ledger_reader(&presented.evidence)
                .await?;
            let from = index.saturating_mul(TILE_WIDTH as u64);
            let leaves = state.broker.store().leaves(from, u64::from(width)).await;
            let leaves = leaves.map_err(BrokerError::from)?;
            let bodies: Option<Vec<Vec<u8>>> = leaves.into_iter().map(|leaf| leaf.body).collect();
            let bodies = bodies
                .filter(|bodies| bodies.len() == usize::from(width))
                .ok_or_else(not_found)?;
            encode_entries(&bodies).map_err(|_| not_found())?
        }
    };
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], bytes).into_response())
}
