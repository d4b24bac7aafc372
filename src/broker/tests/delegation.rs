//! Delegation: children of a task.

use super::*;

#[tokio::test]
async fn a_child_is_admitted_once_by_the_identity_that_the_parent_named() {
    let unit = Unit::new().await;
    let parent = unit.issue_job("parent").await;
    let delegation = unit.delegate(&parent, "child", 1).await.unwrap();
    let stranger = unit
        .issue("stranger", child_of(parent.task.id, &delegation))
        .await;
    assert!(stranger.is_err(), "{stranger:?}");
    let child = unit
        .issue("child", child_of(parent.task.id, &delegation))
        .await
        .unwrap();
    assert_eq!(child.session.parent, Some(parent.session.id));
    let again = unit
        .issue("child", child_of(parent.task.id, &delegation))
        .await;
    assert!(again.is_err(), "{again:?}");
}

#[tokio::test]
async fn a_child_takes_its_credentials_from_the_parents_budget() {
    let unit = Unit::new().await;
    let parent = unit.issue_job("parent").await;
    // The task has three credentials, and one of them was issued already.
    assert!(matches!(
        unit.delegate(&parent, "child", 3).await,
        Err(BrokerError::Invalid {
            pointer: "/max_credentials",
            ..
        })
    ));
    let delegation = unit.delegate(&parent, "child", 2).await.unwrap();
    unit.issue("child", child_of(parent.task.id, &delegation))
        .await
        .unwrap();
    let refused = unit.issue("parent", joining(&parent)).await;
    assert_eq!(refusal(refused), RefusalCode::TaskBudget);
}

#[tokio::test]
async fn a_child_ends_with_its_parent() {
    let unit = Unit::new().await;
    let parent = unit.issue_job("parent").await;
    let child = unit.issue_child(&parent).await;
    assert!(unit.is_active(&child).await);
    unit.end(&parent, TaskEnd::Complete).await.unwrap();
    assert!(!unit.is_active(&child).await);
}

#[tokio::test]
async fn a_childs_credential_ends_with_the_session_that_covers_it() {
    let unit = Unit::new().await;
    let parent = unit.issue_job("parent").await;
    let child = unit.issue_child(&parent).await;
    assert!(child.session.expires_at <= parent.session.expires_at);
    unit.broker
        .revocation
        .revoke_session(&admin(), parent.session.id)
        .await
        .unwrap();
    assert!(!unit.is_active(&child).await);
}

#[tokio::test]
async fn an_ended_task_lends_nothing() {
    let unit = Unit::new().await;
    let parent = unit.issue_job("parent").await;
    unit.end(&parent, TaskEnd::Abort).await.unwrap();
    let refused = unit.delegate(&parent, "child", 1).await;
    assert!(
        matches!(refused, Err(BrokerError::TaskEnded)),
        "{refused:?}"
    );
}

#[tokio::test]
async fn an_ended_parent_ends_the_heartbeats_of_its_child() {
    let unit = Unit::new().await;
    let parent = unit.issue_job("parent").await;
    let child = unit.issue_child(&parent).await;
    let beat = || {
        unit.broker
            .tasks
            .heartbeat(child.task.id, by_handle(&child))
    };
    beat().await.unwrap();
    unit.end(&parent, TaskEnd::Complete).await.unwrap();
    let late = beat().await;
    assert!(matches!(late, Err(BrokerError::TaskEnded)), "{late:?}");
}
