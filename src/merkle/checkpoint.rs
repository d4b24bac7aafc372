//! Checkpoints: the head of a tree as text, in the format of C2SP tlog-checkpoint.
//!
//! [`Checkpoint`] is the head, unsigned. [`SignedCheckpoint::open`] verifies a signed one; nothing
//! else creates a [`SignedCheckpoint`], so a known key of its own log has signed it. A trusted log
//! cannot sign for another one.
//!
//! A text that is no checkpoint, or one without such a signature, is a [`CheckpointError`]. The
//! empty tree has one root only. Nothing here proves that a leaf is in the tree, or that two
//! checkpoints belong to one log: [`super::receipt`] and [`super::proof`] do. `ledger::appender`
//! signs checkpoints.

use std::fmt;
use std::str::FromStr;

use super::hash::{EMPTY_ROOT, Hash};
use super::note::{Note, NoteError, VerifierKey};
use super::parse_decimal;

/// The longest origin of a log. An origin is a schema-less URL and is also the name of the log's
/// key.
pub const MAX_ORIGIN_BYTES: usize = 255;

/// The head of a log. Its text, which the log's key signs, has three lines: origin, size in
/// decimal, root in base64. Extension lines may follow; they are signed with the rest, kept
/// unchanged and not interpreted. Taskpass writes none.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct Checkpoint {
    /// The origin of the log.
    pub origin: String,
    /// Number of leaves in the log.
    pub size: u64,
    pub root: Hash,
    /// Further lines, none of them empty.
    pub extensions: Vec<String>,
}

/// The reason why a text is not a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// The text has fewer than three lines.
    #[error("a checkpoint begins with three lines: origin, size, root")]
    Malformed,
    /// An extension line is empty.
    #[error("a checkpoint's extension lines are not empty")]
    Extension,
    /// The origin is empty, too long or has control characters.
    #[error("a checkpoint's origin has 1 to {MAX_ORIGIN_BYTES} bytes and no control characters")]
    Origin,
    /// The size is not a decimal number without leading zeros.
    #[error("the checkpoint's size is not a decimal number without leading zeros")]
    Size,
    /// The root is not a hash in base64.
    #[error("the checkpoint's root is not 32 bytes in standard base64")]
    Root,
    /// The size is 0, but the root is not that of the empty tree.
    #[error("the checkpoint has size 0 but not the root of the empty tree")]
    EmptyRoot,
    /// The signed note is invalid.
    #[error(transparent)]
    Note(#[from] NoteError),
    /// A known key signed it, but no key of its own log.
    #[error("the checkpoint is of {0}, but no known key of that log has signed it")]
    OriginNotSigned(String),
}

impl Checkpoint {
    /// The head of the log `origin`, if it can be written as a checkpoint.
    pub fn new(origin: &str, size: u64, root: Hash) -> Result<Self, CheckpointError> {
        if origin.is_empty()
            || origin.len() > MAX_ORIGIN_BYTES
            || origin.chars().any(char::is_control)
        {
            return Err(CheckpointError::Origin);
        }
        if size == 0 && root != EMPTY_ROOT {
            return Err(CheckpointError::EmptyRoot);
        }
        Ok(Self {
            origin: origin.to_owned(),
            size,
            root,
            extensions: Vec::new(),
        })
    }

    /// The signed text. The same as [`ToString`].
    #[must_use]
    pub fn text(&self) -> String {
        self.to_string()
    }
}

impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n{}\n{}", self.origin, self.size, self.root)?;
        self.extensions
            .iter()
            .try_for_each(|line| writeln!(f, "{line}"))
    }
}

impl FromStr for Checkpoint {
    type Err = CheckpointError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut lines = text
            .strip_suffix('\n')
            .ok_or(CheckpointError::Malformed)?
            .split('\n');
        let (Some(origin), Some(size), Some(root)) = (lines.next(), lines.next(), lines.next())
        else {
            return Err(CheckpointError::Malformed);
        };
        let extensions: Vec<String> = lines.map(str::to_owned).collect();
        if extensions.iter().any(String::is_empty) {
            return Err(CheckpointError::Extension);
        }
        let size = parse_decimal(size).ok_or(CheckpointError::Size)?;
        let root = root.parse().map_err(|_| CheckpointError::Root)?;
        Ok(Self {
            extensions,
            ..Self::new(origin, size, root)?
        })
    }
}

/// A checkpoint that the key of its own log has signed. Only [`SignedCheckpoint::open`] creates it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedCheckpoint {
    checkpoint: Checkpoint,
    signers: Vec<VerifierKey>,
}

impl SignedCheckpoint {
    /// Opens a signed note. One of `keys` whose name is the checkpoint's origin must have signed
    /// it: a trusted log cannot sign for another one.
    pub fn open(note: &[u8], keys: &[VerifierKey]) -> Result<Self, CheckpointError> {
        let note = Note::parse(note)?.verify(keys)?;
        let checkpoint: Checkpoint = note.text().parse()?;
        if !note
            .signers()
            .iter()
            .any(|key| key.name() == checkpoint.origin)
        {
            return Err(CheckpointError::OriginNotSigned(checkpoint.origin));
        }
        Ok(Self {
            checkpoint,
            signers: note.signers().to_vec(),
        })
    }

    /// The checkpoint.
    #[must_use]
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The known keys that signed it, including one of the log.
    #[must_use]
    pub fn signers(&self) -> &[VerifierKey] {
        &self.signers
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{TestLogKey, leaves};
    use super::*;

    const ROOT: &str = "CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=";

    #[test]
    fn a_checkpoint_has_one_text() {
        let text = format!("example.com/behind-the-sofa\n20852163\n{ROOT}\n");
        let checkpoint: Checkpoint = text.parse().unwrap();
        assert_eq!(checkpoint.origin, "example.com/behind-the-sofa");
        assert_eq!(checkpoint.size, 20_852_163);
        assert_eq!(checkpoint.root.to_string(), ROOT);
        assert_eq!(checkpoint.text(), text);
    }

    #[test]
    fn malformed_checkpoints_say_what_is_wrong() {
        let parse = |text: &str| text.parse::<Checkpoint>().unwrap_err();
        assert_eq!(parse(""), CheckpointError::Malformed);
        assert_eq!(parse("o\n1\n"), CheckpointError::Malformed);
        assert_eq!(parse(&format!("o\n1\n{ROOT}")), CheckpointError::Malformed);
        for empty in ["\n", "extension\n\n", "\nextension\n"] {
            assert_eq!(
                parse(&format!("o\n1\n{ROOT}\n{empty}")),
                CheckpointError::Extension
            );
        }
        assert_eq!(parse(&format!("\n1\n{ROOT}\n")), CheckpointError::Origin);
        assert_eq!(
            parse(&format!("a\tb\n1\n{ROOT}\n")),
            CheckpointError::Origin
        );
        for size in [
            "",
            "01",
            "+1",
            "-1",
            " 1",
            "1 ",
            "0x1",
            "1.0",
            "00",
            "١",
            "18446744073709551616",
        ] {
            assert_eq!(
                parse(&format!("o\n{size}\n{ROOT}\n")),
                CheckpointError::Size,
                "{size}"
            );
        }
        assert_eq!(parse("o\n1\nAAAA\n"), CheckpointError::Root);
        assert_eq!(parse(&format!("o\n1\n{ROOT}=\n")), CheckpointError::Root);
        assert_eq!(
            parse(&format!("o\n0\n{ROOT}\n")),
            CheckpointError::EmptyRoot
        );
        assert_eq!(
            format!("o\n0\n{EMPTY_ROOT}\n")
                .parse::<Checkpoint>()
                .unwrap()
                .size,
            0
        );
        Checkpoint::new(&"o".repeat(255), 0, EMPTY_ROOT).unwrap();
        assert_eq!(
            Checkpoint::new(&"o".repeat(256), 0, EMPTY_ROOT),
            Err(CheckpointError::Origin)
        );
    }

    #[test]
    fn extension_lines_are_signed_with_the_rest_and_change_nothing() {
        let key = TestLogKey::new("ours.example/log", 1);
        let text = format!("ours.example/log\n1\n{ROOT}\nextension data\nmore\n");
        let checkpoint: Checkpoint = text.parse().unwrap();
        assert_eq!(checkpoint.extensions, ["extension data", "more"]);
        assert_eq!((checkpoint.size, checkpoint.text()), (1, text));
        let note = key.sign(&checkpoint);
        let keys = [key.key];
        let opened = SignedCheckpoint::open(note.as_bytes(), &keys).unwrap();
        assert_eq!(opened.checkpoint(), &checkpoint);
        let cut = note.replacen("more\n", "", 1);
        assert!(SignedCheckpoint::open(cut.as_bytes(), &keys).is_err());
    }

    #[test]
    fn one_trusted_log_does_not_speak_for_another() {
        let ours = TestLogKey::new("ours.example/log", 1);
        let other = TestLogKey::new("other.example/log", 2);
        let keys = [ours.key.clone(), other.key.clone()];
        let checkpoint = Checkpoint::new("ours.example/log", 5, leaves(1)[0]).unwrap();
        let opened = SignedCheckpoint::open(ours.sign(&checkpoint).as_bytes(), &keys).unwrap();
        assert_eq!(opened.checkpoint(), &checkpoint);
        assert_eq!(opened.signers(), [ours.key]);
        assert_eq!(
            SignedCheckpoint::open(other.sign(&checkpoint).as_bytes(), &keys),
            Err(CheckpointError::OriginNotSigned(
                "ours.example/log".to_owned()
            ))
        );
    }

    proptest! {
        #[test]
        fn any_text_is_a_checkpoint_or_an_error(
            text in "\\PC{0,20}|[a-z\n]{0,6}\n[0-9]{0,22}\n[A-Za-z0-9+/]{42,44}=?\n?",
        ) {
            if let Ok(checkpoint) = text.parse::<Checkpoint>() {
                prop_assert_eq!(checkpoint.text(), text);
            }
        }
    }
}
