//! Cutoffs.
//!
//! [`SealedCutoff`] is a row with its MAC. `cutoffs_of`, `list_cutoffs`, `accepted_times` and
//! `cutoff` return verified cutoffs; `cutoffs` returns sealed ones.
//!
//! The rule: each row carries a MAC over every column that decides, so that a write to the table
//! cannot lift one. The reason, the actor and the time of the request decide nothing and are not
//! covered. Only the rows that a statement returns are checked: a row with a changed selector is found
//! by the regular check of all rows. Failures: a row with a wrong MAC is `Forged` and stops the ledger; one that cannot be
//! parsed is `Corrupt`. `None` means that there is no such cutoff. Which sessions a cutoff ends is
//! decided in `domain::validity` and `store::validity_sql`; the ledger writes the rows by
//! `store::append`.

use std::collections::HashSet;

use sqlx::FromRow;

use super::codec::{signed, unsigned};
use super::postgres::Fenced;
use super::validity_sql::blocks;
use super::{Store, StoreError, read_current};
use crate::clock::Timestamp;
use crate::crypto::digest::{Mac, MacError};
use crate::domain::cutoff::{Block, Cutoff, Selector};
use crate::ids::CutoffId;

#[derive(Clone, FromRow)]
pub(super) struct CutoffRow {
    pub(super) id: CutoffId,
    pub(super) idx: i64,
    pub(super) kind: String,
    pub(super) value: String,
    pub(super) blocked_until: Option<Timestamp>,
    pub(super) until_lifted: bool,
    pub(super) reason: String,
    pub(super) actor: String,
    pub(super) requested_at: Timestamp,
    pub(super) committed_at: Timestamp,
    pub(super) lifted_idx: Option<i64>,
    pub(super) deny_policy_target: Option<String>,
    pub(super) mac: Vec<u8>,
}

/// The purpose under which the MAC of a cutoff is computed.
const CUTOFF_MAC: &str = "cutoff";

/// A cutoff with the MAC that protects its row. Its content is unverified until [`Self::open`]
/// checked the MAC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedCutoff {
    cutoff: Cutoff,
    mac: Vec<u8>,
}

impl SealedCutoff {
    /// Adds the MAC.
    #[must_use]
    pub fn seal(cutoff: Cutoff, mac: &Mac) -> Self {
        let fields = Self::mac_fields(&cutoff);
        let fields: Vec<&[u8]> = fields.iter().map(Vec::as_slice).collect();
        let mac = mac.tag(CUTOFF_MAC, &fields);
        Self { cutoff, mac }
    }

    /// The cutoff, if a broker wrote its row.
    pub fn open(&self, mac: &Mac) -> Result<&Cutoff, MacError> {
        let fields = Self::mac_fields(&self.cutoff);
        let fields: Vec<&[u8]> = fields.iter().map(Vec::as_slice).collect();
        mac.verify(CUTOFF_MAC, &fields, &self.mac)?;
        Ok(&self.cutoff)
    }

    /// The content of the row, without a check of its MAC.
    #[must_use]
    pub fn claimed(&self) -> &Cutoff {
        &self.cutoff
    }

    /// The MAC.
    #[must_use]
    pub fn mac(&self) -> &[u8] {
        &self.mac
    }

    /// The table and the row, for error messages.
    #[must_use]
    pub fn name(&self) -> String {
        format!("the table cutoff: the cutoff {}", self.cutoff.id)
    }

    fn mac_fields(cutoff: &Cutoff) -> Vec<Vec<u8>> {
        let block = match cutoff.block {
            Block::No => "no".to_owned(),
            Block::Until(at) => at.micros().to_string(),
            Block::UntilLifted => "until_lifted".to_owned(),
        };
        vec![
            cutoff.id.to_string().into_bytes(),
            cutoff.index.to_string().into_bytes(),
            cutoff.selector.kind().as_bytes().to_vec(),
            cutoff.selector.value().into_bytes(),
            block.into_bytes(),
            cutoff
                .lifted_index
                .map_or_else(String::new, |index| index.to_string())
                .into_bytes(),
            cutoff
                .deny_policy_target
                .clone()
                .unwrap_or_default()
                .into_bytes(),
            cutoff.committed_at.micros().to_string().into_bytes(),
        ]
    }

    pub(super) fn block_columns(&self) -> (Option<Timestamp>, bool) {
        match self.cutoff.block {
            Block::No => (None, false),
            Block::Until(at) => (Some(at), false),
            Block::UntilLifted => (None, true),
        }
    }
}

impl TryFrom<CutoffRow> for SealedCutoff {
    type Error = StoreError;

    fn try_from(row: CutoffRow) -> Result<Self, StoreError> {
        let selector = Selector::from_parts(&row.kind, &row.value);
        let block = match (row.blocked_until, row.until_lifted) {
            (None, false) => Block::No,
            (Some(at), false) => Block::Until(at),
            (_, true) => Block::UntilLifted,
        };
        Ok(Self {
            cutoff: Cutoff {
                id: row.id,
                index: unsigned("cutoff", row.idx)?,
                selector: selector.ok_or(StoreError::Corrupt("cutoff"))?,
                block,
                deny_policy_target: row.deny_policy_target,
                reason: row.reason,
                by: row.actor,
                requested_at: row.requested_at,
                committed_at: row.committed_at,
                lifted_index: row
                    .lifted_idx
                    .map(|index| unsigned("cutoff", index))
                    .transpose()?,
            },
            mac: row.mac,
        })
    }
}

/// The cutoffs that a listing shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CutoffFilter {
    /// Only those with exactly this selector.
    pub selector: Option<Selector>,
    /// Only those that block at this instant.
    pub blocks_at: Option<Timestamp>,
    /// Only those with an earlier leaf: the cursor.
    pub before: Option<u64>,
    /// The largest number of cutoffs to return.
    pub limit: u32,
}

/// The statement of [`Store::cutoffs_of`]. `$wanted` has the kinds and values of the selectors,
/// `$leaf` is the index. CROSS JOIN keeps SQLite from reading all cutoffs first.
macro_rules! cutoffs_of {
    ($wanted:literal, $leaf:literal) => {
        concat!(
            "/* cutoffs_of */ SELECT c.* FROM ",
            $wanted,
            " CROSS JOIN cutoff AS c WHERE c.kind = w.kind AND c.value = w.value AND c.idx > ",
            $leaf,
            " UNION ALL SELECT * FROM cutoff WHERE kind = 'issued_after' AND idx > ",
            $leaf,
            " ORDER BY idx"
        )
    };
}

impl Store {
    /// Cutoffs with one of these selectors and a leaf after `index`, oldest first: those that can
    /// end a session or task with that leaf and these selectors. Acceptances of a time are always
    /// among them: they match by dates.
    pub async fn cutoffs_of(
        &self,
        selectors: &HashSet<Selector>,
        index: u64,
    ) -> Result<Vec<Cutoff>, StoreError> {
        self.cutoffs_of_on(None, selectors, index).await
    }

    /// As [`Self::cutoffs_of`]. On PostgreSQL it reads on the connection `held`; without one, on a
    /// connection of the pool.
    pub(super) async fn cutoffs_of_on(
        &self,
        held: Option<Fenced>,
        selectors: &HashSet<Selector>,
        index: u64,
    ) -> Result<Vec<Cutoff>, StoreError> {
        let rows: Vec<CutoffRow> = match self {
            Self::Postgres(postgres) => {
                let mut connection = match held {
                    Some(connection) => connection,
                    None => postgres.acquire().await?,
                };
                let rows = sqlx::query_as(cutoffs_of!(
                    "unnest($1::text[], $2::text[]) AS w (kind, value)",
                    "$3"
                ))
                .bind(selectors.iter().map(Selector::kind).collect::<Vec<_>>())
                .bind(selectors.iter().map(Selector::value).collect::<Vec<_>>())
                .bind(signed(index))
                .fetch_all(connection.executor())
                .await;
                connection.finish_current(rows)?
            }
            Self::Sqlite(sqlite) => {
                let pairs = selectors
                    .iter()
                    .map(|one| [one.kind().to_owned(), one.value()]);
                let pairs: Vec<Vec<String>> = pairs.map(Vec::from).collect();
                sqlx::query_as(cutoffs_of!(
                    "(SELECT json_extract(value, '$[0]') AS kind, \
                     json_extract(value, '$[1]') AS value FROM json_each($1)) AS w",
                    "$2"
                ))
                .bind(serde_json::Value::from(pairs).to_string())
                .bind(signed(index))
                .fetch_all(sqlite.readers())
                .await?
            }
        };
        rows.into_iter().map(|row| self.opened(row)).collect()
    }

    /// The cutoff of a row, if a broker wrote it.
    pub(super) fn opened(&self, row: CutoffRow) -> Result<Cutoff, StoreError> {
        let sealed = SealedCutoff::try_from(row)?;
        self.check_row(sealed.name(), |mac| sealed.open(mac).cloned())
    }

    /// All cutoffs, newest first, at most `limit`. Does not check their MACs.
    pub async fn cutoffs(&self, limit: u32) -> Result<Vec<SealedCutoff>, StoreError> {
        let rows: Vec<CutoffRow> = read_current!(self, db => {
            sqlx::query_as("/* cutoffs */ SELECT * FROM cutoff ORDER BY idx DESC LIMIT $1")
                .bind(i64::from(limit))
                .fetch_all(db)
                .await?
        });
        rows.into_iter().map(SealedCutoff::try_from).collect()
    }

    /// The cutoffs of a listing, newest first.
    pub async fn list_cutoffs(&self, filter: &CutoffFilter) -> Result<Vec<Cutoff>, StoreError> {
        let selector = filter.selector.as_ref();
        let rows: Vec<CutoffRow> = read_current!(self, db => {
            sqlx::query_as(concat!(
                "/* list_cutoffs */ SELECT * FROM cutoff WHERE ($1 IS NULL OR kind = $1) \
                 AND ($2 IS NULL OR value = $2) AND ($3 IS NULL OR (",
                blocks!("$3"),
                ")) AND ($4 IS NULL OR idx < $4) ORDER BY idx DESC LIMIT $5"
            ))
            .bind(selector.map(Selector::kind))
            .bind(selector.map(Selector::value))
            .bind(filter.blocks_at)
            .bind(filter.before.map(signed))
            .bind(i64::from(filter.limit))
            .fetch_all(db)
            .await?
        });
        let opened = |row| {
            let sealed = SealedCutoff::try_from(row)?;
            self.check_row(sealed.name(), |mac| sealed.open(mac).cloned())
        };
        rows.into_iter().map(opened).collect()
    }

    /// Cutoffs that were not lifted and whose blocks end after this time, or last until lifted,
    /// oldest first: those with a leaf after `after`, at most `limit`.
    pub async fn cutoffs_that_may_block(
        &self,
        at: Timestamp,
        after: Option<u64>,
        limit: u32,
    ) -> Result<Vec<Cutoff>, StoreError> {
        let rows: Vec<CutoffRow> = read_current!(self, db => {
            sqlx::query_as(concat!(
                "/* cutoffs_that_may_block */ SELECT * FROM cutoff WHERE ",
                blocks!("$1"),
                " AND idx > $2 ORDER BY idx LIMIT $3"
            ))
            .bind(at)
            .bind(after.map_or(-1, signed))
            .bind(i64::from(limit))
            .fetch_all(db)
            .await?
        });
        rows.into_iter().map(|row| self.opened(row)).collect()
    }

    /// The times that admins accepted, with the indices of their leaves, oldest first.
    pub async fn accepted_times(&self) -> Result<Vec<(u64, Timestamp)>, StoreError> {
        let rows: Vec<CutoffRow> = read_current!(self, db => {
            sqlx::query_as(
                "/* accepted_times */ SELECT * FROM cutoff WHERE kind = 'issued_after' ORDER BY idx",
            )
            .fetch_all(db)
            .await?
        });
        let times = rows.into_iter().map(|row| {
            let cutoff = self.opened(row)?;
            let accepted = cutoff.selector.issued_after();
            let accepted = accepted.ok_or(StoreError::Corrupt("cutoff"))?;
            Ok((cutoff.index, accepted))
        });
        times.collect()
    }

    /// One cutoff. `None` if there is no such cutoff.
    pub async fn cutoff(&self, id: CutoffId) -> Result<Option<Cutoff>, StoreError> {
        let row: Option<CutoffRow> = read_current!(self, db => {
            sqlx::query_as("/* cutoff */ SELECT * FROM cutoff WHERE id = $1")
                .bind(id)
                .fetch_optional(db)
                .await?
        });
        let Some(row) = row else {
            return Ok(None);
        };
        self.opened(row).map(Some)
    }
}
