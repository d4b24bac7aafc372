//! The deny lists at back ends: their targets, the replica that writes each, and the facts that
//! were read back of each document as a whole.
//!
//! A target is inserted (`upsert_and_schedule_deny_policy`, `upsert_deny_policy`), leased
//! (`claim_deny_policies`), and released as done or failed. `last_blanket_deny` and `blanket_deny`
//! belong to the denial of all earlier sessions.
//!
//! The rule: the document follows from the rows, never the reverse. Only the holder of the lease
//! records facts about a document, and the numbers of documents only rise. Failures: `None` of
//! `next_deny_generation` means that the lease was lost. A record of a replica without the lease
//! changes nothing and is no error. A forged cutoff is `Forged`. `broker::revocation` and
//! `broker::administration::succession` call this module. It calls no back end.
//! [`super::deny_entries`] has the sessions.

use sqlx::FromRow;

use super::codec::{digest, minter, signed, unsigned};
use super::cutoffs::CutoffRow;
use super::validity_sql::{may_stand, unexpired};
use super::{Store, StoreError, on_pool, read, read_current, write};
use crate::clock::Timestamp;
use crate::domain::deny_list::DenyPolicyTarget;
use crate::domain::generation_digest::GenerationDigest;
use crate::domain::kind::MinterKind;

/// A target that this process may write to until its lease ends.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct ClaimedTarget {
    pub target: DenyPolicyTarget,
    /// Failed tries since the last success.
    pub attempts: u32,
    /// The number of the last document that was to be written.
    pub generation: u64,
    /// When the back end last refused a document for its size. `None` if that no longer counts.
    pub refused_at: Option<Timestamp>,
}

/// The properties that a group of unexpired sessions shares.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct SessionGroup {
    /// The kind of their minter.
    pub minter: MinterKind,
    /// The audience of their grants; at AWS, a role.
    pub audience: String,
    pub resource: String,
    /// The generation that permitted them.
    pub generation: GenerationDigest,
}

/// The part of a target's document that denies all earlier sessions, as it was read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlanketDeny {
    /// Sessions that were issued before this instant are denied.
    pub issued_before: Timestamp,
    /// When this part was first read back.
    pub written_at: Timestamp,
    /// When the document was last read and was as required. `None` if never.
    pub read_at: Option<Timestamp>,
}

#[derive(FromRow)]
struct TargetRow {
    minter: String,
    name: String,
    registration: String,
    capacity: i64,
    propagation_seconds: i64,
    attempts: i64,
    generation: i64,
    refused_at: Option<Timestamp>,
}

impl TryFrom<TargetRow> for ClaimedTarget {
    type Error = StoreError;

    fn try_from(row: TargetRow) -> Result<Self, StoreError> {
        let small = |value: i64| {
            u32::try_from(value).map_err(|_| StoreError::Corrupt("list of denied sessions"))
        };
        Ok(Self {
            attempts: small(row.attempts)?,
            generation: unsigned("deny_place", row.generation)?,
            refused_at: row.refused_at,
            target: DenyPolicyTarget {
                minter: minter(&row.minter)?,
                name: row.name,
                registration: row.registration,
                capacity: small(row.capacity)?,
                propagation_seconds: unsigned("deny_place", row.propagation_seconds)?,
            },
        })
    }
}

impl Store {
    /// Every known target.
    pub async fn deny_policy_targets(&self) -> Result<Vec<DenyPolicyTarget>, StoreError> {
        let rows: Vec<TargetRow> = read!(self, db => {
            sqlx::query_as(
                "/* deny_places */ SELECT minter, name, registration, capacity, \
                 propagation_seconds, attempts, generation, refused_at FROM deny_place \
                 ORDER BY minter, name",
            )
            .fetch_all(db)
            .await?
        });
        let claimed = rows.into_iter().map(ClaimedTarget::try_from);
        claimed.map(|claimed| Ok(claimed?.target)).collect()
    }

    /// Inserts a target or updates its registration, and schedules it for reconciliation now.
    pub async fn upsert_and_schedule_deny_policy(
        &self,
        target: &DenyPolicyTarget,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.upsert_deny_policy(target, now).await?;
        self.schedule_deny_policy(target, now).await
    }

    /// Inserts a target or updates its registration. A new one is reconciled at `due`.
    pub async fn upsert_deny_policy(
        &self,
        target: &DenyPolicyTarget,
        due: Timestamp,
    ) -> Result<(), StoreError> {
        write!(self, db => {
            sqlx::query(
                "/* know_deny_place */ INSERT INTO deny_place \
                 (minter, name, registration, capacity, propagation_seconds, due_at) \
                 VALUES ($1, $2, $3, $4, $5, $6) \
                 ON CONFLICT (minter, name) DO UPDATE SET registration = $3, capacity = $4, \
                 propagation_seconds = $5",
            )
            .bind(target.minter.as_str())
            .bind(&target.name)
            .bind(&target.registration)
            .bind(i64::from(target.capacity))
            .bind(signed(target.propagation_seconds))
            .bind(due)
            .execute(db)
            .await?;
        });
        Ok(())
    }

    /// Schedules a target for reconciliation now, and once more if a replica is reconciling it. A
    /// target that fails keeps its pauses.
    pub async fn schedule_deny_policy(
        &self,
        target: &DenyPolicyTarget,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        write!(self, db => {
            sqlx::query(
                "/* nudge_deny_place */ UPDATE deny_place SET due_at = $3 \
                 WHERE minter = $1 AND name = $2 AND due_at > $3 \
                 AND (attempts = 0 OR lease_until > $3)",
            )
            .bind(target.minter.as_str())
            .bind(&target.name)
            .bind(now)
            .execute(db)
            .await?;
        });
        Ok(())
    }

    /// The properties of the sessions of external minters that have not expired at `now`.
    pub async fn external_session_groups(
        &self,
        now: Timestamp,
    ) -> Result<Vec<SessionGroup>, StoreError> {
        type Row = (String, String, String, Vec<u8>);
        let rows: Vec<Row> = read_current!(self, db => {
            sqlx::query_as(concat!(
                "/* places_of_sessions */ SELECT DISTINCT minter, audience, resource, generation \
                 FROM session WHERE NOT is_local AND ",
                unexpired!("", "$1")
            ))
            .bind(now)
            .fetch_all(db)
            .await?
        });
        rows.into_iter()
            .map(|(made_by, audience, resource, generation)| {
                Ok(SessionGroup {
                    minter: minter(&made_by)?,
                    audience,
                    resource,
                    generation: GenerationDigest::new(digest("session", &generation)?),
                })
            })
            .collect()
    }

    /// Whether other resources than this one have sessions at a target that may still be valid.
    pub async fn others_live_at(
        &self,
        target: &DenyPolicyTarget,
        resource: &str,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let (others,): (bool,) = read_current!(self, db => {
            sqlx::query_as(concat!(
                "/* others_live_at */ SELECT EXISTS (SELECT 1 FROM session \
                 WHERE minter = $1 AND audience = $2 AND resource <> $3 AND ",
                may_stand!("", "$4"),
                ")"
            ))
            .bind(target.minter.as_str())
            .bind(&target.name)
            .bind(resource)
            .bind(now)
            .fetch_one(db)
            .await?
        });
        Ok(others)
    }

    /// The time of the latest cutoff since `since` that denies all earlier sessions at a target.
    /// `None` if there is none. Checks the MACs of the rows.
    pub async fn last_blanket_deny(
        &self,
        target: &str,
        since: Timestamp,
    ) -> Result<Option<Timestamp>, StoreError> {
        let rows: Vec<CutoffRow> = read_current!(self, db => {
            sqlx::query_as(
                "/* last_blanket_deny */ SELECT * FROM cutoff WHERE deny_policy_target = $1 \
                 AND committed_at > $2",
            )
            .bind(target)
            .bind(since)
            .fetch_all(db)
            .await?
        });
        let times = rows
            .into_iter()
            .map(|row| Ok(self.opened(row)?.committed_at));
        let times: Vec<Timestamp> = times.collect::<Result<_, StoreError>>()?;
        Ok(times.into_iter().max())
    }

    /// The blanket deny of a target, as its document was last read back. `None` if the document had
    /// none.
    pub async fn blanket_deny(
        &self,
        target: &DenyPolicyTarget,
    ) -> Result<Option<BlanketDeny>, StoreError> {
        type Row = (Option<Timestamp>, Option<Timestamp>, Option<Timestamp>);
        let row: Option<Row> = read!(self, db => {
            sqlx::query_as(
                "/* blanket_deny */ SELECT blanket_deny_before, blanket_deny_written_at, read_at \
                 FROM deny_place WHERE minter = $1 AND name = $2",
            )
            .bind(target.minter.as_str())
            .bind(&target.name)
            .fetch_optional(db)
            .await?
        });
        Ok(row.and_then(|(issued_before, written_at, read_at)| {
            Some(BlanketDeny {
                issued_before: issued_before?,
                written_at: written_at?,
                read_at,
            })
        }))
    }

    /// Leases due targets to `holder` until `lease_until`.
    pub async fn claim_deny_policies(
        &self,
        holder: &str,
        now: Timestamp,
        lease_until: Timestamp,
        limit: u32,
    ) -> Result<Vec<ClaimedTarget>, StoreError> {
        macro_rules! claim {
            ($skip:literal) => {
                concat!(
                    "/* claim_deny_places */ UPDATE deny_place \
                     SET lease_holder = $1, lease_until = $3, due_at = $3 \
                     WHERE (minter, name) IN (SELECT minter, name FROM deny_place \
                     WHERE due_at <= $2 AND (lease_until IS NULL OR lease_until <= $2) \
                     ORDER BY due_at LIMIT $4 ",
                    $skip,
                    ") RETURNING minter, name, registration, capacity, propagation_seconds, attempts, \
                     generation, refused_at"
                )
            };
        }
        let rows: Vec<TargetRow> = match self {
            Self::Postgres(postgres) => {
                on_pool!(postgres, db => {
                    sqlx::query_as(claim!("FOR UPDATE SKIP LOCKED"))
                        .bind(holder)
                        .bind(now)
                        .bind(lease_until)
                        .bind(i64::from(limit))
                        .fetch_all(db)
                        .await?
                })
            }
            Self::Sqlite(sqlite) => {
                sqlx::query_as(claim!(""))
                    .bind(holder)
                    .bind(now)
                    .bind(lease_until)
                    .bind(i64::from(limit))
                    .fetch_all(sqlite.writer())
                    .await?
            }
        };
        rows.into_iter().map(ClaimedTarget::try_from).collect()
    }

    /// The number of the next document of a target: greater than any number given before, and than
    /// that of the remote document. `None` if the holder has lost its lease.
    pub async fn next_deny_generation(
        &self,
        target: &DenyPolicyTarget,
        holder: &str,
        standing: u64,
        now: Timestamp,
    ) -> Result<Option<u64>, StoreError> {
        let row: Option<(i64,)> = write!(self, db => {
            sqlx::query_as(
                "/* next_deny_generation */ UPDATE deny_place \
                 SET generation = 1 + CASE WHEN generation > $5 THEN generation ELSE $5 END \
                 WHERE minter = $1 AND name = $2 AND lease_holder = $3 AND lease_until > $4 \
                 RETURNING generation",
            )
            .bind(target.minter.as_str())
            .bind(&target.name)
            .bind(holder)
            .bind(now)
            .bind(signed(standing))
            .fetch_optional(db)
            .await?
        });
        row.map(|(generation,)| unsigned("deny_place", generation))
            .transpose()
    }

    /// Records the blanket deny of a document that was read. A changed one is new: its time begins
    /// when it is next read back.
    pub async fn note_blanket_deny(
        &self,
        target: &DenyPolicyTarget,
        holder: &str,
        issued_before: Option<Timestamp>,
    ) -> Result<(), StoreError> {
        write!(self, db => {
            sqlx::query(
                "/* note_blanket_deny */ UPDATE deny_place \
                 SET blanket_deny_before = NULL, blanket_deny_written_at = NULL \
                 WHERE minter = $1 AND name = $2 AND lease_holder = $3 \
                 AND blanket_deny_before IS NOT NULL AND blanket_deny_before IS DISTINCT FROM $4",
            )
            .bind(target.minter.as_str())
            .bind(&target.name)
            .bind(holder)
            .bind(issued_before)
            .execute(db)
            .await?;
        });
        Ok(())
    }

    /// Records that a target's document was read at `now` and was as required. Ends the lease; the
    /// target is reconciled again at `due_at`, or at once if a request came meanwhile.
    pub async fn mark_deny_policy_reconciled(
        &self,
        target: &DenyPolicyTarget,
        holder: &str,
        issued_before: Option<Timestamp>,
        now: Timestamp,
        due_at: Timestamp,
    ) -> Result<(), StoreError> {
        write!(self, db => {
            sqlx::query(
                "/* deny_place_done */ UPDATE deny_place SET read_at = $4, \
                 blanket_deny_written_at = CASE WHEN blanket_deny_before = $5 \
                 THEN blanket_deny_written_at ELSE $4 END, \
                 blanket_deny_before = $5, attempts = 0, lease_holder = NULL, lease_until = NULL, \
                 due_at = CASE WHEN due_at < lease_until THEN due_at ELSE $6 END \
                 WHERE minter = $1 AND name = $2 AND lease_holder = $3",
            )
            .bind(target.minter.as_str())
            .bind(&target.name)
            .bind(holder)
            .bind(now)
            .bind(issued_before)
            .bind(due_at)
            .execute(db)
            .await?;
        });
        Ok(())
    }

    /// Records that a target could not be reconciled; the next try is at `due_at`.
    pub async fn mark_deny_policy_failed(
        &self,
        target: &DenyPolicyTarget,
        holder: &str,
        due_at: Timestamp,
    ) -> Result<(), StoreError> {
        write!(self, db => {
            sqlx::query(
                "/* deny_place_failed */ UPDATE deny_place SET attempts = attempts + 1, \
                 lease_holder = NULL, lease_until = NULL, due_at = $4 \
                 WHERE minter = $1 AND name = $2 AND lease_holder = $3",
            )
            .bind(target.minter.as_str())
            .bind(&target.name)
            .bind(holder)
            .bind(due_at)
            .execute(db)
            .await?;
        });
        Ok(())
    }
}
