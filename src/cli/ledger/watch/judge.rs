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

/// A head that the log signed and that contradicts nothing.
#[derive(Debug)]
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

/// Looks once.
pub(super) async fn look(log: &Log, trust: &Trust, origin: &str, kept: Option<&Kept>) -> Verdict {
    match try_look(log, trust, origin, kept).await {
        Ok(verdict) | Err(verdict) => verdict,
    }
}

async fn try_look(
    log: &Log,
    trust: &Trust,
    origin: &str,
    kept: Option<&Kept>,
) -> Result<Verdict, Verdict> {
    // Smaller heads that were seen on the way: signed, so the log is held to them as well.
    let mut smaller: Vec<Seen> = Vec::new();
    let mut tries = 0;
    let seen = loop {
        tries += 1;
        let opened = open(&log.checkpoint().await?, trust, origin);
        let again = match &opened {
            Ok(seen) => kept.is_some_and(|kept| seen.head.size < kept.head.size),
            Err(Verdict::Contradicted(_)) => true,
            Err(_) => false,
        };
        if !again || tries == TRIES {
            break opened?;
        }
        if let Ok(seen) = opened
            && smaller.iter().all(|other| other.head != seen.head)
        {
            smaller.push(seen);
        }
        tokio::time::sleep(PAUSE).await;
    };
    let Some(kept) = kept else {
        return Ok(Verdict::First(seen));
    };
    let (old, new) = (&kept.head, &seen.head);
    if new.size < old.size {
        let says = format!(
            "the log had {} leaves, root {}; now it signs {} leaves, root {}",
            old.size, old.root, new.size, new.root
        );
        return Err(contradiction(Kind::Rollback, says, &seen.note));
    }
    if new.size == old.size {
        if new.root != old.root {
            let says = format!(
                "the log signed two trees of {} leaves: root {} before, root {} now",
                old.size, old.root, new.root
            );
            return Err(contradiction(Kind::OtherRoot, says, &seen.note));
        }
        contains_all(log, &smaller, &seen).await?;
        return Ok(Verdict::Same(seen));
    }
    contains(log, old, &seen).await?;
    contains_all(log, &smaller, &seen).await?;
    Ok(Verdict::Grown(seen))
}

/// Whether a head that was verified contains the smaller ones that came before it.
async fn contains_all(log: &Log, smaller: &[Seen], seen: &Seen) -> Result<(), Verdict> {
    for older in smaller.iter().filter(|older| older.head.size > 0) {
        contains(log, &older.head, seen)
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

/// Opens what came as a checkpoint of the log.
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
