//! The read lease: the proof that the server which this process reads from is the primary.
//!
//! About once a second a connection of its own makes one synchronous commit that writes nothing but
//! a record of the write-ahead log. When the server acknowledges it, the server's synchronous
//! standby was still following it at some moment after the commit was asked for, so no standby had
//! been promoted by then, and everything that was acknowledged before is visible there.
//!
//! Where the standby is gone COMMIT waits, and the lease lapses. That is intended: alone, a primary
//! cannot tell a dead standby from one that was promoted. A comparison with the shared checkpoint
//! does not take the commit's place, because a replica on the new primary may be unable to publish
//! there; such a comparison only tells how many leaves must be shown. A commit that was answered with
//! a warning does not either: its wait for the standby may have been cancelled
//! ([`super::acknowledged`]).

use std::time::Duration;

use sqlx::postgres::PgConnection;

use super::StoreError;
use super::acknowledged::WatchedConnection;
use super::codec::unsigned;
use super::fence::{Fence, Shown};
use super::postgres::Postgres;
use crate::clock::{BootInstant, Timestamp};

/// The first half of the advisory lock's key. The second is a number of this process.
const LOCK: i32 = 7_413;

/// How long a connection may take.
const CONNECT_PATIENCE: Duration = Duration::from_secs(3);

/// Renews the lease of one process.
#[derive(Debug)]
pub struct ReadLease {
    postgres: Postgres,
    bound: Duration,
    /// Tells this process's commit from those of others.
    number: i32,
    connection: Option<WatchedConnection>,
}

impl ReadLease {
    pub(super) fn new(postgres: Postgres, bound: Duration, number: i32) -> Self {
        Self {
            postgres,
            bound,
            number,
            connection: None,
        }
    }

    /// How often it is to be renewed.
    #[must_use]
    pub fn interval(&self) -> Duration {
        (self.bound / 5).min(Duration::from_secs(1))
    }

    /// Asks for one commit and notes that it was acknowledged.
    ///
    /// A commit that waits for its standby is given up after the lease's own time, and its connection
    /// with it. The server still holds that commit and its advisory lock, so that later ones on the
    /// same server neither wait nor prove anything, and at most one connection is held up there.
    pub async fn renew(&mut self) -> Result<(), StoreError> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        // Before the question is sent: the answer is at least as new.
        let asked = BootInstant::now();
        let known = self.postgres.fence().known();
        let number = self.number;
        let commit = connection.acknowledged(|connection| commit(connection, number));
        let committed = tokio::time::timeout(self.bound, commit).await;
        let (shown, acknowledged) = committed.map_err(|_| {
            StoreError::NotPrimary(format!(
                "a commit was not acknowledged within {} s; its synchronous standby may be gone",
                self.bound.as_secs()
            ))
        })??;
        if let Some(why) = Fence::refusal(known, shown) {
            self.postgres.fence().retire();
            return Err(StoreError::NotPrimary(why));
        }
        if !acknowledged {
            // The next one looks where the address leads by then.
            return Err(StoreError::NotPrimary(
                "an earlier commit still waits to be acknowledged; its synchronous standby may be \
                 gone"
                    .to_owned(),
            ));
        }
        self.connection = Some(connection);
        self.postgres.fence().prove(shown.since, asked);
        Ok(())
    }

    async fn connect(&self) -> Result<WatchedConnection, StoreError> {
        let options = self.postgres.lease_options();
        let connecting = WatchedConnection::connect(&options);
        match tokio::time::timeout(CONNECT_PATIENCE, connecting).await {
            Ok(connection) => connection,
            Err(_) => Err(StoreError::Unavailable(sqlx::Error::PoolTimedOut)),
        }
    }
}

/// One commit: what the server shows, and whether there was something to commit.
async fn commit(connection: &mut PgConnection, number: i32) -> Result<(Shown, bool), StoreError> {
    type Row = (bool, Timestamp, Option<i64>, bool);
    // All rows are fetched, so that the server's last word on the implicit transaction is read: it
    // comes after the commit.
    let rows: Vec<Row> = sqlx::query_as(
        "/* read_lease */ SELECT pg_is_in_recovery(), pg_postmaster_start_time(), \
         (SELECT size FROM ledger_head ORDER BY size DESC LIMIT 1), \
         CASE WHEN pg_is_in_recovery() THEN false \
         WHEN pg_try_advisory_xact_lock($1, $2) \
         THEN pg_logical_emit_message(true, 'taskpass.read_lease', '') IS NOT NULL \
         ELSE false END",
    )
    .bind(LOCK)
    .bind(number)
    .fetch_all(connection)
    .await?;
    let [(in_recovery, since, size, acknowledged)] = rows[..] else {
        return Err(StoreError::Corrupt("read lease"));
    };
    let shown = Shown {
        size: unsigned("head", size.unwrap_or(0))?,
        since,
        in_recovery,
    };
    Ok((shown, acknowledged))
}
