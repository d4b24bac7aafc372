use serde_json::{Value, json};

use super::super::challenge::{self, Scheme};
use super::*;
use crate::attest::AttestFailure;
use crate::broker::error::NotRepeated;
use crate::domain::decision::{Outcome, Refusal, RefusalCode};
use crate::domain::generation_digest::GenerationDigest;
use crate::ids::{CutoffId, DecisionId, SessionId};
use crate::merkle::{Receipt, leaf_hash};
use crate::wire::problem::SLUGS;

const ID: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

struct Sent {
    status: u16,
    headers: axum::http::HeaderMap,
    body: Value,
    text: String,
}

async fn send(problem: impl Into<Problem>) -> Sent {
    let mut response = problem.into().into_response();
    challenge::complete(&mut response, Scheme::Bearer, false);
    let (parts, body) = response.into_parts();
    let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let sent = Sent {
        status: parts.status.as_u16(),
        headers: parts.headers,
        body: serde_json::from_slice(&bytes).unwrap(),
        text: String::from_utf8(bytes.to_vec()).unwrap(),
    };
    assert_eq!(sent.headers["content-type"], "application/problem+json");
    assert_eq!(sent.headers["cache-control"], "no-store");
    assert_eq!(sent.body["status"], sent.status);
    let kind = sent.body["type"].as_str().unwrap();
    let slug = kind.strip_prefix(crate::wire::words::PROBLEM_URN).unwrap();
    assert!(SLUGS.contains(&slug), "{slug} is not in the list");
    sent
}

fn refused(error: AttestError, told: bool) -> BrokerError {
    BrokerError::Attestation(Box::new(AttestFailure {
        told,
        ..AttestFailure::unattributed(error)
    }))
}

fn exceeded(retry_seconds: u64) -> Exceeded {
    Exceeded {
        policy: "identity",
        quota: 50,
        window_seconds: 1,
        retry_seconds,
    }
}

fn denied(code: RefusalCode, outcome: Outcome) -> BrokerError {
    let leaf = b"leaf".to_vec();
    BrokerError::Denied(Box::new(Denied {
        decision: ID.parse::<DecisionId>().unwrap(),
        outcome,
        refusal: Refusal {
            code,
            detail: "why".into(),
            allowed: None,
        },
        generation: format!("sha256:{}", "ab".repeat(32))
            .parse::<GenerationDigest>()
            .unwrap(),
        observed: None,
        receipt: Receipt {
            leaf_hash: leaf_hash(&leaf),
            leaf,
            index: 4,
            tree_size: 5,
            inclusion_proof: Vec::new(),
            checkpoint: "note".into(),
        },
    }))
}

#[tokio::test]
async fn each_reason_has_its_status_and_type() {
    let session: SessionId = ID.parse().unwrap();
    let invalid = BrokerError::Invalid {
        pointer: "/role",
        detail: "a role".into(),
    };
    for (error, status, slug) in [
        (
            refused(AttestError::Missing, false),
            401,
            "attestation-failed",
        ),
        (
            refused(AttestError::NonceWanted, true),
            401,
            "use-dpop-nonce",
        ),
        (
            BrokerError::AttestationUnavailable(Box::new(AttestFailure::unattributed(
                AttestError::IssuerUnreachable,
            ))),
            503,
            "attestation-unavailable",
        ),
        (
            BrokerError::UsedUp {
                next_at: crate::clock::Timestamp::from_seconds(1_800_000_000),
            },
            401,
            "attestation-failed",
        ),
        (BrokerError::Replayed, 401, "attestation-failed"),
        (BrokerError::Forbidden("manageKeys"), 403, "forbidden"),
        (BrokerError::NotFound("task"), 404, "not-found"),
        (BrokerError::LastAdmin, 409, "last-admin"),
        (BrokerError::OwnBinding, 403, "own-binding"),
        (BrokerError::NoGeneration, 503, "no-generation"),
        (BrokerError::Superseded, 503, "fail-closed"),
        (blocked(None), 403, "blocked"),
        (BrokerError::TaskEnded, 409, "task-ended"),
        (BrokerError::OwnerWithdrawn, 409, "owner-withdrawn"),
        (
            BrokerError::AlreadyIssued(session, NotRepeated::NoInstance),
            409,
            "already-issued",
        ),
        (BrokerError::InProgress, 409, "in-progress"),
        (BrokerError::RetryMismatch, 422, "idempotency-mismatch"),
        (
            BrokerError::TooManyKeys {
                most: 4,
                until: Timestamp::EPOCH,
            },
            409,
            "too-many-keys",
        ),
        (invalid, 400, "invalid-request"),
        (BrokerError::RateLimited(exceeded(3)), 429, "rate-limited"),
        (BrokerError::Overloaded, 503, "overloaded"),
        (BrokerError::bug("x"), 503, "fail-closed"),
        (
            denied(RefusalCode::UnknownResource, Outcome::Deny),
            403,
            "denied",
        ),
        (
            denied(RefusalCode::UnknownResource, Outcome::Indeterminate),
            403,
            "indeterminate",
        ),
        (
            denied(RefusalCode::ApprovalRequired, Outcome::Deny),
            403,
            "approval-required",
        ),
    ] {
        let sent = send(error).await;
        assert_eq!(
            (sent.status, &sent.body["type"]),
            (status, &json!(urn(slug)))
        );
        let again = matches!(
            slug,
            "in-progress"
                | "rate-limited"
                | "overloaded"
                | "fail-closed"
                | "no-generation"
                | "attestation-unavailable"
        );
        assert_eq!(sent.headers.contains_key("retry-after"), again, "{slug}");
        assert_eq!(sent.headers.contains_key("www-authenticate"), status == 401);
    }
}

fn blocked(liftable: Option<CutoffId>) -> BrokerError {
    BrokerError::Blocked(Blocked {
        act: "manageKeys",
        liftable,
    })
}

#[tokio::test]
async fn which_revocation_blocks_a_caller_is_told_to_who_may_lift_it() {
    let sent = send(blocked(None)).await;
    assert_eq!(
        sent.body["detail"],
        "manageKeys is refused: a revocation blocks the caller"
    );
    assert!(sent.body.get("revocation").is_none());
    let sent = send(blocked(Some(ID.parse().unwrap()))).await;
    assert_eq!(sent.body["revocation"], ID);
    let detail = sent.body["detail"].as_str().unwrap();
    assert!(
        detail.contains(&format!("`taskpass lift {ID}`")),
        "{detail}"
    );
}

#[tokio::test]
async fn a_denial_carries_its_decision_and_its_proof() {
    let sent = send(denied(RefusalCode::UnknownResource, Outcome::Deny)).await;
    assert_eq!(sent.body["code"], "unknown-resource");
    assert_eq!(sent.body["decision"]["id"], ID);
    assert_eq!(sent.body["decision"]["outcome"], "deny");
    assert_eq!(sent.body["receipt"]["index"], 4);
    assert!(sent.body.get("allowed").is_none());
}

#[tokio::test]
async fn what_failed_inside_is_not_told() {
    let secret = "postgres://taskpass@10.0.0.7: connection refused";
    let sent = send(BrokerError::store(secret)).await;
    assert!(!sent.text.contains("postgres") && !sent.text.contains("10.0.0.7"));
    // Nor which check failed of an attestation whose signature was not verified.
    let missing = send(refused(AttestError::Missing, false)).await;
    let unknown = send(refused(AttestError::UnknownKey, false)).await;
    assert_eq!(
        (&missing.text, &missing.headers),
        (&unknown.text, &unknown.headers)
    );
}

#[tokio::test]
async fn whose_signature_verified_is_told_the_claim_and_no_value() {
    let owner = AttestError::RequiredClaim("owner_id".into());
    let sent = send(refused(owner.clone(), true)).await;
    assert_eq!(
        (&sent.body["reason"], &sent.body["claim"]),
        (&json!("required_claim"), &json!("owner_id"))
    );
    assert_eq!(
        sent.headers["www-authenticate"],
        "Bearer error=\"invalid_token\""
    );
    let untold = send(refused(owner, false)).await;
    assert_eq!(untold.body.get("reason"), None);
    let replayed = send(BrokerError::Replayed).await;
    assert_eq!(replayed.body["reason"], "replayed");
    let proof = send(refused(AttestError::BadProof("another URL"), true)).await;
    let challenge = proof.headers["www-authenticate"].to_str().unwrap();
    assert!(challenge.starts_with("DPoP error=\"invalid_dpop_proof\""));
}

#[tokio::test]
async fn a_limit_says_what_it_is_and_when_to_come_again() {
    let sent = send(BrokerError::RateLimited(exceeded(0))).await;
    assert_eq!(sent.headers["retry-after"], "1");
    assert_eq!(sent.headers["ratelimit"], "\"identity\";r=0;t=1");
    assert_eq!(sent.headers["ratelimit-policy"], "\"identity\";q=50;w=1");
    let sent = send(BrokerError::RateLimited(exceeded(9))).await;
    assert_eq!(sent.headers["ratelimit"], "\"identity\";r=0;t=9");
    assert_eq!(sent.headers["retry-after"], "9");
}

#[tokio::test]
async fn our_own_refusals_are_in_the_list_too() {
    for problem in [
        Problem::method_not_allowed(),
        Problem::media_type("application/json"),
        Problem::too_large(),
        Problem::timeout(),
        Problem::body_timeout(),
        Problem::coded(),
        Problem::transfer_coded(),
        Problem::unready("why"),
        Problem::internal(),
        Problem::not_found("thing"),
        Problem::forbidden("why"),
        Problem::invalid("/a", "why"),
    ] {
        send(problem).await;
    }
}
