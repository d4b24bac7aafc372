//! Buildkite.
//!
//! Slugs can pass to other owners, and an agent declares its own tags. A token has ids only if the
//! job requests them: `buildkite-agent oidc request-token --claim organization_id --claim
//! pipeline_id`.

use url::Url;

use super::{Claim, Rules};
use crate::domain::trust::ClaimType;
use crate::domain::workload::Reuse;

pub(super) const RULES: Rules = Rules {
    provider: "Buildkite",
    issuer: Some("https://agent.buildkite.com"),
    issuer_fits: |url: &Url| url.as_str() == "https://agent.buildkite.com/",
    issuer_form: "https://agent.buildkite.com",
    algorithms: &["RS256"],
    claims: &[
        Claim::id("organization_id"),
        Claim::id("pipeline_id"),
        Claim::id("job_id").hidden(),
        Claim::id("build_id").optional(),
        Claim::id("cluster_id").optional(),
        Claim::id("queue_id").optional(),
        Claim::of("build_number", ClaimType::Long),
        Claim::text("build_source").optional(),
        Claim::text("runner_environment").optional(),
        Claim::chosen("build_branch"),
        Claim::chosen("build_commit"),
    ],
    names: &[
        "sub",
        "agent_tag:*",
        "build_branch",
        // It can be the word HEAD.
        "build_commit",
        "build_tag",
        "cluster_name",
        "organization_slug",
        "pipeline_slug",
        "queue_key",
        "step_key",
    ],
    pins: &["organization_id", "pipeline_id"],
    single_tenant: false,
    required: &[],
    allowed: &[],
    equal: &[],
    identity: "pipeline:{pipeline_id}",
    instance: Some("{job_id}"),
    reuse: Reuse::Once,
};
