//! The signature of a checkpoint, outside the lock.

use crate::domain::limits::MAX_LEDGER_KEYS;
use crate::ledger::{AppendError, LedgerParts, Signed};
use crate::merkle::{Checkpoint, note_signature_line, sign_note};
use crate::store::heads::Head;

/// Signs a head with the log's keys: the current key and earlier ones that still sign. Uses at most
/// [`MAX_LEDGER_KEYS`], because readers refuse a note with more signatures.
pub(in crate::ledger) async fn sign(
    parts: &LedgerParts,
    head: Head,
) -> Result<Signed, AppendError> {
    let text = Checkpoint {
        origin: parts.origin.clone(),
        size: head.size,
        root: head.root,
        extensions: Vec::new(),
    }
    .to_string();
    let keys = parts.keys.load_full();
    let mut lines = Vec::with_capacity(keys.len());
    for key in keys.iter().take(MAX_LEDGER_KEYS) {
        let signature = key.signer.sign(text.as_bytes()).await;
        let signature = signature.map_err(|_| AppendError::Unsigned)?;
        let line = note_signature_line(&key.verifier, &signature);
        lines.push(line.map_err(|_| AppendError::Unsigned)?);
    }
    let checkpoint = sign_note(&text, &lines).map_err(|_| AppendError::Unsigned)?;
    Ok(Signed {
        head,
        checkpoint: checkpoint.into(),
    })
}
