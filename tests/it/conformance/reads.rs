//! Reads from a store that may be behind, and the sweeper's queries.

use taskpass::domain::validity::SessionView;

use super::*;
use crate::support::{SOON, until};
use std::time::Duration;

cases! {
    a_store_that_shows_fewer_leaves_than_are_known_is_not_asked: "fence" "ledger_connection";
    what_decides_validity_is_read_under_a_lease: "read_lease";
    decisions_and_acts_are_read_apart_and_so_many_at_a_time: "decisions_end" "acts";
    external_sessions_are_found_under_what_ended: "external_under";
    a_task_is_read_with_the_blocks_that_concern_it_and_no_others: "task_view";
    no_heartbeat_passes_a_cutoff_that_came_after_its_read: "task_view" "heartbeat" "cutoffs_of";
}

fn workload(identity: &str) -> Selector {
    Selector::Workload(identity.to_owned().try_into().unwrap())
}

/// A selector of each kind, and of each thing that a task can be about.
fn selectors() -> Vec<Selector> {
    vec![
        Selector::IssuedAfter(at(5)),
        Selector::All(True),
        workload("dev:a"),
        workload("up:p"),
        workload("dev:other"),
        Selector::Attestor("dev".into()),
        Selector::Attestor("up".into()),
        Selector::Attestor("other".into()),
        Selector::Task(task_id(1)),
        Selector::Task(task_id(2)),
        Selector::Task(task_id(3)),
        Selector::Task(task_id(4)),
        Selector::Resource("orders".into()),
        Selector::Generation(GenerationDigest::new([7; 32])),
        Selector::Policy("p_1%".into()),
        Selector::SigningKey("k1".into()),
        Selector::IssuedAfter(at(6)),
    ]
}

async fn a_task_is_read_with_the_blocks_that_concern_it_and_no_others(store: &Store) {
    /// The leaf of the oldest task.
    const OLDEST: u64 = 50;
    let opened = |task: Task| Task {
        leaf_index: OLDEST + u64::try_from(task.id.uuid().as_u128()).unwrap(),
        ..task
    };
    let parent = Task {
        owner: "up:p".to_owned().try_into().unwrap(),
        attestor: "up".into(),
        leaf_index: OLDEST,
        ..task(1, None)
    };
    let mut writes = Writes {
        tasks: vec![
            parent,
            opened(task(2, Some(1))),
            opened(task(3, Some(2))),
            opened(task(4, None)),
        ],
        ..Writes::default()
    };
    let mut all: Vec<Cutoff> = Vec::new();
    for selector in selectors() {
        for block in [
            Block::No,
            Block::Until(at(10)),
            Block::Until(at(30)),
            Block::UntilLifted,
        ] {
            for lifted_index in [None, Some(999)] {
                let index = all.len() as u64;
                let sealed = cutoff(u128::from(index) + 100, index, selector.clone(), block);
                let known = Cutoff {
                    lifted_index,
                    ..sealed.claimed().clone()
                };
                writes.acts.push(ActWrite::Cutoff(Box::new(sealed)));
                if lifted_index.is_some() {
                    let lifted = SealedCutoff::seal(known.clone(), &mac());
                    writes.acts.push(ActWrite::Lift(Box::new(lifted)));
                }
                all.push(known);
            }
        }
    }
    seed(store, writes).await;
    for now in [at(9), at(10), at(30)] {
        for n in 1..=4 {
            let view = store.task_view(task_id(n), now).await.unwrap().unwrap();
            let tasks = || std::iter::once(&view.task).chain(&view.above);
            let oldest = tasks().map(|task| task.leaf_index).min().unwrap();
            let expected = all.iter().filter(|one| {
                let concerns = tasks().any(|task| one.selector.concerns_task(task));
                let accepts = one.accepted().is_some() && one.index > oldest;
                one.blocks(now) && concerns || accepts
            });
            let expected: Vec<&Cutoff> = expected.collect();
            assert_eq!(view.cutoffs.iter().collect::<Vec<_>>(), expected, "{n}");
            assert!(view.is_blocked(now), "{n}");
            assert_eq!(view.newest_cutoff, Some(all.len() as u64 - 1));
        }
    }
}

/// When cutoffs ended these sessions. PostgreSQL shows the task of a heartbeat as it was before.
fn ends(views: &[SessionView]) -> Vec<(SessionId, Option<Timestamp>)> {
    let ends = views.iter().map(|view| (view.session.id, view.cut_off_at));
    ends.collect()
}

async fn no_heartbeat_passes_a_cutoff_that_came_after_its_read(store: &Store) {
    let early = cutoff(99, 0, Selector::Resource("orders".into()), Block::No);
    let given = Session {
        leaf_index: 4,
        ..session(11, 2, None)
    };
    let opened = |task: Task| Task {
        leaf_index: 4,
        ..task
    };
    seed(
        store,
        Writes {
            tasks: vec![opened(task(1, None)), opened(task(2, Some(1)))],
            sessions: vec![(given, None)],
            head: Some(sealed(5, 1)),
            acts: vec![ActWrite::Cutoff(Box::new(early))],
            ..Writes::default()
        },
    )
    .await;
    let hold = async |now| store.hold_task(task_id(2), at(now)).await.unwrap().unwrap();
    let heard = hold(10).await.hear(at(10), Some(5), 9).await.unwrap();
    let sessions = heard.unwrap().sessions;
    assert!(sessions[0].is_valid_at(at(10)), "the cutoff is older");
    let under = store.sessions_under(task_id(2), 9).await.unwrap();
    assert_eq!(ends(&sessions), ends(&under));

    let mut size = 5;
    for selector in selectors() {
        for block in [Block::No, Block::Until(at(90)), Block::UntilLifted] {
            let held = hold(20).await;
            assert_eq!(held.view.as_of, size);
            let n = u128::from(size);
            let writes = Writes {
                head: Some(sealed(size + 1, n)),
                ..acts(vec![ActWrite::Cutoff(Box::new(cutoff(
                    100 + n,
                    size,
                    selector.clone(),
                    block,
                )))])
            };
            seed(store, writes).await;
            let heard = held.hear(at(20), Some(size), 9).await.unwrap();
            assert!(heard.is_none(), "{selector}");
            size += 1;
        }
    }
    let kept = store.task(task_id(2)).await.unwrap().unwrap();
    assert_eq!(kept.heard_at, at(10));

    // The caller judges the blocks of a new read. The sessions have the ends by the cutoffs.
    let heard = hold(30).await.hear(at(30), Some(size), 9).await.unwrap();
    let sessions = heard.unwrap().sessions;
    assert!(!sessions[0].is_valid_at(at(30)));
    let under = store.sessions_under(task_id(2), 9).await.unwrap();
    assert_eq!(ends(&sessions), ends(&under));
}

async fn a_store_that_shows_fewer_leaves_than_are_known_is_not_asked(store: &Store) {
    seed(
        store,
        Writes {
            leaves: vec![leaf(0), leaf(1)],
            head: Some(sealed(2, 1)),
            ..Writes::default()
        },
    )
    .await;
    store.note_committed(2);
    assert_eq!(store.task(task_id(1)).await.unwrap(), None);
    store.note_committed(3);
    if store.kind() == "sqlite" {
        // SQLite has a single writer, so it cannot be behind.
        assert_eq!(store.task(task_id(1)).await.unwrap(), None);
        return;
    }
    for refused in [
        store.task(task_id(1)).await.map(drop),
        store.sealed_head().await.map(drop),
    ] {
        let Err(StoreError::NotPrimary(why)) = refused else {
            panic!("{refused:?}")
        };
        assert!(why.contains("shows 2 leaves, and 3"), "{why}");
    }
    // The store catches up. The ledger's own connection could read it all the while.
    seed(
        store,
        Writes {
            leaves: vec![leaf(2)],
            head: Some(sealed(3, 2)),
            ..Writes::default()
        },
    )
    .await;
    until("the store can be read again", SOON, async || {
        store
            .head(&head_seal())
            .await
            .is_ok_and(|it| it == Some(head(3)))
    })
    .await;
    assert_eq!(store.task(task_id(1)).await.unwrap(), None);
}

async fn what_decides_validity_is_read_under_a_lease(store: &Store) {
    let bound = Duration::from_millis(50);
    store.check_read_lease().unwrap();
    let Some(mut lease) = store.hold_read_lease(bound, 7).await.unwrap() else {
        assert_eq!(store.kind(), "sqlite");
        assert_eq!(store.read_lease_age(), Duration::ZERO);
        return;
    };
    tokio::time::sleep(2 * bound).await;
    assert!(store.read_lease_age() > bound);
    for refused in [
        store.task(task_id(1)).await.map(drop),
        store.check_read_lease(),
    ] {
        let Err(StoreError::NotPrimary(why)) = refused else {
            panic!("{refused:?}")
        };
        assert!(why.contains("no synchronous commit"), "{why}");
    }
    store.leaf(0).await.unwrap();
    let mut read = store.task(task_id(1)).await;
    // Retry, because a busy machine may be slower than the lease.
    for _ in 0..1_000 {
        lease.renew().await.unwrap();
        read = store.task(task_id(1)).await;
        if read.is_ok() {
            break;
        }
    }
    assert_eq!(read.unwrap(), None);
}

async fn decisions_and_acts_are_read_apart_and_so_many_at_a_time(store: &Store) {
    let act = |index| LeafRow {
        decision: None,
        ..leaf(index)
    };
    let leaves = vec![act(0), leaf(1), leaf(2), act(3), leaf(4), act(5)];
    seed(
        store,
        Writes {
            leaves,
            ..Writes::default()
        },
    )
    .await;
    let decisions = async |from, count| {
        let rows = store.decisions(from, 9, count).await.unwrap();
        rows.iter()
            .map(|row| (row.index, row.body.is_some(), row.input.is_some()))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        decisions(0, 9).await,
        [(1, true, true), (2, true, true), (4, true, true)]
    );
    assert_eq!(decisions(2, 1).await, [(2, true, true)]);
    assert_eq!(decisions(5, 9).await, []);
    let acts = async |from, to, count| {
        let rows = store.acts(from, to, count).await.unwrap();
        rows.iter()
            .map(|row| (row.index, row.body.is_some()))
            .collect::<Vec<_>>()
    };
    assert_eq!(acts(0, 9, 9).await, [(0, true), (3, true), (5, true)]);
    assert_eq!(acts(1, 5, 9).await, [(3, true)]);
    assert_eq!(acts(1, 9, 1).await, [(3, true)]);
    assert_eq!(acts(6, 9, 9).await, []);
}

async fn external_sessions_are_found_under_what_ended(store: &Store) {
    let external = |n, task, parent| {
        let mut one = session(n, task, parent);
        one.minter = MinterKind::Aws;
        one.revocability.class = RevocationClass::Bounded { bound_seconds: 60 };
        (one, None)
    };
    let token = |n, task, parent| (session(n, task, parent), None);
    let writes = Writes {
        tasks: vec![task(1, None), task(2, Some(1)), task(3, None)],
        sessions: vec![
            token(11, 1, None),
            external(12, 1, None),
            external(13, 2, Some(11)),
            external(14, 3, None),
        ],
        ..Writes::default()
    };
    seed(store, writes).await;
    let expiry = session(12, 1, None).expires_at;
    let found = async |tasks: &[u128], sessions: &[u128], now| {
        let tasks: Vec<_> = tasks.iter().map(|n| task_id(*n)).collect();
        let sessions: Vec<_> = sessions.iter().map(|n| session_id(*n)).collect();
        let views = store.external_under(&tasks, &sessions, now).await.unwrap();
        views.iter().map(|view| view.session.id).collect::<Vec<_>>()
    };
    assert_eq!(
        found(&[1], &[], at(1)).await,
        [session_id(12), session_id(13)],
        "includes the child task's"
    );
    assert_eq!(found(&[2], &[], at(1)).await, [session_id(13)]);
    assert_eq!(
        found(&[], &[11], at(1)).await,
        [session_id(13)],
        "the derived session"
    );
    assert_eq!(
        found(&[3], &[12], at(1)).await,
        [session_id(12), session_id(14)]
    );
    assert!(
        found(&[1, 3], &[11], expiry).await.is_empty(),
        "they have expired"
    );
    assert!(found(&[], &[], at(1)).await.is_empty());
}
