//! Kubernetes' `TokenReview`: whether what a token is bound to is still there.
//!
//! A signature lasts as long as the token; a pod may not. Only the cluster knows, so it is asked
//! about each token that was otherwise believed, and a cluster that cannot be asked believes
//! nobody. The review names our audience: without it the API server would vouch for tokens that
//! were meant for itself.

use std::collections::BTreeMap;

use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde_json::json;

use super::AttestError;
use super::api::Api;
use crate::domain::workload::ClaimValue;
use crate::endpoints::Endpoint;

/// The key of the pod's uid among what the API server says about a user.
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

#[derive(Deserialize)]
struct Answer {
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

/// The review of one cluster.
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

    /// Asks about a token whose claims were believed; the cluster must mean the same by it.
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
        let answer: Answer = self.api.post(&question).await.map_err(|error| {
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
