//! Golden bytes: compares stored and signed formats byte for byte with files in
//! `tests/fixtures/golden`.
//!
//! Stored or signed bytes cannot change later. A format that must change gets a new version, or a
//! new kind of leaf, with an additional fixture. So never edit a fixture: the ignored test below
//! writes the missing ones and overwrites none.
//!
//! The file is long because each format has one sample value and one comparison, which are read
//! together.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use ring::signature::{Ed25519KeyPair, KeyPair as _};
use secrecy::SecretString;
use serde_json::json;
use uuid::Uuid;

use crate::clock::Timestamp;
use crate::crypto::sealer::{SealContext, Sealer as _, SealingKeys};
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

const ORIGIN: &str = "broker.test/log";
const ISSUER: &str = "https://broker.test";
const BY: &str = "dev:admin";

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden")
}

fn id(n: u128) -> Uuid {
    // A UUID of version 7 and the usual variant.
    Uuid::from_u128(0x0198_b2a0_0000_7000_8000_0000_0000_0000 | n)
}

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_micros(1_792_843_200_123_456).plus_seconds(seconds)
}

fn whole_second(seconds: u64) -> Timestamp {
    Timestamp::from_seconds(1_792_843_200).plus_seconds(seconds)
}

fn identity(text: &str) -> Identity {
    text.to_owned().try_into().unwrap()
}

fn instance() -> Instance {
    "run-1".to_owned().try_into().unwrap()
}

fn generation_digest() -> GenerationDigest {
    GenerationDigest::new([7; 32])
}

fn commitment(byte: &str) -> Commitment {
    Commitment(byte.repeat(32))
}

fn grant() -> Grant {
    serde_json::from_value(json!([
        {"type": "api", "actions": ["orders:read", "orders:write"], "locations": ["https://orders.example/v1"]},
        {"type": "aws", "actions": ["s3:GetObject"], "resources": ["arn:aws:s3:::reports/*"], "region": "eu-central-1"}
    ]))
    .unwrap()
}

fn observed() -> Observed {
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

fn revocability() -> Revocability {
    Revocability {
        class: RevocationClass::Bounded { bound_seconds: 30 },
        open_sessions: OpenSessions::None,
        expires_by: ExpiresBy::Itself,
    }
}

fn permit() -> DecisionLeaf {
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

fn refusal() -> DecisionLeaf {
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
        const KINDS: &[&str] = &[$($kind),+];

        /// The kind of a leaf, which is the name of its fixtures. A new variant of [`Event`] does
        /// not compile until it has a name here, and [`KINDS`] then requires a fixture.
        fn kind(event: &Event) -> &'static str {
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
fn events() -> Vec<(&'static str, Event)> {
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

fn leaf(event: Event) -> Leaf {
    Leaf {
        v: Leaf::VERSION,
        origin: ORIGIN.into(),
        at: at(0),
        event,
    }
}

fn generation() -> Generation {
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

fn log_key() -> (Ed25519KeyPair, VerifierKey) {
    let pair = Ed25519KeyPair::from_seed_unchecked(&[1; 32]).unwrap();
    let public = pair.public_key().as_ref().try_into().unwrap();
    let key = VerifierKey::new(ORIGIN, public).unwrap();
    (pair, key)
}

/// The receipt of the permit's leaf, the second of three.
fn receipt() -> Receipt {
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

fn session() -> Session {
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

fn token_claims() -> Vec<u8> {
    claims_bytes(ISSUER, &session(), &permit().delegators, &[8; 32], 16)
}

/// A counter in place of random bytes.
struct Counting;

impl Random for Counting {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), NoRandomness> {
        for (byte, value) in bytes.iter_mut().zip(0..) {
            *byte = value;
        }
        Ok(())
    }
}

const SECRET: &[u8] = b"a private key";

const CONTEXT: SealContext<'static> = SealContext {
    purpose: "access_token",
    kid: "key-1",
    algorithm: "ES256",
    not_before: Timestamp::EPOCH,
    not_after: Timestamp::MAX,
};

fn sealing_keys() -> SealingKeys {
    // The bytes 0 to 31 in base64url.
    let text = SecretString::from("tpk1_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8");
    SealingKeys::parse_with(&[text], Box::new(Counting)).unwrap()
}

/// The content of every fixture, by file name.
async fn made() -> BTreeMap<String, Vec<u8>> {
    let mut made = BTreeMap::new();
    let mut add = |name: String, bytes: Vec<u8>| {
        assert!(made.insert(name.clone(), bytes).is_none(), "{name} twice");
    };
    for (which, event) in events() {
        let name = match which {
            "" => kind(&event).to_owned(),
            which => format!("{}-{which}", kind(&event)),
        };
        let version = Leaf::VERSION;
        let bytes = leaf(event).to_bytes().unwrap();
        add(format!("leaf-v{version}-{name}.json"), bytes);
    }
    let format = Generation::FORMAT;
    let document = generation().to_bytes().unwrap();
    add(format!("generation-v{format}.json"), document);
    let receipt = serde_json::to_vec(&receipt()).unwrap();
    add("receipt.json".into(), receipt);
    add("token-claims.json".into(), token_claims());
    let envelope = sealing_keys().seal(CONTEXT, SECRET).await.unwrap();
    add("envelope-v1.bin".into(), envelope);
    made
}

fn fixture(name: &str) -> Vec<u8> {
    let path = directory().join(name);
    std::fs::read(&path).unwrap_or_else(|error| {
        panic!(
            "{}: {error}; `cargo nextest run --run-ignored only -E 'test(golden)'` writes missing \
            fixtures",
            path.display()
        )
    })
}

#[tokio::test]
async fn stored_and_signed_formats_come_out_byte_for_byte() {
    let made = made().await;
    for (name, bytes) in &made {
        let kept = fixture(name);
        assert!(
            kept == *bytes,
            "{name} changed. Stored and signed bytes cannot change: give the format a new version \
             or the leaf a new kind, with a fixture of its own.\n  kept: {}\n  made: {}",
            String::from_utf8_lossy(&kept),
            String::from_utf8_lossy(bytes)
        );
    }
}

#[test]
fn every_kind_of_leaf_has_a_fixture_and_every_fixture_is_read_back() {
    let sampled: BTreeSet<&str> = events().iter().map(|(_, event)| kind(event)).collect();
    assert_eq!(sampled, KINDS.iter().copied().collect());
    for (which, event) in events() {
        let name = match which {
            "" => kind(&event).to_owned(),
            which => format!("{}-{which}", kind(&event)),
        };
        let kept = fixture(&format!("leaf-v{}-{name}.json", Leaf::VERSION));
        assert_eq!(Leaf::from_bytes(&kept).unwrap(), leaf(event), "{name}");
        let written: serde_json::Value = serde_json::from_slice(&kept).unwrap();
        let told = written["event"].as_str().unwrap();
        assert!(name.starts_with(told), "{name} is called {told}");
    }
}

#[tokio::test]
async fn what_the_fixtures_hold_is_believed() {
    let format = Generation::FORMAT;
    let kept: Generation =
        serde_json::from_slice(&fixture(&format!("generation-v{format}.json"))).unwrap();
    assert_eq!(kept, generation());

    let kept: Receipt = serde_json::from_slice(&fixture("receipt.json")).unwrap();
    kept.verify(&[log_key().1]).unwrap();

    let opened = sealing_keys()
        .open(CONTEXT, &fixture("envelope-v1.bin"))
        .await
        .unwrap();
    assert_eq!(opened.as_slice(), SECRET);
}

#[tokio::test]
async fn nothing_else_lies_among_the_fixtures() {
    let made = made().await;
    for entry in std::fs::read_dir(directory()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(made.contains_key(&name), "no format has the fixture {name}");
    }
}

#[tokio::test]
#[ignore = "writes the fixtures that are missing"]
async fn write_the_missing_fixtures() {
    std::fs::create_dir_all(directory()).unwrap();
    for (name, bytes) in made().await {
        let path = directory().join(&name);
        if !path.exists() {
            std::fs::write(path, bytes).unwrap();
        }
    }
}
