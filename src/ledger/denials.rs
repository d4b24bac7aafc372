//! The budget of denials: a caller that is refused over and over fills the log for everybody.
//!
//! Within a window each identity, and all identities of an attestor together, may have so many
//! denials recorded. What goes beyond is answered 429 and counted; when the window is over one leaf
//! says how many there were. Permits are not counted and so never kept out.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::clock::Timestamp;
use crate::domain::generation::DecisionLimits;

/// How many identities are told apart in one window. Beyond it only the attestor's budget counts.
const MAX_IDENTITIES: usize = 100_000;

/// Whether a denial may have a leaf of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Budget {
    /// It may.
    Leaf,
    /// It may not: 429, and the earliest instant to come again.
    Spent {
        /// When the window is over.
        until: Timestamp,
    },
}

/// Denials that had no leaf of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Omitted {
    /// The identity, or `attestor:<name>` for all that were not told apart.
    pub of: String,
    /// How many.
    pub count: u64,
    /// Since when.
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

/// The budget, of one replica.
#[derive(Debug, Default)]
pub struct Denials(Mutex<Window>);

impl Denials {
    /// Whether another denial may be recorded; it is counted either way.
    #[must_use]
    pub fn count(
        &self,
        attestor: &str,
        identity: &str,
        limits: &DecisionLimits,
        now: Timestamp,
    ) -> Budget {
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
            return Budget::Leaf;
        }
        let of = if told_apart {
            identity.to_owned()
        } else {
            format!("attestor:{attestor}")
        };
        *window.omitted.entry(of).or_insert(0) += 1;
        Budget::Spent {
            until: since.plus_seconds(limits.denial_window_seconds),
        }
    }

    /// Begins a new window if the old one is over, and hands out what was omitted in it.
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
        assert_eq!(count(0), Budget::Leaf);
        assert_eq!(count(1), Budget::Leaf);
        assert_eq!(count(2), Budget::Spent { until: at(60) });
        assert_eq!(denials.count("ci", "ci:b", &limits, at(3)), Budget::Leaf);
        assert!(denials.take_omitted(at(59)).is_empty());
        let told = denials.take_omitted(at(60));
        assert_eq!(told.len(), 1);
        assert_eq!((told[0].of.as_str(), told[0].count), ("ci:a", 1));
        assert_eq!(count(61), Budget::Leaf);
        assert!(denials.take_omitted(at(62)).is_empty());
    }
}
