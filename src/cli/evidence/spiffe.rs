//! JWT-SVIDs from SPIFFE's Workload API, at the socket that the SPIFFE Workload Endpoint standard
//! names.
//!
//! The API knows its callers by their process and needs nothing of them. Its answer is as good as a
//! password, and the standard has no TLS: so only a socket of this machine is spoken to.

use secrecy::SecretString;
use spiffe::WorkloadApiClient;
use spiffe::transport::Endpoint;
use tokio::time::timeout;

use crate::cli::Failure;
use crate::cli::retry::{Fault, TRY_TIMEOUT};

/// Where the standard says that the socket is named.
pub(super) const SOCKET_VARIABLE: &str = "SPIFFE_ENDPOINT_SOCKET";

/// An API, and the audience to ask it for.
pub(in crate::cli) struct WorkloadApi {
    endpoint: Endpoint,
    socket: String,
    audience: String,
}

impl WorkloadApi {
    /// The API at `socket`.
    pub(super) fn at(socket: &str, audience: String) -> Result<Self, Failure> {
        let endpoint = Endpoint::parse(socket)
            .map_err(|error| Failure::Usage(format!("{SOCKET_VARIABLE}: {error}")))?;
        if let Endpoint::Tcp { host, .. } = &endpoint
            && !host.is_loopback()
        {
            return Err(Failure::Usage(format!(
                "{SOCKET_VARIABLE} is not on this machine; a token would be readable on its way"
            )));
        }
        Ok(Self {
            endpoint,
            socket: socket.to_owned(),
            audience,
        })
    }

    pub(super) fn socket(&self) -> &str {
        &self.socket
    }

    pub(super) fn audience(&self) -> &str {
        &self.audience
    }

    /// A JWT-SVID of the identity that the API gives first, for our audience alone.
    pub(super) async fn fetch(&self) -> Result<SecretString, Fault> {
        // Also the refusal of a workload that the API does not know: a new one's entry may come late.
        let failed = |why: String| {
            let why = format!("the SPIFFE Workload API gave no token: {why}");
            Fault::transient(Failure::Unestablished(why), None)
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
