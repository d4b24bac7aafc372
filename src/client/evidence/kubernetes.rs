//! Tokens of a Kubernetes service account for the broker. If the pod may request tokens for its own
//! service account, each request yields a fresh one.
//!
//! A projected token opens one task only, and is replaced every few minutes. A token requested from
//! the API server (`TokenRequest`) differs each time. For that the pod needs its token for the API
//! server, and the right to create `serviceaccounts/token` of its own service account. If the API
//! server denies this right, the projected token is used. Other failures are retried.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::StatusCode;
use reqwest::header::AUTHORIZATION;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde_json::{Value, json};
use url::Url;

use crate::client::retry::{self, AttemptError, TRY_TIMEOUT};
use crate::client::{ClientError, Notify, read_file, read_secret};
use crate::outgoing::{self, innermost};

/// Where Kubernetes mounts a pod's token for the API server, and the server's certificate
/// authority.
pub(crate) const DIRECTORY: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// The variables with which Kubernetes gives each pod the API server's address.
pub(crate) const HOST_VARIABLE: &str = "KUBERNETES_SERVICE_HOST";
pub(crate) const PORT_VARIABLE: &str = "KUBERNETES_SERVICE_PORT";

/// The shortest life of a token that the API server issues, in seconds.
const LIFE_SECONDS: u32 = 600;

/// The largest file of authorities, and the longest answer, that are read, in bytes.
const MAX_AUTHORITIES_BYTES: u64 = 1024 * 1024;
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// A pod's service account, and the API server that issues tokens for it.
pub(crate) struct ServiceAccount {
    directory: PathBuf,
    server: Url,
    audience: String,
    /// The token to use if the API server denies requests; `None` if there is none.
    projected: Option<PathBuf>,
}

/// The claims of a service account's token that identify the account and the pod.
#[derive(Deserialize)]
struct Claims {
    #[serde(rename = "kubernetes.io")]
    kubernetes: Bound,
}

#[derive(Deserialize)]
struct Bound {
    namespace: String,
    serviceaccount: Named,
    pod: Option<Named>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
    uid: String,
}

/// Why the API server issued no token.
enum NotIssued {
    /// The pod's service account may not request tokens for itself.
    Denied(AttemptError),
    Failed(AttemptError),
}

impl From<AttemptError> for NotIssued {
    fn from(fault: AttemptError) -> Self {
        Self::Failed(fault)
    }
}

impl From<ClientError> for NotIssued {
    fn from(failure: ClientError) -> Self {
        Self::Failed(failure.into())
    }
}

impl ServiceAccount {
    /// The service account whose token is in `directory`; `None` if there is none.
    pub(crate) fn found(
        directory: &Path,
        (host, port): (&str, &str),
        audience: String,
        projected: Option<PathBuf>,
    ) -> Result<Option<Self>, ClientError> {
        if !directory.join("token").exists() {
            return Ok(None);
        }
        let host = match host.parse() {
            Ok(IpAddr::V6(address)) => format!("[{address}]"),
            _ => host.to_owned(),
        };
        let server = Url::parse(&format!("https://{host}:{port}/")).map_err(|error| {
            ClientError::Invalid(format!("{HOST_VARIABLE} and {PORT_VARIABLE}: {error}"))
        })?;
        Ok(Some(Self {
            directory: directory.to_owned(),
            server,
            audience,
            projected,
        }))
    }

    /// Values that distinguish this pod's service account from others.
    pub(crate) fn marks(&self) -> Result<[String; 3], ClientError> {
        let account = self.account(&self.own_token()?)?;
        let pod = account.pod.map(|pod| pod.uid).unwrap_or_default();
        Ok([account.serviceaccount.uid, pod, self.audience.clone()])
    }

    /// Gets a fresh token for the broker.
    pub(crate) async fn token(&self, notify: Notify) -> Result<SecretString, AttemptError> {
        let fault = match self.request().await {
            Ok(token) => return Ok(token),
            Err(NotIssued::Failed(fault)) => return Err(fault),
            Err(NotIssued::Denied(fault)) => fault,
        };
        let Some(projected) = &self.projected else {
            return Err(fault);
        };
        notify(&format!(
            "taskpass: {}; using the projected token, which opens one task only",
            fault.failure
        ));
        Ok(read_secret(projected)?)
    }

    fn own_token(&self) -> Result<SecretString, ClientError> {
        read_secret(&self.directory.join("token"))
    }

    fn account(&self, token: &SecretString) -> Result<Bound, ClientError> {
        let claims = token.expose_secret().split('.').nth(1);
        let claims = claims.and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
        let claims = claims.and_then(|bytes| serde_json::from_slice::<Claims>(&bytes).ok());
        let claims = claims.ok_or_else(|| {
            ClientError::Invalid(format!(
                "{} does not hold a token of a service account",
                self.directory.join("token").display()
            ))
        })?;
        Ok(claims.kubernetes)
    }

    async fn request(&self) -> Result<SecretString, NotIssued> {
        let own = self.own_token()?;
        let account = self.account(&own)?;
        let name = format!("{}/{}", account.namespace, account.serviceaccount.name);
        let failed = |why: String| {
            ClientError::Unavailable(format!(
                "the Kubernetes API issued no token for service account {name}: {why}"
            ))
        };
        let broken = |error: reqwest::Error| {
            let why = if error.is_timeout() {
                "no answer in time".into()
            } else {
                innermost(&error)
            };
            AttemptError::of_transport(&error, failed(why))
        };
        let authorities = read_file(&self.directory.join("ca.crt"), MAX_AUTHORITIES_BYTES)?;
        let authorities = reqwest::Certificate::from_pem_bundle(&authorities)
            .map_err(|error| failed(innermost(&error)))?;
        let client = outgoing::direct_client()
            .timeout(TRY_TIMEOUT)
            .tls_certs_only(authorities)
            .build()
            .map_err(|error| failed(innermost(&error)))?;
        let sent = client
            .post(self.address(&account))
            .header(AUTHORIZATION, format!("Bearer {}", own.expose_secret()))
            .json(&self.body(&account))
            .send();
        let answer = sent.await.map_err(broken)?;
        let status = answer.status();
        let pause = retry::retry_after(answer.headers());
        let body = outgoing::body(answer, MAX_ANSWER_BYTES).await;
        let body = body.map_err(|error| match error {
            outgoing::BodyError::Broken(error) => broken(error),
            outgoing::BodyError::Large(_) => failed(error.to_string()).into(),
        })?;
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let text = |pointer: &str| body.pointer(pointer).and_then(Value::as_str);
        if status.is_success() {
            let token = text("/status/token").map(SecretString::from);
            return token.ok_or_else(|| failed("the answer holds no token".into()).into());
        }
        let why = text("/message").map_or_else(|| status.to_string(), str::to_owned);
        if is_transient(status) {
            return Err(AttemptError::transient(failed(why), pause).into());
        }
        if !is_denial(status) {
            return Err(failed(why).into());
        }
        let denied = failed(format!(
            "{why} (the service account needs the right to `create` the resource \
             `serviceaccounts/token` named `{}`)",
            account.serviceaccount.name
        ));
        Err(NotIssued::Denied(denied.into()))
    }

    fn address(&self, account: &Bound) -> Url {
        let mut address = self.server.clone();
        if let Ok(mut path) = address.path_segments_mut() {
            path.clear().extend([
                "api",
                "v1",
                "namespaces",
                &account.namespace,
                "serviceaccounts",
                &account.serviceaccount.name,
                "token",
            ]);
        }
        address
    }

    /// The body of a request for a token that is bound to this pod and refused once the pod is
    /// deleted.
    fn body(&self, account: &Bound) -> Value {
        let pod = account.pod.as_ref().map(
            |pod| json!({"apiVersion": "v1", "kind": "Pod", "name": pod.name, "uid": pod.uid}),
        );
        json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {
                "audiences": [self.audience],
                "expirationSeconds": LIFE_SECONDS,
                "boundObjectRef": pod,
            },
        })
    }
}

/// Whether this status means that the pod may not request tokens.
fn is_denial(status: StatusCode) -> bool {
    [StatusCode::FORBIDDEN, StatusCode::NOT_FOUND].contains(&status)
}

/// Whether another attempt may succeed. After a 401 the pod's own token is read again, because
/// kubelet may have replaced it.
fn is_transient(status: StatusCode) -> bool {
    retry::is_transient(status) || status.is_server_error() || status == StatusCode::UNAUTHORIZED
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::silent;

    #[test]
    fn only_a_denial_leads_to_the_projected_token() {
        for status in [StatusCode::FORBIDDEN, StatusCode::NOT_FOUND] {
            assert!(is_denial(status) && !is_transient(status), "{status}");
        }
        for status in [
            StatusCode::UNAUTHORIZED,
            StatusCode::TOO_MANY_REQUESTS,
            StatusCode::INTERNAL_SERVER_ERROR,
            StatusCode::SERVICE_UNAVAILABLE,
        ] {
            assert!(!is_denial(status) && is_transient(status), "{status}");
        }
    }

    #[tokio::test]
    async fn an_api_server_that_cannot_be_reached_does_not_lead_to_the_projected_token() {
        let directory = tempfile::tempdir().unwrap();
        let claims = json!({"kubernetes.io": {
            "namespace": "jobs", "serviceaccount": {"name": "report", "uid": "1"},
        }});
        let own = format!("e30.{}.e30", URL_SAFE_NO_PAD.encode(claims.to_string()));
        let authority = rcgen::generate_simple_self_signed(["api".to_owned()]).unwrap();
        let projected = directory.path().join("projected");
        std::fs::write(directory.path().join("token"), own).unwrap();
        std::fs::write(directory.path().join("ca.crt"), authority.cert.pem()).unwrap();
        std::fs::write(&projected, "projected").unwrap();
        let account = ServiceAccount {
            directory: directory.path().to_owned(),
            server: Url::parse("https://127.0.0.1:9/").unwrap(),
            audience: "https://broker.example".to_owned(),
            projected: Some(projected),
        };
        let fault = account.token(silent).await.unwrap_err();
        assert!(!fault.sent, "{}", fault.failure);
    }
}
