//! The parts of the broker that a request can find unusable. The request then releases nothing.
//!
//! [`FailClosed`] says which part failed, and why. `super::error` has a function for each part. The
//! text is for the operator: `http::problem` and `http::oauth::error` log it with the part, and tell
//! the caller neither.

use std::fmt;

/// The part that failed, with the reason for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FailClosed {
    /// The database, or a row in it that the broker did not write.
    Store(String),
    /// The ledger: an entry was not recorded, or the log cannot be read or proven now.
    Ledger(String),
    /// A signing or sealing key.
    Keys(String),
    /// The active generation: this replica cannot load it or evaluate its policies.
    Policy(String),
    /// A minter, or the back end that it calls.
    Minter(String),
    /// The machine: its clock or its source of randomness.
    Host(String),
    /// A state that the code excludes, or work that ended without a result.
    Bug(String),
}

impl FailClosed {
    /// The name of the part, for logs.
    #[must_use]
    pub const fn part(&self) -> &'static str {
        match self {
            Self::Store(_) => "store",
            Self::Ledger(_) => "ledger",
            Self::Keys(_) => "keys",
            Self::Policy(_) => "policy",
            Self::Minter(_) => "minter",
            Self::Host(_) => "host",
            Self::Bug(_) => "bug",
        }
    }
}

impl fmt::Display for FailClosed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store(reason)
            | Self::Ledger(reason)
            | Self::Keys(reason)
            | Self::Policy(reason)
            | Self::Minter(reason)
            | Self::Host(reason)
            | Self::Bug(reason) => f.write_str(reason),
        }
    }
}
