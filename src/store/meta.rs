//! The identity and the state of a store: its mode and origin, the log that it succeeds, the
//! bootstrap tokens that were seen, the horizon, and the location of the shared checkpoint.
//!
//! `claim` marks a store or checks the mark. Then come the succession, the shared checkpoint's
//! location, the bootstrap tokens, the horizon, and two questions to PostgreSQL (connections and
//! clock).
//!
//! The rules: a development store never serves production, nor the reverse, and a store keeps its
//! origin. A bootstrap token keeps its first times, and its end cannot be undone. The horizon moves
//! by compare and swap. Failures: a mark that does not fit is `Unfit`, with a message for the
//! operator. `None` means that nothing is recorded, or that the database is SQLite. The store does
//! not judge: `app` and `broker::access::tokens` judge tokens, `broker::core` the horizon, and the
//! callers check the succession's MAC. `app`, `broker` and `ledger::shared` call this module.

use sqlx::FromRow;

use super::codec::digest;
use super::postgres::BROKER;
use super::{Store, StoreError, on_pool, read, read_current, write};
use crate::clock::Timestamp;

/// The use that a store was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the other names say it all")]
pub enum StoreMode {
    /// Development. Never serves production.
    Dev,
    Production,
}

impl StoreMode {
    fn as_str(self) -> &'static str {
        match self {
            Self::Dev => "dev",
            Self::Production => "production",
        }
    }
}

#[derive(FromRow)]
struct MetaRow {
    mode: String,
    origin: String,
}

/// The log that this store's log succeeds: a plain document with a MAC, which is not verified here.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct SealedSuccession {
    /// A [`crate::domain::succession::Succession`] in JSON.
    pub document: String,
    /// The MAC over the document.
    pub mac: Vec<u8>,
}

/// A bootstrap token, as the store has seen it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromRow)]
pub struct BootstrapToken {
    /// When it was first seen configured, on any replica.
    pub first_seen: Timestamp,
    /// The latest time that the broker knew at `first_seen`: the maximum of the clock, the time of
    /// the newest leaf, and the horizon. A clock that is behind then does not prolong the token.
    pub log_time: Timestamp,
    /// Whether it was ended for good: the day for which a token is valid had passed, or an admin
    /// accepted a time before `first_seen` (`taskpass ledger accept-time`).
    pub ended: bool,
    /// Whether another token was first seen after it.
    pub replaced: bool,
}

impl Store {
    /// Marks an empty store, or checks that the store was marked for this mode and origin.
    pub async fn claim(
        &self,
        mode: StoreMode,
        origin: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        write!(self, db => {
            sqlx::query(
                "/* claim */ INSERT INTO store_meta (mode, origin, created_at, horizon) \
                 VALUES ($1, $2, $3, $3) ON CONFLICT (only_row) DO NOTHING",
            )
            .bind(mode.as_str())
            .bind(origin)
            .bind(now)
            .execute(db)
            .await?;
        });
        let row: MetaRow = write!(self, db => {
            sqlx::query_as("/* claim */ SELECT mode, origin FROM store_meta")
                .fetch_one(db)
                .await?
        });
        if row.mode != mode.as_str() {
            return Err(StoreError::Unfit(format!(
                "this store is marked `{}`; {}",
                row.mode,
                match mode {
                    StoreMode::Dev => "`taskpass dev` uses only stores that it made itself",
                    StoreMode::Production => "`taskpass serve` never uses a development store",
                }
            )));
        }
        if row.origin != origin {
            return Err(StoreError::Unfit(format!(
                "this store holds the log `{}`, the configuration says `{origin}`; a log keeps its origin",
                row.origin
            )));
        }
        Ok(())
    }

    /// Records in an empty store which log its log succeeds. Returns whether the store names this
    /// succession now. It does not if it names another one, or if it holds leaves and names none.
    pub async fn put_succession(&self, sealed: &SealedSuccession) -> Result<bool, StoreError> {
        write!(self, db => {
            sqlx::query(
                "/* put_succession */ INSERT INTO succession (document, mac) \
                 SELECT $1, $2 WHERE NOT EXISTS (SELECT 1 FROM ledger_head) \
                 ON CONFLICT (only_row) DO NOTHING",
            )
            .bind(&sealed.document)
            .bind(&sealed.mac)
            .execute(db)
            .await?;
        });
        let known = self.succession().await?;
        Ok(known.is_some_and(|known| known.document == sealed.document))
    }

    /// The log that this store's log succeeds. `None` if it succeeds none.
    pub async fn succession(&self) -> Result<Option<SealedSuccession>, StoreError> {
        let row: Option<SealedSuccession> = read!(self, db => {
            sqlx::query_as("/* succession */ SELECT document, mac FROM succession")
                .fetch_optional(db)
                .await?
        });
        Ok(row)
    }

    /// Replaces the succession, if its row still has the MAC `old`. Otherwise changes nothing: the
    /// caller reads the succession again.
    pub async fn update_succession(
        &self,
        old: &[u8],
        sealed: &SealedSuccession,
    ) -> Result<(), StoreError> {
        write!(self, db => {
            sqlx::query(
                "/* update_succession */ UPDATE succession SET document = $2, mac = $3 WHERE mac = $1",
            )
            .bind(old)
            .bind(&sealed.document)
            .bind(&sealed.mac)
            .execute(db)
            .await?;
        });
        Ok(())
    }

    /// Replaces the MAC `old` of the succession by one under a newer sealing key. Returns whether
    /// it was replaced.
    pub async fn remac_succession(&self, old: &[u8], new: &[u8]) -> Result<bool, StoreError> {
        let replaced = write!(self, db => {
            sqlx::query("/* remac_succession */ UPDATE succession SET mac = $2 WHERE mac = $1")
                .bind(old)
                .bind(new)
                .execute(db)
                .await?
                .rows_affected()
        });
        Ok(replaced == 1)
    }

    /// The file or URL where the replicas last kept the checkpoint that they share
    /// (`ledger::shared`). `None` if they never kept one.
    pub async fn shared_checkpoint_location(&self) -> Result<Option<String>, StoreError> {
        let row: Option<(Option<String>,)> = read!(self, db => {
            sqlx::query_as("/* shared_place */ SELECT shared_place FROM store_meta")
                .fetch_optional(db)
                .await?
        });
        Ok(row.and_then(|(location,)| location))
    }

    /// Records the file or URL where the replicas keep the checkpoint that they share.
    pub async fn put_shared_checkpoint_location(&self, location: &str) -> Result<(), StoreError> {
        write!(self, db => {
            sqlx::query(
                "/* put_shared_place */ UPDATE store_meta SET shared_place = $1 \
                 WHERE shared_place IS NULL OR shared_place <> $1",
            )
            .bind(location)
            .execute(db)
            .await?;
        });
        Ok(())
    }

    /// Records that a bootstrap token is configured. `now` is the clock's time, and `log_time` the
    /// latest time that the broker knows. A token that was seen before keeps its first times.
    pub async fn see_bootstrap(
        &self,
        digest: &[u8; 32],
        now: Timestamp,
        log_time: Timestamp,
    ) -> Result<(), StoreError> {
        write!(self, db => {
            sqlx::query(
                "/* see_bootstrap */ INSERT INTO bootstrap_token (digest, first_seen, log_time) \
                 VALUES ($1, $2, $3) ON CONFLICT (digest) DO NOTHING",
            )
            .bind(digest.as_slice())
            .bind(now)
            .bind(log_time)
            .execute(db)
            .await?;
        });
        Ok(())
    }

    /// Ends, for good, the bootstrap tokens whose first time, by the clock or by the latest known
    /// time, is at most `up_to`, and those that were first seen after `after`.
    pub async fn end_bootstrap_tokens(
        &self,
        up_to: Timestamp,
        after: Timestamp,
    ) -> Result<(), StoreError> {
        write!(self, db => {
            sqlx::query(
                "/* end_bootstrap_tokens */ UPDATE bootstrap_token SET ended = true \
                 WHERE NOT ended AND (first_seen <= $1 OR log_time <= $1 OR first_seen > $2)",
            )
            .bind(up_to)
            .bind(after)
            .execute(db)
            .await?;
        });
        Ok(())
    }

    /// A bootstrap token that was seen. `None` if no replica has seen this one.
    pub async fn bootstrap_token(
        &self,
        digest: &[u8; 32],
    ) -> Result<Option<BootstrapToken>, StoreError> {
        let token: Option<BootstrapToken> = read_current!(self, db => {
            sqlx::query_as(
                "/* bootstrap_token */ SELECT first_seen, log_time, ended, EXISTS (SELECT 1 \
                 FROM bootstrap_token newer WHERE newer.id > seen.id) AS replaced \
                 FROM bootstrap_token seen WHERE digest = $1",
            )
            .bind(digest.as_slice())
            .fetch_optional(db)
            .await?
        });
        Ok(token)
    }

    /// The digests of all bootstrap tokens that were seen, with their first times, oldest first.
    pub async fn bootstrap_tokens(&self) -> Result<Vec<([u8; 32], Timestamp)>, StoreError> {
        let rows: Vec<(Vec<u8>, Timestamp)> = read!(self, db => {
            sqlx::query_as(
                "/* bootstrap_tokens */ SELECT digest, first_seen FROM bootstrap_token ORDER BY id",
            )
            .fetch_all(db)
            .await?
        });
        rows.into_iter()
            .map(|(bytes, first_seen)| Ok((digest("bootstrap token", &bytes)?, first_seen)))
            .collect()
    }

    /// The horizon: the instant that every permanent deletion uses as the present, so that a clock
    /// that is ahead deletes nothing too early. `None` in a store that was not marked.
    pub async fn horizon(&self) -> Result<Option<Timestamp>, StoreError> {
        let row: Option<(Timestamp,)> = read!(self, db => {
            sqlx::query_as("/* horizon */ SELECT horizon FROM store_meta")
                .fetch_optional(db)
                .await?
        });
        Ok(row.map(|(horizon,)| horizon))
    }

    /// Moves the horizon from `from` to `to`. Returns false if it was no longer at `from`.
    pub async fn advance_horizon(
        &self,
        from: Timestamp,
        to: Timestamp,
    ) -> Result<bool, StoreError> {
        let moved = write!(self, db => {
            sqlx::query("/* advance_horizon */ UPDATE store_meta SET horizon = $2 WHERE horizon = $1")
                .bind(from)
                .bind(to)
                .execute(db)
                .await?
                .rows_affected()
        });
        Ok(moved == 1)
    }

    /// The number of connections that brokers have to this database now, not of brokers. Counts the
    /// connections of this process too if it connects as a broker. Zero on SQLite, whose directory
    /// only one process can use.
    pub async fn connected_brokers(&self) -> Result<u64, StoreError> {
        let Self::Postgres(postgres) = self else {
            return Ok(0);
        };
        let (count,): (i64,) = on_pool!(postgres, db => {
            sqlx::query_as(
                "/* connected_brokers */ SELECT count(*) FROM pg_stat_activity \
                 WHERE datname = current_database() AND application_name = $1",
            )
            .bind(BROKER)
            .fetch_one(db)
            .await?
        });
        Ok(count.unsigned_abs())
    }

    /// The database's clock. `None` on SQLite, which has no clock of its own.
    pub async fn clock(&self) -> Result<Option<Timestamp>, StoreError> {
        match self {
            Self::Postgres(postgres) => postgres.clock().await.map(Some),
            Self::Sqlite(_) => Ok(None),
        }
    }
}
