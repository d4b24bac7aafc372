//! Names of servers that the broker calls: a generation names an endpoint, and each replica's
//! configuration defines its address.
//!
//! [`EndpointName`] is the name, [`EndpointUse`] the purpose for which a server may be called, and
//! [`EndpointReference`] one use by a generation. The API can change a generation but not
//! `[endpoints.NAME]`. So no change through the API can redirect the broker's secrets or select a
//! file for the broker to read.
//!
//! A text that is not a name is refused with [`InvalidEndpointName`]. This file does not know which
//! names exist: `endpoints::table` holds the replica's servers, and refuses a reference to an
//! endpoint that is missing or has another purpose.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::limits::MAX_NAME_BYTES;
use super::name::is_name;

/// The name of an endpoint: 1 to 64 of a-z, 0-9, `-` and `_`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EndpointName(String);

/// A text that is not a valid endpoint name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an endpoint's name is 1 to {MAX_NAME_BYTES} of a-z, 0-9, `-` and `_`")]
pub struct InvalidEndpointName;

impl EndpointName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for EndpointName {
    type Error = InvalidEndpointName;

    fn try_from(text: String) -> Result<Self, InvalidEndpointName> {
        is_name(&text)
            .then_some(Self(text))
            .ok_or(InvalidEndpointName)
    }
}

impl From<EndpointName> for String {
    fn from(name: EndpointName) -> Self {
        name.0
    }
}

impl fmt::Display for EndpointName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The purpose of an endpoint. A generation can use an endpoint for its configured purposes only:
/// the server of a partner's keys must not receive the broker's token for AWS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndpointUse {
    /// Serves a key set: an issuer's JWKS or a trust domain's bundle.
    Keys,
    /// Serves an issuer's metadata (OpenID Connect Discovery), which names the location of its
    /// keys.
    Discovery,
    /// Reviews tokens for a Kubernetes cluster.
    TokenReview,
    /// AWS STS or a substitute.
    Sts,
    /// AWS IAM or a substitute.
    Iam,
}

impl EndpointUse {
    /// The value in the configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Keys => "keys",
            Self::Discovery => "discovery",
            Self::TokenReview => "token_review",
            Self::Sts => "sts",
            Self::Iam => "iam",
        }
    }
}

/// A use of an endpoint by a generation.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct EndpointReference<'g> {
    /// JSON pointer to the name in the generation.
    pub pointer: String,
    pub name: &'g EndpointName,
    pub used_for: EndpointUse,
}

/// SHA-256 of a replica's table of endpoints, written `sha256:<hex>`. Equal digests mean that
/// replicas call the same servers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EndpointsDigest(pub String);

impl fmt::Display for EndpointsDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_short_and_plain() {
        for good in ["a", "cluster-1", "spire_eu", &"a".repeat(MAX_NAME_BYTES)] {
            assert!(EndpointName::try_from(good.to_owned()).is_ok(), "{good}");
        }
        for bad in [
            "",
            "A",
            "a.b",
            "a/b",
            "https://x",
            "a b",
            &"a".repeat(MAX_NAME_BYTES + 1),
        ] {
            assert!(EndpointName::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }
}
