//! Back ends that end single sessions by a deny list: one document for each target, which names the
//! sessions that are denied there.
//!
//! [`DenyPolicyTarget`] is a target with its capacity, [`DenyReason`] the reason to deny a session,
//! [`DeniedSessions`] the content of a document, and [`RevocationProgress`] the progress of one
//! denial. Such a document is written as a whole, and the last write wins. So the broker treats it
//! as a projection of its own records: it renders the document from them, numbers it, reads it
//! back, and rewrites it if its content differs.
//!
//! A part of the capacity is reserved for revocations by admins: entries for completed sessions use
//! at most half. These types only compute. `store::deny_entries` adds a session within
//! [`DenyPolicyTarget::room_for`], or leaves it to its expiry. `broker::revocation` issues nothing
//! when a list is nearly full and reconciles the documents. `mint::aws::deny` reads and writes
//! them.
//!
//! Nothing here fails: without room [`DenyPolicyTarget::room_for`] is 0.

use std::collections::BTreeSet;

use super::kind::MinterKind;
use crate::clock::Timestamp;
use crate::ids::SessionId;

/// A target whose deny list ends sessions; for AWS, a role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DenyPolicyTarget {
    /// The kind of minter of its sessions.
    pub minter: MinterKind,
    /// Its name at the back end.
    pub name: String,
    /// The data that the minter needs to find the target when no resource names it any more.
    pub registration: String,
    /// Maximum number of sessions that its document can name.
    pub capacity: u32,
    /// Seconds after a write until it is in effect everywhere.
    pub propagation_seconds: u64,
}

/// The reason to deny a session. It decides how much of the list's capacity the entry may use, and
/// the order in which waiting entries are added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DenyReason {
    /// The session has ended by completion, by silence, or at its own workload's request. Uses at
    /// most half of the capacity, so that no workload can use the entries that an admin needs.
    Over = 0,
    /// The credential may exist at the back end although it was never released. Uses the capacity
    /// below which the broker issues.
    Unknown = 1,
    /// An admin revoked it. Uses the whole capacity.
    Admin = 2,
}

impl DenyPolicyTarget {
    /// Maximum number of listed sessions with which an entry of this kind may still be added.
    #[must_use]
    pub fn room_for(&self, wish: DenyReason) -> u32 {
        match wish {
            DenyReason::Admin => self.capacity,
            DenyReason::Unknown => self.issues_below(),
            DenyReason::Over => self.room_for_completed(),
        }
    }

    /// Maximum number of entries for completed sessions: half of the capacity, so that they never
    /// use up that of revocations.
    #[must_use]
    pub fn room_for_completed(&self) -> u32 {
        self.capacity / 2
    }

    /// The broker issues no new session while this many or more are listed: three quarters of the
    /// capacity. The rest is for sessions that are live.
    #[must_use]
    pub fn issues_below(&self) -> u32 {
        self.capacity - self.capacity / 4
    }
}

/// The content of a document.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeniedSessions {
    /// Its number. Each written document has a greater one.
    pub generation: u64,
    /// The sessions that it names.
    pub sessions: BTreeSet<SessionId>,
    /// The document denies all of the broker's sessions that the back end created before this
    /// instant, in whole seconds. `None` if it denies only the named sessions.
    pub issued_before: Option<Timestamp>,
}

impl DeniedSessions {
    /// Whether both documents deny the same sessions, regardless of their numbers.
    #[must_use]
    pub fn denies_as(&self, other: &Self) -> bool {
        self.sessions == other.sessions && self.issued_before == other.issued_before
    }
}

/// A request to deny one session.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct DenyRequest {
    pub session: SessionId,
    /// The time of the request.
    pub at: Timestamp,
    /// The time until which the document names it.
    pub keep_until: Timestamp,
    pub wish: DenyReason,
}

/// The progress of denying one session at a back end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RevocationProgress {
    /// The time of the request.
    pub requested_at: Timestamp,
    /// Whether the document should name the session. If not, the session ends by its expiry.
    pub listed: bool,
    /// The time at which the document was first read back with the session; `None` until then.
    pub written_at: Option<Timestamp>,
    /// The time at which the document was last read and had the intended content; `None` until
    /// then.
    pub read_at: Option<Timestamp>,
}

impl RevocationProgress {
    /// The time from which the back end refuses the session everywhere; `None` if the document was
    /// not yet read back with the session, or will not name it.
    #[must_use]
    pub fn holds_from(&self, propagation_seconds: u64) -> Option<Timestamp> {
        let written = self.written_at.filter(|_| self.listed)?;
        Some(written.plus_seconds(propagation_seconds))
    }

    /// Whether the denial is confirmed: the document had the intended content when it was read at
    /// or after [`Self::holds_from`].
    #[must_use]
    pub fn is_confirmed(&self, propagation_seconds: u64) -> bool {
        match (self.holds_from(propagation_seconds), self.read_at) {
            (Some(from), Some(read)) => read >= from,
            _ => false,
        }
    }
}

/// The use of a deny list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DenyRoom {
    /// Number of sessions that its document should name.
    pub listed: u64,
    /// Number of consecutive failed attempts to write or read it.
    pub failures: u32,
    /// Whether the back end refused a document within the registered capacity because of its size.
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
