//! Counts verdicts in bounded memory: groups and examples are limited, and repetitions are
//! recognized among recent records only.
//!
//! Nothing here fails: beyond its limits the tally keeps the counts and drops groups or examples.
//! [`super::Run`] adds the verdicts of [`super::judge`], and [`super::report`] reads the counts.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use super::judge::{Class, Judgement, Reason};
use super::record::Record;
use crate::domain::text::printable;
use crate::merkle::leaf_hash;

/// The number of recent records among which a repetition is recognized, at 16 bytes twice for each.
const WINDOW: usize = 1 << 18;

/// The most groups that are kept; actions of all other groups are counted together.
const MAX_GROUPS: usize = 10_000;

/// The longest text of a record that is kept, in characters.
const MAX_TEXT_CHARS: usize = 256;

/// The key by which actions are grouped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GroupBy {
    /// The principal that acted.
    Principal,
    /// The resource acted on.
    Resource,
    /// The name of the action.
    Action,
}

impl GroupBy {
    /// The name of the key in JSON and for people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Principal => "principal",
            Self::Resource => "resource",
            Self::Action => "action",
        }
    }
}

/// One action to show in the report.
#[derive(Clone, Debug)]
pub(crate) struct Example {
    pub(crate) verdict: Judgement,
    /// The input, and the number of the record in it.
    pub(crate) position: (String, u64),
    pub(crate) id: Option<String>,
    pub(crate) at: Option<String>,
    pub(crate) principal: String,
    pub(crate) action: String,
    pub(crate) resource: String,
}

/// Counts by class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts([u64; 5]);

impl Counts {
    pub(crate) fn of(&self, class: Class) -> u64 {
        self.0[class as usize]
    }

    fn add(&mut self, class: Class) {
        self.0[class as usize] += 1;
    }

    /// The number of judged actions.
    pub(crate) fn judged(&self) -> u64 {
        self.all() - self.of(Class::Unjudged)
    }

    pub(crate) fn all(&self) -> u64 {
        self.0.iter().sum()
    }

    fn plus(mut self, other: Self) -> Self {
        for (own, more) in self.0.iter_mut().zip(other.0) {
            *own += more;
        }
        self
    }

    fn minus(mut self, other: Self) -> Self {
        for (own, less) in self.0.iter_mut().zip(other.0) {
            *own = own.saturating_sub(less);
        }
        self
    }

    fn is_spotless(&self) -> bool {
        self.all() == self.of(Class::Proven)
    }

    /// The number of judged actions that are not proven.
    pub(crate) fn bad(&self) -> u64 {
        self.judged() - self.of(Class::Proven)
    }
}

/// The counts and examples of all actions.
#[derive(Debug)]
pub(crate) struct Tally {
    pub(crate) records: u64,
    pub(crate) duplicates: u64,
    pub(crate) refused: u64,
    pub(crate) within_skew: u64,
    /// How often a session of AWS was created again.
    pub(crate) made_again: u64,
    pub(crate) set_aside: BTreeMap<&'static str, u64>,
    pub(crate) counts: Counts,
    pub(crate) reasons: BTreeMap<(Class, Reason), u64>,
    pub(crate) examples: BTreeMap<Class, Vec<Example>>,
    pub(crate) by: GroupBy,
    groups: HashMap<String, Counts>,
    /// Groups that began with a proven action. They are removed in favour of groups with other
    /// classes.
    spotless: Vec<String>,
    most_examples: usize,
    window: usize,
    lately: HashSet<u128>,
    order: VecDeque<u128>,
}

impl Tally {
    pub(crate) fn new(by: GroupBy, most_examples: usize) -> Self {
        Self {
            records: 0,
            duplicates: 0,
            refused: 0,
            within_skew: 0,
            made_again: 0,
            set_aside: BTreeMap::new(),
            counts: Counts::default(),
            reasons: BTreeMap::new(),
            examples: BTreeMap::new(),
            by,
            groups: HashMap::new(),
            spotless: Vec::new(),
            most_examples,
            window: WINDOW,
            lately: HashSet::new(),
            order: VecDeque::new(),
        }
    }

    /// Whether an identical record came recently. Two records with the same id that differ in any
    /// judged value are two records, so that a writer cannot hide one behind another's id.
    pub(crate) fn is_repeated(&mut self, record: &Record) -> bool {
        if record.id.is_none() {
            return false;
        }
        let hash = leaf_hash(format!("{record:?}").as_bytes());
        let (begin, _) = hash.as_bytes().split_at(16);
        let key = begin
            .iter()
            .fold(0_u128, |key, byte| key << 8 | u128::from(*byte));
        if !self.lately.insert(key) {
            self.duplicates += 1;
            return true;
        }
        self.order.push_back(key);
        if self.order.len() > self.window
            && let Some(oldest) = self.order.pop_front()
        {
            self.lately.remove(&oldest);
        }
        false
    }

    /// Counts a record that is not judged on purpose.
    pub(crate) fn set_aside(&mut self, why: &'static str) {
        *self.set_aside.entry(why).or_default() += 1;
    }

    /// Counts a verdict. `record` is `None` if the record could not be read.
    pub(crate) fn add(
        &mut self,
        verdict: Judgement,
        record: Option<&Record>,
        position: (&str, u64),
    ) {
        let class = verdict.class;
        self.counts.add(class);
        self.within_skew += u64::from(verdict.within_skew);
        self.made_again += u64::from(verdict.made_again);
        *self.reasons.entry((class, verdict.reason)).or_default() += 1;
        let group = record.map_or("unreadable", |record| match self.by {
            GroupBy::Principal => &record.principal,
            GroupBy::Resource => &record.resource,
            GroupBy::Action => &record.action,
        });
        self.add_to_group(shortened(group), class);
        let examples = self.examples.entry(class).or_default();
        if class == Class::Proven || examples.len() >= self.most_examples {
            return;
        }
        let text = |of: fn(&Record) -> &String| record.map_or("-".to_owned(), |r| shortened(of(r)));
        examples.push(Example {
            position: (shortened(position.0), position.1),
            id: record.and_then(|record| record.id.as_deref().map(shortened)),
            at: record.and_then(|record| record.at.ok().map(|at| at.to_string())),
            principal: text(|record| &record.principal),
            action: text(|record| &record.action),
            resource: text(|record| &record.resource),
            verdict: Judgement {
                told: shortened(&verdict.told),
                ..verdict
            },
        });
    }

    fn add_to_group(&mut self, name: String, class: Class) {
        if let Some(counts) = self.groups.get_mut(&name) {
            return counts.add(class);
        }
        let full = self.groups.len() >= MAX_GROUPS;
        if full && (class == Class::Proven || !self.make_room()) {
            return;
        }
        if class == Class::Proven {
            self.spotless.push(name.clone());
        }
        self.groups.entry(name).or_default().add(class);
    }

    /// Removes a group with proven actions only. Returns whether there was one.
    fn make_room(&mut self) -> bool {
        while let Some(name) = self.spotless.pop() {
            if self.groups.get(&name).is_some_and(Counts::is_spotless) {
                self.groups.remove(&name);
                return true;
            }
        }
        false
    }

    /// The counts outside the given groups.
    pub(crate) fn besides(&self, groups: &[(&str, Counts)]) -> Counts {
        let all = groups.iter().map(|(_, counts)| *counts);
        self.counts.minus(all.fold(Counts::default(), Counts::plus))
    }

    /// At most `most` groups, the worst first.
    pub(crate) fn worst(&self, most: usize) -> Vec<(&str, Counts)> {
        let mut all: Vec<(&str, Counts)> = self
            .groups
            .iter()
            .map(|(name, counts)| (name.as_str(), *counts))
            .collect();
        all.sort_unstable_by(|(one_name, one), (name, counts)| {
            let rank = |counts: &Counts| (counts.bad(), counts.of(Class::Unjudged), counts.all());
            rank(counts)
                .cmp(&rank(one))
                .then_with(|| one_name.cmp(name))
        });
        all.truncate(most);
        all
    }
}

/// A text of a record in the length that is kept, without unprintable characters.
pub(crate) fn shortened(text: &str) -> String {
    let mut short: String = text.chars().take(MAX_TEXT_CHARS).collect();
    if short.len() < text.len() && text.chars().nth(MAX_TEXT_CHARS).is_some() {
        short.push('…');
    }
    printable(&short)
}

#[cfg(test)]
mod tests {
    use super::super::record::{Credential, Outcome, RecordedAction, Region};
    use super::*;
    use crate::clock::Timestamp;

    fn record(id: &str, principal: &str) -> Record {
        Record {
            id: Some(id.to_owned()),
            at: Ok(Timestamp::from_seconds(7)),
            principal: principal.to_owned(),
            action: "a".into(),
            resource: "r".into(),
            region: Region::Unnamed,
            credential: Credential::default(),
            recorded_action: RecordedAction::Mint,
            outcome: Outcome::Done,
        }
    }

    #[test]
    fn a_record_that_came_lately_is_counted_once_and_another_with_its_id_is_not_hidden() {
        let mut tally = Tally::new(GroupBy::Principal, 3);
        assert!(!tally.is_repeated(&record("1", "ann")));
        assert!(tally.is_repeated(&record("1", "ann")));
        assert!(!tally.is_repeated(&record("1", "eve")));
        let nameless = Record {
            id: None,
            ..record("", "ann")
        };
        assert!(!tally.is_repeated(&nameless) && !tally.is_repeated(&nameless));
        assert_eq!(tally.duplicates, 1);
        tally.window = 100;
        for n in 0..100 {
            assert!(!tally.is_repeated(&record(&format!("other-{n}"), "ann")));
        }
        assert_eq!((tally.order.len(), tally.lately.len()), (100, 100));
        assert!(
            !tally.is_repeated(&record("1", "ann")),
            "outside the window"
        );
    }

    #[test]
    fn groups_and_examples_do_not_grow_with_what_strangers_write() {
        let mut tally = Tally::new(GroupBy::Principal, 3);
        for n in 0..MAX_GROUPS + 5 {
            let record = record("1", &format!("{n}{}", "x".repeat(10_000)));
            tally.add(Judgement::unreadable("why"), Some(&record), ("file", 1));
        }
        assert_eq!(tally.groups.len(), MAX_GROUPS);
        let listed = tally.worst(MAX_GROUPS);
        assert_eq!(tally.besides(&listed).all(), 5);
        let examples = &tally.examples[&Class::Unjudged];
        assert_eq!(examples.len(), 3);
        assert!(examples[0].principal.chars().count() <= MAX_TEXT_CHARS + 1);
        assert_eq!(tally.counts.all(), MAX_GROUPS as u64 + 5);
    }

    #[test]
    fn a_group_with_something_bad_takes_the_place_of_one_without() {
        let verdict = |class| Judgement {
            class,
            told: "y".repeat(70_000),
            ..Judgement::unreadable("")
        };
        let mut tally = Tally::new(GroupBy::Principal, 3);
        for n in 0..MAX_GROUPS {
            let record = record("1", &format!("good-{n}"));
            tally.add(verdict(Class::Proven), Some(&record), ("file", 1));
        }
        let eve = record("1", "eve");
        tally.add(verdict(Class::OutsideGrant), Some(&eve), ("file", 1));
        assert_eq!(tally.groups.len(), MAX_GROUPS);
        let worst = tally.worst(1);
        assert_eq!((worst[0].0, worst[0].1.bad()), ("eve", 1));
        let besides = tally.besides(&worst);
        assert_eq!((besides.all(), besides.bad()), (MAX_GROUPS as u64, 0));
        let told = &tally.examples[&Class::OutsideGrant][0].verdict.told;
        assert!(told.chars().count() <= MAX_TEXT_CHARS + 1);
        // If every group has an action that is not proven, none is removed, and every action is
        // counted.
        let mut bad = Tally::new(GroupBy::Principal, 3);
        for n in 0..=MAX_GROUPS {
            let record = record("1", &format!("bad-{n}"));
            bad.add(verdict(Class::Unproven), Some(&record), ("file", 1));
        }
        assert_eq!(bad.besides(&bad.worst(MAX_GROUPS)).bad(), 1);
    }

    #[test]
    fn a_text_can_neither_move_the_cursor_nor_turn_around() {
        assert_eq!(shortened("a\u{1b}[2J\u{202e}b"), "a\u{fffd}[2J\u{fffd}b");
    }
}
