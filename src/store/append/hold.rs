//! Holds tasks for the rest of a batch, so that no heartbeat changes them before the commit.
//!
//! A heartbeat writes to a task without the ledger's lock. An entry that ends a silent task must
//! not miss one, so on PostgreSQL the batch locks the rows of such tasks and reads their last
//! heartbeats again. On SQLite the batch is the only writer.
//!
//! The rule: the batch waits for no other transaction while it has the ledger's lock. A row that a
//! heartbeat has locked is not held, and the entry leaves its task open. Failures: an error fails
//! the batch. Only `store::append` calls this module.

use sqlx::postgres::PgConnection;

use super::{Needs, View};
use crate::clock::Timestamp;
use crate::ids::TaskId;
use crate::store::StoreError;

pub(super) async fn postgres(
    connection: &mut PgConnection,
    needs: &Needs,
    view: &mut View,
) -> Result<(), StoreError> {
    if needs.held_tasks.is_empty() {
        return Ok(());
    }
    let ids: Vec<_> = needs.held_tasks.iter().map(|id| id.uuid()).collect();
    let held: Vec<(TaskId, Timestamp)> = sqlx::query_as(
        "/* hold_tasks */ SELECT id, heard_at FROM task WHERE id = ANY($1) AND state = 'open' \
         ORDER BY id FOR NO KEY UPDATE SKIP LOCKED",
    )
    .bind(ids)
    .fetch_all(connection)
    .await?;
    for (id, heard_at) in held {
        if let Some(facts) = view.tasks.get_mut(&id) {
            facts.life.heard_at = heard_at;
            view.held_tasks.insert(id);
        }
    }
    Ok(())
}

pub(super) fn sqlite(needs: &Needs, view: &mut View) {
    view.held_tasks.extend(&needs.held_tasks);
}
