//! A whole log in one file: a signed checkpoint, and every leaf under it, one on each line.
//!
//! The first line is a JSON object with `format` ([`LOG_FILE_FORMAT`]) and `checkpoint`, the signed
//! note. Each further line is a JSON object with `index` and either `leaf`, the leaf's bytes in
//! base64, or, if the body was pruned, `hash`, the leaf's hash. Lines are in the order of the log
//! from 0, and there are as many as the checkpoint has leaves.
//!
//! [`LogReader`] reads the file entry by entry and keeps only the edge of the tree in memory. Its
//! entries are unverified until [`LogReader::finish`] succeeds: then their number and root are
//! those of the checkpoint. Do not rely on an entry before. A file that is malformed, reordered or
//! incomplete is a [`LogFileError`] with the line.
//!
//! `http` writes log files, and the CLI reads them. [`LogReader::open`] verifies the signature of
//! the checkpoint; after [`LogReader::unsigned`] the caller must.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Read as _, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::checkpoint::{Checkpoint, CheckpointError, SignedCheckpoint};
use super::compact_range::Edge;
use super::hash::{Hash, leaf_hash};
use super::note::{MAX_NOTE_BYTES, Note, VerifierKey};
use super::tile::TILE_WIDTH;
use crate::domain::limits::MAX_LEAF_BYTES;

/// The value of `format` in the first line.
pub const LOG_FILE_FORMAT: &str = "taskpass-log@v1";

/// The longest line: a checkpoint with every newline escaped, or a leaf in base64.
const MAX_LINE_BYTES: u64 = 2 * MAX_NOTE_BYTES as u64;

/// One entry of a log file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// Leaf index in the log.
    pub index: u64,
    /// Hash of the leaf.
    pub hash: Hash,
    /// Bytes of the leaf; `None` if they were pruned.
    pub leaf: Option<Vec<u8>>,
}

/// The reason why a file is not the log of its checkpoint.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the other names say it all")]
pub enum LogFileError {
    /// The file cannot be read.
    #[error("the log cannot be read: {0}")]
    Io(#[from] io::Error),
    /// The first line does not have this format.
    #[error("the file does not begin with a log header: {0}")]
    Head(String),
    /// The checkpoint is invalid.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The line with this number is longer than any entry.
    #[error("line {0} is longer than any entry")]
    TooLong(u64),
    /// A line is not an entry.
    #[error("line {line} is not an entry: {why}")]
    Entry {
        /// Line number in the file, from 1.
        line: u64,
        why: String,
    },
    /// An entry is not the next one.
    #[error("line {line} holds entry {found}, not {expected}: the log is reordered or incomplete")]
    Order {
        /// Line number in the file, from 1.
        line: u64,
        /// The index that should come next.
        expected: u64,
        /// The index on the line.
        found: u64,
    },
    /// The number of entries is not that of the checkpoint.
    #[error("the file has {found} entries, its checkpoint has {expected}")]
    Size {
        /// Number of leaves of the checkpoint.
        expected: u64,
        /// Number of entries. Of surplus entries only one is counted.
        found: u64,
    },
    /// The root of the entries is not that of the checkpoint.
    #[error("the entries' root is {found}, the log signed {expected}")]
    Root {
        /// The root in the checkpoint.
        expected: Hash,
        /// The root of the entries.
        found: Hash,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    format: String,
    checkpoint: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    index: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    leaf: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hash: Option<Hash>,
}

/// Reads a log file entry by entry. The entries are unverified until [`finish`](Self::finish)
/// succeeds.
pub struct LogReader<R> {
    input: R,
    line: u64,
    note: String,
    checkpoint: Checkpoint,
    edge: Edge,
    /// Hashes that were not added to the edge yet.
    pending: Vec<Hash>,
    /// Sizes whose roots were requested; `None` until the root is known.
    roots: BTreeMap<u64, Option<Hash>>,
}

impl<R: BufRead> LogReader<R> {
    /// Reads the first line. One of `keys` must belong to the log of the checkpoint.
    pub fn open(input: R, keys: &[VerifierKey]) -> Result<Self, LogFileError> {
        let reader = Self::unsigned(input)?;
        SignedCheckpoint::open(reader.note.as_bytes(), keys)?;
        Ok(reader)
    }

    /// Reads the first line. The caller verifies the signatures of the [`note`](Self::note).
    pub fn unsigned(mut input: R) -> Result<Self, LogFileError> {
        let Some(first) = next_line(&mut input, 1)? else {
            return Err(LogFileError::Head("it is empty".into()));
        };
        let head: Head = serde_json::from_slice(&first)
            .map_err(|error| LogFileError::Head(error.to_string()))?;
        if head.format != LOG_FILE_FORMAT {
            return Err(LogFileError::Head(format!(
                "its format is not {LOG_FILE_FORMAT}"
            )));
        }
        let note = Note::parse(head.checkpoint.as_bytes()).map_err(CheckpointError::Note)?;
        Ok(Self {
            input,
            line: 1,
            checkpoint: note.unverified_text().parse()?,
            note: head.checkpoint,
            edge: Edge::empty(),
            pending: Vec::with_capacity(TILE_WIDTH),
            roots: BTreeMap::new(),
        })
    }

    /// Requests the root of the log at an earlier size. It is known once that many entries were
    /// read.
    pub fn want_root(&mut self, size: u64) {
        self.roots.insert(size, None);
    }

    /// The root at a requested size; `None` if it was not requested or fewer entries were read.
    #[must_use]
    pub fn root_at(&self, size: u64) -> Option<Hash> {
        self.roots.get(&size).copied().flatten()
    }

    /// The head that should cover the entries.
    #[must_use]
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The signed note with the head.
    #[must_use]
    pub fn note(&self) -> &str {
        &self.note
    }

    /// The next entry; `None` at the end.
    pub fn next_entry(&mut self) -> Result<Option<LogEntry>, LogFileError> {
        let line = self.line + 1;
        let Some(bytes) = next_line(&mut self.input, line)? else {
            return Ok(None);
        };
        self.line = line;
        let entry = parse_entry(&bytes).map_err(|why| LogFileError::Entry { line, why })?;
        let expected = self.read();
        if entry.index != expected {
            return Err(LogFileError::Order {
                line,
                expected,
                found: entry.index,
            });
        }
        let size = self.checkpoint.size;
        if expected >= size {
            return Err(LogFileError::Size {
                expected: size,
                found: expected + 1,
            });
        }
        self.pending.push(entry.hash);
        let wanted = self.roots.contains_key(&(expected + 1));
        if wanted || self.pending.len() == TILE_WIDTH {
            self.edge.append(&self.pending);
            self.pending.clear();
        }
        if wanted {
            self.roots.insert(expected + 1, Some(self.edge.root()));
        }
        Ok(Some(entry))
    }

    /// Number of entries that were read.
    fn read(&self) -> u64 {
        self.edge.size() + self.pending.len() as u64
    }

    /// Verifies at the end of the file that the entries are those of the checkpoint.
    pub fn finish(&mut self) -> Result<(), LogFileError> {
        while self.next_entry()?.is_some() {}
        self.edge.append(&self.pending);
        self.pending.clear();
        let signed = &self.checkpoint;
        if self.edge.size() != signed.size {
            return Err(LogFileError::Size {
                expected: signed.size,
                found: self.edge.size(),
            });
        }
        if self.edge.root() != signed.root {
            return Err(LogFileError::Root {
                expected: signed.root,
                found: self.edge.root(),
            });
        }
        Ok(())
    }
}

fn next_line(input: &mut impl BufRead, number: u64) -> Result<Option<Vec<u8>>, LogFileError> {
    let mut line = Vec::new();
    input.take(MAX_LINE_BYTES).read_until(b'\n', &mut line)?;
    match line.pop() {
        None => Ok(None),
        Some(b'\n') => Ok(Some(line)),
        Some(_) if line.len() as u64 + 1 == MAX_LINE_BYTES => Err(LogFileError::TooLong(number)),
        Some(last) => {
            line.push(last);
            Ok(Some(line))
        }
    }
}

fn parse_entry(line: &[u8]) -> Result<LogEntry, String> {
    let line: Line = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    let (hash, leaf) = match (line.leaf, line.hash) {
        (Some(leaf), None) => {
            let leaf = STANDARD
                .decode(leaf)
                .map_err(|_| "its leaf is not standard base64")?;
            if leaf.len() > MAX_LEAF_BYTES {
                return Err(format!("its leaf has more than {MAX_LEAF_BYTES} bytes"));
            }
            (leaf_hash(&leaf), Some(leaf))
        }
        (None, Some(hash)) => (hash, None),
        _ => return Err("it has to hold either a leaf or a hash".into()),
    };
    Ok(LogEntry {
        index: line.index,
        hash,
        leaf,
    })
}

/// Writes the first line of a log file.
pub fn write_log_head(output: &mut impl Write, checkpoint: &str) -> io::Result<()> {
    let head = Head {
        format: LOG_FILE_FORMAT.into(),
        checkpoint: checkpoint.into(),
    };
    write_line(output, &head)
}

/// Writes the next entry of a log file.
pub fn write_log_entry(output: &mut impl Write, entry: &LogEntry) -> io::Result<()> {
    let leaf = entry.leaf.as_ref().map(|leaf| STANDARD.encode(leaf));
    let line = Line {
        index: entry.index,
        hash: leaf.is_none().then_some(entry.hash),
        leaf,
    };
    write_line(output, &line)
}

fn write_line(output: &mut impl Write, line: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *output, line)?;
    output.write_all(b"\n")
}

#[cfg(test)]
mod tests {
    use super::super::testing::{TestLogKey, reference_root};
    use super::*;

    const SIZE: u64 = 600;

    fn key() -> TestLogKey {
        TestLogKey::new("example.com/log", 1)
    }

    fn entries() -> Vec<LogEntry> {
        (0..SIZE)
            .map(|index| {
                let leaf = format!("leaf {index}").into_bytes();
                LogEntry {
                    index,
                    hash: leaf_hash(&leaf),
                    leaf: (index % 7 != 0).then_some(leaf),
                }
            })
            .collect()
    }

    fn file(entries: &[LogEntry]) -> Vec<u8> {
        let mut edge = Edge::empty();
        let hashes: Vec<Hash> = super::tests::entries().iter().map(|e| e.hash).collect();
        edge.append(&hashes);
        let checkpoint = Checkpoint::new("example.com/log", SIZE, edge.root()).unwrap();
        let mut file = Vec::new();
        write_log_head(&mut file, &key().sign(&checkpoint)).unwrap();
        for entry in entries {
            write_log_entry(&mut file, entry).unwrap();
        }
        file
    }

    fn read(file: &[u8]) -> Result<Vec<LogEntry>, LogFileError> {
        let mut reader = LogReader::open(file, &[key().key])?;
        let mut entries = Vec::new();
        while let Some(entry) = reader.next_entry()? {
            entries.push(entry);
        }
        reader.finish()?;
        Ok(entries)
    }

    #[test]
    fn the_roots_on_the_way_are_those_of_the_smaller_trees() {
        let whole = file(&entries());
        let mut reader = LogReader::open(&whole[..], &[key().key]).unwrap();
        for size in [1, 300, 512, SIZE, SIZE + 1] {
            reader.want_root(size);
        }
        reader.finish().unwrap();
        let hashes: Vec<Hash> = entries().iter().map(|entry| entry.hash).collect();
        for size in [1, 300, 512, SIZE] {
            let known = reference_root(&hashes[..usize::try_from(size).unwrap()]);
            assert_eq!(reader.root_at(size), Some(known), "{size}");
        }
        assert_eq!(reader.root_at(SIZE + 1), None);
        assert_eq!(reader.root_at(2), None, "nobody asked");
    }

    #[test]
    fn what_was_written_is_read_again_pruned_bodies_and_all() {
        assert_eq!(read(&file(&entries())).unwrap(), entries());
        // The same without a final newline.
        let mut whole = file(&entries());
        whole.pop();
        assert_eq!(read(&whole).unwrap(), entries());
    }

    #[test]
    fn a_log_that_lacks_repeats_or_reorders_entries_is_told_apart() {
        let whole = entries();
        let last = usize::try_from(SIZE).unwrap() - 1;
        assert!(matches!(
            read(&file(&whole[..last])),
            Err(LogFileError::Size { expected: SIZE, .. })
        ));
        let mut longer = whole.clone();
        longer.push(LogEntry {
            index: SIZE,
            ..whole[0].clone()
        });
        assert!(matches!(
            read(&file(&longer)),
            Err(LogFileError::Size { .. })
        ));
        let mut swapped = whole.clone();
        swapped.swap(3, 4);
        assert!(matches!(
            read(&file(&swapped)),
            Err(LogFileError::Order { line: 5, .. })
        ));
        let mut renumbered = swapped;
        renumbered[3].index = 3;
        renumbered[4].index = 4;
        assert!(matches!(
            read(&file(&renumbered)),
            Err(LogFileError::Root { .. })
        ));
        let mut twice = whole;
        twice[5].index = 4;
        assert!(matches!(
            read(&file(&twice)),
            Err(LogFileError::Order { .. })
        ));
    }

    #[test]
    fn another_key_another_format_and_endless_lines_are_refused() {
        let other = TestLogKey::new("example.com/log", 2);
        let whole = file(&entries());
        assert!(matches!(
            LogReader::open(&whole[..], &[other.key]),
            Err(LogFileError::Checkpoint(_))
        ));
        for head in [
            "",
            "{}\n",
            "[]\n",
            "{\"format\":\"x\",\"checkpoint\":\"\"}\n",
        ] {
            assert!(
                matches!(read(head.as_bytes()), Err(LogFileError::Head(_))),
                "{head}"
            );
        }
        let begin = whole.split_inclusive(|byte| *byte == b'\n').next().unwrap();
        let endless = io::Cursor::new(begin.to_vec()).chain(io::repeat(b' '));
        let mut reader = LogReader::open(io::BufReader::new(endless), &[key().key]).unwrap();
        assert!(matches!(reader.next_entry(), Err(LogFileError::TooLong(2))));
        for line in [
            "{\"index\":0}",
            "{\"index\":0,\"leaf\":\"!\"}",
            "{\"index\":-1}",
            "\0",
        ] {
            let file = [begin, line.as_bytes()].concat();
            assert!(
                matches!(read(&file), Err(LogFileError::Entry { line: 2, .. })),
                "{line}"
            );
        }
    }
}
