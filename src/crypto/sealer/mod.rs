//! Sealing: the encryption of the broker's own keys in the database.
//!
//! [`Sealer`] seals and opens; [`SealingKeys`] does it with local keys, and a key service can
//! implement it too. An envelope is AES-256-GCM under a key that exists for this envelope alone:
//! HKDF-SHA-256 of a sealing key with 256 random bits of salt. Two envelopes never share a key, so
//! a repeated nonce does no harm, however many envelopes are sealed. The [`SealContext`] (purpose,
//! kid, algorithm and validity) is authenticated but not stored: the caller supplies it. An
//! envelope that is copied into another row, or whose row has changed dates, does not open.
//!
//! ```text
//! version 1 byte | sealing key id 8 | salt 32 | nonce 12 | ciphertext and tag
//! ```
//!
//! The operator gives a list of sealing keys, `tpk1_…`: the first seals, every one opens. To
//! replace one, put the new one first, reseal, then remove the old one. A running process that
//! loads a changed list still opens with its former keys ([`SealingKeys::take_over`] returns their
//! ids). It does not know whether a row still needs one of them: only a start, which opens every
//! row, shows that a key was removed too early.
//!
//! An envelope that does not open is [`OpenError::NoSuchKey`] (the operator adds the key),
//! [`OpenError::Tampered`] (an incident) or [`OpenError::Malformed`]. Without randomness nothing is
//! sealed. `broker::keys` seals and opens signing keys, and `broker::signing_keys` reseals them.
//! The same sealing keys give the [`Mac`] of rows ([`super::digest`]).

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::future::BoxFuture;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::{hkdf, hmac};
use secrecy::{ExposeSecret as _, SecretString};
use zeroize::{Zeroize as _, Zeroizing};

use crate::clock::Timestamp;
use crate::ids::{NoRandomness, Random};

use super::digest::{Mac, push_prefixed};
use super::key_id::KeyId;
use super::random::SystemRandom;

/// The prefix of a sealing key in text form.
pub const SEALING_KEY_PREFIX: &str = "tpk1_";

/// Maximum number of configured sealing keys: the present one, the next, and some old ones. A
/// longer list is refused, because it has probably never been cleaned up.
pub const MAX_SEALING_KEYS: usize = 16;

/// The largest plaintext. Private keys and upstream secrets have a few kilobytes; more is refused.
pub const MAX_PLAINTEXT_BYTES: usize = 64 * 1024;

const VERSION: u8 = 1;
const SALT_BYTES: usize = 32;
const TAG_BYTES: usize = 16;
const HEADER_BYTES: usize = 1 + KeyId::BYTES + SALT_BYTES + NONCE_LEN;

const ID_LABEL: &[u8] = b"taskpass sealing key id v1";
const MAC_LABEL: &[u8] = b"taskpass mac key v1";
const ENVELOPE_LABEL: &[u8] = b"taskpass envelope key v1";
const AAD_DOMAIN: &[u8] = b"taskpass envelope v1";

/// The description of an envelope's content. It is authenticated but not stored: the caller that
/// opens an envelope must supply it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SealContext<'a> {
    /// The purpose of the secret.
    pub purpose: &'a str,
    /// The id of the secret.
    pub kid: &'a str,
    /// The algorithm that uses the secret.
    pub algorithm: &'a str,
    /// The time from which it may be used.
    pub not_before: Timestamp,
    /// The time until which it may be used.
    pub not_after: Timestamp,
}

impl SealContext<'_> {
    fn associated_data(&self, header: &[u8]) -> Vec<u8> {
        let mut out = AAD_DOMAIN.to_vec();
        push_prefixed(&mut out, header);
        push_prefixed(&mut out, self.purpose.as_bytes());
        push_prefixed(&mut out, self.kid.as_bytes());
        push_prefixed(&mut out, self.algorithm.as_bytes());
        push_prefixed(&mut out, &self.not_before.micros().to_be_bytes());
        push_prefixed(&mut out, &self.not_after.micros().to_be_bytes());
        out
    }
}

/// The reason why a secret was not sealed.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The system returned no randomness.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
    /// The secret has more than [`MAX_PLAINTEXT_BYTES`].
    #[error("the secret is longer than 64 KiB")]
    TooLong,
    /// The cryptographic primitive failed.
    #[error("sealing failed")]
    Failed,
    /// The key service did not answer or refused.
    #[error("the key service did not seal")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// The reason why an envelope was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The bytes are not an envelope, or have a later version.
    #[error("this is not a sealed envelope of version 1")]
    Malformed,
    /// The sealing key of the envelope is not configured.
    #[error("no such sealing key (id {0}) is configured: add the key that sealed this envelope")]
    NoSuchKey(KeyId),
    /// The envelope or its context was changed.
    #[error("the envelope or its record was tampered with")]
    Tampered,
    /// The key service did not answer or refused.
    #[error("the key service did not open")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Seals and opens secrets, locally or by a key service.
pub trait Sealer: Send + Sync {
    /// Seals `secret` in the given context.
    fn seal<'a>(
        &'a self,
        context: SealContext<'a>,
        secret: &'a [u8],
    ) -> BoxFuture<'a, Result<Vec<u8>, SealError>>;

    /// Opens an envelope that was sealed in exactly the given context.
    fn open<'a>(
        &'a self,
        context: SealContext<'a>,
        envelope: &'a [u8],
    ) -> BoxFuture<'a, Result<Zeroizing<Vec<u8>>, OpenError>>;

    /// Whether to seal the secret again: `envelope` was sealed with another key than the one that
    /// seals now, or is no envelope.
    fn needs_reseal(&self, envelope: &[u8]) -> bool;
}

/// An error in a sealing key. It never shows the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealingKeyError {
    /// No key is configured.
    #[error("no sealing key is configured")]
    None,
    /// More than [`MAX_SEALING_KEYS`] keys are configured.
    #[error("more than 16 sealing keys are configured")]
    TooMany,
    /// A key does not have the prefix.
    #[error("sealing key {position} does not begin with `tpk1_`")]
    Prefix {
        /// Position of the key in the list, from 1.
        position: usize,
    },
    /// A key is not base64url after its prefix.
    #[error("sealing key {position} is not base64url without padding after `tpk1_`")]
    NotBase64 {
        /// Position of the key in the list, from 1.
        position: usize,
    },
    /// A key does not have 32 bytes.
    #[error("sealing key {position} has {bytes} bytes, not 32")]
    Length {
        /// Position of the key in the list, from 1.
        position: usize,
        /// Length of the key in bytes.
        bytes: usize,
    },
    /// All bytes of a key are equal.
    #[error("sealing key {position} is one byte repeated: generate a random one")]
    NotRandom {
        /// Position of the key in the list, from 1.
        position: usize,
    },
    /// The cryptographic primitive failed.
    #[error("the keys of sealing key {position} cannot be derived")]
    Underivable {
        /// Position of the key in the list, from 1.
        position: usize,
    },
    /// A key occurs twice.
    #[error("sealing key {position} is the same as an earlier one")]
    Twice {
        /// Position of the second occurrence, from 1.
        position: usize,
    },
}

struct SealingKey {
    id: KeyId,
    /// The key as configured, from which the key of each envelope is derived.
    master: Zeroizing<[u8; 32]>,
    mac: hmac::Key,
}

/// The sealing keys of this process, from the environment or a file: the first seals, every one
/// opens.
pub struct SealingKeys {
    keys: ArcSwap<KeyList>,
    random: Box<dyn Random>,
}

struct KeyList {
    first: Arc<SealingKey>,
    others: Vec<Arc<SealingKey>>,
}

impl KeyList {
    fn all(&self) -> impl Iterator<Item = &Arc<SealingKey>> {
        std::iter::once(&self.first).chain(&self.others)
    }

    fn holds(&self, id: KeyId) -> bool {
        self.all().any(|key| key.id == id)
    }
}

impl fmt::Debug for SealingKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.key_ids()).finish()
    }
}

/// The length of an HKDF output of 32 bytes.
struct Bytes32;

impl hkdf::KeyType for Bytes32 {
    fn len(&self) -> usize {
        32
    }
}

impl SealingKey {
    fn parse(position: usize, text: &str) -> Result<Self, SealingKeyError> {
        let body = text
            .strip_prefix(SEALING_KEY_PREFIX)
            .ok_or(SealingKeyError::Prefix { position })?;
        let decoded = Zeroizing::new(
            URL_SAFE_NO_PAD
                .decode(body)
                .map_err(|_| SealingKeyError::NotBase64 { position })?,
        );
        let bytes = decoded.len();
        let master: &[u8; 32] = decoded
            .as_slice()
            .try_into()
            .map_err(|_| SealingKeyError::Length { position, bytes })?;
        if master.iter().all(|byte| *byte == master[0]) {
            return Err(SealingKeyError::NotRandom { position });
        }
        Self::derive(master).map_err(|_| SealingKeyError::Underivable { position })
    }

    fn derive(master: &[u8; 32]) -> Result<Self, ring::error::Unspecified> {
        let extracted = hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(master);
        // The id is public and part of every stored envelope and tag, so its derivation must not
        // change. HKDF extracts under another key than this HMAC, so the id reveals nothing about
        // the derived keys.
        let hashed = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, master), ID_LABEL);
        let mut id = [0; KeyId::BYTES];
        id.copy_from_slice(&hashed.as_ref()[..KeyId::BYTES]);
        let mac = expand(&extracted, MAC_LABEL)?;
        Ok(Self {
            id: KeyId::from_bytes(id),
            master: Zeroizing::new(*master),
            mac: hmac::Key::new(hmac::HMAC_SHA256, mac.as_slice()),
        })
    }

    /// The key of one envelope.
    fn envelope_key(&self, salt: &[u8]) -> Result<LessSafeKey, ring::error::Unspecified> {
        let extracted = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(self.master.as_slice());
        let key = expand(&extracted, ENVELOPE_LABEL)?;
        UnboundKey::new(&AES_256_GCM, key.as_slice()).map(LessSafeKey::new)
    }
}

/// HKDF-Expand to 32 bytes.
fn expand(key: &hkdf::Prk, label: &[u8]) -> Result<Zeroizing<[u8; 32]>, ring::error::Unspecified> {
    let mut out = Zeroizing::new([0; 32]);
    key.expand(&[label], Bytes32)?.fill(out.as_mut_slice())?;
    Ok(out)
}

impl SealingKeys {
    /// Parses the configured keys, the sealing one first. Ignores white space around a key.
    pub fn parse(keys: &[SecretString]) -> Result<Self, SealingKeyError> {
        Self::parse_with(keys, Box::new(SystemRandom::new()))
    }

    /// As [`Self::parse`], with another source of salts and nonces.
    pub fn parse_with(
        keys: &[SecretString],
        random: Box<dyn Random>,
    ) -> Result<Self, SealingKeyError> {
        if keys.len() > MAX_SEALING_KEYS {
            return Err(SealingKeyError::TooMany);
        }
        let mut parsed: Vec<SealingKey> = Vec::with_capacity(keys.len());
        for (index, text) in keys.iter().enumerate() {
            let position = index + 1;
            let key = SealingKey::parse(position, text.expose_secret().trim())?;
            if parsed.iter().any(|known| known.id == key.id) {
                return Err(SealingKeyError::Twice { position });
            }
            parsed.push(key);
        }
        let mut parsed = parsed.into_iter().map(Arc::new);
        let keys = KeyList {
            first: parsed.next().ok_or(SealingKeyError::None)?,
            others: parsed.collect(),
        };
        Ok(Self {
            keys: ArcSwap::from_pointee(keys),
            random,
        })
    }

    /// Takes the keys of `newer` into this list: from now on this list seals with the first key of
    /// `newer`, and opens with the keys of `newer` and with its own former ones. Returns the ids of
    /// the former keys that `newer` lacks.
    pub fn take_over(&self, newer: &Self) -> Vec<KeyId> {
        let (present, newer) = (self.keys.load_full(), newer.keys.load_full());
        let kept: Vec<_> = present
            .all()
            .filter(|key| !newer.holds(key.id))
            .cloned()
            .collect();
        let lacking = kept.iter().map(|key| key.id).collect();
        let others = newer.others.iter().cloned().chain(kept);
        self.keys.store(Arc::new(KeyList {
            first: Arc::clone(&newer.first),
            others: others.collect(),
        }));
        lacking
    }

    /// Generates a sealing key in text form.
    pub fn generate(random: &dyn Random) -> Result<SecretString, NoRandomness> {
        super::random::random_token(SEALING_KEY_PREFIX, random)
    }

    /// The ids of the keys, the sealing one first.
    pub fn key_ids(&self) -> Vec<KeyId> {
        self.keys.load().all().map(|key| key.id).collect()
    }

    /// The MAC of rows that only the brokers of the log `origin` may write. The first key makes
    /// tags, every key verifies. A row of another log does not verify, even if its broker has the
    /// same sealing keys.
    #[must_use]
    pub fn mac(&self, origin: &str) -> Mac {
        let pair = |key: &Arc<SealingKey>| (key.id, key.mac.clone());
        let keys = self.keys.load();
        Mac::new(
            origin,
            pair(&keys.first),
            keys.others.iter().map(pair).collect(),
        )
    }

    fn seal_locally(&self, context: SealContext<'_>, secret: &[u8]) -> Result<Vec<u8>, SealError> {
        if secret.len() > MAX_PLAINTEXT_BYTES {
            return Err(SealError::TooLong);
        }
        let mut salt = [0; SALT_BYTES];
        self.random.fill(&mut salt)?;
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce)?;

        let sealing = Arc::clone(&self.keys.load().first);
        let mut envelope = Vec::with_capacity(HEADER_BYTES + secret.len() + TAG_BYTES);
        envelope.push(VERSION);
        envelope.extend_from_slice(sealing.id.as_bytes());
        envelope.extend_from_slice(&salt);
        envelope.extend_from_slice(&nonce);
        let aad = Aad::from(context.associated_data(&envelope));

        let key = sealing.envelope_key(&salt).map_err(|_| SealError::Failed)?;
        // Encrypt in the envelope's own memory: no copy of the secret is left behind.
        envelope.extend_from_slice(secret);
        let body = envelope.get_mut(HEADER_BYTES..).ok_or(SealError::Failed)?;
        let Ok(tag) =
            key.seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), aad, body)
        else {
            envelope.zeroize();
            return Err(SealError::Failed);
        };
        envelope.extend_from_slice(tag.as_ref());
        Ok(envelope)
    }

    fn open_locally(
        &self,
        context: SealContext<'_>,
        envelope: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, OpenError> {
        let parts = Envelope::parse(envelope).ok_or(OpenError::Malformed)?;
        let keys = self.keys.load();
        let key = keys
            .all()
            .find(|key| key.id == parts.key_id)
            .ok_or(OpenError::NoSuchKey(parts.key_id))?
            .envelope_key(parts.salt)
            // Unreachable: a derivation of this fixed length does not fail.
            .map_err(|_| OpenError::Tampered)?;
        let mut body = Zeroizing::new(parts.body.to_vec());
        let aad = Aad::from(context.associated_data(parts.header));
        let length = key
            .open_in_place(Nonce::assume_unique_for_key(parts.nonce), aad, &mut body)
            .map_err(|_| OpenError::Tampered)?
            .len();
        body.truncate(length);
        Ok(body)
    }
}

struct Envelope<'a> {
    header: &'a [u8],
    key_id: KeyId,
    salt: &'a [u8; SALT_BYTES],
    nonce: [u8; NONCE_LEN],
    body: &'a [u8],
}

impl<'a> Envelope<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        if bytes.len() > HEADER_BYTES + MAX_PLAINTEXT_BYTES + TAG_BYTES {
            return None;
        }
        let (header, body) = bytes.split_at_checked(HEADER_BYTES)?;
        if body.len() < TAG_BYTES {
            return None;
        }
        let (&[version], rest) = header.split_first_chunk::<1>()?;
        if version != VERSION {
            return None;
        }
        let (key_id, rest) = rest.split_first_chunk::<{ KeyId::BYTES }>()?;
        let (salt, rest) = rest.split_first_chunk::<SALT_BYTES>()?;
        Some(Self {
            header,
            key_id: KeyId::from_bytes(*key_id),
            salt,
            nonce: rest.try_into().ok()?,
            body,
        })
    }
}

impl Sealer for SealingKeys {
    fn seal<'a>(
        &'a self,
        context: SealContext<'a>,
        secret: &'a [u8],
    ) -> BoxFuture<'a, Result<Vec<u8>, SealError>> {
        Box::pin(async move { self.seal_locally(context, secret) })
    }

    fn open<'a>(
        &'a self,
        context: SealContext<'a>,
        envelope: &'a [u8],
    ) -> BoxFuture<'a, Result<Zeroizing<Vec<u8>>, OpenError>> {
        Box::pin(async move { self.open_locally(context, envelope) })
    }

    fn needs_reseal(&self, envelope: &[u8]) -> bool {
        let sealing = self.keys.load().first.id;
        Envelope::parse(envelope).is_none_or(|parts| parts.key_id != sealing)
    }
}

#[cfg(test)]
mod tests;
