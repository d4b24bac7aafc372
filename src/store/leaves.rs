//! Reads of the ledger: leaves, tiles, decisions.
//!
//! `leaf`, `leaves` and `acts` read leaves, `leaf_hashes`, `tile` and `tile_roots` the tree,
//! `decisions` and `openings` the inputs. `check_leaf_format` judges a database at its start.
//!
//! The rule: a body is returned only if it has the hash of its leaf. Failures: a changed body is
//! `Forged` and names the leaf; it does not stop the ledger. A pruned body or opening is `None`; an
//! index beyond the log's end is absent. Leaves of another format make the database `Unfit`. No
//! reader is authorized here, and the hashes are not compared with the head:
//! `broker::administration::records` and `ledger::proofs` do that. The ledger, the exports and the
//! sweeper also read here.

use tracing::error;

use super::codec::{digest, signed, unsigned};
use super::{Store, StoreError, read};
use crate::clock::Timestamp;
use crate::domain::leaf::{Leaf, LeafError, Opening};
use crate::ids::DecisionId;
use crate::merkle::{Hash, leaf_hash};

/// A leaf that was read. The body is `None` once it was pruned; the hash stays.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct StoredLeaf {
    pub index: u64,
    pub hash: Hash,
    /// The leaf in its stored format.
    pub body: Option<Vec<u8>>,
    /// The identity that the leaf belongs to. `None` if it belongs to no workload.
    pub subject: Option<String>,
    /// The time of the decision.
    pub at: Timestamp,
}

/// The openings of a leaf's commitments; `None` where they were deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it all")]
pub struct Openings {
    pub input: Option<Opening>,
    pub purpose: Option<Opening>,
}

/// A decision's leaf with the opening of its input. Either is `None` where it was pruned.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct DecisionRow {
    pub index: u64,
    pub hash: Hash,
    /// The time of the decision.
    pub at: Timestamp,
    /// The leaf in its stored format.
    pub body: Option<Vec<u8>>,
    /// The opening of the commitment to the input.
    pub input: Option<Opening>,
}

impl Store {
    /// The time of the newest leaf.
    pub async fn newest_leaf_at(&self) -> Result<Option<Timestamp>, StoreError> {
        let row: Option<(Timestamp,)> = read!(self, db => {
            sqlx::query_as("/* newest_leaf_at */ SELECT at FROM leaf ORDER BY idx DESC LIMIT 1")
                .fetch_optional(db)
                .await?
        });
        Ok(row.map(|(at,)| at))
    }

    /// The largest expiry of evidence whose use may have been deleted, since a time was last
    /// accepted. `None` if none was deleted since then.
    pub async fn forgotten(&self) -> Result<Option<Timestamp>, StoreError> {
        let row: Option<(Option<Timestamp>,)> = read!(self, db => {
            sqlx::query_as("/* forgotten */ SELECT forgotten FROM store_meta")
                .fetch_optional(db)
                .await?
        });
        Ok(row.and_then(|(until,)| until))
    }

    /// The leaf hashes of `[from, from + count)`, as many as exist.
    pub async fn leaf_hashes(&self, from: u64, count: u64) -> Result<Vec<Hash>, StoreError> {
        let rows: Vec<(Vec<u8>,)> = read!(self, db => {
            sqlx::query_as("/* leaf_hashes */ SELECT hash FROM leaf WHERE idx >= $1 AND idx < $2 ORDER BY idx")
                .bind(signed(from))
                .bind(signed(from.saturating_add(count)))
                .fetch_all(db)
                .await?
        });
        rows.iter()
            .map(|(hash,)| digest("leaf hash", hash).map(Hash::from))
            .collect()
    }

    /// The 256 hashes of a complete tile. `None` if the tile is not complete yet.
    pub async fn tile(&self, level: u8, index: u64) -> Result<Option<Vec<Hash>>, StoreError> {
        let row: Option<(Vec<u8>,)> = read!(self, db => {
            sqlx::query_as("/* tile */ SELECT hashes FROM tile WHERE level = $1 AND idx = $2")
                .bind(i16::from(level))
                .bind(signed(index))
                .fetch_optional(db)
                .await?
        });
        row.map(|(bytes,)| {
            bytes
                .chunks(32)
                .map(|chunk| digest("tile", chunk).map(Hash::from))
                .collect()
        })
        .transpose()
    }

    /// The roots of the complete tiles `[from, from + count)` of a level, as many as exist.
    pub async fn tile_roots(
        &self,
        level: u8,
        from: u64,
        count: u64,
    ) -> Result<Vec<Hash>, StoreError> {
        let rows: Vec<(Vec<u8>,)> = read!(self, db => {
            sqlx::query_as(
                "/* tile_roots */ SELECT root FROM tile \
                 WHERE level = $1 AND idx >= $2 AND idx < $3 ORDER BY idx",
            )
            .bind(i16::from(level))
            .bind(signed(from))
            .bind(signed(from.saturating_add(count)))
            .fetch_all(db)
            .await?
        });
        rows.iter()
            .map(|(root,)| digest("tile", root).map(Hash::from))
            .collect()
    }

    /// The leaf at `index`. `None` beyond the end of the log.
    pub async fn leaf(&self, index: u64) -> Result<Option<StoredLeaf>, StoreError> {
        let mut leaves = self.leaves(index, 1).await?;
        Ok(leaves.pop())
    }

    /// The leaves of `[from, from + count)`, as many as exist. The statement repeats the range for
    /// the bodies: PostgreSQL does not derive it from the join on the index, and would open and
    /// lock every partition of bodies.
    pub async fn leaves(&self, from: u64, count: u64) -> Result<Vec<StoredLeaf>, StoreError> {
        type Row = (i64, Vec<u8>, Option<Vec<u8>>, Option<String>, Timestamp);
        let rows: Vec<Row> = read!(self, db => {
            sqlx::query_as(
                "/* leaves */ SELECT leaf.idx, hash, body, subject, at FROM leaf \
                 LEFT JOIN leaf_body ON leaf_body.idx = leaf.idx \
                 AND leaf_body.idx >= $1 AND leaf_body.idx < $2 \
                 WHERE leaf.idx >= $1 AND leaf.idx < $2 ORDER BY leaf.idx",
            )
            .bind(signed(from))
            .bind(signed(from.saturating_add(count)))
            .fetch_all(db)
            .await?
        });
        rows.into_iter().map(stored).collect()
    }

    /// The acts among the leaves of `[from, to)`, that is, the leaves that record no decision; at
    /// most `count`.
    pub async fn acts(
        &self,
        from: u64,
        to: u64,
        count: u32,
    ) -> Result<Vec<StoredLeaf>, StoreError> {
        type Row = (i64, Vec<u8>, Option<Vec<u8>>, Option<String>, Timestamp);
        let rows: Vec<Row> = read!(self, db => {
            sqlx::query_as(
                "/* acts */ SELECT leaf.idx, hash, body, subject, at FROM leaf \
                 LEFT JOIN leaf_body ON leaf_body.idx = leaf.idx \
                 AND leaf_body.idx >= $1 AND leaf_body.idx < $2 \
                 WHERE leaf.idx >= $1 AND leaf.idx < $2 AND decision_id IS NULL \
                 ORDER BY leaf.idx LIMIT $3",
            )
            .bind(signed(from))
            .bind(signed(to))
            .bind(i64::from(count))
            .fetch_all(db)
            .await?
        });
        rows.into_iter().map(stored).collect()
    }

    /// The index of a decision's leaf. `None` if there is no such decision.
    pub async fn decision_index(&self, id: DecisionId) -> Result<Option<u64>, StoreError> {
        let row: Option<(i64,)> = read!(self, db => {
            sqlx::query_as("/* decision_index */ SELECT idx FROM leaf WHERE decision_id = $1")
                .bind(id)
                .fetch_optional(db)
                .await?
        });
        row.map(|(index,)| unsigned("leaf", index)).transpose()
    }

    /// The decisions among the leaves of `[from, to)`, with the openings of their inputs; at most
    /// `count`.
    pub async fn decisions(
        &self,
        from: u64,
        to: u64,
        count: u32,
    ) -> Result<Vec<DecisionRow>, StoreError> {
        type Part = Option<Vec<u8>>;
        // Finds the last one first, so that the range of bodies is known.
        let (last,): (Option<i64>,) = read!(self, db => {
            sqlx::query_as(
                "/* decisions_end */ SELECT max(idx) FROM (SELECT idx FROM leaf \
                 WHERE idx >= $1 AND idx < $3 AND decision_id IS NOT NULL \
                 ORDER BY idx LIMIT $2) AS next",
            )
            .bind(signed(from))
            .bind(i64::from(count))
            .bind(signed(to))
            .fetch_one(db)
            .await?
        });
        let Some(last) = last else {
            return Ok(Vec::new());
        };
        let rows: Vec<(i64, Vec<u8>, Timestamp, Part, Part, Part)> = read!(self, db => {
            sqlx::query_as(
                "/* decisions */ SELECT leaf.idx, hash, at, body, input_salt, input FROM leaf \
                 LEFT JOIN leaf_body ON leaf_body.idx = leaf.idx \
                 AND leaf_body.idx >= $1 AND leaf_body.idx <= $2 \
                 LEFT JOIN leaf_opening ON leaf_opening.idx = leaf.idx \
                 AND leaf_opening.idx >= $1 AND leaf_opening.idx <= $2 \
                 WHERE leaf.idx >= $1 AND leaf.idx <= $2 AND decision_id IS NOT NULL \
                 ORDER BY leaf.idx",
            )
            .bind(signed(from))
            .bind(last)
            .fetch_all(db)
            .await?
        });
        rows.into_iter()
            .map(|(index, hash, at, body, salt, input)| {
                let index = unsigned("leaf", index)?;
                let hash = Hash::from(digest("leaf hash", &hash)?);
                Ok(DecisionRow {
                    index,
                    hash,
                    at,
                    body: genuine(index, &hash, body)?,
                    input: opening(salt, input)?,
                })
            })
            .collect()
    }

    /// The openings of a leaf's commitments.
    pub async fn openings(&self, index: u64) -> Result<Openings, StoreError> {
        type Part = Option<Vec<u8>>;
        let row: Option<(Part, Part, Part, Part)> = read!(self, db => {
            sqlx::query_as(
                "/* openings */ SELECT input_salt, input, purpose_salt, purpose \
                 FROM leaf_opening WHERE idx = $1",
            )
            .bind(signed(index))
            .fetch_optional(db)
            .await?
        });
        let Some((input_salt, input, purpose_salt, purpose)) = row else {
            return Ok(Openings::default());
        };
        Ok(Openings {
            input: opening(input_salt, input)?,
            purpose: opening(purpose_salt, purpose)?,
        })
    }
}

/// The oldest body that was not pruned. It is read before the schema is migrated.
pub(super) const OLDEST_BODY: &str =
    "/* leaf_format */ SELECT body FROM leaf_body ORDER BY idx LIMIT 1";

/// Refuses a log whose leaves have another format than this build writes. A body that is not a leaf
/// is accepted here; its readers refuse it.
pub(super) fn check_leaf_format(oldest: Option<(Vec<u8>,)>) -> Result<(), StoreError> {
    let Some((body,)) = oldest else {
        return Ok(());
    };
    let remedy = match Leaf::from_bytes(&body) {
        Ok(_) | Err(LeafError::Malformed(_)) => return Ok(()),
        Err(error @ LeafError::Earlier { .. }) => {
            format!(
                "{error}, and continues no other log. With the earlier build, revoke everything \
                 (`taskpass revoke all=true`) and wait until the newest credential and attestation have \
                 expired; then give this build a new, empty database, and bind its admins again"
            )
        }
        Err(error @ LeafError::Later { .. }) => format!("{error}: run the later build"),
    };
    Err(StoreError::Unfit(format!(
        "the log in this database cannot be continued: {remedy}"
    )))
}

fn stored(
    (index, hash, body, subject, at): (i64, Vec<u8>, Option<Vec<u8>>, Option<String>, Timestamp),
) -> Result<StoredLeaf, StoreError> {
    let index = unsigned("leaf", index)?;
    let hash = Hash::from(digest("leaf hash", &hash)?);
    Ok(StoredLeaf {
        index,
        hash,
        body: genuine(index, &hash, body)?,
        subject,
        at,
    })
}

/// A leaf's body, if it has the hash of the leaf. A body that was changed is never returned.
fn genuine(index: u64, hash: &Hash, body: Option<Vec<u8>>) -> Result<Option<Vec<u8>>, StoreError> {
    match body {
        Some(body) if leaf_hash(&body) != *hash => {
            let told = format!(
                "leaf {index} was changed in the store: its body does not have the hash {hash}; restore \
                 it from an export of the log, and find out who wrote to the tables leaf and leaf_body"
            );
            error!(leaf = index, "{told}");
            Err(StoreError::Forged(told))
        }
        body => Ok(body),
    }
}

fn opening(salt: Option<Vec<u8>>, bytes: Option<Vec<u8>>) -> Result<Option<Opening>, StoreError> {
    let (Some(salt), Some(bytes)) = (salt, bytes) else {
        return Ok(None);
    };
    let salt = salt
        .try_into()
        .map_err(|_| StoreError::Corrupt("opening"))?;
    Ok(Some(Opening { salt, bytes }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_of_another_format_is_refused_by_its_version_with_the_way_on() {
        let told = |body: &str| check_leaf_format(Some((body.as_bytes().to_vec(),)));
        let earlier = told(r#"{"v":1}"#).unwrap_err().to_string();
        for part in [
            "format version 1",
            "earlier development build",
            "new, empty database",
        ] {
            assert!(earlier.contains(part), "{earlier}");
        }
        let later = told(r#"{"v":3}"#).unwrap_err().to_string();
        assert!(later.contains("run the later build"), "{later}");
        told(r#"{"v":2}"#).unwrap();
        told("leaf 0").unwrap();
        check_leaf_format(None).unwrap();
    }
}
