//! What a receipt, a proof or a log shows, and what it does not.
//!
//! Three things can be asked of a credential: that it was *decided*, that the decision was
//! *logged*, and that it was logged *before it was used*. The first is shown by the leaf, whose
//! hash the credential carries: the decision's bytes existed before the signature did, if there is a
//! signature, which takes the issuer's keys or the log that names them. The second
//! by the inclusion proof under a checkpoint that a pinned key or witness vouches for. The third is
//! shown by neither, for a receipt does not say when the log got its leaf: it takes a checkpoint
//! that a witness cosigned, or that somebody published, before the use, and it is told by whose
//! clock.
//!
//! Nothing is fetched. Whatever does not hold is told, each for itself, and any of it makes the
//! whole not hold; so does what was asked and cannot be shown.

mod answer;
mod credential;
mod heads;
mod verdict;
mod whole_log;

use std::io::{self, BufRead, Read as _};

use serde_json::Value;

use self::answer::Held;
use self::credential::{Credential, Signers};
pub(in crate::cli) use self::heads::{Consistency, Given};
use self::heads::{Heads, with_causes};
use self::verdict::Claim;
pub(in crate::cli) use self::verdict::{Kind, Verdict};
use crate::clock::Timestamp;
use crate::domain::decision::Outcome;
use crate::domain::leaf::{DecisionLeaf, Event, Leaf, RecordedDecision};
use crate::merkle::{LOG_FILE_FORMAT, Receipt, Trust};

/// The longest file that is held in memory: a 201 body with its receipt is a few kilobytes.
const MAX_PROOF_BYTES: u64 = 1024 * 1024;
/// So much of a file is looked at to tell whether it is a log: the beginning of one, and blanks.
const BEGIN_BYTES: u64 = 64;

/// What is asked of a file.
pub(in crate::cli) struct Asked<'a> {
    /// Whom the auditor believes.
    pub(in crate::cli) trust: &'a Trust,
    /// The credential that the file must be for.
    pub(in crate::cli) credential: Option<&'a str>,
    /// The issuer's keys.
    pub(in crate::cli) jwks: Option<&'a [u8]>,
    /// Whether a credential's claims are enough, its signature unchecked.
    pub(in crate::cli) unchecked_signature: bool,
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

    /// Whether the use that is asked about was of something that this leaf permits, while it was
    /// good.
    fn check_use(
        &self,
        verdict: &mut Verdict,
        decision: Option<&DecisionLeaf>,
        credentials: &[Credential],
    ) {
        let Some(used) = self.used_at else {
            return;
        };
        let claim = Claim::LoggedBeforeUse;
        let Some(decision) = decision.filter(|decision| decision.outcome == Outcome::Permit) else {
            return verdict.fail(
                claim,
                "--used-at says when a credential was used, and the leaf permits none",
            );
        };
        if let Some(end) = decision.expires_at.filter(|end| used > *end) {
            verdict.fail(
                claim,
                format!("it was used at {used}, the leaf permits it until {end}"),
            );
        }
        for credential in credentials {
            credential.check_use(verdict, used);
        }
    }
}

/// Checks a file. Only a whole log may be longer than [`MAX_PROOF_BYTES`], and is read line by line.
pub(in crate::cli) fn verify(mut file: impl BufRead, asked: &Asked<'_>) -> Verdict {
    let mut verdict = Verdict::nothing();
    let unreadable = |error: io::Error| format!("the file cannot be read: {error}");
    let begin = match begin_of(&mut file) {
        Ok(begin) => begin,
        Err(error) => {
            verdict.fail(Claim::Logged, unreadable(error));
            return verdict;
        }
    };
    let file = begin.as_slice().chain(file);
    if is_log(&begin) {
        whole_log::verify(&mut verdict, file, asked);
        return verdict;
    }
    let mut bytes = Vec::new();
    match file.take(MAX_PROOF_BYTES + 1).read_to_end(&mut bytes) {
        Ok(read) if read as u64 <= MAX_PROOF_BYTES => verify_receipt(&mut verdict, &bytes, asked),
        Ok(_) => verdict.fail(
            Claim::Logged,
            format!("the file has more than {MAX_PROOF_BYTES} bytes, and is no log"),
        ),
        Err(error) => verdict.fail(Claim::Logged, unreadable(error)),
    }
    verdict
}

/// Whether a file begins as a whole log does, blanks aside.
fn is_log(begin: &[u8]) -> bool {
    let mark = format!("{{\"format\":\"{LOG_FILE_FORMAT}\"");
    let shown = begin.iter().filter(|byte| !byte.is_ascii_whitespace());
    shown.take(mark.len()).eq(mark.as_bytes())
}

/// The beginning of a file, however little of it a pipe gives at once.
fn begin_of(file: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut begin = Vec::new();
    file.by_ref().take(BEGIN_BYTES).read_to_end(&mut begin)?;
    Ok(begin)
}

fn verify_receipt(verdict: &mut Verdict, file: &[u8], asked: &Asked<'_>) {
    let found = match Held::read(file) {
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
    found.check(verdict, &leaf);
    let mut tokens = found.tokens();
    let given = asked.credential.filter(|given| !tokens.contains(given));
    tokens.extend(given);
    let mut credentials = Vec::new();
    for token in &tokens {
        match Credential::parse(token) {
            Ok(credential) => credentials.push(credential),
            Err(why) => verdict.fail(Claim::Decided, why),
        }
    }
    let signers = Signers::of(asked, None);
    for credential in &credentials {
        credential.check(
            verdict,
            &receipt.leaf_hash,
            (receipt.index, &leaf),
            &signers,
        );
    }
    if tokens.is_empty() {
        asked.wants_a_credential(verdict);
    }
    if tokens.is_empty()
        && found.kind != Kind::Issued
        && decision.is_some_and(|d| d.outcome == Outcome::Permit)
    {
        verdict.notes.push(
            "no credential was given: whether one carries this decision was not looked at".into(),
        );
    }
    asked.check_use(verdict, decision, &credentials);
    heads.before_use(verdict, &head, (receipt.index, leaf.at), asked.used_at);
}

/// The leaf, if this version reads it and it is meant for this log.
fn leaf_of(verdict: &mut Verdict, receipt: &Receipt, origin: &str) -> Option<Leaf> {
    let leaf = match Leaf::from_bytes(&receipt.leaf) {
        Ok(leaf) => leaf,
        Err(error) => {
            verdict.fail(
                Claim::Decided,
                format!("the leaf is not one that this build reads: {error}"),
            );
            return None;
        }
    };
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
    match leaf.event.facets().decision {
        Some(RecordedDecision::Request(decision)) => {
            verdict.show(Claim::Decided, decided(leaf, decision));
            Some(decision)
        }
        Some(RecordedDecision::TaskOpened(opened)) => {
            let told = format!(
                "permit for {} at {} to open task {}, decision {}, by {}",
                opened.workload, leaf.at, opened.task, opened.decision, opened.generation
            );
            verdict.show(Claim::Decided, told);
            None
        }
        None => {
            let name = name_of(&leaf.event);
            verdict.leave(Claim::Decided, &format!("the leaf records {name}"));
            None
        }
    }
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
