//! What witnesses said of the log's checkpoints. Rows are added, and never changed.

use super::codec::{signed, unsigned};
use super::{Store, StoreError, read, write};

/// A witness's word on one checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CosignedRow {
    /// Leaves under the checkpoint.
    pub size: u64,
    /// The witness's key, as text.
    pub vkey: String,
    /// The witness's name.
    pub witness: String,
    /// The line that it signs the checkpoint with, newline and all.
    pub line: String,
    /// The signed note that it was shown.
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
    /// Keeps what a witness said. What it said first of a size stays: it is the earlier time.
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

    /// The largest size that a witness's key has signed.
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

    /// What was said of the smallest checkpoint over leaf `index` that any witness signed, or that
    /// the one of this name did: the words of all witnesses on that one.
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

    /// What a witness's key signed of checkpoints of `size` leaves and fewer, the largest first.
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
