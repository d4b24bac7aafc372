//! Network places by name: a generation names an endpoint, and each replica's own configuration says
//! where it is.
//!
//! A generation can be changed over the interface; `[endpoints.NAME]` cannot. So nothing that an
//! interface changes decides where the broker sends a secret, or which file it reads.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::limits::MAX_NAME_BYTES;

/// The name of an endpoint: 1 to 64 of a-z, 0-9, `-` and `_`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EndpointName(String);

/// Text that cannot name an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an endpoint's name is 1 to {MAX_NAME_BYTES} of a-z, 0-9, `-` and `_`")]
pub struct InvalidEndpointName;

impl EndpointName {
    /// The name's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for EndpointName {
    type Error = InvalidEndpointName;

    fn try_from(text: String) -> Result<Self, InvalidEndpointName> {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
        let good = (1..=MAX_NAME_BYTES).contains(&text.len()) && text.bytes().all(plain);
        good.then_some(Self(text)).ok_or(InvalidEndpointName)
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

/// What an endpoint may be used for. A generation cannot use one for anything else: the server of a
/// partner's keys must not receive the broker's token for AWS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndpointUse {
    /// Serves a key set: an issuer's JWKS or a trust domain's bundle.
    Keys,
    /// Serves an issuer's metadata (OpenID Connect Discovery), which says where its keys are.
    Discovery,
    /// Reviews tokens for a Kubernetes cluster.
    TokenReview,
    /// AWS STS, or a stand-in for it.
    Sts,
    /// AWS IAM, or a stand-in for it.
    Iam,
}

impl EndpointUse {
    /// The word in the configuration.
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

/// One use that a generation makes of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointReference<'g> {
    /// Where in the generation it stands, as a JSON pointer.
    pub pointer: String,
    /// The endpoint.
    pub name: &'g EndpointName,
    /// The use.
    pub used_for: EndpointUse,
}

/// SHA-256 of a replica's table of endpoints, written `sha256:<hex>`. Replicas that would ask the
/// same servers have the same one.
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
