//! Clients for AWS: at AWS's own hosts or at endpoints of the replica's configuration.
//!
//! [`Clients`] creates the clients of STS and IAM for a role. STS receives tokens of the broker's
//! federation, and any server could accept them. So the host of each request is compared, before it
//! is sent, with the required one ([`OnlyTo`]): the endpoint's, or AWS's own for the role's
//! partition and region. The credentials of the replica's host are used if the role is registered
//! that way and `[aws.own_credentials]` of the replica's configuration permits it. Environment
//! variables and files supply these credentials ([`mod@super::own_credentials`]) but cannot select a
//! host.
//!
//! A role whose endpoint, host or own credentials this replica lacks is [`MintError::Refused`]:
//! nothing was sent. A call has three attempts and a total time limit below the mint's lease. The
//! meaning of a failed call is decided in [`super::sts`]. [`super::sts`] and [`super::deny`] use
//! the clients.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_config::identity::IdentityCache;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_iam::config::Credentials;
use aws_sdk_sts::config::interceptors::BeforeTransmitInterceptorContextRef;
use aws_sdk_sts::config::{ConfigBag, Intercept, RuntimeComponents, SharedCredentialsProvider};
use aws_sdk_sts::error::BoxError;
use aws_smithy_http_client::tls::{TlsContext, TrustStore};
use tokio::sync::OnceCell;
use url::Url;

use super::http_client::http_client;
use super::own_credentials::own_credentials;
use crate::domain::endpoint::{EndpointName, EndpointUse};
use crate::domain::kind::aws::{AwsMode, AwsRevocation, AwsRole, RoleArn};
use crate::endpoints::{Endpoint, EndpointTable, authorities};
use crate::mint::MintError;

/// Number of attempts of one call, separated by pauses with jitter.
const ATTEMPTS: u32 = 3;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time limit of all attempts together: well within the mint's lease.
const CALL_TIMEOUT: Duration = Duration::from_secs(12);

/// Region, endpoint, and whether the broker's own credentials are used.
type Way = (String, Option<EndpointName>, bool);

/// One SDK configuration with its connections for each combination of region, endpoint and
/// credentials. The registrations limit their number.
#[derive(Default)]
pub(super) struct Clients {
    endpoints: Arc<EndpointTable>,
    known: Mutex<BTreeMap<Way, SdkConfig>>,
    /// The credentials of the replica's host, which are searched for once.
    own: OnceCell<Option<SharedCredentialsProvider>>,
}

impl Clients {
    pub(super) fn new(endpoints: Arc<EndpointTable>) -> Self {
        Self {
            endpoints,
            known: Mutex::default(),
            own: OnceCell::new(),
        }
    }

    /// The STS client for a role.
    pub(super) async fn sts(&self, role: &AwsRole) -> Result<aws_sdk_sts::Client, MintError> {
        let endpoint = self.endpoint(role.endpoint.as_ref(), EndpointUse::Sts)?;
        let only = OnlyTo::new("sts", role, endpoint)?;
        let config = self.config(role, role.endpoint.as_ref(), endpoint).await?;
        let builder = aws_sdk_sts::config::Builder::from(&config).interceptor(only);
        Ok(aws_sdk_sts::Client::from_conf(builder.build()))
    }

    /// The IAM client for a role's deny list, with these credentials or the broker's own.
    pub(super) async fn iam(
        &self,
        role: &AwsRole,
        list: &AwsRevocation,
        credentials: Option<Credentials>,
    ) -> Result<aws_sdk_iam::Client, MintError> {
        let endpoint = self.endpoint(list.endpoint.as_ref(), EndpointUse::Iam)?;
        let only = OnlyTo::new("iam", role, endpoint)?;
        let config = self.config(role, list.endpoint.as_ref(), endpoint).await?;
        let mut builder = aws_sdk_iam::config::Builder::from(&config).interceptor(only);
        if let Some(credentials) = credentials {
            builder = builder.credentials_provider(credentials);
        }
        Ok(aws_sdk_iam::Client::from_conf(builder.build()))
    }

    /// Checks that the replica has the endpoints that a role and its deny list name, and may use
    /// its own credentials if the role needs them. The error names the missing setting.
    pub(super) fn check(&self, role: &AwsRole, list: &AwsRevocation) -> Result<(), String> {
        let allowed = self.endpoints.check_role(role);
        allowed.map_err(|unfit| unfit.to_string())?;
        let named = [
            (role.endpoint.as_ref(), EndpointUse::Sts),
            (list.endpoint.as_ref(), EndpointUse::Iam),
        ];
        for (name, used_for) in named {
            if let Some(name) = name {
                let found = self.endpoints.find(name, used_for);
                found.map_err(|unfit| unfit.to_string())?;
            }
        }
        Ok(())
    }

    fn endpoint(
        &self,
        name: Option<&EndpointName>,
        used_for: EndpointUse,
    ) -> Result<Option<&Endpoint>, MintError> {
        let found = name.map(|name| self.endpoints.find(name, used_for));
        found
            .transpose()
            .map_err(|unfit| MintError::Refused(unfit.to_string()))
    }

    /// The credentials of the replica's host, if the role uses them and the configuration permits
    /// it.
    async fn own(&self, role: &AwsRole) -> Result<Option<SharedCredentialsProvider>, MintError> {
        let region = self.endpoints.own_credentials_region(role);
        let region = region.map_err(|unfit| MintError::Refused(unfit.to_string()))?;
        let own = self.own.get_or_init(|| own_credentials(region)).await;
        Ok(own.clone())
    }

    async fn config(
        &self,
        role: &AwsRole,
        name: Option<&EndpointName>,
        endpoint: Option<&Endpoint>,
    ) -> Result<SdkConfig, MintError> {
        let own = role.mode == AwsMode::AssumeRole;
        if own {
            // Check the role even if the SDK configuration exists already: another role of the
            // region may have created it.
            let allowed = self.endpoints.check_role(role);
            allowed.map_err(|unfit| MintError::Refused(unfit.to_string()))?;
        }
        let key = (role.region.clone(), name.cloned(), own);
        let known = self.known.lock().ok();
        if let Some(config) = known.and_then(|known| known.get(&key).cloned()) {
            return Ok(config);
        }
        let credentials = if own { self.own(role).await? } else { None };
        let config = sdk_config(&role.region, endpoint, credentials).await?;
        if let Ok(mut known) = self.known.lock() {
            known.insert(key, config.clone());
        }
        Ok(config)
    }
}

/// Creates an SDK configuration with these credentials or without any.
async fn sdk_config(
    region: &str,
    endpoint: Option<&Endpoint>,
    own: Option<SharedCredentialsProvider>,
) -> Result<SdkConfig, MintError> {
    let context = match endpoint.and_then(Endpoint::ca_file) {
        None => None,
        Some(path) => {
            let unreadable = || MintError::Refused(format!("{} is unreadable", path.display()));
            let pem = tokio::fs::read(path).await.map_err(|_| unreadable())?;
            authorities(&pem).ok_or_else(unreadable)?;
            let store = TrustStore::empty().with_pem_certificate(pem);
            let context = TlsContext::builder().with_trust_store(store).build();
            Some(context.map_err(|_| unreadable())?)
        }
    };
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .operation_attempt_timeout(ATTEMPT_TIMEOUT)
        .operation_timeout(CALL_TIMEOUT)
        .build();
    let mut config = SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(region.to_owned()))
        .http_client(http_client(context))
        .timeout_config(timeouts)
        .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS))
        .identity_cache(IdentityCache::lazy().build());
    config.set_endpoint_url(endpoint.map(|endpoint| endpoint.url().to_string()));
    config.set_credentials_provider(own);
    Ok(config.build())
}

/// Permits a request only to its intended server.
#[derive(Clone, Debug)]
enum OnlyTo {
    Endpoint(Endpoint),
    /// AWS's own host, over https.
    Amazon(String),
}

impl OnlyTo {
    fn new(service: &str, role: &AwsRole, endpoint: Option<&Endpoint>) -> Result<Self, MintError> {
        if let Some(endpoint) = endpoint {
            return Ok(Self::Endpoint(endpoint.clone()));
        }
        let arn = RoleArn::parse(&role.role_arn);
        let host = arn.and_then(|arn| arn.service_host(service, &role.region));
        let host = host.ok_or_else(|| {
            MintError::Refused(format!("{service} has no host for the role and its region"))
        })?;
        Ok(Self::Amazon(host))
    }

    fn allows(&self, url: &Url) -> bool {
        match self {
            Self::Endpoint(endpoint) => endpoint.serves(url),
            Self::Amazon(host) => {
                url.scheme() == "https"
                    && url.host_str() == Some(host)
                    && url.port_or_known_default() == Some(443)
            }
        }
    }
}

impl Intercept for OnlyTo {
    fn name(&self) -> &'static str {
        "only to the intended server"
    }

    fn read_before_transmit(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let uri = context.request().uri();
        if Url::parse(uri).is_ok_and(|url| self.allows(&url)) {
            return Ok(());
        }
        Err(
            format!("refused to send a request to `{uri}`, which is not the intended server")
                .into(),
        )
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn role(region: &str, endpoint: Option<&str>) -> AwsRole {
        serde_json::from_value(json!({
            "role_arn": "arn:aws:iam::123456789012:role/reports", "mode": "web_identity",
            "region": region, "endpoint": endpoint,
        }))
        .unwrap()
    }

    #[test]
    fn a_request_leaves_only_for_the_server_that_is_meant() {
        let only = OnlyTo::new("sts", &role("eu-central-1", None), None).unwrap();
        for (url, passes) in [
            ("https://sts.eu-central-1.amazonaws.com/", true),
            ("https://sts.eu-central-1.amazonaws.com:443/", true),
            ("https://sts.eu-central-1.amazonaws.com:8443/", false),
            ("http://sts.eu-central-1.amazonaws.com/", false),
            ("https://sts.us-east-1.amazonaws.com/", false),
            (
                "https://sts.eu-central-1.amazonaws.com.evil.example/",
                false,
            ),
            ("https://evil.example/sts.eu-central-1.amazonaws.com", false),
            (
                "https://sts.eu-central-1.amazonaws.com@evil.example/",
                false,
            ),
        ] {
            assert_eq!(only.allows(&url.parse().unwrap()), passes, "{url}");
        }
    }

    #[tokio::test]
    async fn a_region_that_would_name_another_host_gets_no_client() {
        let clients = Clients::default();
        for region in [
            "x.evil.example/",
            "eu-central-1.evil.example",
            "eu-central-1/",
            "evil.example#",
            "cn-north-1",
            "",
        ] {
            let refused = clients.sts(&role(region, None)).await;
            assert!(matches!(refused, Err(MintError::Refused(_))), "{region}");
        }
    }

    #[tokio::test]
    async fn an_endpoint_that_the_replica_does_not_have_gets_no_client() {
        let spec = json!({"keys": {"url": "https://keys.example/", "use": ["keys"]}});
        let table = EndpointTable::new(&serde_json::from_value(spec).unwrap()).unwrap();
        let clients = Clients::new(Arc::new(table));
        for name in ["nowhere", "keys"] {
            let refused = clients.sts(&role("eu-central-1", Some(name))).await;
            let Err(MintError::Refused(told)) = refused else {
                panic!("{name} gave a client");
            };
            assert!(told.contains(&format!("`{name}`")), "{told}");
        }
    }
}
