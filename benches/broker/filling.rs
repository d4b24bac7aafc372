//! Rows of tasks and sessions in great number, inserted by the database's owner.
//!
//! Each row is a copy of a real one, with other ids and times, so it has every column as the broker
//! writes it. The rows have no leaves of their own: they refer to the leaf of the real one. Leaves,
//! tiles and used evidence are only those of real requests.

use std::fmt::Write as _;

use serde_json::Value;
use sqlx::{AssertSqlSafe, Executor};

use crate::support::postgres::TestDatabase;

/// The owner of all filled tasks. No policy is about it.
pub const OWNER: &str = "dev:filled";

/// The ids of a real task and of its session.
#[derive(Clone, Default)]
pub struct Template {
    pub task: String,
    pub session: String,
}

impl Template {
    /// The task and the session of an answer.
    pub fn granted(granted: &Value) -> Self {
        let id = |part: &str| granted[part]["id"].as_str().unwrap().to_owned();
        Self {
            task: id("task"),
            session: id("session"),
        }
    }

    /// The only task and session of a database.
    pub async fn only(database: &TestDatabase) -> Self {
        let mut connection = database.connect().await;
        let (task, session) = sqlx::query_as("SELECT task_id::text, id::text FROM session")
            .fetch_one(&mut connection)
            .await
            .unwrap();
        Self { task, session }
    }
}

/// Rows to insert. The texts are SQL; `n` is the number of a row, from 1 on.
pub struct Filling {
    pub count: usize,
    /// The time at which the task of a row was opened. Ids begin with it.
    pub opened: String,
    /// Names and values of a task's other columns, as for `jsonb_build_object`.
    pub task: String,
    /// The same for its session; without one if it is `None`.
    pub session: Option<String>,
}

impl Filling {
    /// Sessions that expired within the last week, under tasks that were completed.
    pub fn past(count: usize) -> Self {
        let opened =
            format!("now() - interval '2 hours' - ({count} - n) * (interval '6 days' / {count})");
        Self {
            count,
            task: format!(
                "'state', 'completed', 'deadline', {opened} + interval '1 hour', \
                 'check_at', {opened} + interval '1 hour', 'ended_at', {opened} + interval '1 minute', \
                 'end_idx', (r.t).leaf_idx"
            ),
            session: Some(format!("'expires_at', {opened} + interval '10 minutes'")),
            opened,
        }
    }

    /// Sessions that are valid for an hour, each under an open task of its own.
    pub fn live(count: usize) -> Self {
        Self {
            count,
            opened: "now() - interval '1 minute' + n * interval '1 microsecond'".into(),
            task: "'deadline', now() + interval '2 hours', 'check_at', now() + interval '2 hours'"
                .into(),
            session: Some("'expires_at', now() + interval '1 hour'".into()),
        }
    }

    /// The descendants of one task, ten under each, each with a session.
    pub fn descendants(count: usize, root: &str) -> Self {
        let opened = "now()";
        let parent = id(opened, 't', "((n - 1) / 10)");
        Self {
            count,
            task: format!(
                "'parent_id', CASE WHEN n <= 10 THEN '{root}'::uuid ELSE {parent} END, 'depth', \
                 CASE WHEN n <= 10 THEN 2 WHEN n <= 110 THEN 3 WHEN n <= 1110 THEN 4 \
                 WHEN n <= 11110 THEN 5 ELSE 6 END"
            ),
            session: Some("'expires_at', now() + interval '1 hour'".into()),
            opened: opened.into(),
        }
    }

    /// Inserts the rows, in one transaction, and then analyses the database.
    pub async fn insert(&self, database: &TestDatabase, template: &Template) {
        if self.count == 0 {
            return analyse(database).await;
        }
        let mut connection = database.connect().await;
        let Self {
            count,
            opened,
            task,
            session,
        } = self;
        let (task_id, session_id) = (id(opened, 't', "n"), id(opened, 's', "n"));
        // A replica's role skips triggers and the checks of foreign keys.
        let mut text = format!(
            "SET session_replication_role = replica; \
             INSERT INTO task SELECT f.* FROM (SELECT t FROM task t WHERE t.id = '{}') r, \
             generate_series(1, {count}) n, LATERAL jsonb_populate_record(r.t, \
             jsonb_build_object('id', {task_id}, 'owner', '{OWNER}', 'opened_at', {opened}, \
             'heard_at', {opened}) || jsonb_build_object({task})) f; ",
            template.task
        );
        if let Some(session) = session {
            let decision = id(opened, 'd', "n");
            write!(
                text,
                "INSERT INTO session SELECT f.* FROM (SELECT t FROM session t WHERE t.id = '{}') r, \
                 generate_series(1, {count}) n, LATERAL jsonb_populate_record(r.t, \
                 jsonb_build_object('id', {session_id}, 'task_id', {task_id}, \
                 'decision_id', {decision}, 'workload', '{OWNER}', 'issued_at', {opened}) \
                 || jsonb_build_object({session})) f; ",
                template.session
            )
            .unwrap();
        }
        connection
            .execute(sqlx::raw_sql(AssertSqlSafe(text)))
            .await
            .unwrap();
        analyse(database).await;
    }
}

/// Brings the planner's statistics up to date, and writes all pages, so that a measurement does not
/// begin with the writing of the filled rows.
pub async fn analyse(database: &TestDatabase) {
    let mut connection = database.connect().await;
    for statement in ["VACUUM ANALYZE", "CHECKPOINT"] {
        connection.execute(statement).await.unwrap();
    }
}

/// An expression for an id that begins with a time, as the broker's do: the milliseconds of
/// `opened`, then bits by `salt` and `number`.
fn id(opened: &str, salt: char, number: &str) -> String {
    format!(
        "(lpad(to_hex((extract(epoch FROM {opened}) * 1000)::bigint), 12, '0') || '7' || \
         substr(md5('{salt}' || {number}), 1, 3) || '8' || substr(md5('{salt}' || {number}), 4, 15))::uuid"
    )
}
