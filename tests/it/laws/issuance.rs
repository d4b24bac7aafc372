//! Which credentials are issued, which requests are refused, and what each leaves on record.

use std::future::ready;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use taskpass::domain::request::CredentialRequest;

use super::*;
use crate::support::rig::with_key;

on_both_stores! {
    fn a_credential_carries_the_hash_of_a_leaf_that_permits_exactly_it;
    fn a_denial_is_on_record_and_tells_what_would_be_allowed;
    fn evidence_is_used_once;
    fn of_fifty_at_once_with_one_token_one_gets_through;
    fn a_retry_supersedes_what_can_be_taken_back;
    fn a_retry_of_what_cannot_be_taken_back_is_a_conflict;
    fn what_is_someone_elses_is_not_found;
    fn approval_is_a_refusal_of_its_own_kind;
    fn a_generation_decides_from_its_activation_on;
}

async fn a_credential_carries_the_hash_of_a_leaf_that_permits_exactly_it(rig: Rig) {
    let issued = rig
        .issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
    let keys: Vec<_> = rig
        .broker
        .core
        .ledger()
        .keys()
        .iter()
        .map(|key| key.verifier.clone())
        .collect();
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
    let stored = rig
        .broker
        .core
        .store()
        .leaf(issued.receipt.index)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        stored.body.unwrap(),
        issued.receipt.leaf,
        "the bytes handed out are the bytes stored"
    );
}

async fn a_denial_is_on_record_and_tells_what_would_be_allowed(rig: Rig) {
    let denied = match rig
        .issue("agent:reports", ask(&["orders:read", "orders:write"]))
        .await
    {
        Err(BrokerError::Denied(denied)) => denied,
        other => panic!("{other:?}"),
    };
    let keys: Vec<_> = rig
        .broker
        .core
        .ledger()
        .keys()
        .iter()
        .map(|key| key.verifier.clone())
        .collect();
    denied.receipt.verify(&keys).unwrap();
    let text = String::from_utf8(denied.receipt.leaf.clone()).unwrap();
    assert!(
        !text.contains("\"slow\""),
        "the refused caller must not see the policies: {text}"
    );
    assert_eq!(
        refusal(rig.issue("agent:nobody", ask(&["orders:read"])).await),
        "not-permitted"
    );
    let long = CredentialRequest {
        ttl_seconds: Some(601),
        ..ask(&["orders:read"])
    };
    let Err(BrokerError::Denied(denied)) = rig.issue("agent:reports", long).await else {
        panic!("the lifetime should be too long")
    };
    assert_eq!(denied.refusal.allowed.unwrap().max_ttl_seconds, Some(600));
}

async fn evidence_is_used_once(rig: Rig) {
    let token = rig.token("agent:reports", json!({}));
    rig.broker
        .issuance
        .issue(bearer(&token), ask(&["orders:read"]))
        .await
        .unwrap();
    let size = rig.broker.core.ledger().basis();
    let again = rig
        .broker
        .issuance
        .issue(bearer(&token), ask(&["orders:read"]))
        .await;
    assert!(matches!(again, Err(BrokerError::Replayed)), "{again:?}");
    assert_eq!(
        rig.broker.core.ledger().basis(),
        size,
        "a replay gets no leaf"
    );
}

async fn of_fifty_at_once_with_one_token_one_gets_through(rig: Rig) {
    let token = rig.token("agent:reports", json!({}));
    let tries = (0..50).map(|_| {
        rig.broker
            .issuance
            .issue(bearer(&token), ask(&["orders:read"]))
    });
    let results = futures_util::future::join_all(tries).await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    let others = results
        .iter()
        .filter(|result| matches!(result, Err(BrokerError::Replayed)));
    assert_eq!(others.count(), 49);
}

async fn a_retry_supersedes_what_can_be_taken_back(rig: Rig) {
    let request = with_key(ask(&["orders:read"]), "key-1");
    let first = rig.issue("agent:reports", request.clone()).await.unwrap();
    rig.clock.advance(10);
    let second = rig.issue("agent:reports", request.clone()).await.unwrap();
    assert_eq!(first.task.id, second.task.id);
    assert_ne!(
        handle(&first).expose_secret(),
        handle(&second).expose_secret()
    );
    assert!(
        second.session.expires_at <= first.session.expires_at,
        "a retry never lasts longer"
    );
    assert!(!rig.is_good(&first).await);
    assert!(rig.is_good(&second).await);
    assert!(
        rig.heartbeat(&first).await.is_err(),
        "the old handle is invalid"
    );
    rig.heartbeat(&second).await.unwrap();
    for _ in 0..2 {
        rig.issue("agent:reports", request.clone()).await.unwrap();
    }
    let fifth = rig.issue("agent:reports", request.clone()).await;
    assert!(
        matches!(fifth, Err(BrokerError::AlreadyIssued(..))),
        "at most three times"
    );
    let mut other = request;
    other.retry.as_mut().unwrap().fingerprint = [8; 32];
    assert!(matches!(
        rig.issue("agent:reports", other).await,
        Err(BrokerError::RetryMismatch)
    ));
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
    let issued = rig
        .issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
    let theft = ask_joining(&issued, &["orders:read"]);
    assert!(matches!(
        rig.issue("agent:orders", theft).await,
        Err(BrokerError::NotFound("task"))
    ));
    let other_run = bearer(&rig.token("agent:reports", json!({"run": "run-2"})));
    let joined = rig
        .broker
        .issuance
        .issue(other_run, ask_joining(&issued, &["orders:read"]))
        .await;
    assert!(
        matches!(joined, Err(BrokerError::NotFound("task"))),
        "another run of the workload may not join, even with the handle"
    );
    let guess = TaskAuthority::Handle("tph_guess".to_owned().into(), Evidence::default());
    let ended = rig
        .broker
        .tasks
        .end_task(issued.task.id, guess, TaskEnd::Abort)
        .await;
    assert!(matches!(ended, Err(BrokerError::NotFound("task"))));
    let stranger = rig.evidence("agent:orders");
    let revoked = rig
        .broker
        .revocation
        .revoke_session(&stranger, issued.session.id)
        .await;
    assert!(matches!(revoked, Err(BrokerError::NotFound("session"))));
    assert!(rig.is_good(&issued).await);
}

async fn approval_is_a_refusal_of_its_own_kind(rig: Rig) {
    let result = rig.issue("agent:reports", ask(&["orders:write"])).await;
    let Err(BrokerError::Denied(denied)) = result else {
        panic!("{result:?}")
    };
    assert_eq!(denied.refusal.code.as_str(), "approval-required");
    assert_eq!(denied.outcome.as_str(), "pending");
}

async fn a_generation_decides_from_its_activation_on(rig: Rig) {
    let issued = rig
        .issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
    let (_, bytes) = rig
        .broker
        .administration
        .generation(&rig.admin())
        .await
        .unwrap();
    let mut next: taskpass::domain::generation::Generation =
        serde_json::from_slice(&bytes).unwrap();
    let text = &mut next.policies[0].text;
    *text = text.replace("agent%3Areports", "agent%3Asomebody");
    rig.broker
        .administration
        .activate(&rig.admin(), ready(Some(next.clone())))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        refusal(rig.issue("agent:reports", ask(&["orders:read"])).await),
        "not-permitted"
    );
    assert!(
        rig.is_good(&issued).await,
        "an earlier grant stays valid until it is revoked"
    );
    let by_generation = Selector::Generation(issued.session.generation);
    rig.broker
        .revocation
        .revoke_many(
            &rig.admin(),
            RevokeRequest {
                selector: by_generation,
                block: BlockRequest::Default,
                deny_all_earlier_sessions: false,
                reason: "x".into(),
                allow_unknown: false,
                dry_run: false,
            },
        )
        .await
        .unwrap();
    assert!(!rig.is_good(&issued).await);
    // An invalid generation does not replace the active one.
    next.policies[0]
        .text
        .push_str("permit (principal, action, resource);");
    let refused = rig
        .broker
        .administration
        .activate(&rig.admin(), ready(Some(next)))
        .await;
    assert!(matches!(refused, Err(BrokerError::Unfit(_))), "{refused:?}");
    rig.issue("agent:orders", ask(&["orders:read"]))
        .await
        .unwrap();
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
    let rig = Rig::on(Kind::Sqlite).start().await;
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
