//! Generations, and the activations that name the one that decides.
//!
//! [`SealedActivation`] is the MAC-protected part of an [`Activation`]. `generation` reads a
//! document, `active_generation` the newest activation, `generations_since` the digests of earlier
//! ones.
//!
//! The rule: each generation is stored whole under its digest before it is activated, and neither a
//! document nor an activation is changed or deleted; only the MAC of an activation is ever renewed.
//! Failures: `None` means that there is no such document, or that no generation was activated yet.
//! A row that cannot be parsed is `Corrupt`. Nothing is verified here: the callers check the MAC by
//! `open`, and compare the document with its digest. `broker` and the ledger read; only the
//! ledger's transaction writes (`append::acts`).

use super::codec::{digest, unsigned};
use super::{Store, StoreError, read, read_current};
use crate::clock::Timestamp;
use crate::crypto::digest::{Mac, MacError};
use crate::domain::generation_digest::GenerationDigest;

/// The purpose under which the MAC of an activation is computed.
const ACTIVATION_MAC: &str = "activation";

/// An activation as its row has it. Its digest is unverified until [`Self::open`] checked the MAC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedActivation {
    index: u64,
    digest: GenerationDigest,
    mac: Vec<u8>,
}

impl SealedActivation {
    /// Adds the MAC to the activation by the leaf at `index`.
    #[must_use]
    pub fn seal(index: u64, digest: GenerationDigest, mac: &Mac) -> Self {
        let tag = with_fields(index, digest, |fields| mac.tag(ACTIVATION_MAC, fields));
        Self {
            index,
            digest,
            mac: tag,
        }
    }

    pub(super) fn from_columns(index: i64, bytes: &[u8], mac: Vec<u8>) -> Result<Self, StoreError> {
        Ok(Self {
            index: unsigned("activation", index)?,
            digest: GenerationDigest::new(digest("activation", bytes)?),
            mac,
        })
    }

    /// The generation, if a broker activated it.
    pub fn open(&self, mac: &Mac) -> Result<GenerationDigest, MacError> {
        with_fields(self.index, self.digest, |fields| {
            mac.verify(ACTIVATION_MAC, fields, &self.mac)
        })?;
        Ok(self.digest)
    }

    /// The table and the row, for error messages.
    #[must_use]
    pub fn name(&self) -> String {
        format!(
            "the table activation: the activation of {} by leaf {}",
            self.digest, self.index
        )
    }

    /// The index of its leaf.
    #[must_use]
    pub fn index(&self) -> u64 {
        self.index
    }

    /// The generation that the row names, without a check of the MAC.
    #[must_use]
    pub fn claimed(&self) -> GenerationDigest {
        self.digest
    }

    /// The MAC.
    #[must_use]
    pub fn mac(&self) -> &[u8] {
        &self.mac
    }
}

fn with_fields<T>(index: u64, digest: GenerationDigest, then: impl FnOnce(&[&[u8]]) -> T) -> T {
    then(&[index.to_string().as_bytes(), digest.as_bytes()])
}

/// An activation.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct Activation {
    /// The leaf, the generation's digest and the MAC.
    pub sealed: SealedActivation,
    /// The admin who activated it, or the name of the start that did.
    pub by: String,
    pub at: Timestamp,
}

impl Store {
    /// A generation's document. `None` if it is not stored. The bytes are not compared with the
    /// digest.
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

    /// The generations that were active at some time since `since`.
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

    /// The newest activation, which decides now. `None` if there is none. Does not check its MAC.
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
                sealed: SealedActivation::from_columns(index, &bytes, mac)?,
                by,
                at,
            })
        })
        .transpose()
    }
}
