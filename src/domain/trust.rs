//! Which evidence is believed: the configuration of attestors and of registered workload keys.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::workload::Reuse;

/// The type that a claim must have for policy to see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClaimType {
    /// Text.
    String,
    /// A whole number.
    Long,
    /// A truth value.
    Bool,
    /// A list of texts; order and repetition are dropped.
    Set,
}

/// One claim of an attestor's tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent properties, each with its own line in the configuration"
)]
pub struct ClaimSpec {
    /// Its type; a token in which it has another is refused.
    #[serde(rename = "type")]
    pub kind: ClaimType,
    /// It names the same thing for ever: an id, not a name that can be given away. Only such
    /// claims may stand in an identity or instance.
    #[serde(default)]
    pub immutable: bool,
    /// A caller can shape it (a branch, an environment's name): policy may not rest on it alone.
    #[serde(default)]
    pub caller_shaped: bool,
    /// A token without it is still good; policy must ask `has` first.
    #[serde(default)]
    pub optional: bool,
    /// Kept from policy: used for identity or instance only.
    #[serde(default)]
    pub hidden: bool,
}

/// Equality that a token must show before anything else is read from it.
pub type RequiredClaims = BTreeMap<String, serde_json::Value>;

/// An attestor, as configured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum AttestorSpec {
    /// OpenID Connect tokens of one issuer.
    Oidc(OidcSpec),
    /// Registered workload keys.
    Key(KeySpec),
}

impl AttestorSpec {
    /// Its name, unique.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Oidc(spec) => &spec.name,
            Self::Key(spec) => &spec.name,
        }
    }

    /// The claims that policy may read, with their types.
    pub fn visible_claims(&self) -> impl Iterator<Item = (&str, &ClaimSpec)> {
        let claims = match self {
            Self::Oidc(spec) => Some(&spec.claims),
            Self::Key(_) => None,
        };
        claims
            .into_iter()
            .flatten()
            .filter(|(_, spec)| !spec.hidden)
            .map(|(name, spec)| (name.as_str(), spec))
    }
}

/// OpenID Connect tokens of one issuer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OidcSpec {
    /// Its name; the first part of every identity it yields.
    pub name: String,
    /// The exact `iss`.
    pub issuer: String,
    /// The exact `aud`: a value that means this broker and nothing else.
    pub audience: String,
    /// JWS algorithms that are believed, for example `["RS256"]`.
    pub algorithms: Vec<String>,
    /// The exact `typ` header that a token must have; left out, `JWT` or none at all.
    #[serde(default)]
    pub typ: Option<String>,
    /// Claims that must have exactly these values. At least one must pin an immutable id of an
    /// owner or tenant, unless `single_tenant` says that the whole issuer is one tenant.
    #[serde(default)]
    pub required: RequiredClaims,
    /// The issuer serves this tenant alone (a company's own cluster or identity provider).
    #[serde(default)]
    pub single_tenant: bool,
    /// The identity, after `<name>:`, for example `repo:{repository_id}:env:{environment}`.
    pub identity: String,
    /// The per-run part, for example `{run_id}:{run_attempt}:{check_run_id}`.
    #[serde(default)]
    pub instance: Option<String>,
    /// The claims that identity, instance and policy may use.
    #[serde(default)]
    pub claims: BTreeMap<String, ClaimSpec>,
    /// How often one token may be used.
    #[serde(default)]
    pub reuse: Reuse,
    /// Allowed difference of clocks.
    #[serde(default = "default_leeway_seconds")]
    pub leeway_seconds: u64,
    /// The greatest age by `iat`.
    #[serde(default = "default_max_age_seconds")]
    pub max_age_seconds: u64,
    /// How long the last good key set may serve while the issuer cannot be reached.
    #[serde(default = "default_max_stale_seconds")]
    pub max_stale_seconds: u64,
}

fn default_leeway_seconds() -> u64 {
    10
}

fn default_max_age_seconds() -> u64 {
    600
}

fn default_max_stale_seconds() -> u64 {
    3_600
}

/// Registered workload keys, proven by a client assertion (RFC 7523bis).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeySpec {
    /// Its name; the first part of every identity it yields.
    pub name: String,
    /// Keys registered in the configuration; others are registered with `taskpass workloads add`.
    #[serde(default)]
    pub keys: Vec<WorkloadKey>,
}

/// One registered key of a workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkloadKey {
    /// The workload's name: its identity is `<attestor>:<workload>`.
    pub workload: String,
    /// The public key as a JWK: Ed25519 or P-256.
    pub jwk: serde_json::Value,
}
