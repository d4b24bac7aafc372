//! Thousands of recorded decisions, of every kind, evaluated again in this process.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::join_all;
use taskpass::broker::revocation::{BlockRequest, RevokeRequest};
use taskpass::domain::cutoff::Selector;
use taskpass::domain::request::{CredentialRequest, NewTask};
use taskpass::domain::task::TaskEnd;
use tokio::task::JoinSet;

use super::*;
use crate::support::rig::{ask_in, ask_joining, child_of, job, with_key};

/// Request number `n`; together the requests have every kind of outcome.
fn request(n: usize) -> (String, CredentialRequest) {
    let subject = [
        "agent:reports",
        "agent:orders",
        "agent:child",
        "agent:stranger",
    ][n % 4];
    let actions: &[&str] = [
        &["orders:read"][..],
        &["orders:write"],
        &["orders:read", "orders:write"],
    ][n / 4 % 3];
    let task = NewTask {
        task_type: ["job", "watched", "no-such-type"]
            [usize::from(n.is_multiple_of(7)) + usize::from(n.is_multiple_of(49))]
        .to_owned(),
        deadline_seconds: [None, Some(60), Some(3600), Some(4000)][n / 12 % 4],
        heartbeat_seconds: n.is_multiple_of(7).then_some(30),
        purpose: n.is_multiple_of(3).then(|| format!("a reason, {n}")),
        ..job()
    };
    let mut request = ask_in(task, actions);
    request.ttl_seconds = [None, Some(30), Some(90), Some(91), Some(601), Some(1)][n / 5 % 6];
    if n.is_multiple_of(31) {
        request.resource = ["archive-api", "no-such-api"][n % 2].into();
    }
    // Use many identities, because this test is not about limits.
    let subject = if n % 4 == 3 {
        format!("{subject}-{}", n % 97)
    } else {
        subject.to_owned()
    };
    (subject, request)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_recorded_decisions_come_out_again_byte_for_byte() {
    const COUNT: usize = 2_400;
    let policies = [rig::POLICIES, POLICIES].concat();
    let rig = Arc::new(Rig::on(Kind::Sqlite).policies(&policies).start().await);
    let mut running = JoinSet::new();
    for n in 0..COUNT {
        if n % 200 == 199 {
            rig.clock.advance(61);
        }
        let rig = Arc::clone(&rig);
        running.spawn(async move {
            let (subject, request) = request(n);
            let asked = rig.issue(&subject, request).await;
            if let Ok(issued) = &asked {
                rig.end(issued, TaskEnd::Complete).await.unwrap();
            }
            if n.is_multiple_of(50) {
                // This request opens a task without a credential.
                drop(
                    rig.broker
                        .tasks
                        .open_task(&rig.evidence(&subject), job())
                        .await,
                );
            }
        });
        while running.len() > 48 {
            running.join_next().await.unwrap().unwrap();
        }
    }
    while let Some(done) = running.join_next().await {
        done.unwrap();
    }
    families(&rig).await;

    let compiled = generation(&rig).await;
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for record in records(&rig).await {
        let recorded = Recorded::open(&record).unwrap();
        let again = recorded.reproduce(&compiled).unwrap_or_else(|different| {
            panic!("index {}: {different}", record.index);
        });
        let (outcome, refusal) = recorded.outcome();
        assert_eq!(
            again.is_none(),
            matches!(recorded.decided_by(), DecidedBy::Never(_))
        );
        let asked = match recorded.decided_by() {
            DecidedBy::Policy => "policy",
            DecidedBy::Never(_) => "never",
            DecidedBy::Overtaken(_) => "overtaken",
        };
        let code = refusal.map_or("", |code| code.as_str());
        let kind = [asked, outcome.as_str(), code].join(" ");
        *kinds.entry(kind).or_default() += 1;
    }
    let total: usize = kinds.values().sum();
    assert!(total > 2_000, "{total}: {kinds:?}");
    for kind in [
        "policy permit ",
        "policy deny not-permitted",
        "policy deny ttl-too-long",
        "policy pending approval-required",
        "never deny unknown-resource",
        "never deny unknown-task-type",
        "never deny deadline-too-long",
        "overtaken deny task-budget",
        "never deny blocked",
        "overtaken deny blocked",
    ] {
        assert!(kinds.contains_key(kind), "{kind} of {kinds:?}");
    }
}

/// Parents, children, retries, and requests that are refused only when they are recorded.
async fn families(rig: &Rig) {
    let parent = rig
        .issue("agent:orders", ask(&["orders:read"]))
        .await
        .unwrap();
    for ttl in [None, Some(20), Some(119)] {
        let lent = rig.lend(&parent, "agent:child", 1).await.unwrap();
        let mut request = ask_in(child_of(parent.task.id, &lent), &["orders:read"]);
        request.ttl_seconds = ttl;
        rig.clock.advance(7);
        drop(rig.issue("agent:child", request).await);
    }
    let retried = with_key(ask(&["orders:read"]), "again");
    for _ in 0..2 {
        rig.issue("agent:orders", retried.clone()).await.unwrap();
        rig.clock.advance(5);
    }
    // A job may have six credentials. Of eight requests at once, the ledger refuses some.
    let family = rig
        .issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
    let joins = (0..8).map(|_| rig.issue("agent:reports", ask_joining(&family, &["orders:read"])));
    let joined = join_all(joins).await;
    assert!(
        joined.iter().any(Result::is_err),
        "eight requests exceed the limit of six"
    );
    // A block of the caller refuses before policy is evaluated; a block of the resource, after it.
    let caller = Selector::Workload("dev:agent%3Areports".to_owned().try_into().unwrap());
    let resource = Selector::Resource("orders-api".into());
    for (selector, who) in [(caller, "agent:reports"), (resource, "agent:orders")] {
        let stop = RevokeRequest {
            selector,
            block: BlockRequest::UntilLifted,
            deny_all_earlier_sessions: false,
            reason: "a test".into(),
            allow_unknown: false,
            dry_run: false,
        };
        rig.broker
            .revocation
            .revoke_many(&rig.admin(), stop)
            .await
            .unwrap();
        let blocked = rig.issue(who, ask(&["orders:read"])).await;
        assert_eq!(rig::refusal(blocked), "blocked");
    }
}
