//! Pods of one Kubernetes cluster, by the projected tokens of their service accounts.
//!
//! Names come back after they were deleted: the identity is the service account's uid, the instance
//! the pod's, so a token that is bound to no pod is refused. A cluster's keys say who issued a
//! token, and only its `TokenReview` whether the pod is still there.

use url::Url;

use super::{Claim, Rules, refuse};
use crate::domain::trust::{OidcWritten, SpecRefusal};
use crate::domain::workload::Reuse;

pub(super) const RULES: Rules = Rules {
    provider: "Kubernetes",
    issuer: None,
    issuer_fits: |url: &Url| url.scheme() == "https" && url.query().is_none(),
    issuer_form: "the cluster's own, as `kubectl get --raw /.well-known/openid-configuration` \
                  says it",
    algorithms: &["RS256", "ES256", "ES384"],
    claims: &[
        Claim::id("service_account_uid").from("/kubernetes.io/serviceaccount/uid"),
        Claim::id("pod_uid").from("/kubernetes.io/pod/uid").hidden(),
        Claim::id("node_uid")
            .from("/kubernetes.io/node/uid")
            .optional(),
        Claim::text("namespace").from("/kubernetes.io/namespace"),
        Claim::text("service_account_name").from("/kubernetes.io/serviceaccount/name"),
        Claim::chosen("pod_name").from("/kubernetes.io/pod/name"),
    ],
    names: &["sub", "kubernetes.io/node/name"],
    pins: &["service_account_uid"],
    single_tenant: true,
    required: &[],
    allowed: &[],
    equal: &[],
    identity: "sa:{service_account_uid}",
    instance: Some("{pod_uid}"),
    // A projected token is a file that is replaced every few minutes at most: a second request of
    // the same pod can have no other.
    reuse: Reuse::PerTask,
};

/// Every cluster that was not told otherwise calls itself by the same name.
const EVERYBODYS: [&str; 4] = [
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
    "kubernetes",
];

pub(super) fn check_cluster(written: &OidcWritten) -> Result<(), SpecRefusal> {
    let issuer = written.issuer.as_deref().unwrap_or_default();
    let host = Url::parse(issuer).ok();
    let host = host.as_ref().and_then(Url::host_str).unwrap_or_default();
    let shared = EVERYBODYS.contains(&host);
    if !shared || written.keys_from.is_some() || written.discovery.is_some() {
        return Ok(());
    }
    refuse(
        "issuer",
        "is what every cluster calls itself, and says not whose keys are meant",
        "add keys_from with the name of the endpoint that serves this cluster's keys, and give each \
         cluster an audience of its own",
    )
}
