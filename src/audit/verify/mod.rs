//! Verifies receipts, proofs and logs, and reports which claims they prove.
//!
//! Three claims can be made about a credential: it was *decided*, the decision was *logged*, and it
//! was logged *before the credential was used*.
//!
//! - The leaf proves the first one, because the credential carries its hash: the decision's bytes
//!   existed before the signature. Verifying the signature requires the issuer's keys, or the log
//!   that names them.
//! - The inclusion proof under a checkpoint that a pinned key or witness signed proves the second
//!   one.
//! - A receipt does not prove the third one, because it does not show when the log received the
//!   leaf. That takes a checkpoint that a witness cosigned, or that was published, before the use.
//!   The result names the clock that shows it.
//!
//! Nothing is fetched. Every contradiction is reported separately. The result is negative if there
//! is any, or if a requested claim cannot be proven.
//!
//! [`verify`] returns no error: a file that cannot be read is a contradiction in the
//! [`Verification`]. `cli::ledger` calls it and turns the result into an exit code;
//! [`crate::merkle`] has the formats.

mod credential;
mod heads;
mod input_file;
mod verification;
mod whole_log;

use std::io::{self, BufRead, Read as _};

use serde_json::Value;

use self::credential::{Credential, Signers};
pub(crate) use self::heads::{Consistency, Given};
use self::heads::{Heads, with_causes};
use self::input_file::InputFile;
use self::verification::Claim;
pub(crate) use self::verification::{InputKind, Verification};
use crate::clock::Timestamp;
use crate::domain::decision::Outcome;
use crate::domain::leaf::{DecisionLeaf, Event, Leaf, RecordedDecision};
use crate::merkle::{LOG_FILE_FORMAT, Receipt, Trust};

/// The longest file that is read into memory, in bytes: a 201 body with its receipt has a few
/// kilobytes.
const MAX_PROOF_BYTES: u64 = 1024 * 1024;
/// The number of bytes, blanks included, that show whether a file is a whole log.
const BEGIN_BYTES: u64 = 64;

/// The material and the questions of a verification.
pub(crate) struct Request<'a> {
    /// The keys that the auditor trusts.
    pub(crate) trust: &'a Trust,
    /// The credential that the file must be for.
    pub(crate) credential: Option<&'a str>,
    /// The issuer's keys, as a JWK set.
    pub(crate) jwks: Option<&'a [u8]>,
    /// Whether a credential's claims suffice without a verified signature.
    pub(crate) unchecked_signature: bool,
    /// Other checkpoints of the log.
    pub(crate) given: &'a [Given],
    /// Consistency proofs between checkpoints.
    pub(crate) proofs: &'a [Consistency],
    /// The time at which the credential was used.
    pub(crate) used_at: Option<Timestamp>,
}

impl Request<'_> {
    /// Reports --jwks as an error if there is no credential to verify with it.
    fn wants_a_credential(&self, verdict: &mut Verification) {
        if self.jwks.is_some() {
            verdict.fail(
                Claim::Decided,
                "--jwks verifies a credential, but there is none: give it with --credential-file",
            );
        }
    }

    /// Checks that the leaf permits a credential, and that the credential was valid at the time of
    /// use.
    fn check_use(
        &self,
        verdict: &mut Verification,
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
                "--used-at gives the time at which a credential was used, but the leaf permits none",
            );
        };
        if let Some(end) = decision.expires_at.filter(|end| used > *end) {
            verdict.fail(
                claim,
                format!("it was used at {used}, but the leaf permits it until {end}"),
            );
        }
        for credential in credentials {
            credential.check_use(verdict, used);
        }
    }
}

/// Verifies a file. A whole log is read line by line; any other file longer than
/// [`MAX_PROOF_BYTES`] is refused.
pub(crate) fn verify(mut file: impl BufRead, request: &Request<'_>) -> Verification {
    let mut verdict = Verification::nothing();
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
        whole_log::verify(&mut verdict, file, request);
        return verdict;
    }
    let mut bytes = Vec::new();
    match file.take(MAX_PROOF_BYTES + 1).read_to_end(&mut bytes) {
        Ok(read) if read as u64 <= MAX_PROOF_BYTES => verify_receipt(&mut verdict, &bytes, request),
        Ok(_) => verdict.fail(
            Claim::Logged,
            format!("the file has more than {MAX_PROOF_BYTES} bytes and is not a log"),
        ),
        Err(error) => verdict.fail(Claim::Logged, unreadable(error)),
    }
    verdict
}

/// Whether a file begins like a whole log, apart from blanks.
fn is_log(begin: &[u8]) -> bool {
    let mark = format!("{{\"format\":\"{LOG_FILE_FORMAT}\"");
    let shown = begin.iter().filter(|byte| !byte.is_ascii_whitespace());
    shown.take(mark.len()).eq(mark.as_bytes())
}

/// The beginning of a file, even if a pipe delivers it in small parts.
fn begin_of(file: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut begin = Vec::new();
    file.by_ref().take(BEGIN_BYTES).read_to_end(&mut begin)?;
    Ok(begin)
}

fn verify_receipt(verdict: &mut Verification, file: &[u8], request: &Request<'_>) {
    let found = match InputFile::read(file) {
        Ok(found) => found,
        Err(why) => return verdict.fail(Claim::Logged, why),
    };
    verdict.kind = Some(found.kind);
    let receipt = &found.receipt;
    let head = match receipt.unsigned() {
        Ok(head) => head,
        Err(error) => return verdict.fail(Claim::Logged, with_causes(&error)),
    };
    let mut heads = Heads::open(verdict, request.trust, request.given, request.proofs);
    let note = receipt.checkpoint.as_bytes();
    let Some(vouched) = heads.vouched(verdict, request.trust, &head, note) else {
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
    let given = request.credential.filter(|given| !tokens.contains(given));
    tokens.extend(given);
    let mut credentials = Vec::new();
    for token in &tokens {
        match Credential::parse(token) {
            Ok(credential) => credentials.push(credential),
            Err(why) => verdict.fail(Claim::Decided, why),
        }
    }
    let signers = Signers::of(request, None);
    for credential in &credentials {
        credential.check(
            verdict,
            &receipt.leaf_hash,
            (receipt.index, &leaf),
            &signers,
        );
    }
    if tokens.is_empty() {
        request.wants_a_credential(verdict);
    }
    if tokens.is_empty()
        && found.kind != InputKind::Issued
        && decision.is_some_and(|d| d.outcome == Outcome::Permit)
    {
        verdict.notes.push(
            "no credential was given, so it was not verified that one carries this decision".into(),
        );
    }
    request.check_use(verdict, decision, &credentials);
    heads.before_use(verdict, &head, (receipt.index, leaf.at), request.used_at);
}

/// The leaf, if this version can read it and it belongs to this log.
fn leaf_of(verdict: &mut Verification, receipt: &Receipt, origin: &str) -> Option<Leaf> {
    let leaf = match Leaf::from_bytes(&receipt.leaf) {
        Ok(leaf) => leaf,
        Err(error) => {
            verdict.fail(
                Claim::Decided,
                format!("this version cannot read the leaf: {error}"),
            );
            return None;
        }
    };
    if leaf.origin != origin {
        verdict.fail(
            Claim::Logged,
            format!(
                "the leaf belongs to the log {}, but the checkpoint is of {origin}",
                leaf.origin
            ),
        );
        return None;
    }
    Some(leaf)
}

/// The decision that the leaf records, if any. Reports the decision.
fn decision_of<'a>(verdict: &mut Verification, leaf: &'a Leaf) -> Option<&'a DecisionLeaf> {
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

/// The event's name in the leaf.
fn name_of(event: &Event) -> String {
    let value = serde_json::to_value(event).unwrap_or_default();
    let name = value.get("event").and_then(Value::as_str);
    name.unwrap_or("an event").to_owned()
}
