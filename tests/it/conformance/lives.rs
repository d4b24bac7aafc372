//! Statements of tasks, retries and delegations.

use super::*;

cases! {
    a_task_is_kept_heard_and_looked_at_when_due: "task" "tasks" "task_chains" "owns_part_of"
        "check_due_tasks";
    due_tasks_are_closed_claimed_or_put_off_in_one_statement: "check_due_tasks";
    a_task_is_held_for_a_batch_unless_a_heartbeat_has_its_row: "hold_tasks" "open_tasks";
    a_heartbeat_is_noted_only_if_nothing_that_decides_came_since_it_was_judged: "task_view"
        "heartbeat";
    an_idempotency_key_is_known_until_it_may_be_used_anew: "retry" "prune_retries";
    a_delegation_is_found_by_its_digest: "delegation" "write_delegation";
}

/// A check at `now` of tasks that have expired by `over_by`, with claims of ten seconds.
fn check(now: i64, over_by: i64) -> TaskCheck<'static> {
    TaskCheck {
        now: at(now),
        over_by: at(over_by),
        retry_at: at(now + 10),
        accepted: &[],
        limit: 5,
    }
}

/// The tasks that were due and are open after the check.
async fn open_after(store: &Store, check: TaskCheck<'_>) -> Vec<TaskId> {
    let checked = store.check_due_tasks(&check).await.unwrap();
    assert_eq!((checked.past_deadline, checked.unreadable), (0, 0));
    checked.open.iter().map(|due| due.life.id).collect()
}

/// Tasks 1 and 2 expire by their deadline, 3 and 4 by silence, 5 later; 6 is unreadable.
async fn due_tasks_are_closed_claimed_or_put_off_in_one_statement(store: &Store) {
    let watched = |n, deadline, heard_at| Task {
        heartbeat_seconds: Some(60),
        deadline: at(deadline),
        heard_at: at(heard_at),
        ..task(n, None)
    };
    let short = Task {
        deadline: at(90),
        ..task(1, None)
    };
    let odd = Task {
        heartbeat_seconds: Some(0),
        ..task(6, None)
    };
    let tasks = vec![
        short,
        watched(2, 90, 0),
        watched(3, 1_000, 0),
        watched(4, 1_000, 0),
        watched(5, 1_000, 0),
        odd,
    ];
    seed(
        store,
        Writes {
            tasks,
            ..Writes::default()
        },
    )
    .await;
    spoil_heartbeat(store, task_id(6)).await;
    assert!(heartbeat_accepted(store, task_id(5), at(50)).await);
    let all = |now, over_by| TaskCheck {
        limit: 9,
        ..check(now, over_by)
    };

    // By the clock all but 5 have expired, but none by the instant that is relied on.
    let checked = store.check_due_tasks(&all(100, 30)).await.unwrap();
    assert_eq!((checked.past_deadline, checked.open.len()), (0, 5));
    assert_eq!((checked.unreadable, checked.is_full), (1, false));
    assert_eq!(
        store.check_due_tasks(&all(100, 100)).await.unwrap(),
        CheckedTasks::default(),
        "the next check is later than now"
    );

    // Those that have expired by the clock are claimed for ten seconds, and so is the unreadable one.
    // The live one was put off to its expiry, which has come too.
    let checked = store.check_due_tasks(&all(110, 100)).await.unwrap();
    let open: BTreeMap<_, _> = checked
        .open
        .iter()
        .map(|due| (due.life.id, due.life.expires_at()))
        .collect();
    assert_eq!(
        open,
        BTreeMap::from([
            (task_id(3), at(60)),
            (task_id(4), at(60)),
            (task_id(5), at(110))
        ])
    );
    assert_eq!((checked.past_deadline, checked.unreadable), (2, 1));
    for (n, ended) in [(1, at(90)), (2, at(60))] {
        let closed = store.task(task_id(n)).await.unwrap().unwrap();
        assert_eq!(
            (closed.state, closed.ended_at),
            (TaskState::Expired, Some(ended)),
            "{n}"
        );
    }
    let claimed = store.check_due_tasks(&all(119, 119)).await.unwrap();
    assert_eq!(claimed, CheckedTasks::default());
    let limited = TaskCheck {
        limit: 1,
        ..check(120, 120)
    };
    let checked = store.check_due_tasks(&limited).await.unwrap();
    assert!(checked.is_full);

    // Opened before the accepting leaf, by a clock that was ahead of the accepted time.
    let accepted = [(7, at(-1))];
    let suspected = TaskCheck {
        accepted: &accepted,
        ..all(1_000, 0)
    };
    let checked = store.check_due_tasks(&suspected).await.unwrap();
    assert!(checked.open.len() >= 2);
    let due = store.check_due_tasks(&all(1_009, 0)).await.unwrap();
    assert_eq!(due.open, [], "claimed");
    let due = store.check_due_tasks(&all(1_010, 0)).await.unwrap();
    assert_eq!(due.open.len(), checked.open.len());
}

async fn a_task_is_held_for_a_batch_unless_a_heartbeat_has_its_row(store: &Store) {
    seed(
        store,
        Writes {
            tasks: vec![task(1, None), task(2, None)],
            ..Writes::default()
        },
    )
    .await;
    let needs = Needs {
        tasks: vec![task_id(1), task_id(2)],
        held_tasks: vec![task_id(1), task_id(2)],
        ..Needs::default()
    };
    let both = HashSet::from([task_id(1), task_id(2)]);
    assert_eq!(seen(store, needs.clone()).await.held_tasks, both);
    let Some(url) = OWNED.take() else {
        return;
    };
    let mut owner = sqlx::PgConnection::connect(&url).await.unwrap();
    let mut heartbeat = owner.begin().await.unwrap();
    sqlx::query("UPDATE task SET heard_at = heard_at WHERE id = $1")
        .bind(task_id(2))
        .execute(&mut *heartbeat)
        .await
        .unwrap();
    // The batch does not wait for it.
    let held = seen(store, needs.clone()).await.held_tasks;
    assert_eq!(held, HashSet::from([task_id(1)]));
    heartbeat.rollback().await.unwrap();
    assert_eq!(seen(store, needs).await.held_tasks, both);
    OWNED.set(Some(url));
}

/// Makes a task's row unreadable: no broker writes a negative interval.
async fn spoil_heartbeat(store: &Store, id: TaskId) {
    const SQL: &str = "UPDATE task SET heartbeat_seconds = -1 WHERE id = $1";
    match store {
        Store::Postgres(_) => {
            let url = OWNED.take().unwrap();
            let mut owner = sqlx::PgConnection::connect(&url).await.unwrap();
            sqlx::query(SQL).bind(id).execute(&mut owner).await.unwrap();
            OWNED.set(Some(url));
        }
        Store::Sqlite(sqlite) => {
            let spoil = sqlx::query(SQL).bind(id);
            spoil.execute(sqlite.writer()).await.unwrap();
        }
    }
}

#[expect(clippy::too_many_lines, reason = "the steps of one case")]
async fn a_task_is_kept_heard_and_looked_at_when_due(store: &Store) {
    let watched = Task {
        heartbeat_seconds: Some(60),
        ..task(2, Some(1))
    };
    seed(
        store,
        Writes {
            tasks: vec![task(1, None), watched.clone(), task(3, None)],
            ..Writes::default()
        },
    )
    .await;
    assert_eq!(store.task(task_id(2)).await.unwrap(), Some(watched));
    assert_eq!(store.task(task_id(9)).await.unwrap(), None);

    let all = TaskFilter {
        limit: 2,
        ..TaskFilter::default()
    };
    let page = |tasks: Vec<Task>| tasks.into_iter().map(|task| task.id).collect::<Vec<_>>();
    let first = page(store.tasks(&all).await.unwrap());
    assert_eq!(first, [task_id(3), task_id(2)], "newest first");
    let rest = TaskFilter {
        before: Some(task_id(2)),
        ..all.clone()
    };
    assert_eq!(page(store.tasks(&rest).await.unwrap()), [task_id(1)]);
    let others = TaskFilter {
        owner: Some("dev:b".into()),
        ..all.clone()
    };
    assert_eq!(store.tasks(&others).await.unwrap(), vec![]);
    let over = TaskFilter {
        state: Some(TaskState::Completed),
        ..all.clone()
    };
    assert_eq!(store.tasks(&over).await.unwrap(), vec![]);
    for owner in [None, Some("dev:a".to_owned())] {
        let open = TaskFilter {
            state: Some(TaskState::Open),
            owner,
            before: Some(task_id(3)),
            ..all.clone()
        };
        assert_eq!(
            page(store.tasks(&open).await.unwrap()),
            [task_id(2), task_id(1)]
        );
    }

    let chains = store.task_chains(&[task_id(2), task_id(9)]).await.unwrap();
    let chain: Vec<TaskId> = chains[&task_id(2)].0.iter().map(|life| life.id).collect();
    assert_eq!((chain, chains.len()), (vec![task_id(2), task_id(1)], 1));
    assert!(store.task_chains(&[]).await.unwrap().is_empty());
    for id in [1, 2] {
        assert!(
            store.owns_part_of("dev:a", task_id(id)).await.unwrap(),
            "{id}"
        );
        assert!(
            !store.owns_part_of("dev:b", task_id(id)).await.unwrap(),
            "{id}"
        );
    }
    assert!(!store.owns_part_of("dev:a", task_id(9)).await.unwrap());
    let view = seen(
        store,
        Needs {
            tasks: vec![task_id(2)],
            ..Needs::default()
        },
    )
    .await;
    assert_eq!(
        view.tasks.keys().collect::<BTreeSet<_>>(),
        BTreeSet::from([&task_id(1), &task_id(2)])
    );
    assert_eq!(view.tasks[&task_id(2)].parent, Some(task_id(1)));
    let owner = ("dev:a".to_owned(), "job".to_owned());
    let count = Needs {
        open_tasks: vec![(owner.0.clone(), owner.1.clone(), 2)],
        now: Some(at(1)),
        ..Needs::default()
    };
    assert_eq!(
        seen(store, count).await.open_tasks[&owner],
        2,
        "the count stops at the limit"
    );
    let mut connection = store.ledger_connection().await.unwrap();
    connection.enter(&Needs::default()).await.unwrap();
    let other = ("dev:b".to_owned(), "job".to_owned());
    let wanted = [&owner, &other].map(|(owner, kind)| (owner.clone(), kind.clone(), 9));
    let counted = connection.count_open_tasks(&wanted).await.unwrap();
    connection.rollback().await.unwrap();
    drop(connection);
    assert_eq!(counted, HashMap::from([(owner.clone(), 3), (other, 0)]));

    assert!(heartbeat_accepted(store, task_id(2), at(59)).await);
    assert!(
        heartbeat_accepted(store, task_id(2), at(20)).await,
        "an older heartbeat changes nothing"
    );
    assert_eq!(
        store.task(task_id(2)).await.unwrap().unwrap().heard_at,
        at(59)
    );
    assert!(
        !heartbeat_accepted(store, task_id(2), at(119)).await,
        "the heartbeat timeout has passed"
    );
    assert!(
        !heartbeat_accepted(store, task_id(1), at(1_000)).await,
        "past its deadline"
    );
    assert!(!heartbeat_accepted(store, task_id(9), at(1)).await);

    assert_eq!(
        open_after(store, check(59, 59)).await,
        [],
        "due when the heartbeat timeout ends"
    );
    assert_eq!(
        open_after(store, check(60, 60)).await,
        [task_id(2)],
        "a heartbeat came at 59, so the task is put off"
    );
    assert_eq!(open_after(store, check(118, 118)).await, []);
    assert_eq!(open_after(store, check(119, 119)).await, [task_id(2)]);

    let end = TaskChange {
        end: Some((TaskState::Completed, at(7), 4)),
        sessions_taken: 2,
        handle: Some([8; 32]),
    };
    seed(
        store,
        Writes {
            task_changes: BTreeMap::from([(task_id(1), end)]),
            ..Writes::default()
        },
    )
    .await;
    let ended = store.task(task_id(1)).await.unwrap().unwrap();
    assert_eq!(
        (ended.state, ended.ended_at, ended.sessions_left),
        (TaskState::Completed, Some(at(7)), 3)
    );
    assert_eq!(ended.handle_digest, [8; 32]);
    assert!(
        !heartbeat_accepted(store, task_id(1), at(8)).await,
        "an ended task stays ended"
    );
}

#[expect(clippy::too_many_lines, reason = "the steps of one case")]
async fn a_heartbeat_is_noted_only_if_nothing_that_decides_came_since_it_was_judged(store: &Store) {
    let dated = |task: Task, leaf_index| Task { leaf_index, ..task };
    let writes = Writes {
        tasks: vec![
            dated(task(1, None), 2),
            dated(task(2, Some(1)), 3),
            dated(task(3, None), 3),
        ],
        sessions: vec![
            (
                Session {
                    leaf_index: 2,
                    ..session(11, 1, None)
                },
                None,
            ),
            (
                Session {
                    leaf_index: 3,
                    ..session(12, 2, Some(11))
                },
                None,
            ),
        ],
        head: Some(sealed(5, 1)),
        acts: [
            cutoff(
                60,
                0,
                Selector::Workload("dev:b".to_owned().try_into().unwrap()),
                Block::UntilLifted,
            ),
            cutoff(61, 1, Selector::All(True), Block::Until(at(10))),
            cutoff(62, 4, Selector::Resource("orders".into()), Block::No),
        ]
        .map(|one| ActWrite::Cutoff(Box::new(one)))
        .into(),
        ..Writes::default()
    };
    seed(store, writes).await;
    assert!(store.task_view(task_id(9), at(1)).await.unwrap().is_none());
    let view = store.task_view(task_id(2), at(10)).await.unwrap().unwrap();
    assert_eq!(
        (
            view.task.id,
            view.chain.0.len(),
            view.as_of,
            view.generation
        ),
        (task_id(2), 2, 5, None)
    );
    assert_eq!(
        view.above.iter().map(|task| task.id).collect::<Vec<_>>(),
        [task_id(1)]
    );
    assert!(view.cutoffs.is_empty(), "none blocks it");
    assert_eq!(view.newest_cutoff, Some(4));
    assert!(!view.is_blocked(at(10)), "another's");
    let earlier = store.task_view(task_id(2), at(9)).await.unwrap().unwrap();
    assert!(earlier.is_blocked(at(9)), "everybody's");

    let beat = async |n, now, since, limit| {
        let held = store.hold_task(task_id(n), at(now)).await.unwrap().unwrap();
        held.hear(at(now), since, limit).await.unwrap()
    };
    for n in [1, 2, 3] {
        assert_eq!(beat(n, 20, Some(5), 9).await.unwrap().heard_at, at(20));
    }
    let heard = beat(1, 20, Some(5), 9).await.unwrap();
    assert_eq!(
        heard.sessions,
        store.sessions_under(task_id(1), 9).await.unwrap()
    );
    let mut alone = Vec::new();
    for n in [11, 12] {
        alone.push(store.session_view(session_id(n)).await.unwrap().unwrap());
    }
    assert_eq!(heard.sessions, alone, "each separately");
    assert_eq!(alone[1].cut_off_at, Some(at(2)));
    assert_eq!(beat(1, 20, Some(5), 1).await.unwrap().sessions, alone[..1]);
    assert_eq!(beat(2, 20, Some(5), 9).await.unwrap().sessions, alone[1..]);
    assert_eq!(beat(3, 20, Some(5), 9).await.unwrap().sessions, []);

    seed(
        store,
        acts(vec![ActWrite::Cutoff(Box::new(cutoff(
            63,
            5,
            Selector::All(True),
            Block::No,
        )))]),
    )
    .await;
    assert!(beat(1, 30, Some(5), 9).await.is_none());
    assert_eq!(
        store.task(task_id(1)).await.unwrap().unwrap().heard_at,
        at(20)
    );
    assert!(beat(1, 30, Some(6), 9).await.is_some());
    let activate = ActWrite::Activation {
        sealed: SealedActivation::seal(6, GenerationDigest::new([1; 32]), &mac()),
        document: b"x".as_slice().into(),
        by: "x".into(),
        at: at(30),
    };
    seed(store, acts(vec![activate])).await;
    assert!(beat(1, 40, Some(6), 9).await.is_none());
    assert!(beat(1, 40, Some(7), 9).await.is_some());
    let view = store.task_view(task_id(1), at(40)).await.unwrap().unwrap();
    assert_eq!(view.generation, Some(GenerationDigest::new([1; 32])));
    assert!(
        beat(1, 50, None, 9).await.is_some(),
        "judged while the row is locked"
    );

    let held = store.hold_task(task_id(1), at(60)).await.unwrap().unwrap();
    assert!(
        held.hear(at(60), None, 9).await.unwrap().is_some(),
        "by what was read before"
    );
}

async fn an_idempotency_key_is_known_until_it_may_be_used_anew(store: &Store) {
    let facts = |supersedes| RetryFacts {
        fingerprint: [5; 32],
        session: session_id(11),
        task: task_id(1),
        supersedes,
        expires_at: at(50),
    };
    for supersedes in [0, 1] {
        seed(
            store,
            Writes {
                retries: HashMap::from([([4; 32], facts(supersedes))]),
                ..Writes::default()
            },
        )
        .await;
        assert_eq!(
            store.retry(&[4; 32], at(49)).await.unwrap(),
            Some(facts(supersedes)),
            "the newer retry replaces the older"
        );
    }
    assert!(facts(1).stands(at(49)) && !facts(1).stands(at(50)));
    assert_eq!(store.retry(&[3; 32], at(49)).await.unwrap(), None);
    let view = seen(
        store,
        Needs {
            retries: vec![[4; 32]],
            now: Some(at(49)),
            ..Needs::default()
        },
    )
    .await;
    assert_eq!(view.retries[&[4; 32]], facts(1));
    // A later use of the key has a row of its own, which counts.
    let later = RetryFacts {
        expires_at: at(90_000),
        ..facts(0)
    };
    seed(
        store,
        Writes {
            retries: HashMap::from([([4; 32], later.clone())]),
            ..Writes::default()
        },
    )
    .await;
    assert_eq!(
        store.retry(&[4; 32], at(50)).await.unwrap().as_ref(),
        Some(&later)
    );
    let needs = Needs {
        retries: vec![[4; 32]],
        now: Some(at(50)),
        ..Needs::default()
    };
    assert_eq!(seen(store, needs).await.retries[&[4; 32]], later);
    assert_eq!(
        (
            store.prune_retries(at(50), 5).await.unwrap(),
            store.prune_retries(at(51), 5).await.unwrap()
        ),
        (0, 1)
    );
}

async fn a_delegation_is_found_by_its_digest(store: &Store) {
    let write = ActWrite::Delegation {
        digest: [6; 32],
        task: task_id(1),
        child: "dev:c".into(),
        sessions: 3,
        expires_at: at(30),
    };
    seed(
        store,
        Writes {
            tasks: vec![task(1, None)],
            acts: vec![write],
            ..Writes::default()
        },
    )
    .await;
    let found = store.delegation(&[6; 32]).await.unwrap().unwrap();
    assert_eq!(
        (
            found.task,
            found.child.as_str(),
            found.sessions,
            found.expires_at
        ),
        (task_id(1), "dev:c", 3, at(30))
    );
    assert!(store.delegation(&[7; 32]).await.unwrap().is_none());
    assert_eq!(
        (
            store.prune_delegations(at(30), 5).await.unwrap(),
            store.prune_delegations(at(31), 5).await.unwrap()
        ),
        (0, 1)
    );
}
