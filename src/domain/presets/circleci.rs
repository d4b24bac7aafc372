//! `CircleCI`.
//!
//! The default audience is the organisation's id, which is the same for all its projects; a job
//! must request the broker's own audience. A person can log in to a job that is re-run with SSH, so
//! such jobs are refused.

use url::Url;
use uuid::Uuid;

use super::{Claim, Fixed, Rules, is_plain_https, refuse};
use crate::domain::trust::{ClaimType, OidcWritten, SpecRefusal};
use crate::domain::workload::Reuse;

pub(super) const RULES: Rules = Rules {
    provider: "CircleCI",
    issuer: None,
    issuer_fits: |url: &Url| organization(url).is_some(),
    issuer_form: "https://oidc.circleci.com/org/<organisation id>",
    algorithms: &["RS256"],
    claims: &[
        Claim::id("project_id").from("/oidc.circleci.com~1project-id"),
        Claim::id("org_id")
            .from("/oidc.circleci.com~1org-id")
            .optional(),
        Claim::id("pipeline_definition_id")
            .from("/oidc.circleci.com~1pipeline-definition-id")
            .optional(),
        Claim::of("context_ids", ClaimType::Set)
            .from("/oidc.circleci.com~1context-ids")
            .optional(),
        Claim::of("ssh_rerun", ClaimType::Bool)
            .from("/oidc.circleci.com~1ssh-rerun")
            .hidden(),
        Claim::chosen("vcs_origin")
            .from("/oidc.circleci.com~1vcs-origin")
            .optional(),
        Claim::chosen("vcs_ref")
            .from("/oidc.circleci.com~1vcs-ref")
            .optional(),
    ],
    names: &[
        "sub",
        "oidc.circleci.com/vcs-origin",
        "oidc.circleci.com/vcs-ref",
    ],
    pins: &["org_id", "project_id"],
    single_tenant: false,
    required: &[("ssh_rerun", Fixed::Truth(false))],
    allowed: &[],
    equal: &[],
    identity: "project:{project_id}",
    instance: None,
    reuse: Reuse::Once,
};

fn organization(url: &Url) -> Option<Uuid> {
    let host = url.host_str() == Some("oidc.circleci.com") && is_plain_https(url);
    let id = url.path().strip_prefix("/org/").filter(|_| host)?;
    Uuid::parse_str(id).ok()
}

/// The organisation is part of the issuer. If it is also a required claim, it must be the same.
pub(super) fn check_organization(written: &OidcWritten) -> Result<(), SpecRefusal> {
    let issuer = written.issuer.as_deref().map(Url::parse);
    let Some(Ok(issuer)) = issuer else {
        return Ok(());
    };
    let required = written.required.get("org_id").and_then(|id| id.as_str());
    let same = required.is_none_or(|id| Uuid::parse_str(id).ok() == organization(&issuer));
    if same {
        return Ok(());
    }
    refuse(
        "required.org_id",
        "names another organisation than the issuer",
        "give the same id in both",
    )
}
