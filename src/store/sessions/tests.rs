use super::external::ACTIVE_EXTERNAL;
use crate::store::sqlite::Sqlite;

#[tokio::test]
async fn sqlite_reads_live_external_sessions_by_their_own_index() {
    let directory = tempfile::tempdir().unwrap();
    let sqlite = Sqlite::open(&directory.path().join("data"), 1)
        .await
        .unwrap();
    let plan: Vec<(i64, i64, i64, String)> = sqlx::query_as(sqlx::AssertSqlSafe(format!(
        "EXPLAIN QUERY PLAN {ACTIVE_EXTERNAL}"
    )))
    .fetch_all(sqlite.readers())
    .await
    .unwrap();
    let steps: Vec<&str> = plan.iter().map(|(_, _, _, step)| step.as_str()).collect();
    let [step] = steps[..] else {
        panic!("more than one step: {steps:?}")
    };
    assert_eq!(
        step,
        "SEARCH session USING INDEX session_external ((expires_at,id)>(?,?))"
    );
}
