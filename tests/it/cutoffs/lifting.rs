//! The right to lift a cutoff, the rights of a blocked admin through other workloads' tasks, and
//! the effect of a cutoff on tasks.

use secrecy::SecretString;
use serde_json::json;
use taskpass::attest::Evidence;
use taskpass::broker::BrokerError;
use taskpass::broker::revocation::BlockRequest;
use taskpass::broker::tasks::{TaskAuthority, TaskWithSessions};
use taskpass::domain::cutoff::Selector;
use taskpass::domain::request::CredentialRequest;
use taskpass::domain::task::{TaskEnd, TaskState};
use taskpass::ids::CutoffId;
use taskpass::ledger::entry::Blocked;
use taskpass::store::sessions::SessionFilter;
use taskpass::store::tasks::TaskFilter;

use super::{WORKLOAD, block, identity, policies, revocation, selectors};
use crate::support::rig::{
    BOOTSTRAP, Kind, Rig, ask, ask_in, ask_joining, bearer, child_of, handle, job, refusal,
};

/// An admin by a bound role.
const OTHER: &str = "agent:orders";

async fn begin(kind: Kind) -> Rig {
    let rig = Rig::on(kind).policies(&policies()).start().await;
    bind(&rig, &rig.admin(), OTHER).await.unwrap();
    rig
}

async fn bind(rig: &Rig, by: &Evidence, whom: &str) -> Result<(), BrokerError> {
    let broker = &rig.broker;
    broker
        .administration
        .bind_admin(by, identity(whom), "admin".into(), true)
        .await
}

async fn lift(rig: &Rig, by: &str, id: CutoffId) -> Result<(), BrokerError> {
    let lifted = rig.broker.revocation.lift(&rig.evidence(by), id).await;
    lifted.map(drop)
}

/// The cutoff that the refusal offers to lift, for a caller with that right.
#[track_caller]
fn blocked<T: std::fmt::Debug>(result: Result<T, BrokerError>) -> Option<CutoffId> {
    match result {
        Err(BrokerError::Blocked(Blocked { liftable, .. })) => liftable,
        other => panic!("not refused for a block: {other:?}"),
    }
}

on_both_stores! {
    fn a_blocked_admin_binds_no_accomplice_and_one_bound_before_may_lift;
    fn only_cutoffs_of_an_attestor_or_of_everything_are_lifted_by_whom_they_block;
    fn a_caller_never_lifts_what_was_cut_off_of_itself;
    fn a_blocked_workload_is_told_that_it_is_blocked_whatever_it_asks_for;
    fn the_tasks_of_a_blocked_workload_lend_nothing_and_are_kept_alive_by_nobody;
}

async fn a_blocked_admin_binds_no_accomplice_and_one_bound_before_may_lift(rig: Rig) {
    let [narrow, ..] = selectors(WORKLOAD);
    let id = block(&rig, narrow).await;
    assert_eq!(
        blocked(bind(&rig, &rig.evidence(WORKLOAD), "agent:child").await),
        None
    );
    assert!(
        rig.broker
            .core
            .store()
            .roles_of("dev:agent%3Achild")
            .await
            .unwrap()
            .is_empty()
    );
    assert_eq!(blocked(lift(&rig, WORKLOAD, id).await), None);
    let nobody = lift(&rig, "agent:child", id).await;
    assert!(
        matches!(nobody, Err(BrokerError::Forbidden("liftCutoff"))),
        "{nobody:?}"
    );
    // An admin bound before the block may lift it.
    lift(&rig, OTHER, id).await.unwrap();
    rig.issue(WORKLOAD, ask(&["orders:read"])).await.unwrap();
}

async fn only_cutoffs_of_an_attestor_or_of_everything_are_lifted_by_whom_they_block(rig: Rig) {
    let [narrow, attestor, all] = selectors(WORKLOAD);
    // A single cutoff.
    for selector in [attestor.clone(), all.clone()] {
        let id = block(&rig, selector).await;
        let unprivileged = rig
            .broker
            .verification
            .list_sessions(&rig.evidence("agent:child"), SessionFilter::default())
            .await;
        assert_eq!(
            blocked(unprivileged.map(drop)),
            None,
            "a caller without the right to lift does not learn the id"
        );
        assert_eq!(blocked(lift(&rig, "agent:child", id).await), None);
        let listed = rig
            .broker
            .verification
            .list_sessions(&rig.evidence(WORKLOAD), SessionFilter::default())
            .await;
        assert_eq!(
            blocked(listed.map(drop)),
            Some(id),
            "a caller with the right to lift learns the id"
        );
        lift(&rig, WORKLOAD, id).await.unwrap();
        rig.broker
            .verification
            .list_sessions(&rig.evidence(WORKLOAD), SessionFilter::default())
            .await
            .unwrap();
    }
    // A narrower cutoff blocks the workload too: another admin must lift it first.
    let (by_name, by_attestor) = (
        block(&rig, narrow).await,
        block(&rig, attestor.clone()).await,
    );
    assert_eq!(blocked(lift(&rig, WORKLOAD, by_attestor).await), None);
    assert_eq!(blocked(lift(&rig, WORKLOAD, by_name).await), None);
    // The cutoff of the attestor blocks the other admin, which lifts that cutoff first.
    assert_eq!(blocked(lift(&rig, OTHER, by_name).await), Some(by_attestor));
    lift(&rig, OTHER, by_attestor).await.unwrap();
    lift(&rig, OTHER, by_name).await.unwrap();
    let (by_attestor, by_all) = (block(&rig, attestor).await, block(&rig, all.clone()).await);
    assert_eq!(
        blocked(lift(&rig, WORKLOAD, by_all).await),
        Some(by_attestor)
    );
    lift(&rig, WORKLOAD, by_attestor).await.unwrap();
    // A blocked admin lifts only a cutoff that blocks it.
    let elsewhere = block(&rig, Selector::Resource("archive-api".into())).await;
    assert_eq!(blocked(lift(&rig, WORKLOAD, elsewhere).await), Some(by_all));
    let unknown = "01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap();
    assert_eq!(blocked(lift(&rig, WORKLOAD, unknown).await), Some(by_all));
    lift(&rig, WORKLOAD, by_all).await.unwrap();
    lift(&rig, WORKLOAD, elsewhere).await.unwrap();
    // The bootstrap token belongs to no workload, so no cutoff blocks it.
    let by_all = block(&rig, all).await;
    rig.broker
        .revocation
        .lift(&bearer(BOOTSTRAP), by_all)
        .await
        .unwrap();
    rig.issue(WORKLOAD, ask(&["orders:read"])).await.unwrap();
}

async fn a_caller_never_lifts_what_was_cut_off_of_itself(rig: Rig) {
    let [narrow, ..] = selectors(WORKLOAD);
    let asked = revocation(narrow, BlockRequest::Seconds(60));
    let cutoff = rig
        .broker
        .revocation
        .revoke_many(&rig.admin(), asked)
        .await
        .unwrap()
        .cutoff
        .unwrap();
    assert_eq!(blocked(lift(&rig, WORKLOAD, cutoff.id).await), None);
    rig.clock.advance(60);
    let over = lift(&rig, WORKLOAD, cutoff.id).await;
    assert!(
        matches!(over, Err(BrokerError::Forbidden("liftCutoff"))),
        "{over:?}"
    );
}

async fn a_blocked_workload_is_told_that_it_is_blocked_whatever_it_asks_for(rig: Rig) {
    let [narrow, ..] = selectors(WORKLOAD);
    let before = rig.issue(WORKLOAD, ask(&["orders:read"])).await.unwrap();
    block(&rig, narrow).await;
    let asked = |change: fn(&mut CredentialRequest)| {
        let mut request = ask(&["orders:read"]);
        change(&mut request);
        request
    };
    let unknown = SecretString::from("tph_unknown");
    let mut wrong_handle = ask_joining(&before, &["orders:read"]);
    wrong_handle.task = taskpass::domain::request::TaskSelector::Join {
        id: before.task.id,
        handle: unknown,
    };
    for request in [
        asked(|_| ()),
        asked(|request| request.resource = "no-such-api".into()),
        asked(|request| request.ttl_seconds = Some(100_000)),
        ask(&["orders:write"]),
        ask_joining(&before, &["orders:read"]),
        wrong_handle,
    ] {
        let Err(BrokerError::Denied(denied)) = rig.issue(WORKLOAD, request).await else {
            panic!("the workload should be blocked")
        };
        assert_eq!(denied.refusal.code.as_str(), "blocked");
        assert_eq!(denied.refusal.detail, "a revocation blocks this caller");
        assert!(denied.refusal.allowed.is_none() && denied.observed.is_none());
    }
}

async fn the_tasks_of_a_blocked_workload_lend_nothing_and_are_kept_alive_by_nobody(rig: Rig) {
    let parent = rig.issue(WORKLOAD, ask(&["orders:read"])).await.unwrap();
    let lent = rig.delegate(&parent, "agent:child").await.unwrap();
    let child = rig
        .issue(
            "agent:child",
            ask_in(child_of(parent.task.id, &lent), &["orders:read"]),
        )
        .await
        .unwrap();
    // A refused use also uses up a delegation.
    let mut unused = Vec::new();
    for _ in 0..4 {
        unused.push(rig.lend(&parent, "agent:child", 1).await.unwrap());
    }
    let own = rig
        .issue("agent:child", ask(&["orders:read"]))
        .await
        .unwrap();
    let [narrow, ..] = selectors(WORKLOAD);
    let second = rig.issue(WORKLOAD, ask(&["orders:read"])).await.unwrap();
    let lent = rig.delegate(&second, "agent:child").await.unwrap();
    let below = ask_in(child_of(second.task.id, &lent), &["orders:read"]);
    let second_child = rig.issue("agent:child", below).await.unwrap();
    for selector in [narrow.clone(), Selector::Task(parent.task.id)] {
        let by_name = matches!(selector, Selector::Workload(_));
        let id = block(&rig, selector).await;
        // By the handles of the task and of its child.
        for issued in [&parent, &child] {
            assert_eq!(blocked(rig.heartbeat(issued).await), None);
            assert_eq!(
                blocked(rig.lend(issued, "agent:child", 1).await.map(drop)),
                None
            );
        }
        // By attestation as well.
        let owner = TaskAuthority::Owner(rig.evidence("agent:child"));
        assert_eq!(
            blocked(
                rig.broker
                    .tasks
                    .heartbeat(child.task.id, owner)
                    .await
                    .map(drop)
            ),
            None
        );
        // By a delegation that was made before the block.
        let below = child_of(parent.task.id, &unused.pop().unwrap());
        let opened = rig
            .broker
            .tasks
            .open_task(&rig.evidence("agent:child"), below)
            .await;
        let Err(BrokerError::Denied(denied)) = opened else {
            panic!("{opened:?}")
        };
        // A task that was cut off has ended permanently.
        let told = if by_name { "blocked" } else { "task-ended" };
        assert_eq!(denied.refusal.code.as_str(), told);
        let asked = ask_in(
            child_of(parent.task.id, &unused.pop().unwrap()),
            &["orders:read"],
        );
        assert!(matches!(
            rig.issue("agent:child", asked).await,
            Err(BrokerError::Denied(_))
        ));
        let told = if by_name {
            "exceeds-parent"
        } else {
            "task-ended"
        };
        assert_eq!(
            refusal(
                rig.issue("agent:child", ask_joining(&child, &["orders:read"]))
                    .await
            ),
            told
        );
        assert!(!rig.is_good(&child).await);
        // Another task is unaffected.
        assert!(rig.is_good(&own).await);
        rig.lend(&own, "agent:child", 1).await.unwrap();
        rig.heartbeat(&own).await.unwrap();
        if by_name {
            let ended = rig.end(&parent, TaskEnd::Complete).await;
            assert_eq!(blocked(ended.map(drop)), None);
        }
        lift(&rig, OTHER, id).await.unwrap();
    }
    // Lifting restores nothing: the tasks stay ended.
    assert!(!rig.is_good(&child).await && !rig.is_good(&parent).await);
    // Ending a task only removes rights, so an owner that is not blocked itself may end it.
    block(&rig, narrow).await;
    let ended: TaskWithSessions = rig.end(&second_child, TaskEnd::Complete).await.unwrap();
    assert_eq!(ended.task.state, TaskState::Completed);
    let admin = TaskAuthority::Owner(rig.admin());
    rig.broker
        .tasks
        .end_task(second.task.id, admin, TaskEnd::Abort)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_is_cut_off_while_it_reads_the_log_gets_no_more() {
    let rig = begin(Kind::Sqlite).await;
    let reader = rig
        .broker
        .administration
        .check_ledger_reader(&rig.evidence(WORKLOAD))
        .await
        .unwrap();
    rig.broker
        .administration
        .check_still_reads(&reader)
        .await
        .unwrap();
    let [narrow, ..] = selectors(WORKLOAD);
    let id = block(&rig, narrow).await;
    assert_eq!(
        blocked(rig.broker.administration.check_still_reads(&reader).await),
        None
    );
    lift(&rig, OTHER, id).await.unwrap();
    rig.broker
        .administration
        .check_still_reads(&reader)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_that_another_replica_made_counts_at_once() {
    let rig = Rig::on(Kind::Postgres).start().await;
    let other = rig.replica().await;
    let issued = rig
        .issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
    let [narrow, ..] = selectors(WORKLOAD);
    let asked = revocation(narrow, BlockRequest::UntilLifted);
    let admin = rig.admin();
    let cutoff = other
        .broker
        .revocation
        .revoke_many(&admin, asked)
        .await
        .unwrap()
        .cutoff
        .unwrap();
    // This replica has not yet read the cutoff.
    let authority = TaskAuthority::Handle(handle(&issued), Evidence::default());
    assert_eq!(
        blocked(
            rig.broker
                .tasks
                .heartbeat(issued.task.id, authority)
                .await
                .map(drop)
        ),
        None
    );
    assert_eq!(
        blocked(
            rig.broker
                .tasks
                .list_tasks(&rig.evidence(WORKLOAD), TaskFilter::default())
                .await
                .map(drop)
        ),
        None
    );
    other
        .broker
        .revocation
        .lift(&admin, cutoff.id)
        .await
        .unwrap();
    // It has not yet read the lift either: its cached block must not outlive the cutoff.
    rig.issue("agent:reports", ask_in(job(), &["orders:read"]))
        .await
        .unwrap();
    rig.broker
        .tasks
        .list_tasks(&rig.evidence(WORKLOAD), TaskFilter::default())
        .await
        .unwrap();
    let token = rig.token(WORKLOAD, json!({}));
    rig.broker
        .verification
        .list_sessions(&bearer(&token), SessionFilter::default())
        .await
        .unwrap();
    other
        .shutdown
        .drain_then_stop(std::time::Duration::ZERO, std::time::Duration::from_secs(5))
        .await;
}
