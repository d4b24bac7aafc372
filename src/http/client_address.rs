//! The address of the client behind trusted proxies.
//!
//! A header that is not an address ends the list and is no error: the request then counts under the
//! proxy that forwarded it. `super::limits` and the log use the address.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::http::HeaderMap;
use ipnet::IpNet;

const X_FORWARDED_FOR: &str = "x-forwarded-for";

/// The address that a request is counted and logged under, in its canonical form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ClientAddress(pub(super) IpAddr);

/// The networks of the proxies whose `X-Forwarded-For` is trusted.
#[derive(Clone, Debug, Default)]
pub(super) struct TrustedProxies(Arc<[IpNet]>);

impl TrustedProxies {
    pub(super) fn new(networks: &[IpNet]) -> Self {
        Self(networks.into())
    }

    pub(super) fn contain(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }

    /// The client's address: the last one that a trusted proxy reported and that is not itself a
    /// trusted proxy's.
    ///
    /// Each proxy appends the address of its own peer. So the list is read from its end, and an
    /// entry counts only if the address after it is trusted. Entries that a client wrote itself
    /// come before the entry that the first trusted proxy appended, and are not read. An entry that
    /// is not an address ends the list: the request then counts under the address of the proxy that
    /// forwarded it.
    pub(super) fn client(&self, peer: IpAddr, headers: &HeaderMap) -> ClientAddress {
        let mut client = peer.to_canonical();
        let values = headers.get_all(X_FORWARDED_FOR).iter().rev();
        let mut entries = values.flat_map(|value| value.as_bytes().rsplit(|byte| *byte == b','));
        while self.contain(client) {
            let Some(address) = entries.next().and_then(address_of) else {
                break;
            };
            client = address.to_canonical();
        }
        ClientAddress(client)
    }
}

/// The address of one entry; some proxies add a port to it.
fn address_of(entry: &[u8]) -> Option<IpAddr> {
    let entry = std::str::from_utf8(entry).ok()?.trim();
    if let Ok(address) = entry.parse() {
        return Some(address);
    }
    if let Ok(with_port) = entry.parse::<SocketAddr>() {
        return Some(with_port.ip());
    }
    let bare = entry.strip_prefix('[')?.strip_suffix(']')?;
    bare.parse().ok().map(IpAddr::V6)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn client(peer: &str, forwarded: &[&str]) -> String {
        let networks = ["10.0.0.0/8", "127.0.0.1/32", "2001:db8:a::/48"];
        let networks = networks.map(|network| network.parse().unwrap());
        let mut headers = HeaderMap::new();
        for value in forwarded {
            headers.append(X_FORWARDED_FOR, HeaderValue::from_str(value).unwrap());
        }
        let proxies = TrustedProxies::new(&networks);
        let ClientAddress(address) = proxies.client(peer.parse().unwrap(), &headers);
        address.to_string()
    }

    #[test]
    fn the_client_is_the_last_address_that_is_not_a_trusted_proxys() {
        for (peer, forwarded, wanted) in [
            ("10.0.0.1", &["192.0.2.7"][..], "192.0.2.7"),
            ("10.0.0.1", &["192.0.2.7, 10.1.1.1"], "192.0.2.7"),
            ("10.0.0.1", &["192.0.2.7", "10.1.1.1,10.2.2.2"], "192.0.2.7"),
            ("::ffff:10.0.0.1", &["192.0.2.7"], "192.0.2.7"),
            ("10.0.0.1", &["::ffff:192.0.2.7"], "192.0.2.7"),
            ("2001:db8:a::1", &["2001:db8:b::7"], "2001:db8:b::7"),
            // With a port.
            ("10.0.0.1", &["192.0.2.7:4711"], "192.0.2.7"),
            ("10.0.0.1", &["[2001:db8:b::7]:4711"], "2001:db8:b::7"),
            ("10.0.0.1", &["[2001:db8:b::7]"], "2001:db8:b::7"),
            // Every entry is a proxy, or there is no entry.
            ("10.0.0.1", &["10.3.3.3, 10.1.1.1"], "10.3.3.3"),
            ("10.0.0.1", &[], "10.0.0.1"),
        ] {
            assert_eq!(client(peer, forwarded), wanted, "{peer} {forwarded:?}");
        }
    }

    #[test]
    fn a_client_cannot_choose_its_address() {
        for (peer, forwarded, wanted) in [
            // A peer that is not a proxy.
            ("192.0.2.7", &["203.0.113.1"][..], "192.0.2.7"),
            ("192.0.2.7", &["10.0.0.1"], "192.0.2.7"),
            // The client's entries come before the entry that the proxy appended.
            ("10.0.0.1", &["203.0.113.1, 192.0.2.7"], "192.0.2.7"),
            ("10.0.0.1", &["203.0.113.1", "192.0.2.7"], "192.0.2.7"),
            ("10.0.0.1", &["10.9.9.9, 192.0.2.7"], "192.0.2.7"),
            ("10.0.0.1", &["junk, 192.0.2.7, 10.1.1.1"], "192.0.2.7"),
            // An entry that is not an address ends the list.
            ("10.0.0.1", &["203.0.113.1, unknown"], "10.0.0.1"),
            ("10.0.0.1", &["203.0.113.1,"], "10.0.0.1"),
            ("10.0.0.1", &["203.0.113.1, 10.1.1.1, "], "10.0.0.1"),
            ("10.0.0.1", &["203.0.113.1, _hidden, 10.1.1.1"], "10.1.1.1"),
            ("10.0.0.1", &["203.0.113.1 192.0.2.7"], "10.0.0.1"),
            ("10.0.0.1", &["192.0.2.7:99999"], "10.0.0.1"),
            ("10.0.0.1", &["192.0.2.0/24"], "10.0.0.1"),
        ] {
            assert_eq!(client(peer, forwarded), wanted, "{peer} {forwarded:?}");
        }
    }
}
