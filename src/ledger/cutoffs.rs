//! The cutoffs that one replica knows.
//!
//! [`Cutoffs`] holds them by selector. `learn` and `add` take changes, `check` judges a permit
//! ([`CutoffTarget`]), `blocking` a caller, `dated_ahead` a task.
//!
//! The rule: each append updates them under the lock, so that no permit misses one. A cutoff in a
//! newer state replaces its earlier one, and where a batch knows a newer state, the older one is
//! ignored. Failures: a row with a wrong MAC is [`Forged`], and the ledger stops. [`Stopped`] is
//! the answer for a permit: `Stale` if it must be decided again, `Blocked` if every new request is
//! refused. `None` and `false` mean that nothing is known against the request. The appender keeps
//! one set for the replica, `locked` one for the batch; `domain::cutoff` says which sessions a
//! cutoff stops.

use std::collections::HashMap;

use crate::clock::Timestamp;
use crate::crypto::digest::{Mac, MacError};
use crate::domain::cutoff::{Cutoff, Selector};
use crate::domain::validity::is_dated_ahead;
use crate::store::append::LockedTaskFacts;
use crate::store::cutoffs::SealedCutoff;

/// Cutoffs by selector, and the size of the log up to which they are known.
#[derive(Clone, Debug, Default)]
pub(super) struct Cutoffs {
    by_selector: HashMap<Selector, Vec<Cutoff>>,
    /// The times that admins accepted, with the indices of their leaves, oldest first.
    accepted: Vec<(u64, Timestamp)>,
    newest: Option<u64>,
    known_to: u64,
}

/// A permit in the form that cutoffs match.
#[derive(Clone, Debug)]
pub(super) struct CutoffTarget {
    /// Every selector that matches the permit.
    pub(super) selectors: Vec<Selector>,
    /// The size of the log when the request began.
    pub(super) basis: u64,
    /// Whether the credential is derived from another one, which was read at the basis.
    pub(super) derived: bool,
}

/// Why a cutoff stops a permit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stopped {
    /// The request began before the cutoff. Decide again.
    Stale,
    /// The cutoff blocks every new request; the text says until when.
    Blocked(String),
}

/// A row whose MAC does not match.
#[derive(Clone, Debug, thiserror::Error)]
#[error(
    "{row} was not written by a broker of this log: {why}; nothing is issued; find out who wrote it"
)]
pub(super) struct Forged {
    row: String,
    why: MacError,
}

impl Cutoffs {
    /// The size of the log up to which every change is known.
    pub(super) fn known_to(&self) -> u64 {
        self.known_to
    }

    /// Applies changed cutoffs, and records that the changes up to `size` are known.
    pub(super) fn learn(
        &mut self,
        changed: Vec<SealedCutoff>,
        size: u64,
        mac: &Mac,
    ) -> Result<(), Forged> {
        for sealed in changed {
            let cutoff = sealed.open(mac).map_err(|why| Forged {
                row: sealed.name(),
                why,
            })?;
            self.add(cutoff.clone());
        }
        self.note_known_to(size);
        Ok(())
    }

    /// Records that every change before this leaf is known.
    pub(super) fn note_known_to(&mut self, size: u64) {
        self.known_to = self.known_to.max(size);
    }

    /// Adds one cutoff, or replaces its earlier state.
    pub(super) fn add(&mut self, cutoff: Cutoff) {
        self.newest = self.newest.max(Some(cutoff.index));
        if let Some(accepted) = cutoff.selector.issued_after() {
            self.accepted.retain(|(index, _)| *index != cutoff.index);
            self.accepted.push((cutoff.index, accepted));
            self.accepted.sort_unstable();
        }
        let known = self.by_selector.entry(cutoff.selector.clone()).or_default();
        known.retain(|other| other.id != cutoff.id);
        known.push(cutoff);
    }

    /// Adds the cutoffs of a batch that was committed.
    pub(super) fn merge(&mut self, batch: Self) {
        for cutoff in batch.by_selector.into_values().flatten() {
            self.add(cutoff);
        }
    }

    /// Whether no cutoff is known.
    pub(super) fn is_empty(&self) -> bool {
        self.by_selector.is_empty()
    }

    /// A cutoff with this selector that blocks now. Ignores those that `newer` has in a newer
    /// state.
    pub(super) fn blocking(
        &self,
        selector: &Selector,
        now: Timestamp,
        newer: Option<&Self>,
    ) -> Option<&Cutoff> {
        let known = self.by_selector.get(selector).into_iter().flatten();
        known
            .filter(|cutoff| !newer.is_some_and(|newer| newer.knows(cutoff)))
            .find(|cutoff| cutoff.blocks(now))
    }

    /// Whether a cutoff was lifted.
    pub(super) fn is_lifted(&self, cutoff: &Cutoff) -> bool {
        let known = self.by_selector.get(&cutoff.selector).into_iter().flatten();
        known
            .filter(|known| known.id == cutoff.id)
            .any(|known| known.lifted_index.is_some())
    }

    /// The newest time that was accepted, with the index of its leaf.
    pub(super) fn newest_acceptance(&self) -> Option<(u64, Timestamp)> {
        self.accepted.last().copied()
    }

    /// Whether a task was opened by a fast clock, so that the acceptance of a time ended it.
    pub(super) fn dated_ahead(&self, task: &LockedTaskFacts) -> bool {
        is_dated_ahead(task.life.opened_at, task.leaf_index, &self.accepted)
    }

    fn knows(&self, cutoff: &Cutoff) -> bool {
        let known = self.by_selector.get(&cutoff.selector);
        known.is_some_and(|known| known.iter().any(|other| other.id == cutoff.id))
    }

    /// Checks a permit against the cutoffs. Ignores those that `newer` has in a newer state.
    pub(super) fn check(
        &self,
        target: &CutoffTarget,
        now: Timestamp,
        newer: Option<&Self>,
    ) -> Result<(), Stopped> {
        let mut stale = false;
        for selector in &target.selectors {
            for cutoff in self.by_selector.get(selector).into_iter().flatten() {
                let outdated = newer.is_some_and(|newer| newer.knows(cutoff));
                if outdated || !cutoff.stops(target.basis, now) {
                    continue;
                }
                // The block refuses every later request, not only those that were in progress.
                if cutoff.blocks(now) {
                    let until = match cutoff.block.to_text().as_deref() {
                        Some("until_lifted") | None => "until it is lifted".to_owned(),
                        Some(at) => format!("until {at}"),
                    };
                    return Err(Stopped::Blocked(until));
                }
                stale = true;
            }
        }
        let parent_is_stale = target.derived && self.newest >= Some(target.basis);
        if stale || parent_is_stale {
            return Err(Stopped::Stale);
        }
        Ok(())
    }
}
