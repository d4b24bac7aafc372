//! Why an audit ended without a finding.

/// The text of each variant is a sentence for the user.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AuditError {
    /// An argument or a file does not fit the audit.
    #[error("{0}")]
    Input(String),
    /// The material is read completely, and does not hold.
    #[error("{0}")]
    Disproven(String),
    /// Something could not be read, reached or established.
    #[error("{0}")]
    Unavailable(String),
}

impl AuditError {
    /// A failure to establish a fact, with its cause.
    pub(crate) fn unavailable(error: impl std::fmt::Display) -> Self {
        Self::Unavailable(error.to_string())
    }
}
