//! The accepted evidence: the configuration of attestors and of registered workload keys.
//!
//! [`AttestorSpec`] is one attestor: [`OidcSpec`], [`SpiffeSpec`] or [`KeySpec`]. [`OidcWritten`]
//! is an `oidc` attestor as an operator writes it, with the name of its [`Preset`].
//! [`OidcWritten::resolve`] (`domain::presets`) completes it. [`ClaimSpec`] declares a claim and its
//! type.
//!
//! A complete specification has every required member. A missing one, or one that a preset refuses,
//! is a [`SpecRefusal`] with its key and the remedy. Further checks are not here: `attest::checks`
//! judges whether a configuration is safe, and `attest` verifies evidence by it. `config` reads the
//! specifications, and a generation contains them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use super::endpoint::EndpointName;
use super::workload::Reuse;

/// The type that a claim must have if policy reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClaimType {
    /// Any text, as a JSON string.
    String,
    /// A whole number of 64 bits.
    Long,
    /// A JSON boolean: true or false.
    Bool,
    /// A list of texts; order and repetition are ignored.
    Set,
}

impl ClaimType {
    /// The type's name in the configuration.
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

/// A claim of an attestor's tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent properties, each with its own line in the configuration"
)]
pub struct ClaimSpec {
    /// Its type. A token with another type is refused.
    #[serde(rename = "type")]
    pub kind: ClaimType,
    /// Its position in the token as a JSON pointer (RFC 6901), for example
    /// `/kubernetes.io/pod/uid`. `None`: a top-level member with the claim's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Whether it names the same thing permanently: an id, not a name that can be given away. Only
    /// such claims may be part of an identity or instance.
    #[serde(default)]
    pub immutable: bool,
    /// Whether a caller can choose its value (a branch, the name of an environment). A policy must
    /// not rely on it alone.
    #[serde(default)]
    pub caller_shaped: bool,
    /// Whether a token without it is accepted. Policies must test for it with `has`.
    #[serde(default)]
    pub optional: bool,
    /// Whether it is hidden from policy and used for identity or instance only.
    #[serde(default)]
    pub hidden: bool,
}

/// Claims and the values that a token must have before any other claim is read.
pub type RequiredClaims = BTreeMap<String, serde_json::Value>;

/// A configured attestor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
#[expect(
    clippy::large_enum_variant,
    reason = "there is a handful of them, read once and never moved about"
)]
pub enum AttestorSpec {
    /// Accepts OpenID Connect tokens of one issuer.
    Oidc(OidcSpec),
    /// Accepts registered workload keys.
    Key(KeySpec),
    /// Accepts JWT-SVIDs of one SPIFFE trust domain.
    Spiffe(SpiffeSpec),
}

impl AttestorSpec {
    /// Unique name.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Oidc(spec) => &spec.name,
            Self::Key(spec) => &spec.name,
            Self::Spiffe(spec) => &spec.name,
        }
    }

    /// The foundation of its identities: the issuer and the conditions on its tokens. Two attestors
    /// with the same name and foundation give the same identities to the same workloads.
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

    /// The audience of its tokens; `None` for registered keys.
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

/// An attestor of OpenID Connect tokens of one issuer. Complete: it contains the members that a
/// preset adds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "OidcWritten")]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct OidcSpec {
    /// Unique name; the first part of every identity.
    pub name: String,
    /// The exact `iss` of its tokens.
    pub issuer: String,
    /// The exact `aud`: a value that means this broker and nothing else.
    pub audience: String,
    /// Accepted JWS algorithms, for example `["RS256"]`.
    pub algorithms: Vec<String>,
    /// The exact `typ` header of tokens; `None` accepts `JWT` or no `typ`.
    pub typ: Option<String>,
    /// Claims and the exact values that they must have. At least one must pin an immutable id of an
    /// owner or tenant, unless `single_tenant` states that the issuer has one tenant.
    pub required: RequiredClaims,
    /// Whether the issuer serves this tenant alone (a company's own cluster or identity provider).
    pub single_tenant: bool,
    /// Claims and the texts of which each must have one.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub allowed: BTreeMap<String, BTreeSet<String>>,
    /// Pairs of claims: if a token has the second, it must equal the first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub equal: Vec<(String, String)>,
    /// Template of the identity after `<name>:`, for example
    /// `repo:{repository_id}:env:{environment}`.
    pub identity: String,
    /// Template of the instance, for example `{run_id}:{run_attempt}:{check_run_id}`. `None` if the
    /// claims do not distinguish runs.
    pub instance: Option<String>,
    /// The claims that identity, instance and policy may use.
    pub claims: BTreeMap<String, ClaimSpec>,
    pub reuse: Reuse,
    /// Permitted clock difference in seconds.
    pub leeway_seconds: u64,
    /// Maximum age by `iat`, in seconds.
    pub max_age_seconds: u64,
    /// How long the last valid key set is used while the issuer is unreachable, in seconds.
    pub max_stale_seconds: u64,
    /// The endpoint that serves the issuer's discovery document. Required if the issuer has no
    /// public https address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discovery: Option<EndpointName>,
    /// The endpoint that serves the issuer's keys, instead of discovery.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keys_from: Option<EndpointName>,
    /// The endpoint of the cluster's `TokenReview`, which is called for each token that passed all
    /// other checks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_review: Option<EndpointName>,
}

/// A provider of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// Jobs of GitHub Actions: of github.com, of an enterprise's own issuer or of a server.
    GithubActions,
    /// Jobs of GitLab CI/CD: of gitlab.com or a self-managed instance.
    Gitlab,
    /// Pods of one Kubernetes cluster, by their service accounts' projected tokens.
    Kubernetes,
    /// Jobs of a Buildkite organisation.
    Buildkite,
    /// Jobs of a `CircleCI` organisation.
    Circleci,
    /// Principals of an AWS account, by STS `GetWebIdentityToken`.
    Aws,
}

/// [`OidcSpec`] as written in a configuration. Members that a preset knows may be omitted.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OidcWritten {
    /// The provider of the tokens.
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

/// A member of a specification that is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{key}`: {problem}; {remedy}")]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct SpecRefusal {
    /// The key of the member.
    pub key: String,
    pub problem: String,
    pub remedy: String,
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

/// An attestor of JWT-SVIDs of one SPIFFE trust domain. They need no `iss`: the trust domain of
/// `sub` determines the key set. The identity is `<name>:<path>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpiffeSpec {
    /// Unique name; the first part of every identity.
    pub name: String,
    /// The exact trust domain, without `spiffe://`.
    pub trust_domain: String,
    /// The exact `aud`: a value that means this broker and nothing else.
    pub audience: String,
    /// The endpoint that serves the trust domain's bundle (the `https_web` profile of SPIFFE
    /// federation).
    pub bundle: EndpointName,
    /// How often one token may be used. An agent returns the same token until half its life has
    /// passed, so without a key binding a token serves one task.
    #[serde(default = "per_task")]
    pub reuse: Reuse,
    /// Permitted clock difference in seconds.
    #[serde(default = "default_leeway_seconds")]
    pub leeway_seconds: u64,
    /// Maximum age by `iat`, in seconds.
    #[serde(default = "default_max_age_seconds")]
    pub max_age_seconds: u64,
    /// How long the last valid bundle is used while its endpoint is unreachable, in seconds.
    #[serde(default = "default_max_stale_seconds")]
    pub max_stale_seconds: u64,
}

/// The claims of a JWT-SVID for policy: the two parts of its SPIFFE ID.
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

/// An attestor of registered workload keys, which a client assertion proves (RFC 7523bis).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeySpec {
    /// Unique name; the first part of every identity.
    pub name: String,
    /// Keys registered in the configuration. `taskpass workloads add` registers others.
    #[serde(default)]
    pub keys: Vec<WorkloadKey>,
}

/// A registered workload key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkloadKey {
    /// The workload's name. Its identity is `<attestor>:<workload>`.
    pub workload: String,
    /// The public key as a JWK: Ed25519 or P-256.
    pub jwk: serde_json::Value,
}
