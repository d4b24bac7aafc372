//! Tests of the judgement with logs that the tests create: one permit, and everything that can end
//! it or keep it from proving a record.

mod ends;

use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};

use super::decisions::Decisions;
use super::judge::{Class, Judge, Judgement, Reason};
use super::record::{Credential, Outcome, Record, RecordedAction, Region, RoleSeen, session, time};
use crate::audit::AuditError;
use crate::clock::Timestamp;
use crate::domain::action::ActionName;
use crate::domain::leaf::Leaf;
use crate::domain::location::Location;
use crate::merkle::{
    Checkpoint, Hash, LogEntry, VerifierKey, leaf_hash, note_signature_line, root_of, sign_note,
    write_log_entry, write_log_head,
};

const ORIGIN: &str = "broker.test/log";
const SESSION: &str = "0198b2a0-0000-7000-8000-000000000002";
const PARENT: &str = "0198b2a0-0000-7000-8000-000000000012";
const TASK: &str = "0198b2a0-0000-7000-8000-000000000003";
const ABOVE: &str = "0198b2a0-0000-7000-8000-000000000013";
const OTHER: &str = "0198b2a0-0000-7000-8000-000000000099";

/// `seconds` after noon of the test's day.
fn at(seconds: u64) -> Timestamp {
    noon().plus_seconds(seconds)
}

fn noon() -> Timestamp {
    time(
        &json!("2026-10-24T12:00:00Z"),
        super::record::TimeFormat::Rfc3339,
    )
    .unwrap()
}

#[expect(clippy::needless_pass_by_value, reason = "callers pass literals")]
fn leaf(seconds: u64, event: Value) -> Value {
    let mut leaf = json!({"v": Leaf::VERSION, "origin": ORIGIN, "at": at(seconds)});
    let members = event.as_object().unwrap().clone();
    leaf.as_object_mut().unwrap().extend(members);
    leaf
}

fn generation() -> String {
    format!("sha256:{}", "a".repeat(64))
}

/// A permit at noon, for 300 s.
fn permit() -> Value {
    leaf(
        0,
        json!({
            "event": "decision", "decision": OTHER, "outcome": "permit",
            "workload": "dev:agent%3Areports", "attestor": "dev", "resource": "orders-api",
            "task": TASK, "session": SESSION, "audience": "https://orders.example",
            "grant": [
                {"type": "api", "actions": ["orders:read"], "locations": ["https://orders.example/v1"]}
            ],
            "expires_at": at(300), "minter": "jwt", "kid": "k1", "generation": generation(),
            "policies": ["reports-read"], "input": "b".repeat(64)
        }),
    )
}

fn with(mut leaf: Value, name: &str, value: impl Into<Value>) -> Value {
    leaf[name] = value.into();
    leaf
}

fn key(seed: u8) -> (Ed25519KeyPair, VerifierKey) {
    let pair = Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap();
    let public = pair.public_key().as_ref().try_into().unwrap();
    let key = VerifierKey::new(ORIGIN, public).unwrap();
    (pair, key)
}

/// A log file. `None` is a leaf whose body was pruned.
fn file(leaves: &[Option<Value>]) -> Vec<u8> {
    let bodies = leaves.iter().enumerate().map(|(n, leaf)| {
        let body = leaf.as_ref().map(|leaf| serde_json::to_vec(leaf).unwrap());
        let hash = leaf_hash(&body.clone().unwrap_or_else(|| pruned(n)));
        (hash, body)
    });
    let bodies: Vec<(Hash, Option<Vec<u8>>)> = bodies.collect();
    let hashes: Vec<Hash> = bodies.iter().map(|(hash, _)| *hash).collect();
    let checkpoint = Checkpoint::new(ORIGIN, hashes.len() as u64, root_of(&hashes)).unwrap();
    let (pair, key) = key(1);
    let signature = pair.sign(checkpoint.text().as_bytes());
    let line = note_signature_line(&key, signature.as_ref()).unwrap();
    let mut file = Vec::new();
    let note = sign_note(&checkpoint.text(), &[line]).unwrap();
    write_log_head(&mut file, &note).unwrap();
    for (index, (hash, leaf)) in (0..).zip(bodies) {
        write_log_entry(&mut file, &LogEntry { index, hash, leaf }).unwrap();
    }
    file
}

fn pruned(n: usize) -> Vec<u8> {
    format!("pruned {n}").into_bytes()
}

fn read(file: &[u8]) -> Result<Decisions, AuditError> {
    Decisions::read(file, &[key(1).1], 1024 * 1024, |_, _| {})
}

fn log(leaves: &[Value]) -> Decisions {
    let mut all: Vec<Option<Value>> = leaves.iter().cloned().map(Some).collect();
    // A later entry, so that the log is known to extend beyond the actions.
    all.push(Some(leaf(
        3_600,
        json!({
            "event": "admin", "change": "retention", "subject": "x", "by": "x"
        }),
    )));
    read(&file(&all)).unwrap()
}

fn hash_of(leaf: &Value) -> Hash {
    leaf_hash(&serde_json::to_vec(leaf).unwrap())
}

/// The session reads an order.
fn action(seconds: u64) -> Record {
    Record {
        id: None,
        at: Ok(at(seconds)),
        principal: "reports".into(),
        action: "orders:read".into(),
        resource: "/v1/42".into(),
        region: Region::Unnamed,
        credential: Credential {
            session: session(SESSION),
            ..Credential::default()
        },
        recorded_action: rights("orders:read", "https://orders.example/v1/42"),
        outcome: Outcome::Done,
    }
}

fn rights(action: &str, location: &str) -> RecordedAction {
    RecordedAction::Rights {
        action: ActionName::try_from(action.to_owned()).unwrap(),
        locations: vec![Location::try_from(location.to_owned()).unwrap()],
        named: true,
        unclear: None,
    }
}

/// An action that cannot be compared with a grant, with the rights of which it needs at least one.
fn unclear(needs: &[&str]) -> RecordedAction {
    let needs = needs.iter().map(|right| (*right).to_owned().try_into());
    RecordedAction::Unclear {
        why: "several rights",
        needs: needs.collect::<Result<_, _>>().unwrap(),
    }
}

fn judged(decisions: &Decisions, record: &Record) -> (Class, Reason) {
    let Judgement { class, reason, .. } = Judge::new(decisions, 5, None).judge(record);
    (class, reason)
}

const PROVEN: (Class, Reason) = (Class::Proven, Reason::Permitted);

#[test]
fn an_action_within_grant_and_life_is_proven_by_session_by_hash_and_by_both() {
    let log = log(&[permit()]);
    let mut record = action(10);
    assert_eq!(judged(&log, &record), PROVEN);
    record.credential.hash = Some(hash_of(&permit()));
    assert_eq!(judged(&log, &record), PROVEN);
    record.credential.session = None;
    assert_eq!(judged(&log, &record), PROVEN);
    let verdict = Judge::new(&log, 5, None).judge(&record);
    assert_eq!(verdict.leaf, Some(0));
    assert_eq!(
        verdict.of,
        Some(("dev:agent%3Areports".into(), "orders-api".into()))
    );
    assert!(!verdict.within_skew);
}

#[test]
fn an_action_that_carries_nothing_or_something_unknown_is_unproven() {
    let log = log(&[permit()]);
    let unproven = |change: &dyn Fn(&mut Record)| {
        let mut record = action(10);
        change(&mut record);
        let (class, reason) = judged(&log, &record);
        assert_eq!(class, Class::Unproven, "{reason:?}");
        reason
    };
    assert_eq!(
        unproven(&|r| r.credential = Credential::default()),
        Reason::NoDecision
    );
    assert_eq!(
        unproven(&|r| r.credential.session = session(OTHER)),
        Reason::UnknownSession
    );
    assert_eq!(
        unproven(&|r| r.credential.hash = Some(leaf_hash(b"mine"))),
        Reason::UnknownDecision
    );
    assert_eq!(
        unproven(&|r| r.credential.contradictory = true),
        Reason::Contradiction
    );
    // The hash of one permit with the session of another.
    assert_eq!(
        unproven(&|r| {
            r.credential.hash = Some(hash_of(&permit()));
            r.credential.session = session(OTHER);
        }),
        Reason::Contradiction
    );
    assert_eq!(
        unproven(&|r| r.recorded_action = RecordedAction::Mint),
        Reason::NoSessionOfAws
    );
    // A record without a credential is unproven, even if other facts about it are unknown.
    assert_eq!(
        unproven(&|r| {
            r.credential = Credential::default();
            r.at = Err("it has no time");
            r.recorded_action = unclear(&[]);
        }),
        Reason::NoDecision
    );
}

#[test]
fn a_denial_proves_nothing() {
    let denial = leaf(
        0,
        json!({
            "event": "decision", "decision": OTHER, "outcome": "deny", "refusal": "not-permitted",
            "workload": "dev:agent%3Areports", "attestor": "dev", "resource": "orders-api",
            "generation": generation(), "input": "b".repeat(64)
        }),
    );
    let log = log(std::slice::from_ref(&denial));
    let mut record = action(10);
    record.credential = Credential {
        hash: Some(hash_of(&denial)),
        ..Credential::default()
    };
    assert_eq!(
        judged(&log, &record),
        (Class::Unproven, Reason::UnknownDecision)
    );
}

#[test]
fn what_was_not_granted_is_outside() {
    let log = log(&[permit()]);
    for (recorded_action, reason) in [
        (
            rights("orders:write", "https://orders.example/v1/42"),
            Reason::Action,
        ),
        (
            rights("orders:read", "https://orders.example/v10"),
            Reason::Location,
        ),
        (
            rights("orders:read", "https://orders.example"),
            Reason::Location,
        ),
        (rights("s3:GetObject", "arn:aws:s3:::b/x"), Reason::Action),
    ] {
        let mut record = action(10);
        record.recorded_action = recorded_action;
        assert_eq!(judged(&log, &record), (Class::OutsideGrant, reason));
    }
    let mut both = action(10);
    let RecordedAction::Rights { locations, .. } = &mut both.recorded_action else {
        panic!()
    };
    locations.push(Location::try_from("https://orders.example/v2".to_owned()).unwrap());
    assert_eq!(judged(&log, &both), (Class::OutsideGrant, Reason::Location));
}

#[test]
fn on_aws_region_and_resource_count_and_what_names_none_is_not_judged() {
    let aws = json!([
        {"type": "aws", "actions": ["s3:Get*"], "resources": ["arn:aws:s3:::b/*"], "region": "eu-west-1"},
        {"type": "aws", "actions": ["sqs:ReceiveMessage"], "resources": ["arn:aws:sqs:*:*:*"]}
    ]);
    let log = log(&[with(with(permit(), "grant", aws), "minter", "aws")]);
    let of = |recorded_action: RecordedAction, region: &str| {
        let mut record = action(10);
        (record.recorded_action, record.region) = (recorded_action, Region::of(Some(region)));
        judged(&log, &record)
    };
    let get = || rights("s3:GetObject", "arn:aws:s3:::b/x");
    assert_eq!(of(get(), "eu-west-1"), PROVEN);
    assert_eq!(
        of(get(), "us-east-1"),
        (Class::OutsideGrant, Reason::Region)
    );
    assert_eq!(
        of(rights("s3:GetObject", "arn:aws:s3:::c/x"), "eu-west-1"),
        (Class::OutsideGrant, Reason::Location)
    );
    let anywhere = |action: &str, location: &str| match rights(action, location) {
        RecordedAction::Rights {
            action, locations, ..
        } => RecordedAction::Rights {
            action,
            locations,
            named: false,
            unclear: None,
        },
        other => other,
    };
    assert_eq!(
        of(anywhere("s3:GetObject", "arn:aws:s3:*:*:*"), "eu-west-1"),
        (Class::Unjudged, Reason::NoLocation)
    );
    assert_eq!(
        of(
            anywhere("sqs:ReceiveMessage", "arn:aws:sqs:*:*:*"),
            "us-east-1"
        ),
        PROVEN
    );
    assert_eq!(
        of(
            anywhere("sqs:SendMessage", "arn:aws:sqs:*:*:*"),
            "us-east-1"
        ),
        (Class::OutsideGrant, Reason::Action)
    );
    assert_eq!(of(RecordedAction::Mint, "eu-west-1"), PROVEN);
    // An action at many possible locations is outside the grant if none of them was granted.
    assert_eq!(
        of(anywhere("s3:GetObject", "arn:aws:s3:::c/*"), "eu-west-1"),
        (Class::OutsideGrant, Reason::Location)
    );
    assert_eq!(
        of(anywhere("s3:GetObject", "arn:aws:s3:::b/*"), "eu-west-1"),
        PROVEN
    );
    // AWS ignores case in actions.
    assert_eq!(
        of(
            rights("sqs:receivemessage", "arn:aws:sqs:eu-west-1:1:q"),
            "eu-west-1"
        ),
        PROVEN
    );
    // An invalid region cannot be compared with a granted one.
    let odd = "EU (Frankfurt)";
    assert_eq!(of(get(), odd), (Class::Unjudged, Reason::Unclear));
    assert_eq!(
        of(rights("s3:GetObject", "arn:aws:s3:::c/x"), odd),
        (Class::OutsideGrant, Reason::Location)
    );
    assert_eq!(
        of(
            rights("sqs:ReceiveMessage", "arn:aws:sqs:eu-west-1:1:q"),
            odd
        ),
        PROVEN
    );
}

#[test]
fn what_cannot_be_read_of_an_action_hides_nothing_that_was_not_granted() {
    let log = log(&[permit()]);
    let of = |recorded_action: RecordedAction| {
        let mut record = action(10);
        record.recorded_action = recorded_action;
        judged(&log, &record)
    };
    let partly = |action: &str, locations: &[&str]| {
        let locations = locations
            .iter()
            .map(|location| (*location).to_owned().try_into());
        RecordedAction::Rights {
            action: action.to_owned().try_into().unwrap(),
            locations: locations.collect::<Result<_, _>>().unwrap(),
            named: true,
            unclear: Some("it has two readings"),
        }
    };
    let (here, there) = ("https://orders.example/v1/42", "https://orders.example/v2");
    assert_eq!(
        of(partly("orders:delete", &[])),
        (Class::OutsideGrant, Reason::Action)
    );
    assert_eq!(
        of(partly("orders:read", &[here, there])),
        (Class::OutsideGrant, Reason::Location)
    );
    for locations in [&[][..], &[here][..]] {
        assert_eq!(
            of(partly("orders:read", locations)),
            (Class::Unjudged, Reason::Unclear)
        );
    }
    assert_eq!(
        of(unclear(&["orders:read", "orders:delete"])),
        (Class::Unjudged, Reason::Unclear)
    );
    assert_eq!(
        of(unclear(&["orders:write", "orders:delete"])),
        (Class::OutsideGrant, Reason::Action)
    );
}

#[test]
fn what_others_can_choose_proves_nothing_alone() {
    let aws = json!([
        {"type": "aws", "actions": ["s3:Get*"], "resources": ["arn:aws:s3:::b/*"]}
    ]);
    let permit_of_aws = with(with(permit(), "grant", aws), "minter", "aws");
    let role = "arn:aws:iam::123456789012:role/reports";
    let permit_of_aws = with(permit_of_aws, "audience", role);
    let log_of_aws = log(std::slice::from_ref(&permit_of_aws));
    let recorded_action = rights("s3:GetObject", "arn:aws:s3:::b/x");
    let of = |log: &Decisions, change: &dyn Fn(&mut Credential)| {
        let mut record = action(10);
        record.recorded_action = recorded_action.clone();
        change(&mut record.credential);
        judged(log, &record)
    };
    let own = hash_of(&permit_of_aws);
    let both = |credential: &mut Credential| {
        (credential.needs_both, credential.named) = (true, true);
        credential.hash = Some(own);
        credential.roles = vec![RoleSeen::Arn(role.to_owned())];
    };
    let with_roles = |roles: &[&str]| {
        let seen = roles.iter().map(|role| RoleSeen::Arn((*role).to_owned()));
        let seen: Vec<RoleSeen> = seen.collect();
        of(&log_of_aws, &|credential| {
            both(credential);
            credential.roles.clone_from(&seen);
        })
    };
    let other = "arn:aws:iam::999999999999:role/reports";
    for roles in [&[][..], &[other], &[role, other]] {
        let expected = (Class::Unproven, Reason::OtherRole);
        assert_eq!(with_roles(roles), expected, "{roles:?}");
    }
    assert_eq!(of(&log_of_aws, &both), PROVEN);
    assert_eq!(
        of(&log_of_aws, &|credential| {
            both(credential);
            credential.hash = None;
        }),
        (Class::Unproven, Reason::NameAlone)
    );
    assert_eq!(
        of(&log_of_aws, &|credential| {
            both(credential);
            credential.session = None;
        }),
        (Class::Unproven, Reason::HashAlone)
    );
    assert_eq!(
        of(&log_of_aws, &|credential| credential.foreign = true),
        (Class::Unproven, Reason::Contradiction)
    );
    // A session name of AWS does not identify a session of another kind.
    let log = log(&[permit()]);
    assert_eq!(
        of(&log, &|credential| {
            credential.named = true;
            credential.hash = Some(hash_of(&permit()));
        }),
        (Class::Unproven, Reason::NoSessionOfAws)
    );
}

#[test]
fn a_session_that_is_made_twice_is_told() {
    let aws = json!([
        {"type": "aws", "actions": ["s3:Get*"], "resources": ["arn:aws:s3:::b/*"]}
    ]);
    let log = log(&[with(with(permit(), "grant", aws), "minter", "aws")]);
    let mut made = action(10);
    made.recorded_action = RecordedAction::Mint;
    let mut judge = Judge::new(&log, 5, None);
    let again: Vec<bool> = (0..3).map(|_| judge.judge(&made).made_again).collect();
    assert_eq!(again, [false, true, true]);
    let mut used = action(10);
    used.recorded_action = rights("s3:GetObject", "arn:aws:s3:::b/x");
    assert!(!judge.judge(&used).made_again);
}

#[test]
fn what_comes_before_the_decision_or_after_the_expiry_is_told_with_the_clocks_allowance() {
    let log = log(&[permit()]);
    let before = |seconds: u64| {
        let mut record = action(0);
        record.at = Ok(noon().minus_seconds(seconds));
        judged(&log, &record)
    };
    assert_eq!(before(5), PROVEN);
    assert_eq!(before(6), (Class::Unproven, Reason::DecidedLater));
    assert_eq!(judged(&log, &action(305)), PROVEN);
    assert!(Judge::new(&log, 5, None).judge(&action(305)).within_skew);
    assert_eq!(
        judged(&log, &action(306)),
        (Class::AfterEnd, Reason::Expired)
    );
    assert!(Judge::new(&log, 0, None).judge(&action(301)).class == Class::AfterEnd);
    let mut shorter = action(100);
    shorter.credential.expires_at = Some(at(60));
    assert_eq!(judged(&log, &shorter), (Class::AfterEnd, Reason::Expired));
    // A token's own claim cannot extend the permit.
    let mut longer = action(306);
    longer.credential.expires_at = Some(at(9_000));
    assert_eq!(judged(&log, &longer), (Class::AfterEnd, Reason::Expired));
}
