//! Generations: stored whole under their digest before one is activated.

use super::codec::{digest, unsigned};
use super::{Store, StoreError, read, read_current, write};
use crate::clock::Timestamp;
use crate::domain::generation::GenerationDigest;

/// An activation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Activation {
    /// Its leaf.
    pub index: u64,
    /// The generation.
    pub digest: GenerationDigest,
    /// On whose word.
    pub by: String,
    /// When.
    pub at: Timestamp,
    /// Over what decides of it. Whoever is about to decide by it checks this.
    pub mac: Vec<u8>,
}

impl Activation {
    /// What the MAC is made over.
    #[must_use]
    pub fn mac_fields(index: u64, digest: GenerationDigest) -> Vec<Vec<u8>> {
        vec![index.to_string().into_bytes(), digest.as_bytes().to_vec()]
    }
}

impl Store {
    /// Keeps a generation's document. Storing the same one again changes nothing.
    pub async fn put_generation(
        &self,
        digest: GenerationDigest,
        body: &[u8],
        now: Timestamp,
    ) -> Result<(), StoreError> {
        write!(self, db => {
            sqlx::query(
                "/* put_generation */ INSERT INTO generation (digest, body, stored_at) \
                 VALUES ($1, $2, $3) ON CONFLICT (digest) DO NOTHING",
            )
            .bind(digest.as_bytes().as_slice())
            .bind(body)
            .bind(now)
            .execute(db)
            .await?;
        });
        Ok(())
    }

    /// A generation's document.
    pub async fn generation(
        &self,
        digest: GenerationDigest,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let row: Option<(Vec<u8>,)> = read!(self, db => {
            sqlx::query_as("/* generation */ SELECT body FROM generation WHERE digest = $1")
                .bind(digest.as_bytes().as_slice())
                .fetch_optional(db)
                .await?
        });
        Ok(row.map(|(body,)| body))
    }

    /// The generations that decided at some time since `since`: what was active then, and what was
    /// activated later.
    pub async fn generations_since(
        &self,
        since: Timestamp,
    ) -> Result<Vec<GenerationDigest>, StoreError> {
        let rows: Vec<(Vec<u8>,)> = read_current!(self, db => {
            sqlx::query_as(
                "/* generations_since */ SELECT DISTINCT digest FROM activation \
                 WHERE idx >= COALESCE((SELECT max(idx) FROM activation WHERE at <= $1), 0)",
            )
            .bind(since)
            .fetch_all(db)
            .await?
        });
        rows.into_iter()
            .map(|(bytes,)| Ok(GenerationDigest::new(digest("activation", &bytes)?)))
            .collect()
    }

    /// The activation that decides now.
    pub async fn active_generation(&self) -> Result<Option<Activation>, StoreError> {
        type Row = (i64, Vec<u8>, String, Timestamp, Vec<u8>);
        let row: Option<Row> = read_current!(self, db => {
            sqlx::query_as(
                "/* active_generation */ SELECT idx, digest, actor, at, mac FROM activation \
                 ORDER BY idx DESC LIMIT 1",
            )
            .fetch_optional(db)
            .await?
        });
        row.map(|(index, bytes, by, at, mac)| {
            Ok(Activation {
                index: unsigned("activation", index)?,
                digest: GenerationDigest::new(digest("activation", &bytes)?),
                by,
                at,
                mac,
            })
        })
        .transpose()
    }
}
