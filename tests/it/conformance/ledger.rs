//! Statements of the log, and of tables that change only together with a leaf.

use super::*;

cases! {
    ["ledger_lock" "ledger_enter" "ledger_write" "head" "leaf_hashes" "leaves" "decision_index" "decisions" "openings" "committed" "newest_leaf_at" "confirm"]
    async fn a_batch_is_read_back_as_it_was_written(store: &Store) {
        assert_eq!(store.head(&head_seal()).await.unwrap(), None);
        let first = seen(store, Needs::default()).await;
        assert_eq!((first.head, first.activation, first.hashes.len()), (None, None, 0));
        let writes = Writes {
            leaves: (0..3).map(leaf).collect(),
            head: Some(sealed(3, 1)),
            ..Writes::default()
        };
        seed(store, writes).await;
        assert_eq!(store.head(&head_seal()).await.unwrap(), Some(head(3)));
        assert_eq!(store.leaf_hashes(1, 10).await.unwrap(), vec![leaf(1).hash, leaf(2).hash]);
        assert_eq!(store.leaf_hashes(3, 10).await.unwrap(), vec![]);
        assert_eq!(store.leaf_hashes(u64::MAX, u64::MAX).await.unwrap(), vec![]);
        let leaves = store.leaves(0, 2).await.unwrap();
        assert_eq!(leaves.len(), 2);
        assert_eq!(leaves[1].body.as_deref(), Some(&b"leaf 1"[..]));
        assert_eq!((leaves[1].hash, leaves[1].at), (leaf(1).hash, at(1)));
        assert_eq!(leaves[1].subject.as_deref(), Some("dev:a"));
        assert_eq!(store.leaf(3).await.unwrap(), None);
        assert_eq!(store.decision_index(uuid(502).into()).await.unwrap(), Some(2));
        assert_eq!(store.decision_index(DecisionId::from(uuid(9))).await.unwrap(), None);
        let decisions = store.decisions(1, 9, 5).await.unwrap();
        let found: Vec<_> = decisions.iter().map(|row| (row.index, row.hash, row.at)).collect();
        assert_eq!(found, [(1, leaf(1).hash, at(1)), (2, leaf(2).hash, at(2))]);
        let input = decisions[1].input.as_ref().unwrap();
        assert_eq!((input.bytes.as_slice(), decisions[1].body.as_deref()), (&b"input"[..], Some(&b"leaf 2"[..])));
        assert_eq!(store.decisions(0, 9, 1).await.unwrap()[0].index, 0);
        assert_eq!(store.decisions(3, 9, 5).await.unwrap(), vec![]);
        assert_eq!(store.decisions(0, 2, 5).await.unwrap().len(), 2, "no decision beyond the head");
        let openings = store.openings(2).await.unwrap();
        assert_eq!(openings.input.unwrap().bytes, b"input");
        assert_eq!((openings.purpose, store.openings(99).await.unwrap().input), (None, None));
        let view = seen(store, Needs { hashes_from: 1, ..Needs::default() }).await;
        assert_eq!((view.head, view.hashes), (Some(sealed(3, 1)), vec![leaf(1).hash, leaf(2).hash]));
        assert_eq!((view.newest_at, store.newest_leaf_at().await.unwrap()), (Some(at(2)), Some(at(2))));
        assert_eq!(view.clock.is_some(), store.kind() == "postgres");

        let mut connection = store.ledger_connection().await.unwrap();
        assert!(connection.committed(&sealed(3, 1)).await.unwrap());
        assert!(!connection.committed(&sealed(3, 2)).await.unwrap());
        assert_eq!(connection.confirmed_head().await.unwrap(), Some(sealed(3, 1)));
        connection.enter(&Needs::default()).await.unwrap();
        connection.confirm().await.unwrap();
    }

    ["tile" "tile_roots"]
    async fn full_tiles_are_found_by_level_and_place(store: &Store) {
        let tile = |level, index| Tile { level, index, hashes: vec![hash(index); 256], root: hash(index + 40) };
        seed(store, Writes { tiles: vec![tile(0, 0), tile(0, 1), tile(1, 0)], ..Writes::default() }).await;
        assert_eq!(store.tile(0, 1).await.unwrap(), Some(vec![hash(1); 256]));
        assert_eq!(store.tile(2, 0).await.unwrap(), None);
        assert_eq!(store.tile_roots(0, 0, 10).await.unwrap(), vec![hash(40), hash(41)]);
        assert_eq!(store.tile_roots(0, 1, 1).await.unwrap(), vec![hash(41)]);
        let again = append(store, &Needs::default(), &Writes { tiles: vec![tile(0, 1)], ..Writes::default() }).await;
        assert!(matches!(again, Err(StoreError::Refused(_))), "a tile is written once");
    }

    ["prune_one_time" "note_forgotten" "forgotten"]
    async fn evidence_is_used_once_and_forgotten_after_its_time(store: &Store) {
        store.claim(StoreMode::Dev, "dev.local/log", at(1)).await.unwrap();
        let once = |n: u8, seconds| OneTime { must_be_new: false, key: [n; 32], binding: (n == 2).then_some([9; 32]), issued_at: at(0), expires_at: at(seconds) };
        seed(store, Writes { one_time: vec![once(1, 10), once(2, 20)], ..Writes::default() }).await;
        let view = seen(store, Needs { one_time: vec![[1; 32], [2; 32], [3; 32]], ..Needs::default() }).await;
        assert_eq!(view.used, HashMap::from([([1; 32], None), ([2; 32], Some(vec![9; 32]))]));
        let twice = append(store, &Needs::default(), &Writes { one_time: vec![once(1, 10)], ..Writes::default() }).await;
        assert!(matches!(twice, Err(StoreError::Refused(_))));
        assert_eq!(store.prune_one_time(at(10), 10).await.unwrap(), 0, "evidence is kept during its last instant");
        let forgotten = async || seen(store, Needs::default()).await.forgotten;
        assert_eq!(forgotten().await, None);
        assert_eq!(store.prune_one_time(at(11), 10).await.unwrap(), 1);
        assert_eq!(forgotten().await, Some(at(10)), "the latest expiry of a deleted use");
        assert_eq!(store.prune_one_time(at(99), 0).await.unwrap(), 0);
        assert_eq!(forgotten().await, Some(at(20)), "noted before the rows are deleted");
        assert_eq!(store.prune_one_time(at(99), 9).await.unwrap(), 1);
        assert_eq!(store.prune_one_time(at(999), 9).await.unwrap(), 0);
        assert_eq!(forgotten().await, Some(at(20)));
        assert_eq!(store.forgotten().await.unwrap(), Some(at(20)));
        // Accepting a time keeps a mark that is not later than it, and sets a later mark apart.
        for (accepted, index, left, apart) in [(20, 7_u64, Some(at(20)), None), (19, 8, None, Some(at(20)))] {
            let cutoff = cutoff(61 + u128::from(index), index, Selector::IssuedAfter(at(accepted)), Block::Until(at(99_999)));
            let act = ActWrite::TimeAccepted { cutoff: Box::new(cutoff), accepted: at(accepted) };
            seed(store, acts(vec![act])).await;
            let view = seen(store, Needs::default()).await;
            assert_eq!((view.forgotten, view.forgotten_accepted), (left, apart));
        }
    }

    ["cutoff" "cutoffs" "list_cutoffs" "changed_cutoffs" "write_cutoff" "write_lift" "remac_cutoff" "prune_cutoffs"]
    async fn a_cutoff_is_learnt_lifted_once_and_kept_while_it_matters(store: &Store) {
        let held = cutoff(61, 3, Selector::All(True), Block::UntilLifted);
        let timed = cutoff(62, 4, Selector::Workload("dev:a".to_owned().try_into().unwrap()), Block::Until(at(40)));
        let gone = cutoff(63, 5, Selector::Policy("p".into()), Block::No);
        let write = |one: &SealedCutoff| ActWrite::Cutoff(Box::new(one.clone()));
        seed(store, acts(vec![write(&held), write(&timed), write(&gone)])).await;
        let id = held.claimed().id;
        assert_eq!(store.cutoff(id).await.unwrap().as_ref(), Some(held.claimed()));
        assert_eq!(store.cutoffs(2).await.unwrap(), [gone.clone(), timed.clone()], "newest first");
        let listed = async |filter: CutoffFilter| {
            let listed = store.list_cutoffs(&filter).await.unwrap();
            listed.iter().map(|one| one.index).collect::<Vec<u64>>()
        };
        let all = CutoffFilter { limit: 9, ..CutoffFilter::default() };
        assert_eq!(listed(all.clone()).await, [5, 4, 3], "newest first");
        assert_eq!(listed(CutoffFilter { blocks_at: Some(at(39)), ..all.clone() }).await, [4, 3]);
        assert_eq!(listed(CutoffFilter { blocks_at: Some(at(40)), ..all.clone() }).await, [3]);
        assert_eq!(listed(CutoffFilter { before: Some(5), limit: 1, ..all.clone() }).await, [4]);
        let policy = Some(Selector::Policy("p".into()));
        assert_eq!(listed(CutoffFilter { selector: policy, ..all }).await, [5]);
        let later: Vec<u64> = store.cutoffs_after(3).await.unwrap().iter().map(|one| one.index).collect();
        assert_eq!(later, [4, 5], "cutoffs after the leaf, without the leaf's own");
        let changed = |from| async move { seen(store, Needs { cutoffs_from: from, ..Needs::default() }).await.cutoffs };
        assert_eq!(changed(4).await, [timed.clone(), gone.clone()]);

        assert_eq!(store.prune_cutoffs(at(3), at(39), 9).await.unwrap(), 1, "a cutoff that blocks is kept");
        assert_eq!(store.prune_cutoffs(at(2), at(99), 9).await.unwrap(), 0, "a cutoff that may still end sessions is kept");
        let lifted_by = |index| {
            let lifted = Cutoff { lifted_index: Some(index), ..held.claimed().clone() };
            SealedCutoff::seal(lifted, &mac())
        };
        let lifted = lifted_by(9);
        seed(store, acts(vec![ActWrite::Lift(Box::new(lifted.clone()))])).await;
        assert_eq!(changed(5).await, std::slice::from_ref(&lifted), "a lift counts as a change");
        seed(store, acts(vec![ActWrite::Lift(Box::new(lifted_by(12)))])).await;
        assert_eq!(store.cutoff(id).await.unwrap().as_ref(), Some(lifted.claimed()), "once");

        let renewed = SealedCutoff::seal(lifted.claimed().clone(), &newer_mac());
        assert!(!store.remac_cutoff(id, held.mac(), renewed.mac()).await.unwrap(), "the row changed in between");
        assert!(store.remac_cutoff(id, lifted.mac(), renewed.mac()).await.unwrap());
        assert_eq!(store.cutoffs(9).await.unwrap().last(), Some(&renewed));
        assert_eq!(store.prune_cutoffs(at(3), at(41), 9).await.unwrap(), 2);
    }

    ["generations_since"]
    async fn what_decided_at_some_time_since_is_found(store: &Store) {
        let digests = [1, 2, 3].map(|n| GenerationDigest::new([n; 32]));
        assert_eq!(store.generations_since(at(0)).await.unwrap(), []);
        let [one, two, three] = digests;
        let activate = |index, digest, when| ActWrite::Activation {
            sealed: SealedActivation::seal(index, digest, &mac()),
            document: b"x".as_slice().into(),
            by: "x".into(),
            at: at(when),
        };
        let all = vec![activate(4, one, 10), activate(8, two, 20), activate(9, one, 30), activate(12, three, 40)];
        seed(store, acts(all)).await;
        let since = async |when| {
            let mut found = store.generations_since(at(when)).await.unwrap();
            found.sort_unstable();
            found
        };
        assert_eq!(since(5).await, [one, two, three]);
        assert_eq!(since(20).await, [one, two, three], "includes the generation that was active at that time");
        assert_eq!(since(30).await, [one, three]);
        assert_eq!(since(99).await, [three]);
    }

    ["write_generation" "generation" "active_generation" "write_activation" "remac_activation"]
    async fn the_newest_activation_decides(store: &Store) {
        assert_eq!(store.active_generation().await.unwrap(), None);
        let (one, two) = (GenerationDigest::new([1; 32]), GenerationDigest::new([2; 32]));
        let activate = |index, digest, body: &'static [u8]| ActWrite::Activation {
            sealed: SealedActivation::seal(index, digest, &mac()),
            document: body.into(),
            by: "x".into(),
            at: at(1),
        };
        seed(store, acts(vec![activate(3, one, b"one"), activate(4, one, b"new"), activate(8, two, b"two")])).await;
        assert_eq!(store.generation(one).await.unwrap().unwrap(), b"one", "a stored generation is not replaced");
        assert_eq!(store.generation(GenerationDigest::new([3; 32])).await.unwrap(), None);
        let active = store.active_generation().await.unwrap().unwrap();
        assert_eq!((active.sealed.open(&mac()).unwrap(), active.sealed.index()), (two, 8));
        assert_eq!(seen(store, Needs::default()).await.activation, Some(active.sealed.clone()));
        assert!(active.sealed.open(&SealingKeys::parse(&KEYS[..1]).unwrap().mac("another log")).is_err());
        let old = active.sealed.mac();
        store.remac_activation(8, &[7; 32], &[9; 32]).await.unwrap();
        assert_eq!(store.active_generation().await.unwrap().unwrap().sealed, active.sealed);
        store.remac_activation(8, old, &[9; 32]).await.unwrap();
        assert_eq!(store.active_generation().await.unwrap().unwrap().sealed.mac(), [9; 32]);
    }

    ["signing_keys" "write_signing_key" "reseal_key"]
    async fn a_signing_key_is_kept_sealed_and_resealed_by_comparison(store: &Store) {
        let key = SigningKeyRow {
            kid: "k1".into(), purpose: "access_token".into(), algorithm: "ES256".into(), sealed: vec![1],
            created_at: at(0), published_at: at(1), active_from: at(2), retire_at: at(3), remove_at: at(4),
            revoked_at: None, mac: vec![1],
        };
        let revoked = SigningKeyRow { revoked_at: Some(at(9)), mac: vec![2], ..key.clone() };
        for row in [&key, &revoked] {
            seed(store, acts(vec![ActWrite::SigningKey(Box::new(row.clone()))])).await;
        }
        let kept = store.signing_keys().await.unwrap();
        assert_eq!((kept.len(), kept[0].revoked_at), (1, Some(at(9))));
        store.reseal_key("k1", &[1], &[8], &[8]).await.unwrap();
        assert_eq!(store.signing_keys().await.unwrap()[0].sealed, [1], "the dates changed in between");
        store.reseal_key("k1", &[2], &[8], &[8]).await.unwrap();
        let kept = store.signing_keys().await.unwrap().remove(0);
        assert_eq!((kept.sealed, kept.mac, kept.revoked_at), (vec![8], vec![8], Some(at(9))));
    }

    ["workload_keys" "registered_keys" "all_workload_keys" "write_workload_key" "remac_workload_key"]
    async fn a_workload_key_is_added_renewed_and_removed(store: &Store) {
        let row = |thumbprint: &str, jwk: Option<&str>, index| WorkloadKeyRow {
            attestor: "key".into(), workload: "w".into(), thumbprint: thumbprint.into(), jwk: jwk.map(Into::into), index, mac: vec![],
        }.seal(&mac());
        let write = |row: &WorkloadKeyRow| ActWrite::WorkloadKey(Box::new(row.clone()));
        let (old, new) = (row("a", Some("{}"), 2), row("a", Some("{1}"), 3));
        seed(store, acts(vec![write(&row("b", Some("{}"), 1)), write(&old), write(&new)])).await;
        let keys = store.workload_keys("key", "w").await.unwrap();
        let found: Vec<_> = keys.iter().map(|key| (key.thumbprint.as_str(), key.jwk.as_deref())).collect();
        assert_eq!(found, [("a", Some("{1}")), ("b", Some("{}"))], "the newest row of each key");
        assert!(store.workload_keys("key", "v").await.unwrap().is_empty());
        assert_eq!(store.registered_keys(1).await.unwrap().len(), 1);
        let renewed = WorkloadKeyRow { mac: vec![], ..new.clone() }.seal(&newer_mac());
        assert!(!store.remac_workload_key(&renewed, &renewed.mac).await.unwrap(), "the row belongs to another workload");
        assert!(store.remac_workload_key(&new, &renewed.mac).await.unwrap());
        assert_eq!(store.workload_keys("key", "w").await.unwrap()[0], renewed);
        assert!(append(store, &Needs::default(), &acts(vec![write(&old)])).await.is_err(), "an older row does not replace a newer one");
        seed(store, acts(vec![write(&row("a", None, 4))])).await;
        assert_eq!(store.workload_keys("key", "w").await.unwrap().len(), 1);
        assert_eq!((store.registered_keys(9).await.unwrap().len(), store.all_workload_keys(9).await.unwrap().len()), (1, 2));
        assert_eq!(store.alarm().get(), None);
        let forged = WorkloadKeyRow { index: 5, ..old };
        seed(store, acts(vec![write(&forged)])).await;
        assert!(matches!(store.workload_keys("key", "w").await, Err(StoreError::Forged(_))));
        assert!(store.alarm().get().unwrap().contains("table workload_key"));
        assert!(store.roles_of("dev:a").await.is_err(), "the store refuses to answer from a forged row");
    }

    ["roles_of" "admin_bindings" "write_admin_binding" "remac_binding"]
    async fn a_role_is_given_and_taken(store: &Store) {
        let row = |role: &str, bound, index| AdminBinding { identity: "dev:a".into(), role: role.into(), bound, index, mac: vec![] }.seal(&mac());
        let write = |row: &AdminBinding| ActWrite::AdminBinding(Box::new(row.clone()));
        let given = row("admin", true, 5);
        seed(store, acts(vec![write(&row("auditor", true, 3)), write(&row("admin", true, 4)), write(&given)])).await;
        let roles = store.roles_of("dev:a").await.unwrap();
        assert_eq!(roles.iter().map(String::as_str).collect::<Vec<_>>(), ["admin", "auditor"]);
        assert!(store.roles_of("dev:A").await.unwrap().is_empty());
        let renewed = AdminBinding { mac: vec![], ..given.clone() }.seal(&newer_mac());
        assert!(store.remac_binding(&given, &renewed.mac).await.unwrap());
        assert!(!store.remac_binding(&given, &[7]).await.unwrap(), "the old MAC does not match");
        assert_eq!(store.admin_bindings().await.unwrap()[0], renewed);
        seed(store, acts(vec![write(&row("admin", false, 6))])).await;
        assert_eq!((store.bound_roles().await.unwrap().len(), store.admin_bindings().await.unwrap().len()), (1, 2));
        assert!(append(store, &Needs::default(), &acts(vec![write(&given)])).await.is_err(), "an older row does not replace a newer one");
        store.check_rows().await.unwrap();
        seed(store, acts(vec![write(&AdminBinding { index: 7, ..given })])).await;
        assert!(matches!(store.check_rows().await, Err(StoreError::Forged(_))));
        assert!(store.alarm().get().unwrap().contains("the role `admin` of dev:a"));
    }

    ["see_bootstrap" "bootstrap_token" "bootstrap_tokens"]
    async fn a_bootstrap_token_is_seen_for_the_first_time_once(store: &Store) {
        let (one, other) = ([1; 32], [2; 32]);
        assert_eq!(store.bootstrap_token(&one).await.unwrap(), None);
        store.see_bootstrap(&one, at(5), at(5)).await.unwrap();
        store.see_bootstrap(&one, at(9), at(9)).await.unwrap();
        let seen = |first_seen, replaced| Some(BootstrapToken { first_seen, log_time: first_seen, ended: false, replaced });
        assert_eq!(store.bootstrap_token(&one).await.unwrap(), seen(at(5), false), "the first time is kept");
        // The clock was set back: the order of arrival decides, not the times.
        store.see_bootstrap(&other, at(3), at(3)).await.unwrap();
        store.see_bootstrap(&one, at(9), at(9)).await.unwrap();
        assert_eq!(store.bootstrap_token(&one).await.unwrap(), seen(at(5), true));
        assert_eq!(store.bootstrap_token(&other).await.unwrap(), seen(at(3), false));
        assert_eq!(store.bootstrap_tokens().await.unwrap(), [(one, at(5)), (other, at(3))]);
    }

    ["end_bootstrap_tokens"]
    async fn bootstrap_tokens_whose_day_has_passed_are_ended_for_good(store: &Store) {
        let times = [([1; 32], 10, 10), ([2; 32], 11, 11), ([3; 32], 50, 10), ([4; 32], 91, 91), ([5; 32], 90, 95)];
        for (digest, seen, log_time) in times {
            store.see_bootstrap(&digest, at(seen), at(log_time)).await.unwrap();
        }
        store.end_bootstrap_tokens(at(10), at(90)).await.unwrap();
        store.end_bootstrap_tokens(at(1), at(99)).await.unwrap();
        let mut ended = Vec::new();
        for (digest, ..) in times {
            ended.push(store.bootstrap_token(&digest).await.unwrap().unwrap().ended);
        }
        assert_eq!(ended, [true, false, true, true, false]);
    }

    ["horizon" "advance_horizon"]
    async fn the_horizon_begins_at_birth_and_is_moved_by_one_at_a_time(store: &Store) {
        assert_eq!(store.horizon().await.unwrap(), None);
        store.claim(StoreMode::Dev, "dev.local/log", at(1)).await.unwrap();
        assert_eq!(store.horizon().await.unwrap(), Some(at(1)));
        assert!(store.advance_horizon(at(1), at(9)).await.unwrap());
        assert!(!store.advance_horizon(at(1), at(8)).await.unwrap(), "the horizon has moved in between");
        assert_eq!(store.horizon().await.unwrap(), Some(at(9)));
    }

    ["accept_time" "accepted_times"]
    async fn an_accepted_time_sets_back_what_was_dated_ahead(store: &Store) {
        store.claim(StoreMode::Dev, "dev.local/log", at(5_000)).await.unwrap();
        for (digest, seen) in [([1; 32], 90), ([2; 32], 110)] {
            store.see_bootstrap(&digest, at(seen), at(seen)).await.unwrap();
        }
        // A fast clock postponed the check of the first task, and opened the second.
        let mut late = task(2, None);
        (late.opened_at, late.deadline) = (at(9_000), at(12_000));
        late.heard_at = at(9_000);
        seed(store, Writes { tasks: vec![task(1, None), late], ..Writes::default() }).await;
        store.put_off_check(task_id(1), at(50_000)).await.unwrap();
        assert_eq!(store.accepted_times().await.unwrap(), []);
        let cutoff = cutoff(61, 7, Selector::IssuedAfter(at(100)), Block::Until(at(99_999)));
        let cutoff = Box::new(cutoff);
        seed(store, acts(vec![ActWrite::TimeAccepted { cutoff, accepted: at(100) }])).await;
        assert_eq!(store.accepted_times().await.unwrap(), [(7, at(100))]);
        assert_eq!(store.horizon().await.unwrap(), Some(at(100)));
        assert!(!store.bootstrap_token(&[1; 32]).await.unwrap().unwrap().ended);
        assert!(store.bootstrap_token(&[2; 32]).await.unwrap().unwrap().ended);
        let due = store.claim_due_tasks(at(100), at(130), 9).await.unwrap();
        let due: BTreeMap<_, _> = due.iter().map(|task| (task.id, task.heard_at)).collect();
        assert_eq!(due, BTreeMap::from([(task_id(1), at(0)), (task_id(2), at(100))]));
    }

    ["claim" "clock" "check_schema" "connected_brokers"]
    async fn a_store_is_marked_at_birth(store: &Store) {
        store.claim(StoreMode::Production, "log.example", at(0)).await.unwrap();
        store.claim(StoreMode::Production, "log.example", at(9)).await.unwrap();
        for (mode, origin) in [(StoreMode::Dev, "log.example"), (StoreMode::Production, "other.example")] {
            assert!(matches!(store.claim(mode, origin, at(1)).await, Err(StoreError::Unfit(_))));
        }
        let clock = store.clock().await.unwrap();
        assert_eq!(clock.is_some(), store.kind() == "postgres");
        if let Store::Postgres(postgres) = store {
            postgres.check_schema().await.unwrap();
            assert!(store.connected_brokers().await.unwrap() > 0, "this connection has a broker's application name");
        }
    }

    ["shared_place" "put_shared_place"]
    async fn it_is_known_where_a_checkpoint_was_kept(store: &Store) {
        assert_eq!(store.shared_checkpoint_location().await.unwrap(), None);
        store.put_shared_checkpoint_location("nowhere").await.unwrap();
        assert_eq!(store.shared_checkpoint_location().await.unwrap(), None, "the store is not claimed yet");
        store.claim(StoreMode::Dev, "dev.local/log", at(1)).await.unwrap();
        assert_eq!(store.shared_checkpoint_location().await.unwrap(), None);
        for place in ["/mnt/one", "/mnt/one", "https://two.example"] {
            store.put_shared_checkpoint_location(place).await.unwrap();
            assert_eq!(store.shared_checkpoint_location().await.unwrap().as_deref(), Some(place));
        }
    }

    ["open_to_read"]
    async fn a_store_is_read_and_neither_made_nor_changed(_store: &Store) {
        let file = fresh_sqlite();
        assert!(Sqlite::open_to_read(file.dir(), 1).await.unwrap().is_none());
        let made = Store::Sqlite(Sqlite::open(file.dir(), 1).await.unwrap());
        made.claim(StoreMode::Dev, "dev.local/log", at(1)).await.unwrap();
        made.close().await;
        let read = Sqlite::open_to_read(file.dir(), 1).await.unwrap();
        let read = Store::Sqlite(read.unwrap());
        assert_eq!(read.sealed_head().await.unwrap(), None);
        assert!(read.put_shared_checkpoint_location("anywhere").await.is_err());
        read.close().await;
    }

    ["leaf_format"]
    async fn a_log_of_an_earlier_format_is_refused_before_its_schema_is_touched(store: &Store) {
        let body = br#"{"v":1,"event":"genesis"}"#.to_vec();
        let leaves = vec![LeafRow { hash: leaf_hash(&body), body, ..leaf(0) }];
        let writes = Writes { leaves, ..Writes::default() };
        let refused = if let Store::Postgres(postgres) = store {
            seed(store, writes).await;
            postgres.check_schema().await.unwrap_err()
        } else {
            let file = fresh_sqlite();
            let made = Store::Sqlite(Sqlite::open(file.dir(), 1).await.unwrap());
            seed(&made, writes).await;
            made.close().await;
            let read = Sqlite::open_to_read(file.dir(), 1).await.unwrap_err();
            assert!(read.to_string().contains("format version 1"), "{read}");
            Sqlite::open(file.dir(), 1).await.unwrap_err()
        };
        assert!(refused.to_string().contains("format version 1"), "{refused}");
    }

    ["ledger_look"]
    async fn a_connection_says_to_what_server_it_leads(store: &Store) {
        let mut one = store.ledger_connection().await.unwrap();
        if store.kind() == "sqlite" {
            assert_eq!(one.enter(&Needs::default()).await.unwrap().server, None);
            return;
        }
        let before = one.head_and_server().await.unwrap();
        assert_eq!(before.head, None);
        seed(store, Writes { head: Some(sealed(3, 1)), ..Writes::default() }).await;
        let read = one.head_and_server().await.unwrap();
        assert_eq!((read.head, read.server), (Some(sealed(3, 1)), before.server));
        assert_eq!(one.enter(&Needs::default()).await.unwrap().server, Some(read.server));
        one.rollback().await.unwrap();
        let mut other = store.ledger_connection().await.unwrap();
        assert_ne!(other.head_and_server().await.unwrap().server, read.server);
    }

    ["put_succession" "succession" "update_succession" "remac_succession"]
    async fn an_empty_store_is_told_once_which_log_it_succeeds(store: &Store) {
        let sealed = |document: &str, mac: u8| SealedSuccession {
            document: document.into(),
            mac: vec![mac],
        };
        assert_eq!(store.succession().await.unwrap(), None);
        assert!(store.put_succession(&sealed("one", 1)).await.unwrap());
        assert!(store.put_succession(&sealed("one", 2)).await.unwrap(), "the same request again");
        assert!(!store.put_succession(&sealed("two", 1)).await.unwrap());
        assert_eq!(store.succession().await.unwrap(), Some(sealed("one", 1)));
        store.remac_succession(&[9], &[3]).await.unwrap();
        store.remac_succession(&[1], &[3]).await.unwrap();
        assert_eq!(store.succession().await.unwrap(), Some(sealed("one", 3)));
        store.update_succession(&[1], &sealed("two", 4)).await.unwrap();
        assert_eq!(store.succession().await.unwrap(), Some(sealed("one", 3)), "the stored succession is another one");
        store.update_succession(&[3], &sealed("two", 4)).await.unwrap();
        assert_eq!(store.succession().await.unwrap(), Some(sealed("two", 4)));
    }

    ["prune_openings" "prune_heads" "ensure_partitions" "grant_serving" "confine_serving" "check_confined" "check_no_owner"]
    async fn pruning_leaves_what_proves(store: &Store) {
        let writes = |from: u64| Writes {
            leaves: (from..from + 2).map(leaf).collect(),
            head: Some(sealed(from + 2, u128::from(from))),
            ..Writes::default()
        };
        for from in [0, 2, 4] {
            seed(store, writes(from)).await;
        }
        assert_eq!(store.prune_openings(at(2), 9).await.unwrap(), 2, "the leaf's time decides");
        assert_eq!(store.openings(1).await.unwrap().input, None);
        assert!(store.openings(2).await.unwrap().input.is_some());
        assert!(store.leaf(1).await.unwrap().unwrap().body.is_some());
        age_heads().await;
        assert_eq!(store.prune_heads(4, 9).await.unwrap(), 1);
        assert_eq!(store.prune_heads(u64::MAX, 0).await.unwrap(), 0);
        assert_eq!(store.prune_heads(u64::MAX, 9).await.unwrap(), 1, "all but the newest");
        assert_eq!(store.head(&head_seal()).await.unwrap(), Some(head(6)));

        let writes = Writes {
            tasks: vec![task(1, None), task(2, Some(1))],
            sessions: vec![(session(11, 1, None), None), (session(12, 2, Some(11)), None)],
            ..Writes::default()
        };
        seed(store, writes).await;
        let end = |n| (task_id(n), TaskChange { end: Some((TaskState::Expired, at(1_000), 9)), ..TaskChange::default() });
        seed(store, Writes { task_changes: BTreeMap::from([end(1), end(2)]), ..Writes::default() }).await;
        assert_eq!(store.prune_tasks(at(9_999), 9).await.unwrap(), 0, "tasks with sessions are kept");
        assert_eq!(store.prune_sessions(at(500), 9).await.unwrap(), 0, "sessions are kept during their last instant");
        assert_eq!(store.prune_sessions(at(501), 9).await.unwrap(), 1, "the derived session, not its parent");
        assert_eq!(store.prune_sessions(at(501), 9).await.unwrap(), 1);
        assert_eq!(store.prune_tasks(at(1_001), 9).await.unwrap(), 1, "the child task, not its parent");
        assert_eq!(store.prune_tasks(at(1_001), 9).await.unwrap(), 1);
        store.ensure_partitions(20_000_000).await.unwrap();
    }

    ["patrol_openings"]
    async fn openings_are_walked_through_from_anywhere_a_bite_at_a_time(store: &Store) {
        // A wrong clock dated the first three leaves.
        let leaves = [900, 901, 902, 3, 4, 500].into_iter().zip(0..);
        let leaves = leaves.map(|(dated, index)| LeafRow { at: at(dated), ..leaf(index) }).collect();
        seed(store, Writes { leaves, ..Writes::default() }).await;
        let patrol = async |from| store.patrol_openings(at(100), from, 3).await.unwrap();
        assert_eq!(store.prune_openings(at(100), 3).await.unwrap(), 0, "the first leaves are too young");
        assert_eq!(patrol(0).await, (0, Some(3)));
        assert_eq!(patrol(3).await, (2, Some(6)));
        assert_eq!(patrol(6).await, (0, None));
        let kept = async |index| store.openings(index).await.unwrap().input.is_some();
        assert!(kept(0).await && !kept(3).await && !kept(4).await && kept(5).await);
    }

    ["forget_purpose" "empty_log"]
    async fn what_somebody_wrote_is_forgotten_and_nothing_else(store: &Store) {
        let purpose = Some(Opening { salt: [2; 16], bytes: b"for Ann".to_vec() });
        let leaves = (0..3).map(|index| LeafRow { purpose: purpose.clone(), ..leaf(index) }).collect();
        seed(store, Writes { leaves, ..Writes::default() }).await;
        let cut = cutoff(7, 2, Selector::All(True), Block::UntilLifted);
        seed(store, acts(vec![ActWrite::Cutoff(Box::new(cut))])).await;
        for index in [1, 2] {
            assert!(store.forget_purpose(index).await.unwrap());
            assert!(!store.forget_purpose(index).await.unwrap(), "the purpose is deleted already");
            let left = store.openings(index).await.unwrap();
            assert_eq!((left.input, left.purpose), (leaf(index).input, None));
            assert!(store.leaf(index).await.unwrap().unwrap().body.is_some());
        }
        assert_eq!(store.openings(0).await.unwrap().purpose, purpose);
        let kept = store.cutoff(CutoffId::from(uuid(7))).await.unwrap().unwrap();
        assert_eq!((kept.reason.as_str(), kept.block), ("", Block::UntilLifted));
        assert!(!store.forget_purpose(99).await.unwrap());
        assert!(store.scrub().await.unwrap());
    }

    ["prune_bodies"]
    async fn bodies_go_and_hashes_stay(store: &Store) {
        // The last leaf of PostgreSQL's first partition.
        let last = 16_777_215;
        let writes = Writes { leaves: vec![leaf(0), leaf(last)], head: Some(sealed(last + 1, 1)), ..Writes::default() };
        seed(store, writes).await;
        age_heads().await;
        let body = async |idx| store.leaf(idx).await.unwrap().unwrap().body.is_some();
        store.prune_bodies(at(0), 9).await.unwrap();
        assert!(body(0).await, "only older bodies are deleted");
        store.prune_bodies(at(i64::try_from(last).unwrap()), 9).await.unwrap();
        assert!(body(last).await, "only older bodies are deleted");
        store.prune_bodies(at(i64::try_from(last).unwrap() + 1), 9).await.unwrap();
        assert!(!body(0).await && !body(last).await);
        assert_eq!(store.prune_bodies(at(99_999_999), 9).await.unwrap(), 0);
        store.ensure_partitions(last + 1).await.unwrap();
        seed(store, Writes { leaves: vec![leaf(last + 1)], ..Writes::default() }).await;
        assert!(body(last + 1).await);
    }

    ["put_cosigned" "last_cosigned" "cosigned_over" "cosigned_over_by" "cosigned_until"]
    async fn what_witnesses_said_is_kept_and_found_by_size_and_by_whose_word_it_is(store: &Store) {
        let row = |size, witness: &str, line: &str| CosignedRow {
            size,
            vkey: format!("{witness}+key"),
            witness: witness.into(),
            line: line.into(),
            checkpoint: format!("log {size}"),
        };
        assert_eq!(store.last_cosigned("a+key").await.unwrap(), None);
        assert_eq!(store.cosigned_over(0, None).await.unwrap(), []);
        for row in [row(5, "a", "5"), row(9, "b", "9"), row(9, "a", "9"), row(30, "b", "30")] {
            store.put_cosigned(&row).await.unwrap();
        }
        // The first cosignature of a witness for a size is kept.
        store.put_cosigned(&row(5, "a", "later")).await.unwrap();
        assert_eq!(store.last_cosigned("a+key").await.unwrap(), Some(9));
        assert_eq!(store.last_cosigned("b+key").await.unwrap(), Some(30));
        let over = async |index, witness| store.cosigned_over(index, witness).await.unwrap();
        assert_eq!(over(4, None).await, [row(5, "a", "5")]);
        let both = [row(9, "a", "9"), row(9, "b", "9")];
        assert_eq!(over(5, None).await, both, "leaf 5 is not in a tree of 5");
        assert_eq!(over(0, Some("b")).await, both, "includes the other witnesses' lines");
        assert_eq!(over(9, Some("a")).await, []);
        assert_eq!(over(29, None).await, [row(30, "b", "30")]);
        assert_eq!(over(30, None).await, []);
        let until = async |size, count| store.cosigned_until("b+key", size, count).await.unwrap();
        assert_eq!(until(30, 9).await, [row(30, "b", "30"), row(9, "b", "9")]);
        assert_eq!(until(29, 9).await, [row(9, "b", "9")]);
        assert_eq!(until(30, 1).await, [row(30, "b", "30")]);
    }
}
