//! Statements of the deny lists of clouds.

use super::*;

cases! {
    sessions_are_put_on_a_list_while_it_has_room_and_seen_on_it: "put_deny_place" "know_deny_place"
        "nudge_deny_place" "ask_deny" "lock_deny_place" "list_waiting" "revocation_progress"
        "deny_room" "denied_sessions" "note_denied" "prune_denied";
    a_wish_is_raised_and_never_lowered_and_an_admins_comes_first: "note_deny_wish" "ask_deny"
        "list_waiting" "unlist_unwritten";
    what_a_document_names_has_its_room_and_what_none_names_gives_way: "adopt_denied";
    a_list_takes_no_more_than_its_back_end_has_room_for: "deny_place_short" "deny_place_fits"
        "short_deny_places";
    the_places_of_lists_and_of_sessions_that_live_are_found: "deny_places" "places_of_sessions";
    sessions_of_another_resource_at_a_place_are_seen_while_they_live: "others_live_at";
    a_list_is_one_replicas_at_a_time: "claim_deny_places" "next_deny_generation" "deny_place_done"
        "deny_place_failed" "blanket_deny" "nudge_deny_place" "note_blanket_deny";
    the_last_cutoff_that_denies_every_earlier_session_of_a_place_is_found: "last_blanket_deny";
}

#[expect(clippy::too_many_lines, reason = "the steps of one case")]
async fn sessions_are_put_on_a_list_while_it_has_room_and_seen_on_it(store: &Store) {
    // The list holds four sessions for admins' revocations, three for the broker's, two for
    // ended tasks.
    let (target, other) = (deny_target("role"), deny_target("other"));
    for target in [&target, &other] {
        store
            .upsert_and_schedule_deny_policy(target, at(0))
            .await
            .unwrap();
    }
    let ask = |n: i64, until, wish| DenyRequest {
        session: session_id(n.unsigned_abs().into()),
        at: at(10 + n),
        keep_until: at(until),
        wish,
    };
    let over = DenyReason::Over;
    store
        .request_denial(&other, &ask(9, 100, over))
        .await
        .unwrap();
    for (n, until) in [(1, 100), (2, 200), (3, 300), (1, 900)] {
        store
            .request_denial(&target, &ask(n, until, over))
            .await
            .unwrap();
    }
    let standing = async |n| store.revocation_progress(session_id(n)).await.unwrap();
    let asked = RevocationProgress {
        requested_at: at(11),
        listed: true,
        written_at: None,
        read_at: None,
    };
    assert_eq!(standing(1).await, Some(asked));
    assert!(!standing(3).await.unwrap().listed);
    assert_eq!(standing(4).await, None);
    let listed = async |now| {
        let mut ids = store.denied_sessions(&target, at(now)).await.unwrap();
        ids.sort_unstable();
        let room = store.deny_room(&target, at(now)).await.unwrap();
        let expected = DenyRoom {
            listed: ids.len() as u64,
            failures: 0,
            is_short: false,
        };
        assert_eq!(room, expected);
        ids
    };
    assert_eq!(listed(99).await, [session_id(1), session_id(2)]);
    assert_eq!(
        listed(100).await,
        [session_id(2)],
        "a second request does not keep it longer"
    );

    // A session that did not fit gets the next free entry and keeps it.
    assert_eq!(store.list_waiting(&target, at(50)).await.unwrap(), []);
    assert_eq!(
        store.list_waiting(&target, at(101)).await.unwrap(),
        [session_id(3)]
    );
    assert!(standing(3).await.unwrap().listed);
    assert_eq!(listed(299).await, [session_id(3)]);
    assert_eq!(listed(300).await, []);

    let written = async |n| standing(n).await.unwrap().written_at;
    let note = async |holder, present: &[SessionId], now| {
        store
            .note_denied(&target, holder, present, at(now))
            .await
            .unwrap()
    };
    assert_eq!(note("a", &[session_id(1)], 19).await, 0);
    assert_eq!(
        written(1).await,
        None,
        "only the lease's holder may record a read"
    );
    store
        .claim_deny_policies("a", at(19), at(900), 5)
        .await
        .unwrap();
    assert_eq!(note("a", &[session_id(1), session_id(77)], 20).await, 1);
    assert_eq!(note("a", &[session_id(1), session_id(2)], 30).await, 1);
    assert_eq!(
        (written(1).await, written(2).await),
        (Some(at(20)), Some(at(30)))
    );
    assert_eq!(
        note("a", &[session_id(2)], 40).await,
        0,
        "a session missing in the document is no longer written"
    );
    assert_eq!((written(1).await, written(2).await), (None, Some(at(30))));
    note("a", &[session_id(1)], 150).await;
    assert_eq!(
        (written(1).await, written(2).await),
        (None, None),
        "the first session's entry has expired"
    );
    assert_eq!(written(9).await, None);

    assert_eq!(store.prune_denied(at(100), 9).await.unwrap(), 0);
    assert_eq!(store.prune_denied(at(101), 9).await.unwrap(), 2);
    assert_eq!((standing(1).await, standing(9).await), (None, None));
}

async fn a_wish_is_raised_and_never_lowered_and_an_admins_comes_first(store: &Store) {
    let target = deny_target("role");
    store
        .upsert_and_schedule_deny_policy(&target, at(0))
        .await
        .unwrap();
    let ask = |n: i64, wish| DenyRequest {
        session: session_id(n.unsigned_abs().into()),
        at: at(n),
        keep_until: at(if n == 1 { 100 } else { 900 }),
        wish,
    };
    let listed = async |now| {
        let mut ids = store.denied_sessions(&target, at(now)).await.unwrap();
        ids.sort_unstable();
        ids
    };
    let put = async |n, wish| store.request_denial(&target, &ask(n, wish)).await.unwrap();
    // A wish that is only recorded neither lists the session nor makes it wait.
    store
        .note_deny_wish(&target, &ask(8, DenyReason::Admin))
        .await
        .unwrap();
    assert_eq!(store.list_waiting(&target, at(20)).await.unwrap(), []);
    assert_eq!(
        store.revocation_progress(session_id(8)).await.unwrap(),
        None
    );
    for n in 1..=4 {
        put(n, DenyReason::Admin).await;
    }
    // The list is full. Each waiting session is requested with at most its recorded wish.
    put(7, DenyReason::Unknown).await;
    put(6, DenyReason::Over).await;
    put(8, DenyReason::Over).await;
    put(9, DenyReason::Over).await;
    assert_eq!(listed(20).await, [1, 2, 3, 4].map(session_id));
    // Sessions that no document names are removed, an admin's last; they wait as before.
    let left = store.unlist_unwritten(&target, 1, at(20)).await.unwrap();
    assert_eq!(left, [2, 3, 4].map(session_id));
    let again = store.list_waiting(&target, at(20)).await.unwrap();
    assert_eq!(again.len(), 3);
    assert_eq!(listed(20).await, [1, 2, 3, 4].map(session_id));
    store.unlist_unwritten(&target, 2, at(20)).await.unwrap();
    put(3, DenyReason::Over).await;
    put(4, DenyReason::Over).await;
    assert_eq!(
        listed(20).await,
        [1, 2, 3, 4].map(session_id),
        "an admin's revocation keeps its priority"
    );
    // One entry becomes free. The admin's session gets it, although it was requested after the
    // others and last with a lower wish.
    assert_eq!(
        store.list_waiting(&target, at(101)).await.unwrap(),
        [session_id(8)]
    );
    assert_eq!(listed(101).await, [2, 3, 4, 8].map(session_id));
}

async fn what_a_document_names_has_its_room_and_what_none_names_gives_way(store: &Store) {
    let target = deny_target("role");
    store
        .upsert_and_schedule_deny_policy(&target, at(0))
        .await
        .unwrap();
    let ask = |n: i64, wish| DenyRequest {
        session: session_id(n.unsigned_abs().into()),
        at: at(n),
        keep_until: at(300),
        wish,
    };
    for n in [1, 2] {
        store
            .request_denial(&target, &ask(n, DenyReason::Admin))
            .await
            .unwrap();
    }
    store
        .request_denial(&target, &ask(3, DenyReason::Unknown))
        .await
        .unwrap();
    let listed = async |now| {
        let mut ids = store.denied_sessions(&target, at(now)).await.unwrap();
        ids.sort_unstable();
        ids
    };
    let written = async |n| {
        let standing = store.revocation_progress(session_id(n)).await.unwrap();
        standing.unwrap().written_at
    };
    store
        .claim_deny_policies("a", at(10), at(900), 5)
        .await
        .unwrap();
    store
        .note_denied(&target, "a", &[session_id(2)], at(10))
        .await
        .unwrap();
    // The document names the second session and three that the store does not know, and the
    // list holds four. The session that no document names is removed first, and an admin's
    // second.
    let named = [2, 51, 52, 50].map(session_id);
    let left = store
        .import_denied(&target, &named, at(20), at(700))
        .await
        .unwrap();
    assert_eq!(left, [session_id(3), session_id(1)]);
    assert_eq!(listed(20).await, [2, 50, 51, 52].map(session_id));
    assert_eq!(
        (written(50).await, written(2).await),
        (Some(at(20)), Some(at(10)))
    );
    assert_eq!(listed(699).await, [50, 51, 52].map(session_id));
    // A second import changes nothing. A fifth session in the document is denied already, so it
    // stays.
    assert_eq!(
        store
            .import_denied(&target, &named, at(30), at(800))
            .await
            .unwrap(),
        []
    );
    let left = store
        .import_denied(&target, &[session_id(53)], at(30), at(800))
        .await
        .unwrap();
    assert_eq!(left, []);
    assert_eq!(listed(30).await, [2, 50, 51, 52, 53].map(session_id));
    // The removed sessions wait until the list has a free entry.
    assert_eq!(store.list_waiting(&target, at(30)).await.unwrap(), []);
}

async fn a_list_takes_no_more_than_its_back_end_has_room_for(store: &Store) {
    let target = deny_target("role");
    store
        .upsert_and_schedule_deny_policy(&target, at(0))
        .await
        .unwrap();
    let claimed = store
        .claim_deny_policies("a", at(1), at(900), 5)
        .await
        .unwrap();
    assert_eq!(claimed[0].refused_at, None);
    assert_eq!(store.count_short_deny_policies().await.unwrap(), 0);
    store
        .mark_deny_policy_short(&claimed[0], 1, at(5))
        .await
        .unwrap();
    assert_eq!(store.count_short_deny_policies().await.unwrap(), 1);
    assert!(store.deny_room(&target, at(5)).await.unwrap().is_short);
    for n in [1, 2] {
        let ask = DenyRequest {
            session: session_id(n),
            at: at(2),
            keep_until: at(300),
            wish: DenyReason::Admin,
        };
        store.request_denial(&target, &ask).await.unwrap();
    }
    let listed = async || store.denied_sessions(&target, at(10)).await.unwrap();
    assert_eq!(listed().await, [session_id(1)]);
    let again = store
        .claim_deny_policies("a", at(900), at(990), 5)
        .await
        .unwrap();
    assert_eq!(again[0].refused_at, Some(at(5)));
    store.mark_deny_policy_fits(&target).await.unwrap();
    assert_eq!(store.count_short_deny_policies().await.unwrap(), 0);
    assert_eq!(
        store.list_waiting(&target, at(10)).await.unwrap(),
        [session_id(2)]
    );
}

async fn the_places_of_lists_and_of_sessions_that_live_are_found(store: &Store) {
    assert_eq!(store.deny_policy_targets().await.unwrap(), []);
    for name in ["two", "one"] {
        store
            .upsert_and_schedule_deny_policy(&deny_target(name), at(0))
            .await
            .unwrap();
    }
    assert_eq!(
        store.deny_policy_targets().await.unwrap(),
        ["one", "two"].map(deny_target)
    );
    let made = Session {
        minter: MinterKind::Aws,
        ..session(11, 1, None)
    };
    let writes = Writes {
        tasks: vec![task(1, None)],
        sessions: vec![(made.clone(), None), (session(12, 1, None), None)],
        ..Writes::default()
    };
    seed(store, writes).await;
    let expected = SessionGroup {
        minter: made.minter,
        audience: made.audience.clone(),
        resource: made.resource.clone(),
        generation: made.generation,
    };
    let found = async |now| store.external_session_groups(now).await.unwrap();
    assert_eq!(found(at(0)).await, [expected]);
    assert_eq!(found(made.expires_at).await, []);
}

async fn sessions_of_another_resource_at_a_place_are_seen_while_they_live(store: &Store) {
    let made = session(11, 1, None);
    let target = DenyPolicyTarget {
        name: made.audience.clone(),
        minter: made.minter,
        ..deny_target("x")
    };
    let others = async |target: &DenyPolicyTarget, resource: &str, now| {
        store.others_live_at(target, resource, now).await.unwrap()
    };
    assert!(!others(&target, "other", at(0)).await);
    let writes = Writes {
        tasks: vec![task(1, None)],
        sessions: vec![(made.clone(), None)],
        ..Writes::default()
    };
    seed(store, writes).await;
    assert!(others(&target, "other", at(0)).await);
    assert!(!others(&target, &made.resource, at(0)).await);
    assert!(!others(&deny_target("elsewhere"), "other", at(0)).await);
    assert!(!others(&target, "other", made.expires_at).await);
}

#[expect(clippy::too_many_lines, reason = "the steps of one case")]
async fn a_list_is_one_replicas_at_a_time(store: &Store) {
    let target = deny_target("role");
    store
        .upsert_and_schedule_deny_policy(&target, at(0))
        .await
        .unwrap();
    let claim = async |holder, now, until| {
        let claimed = store
            .claim_deny_policies(holder, at(now), at(until), 5)
            .await
            .unwrap();
        claimed
            .into_iter()
            .map(|claimed| (claimed.target, claimed.attempts))
            .collect::<Vec<_>>()
    };
    assert_eq!(claim("a", -1, 50).await, [], "not due yet");
    assert_eq!(claim("a", 0, 50).await, [(target.clone(), 0)]);
    assert_eq!(claim("b", 49, 90).await, []);
    let next = async |holder, standing, now| {
        store
            .next_deny_generation(&target, holder, standing, at(now))
            .await
            .unwrap()
    };
    assert_eq!(
        (next("a", 0, 1).await, next("a", 1, 1).await),
        (Some(1), Some(2))
    );
    assert_eq!(
        next("a", 70, 1).await,
        Some(71),
        "greater than the number of the document in place"
    );
    assert_eq!(
        (next("b", 0, 1).await, next("a", 0, 50).await),
        (None, None)
    );

    // Another replica schedules the list meanwhile: it is due at once, not at the holder's
    // time.
    store.schedule_deny_policy(&target, at(3)).await.unwrap();
    store
        .mark_deny_policy_reconciled(&target, "b", None, at(5), at(999))
        .await
        .unwrap();
    store
        .mark_deny_policy_reconciled(&target, "a", Some(at(4)), at(5), at(65))
        .await
        .unwrap();
    let deny = store.blanket_deny(&target).await.unwrap().unwrap();
    assert_eq!(
        (deny.issued_before, deny.written_at, deny.read_at),
        (at(4), at(5), Some(at(5)))
    );
    assert_eq!(claim("b", 5, 90).await, [(target.clone(), 0)]);
    store
        .mark_deny_policy_reconciled(&target, "b", Some(at(4)), at(8), at(65))
        .await
        .unwrap();
    let deny = store.blanket_deny(&target).await.unwrap().unwrap();
    assert_eq!((deny.written_at, deny.read_at), (at(5), Some(at(8))));
    assert_eq!(claim("a", 64, 99).await, []);
    assert_eq!(claim("a", 65, 99).await.len(), 1);
    // The same cutoff keeps its time, and another starts a new one; only the holder may record
    // it.
    store
        .note_blanket_deny(&target, "a", Some(at(4)))
        .await
        .unwrap();
    store.note_blanket_deny(&target, "b", None).await.unwrap();
    assert_eq!(
        store
            .blanket_deny(&target)
            .await
            .unwrap()
            .unwrap()
            .written_at,
        at(5)
    );
    store.note_blanket_deny(&target, "a", None).await.unwrap();
    assert_eq!(store.blanket_deny(&target).await.unwrap(), None);
    store
        .mark_deny_policy_failed(&target, "b", at(66))
        .await
        .unwrap();
    store
        .mark_deny_policy_failed(&target, "a", at(80))
        .await
        .unwrap();
    store.schedule_deny_policy(&target, at(70)).await.unwrap();
    assert_eq!(
        claim("a", 79, 99).await,
        [],
        "after a failure, the pause still applies"
    );
    assert_eq!(claim("a", 80, 99).await, [(target.clone(), 1)]);
    // The holder died: another replica takes over when the lease expires.
    assert_eq!(claim("b", 98, 150).await, []);
    let changed = DenyPolicyTarget {
        capacity: 9,
        ..target.clone()
    };
    store
        .upsert_and_schedule_deny_policy(&changed, at(98))
        .await
        .unwrap();
    assert_eq!(claim("b", 99, 150).await, [(changed, 1)]);
    store
        .mark_deny_policy_reconciled(&target, "b", None, at(100), at(200))
        .await
        .unwrap();
    assert_eq!(store.blanket_deny(&target).await.unwrap(), None);
}

async fn the_last_cutoff_that_denies_every_earlier_session_of_a_place_is_found(store: &Store) {
    let blanket = |n, target: &str, committed| {
        let plain = cutoff(
            n,
            u64::try_from(n).unwrap(),
            Selector::Resource("r".into()),
            Block::No,
        );
        let cutoff = Cutoff {
            deny_policy_target: Some(target.into()),
            committed_at: at(committed),
            ..plain.claimed().clone()
        };
        ActWrite::Cutoff(Box::new(SealedCutoff::seal(cutoff, &mac())))
    };
    let plain = ActWrite::Cutoff(Box::new(cutoff(4, 4, Selector::All(True), Block::No)));
    seed(
        store,
        acts(vec![
            blanket(1, "role", 10),
            blanket(2, "role", 20),
            blanket(3, "other", 30),
            plain,
        ]),
    )
    .await;
    let at_role = async |since| store.last_blanket_deny("role", at(since)).await.unwrap();
    assert_eq!(
        (at_role(0).await, at_role(19).await, at_role(20).await),
        (Some(at(20)), Some(at(20)), None)
    );
    assert_eq!(
        store
            .cutoff(CutoffId::from(uuid(1)))
            .await
            .unwrap()
            .unwrap()
            .deny_policy_target
            .as_deref(),
        Some("role")
    );
}
