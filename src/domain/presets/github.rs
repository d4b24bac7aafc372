//! GitHub Actions: the rules of the preset `github-actions`.
//!
//! `sub` has two formats, can be customised and omits the branch if there is an environment, so no
//! condition uses it. Names of owners and repositories can pass to other parties; ids cannot. So
//! the identity is the repository's id, and an attestor must require an id of an owner, a
//! repository or an enterprise. Events that outsiders can start are refused, and by default only
//! GitHub's own runners are accepted.
//!
//! `RULES` is data. [`super`] applies it, and refuses a written member that is weaker with a
//! `SpecRefusal`.

use url::Url;

use super::{Allowed, Claim, Rules, is_plain_https};
use crate::domain::workload::Reuse;

pub(super) const RULES: Rules = Rules {
    provider: "GitHub Actions",
    issuer: Some("https://token.actions.githubusercontent.com"),
    issuer_fits: fits,
    issuer_form: "https://token.actions.githubusercontent.com, that with /<enterprise>, \
                  https://token.actions.<name>.ghe.com or https://<server>/_services/token",
    algorithms: &["RS256"],
    claims: &[
        Claim::id("repository_id"),
        Claim::id("repository_owner_id"),
        Claim::id("enterprise_id").optional(),
        Claim::id("actor_id").optional(),
        Claim::id("run_id").hidden(),
        Claim::id("run_attempt").hidden(),
        Claim::id("check_run_id").hidden(),
        // A commit names the same content for ever, even if the branch moves.
        Claim::id("job_workflow_sha").optional(),
        Claim::id("workflow_sha").optional(),
        Claim::text("event_name"),
        Claim::text("ref_protected").optional(),
        Claim::text("ref_type").optional(),
        Claim::text("repository_visibility").optional(),
        Claim::text("runner_environment"),
        Claim::chosen("environment").optional(),
        Claim::chosen("job_workflow_ref").optional(),
        Claim::chosen("ref"),
        Claim::chosen("workflow_ref").optional(),
    ],
    names: &[
        "sub",
        "actor",
        "base_ref",
        "enterprise",
        "environment",
        "event_name",
        "head_ref",
        "job_workflow_ref",
        "ref",
        "repo_property_*",
        "repository",
        "repository_owner",
        "run_number",
        "workflow",
        "workflow_ref",
    ],
    pins: &["repository_owner_id", "repository_id", "enterprise_id"],
    single_tenant: false,
    required: &[],
    allowed: &[
        Allowed {
            claim: "event_name",
            default: &["push", "workflow_dispatch", "schedule", "release"],
            most: &[
                "push",
                "workflow_dispatch",
                "schedule",
                "release",
                "create",
                "deployment",
                "merge_group",
                "repository_dispatch",
            ],
            why: "it can be started by outsiders, who also choose its input",
        },
        Allowed {
            claim: "runner_environment",
            default: &["github-hosted"],
            most: &["github-hosted", "self-hosted"],
            why: "it is not a runner environment",
        },
    ],
    equal: &[],
    identity: "repo:{repository_id}",
    instance: Some("{run_id}:{run_attempt}:{check_run_id}"),
    reuse: Reuse::Once,
};

fn fits(url: &Url) -> bool {
    let Some(host) = url.host_str().filter(|_| is_plain_https(url)) else {
        return false;
    };
    let one_segment = url
        .path_segments()
        .is_some_and(|mut parts| parts.next().is_some() && parts.next().is_none());
    let of_ghe = host
        .strip_prefix("token.actions.")
        .and_then(|rest| rest.strip_suffix(".ghe.com"))
        .is_some_and(|name| !name.is_empty() && !name.contains('.'));
    (host == "token.actions.githubusercontent.com" && one_segment)
        || (of_ghe && url.path() == "/")
        || (!host.ends_with("githubusercontent.com") && url.path() == "/_services/token")
}
