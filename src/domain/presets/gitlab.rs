//! GitLab CI/CD.
//!
//! The pipeline of a merge request from a fork runs in the parent project. GitLab versions differ
//! in its `project_id`, and in some of them the author of a fork could obtain the parent's. So this
//! preset refuses such pipelines, requires a protected branch, and requires that the token's
//! project equals the job's project and the source's project.

use url::Url;

use super::{Allowed, Claim, Fixed, Rules, is_plain_https};
use crate::domain::trust::ClaimType;
use crate::domain::workload::Reuse;

pub(super) const RULES: Rules = Rules {
    provider: "GitLab",
    issuer: None,
    issuer_fits: |url: &Url| is_https_anywhere(url),
    issuer_form: "https://gitlab.com, or the URL of your own instance",
    algorithms: &["RS256"],
    claims: &[
        Claim::id("namespace_id"),
        Claim::id("project_id"),
        Claim::id("pipeline_id"),
        Claim::id("job_id").hidden(),
        Claim::id("user_id"),
        Claim::id("job_project_id").optional().hidden(),
        Claim::id("job_namespace_id").optional().hidden(),
        Claim::id("source_project_id").optional().hidden(),
        Claim::id("sha"),
        Claim::id("ci_config_sha").optional(),
        Claim::of("runner_id", ClaimType::Long).optional(),
        Claim::text("environment_protected").optional(),
        Claim::text("pipeline_source"),
        Claim::text("ref_protected"),
        Claim::text("ref_type"),
        Claim::text("runner_environment").optional(),
        Claim::chosen("ci_config_ref_uri").optional(),
        Claim::chosen("environment").optional(),
        Claim::chosen("ref"),
    ],
    names: &[
        "sub",
        "ci_config_ref_uri",
        "environment",
        "job_namespace_path",
        "job_project_path",
        "namespace_path",
        "project_path",
        "ref",
        "ref_path",
        "source_project_path",
        "user_email",
        "user_login",
    ],
    pins: &["namespace_id", "project_id"],
    single_tenant: false,
    required: &[("ref_protected", Fixed::Text("true"))],
    allowed: &[Allowed {
        claim: "pipeline_source",
        default: &["push", "web", "schedule", "api"],
        most: &["push", "web", "schedule", "api", "trigger", "pipeline"],
        why: "the author of a merge request, even from a fork, chooses the code that runs",
    }],
    equal: &[
        ("project_id", "job_project_id"),
        ("namespace_id", "job_namespace_id"),
        ("project_id", "source_project_id"),
    ],
    identity: "project:{project_id}",
    instance: Some("{pipeline_id}:{job_id}"),
    reuse: Reuse::Once,
};

/// A self-managed instance may have its own port and path.
fn is_https_anywhere(url: &Url) -> bool {
    let mut without = url.clone();
    without.set_port(None).is_ok() && is_plain_https(&without)
}
