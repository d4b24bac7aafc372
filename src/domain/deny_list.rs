//! Back ends that end single sessions by a list of their own: one document for each place, which
//! names the sessions that are denied there.
//!
//! Such a document is written whole and the last writer wins, so it is kept as a projection of our
//! own records: rendered from them, numbered, read back, and corrected when it says anything else.

use std::collections::BTreeSet;

use super::kind::MinterKind;
use crate::clock::Timestamp;
use crate::ids::SessionId;

/// Where sessions are denied: a role, for AWS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DenyPlace {
    /// The kind of its minter.
    pub minter: MinterKind,
    /// Its name at the back end.
    pub name: String,
    /// What the minter needs to find it again when no resource names it any more.
    pub registration: String,
    /// Sessions that its document may name at once.
    pub capacity: u32,
    /// How long a written document may take until it holds everywhere.
    pub propagation_seconds: u64,
}

/// Who wants a session denied. It decides how much of a list's room it may take, and who is listed
/// first when room comes free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DenyWish {
    /// Nobody: it is over by completion, silence or its own workload's word. Half of the room, so
    /// that no workload can take what an admin needs.
    Over = 0,
    /// The broker, because it may exist and nobody has it: the room that issuing leaves.
    Unknown = 1,
    /// An admin: all of the room.
    Admin = 2,
}

impl DenyPlace {
    /// Sessions that may be listed at once for one to be added with this wish.
    #[must_use]
    pub fn room_for(&self, wish: DenyWish) -> u32 {
        match wish {
            DenyWish::Admin => self.capacity,
            DenyWish::Unknown => self.issues_below(),
            DenyWish::Over => self.room_for_completed(),
        }
    }

    /// Sessions that may be listed because they are over anyhow, by completion: half of the room,
    /// so that they never take that of a revocation.
    #[must_use]
    pub fn room_for_completed(&self) -> u32 {
        self.capacity / 2
    }

    /// Sessions from which on nothing new is issued there: three quarters of the room. The rest is
    /// for those that live.
    #[must_use]
    pub fn issues_below(&self) -> u32 {
        self.capacity - self.capacity / 4
    }
}

/// What a document says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Denied {
    /// Its number: each written document has a greater one.
    pub generation: u64,
    /// The sessions that it names.
    pub sessions: BTreeSet<SessionId>,
    /// All sessions of ours that the back end made before this instant, in whole seconds.
    pub issued_before: Option<Timestamp>,
}

impl Denied {
    /// Whether both deny the same, whatever their numbers.
    #[must_use]
    pub fn denies_as(&self, other: &Self) -> bool {
        self.sessions == other.sessions && self.issued_before == other.issued_before
    }
}

/// A session that is to be denied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DenyAsk {
    /// Which.
    pub session: SessionId,
    /// Since when it is asked for.
    pub at: Timestamp,
    /// Until when it is listed.
    pub keep_until: Timestamp,
    /// Who wants it.
    pub wish: DenyWish,
}

/// The progress of a back end that denies one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RevocationProgress {
    /// When it was asked for.
    pub requested_at: Timestamp,
    /// Whether the document is to name it. Where not, the session is left to its expiry.
    pub listed: bool,
    /// When it was first read back.
    pub written_at: Option<Timestamp>,
    /// When the place's document was last read and said what it should.
    pub read_at: Option<Timestamp>,
}

impl RevocationProgress {
    /// From when on the back end refuses the session everywhere, by the place's bound.
    #[must_use]
    pub fn holds_from(&self, propagation_seconds: u64) -> Option<Timestamp> {
        let written = self.written_at.filter(|_| self.listed)?;
        Some(written.plus_seconds(propagation_seconds))
    }

    /// Whether it is certain: the bound has passed and the document still said so after it.
    #[must_use]
    pub fn is_confirmed(&self, propagation_seconds: u64) -> bool {
        match (self.holds_from(propagation_seconds), self.read_at) {
            (Some(from), Some(read)) => read >= from,
            _ => false,
        }
    }
}

/// What is known of the room on a place's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DenyRoom {
    /// Sessions that its document is to name.
    pub listed: u64,
    /// Tries to see to it that have failed since the last good one.
    pub failures: u32,
    /// Whether the back end refused a document of the registered capacity for its size.
    pub is_short: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_seconds(seconds)
    }

    #[test]
    fn nothing_is_confirmed_before_it_was_read_back_and_had_time_and_was_read_again() {
        let asked = RevocationProgress {
            requested_at: at(100),
            listed: true,
            written_at: None,
            read_at: Some(at(1_000)),
        };
        assert!(!asked.is_confirmed(60));
        let written = RevocationProgress {
            written_at: Some(at(110)),
            read_at: Some(at(169)),
            ..asked
        };
        assert_eq!(written.holds_from(60), Some(at(170)));
        assert!(!written.is_confirmed(60));
        let read = RevocationProgress {
            read_at: Some(at(170)),
            ..written
        };
        assert!(read.is_confirmed(60));
        let left = RevocationProgress {
            listed: false,
            ..read
        };
        assert!(!left.is_confirmed(60));
    }
}
