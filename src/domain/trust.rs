//! Which evidence is believed: the configuration of attestors and of registered workload keys.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use super::endpoint::EndpointName;
use super::presets::{self, Preset};
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

impl ClaimType {
    /// Its name in the configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::String => "string",
            Self::Long => "long",
            Self::Bool => "bool",
            Self::Set => "set",
        }
    }
}

/// One claim of an attestor's tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent properties, each with its own line in the configuration"
)]
pub struct ClaimSpec {
    /// Its type; a token in which it has another is refused.
    #[serde(rename = "type")]
    pub kind: ClaimType,
    /// Where it stands in the token, as a JSON pointer (RFC 6901), where that is not at the top and
    /// under its own name: `/kubernetes.io/pod/uid`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
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
#[expect(
    clippy::large_enum_variant,
    reason = "there is a handful of them, read once and never moved about"
)]
pub enum AttestorSpec {
    /// OpenID Connect tokens of one issuer.
    Oidc(OidcSpec),
    /// Registered workload keys.
    Key(KeySpec),
    /// JWT-SVIDs of one SPIFFE trust domain.
    Spiffe(SpiffeSpec),
}

impl AttestorSpec {
    /// Its name, unique.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Oidc(spec) => &spec.name,
            Self::Key(spec) => &spec.name,
            Self::Spiffe(spec) => &spec.name,
        }
    }

    /// What its identities rest on: whose tokens are believed, and which of them. Two attestors of one
    /// name that agree in it give the same identities to the same workloads.
    #[must_use]
    pub fn foundation(&self) -> serde_json::Value {
        match self {
            Self::Oidc(spec) => serde_json::json!({
                "kind": "oidc",
                "issuer": spec.issuer,
                "required": spec.required,
                "allowed": spec.allowed,
                "equal": spec.equal,
                "identity": spec.identity,
            }),
            Self::Key(_) => serde_json::json!({ "kind": "key" }),
            Self::Spiffe(spec) => serde_json::json!({
                "kind": "spiffe",
                "trust_domain": spec.trust_domain,
            }),
        }
    }

    /// The audience of its tokens, where the configuration names one.
    #[must_use]
    pub fn audience(&self) -> Option<&str> {
        match self {
            Self::Oidc(spec) => Some(&spec.audience),
            Self::Spiffe(spec) => Some(&spec.audience),
            Self::Key(_) => None,
        }
    }

    /// The claims that policy may read, with their types.
    pub fn visible_claims(&self) -> impl Iterator<Item = (&str, &ClaimSpec)> {
        let claims = match self {
            Self::Oidc(spec) => Some(&spec.claims),
            Self::Spiffe(_) => Some(&*SPIFFE_CLAIMS),
            Self::Key(_) => None,
        };
        claims
            .into_iter()
            .flatten()
            .filter(|(_, spec)| !spec.hidden)
            .map(|(name, spec)| (name.as_str(), spec))
    }
}

/// OpenID Connect tokens of one issuer. It says everything that decides: what a preset fills in
/// stands here as if it had been written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "OidcWritten")]
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
    pub typ: Option<String>,
    /// Claims that must have exactly these values. At least one must pin an immutable id of an
    /// owner or tenant, unless `single_tenant` says that the whole issuer is one tenant.
    pub required: RequiredClaims,
    /// The issuer serves this tenant alone (a company's own cluster or identity provider).
    pub single_tenant: bool,
    /// Claims that must have one of these texts.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub allowed: BTreeMap<String, BTreeSet<String>>,
    /// Pairs of claims: where a token has the second, it must equal the first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub equal: Vec<(String, String)>,
    /// The identity, after `<name>:`, for example `repo:{repository_id}:env:{environment}`.
    pub identity: String,
    /// The per-run part, for example `{run_id}:{run_attempt}:{check_run_id}`.
    pub instance: Option<String>,
    /// The claims that identity, instance and policy may use.
    pub claims: BTreeMap<String, ClaimSpec>,
    /// How often one token may be used.
    pub reuse: Reuse,
    /// Allowed difference of clocks.
    pub leeway_seconds: u64,
    /// The greatest age by `iat`.
    pub max_age_seconds: u64,
    /// How long the last good key set may serve while the issuer cannot be reached.
    pub max_stale_seconds: u64,
    /// The endpoint that serves the issuer's discovery. Needed where the issuer has no public https
    /// address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discovery: Option<EndpointName>,
    /// The endpoint that serves the issuer's keys, in place of discovery.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keys_from: Option<EndpointName>,
    /// The endpoint of the cluster's `TokenReview`, asked about each token that was otherwise
    /// believed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_review: Option<EndpointName>,
}

/// [`OidcSpec`] as a person writes it: what a preset knows may be left out.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OidcWritten {
    /// Whose tokens these are.
    #[serde(default)]
    pub(super) preset: Option<Preset>,
    pub(super) name: String,
    #[serde(default)]
    pub(super) issuer: Option<String>,
    #[serde(default)]
    pub(super) audience: Option<String>,
    #[serde(default)]
    pub(super) algorithms: Option<Vec<String>>,
    #[serde(default)]
    pub(super) typ: Option<String>,
    #[serde(default)]
    pub(super) required: RequiredClaims,
    #[serde(default)]
    pub(super) single_tenant: bool,
    #[serde(default)]
    pub(super) allowed: BTreeMap<String, BTreeSet<String>>,
    #[serde(default)]
    pub(super) equal: Vec<(String, String)>,
    #[serde(default)]
    pub(super) identity: Option<String>,
    #[serde(default)]
    pub(super) instance: Option<String>,
    #[serde(default)]
    pub(super) claims: BTreeMap<String, ClaimSpec>,
    #[serde(default)]
    pub(super) reuse: Option<Reuse>,
    #[serde(default = "default_leeway_seconds")]
    pub(super) leeway_seconds: u64,
    #[serde(default = "default_max_age_seconds")]
    pub(super) max_age_seconds: u64,
    #[serde(default = "default_max_stale_seconds")]
    pub(super) max_stale_seconds: u64,
    #[serde(default)]
    pub(super) discovery: Option<EndpointName>,
    #[serde(default)]
    pub(super) keys_from: Option<EndpointName>,
    #[serde(default)]
    pub(super) token_review: Option<EndpointName>,
}

/// What stands in a specification and cannot stay there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{key}`: {problem}; {remedy}")]
pub struct SpecRefusal {
    /// The key.
    pub key: String,
    /// What is wrong.
    pub problem: String,
    /// What would be right.
    pub remedy: String,
}

impl OidcWritten {
    /// The whole specification: with what its preset fills in, or as it is written.
    pub fn resolve(mut self) -> Result<OidcSpec, SpecRefusal> {
        if let Some(preset) = self.preset.take() {
            presets::fill_in(preset, &mut self)?;
        }
        let missing = |key: &'static str| SpecRefusal {
            key: String::new(),
            problem: format!("missing field `{key}`"),
            remedy: "add it; taskpass.example.toml describes every key".to_owned(),
        };
        Ok(OidcSpec {
            name: self.name,
            issuer: self.issuer.ok_or_else(|| missing("issuer"))?,
            audience: self.audience.ok_or_else(|| missing("audience"))?,
            algorithms: self.algorithms.ok_or_else(|| missing("algorithms"))?,
            typ: self.typ,
            required: self.required,
            single_tenant: self.single_tenant,
            allowed: self.allowed,
            equal: self.equal,
            identity: self.identity.ok_or_else(|| missing("identity"))?,
            instance: self.instance,
            claims: self.claims,
            reuse: self.reuse.unwrap_or_default(),
            leeway_seconds: self.leeway_seconds,
            max_age_seconds: self.max_age_seconds,
            max_stale_seconds: self.max_stale_seconds,
            discovery: self.discovery,
            keys_from: self.keys_from,
            token_review: self.token_review,
        })
    }
}

impl TryFrom<OidcWritten> for OidcSpec {
    type Error = SpecRefusal;

    fn try_from(written: OidcWritten) -> Result<Self, SpecRefusal> {
        written.resolve()
    }
}

fn per_task() -> Reuse {
    Reuse::PerTask
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

/// JWT-SVIDs of one SPIFFE trust domain. They need no `iss`: whose key it must be follows from the
/// trust domain of `sub` alone. The identity is `<name>:<path>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpiffeSpec {
    /// Its name; the first part of every identity it yields.
    pub name: String,
    /// The exact trust domain, without `spiffe://`.
    pub trust_domain: String,
    /// The exact `aud`: a value that means this broker and nothing else.
    pub audience: String,
    /// The endpoint that serves the trust domain's bundle (the `https_web` profile of SPIFFE
    /// federation).
    pub bundle: EndpointName,
    /// How often one token may be used. An agent hands out the same one until half its life has
    /// passed, so it serves one task unless it is bound to a key.
    #[serde(default = "per_task")]
    pub reuse: Reuse,
    /// Allowed difference of clocks.
    #[serde(default = "default_leeway_seconds")]
    pub leeway_seconds: u64,
    /// The greatest age by `iat`.
    #[serde(default = "default_max_age_seconds")]
    pub max_age_seconds: u64,
    /// How long the last good bundle may serve while it cannot be fetched.
    #[serde(default = "default_max_stale_seconds")]
    pub max_stale_seconds: u64,
}

/// What policy sees of a JWT-SVID: the two parts of its SPIFFE ID.
static SPIFFE_CLAIMS: LazyLock<BTreeMap<String, ClaimSpec>> = LazyLock::new(|| {
    let part = ClaimSpec {
        kind: ClaimType::String,
        from: None,
        immutable: true,
        caller_shaped: false,
        optional: false,
        hidden: false,
    };
    ["path", "trust_domain"]
        .map(|name| (name.to_owned(), part.clone()))
        .into()
});

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
