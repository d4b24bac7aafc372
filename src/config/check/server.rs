//! Checks `[server]` and `[metrics]`: the issuer, TLS, the proxies, the listeners and the times.
//!
//! The rule: nothing that other machines can reach is served in the clear, unless the operator says
//! that something in front of it protects it. Each method of [`Checker`] reports the faults of one
//! part; `super::Checker::check` calls them.

use ipnet::IpNet;
use url::Url;

use super::super::sections::{self, ClientCertificates};
use super::{Checker, is_plain_on_loopback};

impl Checker<'_> {
    pub(super) fn issuer(&mut self, file: &sections::File) {
        let key = "server.issuer";
        let remedy = "give the external base URL, for example https://broker.example";
        let Ok(url) = Url::parse(&file.server.issuer) else {
            return self.refuse(key, "is not a URL", remedy);
        };
        let secure = url.scheme() == "https" && url.host().is_some();
        if !(secure || is_plain_on_loopback(&url)) {
            let remedy = "use https; http is for loopback addresses only";
            return self.refuse(key, "is neither https nor http on loopback", remedy);
        }
        if url.query().is_some() || url.fragment().is_some() {
            return self.refuse(key, "has a query or a fragment", "remove it");
        }
        if !url.username().is_empty() || url.password().is_some() {
            return self.refuse(key, "has a user or a password", "remove it");
        }
        if file.server.issuer.ends_with('/') {
            let remedy = "remove it: tokens carry the issuer exactly as written";
            return self.refuse(key, "has a trailing slash", remedy);
        }
        if url.path() != "/" {
            let remedy = "give the broker its own host name and remove the path";
            return self.refuse(key, "has a path", remedy);
        }
        if url.as_str().trim_end_matches('/') != file.server.issuer {
            let remedy = format!("write {}", url.as_str().trim_end_matches('/'));
            return self.refuse(key, "is not in its normal form", remedy);
        }
        let tls = &file.server.tls;
        if url.scheme() == "https" && tls.certificate.is_none() && !tls.terminated_upstream {
            self.refuse(
                key,
                "is https, but nothing serves TLS",
                "configure [server.tls], or set terminated_upstream there",
            );
        }
        if url.scheme() == "http" && tls.certificate.is_some() {
            let remedy = "write https, or remove the certificate";
            self.refuse(key, "is http, but [server.tls] serves TLS", remedy);
        }
    }

    pub(super) fn tls(&mut self, file: &sections::File) {
        let tls = &file.server.tls;
        match (&tls.certificate, &tls.private_key) {
            (Some(_), None) => self.refuse(
                "server.tls.certificate",
                "has no private key",
                "add private_key",
            ),
            (None, Some(_)) => self.refuse(
                "server.tls.private_key",
                "has no certificate",
                "add certificate",
            ),
            _ => {}
        }
        if tls.client_ca.is_some() && tls.certificate.is_none() {
            let remedy = "the broker must serve TLS itself: add certificate and private_key";
            self.refuse("server.tls.client_ca", "has no effect without TLS", remedy);
        } else if tls.client_ca.is_some() && tls.client_certificates == ClientCertificates::None {
            let remedy = "write client_certificates = \"bind\", or remove it";
            self.refuse(
                "server.tls.client_ca",
                "has no effect: client certificates are not requested",
                remedy,
            );
        }
        if tls.client_certificates == ClientCertificates::Bind && tls.certificate.is_none() {
            // Only the end of the TLS connection sees the client's key. Clients that bypass a proxy
            // could forge a header with which the proxy passes the key on.
            self.refuse(
                "server.tls.client_certificates",
                "cannot bind tokens: the broker does not see client certificates",
                "the broker must serve TLS itself: add certificate and private_key, or \
                 write \"none\"",
            );
        }
        if tls.terminated_upstream && (tls.certificate.is_some() || tls.private_key.is_some()) {
            self.refuse(
                "server.tls.terminated_upstream",
                "contradicts the configured certificate",
                "keep only one of the two",
            );
        }
        let loopback = file.server.listen.ip().is_loopback();
        if !loopback && tls.certificate.is_none() && !tls.terminated_upstream {
            self.refuse(
                "server.listen",
                "is reachable from other machines without TLS",
                "configure [server.tls], or set terminated_upstream there, or listen \
                 on 127.0.0.1",
            );
        }
    }

    /// Refuses networks that may be wider than intended: clients in them could choose the address
    /// that the broker records for them.
    pub(super) fn trusted_proxies(&mut self, file: &sections::File) {
        for (index, network) in file.server.trusted_proxies.iter().enumerate() {
            let key = format!("server.trusted_proxies.{index}");
            if network.prefix_len() == 0 {
                let remedy = "name only the networks of the proxies";
                self.refuse(&key, "contains every address", remedy);
            } else if network.trunc() != *network {
                let remedy = format!("write {}", network.trunc());
                self.refuse(&key, "has bits beyond its prefix", remedy);
            } else if let IpNet::V6(v6) = network
                && v6.addr().to_ipv4_mapped().is_some()
            {
                let remedy = "write it as an IPv4 network, such as 10.0.0.0/8";
                self.refuse(&key, "maps IPv4 addresses", remedy);
            }
        }
    }

    pub(super) fn metrics(&mut self, file: &sections::File) {
        let metrics = &file.metrics;
        let Some(listen) = metrics.listen else {
            if metrics.trusted_network {
                self.refuse(
                    "metrics.trusted_network",
                    "has no effect without `listen`",
                    "add metrics.listen, or remove it",
                );
            }
            return;
        };
        if !listen.ip().is_loopback() && !metrics.trusted_network {
            self.refuse(
                "metrics.listen",
                "shows metrics to other machines without credentials",
                "listen on 127.0.0.1, or set `trusted_network = true` if only clients that may \
                 read metrics can reach it",
            );
        }
        let server = file.server.listen;
        let overlap = listen.ip() == server.ip()
            || listen.ip().is_unspecified()
            || server.ip().is_unspecified();
        if listen.port() != 0 && listen.port() == server.port() && overlap {
            self.refuse(
                "metrics.listen",
                "is the address of server.listen, which callers can reach",
                "give metrics another port",
            );
        }
    }

    pub(super) fn times(&mut self, file: &sections::File) {
        let server = &file.server;
        let ranges = [
            ("drain_seconds", server.drain_seconds, 0, 300),
            ("finish_seconds", server.finish_seconds, 1, 600),
            (
                "request_timeout_seconds",
                server.request_timeout_seconds,
                1,
                300,
            ),
            (
                "header_timeout_seconds",
                server.header_timeout_seconds,
                1,
                60,
            ),
            (
                "max_connections",
                server.max_connections as u64,
                1,
                1_000_000,
            ),
            (
                "max_connections_per_address",
                server.connections_per_address() as u64,
                1,
                1_000_000,
            ),
        ];
        for (name, value, min, max) in ranges {
            self.range(&format!("server.{name}"), value, min, max);
        }
        if server.finish_seconds < server.request_timeout_seconds {
            self.refuse(
                "server.finish_seconds",
                "is shorter than request_timeout_seconds: a stop would interrupt requests",
                format!("give at least {}", server.request_timeout_seconds),
            );
        }
        if server.header_timeout_seconds > server.request_timeout_seconds {
            self.refuse(
                "server.header_timeout_seconds",
                "is longer than request_timeout_seconds",
                format!("give at most {}", server.request_timeout_seconds),
            );
        }
    }
}
