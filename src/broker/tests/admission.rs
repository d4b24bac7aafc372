//! Admission of requests to tasks.

use super::*;

#[tokio::test]
async fn a_request_opens_a_task_and_a_later_one_joins_it_by_its_handle() {
    let unit = Unit::new().await;
    let first = unit.issue_job("agent").await;
    let second = unit.issue("agent", joining(&first)).await.unwrap();
    assert_eq!(second.task.id, first.task.id);
    assert_ne!(second.session.id, first.session.id);
    assert!(unit.is_active(&first).await && unit.is_active(&second).await);
}

#[tokio::test]
async fn a_task_gives_as_many_credentials_as_its_type_allows() {
    let unit = Unit::new().await;
    let first = unit.issue_job("agent").await;
    for _ in 0..2 {
        unit.issue("agent", joining(&first)).await.unwrap();
    }
    let refused = unit.issue("agent", joining(&first)).await;
    assert_eq!(refusal(refused), RefusalCode::TaskBudget);
}

#[tokio::test]
async fn a_workload_opens_as_many_tasks_as_its_type_allows() {
    let unit = Unit::new().await;
    let first = unit.issue_job("agent").await;
    unit.issue_job("agent").await;
    assert_eq!(
        refusal(unit.issue("agent", job()).await),
        RefusalCode::TooManyOpenTasks
    );
    // The limit is per workload, and tasks that have ended do not count.
    unit.issue_job("other").await;
    unit.end(&first, TaskEnd::Complete).await.unwrap();
    unit.issue_job("agent").await;
}

#[tokio::test]
async fn a_handle_joins_its_own_task_only() {
    let unit = Unit::new().await;
    let first = unit.issue_job("agent").await;
    let second = unit.issue_job("agent").await;
    let crossed = TaskSelector::Join {
        id: first.task.id,
        handle: handle(&second),
    };
    let refused = unit.issue("agent", crossed).await;
    assert!(
        matches!(refused, Err(BrokerError::NotFound("task"))),
        "{refused:?}"
    );
}

#[tokio::test]
async fn an_ended_task_admits_nothing() {
    let unit = Unit::new().await;
    let issued = unit.issue_job("agent").await;
    unit.end(&issued, TaskEnd::Complete).await.unwrap();
    let refused = unit.issue("agent", joining(&issued)).await;
    assert_eq!(refusal(refused), RefusalCode::TaskEnded);
    assert!(!unit.is_active(&issued).await);
}

#[tokio::test]
async fn evidence_is_used_up_by_a_refusal_and_by_an_error() {
    let unit = Unit::new().await;
    let issued = unit.issue_job("agent").await;
    let with = |task| async {
        let evidence = unit.evidence("agent");
        let first = unit
            .broker
            .issuance
            .issue(evidence.clone(), request(task))
            .await;
        let again = unit.broker.issuance.issue(evidence, request(job())).await;
        assert!(matches!(again, Err(BrokerError::Replayed)), "{again:?}");
        first
    };
    let unknown_type = TaskSelector::Open(task_of_type("unregistered"));
    assert_eq!(
        refusal(with(unknown_type).await),
        RefusalCode::UnknownTaskType
    );
    let unknown_task = TaskSelector::Join {
        id: uuid::Uuid::from_u128(7).into(),
        handle: handle(&issued),
    };
    let error = with(unknown_task).await;
    assert!(
        matches!(error, Err(BrokerError::NotFound("task"))),
        "{error:?}"
    );
}
