//! The laws of the design, each tested on both stores by attempts to break it.

use std::future::ready;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use secrecy::ExposeSecret;
use serde_json::json;
use taskpass::attest::Evidence;
use taskpass::broker::BrokerError;
use taskpass::broker::revocation::{BlockRequest, RevokeRequest};
use taskpass::broker::tasks::TaskAuthority;
use taskpass::domain::cutoff::{Selector, True};
use taskpass::domain::generation::Retention;
use taskpass::domain::request::CredentialRequest;
use taskpass::domain::session::{EndReason, SessionState};
use taskpass::domain::task::{TaskEnd, TaskState};
use taskpass::store::sessions::SessionFilter;
use taskpass::sweep;

use crate::support::rig::{
    BOOTSTRAP, Kind, POLICIES, Rig, ask, ask_in, ask_joining, bearer, child_of, claims, handle,
    is_good, job, refusal, with_key,
};

async fn begin(kind: Kind) -> Rig {
    Rig::new(kind).await
}

on_both_stores! {
    async fn a_credential_carries_the_hash_of_a_leaf_that_permits_exactly_it(rig: Rig) {
        let issued = rig.issue("agent:reports", ask(&["orders:read"])).await.unwrap();
        let keys: Vec<_> = rig.broker.core.ledger().keys().iter().map(|key| key.verifier.clone()).collect();
        issued.receipt.verify(&keys).unwrap();
        let claims = claims(&issued);
        let hash = URL_SAFE_NO_PAD.encode(issued.receipt.leaf_hash.as_bytes());
        assert_eq!(claims["dec"], hash);
        let leaf: serde_json::Value = serde_json::from_slice(&issued.receipt.leaf).unwrap();
        assert_eq!(leaf["outcome"], "permit");
        assert_eq!(leaf["session"], claims["jti"]);
        assert_eq!(leaf["task"], claims["task"]);
        assert_eq!(leaf["audience"], claims["aud"]);
        assert_eq!(leaf["grant"], claims["authorization_details"]);
        assert_eq!(leaf["policies"], json!(["reports", "reports-open"]));
        let stored = rig.broker.core.store().leaf(issued.receipt.index).await.unwrap().unwrap();
        assert_eq!(stored.body.unwrap(), issued.receipt.leaf, "the bytes handed out are the bytes stored");
    }

    async fn a_denial_is_on_record_and_tells_what_would_be_allowed(rig: Rig) {
        let denied = match rig.issue("agent:reports", ask(&["orders:read", "orders:write"])).await {
            Err(BrokerError::Denied(denied)) => denied,
            other => panic!("{other:?}"),
        };
        let keys: Vec<_> = rig.broker.core.ledger().keys().iter().map(|key| key.verifier.clone()).collect();
        denied.receipt.verify(&keys).unwrap();
        let text = String::from_utf8(denied.receipt.leaf.clone()).unwrap();
        assert!(!text.contains("\"slow\""), "the refused caller must not see the policies: {text}");
        assert_eq!(refusal(rig.issue("agent:nobody", ask(&["orders:read"])).await), "not-permitted");
        let long = CredentialRequest { ttl_seconds: Some(601), ..ask(&["orders:read"]) };
        let Err(BrokerError::Denied(denied)) = rig.issue("agent:reports", long).await else { panic!("the lifetime should be too long") };
        assert_eq!(denied.refusal.allowed.unwrap().max_ttl_seconds, Some(600));
    }

    async fn evidence_is_used_once(rig: Rig) {
        let token = rig.token("agent:reports", json!({}));
        rig.broker.issuance.issue(bearer(&token), ask(&["orders:read"])).await.unwrap();
        let size = rig.broker.core.ledger().basis();
        let again = rig.broker.issuance.issue(bearer(&token), ask(&["orders:read"])).await;
        assert!(matches!(again, Err(BrokerError::Replayed)), "{again:?}");
        assert_eq!(rig.broker.core.ledger().basis(), size, "a replay gets no leaf");
    }

    async fn of_fifty_at_once_with_one_token_one_gets_through(rig: Rig) {
        let token = rig.token("agent:reports", json!({}));
        let tries = (0..50).map(|_| rig.broker.issuance.issue(bearer(&token), ask(&["orders:read"])));
        let results = futures_util::future::join_all(tries).await;
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
        let others = results.iter().filter(|result| matches!(result, Err(BrokerError::Replayed)));
        assert_eq!(others.count(), 49);
    }

    async fn completing_a_task_kills_its_credential_at_once(rig: Rig) {
        let issued = rig.issue("agent:reports", ask(&["orders:read"])).await.unwrap();
        assert!(rig.is_good(&issued).await);
        let ended = rig.end(&issued, TaskEnd::Complete).await.unwrap();
        assert!(!rig.is_good(&issued).await);
        assert_eq!(ended.task.state, TaskState::Completed);
        let status = ended.sessions[0].status;
        assert_eq!((status.state, status.end_reason), (SessionState::Ended, Some(EndReason::Completed)));
        assert!(status.confirmed_at.is_some());
        // Ending is idempotent, and the first end stays.
        let again = rig.end(&issued, TaskEnd::Abort).await.unwrap();
        assert_eq!(again.task.state, TaskState::Completed);
        assert_eq!(refusal(rig.issue("agent:reports", ask_joining(&issued, &["orders:read"])).await), "task-ended");
    }

    async fn an_offline_credential_is_never_called_dead_before_it_expires(rig: Rig) {
        let mut request = ask(&["orders:read"]);
        request.resource = "archive-api".into();
        let issued = rig.issue("agent:reports", request).await.unwrap();
        assert_eq!(issued.session.revocability.class.as_str(), "expiry_only");
        let ended = rig.end(&issued, TaskEnd::Complete).await.unwrap();
        let status = ended.sessions[0].status;
        assert_eq!((status.state, status.confirmed_at), (SessionState::Ending, None));
        rig.clock.pass(issued.session.expires_at);
        let view = rig.broker.core.store().session_view(issued.session.id).await.unwrap().unwrap();
        let status = view.status_at(issued.session.expires_at);
        assert_eq!((status.state, status.end_reason), (SessionState::Ended, Some(EndReason::Completed)));
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
            task_type: "watched".into(), heartbeat_seconds: Some(30), ..job()
        };
        let quiet = rig.issue("agent:reports", ask_in(watched, &["orders:read"])).await.unwrap();
        rig.clock.advance(29);
        rig.heartbeat(&quiet).await.unwrap();
        rig.clock.advance(29);
        assert!(rig.is_good(&quiet).await);
        rig.clock.advance(1);
        assert!(!rig.is_good(&quiet).await, "silent");
        // A heartbeat after the timeout does not restore the task.
        assert!(matches!(rig.heartbeat(&quiet).await, Err(BrokerError::TaskEnded)));
        assert!(!rig.is_good(&quiet).await);
        sweep::sweep(&rig.broker, rig.now()).await;
        let task = rig.broker.core.store().task(quiet.task.id).await.unwrap().unwrap();
        assert_eq!(task.state, TaskState::Expired, "the sweeper records the state that already applied");
    }

    async fn a_session_never_outlives_its_tasks_deadline(rig: Rig) {
        let short = taskpass::domain::request::NewTask { deadline_seconds: Some(60), ..job() };
        let issued = rig.issue("agent:reports", ask_in(short.clone(), &["orders:read"])).await.unwrap();
        assert!(issued.session.expires_at <= issued.task.deadline);
        let mut asks_more = ask_in(short, &["orders:read"]);
        asks_more.ttl_seconds = Some(61);
        assert_eq!(refusal(rig.issue("agent:reports", asks_more).await), "ttl-too-long");
    }

    async fn a_child_is_within_its_parent_and_dies_with_it(rig: Rig) {
        let mut request = ask(&["orders:read"]);
        request.ttl_seconds = Some(300);
        let parent = rig.issue("agent:reports", request).await.unwrap();
        // A request beyond the parent's grant.
        let lent = rig.delegate(&parent, "agent:child").await.unwrap();
        let beyond = ask_in(child_of(parent.task.id, &lent), &["orders:write"]);
        assert_eq!(refusal(rig.issue("agent:child", beyond).await), "exceeds-parent");
        // A request within it; the child never lasts longer than its parent.
        let lent = rig.delegate(&parent, "agent:child").await.unwrap();
        let child = rig.issue("agent:child", ask_in(child_of(parent.task.id, &lent), &["orders:read"])).await.unwrap();
        assert!(child.session.expires_at <= parent.session.expires_at);
        let said = claims(&child);
        assert_eq!(said["sub"], "dev:agent%3Areports");
        assert_eq!(said["act"], json!({"sub": "dev:agent%3Achild"}));
        // A delegation is for one workload, and can be used once.
        let again = ask_in(child_of(parent.task.id, &lent), &["orders:read"]);
        assert!(matches!(rig.issue("agent:child", again).await, Err(BrokerError::Replayed)));
        let other = rig.delegate(&parent, "agent:child").await.unwrap();
        let stranger = ask_in(child_of(parent.task.id, &other), &["orders:read"]);
        assert!(matches!(rig.issue("agent:orders", stranger).await, Err(BrokerError::NotFound("task"))));
        assert!(rig.is_good(&child).await);
        rig.end(&parent, TaskEnd::Complete).await.unwrap();
        assert!(!rig.is_good(&child).await, "ending a task ends the tree");
    }

    async fn revoking_a_parents_credential_kills_what_was_derived_from_it(rig: Rig) {
        let parent = rig.issue("agent:reports", ask(&["orders:read"])).await.unwrap();
        let lent = rig.delegate(&parent, "agent:child").await.unwrap();
        let child = rig.issue("agent:child", ask_in(child_of(parent.task.id, &lent), &["orders:read"])).await.unwrap();
        rig.revoke(parent.session.id).await;
        assert!(!rig.is_good(&parent).await);
        assert!(!rig.is_good(&child).await);
        let again = rig.delegate(&parent, "agent:child").await.unwrap();
        let orphan = ask_in(child_of(parent.task.id, &again), &["orders:read"]);
        assert_eq!(refusal(rig.issue("agent:child", orphan).await), "exceeds-parent");
    }

    async fn a_cutoff_on_a_parents_workload_kills_the_grandchild_too(rig: Rig) {
        let root = rig.issue("agent:reports", ask(&["orders:read"])).await.unwrap();
        let lent = rig.delegate(&root, "agent:child").await.unwrap();
        let mid = rig.issue("agent:child", ask_in(child_of(root.task.id, &lent), &["orders:read"])).await.unwrap();
        let lent = rig.lend(&mid, "agent:orders", 1).await.unwrap();
        let leaf = rig.issue("agent:orders", ask_in(child_of(mid.task.id, &lent), &["orders:read"])).await.unwrap();
        assert_eq!(claims(&leaf)["act"], json!({"sub": "dev:agent%3Aorders", "act": {"sub": "dev:agent%3Achild"}}));
        let selector = Selector::Workload(root.session.workload.clone());
        let tried = rig.broker.revocation.revoke_many(&rig.admin(), RevokeRequest { selector: selector.clone(), block: BlockRequest::Default, deny_all_earlier_sessions: false, reason: "x".into(), allow_unknown: false, dry_run: true }).await.unwrap();
        assert_eq!((tried.radius.unwrap().matched, tried.cutoff.is_none()), (3, true), "a dry run counts the whole tree");
        assert!(rig.is_good(&leaf).await, "and touches nothing");
        let done = rig.broker.revocation.revoke_many(&rig.admin(), RevokeRequest { selector, block: BlockRequest::Default, deny_all_earlier_sessions: false, reason: "x".into(), allow_unknown: false, dry_run: false }).await.unwrap();
        assert_eq!(done.radius.unwrap().matched, 3);
        for dead in [&root, &mid, &leaf] {
            assert!(!rig.is_good(dead).await);
        }
    }

    async fn tasks_are_nested_so_deep_and_no_deeper(rig: Rig) {
        let opened = rig.broker.tasks.open_task(&rig.evidence("agent:child"), job()).await.unwrap();
        let mut parent = opened.task;
        let child: taskpass::domain::workload::Identity = "dev:agent%3Achild".to_owned().try_into().unwrap();
        for depth in 2..=9 {
            let authority = TaskAuthority::Handle(parent.handle.clone().unwrap(), Evidence::default());
            let lent = rig.broker.tasks.delegate(parent.id, authority, child.clone(), 6, None).await.unwrap();
            let opened = rig.broker.tasks.open_task(&rig.evidence("agent:child"), child_of(parent.id, &lent)).await;
            if depth == 9 {
                let Err(BrokerError::Denied(denied)) = opened else { panic!("{opened:?}") };
                assert_eq!(denied.refusal.code.as_str(), "too-deep");
                break;
            }
            parent = opened.unwrap().task;
        }
    }

    async fn a_cutoff_on_an_attestor_kills_what_its_identities_hold_and_lets_none_in(rig: Rig) {
        let issued = rig.issue("agent:reports", ask(&["orders:read"])).await.unwrap();
        let cut = async |name: &str| {
            let ask = RevokeRequest { selector: Selector::Attestor(name.into()), block: BlockRequest::UntilLifted, deny_all_earlier_sessions: false, allow_unknown: true, reason: "its key was stolen".into(), dry_run: false };
            rig.broker.revocation.revoke_many(&rig.admin(), ask).await.unwrap().radius.unwrap().matched
        };
        assert_eq!(cut("another").await, 0);
        assert!(rig.is_good(&issued).await);
        assert_eq!(cut("dev").await, 1);
        assert!(!rig.is_good(&issued).await);
        assert_eq!(refusal(rig.issue("agent:reports", ask(&["orders:read"])).await), "blocked");
    }

    async fn a_block_holds_until_it_is_lifted_and_lifting_revives_nothing(rig: Rig) {
        let issued = rig.issue("agent:reports", ask(&["orders:read"])).await.unwrap();
        let all = Selector::All(True);
        let revoked = rig.broker.revocation.revoke_many(&rig.admin(), RevokeRequest { selector: all, block: BlockRequest::UntilLifted, deny_all_earlier_sessions: false, allow_unknown: false, reason: "incident".into(), dry_run: false }).await.unwrap();
        assert!(!rig.is_good(&issued).await);
        assert_eq!(refusal(rig.issue("agent:reports", ask(&["orders:read"])).await), "blocked");
        rig.clock.advance(86_400);
        assert_eq!(refusal(rig.issue("agent:reports", ask(&["orders:read"])).await), "blocked");
        rig.broker.revocation.lift(&rig.admin(), revoked.cutoff.unwrap().id).await.unwrap();
        assert!(!rig.is_good(&issued).await);
        rig.issue("agent:reports", ask(&["orders:read"])).await.unwrap();
    }

    async fn a_timed_block_ends_at_its_time(rig: Rig) {
        let selector = Selector::Resource("orders-api".into());
        rig.broker.revocation.revoke_many(&rig.admin(), RevokeRequest { selector, block: BlockRequest::Seconds(60), deny_all_earlier_sessions: false, reason: "x".into(), allow_unknown: false, dry_run: false }).await.unwrap();
        rig.clock.advance(59);
        assert_eq!(refusal(rig.issue("agent:reports", ask(&["orders:read"])).await), "blocked");
        rig.clock.advance(1);
        let issued = rig.issue("agent:reports", ask(&["orders:read"])).await.unwrap();
        // A block without a stated duration lasts an hour.
        let selector = Selector::Workload(issued.session.workload.clone());
        rig.broker.revocation.revoke_many(&rig.admin(), RevokeRequest { selector, block: BlockRequest::Default, deny_all_earlier_sessions: false, reason: "x".into(), allow_unknown: false, dry_run: false }).await.unwrap();
        rig.clock.advance(3_599);
        assert_eq!(refusal(rig.issue("agent:reports", ask(&["orders:read"])).await), "blocked");
        rig.clock.advance(1);
        rig.issue("agent:reports", ask(&["orders:read"])).await.unwrap();
    }

    async fn what_a_policy_permitted_is_ended_by_its_name_and_the_times_are_kept(rig: Rig) {
        let permitted = rig.issue("agent:reports", ask(&["orders:read"])).await.unwrap();
        let by_another = rig.issue("agent:child", ask(&["orders:read"])).await.unwrap();
        rig.clock.advance(7);
        let selector = Selector::Policy("reports".into());
        let revoked = rig.broker.revocation.revoke_many(&rig.admin(), RevokeRequest { selector, block: BlockRequest::Default, deny_all_earlier_sessions: false, reason: "x".into(), allow_unknown: false, dry_run: false }).await.unwrap();
        let radius = revoked.radius.unwrap();
        assert_eq!((radius.matched, radius.ended), (1, 1));
        assert_eq!((rig.is_good(&permitted).await, rig.is_good(&by_another).await), (false, true));
        let kept = rig.broker.core.store().cutoff(revoked.cutoff.unwrap().id).await.unwrap().unwrap();
        assert_eq!((kept.requested_at, kept.committed_at), (rig.now(), rig.now()));
    }

    async fn a_retry_supersedes_what_can_be_taken_back(rig: Rig) {
        let request = with_key(ask(&["orders:read"]), "key-1");
        let first = rig.issue("agent:reports", request.clone()).await.unwrap();
        rig.clock.advance(10);
        let second = rig.issue("agent:reports", request.clone()).await.unwrap();
        assert_eq!(first.task.id, second.task.id);
        assert_ne!(handle(&first).expose_secret(), handle(&second).expose_secret());
        assert!(second.session.expires_at <= first.session.expires_at, "a retry never lasts longer");
        assert!(!rig.is_good(&first).await);
        assert!(rig.is_good(&second).await);
        assert!(rig.heartbeat(&first).await.is_err(), "the old handle is invalid");
        rig.heartbeat(&second).await.unwrap();
        for _ in 0..2 {
            rig.issue("agent:reports", request.clone()).await.unwrap();
        }
        let fifth = rig.issue("agent:reports", request.clone()).await;
        assert!(matches!(fifth, Err(BrokerError::AlreadyIssued(..))), "at most three times");
        let mut other = request;
        other.retry.as_mut().unwrap().fingerprint = [8; 32];
        assert!(matches!(rig.issue("agent:reports", other).await, Err(BrokerError::RetryMismatch)));
    }

    async fn a_retry_of_what_cannot_be_taken_back_is_a_conflict(rig: Rig) {
        let mut request = with_key(ask(&["orders:read"]), "key-2");
        request.resource = "archive-api".into();
        let first = rig.issue("agent:reports", request.clone()).await.unwrap();
        match rig.issue("agent:reports", request).await {
            Err(BrokerError::AlreadyIssued(session, _)) => assert_eq!(session, first.session.id),
            other => panic!("{other:?}"),
        }
    }

    async fn what_is_someone_elses_is_not_found(rig: Rig) {
        let issued = rig.issue("agent:reports", ask(&["orders:read"])).await.unwrap();
        let theft = ask_joining(&issued, &["orders:read"]);
        assert!(matches!(rig.issue("agent:orders", theft).await, Err(BrokerError::NotFound("task"))));
        let other_run = bearer(&rig.token("agent:reports", json!({"run": "run-2"})));
        let joined = rig.broker.issuance.issue(other_run, ask_joining(&issued, &["orders:read"])).await;
        assert!(matches!(joined, Err(BrokerError::NotFound("task"))), "another run of the workload may not join, even with the handle");
        let guess = TaskAuthority::Handle("tph_guess".to_owned().into(), Evidence::default());
        let ended = rig.broker.tasks.end_task(issued.task.id, guess, TaskEnd::Abort).await;
        assert!(matches!(ended, Err(BrokerError::NotFound("task"))));
        let stranger = rig.evidence("agent:orders");
        let revoked = rig.broker.revocation.revoke_session(&stranger, issued.session.id).await;
        assert!(matches!(revoked, Err(BrokerError::NotFound("session"))));
        assert!(rig.is_good(&issued).await);
    }

    async fn the_right_to_end_a_task_is_no_right_to_live_on_it(rig: Rig) {
        let issued = rig.issue("agent:reports", ask(&["orders:read"])).await.unwrap();
        let admin = || TaskAuthority::Owner(rig.admin());
        let child = "dev:agent%3Achild".to_owned().try_into().unwrap();
        let lent = rig.broker.tasks.delegate(issued.task.id, admin(), child, 1, None).await;
        assert!(matches!(lent, Err(BrokerError::NotFound("task"))), "{lent:?}");
        let beat = rig.broker.tasks.heartbeat(issued.task.id, admin()).await;
        assert!(matches!(beat, Err(BrokerError::NotFound("task"))));
        rig.broker.tasks.end_task(issued.task.id, admin(), TaskEnd::Abort).await.unwrap();
        assert!(!rig.is_good(&issued).await);
    }

    async fn the_budget_of_a_task_is_shared_with_its_children(rig: Rig) {
        // `job` allows six: one for the parent, two lent, three more.
        let parent = rig.issue("agent:reports", ask(&["orders:read"])).await.unwrap();
        let lent = rig.delegate(&parent, "agent:child").await.unwrap();
        let child = rig.issue("agent:child", ask_in(child_of(parent.task.id, &lent), &["orders:read"])).await.unwrap();
        rig.issue("agent:child", ask_joining(&child, &["orders:read"])).await.unwrap();
        assert_eq!(refusal(rig.issue("agent:child", ask_joining(&child, &["orders:read"])).await), "task-budget");
        for _ in 0..3 {
            rig.issue("agent:reports", ask_joining(&parent, &["orders:read"])).await.unwrap();
        }
        assert_eq!(refusal(rig.issue("agent:reports", ask_joining(&parent, &["orders:read"])).await), "task-budget");
    }

    async fn a_workload_has_only_so_many_tasks_open(rig: Rig) {
        let asks = (0..60).map(|_| rig.issue("agent:reports", ask(&["orders:read"])));
        let results = futures_util::future::join_all(asks).await;
        let granted = results.iter().filter(|result| result.is_ok()).count();
        assert_eq!(granted, 50, "the limit also holds within one batch");
    }

    async fn approval_is_a_refusal_of_its_own_kind(rig: Rig) {
        let result = rig.issue("agent:reports", ask(&["orders:write"])).await;
        let Err(BrokerError::Denied(denied)) = result else { panic!("{result:?}") };
        assert_eq!(denied.refusal.code.as_str(), "approval-required");
        assert_eq!(denied.outcome.as_str(), "pending");
    }

    async fn a_generation_decides_from_its_activation_on(rig: Rig) {
        let issued = rig.issue("agent:reports", ask(&["orders:read"])).await.unwrap();
        let (_, bytes) = rig.broker.administration.generation(&rig.admin()).await.unwrap();
        let mut next: taskpass::domain::generation::Generation = serde_json::from_slice(&bytes).unwrap();
        let text = &mut next.policies[0].text;
        *text = text.replace("agent%3Areports", "agent%3Asomebody");
        rig.broker.administration.activate(&rig.admin(), ready(Some(next.clone()))).await.unwrap().unwrap();
        assert_eq!(refusal(rig.issue("agent:reports", ask(&["orders:read"])).await), "not-permitted");
        assert!(rig.is_good(&issued).await, "an earlier grant stays valid until it is revoked");
        let by_generation = Selector::Generation(issued.session.generation);
        rig.broker.revocation.revoke_many(&rig.admin(), RevokeRequest { selector: by_generation, block: BlockRequest::Default, deny_all_earlier_sessions: false, reason: "x".into(), allow_unknown: false, dry_run: false }).await.unwrap();
        assert!(!rig.is_good(&issued).await);
        // An invalid generation does not replace the active one.
        next.policies[0].text.push_str("permit (principal, action, resource);");
        let refused = rig.broker.administration.activate(&rig.admin(), ready(Some(next))).await;
        assert!(matches!(refused, Err(BrokerError::Unfit(_))), "{refused:?}");
        rig.issue("agent:orders", ask(&["orders:read"])).await.unwrap();
    }

    async fn nothing_that_we_issue_is_at_rest(rig: Rig) {
        let token = rig.token("agent:reports", json!({}));
        let request = ask_in(taskpass::domain::request::NewTask {
            purpose: Some("numbers".into()), ..job()
        }, &["orders:read"]);
        let issued = rig.broker.issuance.issue(bearer(&token), request).await.unwrap();
        let lent = rig.delegate(&issued, "agent:child").await.unwrap();
        let mut canaries = crate::support::canary::Canaries::new();
        canaries.add("attestation", &token);
        canaries.add("credential", crate::support::rig::access_token(&issued).expose_secret());
        canaries.add("handle", handle(&issued).expose_secret());
        canaries.add("delegation", lent.token.expose_secret());
        canaries.assert_absent_in(rig.directory());
        if matches!(rig.broker.core.store().kind(), "postgres") {
            canaries.assert_absent_in_postgres(&rig.database().url());
        }
        canaries.assert_absent_in_text("Debug", format!("{issued:?} {lent:?}"));
    }

    async fn proofs_hold_across_tiles_and_restarts(rig: Rig) {
        let mut rig = rig;
        let mut receipts = Vec::new();
        for round in 0..6 {
            let asks = (0..60).map(|_| rig.issue("agent:nobody", ask(&["orders:read"])));
            for result in futures_util::future::join_all(asks).await {
                let Err(BrokerError::Denied(denied)) = result else { panic!("{result:?}") };
                receipts.push(denied.receipt);
            }
            if round == 3 {
                rig.restart().await.unwrap();
            }
        }
        let keys: Vec<_> = rig.broker.core.ledger().keys().iter().map(|key| key.verifier.clone()).collect();
        let store = rig.broker.core.store();
        let head = rig.broker.core.ledger().head().await.unwrap().unwrap();
        assert!(head.size > 300);
        for receipt in &receipts {
            receipt.verify(&keys).unwrap();
            let path = taskpass::ledger::proofs::inclusion(store, receipt.index, head.size, head.size).await.unwrap();
            taskpass::merkle::verify_inclusion(receipt.index, head.size, &receipt.leaf_hash, &path, &head.root).unwrap();
        }
        let first = &receipts[0];
        let path = taskpass::ledger::proofs::consistency(store, first.tree_size, head.size, head.size).await.unwrap();
        let old = taskpass::merkle::SignedCheckpoint::open(first.checkpoint.as_bytes(), &keys).unwrap();
        taskpass::merkle::verify_consistency(first.tree_size, head.size, &path, &old.checkpoint().root, &head.root).unwrap();
    }

    async fn pruning_leaves_what_something_still_points_at(rig: Rig) {
        let parent = rig.issue("agent:reports", ask(&["orders:read"])).await.unwrap();
        let lent = rig.delegate(&parent, "agent:child").await.unwrap();
        rig.issue("agent:child", ask_in(child_of(parent.task.id, &lent), &["orders:read"])).await.unwrap();
        let retention = Retention { sessions_days: 0, openings_days: 0, bodies_days: 400 };
        sweep::prune::prune(&rig.broker, retention, rig.now()).await.unwrap();
        let store = rig.broker.core.store();
        assert!(store.task(parent.task.id).await.unwrap().is_some());
        assert!(store.session(parent.session.id).await.unwrap().is_some());
        rig.clock.advance(2 * 86_400);
        sweep::sweep(&rig.broker, rig.now()).await;
        sweep::prune::prune(&rig.broker, retention, rig.now()).await.unwrap();
        assert!(store.session(parent.session.id).await.unwrap().is_none());
        assert!(store.task(parent.task.id).await.unwrap().is_none());
        let keys: Vec<_> = rig.broker.core.ledger().keys().iter().map(|key| key.verifier.clone()).collect();
        parent.receipt.verify(&keys).unwrap();
        let size = rig.broker.core.ledger().basis();
        let proof = taskpass::ledger::proofs::inclusion(store, parent.receipt.index, size, size).await;
        assert!(proof.is_ok(), "pruning never breaks a proof");
    }

    async fn a_rotated_log_key_signs_beside_the_old_one(rig: Rig) {
        let old: Vec<_> = rig.broker.core.ledger().keys().iter().map(|key| key.verifier.clone()).collect();
        rig.broker.signing_keys.rotate_ledger_key(&rig.admin()).await.unwrap();
        let issued = rig.issue("agent:reports", ask(&["orders:read"])).await.unwrap();
        issued.receipt.verify(&old).unwrap();
        let new: Vec<_> = rig.broker.core.ledger().keys().iter().map(|key| key.verifier.clone()).collect();
        assert_eq!(new.len(), 2);
        issued.receipt.verify(&new[..1]).unwrap();
    }

    async fn a_private_key_is_forgotten_when_its_last_token_is_over(rig: Rig) {
        let issued = rig.issue("agent:reports", ask(&["orders:read"])).await.unwrap();
        let sealed = async || {
            let rows = rig.broker.core.store().signing_keys().await.unwrap();
            rows.iter().filter(|row| row.kid == issued.session.kid).map(|row| row.sealed.len()).sum::<usize>()
        };
        for _ in 0..31 {
            rig.clock.advance(86_400);
            rig.broker.keys.follow(rig.now()).await.unwrap();
        }
        assert_eq!(sealed().await, 0);
        let next = rig.issue("agent:reports", ask(&["orders:read"])).await.unwrap();
        assert_ne!(next.session.kid, issued.session.kid);
        // The erased key's row can still be read and resealed.
        rig.broker.signing_keys.reseal_keys(&rig.admin()).await.unwrap();
        assert_eq!(rig.broker.keys.follow(rig.now()).await.unwrap(), 0);
        assert!(rig.is_good(&next).await);
    }

    async fn a_revoked_key_takes_its_tokens_with_it(rig: Rig) {
        let issued = rig.issue("agent:reports", ask(&["orders:read"])).await.unwrap();
        rig.broker.signing_keys.revoke_key(&rig.admin(), &issued.session.kid, false).await.unwrap();
        assert!(!rig.is_good(&issued).await);
        let jwks = rig.broker.keys.published_jwks();
        assert!(!jwks.to_string().contains(&issued.session.kid));
        let next = rig.issue("agent:reports", ask(&["orders:read"])).await.unwrap();
        assert_ne!(next.session.kid, issued.session.kid);
        assert!(rig.is_good(&next).await && !rig.is_good(&issued).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_decided_before_revoke_all_is_usable_after_it_on_two_replicas() {
    let rig = Arc::new(Rig::new(Kind::Postgres).await);
    let other = rig.replica().await;
    let brokers = [Arc::clone(&rig.broker), Arc::clone(&other.broker)];
    let mut asking = Vec::new();
    for round in 0..40 {
        let (rig, broker) = (Arc::clone(&rig), Arc::clone(&brokers[round % 2]));
        asking.push(tokio::spawn(async move {
            let mut issued = Vec::new();
            for _ in 0..10 {
                let sub = ["agent:reports", "agent:orders"][round % 2];
                if let Ok(one) = broker
                    .issuance
                    .issue(rig.evidence(sub), ask(&["orders:read"]))
                    .await
                {
                    issued.push(one);
                }
            }
            issued
        }));
    }
    let revoked = rig
        .broker
        .revocation
        .revoke_many(
            &rig.admin(),
            RevokeRequest {
                selector: Selector::All(True),
                block: BlockRequest::Seconds(3_600),
                deny_all_earlier_sessions: false,
                reason: "drill".into(),
                allow_unknown: false,
                dry_run: false,
            },
        )
        .await
        .unwrap();
    let cutoff = revoked.cutoff.unwrap().index;
    let mut seen = 0;
    for issued in futures_util::future::join_all(asking).await {
        for one in issued.unwrap() {
            seen += 1;
            assert!(one.receipt.index < cutoff, "granted after the cutoff");
            assert!(!is_good(&brokers[0], &one).await);
            assert!(!is_good(&brokers[1], &one).await);
        }
    }
    let matched = revoked.radius.unwrap().matched;
    assert!(matched <= seen, "{matched} of {seen}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_write_one_log() {
    let rig = Rig::new(Kind::Postgres).await;
    let other = rig.replica().await;
    let asks = (0..80).map(|n| {
        let broker = if n % 2 == 0 {
            &rig.broker
        } else {
            &other.broker
        };
        broker
            .issuance
            .issue(rig.evidence("agent:nobody"), ask(&["orders:read"]))
    });
    let keys: Vec<_> = other
        .broker
        .core
        .ledger()
        .keys()
        .iter()
        .map(|key| key.verifier.clone())
        .collect();
    let mut indexes = Vec::new();
    for result in futures_util::future::join_all(asks).await {
        let Err(BrokerError::Denied(denied)) = result else {
            panic!("{result:?}")
        };
        denied.receipt.verify(&keys).unwrap();
        indexes.push(denied.receipt.index);
    }
    indexes.sort_unstable();
    indexes.dedup();
    assert_eq!(indexes.len(), 80);
    // Another replica's cutoff applies from this replica's next append on.
    rig.broker
        .revocation
        .revoke_many(
            &rig.admin(),
            RevokeRequest {
                selector: Selector::All(True),
                block: BlockRequest::UntilLifted,
                deny_all_earlier_sessions: false,
                reason: "x".into(),
                allow_unknown: false,
                dry_run: false,
            },
        )
        .await
        .unwrap();
    let result = other
        .broker
        .issuance
        .issue(rig.evidence("agent:reports"), ask(&["orders:read"]))
        .await;
    assert_eq!(refusal(result), "blocked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_replica_shows_what_others_appended() {
    let rig = Rig::new(Kind::Postgres).await;
    let idle = rig.replica().await;
    rig.issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
    let shown = |broker: &taskpass::broker::Broker| {
        let signed = broker.core.ledger().checkpoints().borrow().clone().unwrap();
        (signed.head, signed.checkpoint)
    };
    assert!(shown(&idle.broker).0.size < shown(&rig.broker).0.size);
    idle.broker.health.check_health().await.unwrap();
    assert_eq!(shown(&idle.broker), shown(&rig.broker));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_was_set_back_stops_the_broker() {
    let mut rig = Rig::new(Kind::Sqlite).await;
    rig.issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
    rig.stop().await;
    let data = rig.directory().join("data");
    let backup = rig.directory().join("backup");
    std::fs::create_dir(&backup).unwrap();
    std::fs::set_permissions(&backup, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    for file in std::fs::read_dir(&data).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), backup.join(file.file_name())).unwrap();
    }
    rig.restart().await.unwrap();
    rig.issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
    rig.stop().await;
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::rename(&backup, &data).unwrap();
    let told = rig
        .restart()
        .await
        .expect_err("the broker must not start on a store that lost entries")
        .to_string();
    assert!(told.contains("rewound") && told.contains("size"), "{told}");
}

#[test]
fn only_the_ledger_makes_permits() {
    let mut callers = Vec::new();
    let mut folders = vec![std::path::PathBuf::from("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if std::fs::read_to_string(&path)
                .unwrap()
                .contains("Permit::committed(")
            {
                callers.push(path.display().to_string());
            }
        }
    }
    assert_eq!(callers, ["src/ledger/mod.rs"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_gets_what_its_disconnected_first_try_lost() {
    let rig = Rig::new(Kind::Sqlite).await;
    let request = with_key(ask(&["orders:read"]), "gone");
    // The caller hangs up before it receives the answer.
    let lost = rig
        .broker
        .issuance
        .issue(rig.evidence("agent:reports"), request.clone());
    assert!(
        tokio::time::timeout(std::time::Duration::ZERO, lost)
            .await
            .is_err()
    );
    let mut answer = rig.issue("agent:reports", request.clone()).await;
    while matches!(answer, Err(BrokerError::InProgress)) {
        answer = rig.issue("agent:reports", request.clone()).await;
    }
    let issued = answer.unwrap();
    assert!(rig.is_good(&issued).await);
    let under = rig
        .broker
        .core
        .store()
        .sessions_under(issued.task.id, 10)
        .await
        .unwrap();
    let alive = under.iter().filter(|view| view.is_valid_at(rig.now()));
    assert_eq!(alive.count(), 1, "the lost session has ended");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_writes_to_the_tables_activates_and_lifts_nothing() {
    let rig = Rig::new(Kind::Sqlite).await;
    let selector = Selector::Workload("dev:agent%3Aorders".to_owned().try_into().unwrap());
    let cut = rig
        .broker
        .revocation
        .revoke_many(
            &rig.admin(),
            RevokeRequest {
                selector,
                block: BlockRequest::UntilLifted,
                deny_all_earlier_sessions: false,
                reason: "x".into(),
                allow_unknown: true,
                dry_run: false,
            },
        )
        .await
        .unwrap();
    let taskpass::store::Store::Sqlite(sqlite) = rig.broker.core.store() else {
        panic!("another store")
    };
    let write = |sql: &'static str| async move {
        sqlx::query(sql).execute(sqlite.writer()).await.unwrap();
    };
    write("INSERT INTO generation (digest, body, stored_at) SELECT zeroblob(32), body, stored_at FROM generation LIMIT 1").await;
    write("INSERT INTO activation (idx, digest, actor, at, mac) SELECT idx + 1000, zeroblob(32), actor, at, mac FROM activation LIMIT 1").await;
    assert!(matches!(
        rig.broker.generations.follow().await,
        Err(BrokerError::FailClosed(_))
    ));
    assert!(
        rig.broker
            .health
            .unready()
            .unwrap()
            .contains("the broker did not activate it")
    );
    assert!(
        rig.issue("agent:reports", ask(&["orders:read"]))
            .await
            .is_err()
    );

    write("UPDATE cutoff SET kind = 'all', value = ''").await;
    let lifted = rig
        .broker
        .revocation
        .lift(&rig.admin(), cut.cutoff.unwrap().id)
        .await;
    assert!(matches!(lifted, Err(BrokerError::FailClosed(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_binds_a_role_to_themselves() {
    let policies = format!(
        "{POLICIES}\n@id(\"admins\") @description(\"admins bind admins\")\n\
         permit (principal in Role::\"admin\", action in [Action::\"manageAdmins\", \
         Action::\"listSessions\"], resource == Broker::\"taskpass\");"
    );
    let rig = Rig::with(Kind::Sqlite, &policies, vec![], vec![]).await;
    let identity = |sub: &str| {
        let text = format!("dev:{}", taskpass::domain::workload::encode_value(sub));
        taskpass::domain::workload::Identity::try_from(text).unwrap()
    };
    let bind = |by: &'static str, whom: &'static str| {
        let (rig, whom) = (&rig, identity(whom));
        async move {
            let by = rig.evidence(by);
            rig.broker
                .administration
                .bind_admin(&by, whom, "admin".into(), true)
                .await
        }
    };
    let stranger = bind("agent:orders", "agent:reports").await;
    assert!(matches!(stranger, Err(BrokerError::Forbidden(_))));
    let first = identity("agent:orders");
    let by = rig.admin();
    rig.broker
        .administration
        .bind_admin(&by, first, "admin".into(), true)
        .await
        .unwrap();
    let own = bind("agent:orders", "agent:orders").await;
    assert!(
        matches!(own, Err(BrokerError::OwnBinding)),
        "not even the rights it already has"
    );
    bind("agent:orders", "agent:reports").await.unwrap();
    bind("agent:reports", "agent:child").await.unwrap();
    assert_eq!(
        rig.broker
            .core
            .store()
            .admin_bindings()
            .await
            .unwrap()
            .len(),
        3
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bootstrap_token_is_over_a_day_after_it_was_first_seen_and_obtains_nothing() {
    let policies = format!(
        "{POLICIES}\n@id(\"bootstrap\") @description(\"binds the first admin\")\n\
         permit (principal == Bootstrap::\"token\", action in [Action::\"manageAdmins\", \
         Action::\"listSessions\"], resource == Broker::\"taskpass\");\n\
         @id(\"admins\") @description(\"admins look\")\n\
         permit (principal in Role::\"admin\", action == Action::\"listSessions\", \
         resource == Broker::\"taskpass\");"
    );
    let mut rig = Rig::with(Kind::Sqlite, &policies, vec![], vec![]).await;
    let token = bearer(BOOTSTRAP);
    let list = |rig: &Rig| {
        let broker = Arc::clone(&rig.broker);
        async move {
            broker
                .verification
                .list_sessions(&bearer(BOOTSTRAP), SessionFilter::default())
                .await
        }
    };
    list(&rig).await.unwrap();
    let admin = "dev:agent%3Aorders".to_owned().try_into().unwrap();
    rig.broker
        .administration
        .bind_admin(&token, admin, "admin".into(), true)
        .await
        .unwrap();
    let asked = rig
        .broker
        .issuance
        .issue(token, ask(&["orders:read"]))
        .await;
    assert!(
        matches!(asked, Err(BrokerError::Attestation(_))),
        "{asked:?}"
    );

    rig.clock.advance(86_399);
    list(&rig).await.unwrap();
    rig.restart().await.unwrap();
    rig.clock.advance(1);
    let over = list(&rig).await;
    assert!(
        matches!(over, Err(BrokerError::Attestation(_))),
        "a restart renews nothing"
    );
}
