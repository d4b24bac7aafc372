//! Calls of the store's functions that a single rig's operations do not reach, or only with few
//! rows, with the limits that the product uses.

use std::collections::HashSet;

use taskpass::clock::Timestamp;
use taskpass::crypto::SealingKeys;
use taskpass::crypto::random::SystemRandom;
use taskpass::domain::cutoff::{Block, Cutoff, Selector, True};
use taskpass::domain::deny_list::{DenyPolicyTarget, DenyReason, DenyRequest};
use taskpass::domain::endpoint::EndpointsDigest;
use taskpass::domain::generation_digest::GenerationDigest;
use taskpass::domain::kind::MinterKind;
use taskpass::domain::task::TaskState;
use taskpass::domain::workload::OneTime;
use taskpass::ids::{CutoffId, DecisionId, SessionId, TaskId};
use taskpass::store::Store;
use taskpass::store::admins::AdminBinding;
use taskpass::store::append::{ActWrite, Needs, Writes};
use taskpass::store::cosigned::CosignedRow;
use taskpass::store::cutoffs::{CutoffFilter, SealedCutoff};
use taskpass::store::exports::{BelievedTimes, ExportKey};
use taskpass::store::meta::SealedSuccession;
use taskpass::store::replicas::ReplicaRow;
use taskpass::store::sessions::SessionFilter;
use taskpass::store::tasks::{TaskCheck, TaskFilter};
use taskpass::store::workload_keys::WorkloadKeyRow;
use uuid::Uuid;

/// What exists in the store, and the present.
pub(super) struct Real {
    pub(super) task: TaskId,
    pub(super) session: SessionId,
    pub(super) generation: GenerationDigest,
    pub(super) now: Timestamp,
    /// The name of the serving role.
    pub(super) serving: String,
    /// Differs between two calls with the same store.
    pub(super) round: u8,
}

/// Calls all functions below.
pub(super) async fn ask_everything(store: &Store, real: &Real) {
    Box::pin(tasks(store, real)).await;
    Box::pin(sessions(store, real)).await;
    Box::pin(external(store, real)).await;
    Box::pin(selectors(store, real)).await;
    Box::pin(log(store, real)).await;
    Box::pin(appends(store, real)).await;
    Box::pin(marks(store, real)).await;
    Box::pin(identities(store)).await;
    Box::pin(deny_lists(store, real)).await;
    Box::pin(outside(store, real)).await;
    Box::pin(cosigned(store)).await;
    Box::pin(pruning(store, real.now)).await;
}

async fn tasks(store: &Store, real: &Real) {
    for owner in [None, Some("dev:7".to_owned())] {
        for state in [None, Some(TaskState::Open)] {
            let filter = TaskFilter {
                owner: owner.clone(),
                state,
                before: None,
                limit: 100,
            };
            store.tasks(&filter).await.unwrap();
        }
    }
    let (task, now) = (real.task, real.now);
    store.task(task).await.unwrap();
    store.task_chains(&[task]).await.unwrap();
    store.owns_part_of("dev:a", task).await.unwrap();
    store.task_view(task, now).await.unwrap();
    store.delegation(&[1; 32]).await.unwrap();
    store.retry(&[1; 32], now).await.unwrap();
    let check = TaskCheck {
        now,
        over_by: now,
        retry_at: now.plus_seconds(30),
        accepted: &[],
        limit: 200,
    };
    store.check_due_tasks(&check).await.unwrap();
}

async fn sessions(store: &Store, real: &Real) {
    let all = SessionFilter {
        limit: 100,
        ..SessionFilter::default()
    };
    for filter in [
        all.clone(),
        SessionFilter {
            workload: Some("dev:7".into()),
            ..all.clone()
        },
        SessionFilter {
            task: Some(real.task),
            ..all.clone()
        },
        SessionFilter {
            resource: Some("orders-api".into()),
            ..all.clone()
        },
        SessionFilter {
            live_at: Some(real.now),
            ..all
        },
    ] {
        store.list_sessions(&filter).await.unwrap();
    }
    store.session(real.session).await.unwrap();
    store.session_view(real.session).await.unwrap();
    store.sessions_under(real.task, 100).await.unwrap();
    store.listed_plainly(0, 1 << 17, real.now).await.unwrap();
    let in_doubt = store.listed_in_doubt(0, 1 << 17, real.now, 500);
    in_doubt.await.unwrap();
}

/// Sessions at back ends.
async fn external(store: &Store, real: &Real) {
    let (task, session, now) = (real.task, real.session, real.now);
    store.active_external(now, None, 200).await.unwrap();
    store
        .external_under(&[task], &[session], now)
        .await
        .unwrap();
    store.activate_session(session, "x", now).await.unwrap();
    store.unfinished_mints(now, 200).await.unwrap();
    let retry_at = now.plus_seconds(30);
    store.claim_unconfirmed(now, retry_at, 200).await.unwrap();
    store.put_off_ending(session, retry_at).await.unwrap();
    store.external_session_groups(now).await.unwrap();
}

async fn selectors(store: &Store, real: &Real) {
    let all = [
        Selector::All(True),
        Selector::Workload("dev:7".to_owned().try_into().unwrap()),
        Selector::Resource("orders-api".into()),
        Selector::Attestor("dev".into()),
        Selector::SigningKey("k".into()),
        Selector::Generation(real.generation),
        Selector::Policy("reports".into()),
        Selector::Task(real.task),
        Selector::IssuedAfter(real.now),
    ];
    for selector in &all {
        let counting = store.count_matching(selector, 1 << 40, real.now, real.now, 100_000);
        counting.await.unwrap();
        let listing = store.list_matching(selector, 1 << 40, real.now, 100);
        listing.await.unwrap();
        let filter = CutoffFilter {
            selector: Some(selector.clone()),
            limit: 100,
            ..CutoffFilter::default()
        };
        store.list_cutoffs(&filter).await.unwrap();
    }
    for blocks_at in [None, Some(real.now)] {
        let filter = CutoffFilter {
            blocks_at,
            limit: 100,
            ..CutoffFilter::default()
        };
        store.list_cutoffs(&filter).await.unwrap();
    }
    let all: HashSet<Selector> = all.into();
    store.cutoffs_of(&all, 0).await.unwrap();
    store.cutoffs(100).await.unwrap();
    let blocking = store.cutoffs_that_may_block(real.now, None, 100);
    blocking.await.unwrap();
    store.accepted_times().await.unwrap();
    store.cutoff(CutoffId::from(Uuid::nil())).await.unwrap();
    store.last_blanket_deny("role", real.now).await.unwrap();
}

async fn log(store: &Store, real: &Real) {
    store.newest_leaf_at().await.unwrap();
    store.forgotten().await.unwrap();
    store.leaf_hashes(0, 8).await.unwrap();
    store.tile(0, 0).await.unwrap();
    store.tile_roots(0, 0, 8).await.unwrap();
    store.leaf(1).await.unwrap();
    store.leaves(0, 8).await.unwrap();
    store.acts(0, 8, 8).await.unwrap();
    store.decisions(0, 8, 8).await.unwrap();
    let none = DecisionId::from(Uuid::nil());
    store.decision_index(none).await.unwrap();
    store.openings(1).await.unwrap();
    store.sealed_head().await.unwrap();
    let mut reader = store.endings_reader();
    let page = reader.read(None, 1_000).await.unwrap();
    let last = page.rows.last().map(|row| row.record.position);
    reader.read(last, 1_000).await.unwrap();
    store.generation(real.generation).await.unwrap();
    store.generations_since(real.now).await.unwrap();
    store.active_generation().await.unwrap();
}

/// What the ledger does under its lock, without a change that lasts.
async fn appends(store: &Store, real: &Real) {
    let head = store.sealed_head().await.unwrap().unwrap();
    let once = OneTime {
        key: [7; 32],
        binding: None,
        must_be_new: false,
        issued_at: real.now,
        expires_at: real.now.plus_seconds(60),
    };
    let needs = Needs {
        one_time: vec![once.id()],
        tasks: vec![real.task],
        held_tasks: vec![real.task],
        sessions: vec![real.session],
        retries: vec![[8; 32]],
        open_tasks: vec![("dev:7".into(), "job".into(), 50)],
        signing_keys: true,
        now: Some(real.now),
        ..Needs::default()
    };
    let far = real.now.plus_seconds(365 * 86_400);
    let cutoff = Cutoff {
        id: CutoffId::from(Uuid::max()),
        index: 1 << 40,
        selector: Selector::IssuedAfter(far),
        block: Block::No,
        deny_policy_target: None,
        reason: "test".into(),
        by: "test".into(),
        requested_at: real.now,
        committed_at: real.now,
        lifted_index: None,
    };
    let key = SealingKeys::generate(&SystemRandom::new()).unwrap();
    let mac = SealingKeys::parse(&[key]).unwrap().mac("test");
    let accept = ActWrite::TimeAccepted {
        cutoff: Box::new(SealedCutoff::seal(cutoff, &mac)),
        accepted: far,
    };
    let writes = Writes {
        acts: vec![accept],
        ..Writes::default()
    };
    let mut connection = store.ledger_connection().await.unwrap();
    connection.head_and_server().await.unwrap();
    connection.enter(&needs).await.unwrap();
    let owners = [("dev:7".to_owned(), "job".to_owned(), 50)];
    connection.count_open_tasks(&owners).await.unwrap();
    connection.write(&writes).await.unwrap();
    connection.rollback().await.unwrap();
    connection.confirmed_head().await.unwrap();
    assert!(connection.committed(&head).await.unwrap());
}

/// What a store says of itself.
async fn marks(store: &Store, real: &Real) {
    if let Store::Postgres(postgres) = store {
        postgres.check_schema().await.unwrap();
        postgres.grant_serving(&real.serving).await.unwrap();
        let confined = postgres.check_confined(Some(&real.serving));
        confined.await.unwrap();
    }
    store.clock().await.unwrap();
    store.connected_brokers().await.unwrap();
    store.shared_checkpoint_location().await.unwrap();
    let put = store.put_shared_checkpoint_location("/nowhere");
    put.await.unwrap();
    store.bootstrap_tokens().await.unwrap();
    store.bootstrap_token(&[1; 32]).await.unwrap();
    let none = (Timestamp::EPOCH, Timestamp::MAX);
    store.end_bootstrap_tokens(none.0, none.1).await.unwrap();
    store.horizon().await.unwrap();
    let moved = store.advance_horizon(none.0, none.0);
    moved.await.unwrap();
    let sealed = SealedSuccession {
        document: "x".into(),
        mac: vec![1],
    };
    store.put_succession(&sealed).await.unwrap();
    store.update_succession(&[1], &sealed).await.unwrap();
    store.remac_succession(&[1], &[2]).await.unwrap();
    store.ensure_partitions(0).await.unwrap();
}

/// Roles and keys. The MACs are those of no row, so nothing changes.
async fn identities(store: &Store) {
    store.roles_of("dev:a").await.unwrap();
    store.admin_bindings().await.unwrap();
    store.bound_roles().await.unwrap();
    store.check_rows().await.unwrap();
    store.workload_keys("keys", "batch").await.unwrap();
    store.registered_keys(100).await.unwrap();
    store.all_workload_keys(100).await.unwrap();
    store.signing_keys().await.unwrap();
    store.reseal_key("k", &[1], &[2], &[2]).await.unwrap();
    let cutoff = CutoffId::from(Uuid::nil());
    store.remac_cutoff(cutoff, &[1], &[2]).await.unwrap();
    store.remac_activation(1 << 40, &[1], &[2]).await.unwrap();
    let binding = AdminBinding {
        identity: "dev:a".into(),
        role: "none".into(),
        bound: true,
        index: 1,
        mac: vec![1],
    };
    store.remac_binding(&binding, &[2]).await.unwrap();
    let key = WorkloadKeyRow {
        attestor: "keys".into(),
        workload: "none".into(),
        thumbprint: "x".into(),
        jwk: None,
        index: 1,
        mac: vec![1],
    };
    store.remac_workload_key(&key, &[2]).await.unwrap();
}

async fn deny_lists(store: &Store, real: &Real) {
    let now = real.now;
    let target = DenyPolicyTarget {
        minter: MinterKind::Aws,
        name: format!("place-{}", real.round),
        registration: "{}".into(),
        capacity: 4,
        propagation_seconds: 60,
    };
    let session = |n: u8| {
        SessionId::from(Uuid::from_u128(
            u128::from(real.round) * 100 + 1 + u128::from(n),
        ))
    };
    let request = |n| DenyRequest {
        session: session(n),
        at: now,
        keep_until: now.plus_seconds(600),
        wish: DenyReason::Over,
    };
    let scheduled = store.upsert_and_schedule_deny_policy(&target, now);
    scheduled.await.unwrap();
    for n in 0..4 {
        store.request_denial(&target, &request(n)).await.unwrap();
    }
    store.note_deny_wish(&target, &request(5)).await.unwrap();
    store.list_waiting(&target, now).await.unwrap();
    store.deny_room(&target, now).await.unwrap();
    store.denied_sessions(&target, now).await.unwrap();
    store.revocation_progress(session(0)).await.unwrap();
    let until = now.plus_seconds(60);
    let claimed = store.claim_deny_policies("a", now, until, 5).await.unwrap();
    let claimed = claimed.iter().find(|one| one.target == target).unwrap();
    store
        .note_denied(&target, "a", &[session(0)], now)
        .await
        .unwrap();
    store
        .import_denied(&target, &[session(6), session(7)], now, until)
        .await
        .unwrap();
    store.unlist_unwritten(&target, 1, now).await.unwrap();
    let next = store.next_deny_generation(&target, "a", 0, now);
    next.await.unwrap();
    let noted = store.note_blanket_deny(&target, "a", Some(now));
    noted.await.unwrap();
    store.blanket_deny(&target).await.unwrap();
    let short = store.mark_deny_policy_short(claimed, 1, now);
    short.await.unwrap();
    store.count_short_deny_policies().await.unwrap();
    store.mark_deny_policy_fits(&target).await.unwrap();
    store.deny_policy_targets().await.unwrap();
    store.others_live_at(&target, "r", now).await.unwrap();
    // No worker claims it during this test.
    let far = now.plus_seconds(9 * 86_400);
    let done = store.mark_deny_policy_reconciled(&target, "a", None, now, far);
    done.await.unwrap();
    let failed = store.mark_deny_policy_failed(&target, "a", far);
    failed.await.unwrap();
}

/// Sinks of events, and other replicas.
async fn outside(store: &Store, real: &Real) {
    let now = real.now;
    let key = ExportKey {
        name: format!("sink-{}", real.round),
        origin: "test".into(),
    };
    let until = now.plus_seconds(60);
    let believed = BelievedTimes {
        due_at: Timestamp::MAX,
        lease_until: Timestamp::MAX,
    };
    store.register_export(&key, "one", 0, now).await.unwrap();
    store.export_cursor(&key).await.unwrap();
    store.see_export(&key, "one", now).await.unwrap();
    let taken = store.take_over_export(&key, "two", now, Timestamp::EPOCH, believed);
    taken.await.unwrap();
    let claimed = store.claim_export(&key, "one", "a", now, until, believed);
    claimed.await.unwrap();
    let moved = store.advance_export(&key, "a", 0, 1, until);
    moved.await.unwrap();
    store.release_export(&key, "a", Some(until)).await.unwrap();
    store.disable_export(&key, "one", now).await.unwrap();

    let replica = ReplicaRow {
        name: "other".into(),
        endpoints: EndpointsDigest("sha256:1".into()),
        seen_at: Timestamp::EPOCH,
    };
    store.put_replica(&replica).await.unwrap();
    let from = now.minus_seconds(60);
    store.replicas(from, until).await.unwrap();
    store.forget_replicas(from, until).await.unwrap();
}

async fn cosigned(store: &Store) {
    let row = CosignedRow {
        size: 7,
        vkey: "w0+key".into(),
        witness: "w0".into(),
        line: "l".into(),
        checkpoint: "c".into(),
    };
    store.put_cosigned(&row).await.unwrap();
    store.last_cosigned("w0+key").await.unwrap();
    store.cosigned_over(7, None).await.unwrap();
    store.cosigned_over(7, Some("w0")).await.unwrap();
    store.cosigned_until("w0+key", 100, 9).await.unwrap();
}

/// A round of pruning with many sessions, tasks and keys that are due. The log stays as it is.
async fn pruning(store: &Store, now: Timestamp) {
    const ROWS: u32 = 200;
    let early = Timestamp::EPOCH;
    for before in [early, now] {
        store.prune_one_time(before, ROWS).await.unwrap();
        store.prune_retries(before, ROWS).await.unwrap();
        store.prune_delegations(before, ROWS).await.unwrap();
        store.prune_sessions(before, None, ROWS).await.unwrap();
        store.prune_denied(before, ROWS).await.unwrap();
        store.prune_tasks(before, None, ROWS).await.unwrap();
    }
    store.prune_cutoffs(early, now, ROWS).await.unwrap();
    store.prune_endings(early, ROWS).await.unwrap();
    store.prune_openings(early, ROWS).await.unwrap();
    store.patrol_openings(early, 0, ROWS).await.unwrap();
    store.prune_bodies(early, ROWS).await.unwrap();
    store.prune_heads(0, ROWS).await.unwrap();
    store.prune_cosigned(ROWS).await.unwrap();
    // A leaf that does not exist.
    store.forget_purpose(1 << 40).await.unwrap();
    store.scrub().await.unwrap();
}
