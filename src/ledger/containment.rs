//! Whether the store contains the tree of a checkpoint that was kept outside of it.
//!
//! [`contains`] computes the root that the store's tree had at the size of the checkpoint, and
//! compares the two. `succeeded` checks a checkpoint of the log that this one succeeds.
//! [`unverified`] reads a checkpoint for such a comparison.
//!
//! The rule: a store that lacks leaves of the checkpoint, or has others, was rewound or forked
//! ([`NotContained::Rewound`]), and `rewound` is the text for it, with both heads. A store that does
//! not answer is [`NotContained::Unknown`], and nothing is concluded from it. [`super::guard`],
//! `shared`, `appender` and `app` call this file; [`super::proofs`] computes the roots. No
//! signature is verified here.

use super::proofs;
use crate::domain::succession::Succession;
use crate::merkle::{Checkpoint, CheckpointError, EMPTY_ROOT, Note};
use crate::store::Store;
use crate::store::heads::Head;

/// The checkpoint in a note, without a check of its signatures.
pub fn unverified(note: &[u8]) -> Result<Checkpoint, CheckpointError> {
    Note::parse(note)?.unverified_text().parse()
}

/// Why the store is not known to contain a tree.
#[derive(Debug, thiserror::Error)]
pub enum NotContained {
    /// The store contains another tree.
    #[error("{0}")]
    Rewound(String),
    /// The store cannot tell now.
    #[error("{0}")]
    Unknown(String),
}

/// Whether a store with the head `head` contains the tree of `kept`.
pub async fn contains(store: &Store, head: Option<Head>, kept: Head) -> Result<(), NotContained> {
    let shown = head.unwrap_or(Head {
        size: 0,
        root: EMPTY_ROOT,
    });
    if shown.size < kept.size {
        return Err(NotContained::Rewound(rewound(kept, shown)));
    }
    let root = proofs::root_at(store, kept.size, shown.size).await;
    let root = root.map_err(NotContained::Unknown)?;
    if root == kept.root {
        return Ok(());
    }
    let size = kept.size;
    let shown = Head { size, root };
    Err(NotContained::Rewound(rewound(kept, shown)))
}

/// Checks that a checkpoint of the predecessor log was known when that log was given up.
pub(super) fn succeeded(known: &Checkpoint, succeeds: &Succession) -> Result<(), String> {
    if known.size <= succeeds.size {
        return Ok(());
    }
    Err(format!(
        "a checkpoint of the log `{}` of size {} root {}, but that log was given up at size {} \
         root {}: more leaves were lost than was declared; keep this checkpoint as evidence, and \
         move it away",
        known.origin, known.size, known.root, succeeds.size, succeeds.root
    ))
}

/// The error text for a store that shows another tree.
pub(super) fn rewound(ours: Head, theirs: Head) -> String {
    format!(
        "the store was rewound or forked: it had size {} root {}, it shows size {} \
         root {}; nothing is issued until this is resolved",
        ours.size, ours.root, theirs.size, theirs.root
    )
}
