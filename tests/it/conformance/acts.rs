//! Statements of admins' acts, which change only together with a leaf.

use super::*;

cases! {
    a_cutoff_is_learnt_lifted_once_and_kept_while_it_matters: "cutoff" "cutoffs" "list_cutoffs"
        "cutoffs_that_may_block"
        "changed_cutoffs" "write_cutoff" "write_lift" "remac_cutoff" "prune_cutoffs";
    what_decided_at_some_time_since_is_found: "generations_since";
    the_newest_activation_decides: "write_generation" "generation" "active_generation"
        "write_activation" "remac_activation";
    a_signing_key_is_kept_sealed_and_resealed_by_comparison: "signing_keys" "write_signing_key"
        "reseal_key";
    a_workload_key_is_added_renewed_and_removed: "workload_keys" "registered_keys"
        "all_workload_keys" "write_workload_key" "remac_workload_key";
    a_role_is_given_and_taken: "roles_of" "admin_bindings" "write_admin_binding" "remac_binding";
    a_bootstrap_token_is_seen_for_the_first_time_once: "see_bootstrap" "bootstrap_token"
        "bootstrap_tokens";
    bootstrap_tokens_whose_day_has_passed_are_ended_for_good: "end_bootstrap_tokens";
}

#[expect(clippy::too_many_lines, reason = "the steps of one case")]
async fn a_cutoff_is_learnt_lifted_once_and_kept_while_it_matters(store: &Store) {
    let held = cutoff(61, 3, Selector::All(True), Block::UntilLifted);
    let timed = cutoff(
        62,
        4,
        Selector::Workload("dev:a".to_owned().try_into().unwrap()),
        Block::Until(at(40)),
    );
    let gone = cutoff(63, 5, Selector::Policy("p".into()), Block::No);
    let write = |one: &SealedCutoff| ActWrite::Cutoff(Box::new(one.clone()));
    seed(store, acts(vec![write(&held), write(&timed), write(&gone)])).await;
    let id = held.claimed().id;
    assert_eq!(
        store.cutoff(id).await.unwrap().as_ref(),
        Some(held.claimed())
    );
    assert_eq!(
        store.cutoffs(2).await.unwrap(),
        [gone.clone(), timed.clone()],
        "newest first"
    );
    let listed = async |filter: CutoffFilter| {
        let listed = store.list_cutoffs(&filter).await.unwrap();
        listed.iter().map(|one| one.index).collect::<Vec<u64>>()
    };
    let all = CutoffFilter {
        limit: 9,
        ..CutoffFilter::default()
    };
    assert_eq!(listed(all.clone()).await, [5, 4, 3], "newest first");
    assert_eq!(
        listed(CutoffFilter {
            blocks_at: Some(at(39)),
            ..all.clone()
        })
        .await,
        [4, 3]
    );
    assert_eq!(
        listed(CutoffFilter {
            blocks_at: Some(at(40)),
            ..all.clone()
        })
        .await,
        [3]
    );
    assert_eq!(
        listed(CutoffFilter {
            before: Some(5),
            limit: 1,
            ..all.clone()
        })
        .await,
        [4]
    );
    let may_block = async |from: Timestamp, after, limit| {
        let found = store.cutoffs_that_may_block(from, after, limit).await;
        let found = found.unwrap();
        found.iter().map(|one| one.index).collect::<Vec<u64>>()
    };
    assert_eq!(may_block(at(39), None, 9).await, [3, 4]);
    assert_eq!(may_block(at(39), None, 1).await, [3]);
    assert_eq!(may_block(at(39), Some(3), 9).await, [4]);
    assert_eq!(may_block(at(40), None, 9).await, [3]);
    let policy = Some(Selector::Policy("p".into()));
    assert_eq!(
        listed(CutoffFilter {
            selector: policy,
            ..all
        })
        .await,
        [5]
    );
    let of = async |selectors: &[&Selector], index| {
        let selectors = selectors.iter().copied().cloned().collect();
        let found = store.cutoffs_of(&selectors, index).await.unwrap();
        found.iter().map(|one| one.index).collect::<Vec<u64>>()
    };
    let [all, workload, policy] = [&held, &timed, &gone].map(|one| &one.claimed().selector);
    assert_eq!(of(&[policy, all, workload], 2).await, [3, 4, 5]);
    assert_eq!(
        of(&[policy, all, workload], 3).await,
        [4, 5],
        "cutoffs after the leaf, without the leaf's own"
    );
    assert_eq!(of(&[policy], 0).await, [5], "of the selectors alone");
    let other = Selector::Resource("p".into());
    assert_eq!(of(&[&other], 0).await, [0_u64; 0]);
    assert_eq!(of(&[], 0).await, [0_u64; 0]);
    let changed = |from| async move {
        seen(
            store,
            Needs {
                cutoffs_from: from,
                ..Needs::default()
            },
        )
        .await
        .cutoffs
    };
    assert_eq!(changed(4).await, [timed.clone(), gone.clone()]);

    assert_eq!(
        store.prune_cutoffs(at(3), at(39), 9).await.unwrap(),
        1,
        "a cutoff that blocks is kept"
    );
    assert_eq!(
        store.prune_cutoffs(at(2), at(99), 9).await.unwrap(),
        0,
        "a cutoff that may still end sessions is kept"
    );
    let lifted_by = |index| {
        let lifted = Cutoff {
            lifted_index: Some(index),
            ..held.claimed().clone()
        };
        SealedCutoff::seal(lifted, &mac())
    };
    let lifted = lifted_by(9);
    seed(store, acts(vec![ActWrite::Lift(Box::new(lifted.clone()))])).await;
    assert_eq!(
        changed(5).await,
        std::slice::from_ref(&lifted),
        "a lift counts as a change"
    );
    seed(store, acts(vec![ActWrite::Lift(Box::new(lifted_by(12)))])).await;
    assert_eq!(
        store.cutoff(id).await.unwrap().as_ref(),
        Some(lifted.claimed()),
        "once"
    );

    let renewed = SealedCutoff::seal(lifted.claimed().clone(), &newer_mac());
    assert!(
        !store
            .remac_cutoff(id, held.mac(), renewed.mac())
            .await
            .unwrap(),
        "the row changed in between"
    );
    assert!(
        store
            .remac_cutoff(id, lifted.mac(), renewed.mac())
            .await
            .unwrap()
    );
    assert_eq!(store.cutoffs(9).await.unwrap().last(), Some(&renewed));
    assert_eq!(store.prune_cutoffs(at(3), at(41), 9).await.unwrap(), 2);
}

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
    let all = vec![
        activate(4, one, 10),
        activate(8, two, 20),
        activate(9, one, 30),
        activate(12, three, 40),
    ];
    seed(store, acts(all)).await;
    let since = async |when| {
        let mut found = store.generations_since(at(when)).await.unwrap();
        found.sort_unstable();
        found
    };
    assert_eq!(since(5).await, [one, two, three]);
    assert_eq!(
        since(20).await,
        [one, two, three],
        "includes the generation that was active at that time"
    );
    assert_eq!(since(30).await, [one, three]);
    assert_eq!(since(99).await, [three]);
}

async fn the_newest_activation_decides(store: &Store) {
    assert_eq!(store.active_generation().await.unwrap(), None);
    let (one, two) = (
        GenerationDigest::new([1; 32]),
        GenerationDigest::new([2; 32]),
    );
    let activate = |index, digest, body: &'static [u8]| ActWrite::Activation {
        sealed: SealedActivation::seal(index, digest, &mac()),
        document: body.into(),
        by: "x".into(),
        at: at(1),
    };
    seed(
        store,
        acts(vec![
            activate(3, one, b"one"),
            activate(4, one, b"new"),
            activate(8, two, b"two"),
        ]),
    )
    .await;
    assert_eq!(
        store.generation(one).await.unwrap().unwrap(),
        b"one",
        "a stored generation is not replaced"
    );
    assert_eq!(
        store
            .generation(GenerationDigest::new([3; 32]))
            .await
            .unwrap(),
        None
    );
    let active = store.active_generation().await.unwrap().unwrap();
    assert_eq!(
        (active.sealed.open(&mac()).unwrap(), active.sealed.index()),
        (two, 8)
    );
    assert_eq!(
        seen(store, Needs::default()).await.activation,
        Some(active.sealed.clone())
    );
    assert!(
        active
            .sealed
            .open(&SealingKeys::parse(&KEYS[..1]).unwrap().mac("another log"))
            .is_err()
    );
    let old = active.sealed.mac();
    store.remac_activation(8, &[7; 32], &[9; 32]).await.unwrap();
    assert_eq!(
        store.active_generation().await.unwrap().unwrap().sealed,
        active.sealed
    );
    store.remac_activation(8, old, &[9; 32]).await.unwrap();
    assert_eq!(
        store
            .active_generation()
            .await
            .unwrap()
            .unwrap()
            .sealed
            .mac(),
        [9; 32]
    );
}

async fn a_signing_key_is_kept_sealed_and_resealed_by_comparison(store: &Store) {
    let key = SigningKeyRow {
        kid: "k1".into(),
        purpose: "access_token".into(),
        algorithm: "ES256".into(),
        sealed: vec![1],
        created_at: at(0),
        published_at: at(1),
        active_from: at(2),
        retire_at: at(3),
        remove_at: at(4),
        revoked_at: None,
        mac: vec![1],
    };
    let revoked = SigningKeyRow {
        revoked_at: Some(at(9)),
        mac: vec![2],
        ..key.clone()
    };
    for row in [&key, &revoked] {
        seed(
            store,
            acts(vec![ActWrite::SigningKey(Box::new(row.clone()))]),
        )
        .await;
    }
    let kept = store.signing_keys().await.unwrap();
    assert_eq!((kept.len(), kept[0].revoked_at), (1, Some(at(9))));
    store.reseal_key("k1", &[1], &[8], &[8]).await.unwrap();
    assert_eq!(
        store.signing_keys().await.unwrap()[0].sealed,
        [1],
        "the dates changed in between"
    );
    store.reseal_key("k1", &[2], &[8], &[8]).await.unwrap();
    let kept = store.signing_keys().await.unwrap().remove(0);
    assert_eq!(
        (kept.sealed, kept.mac, kept.revoked_at),
        (vec![8], vec![8], Some(at(9)))
    );
}

async fn a_workload_key_is_added_renewed_and_removed(store: &Store) {
    let row = |thumbprint: &str, jwk: Option<&str>, index| {
        WorkloadKeyRow {
            attestor: "key".into(),
            workload: "w".into(),
            thumbprint: thumbprint.into(),
            jwk: jwk.map(Into::into),
            index,
            mac: vec![],
        }
        .seal(&mac())
    };
    let write = |row: &WorkloadKeyRow| ActWrite::WorkloadKey(Box::new(row.clone()));
    let (old, new) = (row("a", Some("{}"), 2), row("a", Some("{1}"), 3));
    seed(
        store,
        acts(vec![
            write(&row("b", Some("{}"), 1)),
            write(&old),
            write(&new),
        ]),
    )
    .await;
    let keys = store.workload_keys("key", "w").await.unwrap();
    let found: Vec<_> = keys
        .iter()
        .map(|key| (key.thumbprint.as_str(), key.jwk.as_deref()))
        .collect();
    assert_eq!(
        found,
        [("a", Some("{1}")), ("b", Some("{}"))],
        "the newest row of each key"
    );
    assert!(store.workload_keys("key", "v").await.unwrap().is_empty());
    assert_eq!(store.registered_keys(1).await.unwrap().len(), 1);
    let renewed = WorkloadKeyRow {
        mac: vec![],
        ..new.clone()
    }
    .seal(&newer_mac());
    assert!(
        !store
            .remac_workload_key(&renewed, &renewed.mac)
            .await
            .unwrap(),
        "the row belongs to another workload"
    );
    assert!(store.remac_workload_key(&new, &renewed.mac).await.unwrap());
    assert_eq!(store.workload_keys("key", "w").await.unwrap()[0], renewed);
    assert!(
        append(store, &Needs::default(), &acts(vec![write(&old)]))
            .await
            .is_err(),
        "an older row does not replace a newer one"
    );
    seed(store, acts(vec![write(&row("a", None, 4))])).await;
    assert_eq!(store.workload_keys("key", "w").await.unwrap().len(), 1);
    assert_eq!(
        (
            store.registered_keys(9).await.unwrap().len(),
            store.all_workload_keys(9).await.unwrap().len()
        ),
        (1, 2)
    );
    assert_eq!(store.alarm().get(), None);
    let forged = WorkloadKeyRow { index: 5, ..old };
    seed(store, acts(vec![write(&forged)])).await;
    assert!(matches!(
        store.workload_keys("key", "w").await,
        Err(StoreError::Forged(_))
    ));
    assert!(store.alarm().get().unwrap().contains("table workload_key"));
    assert!(
        store.roles_of("dev:a").await.is_err(),
        "the store refuses to answer from a forged row"
    );
}

async fn a_role_is_given_and_taken(store: &Store) {
    let row = |role: &str, bound, index| {
        AdminBinding {
            identity: "dev:a".into(),
            role: role.into(),
            bound,
            index,
            mac: vec![],
        }
        .seal(&mac())
    };
    let write = |row: &AdminBinding| ActWrite::AdminBinding(Box::new(row.clone()));
    let given = row("admin", true, 5);
    seed(
        store,
        acts(vec![
            write(&row("auditor", true, 3)),
            write(&row("admin", true, 4)),
            write(&given),
        ]),
    )
    .await;
    let roles = store.roles_of("dev:a").await.unwrap();
    assert_eq!(
        roles.iter().map(String::as_str).collect::<Vec<_>>(),
        ["admin", "auditor"]
    );
    assert!(store.roles_of("dev:A").await.unwrap().is_empty());
    let renewed = AdminBinding {
        mac: vec![],
        ..given.clone()
    }
    .seal(&newer_mac());
    assert!(store.remac_binding(&given, &renewed.mac).await.unwrap());
    assert!(
        !store.remac_binding(&given, &[7]).await.unwrap(),
        "the old MAC does not match"
    );
    assert_eq!(store.admin_bindings().await.unwrap()[0], renewed);
    seed(store, acts(vec![write(&row("admin", false, 6))])).await;
    assert_eq!(
        (
            store.bound_roles().await.unwrap().len(),
            store.admin_bindings().await.unwrap().len()
        ),
        (1, 2)
    );
    assert!(
        append(store, &Needs::default(), &acts(vec![write(&given)]))
            .await
            .is_err(),
        "an older row does not replace a newer one"
    );
    store.check_rows().await.unwrap();
    seed(
        store,
        acts(vec![write(&AdminBinding { index: 7, ..given })]),
    )
    .await;
    assert!(matches!(
        store.check_rows().await,
        Err(StoreError::Forged(_))
    ));
    assert!(
        store
            .alarm()
            .get()
            .unwrap()
            .contains("the role `admin` of dev:a")
    );
}

async fn a_bootstrap_token_is_seen_for_the_first_time_once(store: &Store) {
    let (one, other) = ([1; 32], [2; 32]);
    assert_eq!(store.bootstrap_token(&one).await.unwrap(), None);
    store.see_bootstrap(&one, at(5), at(5)).await.unwrap();
    store.see_bootstrap(&one, at(9), at(9)).await.unwrap();
    let seen = |first_seen, replaced| {
        Some(BootstrapToken {
            first_seen,
            log_time: first_seen,
            ended: false,
            replaced,
        })
    };
    assert_eq!(
        store.bootstrap_token(&one).await.unwrap(),
        seen(at(5), false),
        "the first time is kept"
    );
    // The clock was set back: the order of arrival decides, not the times.
    store.see_bootstrap(&other, at(3), at(3)).await.unwrap();
    store.see_bootstrap(&one, at(9), at(9)).await.unwrap();
    assert_eq!(
        store.bootstrap_token(&one).await.unwrap(),
        seen(at(5), true)
    );
    assert_eq!(
        store.bootstrap_token(&other).await.unwrap(),
        seen(at(3), false)
    );
    assert_eq!(
        store.bootstrap_tokens().await.unwrap(),
        [(one, at(5)), (other, at(3))]
    );
}

async fn bootstrap_tokens_whose_day_has_passed_are_ended_for_good(store: &Store) {
    let times = [
        ([1; 32], 10, 10),
        ([2; 32], 11, 11),
        ([3; 32], 50, 10),
        ([4; 32], 91, 91),
        ([5; 32], 90, 95),
    ];
    for (digest, seen, log_time) in times {
        store
            .see_bootstrap(&digest, at(seen), at(log_time))
            .await
            .unwrap();
    }
    store.end_bootstrap_tokens(at(10), at(90)).await.unwrap();
    store.end_bootstrap_tokens(at(1), at(99)).await.unwrap();
    let mut ended = Vec::new();
    for (digest, ..) in times {
        ended.push(store.bootstrap_token(&digest).await.unwrap().unwrap().ended);
    }
    assert_eq!(ended, [true, false, true, true, false]);
}
