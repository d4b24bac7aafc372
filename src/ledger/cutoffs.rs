//! The cutoffs that stand against new grants, as one replica knows them: brought up to date under
//! the lock of every append, so that nothing is granted past one.

use std::collections::HashMap;

use super::entry::{Decide, TaskPlan};
use crate::clock::Timestamp;
use crate::crypto::digest::{Mac, MacError};
use crate::domain::cutoff::{Cutoff, Selector, True};
use crate::domain::validity::is_dated_ahead;
use crate::store::append::TaskFacts;
use crate::store::cutoffs::SealedCutoff;

/// Cutoffs by selector, and how far into the ledger they are known.
#[derive(Clone, Debug, Default)]
pub(super) struct Cutoffs {
    by_selector: HashMap<Selector, Vec<Cutoff>>,
    /// The times that were accepted, with the leaves that say so, oldest first.
    accepted: Vec<(u64, Timestamp)>,
    newest: Option<u64>,
    known_to: u64,
}

/// What the cutoffs say to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing.
    Free,
    /// It began before one of them. Decide again.
    Stale,
    /// It is blocked, until a time or until lifted.
    Blocked(String),
}

/// A row whose MAC does not fit.
#[derive(Clone, Debug, thiserror::Error)]
#[error(
    "{row} was not written by a broker of this log: {why}; nothing is issued until it is known who \
     wrote it"
)]
pub(super) struct Forged {
    row: String,
    why: MacError,
}

impl Cutoffs {
    /// Changes at or after this leaf are unknown.
    pub(super) fn known_to(&self) -> u64 {
        self.known_to
    }

    /// Takes in what changed.
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

    /// Nothing changed before this leaf that is not known.
    pub(super) fn note_known_to(&mut self, size: u64) {
        self.known_to = self.known_to.max(size);
    }

    /// Takes in one cutoff, in place of what was known of it.
    pub(super) fn add(&mut self, cutoff: Cutoff) {
        self.newest = self.newest.max(Some(cutoff.index));
        if let Selector::IssuedAfter(accepted) = cutoff.selector {
            self.accepted.retain(|(index, _)| *index != cutoff.index);
            self.accepted.push((cutoff.index, accepted));
            self.accepted.sort_unstable();
        }
        let known = self.by_selector.entry(cutoff.selector.clone()).or_default();
        known.retain(|other| other.id != cutoff.id);
        known.push(cutoff);
    }

    /// A cutoff with this selector whose block stands, but for those of which `newer` knows better.
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

    /// The newest time that was accepted, with the leaf that says so.
    pub(super) fn newest_acceptance(&self) -> Option<(u64, Timestamp)> {
        self.accepted.last().copied()
    }

    /// Whether a task was opened by a clock that was ahead, and ended by the acceptance of the time.
    pub(super) fn dated_ahead(&self, task: &TaskFacts) -> bool {
        is_dated_ahead(task.life.opened_at, task.leaf_index, &self.accepted)
    }

    fn knows(&self, cutoff: &Cutoff) -> bool {
        let known = self.by_selector.get(&cutoff.selector);
        known.is_some_and(|known| known.iter().any(|other| other.id == cutoff.id))
    }

    /// What stands against a permit, but for those of which `newer` knows better.
    pub(super) fn verdict(&self, decide: &Decide, now: Timestamp, newer: Option<&Self>) -> Verdict {
        let mut stale = false;
        for selector in selectors(decide) {
            for cutoff in self.by_selector.get(&selector).into_iter().flatten() {
                let outdated = newer.is_some_and(|newer| newer.knows(cutoff));
                if outdated || !cutoff.stops(decide.basis, now) {
                    continue;
                }
                // Blocked for everybody who comes now, not only for who was under way.
                if cutoff.blocks(now) {
                    let until = match cutoff.block.to_text().as_deref() {
                        Some("until_lifted") | None => "until it is lifted".to_owned(),
                        Some(at) => format!("until {at}"),
                    };
                    return Verdict::Blocked(until);
                }
                stale = true;
            }
        }
        // A credential derived from another rests on what was read of that one at the basis.
        let derived = decide
            .session
            .as_ref()
            .is_some_and(|plan| plan.session.parent.is_some());
        if stale || (derived && self.newest.is_some_and(|newest| newest >= decide.basis)) {
            return Verdict::Stale;
        }
        Verdict::Free
    }
}

/// Every selector that matches what a permit would bring about.
fn selectors(decide: &Decide) -> Vec<Selector> {
    let mut all = vec![
        Selector::All(True),
        Selector::Workload(decide.identity.clone()),
        Selector::Attestor(decide.attestor.clone()),
        Selector::Generation(decide.generation),
    ];
    all.extend(decide.resource.clone().map(Selector::Resource));
    all.extend(decide.policies.iter().cloned().map(Selector::Policy));
    if let Some((task, parents)) = &decide.task {
        all.push(Selector::Task(*task));
        all.extend(parents.iter().copied().map(Selector::Task));
    } else if let Some(TaskPlan::Join { task, .. }) = &decide.plan {
        all.push(Selector::Task(*task));
    }
    if let Some(plan) = &decide.session {
        all.push(Selector::SigningKey(plan.session.kid.clone()));
    }
    all
}
