//! AWS: tokens of STS `GetWebIdentityToken`.
//!
//! Each account has its own issuer. AWS puts no unique id of the role into the token, so the
//! identity is the account and the principal's ARN: within the pinned account, any principal that
//! can create a role of that name becomes this workload. The caller chooses request tags, so they
//! are not read.

use url::Url;

use super::{Claim, Rules, is_plain_https};
use crate::domain::workload::Reuse;

pub(super) const RULES: Rules = Rules {
    provider: "AWS",
    issuer: None,
    issuer_fits: fits,
    issuer_form: "the account's own, from `aws iam get-outbound-web-identity-federation-info`: \
        https://<id>.tokens.sts.global.api.aws",
    algorithms: &["RS256", "ES384"],
    claims: &[
        Claim::id("aws_account").from("/https:~1~1sts.amazonaws.com~1/aws_account"),
        Claim::id("principal_arn").from("/sub"),
        Claim::id("org_id")
            .from("/https:~1~1sts.amazonaws.com~1/org_id")
            .optional(),
        Claim::text("ou_path")
            .from("/https:~1~1sts.amazonaws.com~1/ou_path")
            .optional(),
        Claim::text("source_region")
            .from("/https:~1~1sts.amazonaws.com~1/source_region")
            .optional(),
    ],
    names: &["https://sts.amazonaws.com//request_tags*"],
    pins: &["aws_account", "org_id"],
    single_tenant: false,
    required: &[],
    allowed: &[],
    equal: &[],
    identity: "{aws_account}:{principal_arn}",
    instance: None,
    reuse: Reuse::Once,
};

fn fits(url: &Url) -> bool {
    let name = url
        .host_str()
        .and_then(|host| host.strip_suffix(".tokens.sts.global.api.aws"));
    is_plain_https(url)
        && url.path() == "/"
        && name.is_some_and(|id| !id.is_empty() && !id.contains('.'))
}
