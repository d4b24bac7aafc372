//! One look at a log: whether what it signs now continues what it signed before.
//!
//! Only what the log itself signed, and hashes that lead to a root that it signed, can accuse it of
//! a fork. Whatever else a server says, a tile that fits nothing, a note that is none, is no answer:
//! it is neither passed nor called one. That an address goes on serving what is older, another log's
//! or signed by nobody who is known is told as that; whose fault it is nobody can tell.

use std::collections::HashMap;
use std::time::Duration;

use super::log::{Log, Trouble};
use super::state::Kept;
use crate::merkle::{
    Checkpoint, GrowthPlan, Hash, Note, SignedCheckpoint, TileId, Trust, verify_consistency,
};

/// How often a head that would be a contradiction is asked for again before it is called one, and how
/// long after. Of several replicas behind one address, one that was idle may show an older head; what
/// a proxy says in between may be nobody's.
const TRIES: usize = 4;
const PAUSE: Duration = Duration::from_millis(500);
/// Signed heads that are remembered until a later one was held against them.
const MAX_OPEN: usize = 16;

/// A head that the log signed.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    /// The note.
    pub(super) note: String,
    /// What it says.
    pub(super) head: Checkpoint,
    /// How many of the named witnesses cosigned it.
    pub(super) witnesses: usize,
    /// The newest of their times.
    pub(super) witnessed_at: u64,
}

/// What a contradiction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The log signs a smaller tree than it did.
    Rollback,
    /// It signed two trees of one size.
    OtherRoot,
    /// The larger tree does not begin with the smaller.
    Fork,
    /// The address serves another log.
    OtherOrigin,
    /// The pinned keys do not vouch for what the address serves.
    BadSignature,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Rollback => "rollback",
            Self::OtherRoot => "other-root",
            Self::Fork => "fork",
            Self::OtherOrigin => "other-origin",
            Self::BadSignature => "bad-signature",
        }
    }
}

/// What has to be shouted.
#[derive(Debug)]
pub(super) struct Contradiction {
    pub(super) kind: Kind,
    /// A sentence.
    pub(super) says: String,
    /// The note that the log shows now.
    pub(super) fetched: String,
    /// The note that it contradicts, if that is not the one that was kept.
    pub(super) against: Option<String>,
    /// Of a fork: the root that the new tree has at the old size, and the proof of that.
    pub(super) proof: Option<(Hash, Vec<Hash>)>,
    /// The tiles that were read.
    pub(super) tiles: HashMap<TileId, Vec<Hash>>,
}

/// What a look came to.
#[derive(Debug)]
pub(super) enum Verdict {
    /// Nothing was known before.
    First(Seen),
    /// The head is the same.
    Same(Seen),
    /// The tree has grown, and begins with what was known.
    Grown(Seen),
    /// It was not possible to tell.
    Unknown(Trouble),
    /// The log contradicts itself, or is not the log.
    Contradicted(Box<Contradiction>),
}

impl From<Trouble> for Verdict {
    fn from(trouble: Trouble) -> Self {
        Self::Unknown(trouble)
    }
}

/// Looks once. `open` has the heads that earlier looks saw and could hold nothing against: the log
/// signed them, so it is held to them as well.
pub(super) async fn look(
    log: &Log,
    trust: &Trust,
    origin: &str,
    kept: Option<&Kept>,
    open: &mut Vec<Seen>,
) -> Verdict {
    match try_look(log, trust, origin, kept, open).await {
        Ok(verdict) | Err(verdict) => verdict,
    }
}

async fn try_look(
    log: &Log,
    trust: &Trust,
    origin: &str,
    kept: Option<&Kept>,
    open: &mut Vec<Seen>,
) -> Result<Verdict, Verdict> {
    let seen = newest(log, trust, origin, kept, open).await?;
    let Some(kept) = kept else {
        return Ok(Verdict::First(seen));
    };
    let held = hold(log, &kept.head, open, &seen).await;
    match &held {
        Ok(()) => open.clear(),
        Err(_) => remember(open, &seen),
    }
    held?;
    Ok(if seen.head.size == kept.head.size {
        Verdict::Same(seen)
    } else {
        Verdict::Grown(seen)
    })
}

/// The head that the log shows, asked for again while it would be a contradiction.
async fn newest(
    log: &Log,
    trust: &Trust,
    origin: &str,
    kept: Option<&Kept>,
    open: &mut Vec<Seen>,
) -> Result<Seen, Verdict> {
    let known = open.iter().map(|seen| &seen.head);
    let known = known.chain(kept.map(|kept| &kept.head));
    let largest = known.map(|head| head.size).max().unwrap_or(0);
    let mut tries = 0;
    loop {
        tries += 1;
        let opened = self::open(&log.checkpoint().await?, trust, origin);
        let again = match &opened {
            Ok(seen) => seen.head.size < largest,
            Err(Verdict::Contradicted(_)) => true,
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

fn remember(open: &mut Vec<Seen>, seen: &Seen) {
    if open.len() < MAX_OPEN && open.iter().all(|other| other.head != seen.head) {
        open.push(seen.clone());
    }
}

/// Holds a head against all that was signed before it.
async fn hold(log: &Log, kept: &Checkpoint, open: &[Seen], seen: &Seen) -> Result<(), Verdict> {
    continues(log, kept, seen).await?;
    for older in open.iter().filter(|older| older.head.size > 0) {
        continues(log, &older.head, seen)
            .await
            .map_err(|verdict| match verdict {
                Verdict::Contradicted(mut found) => {
                    found.against = Some(older.note.clone());
                    Verdict::Contradicted(found)
                }
                other => other,
            })?;
    }
    Ok(())
}

/// Whether a head continues one that was signed before.
async fn continues(log: &Log, old: &Checkpoint, seen: &Seen) -> Result<(), Verdict> {
    let new = &seen.head;
    if new.size < old.size {
        let says = format!(
            "the log had {} leaves, root {}; now it signs {} leaves, root {}",
            old.size, old.root, new.size, new.root
        );
        return Err(contradiction(Kind::Rollback, says, &seen.note));
    }
    if new.size > old.size {
        return contains(log, old, seen).await;
    }
    if new.root != old.root {
        let says = format!(
            "the log signed two trees of {} leaves: root {} before, root {} now",
            old.size, old.root, new.root
        );
        return Err(contradiction(Kind::OtherRoot, says, &seen.note));
    }
    Ok(())
}

/// Opens what came as a checkpoint of the log.
#[expect(
    clippy::result_large_err,
    reason = "a verdict is made once for each look at the log"
)]
fn open(note: &[u8], trust: &Trust, origin: &str) -> Result<Seen, Verdict> {
    let unreadable = |why: &dyn std::fmt::Display| {
        Verdict::Unknown(Trouble::Unreadable(format!(
            "what came is no checkpoint: {why}"
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
        return Err(contradiction(Kind::OtherOrigin, says, &text));
    }
    let forged = |why: &dyn std::fmt::Display| {
        let says = format!("the pinned keys do not vouch for what is served: {why}");
        contradiction(Kind::BadSignature, says, &text)
    };
    SignedCheckpoint::open(note, &trust.keys).map_err(|why| forged(&why))?;
    let cosigned = parsed
        .cosignatures(&trust.witnesses)
        .map_err(|why| forged(&why))?;
    let mut names: Vec<&str> = cosigned.iter().map(|one| one.witness.name()).collect();
    names.sort_unstable();
    names.dedup();
    let (witnesses, newest) = (names.len(), cosigned.iter().map(|one| one.time).max());
    Ok(Seen {
        note: text,
        head,
        witnesses,
        witnessed_at: newest.unwrap_or(0),
    })
}

/// Whether the larger tree begins with the kept one, by hashes that lead to its signed root.
async fn contains(log: &Log, old: &Checkpoint, seen: &Seen) -> Result<(), Verdict> {
    let new = &seen.head;
    let unreadable = |why: String| Verdict::Unknown(Trouble::Unreadable(why));
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
    // The tiles are the signed tree's. What they and the proof of them say must be one thing.
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
    Err(Verdict::Contradicted(Box::new(Contradiction {
        kind: Kind::Fork,
        says,
        fetched: seen.note.clone(),
        against: None,
        proof: Some((growth.from_root, growth.proof)),
        tiles,
    })))
}

fn contradiction(kind: Kind, says: String, fetched: &str) -> Verdict {
    Verdict::Contradicted(Box::new(Contradiction {
        kind,
        says,
        fetched: fetched.to_owned(),
        against: None,
        proof: None,
        tiles: HashMap::new(),
    }))
}
