//! Finds the AWS credentials of the replica's host in the sources of AWS's tools: environment,
//! files, container, instance.
//!
//! [`own_credentials`] returns a provider that can renew them. To find them, the provider chain of
//! AWS's SDK calls servers, and sends some of them a token of the host. Environment variables and
//! files can name such a server. So the chain's requests may only go to STS of the region in the
//! replica's configuration, and to the link-local addresses of the metadata services.
//!
//! Every other request is refused before it is sent, with an error in the log; the chain then tries
//! its next source. A host without credentials is `None`. [`super::clients`] and the start of the
//! broker call this file; `endpoints::own_credentials` decides which roles may use the credentials.

use aws_config::{BehaviorVersion, Region};
use aws_sdk_sts::config::{
    HttpClient, RuntimeComponents, SharedCredentialsProvider, SharedHttpClient,
};
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::result::ConnectorError;
use tracing::error;
use url::Url;

use super::http_client::http_client;
use crate::domain::kind::aws::sts_host;

/// The metadata services of instances, ECS tasks and EKS pods.
const METADATA_HOSTS: [&str; 5] = [
    "169.254.169.254",
    "[fd00:ec2::254]",
    "169.254.170.2",
    "169.254.170.23",
    "[fd00:ec2::23]",
];

/// The credentials of the replica's host for this region, as a provider that can renew them. `None`
/// if there are none.
pub async fn own_credentials(region: &str) -> Option<SharedCredentialsProvider> {
    let client = SourceClient {
        sources: Sources {
            sts: sts_host(region),
        },
        inner: http_client(None),
    };
    let config = aws_config::defaults(BehaviorVersion::latest())
        .region(Region::new(region.to_owned()))
        .http_client(client)
        .load()
        .await;
    config.credentials_provider()
}

/// The servers that may be asked for the host's credentials.
#[derive(Clone, Debug)]
struct Sources {
    /// The host of STS in the configured region; `None` if that is not an AWS region.
    sts: Option<String>,
}

impl Sources {
    fn allow(&self, url: &Url) -> bool {
        let Some(host) = url.host_str() else {
            return false;
        };
        match url.scheme() {
            "https" => self.sts.as_deref() == Some(host) && url.port().is_none(),
            "http" => METADATA_HOSTS.contains(&host) && url.port().is_none(),
            _ => false,
        }
    }
}

/// A client that connects only to [`Sources`].
#[derive(Clone, Debug)]
struct SourceClient {
    sources: Sources,
    inner: SharedHttpClient,
}

impl HttpClient for SourceClient {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(SourceConnector {
            sources: self.sources.clone(),
            inner: self.inner.http_connector(settings, components),
        })
    }
}

#[derive(Clone, Debug)]
struct SourceConnector {
    sources: Sources,
    inner: SharedHttpConnector,
}

impl HttpConnector for SourceConnector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let url = Url::parse(request.uri());
        if url.as_ref().is_ok_and(|url| self.sources.allow(url)) {
            return self.inner.call(request);
        }
        let host = url.ok().map(|url| url.origin().ascii_serialization());
        let host = host.unwrap_or_default();
        error!(
            host,
            sts = self.sources.sts,
            "refused to ask a server for the AWS credentials of this host that is neither STS of \
            the configured region nor a metadata service; remove AWS_ENDPOINT_URL and similar \
            settings from the environment and from AWS's configuration files"
        );
        let refused = format!("`{host}` must not be asked for the AWS credentials of this host");
        HttpConnectorFuture::ready(Err(ConnectorError::user(refused.into())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_asked_of_the_regions_sts_and_of_metadata_services_alone() {
        let of = |region| Sources {
            sts: sts_host(region),
        };
        for (region, url, allowed) in [
            (
                "eu-central-1",
                "https://sts.eu-central-1.amazonaws.com/",
                true,
            ),
            (
                "cn-north-1",
                "https://sts.cn-north-1.amazonaws.com.cn/",
                true,
            ),
            (
                "eu-central-1",
                "http://169.254.169.254/latest/api/token",
                true,
            ),
            (
                "eu-central-1",
                "http://[fd00:ec2::254]/latest/api/token",
                true,
            ),
            ("eu-central-1", "http://169.254.170.23/v1/credentials", true),
            (
                "eu-central-1",
                "http://sts.eu-central-1.amazonaws.com/",
                false,
            ),
            (
                "eu-central-1",
                "https://sts.eu-central-1.amazonaws.com:8443/",
                false,
            ),
            (
                "eu-central-1",
                "https://sts.us-east-1.amazonaws.com/",
                false,
            ),
            (
                "eu-central-1",
                "https://sts.cn-north-1.amazonaws.com.cn/",
                false,
            ),
            (
                "eu-central-1",
                "https://sts.eu-central-1.amazonaws.com.evil.example/",
                false,
            ),
            ("eu-central-1", "http://127.0.0.1:7999/", false),
            ("eu-central-1", "http://169.254.169.254:8080/", false),
            ("eu-central-1", "https://evil.example/", false),
            ("garage", "https://sts.garage.amazonaws.com/", false),
            ("garage", "http://169.254.170.2/v2/credentials", true),
        ] {
            let url: Url = url.parse().unwrap();
            assert_eq!(of(region).allow(&url), allowed, "{region} {url}");
        }
    }
}
