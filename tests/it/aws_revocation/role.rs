//! A role as a whole: all earlier sessions denied, and roles that their resource left.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_admin_has_every_earlier_session_of_a_role_denied_at_once() {
    let aws = Aws::start().await;
    let rig = rig(Kind::Sqlite, &aws.server.uri(), 8).await;
    let all = issued(&rig, 12).await;
    rig.clock.advance(70);
    let late = issued(&rig, 1).await;
    rig.clock.advance(5);
    let admin = rig.admin();
    let done = rig
        .broker
        .revocation
        .revoke_many(&admin, revoke_resource(true))
        .await;
    let cutoff = done.unwrap().cutoff.unwrap();
    assert_eq!(cutoff.deny_policy_target.as_deref(), Some(ROLE));
    pass(&rig, 1).await;
    let after = issued(&rig, 1).await;
    pass(&rig, 3).await;
    let document = aws.with(|iam| iam.document.clone()).unwrap();
    let document: Value = serde_json::from_str(&document).unwrap();
    let at = cutoff.committed_at.floor_to_second().to_string();
    assert_eq!(
        document["Statement"][1],
        json!({"Effect": "Deny", "Action": ["*"], "Resource": ["*"], "Condition": {
            "DateLessThan": {"aws:TokenIssueTime": [at]},
            "Null": {"aws:PrincipalTag/TaskpassSession": ["false"]}
        }})
    );
    let made = |seconds: u64, session: SessionId| {
        judged(&document, session).with(
            "aws:TokenIssueTime",
            &cutoff
                .committed_at
                .minus_seconds(seconds)
                .floor_to_second()
                .to_string(),
        )
    };
    let tag = "aws:PrincipalTag/TaskpassSession";
    let (early, new) = (all[0].session.id, after[0].session.id);
    judge::expect(&[
        (made(70, early).with(tag, &early.to_string()), DENIED),
        (made(1, early).with(tag, &early.to_string()), DENIED),
        (made(0, new).with(tag, &new.to_string()), Verdict::Allowed),
        // Another principal, without the session tag, uses the same role.
        (made(70, new), Verdict::Allowed),
    ]);
    pass(&rig, BOUND + 70).await;
    for one in &all {
        assert_eq!(state(&rig, one.session.id).await, SessionState::Ended);
    }
    // STS may have made this session after the cutoff's instant, so the list names it.
    assert!(aws.named().0.contains(&user(late[0].session.id)));
    assert_eq!(state(&rig, late[0].session.id).await, SessionState::Ended);
    assert_eq!(state(&rig, after[0].session.id).await, SessionState::Active);
    // The cutoff's leaf holds the role's name, and the row's MAC covers it.
    let reread = rig
        .broker
        .revocation
        .revocation(&admin, cutoff.id)
        .await
        .unwrap();
    assert_eq!(
        reread.cutoff.unwrap().deny_policy_target.as_deref(),
        Some(ROLE)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_role_that_one_resource_has_to_itself_is_denied_as_a_whole() {
    let aws = Aws::start().await;
    let mut shared = bucket(8);
    shared["name"] = json!("other-bucket");
    let rig = rig_with(Kind::Sqlite, &aws.server.uri(), vec![bucket(8), shared]).await;
    let admin = rig.admin();
    for selector in [
        Selector::Resource("reports-bucket".into()),
        Selector::Resource("orders-api".into()),
        Selector::Resource("nowhere".into()),
        Selector::Attestor("dev".into()),
    ] {
        let ask = RevokeRequest {
            selector: selector.clone(),
            allow_unknown: true,
            ..revoke_resource(true)
        };
        let refused = rig.broker.revocation.revoke_many(&admin, ask).await;
        let Err(BrokerError::Invalid { pointer, detail }) = refused else {
            panic!("{selector:?}: {refused:?}")
        };
        assert_eq!(pointer, "/deny_all_earlier_sessions", "{detail}");
    }
    assert!(rig.broker.core.store().cutoffs(9).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_of_a_role_that_its_resource_left_are_ended_where_they_were_made() {
    let aws = Aws::start().await;
    let rig = rig(Kind::Sqlite, &aws.server.uri(), 200).await;
    let all = issued(&rig, 1).await;
    activate(&rig, |resource| {
        resource["aws"]["role_arn"] = json!("arn:aws:iam::123456789012:role/moved");
    })
    .await;
    rig.revoke(all[0].session.id).await;
    pass(&rig, 3).await;
    assert_eq!(aws.named().0, [user(all[0].session.id)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_are_ended_as_they_were_promised_when_their_resource_gives_its_list_up() {
    let aws = Aws::start().await;
    let rig = rig(Kind::Sqlite, &aws.server.uri(), 200).await;
    let all = issued(&rig, 1).await;
    activate(&rig, |resource| {
        resource["aws"]
            .as_object_mut()
            .unwrap()
            .remove("revocation");
    })
    .await;
    rig.revoke(all[0].session.id).await;
    pass(&rig, 3).await;
    assert_eq!(aws.named().0, [user(all[0].session.id)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_roles_denial_that_was_written_over_counts_from_its_return() {
    let aws = Aws::start().await;
    let rig = rig(Kind::Sqlite, &aws.server.uri(), 8).await;
    let all = issued(&rig, 1).await;
    rig.clock.advance(70);
    let admin = rig.admin();
    rig.broker
        .revocation
        .revoke_many(&admin, revoke_resource(true))
        .await
        .unwrap();
    pass(&rig, 5).await;
    // The document is removed, and IAM is unreachable for longer than the bound.
    aws.with(|iam| {
        iam.document = None;
        iam.refusing = Some("ServiceFailure");
    });
    pass(&rig, BOUND + 65).await;
    assert_eq!(state(&rig, all[0].session.id).await, SessionState::Ending);
    aws.with(|iam| iam.refusing = None);
    pass(&rig, BOUND - 10).await;
    assert!(
        aws.with(|iam| iam.document.is_some()),
        "the document is written again"
    );
    assert_eq!(state(&rig, all[0].session.id).await, SessionState::Ending);
    pass(&rig, BOUND + 70).await;
    assert_eq!(state(&rig, all[0].session.id).await, SessionState::Ended);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_is_not_denied_as_a_whole_while_a_resource_that_left_it_has_sessions_there() {
    let aws = Aws::start().await;
    let mut leaving = bucket(8);
    leaving["name"] = json!("other-bucket");
    let rig = rig_with(Kind::Sqlite, &aws.server.uri(), vec![bucket(8), leaving]).await;
    issued(&rig, 1).await;
    // The other resource now has the role to itself, but the first resource's sessions still live
    // there.
    activate(&rig, |resource| {
        resource["aws"]["role_arn"] = json!("arn:aws:iam::123456789012:role/moved");
    })
    .await;
    let ask = RevokeRequest {
        selector: Selector::Resource("other-bucket".into()),
        ..revoke_resource(true)
    };
    let refused = rig.broker.revocation.revoke_many(&rig.admin(), ask).await;
    let Err(BrokerError::Invalid { detail, .. }) = refused else {
        panic!("{refused:?}")
    };
    assert!(detail.contains("have not expired"), "{detail}");
}
