//! Kubernetes' `TokenReview`: whether the pod of a token still exists.
//!
//! A signature is valid as long as the token; its pod may be deleted earlier. Only the cluster
//! knows this, so it reviews each token that passed all other checks ([`Review::check`]). The
//! review names the broker's audience: otherwise the API server would confirm tokens that were
//! issued for itself. The answer must also agree with the claims about service account and pod.
//!
//! Every doubt refuses the token. A cluster that cannot be reached or gives no valid answer is
//! [`AttestError::ReviewUnreachable`], which is transient; one that does not confirm the token is
//! [`AttestError::Reviewed`]. [`super::oidc`] calls this file, and [`super::api`] sends the
//! request.

use std::collections::BTreeMap;

use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde_json::json;

use super::AttestError;
use super::api::Api;
use crate::domain::workload::ClaimValue;
use crate::endpoints::Endpoint;

/// The key of the pod's uid in the API server's data about a user.
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

#[derive(Deserialize)]
struct ReviewAnswer {
    #[serde(default)]
    status: Status,
}

#[derive(Default, Deserialize)]
struct Status {
    #[serde(default)]
    authenticated: bool,
    #[serde(default)]
    audiences: Vec<String>,
    #[serde(default)]
    user: User,
}

#[derive(Default, Deserialize)]
struct User {
    #[serde(default)]
    uid: String,
    #[serde(default)]
    extra: BTreeMap<String, Vec<String>>,
}

/// The client for reviews by one cluster.
pub(super) struct Review {
    attestor: String,
    audience: String,
    api: Api,
}

impl Review {
    pub(super) fn new(attestor: &str, audience: &str, endpoint: &Endpoint) -> Self {
        Self {
            attestor: attestor.to_owned(),
            audience: audience.to_owned(),
            api: Api::new(endpoint),
        }
    }

    /// Asks the cluster to review a token whose claims were accepted. The cluster's answer must
    /// agree with the claims.
    pub(super) async fn check(
        &self,
        token: &SecretString,
        claims: &BTreeMap<String, ClaimValue>,
    ) -> Result<(), AttestError> {
        let question = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token.expose_secret(), "audiences": [self.audience]},
        });
        let answer: ReviewAnswer = self.api.post(&question).await.map_err(|error| {
            tracing::warn!(
                attestor = self.attestor,
                error = &error as &dyn std::error::Error,
                "a cluster did not review a token"
            );
            AttestError::ReviewUnreachable
        })?;
        let status = answer.status;
        let claim = |name: &str| match claims.get(name) {
            Some(ClaimValue::String(text)) => Some(text.as_str()),
            _ => None,
        };
        let pod = status.user.extra.get(POD_UID).map(Vec::as_slice);
        let same_pod = match (pod, claim("pod_uid")) {
            (Some([reviewed]), Some(claimed)) => reviewed == claimed,
            _ => false,
        };
        let good = status.authenticated
            && status.audiences.contains(&self.audience)
            && claim("service_account_uid") == Some(status.user.uid.as_str())
            && same_pod;
        if good {
            Ok(())
        } else {
            Err(AttestError::Reviewed)
        }
    }
}
