//! A generation: every input of decisions other than the request, as one document with one digest.
//!
//! [`Generation`] is the document: policies, schema, attestors, resources, task types, limits and
//! retention. [`GenerationDigest`] is the SHA-256 of its bytes. Equal generations have equal bytes,
//! and the document is stored as a whole before it is activated. A replica decides by the stored
//! document, not by its local files.
//!
//! Reading refuses unknown members (serde), and a text that is no digest ([`InvalidDigest`]). No
//! other check is here: `policy::generation` checks and compiles a generation, and
//! `endpoints::table` checks the endpoints that it names. `broker::generations` loads the active
//! one.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::catalog::{Resource, TaskType};
use super::endpoint::{EndpointReference, EndpointUse};
use super::kind::aws::AwsRole;
use super::trust::AttestorSpec;

/// SHA-256 of a generation's document, written `sha256:<hex>`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GenerationDigest([u8; 32]);

/// A text that is not `sha256:` and 64 hex digits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a generation is `sha256:` and 64 hex digits")]
pub struct InvalidDigest;

impl GenerationDigest {
    /// Creates a digest from the hash.
    #[must_use]
    pub fn new(hash: [u8; 32]) -> Self {
        Self(hash)
    }

    /// The hash.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for GenerationDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for GenerationDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for GenerationDigest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let hex = text.strip_prefix("sha256:").ok_or(InvalidDigest)?;
        if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(InvalidDigest);
        }
        let mut hash = [0_u8; 32];
        for (index, byte) in hash.iter_mut().enumerate() {
            let pair = hex.get(index * 2..index * 2 + 2).ok_or(InvalidDigest)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| InvalidDigest)?;
        }
        Ok(Self(hash))
    }
}

impl TryFrom<String> for GenerationDigest {
    type Error = InvalidDigest;

    fn try_from(text: String) -> Result<Self, InvalidDigest> {
        text.parse()
    }
}

impl From<GenerationDigest> for String {
    fn from(digest: GenerationDigest) -> Self {
        digest.to_string()
    }
}

/// One policy file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct PolicyFile {
    /// Its name in messages, for example `reports.cedar`.
    pub name: String,
    pub text: String,
}

/// Limits that affect decisions. All other limits only protect the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecisionLimits {
    /// Maximum number of recorded denials of one identity in each window. Further requests receive
    /// 429, and one leaf counts them.
    pub denials_per_identity: u32,
    /// Maximum number of recorded denials in each window for all identities of one attestor
    /// together.
    pub denials_per_attestor: u32,
    /// Length of the window, in seconds.
    pub denial_window_seconds: u64,
}

impl Default for DecisionLimits {
    fn default() -> Self {
        Self {
            denials_per_identity: 60,
            denials_per_attestor: 6_000,
            denial_window_seconds: 60,
        }
    }
}

/// Retention of ended records, in days. Hashes and proofs are kept for ever.
///
/// It affects no decision. It is part of the generation so that changes are recorded and all
/// replicas use the same values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    /// The bytes of leaves.
    pub bodies_days: u32,
    /// The openings of commitments: purposes, inputs, the policies of a denial.
    pub openings_days: u32,
    /// Ended tasks and sessions.
    pub sessions_days: u32,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            bodies_days: 400,
            openings_days: 90,
            sessions_days: 30,
        }
    }
}

/// A generation's document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct Generation {
    /// Version of this format: [`Self::FORMAT`].
    pub format: u32,
    /// The policy engine and its version. Another engine can interpret the same text differently.
    pub engine: String,
    /// Policy files, in order.
    pub policies: Vec<PolicyFile>,
    /// The Cedar schema of the policies, generated from the members below.
    pub schema: String,
    /// Attestors: which evidence is accepted, and how it maps to identity and claims.
    pub attestors: Vec<AttestorSpec>,
    pub resources: Vec<Resource>,
    pub task_types: Vec<TaskType>,
    #[serde(default)]
    pub limits: DecisionLimits,
    pub retention: Retention,
}

impl Generation {
    /// The present version of the format.
    pub const FORMAT: u32 = 1;

    /// Every registered AWS role, with the JSON pointer of its mode.
    pub fn roles(&self) -> impl Iterator<Item = (String, &AwsRole)> {
        let resources = self.resources.iter().enumerate();
        resources.filter_map(|(at, resource)| {
            let role = resource.kind.aws_role()?;
            Some((format!("/resources/{at}/aws/mode"), role))
        })
    }

    /// Every endpoint that the generation names, with its purpose. A replica without one of them
    /// cannot use this generation.
    #[must_use]
    pub fn endpoints(&self) -> Vec<EndpointReference<'_>> {
        let attestors = self.attestors.iter().enumerate().flat_map(|(at, spec)| {
            let named = match spec {
                AttestorSpec::Oidc(oidc) => vec![
                    ("discovery", oidc.discovery.as_ref(), EndpointUse::Discovery),
                    ("keys_from", oidc.keys_from.as_ref(), EndpointUse::Keys),
                    (
                        "token_review",
                        oidc.token_review.as_ref(),
                        EndpointUse::TokenReview,
                    ),
                ],
                AttestorSpec::Spiffe(spiffe) => {
                    vec![("bundle", Some(&spiffe.bundle), EndpointUse::Keys)]
                }
                AttestorSpec::Key(_) => Vec::new(),
            };
            named.into_iter().filter_map(move |(key, name, used_for)| {
                Some(EndpointReference {
                    pointer: format!("/attestors/{at}/{key}"),
                    name: name?,
                    used_for,
                })
            })
        });
        let resources = self.resources.iter().enumerate();
        let resources = resources.flat_map(|(at, resource)| {
            let named = resource.kind.endpoints().into_iter();
            named.map(move |(member, name, used_for)| EndpointReference {
                pointer: format!("/resources/{at}/{member}"),
                name,
                used_for,
            })
        });
        attestors.chain(resources).collect()
    }

    /// The document's bytes, which are stored and hashed. The order of struct members and
    /// `BTreeMap`s makes them equal for equal generations.
    pub fn to_bytes(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_survives_its_text() {
        let digest = GenerationDigest::new([0xab; 32]);
        assert_eq!(digest.to_string().parse(), Ok(digest));
        for bad in [
            "",
            "sha256:",
            "sha256:zz",
            &format!("md5:{}", "a".repeat(64)),
            &format!("sha256:{}", "a".repeat(63)),
        ] {
            assert_eq!(bad.parse::<GenerationDigest>(), Err(InvalidDigest), "{bad}");
        }
    }
}
