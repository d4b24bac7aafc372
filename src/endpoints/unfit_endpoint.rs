//! The error for a setting that a generation needs and this replica's configuration lacks.
//!
//! [`UnfitEndpoint`] names an endpoint, or a role that needs the AWS credentials of the host. The
//! rule: each text names the entry and the remedy, and contains no URL, path or token.
//!
//! Nothing fails here. [`super::table`] and [`super::own_credentials`] return the error;
//! `broker::check` and `attest::checks` report it, and `mint` refuses with it.

use crate::domain::endpoint::{EndpointName, EndpointUse};

/// A setting that a generation needs and this replica's configuration lacks: an endpoint, or the
/// use of the host's AWS credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the other names say it all")]
pub enum UnfitEndpoint {
    /// The configuration has no such entry.
    Unknown {
        name: EndpointName,
        /// The use by the generation.
        used_for: EndpointUse,
    },
    /// The entry is for other uses.
    OtherUse {
        name: EndpointName,
        /// The use by the generation.
        used_for: EndpointUse,
    },
    /// The role needs the AWS credentials of the replica's host, and its configuration does not
    /// permit them.
    OwnCredentials {
        /// ARN of the role.
        role_arn: String,
    },
}

impl UnfitEndpoint {
    /// The problem as text.
    #[must_use]
    pub fn problem(&self) -> String {
        match self {
            Self::Unknown { name, .. } => format!("this replica has no endpoint `{name}`"),
            Self::OtherUse { name, used_for } => {
                let used_for = used_for.as_str();
                format!("this replica's endpoint `{name}` is not for `{used_for}`")
            }
            Self::OwnCredentials { role_arn } => format!(
                "this replica does not assume `{role_arn}` with the AWS credentials of its host"
            ),
        }
    }

    /// The remedy as text.
    #[must_use]
    pub fn remedy(&self) -> String {
        match self {
            Self::Unknown { name, used_for } => format!(
                "add [endpoints.{name}] with use = [\"{}\"] to the replica's configuration",
                used_for.as_str()
            ),
            Self::OtherUse { name, used_for } => format!(
                "add \"{}\" to `use` in [endpoints.{name}] of the replica's configuration, or name \
                 another",
                used_for.as_str()
            ),
            Self::OwnCredentials { .. } => {
                "add the role to `role_arns` in [aws.own_credentials] of \
                 the replica's configuration, or register it with mode = \"web_identity\""
                    .to_owned()
            }
        }
    }
}

impl std::fmt::Display for UnfitEndpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}; {}", self.problem(), self.remedy())
    }
}

impl std::error::Error for UnfitEndpoint {}
