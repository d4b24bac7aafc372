//! The broker decides a call again when it records the call, by the generation and the roles that
//! are active under the ledger's lock, on every replica.

use std::future::ready;
use std::sync::Arc;

use taskpass::attest::Evidence;
use taskpass::broker::revocation::{BlockRequest, RevokeRequest};
use taskpass::broker::tasks::TaskAuthority;
use taskpass::broker::{Broker, BrokerError};
use taskpass::domain::cutoff::Selector;
use taskpass::domain::generation::Generation;
use taskpass::domain::workload::{Identity, encode_value};
use taskpass::ids::TaskId;

use crate::support::SOON;
use crate::support::rig::{Kind, POLICIES, Rig, ask, ask_in, child_of, handle};

/// Admins may perform every action that these tests try.
const ADMINS: &str = r#"
@id("admins") @description("admins administer")
permit (principal in Role::"admin", action in [Action::"activateGeneration", Action::"manageAdmins",
  Action::"manageKeys", Action::"liftCutoff", Action::"readGeneration", Action::"listSessions"],
  resource == Broker::"taskpass");

@id("auditors") @description("auditors look")
permit (principal in Role::"auditor", action == Action::"listSessions", resource == Broker::"taskpass");
"#;

/// Admins may activate the next generation, and nothing else.
const ACTIVATORS: &str = r#"
@id("admins") @description("admins activate")
permit (principal in Role::"admin", action == Action::"activateGeneration", resource == Broker::"taskpass");
"#;

fn identity(sub: &str) -> Identity {
    format!("dev:{}", encode_value(sub)).try_into().unwrap()
}

async fn begin(kind: Kind) -> Rig {
    let policies = format!("{POLICIES}{ADMINS}");
    Rig::on(kind).policies(&policies).start().await
}

async fn bind(rig: &Rig, sub: &str, role: &str) {
    let admin = rig.admin();
    let bound = rig
        .broker
        .administration
        .bind_admin(&admin, identity(sub), role.into(), true);
    bound.await.unwrap();
}

async fn unbind(broker: &Arc<Broker>, by: Evidence, sub: &str) -> Result<(), BrokerError> {
    broker
        .administration
        .bind_admin(&by, identity(sub), "admin".into(), false)
        .await
}

async fn admins(rig: &Rig) -> usize {
    let bindings = rig
        .broker
        .administration
        .admin_bindings(&rig.admin())
        .await
        .unwrap();
    bindings.len()
}

/// The active generation with these policies for admins.
async fn next(rig: &Rig, admins: &str) -> Generation {
    let (_, bytes) = rig
        .broker
        .administration
        .generation(&rig.admin())
        .await
        .unwrap();
    let mut next: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    next["policies"][0]["text"] = format!("{POLICIES}{admins}").into();
    serde_json::from_value(next).unwrap()
}

async fn cut_off(rig: &Rig, task: TaskId) -> taskpass::ids::CutoffId {
    let ask = RevokeRequest {
        selector: Selector::Task(task),
        block: BlockRequest::UntilLifted,
        deny_all_earlier_sessions: false,
        reason: "test".into(),
        allow_unknown: false,
        dry_run: false,
    };
    let revoked = rig
        .broker
        .revocation
        .revoke_many(&rig.admin(), ask)
        .await
        .unwrap();
    revoked.cutoff.unwrap().id
}

fn is_forbidden<T: std::fmt::Debug>(result: &Result<T, BrokerError>) -> bool {
    matches!(result, Err(BrokerError::Forbidden(_)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_admin_whose_right_was_taken_acts_on_no_replica_that_has_not_followed_yet() {
    let rig = begin(Kind::Postgres).await;
    bind(&rig, "agent:reports", "admin").await;
    let other = rig.replica().await;
    let reports = || rig.evidence("agent:reports");
    other
        .broker
        .signing_keys
        .list_keys(&reports())
        .await
        .unwrap();
    let activated = rig
        .broker
        .administration
        .activate(&rig.admin(), ready(Some(next(&rig, ACTIVATORS).await)))
        .await;
    activated.unwrap().unwrap();
    let size = rig.broker.core.ledger().basis();
    // The other replica has not read the change yet.
    let acts = [
        other
            .broker
            .signing_keys
            .list_keys(&reports())
            .await
            .map(drop),
        other
            .broker
            .administration
            .bind_admin(&reports(), identity("agent:child"), "auditor".into(), true)
            .await,
        other
            .broker
            .signing_keys
            .rotate_keys(&reports())
            .await
            .map(drop),
        other
            .broker
            .administration
            .generation(&reports())
            .await
            .map(drop),
    ];
    for (number, act) in acts.iter().enumerate() {
        assert!(is_forbidden(act), "{number}: {act:?}");
    }
    rig.issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
    assert_eq!(
        rig.broker.core.ledger().basis(),
        size + 1,
        "nothing was recorded"
    );
    let mut reader = Vec::new();
    for _ in 0..3 {
        reader.push(
            other
                .broker
                .issuance
                .issue(reports(), ask(&["orders:read"]))
                .await,
        );
    }
    assert!(reader.iter().all(Result::is_ok), "{reader:?}");
    other
        .shutdown
        .drain_then_stop(std::time::Duration::ZERO, SOON)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_admins_who_unbind_each_other_at_once_one_remains() {
    for replicas in [1, 2] {
        let rig = begin(Kind::Postgres).await;
        let other = rig.replica().await;
        let second = if replicas == 1 {
            &rig.broker
        } else {
            &other.broker
        };
        for round in 0..4 {
            bind(&rig, "agent:reports", "admin").await;
            bind(&rig, "agent:child", "admin").await;
            let (one, two) = tokio::join!(
                unbind(&rig.broker, rig.evidence("agent:reports"), "agent:child"),
                unbind(second, rig.evidence("agent:child"), "agent:reports"),
            );
            assert!(one.is_ok() != two.is_ok(), "{round}: {one:?} {two:?}");
            assert_eq!(admins(&rig).await, 1, "{round}");
        }
        other
            .shutdown
            .drain_then_stop(std::time::Duration::ZERO, SOON)
            .await;
    }
}

on_both_stores! {
    fn the_last_admin_who_could_activate_is_unbound_by_the_bootstrap_token_alone;
    fn a_role_is_given_only_to_an_identity_that_some_attestor_gives;
    fn a_role_that_no_policy_names_is_not_bound;
    fn who_binds_or_unbinds_itself_is_told_that_and_not_of_a_missing_right;
    fn a_task_is_delegated_only_to_an_identity_that_some_attestor_gives;
    fn an_admin_does_not_lift_what_was_cut_off_of_a_task_of_its_own;
    fn evidence_that_was_used_has_no_generation_kept;
}

async fn the_last_admin_who_could_activate_is_unbound_by_the_bootstrap_token_alone(rig: Rig) {
    bind(&rig, "agent:reports", "admin").await;
    bind(&rig, "agent:child", "admin").await;
    unbind(&rig.broker, rig.evidence("agent:reports"), "agent:child")
        .await
        .unwrap();
    bind(&rig, "agent:orders", "auditor").await;
    bind(&rig, "agent:child", "admin").await;
    unbind(&rig.broker, rig.evidence("agent:child"), "agent:reports")
        .await
        .unwrap();
    // An auditor cannot activate a generation, so its binding does not count.
    bind(&rig, "agent:reports", "admin").await;
    unbind(&rig.broker, rig.admin(), "agent:child")
        .await
        .unwrap();
    unbind(&rig.broker, rig.admin(), "agent:reports")
        .await
        .unwrap();
}

async fn a_role_is_given_only_to_an_identity_that_some_attestor_gives(rig: Rig) {
    for stranger in ["github:user:42", "dev:a:b", "dev:", "nobody"] {
        let Ok(stranger) = Identity::try_from(stranger.to_owned()) else {
            continue;
        };
        let admin = rig.admin();
        let bound =
            rig.broker
                .administration
                .bind_admin(&admin, stranger.clone(), "admin".into(), true);
        let refused = bound.await;
        assert!(
            matches!(
                refused,
                Err(BrokerError::Invalid {
                    pointer: "/workload",
                    ..
                })
            ),
            "{stranger}: {refused:?}"
        );
        // An identity that was bound while its attestor existed can always be unbound.
        let unbound = rig
            .broker
            .administration
            .bind_admin(&admin, stranger, "admin".into(), false);
        unbound.await.unwrap();
    }
}

async fn a_role_that_no_policy_names_is_not_bound(rig: Rig) {
    for typo in ["admn", "adminn", "admin-role"] {
        let admin = rig.admin();
        let bound = rig.broker.administration.bind_admin(
            &admin,
            identity("agent:child"),
            typo.into(),
            true,
        );
        let refused = bound.await.unwrap_err().to_string();
        assert!(
            refused.contains("policies name: admin, auditor, nobody"),
            "{refused}"
        );
        // A role that was bound while a policy named it can always be unbound.
        let unbound = rig.broker.administration.bind_admin(
            &admin,
            identity("agent:child"),
            typo.into(),
            false,
        );
        unbound.await.unwrap();
    }
    assert_eq!(admins(&rig).await, 0);
}

async fn who_binds_or_unbinds_itself_is_told_that_and_not_of_a_missing_right(rig: Rig) {
    bind(&rig, "agent:reports", "admin").await;
    for (role, bound) in [("admin", false), ("admin", true), ("auditor", true)] {
        let by = rig.evidence("agent:reports");
        let own = rig.broker.administration.bind_admin(
            &by,
            identity("agent:reports"),
            role.into(),
            bound,
        );
        let refused = own.await.unwrap_err();
        assert!(matches!(refused, BrokerError::OwnBinding), "{refused}");
        assert!(
            refused.to_string().contains("ask another admin"),
            "{refused}"
        );
    }
    assert_eq!(admins(&rig).await, 1);
}

async fn a_task_is_delegated_only_to_an_identity_that_some_attestor_gives(rig: Rig) {
    let parent = rig
        .issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
    for stranger in ["github:user:42", "dev:a:b", "nowhere:agent"] {
        let authority = TaskAuthority::Handle(handle(&parent), Evidence::default());
        let child = stranger.to_owned().try_into().unwrap();
        let lent = rig
            .broker
            .tasks
            .delegate(parent.task.id, authority, child, 1, None)
            .await;
        let Err(BrokerError::Invalid {
            pointer: "/workload",
            detail,
        }) = lent
        else {
            panic!("{stranger}");
        };
        assert!(detail.contains(stranger), "{detail}");
    }
    rig.delegate(&parent, "agent:child").await.unwrap();
}

async fn an_admin_does_not_lift_what_was_cut_off_of_a_task_of_its_own(rig: Rig) {
    bind(&rig, "agent:reports", "admin").await;
    bind(&rig, "agent:child", "admin").await;
    bind(&rig, "agent:orders", "admin").await;
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
    for task in [parent.task.id, child.task.id] {
        let cutoff = cut_off(&rig, task).await;
        for own in ["agent:reports", "agent:child"] {
            let lifted = rig.broker.revocation.lift(&rig.evidence(own), cutoff).await;
            assert!(is_forbidden(&lifted), "{own}: {lifted:?}");
        }
        rig.broker
            .revocation
            .lift(&rig.evidence("agent:orders"), cutoff)
            .await
            .unwrap();
    }
}

async fn evidence_that_was_used_has_no_generation_kept(rig: Rig) {
    bind(&rig, "agent:reports", "admin").await;
    let evidence = rig.evidence("agent:reports");
    rig.broker.signing_keys.list_keys(&evidence).await.unwrap();
    let kept = async || rig.rows().await["generation"].len();
    let before = kept().await;
    for number in 0..3 {
        let admins = format!("// {number}\n{ADMINS}");
        let document = next(&rig, &admins).await;
        let refused = rig
            .broker
            .administration
            .activate(&evidence, ready(Some(document)))
            .await;
        assert!(matches!(refused, Err(BrokerError::Replayed)), "{refused:?}");
    }
    assert_eq!(kept().await, before);
    let document = next(&rig, &format!("// kept\n{ADMINS}")).await;
    let activated = rig
        .broker
        .administration
        .activate(&rig.evidence("agent:reports"), ready(Some(document)))
        .await;
    activated.unwrap().unwrap();
    assert_eq!(kept().await, before + 1);
}
