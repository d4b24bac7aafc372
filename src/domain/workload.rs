//! The caller: the facts that an attestor verified.
//!
//! [`Workload`] is the verified caller: its [`Identity`] and [`Instance`], the claims that policy
//! may read, and the [`OneTime`] ids of its evidence. [`Reuse`] says how often evidence may be
//! used, and [`KeyBinding`] which key the caller proved.
//!
//! An identity or instance is nonempty, printable ASCII of limited length; other text is refused
//! with [`InvalidIdentity`]. [`encode_value`] escapes each value, so that one value cannot look
//! like two.
//!
//! The attestors of `attest` make a [`Workload`] after they verified the evidence; this file
//! verifies nothing. A one-time id prevents no replay by itself: the ledger's append consumes it,
//! and refuses an entry whose id was used before, unless with the same binding.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::limits::MAX_IDENTITY_BYTES;
use crate::clock::Timestamp;

/// A projected token is replaced at this age at the latest, even if it expires later.
const REPLACED_AFTER_SECONDS: u64 = 86_400;

/// The characters that an identity's value contains unescaped. The colon is not among them, because
/// it separates values.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Percent-encodes the value of one claim, so that it cannot look like two values.
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
            /// The value as text.
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
    /// The identity of a workload across its runs: `<attestor>:<template>` of immutable,
    /// percent-encoded claims, for example `github:repo:1234:env:prod`.
    Identity
}
printable! {
    /// The instance of a workload: the verified values of one run, for example run, attempt and
    /// job.
    Instance
}

/// A claim in the form that policy reads. The attestor declares the type; other types are refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ClaimValue {
    /// A JSON boolean: true or false.
    Bool(bool),
    /// A whole number of 64 bits.
    Long(i64),
    /// Any text, as a JSON string.
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
    /// Repeatedly, but only with a proof by the key of its first use.
    Bound,
    /// Once to open a task. Afterwards only for that task, with its handle.
    PerTask,
}

/// The identity of evidence: the second of issue that the evidence states, and [`OneTime::key`].
///
/// Rows of used evidence have it as their key. The time stands first, so that new rows are added at
/// the end of their index, and not all over it. It comes from the evidence alone and never from a
/// clock or a configuration: the same evidence has the same id each time it is presented.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OneTimeId([u8; 36]);

impl OneTimeId {
    /// The bytes: the time as a big-endian number of 4 bytes, then the key.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Reads [`Self::as_bytes`]. `None` for another length.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        <[u8; 36]>::try_from(bytes).ok().map(Self)
    }
}

/// A one-time id. The ledger's append requires that it is unused, or used with the same binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OneTime {
    /// SHA-256 over the unique parts of the evidence; never over a signature, which can be varied.
    /// With `issued_at` it is the identity of the evidence ([`Self::id`]).
    pub key: [u8; 32],
    /// A digest of the key or the task that the evidence serves. The id may be used again with the
    /// same binding. `None` if it may be used once only.
    pub binding: Option<[u8; 32]>,
    /// Whether it must be unused even with the same binding. A repeated request then needs other
    /// evidence.
    pub must_be_new: bool,
    /// The time of issue that the evidence states; not later than its first possible use. It must
    /// not depend on when or by whom the evidence is appraised.
    pub issued_at: Timestamp,
    /// The time after which the evidence is refused for its age, so the id can be deleted.
    pub expires_at: Timestamp,
}

impl OneTime {
    /// The identity under which its use is recorded. Times outside of 1970 to 2106, which no
    /// evidence has, count as the nearest of these.
    #[must_use]
    pub fn id(&self) -> OneTimeId {
        let seconds = self.issued_at.seconds().clamp(0, i64::from(u32::MAX));
        self.id_at(u32::try_from(seconds).unwrap_or(u32::MAX))
    }

    /// The identity under which a broker before schema 5 recorded its use: without a time.
    #[must_use]
    pub fn earlier_id(&self) -> OneTimeId {
        self.id_at(0)
    }

    fn id_at(&self, seconds: u32) -> OneTimeId {
        let mut bytes = [0; 36];
        let (time, key) = bytes.split_at_mut(4);
        time.copy_from_slice(&seconds.to_be_bytes());
        key.copy_from_slice(&self.key);
        OneTimeId(bytes)
    }
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
    /// A text that is equal only for equal bindings, as stored.
    #[must_use]
    pub fn to_text(&self) -> String {
        match self {
            Self::Jkt(value) => format!("jkt:{value}"),
            Self::X5t(value) => format!("x5t#S256:{value}"),
        }
    }

    /// The token type of a token with this binding. A token bound to a certificate counts as a
    /// bearer token in OAuth, because the certificate is presented by the connection (RFC 8705 §3).
    #[must_use]
    pub fn token_type(key: Option<&Self>) -> &'static str {
        match key {
            Some(Self::Jkt(_)) => "DPoP",
            Some(Self::X5t(_)) | None => "Bearer",
        }
    }

    /// The inverse of [`Self::to_text`]; `None` for another text.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        if let Some(value) = text.strip_prefix("jkt:") {
            return Some(Self::Jkt(value.to_owned()));
        }
        text.strip_prefix("x5t#S256:")
            .map(|value| Self::X5t(value.to_owned()))
    }
}

/// A verified caller.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct Workload {
    /// The attestor that verified the evidence.
    pub attestor: String,
    pub identity: Identity,
    /// The run of the caller, if the attestor can tell.
    pub instance: Option<Instance>,
    /// The claims that policy may read: those that the attestor declares, with the declared types.
    pub claims: BTreeMap<String, ClaimValue>,
    /// The time at which the evidence was issued, by its attestor.
    pub issued_at: Timestamp,
    pub reuse: Reuse,
    /// The evidence's own one-time id; the append consumes it.
    pub evidence: OneTime,
    /// Further one-time ids, such as that of a DPoP proof.
    pub proofs: Vec<OneTime>,
    /// The key that the caller proved to hold; `None` if its evidence is bound to no key.
    pub key: Option<KeyBinding>,
}

impl Workload {
    /// Whether `identity` and `instance` are those of this caller. An owner without an instance is
    /// matched by identity alone; the caller must then also present a handle.
    #[must_use]
    pub fn is(&self, identity: &Identity, instance: Option<&Instance>) -> bool {
        self.identity == *identity && self.instance.as_ref() == instance
    }

    /// The time at which the holder can have new evidence. `None` if it can request new evidence at
    /// any time. A holder of [`Reuse::PerTask`] evidence reads it from a file that is replaced once
    /// most of the token's life has passed: a kubelet replaces it after four fifths of the life and
    /// after a day at the latest, a SPIRE agent after half.
    #[must_use]
    pub fn next_evidence_at(&self) -> Option<Timestamp> {
        let file = self.reuse == Reuse::PerTask;
        let life = self.issued_at.seconds_until(self.evidence.expires_at);
        let seconds = (life / 5 * 4).min(REPLACED_AFTER_SECONDS);
        file.then(|| self.issued_at.plus_seconds(seconds))
    }

    /// Every one-time id that one use of its evidence consumes, the evidence's own first.
    #[must_use]
    pub fn one_time(&self) -> Vec<OneTime> {
        let proofs = self.proofs.iter().copied();
        std::iter::once(self.evidence).chain(proofs).collect()
    }
}

/// Subject and actor of a credential (RFC 8693 §4.1). With delegation, the subject is the workload
/// at the root, and the actors are nested with the present one outermost.
#[must_use]
pub fn subject_and_actor<'a>(
    workload: &'a Identity,
    delegators: &'a [Identity],
) -> (&'a Identity, Option<Value>) {
    let Some((root, between)) = delegators.split_last() else {
        return (workload, None);
    };
    let inner = between.iter().rev().fold(None, |inner, actor| {
        Some(match inner {
            None => json!({"sub": actor}),
            Some(inner) => json!({"sub": actor, "act": inner}),
        })
    });
    let act: Value = match inner {
        None => json!({"sub": workload}),
        Some(inner) => json!({"sub": workload, "act": inner}),
    };
    (root, Some(act))
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
    fn ids_of_evidence_are_in_the_order_of_their_times() {
        let once = |key, seconds| OneTime {
            key: [key; 32],
            binding: None,
            must_be_new: false,
            issued_at: Timestamp::from_seconds(seconds),
            expires_at: Timestamp::EPOCH,
        };
        assert!(once(9, 300).id() < once(1, 301).id());
        assert!(once(9, -1).id() < once(1, i64::from(u32::MAX)).id());
        let id = once(1, 300).id();
        assert_eq!(OneTimeId::from_bytes(id.as_bytes()), Some(id));
        assert_eq!(OneTimeId::from_bytes(&[1; 32]), None);
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

    #[test]
    fn delegation_nests_actors_with_the_present_one_outermost() {
        let identity = |text: &str| Identity::try_from(text.to_owned()).unwrap();
        let (root, mid, leaf) = (identity("a:root"), identity("a:mid"), identity("a:leaf"));
        assert_eq!(subject_and_actor(&leaf, &[]), (&leaf, None));
        let chain = [mid, root.clone()];
        let (sub, act) = subject_and_actor(&leaf, &chain);
        assert_eq!(sub, &root);
        assert_eq!(act, Some(json!({"sub": "a:leaf", "act": {"sub": "a:mid"}})));
    }
}
