//! The room of a deny list: the sessions that may use it, the refusals at a full list, and lists that
//! are longer than registered.

use taskpass::store::Store;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn completions_take_half_of_the_room_and_issuing_stops_before_it_is_full() {
    let aws = Aws::start().await;
    let rig = rig(Kind::Sqlite, &aws.server.uri(), 8).await;
    let all = issued(&rig, 14).await;
    for one in &all[..6] {
        rig.end(one, TaskEnd::Complete).await.unwrap();
    }
    pass(&rig, 3).await;
    let mut listed = Vec::new();
    for one in &all[..6] {
        listed.push(progress(&rig, one.session.id).await.unwrap().listed);
    }
    assert_eq!(listed.iter().filter(|listed| **listed).count(), 4);
    try_issue(&rig).await.unwrap();
    for one in &all[6..8] {
        rig.revoke(one.session.id).await;
    }
    pass(&rig, 3).await;
    let refused = try_issue(&rig).await.unwrap_err();
    assert!(matches!(refused, BrokerError::Overloaded), "{refused}");
    // Live sessions can still be revoked, up to the list's last entry.
    for one in &all[8..12] {
        rig.revoke(one.session.id).await;
    }
    pass(&rig, 3).await;
    assert_eq!(aws.named().0.len(), 8);
    let mut left = Vec::new();
    for one in &all[6..12] {
        let standing = progress(&rig, one.session.id).await.unwrap();
        if !standing.listed {
            left.push(one.session.id);
        }
    }
    assert_eq!(
        left.len(),
        2,
        "two sessions do not fit and stay valid until they expire"
    );
    assert_eq!(state(&rig, left[0]).await, SessionState::Ending);
    pass(&rig, TTL).await;
    assert_eq!(state(&rig, left[0]).await, SessionState::Ended);
    try_issue(&rig).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_a_workload_does_takes_the_room_that_an_admin_needs() {
    let aws = Aws::start().await;
    let rig = rig(Kind::Sqlite, &aws.server.uri(), 12).await;
    let all = issued(&rig, 10).await;
    // Sessions that a workload revokes itself use the same share of the list as those that end by
    // completion or by a missing heartbeat.
    for one in &all[..8] {
        let own = rig.evidence("agent:reports");
        rig.broker
            .revocation
            .revoke_session(&own, one.session.id)
            .await
            .unwrap();
    }
    pass(&rig, 3).await;
    assert_eq!(aws.named().0.len(), 6);
    try_issue(&rig).await.unwrap();
    let mut left = Vec::new();
    for one in &all[..8] {
        if !progress(&rig, one.session.id).await.unwrap().listed {
            left.push(one.session.id);
        }
    }
    // A session that has ended here, but lives on at AWS because the list was full, is denied when
    // an admin revokes it, by id or by a cutoff.
    rig.revoke(left[0]).await;
    pass(&rig, 3).await;
    assert!(aws.named().0.contains(&user(left[0])));
    assert_eq!(aws.named().0.len(), 7);
    let admin = rig.admin();
    rig.broker
        .revocation
        .revoke_many(&admin, revoke_resource(false))
        .await
        .unwrap();
    pass(&rig, 65).await;
    assert!(aws.named().0.contains(&user(left[1])));
    assert_eq!(aws.named().0.len(), 11);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_is_ahead_of_our_records_loses_nobody() {
    let aws = Aws::start().await;
    let rig = rig(Kind::Sqlite, &aws.server.uri(), 200).await;
    let all = issued(&rig, 1).await;
    rig.revoke(all[0].session.id).await;
    pass(&rig, 3).await;
    // The list names a session that the restored store does not know.
    let stranger = SessionId::from(uuid::Uuid::from_u128(7));
    aws.with(|iam| {
        let own = format!("\"{}\"", user(all[0].session.id));
        // A document names the sessions in order.
        let both = format!("\"{}\",{own}", user(stranger));
        let text = iam.document.take().unwrap().replace(&own, &both);
        iam.document = Some(text.replace("G1\"", "G9\""));
    });
    pass(&rig, 65).await;
    assert!(aws.named().0.contains(&user(stranger)));
    rig.clock.advance(20);
    let more = issued(&rig, 1).await;
    rig.revoke(more[0].session.id).await;
    pass(&rig, 3).await;
    let (users, number) = aws.named();
    assert_eq!((users.len(), number), (3, 10));
    assert!(users.contains(&user(stranger)), "{users:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_issued_where_it_could_not_be_ended() {
    let aws = Aws::start().await;
    let rig = rig(Kind::Sqlite, &aws.server.uri(), 200).await;
    let all = issued(&rig, 1).await;
    aws.with(|iam| iam.refusing = Some("AccessDenied"));
    rig.revoke(all[0].session.id).await;
    pass(&rig, 5).await;
    try_issue(&rig).await.unwrap();
    pass(&rig, 250).await;
    let refused = try_issue(&rig).await.unwrap_err();
    assert!(matches!(refused, BrokerError::Overloaded), "{refused}");
    aws.with(|iam| iam.refusing = None);
    pass(&rig, 190).await;
    try_issue(&rig).await.unwrap();
}

const LISTED: &str = "taskpass_denied_sessions_total{outcome=\"listed\"}";

const LEFT: &str = "taskpass_denied_sessions_total{outcome=\"expires_naturally\"}";

const SHORT: &str = "taskpass_deny_lists_short";

/// The role's other inline policies leave space for fewer sessions than the registration states.
async fn a_list_without_room(kind: Kind) {
    let aws = Aws::start().await;
    let rig = rig(kind, &aws.server.uri(), 8).await;
    for alarm in [LISTED, LEFT, SHORT] {
        assert_eq!(
            metric(&rig, alarm),
            0,
            "{alarm} exists before anything happens"
        );
    }
    let all = issued(&rig, 6).await;
    aws.with(|iam| iam.most = Some(2));
    // Completed tasks' sessions ask for entries before the admin's revocations do.
    for one in &all[..3] {
        rig.end(one, TaskEnd::Complete).await.unwrap();
    }
    for one in &all[3..] {
        rig.revoke(one.session.id).await;
    }
    assert_eq!(
        metric(&rig, LISTED),
        0,
        "nothing is written and counted yet"
    );
    pass(&rig, 2).await;
    // The document names as many sessions as fit, those an admin revoked first, and the metric
    // counts only those.
    let (users, _) = aws.named();
    assert_eq!(users.len(), 2, "{users:?}");
    let is_named = |one: &&Issued| users.contains(&user(one.session.id));
    assert_eq!(all[3..].iter().filter(is_named).count(), 2);
    assert_eq!(metric(&rig, LISTED), 2);
    assert!(metric(&rig, LEFT) >= 4);
    assert_eq!(metric(&rig, SHORT), 1);
    // The broker refuses to issue for this role before it decides a request.
    let size = rig.broker.core.ledger().basis();
    let refused = try_issue(&rig).await.unwrap_err();
    assert!(matches!(refused, BrokerError::Overloaded), "{refused}");
    assert_eq!(rig.broker.core.ledger().basis(), size);
    // The other sessions are recorded as left to expiry, and they end when they expire.
    let left = all[3..]
        .iter()
        .find(|one| !is_named(one))
        .unwrap()
        .session
        .id;
    assert!(!progress(&rig, left).await.unwrap().listed);
    assert_eq!(state(&rig, left).await, SessionState::Ending);
    // Meanwhile the broker does not send IAM the oversized document again and again.
    let refused = aws.with(|iam| iam.too_large);
    pass(&rig, 120).await;
    assert!(aws.with(|iam| iam.too_large) <= refused + 3);
    pass(&rig, TTL).await;
    assert_eq!(state(&rig, left).await, SessionState::Ended);
    assert!(
        try_issue(&rig).await.is_err(),
        "the list's size is still limited"
    );
    // When the other policies are removed, the broker finds out by writing a list of the registered
    // size.
    aws.with(|iam| iam.most = Some(8));
    pass(&rig, 960).await;
    assert_eq!(metric(&rig, SHORT), 0);
    assert!(
        aws.named().0.is_empty(),
        "names that belong to no session are removed"
    );
    let one = issued(&rig, 1).await;
    rig.revoke(one[0].session.id).await;
    pass(&rig, 3).await;
    assert_eq!(aws.named().0, [user(one[0].session.id)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_issued_at_a_role_that_has_no_room_for_its_list_on_sqlite() {
    a_list_without_room(Kind::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_issued_at_a_role_that_has_no_room_for_its_list_on_postgresql() {
    a_list_without_room(Kind::Postgres).await;
}

/// A session that an admin revoked by id keeps its priority, however often the sweeper schedules it
/// again.
async fn admin_revocations_go_first(kind: Kind) {
    let aws = Aws::start().await;
    let rig = rig(kind, &aws.server.uri(), 4).await;
    let all = issued(&rig, 7).await;
    // Sessions that an admin revoked fill the list.
    for one in &all[..4] {
        rig.revoke(one.session.id).await;
    }
    rig.end(&all[4], TaskEnd::Complete).await.unwrap();
    pass(&rig, 3).await;
    assert_eq!(aws.named().0.len(), 4);
    // The admin revokes one session whose task was completed, and one that is live.
    for one in &all[4..6] {
        rig.revoke(one.session.id).await;
    }
    rig.end(&all[6], TaskEnd::Complete).await.unwrap();
    // The sweeper schedules each again, from the sessions' own records.
    pass(&rig, 130).await;
    assert_eq!(aws.named().0.len(), 4);
    for one in &all[4..] {
        assert!(!progress(&rig, one.session.id).await.unwrap().listed);
    }
    // Two entries become free: they go to the admin's two revocations, not to the completed task's
    // session.
    forget(&rig, &all[..2]).await;
    pass(&rig, 65).await;
    let users = aws.named().0;
    assert_eq!(users.len(), 4);
    for one in &all[4..6] {
        assert!(users.contains(&user(one.session.id)), "{users:?}");
    }
}

/// Deletes the entries, as after the sessions' expiry.
async fn forget(rig: &Rig, sessions: &[Issued]) {
    for one in sessions {
        let id = one.session.id.uuid();
        let text = "DELETE FROM deny_entry WHERE session_id = $1";
        match rig.broker.core.store() {
            Store::Postgres(_) => {
                let url = rig.database().url();
                let mut database = sqlx::PgConnection::connect(&url).await.unwrap();
                let deleted = sqlx::query(text).bind(id).execute(&mut database).await;
                assert_eq!(deleted.unwrap().rows_affected(), 1);
                database.close().await.unwrap();
            }
            Store::Sqlite(sqlite) => {
                let deleted = sqlx::query(text).bind(id).execute(sqlite.writer()).await;
                assert_eq!(deleted.unwrap().rows_affected(), 1);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_admins_revocation_by_id_goes_first_when_room_comes_free_on_sqlite() {
    admin_revocations_go_first(Kind::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_admins_revocation_by_id_goes_first_when_room_comes_free_on_postgresql() {
    admin_revocations_go_first(Kind::Postgres).await;
}

/// Entries that replicas import from IAM and entries that they request meanwhile together never
/// exceed the list's size.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_stands_with_more_names_than_registered_loses_none_of_them() {
    for kind in [Kind::Sqlite, Kind::Postgres] {
        let aws = Aws::start().await;
        let rig = rig(kind, &aws.server.uri(), 8).await;
        let all = issued(&rig, 2).await;
        rig.revoke(all[0].session.id).await;
        pass(&rig, 3).await;
        // The store was restored from a backup; the earlier registration allowed more entries.
        let strangers: Vec<String> = (1..=12_u128)
            .map(|n| user(SessionId::from(uuid::Uuid::from_u128(n))))
            .collect();
        aws.with(|iam| {
            let own = format!("\"{}\"", user(all[0].session.id));
            let more = strangers.iter().map(|name| format!("\"{name}\","));
            let text = iam.document.take().unwrap();
            let text = text.replace(&own, &format!("{}{own}", more.collect::<String>()));
            iam.document = Some(text.replace("G1\"", "G9\""));
        });
        // The next write must name all of them.
        rig.revoke(all[1].session.id).await;
        for _ in 0..70 {
            pass(&rig, 1).await;
            let (users, _) = aws.named();
            for name in strangers.iter().chain([&user(all[0].session.id)]) {
                assert!(
                    users.contains(name),
                    "a denied session is missing in the list: {name}"
                );
            }
            assert!(users.len() <= 13, "{users:?}");
        }
        let full = try_issue(&rig).await;
        assert!(matches!(full, Err(BrokerError::Overloaded)), "{full:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_adopted_has_its_room_and_no_list_is_larger_than_registered() {
    let aws = Aws::start().await;
    let rig = rig(Kind::Postgres, &aws.server.uri(), 8).await;
    let other = rig.replica().await;
    let all = issued(&rig, 10).await;
    rig.revoke(all[0].session.id).await;
    pass(&rig, 3).await;
    // The store was restored from a backup: the list names six sessions that the store does not
    // know.
    let strangers: Vec<String> = (1..=6_u128)
        .map(|n| user(SessionId::from(uuid::Uuid::from_u128(n))))
        .collect();
    aws.with(|iam| {
        let own = format!("\"{}\"", user(all[0].session.id));
        let more = strangers.iter().map(|name| format!("\"{name}\","));
        let text = iam.document.take().unwrap();
        let text = text.replace(&own, &format!("{}{own}", more.collect::<String>()));
        iam.document = Some(text.replace("G1\"", "G9\""));
    });
    for one in &all[1..] {
        rig.revoke(one.session.id).await;
    }
    for _ in 0..70 {
        rig.clock.advance(1);
        let now = rig.now();
        tokio::join!(
            sweep::sweep(&rig.broker, now),
            sweep::sweep(&other.broker, now)
        );
        assert!(aws.named().0.len() <= 8, "{:?}", aws.named());
    }
    let users = aws.named().0;
    assert_eq!(users.len(), 8);
    for name in strangers.iter().chain([&user(all[0].session.id)]) {
        assert!(
            users.contains(name),
            "a denied session is missing in the list: {name}"
        );
    }
    other.store.close().await;
}
