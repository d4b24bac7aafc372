//! Statements of the work for other systems: deny lists of clouds, sinks of events.

use super::*;

/// Limits that accept every time that a case writes.
const FAR: BelievedTimes = BelievedTimes {
    due_at: Timestamp::MAX,
    lease_until: Timestamp::MAX,
};

cases! {
    ["put_deny_place" "know_deny_place" "nudge_deny_place" "ask_deny" "lock_deny_place" "list_waiting"
        "revocation_progress" "deny_room" "denied_sessions" "note_denied" "prune_denied"]
    async fn sessions_are_put_on_a_list_while_it_has_room_and_seen_on_it(store: &Store) {
        // The list holds four sessions for admins' revocations, three for the broker's, two for
        // ended tasks.
        let (target, other) = (deny_target("role"), deny_target("other"));
        for target in [&target, &other] {
            store.upsert_and_schedule_deny_policy(target, at(0)).await.unwrap();
        }
        let ask = |n: i64, until, wish| DenyRequest {
            session: session_id(n.unsigned_abs().into()), at: at(10 + n), keep_until: at(until), wish,
        };
        let over = DenyReason::Over;
        store.request_denial(&other, &ask(9, 100, over)).await.unwrap();
        for (n, until) in [(1, 100), (2, 200), (3, 300), (1, 900)] {
            store.request_denial(&target, &ask(n, until, over)).await.unwrap();
        }
        let standing = async |n| store.revocation_progress(session_id(n)).await.unwrap();
        let asked = RevocationProgress {
            requested_at: at(11), listed: true, written_at: None, read_at: None,
        };
        assert_eq!(standing(1).await, Some(asked));
        assert!(!standing(3).await.unwrap().listed);
        assert_eq!(standing(4).await, None);
        let listed = async |now| {
            let mut ids = store.denied_sessions(&target, at(now)).await.unwrap();
            ids.sort_unstable();
            let room = store.deny_room(&target, at(now)).await.unwrap();
            let expected = DenyRoom { listed: ids.len() as u64, failures: 0, is_short: false };
            assert_eq!(room, expected);
            ids
        };
        assert_eq!(listed(99).await, [session_id(1), session_id(2)]);
        assert_eq!(listed(100).await, [session_id(2)], "a second request does not keep it longer");

        // A session that did not fit gets the next free entry and keeps it.
        assert_eq!(store.list_waiting(&target, at(50)).await.unwrap(), []);
        assert_eq!(store.list_waiting(&target, at(101)).await.unwrap(), [session_id(3)]);
        assert!(standing(3).await.unwrap().listed);
        assert_eq!(listed(299).await, [session_id(3)]);
        assert_eq!(listed(300).await, []);

        let written = async |n| standing(n).await.unwrap().written_at;
        let note = async |holder, present: &[SessionId], now| {
            store.note_denied(&target, holder, present, at(now)).await.unwrap()
        };
        assert_eq!(note("a", &[session_id(1)], 19).await, 0);
        assert_eq!(written(1).await, None, "only the lease's holder may record a read");
        store.claim_deny_policies("a", at(19), at(900), 5).await.unwrap();
        assert_eq!(note("a", &[session_id(1), session_id(77)], 20).await, 1);
        assert_eq!(note("a", &[session_id(1), session_id(2)], 30).await, 1);
        assert_eq!((written(1).await, written(2).await), (Some(at(20)), Some(at(30))));
        assert_eq!(note("a", &[session_id(2)], 40).await, 0, "a session missing in the document is no longer written");
        assert_eq!((written(1).await, written(2).await), (None, Some(at(30))));
        note("a", &[session_id(1)], 150).await;
        assert_eq!((written(1).await, written(2).await), (None, None), "the first session's entry has expired");
        assert_eq!(written(9).await, None);

        assert_eq!(store.prune_denied(at(100), 9).await.unwrap(), 0);
        assert_eq!(store.prune_denied(at(101), 9).await.unwrap(), 2);
        assert_eq!((standing(1).await, standing(9).await), (None, None));
    }

    ["note_deny_wish" "ask_deny" "list_waiting" "unlist_unwritten"]
    async fn a_wish_is_raised_and_never_lowered_and_an_admins_comes_first(store: &Store) {
        let target = deny_target("role");
        store.upsert_and_schedule_deny_policy(&target, at(0)).await.unwrap();
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
        store.note_deny_wish(&target, &ask(8, DenyReason::Admin)).await.unwrap();
        assert_eq!(store.list_waiting(&target, at(20)).await.unwrap(), []);
        assert_eq!(store.revocation_progress(session_id(8)).await.unwrap(), None);
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
        assert_eq!(listed(20).await, [1, 2, 3, 4].map(session_id), "an admin's revocation keeps its priority");
        // One entry becomes free. The admin's session gets it, although it was requested after the
        // others and last with a lower wish.
        assert_eq!(store.list_waiting(&target, at(101)).await.unwrap(), [session_id(8)]);
        assert_eq!(listed(101).await, [2, 3, 4, 8].map(session_id));
    }

    ["adopt_denied"]
    async fn what_a_document_names_has_its_room_and_what_none_names_gives_way(store: &Store) {
        let target = deny_target("role");
        store.upsert_and_schedule_deny_policy(&target, at(0)).await.unwrap();
        let ask = |n: i64, wish| DenyRequest {
            session: session_id(n.unsigned_abs().into()), at: at(n), keep_until: at(300), wish,
        };
        for n in [1, 2] {
            store.request_denial(&target, &ask(n, DenyReason::Admin)).await.unwrap();
        }
        store.request_denial(&target, &ask(3, DenyReason::Unknown)).await.unwrap();
        let listed = async |now| {
            let mut ids = store.denied_sessions(&target, at(now)).await.unwrap();
            ids.sort_unstable();
            ids
        };
        let written = async |n| {
            let standing = store.revocation_progress(session_id(n)).await.unwrap();
            standing.unwrap().written_at
        };
        store.claim_deny_policies("a", at(10), at(900), 5).await.unwrap();
        store.note_denied(&target, "a", &[session_id(2)], at(10)).await.unwrap();
        // The document names the second session and three that the store does not know, and the
        // list holds four. The session that no document names is removed first, and an admin's
        // second.
        let named = [2, 51, 52, 50].map(session_id);
        let left = store.import_denied(&target, &named, at(20), at(700)).await.unwrap();
        assert_eq!(left, [session_id(3), session_id(1)]);
        assert_eq!(listed(20).await, [2, 50, 51, 52].map(session_id));
        assert_eq!((written(50).await, written(2).await), (Some(at(20)), Some(at(10))));
        assert_eq!(listed(699).await, [50, 51, 52].map(session_id));
        // A second import changes nothing. A fifth session in the document is denied already, so it
        // stays.
        assert_eq!(store.import_denied(&target, &named, at(30), at(800)).await.unwrap(), []);
        let left = store.import_denied(&target, &[session_id(53)], at(30), at(800)).await.unwrap();
        assert_eq!(left, []);
        assert_eq!(listed(30).await, [2, 50, 51, 52, 53].map(session_id));
        // The removed sessions wait until the list has a free entry.
        assert_eq!(store.list_waiting(&target, at(30)).await.unwrap(), []);
    }

    ["deny_place_short" "deny_place_fits" "short_deny_places"]
    async fn a_list_takes_no_more_than_its_back_end_has_room_for(store: &Store) {
        let target = deny_target("role");
        store.upsert_and_schedule_deny_policy(&target, at(0)).await.unwrap();
        let claimed = store.claim_deny_policies("a", at(1), at(900), 5).await.unwrap();
        assert_eq!(claimed[0].refused_at, None);
        assert_eq!(store.count_short_deny_policies().await.unwrap(), 0);
        store.mark_deny_policy_short(&claimed[0], 1, at(5)).await.unwrap();
        assert_eq!(store.count_short_deny_policies().await.unwrap(), 1);
        assert!(store.deny_room(&target, at(5)).await.unwrap().is_short);
        for n in [1, 2] {
            let ask = DenyRequest {
                session: session_id(n), at: at(2), keep_until: at(300), wish: DenyReason::Admin,
            };
            store.request_denial(&target, &ask).await.unwrap();
        }
        let listed = async || store.denied_sessions(&target, at(10)).await.unwrap();
        assert_eq!(listed().await, [session_id(1)]);
        let again = store.claim_deny_policies("a", at(900), at(990), 5).await.unwrap();
        assert_eq!(again[0].refused_at, Some(at(5)));
        store.mark_deny_policy_fits(&target).await.unwrap();
        assert_eq!(store.count_short_deny_policies().await.unwrap(), 0);
        assert_eq!(store.list_waiting(&target, at(10)).await.unwrap(), [session_id(2)]);
    }

    ["deny_places" "places_of_sessions"]
    async fn the_places_of_lists_and_of_sessions_that_live_are_found(store: &Store) {
        assert_eq!(store.deny_policy_targets().await.unwrap(), []);
        for name in ["two", "one"] {
            store.upsert_and_schedule_deny_policy(&deny_target(name), at(0)).await.unwrap();
        }
        assert_eq!(store.deny_policy_targets().await.unwrap(), ["one", "two"].map(deny_target));
        let made = Session { minter: MinterKind::Aws, ..session(11, 1, None) };
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

    ["others_live_at"]
    async fn sessions_of_another_resource_at_a_place_are_seen_while_they_live(store: &Store) {
        let made = session(11, 1, None);
        let target = DenyPolicyTarget {
            name: made.audience.clone(), minter: made.minter, ..deny_target("x")
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

    ["claim_deny_places" "next_deny_generation" "deny_place_done" "deny_place_failed" "blanket_deny"
        "nudge_deny_place" "note_blanket_deny"]
    async fn a_list_is_one_replicas_at_a_time(store: &Store) {
        let target = deny_target("role");
        store.upsert_and_schedule_deny_policy(&target, at(0)).await.unwrap();
        let claim = async |holder, now, until| {
            let claimed = store.claim_deny_policies(holder, at(now), at(until), 5).await.unwrap();
            claimed.into_iter().map(|claimed| (claimed.target, claimed.attempts)).collect::<Vec<_>>()
        };
        assert_eq!(claim("a", -1, 50).await, [], "not due yet");
        assert_eq!(claim("a", 0, 50).await, [(target.clone(), 0)]);
        assert_eq!(claim("b", 49, 90).await, []);
        let next = async |holder, standing, now| {
            store.next_deny_generation(&target, holder, standing, at(now)).await.unwrap()
        };
        assert_eq!((next("a", 0, 1).await, next("a", 1, 1).await), (Some(1), Some(2)));
        assert_eq!(next("a", 70, 1).await, Some(71), "greater than the number of the document in place");
        assert_eq!((next("b", 0, 1).await, next("a", 0, 50).await), (None, None));

        // Another replica schedules the list meanwhile: it is due at once, not at the holder's
        // time.
        store.schedule_deny_policy(&target, at(3)).await.unwrap();
        store.mark_deny_policy_reconciled(&target, "b", None, at(5), at(999)).await.unwrap();
        store.mark_deny_policy_reconciled(&target, "a", Some(at(4)), at(5), at(65)).await.unwrap();
        let deny = store.blanket_deny(&target).await.unwrap().unwrap();
        assert_eq!(
            (deny.issued_before, deny.written_at, deny.read_at),
            (at(4), at(5), Some(at(5)))
        );
        assert_eq!(claim("b", 5, 90).await, [(target.clone(), 0)]);
        store.mark_deny_policy_reconciled(&target, "b", Some(at(4)), at(8), at(65)).await.unwrap();
        let deny = store.blanket_deny(&target).await.unwrap().unwrap();
        assert_eq!((deny.written_at, deny.read_at), (at(5), Some(at(8))));
        assert_eq!(claim("a", 64, 99).await, []);
        assert_eq!(claim("a", 65, 99).await.len(), 1);
        // The same cutoff keeps its time, and another starts a new one; only the holder may record
        // it.
        store.note_blanket_deny(&target, "a", Some(at(4))).await.unwrap();
        store.note_blanket_deny(&target, "b", None).await.unwrap();
        assert_eq!(store.blanket_deny(&target).await.unwrap().unwrap().written_at, at(5));
        store.note_blanket_deny(&target, "a", None).await.unwrap();
        assert_eq!(store.blanket_deny(&target).await.unwrap(), None);
        store.mark_deny_policy_failed(&target, "b", at(66)).await.unwrap();
        store.mark_deny_policy_failed(&target, "a", at(80)).await.unwrap();
        store.schedule_deny_policy(&target, at(70)).await.unwrap();
        assert_eq!(claim("a", 79, 99).await, [], "after a failure, the pause still applies");
        assert_eq!(claim("a", 80, 99).await, [(target.clone(), 1)]);
        // The holder died: another replica takes over when the lease expires.
        assert_eq!(claim("b", 98, 150).await, []);
        let changed = DenyPolicyTarget { capacity: 9, ..target.clone() };
        store.upsert_and_schedule_deny_policy(&changed, at(98)).await.unwrap();
        assert_eq!(claim("b", 99, 150).await, [(changed, 1)]);
        store.mark_deny_policy_reconciled(&target, "b", None, at(100), at(200)).await.unwrap();
        assert_eq!(store.blanket_deny(&target).await.unwrap(), None);
    }

    ["register_export" "export_cursor" "claim_export" "advance_export" "release_export"
        "disable_export" "see_export"]
    async fn a_cursor_is_moved_by_whoever_has_its_lease_and_from_where_it_was(store: &Store) {
        let key = ExportKey { name: "siem".into(), origin: "broker.test/log".into() };
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
        let other = ExportKey { origin: "broker.test/log-2".into(), ..key.clone() };
        assert_eq!(store.export_cursor(&other).await.unwrap(), None);

        let claim = async |what: &str, holder: &str, now, until| {
            store.claim_export(&key, what, holder, at(now), at(until), FAR).await.unwrap()
        };
        assert_eq!(claim("one", "a", -1, 60).await, None, "not due yet");
        assert_eq!(claim("two", "a", 0, 60).await, None, "another sink has this name");
        assert_eq!(claim("one", "a", 0, 60).await, Some(7));
        assert_eq!(claim("one", "b", 59, 90).await, None);
        assert_eq!(claim("one", "a", 10, 70).await, Some(7), "the holder may claim it again");
        let advance = async |holder: &str, from, next, until| {
            store.advance_export(&key, holder, from, next, at(until)).await.unwrap()
        };
        assert!(!advance("b", 7, 8, 90).await);
        assert!(!advance("a", 6, 8, 90).await, "the cursor is not at that position");
        assert!(advance("a", 7, 12, 90).await);
        assert_eq!(cursor().await.next, 12);
        assert_eq!(claim("one", "b", 89, 150).await, None, "advancing extended the lease");
        // The holder is silent: another replica continues, and the first one's later writes are
        // ignored.
        assert_eq!(claim("one", "b", 90, 150).await, Some(12));
        assert!(!advance("a", 12, 13, 200).await);
        store.release_export(&key, "a", Some(at(999))).await.unwrap();
        assert_eq!(cursor().await.due_at, at(90), "unchanged since the claim");

        store.release_export(&key, "b", Some(at(100))).await.unwrap();
        assert_eq!((cursor().await.attempts, cursor().await.due_at), (1, at(100)));
        assert_eq!(claim("one", "a", 99, 150).await, None, "the pause still applies");
        assert_eq!(claim("one", "a", 100, 150).await, Some(12));
        store.release_export(&key, "a", Some(at(101))).await.unwrap();
        assert_eq!(cursor().await.attempts, 2);
        assert_eq!(claim("one", "b", 101, 150).await, Some(12));
        assert!(advance("b", 12, 13, 160).await);
        assert_eq!(cursor().await.attempts, 0);
        store.release_export(&key, "b", None).await.unwrap();
        assert_eq!((cursor().await.attempts, cursor().await.due_at), (0, at(101)));

        assert_eq!(claim("one", "a", 102, 150).await, Some(13));
        store.disable_export(&key, "zero", at(103)).await.unwrap();
        assert_eq!(cursor().await.disabled_at, None);
        store.disable_export(&key, "one", at(103)).await.unwrap();
        assert_eq!(cursor().await.disabled_at, Some(at(103)));
        assert_eq!(claim("one", "a", 500, 600).await, None, "a disabled sink is not claimed");
        // A changed registration keeps the position and ends the earlier claim.
        store.register_export(&key, "three", 0, at(500)).await.unwrap();
        assert_eq!(claim("three", "a", 500, 600).await, Some(13));
        store.register_export(&key, "two", 0, at(501)).await.unwrap();
        assert!(!advance("a", 13, 14, 600).await);
        assert_eq!(cursor().await, ExportCursor {
            registration: "two".into(),
            next: 13,
            due_at: at(501),
            attempts: 0,
            disabled_at: None,
            seen_at: at(501),
        });
        assert_eq!(claim("two", "a", 501, 600).await, Some(13));
    }

    ["claim_export" "take_over_export"]
    async fn what_a_wrong_clock_wrote_and_who_is_gone_keep_nobody_from_delivering(store: &Store) {
        let key = ExportKey { name: "siem".into(), origin: "broker.test/log".into() };
        let cursor = async || store.export_cursor(&key).await.unwrap().unwrap();
        // A clock that is an hour ahead wrote both the due time and the lease.
        store.register_export(&key, "one", 7, at(3_600)).await.unwrap();
        let claim = async |now, believed| {
            store.claim_export(&key, "one", "b", at(now), at(now + 36), believed).await.unwrap()
        };
        assert_eq!(claim(0, FAR).await, None, "without limits, the stored time is believed");
        let believed = |now| BelievedTimes { due_at: at(now + 900), lease_until: at(now + 36) };
        let by_a = store.claim_export(&key, "one", "a", at(3_600), at(3_636), believed(3_600)).await;
        assert_eq!(by_a.unwrap(), Some(7));
        assert_eq!(claim(2_699, believed(2_699)).await, Some(7), "no real pause or lease is that long");
        assert_eq!(cursor().await.due_at, at(2_699), "and the due time is corrected");
        store.release_export(&key, "b", None).await.unwrap();
        let by_a = store.claim_export(&key, "one", "a", at(2_700), at(2_736), believed(2_700)).await;
        assert_eq!(by_a.unwrap(), Some(7));
        assert_eq!(claim(2_700, believed(2_700)).await, None, "a lease of the greatest length is believed");

        let take = async |what: &str, now: i64| {
            let gone = at(now - 60);
            store.take_over_export(&key, what, at(now), gone, believed(now)).await.unwrap()
        };
        store.see_export(&key, "one", at(2_700)).await.unwrap();
        assert!(!take("two", 2_735).await, "the other sink was seen and has a lease");
        assert!(!take("two", 2_759).await, "the other sink was seen recently");
        assert!(!take("one", 2_760).await, "the sink has the cursor already");
        assert!(take("two", 2_760).await);
        assert!(!take("two", 2_900).await, "the sink has the cursor now");
        let taken = cursor().await;
        assert_eq!((taken.registration.as_str(), taken.next), ("two", 7));
        assert_eq!((taken.due_at, taken.seen_at, taken.disabled_at), (at(2_760), at(2_760), None));
        // A sighting dated far in the future, by a fast clock, is ignored.
        store.see_export(&key, "two", at(9_999)).await.unwrap();
        assert!(take("three", 2_761).await);
    }

    ["put_replica" "replicas" "forget_replicas"]
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
        assert_eq!(store.forget_replicas(at(131), at(140)).await.unwrap(), 1, "silent for too long");
        assert_eq!(seen(0, 200).await, std::slice::from_ref(&changed));
        assert_eq!(store.forget_replicas(at(0), at(139)).await.unwrap(), 1, "from the future");
        assert_eq!(seen(0, 200).await, []);
    }

    ["last_blanket_deny"]
    async fn the_last_cutoff_that_denies_every_earlier_session_of_a_place_is_found(store: &Store) {
        let blanket = |n, target: &str, committed| {
            let plain = cutoff(n, u64::try_from(n).unwrap(), Selector::Resource("r".into()), Block::No);
            let cutoff = Cutoff { deny_policy_target: Some(target.into()), committed_at: at(committed), ..plain.claimed().clone() };
            ActWrite::Cutoff(Box::new(SealedCutoff::seal(cutoff, &mac())))
        };
        let plain = ActWrite::Cutoff(Box::new(cutoff(4, 4, Selector::All(True), Block::No)));
        seed(store, acts(vec![blanket(1, "role", 10), blanket(2, "role", 20), blanket(3, "other", 30), plain])).await;
        let at_role = async |since| store.last_blanket_deny("role", at(since)).await.unwrap();
        assert_eq!((at_role(0).await, at_role(19).await, at_role(20).await), (Some(at(20)), Some(at(20)), None));
        assert_eq!(store.cutoff(CutoffId::from(uuid(1))).await.unwrap().unwrap().deny_policy_target.as_deref(), Some("role"));
    }
}
