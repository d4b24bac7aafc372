//! Revocations, cutoffs and blocks end credentials at every replica.

use super::*;

on_both_stores! {
    fn an_offline_credential_is_never_called_dead_before_it_expires;
    fn revoking_a_parents_credential_kills_what_was_derived_from_it;
    fn a_cutoff_on_a_parents_workload_kills_the_grandchild_too;
    fn a_cutoff_on_an_attestor_kills_what_its_identities_hold_and_lets_none_in;
    fn a_block_holds_until_it_is_lifted_and_lifting_revives_nothing;
    fn a_timed_block_ends_at_its_time;
    fn what_a_policy_permitted_is_ended_by_its_name_and_the_times_are_kept;
}

async fn an_offline_credential_is_never_called_dead_before_it_expires(rig: Rig) {
    let mut request = ask(&["orders:read"]);
    request.resource = "archive-api".into();
    let issued = rig.issue("agent:reports", request).await.unwrap();
    assert_eq!(issued.session.revocability.class.as_str(), "expiry_only");
    let ended = rig.end(&issued, TaskEnd::Complete).await.unwrap();
    let status = ended.sessions[0].status;
    assert_eq!(
        (status.state, status.confirmed_at),
        (SessionState::Ending, None)
    );
    rig.clock.pass(issued.session.expires_at);
    let view = rig
        .broker
        .core
        .store()
        .session_view(issued.session.id)
        .await
        .unwrap()
        .unwrap();
    let status = view.status_at(issued.session.expires_at);
    assert_eq!(
        (status.state, status.end_reason),
        (SessionState::Ended, Some(EndReason::Completed))
    );
}

async fn revoking_a_parents_credential_kills_what_was_derived_from_it(rig: Rig) {
    let parent = rig
        .issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
    let lent = rig.delegate(&parent, "agent:child").await.unwrap();
    let child = rig
        .issue(
            "agent:child",
            ask_in(child_of(parent.task.id, &lent), &["orders:read"]),
        )
        .await
        .unwrap();
    rig.revoke(parent.session.id).await;
    assert!(!rig.is_good(&parent).await);
    assert!(!rig.is_good(&child).await);
    let again = rig.delegate(&parent, "agent:child").await.unwrap();
    let orphan = ask_in(child_of(parent.task.id, &again), &["orders:read"]);
    assert_eq!(
        refusal(rig.issue("agent:child", orphan).await),
        "exceeds-parent"
    );
}

async fn a_cutoff_on_a_parents_workload_kills_the_grandchild_too(rig: Rig) {
    let root = rig
        .issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
    let lent = rig.delegate(&root, "agent:child").await.unwrap();
    let mid = rig
        .issue(
            "agent:child",
            ask_in(child_of(root.task.id, &lent), &["orders:read"]),
        )
        .await
        .unwrap();
    let lent = rig.lend(&mid, "agent:orders", 1).await.unwrap();
    let leaf = rig
        .issue(
            "agent:orders",
            ask_in(child_of(mid.task.id, &lent), &["orders:read"]),
        )
        .await
        .unwrap();
    assert_eq!(
        claims(&leaf)["act"],
        json!({"sub": "dev:agent%3Aorders", "act": {"sub": "dev:agent%3Achild"}})
    );
    let selector = Selector::Workload(root.session.workload.clone());
    let tried = rig
        .broker
        .revocation
        .revoke_many(
            &rig.admin(),
            RevokeRequest {
                selector: selector.clone(),
                block: BlockRequest::Default,
                deny_all_earlier_sessions: false,
                reason: "x".into(),
                allow_unknown: false,
                dry_run: true,
            },
        )
        .await
        .unwrap();
    assert_eq!(
        (tried.radius.unwrap().matched, tried.cutoff.is_none()),
        (3, true),
        "a dry run counts the whole tree"
    );
    assert!(rig.is_good(&leaf).await, "and touches nothing");
    let done = rig
        .broker
        .revocation
        .revoke_many(
            &rig.admin(),
            RevokeRequest {
                selector,
                block: BlockRequest::Default,
                deny_all_earlier_sessions: false,
                reason: "x".into(),
                allow_unknown: false,
                dry_run: false,
            },
        )
        .await
        .unwrap();
    assert_eq!(done.radius.unwrap().matched, 3);
    for dead in [&root, &mid, &leaf] {
        assert!(!rig.is_good(dead).await);
    }
}

async fn a_cutoff_on_an_attestor_kills_what_its_identities_hold_and_lets_none_in(rig: Rig) {
    let issued = rig
        .issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
    let cut = async |name: &str| {
        let ask = RevokeRequest {
            selector: Selector::Attestor(name.into()),
            block: BlockRequest::UntilLifted,
            deny_all_earlier_sessions: false,
            allow_unknown: true,
            reason: "its key was stolen".into(),
            dry_run: false,
        };
        rig.broker
            .revocation
            .revoke_many(&rig.admin(), ask)
            .await
            .unwrap()
            .radius
            .unwrap()
            .matched
    };
    assert_eq!(cut("another").await, 0);
    assert!(rig.is_good(&issued).await);
    assert_eq!(cut("dev").await, 1);
    assert!(!rig.is_good(&issued).await);
    assert_eq!(
        refusal(rig.issue("agent:reports", ask(&["orders:read"])).await),
        "blocked"
    );
}

async fn a_block_holds_until_it_is_lifted_and_lifting_revives_nothing(rig: Rig) {
    let issued = rig
        .issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
    let all = Selector::All(True);
    let revoked = rig
        .broker
        .revocation
        .revoke_many(
            &rig.admin(),
            RevokeRequest {
                selector: all,
                block: BlockRequest::UntilLifted,
                deny_all_earlier_sessions: false,
                allow_unknown: false,
                reason: "incident".into(),
                dry_run: false,
            },
        )
        .await
        .unwrap();
    assert!(!rig.is_good(&issued).await);
    assert_eq!(
        refusal(rig.issue("agent:reports", ask(&["orders:read"])).await),
        "blocked"
    );
    rig.clock.advance(86_400);
    assert_eq!(
        refusal(rig.issue("agent:reports", ask(&["orders:read"])).await),
        "blocked"
    );
    rig.broker
        .revocation
        .lift(&rig.admin(), revoked.cutoff.unwrap().id)
        .await
        .unwrap();
    assert!(!rig.is_good(&issued).await);
    rig.issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
}

async fn a_timed_block_ends_at_its_time(rig: Rig) {
    let selector = Selector::Resource("orders-api".into());
    rig.broker
        .revocation
        .revoke_many(
            &rig.admin(),
            RevokeRequest {
                selector,
                block: BlockRequest::Seconds(60),
                deny_all_earlier_sessions: false,
                reason: "x".into(),
                allow_unknown: false,
                dry_run: false,
            },
        )
        .await
        .unwrap();
    rig.clock.advance(59);
    assert_eq!(
        refusal(rig.issue("agent:reports", ask(&["orders:read"])).await),
        "blocked"
    );
    rig.clock.advance(1);
    let issued = rig
        .issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
    // A block without a stated duration lasts an hour.
    let selector = Selector::Workload(issued.session.workload.clone());
    rig.broker
        .revocation
        .revoke_many(
            &rig.admin(),
            RevokeRequest {
                selector,
                block: BlockRequest::Default,
                deny_all_earlier_sessions: false,
                reason: "x".into(),
                allow_unknown: false,
                dry_run: false,
            },
        )
        .await
        .unwrap();
    rig.clock.advance(3_599);
    assert_eq!(
        refusal(rig.issue("agent:reports", ask(&["orders:read"])).await),
        "blocked"
    );
    rig.clock.advance(1);
    rig.issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
}

async fn what_a_policy_permitted_is_ended_by_its_name_and_the_times_are_kept(rig: Rig) {
    let permitted = rig
        .issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
    let by_another = rig
        .issue("agent:child", ask(&["orders:read"]))
        .await
        .unwrap();
    rig.clock.advance(7);
    let selector = Selector::Policy("reports".into());
    let revoked = rig
        .broker
        .revocation
        .revoke_many(
            &rig.admin(),
            RevokeRequest {
                selector,
                block: BlockRequest::Default,
                deny_all_earlier_sessions: false,
                reason: "x".into(),
                allow_unknown: false,
                dry_run: false,
            },
        )
        .await
        .unwrap();
    let radius = revoked.radius.unwrap();
    assert_eq!((radius.matched, radius.ended), (1, 1));
    assert_eq!(
        (
            rig.is_good(&permitted).await,
            rig.is_good(&by_another).await
        ),
        (false, true)
    );
    let kept = rig
        .broker
        .core
        .store()
        .cutoff(revoked.cutoff.unwrap().id)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (kept.requested_at, kept.committed_at),
        (rig.now(), rig.now())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_decided_before_revoke_all_is_usable_after_it_on_two_replicas() {
    let rig = Arc::new(Rig::on(Kind::Postgres).start().await);
    let other = rig.replica().await;
    let brokers = [Arc::clone(&rig.broker), Arc::clone(&other.broker)];
    let mut asking = Vec::new();
    for round in 0..40 {
        let (rig, broker) = (Arc::clone(&rig), Arc::clone(&brokers[round % 2]));
        asking.push(tokio::spawn(async move {
            let mut issued = Vec::new();
            for _ in 0..10 {
                let sub = ["agent:reports", "agent:orders"][round % 2];
                if let Ok(one) = broker
                    .issuance
                    .issue(rig.evidence(sub), ask(&["orders:read"]))
                    .await
                {
                    issued.push(one);
                }
            }
            issued
        }));
    }
    let revoked = rig
        .broker
        .revocation
        .revoke_many(
            &rig.admin(),
            RevokeRequest {
                selector: Selector::All(True),
                block: BlockRequest::Seconds(3_600),
                deny_all_earlier_sessions: false,
                reason: "drill".into(),
                allow_unknown: false,
                dry_run: false,
            },
        )
        .await
        .unwrap();
    let cutoff = revoked.cutoff.unwrap().index;
    let mut seen = 0;
    for issued in futures_util::future::join_all(asking).await {
        for one in issued.unwrap() {
            seen += 1;
            assert!(one.receipt.index < cutoff, "granted after the cutoff");
            assert!(!is_good(&brokers[0], &one).await);
            assert!(!is_good(&brokers[1], &one).await);
        }
    }
    let matched = revoked.radius.unwrap().matched;
    assert!(matched <= seen, "{matched} of {seen}");
}
