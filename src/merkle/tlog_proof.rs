//! The proof of one entry as a text file, in the format of C2SP tlog-proof.
//!
//! [`TlogProof`] has an index, hashes, a signed checkpoint, and as extra data the leaf. One proof
//! has one text. A text of another form is a [`TlogProofError`], which names the line or the part.
//!
//! Parsing verifies nothing: a parsed proof can contain any hashes and signatures.
//! [`super::receipt::Receipt::from_tlog_proof`] turns it into a receipt, whose `verify` checks all
//! of it. The CLI writes and reads these files.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::hash::Hash;
use super::note::{MAX_NOTE_BYTES, Note, NoteError};
use super::parse_decimal;
use super::proof::MAX_PROOF_HASHES;
use crate::domain::limits::MAX_LEAF_BYTES;

const HEADER: &str = "c2sp.org/tlog-proof@v1";

/// The longest proof. Its extra data is at most a leaf.
pub const MAX_TLOG_PROOF_BYTES: usize = MAX_NOTE_BYTES + 96 * 1024;

/// A `.tlog-proof`: an entry's index, its inclusion proof, and a signed checkpoint. Unverified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlogProof {
    /// Bytes that the proof does not cover. In a receipt they are the leaf, whose hash is then
    /// verified.
    pub extra: Option<Vec<u8>>,
    /// Index of the entry.
    pub index: u64,
    /// The hashes of the inclusion proof.
    pub hashes: Vec<Hash>,
    /// The signed checkpoint, verbatim.
    pub checkpoint: String,
}

/// The reason why a text is not a proof.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlogProofError {
    /// The text is longer than any proof.
    #[error("the proof has more than {MAX_TLOG_PROOF_BYTES} bytes")]
    TooLong,
    /// The first line is not that of this format.
    #[error("the proof does not begin with {HEADER}")]
    Header,
    /// There is no empty line between proof and checkpoint.
    #[error("the proof has no empty line before its checkpoint")]
    NoCheckpoint,
    /// The extra data is not base64.
    #[error("the proof's extra data is not standard base64")]
    Extra,
    /// The extra data is longer than a leaf.
    #[error("the proof's extra data has more than {MAX_LEAF_BYTES} bytes")]
    ExtraTooLong,
    /// The index is not a decimal number without leading zeros.
    #[error("the proof has no index line with a decimal number")]
    Index,
    /// A line is not a hash.
    #[error("hash {0} of the proof is not 32 bytes in standard base64")]
    Hash(usize),
    /// There are more hashes than a proof can have.
    #[error("the proof has more than {MAX_PROOF_HASHES} hashes")]
    TooManyHashes,
    /// The checkpoint is not a signed note.
    #[error(transparent)]
    Note(#[from] NoteError),
}

impl fmt::Display for TlogProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{HEADER}")?;
        if let Some(extra) = &self.extra {
            writeln!(f, "extra {}", STANDARD.encode(extra))?;
        }
        writeln!(f, "index {}", self.index)?;
        for hash in &self.hashes {
            writeln!(f, "{hash}")?;
        }
        write!(f, "\n{}", self.checkpoint)
    }
}

impl FromStr for TlogProof {
    type Err = TlogProofError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > MAX_TLOG_PROOF_BYTES {
            return Err(TlogProofError::TooLong);
        }
        let rest = text
            .strip_prefix(HEADER)
            .and_then(|rest| rest.strip_prefix('\n'))
            .ok_or(TlogProofError::Header)?;
        // No line of the proof itself is empty, so the first empty line ends it.
        let (head, checkpoint) = rest
            .split_once("\n\n")
            .ok_or(TlogProofError::NoCheckpoint)?;
        let mut lines = head.split('\n').peekable();
        let extra = lines
            .next_if(|line| line.starts_with("extra "))
            .map(|line| parse_extra(&line["extra ".len()..]))
            .transpose()?;
        let index = lines
            .next()
            .and_then(|line| line.strip_prefix("index "))
            .and_then(parse_decimal)
            .ok_or(TlogProofError::Index)?;
        let mut hashes = Vec::new();
        for (number, line) in (1..).zip(lines) {
            if number > MAX_PROOF_HASHES {
                return Err(TlogProofError::TooManyHashes);
            }
            hashes.push(line.parse().map_err(|_| TlogProofError::Hash(number))?);
        }
        Note::parse(checkpoint.as_bytes())?;
        Ok(Self {
            extra,
            index,
            hashes,
            checkpoint: checkpoint.to_owned(),
        })
    }
}

fn parse_extra(text: &str) -> Result<Vec<u8>, TlogProofError> {
    let extra = STANDARD.decode(text).map_err(|_| TlogProofError::Extra)?;
    if extra.len() > MAX_LEAF_BYTES {
        return Err(TlogProofError::ExtraTooLong);
    }
    Ok(extra)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::checkpoint::Checkpoint;
    use super::super::testing::{TestLogKey, leaves};
    use super::*;

    fn checkpoint() -> String {
        let log = TestLogKey::new("example.com/log", 1);
        log.sign(&Checkpoint::new("example.com/log", 9, leaves(1)[0]).unwrap())
    }

    #[test]
    fn a_proof_has_one_text() {
        let hashes = leaves(2);
        let proof = TlogProof {
            extra: Some(b"leaf".to_vec()),
            index: 7,
            hashes: hashes.clone(),
            checkpoint: checkpoint(),
        };
        let text = proof.to_string();
        assert_eq!(
            text,
            format!(
                "c2sp.org/tlog-proof@v1\nextra bGVhZg==\nindex 7\n{}\n{}\n\n{}",
                hashes[0],
                hashes[1],
                checkpoint()
            )
        );
        assert_eq!(text.parse(), Ok(proof));
        let shortest = TlogProof {
            extra: None,
            index: 0,
            hashes: Vec::new(),
            checkpoint: checkpoint(),
        };
        assert_eq!(
            shortest.to_string(),
            format!("c2sp.org/tlog-proof@v1\nindex 0\n\n{}", checkpoint())
        );
        assert_eq!(shortest.to_string().parse(), Ok(shortest));
    }

    #[test]
    fn malformed_proofs_say_what_is_wrong() {
        let hash = leaves(1)[0];
        let with = |head: &str| format!("{head}\n\n{}", checkpoint()).parse::<TlogProof>();
        let head = |lines: &str| with(&format!("{HEADER}\n{lines}")).unwrap_err();
        assert_eq!(
            with("c2sp.org/tlog-proof@v2\nindex 1"),
            Err(TlogProofError::Header)
        );
        assert_eq!(with(HEADER), Err(TlogProofError::Index));
        assert_eq!("".parse::<TlogProof>(), Err(TlogProofError::Header));
        assert_eq!(
            format!("{HEADER}\nindex 1\n").parse::<TlogProof>(),
            Err(TlogProofError::NoCheckpoint)
        );
        assert_eq!(head("index 01"), TlogProofError::Index);
        assert_eq!(head("index -1"), TlogProofError::Index);
        assert_eq!(head("index 18446744073709551616"), TlogProofError::Index);
        assert_eq!(head("Index 1"), TlogProofError::Index);
        assert_eq!(head("extra !\nindex 1"), TlogProofError::Extra);
        assert_eq!(head("extra bGVhZg\nindex 1"), TlogProofError::Extra);
        assert_eq!(
            head("extra AAAA\nextra AAAA\nindex 1"),
            TlogProofError::Index
        );
        assert_eq!(head("index 1\nextra AAAA"), TlogProofError::Hash(1));
        assert_eq!(
            head(&format!("index 1\n{hash}\n{hash} ")),
            TlogProofError::Hash(2)
        );
        assert_eq!(
            format!("{HEADER}\nindex 1\n\nnot a note\n").parse::<TlogProof>(),
            Err(TlogProofError::Note(NoteError::Malformed))
        );
        let crlf = format!("{HEADER}\nindex 1\n\n{}", checkpoint()).replace('\n', "\r\n");
        assert_eq!(crlf.parse::<TlogProof>(), Err(TlogProofError::Header));
    }

    #[test]
    fn proofs_are_bounded() {
        let proof = |hashes: usize, extra: usize| {
            TlogProof {
                extra: Some(vec![0; extra]),
                index: 1,
                hashes: leaves(hashes),
                checkpoint: checkpoint(),
            }
            .to_string()
            .parse::<TlogProof>()
        };
        proof(MAX_PROOF_HASHES, MAX_LEAF_BYTES).unwrap();
        assert_eq!(
            proof(MAX_PROOF_HASHES + 1, 0),
            Err(TlogProofError::TooManyHashes)
        );
        assert_eq!(
            proof(0, MAX_LEAF_BYTES + 1),
            Err(TlogProofError::ExtraTooLong)
        );
        assert_eq!(proof(0, MAX_TLOG_PROOF_BYTES), Err(TlogProofError::TooLong));
    }

    proptest! {
        #[test]
        fn any_text_is_a_proof_or_an_error(
            body in "\\PC{0,40}|(extra [A-Za-z=]{0,8}\n)?index [0-9]{0,21}(\n[A-Za-z0-9=]{44}){0,2}\n\n",
            at in any::<prop::sample::Index>(), byte in any::<u8>(),
        ) {
            let text = format!("{HEADER}\n{body}{}", checkpoint());
            let mut bytes = text.clone().into_bytes();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            for text in [body, text, String::from_utf8_lossy(&bytes).into_owned()] {
                if let Ok(proof) = text.parse::<TlogProof>() {
                    prop_assert_eq!(proof.to_string(), text);
                }
            }
        }
    }
}
