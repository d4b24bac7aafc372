//! One value of each stored or signed format, with fixed ids, times and keys.
//!
//! A new kind of leaf gets an event in [`events`]. A value must not change: `super` compares its
//! bytes with a fixture.

use ring::signature::{Ed25519KeyPair, KeyPair as _};
use secrecy::SecretString;
use serde_json::json;
use uuid::Uuid;

use crate::clock::Timestamp;
use crate::crypto::sealer::{SealContext, SealingKeys};
use crate::domain::cutoff::Selector;
use crate::domain::decision::{Observed, ObservedEffect, ObservedPolicy, Outcome, RefusalCode};
use crate::domain::endpoint::EndpointsDigest;
use crate::domain::generation::{Generation, PolicyFile};
use crate::domain::generation_digest::GenerationDigest;
use crate::domain::grant::Grant;
use crate::domain::kind::MinterKind;
use crate::domain::leaf::{Commitment, DecisionLeaf, Event, Leaf, TaskLeaf};
use crate::domain::revocability::{ExpiresBy, OpenSessions, Revocability, RevocationClass};
use crate::domain::session::{EndReason, Session, SessionState};
use crate::domain::succession::{Succession, SuccessionReason};
use crate::domain::task::TaskEnd;
use crate::domain::workload::{Identity, Instance, KeyBinding};
use crate::ids::{CutoffId, DecisionId, NoRandomness, Random, SessionId, TaskId};
use crate::merkle::{
    Checkpoint, Hash, Receipt, VerifierKey, leaf_hash, note_signature_line, root_of, sign_note,
};
use crate::mint::jwt::claims_bytes;
use crate::policy::{GenerationParts, write};

pub(super) const ORIGIN: &str = "broker.test/log";
pub(super) const ISSUER: &str = "https://broker.test";
pub(super) const BY: &str = "dev:admin";

pub(super) fn id(n: u128) -> Uuid {
    // A UUID of version 7 and the usual variant.
    Uuid::from_u128(0x0198_b2a0_0000_7000_8000_0000_0000_0000 | n)
}

pub(super) fn at(seconds: u64) -> Timestamp {
    Timestamp::from_micros(1_792_843_200_123_456).plus_seconds(seconds)
}

pub(super) fn whole_second(seconds: u64) -> Timestamp {
    Timestamp::from_seconds(1_792_843_200).plus_seconds(seconds)
}

pub(super) fn identity(text: &str) -> Identity {
    text.to_owned().try_into().unwrap()
}

pub(super) fn instance() -> Instance {
    "run-1".to_owned().try_into().unwrap()
}

pub(super) fn generation_digest() -> GenerationDigest {
    GenerationDigest::new([7; 32])
}

pub(super) fn commitment(byte: &str) -> Commitment {
    Commitment(byte.repeat(32))
}

pub(super) fn grant() -> Grant {
    serde_json::from_value(json!([
        {"type": "api", "actions": ["orders:read", "orders:write"], "locations": ["https://orders.example/v1"]},
        {"type": "aws", "actions": ["s3:GetObject"], "resources": ["arn:aws:s3:::reports/*"], "region": "eu-central-1"}
    ]))
    .unwrap()
}

pub(super) fn observed() -> Observed {
    Observed {
        policies: vec![ObservedPolicy {
            policy: "freeze".into(),
            effect: ObservedEffect::Forbid,
            enforced_from: whole_second(86_400),
        }],
        outcome_if_enforced: Outcome::Deny,
        refusal: Some(RefusalCode::NotPermitted),
        ttl_seconds: None,
    }
}

pub(super) fn revocability() -> Revocability {
    Revocability {
        class: RevocationClass::Bounded { bound_seconds: 30 },
        open_sessions: OpenSessions::None,
        expires_by: ExpiresBy::Itself,
    }
}

pub(super) fn permit() -> DecisionLeaf {
    DecisionLeaf {
        decision: DecisionId::from(id(1)),
        outcome: Outcome::Permit,
        refusal: None,
        workload: identity("dev:agent%3Areports"),
        instance: Some(instance()),
        attestor: "dev".into(),
        resource: Some("orders-api".into()),
        task: Some(TaskId::from(id(3))),
        task_parents: vec![TaskId::from(id(4)), TaskId::from(id(5))],
        session: Some(SessionId::from(id(2))),
        parent_session: Some(SessionId::from(id(6))),
        delegators: vec![identity("dev:middle"), identity("dev:root")],
        supersedes: Some(SessionId::from(id(7))),
        grant: Some(grant()),
        audience: Some("https://orders.example".into()),
        cnf: Some(KeyBinding::Jkt("thumbprint".into())),
        expires_at: Some(whole_second(300)),
        minter: Some(MinterKind::Jwt.as_str().to_owned()),
        kid: Some("key-1".into()),
        issuer: Some(ISSUER.into()),
        first_status_list: Some(16),
        revocability: Some(revocability()),
        generation: generation_digest(),
        policies: vec!["reports-open".into(), "reports-read".into()],
        observed: Some(Box::new(observed())),
        input: commitment("01"),
        purpose: Some(commitment("02")),
    }
}

pub(super) fn refusal() -> DecisionLeaf {
    DecisionLeaf {
        decision: DecisionId::from(id(8)),
        outcome: Outcome::Deny,
        refusal: Some(RefusalCode::NotPermitted),
        workload: identity("dev:agent%3Areports"),
        instance: None,
        attestor: "dev".into(),
        resource: None,
        task: None,
        task_parents: Vec::new(),
        session: None,
        parent_session: None,
        delegators: Vec::new(),
        supersedes: None,
        grant: None,
        audience: None,
        cnf: None,
        expires_at: None,
        minter: None,
        kid: None,
        issuer: None,
        first_status_list: None,
        revocability: None,
        generation: generation_digest(),
        policies: Vec::new(),
        observed: None,
        input: commitment("03"),
        purpose: None,
    }
}

macro_rules! kinds {
    ($($pattern:pat => $kind:literal),+ $(,)?) => {
        /// Every kind of leaf.
        pub(super) const KINDS: &[&str] = &[$($kind),+];

        /// The kind of a leaf, which is the name of its fixtures. A new variant of [`Event`] does
        /// not compile until it has a name here, and [`KINDS`] then requires a fixture.
        pub(super) fn kind(event: &Event) -> &'static str {
            match event {
                $($pattern => $kind,)+
            }
        }
    };
}

kinds! {
    Event::Genesis { .. } => "genesis",
    Event::Decision(_) => "decision",
    Event::TaskOpened(_) => "task_opened",
    Event::TaskEnded { .. } => "task_ended",
    Event::TasksEnded { .. } => "tasks_ended",
    Event::Delegated { .. } => "delegated",
    Event::SessionEnded { .. } => "session_ended",
    Event::EndConfirmed { .. } => "end_confirmed",
    Event::Cutoff { .. } => "cutoff",
    Event::CutoffLifted { .. } => "cutoff_lifted",
    Event::TimeAccepted { .. } => "time_accepted",
    Event::Activated { .. } => "activated",
    Event::Key { .. } => "key",
    Event::Admin { .. } => "admin",
    Event::DenialsOmitted { .. } => "denials_omitted",
}

/// Events of every kind, with a suffix that distinguishes several of one kind.
#[expect(clippy::too_many_lines, reason = "a list, one event after the other")]
pub(super) fn events() -> Vec<(&'static str, Event)> {
    let by = || BY.to_owned();
    let task = TaskId::from(id(3));
    let session = SessionId::from(id(2));
    let cutoff = CutoffId::from(id(9));
    let vkey = || "broker.test/log+01020304+AQID".to_owned();
    vec![
        (
            "",
            Event::Genesis {
                vkey: vkey(),
                predecessor: None,
                heads_authenticated: true,
            },
        ),
        (
            "successor",
            Event::Genesis {
                vkey: vkey(),
                predecessor: Some(Succession {
                    origin: "broker.test/old".into(),
                    size: 41,
                    root: Hash::from([9; 32]).to_string(),
                    reason: SuccessionReason::KeyRevoked,
                    revoked_key: Some("broker.test/old+05060708+BAUG".into()),
                    first_status_list: Some(16),
                    at: at(0),
                }),
                heads_authenticated: true,
            },
        ),
        ("permit", Event::Decision(Box::new(permit()))),
        ("refusal", Event::Decision(Box::new(refusal()))),
        (
            "",
            Event::TaskOpened(Box::new(TaskLeaf {
                decision: DecisionId::from(id(10)),
                task,
                task_type: "nightly-report".into(),
                task_parents: vec![TaskId::from(id(4))],
                workload: identity("dev:agent%3Areports"),
                instance: Some(instance()),
                attestor: "dev".into(),
                deadline: whole_second(600),
                generation: generation_digest(),
                policies: vec!["reports-open".into()],
                input: commitment("04"),
                purpose: Some(commitment("05")),
            })),
        ),
        (
            "",
            Event::TaskEnded {
                task,
                end: TaskEnd::Complete,
                by: "handle".into(),
            },
        ),
        (
            "expired",
            Event::TaskEnded {
                task,
                end: TaskEnd::Expire,
                by: "sweeper".into(),
            },
        ),
        (
            "",
            Event::TasksEnded {
                tasks: vec![task, TaskId::from(id(4))],
                end: TaskEnd::Expire,
                by: "sweeper".into(),
            },
        ),
        (
            "",
            Event::Delegated {
                task,
                child: identity("dev:child"),
                expires_at: at(60),
                max_credentials: 2,
            },
        ),
        (
            "",
            Event::SessionEnded {
                session,
                reason: EndReason::Revoked,
                by: by(),
            },
        ),
        (
            "",
            Event::EndConfirmed {
                session,
                confirmed: true,
            },
        ),
        (
            "",
            Event::Cutoff {
                id: cutoff,
                selector: Selector::Workload(identity("dev:agent%3Areports")),
                blocked_until: Some("until_lifted".into()),
                deny_policy_target: None,
                reason: commitment("06"),
                by: by(),
            },
        ),
        (
            "earlier-sessions",
            Event::Cutoff {
                id: cutoff,
                selector: Selector::Resource("reports".into()),
                blocked_until: None,
                deny_policy_target: Some("arn:aws:iam::123456789012:role/reports".into()),
                reason: commitment("06"),
                by: by(),
            },
        ),
        (
            "",
            Event::CutoffLifted {
                id: cutoff,
                by: by(),
            },
        ),
        (
            "",
            Event::TimeAccepted {
                id: cutoff,
                recorded_time: at(3_600),
                accepted_time: at(0),
                reason: commitment("07"),
                by: by(),
            },
        ),
        (
            "",
            Event::Activated {
                generation: generation_digest(),
                endpoints: EndpointsDigest(format!("sha256:{}", "0a".repeat(32))),
                by: by(),
            },
        ),
        (
            "",
            Event::Key {
                purpose: "ledger".into(),
                kid: "key-2".into(),
                change: "added".into(),
                public_key: Some(vkey()),
                retired_kids: vec!["key-1".into()],
                by: "schedule".into(),
            },
        ),
        (
            "",
            Event::Admin {
                change: "admin_bound".into(),
                subject: "dev:admin".into(),
                value: Some("admin".into()),
                by: by(),
            },
        ),
        (
            "",
            Event::DenialsOmitted {
                subject: "dev:agent%3Areports".into(),
                count: 7,
                since: at(0),
            },
        ),
    ]
}

pub(super) fn leaf(event: Event) -> Leaf {
    Leaf {
        v: Leaf::VERSION,
        origin: ORIGIN.into(),
        at: at(0),
        event,
    }
}

pub(super) fn generation() -> Generation {
    let from = |value| serde_json::from_value(value).unwrap();
    let attestors = vec![
        serde_json::from_value(json!({
            "kind": "oidc", "name": "ci", "issuer": "https://ci.example",
            "audience": "https://broker.test", "algorithms": ["RS256"],
            "required": {"owner_id": "7"}, "identity": "repo:{repo_id}",
            "claims": {
                "repo_id": {"type": "string", "immutable": true},
                "owner_id": {"type": "string", "immutable": true, "hidden": true},
                "groups": {"type": "set", "optional": true}
            }
        }))
        .unwrap(),
        serde_json::from_value(json!({"kind": "key", "name": "keys"})).unwrap(),
        serde_json::from_value(json!({
            "kind": "spiffe", "name": "mesh", "trust_domain": "mesh.example",
            "audience": "https://broker.test", "bundle": "mesh-bundle"
        }))
        .unwrap(),
    ];
    let parts = GenerationParts {
        policies: vec![PolicyFile {
            name: "orders.cedar".into(),
            text: "@id(\"no\") @description(\"nothing\")\nforbid (principal, action, resource);\n"
                .into(),
        }],
        attestors,
        resources: vec![
            from(json!({
                "name": "orders-api", "kind": "jwt", "owner": "orders",
                "audience": "https://orders.example", "actions": ["orders:read", "orders:write"],
                "locations": ["https://orders.example/v1"], "verification": "status_list",
                "verifiers": ["ci:repo:1"]
            })),
            from(json!({
                "name": "reports", "kind": "aws", "owner": "data", "actions": ["s3:Get*"],
                "locations": ["arn:aws:s3:::reports/*"],
                "aws": {
                    "role_arn": "arn:aws:iam::123456789012:role/reports", "mode": "web_identity",
                    "region": "eu-central-1",
                    "revocation": {"role_arn": "arn:aws:iam::123456789012:role/revoker"}
                }
            })),
        ],
        task_types: vec![
            serde_json::from_value(json!({
                "name": "nightly-report", "max_deadline_seconds": 3600,
                "resources": ["orders-api", "reports"]
            }))
            .unwrap(),
        ],
        ..GenerationParts::default()
    };
    Generation {
        // The real engine version changes with its dependency.
        engine: "cedar-policy 0.0.0 (language 0.0), reading 0".into(),
        ..write(parts, &[]).unwrap()
    }
}

pub(super) fn log_key() -> (Ed25519KeyPair, VerifierKey) {
    let pair = Ed25519KeyPair::from_seed_unchecked(&[1; 32]).unwrap();
    let public = pair.public_key().as_ref().try_into().unwrap();
    let key = VerifierKey::new(ORIGIN, public).unwrap();
    (pair, key)
}

/// The receipt of the permit's leaf, the second of three.
pub(super) fn receipt() -> Receipt {
    let body = leaf(Event::Decision(Box::new(permit())))
        .to_bytes()
        .unwrap();
    let (before, own, after) = (leaf_hash(b"before"), leaf_hash(&body), leaf_hash(b"after"));
    let checkpoint = Checkpoint::new(ORIGIN, 3, root_of(&[before, own, after])).unwrap();
    let (pair, key) = log_key();
    let text = checkpoint.text();
    let line = note_signature_line(&key, pair.sign(text.as_bytes()).as_ref()).unwrap();
    Receipt {
        leaf: body,
        leaf_hash: own,
        index: 1,
        tree_size: 3,
        inclusion_proof: vec![before, after],
        checkpoint: sign_note(&text, &[line]).unwrap(),
    }
}

pub(super) fn session() -> Session {
    let permit = permit();
    Session {
        id: SessionId::from(id(2)),
        task_id: TaskId::from(id(3)),
        parent: permit.parent_session,
        decision_id: permit.decision,
        leaf_index: 70_000,
        attestor: permit.attestor,
        workload: permit.workload,
        instance: permit.instance,
        resource: "orders-api".into(),
        grant: grant(),
        audience: "https://orders.example".into(),
        minter: MinterKind::Jwt,
        key: permit.cnf,
        kid: "key-1".into(),
        generation: permit.generation,
        policies: permit.policies,
        revocability: revocability(),
        issued_at: whole_second(0),
        expires_at: whole_second(300),
        state: SessionState::Active,
        end_reason: None,
        ended_at: None,
        confirmed_at: None,
    }
}

pub(super) fn token_claims() -> Vec<u8> {
    claims_bytes(ISSUER, &session(), &permit().delegators, &[8; 32], 16)
}

/// A counter in place of random bytes.
pub(super) struct Counting;

impl Random for Counting {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), NoRandomness> {
        for (byte, value) in bytes.iter_mut().zip(0..) {
            *byte = value;
        }
        Ok(())
    }
}

pub(super) const SECRET: &[u8] = b"a private key";

pub(super) const CONTEXT: SealContext<'static> = SealContext {
    purpose: "access_token",
    kid: "key-1",
    algorithm: "ES256",
    not_before: Timestamp::EPOCH,
    not_after: Timestamp::MAX,
};

pub(super) fn sealing_keys() -> SealingKeys {
    // The bytes 0 to 31 in base64url.
    let text = SecretString::from("tpk1_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8");
    SealingKeys::parse_with(&[text], Box::new(Counting)).unwrap()
}
