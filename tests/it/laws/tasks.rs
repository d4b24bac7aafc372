//! Tasks bound their credentials: nesting, delegation, budgets, deadlines and ends.

use taskpass::domain::task::TaskState;

use super::*;

on_both_stores! {
    fn completing_a_task_kills_its_credential_at_once;
    fn expiry_deadline_and_silence_count_at_use_without_any_sweeper;
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

    let watched = taskpass::domain::request::NewTask {
        task_type: "watched".into(),
        heartbeat_seconds: Some(30),
        ..job()
    };
    let quiet = rig
        .issue("agent:reports", ask_in(watched, &["orders:read"]))
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

async fn a_session_never_outlives_its_tasks_deadline(rig: Rig) {
    let short = taskpass::domain::request::NewTask {
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
