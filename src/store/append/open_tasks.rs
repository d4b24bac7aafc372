//! Counts open tasks of an owner and type, under the lock.
//!
//! A count stops at its limit. `enter` counts those that are known to be needed with its other
//! reads; `postgres` and `sqlite` count those that turn out to be needed afterwards.

use std::collections::HashMap;

use sqlx::postgres::PgConnection;
use sqlx::sqlite::SqliteConnection;

use super::column;
use crate::store::StoreError;

/// Owner, task type and limit of a count.
type Wanted = (String, String, u32);

/// The number of open tasks by owner and type.
type Counted = HashMap<(String, String), u32>;

pub(super) async fn postgres(
    connection: &mut PgConnection,
    wanted: &[Wanted],
) -> Result<Counted, StoreError> {
    let rows: Vec<(String, String, i64)> = sqlx::query_as(
        "/* open_tasks */ SELECT w.owner, w.task_type, (SELECT count(*) FROM ( \
         SELECT 1 FROM task t \
         WHERE t.owner = w.owner AND t.task_type = w.task_type AND t.state = 'open' \
         LIMIT w.up_to) counted) \
         FROM unnest($1::text[], $2::text[], $3::int4[]) AS w (owner, task_type, up_to)",
    )
    .bind(column(wanted, |(owner, ..)| owner.clone()))
    .bind(column(wanted, |(_, task_type, _)| task_type.clone()))
    .bind(column(wanted, |(.., limit)| {
        i32::try_from(*limit).unwrap_or(i32::MAX)
    }))
    .fetch_all(connection)
    .await?;
    let rows = rows.into_iter();
    Ok(rows
        .map(|(owner, task_type, open)| ((owner, task_type), saturated(open)))
        .collect())
}

pub(super) async fn sqlite(
    connection: &mut SqliteConnection,
    wanted: &[Wanted],
) -> Result<Counted, StoreError> {
    let mut counted = HashMap::new();
    for (owner, task_type, limit) in wanted {
        let (open,): (i64,) = sqlx::query_as(
            "/* open_tasks */ SELECT count(*) FROM (SELECT 1 FROM task \
             WHERE owner = $1 AND task_type = $2 AND state = 'open' LIMIT $3)",
        )
        .bind(owner)
        .bind(task_type)
        .bind(i64::from(*limit))
        .fetch_one(&mut *connection)
        .await?;
        counted.insert((owner.clone(), task_type.clone()), saturated(open));
    }
    Ok(counted)
}

fn saturated(open: i64) -> u32 {
    u32::try_from(open).unwrap_or(u32::MAX)
}
