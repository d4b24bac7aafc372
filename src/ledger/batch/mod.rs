//! Settles a batch under the lock, without reading from the store.
//!
//! `needs` names the rows to read, and [`Batch::settle`] settles one entry against the rows that
//! [`LedgerConnection::enter`](crate::store::append::LedgerConnection::enter) read: recorded as
//! decided, recorded as refused because a fact that it depends on changed, or not recorded. Each
//! entry sees the changes of the entries before it.
//!
//! The rule: the checks for every kind of entry are made here, in this order: the clock, the
//! evidence, the premises of the caller, the date of the entry, the cutoffs.
//! [`EntryKind`](super::entry::EntryKind) has the rules of each kind. Failures: an [`AppendError`]
//! fails one entry alone, for example `ClockInDoubt`. Used evidence, a blocked caller and a
//! decision to be made again are outcomes, not errors. `ledger::appender` calls this module and
//! adds tiles and head; `ledger::locked` holds the state.

use std::collections::HashMap;
use std::sync::Arc;

use super::clock_watch::{Reading, is_behind};
use super::cutoffs::Cutoffs;
use super::entry::{Draft, EntryOpenings, OneTimeUse, Request, SessionPlan, leaf_of};
use super::locked::LockedState;
use super::outcome::{AppendError, Outcome};
use crate::clock::Timestamp;
use crate::crypto::digest::Mac;
use crate::domain::generation_digest::GenerationDigest;
use crate::domain::workload::{OneTime, OneTimeId};
use crate::merkle::Hash;
use crate::store::append::{LeafRow, Needs, View, Writes};

/// A request whose leaf was serialised and hashed before it was queued.
#[derive(Clone, Debug)]
pub(super) struct Prepared {
    pub(super) request: Request,
    /// `None` for an entry that only uses evidence up.
    pub(super) leaf: Option<(Arc<[u8]>, Hash)>,
}

/// The leaf of an entry, with its index in the log.
#[derive(Clone, Debug)]
pub(super) struct SettledLeaf {
    pub(super) index: u64,
    pub(super) body: Arc<[u8]>,
    pub(super) hash: Hash,
    /// The session in its recorded form.
    pub(super) session: Option<Box<SessionPlan>>,
}

/// The rows that the batch has to read. `open_tasks` has one item for each task that it may open.
pub(super) fn needs(batch: &[&Prepared], hashes_from: u64, cutoffs_from: u64) -> Needs {
    let mut needs = Needs {
        hashes_from,
        cutoffs_from,
        now: batch.iter().map(|prepared| prepared.request.at).max(),
        ..Needs::default()
    };
    for prepared in batch {
        let OneTimeUse { ids, by, .. } = &prepared.request.one_time;
        let ids = ids.iter().flat_map(|once| [once.id(), once.earlier_id()]);
        needs.one_time.extend(ids);
        needs.tasks.extend(by.as_ref().and_then(|by| by.task));
        prepared.request.entry.kind().need(&mut needs);
    }
    needs
}

/// Settles a batch entry by entry.
pub(super) struct Batch<'a> {
    origin: &'a str,
    state: LockedState<'a>,
    /// One-time ids that were used, with their bindings.
    used: HashMap<OneTimeId, Option<Vec<u8>>>,
}

impl<'a> Batch<'a> {
    pub(super) fn new(
        origin: &'a str,
        clock: Reading,
        head: (u64, Option<GenerationDigest>),
        mut view: View,
        cutoffs: &'a Cutoffs,
        mac: &'a Mac,
    ) -> Self {
        let used = std::mem::take(&mut view.used);
        Self {
            origin,
            state: LockedState::new(clock, head, view, cutoffs, mac),
            used,
        }
    }

    /// The rows to be written, and the cutoffs among them. The appender adds the tiles and the
    /// head.
    pub(super) fn into_parts(self) -> (Writes, Cutoffs) {
        self.state.into_parts()
    }

    /// Settles one entry. An error is caused by this entry and fails it alone.
    pub(super) fn settle(
        &mut self,
        prepared: &Prepared,
    ) -> Result<Outcome<SettledLeaf>, AppendError> {
        let entry = prepared.request.entry.kind();
        if let Some(doubt) = self.state.doubt()
            && !entry.goes_by_any_clock()
        {
            return Err(AppendError::ClockInDoubt(doubt.clone()));
        }
        let OneTimeUse { ids, by, premises } = &prepared.request.one_time;
        if let Some(replayed) = self.replayed(ids) {
            return Ok(replayed);
        }
        if !self.state.premises_hold(premises) {
            return Ok(Outcome::Superseded);
        }
        // The entry was dated by a clock that was ahead and has been corrected.
        if is_behind(self.state.now(), prepared.request.at) {
            return Ok(Outcome::Stale);
        }
        let by = by.as_ref();
        let settled = match by.and_then(|by| entry.blocked(by, &self.state)) {
            Some(blocked) => Outcome::Blocked(blocked),
            None => entry.settle(&mut self.state)?,
        };
        let settled = settled.try_map(|draft| self.record(prepared, draft))?;
        if settled.uses_evidence_up() {
            self.spend(ids);
        }
        Ok(settled)
    }

    /// Whether evidence was used before, or may have been.
    fn replayed(&self, one_time: &[OneTime]) -> Option<Outcome<SettledLeaf>> {
        one_time.iter().find_map(|once| match self.use_of(once) {
            None => self.may_be_forgotten(once).then_some(Outcome::Forgotten),
            // Bound evidence may be used again with the same binding.
            Some(Some(binding)) => {
                let differs = once.binding.is_none_or(|own| own.as_slice() != binding);
                (once.must_be_new || differs).then_some(Outcome::Replayed(once.key))
            }
            Some(None) => Some(Outcome::Replayed(once.key)),
        })
    }

    /// The binding of the recorded use of evidence. `None` if no use is recorded.
    fn use_of(&self, once: &OneTime) -> Option<&Option<Vec<u8>>> {
        let earlier = || self.used.get(&once.earlier_id());
        self.used.get(&once.id()).or_else(earlier)
    }

    /// Whether the use of evidence may have been recorded and then deleted. Deletions by a fast
    /// clock before an accepted time count for evidence that was issued before that time.
    fn may_be_forgotten(&self, once: &OneTime) -> bool {
        let reaches = |until: Option<Timestamp>| until >= Some(once.expires_at);
        let accepted = self.state.newest_acceptance();
        let issued_before = accepted.is_some_and(|accepted| once.issued_at <= accepted);
        reaches(self.state.forgotten()) || issued_before && reaches(self.state.forgotten_accepted())
    }

    fn spend(&mut self, one_time: &[OneTime]) {
        for once in one_time {
            let binding = once.binding.map(|binding| binding.to_vec());
            if self.used.insert(once.id(), binding).is_none() {
                self.state.write_one_time(*once);
            }
        }
    }

    /// Writes the row of an entry's leaf.
    fn record(&mut self, prepared: &Prepared, draft: Draft) -> Result<SettledLeaf, AppendError> {
        let Request { entry, at, .. } = &prepared.request;
        let entry = entry.kind();
        let (leaf, session) = match draft {
            Draft::Prepared(session) => {
                let leaf = prepared.leaf.clone();
                (leaf.ok_or_else(no_leaf)?, session)
            }
            Draft::Other(event) => (leaf_of(self.origin, *at, *event)?, None),
        };
        let (body, hash) = leaf;
        let index = self.state.index();
        let EntryOpenings { input, purpose } = entry.openings();
        self.state.write_leaf(LeafRow {
            index,
            hash,
            body: body.to_vec(),
            decision: entry.decision(),
            subject: entry.subject().map(ToString::to_string),
            at: *at,
            input: input.cloned(),
            purpose: purpose.cloned(),
        });
        Ok(SettledLeaf {
            index,
            body,
            hash,
            session,
        })
    }
}

fn no_leaf() -> AppendError {
    AppendError::Unwritable("the entry has no event".into())
}

#[cfg(test)]
mod tests;
