//! JWT-SVIDs from the SPIFFE Workload API, at the socket that the SPIFFE Workload Endpoint standard
//! names.
//!
//! The API identifies its callers by their process and requires no credential. Its answer is as
//! sensitive as a password, and the standard has no TLS, so this code connects to sockets of this
//! machine only.

use secrecy::SecretString;
use spiffe::WorkloadApiClient;
use spiffe::transport::Endpoint;
use tokio::time::timeout;

use crate::client::ClientError;
use crate::client::retry::{AttemptError, TRY_TIMEOUT};

/// The variable with the socket's address, defined by the standard.
pub(crate) const SOCKET_VARIABLE: &str = "SPIFFE_ENDPOINT_SOCKET";

/// A Workload API, and the audience of the tokens to request.
pub(crate) struct WorkloadApi {
    endpoint: Endpoint,
    socket: String,
    audience: String,
}

impl WorkloadApi {
    /// The Workload API at `socket`.
    pub(crate) fn at(socket: &str, audience: String) -> Result<Self, ClientError> {
        let endpoint = Endpoint::parse(socket)
            .map_err(|error| ClientError::Invalid(format!("{SOCKET_VARIABLE}: {error}")))?;
        if let Endpoint::Tcp { host, .. } = &endpoint
            && !host.is_loopback()
        {
            return Err(ClientError::Invalid(format!(
                "{SOCKET_VARIABLE} is not on this machine: a token could be read in transit"
            )));
        }
        Ok(Self {
            endpoint,
            socket: socket.to_owned(),
            audience,
        })
    }

    pub(crate) fn socket(&self) -> &str {
        &self.socket
    }

    pub(crate) fn audience(&self) -> &str {
        &self.audience
    }

    /// Gets a JWT-SVID of the first identity that the API returns, for the broker's audience only.
    pub(crate) async fn fetch(&self) -> Result<SecretString, AttemptError> {
        // Retry even when the API does not know the workload: a new workload's entry may appear
        // late.
        let failed = |why: String| {
            let why = format!("the SPIFFE Workload API issued no token: {why}");
            AttemptError::transient(ClientError::Unavailable(why), None)
        };
        let fetching = async {
            let client = WorkloadApiClient::connect(self.endpoint.clone()).await?;
            client.fetch_jwt_svid([&self.audience], None).await
        };
        let svid = timeout(TRY_TIMEOUT, fetching)
            .await
            .map_err(|_| failed("no answer in time".into()))?
            .map_err(|error| failed(error.to_string()))?;
        Ok(SecretString::from(svid.token()))
    }
}
