//! The result of a suite, and its text for people.
//!
//! A [`Report`] passes if every case passed and the suite itself has no problem. Policies that
//! determine no case are named for information only.

use std::fmt;

use super::super::problem::PolicyProblem;

/// The result of a suite.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The result of each case, in order.
    pub cases: Vec<CaseReport>,
    /// Problems of the suite itself.
    pub problems: Vec<PolicyProblem>,
    /// Policies that determined no case's outcome, for information.
    pub untested: Vec<String>,
}

/// The result of one case.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct CaseReport {
    pub file: String,
    pub name: String,
    /// The differences from the expectation; empty if the case passed.
    pub failures: Vec<String>,
}

impl Report {
    /// Whether every case passed and the suite has no problem.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.problems.is_empty() && self.cases.iter().all(|case| case.failures.is_empty())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for case in &self.cases {
            let mark = if case.failures.is_empty() {
                "ok  "
            } else {
                "FAIL"
            };
            writeln!(f, "{mark} {}: {}", case.file, case.name)?;
            for failure in &case.failures {
                writeln!(f, "       {failure}")?;
            }
        }
        for problem in &self.problems {
            writeln!(f, "FAIL {problem}")?;
        }
        if !self.untested.is_empty() {
            writeln!(
                f,
                "note: these policies determine no case: {}",
                self.untested.join(", ")
            )?;
        }
        let failed = self.cases.iter().filter(|c| !c.failures.is_empty()).count();
        let word = if self.passed() { "passed" } else { "failed" };
        write!(f, "{word}: {} cases, {failed} failed", self.cases.len())
    }
}
