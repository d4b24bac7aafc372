//! Checks a configuration of attestors before any evidence is accepted.
//!
//! Each check prevents a known mistake: an audience that a provider gives to all its customers, an
//! issuer that signs for every tenant, a name that can be given away. [`check`] checks every
//! attestor by itself and against the others.
//!
//! The first problem is returned as an [`AttestorConfigError`] with attestor, key, problem and
//! remedy; the configuration or generation then does not load. Passing proves nothing about a
//! token: the attestors check each one. `Attestors::new` and `config` call this file. Presets are
//! applied before (`domain::presets`), and their result is checked like any other.

mod conditions;

use std::collections::BTreeSet;

use serde_json::Value;
use url::Url;
use uuid::Uuid;

use self::conditions::check_conditions;
use super::spiffe_id::is_trust_domain;
use super::template::Template;
use crate::domain::limits::MAX_EVIDENCE_SECONDS;
use crate::domain::trust::{AttestorSpec, ClaimType, OidcSpec, SpiffeSpec};
use crate::endpoints::UnfitEndpoint;
use crate::endpoints::address::{check_url, is_loopback_host};

/// The algorithms that an attestor may accept. All are asymmetric.
pub(super) const ALGORITHMS: [&str; 9] = [
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA",
];

/// Types of tokens with another purpose, which can never be an issuer's identity tokens.
const FOREIGN_TYPES: [&str; 2] = ["dpop+jwt", "client-authentication+jwt"];

const MAX_LEEWAY_SECONDS: u64 = 60;
const MAX_AGE_SECONDS: u64 = 3_600;
// Every valid configuration refuses evidence for its age before its one-time id is deleted.
const _: () = assert!(MAX_AGE_SECONDS + 2 * MAX_LEEWAY_SECONDS < MAX_EVIDENCE_SECONDS);
const MAX_STALE_SECONDS: u64 = 86_400;
/// Below a minute, the pause between two fetches would refuse valid tokens.
const MIN_STALE_SECONDS: u64 = 60;
const MAX_NAME_BYTES: usize = 32;

/// An attestor that must not be loaded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("attestor `{attestor}`, `{key}`: {problem}; {remedy}")]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct AttestorConfigError {
    /// The name of the attestor.
    pub attestor: String,
    /// The key in its configuration.
    pub key: &'static str,
    pub problem: String,
    pub remedy: String,
}

/// An issuer that signs for every tenant of a service.
struct Shared {
    service: &'static str,
    matches: fn(&Url) -> bool,
    /// The claims that identify one tenant permanently.
    pins: &'static [&'static str],
}

const SHARED: [Shared; 8] = [
    Shared {
        service: "GitHub",
        matches: |url| url.host_str() == Some("token.actions.githubusercontent.com"),
        pins: &["repository_owner_id", "repository_id", "enterprise_id"],
    },
    Shared {
        service: "GitLab.com",
        matches: |url| url.host_str() == Some("gitlab.com"),
        pins: &["namespace_id", "project_id"],
    },
    Shared {
        service: "CircleCI",
        matches: |url| url.host_str() == Some("oidc.circleci.com"),
        pins: &["oidc.circleci.com/org-id", "oidc.circleci.com/project-id"],
    },
    Shared {
        service: "Buildkite",
        matches: |url| url.host_str() == Some("agent.buildkite.com"),
        pins: &["organization_id", "pipeline_id", "cluster_id"],
    },
    Shared {
        service: "Google",
        matches: |url| url.host_str() == Some("accounts.google.com"),
        pins: &["sub"],
    },
    Shared {
        service: "Azure",
        matches: |url| {
            matches!(
                url.host_str(),
                Some(
                    "login.microsoftonline.com"
                        | "login.microsoftonline.us"
                        | "login.partner.microsoftonline.cn"
                        | "sts.windows.net"
                        | "sts.chinacloudapi.cn"
                )
            )
        },
        pins: &["tid", "oid"],
    },
    Shared {
        service: "HCP Terraform",
        matches: |url| url.host_str() == Some("app.terraform.io"),
        pins: &[
            "terraform_organization_id",
            "terraform_project_id",
            "terraform_workspace_id",
        ],
    },
    Shared {
        service: "Vercel",
        matches: |url| url.host_str() == Some("oidc.vercel.com"),
        pins: &["owner_id", "project_id"],
    },
];

/// Whether both are spellings of the same issuer.
fn same_issuer(one: &str, other: &str) -> bool {
    one.trim_end_matches('/')
        .eq_ignore_ascii_case(other.trim_end_matches('/'))
}

/// Reports the first problem only, with the attestor's name.
struct Checked<'a>(&'a str);

type Outcome = Result<(), AttestorConfigError>;

impl Checked<'_> {
    fn refuse(&self, key: &'static str, problem: impl Into<String>, remedy: &str) -> Outcome {
        Err(AttestorConfigError {
            attestor: self.0.to_owned(),
            key,
            problem: problem.into(),
            remedy: remedy.to_owned(),
        })
    }
}

/// Refuses an endpoint that an attestor names and this replica cannot use.
pub(super) fn refuse_endpoint(
    attestor: &str,
    key: &'static str,
    unfit: &UnfitEndpoint,
) -> AttestorConfigError {
    AttestorConfigError {
        attestor: attestor.to_owned(),
        key,
        problem: unfit.problem(),
        remedy: unfit.remedy(),
    }
}

/// Checks every attestor by itself and against the others. `plain_issuers`: whether issuers may
/// have http URLs.
pub fn check(specs: &[AttestorSpec], own_issuers: &[String], plain_issuers: bool) -> Outcome {
    let mut names = BTreeSet::new();
    let mut keys_seen = false;
    for (index, spec) in specs.iter().enumerate() {
        let at = Checked(spec.name());
        check_name(&at)?;
        if !names.insert(spec.name()) {
            at.refuse("name", "it stands twice", "give each attestor its own")?;
        }
        match spec {
            AttestorSpec::Key(_) if keys_seen => at.refuse(
                "kind",
                "there is already an attestor of registered keys",
                "put all keys into one attestor: an assertion cannot name its attestor",
            )?,
            AttestorSpec::Key(_) => keys_seen = true,
            AttestorSpec::Spiffe(spiffe) => {
                check_spiffe(&at, spiffe)?;
                let twin = specs.iter().take(index).any(|earlier| {
                    matches!(earlier, AttestorSpec::Spiffe(earlier)
                        if earlier.trust_domain == spiffe.trust_domain
                            && earlier.audience == spiffe.audience)
                });
                if twin {
                    at.refuse(
                        "audience",
                        "another attestor has this trust domain and this audience",
                        "merge the two, or give each an audience of its own",
                    )?;
                }
            }
            AttestorSpec::Oidc(oidc) => {
                check_oidc(&at, oidc, own_issuers, plain_issuers)?;
                let twin = specs.iter().take(index).any(|earlier| {
                    matches!(earlier, AttestorSpec::Oidc(earlier)
                        if same_issuer(&earlier.issuer, &oidc.issuer)
                            && earlier.audience == oidc.audience)
                });
                if twin {
                    at.refuse(
                        "audience",
                        "another attestor has this issuer and this audience",
                        "merge the two, or give each an audience of its own",
                    )?;
                }
            }
        }
    }
    Ok(())
}

fn check_name(at: &Checked<'_>) -> Outcome {
    let mut bytes = at.0.bytes();
    let good = bytes.next().is_some_and(|b| b.is_ascii_lowercase())
        && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_')
        && at.0.len() <= MAX_NAME_BYTES;
    if good {
        return Ok(());
    }
    at.refuse(
        "name",
        "it must be valid as an identifier in policies",
        "use a letter of a-z, then at most 31 of a-z, 0-9, `-` and `_`",
    )
}

fn check_oidc(
    at: &Checked<'_>,
    spec: &OidcSpec,
    own_issuers: &[String],
    plain_issuers: bool,
) -> Outcome {
    let issuer = check_issuer(at, spec, own_issuers, plain_issuers)?;
    check_audience(at, spec, &issuer)?;
    check_header(at, spec)?;
    check_tenant(at, spec, &issuer)?;
    check_conditions(at, spec)?;
    check_template(at, spec, "identity", &spec.identity)?;
    if let Some(instance) = &spec.instance {
        check_template(at, spec, "instance", instance)?;
    }
    check_key_source(at, spec, &issuer)?;
    check_limits(
        at,
        spec.leeway_seconds,
        spec.max_age_seconds,
        spec.max_stale_seconds,
    )
}

fn check_limits(at: &Checked<'_>, leeway: u64, max_age: u64, max_stale: u64) -> Outcome {
    for (key, value, max) in [
        ("leeway_seconds", leeway, MAX_LEEWAY_SECONDS),
        ("max_age_seconds", max_age, MAX_AGE_SECONDS),
        ("max_stale_seconds", max_stale, MAX_STALE_SECONDS),
    ] {
        if value > max {
            at.refuse(
                key,
                format!("{value} is too long"),
                &format!("give at most {max}"),
            )?;
        }
    }
    if max_stale < MIN_STALE_SECONDS {
        at.refuse(
            "max_stale_seconds",
            "the time is too short to keep keys",
            "give at least 60",
        )?;
    }
    if max_age == 0 {
        at.refuse(
            "max_age_seconds",
            "tokens are never that new",
            "give at least 1",
        )?;
    }
    Ok(())
}

/// Checks that the keys can be fetched as specified.
fn check_key_source(at: &Checked<'_>, spec: &OidcSpec, issuer: &Url) -> Outcome {
    if spec.discovery.is_some() && spec.keys_from.is_some() {
        at.refuse(
            "keys_from",
            "it excludes `discovery`",
            "keep one: with keys_from the broker does not use discovery",
        )?;
    }
    if spec.discovery.is_some() || spec.keys_from.is_some() {
        return Ok(());
    }
    match check_url(issuer) {
        Ok(()) => Ok(()),
        Err(refused) => at.refuse(
            "issuer",
            refused.to_string(),
            "give an issuer with a public https URL, or name the endpoint that serves its metadata \
             as `discovery`, or its keys as `keys_from`",
        ),
    }
}

fn check_spiffe(at: &Checked<'_>, spec: &SpiffeSpec) -> Outcome {
    if !is_trust_domain(&spec.trust_domain) {
        at.refuse(
            "trust_domain",
            "it is missing, or is not the name of a trust domain",
            "give its name alone, for example `prod.acme.example`, without `spiffe://`",
        )?;
    }
    let lower = spec.audience.to_ascii_lowercase();
    if spec.audience.is_empty() || DEFAULT_AUDIENCES.iter().any(|d| lower.starts_with(d)) {
        at.refuse(
            "audience",
            "it is missing, or is a default that tokens for other servers have too",
            "let workloads ask for an audience that means this broker alone",
        )?;
    }
    check_limits(
        at,
        spec.leeway_seconds,
        spec.max_age_seconds,
        spec.max_stale_seconds,
    )
}

fn check_issuer(
    at: &Checked<'_>,
    spec: &OidcSpec,
    own_issuers: &[String],
    plain_issuers: bool,
) -> Result<Url, AttestorConfigError> {
    let refuse = |problem: &str| {
        AttestorConfigError {
        attestor: at.0.to_owned(),
        key: "issuer",
        problem: problem.to_owned(),
        remedy: "give the exact `iss` of its tokens, an https URL (http on loopback in development mode \
                 only)"
            .into(),
    }
    };
    if spec.issuer.is_empty() {
        return Err(refuse("it is missing"));
    }
    let url = Url::parse(&spec.issuer).map_err(|_| refuse("it is not a URL"))?;
    let plain = url.username().is_empty() && url.password().is_none() && url.fragment().is_none();
    let secure = match url.scheme() {
        "https" => url.host().is_some(),
        "http" => plain_issuers && is_loopback_host(&url),
        _ => false,
    };
    if !plain || !secure || url.query().is_some() {
        return Err(refuse("it is not a plain https URL"));
    }
    if own_issuers.iter().any(|own| same_issuer(own, &spec.issuer)) {
        return Err(refuse(
            "it is the broker's own issuer, so its own tokens could obtain further \
            credentials",
        ));
    }
    Ok(url)
}

/// Prefixes of audiences that providers and clouds give to all tokens by default.
const DEFAULT_AUDIENCES: [&str; 8] = [
    "sts.amazonaws.com",
    "api://azureadtokenexchange",
    "https://kubernetes.default.svc",
    "https://buildkite.com/",
    "https://vercel.com/",
    "https://iam.googleapis.com/",
    "//iam.googleapis.com/",
    "ari:cloud:bitbucket:",
];

fn check_audience(at: &Checked<'_>, spec: &OidcSpec, issuer: &Url) -> Outcome {
    const REMEDY: &str = "let workloads ask for an audience that means this broker alone";
    let audience = spec.audience.as_str();
    if audience.is_empty() {
        return at.refuse("audience", "it is missing", REMEDY);
    }
    if is_default_audience(audience, issuer) || same_issuer(audience, &spec.issuer) {
        let problem = format!("`{audience}` is a default that tokens for other servers have too");
        return at.refuse("audience", problem, REMEDY);
    }
    Ok(())
}

/// Whether a token that was not requested for this broker can have this audience.
fn is_default_audience(audience: &str, issuer: &Url) -> bool {
    let lower = audience.to_ascii_lowercase();
    let host = issuer.host_str().unwrap_or_default();
    let of_the_issuer = match host {
        // The owner's page.
        "token.actions.githubusercontent.com" => is_one_segment(&lower, "https://github.com/"),
        // The organisation's id.
        "oidc.circleci.com" => Uuid::parse_str(&lower).is_ok(),
        // GitHub Enterprise Server: the owner's page on the same host.
        _ if issuer.path() == "/_services/token" => {
            is_one_segment(&lower, &format!("https://{host}/"))
        }
        _ => false,
    };
    of_the_issuer || DEFAULT_AUDIENCES.iter().any(|d| lower.starts_with(d))
}

fn is_one_segment(text: &str, prefix: &str) -> bool {
    text.strip_prefix(prefix)
        .is_some_and(|rest| !rest.trim_end_matches('/').contains('/'))
}

fn check_header(at: &Checked<'_>, spec: &OidcSpec) -> Outcome {
    let remedy = format!("choose among {}", ALGORITHMS.join(", "));
    if spec.algorithms.is_empty() {
        at.refuse("algorithms", "none is named", &remedy)?;
    }
    for algorithm in &spec.algorithms {
        if !ALGORITHMS.contains(&algorithm.as_str()) {
            at.refuse(
                "algorithms",
                format!("`{algorithm}` is not accepted"),
                &remedy,
            )?;
        }
    }
    if let Some(typ) = &spec.typ
        && (typ.is_empty() || FOREIGN_TYPES.iter().any(|t| t.eq_ignore_ascii_case(typ)))
    {
        at.refuse(
            "typ",
            "it is another kind of token",
            "give the `typ` of an identity token",
        )?;
    }
    Ok(())
}

fn check_tenant(at: &Checked<'_>, spec: &OidcSpec, issuer: &Url) -> Outcome {
    for (claim, value) in &spec.required {
        let scalar = match value {
            Value::String(text) => !text.is_empty(),
            Value::Number(_) | Value::Bool(_) => true,
            Value::Null | Value::Array(_) | Value::Object(_) => false,
        };
        if !scalar {
            let problem = format!("`{claim}` must equal one non-empty value");
            at.refuse("required", problem, "give a text, a number or a boolean")?;
        }
    }
    let shared = SHARED.iter().find(|shared| (shared.matches)(issuer));
    if let Some(shared) = shared {
        let remedy = format!("require one of {}", shared.pins.join(", "));
        if spec.single_tenant {
            let problem = format!("{} signs for all its customers", shared.service);
            at.refuse("single_tenant", problem, &remedy)?;
        }
        if !spec
            .required
            .keys()
            .any(|c| shared.pins.contains(&source(spec, c).as_str()))
        {
            let problem = format!("every customer of {} would be accepted", shared.service);
            at.refuse("required", problem, &remedy)?;
        }
        return Ok(());
    }
    let pinned = spec.required.keys().any(|claim| {
        spec.claims
            .get(claim)
            .is_some_and(|declared| declared.immutable && !declared.caller_shaped)
    });
    if pinned || spec.single_tenant {
        return Ok(());
    }
    at.refuse(
        "required",
        "no owner or tenant is pinned",
        "add a claim that `claims` declares with immutable = true, and its value; or set \
         `single_tenant = true` if only your organization uses this issuer",
    )
}

/// The name of a claim in the token, if it is a top-level member.
fn source(spec: &OidcSpec, claim: &str) -> String {
    match spec.claims.get(claim).and_then(|c| c.from.as_deref()) {
        None => claim.to_owned(),
        // A deeper pointer keeps its slash, so it equals no top-level claim.
        Some(pointer) => match pointer.strip_prefix('/') {
            Some(name) if !name.contains('/') => name.replace("~1", "/").replace("~0", "~"),
            _ => pointer.to_owned(),
        },
    }
}

fn check_template(at: &Checked<'_>, spec: &OidcSpec, key: &'static str, text: &str) -> Outcome {
    const REMEDY: &str = "use claims declared immutable, for example `repo:{repository_id}`";
    let template = match Template::parse(text) {
        Ok(template) => template,
        Err(error) => return at.refuse(key, error.to_string(), REMEDY),
    };
    for claim in template.claims() {
        let problem = match spec.claims.get(claim) {
            None => "not declared",
            Some(declared) if !declared.immutable => "not immutable",
            Some(declared) if declared.optional => "optional",
            Some(declared) if declared.kind == ClaimType::Set => "a set",
            Some(_) => continue,
        };
        at.refuse(key, format!("the claim `{claim}` is {problem}"), REMEDY)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
