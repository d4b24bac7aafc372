//! The results of a verification: the claims that are shown, that are not shown, and that fail.
//!
//! A failed claim stays failed: no later part of the input changes it. The other files of `super`
//! report to [`Verification`]; `cli::ledger` prints it.

use std::fmt;

use serde::Serialize;

use crate::domain::text::printable;

/// The kind of a verified file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum InputKind {
    /// A receipt without an answer around it.
    Receipt,
    /// The body of a 201 or of a token's 200, with its receipt.
    Issued,
    /// The body of a 201 for a task without a credential, with its receipt.
    Opened,
    /// A decision as the broker shows it, with its receipt.
    Shown,
    /// The body of a refusal, with its receipt.
    Refused,
    /// A C2SP tlog-proof that carries its leaf.
    TlogProof,
    /// A whole exported log.
    Log,
}

impl InputKind {
    fn describe(self) -> &'static str {
        match self {
            Self::Receipt => "a receipt",
            Self::Issued => "the answer to a request that was granted",
            Self::Opened => "the answer to a request that opened a task",
            Self::Shown => "a decision as the broker shows it",
            Self::Refused => "the answer to a request that was refused",
            Self::TlogProof => "a tlog-proof",
            Self::Log => "a whole log",
        }
    }
}

/// One of the three claims about a credential that are verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// Policy decided it, and the decision is this one.
    Decided,
    /// The log contains the decision.
    Logged,
    /// The log contained it before the credential was used.
    LoggedBeforeUse,
}

/// The state of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ClaimResult {
    /// The given material proves the claim.
    Holds,
    /// The given material does not prove the claim.
    NotShown,
    /// The given material contradicts the claim.
    Fails,
}

/// The state of a claim, with the reason.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Finding {
    pub(crate) verdict: ClaimResult,
    pub(crate) detail: String,
}

/// The result of a verification.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Verification {
    /// The kind of the file; `None` if this version does not know it.
    pub(super) kind: Option<InputKind>,
    /// The decision in the leaf, and whether the credential carries it.
    pub(super) decided: Finding,
    /// The leaf's index in the log, and the keys that signed the checkpoint.
    pub(super) logged: Finding,
    /// The time by which it was logged, and whose clock that is.
    pub(super) logged_before_use: Finding,
    /// Remarks, for example on parts that were not verified.
    pub(super) notes: Vec<String>,
    /// Requested claims that are not proven but not contradicted.
    pub(super) missing: Vec<String>,
    /// The contradictions that were found.
    pub(super) problems: Vec<String>,
}

impl Verification {
    pub(super) fn nothing() -> Self {
        let unknown = |why: &str| Finding {
            verdict: ClaimResult::NotShown,
            detail: format!("not shown{why}"),
        };
        Self {
            kind: None,
            decided: unknown(""),
            logged: unknown(""),
            logged_before_use: unknown(
                " (a receipt does not say when; a checkpoint witnessed or published before the use \
                 does)",
            ),
            notes: Vec::new(),
            missing: Vec::new(),
            problems: Vec::new(),
        }
    }

    /// Whether every requested claim is proven, and none contradicted.
    pub(crate) fn holds(&self) -> bool {
        self.problems.is_empty() && self.missing.is_empty() && self.kind.is_some()
    }

    fn finding(&mut self, claim: Claim) -> &mut Finding {
        match claim {
            Claim::Decided => &mut self.decided,
            Claim::Logged => &mut self.logged,
            Claim::LoggedBeforeUse => &mut self.logged_before_use,
        }
    }

    /// Marks a claim as proven, unless it is contradicted.
    pub(super) fn show(&mut self, claim: Claim, detail: String) {
        self.stand(claim, ClaimResult::Holds, detail);
    }

    /// Marks a claim as not proven, with the reason.
    pub(super) fn leave(&mut self, claim: Claim, why: &str) {
        self.stand(claim, ClaimResult::NotShown, format!("not shown: {why}"));
    }

    /// Marks a requested claim as not proven, though not contradicted. Keeps the other findings
    /// about it.
    pub(super) fn lack(&mut self, claim: Claim, why: &str) {
        let found = self.finding(claim).detail.clone();
        self.stand(
            claim,
            ClaimResult::NotShown,
            format!("not shown: {why}; found: {found}"),
        );
        self.missing.push(why.to_owned());
    }

    /// Sets the state of a claim. A contradiction, once found, is kept.
    fn stand(&mut self, claim: Claim, verdict: ClaimResult, detail: String) {
        let finding = self.finding(claim);
        if finding.verdict != ClaimResult::Fails {
            *finding = Finding { verdict, detail };
        }
    }

    /// Marks a claim as contradicted.
    pub(super) fn fail(&mut self, claim: Claim, problem: impl Into<String>) {
        let problem = problem.into();
        self.stand(claim, ClaimResult::Fails, problem.clone());
        self.problems.push(problem);
    }
}

impl fmt::Display for Verification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind.map(InputKind::describe);
        writeln!(f, "file: {}", kind.unwrap_or("unknown to this version"))?;
        for (name, finding) in [
            ("decided", &self.decided),
            ("logged", &self.logged),
            ("logged before use", &self.logged_before_use),
        ] {
            let verdict = match finding.verdict {
                ClaimResult::Fails => "DOES NOT HOLD: ",
                ClaimResult::Holds | ClaimResult::NotShown => "",
            };
            writeln!(f, "{name}: {verdict}{}", printable(&finding.detail))?;
        }
        for note in &self.notes {
            writeln!(f, "note: {}", printable(note))?;
        }
        for missing in &self.missing {
            writeln!(f, "NOT SHOWN: {}", printable(missing))?;
        }
        for problem in &self.problems {
            writeln!(f, "FAILED: {}", printable(problem))?;
        }
        f.write_str(match (self.holds(), self.problems.is_empty()) {
            (true, _) => "everything holds",
            (false, true) => "not everything is shown",
            (false, false) => "does not hold",
        })
    }
}
