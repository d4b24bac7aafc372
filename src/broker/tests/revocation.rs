//! Revocation of one session, and of all sessions that a selector matches.

use futures_util::FutureExt as _;

use super::super::core::Wake;
use super::super::revocation::{BlockRequest, RevokeRequest};
use super::*;
use crate::domain::cutoff::Selector;
use crate::ledger::follower::Awaited;

fn revocation(selector: Selector) -> RevokeRequest {
    RevokeRequest {
        selector,
        block: BlockRequest::Default,
        deny_all_earlier_sessions: false,
        reason: "unit test".into(),
        allow_unknown: false,
        dry_run: false,
    }
}

#[tokio::test]
async fn a_revoked_session_is_invalid_at_once_and_no_other_is() {
    let unit = Unit::new().await;
    let (first, second) = (unit.issue_job("agent").await, unit.issue_job("agent").await);
    unit.broker
        .revocation
        .revoke_session(&admin(), first.session.id)
        .await
        .unwrap();
    assert!(!unit.is_active(&first).await);
    assert!(unit.is_active(&second).await);
}

#[tokio::test]
async fn a_workload_revokes_its_own_sessions_and_learns_nothing_of_others() {
    let unit = Unit::new().await;
    let (own, other) = (unit.issue_job("agent").await, unit.issue_job("other").await);
    let evidence = unit.evidence("agent");
    let refused = unit
        .broker
        .revocation
        .revoke_session(&evidence, other.session.id)
        .await;
    assert!(
        matches!(refused, Err(BrokerError::NotFound("session"))),
        "{refused:?}"
    );
    unit.broker
        .revocation
        .revoke_session(&unit.evidence("agent"), own.session.id)
        .await
        .unwrap();
    assert!(!unit.is_active(&own).await && unit.is_active(&other).await);
}

#[tokio::test]
async fn a_cutoff_ends_what_it_matches_and_blocks_it_until_it_is_lifted() {
    let unit = Unit::new().await;
    let (agent, other) = (unit.issue_job("agent").await, unit.issue_job("other").await);
    let selector = Selector::Workload(fake::identity("agent"));
    let revoked = unit
        .broker
        .revocation
        .revoke_many(&admin(), revocation(selector))
        .await
        .unwrap();
    assert!(!unit.is_active(&agent).await && unit.is_active(&other).await);
    assert_eq!(
        refusal(unit.issue("agent", job()).await),
        RefusalCode::Blocked
    );
    let id = revoked.cutoff.unwrap().id;
    unit.broker.revocation.lift(&admin(), id).await.unwrap();
    // After the lift, new credentials are issued, and the ended one stays ended.
    unit.issue_job("agent").await;
    assert!(!unit.is_active(&agent).await);
}

#[tokio::test]
async fn a_dry_run_counts_and_ends_nothing() {
    let unit = Unit::new().await;
    let agent = unit.issue_job("agent").await;
    let ask = RevokeRequest {
        dry_run: true,
        ..revocation(Selector::Resource("orders".into()))
    };
    let counted = unit
        .broker
        .revocation
        .revoke_many(&admin(), ask)
        .await
        .unwrap();
    assert_eq!(counted.radius.unwrap().matched, 1);
    assert!(unit.is_active(&agent).await);
}

#[tokio::test]
async fn a_workload_without_the_right_revokes_nothing_by_selector() {
    let unit = Unit::new().await;
    let agent = unit.issue_job("agent").await;
    let ask = revocation(Selector::Resource("orders".into()));
    let refused = unit
        .broker
        .revocation
        .revoke_many(&unit.evidence("agent"), ask)
        .await;
    assert!(
        matches!(refused, Err(BrokerError::Forbidden(_))),
        "{refused:?}"
    );
    assert!(unit.is_active(&agent).await);
}

#[tokio::test]
async fn a_silent_task_ends_its_credential_without_any_worker() {
    let unit = Unit::new().await;
    let watched = TaskSelector::Open(NewTask {
        heartbeat_seconds: Some(60),
        ..task_of_type("watched")
    });
    let issued = unit.issue("agent", watched).await.unwrap();
    unit.clock.advance(59);
    assert!(unit.is_active(&issued).await);
    unit.broker
        .tasks
        .heartbeat(issued.task.id, by_handle(&issued))
        .await
        .unwrap();
    unit.clock.advance(59);
    assert!(unit.is_active(&issued).await);
    unit.clock.advance(1);
    assert!(!unit.is_active(&issued).await);
    let late = unit
        .broker
        .tasks
        .heartbeat(issued.task.id, by_handle(&issued))
        .await;
    assert!(matches!(late, Err(BrokerError::TaskEnded)), "{late:?}");
}

#[tokio::test]
async fn an_act_of_another_replica_wakes_the_workers_that_wait_for_it() {
    use Wake::{Endings, GenerationSync, Keys, OrphanedSessions};
    let unit = Unit::new().await;
    let woken = |awaited: Awaited| {
        let core = &unit.broker.core;
        core.wake_for(awaited);
        let workers = [OrphanedSessions, Endings, GenerationSync, Keys];
        workers.map(|wake| core.woken(wake).now_or_never().is_some())
    };
    // The set-up has its own signals.
    woken(Awaited::default());
    for (cutoff, activation, key) in [
        (true, false, false),
        (false, true, false),
        (false, false, true),
    ] {
        let awaited = Awaited {
            cutoff,
            activation,
            key,
        };
        assert_eq!(woken(awaited), [cutoff, cutoff, activation, key]);
    }
}
