//! Determines the kind of a file, and compares the broker's answer around a receipt with the leaf.
//!
//! A decision's leaf does not hold its task's type and deadline, the time that a revocation takes,
//! or the additional text of a refusal. No evidence covers these parts of an answer.
//!
//! A file of no known kind is an error with its reason. Each difference from the leaf is reported
//! to the [`Verification`]. `super` calls this file for everything but whole logs, which
//! `super::whole_log` reads.

use serde_json::{Map, Value};

use super::credential::equal;
use super::heads::with_causes;
use super::name_of;
use super::verification::{Claim, InputKind, Verification};
use crate::clock::Timestamp;
use crate::crypto::strict_json;
use crate::domain::decision::Outcome;
use crate::domain::grant::Grant;
use crate::domain::kind::MinterKind;
use crate::domain::leaf::{DecisionLeaf, Leaf, RecordedDecision, TaskLeaf};
use crate::domain::session::SessionState;
use crate::domain::task::TaskState;
use crate::domain::workload::KeyBinding;
use crate::merkle::{Receipt, TlogProof, TlogProofError};
use crate::wire::words::{ACCESS_TOKEN, JWT, PROBLEM_URN, problem_of_refusal};

/// The members that accompany a receipt in an answer.
const PARTS: [&str; 6] = [
    "credential",
    "access_token",
    "session",
    "task",
    "decision",
    "type",
];

/// Every member of an answer of this version, by the object that holds it.
const MEMBERS: [(&str, &[&str]); 6] = [
    (
        "",
        &[
            "access_token",
            "allowed",
            "authorization_details",
            "code",
            "credential",
            "decision",
            "decision_id",
            "detail",
            "expires_in",
            "issued_token_type",
            "leaf",
            "observed",
            "receipt",
            "scope",
            "session",
            "session_id",
            "status",
            "task",
            "task_handle",
            "title",
            "token_type",
            "type",
        ],
    ),
    (
        "credential",
        &[
            "access_key_id",
            "access_token",
            "expiration",
            "expires_in",
            "region",
            "secret_access_key",
            "session_token",
            "token_type",
            "type",
        ],
    ),
    (
        "decision",
        &["generation", "id", "observed", "outcome", "policies"],
    ),
    (
        "receipt",
        &[
            "checkpoint",
            "inclusion_proof",
            "index",
            "leaf",
            "leaf_hash",
            "tree_size",
        ],
    ),
    (
        "session",
        &[
            "authorization_details",
            "confirmed_at",
            "decision_id",
            "end_reason",
            "ended_at",
            "expires_at",
            "id",
            "issued_at",
            "parent_session_id",
            "resource",
            "revocability",
            "revocation_progress",
            "state",
            "task_id",
            "workload",
        ],
    ),
    (
        "task",
        &[
            "deadline",
            "handle",
            "heartbeat_seconds",
            "id",
            "state",
            "type",
        ],
    ),
];

/// The content of a file.
pub(super) struct InputFile {
    pub(super) kind: InputKind,
    pub(super) receipt: Receipt,
    /// The answer around the receipt; null if there is none.
    answer: Value,
}

impl InputFile {
    /// Determines the kind of a file. A member that occurs twice, at any depth, is refused.
    pub(super) fn read(file: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(file).map_err(|_| "the file is not UTF-8")?;
        let begin = text.trim_start();
        if begin.starts_with("c2sp.org/tlog-proof@") {
            let proof: TlogProof = text
                .parse()
                .map_err(|error: TlogProofError| error.to_string())?;
            let receipt = Receipt::from_tlog_proof(proof).map_err(|error| with_causes(&error))?;
            return Ok(Self::alone(InputKind::TlogProof, receipt));
        }
        if !begin.starts_with('{') {
            return Err(
                "the file is neither a receipt, nor an answer of the broker, nor a tlog-proof"
                    .into(),
            );
        }
        let members = strict_json::object(text.as_bytes())
            .map_err(|error| format!("the file is not JSON: {error}"))?;
        if let Some(receipt) = members.get("receipt") {
            let receipt = serde_json::from_value(receipt.clone())
                .map_err(|error| format!("the answer's receipt cannot be read: {error}"))?;
            return Ok(Self {
                kind: kind_of(&members)?,
                receipt,
                answer: Value::Object(members),
            });
        }
        if members.contains_key("leaf") {
            if let Some(part) = PARTS.iter().find(|part| members.contains_key(**part)) {
                return Err(format!(
                    "the receipt has the member {part}, which no receipt has"
                ));
            }
            let receipt = serde_json::from_value(Value::Object(members))
                .map_err(|error| format!("the receipt cannot be read: {error}"))?;
            return Ok(Self::alone(InputKind::Receipt, receipt));
        }
        Err("the JSON holds neither a receipt nor an answer with one".into())
    }

    fn alone(kind: InputKind, receipt: Receipt) -> Self {
        Self {
            kind,
            receipt,
            answer: Value::Null,
        }
    }

    /// The tokens in the answer.
    pub(super) fn tokens(&self) -> Vec<&str> {
        ["/credential/access_token", "/access_token"]
            .into_iter()
            .filter_map(|pointer| self.answer.pointer(pointer)?.as_str())
            .collect()
    }

    /// Compares the answer with the leaf.
    pub(super) fn check(&self, verdict: &mut Verification, leaf: &Leaf) {
        let read = serde_json::from_slice(&self.receipt.leaf).unwrap_or_default();
        self.hold(verdict, vec![("/leaf", read)]);
        self.tell_unknown_members(verdict);
        match (self.kind, leaf.event.facets().decision) {
            (InputKind::Receipt | InputKind::TlogProof | InputKind::Log | InputKind::Shown, _) => {}
            (InputKind::Opened, Some(RecordedDecision::TaskOpened(opened))) => {
                self.check_parts(verdict, &["task", "decision"]);
                self.hold(verdict, told_of_task(opened));
            }
            (InputKind::Opened, Some(RecordedDecision::Request(_)) | None) => verdict.fail(
                Claim::Decided,
                format!(
                    "the answer says that a task was opened, but the leaf records {}",
                    name_of(&leaf.event)
                ),
            ),
            (InputKind::Issued | InputKind::Refused, Some(RecordedDecision::Request(decision))) => {
                self.check_decision(verdict, decision, leaf.at);
            }
            (
                InputKind::Issued | InputKind::Refused,
                Some(RecordedDecision::TaskOpened(_)) | None,
            ) => {
                verdict.fail(
                    Claim::Decided,
                    "the answer is about a decision, but its receipt is not",
                );
            }
        }
    }

    fn check_decision(&self, verdict: &mut Verification, decision: &DecisionLeaf, at: Timestamp) {
        let permitted = decision.outcome == Outcome::Permit;
        if permitted != (self.kind == InputKind::Issued) {
            verdict.fail(
                Claim::Decided,
                format!(
                    "the answer contradicts the leaf's decision `{}`",
                    decision.outcome.as_str()
                ),
            );
        }
        self.check_parts(verdict, &["credential", "session", "decision"]);
        self.hold(verdict, told_of_decision(decision));
        self.hold(verdict, told_of_session(decision));
        self.hold(verdict, told_of_token(decision));
        if self.kind == InputKind::Refused {
            self.check_parts(verdict, &["task"]);
            let code = json(serde_json::to_value(decision.refusal));
            let kind = decision.refusal.map(|code| {
                let (slug, _) = problem_of_refusal(decision.outcome, code);
                format!("{PROBLEM_URN}{slug}")
            });
            let kind = Value::from(kind);
            let told = vec![("/code", code), ("/type", kind), ("/session", Value::Null)];
            return self.hold(verdict, told);
        }
        self.hold(verdict, told_of_making(decision, at));
        self.check_life(verdict, decision, at);
        if let Some(said) = self.answer.get("issued_token_type")
            && ![ACCESS_TOKEN, JWT].iter().any(|known| said == known)
        {
            let told = format!(
                "the answer's issued_token_type is {said}, which no token of the broker has"
            );
            verdict.fail(Claim::Decided, told);
        }
        if self.answer.get("credential").is_some() {
            self.check_credential(verdict, decision);
        }
        if let Some(token) = self.answer.get("access_token") {
            if !token.is_string() {
                verdict.fail(Claim::Decided, "the answer's access_token is not a string");
            }
            // In this form of answer, `task` is the task's id.
            let task = json(serde_json::to_value(decision.task));
            self.hold(verdict, vec![("/task", task)]);
        } else {
            self.check_parts(verdict, &["task"]);
        }
    }

    /// Notes members that this version does not know: the leaf does not cover them.
    fn tell_unknown_members(&self, verdict: &mut Verification) {
        let mut unknown = Vec::new();
        for (part, known) in MEMBERS {
            let object = match part {
                "" => self.answer.as_object(),
                part => self.answer.get(part).and_then(Value::as_object),
            };
            let names = object.into_iter().flat_map(Map::keys);
            let names = names.filter(|name| !known.contains(&name.as_str()));
            unknown.extend(names.map(|name| match part {
                "" => format!("`{name}`"),
                part => format!("`{part}.{name}`"),
            }));
        }
        if !unknown.is_empty() {
            verdict.notes.push(format!(
                "this version does not know {} in such an answer, and did not verify it",
                unknown.join(", ")
            ));
        }
    }

    /// Checks the life of the credential: a minter may shorten the decided life, but not extend it.
    fn check_life(&self, verdict: &mut Verification, decision: &DecisionLeaf, at: Timestamp) {
        let issued_at = at.floor_to_second();
        let longest = decision.expires_at.map(|end| issued_at.seconds_until(end));
        for pointer in ["/credential/expires_in", "/expires_in"] {
            if let Some(said) = self.answer.pointer(pointer)
                && said.as_u64().is_none_or(|said| Some(said) > longest)
            {
                verdict.fail(
                    Claim::Decided,
                    format!(
                        "the answer's expires_in is {said}, but the leaf grants {} seconds",
                        longest.unwrap_or_default()
                    ),
                );
            }
        }
        if let Some(said) = self.answer.pointer("/credential/expiration") {
            let end: Option<Timestamp> = serde_json::from_value(said.clone()).ok();
            if end.is_none_or(|end| Some(end) > decision.expires_at) {
                verdict.fail(
                    Claim::Decided,
                    format!("the answer's credential.expiration is {said}, which the leaf does not grant"),
                );
            }
        }
    }

    /// Checks that the credential has a token if the leaf permits one.
    fn check_credential(&self, verdict: &mut Verification, decision: &DecisionLeaf) {
        let permits_token = minter(decision).is_some_and(MinterKind::makes_access_tokens);
        match self.answer.pointer("/credential/access_token") {
            Some(Value::String(_)) => {}
            Some(_) => verdict.fail(
                Claim::Decided,
                "the answer's credential.access_token is not a string",
            ),
            None if permits_token => verdict.fail(
                Claim::Decided,
                "the leaf permits a JWT, but the answer's credential has none",
            ),
            None => verdict.notes.push(
                "the answer's credential is not a JWT and carries no hash of the leaf: it was not \
                 verified"
                    .into(),
            ),
        }
    }

    /// Checks that these members are objects if they exist.
    fn check_parts(&self, verdict: &mut Verification, names: &[&str]) {
        for name in names {
            if self.answer.get(name).is_some_and(|part| !part.is_object()) {
                verdict.fail(
                    Claim::Decided,
                    format!("the answer's {name} is not an object"),
                );
            }
        }
    }

    fn hold(&self, verdict: &mut Verification, told: Vec<(&str, Value)>) {
        for (pointer, leaf) in told {
            if let Some(said) = self.answer.pointer(pointer) {
                let name = pointer.trim_start_matches('/').replace('/', ".");
                equal(verdict, &format!("the answer's {name}"), said, &leaf);
            }
        }
    }
}

/// The kind of the broker's answer, by its members.
fn kind_of(answer: &Map<String, Value>) -> Result<InputKind, String> {
    let has = |name| answer.contains_key(name);
    let kind = answer.get("type").and_then(Value::as_str);
    let refused = kind.is_some_and(|kind| kind.starts_with(PROBLEM_URN));
    match (has("credential") || has("access_token"), refused) {
        (true, true) => {
            Err("the answer says both that the request was granted and that it was refused".into())
        }
        (true, false) => Ok(InputKind::Issued),
        (false, true) => Ok(InputKind::Refused),
        // A decision as the broker shows it has no other members.
        (false, false) if has("leaf") && answer.len() == 2 => Ok(InputKind::Shown),
        (false, false) if has("task") => Ok(InputKind::Opened),
        (false, false) => Err(
            "the JSON holds a receipt in a kind of answer that this version does not know".into(),
        ),
    }
}

fn json(value: Result<Value, serde_json::Error>) -> Value {
    value.unwrap_or_default()
}

/// The members of an answer of `/v1` about the decision, with their values by the leaf.
fn told_of_decision(decision: &DecisionLeaf) -> Vec<(&'static str, Value)> {
    vec![
        (
            "/decision/id",
            json(serde_json::to_value(decision.decision)),
        ),
        (
            "/decision/outcome",
            json(serde_json::to_value(decision.outcome)),
        ),
        (
            "/decision/generation",
            json(serde_json::to_value(decision.generation)),
        ),
        (
            "/decision/policies",
            json(serde_json::to_value(&decision.policies)),
        ),
        (
            "/decision/observed",
            json(serde_json::to_value(&decision.observed)),
        ),
    ]
}

/// The members of a 201 of `/v1/credentials` about session and task, with their values by the leaf.
fn told_of_session(decision: &DecisionLeaf) -> Vec<(&'static str, Value)> {
    vec![
        ("/session/id", json(serde_json::to_value(decision.session))),
        (
            "/session/decision_id",
            json(serde_json::to_value(decision.decision)),
        ),
        (
            "/session/task_id",
            json(serde_json::to_value(decision.task)),
        ),
        (
            "/session/parent_session_id",
            json(serde_json::to_value(decision.parent_session)),
        ),
        (
            "/session/expires_at",
            json(serde_json::to_value(decision.expires_at)),
        ),
        (
            "/session/workload",
            json(serde_json::to_value(&decision.workload)),
        ),
        (
            "/session/resource",
            json(serde_json::to_value(&decision.resource)),
        ),
        (
            "/session/authorization_details",
            json(serde_json::to_value(&decision.grant)),
        ),
        (
            "/session/revocability",
            json(serde_json::to_value(decision.revocability)),
        ),
        ("/task/id", json(serde_json::to_value(decision.task))),
    ]
}

/// The members of a 200 of `/oauth2/token`, with their values by the leaf.
fn told_of_token(decision: &DecisionLeaf) -> Vec<(&'static str, Value)> {
    let scope = decision.grant.as_ref().map(Grant::scope);
    vec![
        ("/session_id", json(serde_json::to_value(decision.session))),
        (
            "/decision_id",
            json(serde_json::to_value(decision.decision)),
        ),
        (
            "/authorization_details",
            json(serde_json::to_value(&decision.grant)),
        ),
        ("/scope", Value::from(scope)),
        ("/observed", json(serde_json::to_value(&decision.observed))),
    ]
}

/// The minter that the leaf names, if this version knows it.
fn minter(decision: &DecisionLeaf) -> Option<MinterKind> {
    decision.minter.as_deref().and_then(MinterKind::parse)
}

/// The members of both kinds of answer about a new credential, with their values by the leaf.
fn told_of_making(decision: &DecisionLeaf, at: Timestamp) -> Vec<(&'static str, Value)> {
    let issued_at = at.floor_to_second().to_string();
    let token_type = Value::from(KeyBinding::token_type(decision.cnf.as_ref()));
    let mut told = vec![
        ("/credential/token_type", token_type.clone()),
        ("/token_type", token_type),
        ("/session/issued_at", Value::from(issued_at)),
        ("/session/state", Value::from(SessionState::Active.as_str())),
        ("/session/end_reason", Value::Null),
        ("/session/ended_at", Value::Null),
        ("/session/confirmed_at", Value::Null),
        ("/session/revocation_progress", Value::Null),
        ("/task/state", Value::from(TaskState::Open.as_str())),
    ];
    let credential_type = minter(decision).map(MinterKind::credential_type);
    told.extend(credential_type.map(|name| ("/credential/type", Value::from(name))));
    told
}

/// The members of a 201 of `/v1/tasks`, with their values by the leaf.
fn told_of_task(opened: &TaskLeaf) -> Vec<(&'static str, Value)> {
    vec![
        ("/session", Value::Null),
        ("/session_id", Value::Null),
        ("/decision_id", Value::Null),
        ("/scope", Value::Null),
        ("/authorization_details", Value::Null),
        ("/expires_in", Value::Null),
        ("/decision/observed", Value::Null),
        ("/task/state", Value::from(TaskState::Open.as_str())),
        ("/task/id", json(serde_json::to_value(opened.task))),
        ("/task/type", Value::from(opened.task_type.as_str())),
        (
            "/task/deadline",
            json(serde_json::to_value(opened.deadline)),
        ),
        ("/decision/id", json(serde_json::to_value(opened.decision))),
        ("/decision/outcome", Value::from(Outcome::Permit.as_str())),
        (
            "/decision/generation",
            json(serde_json::to_value(opened.generation)),
        ),
        (
            "/decision/policies",
            json(serde_json::to_value(&opened.policies)),
        ),
    ]
}
