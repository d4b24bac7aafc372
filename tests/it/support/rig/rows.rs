//! Every row of every table of a store, as text.

use sqlx::{Connection, SqliteConnection};

use super::*;

pub(super) async fn postgres_rows(database: &TestDatabase) -> BTreeMap<String, BTreeSet<String>> {
    let pool = database.pool().await;
    let names = "SELECT c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                 WHERE n.nspname = 'public' AND c.relkind IN ('r', 'p') AND NOT c.relispartition";
    let names: Vec<(String,)> = sqlx::query_as(names).fetch_all(&pool).await.unwrap();
    let mut rows = BTreeMap::new();
    for (name,) in names {
        let all = sqlx::AssertSqlSafe(format!("SELECT t::text FROM \"{name}\" t"));
        let all: Vec<(String,)> = sqlx::query_as(all).fetch_all(&pool).await.unwrap();
        rows.insert(name, all.into_iter().map(|(row,)| row).collect());
    }
    pool.close().await;
    rows
}

pub(super) async fn sqlite_rows(file: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let mut file = SqliteConnection::connect(&format!("sqlite://{}?mode=ro", file.display()))
        .await
        .unwrap();
    let names = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'";
    let names: Vec<(String,)> = sqlx::query_as(names).fetch_all(&mut file).await.unwrap();
    let mut rows = BTreeMap::new();
    for (name,) in names {
        let columns: Vec<(String,)> = sqlx::query_as("SELECT name FROM pragma_table_info($1)")
            .bind(&name)
            .fetch_all(&mut file)
            .await
            .unwrap();
        let columns: Vec<String> = columns
            .iter()
            .map(|(column,)| format!("quote(\"{column}\")"))
            .collect();
        let all = format!("SELECT {} FROM \"{name}\"", columns.join(" || ',' || "));
        let all: Vec<(String,)> = sqlx::query_as(sqlx::AssertSqlSafe(all))
            .fetch_all(&mut file)
            .await
            .unwrap();
        rows.insert(name, all.into_iter().map(|(row,)| row).collect());
    }
    rows
}
