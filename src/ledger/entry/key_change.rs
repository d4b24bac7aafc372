//! A change of the signing keys of one purpose.
//!
//! [`KeyChange`] holds the new rows and the basis on which they were planned; `settle` checks both,
//! and `has_one_ledger_key` the result.
//!
//! The rule: a change is recorded as a whole, only if the keys have the basis on which it was
//! planned, and only if exactly one ledger key without an end remains. Outcomes: `Stale` if the
//! keys have changed, and the change is planned again; `Unchanged` if the ledger would be left
//! without exactly one key. Neither is an error. `broker::keys::changes` plans the change; the rows
//! are written in the transaction of the leaf. The MACs of the rows come with the entry.

use super::{Draft, EntryKind};
use crate::clock::Timestamp;
use crate::crypto::keyring::KeyPurpose;
use crate::domain::leaf::Event;
use crate::domain::workload::Identity;
use crate::ledger::locked::LockedState;
use crate::ledger::outcome::{AppendError, Outcome};
use crate::store::append::{ActWrite, Needs};
use crate::store::keys::{SigningKeyRow, keys_basis};

/// A change of the signing keys of one purpose. It is recorded as a whole, and only if the keys
/// have not changed since it was planned.
#[derive(Clone, Debug)]
pub struct KeyChange {
    /// The key of the leaf: new, or with new dates.
    pub row: SigningKeyRow,
    /// Other keys that this change gives an end.
    pub retired: Vec<SigningKeyRow>,
    /// The [`keys_basis`] of the keys when the change was planned.
    pub basis: [u8; 32],
    /// `added`, `revoked` or `retired`.
    pub change: &'static str,
    /// The public part of an added key.
    pub public: Option<String>,
    /// The admin, or `schedule`.
    pub by: String,
}

impl EntryKind for KeyChange {
    fn event(&self) -> Option<Event> {
        Some(Event::Key {
            purpose: self.row.purpose.clone(),
            kid: self.row.kid.clone(),
            change: self.change.to_owned(),
            public_key: self.public.clone(),
            retired_kids: self.retired.iter().map(|row| row.kid.clone()).collect(),
            by: self.by.clone(),
        })
    }

    fn subject(&self) -> Option<&Identity> {
        None
    }

    fn needs_free_space(&self) -> bool {
        false
    }

    fn need(&self, needs: &mut Needs) {
        needs.signing_keys = true;
    }

    /// A change that would leave the ledger without exactly one key is not recorded.
    fn settle(&self, state: &mut LockedState<'_>) -> Result<Outcome<Draft>, AppendError> {
        if keys_basis(state.signing_keys(), &self.row.purpose) != self.basis {
            return Ok(Outcome::Stale);
        }
        let changed = self.apply_to(state.signing_keys());
        if !has_one_ledger_key(&changed) {
            return Ok(Outcome::Unchanged);
        }
        state.set_signing_keys(changed);
        for row in self.rows() {
            state.write(ActWrite::SigningKey(Box::new(row.clone())));
        }
        Ok(Outcome::recorded())
    }
}

impl KeyChange {
    fn rows(&self) -> impl Iterator<Item = &SigningKeyRow> {
        std::iter::once(&self.row).chain(&self.retired)
    }

    /// The signing keys after the change.
    fn apply_to(&self, known: &[SigningKeyRow]) -> Vec<SigningKeyRow> {
        let is_kept = |row: &&SigningKeyRow| self.rows().all(|new| new.kid != row.kid);
        let kept = known.iter().filter(is_kept);
        kept.chain(self.rows()).cloned().collect()
    }
}

/// Whether exactly one ledger key has no end, so that the log has one current key.
fn has_one_ledger_key(rows: &[SigningKeyRow]) -> bool {
    let endless = rows.iter().filter(|row| {
        row.purpose == KeyPurpose::Ledger.as_str()
            && row.revoked_at.is_none()
            && row.remove_at == Timestamp::MAX
    });
    endless.count() == 1
}
