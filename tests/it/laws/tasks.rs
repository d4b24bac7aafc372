//! Tasks bound their credentials: nesting, delegation, budgets, deadlines and ends.

use std::collections::BTreeSet;

use taskpass::domain::leaf::{Effect, Event, Leaf};
use taskpass::domain::request::NewTask;
use taskpass::domain::task::TaskState;
use taskpass::ledger::entry::SweepCause;

use super::*;

/// A task that ends after thirty seconds without a heartbeat.
fn watched() -> NewTask {
    NewTask {
        task_type: "watched".into(),
        heartbeat_seconds: Some(30),
        ..job()
    }
}

async fn size(rig: &Rig) -> u64 {
    rig.broker.core.ledger().head().await.unwrap().unwrap().size
}

/// The ends of tasks in the leaves from this index on.
async fn ends(rig: &Rig, from: u64) -> Vec<Event> {
    let leaves = rig.broker.core.store().leaves(from, 99).await.unwrap();
    let bodies = leaves.into_iter().map(|leaf| leaf.body.unwrap());
    let events = bodies.map(|body| Leaf::from_bytes(&body).unwrap().event);
    events
        .filter(|event| matches!(event.facets().effect, Effect::EndsTasks(..)))
        .collect()
}

on_both_stores! {
    fn completing_a_task_kills_its_credential_at_once;
    fn expiry_deadline_and_silence_count_at_use_without_any_sweeper;
    fn silent_tasks_end_with_their_credentials_in_one_leaf_that_names_them;
    fn a_heartbeat_between_the_sweepers_read_and_the_lock_saves_its_task;
    fn a_heartbeat_and_the_sweeper_at_once_agree_on_the_end;
    fn a_deadline_is_closed_without_a_leaf_and_says_the_same_before_and_after;
    fn a_session_never_outlives_its_tasks_deadline;
    fn a_child_is_within_its_parent_and_dies_with_it;
    fn tasks_are_nested_so_deep_and_no_deeper;
    fn the_right_to_end_a_task_is_no_right_to_live_on_it;
    fn the_budget_of_a_task_is_shared_with_its_children;
    fn a_workload_has_only_so_many_tasks_open;
}

async fn completing_a_task_kills_its_credential_at_once(rig: Rig) {
    let issued = rig
        .issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
    assert!(rig.is_good(&issued).await);
    let ended = rig.end(&issued, TaskEnd::Complete).await.unwrap();
    assert!(!rig.is_good(&issued).await);
    assert_eq!(ended.task.state, TaskState::Completed);
    let status = ended.sessions[0].status;
    assert_eq!(
        (status.state, status.end_reason),
        (SessionState::Ended, Some(EndReason::Completed))
    );
    assert!(status.confirmed_at.is_some());
    // Ending is idempotent, and the first end stays.
    let again = rig.end(&issued, TaskEnd::Abort).await.unwrap();
    assert_eq!(again.task.state, TaskState::Completed);
    assert_eq!(
        refusal(
            rig.issue("agent:reports", ask_joining(&issued, &["orders:read"]))
                .await
        ),
        "task-ended"
    );
}

async fn expiry_deadline_and_silence_count_at_use_without_any_sweeper(rig: Rig) {
    let mut request = ask(&["orders:read"]);
    request.ttl_seconds = Some(100);
    let issued = rig.issue("agent:reports", request).await.unwrap();
    rig.clock.advance(99);
    assert!(rig.is_good(&issued).await);
    rig.clock.advance(1);
    assert!(!rig.is_good(&issued).await);

    let quiet = rig
        .issue("agent:reports", ask_in(watched(), &["orders:read"]))
        .await
        .unwrap();
    rig.clock.advance(29);
    rig.heartbeat(&quiet).await.unwrap();
    rig.clock.advance(29);
    assert!(rig.is_good(&quiet).await);
    rig.clock.advance(1);
    assert!(!rig.is_good(&quiet).await, "silent");
    // A heartbeat after the timeout does not restore the task.
    assert!(matches!(
        rig.heartbeat(&quiet).await,
        Err(BrokerError::TaskEnded)
    ));
    assert!(!rig.is_good(&quiet).await);
    sweep::sweep(&rig.broker, rig.now()).await;
    let task = rig
        .broker
        .core
        .store()
        .task(quiet.task.id)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        task.state,
        TaskState::Expired,
        "the sweeper records the state that already applied"
    );
}

async fn silent_tasks_end_with_their_credentials_in_one_leaf_that_names_them(rig: Rig) {
    let mut silent = Vec::new();
    for _ in 0..3 {
        silent.push(
            rig.issue("agent:reports", ask_in(watched(), &["orders:read"]))
                .await
                .unwrap(),
        );
    }
    let heard = rig
        .issue("agent:reports", ask_in(watched(), &["orders:read"]))
        .await
        .unwrap();
    let unwatched = rig
        .issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
    rig.clock.advance(29);
    rig.heartbeat(&heard).await.unwrap();
    rig.clock.advance(2);
    for quiet in &silent {
        assert!(!rig.is_good(quiet).await);
    }
    let before = size(&rig).await;
    sweep::sweep(&rig.broker, rig.now()).await;
    let leaves = ends(&rig, before).await;
    let [Event::TasksEnded { tasks, end, by }] = leaves.as_slice() else {
        panic!("{leaves:?}")
    };
    let named: BTreeSet<_> = tasks.iter().copied().collect();
    let expected: BTreeSet<_> = silent.iter().map(|quiet| quiet.task.id).collect();
    assert_eq!(
        (named, *end, by.as_str()),
        (expected, TaskEnd::Expire, "sweeper")
    );
    for quiet in &silent {
        assert!(!rig.is_good(quiet).await);
        let task = rig
            .broker
            .core
            .store()
            .task(quiet.task.id)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(task.state, TaskState::Expired);
        assert!(matches!(
            rig.heartbeat(quiet).await,
            Err(BrokerError::TaskEnded)
        ));
    }
    for alive in [&heard, &unwatched] {
        assert!(rig.is_good(alive).await);
        assert!(rig.heartbeat(alive).await.is_ok());
    }
    // Another round finds nothing to record.
    let before = size(&rig).await;
    sweep::sweep(&rig.broker, rig.now()).await;
    assert_eq!(ends(&rig, before).await, []);
}

async fn a_heartbeat_between_the_sweepers_read_and_the_lock_saves_its_task(rig: Rig) {
    let quiet = rig
        .issue("agent:reports", ask_in(watched(), &["orders:read"]))
        .await
        .unwrap();
    let heard = rig
        .issue("agent:reports", ask_in(watched(), &["orders:read"]))
        .await
        .unwrap();
    rig.clock.advance(29);
    rig.heartbeat(&heard).await.unwrap();
    rig.clock.advance(1);
    let before = size(&rig).await;
    // The sweeper read both before the heartbeat.
    let both = vec![heard.task.id, quiet.task.id];
    let cause = SweepCause::ExpiredBy(rig.now());
    assert!(
        rig.broker
            .tasks
            .sweep_tasks(both.clone(), cause)
            .await
            .unwrap()
    );
    let leaves = ends(&rig, before).await;
    let [Event::TasksEnded { tasks, .. }] = leaves.as_slice() else {
        panic!("{leaves:?}")
    };
    assert_eq!(*tasks, [quiet.task.id]);
    assert!(rig.is_good(&heard).await);
    rig.heartbeat(&heard).await.unwrap();
    // With none left to end, nothing is recorded.
    let before = size(&rig).await;
    assert!(!rig.broker.tasks.sweep_tasks(both, cause).await.unwrap());
    assert_eq!(size(&rig).await, before);
}

async fn a_heartbeat_and_the_sweeper_at_once_agree_on_the_end(rig: Rig) {
    for _ in 0..10 {
        let mut watchers = Vec::new();
        for _ in 0..4 {
            watchers.push(
                rig.issue("agent:reports", ask_in(watched(), &["orders:read"]))
                    .await
                    .unwrap(),
            );
        }
        rig.clock.advance(29);
        let beats = futures_util::future::join_all(watchers.iter().map(|one| rig.heartbeat(one)));
        let swept = async {
            rig.clock.advance(1);
            sweep::sweep(&rig.broker, rig.now()).await;
        };
        let (beats, ()) = tokio::join!(beats, swept);
        for (one, beat) in watchers.iter().zip(beats) {
            // A heartbeat that was accepted keeps its task and its credential.
            assert_eq!(beat.is_ok(), rig.is_good(one).await, "{beat:?}");
            rig.end(one, TaskEnd::Complete).await.unwrap();
        }
    }
}

async fn a_deadline_is_closed_without_a_leaf_and_says_the_same_before_and_after(rig: Rig) {
    let short = NewTask {
        deadline_seconds: Some(60),
        ..job()
    };
    let parent = rig
        .issue("agent:reports", ask_in(short.clone(), &["orders:read"]))
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
    let quiet = NewTask {
        heartbeat_seconds: Some(30),
        task_type: "watched".into(),
        ..short
    };
    let quiet = rig
        .issue("agent:reports", ask_in(quiet, &["orders:read"]))
        .await
        .unwrap();
    rig.clock.advance(61);
    let seen = async || {
        let mut seen = Vec::new();
        for one in [&parent, &child, &quiet] {
            assert!(!rig.is_good(one).await);
            let view = rig
                .broker
                .core
                .store()
                .session_view(one.session.id)
                .await
                .unwrap()
                .unwrap();
            let chain = view
                .tasks
                .ended(rig.now())
                .map(|ending| (ending.at, ending.cause));
            seen.push((view.status_at(rig.now()), chain));
        }
        seen
    };
    let (before, views) = (size(&rig).await, seen().await);
    sweep::sweep(&rig.broker, rig.now()).await;
    assert_eq!(ends(&rig, before).await, []);
    assert_eq!(seen().await, views);
    for one in [&parent, &child, &quiet] {
        let task = rig
            .broker
            .core
            .store()
            .task(one.task.id)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(
            (task.state, task.ended_at),
            (TaskState::Expired, Some(task.life().expires_at()))
        );
        assert!(matches!(
            rig.heartbeat(one).await,
            Err(BrokerError::TaskEnded)
        ));
        // It ends in no other way, and the first end stays.
        assert_eq!(
            rig.end(one, TaskEnd::Complete).await.unwrap().task.state,
            TaskState::Expired
        );
    }
}

async fn a_session_never_outlives_its_tasks_deadline(rig: Rig) {
    let short = NewTask {
        deadline_seconds: Some(60),
        ..job()
    };
    let issued = rig
        .issue("agent:reports", ask_in(short.clone(), &["orders:read"]))
        .await
        .unwrap();
    assert!(issued.session.expires_at <= issued.task.deadline);
    let mut asks_more = ask_in(short, &["orders:read"]);
    asks_more.ttl_seconds = Some(61);
    assert_eq!(
        refusal(rig.issue("agent:reports", asks_more).await),
        "ttl-too-long"
    );
}

async fn a_child_is_within_its_parent_and_dies_with_it(rig: Rig) {
    let mut request = ask(&["orders:read"]);
    request.ttl_seconds = Some(300);
    let parent = rig.issue("agent:reports", request).await.unwrap();
    // A request beyond the parent's grant.
    let lent = rig.delegate(&parent, "agent:child").await.unwrap();
    let beyond = ask_in(child_of(parent.task.id, &lent), &["orders:write"]);
    assert_eq!(
        refusal(rig.issue("agent:child", beyond).await),
        "exceeds-parent"
    );
    // A request within it; the child never lasts longer than its parent.
    let lent = rig.delegate(&parent, "agent:child").await.unwrap();
    let child = rig
        .issue(
            "agent:child",
            ask_in(child_of(parent.task.id, &lent), &["orders:read"]),
        )
        .await
        .unwrap();
    assert!(child.session.expires_at <= parent.session.expires_at);
    let said = claims(&child);
    assert_eq!(said["sub"], "dev:agent%3Areports");
    assert_eq!(said["act"], json!({"sub": "dev:agent%3Achild"}));
    // A delegation is for one workload, and can be used once.
    let again = ask_in(child_of(parent.task.id, &lent), &["orders:read"]);
    assert!(matches!(
        rig.issue("agent:child", again).await,
        Err(BrokerError::Replayed)
    ));
    let other = rig.delegate(&parent, "agent:child").await.unwrap();
    let stranger = ask_in(child_of(parent.task.id, &other), &["orders:read"]);
    assert!(matches!(
        rig.issue("agent:orders", stranger).await,
        Err(BrokerError::NotFound("task"))
    ));
    assert!(rig.is_good(&child).await);
    rig.end(&parent, TaskEnd::Complete).await.unwrap();
    assert!(!rig.is_good(&child).await, "ending a task ends the tree");
}

async fn tasks_are_nested_so_deep_and_no_deeper(rig: Rig) {
    let opened = rig
        .broker
        .tasks
        .open_task(&rig.evidence("agent:child"), job())
        .await
        .unwrap();
    let mut parent = opened.task;
    let child: taskpass::domain::workload::Identity =
        "dev:agent%3Achild".to_owned().try_into().unwrap();
    for depth in 2..=9 {
        let authority = TaskAuthority::Handle(parent.handle.clone().unwrap(), Evidence::default());
        let lent = rig
            .broker
            .tasks
            .delegate(parent.id, authority, child.clone(), 6, None)
            .await
            .unwrap();
        let opened = rig
            .broker
            .tasks
            .open_task(&rig.evidence("agent:child"), child_of(parent.id, &lent))
            .await;
        if depth == 9 {
            let Err(BrokerError::Denied(denied)) = opened else {
                panic!("{opened:?}")
            };
            assert_eq!(denied.refusal.code.as_str(), "too-deep");
            break;
        }
        parent = opened.unwrap().task;
    }
}

async fn the_right_to_end_a_task_is_no_right_to_live_on_it(rig: Rig) {
    let issued = rig
        .issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
    let admin = || TaskAuthority::Owner(rig.admin());
    let child = "dev:agent%3Achild".to_owned().try_into().unwrap();
    let lent = rig
        .broker
        .tasks
        .delegate(issued.task.id, admin(), child, 1, None)
        .await;
    assert!(
        matches!(lent, Err(BrokerError::NotFound("task"))),
        "{lent:?}"
    );
    let beat = rig.broker.tasks.heartbeat(issued.task.id, admin()).await;
    assert!(matches!(beat, Err(BrokerError::NotFound("task"))));
    rig.broker
        .tasks
        .end_task(issued.task.id, admin(), TaskEnd::Abort)
        .await
        .unwrap();
    assert!(!rig.is_good(&issued).await);
}

async fn the_budget_of_a_task_is_shared_with_its_children(rig: Rig) {
    // `job` allows six: one for the parent, two lent, three more.
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
    rig.issue("agent:child", ask_joining(&child, &["orders:read"]))
        .await
        .unwrap();
    assert_eq!(
        refusal(
            rig.issue("agent:child", ask_joining(&child, &["orders:read"]))
                .await
        ),
        "task-budget"
    );
    for _ in 0..3 {
        rig.issue("agent:reports", ask_joining(&parent, &["orders:read"]))
            .await
            .unwrap();
    }
    assert_eq!(
        refusal(
            rig.issue("agent:reports", ask_joining(&parent, &["orders:read"]))
                .await
        ),
        "task-budget"
    );
}

async fn a_workload_has_only_so_many_tasks_open(rig: Rig) {
    let asks = (0..60).map(|_| rig.issue("agent:reports", ask(&["orders:read"])));
    let results = futures_util::future::join_all(asks).await;
    let granted = results.iter().filter(|result| result.is_ok()).count();
    assert_eq!(granted, 50, "the limit also holds within one batch");
}
