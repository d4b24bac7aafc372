//! Signed notes in the format of C2SP signed-note, with Ed25519.
//!
//! A note is a text, an empty line, and a line for each signature: `— <key name> <base64 of the
//! key's four-byte id and the signature>`. [`Note`] is a parsed note, [`VerifierKey`] the public
//! key of a log, and [`VerifiedNote`] a note that a known key has signed; only [`Note::verify`]
//! creates it.
//!
//! A verifier ignores signatures of unknown keys, and does not trust the text until a known key has
//! signed it. One invalid signature of a known key refuses the whole note, even if another is
//! valid. A refused note is a [`NoteError`], a refused key a [`KeyError`]. Nothing here signs:
//! [`note_signature_line`] and [`sign_note`] only write signatures that `ledger::appender` made.
//! [`super::checkpoint`] reads the text, and [`super::witness`] the cosignatures.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{ED25519, UnparsedPublicKey};

use super::hash::digest_prefix;
use crate::crypto::is_small_order;

/// The largest note: a checkpoint and sixteen post-quantum cosignatures of 5 kB.
pub const MAX_NOTE_BYTES: usize = 128 * 1024;

/// Maximum number of signatures on one note. The specification requires at least 16; a note with
/// more than this is refused.
pub const MAX_NOTE_SIGNATURES: usize = 32;

/// The longest name of a key, equal to the longest origin.
pub const MAX_KEY_NAME_BYTES: usize = 255;

const ED25519_TYPE: u8 = 0x01;
const KEY_ID_BYTES: usize = 4;
const ED25519_SIGNATURE_BYTES: usize = 64;

/// The reason why a text is not a verifier key, or bytes are not its signature.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The text is not `<name>+<8 hexadecimal digits>+<base64>`.
    #[error("a verifier key is <name>+<8 hexadecimal digits>+<base64>")]
    Malformed,
    /// The name is not valid in a signature line.
    #[error("a key's name has 1 to 255 bytes, no spaces, control characters or plus signs")]
    Name,
    /// The key has another type than required.
    #[error(
        "the key is of type {0:#04x}; a log's is Ed25519 (0x01), a witness's an Ed25519 cosignature (0x04)"
    )]
    UnsupportedType(u8),
    /// The key does not have 32 bytes.
    #[error("an Ed25519 key has 32 bytes, not {0}")]
    KeyLength(usize),
    /// An Ed25519 point of small order, for which any party can write valid signatures.
    #[error("the key is a point of small order: any party can sign for it")]
    SmallOrder,
    /// The signature does not have 64 bytes.
    #[error("an Ed25519 signature has 64 bytes, not {0}")]
    SignatureLength(usize),
    /// The id in the text does not fit the name and key.
    #[error("the key's id does not fit its name and bytes")]
    IdMismatch,
}

/// The public key of a log, which verifies its checkpoints. As text it is
/// `<name>+<id>+<base64 of type and key>`.
#[derive(Clone, PartialEq, Eq)]
pub struct VerifierKey {
    name: String,
    id: [u8; KEY_ID_BYTES],
    public_key: [u8; 32],
}

impl VerifierKey {
    /// Creates an Ed25519 key with this name.
    pub fn new(name: &str, public_key: [u8; 32]) -> Result<Self, KeyError> {
        if !is_key_name(name) || name.len() > MAX_KEY_NAME_BYTES {
            return Err(KeyError::Name);
        }
        Ok(Self {
            name: name.to_owned(),
            id: key_id(name, ED25519_TYPE, &public_key),
            public_key,
        })
    }

    /// The name of the key. For a log it is the origin.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The four bytes that identify the key's signature lines. An identifier, not a commitment.
    #[must_use]
    pub fn id(&self) -> [u8; 4] {
        self.id
    }

    /// The raw key.
    #[must_use]
    pub fn public_key(&self) -> &[u8; 32] {
        &self.public_key
    }

    fn verify(&self, text: &str, signature: &[u8]) -> bool {
        signature.len() == ED25519_SIGNATURE_BYTES
            && UnparsedPublicKey::new(&ED25519, self.public_key)
                .verify(text.as_bytes(), signature)
                .is_ok()
    }
}

impl fmt::Display for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = [[ED25519_TYPE].as_slice(), &self.public_key].concat();
        let id = u32::from_be_bytes(self.id);
        write!(f, "{}+{id:08x}+{}", self.name, STANDARD.encode(key))
    }
}

impl fmt::Debug for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifierKey({self})")
    }
}

impl FromStr for VerifierKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = KeyParts::parse(text)?;
        if parts.kind != ED25519_TYPE {
            return Err(KeyError::UnsupportedType(parts.kind));
        }
        let key = Self::new(parts.name, parts.public_key()?)?;
        parts.check_id(key.id)?;
        Ok(key)
    }
}

/// The parts of a verifier key's text.
pub(super) struct KeyParts<'a> {
    pub(super) name: &'a str,
    pub(super) kind: u8,
    id: &'a str,
    key: Vec<u8>,
}

impl<'a> KeyParts<'a> {
    pub(super) fn parse(text: &'a str) -> Result<Self, KeyError> {
        // The name and the id have no plus sign; the base64 can have some.
        let mut parts = text.splitn(3, '+');
        let (Some(name), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(KeyError::Malformed);
        };
        if key.len() > MAX_KEY_NAME_BYTES {
            return Err(KeyError::Malformed);
        }
        let key = STANDARD.decode(key).map_err(|_| KeyError::Malformed)?;
        let (kind, key) = key.split_first().ok_or(KeyError::Malformed)?;
        Ok(Self {
            name,
            kind: *kind,
            id,
            key: key.to_vec(),
        })
    }

    pub(super) fn public_key(&self) -> Result<[u8; 32], KeyError> {
        let key = self.key.as_slice();
        let key = key.try_into().map_err(|_| KeyError::KeyLength(key.len()))?;
        if is_small_order(&key) {
            return Err(KeyError::SmallOrder);
        }
        Ok(key)
    }

    pub(super) fn check_id(&self, id: [u8; KEY_ID_BYTES]) -> Result<(), KeyError> {
        if format!("{:08x}", u32::from_be_bytes(id)) == self.id {
            Ok(())
        } else {
            Err(KeyError::IdMismatch)
        }
    }
}

/// The id of a key: the first bytes of the hash of its name, type and bytes.
pub(super) fn key_id(name: &str, kind: u8, public_key: &[u8; 32]) -> [u8; KEY_ID_BYTES] {
    digest_prefix(&[name.as_bytes(), b"\n", &[kind], public_key])
}

pub(super) fn is_key_name(name: &str) -> bool {
    !name.is_empty()
        && !name
            .chars()
            .any(|char| char.is_whitespace() || char.is_control() || char == '+')
}

/// The reason why a note is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// The note is larger than [`MAX_NOTE_BYTES`].
    #[error("the note has more than {MAX_NOTE_BYTES} bytes")]
    TooLong,
    /// The note is not UTF-8, or has control characters other than newlines.
    #[error("the note is not text without control characters")]
    NotText,
    /// The note is not a text, an empty line and signature lines.
    #[error("the note is not a text, an empty line and signature lines")]
    Malformed,
    /// A line after the empty one is not a signature.
    #[error("line {0} of the note's signatures is malformed")]
    MalformedSignature(usize),
    /// The note has more than [`MAX_NOTE_SIGNATURES`].
    #[error("the note has more than {MAX_NOTE_SIGNATURES} signatures")]
    TooManySignatures,
    /// Two known keys share a name and an id, so a signature's key is ambiguous.
    #[error("more than one known key has the name and id of {0}")]
    AmbiguousKey(String),
    /// The signature of a known key is invalid.
    #[error("the signature of {0} does not verify")]
    BadSignature(String),
    /// No known key has signed the note.
    #[error("no known key has signed the note")]
    NoKnownSigner,
}

/// A note with unverified signatures. Any party could have written its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    text: String,
    signatures: Vec<NoteSignature>,
}

/// A signature on a note.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoteSignature {
    /// The name of the key that allegedly made it.
    pub name: String,
    /// The id of that key.
    pub key_id: [u8; 4],
    /// The signature. Its format depends on the type of the key.
    pub signature: Vec<u8>,
}

impl Note {
    /// Parses a note. Stricter than the specification in one point: the only permitted control
    /// characters are newlines (U+007F and U+0080 to U+009F are refused too), so a note is safe to
    /// print.
    pub fn parse(bytes: &[u8]) -> Result<Self, NoteError> {
        if bytes.len() > MAX_NOTE_BYTES {
            return Err(NoteError::TooLong);
        }
        let note = std::str::from_utf8(bytes).map_err(|_| NoteError::NotText)?;
        if note.chars().any(|char| char.is_control() && char != '\n') {
            return Err(NoteError::NotText);
        }
        // The text can contain empty lines; the last one is the separator.
        let separator = note.rfind("\n\n").ok_or(NoteError::Malformed)?;
        let (text, signatures) = (&note[..=separator], &note[separator + 2..]);
        let lines = signatures
            .strip_suffix('\n')
            .ok_or(NoteError::Malformed)?
            .split('\n');
        let mut signatures = Vec::new();
        for (number, line) in (1..).zip(lines) {
            if number > MAX_NOTE_SIGNATURES {
                return Err(NoteError::TooManySignatures);
            }
            signatures.push(parse_signature(line).ok_or(NoteError::MalformedSignature(number))?);
        }
        Ok(Self {
            text: text.to_owned(),
            signatures,
        })
    }

    /// The signatures of known and unknown keys, in order.
    #[must_use]
    pub fn signatures(&self) -> &[NoteSignature] {
        &self.signatures
    }

    /// The unverified text. Use it only to choose the keys.
    #[must_use]
    pub fn unverified_text(&self) -> &str {
        &self.text
    }

    /// Verifies that at least one of `keys` has signed the note and none of their signatures is
    /// invalid.
    pub fn verify(&self, keys: &[VerifierKey]) -> Result<VerifiedNote, NoteError> {
        let mut signers: Vec<VerifierKey> = Vec::new();
        for line in &self.signatures {
            let mut known = keys
                .iter()
                .filter(|key| key.name == line.name && key.id == line.key_id);
            let Some(key) = known.next() else {
                continue;
            };
            if known.any(|other| other != key) {
                return Err(NoteError::AmbiguousKey(line.name.clone()));
            }
            if !key.verify(&self.text, &line.signature) {
                return Err(NoteError::BadSignature(line.name.clone()));
            }
            if !signers.contains(key) {
                signers.push(key.clone());
            }
        }
        if signers.is_empty() {
            return Err(NoteError::NoKnownSigner);
        }
        Ok(VerifiedNote {
            text: self.text.clone(),
            signers,
        })
    }
}

fn parse_signature(line: &str) -> Option<NoteSignature> {
    let (name, blob) = line.strip_prefix("\u{2014} ")?.split_once(' ')?;
    let blob = STANDARD.decode(blob).ok()?;
    let (key_id, signature) = blob.split_first_chunk::<KEY_ID_BYTES>()?;
    if !is_key_name(name) || signature.is_empty() {
        return None;
    }
    Some(NoteSignature {
        name: name.to_owned(),
        key_id: *key_id,
        signature: signature.to_vec(),
    })
}

/// A note that a known key has signed. Only [`Note::verify`] creates it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedNote {
    text: String,
    signers: Vec<VerifierKey>,
}

impl VerifiedNote {
    /// The signed text, with its last newline.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The known keys that signed it; at least one.
    #[must_use]
    pub fn signers(&self) -> &[VerifierKey] {
        &self.signers
    }
}

/// The line for this key's Ed25519 signature on a note, with its newline.
pub fn note_signature_line(key: &VerifierKey, signature: &[u8]) -> Result<String, KeyError> {
    if signature.len() != ED25519_SIGNATURE_BYTES {
        return Err(KeyError::SignatureLength(signature.len()));
    }
    let blob = [key.id.as_slice(), signature].concat();
    Ok(format!("\u{2014} {} {}\n", key.name, STANDARD.encode(blob)))
}

/// Combines a text and its signature lines into a signed note. The signatures are over the text
/// alone. Checks that they are well formed but does not verify them.
pub fn sign_note<L: AsRef<str>>(text: &str, lines: &[L]) -> Result<String, NoteError> {
    let mut note = format!("{text}\n");
    for line in lines {
        note.push_str(line.as_ref());
    }
    let parsed = Note::parse(note.as_bytes())?;
    // The signatures must cover the whole text and nothing else.
    if parsed.text != text || parsed.signatures.len() != lines.len() {
        return Err(NoteError::Malformed);
    }
    Ok(note)
}

#[cfg(test)]
mod tests;
