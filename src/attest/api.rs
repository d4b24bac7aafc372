//! Requests to an endpoint of the replica's configuration: the API of a cluster, or the server of a
//! bundle.
//!
//! [`Api`] is the client of one endpoint. An endpoint may have its own authorities and a bearer
//! token. Other processes replace both files while the broker runs, so they are read for each
//! request. Responses are limited in time and size, and a redirect is an error. The token is sent
//! to the endpoint's own origin only.
//!
//! Every failure is an [`ApiError`], which names a file or a status and quotes neither token nor
//! response. There is no second attempt: [`super::jwks`] and [`super::review`] call this file and
//! decide. `endpoints::table` defines the endpoints.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;
use serde::de::DeserializeOwned;
use url::Url;

use crate::endpoints::Endpoint;
use crate::files::secret_in;
use crate::outgoing::{self, BodyError};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Time limit of one request, including reading the files and connecting.
const TOTAL_TIMEOUT: Duration = Duration::from_secs(5);

/// The largest response. A key set or a review has a few KiB.
const MAX_ANSWER_BYTES: usize = 1024 * 1024;

/// The largest file of authorities or of a token.
const MAX_FILE_BYTES: usize = 256 * 1024;

/// A client builder without redirects and proxy, and with time limits. Requests to issuers at
/// public addresses use it too.
pub(super) fn client_builder() -> reqwest::ClientBuilder {
    outgoing::direct_client()
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(TOTAL_TIMEOUT)
}

/// The reason why a server gave no usable response.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApiError {
    #[error("the file {0} cannot be read")]
    File(PathBuf, #[source] std::io::Error),
    #[error("the file {0} is empty, too long or not of the expected form")]
    FileForm(PathBuf),
    #[error("the request failed")]
    Request(#[from] reqwest::Error),
    #[error("the answer could not be read")]
    Body(#[from] BodyError),
    #[error("the answer took too long")]
    Slow,
    #[error("the answer has status {0}")]
    Status(u16),
    #[error("the answer is not the JSON that was expected")]
    Json,
    #[error("the URL is not at the endpoint's own server")]
    Elsewhere,
}

/// A client of one endpoint. It sends the token to the endpoint's own origin only.
#[derive(Debug)]
pub(super) struct Api {
    endpoint: Endpoint,
    /// The client, and the authorities with which it was created.
    client: Mutex<Option<(Vec<u8>, reqwest::Client)>>,
}

impl Api {
    pub(super) fn new(endpoint: &Endpoint) -> Self {
        Self {
            endpoint: endpoint.clone(),
            client: Mutex::new(None),
        }
    }

    /// The endpoint of this client.
    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Fetches the document at the endpoint's URL.
    pub(super) async fn get<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        self.get_at(self.endpoint.url()).await
    }

    /// Fetches the document at another URL of the same server.
    pub(super) async fn get_at<T: DeserializeOwned>(&self, url: &Url) -> Result<T, ApiError> {
        if !self.endpoint.serves(url) {
            return Err(ApiError::Elsewhere);
        }
        self.within_time(async {
            let client = self.client().await?;
            self.ask(client.get(url.clone())).await
        })
        .await
    }

    /// Posts `body` and returns the response.
    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        body: &impl Serialize,
    ) -> Result<T, ApiError> {
        self.within_time(async {
            let client = self.client().await?;
            self.ask(client.post(self.endpoint.url().clone()).json(body))
                .await
        })
        .await
    }

    async fn within_time<T>(
        &self,
        work: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<T, ApiError> {
        let done = tokio::time::timeout(TOTAL_TIMEOUT, work).await;
        done.unwrap_or(Err(ApiError::Slow))
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        mut request: reqwest::RequestBuilder,
    ) -> Result<T, ApiError> {
        if let Some(path) = self.endpoint.token_file() {
            let text = String::from_utf8(read(path).await?);
            let text = text.map_err(|_| ApiError::FileForm(path.clone()))?;
            let token = SecretString::from(secret_in(&text));
            if token.expose_secret().is_empty() {
                return Err(ApiError::FileForm(path.clone()));
            }
            request = request.bearer_auth(token.expose_secret());
        }
        let response = request.send().await?;
        if !response.status().is_success() {
            return Err(ApiError::Status(response.status().as_u16()));
        }
        let body = outgoing::body(response, MAX_ANSWER_BYTES).await?;
        serde_json::from_slice(&body).map_err(|_| ApiError::Json)
    }

    /// The client for the present authorities.
    async fn client(&self) -> Result<reqwest::Client, ApiError> {
        let authorities = match self.endpoint.ca_file() {
            None => Vec::new(),
            Some(path) => read(path).await?,
        };
        let mut kept = self
            .client
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((with, client)) = &*kept
            && *with == authorities
        {
            return Ok(client.clone());
        }
        let mut builder = client_builder();
        if let Some(path) = self.endpoint.ca_file() {
            let chain = reqwest::Certificate::from_pem_bundle(&authorities)?;
            if chain.is_empty() {
                return Err(ApiError::FileForm(path.clone()));
            }
            builder = builder.tls_certs_only(chain);
        }
        let client = builder.build()?;
        *kept = Some((authorities, client.clone()));
        Ok(client)
    }
}

async fn read(path: &Path) -> Result<Vec<u8>, ApiError> {
    let bytes = tokio::fs::read(path)
        .await
        .map_err(|error| ApiError::File(path.to_owned(), error))?;
    if bytes.is_empty() || bytes.len() > MAX_FILE_BYTES {
        return Err(ApiError::FileForm(path.to_owned()));
    }
    Ok(bytes)
}
