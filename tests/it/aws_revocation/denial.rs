//! One session among many is denied: written, read back, repaired and confirmed.

use taskpass::domain::revocability::{ExpiresBy, OpenSessions, Revocability, RevocationClass};

use super::*;
use crate::support::moto::Moto;

/// One of several sessions is revoked: the role denies that session and no other. The session
/// counts as ended once the broker has read the document back, the bound has passed, and the
/// document is still in place.
async fn one_of_many(kind: Kind) {
    let moto = Moto::start();
    let iam = moto.iam();
    for role in ["reports", "taskpass-revoker"] {
        iam.create_role()
            .role_name(role)
            .assume_role_policy_document(r#"{"Version":"2012-10-17","Statement":[]}"#)
            .send()
            .await
            .unwrap();
    }
    let rig = rig(kind, &moto.url(), 200).await;
    let all = issued(&rig, 5).await;
    let bounded = Revocability {
        class: RevocationClass::Bounded {
            bound_seconds: BOUND,
        },
        open_sessions: OpenSessions::None,
        expires_by: ExpiresBy::BackEnd,
    };
    assert_eq!(all[2].session.revocability, bounded);
    let one = all[2].session.id;
    rig.revoke(one).await;
    assert_eq!(state(&rig, one).await, SessionState::Ending);
    pass(&rig, 3).await;

    let request = iam.get_role_policy().role_name("reports");
    let policy = request.policy_name(POLICY).send().await.unwrap();
    let text = percent_encoding::percent_decode_str(policy.policy_document());
    let text = text.decode_utf8().unwrap();
    assert_eq!(named(&text), (vec![user(one)], 1));
    let standing = progress(&rig, one).await.unwrap();
    let written = standing.written_at.unwrap();

    pass(&rig, BOUND - 5).await;
    assert_eq!(state(&rig, one).await, SessionState::Ending);
    assert!(rig.now() < written.plus_seconds(BOUND));
    pass(&rig, 12).await;
    assert_eq!(state(&rig, one).await, SessionState::Ended);
    let session = rig.broker.core.store().session(one).await.unwrap().unwrap();
    assert!(session.confirmed_at.unwrap() >= written.plus_seconds(BOUND));
    for other in [0, 1, 3, 4].map(|n| all[n].session.id) {
        assert_eq!(state(&rig, other).await, SessionState::Active);
        assert_eq!(progress(&rig, other).await, None);
    }

    // A judge that is not part of the product evaluates the role's policy.
    let document: Value = serde_json::from_str(&text).unwrap();
    let mut questions = vec![(judged(&document, one), DENIED)];
    for other in [0, 1, 3, 4] {
        questions.push((judged(&document, all[other].session.id), Verdict::Allowed));
    }
    judge::expect(&questions);

    // Once all sessions have expired, the list is empty.
    pass(&rig, TTL).await;
    let request = iam.get_role_policy().role_name("reports");
    let policy = request.policy_name(POLICY).send().await.unwrap();
    let text = percent_encoding::percent_decode_str(policy.policy_document());
    assert_eq!(named(&text.decode_utf8().unwrap()), (vec![], 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_revoked_among_many_dies_alone_on_sqlite() {
    one_of_many(Kind::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_revoked_among_many_dies_alone_on_postgresql() {
    one_of_many(Kind::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_broker_writes_as_a_role_of_its_own_that_may_do_nothing_else() {
    let aws = Aws::start().await;
    let rig = rig(Kind::Sqlite, &aws.server.uri(), 200).await;
    let all = issued(&rig, 2).await;
    rig.revoke(all[0].session.id).await;
    pass(&rig, 3).await;
    rig.revoke(all[1].session.id).await;
    pass(&rig, 3).await;
    assert_eq!(aws.named().0.len(), 2);
    let own = aws.with(|iam| iam.own.clone());
    let [call] = &own[..] else {
        panic!("the broker reuses its own AWS session: {own:?}")
    };
    assert_eq!(
        (call["RoleArn"].as_str(), call["DurationSeconds"].as_str()),
        (REVOKER, "900")
    );
    assert_eq!(
        serde_json::from_str::<Value>(&call["Policy"]).unwrap(),
        json!({"Version": "2012-10-17", "Statement": [{
            "Effect": "Allow", "Action": ["iam:GetRolePolicy", "iam:PutRolePolicy"],
            "Resource": [ROLE]
        }]})
    );
    let (_, claims) = crate::support::keys::peek(&call["WebIdentityToken"]);
    assert_eq!(
        (&claims["sub"], &claims["aud"]),
        (&json!("revoker"), &json!("sts.amazonaws.com"))
    );
    let life = claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap();
    assert!(life <= 60);
    assert_eq!(claims.get("https://aws.amazon.com/tags"), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_document_that_was_written_over_is_put_right_and_nothing_counts_meanwhile() {
    let aws = Aws::start().await;
    let rig = rig(Kind::Sqlite, &aws.server.uri(), 200).await;
    let all = issued(&rig, 3).await;
    rig.revoke(all[0].session.id).await;
    pass(&rig, 3).await;
    let stale = aws.with(|iam| iam.document.clone());
    rig.revoke(all[1].session.id).await;
    pass(&rig, 3).await;
    assert_eq!(aws.named().1, 2);
    // A slow replica writes an old document that it read long ago.
    aws.with(|iam| iam.document = stale);
    pass(&rig, 65).await;
    let (users, number) = aws.named();
    assert_eq!((users.len(), number), (2, 3));
    let first = progress(&rig, all[0].session.id).await.unwrap();
    let second = progress(&rig, all[1].session.id).await.unwrap();
    assert!(
        second.written_at > first.written_at,
        "the bound starts again with the repair: {second:?}"
    );
    pass(&rig, 60).await;
    assert_eq!(
        state(&rig, all[0].session.id).await,
        SessionState::Ended,
        "it was named in every document"
    );
    assert_eq!(state(&rig, all[1].session.id).await, SessionState::Ending);
    pass(&rig, 130).await;
    assert_eq!(state(&rig, all[1].session.id).await, SessionState::Ended);

    // The broker also repairs a document in which a person changed a single word.
    aws.with(|iam| {
        iam.document = iam
            .document
            .as_ref()
            .map(|text| text.replace("Deny", "Allow"));
    });
    pass(&rig, 62).await;
    assert_eq!(aws.named().0.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_brokers_document_is_left_alone() {
    let aws = Aws::start().await;
    let rig = rig(Kind::Sqlite, &aws.server.uri(), 200).await;
    let foreign = json!({"Version": "2012-10-17", "Statement": [{
        "Sid": "TaskpassOtherG4", "Effect": "Deny", "Action": ["*"], "Resource": ["*"],
        "Condition": {"StringLike": {"aws:userid": ["*:tp-"]}}
    }]})
    .to_string();
    aws.with(|iam| iam.document = Some(foreign.clone()));
    let all = issued(&rig, 1).await;
    rig.revoke(all[0].session.id).await;
    pass(&rig, 10).await;
    assert_eq!(aws.with(|iam| iam.document.clone()), Some(foreign));
    assert_eq!(aws.with(|iam| iam.writes), 0);
    assert_eq!(state(&rig, all[0].session.id).await, SessionState::Ending);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_read_back_is_not_believed() {
    let aws = Aws::start().await;
    let rig = rig(Kind::Sqlite, &aws.server.uri(), 200).await;
    let all = issued(&rig, 1).await;
    let one = all[0].session.id;
    aws.with(|iam| iam.forgetting = true);
    rig.revoke(one).await;
    pass(&rig, BOUND + 60).await;
    assert_eq!(state(&rig, one).await, SessionState::Ending);
    assert_eq!(progress(&rig, one).await.unwrap().written_at, None);
    let tried = aws.with(|iam| iam.writes);
    assert!((3..12).contains(&tried), "attempts with pauses: {tried}");
    aws.with(|iam| iam.forgetting = false);
    pass(&rig, 200).await;
    assert!(progress(&rig, one).await.unwrap().written_at.is_some());
    pass(&rig, 200).await;
    assert_eq!(state(&rig, one).await, SessionState::Ended);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_iam_that_refuses_or_throttles_is_asked_again_until_the_session_is_over() {
    for code in ["AccessDenied", "Throttling", "NoSuchEntity"] {
        let aws = Aws::start().await;
        let rig = rig(Kind::Sqlite, &aws.server.uri(), 200).await;
        let all = issued(&rig, 1).await;
        let one = all[0].session.id;
        aws.with(|iam| iam.refusing = Some(code));
        rig.revoke(one).await;
        pass(&rig, 20).await;
        assert_eq!(state(&rig, one).await, SessionState::Ending, "{code}");
        let text = rig.broker.core.metrics().render();
        let failures = text
            .lines()
            .find(|line| line.starts_with("taskpass_deny_list_failures_total "));
        assert!(
            failures.is_some_and(|line| !line.ends_with(" 0")),
            "{code}: {failures:?}"
        );
        aws.with(|iam| iam.refusing = None);
        pass(&rig, 30).await;
        assert_eq!(aws.named().0, [user(one)], "{code}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_over_and_ends_by_itself_in_time_is_not_put_on_the_list_and_what_is_revoked_is() {
    let aws = Aws::start().await;
    let rig = rig(Kind::Sqlite, &aws.server.uri(), 200).await;
    let all = issued(&rig, 2).await;
    rig.clock.advance(TTL - BOUND + 1);
    rig.revoke(all[0].session.id).await;
    rig.end(&all[1], TaskEnd::Complete).await.unwrap();
    pass(&rig, 5).await;
    for (one, listed) in all.iter().zip([true, false]) {
        let standing = progress(&rig, one.session.id).await.unwrap();
        assert_eq!(standing.listed, listed, "{standing:?}");
        assert_eq!(state(&rig, one.session.id).await, SessionState::Ending);
    }
    assert_eq!(aws.named().0.len(), 1);
    pass(&rig, BOUND).await;
    assert_eq!(state(&rig, all[0].session.id).await, SessionState::Ended);
    assert_eq!(state(&rig, all[1].session.id).await, SessionState::Ended);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mint_of_unknown_outcome_stays_denied_for_as_long_as_it_could_have_been_made() {
    let aws = Aws::start().await;
    let rig = rig(Kind::Sqlite, &aws.server.uri(), 200).await;
    aws.with(|iam| iam.mute_sts = true);
    assert!(try_issue(&rig).await.is_err());
    let sessions = rig
        .broker
        .core
        .store()
        .list_sessions(&taskpass::store::sessions::SessionFilter {
            limit: 9,
            ..Default::default()
        })
        .await
        .unwrap();
    let one = &sessions[0].session;
    // The lease must expire before the broker can assume that no mint is still running.
    pass(&rig, 70).await;
    assert_eq!(aws.named().0, [user(one.id)]);
    rig.clock.advance(TTL);
    pass(&rig, 3).await;
    assert_eq!(state(&rig, one.id).await, SessionState::Ended);
    assert_eq!(
        aws.named().0,
        [user(one.id)],
        "the session's own policy has expired, and the list still names it"
    );
    rig.clock.advance(900);
    pass(&rig, 3).await;
    assert!(aws.named().0.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_write_one_after_the_other_and_lose_nobody() {
    let aws = Aws::start().await;
    let rig = rig(Kind::Postgres, &aws.server.uri(), 200).await;
    let other = rig.replica().await;
    let all = issued(&rig, 24).await;
    for (n, one) in all.iter().enumerate() {
        rig.revoke(one.session.id).await;
        if n % 4 == 3 {
            rig.clock.advance(1);
            let now = rig.now();
            tokio::join!(
                sweep::sweep(&rig.broker, now),
                sweep::sweep(&other.broker, now)
            );
        }
    }
    pass(&rig, 70).await;
    let (users, number) = aws.named();
    assert_eq!(users.len(), 24);
    let writes = aws.with(|iam| iam.writes);
    assert_eq!(
        u64::try_from(writes).unwrap(),
        number,
        "each write has its own number, and the document holds the last one"
    );
    pass(&rig, BOUND + 10).await;
    for one in &all {
        assert_eq!(state(&rig, one.session.id).await, SessionState::Ended);
    }
    other.store.close().await;
}
