//! Who asks: what an attestor verified, and nothing that it did not.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize};

use super::limits::MAX_IDENTITY_BYTES;
use crate::clock::Timestamp;

/// A projected token is replaced once it is this old, however late it expires.
const REPLACED_AFTER_SECONDS: u64 = 86_400;

/// What stays unescaped in one value of an identity. The colon separates values, so it is not here.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Percent-encodes one claim's value, so that no value can pretend to be two.
#[must_use]
pub fn encode_value(value: &str) -> String {
    utf8_percent_encode(value, PLAIN).to_string()
}

/// An identity or instance that is empty, too long or not printable ASCII.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an identity has 1 to {MAX_IDENTITY_BYTES} bytes of printable ASCII without spaces")]
pub struct InvalidIdentity;

macro_rules! printable {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, sqlx::Type)]
        #[serde(try_from = "String", into = "String")]
        #[sqlx(transparent)]
        pub struct $name(String);

        impl $name {
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidIdentity;

            fn try_from(text: String) -> Result<Self, InvalidIdentity> {
                let printable = text.bytes().all(|b| b.is_ascii_graphic());
                if text.is_empty() || text.len() > MAX_IDENTITY_BYTES || !printable {
                    return Err(InvalidIdentity);
                }
                Ok(Self(text))
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

printable! {
    /// Who a workload is, across its runs: `<attestor>:<template>` of immutable, percent-encoded
    /// claims, for example `github:repo:1234:env:prod`.
    Identity
}
printable! {
    /// Which run of the workload it is: the verified per-run part, for example run, attempt and job.
    Instance
}

/// A claim as policy sees it. The type is the one its attestor declares; anything else was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ClaimValue {
    /// A truth value.
    Bool(bool),
    /// A whole number.
    Long(i64),
    /// Text.
    String(String),
    /// A set of texts.
    Set(BTreeSet<String>),
}

/// How often a piece of evidence may be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reuse {
    /// Exactly once.
    #[default]
    Once,
    /// Again, but only with a proof by the key it was first seen with.
    Bound,
    /// Once to open a task; afterwards only on that task, with its handle.
    PerTask,
}

/// One thing that the ledger's append must find unused, or used with the same binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OneTime {
    /// SHA-256 over what makes the evidence unique; never over a signature, which can be varied.
    pub key: [u8; 32],
    /// With a binding the key may be seen again, with the same binding.
    pub binding: Option<[u8; 32]>,
    /// Whether it has to be unused even so: a request that is repeated needs other evidence.
    pub must_be_new: bool,
    /// When it was issued, as it says itself; not later than it can first have been used.
    pub issued_at: Timestamp,
    /// When it may be forgotten: after this the evidence is refused for its age.
    pub expires_at: Timestamp,
}

/// The key that a workload proved to hold (RFC 7800 `cnf`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyBinding {
    /// A DPoP key: its RFC 7638 thumbprint in base64url (RFC 9449 `jkt`).
    #[serde(rename = "jkt")]
    Jkt(String),
    /// A TLS client certificate: SHA-256 of its DER in base64url (RFC 8705 `x5t#S256`).
    #[serde(rename = "x5t#S256")]
    X5t(String),
}

impl KeyBinding {
    /// One text that is equal only for equal bindings, as the store keeps it.
    #[must_use]
    pub fn to_text(&self) -> String {
        match self {
            Self::Jkt(value) => format!("jkt:{value}"),
            Self::X5t(value) => format!("x5t#S256:{value}"),
        }
    }

    /// How a token is presented that is bound so: a certificate shows itself beneath the request,
    /// so a token bound to one is a bearer token to OAuth's eyes (RFC 8705 §3).
    #[must_use]
    pub fn token_type(key: Option<&Self>) -> &'static str {
        match key {
            Some(Self::Jkt(_)) => "DPoP",
            Some(Self::X5t(_)) | None => "Bearer",
        }
    }

    /// The inverse of [`Self::to_text`].
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        if let Some(value) = text.strip_prefix("jkt:") {
            return Some(Self::Jkt(value.to_owned()));
        }
        text.strip_prefix("x5t#S256:")
            .map(|value| Self::X5t(value.to_owned()))
    }
}

/// The caller, verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// The attestor that verified the evidence.
    pub attestor: String,
    /// Who it is.
    pub identity: Identity,
    /// Which run of it, where the attestor can tell.
    pub instance: Option<Instance>,
    /// What policy may read: only claims that the attestor declares, with the declared types.
    pub claims: BTreeMap<String, ClaimValue>,
    /// When its attestor says that the evidence was made.
    pub issued_at: Timestamp,
    /// How often the evidence may be used.
    pub reuse: Reuse,
    /// The evidence's own one-time id; the append consumes it.
    pub evidence: OneTime,
    /// Further one-time ids that came with it, such as a DPoP proof's.
    pub proofs: Vec<OneTime>,
    /// The key that it proved to hold.
    pub key: Option<KeyBinding>,
}

impl Workload {
    /// Whether `identity` and `instance` are this caller's own. An owner without an instance is
    /// matched by identity alone; the caller must then show a handle as well.
    #[must_use]
    pub fn is(&self, identity: &Identity, instance: Option<&Instance>) -> bool {
        self.identity == *identity && self.instance.as_ref() == instance
    }

    /// When its holder can have the next evidence, where that does not follow from asking for it: a
    /// file is replaced once most of its token's life has passed. A kubelet does so after four
    /// fifths of it and after a day at the latest, a SPIRE agent after half.
    #[must_use]
    pub fn next_evidence_at(&self) -> Option<Timestamp> {
        let file = self.reuse == Reuse::PerTask;
        let life = self.issued_at.seconds_until(self.evidence.expires_at);
        let seconds = (life / 5 * 4).min(REPLACED_AFTER_SECONDS);
        file.then(|| self.issued_at.plus_seconds(seconds))
    }

    /// Everything that one use of its evidence uses up; the evidence's own id is the first.
    #[must_use]
    pub fn one_time(&self) -> Vec<OneTime> {
        let proofs = self.proofs.iter().copied();
        std::iter::once(self.evidence).chain(proofs).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_cannot_pretend_to_be_two() {
        assert_eq!(encode_value("a:env:prod"), "a%3Aenv%3Aprod");
        assert_eq!(encode_value("caf\u{e9}"), "caf%C3%A9");
    }

    #[test]
    fn an_identity_is_bounded_and_printable() {
        let longest = "x".repeat(MAX_IDENTITY_BYTES);
        assert!(Identity::try_from(longest.clone()).is_ok());
        for bad in [
            String::new(),
            longest + "x",
            "a b".into(),
            "a\u{0}".into(),
            "\u{e9}".into(),
        ] {
            assert_eq!(Identity::try_from(bad), Err(InvalidIdentity));
        }
    }
}
