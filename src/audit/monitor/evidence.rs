//! The finding of a monitor, as a file that others can verify without trusting the monitor.
//!
//! Two signed notes with the same size and different roots prove a contradiction by themselves. For
//! a larger tree, the file also has its root at the older size and the consistency proof (RFC 9162)
//! from there to the signed root. Notes cannot show when they were served: that a smaller head came
//! later is attested by the monitor only.
//!
//! A file that is not evidence is [`AuditError::Input`]; [`Evidence::proves`] returns an error that
//! says why signatures and hashes do not suffice. [`super::Monitor`] writes the file, and a failed
//! write does not hide the contradiction. `cli::ledger::watch` reads it.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::check::{Contradiction, ContradictionKind};
use super::state::{KeptCheckpoint, StateFile};
use crate::audit::AuditError;
use crate::clock::Timestamp;
use crate::files::{create_private, sync_name};
use crate::merkle::{
    Checkpoint, Hash, SignedCheckpoint, VerifierKey, hashes_to_bytes, verify_consistency,
};

const FORMAT: &str = "taskpass-watch-evidence@v1";
/// The longest file that is read, in bytes: two notes, a proof and at most sixteen tiles.
pub(crate) const MAX_BYTES: u64 = 2 * 1024 * 1024;
/// The most files of evidence in one second.
const MAX_FILES: u32 = 1_000;

/// The content of the file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Evidence {
    format: String,
    kind: String,
    /// The time of the finding, by the monitor's clock.
    at: Timestamp,
    url: String,
    says: String,
    /// The signed note that is contradicted.
    kept: Option<String>,
    /// The note that was served.
    fetched: String,
    /// The root of the served tree at the kept size, and the proof of it.
    older_root: Option<Hash>,
    consistency_proof: Option<Vec<Hash>>,
    /// The tiles that were read, by their paths, in base64.
    tiles: BTreeMap<String, String>,
}

/// Writes the evidence next to the state, without overwriting a file, and returns its path.
pub(super) fn write(
    state: &StateFile,
    found: &Contradiction,
    kept: Option<&KeptCheckpoint>,
    url: &str,
    at: Timestamp,
) -> io::Result<PathBuf> {
    let (older_root, consistency_proof) = found.proof.clone().unzip();
    let tiles = found.tiles.iter();
    let evidence = Evidence {
        format: FORMAT.into(),
        kind: found.kind.name().into(),
        at,
        url: url.into(),
        says: found.says.clone(),
        kept: found.against.clone().or(kept.map(|kept| kept.note.clone())),
        fetched: found.fetched.clone(),
        older_root,
        consistency_proof,
        tiles: tiles
            .map(|(id, hashes)| (id.to_string(), STANDARD.encode(hashes_to_bytes(hashes))))
            .collect(),
    };
    let mut text = serde_json::to_vec_pretty(&evidence)?;
    text.push(b'\n');
    let time: String = at
        .floor_to_second()
        .to_string()
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .collect();
    for number in 1..MAX_FILES {
        let ending = match number {
            1 => format!(".evidence-{time}"),
            _ => format!(".evidence-{time}-{number}"),
        };
        let path = state.beside(&ending);
        let mut file = match create_private(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            Err(error) => return Err(error),
        };
        file.write_all(&text)?;
        file.sync_all()?;
        sync_name(&path)?;
        return Ok(path);
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

impl Evidence {
    /// Reads the content of the file `name`.
    pub(crate) fn read(name: &str, content: &[u8]) -> Result<Self, AuditError> {
        let evidence: Self = serde_json::from_slice(content).map_err(|why| {
            AuditError::Input(format!("{name} is not evidence of a monitor: {why}"))
        })?;
        if evidence.format != FORMAT {
            return Err(AuditError::Input(format!(
                "{name} does not have the format {FORMAT}"
            )));
        }
        Ok(evidence)
    }

    /// The contradiction that signatures and hashes prove. The file's own claims do not count.
    pub(crate) fn proves(&self, keys: &[VerifierKey]) -> Result<String, String> {
        let open = |name: &str, note: &str| -> Result<Checkpoint, String> {
            let opened = SignedCheckpoint::open(note.as_bytes(), keys);
            let opened = opened.map_err(|why| format!("the {name} note: {why}"))?;
            Ok(opened.checkpoint().clone())
        };
        let kept = self.kept.as_deref().ok_or("there is only one note")?;
        let (old, new) = (open("kept", kept)?, open("fetched", &self.fetched)?);
        if old.origin != new.origin {
            return Err("the notes belong to two logs".into());
        }
        if new.size < old.size {
            return Err(format!(
                "{} signed {} leaves and {} leaves; only the monitor attests that the smaller one was served later",
                old.origin, old.size, new.size
            ));
        }
        if new.size == old.size {
            if new.root == old.root {
                return Err("both notes have the same tree".into());
            }
            return Ok(format!(
                "{} signed two trees of {} leaves, root {} and root {}",
                old.origin, old.size, old.root, new.root
            ));
        }
        let (Some(root), Some(proof)) = (&self.older_root, &self.consistency_proof) else {
            return Err("there is no proof of the larger tree's beginning".into());
        };
        verify_consistency(old.size, new.size, proof, root, &new.root)
            .map_err(|why| format!("the proof of the larger tree's beginning: {why}"))?;
        if *root == old.root {
            return Err("the larger tree continues the smaller one".into());
        }
        Ok(format!(
            "{} signed {} leaves with root {}, and a tree of {} leaves that began with root {root} at that size",
            old.origin, old.size, old.root, new.size
        ))
    }
}

impl ContradictionKind {
    /// Whether signatures and hashes alone prove it to others.
    pub(crate) fn is_proof(self) -> bool {
        matches!(self, Self::OtherRoot | Self::Fork)
    }
}
