//! The leaves of the old log that only its revoked key covers.
//!
//! `OldLog::vouched_by_alone` passes each of them on as an [`UnwitnessedLeaf`]: no witness and no
//! other key of the log signed a checkpoint over it, so the holder of the stolen key may have
//! written it.
//!
//! Both tables are read in batches. A row that does not hold a witness's signature of a checkpoint
//! that the store's tree contains counts for nothing. A store that does not answer is
//! `StartError::Unfit`. `taskpass keys revoke --ledger` lists these leaves.

use super::old_log::{OldLog, kid};
use crate::app::{StartError, unfit, unfit_store};
use crate::clock::Timestamp;
use crate::ledger::containment::{NotContained, contains};
use crate::merkle::{Checkpoint, Hash, Note, VerifierKey, WitnessKey};
use crate::store::cosigned::CosignedRow;
use crate::store::heads::Head;

/// The number of leaves read in one batch.
const BATCH_ROWS: u64 = 1_000;

/// The number of cosignatures read in one batch.
const COSIGNED_BATCH_ROWS: u32 = 256;

/// A leaf that only the signatures of one key cover.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct UnwitnessedLeaf {
    pub index: u64,
    pub hash: Hash,
    /// The time of its decision.
    pub at: Timestamp,
    /// The event that it records; `None` if its body was pruned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<String>,
    /// The id of the decision that it records, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decision: Option<String>,
}

impl OldLog {
    /// The number of leaves under the largest checkpoint that a witness of the old configuration
    /// signed.
    async fn witnessed(&self) -> Result<u64, StartError> {
        let mut most = 0;
        for witness in &self.config.ledger.witnesses {
            let key = witness.vkey.parse().map_err(unfit)?;
            most = most.max(self.witnessed_by(&key).await?);
        }
        Ok(most)
    }

    async fn witnessed_by(&self, key: &WitnessKey) -> Result<u64, StartError> {
        let vkey = key.to_string();
        let mut until = self.head.size;
        while until > 0 {
            let rows = self
                .store
                .cosigned_until(&vkey, until, COSIGNED_BATCH_ROWS)
                .await;
            let rows = rows.map_err(unfit_store)?;
            let Some(last) = rows.last() else { break };
            until = last.size - 1;
            for row in &rows {
                if self.is_witnessed(key, row).await? {
                    return Ok(row.size);
                }
            }
        }
        Ok(0)
    }

    /// Whether a row holds the witness's signature of a checkpoint that the store's tree contains.
    async fn is_witnessed(&self, key: &WitnessKey, row: &CosignedRow) -> Result<bool, StartError> {
        let read = || {
            let note = Note::parse(row.checkpoint.as_bytes()).ok()?;
            let text = note.unverified_text();
            key.cosigned(text, row.line.as_bytes()).ok()?;
            text.parse::<Checkpoint>().ok()
        };
        let Some(seen) = read().filter(|seen| seen.origin == self.origin && seen.size == row.size)
        else {
            return Ok(false);
        };
        let seen = Head {
            size: seen.size,
            root: seen.root,
        };
        match contains(&self.store, Some(self.head), seen).await {
            Ok(()) => Ok(true),
            Err(NotContained::Rewound(_)) => Ok(false),
            Err(unknown @ NotContained::Unknown(_)) => Err(unfit(unknown)),
        }
    }

    /// Passes each leaf to `each` that only `key` covers: no witness and no other key of the log
    /// signed a checkpoint over it. Returns the number of these leaves.
    pub async fn vouched_by_alone(
        &self,
        key: &VerifierKey,
        mut each: impl FnMut(UnwitnessedLeaf) -> Result<(), StartError>,
    ) -> Result<u64, StartError> {
        let own = kid(key);
        let others = self.records.iter().filter(|(kid, _)| *kid != own);
        // The signatures of another key cover every leaf that is older than that key's removal.
        let until = others.map(|(_, removed)| *removed).max();
        let mut count = 0;
        let mut from = self.witnessed().await?;
        while from < self.head.size {
            let leaves = self
                .store
                .leaves(from, BATCH_ROWS)
                .await
                .map_err(unfit_store)?;
            let Some(last) = leaves.last() else { break };
            from = last.index + 1;
            for leaf in leaves {
                if until.is_some_and(|until| leaf.at < until) {
                    continue;
                }
                let body = leaf.body.as_deref();
                let read = body.and_then(|body| serde_json::from_slice(body).ok());
                let text = |name: &str| {
                    let read: Option<&serde_json::Value> = read.as_ref();
                    Some(read?.get(name)?.as_str()?.to_owned())
                };
                count += 1;
                each(UnwitnessedLeaf {
                    index: leaf.index,
                    hash: leaf.hash,
                    at: leaf.at,
                    event: text("event"),
                    decision: text("decision"),
                })?;
            }
        }
        Ok(count)
    }
}
