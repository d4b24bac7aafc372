//! The budget of denials, so that a caller that is refused again and again does not fill the log.
//!
//! [`Denials::count`] counts a denial, and `take_omitted` gives out the counts of a window that has
//! ended.
//!
//! The rule: within a window, each identity, and all identities of an attestor together, have a
//! limited number of denials recorded. A further denial is answered with 429 and counted; when the
//! window ends, one leaf records their number. Permits do not count and are always recorded. The
//! budget belongs to one replica and is lost at a restart. [`DenialBudget::Spent`] is an answer,
//! not an error. Once [`MAX_IDENTITIES`] identities are counted in a window, further identities get
//! no leaf of their own. `broker::issuance` counts; the sweeper takes the omitted counts and has
//! them recorded.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::clock::Timestamp;
use crate::domain::generation::DecisionLimits;

/// The largest number of identities that are counted separately in one window: a bound on memory.
/// The denials of further identities get no leaf of their own, and are counted together for their
/// attestor.
const MAX_IDENTITIES: usize = 100_000;

/// Whether a denial may have a leaf of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the other names say it all")]
pub enum DenialBudget {
    Leaf,
    /// It may not; the answer is 429 with the earliest time for another try.
    Spent {
        /// The end of the window.
        until: Timestamp,
    },
}

/// Denials that have no leaf of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct Omitted {
    /// The identity, or `attestor:<name>` for identities that were not counted separately.
    pub of: String,
    pub count: u64,
    /// The start of the window.
    pub since: Timestamp,
}

#[derive(Debug, Default)]
struct Window {
    since: Option<Timestamp>,
    seconds: u64,
    identities: HashMap<String, u64>,
    attestors: HashMap<String, u64>,
    omitted: HashMap<String, u64>,
}

/// The budget of one replica.
#[derive(Debug, Default)]
pub struct Denials(Mutex<Window>);

impl Denials {
    /// Counts a denial, and answers whether it may have a leaf.
    #[must_use]
    pub fn count(
        &self,
        attestor: &str,
        identity: &str,
        limits: &DecisionLimits,
        now: Timestamp,
    ) -> DenialBudget {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let since = *window.since.get_or_insert(now);
        window.seconds = limits.denial_window_seconds;
        let told_apart =
            window.identities.len() < MAX_IDENTITIES || window.identities.contains_key(identity);
        let own = told_apart.then(|| {
            let own = window.identities.entry(identity.to_owned()).or_insert(0);
            *own += 1;
            *own
        });
        let all = window.attestors.entry(attestor.to_owned()).or_insert(0);
        *all += 1;
        let spent = own.is_none_or(|own| own > u64::from(limits.denials_per_identity))
            || *all > u64::from(limits.denials_per_attestor);
        if !spent {
            return DenialBudget::Leaf;
        }
        let of = if told_apart {
            identity.to_owned()
        } else {
            format!("attestor:{attestor}")
        };
        *window.omitted.entry(of).or_insert(0) += 1;
        DenialBudget::Spent {
            until: since.plus_seconds(limits.denial_window_seconds),
        }
    }

    /// The denials without leaves of a window that has ended; starts a new window.
    #[must_use]
    pub fn take_omitted(&self, now: Timestamp) -> Vec<Omitted> {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(since) = window.since else {
            return Vec::new();
        };
        if now < since.plus_seconds(window.seconds) {
            return Vec::new();
        }
        let old = std::mem::take(&mut *window);
        let omitted = old.omitted.into_iter();
        omitted
            .map(|(of, count)| Omitted { of, count, since })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_beyond_the_budget_is_counted_and_told_once() {
        let denials = Denials::default();
        let limits = DecisionLimits {
            denials_per_identity: 2,
            denials_per_attestor: 100,
            denial_window_seconds: 60,
        };
        let at = Timestamp::from_seconds;
        let count = |now| denials.count("ci", "ci:a", &limits, at(now));
        assert_eq!(count(0), DenialBudget::Leaf);
        assert_eq!(count(1), DenialBudget::Leaf);
        assert_eq!(count(2), DenialBudget::Spent { until: at(60) });
        assert_eq!(
            denials.count("ci", "ci:b", &limits, at(3)),
            DenialBudget::Leaf
        );
        assert!(denials.take_omitted(at(59)).is_empty());
        let told = denials.take_omitted(at(60));
        assert_eq!(told.len(), 1);
        assert_eq!((told[0].of.as_str(), told[0].count), ("ci:a", 1));
        assert_eq!(count(61), DenialBudget::Leaf);
        assert!(denials.take_omitted(at(62)).is_empty());
    }
}
