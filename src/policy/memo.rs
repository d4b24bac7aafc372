//! Reuses the results of evaluations.
//!
//! An evaluation is a function of its input and its generation, and of the instant only through the
//! enforcement dates that have passed. Workloads ask the same questions again and again, and these
//! inputs differ in their instant alone. So each generation has a [`Memo`] of results, by the key
//! of [`super::input::key`]: a SHA-256 of the input without its instant, and the number of those
//! dates. The input has no secret and no free text, and the memo keeps only its hash.
//!
//! The memo belongs to its generation and ends with it. Its entries and its bytes are bounded; the
//! least recently used entries leave first. A result with an error is never kept
//! ([`EvaluatedInput::is_certain`]): an evaluation can fail for a reason outside its input, such as
//! the remaining stack. `super::decide` uses the memo for requests, but not to reproduce recorded
//! decisions.

use std::fmt;
use std::sync::Arc;

use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use crate::domain::decision::{Observed, ObservedEffect, Outcome, Permitted, Refusal, RefusalCode};
use crate::domain::limits::{MAX_REMEMBERED_BYTES, MAX_REMEMBERED_DECISIONS};

/// The result of evaluating one input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct EvaluatedInput {
    pub(super) verdict: Result<Permitted, Refusal>,
    /// `@id`s of the policies that determined the verdict, sorted.
    pub(super) policies: Vec<String>,
    pub(super) observed: Option<Box<Observed>>,
}

impl EvaluatedInput {
    /// Whether no policy failed, neither an enforced one nor one that only observes.
    fn is_certain(&self) -> bool {
        let evaluated = match &self.verdict {
            Ok(_) => true,
            Err(refusal) => refusal.code != RefusalCode::PolicyError,
        };
        let observed = self.observed.as_ref().is_none_or(|observed| {
            let mut policies = observed.policies.iter();
            observed.outcome_if_enforced != Outcome::Indeterminate
                && policies.all(|own| own.effect != ObservedEffect::Error)
        });
        evaluated && observed
    }

    /// An upper estimate of its size in memory, in bytes.
    fn size(&self) -> usize {
        let observed = self.observed.iter().flat_map(|own| &own.policies);
        let names = self.policies.iter();
        let names = names.chain(observed.map(|own| &own.policy));
        let refusal = match &self.verdict {
            Ok(_) => 0,
            // A short text takes up to four times its length in JSON.
            Err(refusal) => {
                let offer = serde_json::to_vec(&refusal.allowed);
                let offer = offer.map_or(usize::MAX, |json| json.len().saturating_mul(4));
                refusal.detail.len().saturating_add(offer)
            }
        };
        let names = names.map(|name| OVERHEAD_OF_NAME + name.len());
        names.fold(OVERHEAD.saturating_add(refusal), usize::saturating_add)
    }
}

/// The result itself, its key and the cache's own records, in bytes.
const OVERHEAD: usize = 768;

/// A name in a list, without its text, in bytes. An observing policy has further members.
const OVERHEAD_OF_NAME: usize = 80;

/// The results of one generation.
pub(super) struct Memo(Cache<[u8; 32], Arc<EvaluatedInput>>);

impl Memo {
    /// An empty memo for at most this many entries and bytes.
    fn new(entries: u64, bytes: u64) -> Self {
        // The cache bounds one sum of weights. With a least weight, it also bounds the number.
        let least = u32::try_from(bytes.div_ceil(entries.max(1))).unwrap_or(u32::MAX);
        let weight = move |_: &[u8; 32], own: &Arc<EvaluatedInput>| {
            u32::try_from(own.size()).unwrap_or(u32::MAX).max(least)
        };
        let cache = Cache::builder()
            .max_capacity(bytes)
            .weigher(weight)
            .eviction_policy(EvictionPolicy::lru());
        Self(cache.build())
    }

    /// The result for this key, if it is kept.
    pub(super) fn get(&self, key: &[u8; 32]) -> Option<Arc<EvaluatedInput>> {
        self.0.get(key)
    }

    /// Keeps a result, unless it has an error.
    pub(super) fn insert(&self, key: [u8; 32], evaluated: &EvaluatedInput) {
        if evaluated.is_certain() {
            self.0.insert(key, Arc::new(evaluated.clone()));
        }
    }
}

impl Default for Memo {
    fn default() -> Self {
        Self::new(MAX_REMEMBERED_DECISIONS, MAX_REMEMBERED_BYTES)
    }
}

impl fmt::Debug for Memo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memo").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::domain::decision::ObservedPolicy;

    fn permitted(policy: &str) -> EvaluatedInput {
        EvaluatedInput {
            verdict: Ok(Permitted { ttl_seconds: 60 }),
            policies: vec![policy.to_owned()],
            observed: None,
        }
    }

    fn refused(code: RefusalCode) -> EvaluatedInput {
        EvaluatedInput {
            verdict: Err(Refusal::new(code, "no")),
            ..permitted("p")
        }
    }

    fn observed(effect: ObservedEffect, outcome_if_enforced: Outcome) -> EvaluatedInput {
        let policy = ObservedPolicy {
            policy: "o".into(),
            effect,
            enforced_from: Timestamp::EPOCH,
        };
        EvaluatedInput {
            observed: Some(Box::new(Observed {
                policies: vec![policy],
                outcome_if_enforced,
                refusal: None,
                ttl_seconds: None,
            })),
            ..permitted("p")
        }
    }

    #[test]
    fn a_result_with_an_error_is_not_kept() {
        let memo = Memo::default();
        let results = [
            (permitted("p"), true),
            (refused(RefusalCode::NotPermitted), true),
            (refused(RefusalCode::PolicyError), false),
            (observed(ObservedEffect::Forbid, Outcome::Deny), true),
            (observed(ObservedEffect::Error, Outcome::Permit), false),
            (
                observed(ObservedEffect::Permit, Outcome::Indeterminate),
                false,
            ),
        ];
        for (number, (result, is_kept)) in (0_u8..).zip(results) {
            memo.insert([number; 32], &result);
            let kept = memo.get(&[number; 32]).map(|kept| (*kept).clone());
            assert_eq!(kept, is_kept.then_some(result));
        }
    }

    #[test]
    fn entries_and_bytes_are_bounded_and_the_least_recently_used_leave() {
        let key = |number: u8| [number; 32];
        let memo = Memo::new(10, 20_000);
        for number in 0..100 {
            memo.insert(key(number), &permitted("p"));
            memo.0.run_pending_tasks();
        }
        assert_eq!(memo.0.entry_count(), 10);
        assert!(memo.get(&key(99)).is_some() && memo.get(&key(0)).is_none());

        let long = permitted(&"p".repeat(9_000));
        for number in 100..110 {
            memo.insert(key(number), &long);
            memo.0.run_pending_tasks();
        }
        assert!(memo.0.entry_count() <= 2, "{}", memo.0.entry_count());
        assert!(memo.0.weighted_size() <= 20_000);
        memo.insert(key(200), &permitted(&"p".repeat(30_000)));
        memo.0.run_pending_tasks();
        assert_eq!(memo.get(&key(200)), None);
    }
}
