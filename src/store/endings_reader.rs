//! Reads the table of endings, with the newest head.
//!
//! [`Store::endings_reader`] makes an [`EndingsReader`]; `read` returns a page ([`EndingsPage`]),
//! and `notified` waits for a hint that there are new rows.
//!
//! The rule: the rows of a page and its head come from one statement. So the rows up to the end of
//! a page that is not full are all endings below the head's size, if their digest equals that of
//! the head. Failures: `NotPrimary` if the server shows fewer leaves than are known, or without the
//! read lease; `Unfit` and `Corrupt` as in [`super::endings`]. After an error of the connection or of
//! its server the reader makes a new connection; it keeps it when only the lease lapsed or a row
//! was unreadable. Neither the head's MAC nor the digests are checked here:
//! `crate::ledger::follower` does.

use std::time::Duration;

use sqlx::FromRow;
use sqlx::postgres::{PgListener, PgPoolOptions};

use super::codec::{signed, unsigned};
use super::endings::{
    CHANNEL, ChainedEnding, EndingPosition, EndingRecord, EndingSubject, EndingsChain,
};
use super::fence::{Fence, ServerState};
use super::heads::{HeadRow, SealedHead};
use super::postgres::Postgres;
use super::sqlite::Sqlite;
use super::{Store, StoreError};
use crate::clock::Timestamp;

/// How long the reader waits for a connection.
const CONNECT_PATIENCE: Duration = Duration::from_secs(3);

/// Rows after a position, and the newest head at the same moment.
#[derive(Clone, Debug)]
pub struct EndingsPage {
    /// The row of the newest head, and the first leaf behind it; neither is checked. `None` in an
    /// empty log.
    pub head: Option<SealedHead>,
    /// The rows, in their order.
    pub rows: Vec<ChainedEnding>,
    /// Whether there may be more rows below the head.
    pub is_full: bool,
}

/// The statement of both databases, with the additional columns that PostgreSQL reads.
macro_rules! endings_after {
    ($server:literal) => {
        concat!(
            "/* endings_after */ SELECT head.size, head.root, head.batch_id, head.mac, \
             head.endings, head.uncovered, page.idx, page.n, page.kind, page.subject, \
             page.matters_until, page.chain_before",
            $server,
            " FROM (SELECT size, root, batch_id, mac, endings, \
             (SELECT min(idx) FROM leaf WHERE idx >= size) AS uncovered \
             FROM ledger_head ORDER BY size DESC LIMIT 1) AS head \
             LEFT JOIN (SELECT idx, n, kind, subject, matters_until, chain_before FROM ending \
             WHERE (idx, n) > ($1, $2) ORDER BY idx, n LIMIT $3) AS page ON 1 = 1 \
             ORDER BY page.idx, page.n"
        )
    };
}

/// One row of the answer: the head, and a row of the table unless there is none.
#[derive(FromRow)]
struct PageRow {
    #[sqlx(flatten)]
    head: HeadRow,
    idx: Option<i64>,
    n: Option<i64>,
    kind: Option<String>,
    subject: Option<String>,
    matters_until: Option<Timestamp>,
    chain_before: Option<Vec<u8>>,
}

/// The same, with the state of PostgreSQL's server.
#[derive(FromRow)]
struct PostgresPageRow {
    #[sqlx(flatten)]
    page: PageRow,
    in_recovery: bool,
    since: Timestamp,
}

impl PageRow {
    fn into_parts(self) -> Result<(HeadRow, Option<ChainedEnding>), StoreError> {
        let Self { head, .. } = self;
        let (Some(index), Some(n), Some(kind), Some(subject), Some(until), Some(before)) = (
            self.idx,
            self.n,
            self.kind,
            self.subject,
            self.matters_until,
            self.chain_before,
        ) else {
            return Ok((head, None));
        };
        let ending = ChainedEnding {
            record: EndingRecord {
                position: EndingPosition {
                    index: unsigned("ending", index)?,
                    n: unsigned("ending", n)?,
                },
                subject: EndingSubject::from_parts(&kind, subject)?,
                matters_until: until,
            },
            before: EndingsChain::from_column(&before)?,
        };
        Ok((head, Some(ending)))
    }
}

fn page(rows: Vec<PageRow>, limit: u32) -> Result<EndingsPage, StoreError> {
    let mut newest = None;
    let mut endings = Vec::with_capacity(rows.len());
    for row in rows {
        let (head, ending) = row.into_parts()?;
        // Every row repeats the head.
        if newest.is_none() {
            newest = Some(SealedHead::try_from(head)?);
        }
        endings.extend(ending);
    }
    Ok(EndingsPage {
        head: newest,
        is_full: endings.len() >= limit as usize,
        rows: endings,
    })
}

/// Reads the table of endings. On PostgreSQL by a connection of its own, on which the server
/// notifies it of new rows.
#[derive(Debug)]
pub struct EndingsReader(Source);

#[derive(Debug)]
enum Source {
    Postgres {
        postgres: Postgres,
        /// `None` before the first read and after an error of the connection or of its server.
        connection: Option<Box<PgListener>>,
    },
    Sqlite(Sqlite),
}

impl Store {
    /// A reader of the table of endings. It connects at its first read.
    #[must_use]
    pub fn endings_reader(&self) -> EndingsReader {
        EndingsReader(match self {
            Self::Postgres(postgres) => Source::Postgres {
                postgres: postgres.clone(),
                connection: None,
            },
            Self::Sqlite(sqlite) => Source::Sqlite(sqlite.clone()),
        })
    }
}

impl EndingsReader {
    /// At most `limit` rows after a position, in their order, with the newest head. `None` stands
    /// for the position before all rows.
    pub async fn read(
        &mut self,
        after: Option<EndingPosition>,
        limit: u32,
    ) -> Result<EndingsPage, StoreError> {
        let (index, n) = after.map_or((-1, -1), |after| (signed(after.index), signed(after.n)));
        match &mut self.0 {
            Source::Postgres {
                postgres,
                connection,
            } => read_postgres(postgres, connection, (index, n), limit).await,
            Source::Sqlite(sqlite) => {
                let rows: Vec<PageRow> = sqlx::query_as(endings_after!(""))
                    .bind(index)
                    .bind(n)
                    .bind(i64::from(limit))
                    .fetch_all(sqlite.readers())
                    .await?;
                page(rows, limit)
            }
        }
    }

    /// Resolves when the server notifies of new rows. It is a hint: a notification can be lost, and
    /// without a connection, and on SQLite, it never resolves.
    pub async fn notified(&mut self) {
        if let Source::Postgres { connection, .. } = &mut self.0
            && let Some(listener) = connection
        {
            if let Ok(Some(_)) = listener.try_recv().await {
                // One read serves all notifications that have come.
                while listener.next_buffered().is_some() {}
                return;
            }
            // The connection broke: the next read makes a new one.
            *connection = None;
        }
        std::future::pending::<()>().await;
    }
}

/// A connection that the server notifies of new rows.
async fn connect(postgres: &Postgres) -> Result<Box<PgListener>, StoreError> {
    // A pool of one connection, since the driver's listener takes its connection from a pool.
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .max_lifetime(None)
        .idle_timeout(None)
        .acquire_timeout(CONNECT_PATIENCE)
        .connect_with(postgres.follower_options())
        .await?;
    let mut listener = PgListener::connect_with(&pool).await?;
    // A lost connection is an error of the next read, which makes a new one and checks the server.
    listener.eager_reconnect(false);
    listener.listen(CHANNEL).await?;
    Ok(Box::new(listener))
}

async fn read_postgres(
    postgres: &Postgres,
    connection: &mut Option<Box<PgListener>>,
    (index, n): (i64, i64),
    limit: u32,
) -> Result<EndingsPage, StoreError> {
    let fence = postgres.fence();
    let is_new = connection.is_none();
    // Put back only while it may be used: this future may be dropped, too.
    let mut listener = match connection.take() {
        Some(listener) => listener,
        None => connect(postgres).await?,
    };
    // Read first: the server must show at least the leaves that are known now.
    let known = fence.known();
    let fetched: Result<Vec<PostgresPageRow>, _> = sqlx::query_as(endings_after!(
        ", pg_is_in_recovery() AS in_recovery, pg_postmaster_start_time() AS since"
    ))
    .bind(index)
    .bind(n)
    .bind(i64::from(limit))
    .fetch_all(&mut *listener)
    .await;
    let rows = match fetched {
        Ok(rows) => rows,
        Err(error) => {
            if is_unreadable(&error) {
                *connection = Some(listener);
            }
            return Err(error.into());
        }
    };
    let state = rows.first().map(|row| (row.in_recovery, row.since));
    let size = rows.first().map_or(0, |row| row.page.head.size());
    let (in_recovery, since) = state.unwrap_or((false, Timestamp::EPOCH));
    let shown = ServerState {
        size,
        since,
        in_recovery,
    };
    if let Some(why) = Fence::refusal(known, shown) {
        if !is_new {
            // Those of the pool may be as old. The pool checks its new connections itself.
            fence.retire();
        }
        return Err(StoreError::NotPrimary(why));
    }
    let lease = fence.check_lease(None);
    if lease.is_ok() {
        // Fails if the lease is that of another server.
        fence.check_lease(state.map(|(_, since)| since))?;
    }
    *connection = Some(listener);
    lease?;
    page(rows.into_iter().map(|row| row.page).collect(), limit)
}

/// Whether an error only says that a value could not be read. The connection is as good as before.
fn is_unreadable(error: &sqlx::Error) -> bool {
    matches!(
        error,
        sqlx::Error::Decode(_) | sqlx::Error::ColumnDecode { .. } | sqlx::Error::ColumnNotFound(_)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unreadable_value_does_not_cost_the_connection() {
        let unreadable = sqlx::Error::ColumnDecode {
            index: "kind".into(),
            source: "not a text".into(),
        };
        assert!(is_unreadable(&unreadable));
        let broken = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        for error in [sqlx::Error::Io(broken), sqlx::Error::PoolTimedOut] {
            assert!(!is_unreadable(&error), "{error}");
        }
    }
}
