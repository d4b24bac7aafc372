//! Pods of one Kubernetes cluster, by the projected tokens of their service accounts.
//!
//! Names can be reused after deletion. The identity is therefore the service account's uid, and the
//! instance the pod's uid; a token that is not bound to a pod is refused. A cluster's keys only
//! prove which cluster issued a token. Its `TokenReview` tells whether the pod still exists.

use url::Url;

use super::{Claim, Rules, refuse};
use crate::domain::trust::{OidcWritten, SpecRefusal};
use crate::domain::workload::Reuse;

pub(super) const RULES: Rules = Rules {
    provider: "Kubernetes",
    issuer: None,
    issuer_fits: |url: &Url| url.scheme() == "https" && url.query().is_none(),
    issuer_form: "the cluster's own, from `kubectl get --raw /.well-known/openid-configuration`",
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
    // A projected token is a file that is replaced every few minutes at most. A second request of
    // the same pod within that time has no other token.
    reuse: Reuse::PerTask,
};

/// The names that every cluster has by default.
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
        "is the default name of every cluster and does not identify this cluster's keys",
        "add keys_from with the name of the endpoint that serves this cluster's keys, and give each \
         cluster an audience of its own",
    )
}
