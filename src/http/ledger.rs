//! The log: decisions, keys, checkpoint, entries, proofs, tiles, export.
//!
//! The rule: the configuration may make keys, checkpoint and hash tiles public. Entries and
//! decisions are for readers of the ledger, and for the identities that they belong to. Failures: a
//! missing right is a 404, like the one for an absent leaf. A store that does not answer is a 503,
//! so that no reader takes it for a missing tile.
//!
//! An export is a stream: it is cut off if a leaf is missing or was pruned meanwhile, or if its
//! reader is blocked, which is checked each second. A reader detects that by the size of its
//! checkpoint. `broker::administration` authorizes and reads; `ledger::proofs` makes the proofs.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::stream::{self, StreamExt as _};

use super::AppState;
use super::evidence::Presented;
use super::json;
use super::params::{Named, QueryParams};
use super::problem::Problem;
use super::receipt::texts;
use super::sessions::id;
use crate::broker::administration::records::Under;
use crate::broker::administration::time::AcceptTimeRequest;
use crate::broker::{Broker, BrokerError};
use crate::domain::limits::MAX_REASON_BYTES;
use crate::domain::text::check_text;
use crate::ids::DecisionId;
use crate::ledger::proofs::{self, NoProof};
use crate::merkle::{
    LogEntry, TILE_WIDTH, TilePath, encode_entries, hashes_to_bytes, write_log_entry,
    write_log_head,
};
use crate::store::leaves::StoredLeaf;
use crate::wire::decisions::{DecisionProofBody, DecisionQuery};
use crate::wire::ledger::{
    AcceptTimeAsk, AcceptTimeBody, ConsistencyBody, ConsistencyQuery, EntryBody, InclusionBody,
    ProofQuery, VkeysBody,
};

/// How long a reader of the whole log may read before the cutoffs are checked again.
const READER_IS_JUDGED_EVERY: Duration = Duration::from_secs(1);

fn under(witnessed: bool, witness: Option<&str>) -> Under<'_> {
    match (witnessed, witness) {
        (false, None) => Under::Newest,
        _ => Under::Witnessed(witness),
    }
}

/// Shows a decision with a proof under a signed checkpoint.
#[utoipa::path(get, path = "/v1/decisions/{id}", params(("id" = String, Path), DecisionQuery), responses((status = 200, body = DecisionProofBody), (status = 404, body = super::problem::ProblemBody)))]
pub(super) async fn decision(
    State(state): State<AppState>,
    presented: Presented,
    Named(text): Named,
    QueryParams(asked): QueryParams<DecisionQuery>,
) -> Result<Json<DecisionProofBody>, Problem> {
    let id: DecisionId = id("decision", &text)?;
    let under = under(asked.witnessed, asked.witness.as_deref());
    let shown = state
        .broker
        .administration
        .decision(&presented.evidence, id, under);
    let receipt = shown.await?;
    let leaf = serde_json::from_slice(&receipt.leaf).unwrap_or_default();
    let receipt = receipt.into();
    Ok(Json(DecisionProofBody { receipt, leaf }))
}

async fn check_public(state: &AppState, presented: &Presented) -> Result<(), Problem> {
    if state.settings.public_ledger {
        return Ok(());
    }
    state
        .broker
        .administration
        .check_ledger_reader(&presented.evidence)
        .await?;
    Ok(())
}

/// Lists the keys of the log's checkpoints.
#[utoipa::path(get, path = "/v1/ledger/keys", responses((status = 200, body = VkeysBody), (status = 404, body = super::problem::ProblemBody)))]
pub(super) async fn keys(
    State(state): State<AppState>,
    presented: Presented,
) -> Result<Json<VkeysBody>, Problem> {
    check_public(&state, &presented).await?;
    let keys = state.broker.core.ledger().keys();
    let vkeys = keys.iter().map(|key| key.verifier.to_string()).collect();
    Ok(Json(VkeysBody { vkeys }))
}

/// Accepts the time of the broker's clock although the ledger or the process had seen another time.
/// Permits with a later date are cut off.
#[utoipa::path(post, path = "/v1/ledger/accept-time", request_body = AcceptTimeAsk, responses((status = 200, body = AcceptTimeBody), (status = 400, body = super::problem::ProblemBody), (status = 403, body = super::problem::ProblemBody)))]
pub(super) async fn accept_time(
    State(state): State<AppState>,
    presented: Presented,
    body: json::Strict<AcceptTimeAsk>,
) -> Result<Json<AcceptTimeBody>, Problem> {
    let AcceptTimeAsk { time, reason } = body.value;
    if reason.is_empty() {
        return Err(Problem::invalid("/reason", "at least 1 byte"));
    }
    check_text(&reason, MAX_REASON_BYTES)
        .map_err(|refused| Problem::invalid("/reason", refused.to_string()))?;
    let ask = AcceptTimeRequest { time, reason };
    let accepted = state
        .broker
        .administration
        .accept_time(&presented.evidence, ask)
        .await?;
    Ok(Json(AcceptTimeBody {
        id: accepted.id,
        index: accepted.index,
        recorded_time: accepted.recorded,
        accepted_time: accepted.accepted,
    }))
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
    let signed = state.broker.core.ledger().checkpoints().borrow().clone();
    let signed = signed.ok_or_else(|| Problem::not_found("checkpoint"))?;
    let kind = (header::CONTENT_TYPE, "text/plain; charset=utf-8");
    let checkpoint = signed.checkpoint.to_string();
    if state.settings.public_ledger {
        // The next checkpoint may follow within a second.
        let cached = (header::CACHE_CONTROL, "public, no-cache");
        return Ok(([kind, cached], checkpoint).into_response());
    }
    Ok(([kind], checkpoint).into_response())
}

/// A full tile of an append-only tree never changes.
const FOR_EVER: &str = "public, max-age=31536000, immutable";

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
        .administration
        .ledger_entry(&presented.evidence, index)
        .await?;
    Ok(Json(EntryBody {
        index,
        leaf_hash: leaf.hash.to_string(),
        leaf: leaf.body.map(|body| STANDARD.encode(body)),
    }))
}

/// Proves that a leaf is in a tree (RFC 9162).
#[utoipa::path(get, path = "/v1/ledger/entries/{index}/proof", params(("index" = u64, Path), ProofQuery), responses((status = 200, body = InclusionBody), (status = 404, body = super::problem::ProblemBody)))]
pub(super) async fn proof(
    State(state): State<AppState>,
    presented: Presented,
    Named(text): Named,
    QueryParams(asked): QueryParams<ProofQuery>,
) -> Result<Json<InclusionBody>, Problem> {
    let index: u64 = id("ledger entry", &text)?;
    let leaf = state
        .broker
        .administration
        .ledger_entry(&presented.evidence, index)
        .await?;
    let leaf_hash = leaf.hash.to_string();
    let under = under(asked.witnessed, asked.witness.as_deref());
    let Some(tree_size) = asked.tree_size else {
        let proven = state.broker.administration.proven(leaf, under).await?;
        return Ok(Json(InclusionBody {
            index,
            tree_size: proven.tree_size,
            leaf_hash,
            inclusion_proof: texts(&proven.inclusion_proof),
            checkpoint: Some(proven.checkpoint),
            leaf: proven.leaf.body.map(|body| STANDARD.encode(body)),
        }));
    };
    if under != Under::Newest {
        let told = "leave it out: the witness's checkpoint determines the tree";
        return Err(Problem::invalid(json::member("tree_size"), told));
    }
    let inclusion = state
        .broker
        .administration
        .inclusion(index, tree_size)
        .await?;
    Ok(Json(InclusionBody {
        index,
        tree_size,
        leaf_hash,
        inclusion_proof: texts(&inclusion),
        checkpoint: None,
        leaf: None,
    }))
}

/// Proves that one tree is a prefix of another (RFC 9162).
#[utoipa::path(get, path = "/v1/ledger/consistency", params(ConsistencyQuery), responses((status = 200, body = ConsistencyBody), (status = 404, body = super::problem::ProblemBody)))]
pub(super) async fn consistency(
    State(state): State<AppState>,
    presented: Presented,
    QueryParams(asked): QueryParams<ConsistencyQuery>,
) -> Result<Json<ConsistencyBody>, Problem> {
    check_public(&state, &presented).await?;
    let to = asked
        .to
        .unwrap_or_else(|| state.broker.core.ledger().basis());
    let consistency = state
        .broker
        .administration
        .consistency(asked.from, to)
        .await?;
    Ok(Json(ConsistencyBody {
        from: asked.from,
        to,
        consistency_proof: texts(&consistency),
    }))
}

/// Downloads the whole log as one file: a signed checkpoint, then every leaf under it, one per
/// line, in the format that `taskpass ledger verify` reads. A pruned leaf has only its hash.
#[utoipa::path(get, path = "/v1/ledger/export", responses((status = 200, body = String, content_type = "application/jsonl"), (status = 404, body = super::problem::ProblemBody)))]
pub(super) async fn export(
    State(state): State<AppState>,
    presented: Presented,
) -> Result<Response, Problem> {
    let broker = Arc::clone(&state.broker);
    let reader = broker
        .administration
        .check_ledger_reader(&presented.evidence)
        .await?;
    let signed = broker.core.ledger().checkpoints().borrow().clone();
    let signed = signed.ok_or_else(|| Problem::not_found("checkpoint"))?;
    let mut head = Vec::new();
    write_log_head(&mut head, &signed.checkpoint)
        .map_err(|error| BrokerError::ledger(error.to_string()))?;
    let size = signed.head.size;
    let judged = Instant::now();
    let lines = stream::try_unfold((0, false, judged), move |(from, mut bodies, judged)| {
        let (broker, reader) = (Arc::clone(&broker), reader.clone());
        async move {
            if from >= size {
                return Ok(None);
            }
            let judged = if judged.elapsed() < READER_IS_JUDGED_EVERY {
                judged
            } else {
                // A reader that a cutoff blocks meanwhile gets no more.
                let still = broker.administration.check_still_reads(&reader).await;
                still.map_err(io::Error::other)?;
                Instant::now()
            };
            let count = (size - from).min(TILE_WIDTH as u64);
            let lines = log_lines(&broker, from, count, &mut bodies).await?;
            Ok::<_, io::Error>(Some((lines, (from + count, bodies, judged))))
        }
    });
    let whole = stream::once(async move { Ok(head) }).chain(lines);
    let kind = [(header::CONTENT_TYPE, "application/jsonl")];
    Ok((kind, Body::from_stream(whole)).into_response())
}

/// Some leaves as lines. A reader detects a truncated stream by the checkpoint's size.
async fn log_lines(
    broker: &Broker,
    from: u64,
    count: u64,
    bodies: &mut bool,
) -> io::Result<Vec<u8>> {
    let leaves = broker.core.store().leaves(from, count).await;
    let leaves = leaves.map_err(io::Error::other)?;
    if leaves.len() as u64 != count {
        return Err(io::Error::other("the store lacks leaves of its own head"));
    }
    write_lines(leaves, bodies)
}

/// Only the beginning of a log is pruned. A leaf without a body after one with a body (`bodies`)
/// was pruned during the export; in the file it would look like an omission.
fn write_lines(leaves: Vec<StoredLeaf>, bodies: &mut bool) -> io::Result<Vec<u8>> {
    let mut lines = Vec::new();
    for leaf in leaves {
        if *bodies && leaf.body.is_none() {
            return Err(io::Error::other("a leaf was pruned while the log was read"));
        }
        *bodies |= leaf.body.is_some();
        let entry = LogEntry {
            index: leaf.index,
            hash: leaf.hash,
            leaf: leaf.body,
        };
        write_log_entry(&mut lines, &entry)?;
    }
    Ok(lines)
}

/// The log for C2SP clients (tlog-tiles): `checkpoint`, `tile/L/N[.p/W]` and
/// `tile/entries/N[.p/W]`. The path has the segments of tlog-tiles.
#[utoipa::path(get, path = "/ledger/{path}", params(("path" = String, Path)), responses((status = 200, content((Vec<u8> = "application/octet-stream"), (String = "text/plain"))), (status = 404, body = super::problem::ProblemBody)))]
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
    let size = state.broker.core.ledger().basis();
    let kind = (header::CONTENT_TYPE, "application/octet-stream");
    let bytes = match tile {
        TilePath::Hashes(id) => {
            check_public(&state, &presented).await?;
            let hashes = match proofs::tile(state.broker.core.store(), id, size).await {
                Ok(hashes) => hashes.ok_or_else(not_found)?,
                Err(NoProof::OutOfRange) => return Err(not_found()),
                // An unavailable store must not look like a log without this tile.
                Err(error @ NoProof::Broken(_)) => {
                    return Err(BrokerError::ledger(error.to_string()).into());
                }
                Err(NoProof::Store(error)) => return Err(BrokerError::from(error).into()),
            };
            let bytes = hashes_to_bytes(&hashes);
            if state.settings.public_ledger {
                let cached = (header::CACHE_CONTROL, FOR_EVER);
                return Ok(([kind, cached], bytes).into_response());
            }
            bytes
        }
        // Entries are never public, even if the tiles are.
        TilePath::Entries { index, width } => {
            state
                .broker
                .administration
                .check_ledger_reader(&presented.evidence)
                .await?;
            let from = index.saturating_mul(TILE_WIDTH as u64);
            let leaves = state
                .broker
                .core
                .store()
                .leaves(from, u64::from(width))
                .await;
            let leaves = leaves.map_err(BrokerError::from)?;
            let bodies: Option<Vec<Vec<u8>>> = leaves.into_iter().map(|leaf| leaf.body).collect();
            let bodies = bodies
                .filter(|bodies| bodies.len() == usize::from(width))
                .ok_or_else(not_found)?;
            encode_entries(&bodies).map_err(|_| not_found())?
        }
    };
    Ok(([kind], bytes).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::merkle::leaf_hash;

    fn leaf(index: u64, body: bool) -> StoredLeaf {
        StoredLeaf {
            index,
            hash: leaf_hash(b"{}"),
            body: body.then(|| b"{}".to_vec()),
            subject: None,
            at: Timestamp::from_seconds(0),
        }
    }

    #[test]
    fn a_log_that_is_pruned_while_it_is_read_breaks_off() {
        let mut bodies = false;
        // Leaves that were pruned before are at the beginning, on any number of pages.
        write_lines(vec![leaf(0, false), leaf(1, false)], &mut bodies).unwrap();
        let page = vec![leaf(2, false), leaf(3, true), leaf(4, true)];
        let lines = write_lines(page, &mut bodies).unwrap();
        assert_eq!(String::from_utf8(lines).unwrap().lines().count(), 3);
        for hole in [
            vec![leaf(5, false)],
            vec![leaf(5, true), leaf(6, false), leaf(7, true)],
        ] {
            let error = write_lines(hole, &mut bodies.clone()).unwrap_err();
            assert!(error.to_string().contains("pruned while"), "{error}");
        }
    }
}
