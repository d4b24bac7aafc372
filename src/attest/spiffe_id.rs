//! SPIFFE IDs and the names of trust domains.
//!
//! [`SpiffeId`] holds the two parts of an ID. An ID is `spiffe://`, a trust domain and a path of at
//! least one segment.
//!
//! The rule: an ID is split and compared as trust domain and path, never by a prefix of its text. A
//! text with a port, a user, a query, an encoded character or an empty segment is no ID, and the
//! result is `None`. [`super::spiffe`] reads the subjects of tokens with this file, and
//! [`super::checks`] the trust domain of the configuration.

/// The longest SPIFFE ID and the longest trust domain that the standard permits.
const MAX_ID_BYTES: usize = 2048;
const MAX_TRUST_DOMAIN_BYTES: usize = 255;

/// The parts of a SPIFFE ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SpiffeId<'a> {
    pub(super) trust_domain: &'a str,
    /// The path without its first slash, never empty.
    pub(super) path: &'a str,
}

impl<'a> SpiffeId<'a> {
    /// The parts of `text`; `None` if it is not a SPIFFE ID.
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        let rest = text.strip_prefix("spiffe://")?;
        let (trust_domain, path) = rest.split_once('/')?;
        let segment = |part: &str| {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
            !part.is_empty() && part != "." && part != ".." && part.bytes().all(plain)
        };
        let good = text.len() <= MAX_ID_BYTES
            && is_trust_domain(trust_domain)
            && path.split('/').all(segment);
        good.then_some(Self { trust_domain, path })
    }
}

/// Whether `text` can be the name of a trust domain.
pub(super) fn is_trust_domain(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._".contains(&b);
    (1..=MAX_TRUST_DOMAIN_BYTES).contains(&text.len()) && text.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spiffe_id_is_taken_apart_or_refused() {
        let good = SpiffeId::parse("spiffe://acme.example/ns/prod/sa/x_1.Y").unwrap();
        assert_eq!(good.trust_domain, "acme.example");
        assert_eq!(good.path, "ns/prod/sa/x_1.Y");
        for bad in [
            "spiffe://acme.example",
            "spiffe://acme.example/",
            "spiffe://acme.example/a/",
            "spiffe://acme.example//a",
            "spiffe://acme.example/a/../b",
            "spiffe://acme.example/a/./b",
            "spiffe://acme.example/a%2fb",
            "spiffe://acme.example/a?b",
            "spiffe://acme.example/a#b",
            "spiffe://acme.example:443/a",
            "spiffe://user@acme.example/a",
            "spiffe://Acme.example/a",
            "SPIFFE://acme.example/a",
            "spiffe:///a",
            "https://acme.example/a",
            "spiffe://acme.example/\u{e9}",
        ] {
            assert_eq!(SpiffeId::parse(bad), None, "{bad}");
        }
        let long = format!("spiffe://acme.example/{}", "a".repeat(MAX_ID_BYTES));
        assert_eq!(SpiffeId::parse(&long), None);
    }
}
