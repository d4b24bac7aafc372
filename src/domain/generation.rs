//! A generation: every input of decisions other than the request, as one document with one digest.
//!
//! [`Generation`] is the document: policies, schema, attestors, resources, task types, limits and
//! retention. Equal generations have equal bytes, of which [`super::generation_digest`] holds the
//! hash, and the document is stored as a whole before it is activated. A replica decides by the
//! stored document, not by its local files.
//!
//! Reading refuses unknown members (serde). No other check is here: `policy::generation` checks and
//! compiles a generation, and `endpoints::table` checks the endpoints that it names.
//! `broker::generations` loads the active one.

use serde::{Deserialize, Serialize};

use super::catalog::{Resource, TaskType};
use super::endpoint::{EndpointReference, EndpointUse};
use super::kind::aws::AwsRole;
use super::trust::AttestorSpec;

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
