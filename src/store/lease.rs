//! The read lease: the proof that the server from which this process reads is the primary.
//!
//! About once a second a dedicated connection makes one synchronous commit that writes nothing but
//! a record of the write-ahead log ([`ReadLease::renew`]). When the server acknowledges it, the
//! server's synchronous standby was still following the server at some moment after the commit was
//! sent. So no standby had been promoted by then, and every earlier acknowledged commit is visible
//! on the server.
//!
//! When the standby is gone, COMMIT waits and the lease expires. That is intended: a primary alone
//! cannot tell a dead standby from a promoted one. A comparison with the shared checkpoint does not
//! replace the commit, because a replica on the new primary may be unable to publish there; it only
//! tells how many leaves the server must show. A commit that was answered with a warning does not
//! count either ([`super::acknowledged`]). Failures: `NotPrimary` if the commit was not
//! acknowledged in time or the server shows too few leaves, `Unavailable` if no connection can be
//! made; the caller tries again. `app` runs the renewals; [`super::fence`] refuses reads once the
//! lease has expired.

use std::time::Duration;

use sqlx::postgres::PgConnection;

use super::StoreError;
use super::acknowledged::WatchedConnection;
use super::codec::unsigned;
use super::fence::{Fence, ServerState};
use super::postgres::Postgres;
use crate::clock::{BootInstant, Timestamp};

/// The first half of the advisory lock's key. The second half is a number of this process.
const LOCK: i32 = 7_413;

/// How long a connection attempt may take.
const CONNECT_PATIENCE: Duration = Duration::from_secs(3);

/// Renews the lease of one process.
#[derive(Debug)]
pub struct ReadLease {
    postgres: Postgres,
    bound: Duration,
    /// The second half of the advisory lock's key; it differs between processes.
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

    /// The interval between two renewals.
    #[must_use]
    pub fn interval(&self) -> Duration {
        (self.bound / 5).min(Duration::from_secs(1))
    }

    /// Makes one commit and records its acknowledgement.
    ///
    /// A commit that waits for its standby is abandoned after the lease's duration, and its
    /// connection is dropped. The server still holds that commit and its advisory lock. So later
    /// commits on the same server neither wait nor prove anything, and at most one connection hangs
    /// there.
    pub async fn renew(&mut self) -> Result<(), StoreError> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        // Taken before the commit is sent: the acknowledgement is at least as recent.
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
            // The connection is dropped: the next renewal connects to the server at the address by
            // then.
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

/// One commit: the state that the server shows, and whether there was a commit to acknowledge.
async fn commit(
    connection: &mut PgConnection,
    number: i32,
) -> Result<(ServerState, bool), StoreError> {
    type Row = (bool, Timestamp, Option<i64>, bool);
    // `fetch_all` reads to the end of the answer, which comes after the implicit transaction's
    // commit.
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
    let shown = ServerState {
        size: unsigned("head", size.unwrap_or(0))?,
        since,
        in_recovery,
    };
    Ok((shown, acknowledged))
}
