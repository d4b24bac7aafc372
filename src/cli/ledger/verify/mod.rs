//! What a receipt, a proof or a log shows, and what it does not.
//!
//! Three things can be asked of a credential: that it was *decided*, that the decision was
//! *logged*, and that it was logged *before it was used*. The first is shown by the leaf, whose
//! hash the credential carries: the decision's bytes existed before the signature did. The second
//! by the inclusion proof under a checkpoint that a pinned key or witness vouches for. The third is
//! shown by neither, for a receipt does not say when the log got its leaf: it takes a checkpoint
//! that a witness cosigned, or that somebody published, before the use, and it is told by whose
//! clock.
//!
//! Nothing is fetched. Whatever does not hold is told, each for itself, and any of it makes the
//! whole not hold.

mod credential;
mod heads;
mod verdict;
mod whole_log;

use std::io::{BufRead, Read as _};

use serde::Deserialize;
use serde_json::{Map, Value};

use self::credential::{Credential, equal};
pub(in crate::cli) use self::heads::{Consistency, Given};
use self::heads::{Heads, with_causes};
use self::verdict::Claim;
pub(in crate::cli) use self::verdict::{Kind, Verdict};
use crate::clock::Timestamp;
use crate::domain::decision::Outcome;
use crate::domain::leaf::{DecisionLeaf, Event, Leaf};
use crate::merkle::{LOG_FILE_FORMAT, Receipt, TlogProof, Trust};

/// The longest file that is held in memory: a 201 body with its receipt is a few kilobytes.
const MAX_PROOF_BYTES: u64 = 1024 * 1024;

/// What is asked of a file.
pub(in crate::cli) struct Asked<'a> {
    /// Whom the auditor believes.
    pub(in crate::cli) trust: &'a Trust,
    /// The credential that the file must be for.
    pub(in crate::cli) credential: Option<&'a str>,
    /// The issuer's keys.
    pub(in crate::cli) jwks: Option<&'a [u8]>,
    /// Other checkpoints of the log.
    pub(in crate::cli) given: &'a [Given],
    /// What joins them.
    pub(in crate::cli) proofs: &'a [Consistency],
    /// When the credential was used.
    pub(in crate::cli) used_at: Option<Timestamp>,
}

impl Asked<'_> {
    /// Keys are given to look at a credential; where there is none they were given in vain.
    fn wants_a_credential(&self, verdict: &mut Verdict) {
        if self.jwks.is_some() {
            verdict.fail(
                Claim::Decided,
                "--jwks says who signs credentials, and there is none: give it with --credential-file",
            );
        }
    }
}

/// An answer of the broker with a receipt in it.
#[derive(Deserialize)]
struct Body {
    receipt: Receipt,
    #[serde(default)]
    credential: Option<Value>,
    #[serde(default)]
    session: Option<Value>,
    #[serde(default)]
    task: Option<Value>,
    #[serde(default)]
    decision: Option<Value>,
}

/// What a file held.
struct Held {
    kind: Kind,
    receipt: Receipt,
    /// The answer around the receipt.
    body: Option<Body>,
}

/// Checks a file. Only a whole log may be longer than [`MAX_PROOF_BYTES`], and is read line by line.
pub(in crate::cli) fn verify(mut file: impl BufRead, asked: &Asked<'_>) -> Verdict {
    let mut verdict = Verdict::nothing();
    match is_log(&mut file) {
        Ok(true) => whole_log::verify(&mut verdict, file, asked),
        Ok(false) => {
            let mut bytes = Vec::new();
            match file.take(MAX_PROOF_BYTES + 1).read_to_end(&mut bytes) {
                Ok(read) if read as u64 <= MAX_PROOF_BYTES => {
                    verify_receipt(&mut verdict, &bytes, asked);
                }
                Ok(_) => verdict.fail(
                    Claim::Logged,
                    format!("the file has more than {MAX_PROOF_BYTES} bytes, and is no log"),
                ),
                Err(error) => {
                    verdict.fail(Claim::Logged, format!("the file cannot be read: {error}"));
                }
            }
        }
        Err(error) => verdict.fail(Claim::Logged, format!("the file cannot be read: {error}")),
    }
    verdict
}

/// Whether a file begins as a whole log does.
fn is_log(file: &mut impl BufRead) -> std::io::Result<bool> {
    let begin = file.fill_buf()?;
    let mark = format!("{{\"format\":\"{LOG_FILE_FORMAT}\"");
    Ok(begin.starts_with(mark.as_bytes()))
}

fn verify_receipt(verdict: &mut Verdict, file: &[u8], asked: &Asked<'_>) {
    let found = match read(file) {
        Ok(found) => found,
        Err(why) => return verdict.fail(Claim::Logged, why),
    };
    verdict.kind = Some(found.kind);
    let receipt = &found.receipt;
    let head = match receipt.unsigned() {
        Ok(head) => head,
        Err(error) => return verdict.fail(Claim::Logged, with_causes(&error)),
    };
    let mut heads = Heads::open(verdict, asked.trust, asked.given, asked.proofs);
    let note = receipt.checkpoint.as_bytes();
    let Some(vouched) = heads.vouched(verdict, asked.trust, &head, note) else {
        return;
    };
    verdict.show(
        Claim::Logged,
        format!(
            "yes, as leaf {} of {} in {}, by {vouched}",
            receipt.index, head.size, head.origin
        ),
    );
    let Some(leaf) = leaf_of(verdict, receipt, &head.origin) else {
        return;
    };
    let decision = decision_of(verdict, &leaf);
    if let Some(body) = &found.body {
        check_body(verdict, found.kind, body, decision);
    }
    let own = found.body.as_ref().and_then(|body| {
        let credential = body.credential.as_ref()?;
        credential.get("access_token")?.as_str()
    });
    let mut tokens: Vec<&str> = own.into_iter().collect();
    tokens.extend(asked.credential.filter(|given| own != Some(given)));
    for token in &tokens {
        match Credential::parse(token) {
            Ok(credential) => {
                credential.check(verdict, &receipt.leaf_hash, &leaf, asked.jwks);
            }
            Err(why) => verdict.fail(Claim::Decided, why),
        }
    }
    if tokens.is_empty() {
        asked.wants_a_credential(verdict);
    }
    if tokens.is_empty() && decision.is_some_and(|d| d.outcome == Outcome::Permit) {
        verdict.notes.push(
            "no credential was given: whether one carries this decision was not looked at".into(),
        );
    }
    heads.before_use(verdict, &head, (receipt.index, leaf.at), asked.used_at);
}

/// The leaf, if this version reads it and it is meant for this log.
fn leaf_of(verdict: &mut Verdict, receipt: &Receipt, origin: &str) -> Option<Leaf> {
    let leaf: Leaf = match serde_json::from_slice(&receipt.leaf) {
        Ok(leaf) => leaf,
        Err(error) => {
            verdict.fail(
                Claim::Decided,
                format!("the leaf is not one that this version reads: {error}"),
            );
            return None;
        }
    };
    if leaf.v != Leaf::VERSION {
        verdict.fail(
            Claim::Decided,
            format!(
                "the leaf has format {}, this version reads {}",
                leaf.v,
                Leaf::VERSION
            ),
        );
        return None;
    }
    if leaf.origin != origin {
        verdict.fail(
            Claim::Logged,
            format!(
                "the leaf is meant for the log {}, the checkpoint is of {origin}",
                leaf.origin
            ),
        );
        return None;
    }
    Some(leaf)
}

/// The decision that a leaf records, if it does; says what was decided.
fn decision_of<'a>(verdict: &mut Verdict, leaf: &'a Leaf) -> Option<&'a DecisionLeaf> {
    match &leaf.event {
        Event::Decision(decision) => {
            verdict.show(Claim::Decided, decided(leaf, decision));
            Some(decision.as_ref())
        }
        other => {
            let name = name_of(other);
            verdict.leave(Claim::Decided, &format!("the leaf records {name}"));
            None
        }
    }
}

/// Tells what a file is.
fn read(file: &[u8]) -> Result<Held, String> {
    let text = std::str::from_utf8(file).map_err(|_| "the file is not text")?;
    let begin = text.trim_start();
    if begin.starts_with("c2sp.org/tlog-proof@") {
        let proof: TlogProof = text
            .parse()
            .map_err(|error: crate::merkle::TlogProofError| error.to_string())?;
        let receipt = Receipt::from_tlog_proof(proof).map_err(|error| with_causes(&error))?;
        return Ok(Held {
            kind: Kind::TlogProof,
            receipt,
            body: None,
        });
    }
    if !begin.starts_with('{') {
        return Err(
            "the file is neither a receipt, nor an answer of the broker, nor a tlog-proof".into(),
        );
    }
    let look: Map<String, Value> =
        serde_json::from_str(text).map_err(|error| format!("the file is not JSON: {error}"))?;
    if look.contains_key("receipt") {
        // Read again from the text: what stands twice is refused, not chosen from.
        let body: Body = serde_json::from_str(text)
            .map_err(|error| format!("the answer cannot be read: {error}"))?;
        let kind = if body.credential.is_some() {
            Kind::Issued
        } else {
            Kind::Refused
        };
        return Ok(Held {
            kind,
            receipt: body.receipt.clone(),
            body: Some(body),
        });
    }
    if look.contains_key("leaf") {
        let receipt = serde_json::from_str(text)
            .map_err(|error| format!("the receipt cannot be read: {error}"))?;
        return Ok(Held {
            kind: Kind::Receipt,
            receipt,
            body: None,
        });
    }
    Err("the JSON holds neither a receipt nor an answer with one".into())
}

fn decided(leaf: &Leaf, decision: &DecisionLeaf) -> String {
    let refusal = decision.refusal.map(|code| format!(" ({})", code.as_str()));
    let session = decision.session.map(|id| format!(", session {id}"));
    format!(
        "{}{} for {} at {}, decision {}{}, by {}",
        decision.outcome.as_str(),
        refusal.unwrap_or_default(),
        decision.workload,
        leaf.at,
        decision.decision,
        session.unwrap_or_default(),
        decision.generation
    )
}

/// The event's own word for itself.
fn name_of(event: &Event) -> String {
    let value = serde_json::to_value(event).unwrap_or_default();
    let name = value.get("event").and_then(Value::as_str);
    name.unwrap_or("an event").to_owned()
}

/// What an answer says beside its receipt must be what the leaf says.
fn check_body(verdict: &mut Verdict, kind: Kind, body: &Body, decision: Option<&DecisionLeaf>) {
    let Some(decision) = decision else {
        return verdict.fail(
            Claim::Decided,
            "the answer is about a decision, its receipt is not",
        );
    };
    let permitted = decision.outcome == Outcome::Permit;
    if permitted != (kind == Kind::Issued) {
        verdict.fail(
            Claim::Decided,
            format!(
                "the leaf's decision is `{}`, which this answer contradicts",
                decision.outcome.as_str()
            ),
        );
    }
    let said =
        |part: &Option<Value>, name: &str| part.as_ref().and_then(|part| part.get(name)).cloned();
    let leaf = |value: Result<Value, serde_json::Error>| value.unwrap_or_default();
    let pairs = [
        (
            "the answer's decision.outcome",
            said(&body.decision, "outcome"),
            leaf(serde_json::to_value(decision.outcome)),
        ),
        (
            "the answer's decision.policies",
            said(&body.decision, "policies"),
            leaf(serde_json::to_value(&decision.policies)),
        ),
        (
            "the answer's decision.generation",
            said(&body.decision, "generation"),
            leaf(serde_json::to_value(decision.generation)),
        ),
        (
            "the answer's session.decision_id",
            said(&body.session, "decision_id"),
            leaf(serde_json::to_value(decision.decision)),
        ),
        (
            "the answer's session.task_id",
            said(&body.session, "task_id"),
            leaf(serde_json::to_value(decision.task)),
        ),
        (
            "the answer's session.parent_session_id",
            said(&body.session, "parent_session_id"),
            leaf(serde_json::to_value(decision.parent_session)),
        ),
        (
            "the answer's session.expires_at",
            said(&body.session, "expires_at"),
            leaf(serde_json::to_value(decision.expires_at)),
        ),
        (
            "the answer's task.id",
            said(&body.task, "id"),
            leaf(serde_json::to_value(decision.task)),
        ),
        (
            "the answer's decision.id",
            said(&body.decision, "id"),
            leaf(serde_json::to_value(decision.decision)),
        ),
        (
            "the answer's session.id",
            said(&body.session, "id"),
            leaf(serde_json::to_value(decision.session)),
        ),
        (
            "the answer's session.workload",
            said(&body.session, "workload"),
            leaf(serde_json::to_value(&decision.workload)),
        ),
        (
            "the answer's session.resource",
            said(&body.session, "resource"),
            leaf(serde_json::to_value(&decision.resource)),
        ),
        (
            "the answer's session.authorization_details",
            said(&body.session, "authorization_details"),
            leaf(serde_json::to_value(&decision.grant)),
        ),
    ];
    for (what, said, leaf) in pairs {
        if let Some(said) = said {
            equal(verdict, what, &said, &leaf);
        }
    }
}
