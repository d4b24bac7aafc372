//! Statements of sessions: the facts of their validity, their ends, their status lists.

use super::*;

cases! {
    a_session_is_seen_with_all_that_decides_about_it: "session" "list_sessions" "sessions_under"
        "ancestors" "cutoffs_of" "matching_all" "matching_workload" "matching_resource"
        "matching_attestor" "matching_signing_key" "matching_generation" "matching_policy"
        "matching_task" "matching_issued_after";
    a_mint_elsewhere_is_settled_once_and_its_end_is_tried_until_confirmed: "settle_mint"
        "unfinished_mints" "claim_unconfirmed" "put_off_ending" "active_external";
    a_status_list_is_read_by_the_places_of_leaves: "listed_plainly" "listed_in_doubt";
    what_the_store_cannot_hold_is_refused_and_nothing_of_it_stays: "prune_sessions" "prune_tasks"
        "prune_delegations";
}

#[expect(clippy::too_many_lines, reason = "the steps of one case")]
async fn a_session_is_seen_with_all_that_decides_about_it(store: &Store) {
    let mut child = session(12, 2, Some(11));
    child.resource = "archive".into();
    child.leaf_index = 1;
    let writes = Writes {
        tasks: vec![task(1, None), task(2, Some(1))],
        sessions: vec![(session(11, 1, None), None), (child.clone(), None)],
        ..Writes::default()
    };
    seed(store, writes).await;
    assert_eq!(store.session(session_id(12)).await.unwrap(), Some(child));
    assert_eq!(store.session(session_id(99)).await.unwrap(), None);
    let view = store.session_view(session_id(12)).await.unwrap().unwrap();
    assert_eq!((view.ancestors.len(), view.tasks.0.len()), (1, 2));
    assert!(view.is_valid_at(at(499)) && !view.is_valid_at(at(500)));

    let page = |filter: SessionFilter| async move {
        let views = store
            .list_sessions(&SessionFilter { limit: 5, ..filter })
            .await
            .unwrap();
        views
            .into_iter()
            .map(|view| view.session.id)
            .collect::<Vec<_>>()
    };
    let none = SessionFilter::default;
    assert_eq!(page(none()).await, [session_id(12), session_id(11)]);
    assert_eq!(
        page(SessionFilter {
            before: Some(session_id(12)),
            ..none()
        })
        .await,
        [session_id(11)]
    );
    assert_eq!(
        page(SessionFilter {
            resource: Some("archive".into()),
            ..none()
        })
        .await,
        [session_id(12)]
    );
    assert_eq!(
        page(SessionFilter {
            task: Some(task_id(1)),
            ..none()
        })
        .await,
        [session_id(11)]
    );
    assert_eq!(
        page(SessionFilter {
            workload: Some("dev:b".into()),
            ..none()
        })
        .await,
        []
    );
    assert_eq!(
        page(SessionFilter {
            live_at: Some(at(500)),
            ..none()
        })
        .await,
        []
    );
    let under = store.sessions_under(task_id(1), 5).await.unwrap();
    assert_eq!(under.len(), 2, "includes descendants");
    assert_eq!(store.sessions_under(task_id(2), 5).await.unwrap().len(), 1);

    let nothing = MatchCount {
        matched: 0,
        cut_off: 0,
        has_more: false,
    };
    let killed = |selector: Selector| async move {
        let counted = store
            .count_matching(&selector, 5, at(3), at(3), 9)
            .await
            .unwrap();
        let listed = store.list_matching(&selector, 5, at(3), 9).await.unwrap();
        assert_eq!(counted.matched, listed.len() as u64);
        assert!(!counted.has_more);
        counted.matched
    };
    assert_eq!(killed(Selector::All(True)).await, 2);
    assert_eq!(
        killed(Selector::Resource("orders".into())).await,
        2,
        "includes derived sessions"
    );
    assert_eq!(killed(Selector::Resource("archive".into())).await, 1);
    assert_eq!(killed(Selector::Task(task_id(2))).await, 1);
    assert_eq!(killed(Selector::Policy("p_1%".into())).await, 2);
    assert_eq!(killed(Selector::Policy("ünï".into())).await, 2);
    assert_eq!(
        killed(Selector::Policy("pX1%".into())).await,
        0,
        "`_` is no wildcard"
    );
    assert_eq!(killed(Selector::SigningKey("k2".into())).await, 0);
    assert_eq!(killed(Selector::SigningKey("k1".into())).await, 2);
    assert_eq!(killed(Selector::Attestor("dev".into())).await, 2);
    let workload = "dev:a".to_owned().try_into().unwrap();
    assert_eq!(killed(Selector::Workload(workload)).await, 2);
    assert_eq!(killed(Selector::IssuedAfter(at(-1))).await, 2);
    assert_eq!(killed(Selector::IssuedAfter(at(0))).await, 0);
    assert_eq!(
        killed(Selector::Generation(GenerationDigest::new([7; 32]))).await,
        2
    );
    assert_eq!(
        store
            .count_matching(&Selector::All(True), 1, at(3), at(3), 9)
            .await
            .unwrap()
            .matched,
        2,
        "through its parent"
    );
    assert_eq!(
        store
            .count_matching(&Selector::All(True), 0, at(3), at(3), 9)
            .await
            .unwrap(),
        nothing
    );
    assert_eq!(
        store
            .count_matching(&Selector::All(True), 5, at(500), at(500), 9)
            .await
            .unwrap(),
        nothing
    );

    let cut = cutoff(60, 1, Selector::Resource("orders".into()), Block::No);
    seed(store, acts(vec![ActWrite::Cutoff(Box::new(cut))])).await;
    let view = store.session_view(session_id(12)).await.unwrap().unwrap();
    assert_eq!(
        view.cut_off_at,
        Some(at(2)),
        "through the session it was derived from"
    );
    let orphan = Writes {
        session_ends: BTreeMap::from([(
            session_id(11),
            SessionEnd {
                state: SessionState::Ended,
                reason: EndReason::Revoked,
                at: at(4),
            },
        )]),
        ..Writes::default()
    };
    seed(store, orphan).await;
    let ended = store.session(session_id(11)).await.unwrap().unwrap();
    assert_eq!(
        (ended.ended_at, ended.confirmed_at),
        (Some(at(4)), Some(at(4)))
    );
    let view = seen(
        store,
        Needs {
            sessions: vec![session_id(12)],
            ..Needs::default()
        },
    )
    .await;
    assert_eq!(view.sessions[&session_id(11)].state, SessionState::Ended);
}

#[expect(clippy::too_many_lines, reason = "the steps of one case")]
async fn a_mint_elsewhere_is_settled_once_and_its_end_is_tried_until_confirmed(store: &Store) {
    let minting = |n| {
        let mut one = session(n, 1, None);
        one.state = SessionState::Minting;
        one.minter = MinterKind::Aws;
        one.revocability.class = RevocationClass::Bounded { bound_seconds: 60 };
        (
            one,
            Some(MintLease {
                until: at(20),
                holder: "r1".into(),
            }),
        )
    };
    seed(
        store,
        Writes {
            tasks: vec![task(1, None)],
            sessions: vec![minting(11), minting(12)],
            ..Writes::default()
        },
    )
    .await;
    assert!(
        !store
            .activate_session(session_id(11), "r2", at(1))
            .await
            .unwrap(),
        "another replica holds the lease"
    );
    assert!(
        !store
            .activate_session(session_id(11), "r1", at(20))
            .await
            .unwrap(),
        "the lease has expired"
    );
    assert!(
        store
            .activate_session(session_id(11), "r1", at(19))
            .await
            .unwrap()
    );
    assert!(
        !store
            .activate_session(session_id(11), "r1", at(19))
            .await
            .unwrap(),
        "only once"
    );
    assert_eq!(store.unfinished_mints(at(19), 5).await.unwrap().len(), 0);
    let dead = store.unfinished_mints(at(20), 5).await.unwrap();
    assert_eq!(
        dead.iter().map(|one| one.id).collect::<Vec<_>>(),
        [session_id(12)]
    );
    let external = store.active_external(at(20), None, 5).await.unwrap();
    assert_eq!(external.len(), 1);
    let expiry = external[0].session.expires_at;
    assert_eq!(
        store.active_external(expiry, None, 5).await.unwrap().len(),
        0,
        "it has expired"
    );
    let after = async |n| {
        store
            .active_external(at(20), Some((expiry, session_id(n))), 5)
            .await
            .unwrap()
            .len()
    };
    assert_eq!((after(10).await, after(11).await), (1, 0));

    let end = |n| {
        (
            session_id(n),
            SessionEnd {
                state: SessionState::Ending,
                reason: EndReason::Failed,
                at: at(21),
            },
        )
    };
    seed(
        store,
        Writes {
            session_ends: BTreeMap::from([end(11), end(12)]),
            ..Writes::default()
        },
    )
    .await;
    assert_eq!(
        store
            .claim_unconfirmed(at(20), at(30), 5)
            .await
            .unwrap()
            .len(),
        0,
        "not due"
    );
    let claimed = store.claim_unconfirmed(at(21), at(30), 5).await.unwrap();
    assert_eq!(
        claimed.iter().map(|(_, tries)| *tries).collect::<Vec<_>>(),
        [1, 1]
    );
    assert_eq!(
        store
            .claim_unconfirmed(at(29), at(40), 5)
            .await
            .unwrap()
            .len(),
        0,
        "another replica holds the claim"
    );
    store.put_off_ending(session_id(12), at(90)).await.unwrap();
    let again = store.claim_unconfirmed(at(30), at(40), 5).await.unwrap();
    assert_eq!(
        (again.len(), again[0].0.id, again[0].1),
        (1, session_id(11), 2)
    );
}

async fn a_status_list_is_read_by_the_places_of_leaves(store: &Store) {
    let one = |n: u128, class: RevocationClass, minter: MinterKind| {
        let mut one = session(n, 1, None);
        one.leaf_index = u64::try_from(n).unwrap();
        one.revocability.class = class;
        one.minter = minter;
        (one, None)
    };
    let bounded = RevocationClass::Bounded { bound_seconds: 30 };
    let sessions = vec![
        one(11, bounded, MinterKind::Jwt),
        one(12, bounded, MinterKind::Jwt),
        one(13, bounded, MinterKind::Aws),
        one(
            14,
            RevocationClass::Immediate { bound_seconds: 0 },
            MinterKind::Jwt,
        ),
    ];
    seed(
        store,
        Writes {
            tasks: vec![task(1, None)],
            sessions,
            ..Writes::default()
        },
    )
    .await;
    let listed = async |from, to, now| {
        let mut plain = store.listed_plainly(from, to, now).await.unwrap();
        plain.sort_unstable();
        plain
    };
    let in_doubt = async |from, limit| {
        let views = store.listed_in_doubt(from, 99, at(1), limit).await.unwrap();
        let leaves = views.iter().map(|view| view.session.leaf_index);
        leaves.collect::<Vec<_>>()
    };
    let expiry = session(11, 1, None).expires_at;
    assert_eq!(listed(11, 12, at(1)).await, [11], "the end is exclusive");
    assert_eq!(listed(0, 99, at(1)).await.len(), 2);
    assert!(listed(0, 99, expiry).await.is_empty());
    assert_eq!(in_doubt(0, 9).await, [0_u64; 0]);

    let mut derived = one(21, bounded, MinterKind::Jwt);
    derived.0.parent = Some(session_id(11));
    let mut silent = task(2, None);
    silent.heartbeat_seconds = Some(60);
    let mut heard = one(22, bounded, MinterKind::Jwt);
    heard.0.task_id = task_id(2);
    let mut of_child = one(23, bounded, MinterKind::Jwt);
    of_child.0.task_id = task_id(3);
    let writes = Writes {
        tasks: vec![silent, task(3, Some(1))],
        sessions: vec![derived, heard, of_child],
        ..Writes::default()
    };
    seed(store, writes).await;
    assert_eq!(listed(0, 99, at(1)).await, [11, 12, 22]);
    assert_eq!(listed(0, 99, at(59)).await, [11, 12, 22]);
    assert_eq!(listed(0, 99, at(60)).await, [11, 12], "its task is silent");
    assert_eq!(in_doubt(0, 9).await, [21, 23]);
    assert_eq!(in_doubt(0, 1).await, [21]);
    assert_eq!(in_doubt(22, 9).await, [23]);
    let policy = cutoff(61, 12, Selector::Policy("p".into()), Block::No);
    let of_task = cutoff(62, 13, Selector::Task(task_id(2)), Block::No);
    let cuts = [policy, of_task].map(|cutoff| ActWrite::Cutoff(Box::new(cutoff)));
    seed(store, acts(cuts.into())).await;
    assert_eq!(listed(0, 99, at(1)).await, [12, 22]);
    assert_eq!(in_doubt(0, 9).await, [11, 21, 23]);
    let later = cutoff(63, 23, Selector::Task(task_id(2)), Block::No);
    seed(store, acts(vec![ActWrite::Cutoff(Box::new(later))])).await;
    assert_eq!(listed(0, 99, at(1)).await, [12]);
    assert_eq!(in_doubt(0, 9).await, [11, 21, 23]);
    let all = cutoff(64, 24, Selector::All(True), Block::No);
    seed(store, acts(vec![ActWrite::Cutoff(Box::new(all))])).await;
    assert!(listed(0, 99, at(1)).await.is_empty());
    assert!(in_doubt(0, 9).await.is_empty());
}

async fn what_the_store_cannot_hold_is_refused_and_nothing_of_it_stays(store: &Store) {
    let mut bad = session(11, 1, None);
    bad.kid = "nul \0".into();
    let mut lost = session(12, 77, None);
    lost.task_id = task_id(77);
    for session in [bad, lost] {
        let writes = Writes {
            tasks: vec![task(1, None)],
            leaves: vec![leaf(0)],
            sessions: vec![(session.clone(), None)],
            ..Writes::default()
        };
        let refused = append(store, &Needs::default(), &writes).await;
        // SQLite stores U+0000. The broker refuses it earlier, in the request.
        if session.kid.contains('\0') && store.kind() == "sqlite" {
            continue;
        }
        assert!(
            matches!(refused, Err(StoreError::Refused(_))),
            "{refused:?}"
        );
        if store.kind() == "postgres" {
            assert_eq!(store.task(task_id(1)).await.unwrap(), None);
            assert_eq!(store.leaf(0).await.unwrap(), None);
        }
    }
}
