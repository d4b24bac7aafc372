//! Invalid answers of AWS, and refusals that a retry does not change: the caller's error, the
//! ledger's record, and the effect on the task's limit.

use taskpass::broker::BrokerError;
use taskpass::domain::decision::{Outcome, RefusalCode};
use taskpass::domain::request::{CredentialRequest, TaskSelector};
use taskpass::domain::session::{EndReason, SessionState};
use taskpass::domain::task::TaskState;
use taskpass::store::tasks::TaskFilter;
use wiremock::ResponseTemplate;

use crate::aws::{last_session, reading, rig_on, wanting};
use crate::support::rig::{Kind, Rig, handle, job, with_key};
use crate::support::sts::{Sts, form, granted, refusal_of};

type Change = fn(String) -> String;

/// Two megabytes of text.
fn huge() -> String {
    "x".repeat(2 * 1024 * 1024)
}

/// The body with another expiry.
fn expiring(body: &str, at: &str) -> String {
    let (before, rest) = body.split_once("<Expiration>").unwrap();
    let (_, after) = rest.split_once("</Expiration>").unwrap();
    format!("{before}<Expiration>{at}</Expiration>{after}")
}

/// The state of every task, oldest first.
async fn tasks(rig: &Rig) -> Vec<TaskState> {
    let filter = TaskFilter {
        limit: 100,
        ..TaskFilter::default()
    };
    let all = rig.broker.core.store().tasks(&filter).await.unwrap();
    all.into_iter().rev().map(|task| task.state).collect()
}

fn begin(kind: Kind) -> std::future::Ready<Kind> {
    std::future::ready(kind)
}

on_both_stores! {
    fn a_session_that_has_expired_or_lives_longer_than_asked_is_not_passed_on;
    fn the_first_request_after_an_activation_with_a_role_of_aws_is_served;
    fn a_policy_that_aws_does_not_pack_is_too_many_rights_and_asked_once;
    fn a_definite_refusal_of_the_back_end_does_not_spend_the_tasks_budget;
    fn a_mint_of_unknown_outcome_spends_the_tasks_budget;
    fn a_retry_after_a_definite_refusal_of_the_back_end_is_served;
    fn a_task_whose_only_credential_was_refused_does_not_stay_open;
}

async fn a_session_that_has_expired_or_lives_longer_than_asked_is_not_passed_on(kind: Kind) {
    let answers: [(&str, Change); 5] = [
        ("an expiry in the past", |body| {
            expiring(&body, "2001-01-01T00:00:00Z")
        }),
        ("an expiry after the requested one", |body| {
            expiring(&body, "2100-01-01T00:00:00Z")
        }),
        ("a secret of two megabytes", |body| {
            body.replace("made-for-", &huge())
        }),
        ("a token of two megabytes", |body| {
            body.replace("token-of-", &huge())
        }),
        ("a key id of two megabytes", |body| {
            body.replace("ASIAEXAMPLE", &huge())
        }),
    ];
    for (answer, change) in answers {
        let sts = Sts::granting_but(change).await;
        let rig = rig_on(kind, &sts.url()).await;
        let issued = rig
            .issue("agent:reports", wanting("reports-bucket", reading()))
            .await;
        assert!(
            matches!(issued, Err(BrokerError::FailClosed(_))),
            "{answer}: {issued:?}"
        );
        // AWS may have made the session, so the broker ends it and does not record it as ended
        // yet.
        let ending = Some((SessionState::Ending, Some(EndReason::Failed)));
        assert_eq!(last_session(&rig).await, ending, "{answer}");
    }
}

async fn the_first_request_after_an_activation_with_a_role_of_aws_is_served(kind: Kind) {
    let sts = Sts::granting().await;
    // Only the activation has run.
    let rig = rig_on(kind, &sts.url()).await;
    rig.issue("agent:reports", wanting("reports-bucket", reading()))
        .await
        .unwrap();
}

async fn a_policy_that_aws_does_not_pack_is_too_many_rights_and_asked_once(kind: Kind) {
    let inherited = "<Code>InvalidParameterValue</Code><Message>SECRET One of the specified \
            transitive tag keys conflicts with a transitive tag key from the calling session";
    for (refused, told) in [
        (refusal_of("PackedPolicyTooLarge"), "fewer"),
        (
            refusal_of("X").replace("<Code>X</Code><Message>SECRET", inherited),
            "transitive",
        ),
    ] {
        let answer = ResponseTemplate::new(400).set_body_raw(refused, "text/xml");
        let sts = Sts::answering(answer).await;
        let rig = rig_on(kind, &sts.url()).await;
        let issued = rig
            .issue("agent:reports", wanting("reports-bucket", reading()))
            .await;
        let Err(BrokerError::Denied(denied)) = issued else {
            panic!("{issued:?}");
        };
        assert_eq!(denied.refusal.code, RefusalCode::TooManyRights);
        assert_eq!(denied.outcome, Outcome::Deny);
        assert!(
            denied.refusal.detail.contains(told),
            "{}",
            denied.refusal.detail
        );
        assert!(
            !denied.refusal.detail.contains("SECRET"),
            "{}",
            denied.refusal.detail
        );
        assert_eq!(sts.asked().await.len(), 1);
        let ended = Some((SessionState::Ended, Some(EndReason::Failed)));
        assert_eq!(last_session(&rig).await, ended);
        let leaf: serde_json::Value = serde_json::from_slice(&denied.receipt.leaf).unwrap();
        assert_eq!(leaf["refusal"], "too-many-rights", "{leaf}");
        assert_eq!(leaf["outcome"], "deny", "{leaf}");
        assert!(leaf["session"].is_null(), "a session is recorded: {leaf}");
        // No caller has the handle of the task that the request opened.
        assert_eq!(tasks(&rig).await, [TaskState::Aborted]);
    }
}

async fn a_definite_refusal_of_the_back_end_does_not_spend_the_tasks_budget(kind: Kind) {
    let calls = std::sync::atomic::AtomicU32::new(0);
    let sts = Sts::answering(move |request: &wiremock::Request| {
        let call = calls.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        // The first call and those after the tenth are granted.
        let body = if (1..10).contains(&call) {
            return ResponseTemplate::new(400).set_body_raw(refusal_of("AccessDenied"), "text/xml");
        } else {
            granted(&form(&request.body))
        };
        ResponseTemplate::new(200).set_body_raw(body, "text/xml")
    })
    .await;
    let rig = rig_on(kind, &sts.url()).await;
    let first = rig
        .issue("agent:reports", wanting("reports-bucket", reading()))
        .await
        .unwrap();
    let joining = || CredentialRequest {
        task: TaskSelector::Join {
            id: first.task.id,
            handle: handle(&first),
        },
        ..wanting("reports-bucket", reading())
    };
    let left = async || {
        let task = rig.broker.core.store().task(first.task.id).await.unwrap();
        task.unwrap().sessions_left
    };
    let after_first = left().await;
    for _ in 0..9 {
        let refused = rig.issue("agent:reports", joining()).await;
        assert!(
            matches!(refused, Err(BrokerError::FailClosed(_))),
            "{refused:?}"
        );
        assert_eq!(left().await, after_first);
    }
    // The refused requests did not count: the remaining sessions of the task type are still
    // available.
    for used in 1..=after_first {
        rig.issue("agent:reports", joining()).await.unwrap();
        assert_eq!(left().await, after_first - used);
    }
    let over = rig.issue("agent:reports", joining()).await;
    let Err(BrokerError::Denied(denied)) = over else {
        panic!("{over:?}");
    };
    assert_eq!(denied.refusal.code, RefusalCode::TaskBudget);
    assert_eq!(tasks(&rig).await, [TaskState::Open], "the task stays open");
}

async fn a_mint_of_unknown_outcome_spends_the_tasks_budget(kind: Kind) {
    let sts = Sts::granting_but(|body| expiring(&body, "2100-01-01T00:00:00Z")).await;
    let rig = rig_on(kind, &sts.url()).await;
    let request = || with_key(wanting("reports-bucket", reading()), "key-1");
    rig.issue("agent:reports", request()).await.unwrap_err();
    let filter = TaskFilter {
        limit: 1,
        ..TaskFilter::default()
    };
    let all = rig.broker.core.store().tasks(&filter).await.unwrap();
    // `job` allows six sessions.
    assert_eq!(all[0].sessions_left, 5);
    // The session may exist, so a retry gets no second one.
    let again = rig.issue("agent:reports", request()).await;
    assert!(
        matches!(again, Err(BrokerError::AlreadyIssued(..))),
        "{again:?}"
    );
}

async fn a_retry_after_a_definite_refusal_of_the_back_end_is_served(kind: Kind) {
    let calls = std::sync::atomic::AtomicU32::new(0);
    let sts = Sts::answering(move |request: &wiremock::Request| {
        if calls.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0 {
            return ResponseTemplate::new(400).set_body_raw(refusal_of("AccessDenied"), "text/xml");
        }
        ResponseTemplate::new(200).set_body_raw(granted(&form(&request.body)), "text/xml")
    })
    .await;
    let rig = rig_on(kind, &sts.url()).await;
    let request = || with_key(wanting("reports-bucket", reading()), "key-1");
    rig.issue("agent:reports", request()).await.unwrap_err();
    assert_eq!(
        tasks(&rig).await,
        [TaskState::Open],
        "the retry goes on with it"
    );
    let issued = rig.issue("agent:reports", request()).await.unwrap();
    assert_eq!(issued.session.state, SessionState::Active);
    assert!(issued.task.handle.is_some());
    assert_eq!(tasks(&rig).await, [TaskState::Open]);
    let again = rig.issue("agent:reports", request()).await;
    assert!(
        matches!(again, Err(BrokerError::AlreadyIssued(..))),
        "{again:?}"
    );
}

async fn a_task_whose_only_credential_was_refused_does_not_stay_open(kind: Kind) {
    let sts = Sts::refusing(400, "AccessDenied").await;
    let rig = rig_on(kind, &sts.url()).await;
    // `job` allows a workload fifty open tasks.
    for _ in 0..51 {
        let request = CredentialRequest {
            task: TaskSelector::Open(job()),
            ..wanting("reports-bucket", reading())
        };
        let refused = rig.issue("agent:reports", request).await;
        assert!(
            matches!(refused, Err(BrokerError::FailClosed(_))),
            "{refused:?}"
        );
    }
    assert!(
        tasks(&rig)
            .await
            .iter()
            .all(|state| *state == TaskState::Aborted)
    );
}
