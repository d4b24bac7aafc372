//! One check of a log: whether its newest checkpoint continues the earlier ones.
//!
//! Only checkpoints that the log signed, and hashes that lead to a root that it signed, can prove a
//! fork. Any other answer, such as a tile that does not fit or a malformed note, is no result:
//! neither success nor a contradiction. If an address keeps serving an older checkpoint, another
//! log's, or one without a known signature, that is reported as such; whose fault it is cannot be
//! determined.
//!
//! A check without a result is `CheckResult::Unknown`, with the error of [`super::log`].
//! [`super::Monitor`] calls [`check`], keeps the new checkpoint, and writes the evidence of a
//! contradiction.

use std::collections::HashMap;
use std::time::Duration;

use super::log::{Log, LogError};
use super::state::KeptCheckpoint;
use crate::merkle::{
    Checkpoint, GrowthPlan, Hash, Note, SignedCheckpoint, TileId, Trust, verify_consistency,
};

/// How often a head that would be a contradiction is requested again before it is reported, and the
/// pause in between. An idle replica behind the same address may show an older head, and a proxy
/// may answer in its place.
const TRIES: usize = 4;
const PAUSE: Duration = Duration::from_millis(500);
/// The most signed heads that are remembered until they were compared with a later one.
const MAX_OPEN: usize = 16;

/// A head that the log signed.
#[derive(Clone, Debug)]
pub(super) struct SignedHead {
    pub(super) note: String,
    /// The checkpoint in the note.
    pub(super) head: Checkpoint,
    /// How many of the given witnesses cosigned it.
    pub(super) witnesses: usize,
    /// The newest time of these cosignatures, in seconds since 1970; 0 without any.
    pub(super) witnessed_at: u64,
}

/// The kind of a contradiction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ContradictionKind {
    /// The log signs a smaller tree than before.
    Rollback,
    /// The log signed two trees of the same size.
    OtherRoot,
    /// The larger tree does not begin with the smaller one.
    Fork,
    /// The address serves another log.
    OtherOrigin,
    /// The address serves a checkpoint that the pinned keys did not sign.
    BadSignature,
}

impl ContradictionKind {
    /// The name of the kind in JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Rollback => "rollback",
            Self::OtherRoot => "other-root",
            Self::Fork => "fork",
            Self::OtherOrigin => "other-origin",
            Self::BadSignature => "bad-signature",
        }
    }
}

/// A contradiction to report.
#[derive(Debug)]
pub(crate) struct Contradiction {
    pub(crate) kind: ContradictionKind,
    /// The contradiction as a sentence.
    pub(crate) says: String,
    /// The note that the log serves now.
    pub(crate) fetched: String,
    /// The note that it contradicts; `None` for the kept one.
    pub(crate) against: Option<String>,
    /// For a fork: the root of the new tree at the old size, and its consistency proof.
    pub(super) proof: Option<(Hash, Vec<Hash>)>,
    /// The tiles that were read for the comparison.
    pub(super) tiles: HashMap<TileId, Vec<Hash>>,
}

/// The result of a check.
#[derive(Debug)]
pub(super) enum CheckResult {
    /// There was no earlier checkpoint.
    First(SignedHead),
    /// The head is the same as before.
    Same(SignedHead),
    /// The tree has grown, and begins with the known one.
    Grown(SignedHead),
    /// The comparison was not possible.
    Unknown(LogError),
    /// The log contradicts itself, or the address serves something else.
    Contradicted(Box<Contradiction>),
}

impl From<LogError> for CheckResult {
    fn from(error: LogError) -> Self {
        Self::Unknown(error)
    }
}

/// Checks once. `open` holds the heads of earlier checks that could not be compared yet: the log
/// signed them, so later heads must continue them, too.
pub(super) async fn check(
    log: &Log,
    trust: &Trust,
    origin: &str,
    kept: Option<&KeptCheckpoint>,
    open: &mut Vec<SignedHead>,
) -> CheckResult {
    match try_check(log, trust, origin, kept, open).await {
        Ok(verdict) | Err(verdict) => verdict,
    }
}

async fn try_check(
    log: &Log,
    trust: &Trust,
    origin: &str,
    kept: Option<&KeptCheckpoint>,
    open: &mut Vec<SignedHead>,
) -> Result<CheckResult, CheckResult> {
    let seen = newest(log, trust, origin, kept, open).await?;
    let Some(kept) = kept else {
        return Ok(CheckResult::First(seen));
    };
    let held = hold(log, &kept.head, open, &seen).await;
    match &held {
        Ok(()) => open.clear(),
        Err(_) => remember(open, &seen),
    }
    held?;
    Ok(if seen.head.size == kept.head.size {
        CheckResult::Same(seen)
    } else {
        CheckResult::Grown(seen)
    })
}

/// The head that the log serves, requested again while it would be a contradiction.
async fn newest(
    log: &Log,
    trust: &Trust,
    origin: &str,
    kept: Option<&KeptCheckpoint>,
    open: &mut Vec<SignedHead>,
) -> Result<SignedHead, CheckResult> {
    let known = open.iter().map(|seen| &seen.head);
    let known = known.chain(kept.map(|kept| &kept.head));
    let largest = known.map(|head| head.size).max().unwrap_or(0);
    let mut tries = 0;
    loop {
        tries += 1;
        let opened = self::open(&log.checkpoint().await?, trust, origin);
        let again = match &opened {
            Ok(seen) => seen.head.size < largest,
            Err(CheckResult::Contradicted(_)) => true,
            Err(_) => false,
        };
        if !again || tries == TRIES {
            return opened;
        }
        if let Ok(seen) = opened {
            remember(open, &seen);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn remember(open: &mut Vec<SignedHead>, seen: &SignedHead) {
    if open.len() < MAX_OPEN && open.iter().all(|other| other.head != seen.head) {
        open.push(seen.clone());
    }
}

/// Compares a head with all that were signed before it.
async fn hold(
    log: &Log,
    kept: &Checkpoint,
    open: &[SignedHead],
    seen: &SignedHead,
) -> Result<(), CheckResult> {
    continues(log, kept, seen).await?;
    for older in open.iter().filter(|older| older.head.size > 0) {
        continues(log, &older.head, seen)
            .await
            .map_err(|verdict| match verdict {
                CheckResult::Contradicted(mut found) => {
                    found.against = Some(older.note.clone());
                    CheckResult::Contradicted(found)
                }
                other => other,
            })?;
    }
    Ok(())
}

/// Checks that a head continues one that was signed before.
async fn continues(log: &Log, old: &Checkpoint, seen: &SignedHead) -> Result<(), CheckResult> {
    let new = &seen.head;
    if new.size < old.size {
        let says = format!(
            "the log had {} leaves, root {}; now it signs {} leaves, root {}",
            old.size, old.root, new.size, new.root
        );
        return Err(contradiction(ContradictionKind::Rollback, says, &seen.note));
    }
    if new.size > old.size {
        return contains(log, old, seen).await;
    }
    if new.root != old.root {
        let says = format!(
            "the log signed two trees of {} leaves: root {} before, root {} now",
            old.size, old.root, new.root
        );
        return Err(contradiction(
            ContradictionKind::OtherRoot,
            says,
            &seen.note,
        ));
    }
    Ok(())
}

/// Parses and verifies an answer as a checkpoint of the log.
#[expect(
    clippy::result_large_err,
    reason = "there is one verdict for each check of the log"
)]
fn open(note: &[u8], trust: &Trust, origin: &str) -> Result<SignedHead, CheckResult> {
    let unreadable = |why: &dyn std::fmt::Display| {
        CheckResult::Unknown(LogError::Unreadable(format!(
            "the answer is not a checkpoint: {why}"
        )))
    };
    let parsed = Note::parse(note).map_err(|why| unreadable(&why))?;
    let text = String::from_utf8_lossy(note).into_owned();
    let head: Checkpoint = parsed
        .unverified_text()
        .parse()
        .map_err(|why| unreadable(&why))?;
    if head.origin != origin {
        let says = format!("the address serves {}, not {origin}", head.origin);
        return Err(contradiction(ContradictionKind::OtherOrigin, says, &text));
    }
    let forged = |why: &dyn std::fmt::Display| {
        let says = format!("the pinned keys did not sign the served checkpoint: {why}");
        contradiction(ContradictionKind::BadSignature, says, &text)
    };
    SignedCheckpoint::open(note, &trust.keys).map_err(|why| forged(&why))?;
    let cosigned = parsed
        .cosignatures(&trust.witnesses)
        .map_err(|why| forged(&why))?;
    let mut names: Vec<&str> = cosigned.iter().map(|one| one.witness.name()).collect();
    names.sort_unstable();
    names.dedup();
    let (witnesses, newest) = (names.len(), cosigned.iter().map(|one| one.time).max());
    Ok(SignedHead {
        note: text,
        head,
        witnesses,
        witnessed_at: newest.unwrap_or(0),
    })
}

/// Checks that the larger tree begins with the kept one, by hashes that lead to its signed root.
async fn contains(log: &Log, old: &Checkpoint, seen: &SignedHead) -> Result<(), CheckResult> {
    let new = &seen.head;
    let unreadable = |why: String| CheckResult::Unknown(LogError::Unreadable(why));
    let plan = GrowthPlan::new(old.size, new.size).map_err(|e| unreadable(e.to_string()))?;
    let tiles = log.tiles(plan.tiles()).await?;
    let growth = plan
        .build(&tiles)
        .map_err(|why| unreadable(why.to_string()))?;
    if growth.to_root != new.root {
        return Err(unreadable(format!(
            "the tiles lead to root {}, the log signed {} for its {} leaves",
            growth.to_root, new.root, new.size
        )));
    }
    // The tiles belong to the signed tree. The proof computed from them must agree with them.
    verify_consistency(
        old.size,
        new.size,
        &growth.proof,
        &growth.from_root,
        &new.root,
    )
    .map_err(|why| unreadable(why.to_string()))?;
    if growth.from_root == old.root {
        return Ok(());
    }
    let says = format!(
        "the log signed {} leaves with root {}; the tree of {} leaves that it signs now began with root {} at that size",
        old.size, old.root, new.size, growth.from_root
    );
    Err(CheckResult::Contradicted(Box::new(Contradiction {
        kind: ContradictionKind::Fork,
        says,
        fetched: seen.note.clone(),
        against: None,
        proof: Some((growth.from_root, growth.proof)),
        tiles,
    })))
}

fn contradiction(kind: ContradictionKind, says: String, fetched: &str) -> CheckResult {
    CheckResult::Contradicted(Box::new(Contradiction {
        kind,
        says,
        fetched: fetched.to_owned(),
        against: None,
        proof: None,
        tiles: HashMap::new(),
    }))
}
