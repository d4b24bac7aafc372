//! The verdicts: what was shown, what was not, and what does not hold.

use std::fmt;

use serde::Serialize;

use crate::cli::output::printable;

/// What a file turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::cli) enum Kind {
    /// A receipt.
    Receipt,
    /// The body of a 201 or of a token's 200, with its receipt.
    Issued,
    /// The body of a 201 for a task alone, with its receipt.
    Opened,
    /// A decision as it is shown, with its receipt.
    Shown,
    /// The body of a refusal, with its receipt.
    Refused,
    /// A C2SP tlog-proof that carries its leaf.
    TlogProof,
    /// A whole exported log.
    Log,
}

impl Kind {
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

/// Which of the three things that could be asked of a credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// That policy decided it, and decided this.
    Decided,
    /// That the log has the decision.
    Logged,
    /// That the log had it before the credential was used.
    LoggedBeforeUse,
}

/// How a claim stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::cli) enum Standing {
    /// It is shown.
    Holds,
    /// What was given shows nothing of it.
    NotShown,
    /// What was given contradicts it.
    Fails,
}

/// A claim's standing, and why.
#[derive(Clone, Debug, Serialize)]
pub(in crate::cli) struct Finding {
    pub(in crate::cli) verdict: Standing,
    pub(in crate::cli) detail: String,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub(in crate::cli) struct Verdict {
    /// What the file is; nothing when it is none of what we know.
    pub(super) kind: Option<Kind>,
    /// What the leaf decided, and whether the credential carries it.
    pub(super) decided: Finding,
    /// Where the log has it, and on whose word.
    pub(super) logged: Finding,
    /// By when it was logged, and by whose clock.
    pub(super) logged_before_use: Finding,
    /// What was not looked at.
    pub(super) notes: Vec<String>,
    /// What was asked and is not shown, though nothing contradicts it.
    pub(super) missing: Vec<String>,
    /// What does not hold.
    pub(super) problems: Vec<String>,
}

impl Verdict {
    pub(super) fn nothing() -> Self {
        let unknown = |why: &str| Finding {
            verdict: Standing::NotShown,
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

    /// Whether everything that was asked is shown, and nothing contradicts it.
    pub(in crate::cli) fn holds(&self) -> bool {
        self.problems.is_empty() && self.missing.is_empty() && self.kind.is_some()
    }

    fn finding(&mut self, claim: Claim) -> &mut Finding {
        match claim {
            Claim::Decided => &mut self.decided,
            Claim::Logged => &mut self.logged,
            Claim::LoggedBeforeUse => &mut self.logged_before_use,
        }
    }

    /// A claim is shown, unless something contradicts it.
    pub(super) fn show(&mut self, claim: Claim, detail: String) {
        self.stand(claim, Standing::Holds, detail);
    }

    /// A claim is not shown, and why not.
    pub(super) fn leave(&mut self, claim: Claim, why: &str) {
        self.stand(claim, Standing::NotShown, format!("not shown: {why}"));
    }

    /// A claim was to be shown and is not, though nothing contradicts it. What else was found of it
    /// is told.
    pub(super) fn lack(&mut self, claim: Claim, why: &str) {
        let found = self.finding(claim).detail.clone();
        self.stand(
            claim,
            Standing::NotShown,
            format!("not shown: {why}; found: {found}"),
        );
        self.missing.push(why.to_owned());
    }

    /// What contradicts a claim is the first thing to know of it.
    fn stand(&mut self, claim: Claim, verdict: Standing, detail: String) {
        let finding = self.finding(claim);
        if finding.verdict != Standing::Fails {
            *finding = Finding { verdict, detail };
        }
    }

    /// Something contradicts a claim.
    pub(super) fn fail(&mut self, claim: Claim, problem: impl Into<String>) {
        let problem = problem.into();
        self.stand(claim, Standing::Fails, problem.clone());
        self.problems.push(problem);
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind.map(Kind::describe);
        writeln!(
            f,
            "file: {}",
            kind.unwrap_or("nothing that this command knows")
        )?;
        for (name, finding) in [
            ("decided", &self.decided),
            ("logged", &self.logged),
            ("logged before use", &self.logged_before_use),
        ] {
            let verdict = match finding.verdict {
                Standing::Fails => "DOES NOT HOLD: ",
                Standing::Holds | Standing::NotShown => "",
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
            (true, _) => "all of it holds",
            (false, true) => "not all of it is shown",
            (false, false) => "it does not hold",
        })
    }
}
