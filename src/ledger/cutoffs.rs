//! The cutoffs that one replica knows.
//!
//! [`Cutoffs`] holds, for each selector, the index of the newest cutoff and the cutoffs that may
//! still block. `learn` and `add` take changes, `check` judges a permit ([`CutoffTarget`]),
//! `blocking` a caller, `dated_ahead` a task.
//!
//! The rule: each append updates them under the lock, so that no permit misses one. The set begins
//! with the cutoffs that may block (`load`); requests that this replica decides are younger than
//! all others. `forget` drops cutoffs that can stop no request any more: those that do not block
//! and that are older than every request in progress ([`RECENT`]). A lift removes a block and
//! revives nothing. Failures: a row with a wrong MAC is [`Forged`], and the ledger stops.
//! [`Stopped`] is the answer for a permit: `Stale` if it must be decided again, `Blocked` if every
//! new request is refused. `None` and `false` mean that nothing is known against the request. The
//! appender keeps one set for the replica, `locked` one for the batch; `domain::cutoff` says which
//! sessions a cutoff stops.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::clock::Timestamp;
use crate::crypto::digest::{Mac, MacError};
use crate::domain::cutoff::{Block, Cutoff, Selector};
use crate::domain::validity::is_dated_ahead;
use crate::ids::CutoffId;
use crate::store::append::LockedTaskFacts;
use crate::store::cutoffs::SealedCutoff;

/// Longer than any request takes, with all its repetitions and its time in the queue.
const RECENT: Duration = Duration::from_mins(15);

/// A block is kept for a day after its end, in seconds, in case the clock is set back.
pub(super) const MARGIN_SECONDS: u64 = 86_400;

/// The least number of selectors between two searches for those that can be forgotten.
const LEAST_FORGOTTEN: usize = 256;

/// The cutoffs of a replica, or of a batch.
#[derive(Clone, Debug, Default)]
pub(super) struct Cutoffs {
    by_selector: HashMap<Selector, OfSelector>,
    /// The cutoffs that were lifted recently, and when that was learnt.
    lifted: HashMap<CutoffId, Instant>,
    /// The times that admins accepted, with the indices of their leaves, oldest first.
    accepted: Vec<(u64, Timestamp)>,
    newest: Option<u64>,
    /// The number of selectors after the last search for those that can be forgotten.
    forgotten_to: usize,
}

/// The cutoffs with one selector.
#[derive(Clone, Debug)]
struct OfSelector {
    /// The index of the newest.
    newest: u64,
    /// When the newest was learnt.
    learnt: Instant,
    /// Those that may block and were not lifted, the strongest block first.
    blocks: Vec<Cutoff>,
}

impl OfSelector {
    fn add_block(&mut self, cutoff: Cutoff) {
        self.blocks.retain(|other| other.id != cutoff.id);
        self.blocks.push(cutoff);
        self.blocks.sort_by_key(|cutoff| Reverse(strength(cutoff)));
    }
}

/// The end of a block, the latest possible time where it lasts until lifted. `None` without a block.
fn strength(cutoff: &Cutoff) -> Option<Timestamp> {
    match cutoff.block {
        Block::No => None,
        Block::Until(at) => Some(at),
        Block::UntilLifted => Some(Timestamp::MAX),
    }
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
    /// Adds all cutoffs that may block, and the accepted times with the indices of their leaves,
    /// oldest first.
    pub(super) fn load(&mut self, blocks: Vec<Cutoff>, accepted: Vec<(u64, Timestamp)>) {
        for cutoff in blocks {
            self.add(cutoff);
        }
        self.accepted = accepted;
    }

    /// Applies changed cutoffs. Returns whether the acceptance of a time is among them.
    pub(super) fn learn(&mut self, changed: Vec<SealedCutoff>, mac: &Mac) -> Result<bool, Forged> {
        let accepted = self.accepted.len();
        for sealed in changed {
            let cutoff = sealed.open(mac).map_err(|why| Forged {
                row: sealed.name(),
                why,
            })?;
            self.add(cutoff.clone());
        }
        Ok(self.accepted.len() > accepted)
    }

    /// Adds one cutoff, or applies its lift.
    pub(super) fn add(&mut self, cutoff: Cutoff) {
        self.newest = self.newest.max(Some(cutoff.index));
        if let Some(accepted) = cutoff.accepted() {
            self.accept(accepted);
        }
        let learnt = Instant::now();
        let known = self.of(&cutoff.selector, cutoff.index, learnt);
        if cutoff.lifted_index.is_some() {
            known.blocks.retain(|other| other.id != cutoff.id);
            self.lifted.insert(cutoff.id, learnt);
        } else if cutoff.block != Block::No {
            known.add_block(cutoff);
        }
    }

    /// The cutoffs with a selector, which now include one with this index.
    fn of(&mut self, selector: &Selector, index: u64, learnt: Instant) -> &mut OfSelector {
        let known = self.by_selector.entry(selector.clone());
        let known = known.or_insert(OfSelector {
            newest: index,
            learnt,
            blocks: Vec::new(),
        });
        known.newest = known.newest.max(index);
        known.learnt = known.learnt.max(learnt);
        known
    }

    fn accept(&mut self, accepted: (u64, Timestamp)) {
        if !self.accepted.contains(&accepted) {
            self.accepted.push(accepted);
            self.accepted.sort_unstable();
        }
    }

    /// Adds the cutoffs of a batch that was committed.
    pub(super) fn merge(&mut self, batch: Self) {
        self.newest = self.newest.max(batch.newest);
        for accepted in batch.accepted {
            self.accept(accepted);
        }
        for (selector, of_batch) in batch.by_selector {
            let known = self.of(&selector, of_batch.newest, of_batch.learnt);
            known
                .blocks
                .retain(|cutoff| !batch.lifted.contains_key(&cutoff.id));
            for cutoff in of_batch.blocks {
                known.add_block(cutoff);
            }
        }
        self.lifted.extend(batch.lifted);
    }

    /// Forgets cutoffs that can stop no request any more, if there are many. `passed` is a time
    /// that has certainly passed.
    pub(super) fn forget(&mut self, passed: Timestamp) {
        if self.by_selector.len() < (2 * self.forgotten_to).max(LEAST_FORGOTTEN) {
            return;
        }
        let before = passed.minus_seconds(MARGIN_SECONDS);
        self.by_selector.retain(|_, known| {
            known
                .blocks
                .retain(|cutoff| strength(cutoff).is_some_and(|until| until > before));
            !known.blocks.is_empty() || known.learnt.elapsed() < RECENT
        });
        self.lifted.retain(|_, learnt| learnt.elapsed() < RECENT);
        self.forgotten_to = self.by_selector.len();
    }

    /// Whether no cutoff is known.
    pub(super) fn is_empty(&self) -> bool {
        self.by_selector.is_empty()
    }

    /// A cutoff with this selector that blocks now. Ignores those that `newer` knows as lifted.
    pub(super) fn blocking(
        &self,
        selector: &Selector,
        now: Timestamp,
        newer: Option<&Self>,
    ) -> Option<&Cutoff> {
        let mut blocks = self.by_selector.get(selector)?.blocks.iter();
        let strongest =
            blocks.find(|cutoff| !newer.is_some_and(|newer| newer.is_lifted(cutoff)))?;
        strongest.blocks(now).then_some(strongest)
    }

    /// Whether a cutoff was lifted recently.
    pub(super) fn is_lifted(&self, cutoff: &Cutoff) -> bool {
        self.lifted.contains_key(&cutoff.id)
    }

    /// The newest time that was accepted, with the index of its leaf.
    pub(super) fn newest_acceptance(&self) -> Option<(u64, Timestamp)> {
        self.accepted.last().copied()
    }

    /// Whether a task was opened by a fast clock, so that the acceptance of a time ended it.
    pub(super) fn dated_ahead(&self, task: &LockedTaskFacts) -> bool {
        is_dated_ahead(task.life.opened_at, task.leaf_index, &self.accepted)
    }

    /// Checks a permit against the cutoffs. Ignores blocks that `newer` knows as lifted.
    pub(super) fn check(
        &self,
        target: &CutoffTarget,
        now: Timestamp,
        newer: Option<&Self>,
    ) -> Result<(), Stopped> {
        let mut stale = false;
        for selector in &target.selectors {
            // The block refuses every later request, not only those that were in progress.
            if let Some(cutoff) = self.blocking(selector, now, newer) {
                let until = match cutoff.block.to_text().as_deref() {
                    Some("until_lifted") | None => "until it is lifted".to_owned(),
                    Some(at) => format!("until {at}"),
                };
                return Err(Stopped::Blocked(until));
            }
            let known = self.by_selector.get(selector);
            stale |= known.is_some_and(|known| known.newest >= target.basis);
        }
        let parent_is_stale = target.derived && self.newest >= Some(target.basis);
        if stale || parent_is_stale {
            return Err(Stopped::Stale);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::crypto::SealingKeys;
    use crate::crypto::random::SystemRandom;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_seconds(seconds)
    }

    fn selector(n: u8) -> Selector {
        Selector::Resource(n.to_string())
    }

    fn cutoff(index: u64, selector: Selector, block: Block) -> Cutoff {
        Cutoff {
            id: CutoffId::from(Uuid::from_u128(index.into())),
            index,
            selector,
            block,
            deny_policy_target: None,
            reason: String::new(),
            by: String::new(),
            requested_at: at(0),
            committed_at: at(0),
            lifted_index: None,
        }
    }

    fn target(selectors: Vec<Selector>, basis: u64) -> CutoffTarget {
        CutoffTarget {
            selectors,
            basis,
            derived: false,
        }
    }

    /// A change: a new cutoff, or a lift of an earlier one.
    #[derive(Clone, Debug)]
    enum Change {
        Add(u8, Block),
        Lift(usize),
    }

    fn changes() -> impl Strategy<Value = Vec<Change>> {
        let block = prop_oneof![
            Just(Block::No),
            Just(Block::UntilLifted),
            (0..20_i64).prop_map(|end| Block::Until(at(end))),
        ];
        let change = prop_oneof![
            3 => (0..3_u8, block).prop_map(|(selector, block)| Change::Add(selector, block)),
            1 => any::<usize>().prop_map(Change::Lift),
        ];
        proptest::collection::vec(change, 0..20)
    }

    /// All cutoffs after these changes, each in its newest state.
    fn play(changes: &[Change], all: &mut Vec<Cutoff>, known: &mut Cutoffs) {
        for change in changes {
            let cutoff = match change {
                Change::Add(n, block) => {
                    all.push(cutoff(all.len() as u64, selector(*n), *block));
                    all.last().cloned()
                }
                Change::Lift(n) if !all.is_empty() => {
                    let n = n % all.len();
                    all[n].lifted_index = Some(99);
                    Some(all[n].clone())
                }
                Change::Lift(_) => None,
            };
            if let Some(cutoff) = cutoff {
                known.add(cutoff);
            }
        }
    }

    proptest! {
        #[test]
        fn it_stops_exactly_the_requests_that_one_of_all_cutoffs_stops(
            before in changes(),
            batch in changes(),
            merged in any::<bool>(),
            basis in 0..40_u64,
            now in 0..25_i64,
        ) {
            let (mut all, mut known, mut fresh) = (Vec::new(), Cutoffs::default(), Cutoffs::default());
            play(&before, &mut all, &mut known);
            play(&batch, &mut all, &mut fresh);
            if merged {
                known.merge(std::mem::take(&mut fresh));
            }
            let now = at(now);
            for n in 0..3 {
                let target = target(vec![selector(n)], basis);
                let of: Vec<&Cutoff> = all.iter().filter(|one| one.selector == selector(n)).collect();
                let checked = known
                    .check(&target, now, Some(&fresh))
                    .and_then(|()| fresh.check(&target, now, None));
                let blocked = of.iter().any(|cutoff| cutoff.blocks(now));
                let stopped = of.iter().any(|cutoff| cutoff.stops(basis, now));
                prop_assert_eq!(checked.is_err(), stopped);
                let is_blocked = fresh.blocking(&selector(n), now, None).is_some()
                    || known.blocking(&selector(n), now, Some(&fresh)).is_some();
                prop_assert_eq!(is_blocked, blocked);
            }
        }
    }

    #[test]
    fn an_acceptance_that_is_known_is_not_learnt_again() {
        let key = SealingKeys::generate(&SystemRandom::new()).unwrap();
        let mac = SealingKeys::parse(&[key]).unwrap().mac("o");
        let accepted = cutoff(3, Selector::IssuedAfter(at(9)), Block::No);
        let sealed = SealedCutoff::seal(accepted, &mac);
        let mut known = Cutoffs::default();
        assert!(known.learn(vec![sealed.clone()], &mac).unwrap());
        assert!(!known.learn(vec![sealed.clone()], &mac).unwrap());
        let mut loaded = Cutoffs::default();
        loaded.load(Vec::new(), vec![(3, at(9))]);
        assert!(!loaded.learn(vec![sealed], &mac).unwrap());
    }

    #[test]
    fn only_blocks_and_recent_cutoffs_are_kept() {
        let mut known = Cutoffs::default();
        let ago = Instant::now().checked_sub(RECENT);
        let count = u64::try_from(LEAST_FORGOTTEN).unwrap();
        for index in 0..count {
            let block = match index % 4 {
                0 => Block::UntilLifted,
                1 => Block::Until(at(10)),
                _ => Block::No,
            };
            known.add(cutoff(index, Selector::Resource(index.to_string()), block));
        }
        // All but the last are old. Right after the machine's start no instant is that old.
        let Some(ago) = ago else { return };
        for (selector, of) in &mut known.by_selector {
            if *selector != Selector::Resource((count - 1).to_string()) {
                of.learnt = ago;
            }
        }
        known.forget(at(5));
        assert_eq!(known.by_selector.len(), LEAST_FORGOTTEN / 2 + 1);
        let lasting = Selector::Resource("0".into());
        assert!(known.blocking(&lasting, at(99), None).is_some());
    }
}
