//! Lists of denied sessions at back ends: what is to be in each, who writes it, and what was read
//! back. The document at the back end follows from these rows, never the other way round.

use sqlx::FromRow;

use super::codec::{signed, unsigned};
use super::tasks::json_ids;
use super::{Store, StoreError, on_pool, read, read_current, write};
use crate::clock::Timestamp;
use crate::domain::deny_list::{DenyAsk, DenyPlace, DenyStanding};
use crate::ids::SessionId;

/// A place that this process may write to until its lease is over.
#[derive(Clone, Debug)]
pub struct ClaimedPlace {
    /// Which.
    pub place: DenyPlace,
    /// Tries that failed since the last good one.
    pub attempts: u32,
    /// The number of the last document that was to be written.
    pub generation: u64,
}

/// What has been seen of a place as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Widening {
    /// All sessions that were made before this instant are denied.
    pub issued_before: Timestamp,
    /// When that was first read back.
    pub written_at: Timestamp,
    /// When the document was last read and said what it should.
    pub read_at: Option<Timestamp>,
}

#[derive(FromRow)]
struct PlaceRow {
    minter: String,
    name: String,
    registration: String,
    capacity: i64,
    propagation_seconds: i64,
    attempts: i64,
    generation: i64,
}

impl TryFrom<PlaceRow> for ClaimedPlace {
    type Error = StoreError;

    fn try_from(row: PlaceRow) -> Result<Self, StoreError> {
        let small = |value: i64| {
            u32::try_from(value).map_err(|_| StoreError::Corrupt("list of denied sessions"))
        };
        Ok(Self {
            attempts: small(row.attempts)?,
            generation: unsigned("deny_place", row.generation)?,
            place: DenyPlace {
                minter: row.minter,
                name: row.name,
                registration: row.registration,
                capacity: small(row.capacity)?,
                propagation_seconds: unsigned("deny_place", row.propagation_seconds)?,
            },
        })
    }
}

impl Store {
    /// How far the denying of a session has come; nothing where it was never asked for.
    pub async fn deny_standing(
        &self,
        session: SessionId,
    ) -> Result<Option<DenyStanding>, StoreError> {
        type Row = (Timestamp, bool, Option<Timestamp>, Option<Timestamp>);
        let row: Option<Row> = read!(self, db => {
            sqlx::query_as(
                "/* deny_standing */ SELECT e.requested_at, e.listed, e.written_at, p.read_at \
                 FROM deny_entry e JOIN deny_place p ON p.minter = e.minter AND p.name = e.place \
                 WHERE e.session_id = $1",
            )
            .bind(session)
            .fetch_optional(db)
            .await?
        });
        Ok(
            row.map(|(requested_at, listed, written_at, read_at)| DenyStanding {
                requested_at,
                listed,
                written_at,
                read_at,
            }),
        )
    }

    /// Makes a place known, or its registration what it is now, and has it looked at.
    pub async fn put_deny_place(
        &self,
        place: &DenyPlace,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.know_deny_place(place, now).await?;
        self.nudge_deny_place(place, now).await
    }

    /// Makes a place known, or its registration what it is now. One that was not known is looked at
    /// when it is `due`.
    pub async fn know_deny_place(
        &self,
        place: &DenyPlace,
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
            .bind(&place.minter)
            .bind(&place.name)
            .bind(&place.registration)
            .bind(i64::from(place.capacity))
            .bind(signed(place.propagation_seconds))
            .bind(due)
            .execute(db)
            .await?;
        });
        Ok(())
    }

    /// Has a place looked at, once more where somebody is at it. One that fails keeps to its pauses.
    pub async fn nudge_deny_place(
        &self,
        place: &DenyPlace,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        write!(self, db => {
            sqlx::query(
                "/* nudge_deny_place */ UPDATE deny_place SET due_at = $3 \
                 WHERE minter = $1 AND name = $2 AND due_at > $3 \
                 AND (attempts = 0 OR lease_until > $3)",
            )
            .bind(&place.minter)
            .bind(&place.name)
            .bind(now)
            .execute(db)
            .await?;
        });
        Ok(())
    }

    /// Asks for a session to be denied at a known place. Once it is listed, asking again changes
    /// nothing.
    pub async fn ask_deny(&self, place: &DenyPlace, ask: &DenyAsk) -> Result<(), StoreError> {
        write!(self, db => {
            sqlx::query(
                "/* ask_deny */ INSERT INTO deny_entry \
                 (session_id, minter, place, requested_at, keep_until, listed) \
                 SELECT $1, $2, $3, $4, $5, count(*) < $6 FROM deny_entry \
                 WHERE minter = $2 AND place = $3 AND listed AND keep_until > $4 \
                 ON CONFLICT (session_id) DO UPDATE SET listed = excluded.listed, \
                 keep_until = excluded.keep_until WHERE NOT deny_entry.listed AND excluded.listed",
            )
            .bind(ask.session)
            .bind(&place.minter)
            .bind(&place.name)
            .bind(ask.at)
            .bind(ask.keep_until)
            .bind(i64::from(ask.room))
            .execute(db)
            .await?;
        });
        self.nudge_deny_place(place, ask.at).await
    }

    /// How many sessions a place's document is to name at `now`, and how many tries to see to it
    /// have failed since the last good one.
    pub async fn count_denied(
        &self,
        place: &DenyPlace,
        now: Timestamp,
    ) -> Result<(u64, u32), StoreError> {
        let (count, failures): (i64, Option<i64>) = read!(self, db => {
            sqlx::query_as(
                "/* count_denied */ SELECT count(*), \
                 (SELECT attempts FROM deny_place WHERE minter = $1 AND name = $2) \
                 FROM deny_entry WHERE minter = $1 AND place = $2 AND listed AND keep_until > $3",
            )
            .bind(&place.minter)
            .bind(&place.name)
            .bind(now)
            .fetch_one(db)
            .await?
        });
        let failures = u32::try_from(failures.unwrap_or(0)).unwrap_or(u32::MAX);
        Ok((unsigned("count", count)?, failures))
    }

    /// Whether sessions that are not over were made at a place for another resource than this.
    pub async fn others_live_at(
        &self,
        place: &DenyPlace,
        resource: &str,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let (others,): (bool,) = read_current!(self, db => {
            sqlx::query_as(
                "/* others_live_at */ SELECT EXISTS (SELECT 1 FROM session \
                 WHERE minter = $1 AND audience = $2 AND resource <> $3 AND expires_at > $4 \
                 AND state <> 'ended')",
            )
            .bind(&place.minter)
            .bind(&place.name)
            .bind(resource)
            .bind(now)
            .fetch_one(db)
            .await?
        });
        Ok(others)
    }

    /// Takes sessions over that a document names and our records do not.
    pub async fn adopt_denied(
        &self,
        place: &DenyPlace,
        sessions: &[SessionId],
        now: Timestamp,
        keep_until: Timestamp,
    ) -> Result<(), StoreError> {
        macro_rules! adopt {
            ($sessions:literal) => {
                concat!(
                    "/* adopt_denied */ INSERT INTO deny_entry \
                     (session_id, minter, place, requested_at, keep_until, listed, written_at) \
                     SELECT id, $1, $2, $4, $5, true, $4 FROM ",
                    $sessions,
                    " WHERE true ON CONFLICT (session_id) DO NOTHING"
                )
            };
        }
        match self {
            Self::Postgres(postgres) => {
                let ids: Vec<_> = sessions.iter().map(|id| id.uuid()).collect();
                on_pool!(postgres, db => {
                    sqlx::query(adopt!("unnest($3) AS id"))
                        .bind(&place.minter)
                        .bind(&place.name)
                        .bind(ids)
                        .bind(now)
                        .bind(keep_until)
                        .execute(db)
                        .await?
                });
            }
            Self::Sqlite(sqlite) => {
                sqlx::query(adopt!(
                    "(SELECT unhex(value) AS id FROM json_each($3)) AS named"
                ))
                .bind(&place.minter)
                .bind(&place.name)
                .bind(json_ids(sessions.iter().map(|id| id.uuid())))
                .bind(now)
                .bind(keep_until)
                .execute(sqlite.writer())
                .await?;
            }
        }
        Ok(())
    }

    /// The sessions that a place's document is to name at `now`.
    pub async fn denied_sessions(
        &self,
        place: &DenyPlace,
        now: Timestamp,
    ) -> Result<Vec<SessionId>, StoreError> {
        let rows: Vec<(SessionId,)> = read!(self, db => {
            sqlx::query_as(
                "/* denied_sessions */ SELECT session_id FROM deny_entry \
                 WHERE minter = $1 AND place = $2 AND listed AND keep_until > $3",
            )
            .bind(&place.minter)
            .bind(&place.name)
            .bind(now)
            .fetch_all(db)
            .await?
        });
        Ok(rows.into_iter().map(|(id,)| id).collect())
    }

    /// The latest cutoff since `since` that an admin widened to a whole place.
    pub async fn widened_at(
        &self,
        place: &str,
        since: Timestamp,
    ) -> Result<Option<Timestamp>, StoreError> {
        let (at,): (Option<Timestamp>,) = read_current!(self, db => {
            sqlx::query_as(
                "/* widened_at */ SELECT max(committed_at) FROM cutoff \
                 WHERE widened_to = $1 AND committed_at > $2",
            )
            .bind(place)
            .bind(since)
            .fetch_one(db)
            .await?
        });
        Ok(at)
    }

    /// What was read back of a place's widening.
    pub async fn widening(&self, place: &DenyPlace) -> Result<Option<Widening>, StoreError> {
        type Row = (Option<Timestamp>, Option<Timestamp>, Option<Timestamp>);
        let row: Option<Row> = read!(self, db => {
            sqlx::query_as(
                "/* widening */ SELECT widened_to, widened_at, read_at FROM deny_place \
                 WHERE minter = $1 AND name = $2",
            )
            .bind(&place.minter)
            .bind(&place.name)
            .fetch_optional(db)
            .await?
        });
        Ok(row.and_then(|(issued_before, written_at, read_at)| {
            Some(Widening {
                issued_before: issued_before?,
                written_at: written_at?,
                read_at,
            })
        }))
    }

    /// Places that are due, each of them ours alone until `lease_until`.
    pub async fn claim_deny_places(
        &self,
        holder: &str,
        now: Timestamp,
        lease_until: Timestamp,
        limit: u32,
    ) -> Result<Vec<ClaimedPlace>, StoreError> {
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
                     generation"
                )
            };
        }
        let rows: Vec<PlaceRow> = match self {
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
        rows.into_iter().map(ClaimedPlace::try_from).collect()
    }

    /// The number of the next document of a place: greater than any that we gave, and than the one
    /// that stands. Nothing when the place is not ours any more.
    pub async fn next_deny_generation(
        &self,
        place: &DenyPlace,
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
            .bind(&place.minter)
            .bind(&place.name)
            .bind(holder)
            .bind(now)
            .bind(signed(standing))
            .fetch_optional(db)
            .await?
        });
        row.map(|(generation,)| unsigned("deny_place", generation))
            .transpose()
    }

    /// Notes what a document that was read at `now` names: what is in it for the first time, and
    /// what was in it and is not any more. Only its holder does: a reader of yesterday must not.
    pub async fn note_denied(
        &self,
        place: &DenyPlace,
        holder: &str,
        present: &[SessionId],
        now: Timestamp,
    ) -> Result<(), StoreError> {
        macro_rules! note {
            ($present:literal) => {
                concat!(
                    "/* note_denied */ UPDATE deny_entry SET written_at = \
                     CASE WHEN session_id IN ",
                    $present,
                    " THEN COALESCE(written_at, $4) END \
                     WHERE minter = $1 AND place = $2 AND listed AND keep_until > $4 \
                     AND (written_at IS NULL) = (session_id IN ",
                    $present,
                    ") AND EXISTS (SELECT 1 FROM deny_place \
                     WHERE minter = $1 AND name = $2 AND lease_holder = $5)"
                )
            };
        }
        match self {
            Self::Postgres(postgres) => {
                let ids: Vec<_> = present.iter().map(|id| id.uuid()).collect();
                on_pool!(postgres, db => {
                    sqlx::query(note!("(SELECT unnest($3))"))
                        .bind(&place.minter)
                        .bind(&place.name)
                        .bind(ids)
                        .bind(now)
                        .bind(holder)
                        .execute(db)
                        .await?
                });
            }
            Self::Sqlite(sqlite) => {
                sqlx::query(note!("(SELECT unhex(value) FROM json_each($3))"))
                    .bind(&place.minter)
                    .bind(&place.name)
                    .bind(json_ids(present.iter().map(|id| id.uuid())))
                    .bind(now)
                    .bind(holder)
                    .execute(sqlite.writer())
                    .await?;
            }
        }
        Ok(())
    }

    /// Notes what a document that was read says of a place as a whole: another word than the one
    /// that was read before is new, and its time begins when it is next read back.
    pub async fn note_widening(
        &self,
        place: &DenyPlace,
        holder: &str,
        issued_before: Option<Timestamp>,
    ) -> Result<(), StoreError> {
        write!(self, db => {
            sqlx::query(
                "/* note_widening */ UPDATE deny_place SET widened_to = NULL, widened_at = NULL \
                 WHERE minter = $1 AND name = $2 AND lease_holder = $3 \
                 AND widened_to IS NOT NULL AND widened_to IS DISTINCT FROM $4",
            )
            .bind(&place.minter)
            .bind(&place.name)
            .bind(holder)
            .bind(issued_before)
            .execute(db)
            .await?;
        });
        Ok(())
    }

    /// A place's document was read at `now` and said what it should. Gives the place back, to be
    /// looked at again at `due_at`, or at once where something was asked for meanwhile.
    pub async fn deny_place_done(
        &self,
        place: &DenyPlace,
        holder: &str,
        issued_before: Option<Timestamp>,
        now: Timestamp,
        due_at: Timestamp,
    ) -> Result<(), StoreError> {
        write!(self, db => {
            sqlx::query(
                "/* deny_place_done */ UPDATE deny_place SET read_at = $4, \
                 widened_at = CASE WHEN widened_to = $5 THEN widened_at ELSE $4 END, \
                 widened_to = $5, attempts = 0, lease_holder = NULL, lease_until = NULL, \
                 due_at = CASE WHEN due_at < lease_until THEN due_at ELSE $6 END \
                 WHERE minter = $1 AND name = $2 AND lease_holder = $3",
            )
            .bind(&place.minter)
            .bind(&place.name)
            .bind(holder)
            .bind(now)
            .bind(issued_before)
            .bind(due_at)
            .execute(db)
            .await?;
        });
        Ok(())
    }

    /// A place could not be brought to what it should say: it is tried again at `due_at`.
    pub async fn deny_place_failed(
        &self,
        place: &DenyPlace,
        holder: &str,
        due_at: Timestamp,
    ) -> Result<(), StoreError> {
        write!(self, db => {
            sqlx::query(
                "/* deny_place_failed */ UPDATE deny_place SET attempts = attempts + 1, \
                 lease_holder = NULL, lease_until = NULL, due_at = $4 \
                 WHERE minter = $1 AND name = $2 AND lease_holder = $3",
            )
            .bind(&place.minter)
            .bind(&place.name)
            .bind(holder)
            .bind(due_at)
            .execute(db)
            .await?;
        });
        Ok(())
    }
}
