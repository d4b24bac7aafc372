//! Witnesses: independent parties that confirm that they saw a checkpoint, and when.
//!
//! A witness cosigns a checkpoint only if it is consistent with the last one that it cosigned for
//! that log (C2SP tlog-witness). So a log cannot show two histories to a witness. The signature
//! (C2SP tlog-cosignature, `cosignature/v1`) contains the time by the witness's own clock. A claim
//! that an event was logged before a use can be based on that time.
//!
//! [`WitnessKey`] is a witness's public key, and [`Cosignature`] its verified statement. An invalid
//! cosignature of a known witness refuses the whole note with a [`NoteError`], as does one without
//! a time; those of unknown keys are ignored. [`add_checkpoint_body`] and [`parse_witness_size`]
//! write and read the bodies of the witness protocol; `ledger::witnesses` sends them. The
//! consistency that a witness checks is not checked here.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{ED25519, UnparsedPublicKey};

use super::hash::Hash;
use super::note::{KeyError, KeyParts, Note, NoteError, is_key_name, key_id};
use super::parse_decimal;
use super::proof::MAX_PROOF_HASHES;

/// The type of a key that makes `cosignature/v1` signatures.
const COSIGNATURE_TYPE: u8 = 0x04;

/// Maximum number of hashes in a consistency proof of tlog-witness.
const MAX_CONSISTENCY_LINES: usize = 63;

const TIME_BYTES: usize = 8;

/// The public key of a witness. As text it is `<name>+<id>+<base64 of type and key>`.
#[derive(Clone, PartialEq, Eq)]
pub struct WitnessKey {
    name: String,
    id: [u8; 4],
    public_key: [u8; 32],
}

/// A witness's statement that it saw a checkpoint at a time, by its own clock.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct Cosignature {
    pub witness: WitnessKey,
    /// Time in seconds since 1970.
    pub time: u64,
}

impl WitnessKey {
    /// Creates a key with this name.
    pub fn new(name: &str, public_key: [u8; 32]) -> Result<Self, KeyError> {
        if !is_key_name(name) || name.len() > super::MAX_KEY_NAME_BYTES {
            return Err(KeyError::Name);
        }
        Ok(Self {
            name: name.to_owned(),
            id: key_id(name, COSIGNATURE_TYPE, &public_key),
            public_key,
        })
    }

    /// The witness's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The signed message for a note's text. The time comes first, so that the signature covers it.
    #[must_use]
    pub fn message(time: u64, text: &str) -> String {
        format!("cosignature/v1\ntime {time}\n{text}")
    }

    /// The line for this witness's signature on a note, with its newline.
    pub fn line(&self, time: u64, signature: &[u8]) -> Result<String, KeyError> {
        if signature.len() != 64 {
            return Err(KeyError::SignatureLength(signature.len()));
        }
        let blob = [self.id.as_slice(), &time.to_be_bytes(), signature].concat();
        Ok(format!(
            "\u{2014} {} {}\n",
            self.name,
            STANDARD.encode(blob)
        ))
    }

    /// Reads a witness's answer to `add-checkpoint`, which consists of signature lines. Returns the
    /// time and the line of this key's signature of exactly `text`. Ignores the lines of other
    /// keys.
    pub fn cosigned(&self, text: &str, answer: &[u8]) -> Result<(u64, String), NoteError> {
        let note = [text.as_bytes(), b"\n", answer].concat();
        let note = Note::parse(&note)?;
        // An answer with an empty line would make a part of it the text.
        if note.unverified_text() != text {
            return Err(NoteError::Malformed);
        }
        let mut lines = note.signatures().iter();
        let line = lines
            .find(|line| line.name == self.name && line.key_id == self.id)
            .ok_or(NoteError::NoKnownSigner)?;
        let time = self.time_of(text, &line.signature);
        let bad = || NoteError::BadSignature(self.name.clone());
        let time = time.ok_or_else(bad)?;
        let signature = line.signature.get(TIME_BYTES..).unwrap_or_default();
        Ok((time, self.line(time, signature).map_err(|_| bad())?))
    }

    fn time_of(&self, text: &str, signature: &[u8]) -> Option<u64> {
        let (time, signature) = signature.split_first_chunk::<TIME_BYTES>()?;
        let time = u64::from_be_bytes(*time);
        // A cosignature without a time confirms the tree, but not when the witness saw it.
        if time == 0 {
            return None;
        }
        let message = Self::message(time, text);
        UnparsedPublicKey::new(&ED25519, self.public_key)
            .verify(message.as_bytes(), signature)
            .ok()
            .map(|()| time)
    }
}

impl fmt::Display for WitnessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = [[COSIGNATURE_TYPE].as_slice(), &self.public_key].concat();
        let id = u32::from_be_bytes(self.id);
        write!(f, "{}+{id:08x}+{}", self.name, STANDARD.encode(key))
    }
}

impl fmt::Debug for WitnessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WitnessKey({self})")
    }
}

impl FromStr for WitnessKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = KeyParts::parse(text)?;
        if parts.kind != COSIGNATURE_TYPE {
            return Err(KeyError::UnsupportedType(parts.kind));
        }
        let key = Self::new(parts.name, parts.public_key()?)?;
        parts.check_id(key.id)?;
        Ok(key)
    }
}

impl Note {
    /// The cosignatures of the witnesses among `keys`. An invalid signature of a known witness
    /// refuses the whole note.
    pub fn cosignatures(&self, keys: &[WitnessKey]) -> Result<Vec<Cosignature>, NoteError> {
        let mut found = Vec::new();
        for line in self.signatures() {
            let known = keys
                .iter()
                .find(|key| key.name == line.name && key.id == line.key_id);
            let Some(key) = known else {
                continue;
            };
            let time = key
                .time_of(self.unverified_text(), &line.signature)
                .ok_or_else(|| NoteError::BadSignature(line.name.clone()))?;
            found.push(Cosignature {
                witness: key.clone(),
                time,
            });
        }
        Ok(found)
    }
}

/// The body of `POST add-checkpoint` (tlog-witness): the last size that the witness saw, the
/// consistency proof from it, and the signed checkpoint. `None` if the proof is longer than the
/// protocol permits.
#[must_use]
pub fn add_checkpoint_body(old: u64, proof: &[Hash], checkpoint: &str) -> Option<String> {
    const _: () = assert!(MAX_CONSISTENCY_LINES <= MAX_PROOF_HASHES);
    if proof.len() > MAX_CONSISTENCY_LINES {
        return None;
    }
    let mut body = format!("old {old}\n");
    for hash in proof {
        body.push_str(&hash.to_string());
        body.push('\n');
    }
    body.push('\n');
    body.push_str(checkpoint);
    Some(body)
}

/// Parses the answer of a witness whose last size differs from the stated one (`text/x.tlog.size`):
/// that size and a newline. `None` for any other text.
#[must_use]
pub fn parse_witness_size(answer: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(answer).ok()?;
    let digits = text.strip_suffix('\n')?;
    (!digits.is_empty()).then(|| parse_decimal(digits))?
}

#[cfg(test)]
mod tests {
    use super::super::checkpoint::Checkpoint;
    use super::super::note::sign_note;
    use super::super::testing::{TestLogKey, TestWitness, leaves};
    use super::super::{EMPTY_ROOT, VerifierKey};
    use super::*;

    fn text() -> String {
        Checkpoint::new("example.com/log", 3, leaves(1)[0])
            .unwrap()
            .text()
    }

    fn note(lines: &[String]) -> Note {
        Note::parse(sign_note(&text(), lines).unwrap().as_bytes()).unwrap()
    }

    #[test]
    fn a_witness_says_when_and_strangers_say_nothing() {
        let (known, stranger) = (
            TestWitness::new("witness.example/a", 1),
            TestWitness::new("witness.example/b", 2),
        );
        let log = TestLogKey::new("example.com/log", 3);
        let cosigned = note(&[
            log.line(&text()),
            known.line(1_700_000_000, &text()),
            stranger.line(5, &text()),
        ]);
        let found = cosigned
            .cosignatures(std::slice::from_ref(&known.key))
            .unwrap();
        assert_eq!(
            found,
            [Cosignature {
                witness: known.key.clone(),
                time: 1_700_000_000
            }]
        );
        // A log's own signature is not that of a witness, and vice versa.
        assert!(cosigned.verify(std::slice::from_ref(&log.key)).is_ok());
        let own = note(&[log.line(&text())]);
        assert_eq!(own.cosignatures(&[known.key]).unwrap(), []);
    }

    /// A checkpoint of a public log of certificates (the static CT log `arche2025h1.staging`), as
    /// served on 2026-05-23 with the cosignatures of public witnesses. Their operators publish the
    /// keys.
    const PUBLIC: &str = "\
arche2025h1.staging.ct.transparency.dev
1432088532
U7WM79jrzyhGZ5/GUBTpM7NzwdyfFx61t3RovgcC4Ro=

\u{2014} arche2025h1.staging.ct.transparency.dev zTM8sQAAAZ5W0WdjBAMARjBEAiBjW5IQf9pvsYLfQFX6hoGREPMHbdQ3urbllzalApkptQIgIpwtEroeW2BXaHAI4kJXFbon5Ch9MNL5zRNZ55lvGt0=
\u{2014} arche2025h1.staging.ct.transparency.dev ui8GwCF1+kWqZrxGdhj4aX3gcw7XUlXQQabg/27lefwhUkzbC3NygNI75MdhL1bfTW9g8Ei59RA23oHP7Ry1k3ZFWwQ=
\u{2014} transparency.dev/DEV:witness-little-garden 2AQqhwAAAABqEiEgzgFIqqhbUoDwjMWE6UP8nd8/KYTzwZ2rhIgcqoXHAwVkjZr4AscylP3v7sEodkRAErumC2q44vdgJY096st5BQ==
\u{2014} witness1.smartit.nu/witness1 pIyCDwAAAABqEiEghIp82KWebrw7/oHQwlTAm3g2RKS4+eebl8eO0WH+/iEcxZ75W3u5hNI7TOQtmJbqmNWVuE0tgh0XwzdZsDsUAQ==
\u{2014} remora.n621.de 2net5wAAAABqEiEgPlfF3V06o0Y+fHM+J5J9s27wgxxcOVSpZ/2g/KSiXCg9DEZI+aVCIobWX9sXTynk5XeU/zZ0WBxtqB0DrAWfBw==
\u{2014} witness.stagemole.eu Z/euoAAAAABqEiEgw0i+7g2ENfDAWHmtRzCfKTHSDwYDJA2NmKeGi9Y8FtEyOUvVr+AJmIY/2TUFucgKi7lI7cUiOvKFYe/TmN9DAg==
";

    #[test]
    fn what_public_witnesses_signed_of_a_public_log_holds_and_a_change_does_not() {
        let witnesses: Vec<WitnessKey> = [
            "transparency.dev/DEV:witness-little-garden+d8042a87+BCtusOxINQNUTN5Oj8HObRkh2yHf/MwYaGX4CPdiVEPM",
            "witness1.smartit.nu/witness1+a48c820f+BPSFWg9G6KPiO7QPryYO5Xq4oYJJ+kAvLKLSimDhoxMO",
            "remora.n621.de+da77ade7+BOvN63jn/bLvkieywe8R6UYAtVtNbZpXh34x7onlmtw2",
            "witness.stagemole.eu+67f7aea0+BEqSG3yu9YrmcM3BHvQYTxwFj3uSWakQepafafpUqklv",
        ]
        .iter()
        .map(|key| key.parse().unwrap())
        .collect();
        let log = "arche2025h1.staging.ct.transparency.dev+ba2f06c0+AU0vHmlGCS/PdN8b2OaGmKprLI8HKM+dJ472xgFYh15f";
        let log: VerifierKey = log.parse().unwrap();
        let note = Note::parse(PUBLIC.as_bytes()).unwrap();
        assert!(note.verify(std::slice::from_ref(&log)).is_ok());
        let found = note.cosignatures(&witnesses).unwrap();
        let known: Vec<_> = found.iter().map(|one| (&one.witness, one.time)).collect();
        let all: Vec<_> = witnesses.iter().map(|key| (key, 1_779_573_024)).collect();
        assert_eq!(known, all);
        let changed = PUBLIC.replace("1432088532", "1432088533");
        let changed = Note::parse(changed.as_bytes()).unwrap();
        assert!(changed.verify(&[log]).is_err());
        for witness in witnesses {
            let refused = changed.cosignatures(std::slice::from_ref(&witness));
            let bad = NoteError::BadSignature(witness.name().to_owned());
            assert_eq!(refused, Err(bad));
        }
    }

    #[test]
    fn a_cosignature_of_another_text_time_or_kind_refuses_the_note() {
        let known = TestWitness::new("witness.example/a", 1);
        let keys = [known.key.clone()];
        let other = Checkpoint::new("example.com/log", 4, leaves(1)[0])
            .unwrap()
            .text();
        let elsewhere = note(&[known.line(7, &other)]);
        assert!(matches!(
            elsewhere.cosignatures(&keys),
            Err(NoteError::BadSignature(_))
        ));
        let timeless = note(&[known.line(0, &text())]);
        assert!(matches!(
            timeless.cosignatures(&keys),
            Err(NoteError::BadSignature(_))
        ));
        // A signature of the plain text has another type, even by the same key.
        let plain = known.pair.sign(text().as_bytes());
        let plain = known.key.line(7, plain.as_ref()).unwrap();
        assert!(matches!(
            note(&[plain]).cosignatures(&keys),
            Err(NoteError::BadSignature(_))
        ));
        let good = known.line(7, &text());
        for at in 0..20 {
            let mut blob = STANDARD
                .decode(good.trim_end().rsplit(' ').next().unwrap())
                .unwrap();
            blob[4 + at] ^= 1;
            let line = format!("\u{2014} {} {}\n", known.key.name(), STANDARD.encode(blob));
            assert!(note(&[line]).cosignatures(&keys).is_err(), "byte {at}");
        }
        assert!(known.key.line(7, &[0; 63]).is_err());
    }

    #[test]
    fn a_witness_key_is_not_a_logs_key() {
        let known = TestWitness::new("witness.example/a", 1);
        let text = known.key.to_string();
        assert_eq!(text.parse::<WitnessKey>().unwrap(), known.key);
        assert_eq!(
            text.parse::<VerifierKey>(),
            Err(KeyError::UnsupportedType(4))
        );
        let log = TestLogKey::new("witness.example/a", 1).key;
        assert_eq!(
            log.to_string().parse::<WitnessKey>(),
            Err(KeyError::UnsupportedType(1))
        );
        assert_ne!(log.id(), known.key.id, "the type is hashed into the id");
    }

    #[test]
    fn what_a_witness_is_sent_has_the_protocols_form() {
        let hashes = leaves(2);
        let body = add_checkpoint_body(20, &hashes, "note\n").unwrap();
        assert_eq!(
            body,
            format!("old 20\n{}\n{}\n\nnote\n", hashes[0], hashes[1])
        );
        assert_eq!(
            add_checkpoint_body(0, &[], "note\n").unwrap(),
            "old 0\n\nnote\n"
        );
        assert!(add_checkpoint_body(1, &[EMPTY_ROOT; 64], "note\n").is_none());
    }

    #[test]
    fn of_a_witnesss_answer_only_its_own_line_over_our_text_counts() {
        let witness = TestWitness::new("witness.example/a", 1);
        let stranger = TestWitness::new("witness.example/b", 2);
        let (ours, other) = (witness.line(7, &text()), stranger.line(5, &text()));
        for answer in [ours.clone(), format!("{other}{ours}")] {
            let read = witness.key.cosigned(&text(), answer.as_bytes());
            assert_eq!(read, Ok((7, ours.clone())), "{answer}");
        }
        let refused = |answer: &str| witness.key.cosigned(&text(), answer.as_bytes());
        assert_eq!(refused(&other), Err(NoteError::NoKnownSigner));
        assert_eq!(refused(""), Err(NoteError::Malformed));
        // A signature of another text, although the answer contains that text.
        let elsewhere = "example.com/log\n4\nAAAA\n";
        let smuggled = format!("{other}\n{elsewhere}\n{}", witness.line(7, elsewhere));
        assert!(refused(&smuggled).is_err());
        let moved = witness.line(7, elsewhere);
        let bad = Err(NoteError::BadSignature("witness.example/a".into()));
        assert_eq!(refused(&moved), bad);
        assert_eq!(refused(&witness.line(0, &text())), bad);
        assert!(refused(&ours.replace('\n', "\r\n")).is_err());
        let named = note_line("witness.example/a", &[0; 8]);
        assert_eq!(refused(&named), Err(NoteError::NoKnownSigner));
    }

    fn note_line(name: &str, blob: &[u8]) -> String {
        format!("\u{2014} {name} {}\n", STANDARD.encode(blob))
    }

    #[test]
    fn a_size_has_one_form() {
        assert_eq!(parse_witness_size(b"0\n"), Some(0));
        assert_eq!(parse_witness_size(b"20852163\n"), Some(20_852_163));
        for bad in [
            "",
            "\n",
            "7",
            "07\n",
            "+7\n",
            "7\n\n",
            " 7\n",
            "18446744073709551616\n",
        ] {
            assert_eq!(parse_witness_size(bad.as_bytes()), None, "{bad:?}");
        }
        assert_eq!(parse_witness_size(b"\xff\n"), None);
    }
}
