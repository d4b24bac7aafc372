use super::external::ACTIVE_EXTERNAL;
use super::listing;
use super::matching::Statements;
use crate::domain::cutoff::{Selector, True};
use crate::ids::TaskId;
use crate::store::sqlite::Sqlite;
use uuid::Uuid;

/// The steps of SQLite's plan for a statement.
async fn plan(sqlite: &Sqlite, text: &str) -> Vec<String> {
    let explain = sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {text}"));
    let steps: Vec<(i64, i64, i64, String)> = sqlx::query_as(explain)
        .fetch_all(sqlite.readers())
        .await
        .unwrap();
    steps.into_iter().map(|(_, _, _, step)| step).collect()
}

#[tokio::test]
async fn sqlite_lists_the_sessions_of_a_task_or_a_workload_by_an_index() {
    let sqlite = Sqlite::in_memory().await;
    for set in 0..16_u8 {
        let filters = [8, 4, 2, 1].map(|bit| set & bit != 0);
        let steps = plan(&sqlite, listing::text(filters)).await;
        let of_one = filters[0] || filters[1];
        let by_index = steps
            .iter()
            .any(|step| step.contains("session_by_task") || step.contains("session_by_workload"));
        assert_eq!(by_index, of_one, "{filters:?}: {steps:?}");
        let scans = steps.iter().any(|step| step.starts_with("SCAN session"));
        assert!(!scans, "{filters:?}: {steps:?}");
    }
}

#[tokio::test]
async fn sqlite_counts_the_sessions_of_a_selector_by_an_index() {
    let sqlite = Sqlite::in_memory().await;
    let workload = "dev:a".to_owned().try_into().unwrap();
    for (selector, index) in [
        (Selector::All(True), "session_by_expiry"),
        (Selector::Workload(workload), "session_by_workload"),
        (Selector::Task(TaskId::from(Uuid::nil())), "session_by_task"),
        (Selector::Resource("orders".into()), "session_by_expiry"),
    ] {
        let Statements { count, list } = Statements::of(&selector);
        for text in [count, list] {
            let steps = plan(&sqlite, text).await;
            let by_index = |index: &str| steps.iter().any(|step| step.contains(index));
            assert!(by_index(index), "{selector:?}: {steps:?}");
            assert!(by_index("session_by_parent"), "{selector:?}: {steps:?}");
            let scans = steps
                .iter()
                .any(|step| step == "SCAN session" || step == "SCAN task" || step == "SCAN s");
            assert!(!scans, "{selector:?}: {steps:?}");
        }
    }
}

#[tokio::test]
async fn sqlite_reads_live_external_sessions_by_their_own_index() {
    let sqlite = Sqlite::in_memory().await;
    let steps = plan(&sqlite, ACTIVE_EXTERNAL).await;
    let [step] = &steps[..] else {
        panic!("more than one step: {steps:?}")
    };
    assert_eq!(
        step,
        "SEARCH session USING INDEX session_external ((expires_at,id)>(?,?))"
    );
}
