//! The clock is wrong: a month or an hour ahead, before a start, at a start, or in a running
//! broker. The broker loses nothing, accepts nothing twice, and works again once the clock is
//! right.

mod by_the_command_line;
mod relearned;
mod steps;

use std::sync::Arc;

use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Executor as _};
use taskpass::broker::administration::time::AcceptTimeRequest;
use taskpass::broker::revocation::{BlockRequest, RevokeRequest};
use taskpass::broker::{Broker, BrokerError};
use taskpass::domain::cutoff::Selector;
use taskpass::domain::generation::Retention;
use taskpass::domain::task::TaskState;
use taskpass::ledger::clock_watch::ClockDoubt;
use taskpass::store::sessions::SessionFilter;
use taskpass::sweep;

use crate::support::fleet::{Fleet, Replica, vkeys, whole_log};
use crate::support::http::assert_problem;
use crate::support::process::{Ended, Launch};
use crate::support::rig::{
    BOOTSTRAP, Kind, POLICIES, Rig, ask, ask_joining, bearer, is_good, refusal,
};
use crate::support::{SOON, until};

use steps::{
    accept, assert_all_closed, assert_closed, assert_use_forgotten, count, is_replayed, issued,
    kept, reason, size, start, work,
};

const HOUR: u64 = 3_600;
const MONTH: u64 = 31 * 86_400;

/// Duration of the wrong time, in seconds.
const WRONG_SECONDS: u64 = 75;

const RETENTION: Retention = Retention {
    sessions_days: 1,
    openings_days: 1,
    bodies_days: 1,
};

async fn begin(kind: Kind) -> Rig {
    Rig::on(kind).start().await
}

on_both_stores! {
    fn a_clock_that_jumps_a_month_ahead_for_75_seconds_closes_the_broker_until_it_is_right;
    fn a_start_by_a_clock_a_month_ahead_for_75_seconds_loses_nothing_and_the_right_clock_goes_on;
    fn a_store_that_was_begun_by_a_clock_a_month_ahead_is_served_by_the_right_one;
    fn an_hour_ahead_at_a_start_accepts_nothing_twice_and_what_it_issued_ends_with_the_acceptance;
    fn the_acceptance_of_a_time_is_an_entry_with_both_times_and_its_reason;
    fn a_time_is_accepted_only_while_it_is_in_doubt_and_only_as_the_clock_shows_it;
    fn a_wiped_key_is_a_removed_key_and_the_broker_starts_and_makes_another;
    fn evidence_whose_use_was_forgotten_is_not_accepted_again;
    fn after_a_month_by_a_wrong_clock_fresh_evidence_is_accepted_once_the_right_time_is;
    fn a_blocked_admin_does_not_accept_the_time_that_ends_its_block;
    fn used_evidence_does_not_accept_a_time;
}

async fn a_clock_that_jumps_a_month_ahead_for_75_seconds_closes_the_broker_until_it_is_right(
    rig: Rig,
) {
    let (alive, token) = issued(&rig).await;
    let before = kept(&rig).await;
    let right = rig.now();
    rig.clock.set(right.plus_seconds(MONTH));
    assert_all_closed(&rig, &alive).await;
    rig.clock.set(right.plus_seconds(WRONG_SECONDS));
    assert_eq!(rig.broker.health.unready(), None);
    assert_eq!(kept(&rig).await, before);
    assert!(rig.is_good(&alive).await);
    assert!(is_replayed(&rig, &token).await);
    rig.heartbeat(&alive).await.unwrap();
    issued(&rig).await;
}

async fn a_start_by_a_clock_a_month_ahead_for_75_seconds_loses_nothing_and_the_right_clock_goes_on(
    mut rig: Rig,
) {
    let (alive, token) = issued(&rig).await;
    let (revoked, _) = issued(&rig).await;
    rig.revoke(revoked.session.id).await;
    let keys = rig.broker.keys.published_jwks();
    let before = kept(&rig).await;
    let right = rig.now();
    rig.clock.set(right.plus_seconds(MONTH));
    start(&mut rig).await;
    assert_eq!(
        rig.broker.health.unready(),
        Some("keys: no key may sign now for `archive-api`".into())
    );
    work(&rig).await;
    // By that clock the next signing key is due; nothing else was recorded.
    let [.., sealed] = kept(&rig).await;
    assert!(sealed > before[5], "another key was made");

    // The broker starts, and refuses requests until an admin accepts the clock's time.
    rig.clock.set(right.plus_seconds(WRONG_SECONDS));
    start(&mut rig).await;
    assert_all_closed(&rig, &alive).await;
    rig.clock.set(right.plus_seconds(WRONG_SECONDS));
    let accepted = accept(&rig).await.unwrap();
    assert!(accepted.recorded >= right.plus_seconds(MONTH));
    assert_eq!(accepted.accepted, rig.now());
    assert_eq!(rig.broker.health.unready(), None);
    let after = kept(&rig).await;
    // The admin's reason adds one row of openings.
    assert_eq!(after[..3], before[..3]);
    assert_eq!(
        rig.broker.keys.published_jwks(),
        keys,
        "the right clock's keys"
    );
    assert!(rig.is_good(&alive).await);
    assert!(!rig.is_good(&revoked).await);
    assert!(is_replayed(&rig, &token).await);
    rig.heartbeat(&alive).await.unwrap();
    issued(&rig).await;
    // The acceptance is permanent: the next start is in no doubt.
    start(&mut rig).await;
    assert_eq!(rig.broker.health.unready(), None);
    issued(&rig).await;
}

async fn a_store_that_was_begun_by_a_clock_a_month_ahead_is_served_by_the_right_one(mut rig: Rig) {
    let ahead = rig.now();
    let right = ahead.minus_seconds(MONTH);
    let (early, _) = issued(&rig).await;
    rig.clock.set(right);
    start(&mut rig).await;
    assert_all_closed(&rig, &early).await;
    accept(&rig).await.unwrap();
    assert!(!rig.is_good(&early).await);
    let known = rig
        .broker
        .verification
        .list_sessions(&bearer(BOOTSTRAP), SessionFilter::default())
        .await;
    assert!(
        matches!(known, Err(BrokerError::Attestation(_))),
        "its day starts a month later"
    );
    // The key made by the fast clock signs nothing before its time. The next key signs after
    // its lead.
    assert!(
        rig.broker
            .health
            .unready()
            .unwrap()
            .starts_with("keys: no key may sign")
    );
    sweep::sweep(&rig.broker, rig.now()).await;
    rig.clock.advance(rig.broker.keys.jwks_cache_seconds());
    sweep::sweep(&rig.broker, rig.now()).await;
    let (later, _) = issued(&rig).await;
    assert!(rig.is_good(&later).await);
}

async fn an_hour_ahead_at_a_start_accepts_nothing_twice_and_what_it_issued_ends_with_the_acceptance(
    mut rig: Rig,
) {
    let (alive, token) = issued(&rig).await;
    let right = rig.now();
    rig.clock.set(right.plus_seconds(HOUR));
    start(&mut rig).await;
    let (ahead, _) = issued(&rig).await;
    let delegated = rig.delegate(&ahead, "agent:child").await.unwrap();
    work(&rig).await;
    rig.clock.set(right.plus_seconds(WRONG_SECONDS));
    start(&mut rig).await;
    assert_all_closed(&rig, &ahead).await;
    rig.clock.set(right.plus_seconds(WRONG_SECONDS));
    accept(&rig).await.unwrap();
    assert!(is_replayed(&rig, &token).await);
    assert!(rig.is_good(&alive).await);

    // The session has ended although its expiry is more than an hour away.
    assert!(ahead.session.expires_at > rig.now().plus_seconds(HOUR));
    assert!(!rig.is_good(&ahead).await);
    let joined = rig
        .issue("agent:reports", ask_joining(&ahead, &["orders:read"]))
        .await;
    assert_eq!(refusal(joined), "task-ended");
    let child = crate::support::rig::child_of(ahead.task.id, &delegated);
    let child = crate::support::rig::ask_in(child, &["orders:read"]);
    let child = rig.issue("agent:child", child).await;
    assert!(child.is_err(), "its parent task has ended");
    sweep::sweep(&rig.broker, rig.now()).await;
    let task = rig
        .broker
        .core
        .store()
        .task(ahead.task.id)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(task.state, TaskState::Aborted);
    let open = rig
        .broker
        .core
        .store()
        .task(alive.task.id)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(open.state, TaskState::Open);
    // The session also stays ended when the clock reaches the time of its issue.
    rig.clock.set(ahead.session.issued_at.plus_seconds(1));
    start(&mut rig).await;
    assert!(!rig.is_good(&ahead).await);
}

async fn the_acceptance_of_a_time_is_an_entry_with_both_times_and_its_reason(mut rig: Rig) {
    let right = rig.now();
    rig.clock.set(right.plus_seconds(HOUR));
    start(&mut rig).await;
    issued(&rig).await;
    rig.clock.set(right);
    start(&mut rig).await;
    let accepted = accept(&rig).await.unwrap();
    let store = rig.broker.core.store();
    let leaf = store.leaves(accepted.index, 1).await.unwrap().remove(0);
    let leaf: Value = serde_json::from_slice(&leaf.body.unwrap()).unwrap();
    assert_eq!(leaf["event"], "time_accepted");
    assert_eq!(leaf["recorded_time"], right.plus_seconds(HOUR).to_string());
    assert_eq!(leaf["accepted_time"], right.to_string());
    assert_eq!(leaf["by"], "dev-admin-token");
    assert!(
        !leaf.to_string().contains("battery"),
        "a reason can be deleted"
    );
    let opened = store.openings(accepted.index).await.unwrap();
    assert_eq!(opened.purpose.unwrap().bytes, b"the battery was dead");
    assert!(store.horizon().await.unwrap().unwrap() <= right);
    // The cutoff blocks nothing, so it cannot be lifted, which would restore the sessions it
    // ended.
    let lifted = rig.broker.revocation.lift(&rig.admin(), accepted.id).await;
    assert!(
        matches!(lifted, Err(BrokerError::Invalid { .. })),
        "{lifted:?}"
    );
    let shown = rig
        .broker
        .revocation
        .revocation(&rig.admin(), accepted.id)
        .await
        .unwrap();
    assert_eq!(shown.radius.unwrap().matched, 1);
}

async fn a_time_is_accepted_only_while_it_is_in_doubt_and_only_as_the_clock_shows_it(rig: Rig) {
    let (_, _) = issued(&rig).await;
    let nothing = accept(&rig).await;
    assert!(
        matches!(nothing, Err(BrokerError::Invalid { .. })),
        "{nothing:?}"
    );
    rig.clock.set(rig.now().plus_seconds(HOUR));
    let before = size(&rig).await;
    for (time, good) in [(61, false), (59, true)] {
        let ask = AcceptTimeRequest {
            time: rig.now().minus_seconds(time),
            ..reason()
        };
        let accepted = rig
            .broker
            .administration
            .accept_time(&bearer(BOOTSTRAP), ask)
            .await;
        match &accepted {
            Ok(_) => assert!(good),
            Err(BrokerError::Invalid { pointer, .. }) => {
                assert_eq!((good, *pointer), (false, "/time"));
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(size(&rig).await, before + 1);
    assert_eq!(
        rig.broker.core.clock_doubt(),
        None,
        "the accepted time is the present"
    );
    issued(&rig).await;
}

async fn a_wiped_key_is_a_removed_key_and_the_broker_starts_and_makes_another(mut rig: Rig) {
    let first = rig.now();
    let sealed = "SELECT count(*) FROM signing_key WHERE length(sealed) = 0";
    // Enough days for the right clock to erase the first key.
    for _ in 0..200 {
        rig.clock.advance(86_400);
        rig.broker.keys.follow(rig.now()).await.unwrap();
        if count(&rig, sealed).await > 0 {
            break;
        }
    }
    assert!(count(&rig, sealed).await > 0);
    rig.clock.set(first.plus_seconds(10));
    // By its dates, the erased key would sign now.
    start(&mut rig).await;
    accept(&rig).await.unwrap();
    sweep::sweep(&rig.broker, rig.now()).await;
    assert!(rig.broker.health.unready().unwrap().starts_with("keys: "));
    rig.clock.advance(rig.broker.keys.jwks_cache_seconds());
    sweep::sweep(&rig.broker, rig.now()).await;
    let (fresh, _) = issued(&rig).await;
    assert!(rig.is_good(&fresh).await);
}

async fn evidence_whose_use_was_forgotten_is_not_accepted_again(rig: Rig) {
    let (_, token) = issued(&rig).await;
    let unused = rig.token("agent:reports", json!({}));
    // Forget the uses, as a clock that was ahead or a change of the row would.
    let forgotten = rig
        .broker
        .core
        .store()
        .prune_one_time(rig.now().plus_seconds(MONTH), 1_000)
        .await;
    assert!(forgotten.unwrap() > 0);
    drop(rig.broker.health.check_health().await);
    let told = rig.broker.health.unready().unwrap();
    assert!(
        told.contains("no longer knows the use of evidence") && told.contains("ledger accept-time"),
        "{told}"
    );
    assert_closed(
        rig.broker
            .issuance
            .issue(bearer(&unused), ask(&["orders:read"]))
            .await,
    );
    accept(&rig).await.unwrap();
    assert_eq!(rig.broker.health.unready(), None);
    for before in [&token, &unused] {
        assert_use_forgotten(
            rig.broker
                .issuance
                .issue(bearer(before), ask(&["orders:read"]))
                .await,
        );
    }
    // Evidence issued after the acceptance is accepted.
    rig.clock.advance(1);
    issued(&rig).await;
}

async fn after_a_month_by_a_wrong_clock_fresh_evidence_is_accepted_once_the_right_time_is(
    mut rig: Rig,
) {
    let right = rig.now();
    let early = rig.token("agent:reports", json!({}));
    rig.clock.set(right.plus_seconds(MONTH));
    start(&mut rig).await;
    // The request uses up the evidence, even if it fails.
    let ahead = rig.token("agent:reports", json!({}));
    drop(
        rig.broker
            .issuance
            .issue(bearer(&ahead), ask(&["orders:read"]))
            .await,
    );
    let later = rig.now().plus_seconds(HOUR);
    assert!(
        rig.broker
            .core
            .store()
            .prune_one_time(later, 1_000)
            .await
            .unwrap()
            > 0
    );

    rig.clock.set(right.plus_seconds(WRONG_SECONDS));
    start(&mut rig).await;
    assert_closed(
        rig.broker
            .issuance
            .issue(bearer(&early), ask(&["orders:read"]))
            .await,
    );
    accept(&rig).await.unwrap();
    assert_eq!(rig.broker.health.unready(), None);
    assert_use_forgotten(
        rig.broker
            .issuance
            .issue(bearer(&early), ask(&["orders:read"]))
            .await,
    );
    rig.clock.advance(1);
    let (fresh, token) = issued(&rig).await;
    assert!(rig.is_good(&fresh).await);
    assert!(is_replayed(&rig, &token).await);
    rig.delegate(&fresh, "agent:child").await.unwrap();
}

async fn a_blocked_admin_does_not_accept_the_time_that_ends_its_block(mut rig: Rig) {
    let policies = format!(
        "{POLICIES}\n@id(\"clock\") @description(\"sets it right\")\n\
             permit (principal == Workload::dev::\"dev:agent%3Areports\", action == Action::\"acceptTime\", \
             resource == Broker::\"taskpass\");"
    );
    let kind = if rig.broker.core.store().kind() == "sqlite" {
        Kind::Sqlite
    } else {
        Kind::Postgres
    };
    rig.stop().await;
    let rig = Rig::on(kind).policies(&policies).start().await;
    let block = RevokeRequest {
        selector: Selector::Workload("dev:agent%3Areports".to_owned().try_into().unwrap()),
        block: BlockRequest::Seconds(HOUR),
        reason: "stolen".into(),
        deny_all_earlier_sessions: false,
        allow_unknown: true,
        dry_run: false,
    };
    rig.broker
        .revocation
        .revoke_many(&rig.admin(), block)
        .await
        .unwrap();
    rig.clock.set(rig.now().plus_seconds(2 * HOUR));
    let attempt = async || {
        let token = rig.token("agent:reports", json!({}));
        let ask = AcceptTimeRequest {
            time: rig.now(),
            ..reason()
        };
        rig.broker
            .administration
            .accept_time(&bearer(&token), ask)
            .await
    };
    let refused = attempt().await;
    assert!(
        matches!(refused, Err(BrokerError::Blocked(_))),
        "{refused:?}"
    );
    accept(&rig).await.unwrap();
    // A block that had expired by the newest entry's time no longer applies.
    rig.clock.set(rig.now().plus_seconds(HOUR));
    attempt().await.unwrap();
}

async fn used_evidence_does_not_accept_a_time(mut rig: Rig) {
    let policies = format!(
        "{POLICIES}\n@id(\"clock\") @description(\"sets it right\")\n\
             permit (principal == Workload::dev::\"dev:agent%3Areports\", action == Action::\"acceptTime\", \
             resource == Broker::\"taskpass\");"
    );
    let kind = if rig.broker.core.store().kind() == "sqlite" {
        Kind::Sqlite
    } else {
        Kind::Postgres
    };
    rig.stop().await;
    let rig = Rig::on(kind).policies(&policies).start().await;
    let used = rig.token("agent:reports", json!({}));
    rig.broker
        .issuance
        .issue(bearer(&used), ask(&["orders:read"]))
        .await
        .unwrap();
    let (other, stranger) = (
        rig.token("agent:reports", json!({})),
        rig.token("agent:orders", json!({})),
    );
    rig.clock.set(rig.now().plus_seconds(30));
    let attempt = async |token: &str| {
        let ask = AcceptTimeRequest {
            time: rig.now(),
            ..reason()
        };
        rig.broker
            .administration
            .accept_time(&bearer(token), ask)
            .await
    };
    let replayed = attempt(&used).await;
    assert!(
        matches!(replayed, Err(BrokerError::Replayed)),
        "{replayed:?}"
    );
    let forbidden = attempt(&stranger).await;
    assert!(
        matches!(forbidden, Err(BrokerError::Forbidden("acceptTime"))),
        "{forbidden:?}"
    );
    attempt(&other).await.unwrap();
    // All three attempts used up their evidence.
    for token in [&used, &stranger, &other] {
        assert!(is_replayed(&rig, token).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_accepted_time_opens_every_replica_whose_clock_shows_it() {
    let rig = Rig::on(Kind::Postgres).start().await;
    // A second machine with its own clock.
    let clock = taskpass::clock::ManualClock::new(rig.now());
    let other = rig
        .replica_by(Arc::clone(&clock) as taskpass::clock::SharedClock)
        .await;
    let ready = async |broker: &Arc<Broker>| {
        drop(broker.health.check_health().await);
        broker.health.unready()
    };
    let ahead = rig.now().plus_seconds(HOUR);
    rig.clock.set(ahead);
    clock.set(ahead);
    assert!(ready(&rig.broker).await.is_some() && ready(&other.broker).await.is_some());
    accept(&rig).await.unwrap();
    assert_eq!(ready(&rig.broker).await, None);
    assert_eq!(
        ready(&other.broker).await,
        None,
        "its clock shows the accepted time"
    );
    // A replica whose clock alone is set back is alone in doubt; another replica's acceptance does
    // not resolve it.
    clock.set(ahead.minus_seconds(HOUR));
    assert!(ready(&other.broker).await.is_some());
    let (issued, _) = issued(&rig).await;
    assert!(matches!(
        other.broker.core.clock_doubt(),
        Some(ClockDoubt::Set { ahead: false, .. })
    ));
    rig.clock.set(ahead.plus_seconds(HOUR));
    accept(&rig).await.unwrap();
    assert!(ready(&other.broker).await.is_some());
    clock.set(ahead.plus_seconds(HOUR));
    assert!(
        ready(&other.broker).await.is_some(),
        "the acceptance was of another time than this clock's"
    );
    accept_at(&other.broker).await;
    assert_eq!(ready(&other.broker).await, None);
    assert!(
        !is_good(&other.broker, &issued).await,
        "the session has expired"
    );
}

async fn accept_at(broker: &Broker) {
    let ask = AcceptTimeRequest {
        time: broker.core.now(),
        ..reason()
    };
    let admin = bearer(crate::support::rig::ADMIN);
    broker
        .administration
        .accept_time(&admin, ask)
        .await
        .unwrap();
}

/// Adds an offset to the newest entry's time, as a fast clock would have.
async fn date_ahead(fleet: &Fleet, replica: &Replica, seconds: u64) {
    let newest = "WHERE idx = (SELECT max(idx) FROM leaf)";
    if let Some(database) = fleet.maybe_database() {
        let sql = format!("UPDATE leaf SET at = at + interval '{seconds} s' {newest}");
        let mut connection = database.connect().await;
        connection.execute(AssertSqlSafe(sql)).await.unwrap();
        return;
    }
    let file = replica.process.dir().join("data/taskpass.sqlite");
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(file);
    let mut connection = sqlx::ConnectOptions::connect(&options).await.unwrap();
    let sql = format!("UPDATE leaf SET at = at + {seconds} * 1000000 {newest}");
    connection.execute(AssertSqlSafe(sql)).await.unwrap();
}

fn accept_time(fleet: &Fleet, replica: &Replica, more: &[&str]) -> Ended {
    let url = format!("http://{}", replica.address);
    let given = ["ledger", "accept-time", "--url", &url];
    Launch::taskpass(given.iter().chain(more).copied())
        .env("TASKPASS_TOKEN", &fleet.admin)
        .run()
}
