//! The cosignatures of witnesses on the log's checkpoints.
//!
//! [`CosignedRow`] is one cosignature. `put_cosigned` adds one; `last_cosigned`, `cosigned_over`
//! and `cosigned_until` read. Each statement has the same text on both databases.
//!
//! The rule: rows are added, and never changed; pruning deletes those that no leaf with a body needs
//! any more ([`super::prune`]). A second cosignature of the same key on
//! the same size is ignored, so the first one, with its earlier time, stays. Failures: an
//! unreadable size is `Corrupt`; an empty result means that no witness signed such a checkpoint.
//! The store verifies no signature: `ledger::witnesses` does, before it stores one.
//! `ledger::witnesses`, `broker::administration` and `app::succession` read the rows.

use super::codec::{signed, unsigned};
use super::{Store, StoreError, read, write};

/// One witness's cosignature on one checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CosignedRow {
    /// The number of leaves under the checkpoint.
    pub size: u64,
    /// The witness's verifier key in the text form of C2SP.
    pub vkey: String,
    /// The name of the witness in the configuration.
    pub witness: String,
    /// The signature line, with its newline.
    pub line: String,
    /// The signed checkpoint that the witness was sent.
    pub checkpoint: String,
}

type Columns = (i64, String, String, String, String);

fn rows(columns: Vec<Columns>) -> Result<Vec<CosignedRow>, StoreError> {
    let rows = columns.into_iter();
    rows.map(|(size, vkey, witness, line, checkpoint)| {
        Ok(CosignedRow {
            size: unsigned("cosigned size", size)?,
            vkey,
            witness,
            line,
            checkpoint,
        })
    })
    .collect()
}

impl Store {
    /// Stores a cosignature. If the key has one on this size already, that one stays: its time is
    /// the earlier one.
    pub async fn put_cosigned(&self, row: &CosignedRow) -> Result<(), StoreError> {
        write!(self, db => {
            sqlx::query(
                "/* put_cosigned */ INSERT INTO cosigned (size, vkey, witness, line, checkpoint) \
                 VALUES ($1, $2, $3, $4, $5) ON CONFLICT (size, vkey) DO NOTHING",
            )
            .bind(signed(row.size))
            .bind(&row.vkey)
            .bind(&row.witness)
            .bind(&row.line)
            .bind(&row.checkpoint)
            .execute(db)
            .await?;
        });
        Ok(())
    }

    /// The largest size that a witness's key has signed. `None` if it has signed none.
    pub async fn last_cosigned(&self, vkey: &str) -> Result<Option<u64>, StoreError> {
        let row: (Option<i64>,) = read!(self, db => {
            sqlx::query_as("/* last_cosigned */ SELECT max(size) FROM cosigned WHERE vkey = $1")
                .bind(vkey)
                .fetch_one(db)
                .await?
        });
        row.0
            .map(|size| unsigned("cosigned size", size))
            .transpose()
    }

    /// The cosignatures of all witnesses on one checkpoint: the smallest one over leaf `index` that
    /// the named witness signed, or without a name, that any witness signed. Empty if there is
    /// none.
    pub async fn cosigned_over(
        &self,
        index: u64,
        witness: Option<&str>,
    ) -> Result<Vec<CosignedRow>, StoreError> {
        let columns = match witness {
            None => read!(self, db => {
                sqlx::query_as(
                    "/* cosigned_over */ SELECT size, vkey, witness, line, checkpoint FROM cosigned \
                     WHERE size = (SELECT min(size) FROM cosigned WHERE size > $1) ORDER BY vkey",
                )
                .bind(signed(index))
                .fetch_all(db)
                .await?
            }),
            Some(witness) => read!(self, db => {
                sqlx::query_as(
                    "/* cosigned_over_by */ SELECT size, vkey, witness, line, checkpoint \
                     FROM cosigned WHERE size = (SELECT min(size) FROM cosigned \
                     WHERE witness = $2 AND size > $1) ORDER BY vkey",
                )
                .bind(signed(index))
                .bind(witness)
                .fetch_all(db)
                .await?
            }),
        };
        rows(columns)
    }

    /// The cosignatures of one key on checkpoints of at most `size` leaves, the largest first.
    pub async fn cosigned_until(
        &self,
        vkey: &str,
        size: u64,
        count: u32,
    ) -> Result<Vec<CosignedRow>, StoreError> {
        let columns = read!(self, db => {
            sqlx::query_as(
                "/* cosigned_until */ SELECT size, vkey, witness, line, checkpoint FROM cosigned \
                 WHERE vkey = $1 AND size <= $2 ORDER BY size DESC LIMIT $3",
            )
            .bind(vkey)
            .bind(signed(size))
            .bind(i64::from(count))
            .fetch_all(db)
            .await?
        });
        rows(columns)
    }
}
