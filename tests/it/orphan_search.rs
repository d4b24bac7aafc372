//! The search for sessions of ended tasks reads external sessions only when there may be some.

use taskpass::broker::issuance::Issued;
use taskpass::domain::task::TaskEnd;
use taskpass::store::Store;
use taskpass::sweep;

use crate::support::rig::{Kind, Rig, ask};

async fn begin(kind: Kind) -> Rig {
    Rig::on(kind).start().await
}

/// Makes a session external and its row unreadable, so that reading all external sessions fails.
async fn spoil(rig: &Rig, issued: &Issued) {
    const SQL: &str = "UPDATE session SET minter = 'aws', is_local = false, class = 'bounded', \
                       policies = '?' WHERE id = $1";
    let spoilt = match rig.broker.core.store() {
        Store::Postgres(_) => {
            let mut own = rig.database().connect().await;
            let query = sqlx::query(SQL).bind(issued.session.id);
            query.execute(&mut own).await.unwrap().rows_affected()
        }
        Store::Sqlite(sqlite) => {
            let query = sqlx::query(SQL).bind(issued.session.id);
            query
                .execute(sqlite.writer())
                .await
                .unwrap()
                .rows_affected()
        }
    };
    assert_eq!(spoilt, 1);
}

on_both_stores! {
    fn ends_of_tasks_with_tokens_alone_search_no_external_sessions;
}

async fn ends_of_tasks_with_tokens_alone_search_no_external_sessions(rig: Rig) {
    const TASKS: u64 = 20;
    let mut issued = Vec::new();
    for _ in 0..=TASKS {
        let asked = rig.issue("agent:reports", ask(&["orders:read"])).await;
        issued.push(asked.unwrap());
    }
    let searches = || {
        let metrics = rig.broker.core.metrics().render();
        let failed = "taskpass_sweeps_total{worker=\"orphaned_sessions\",result=\"failed\"} ";
        let line = metrics.lines().find_map(|line| line.strip_prefix(failed));
        line.map_or(0, |count| count.parse::<u64>().unwrap())
    };
    // The first search covers all sessions.
    sweep::sweep(&rig.broker, rig.now()).await;
    assert_eq!(searches(), 0);
    spoil(&rig, &issued.pop().unwrap()).await;
    for issued in &issued {
        rig.end(issued, TaskEnd::Complete).await.unwrap();
        sweep::sweep(&rig.broker, rig.now()).await;
    }
    // All sessions are searched again after a minute, which can pass on a busy machine.
    assert!(searches() < TASKS / 2, "{} searches", searches());
    rig.broker.revocation.orphan_search().demand();
    let before = searches();
    sweep::sweep(&rig.broker, rig.now()).await;
    assert_eq!(
        searches(),
        before + 1,
        "the counter shows a search of all sessions"
    );
}
