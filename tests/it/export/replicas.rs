//! Which replica delivers: never one with a wrong clock, and always one.

use taskpass::store::Store;

use super::*;

const CLOUDEVENTS: &str =
    "[[export]]\nname = \"disk\"\nformat = \"cloudevents\"\nto = \"file\"\npath = \"events\"\n";
const OCSF: &str =
    "[[export]]\nname = \"disk\"\nformat = \"ocsf\"\nto = \"file\"\npath = \"events\"\n";

async fn begin(kind: Kind) -> Rig {
    Rig::on(kind).start().await
}

async fn issue(rig: &Rig) {
    rig.issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
}

fn size(rig: &Rig) -> usize {
    usize::try_from(rig.broker.core.ledger().basis()).unwrap()
}

/// Runs a statement with a time as its parameter.
async fn run(rig: &Rig, sql: &'static str, at: taskpass::clock::Timestamp) {
    let rows = match rig.broker.core.store() {
        Store::Postgres(_) => {
            let mut database = rig.database().connect().await;
            let ran = sqlx::query(sql).bind(at).execute(&mut database).await;
            ran.unwrap().rows_affected()
        }
        Store::Sqlite(database) => {
            let ran = sqlx::query(sql).bind(at).execute(database.writer()).await;
            ran.unwrap().rows_affected()
        }
    };
    assert_eq!(rows, 1, "{sql}");
}

/// Waits until a replica has registered a sink with this name.
async fn registered(rig: &Rig, name: &str) {
    let key = taskpass::store::exports::ExportKey {
        name: name.into(),
        origin: "dev.taskpass.local/rig".into(),
    };
    until("the sink is registered", SOON, async || {
        let cursor = rig.broker.core.store().export_cursor(&key).await;
        cursor.unwrap().is_some()
    })
    .await;
}

on_both_stores! {
    fn by_a_wrong_clock_nothing_is_claimed_and_nothing_told;
    fn nobody_waits_until_a_clock_that_was_ahead_would_have_been_right;
    fn a_log_that_took_anothers_place_is_told_from_its_first_entry_while_that_is_news;
}

async fn by_a_wrong_clock_nothing_is_claimed_and_nothing_told(rig: Rig) {
    let dir = tempfile::tempdir().unwrap();
    let right = Arc::new(AtomicBool::new(false));
    let exporting = Exporting::start(&rig, CLOUDEVENTS, dir.path(), "one", &right);
    exporting.some_rounds().await;
    assert!(!dir.path().join("events").exists());
    right.store(true, Ordering::SeqCst);
    written(&dir.path().join("events"), size(&rig)).await;
    right.store(false, Ordering::SeqCst);
    exporting.some_rounds().await;
    let told = size(&rig);
    issue(&rig).await;
    exporting.some_rounds().await;
    assert_eq!(written(&dir.path().join("events"), 0).await.len(), told);
    exporting.stop().await;
}

async fn nobody_waits_until_a_clock_that_was_ahead_would_have_been_right(rig: Rig) {
    let dir = tempfile::tempdir().unwrap();
    let told = size(&rig);
    export_from(&rig, CLOUDEVENTS, dir.path(), told).await;
    let hour = rig.now().plus_seconds(3_600);
    run(&rig, "UPDATE export_cursor SET due_at = $1", hour).await;
    let lease = "UPDATE export_cursor SET lease_holder = 'killed', lease_until = $1";
    run(&rig, lease, hour).await;
    issue(&rig).await;
    assert!(size(&rig) > told);
    export_from(&rig, CLOUDEVENTS, dir.path(), size(&rig)).await;
    // Delivery also goes on once the time in the row is close enough to be plausible.
    rig.clock.advance(3_000);
    issue(&rig).await;
    let told = export_from(&rig, CLOUDEVENTS, dir.path(), size(&rig)).await;
    assert_eq!(
        told.iter().map(index).collect::<Vec<_>>(),
        (0..size(&rig) as u64).collect::<Vec<_>>()
    );
}

async fn a_log_that_took_anothers_place_is_told_from_its_first_entry_while_that_is_news(rig: Rig) {
    let succeeds = "INSERT INTO succession (document, mac) SELECT '{}', hash FROM leaf WHERE idx = 0 AND at <= $1";
    run(&rig, succeeds, rig.now()).await;
    let now = format!("{CLOUDEVENTS}from = \"now\"\n");
    let dir = tempfile::tempdir().unwrap();
    let told = export_from(&rig, &now, dir.path(), size(&rig)).await;
    assert_eq!(index(&told[0]), 0);

    rig.clock.advance(2 * 86_400);
    let later = tempfile::tempdir().unwrap();
    let now = now.replace("disk", "later");
    let right = Arc::new(AtomicBool::new(true));
    let exporting = Exporting::start(&rig, &now, later.path(), "two", &right);
    registered(&rig, "later").await;
    let before = size(&rig) as u64;
    issue(&rig).await;
    let told = written(&later.path().join("events"), 1).await;
    assert_eq!(index(&told[0]), before);
    exporting.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_whoever_knew_a_sink_otherwise_is_gone_the_others_go_on() {
    let rig = Rig::on(Kind::Postgres).start().await;
    let right = Arc::new(AtomicBool::new(true));
    let [one, two] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let file = |dir: &tempfile::TempDir| dir.path().join("events");
    let first = Exporting::start(&rig, CLOUDEVENTS, one.path(), "one", &right);
    let begun = size(&rig);
    written(&file(&one), begun).await;
    let pool = rig.database().pool().await;
    let cursor = async || {
        let sql = "SELECT registration, seen_at FROM export_cursor";
        let row: (String, taskpass::clock::Timestamp) =
            sqlx::query_as(sql).fetch_one(&pool).await.unwrap();
        row
    };
    // A replica with other settings starts, and runs for a long time.
    let before = cursor().await.0;
    let second = Exporting::start(&rig, OCSF, two.path(), "two", &right);
    // The first replica delivers until the second is registered. An event that both delivered would
    // appear twice.
    until("the second replica is registered", SOON, async || {
        cursor().await.0 != before
    })
    .await;
    issue(&rig).await;
    let new = size(&rig) - begun;
    written(&file(&two), new).await;
    let registered = cursor().await.0;
    for _ in 0..4 {
        rig.clock.advance(20);
        until(
            "the second replica has renewed its registration",
            SOON,
            async || cursor().await.1 == rig.now(),
        )
        .await;
    }
    assert_eq!(cursor().await.0, registered);
    second.stop().await;
    issue(&rig).await;
    first.some_rounds().await;
    assert_eq!(
        written(&file(&one), 0).await.len(),
        begun,
        "the second replica may return"
    );
    rig.clock.advance(61);
    let told = written(&file(&one), size(&rig) - new).await;
    assert_ne!(cursor().await.0, registered);
    // Events that the other replica delivered are not delivered again.
    let told: Vec<u64> = told.iter().map(index).collect();
    let rest = (begun + new) as u64..size(&rig) as u64;
    assert_eq!(told, (0..begun as u64).chain(rest).collect::<Vec<_>>());
    first.stop().await;
}
