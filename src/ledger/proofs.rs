//! Proofs about any earlier tree, from stored tiles: at most eight reads below 2³² leaves.
//!
//! `inclusion` and `consistency` make proofs, `tile` gives out a tile, `edge_at` and `root_at`
//! serve the start and the guard.
//!
//! The rule: a proof is made only for trees up to the size of the newest head, and from tiles that
//! fit together; an edge is checked against its head. Failures, as [`NoProof`]: `OutOfRange` for a
//! tree or leaf that never existed, `Store` if the store fails, `Broken` if the tiles do not fit.
//! `None` of `tile` means that the tile does not have that width yet. `merkle` plans and builds the
//! proofs. `broker::administration`, `http::ledger`, `witnesses`, `guard` and the appender call
//! this module; authorizing readers is left to them.

use std::collections::HashMap;

use crate::merkle::{
    ConsistencyPlan, Edge, EdgePlan, Hash, InclusionPlan, PlanError, RootPlan, TileId, TileSource,
};
use crate::store::heads::Head;
use crate::store::{Store, StoreError};

/// Why there is no proof.
#[derive(Debug, thiserror::Error)]
pub enum NoProof {
    /// The requested tree never existed, or does not contain the leaf.
    #[error("there is no such tree or leaf")]
    OutOfRange,
    /// The store did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The stored tiles do not match.
    #[error("the store's tiles do not match: {0}")]
    Broken(PlanError),
}

/// The proof that leaf `index` is in the tree of `size` leaves. `stored` is the size of the newest
/// head.
pub async fn inclusion(
    store: &Store,
    index: u64,
    size: u64,
    stored: u64,
) -> Result<Vec<Hash>, NoProof> {
    if size > stored {
        return Err(NoProof::OutOfRange);
    }
    let plan = InclusionPlan::new(index, size).map_err(|_| NoProof::OutOfRange)?;
    let tiles = fetch(store, plan.tiles(), stored).await?;
    plan.build(&tiles).map_err(NoProof::Broken)
}

/// The proof that the tree of `from` leaves is a prefix of the tree of `to` leaves. `stored` is the
/// size of the newest head.
pub async fn consistency(
    store: &Store,
    from: u64,
    to: u64,
    stored: u64,
) -> Result<Vec<Hash>, NoProof> {
    if to > stored {
        return Err(NoProof::OutOfRange);
    }
    let plan = ConsistencyPlan::new(from, to).map_err(|_| NoProof::OutOfRange)?;
    let tiles = fetch(store, plan.tiles(), stored).await?;
    plan.build(&tiles).map_err(NoProof::Broken)
}

/// A tile as C2SP clients request it. `None` if it does not exist or does not have that width yet.
pub async fn tile(store: &Store, id: TileId, size: u64) -> Result<Option<Vec<Hash>>, NoProof> {
    let mut tiles = fetch(store, &[id], size).await?;
    let hashes = tiles.remove(&id).unwrap_or_default();
    let width = usize::from(id.width);
    Ok(hashes.get(..width).map(<[Hash]>::to_vec))
}

/// The edge of the stored tree, checked against its head.
pub(super) async fn edge_at(store: &Store, head: Option<Head>) -> Result<Edge, String> {
    let Some(head) = head else {
        return Ok(Edge::empty());
    };
    let plan = EdgePlan::new(head.size);
    let tiles = fetch(store, plan.tiles(), head.size)
        .await
        .map_err(|error| error.to_string())?;
    let edge = plan.build(&tiles).map_err(|error| error.to_string())?;
    if edge.root() != head.root {
        return Err(format!(
            "the store's head (size {}, root {}) does not match its leaves (root {})",
            head.size,
            head.root,
            edge.root()
        ));
    }
    Ok(edge)
}

/// The root of the tree of `size` leaves.
pub(super) async fn root_at(store: &Store, size: u64, stored: u64) -> Result<Hash, String> {
    let plan = RootPlan::new(size);
    let tiles = fetch(store, plan.tiles(), stored)
        .await
        .map_err(|error| error.to_string())?;
    plan.build(&tiles).map_err(|error| error.to_string())
}

async fn fetch(
    store: &Store,
    wanted: &[TileId],
    stored: u64,
) -> Result<HashMap<TileId, Vec<Hash>>, NoProof> {
    let mut tiles = HashMap::new();
    for id in wanted {
        let hashes = match id.source(stored) {
            None => return Err(NoProof::OutOfRange),
            Some(TileSource::Stored) => store.tile(id.level, id.index).await?.unwrap_or_default(),
            Some(TileSource::Leaves { from, count }) => store.leaf_hashes(from, count).await?,
            Some(TileSource::Roots { level, from, count }) => {
                store.tile_roots(level, from, count).await?
            }
        };
        tiles.insert(*id, hashes);
    }
    Ok(tiles)
}
