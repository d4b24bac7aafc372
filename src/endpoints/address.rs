//! Decides which addresses are public, and provides a client that connects to no others.
//!
//! The broker fetches documents from URLs that it did not choose: an issuer that an attestor names,
//! and the key set that the issuer's metadata names. Such a URL must not lead into the host's
//! network. [`check_url`] checks a literal address before the request. A name is checked in the
//! resolver of [`PublicClient`], on the addresses to which it then connects, so a different second
//! DNS answer has no effect. In doubt an address is not public.
//!
//! A refused URL is a [`RefusedAddress`]. A refused name fails the request with a connection error
//! that has a [`RefusedAddress`] as its source. The settings that the caller passes decide on
//! proxies and redirects: with a proxy, the proxy would resolve the names. `attest::jwks` is the
//! only user of the client. Requests to configured endpoints and to AWS do not pass here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Client, ClientBuilder, RequestBuilder};
use url::{Host, Url};

/// A URL or address that is refused. An endpoint of the replica's configuration could permit it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the other names say it all")]
pub enum RefusedAddress {
    /// The URL is not https, or has a user, a password or a fragment.
    #[error("`{0}` is not a plain https URL")]
    Scheme(Url),
    /// A private, loopback, link-local or other special address.
    #[error(
        "`{host}` is at {address}, which is not a public address; if it is intended, add an \
        [endpoints.NAME] for it"
    )]
    Private {
        /// The host in the URL.
        host: String,
        address: IpAddr,
    },
    /// The name has no address.
    #[error("`{0}` has no address")]
    Nowhere(String),
}

/// A client for URLs without an endpoint in the configuration: only https, only public addresses.
#[derive(Clone, Debug)]
pub struct PublicClient(Client);

impl PublicClient {
    /// Creates a client with these settings.
    pub fn new(settings: ClientBuilder) -> Result<Self, reqwest::Error> {
        let client = settings.https_only(true).dns_resolver(Arc::new(PublicOnly));
        client.build().map(Self)
    }

    /// Creates a request for `url`.
    pub fn get(&self, url: &Url) -> Result<RequestBuilder, RefusedAddress> {
        check_url(url)?;
        Ok(self.0.get(url.clone()))
    }
}

/// Checks that a URL can lead to a public address, judged by its text.
pub fn check_url(url: &Url) -> Result<(), RefusedAddress> {
    let plain = url.username().is_empty() && url.password().is_none() && url.fragment().is_none();
    if url.scheme() != "https" || !plain {
        return Err(RefusedAddress::Scheme(url.clone()));
    }
    let refuse = |address: IpAddr| RefusedAddress::Private {
        host: url.host_str().unwrap_or_default().to_owned(),
        address,
    };
    match url.host() {
        Some(Host::Ipv4(address)) if !is_public(address.into()) => Err(refuse(address.into())),
        Some(Host::Ipv6(address)) if !is_public(address.into()) => Err(refuse(address.into())),
        Some(Host::Domain(name)) if is_localhost(name) => Err(refuse(Ipv4Addr::LOCALHOST.into())),
        Some(_) => Ok(()),
        None => Err(RefusedAddress::Scheme(url.clone())),
    }
}

/// Whether a URL's host is this machine, judged by its text.
#[must_use]
pub fn is_loopback_host(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

/// `localhost` and its subdomains are this machine (RFC 6761).
fn is_localhost(name: &str) -> bool {
    let name = name.trim_end_matches('.');
    name == "localhost" || name.ends_with(".localhost")
}

/// Resolves names like the system. Refuses a name if any of its addresses is not public.
struct PublicOnly;

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        let host = name.as_str().to_owned();
        Box::pin(async move {
            let found = tokio::net::lookup_host((host.as_str(), 0)).await?;
            let found = only_public(&host, found.collect())?;
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

/// The addresses of `host`, if all of them are public.
fn only_public(host: &str, found: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, RefusedAddress> {
    if found.is_empty() {
        return Err(RefusedAddress::Nowhere(host.to_owned()));
    }
    match found.iter().find(|address| !is_public(address.ip())) {
        None => Ok(found),
        Some(private) => Err(RefusedAddress::Private {
            host: host.to_owned(),
            address: private.ip(),
        }),
    }
}

/// Whether an address is a public Internet address. `false` in doubt.
#[must_use]
pub fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

/// By the registry of special-purpose addresses (RFC 6890), excluding multicast and reserved
/// addresses.
fn is_public_v4(address: Ipv4Addr) -> bool {
    const SPECIAL: [([u8; 4], u32); 15] = [
        ([0, 0, 0, 0], 8),
        ([10, 0, 0, 0], 8),
        ([100, 64, 0, 0], 10),
        ([127, 0, 0, 0], 8),
        ([169, 254, 0, 0], 16),
        ([172, 16, 0, 0], 12),
        ([192, 0, 0, 0], 24),
        ([192, 0, 2, 0], 24),
        ([192, 88, 99, 0], 24),
        ([192, 168, 0, 0], 16),
        ([198, 18, 0, 0], 15),
        ([198, 51, 100, 0], 24),
        ([203, 0, 113, 0], 24),
        ([224, 0, 0, 0], 4),
        ([240, 0, 0, 0], 4),
    ];
    !SPECIAL.iter().any(|(network, bits)| {
        let shift = 32 - bits;
        u32::from(address) >> shift == u32::from_be_bytes(*network) >> shift
    })
}

/// Only global unicast, excluding addresses that embed an IPv4 address with an arbitrary target. An
/// address with the well-known NAT64 prefix counts as the IPv4 address that it embeds.
fn is_public_v6(address: Ipv6Addr) -> bool {
    const GLOBAL: (u128, u32) = (0x2000 << 112, 3);
    const NAT64: (u128, u32) = (0x0064_ff9b << 96, 96);
    const SPECIAL: [(u128, u32); 4] = [
        // IETF protocol assignments, including Teredo.
        (0x2001 << 112, 23),
        // Documentation.
        (0x2001_0db8 << 96, 32),
        (0x3fff << 112, 20),
        // 6to4.
        (0x2002 << 112, 16),
    ];
    let bits = u128::from(address);
    let within =
        |(network, length): (u128, u32)| bits >> (128 - length) == network >> (128 - length);
    if within(NAT64) {
        let [.., a, b, c, d] = address.octets();
        return is_public_v4(Ipv4Addr::new(a, b, c, d));
    }
    within(GLOBAL) && !SPECIAL.into_iter().any(within)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_is_not_of_the_public_internet_is_refused() {
        for private in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.170",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::7f00:1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:169.254.169.254",
            "::ffff:0:127.0.0.1",
            "64:ff9b::127.0.0.1",
            "64:ff9b::a00:1",
            "64:ff9b:1::808:808",
            "100::1",
            "2001::1",
            "2001:0:7f00:1::",
            "2001:10::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "2002:808:808::1",
            "3fff::1",
            "4000::1",
            "5f00::1",
            "fc00::1",
            "fd12:3456::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!is_public(private.parse().unwrap()), "{private}");
        }
        for public in [
            "1.1.1.1",
            "8.8.8.8",
            "100.63.255.255",
            "100.128.0.1",
            "172.15.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "198.17.0.1",
            "198.20.0.1",
            "223.255.255.255",
            "::ffff:8.8.8.8",
            "64:ff9b::8.8.8.8",
            "2001:200::1",
            "2001:4860:4860::8888",
            "2606:4700:4700::1111",
            "2a00:1450:4001::1",
        ] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
    }

    #[test]
    fn a_url_that_names_this_machine_is_refused_however_it_is_written() {
        for private in [
            "https://127.0.0.1/",
            "https://127.1/",
            "https://0x7f000001/",
            "https://2130706433/",
            "https://017700000001/",
            "https://127.0.0.1./",
            "https://[::1]/",
            "https://[::ffff:127.0.0.1]/",
            "https://[64:ff9b::7f00:1]/",
            "https://localhost/",
            "https://LOCALHOST:8443/",
            "https://localhost./",
            "https://a.localhost/",
            "https://169.254.169.254/latest/meta-data",
            "http://issuer.example/",
            "file:///etc/passwd",
            "https://u:p@issuer.example/",
        ] {
            let Ok(url) = Url::parse(private) else {
                continue;
            };
            assert!(check_url(&url).is_err(), "{private}");
        }
        for public in [
            "https://issuer.example/",
            "https://8.8.8.8/",
            "https://[2606:4700::1]/",
        ] {
            assert_eq!(check_url(&public.parse().unwrap()), Ok(()), "{public}");
        }
    }

    #[test]
    fn one_private_address_among_public_ones_is_enough_to_refuse_a_name() {
        let found = |addresses: &[&str]| {
            let all = addresses
                .iter()
                .map(|a| SocketAddr::new(a.parse().unwrap(), 0));
            only_public("issuer.example", all.collect())
        };
        assert_eq!(found(&["8.8.8.8", "2606:4700::1"]).unwrap().len(), 2);
        for mixed in [["8.8.8.8", "10.0.0.1"], ["fd00::1", "8.8.8.8"]] {
            let refused = found(&mixed).unwrap_err();
            assert!(
                matches!(refused, RefusedAddress::Private { .. }),
                "{refused}"
            );
        }
        assert!(found(&[]).is_err());
    }

    /// The client's resolver decides, not a lookup before the request.
    #[tokio::test]
    async fn a_name_that_resolves_to_loopback_is_refused_where_it_is_connected_to() {
        let name: Name = "localhost".parse().unwrap();
        let refused = PublicOnly.resolve(name).await;
        let refused = refused.err().unwrap().to_string();
        assert!(refused.contains("not a public address"), "{refused}");
        // Skips the check of the URL's text, as another name that resolves to loopback would pass
        // it.
        let client = PublicClient::new(crate::outgoing::direct_client()).unwrap();
        let sent = client
            .0
            .get("https://localhost:9/")
            .send()
            .await
            .unwrap_err();
        let mut causes = String::new();
        let mut cause: Option<&dyn std::error::Error> = Some(&sent);
        while let Some(error) = cause {
            causes.push_str(&error.to_string());
            cause = error.source();
        }
        assert!(causes.contains("not a public address"), "{causes}");
    }
}
