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
mod tests {
    use proptest::prelude::*;

    use super::super::testing::TestLogKey;
    use super::*;

    const TEXT: &str = "This is an example message.\n";
    const VKEY: &str = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k";
    const LINE: &str = "\u{2014} example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n";

    fn published() -> String {
        format!("{TEXT}\n{LINE}")
    }

    fn key(name: &str, seed: u8) -> VerifierKey {
        TestLogKey::new(name, seed).key
    }

    fn line(name: &str, seed: u8, text: &str) -> String {
        TestLogKey::new(name, seed).line(text)
    }

    #[test]
    fn the_published_note_verifies_under_the_published_key() {
        let key: VerifierKey = VKEY.parse().unwrap();
        assert_eq!(key.name(), "example.com/foo");
        assert_eq!(key.id(), [0x53, 0x0d, 0x90, 0x3a]);
        assert_eq!(key.to_string(), VKEY);
        let note = Note::parse(published().as_bytes()).unwrap();
        let verified = note.verify(std::slice::from_ref(&key)).unwrap();
        assert_eq!(verified.text(), TEXT);
        assert_eq!(verified.signers(), std::slice::from_ref(&key));
        let signature = &note.signatures()[0].signature;
        let line = note_signature_line(&key, signature).unwrap();
        assert_eq!(line, LINE);
        assert_eq!(sign_note(TEXT, &[line]).unwrap(), published());
        assert_eq!(
            note_signature_line(&key, &signature[1..]),
            Err(KeyError::SignatureLength(63))
        );
    }

    #[test]
    fn malformed_verifier_keys_say_what_is_wrong() {
        let parse = |text: &str| text.parse::<VerifierKey>().unwrap_err();
        assert_eq!(parse(""), KeyError::Malformed);
        assert_eq!(parse("example.com/foo+530d903a"), KeyError::Malformed);
        assert_eq!(
            parse(&VKEY.replace("530d903a", "530d903b")),
            KeyError::IdMismatch
        );
        assert_eq!(
            parse(&VKEY.replace("530d903a", "530D903A")),
            KeyError::IdMismatch
        );
        assert_eq!(parse(&VKEY.replace("/foo", "/bar")), KeyError::IdMismatch);
        assert_eq!(parse(&VKEY.replace("/foo", " foo")), KeyError::Name);
        assert_eq!(parse(&VKEY.replace("example.com/foo", "")), KeyError::Name);
        assert_eq!(parse(&format!("{VKEY}=")), KeyError::Malformed);
        let with = |key: &[u8]| parse(&format!("a+00000000+{}", STANDARD.encode(key)));
        assert_eq!(with(&[4; 33]), KeyError::UnsupportedType(4));
        assert_eq!(with(&[1; 32]), KeyError::KeyLength(31));
        assert_eq!(with(&[]), KeyError::Malformed);
        let mut small_order = [0; 33];
        small_order[0] = ED25519_TYPE;
        assert_eq!(with(&small_order), KeyError::SmallOrder);
        small_order[1] = 1;
        assert_eq!(with(&small_order), KeyError::SmallOrder);
        VerifierKey::new(&"n".repeat(255), [0; 32]).unwrap();
        assert_eq!(
            VerifierKey::new(&"n".repeat(256), [0; 32]),
            Err(KeyError::Name)
        );
        for name in ["", "a b", "a+b", "a\nb", "a\u{2003}b", "a\u{7f}"] {
            assert_eq!(VerifierKey::new(name, [0; 32]), Err(KeyError::Name));
        }
    }

    #[test]
    fn a_changed_text_or_signature_is_a_bad_signature() {
        let key: VerifierKey = VKEY.parse().unwrap();
        for changed in [
            published().replace("example message", "exemple message"),
            published().replace("yaQM=", "yaQI="),
            published().replace("Uw2QOkn8", "Uw2QOkn9"),
            // The line of a known key must have an Ed25519 signature of the exact length.
            format!("{TEXT}\n\u{2014} example.com/foo Uw2QOgA=\n"),
        ] {
            let note = Note::parse(changed.as_bytes()).unwrap();
            assert_eq!(
                note.verify(std::slice::from_ref(&key)),
                Err(NoteError::BadSignature("example.com/foo".to_owned()))
            );
        }
    }

    #[test]
    fn unknown_keys_are_ignored_but_alone_are_not_enough() {
        let known = key("log.example", 1);
        let unknown = line("witness.example", 2, TEXT);
        let note = Note::parse(format!("{TEXT}\n{unknown}").as_bytes()).unwrap();
        assert_eq!(
            note.verify(std::slice::from_ref(&known)),
            Err(NoteError::NoKnownSigner)
        );
        assert_eq!(note.verify(&[]), Err(NoteError::NoKnownSigner));
        // The same name with another id is another key.
        let impostor = line("log.example", 3, TEXT);
        let good = line("log.example", 1, TEXT);
        let note = sign_note(TEXT, &[&impostor, &unknown, &good, &good]).unwrap();
        let verified = Note::parse(note.as_bytes())
            .unwrap()
            .verify(std::slice::from_ref(&known))
            .unwrap();
        assert_eq!(verified.signers(), std::slice::from_ref(&known));
    }

    #[test]
    fn one_bad_signature_of_a_known_key_spoils_a_good_one() {
        let first = key("log.example", 1);
        let second = key("log.example", 2);
        let lines = [
            line("log.example", 1, TEXT),
            line("log.example", 2, "Another text.\n"),
        ];
        let note = sign_note(TEXT, &lines).unwrap();
        let note = Note::parse(note.as_bytes()).unwrap();
        note.verify(std::slice::from_ref(&first)).unwrap();
        assert_eq!(
            note.verify(&[first, second]),
            Err(NoteError::BadSignature("log.example".to_owned()))
        );
    }

    #[test]
    fn keys_that_cannot_be_told_apart_are_refused() {
        let key = key("log.example", 1);
        let mut twin = key.clone();
        twin.public_key[0] ^= 1;
        let note = sign_note(TEXT, &[line("log.example", 1, TEXT)]).unwrap();
        let note = Note::parse(note.as_bytes()).unwrap();
        note.verify(&[key.clone(), key.clone()]).unwrap();
        assert_eq!(
            note.verify(&[key, twin]),
            Err(NoteError::AmbiguousKey("log.example".to_owned()))
        );
    }

    #[test]
    fn the_last_empty_line_separates_text_and_signatures() {
        let text = "one\n\n\ntwo\n\n";
        let note = sign_note(text, &[line("log.example", 1, text)]).unwrap();
        let key = key("log.example", 1);
        let verified = Note::parse(note.as_bytes())
            .unwrap()
            .verify(&[key])
            .unwrap();
        assert_eq!(verified.text(), text);
        // Refuses a text without a final newline, and lines that contain an additional text.
        sign_note("one", &[line("log.example", 1, "one")]).unwrap_err();
        let smuggled = format!("more\n\n{}", line("log.example", 1, text));
        sign_note(text, &[smuggled]).unwrap_err();
        sign_note::<&str>(text, &[]).unwrap_err();
    }

    #[test]
    fn malformed_notes_are_refused() {
        let parse = |note: &str| Note::parse(note.as_bytes()).unwrap_err();
        assert_eq!(parse(""), NoteError::Malformed);
        assert_eq!(parse(TEXT), NoteError::Malformed);
        assert_eq!(parse(&format!("{TEXT}{LINE}")), NoteError::Malformed);
        assert_eq!(parse(&format!("{TEXT}\n")), NoteError::Malformed);
        assert_eq!(parse(published().trim_end()), NoteError::Malformed);
        assert_eq!(parse(&format!("{}\n", published())), NoteError::Malformed);
        assert_eq!(
            parse(&published().replace('\n', "\r\n")),
            NoteError::NotText
        );
        assert_eq!(parse(&published().replace(' ', "\t")), NoteError::NotText);
        assert_eq!(
            parse(&published().replace("is", "\u{9b}")),
            NoteError::NotText
        );
        assert_eq!(Note::parse(b"\xff\n\n"), Err(NoteError::NotText));
        for bad in [
            LINE.replace('\u{2014}', "-"),
            LINE.replace("\u{2014} ", "\u{2014}"),
            LINE.replace("example.com/foo", ""),
            LINE.replace("example.com/foo", "a+b"),
            LINE.replace("example.com/foo", "a\u{2003}b"),
            LINE.replace("yaQM=", "yaQM"),
            LINE.replace("yaQM=\n", "yaQM= \n"),
            LINE.replace("Uw2Q", "Uw2_"),
            "\u{2014} example.com/foo Uw2QOg==\n".to_owned(),
            "\u{2014} example.com/foo\n".to_owned(),
        ] {
            assert_eq!(
                parse(&format!("{TEXT}\n{LINE}{bad}")),
                NoteError::MalformedSignature(2),
                "{bad}"
            );
        }
    }

    #[test]
    fn notes_are_bounded_in_size_and_signatures() {
        let most = format!("{TEXT}\n{}", LINE.repeat(MAX_NOTE_SIGNATURES));
        Note::parse(most.as_bytes()).unwrap();
        assert_eq!(
            Note::parse(format!("{most}{LINE}").as_bytes()),
            Err(NoteError::TooManySignatures)
        );
        let filler = MAX_NOTE_BYTES - LINE.len() - 2;
        let largest = format!("{}\n\n{LINE}", "x".repeat(filler));
        assert_eq!(largest.len(), MAX_NOTE_BYTES);
        Note::parse(largest.as_bytes()).unwrap();
        assert_eq!(
            Note::parse(format!("x{largest}").as_bytes()),
            Err(NoteError::TooLong)
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_note_or_an_error(
            bytes in prop::collection::vec(any::<u8>(), 0..200), text in "[ -~\u{2014}\n+=]{0,120}",
            at in any::<prop::sample::Index>(), byte in any::<u8>(),
        ) {
            let key: VerifierKey = VKEY.parse().unwrap();
            let mut changed = published().into_bytes();
            let at = at.index(changed.len());
            let same = changed[at] == byte;
            changed[at] = byte;
            for note in [bytes, text.into_bytes(), changed] {
                if let Ok(note) = Note::parse(&note) {
                    let verified = note.verify(std::slice::from_ref(&key)).is_ok();
                    prop_assert!(!verified || same);
                }
            }
        }

        #[test]
        fn any_text_is_a_verifier_key_or_an_error(text in "[a-z]{0,3}[+]?[0-9a-f]{0,9}[+]?\\PC{0,50}") {
            if let Ok(key) = text.parse::<VerifierKey>() {
                prop_assert_eq!(key.to_string(), text);
            }
        }
    }
}
