//! Statements of sinks of events and of replicas.

use super::*;

/// Limits that accept every time that a case writes.
const FAR: BelievedTimes = BelievedTimes {
    due_at: Timestamp::MAX,
    lease_until: Timestamp::MAX,
};

cases! {
    a_cursor_is_moved_by_whoever_has_its_lease_and_from_where_it_was: "register_export"
        "export_cursor" "claim_export" "advance_export" "release_export" "disable_export"
        "see_export";
    what_a_wrong_clock_wrote_and_who_is_gone_keep_nobody_from_delivering: "claim_export"
        "take_over_export";
    a_replica_is_known_for_as_long_as_it_describes_itself: "put_replica" "replicas"
        "forget_replicas";
}

#[expect(clippy::too_many_lines, reason = "the steps of one case")]
async fn a_cursor_is_moved_by_whoever_has_its_lease_and_from_where_it_was(store: &Store) {
    let key = ExportKey {
        name: "siem".into(),
        origin: "broker.test/log".into(),
    };
    let cursor = async || store.export_cursor(&key).await.unwrap().unwrap();
    assert_eq!(store.export_cursor(&key).await.unwrap(), None);
    store.register_export(&key, "one", 7, at(0)).await.unwrap();
    // Another replica, which sees a longer log, registers the same sink.
    store.register_export(&key, "one", 9, at(5)).await.unwrap();
    let begun = ExportCursor {
        registration: "one".into(),
        next: 7,
        due_at: at(0),
        attempts: 0,
        disabled_at: None,
        seen_at: at(0),
    };
    assert_eq!(cursor().await, begun);
    store.see_export(&key, "two", at(6)).await.unwrap();
    assert_eq!(cursor().await, begun, "another sink has this name");
    store.see_export(&key, "one", at(6)).await.unwrap();
    assert_eq!(cursor().await.seen_at, at(6));
    let other = ExportKey {
        origin: "broker.test/log-2".into(),
        ..key.clone()
    };
    assert_eq!(store.export_cursor(&other).await.unwrap(), None);

    let claim = async |what: &str, holder: &str, now, until| {
        store
            .claim_export(&key, what, holder, at(now), at(until), FAR)
            .await
            .unwrap()
    };
    assert_eq!(claim("one", "a", -1, 60).await, None, "not due yet");
    assert_eq!(
        claim("two", "a", 0, 60).await,
        None,
        "another sink has this name"
    );
    assert_eq!(claim("one", "a", 0, 60).await, Some(7));
    assert_eq!(claim("one", "b", 59, 90).await, None);
    assert_eq!(
        claim("one", "a", 10, 70).await,
        Some(7),
        "the holder may claim it again"
    );
    let advance = async |holder: &str, from, next, until| {
        store
            .advance_export(&key, holder, from, next, at(until))
            .await
            .unwrap()
    };
    assert!(!advance("b", 7, 8, 90).await);
    assert!(
        !advance("a", 6, 8, 90).await,
        "the cursor is not at that position"
    );
    assert!(advance("a", 7, 12, 90).await);
    assert_eq!(cursor().await.next, 12);
    assert_eq!(
        claim("one", "b", 89, 150).await,
        None,
        "advancing extended the lease"
    );
    // The holder is silent: another replica continues, and the first one's later writes are
    // ignored.
    assert_eq!(claim("one", "b", 90, 150).await, Some(12));
    assert!(!advance("a", 12, 13, 200).await);
    store
        .release_export(&key, "a", Some(at(999)))
        .await
        .unwrap();
    assert_eq!(cursor().await.due_at, at(90), "unchanged since the claim");

    store
        .release_export(&key, "b", Some(at(100)))
        .await
        .unwrap();
    assert_eq!(
        (cursor().await.attempts, cursor().await.due_at),
        (1, at(100))
    );
    assert_eq!(
        claim("one", "a", 99, 150).await,
        None,
        "the pause still applies"
    );
    assert_eq!(claim("one", "a", 100, 150).await, Some(12));
    store
        .release_export(&key, "a", Some(at(101)))
        .await
        .unwrap();
    assert_eq!(cursor().await.attempts, 2);
    assert_eq!(claim("one", "b", 101, 150).await, Some(12));
    assert!(advance("b", 12, 13, 160).await);
    assert_eq!(cursor().await.attempts, 0);
    store.release_export(&key, "b", None).await.unwrap();
    assert_eq!(
        (cursor().await.attempts, cursor().await.due_at),
        (0, at(101))
    );

    assert_eq!(claim("one", "a", 102, 150).await, Some(13));
    store.disable_export(&key, "zero", at(103)).await.unwrap();
    assert_eq!(cursor().await.disabled_at, None);
    store.disable_export(&key, "one", at(103)).await.unwrap();
    assert_eq!(cursor().await.disabled_at, Some(at(103)));
    assert_eq!(
        claim("one", "a", 500, 600).await,
        None,
        "a disabled sink is not claimed"
    );
    // A changed registration keeps the position and ends the earlier claim.
    store
        .register_export(&key, "three", 0, at(500))
        .await
        .unwrap();
    assert_eq!(claim("three", "a", 500, 600).await, Some(13));
    store
        .register_export(&key, "two", 0, at(501))
        .await
        .unwrap();
    assert!(!advance("a", 13, 14, 600).await);
    assert_eq!(
        cursor().await,
        ExportCursor {
            registration: "two".into(),
            next: 13,
            due_at: at(501),
            attempts: 0,
            disabled_at: None,
            seen_at: at(501),
        }
    );
    assert_eq!(claim("two", "a", 501, 600).await, Some(13));
}

async fn what_a_wrong_clock_wrote_and_who_is_gone_keep_nobody_from_delivering(store: &Store) {
    let key = ExportKey {
        name: "siem".into(),
        origin: "broker.test/log".into(),
    };
    let cursor = async || store.export_cursor(&key).await.unwrap().unwrap();
    // A clock that is an hour ahead wrote both the due time and the lease.
    store
        .register_export(&key, "one", 7, at(3_600))
        .await
        .unwrap();
    let claim = async |now, believed| {
        store
            .claim_export(&key, "one", "b", at(now), at(now + 36), believed)
            .await
            .unwrap()
    };
    assert_eq!(
        claim(0, FAR).await,
        None,
        "without limits, the stored time is believed"
    );
    let believed = |now| BelievedTimes {
        due_at: at(now + 900),
        lease_until: at(now + 36),
    };
    let by_a = store
        .claim_export(&key, "one", "a", at(3_600), at(3_636), believed(3_600))
        .await;
    assert_eq!(by_a.unwrap(), Some(7));
    assert_eq!(
        claim(2_699, believed(2_699)).await,
        Some(7),
        "no real pause or lease is that long"
    );
    assert_eq!(
        cursor().await.due_at,
        at(2_699),
        "and the due time is corrected"
    );
    store.release_export(&key, "b", None).await.unwrap();
    let by_a = store
        .claim_export(&key, "one", "a", at(2_700), at(2_736), believed(2_700))
        .await;
    assert_eq!(by_a.unwrap(), Some(7));
    assert_eq!(
        claim(2_700, believed(2_700)).await,
        None,
        "a lease of the greatest length is believed"
    );

    let take = async |what: &str, now: i64| {
        let gone = at(now - 60);
        store
            .take_over_export(&key, what, at(now), gone, believed(now))
            .await
            .unwrap()
    };
    store.see_export(&key, "one", at(2_700)).await.unwrap();
    assert!(
        !take("two", 2_735).await,
        "the other sink was seen and has a lease"
    );
    assert!(
        !take("two", 2_759).await,
        "the other sink was seen recently"
    );
    assert!(!take("one", 2_760).await, "the sink has the cursor already");
    assert!(take("two", 2_760).await);
    assert!(!take("two", 2_900).await, "the sink has the cursor now");
    let taken = cursor().await;
    assert_eq!((taken.registration.as_str(), taken.next), ("two", 7));
    assert_eq!(
        (taken.due_at, taken.seen_at, taken.disabled_at),
        (at(2_760), at(2_760), None)
    );
    // A sighting dated far in the future, by a fast clock, is ignored.
    store.see_export(&key, "two", at(9_999)).await.unwrap();
    assert!(take("three", 2_761).await);
}

async fn a_replica_is_known_for_as_long_as_it_describes_itself(store: &Store) {
    let row = |name: &str, endpoints: &str, seen| ReplicaRow {
        name: name.into(),
        endpoints: EndpointsDigest(endpoints.into()),
        seen_at: at(seen),
    };
    let (one, two) = (row("a", "sha256:1", 100), row("b", "sha256:2", 130));
    for row in [&two, &one] {
        store.put_replica(row).await.unwrap();
    }
    let seen = async |from, until| store.replicas(at(from), at(until)).await.unwrap();
    assert_eq!(seen(100, 130).await, [one.clone(), two.clone()]);
    assert_eq!(seen(101, 130).await, std::slice::from_ref(&two));
    assert_eq!(seen(100, 129).await, std::slice::from_ref(&one));
    let changed = row("a", "sha256:2", 140);
    store.put_replica(&changed).await.unwrap();
    assert_eq!(seen(0, 200).await, [changed.clone(), two]);
    assert_eq!(
        store.forget_replicas(at(131), at(140)).await.unwrap(),
        1,
        "silent for too long"
    );
    assert_eq!(seen(0, 200).await, std::slice::from_ref(&changed));
    assert_eq!(
        store.forget_replicas(at(0), at(139)).await.unwrap(),
        1,
        "from the future"
    );
    assert_eq!(seen(0, 200).await, []);
}
