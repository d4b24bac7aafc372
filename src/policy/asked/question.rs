//! What a policy wants to know of what is asked for.

use std::collections::HashMap;

use super::patterns::PatternSet;
use super::{Extent, Fact};
use crate::domain::limits::MAX_ADDED_EXPRESSIONS;
use crate::domain::pattern::Budget;

/// A condition on what is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in crate::policy) enum Question {
    /// How the values of a fact that are asked for stand to patterns.
    Text {
        fact: Fact,
        patterns: PatternSet,
        relation: Relation,
    },
    /// Whether a request has this fact.
    Has { fact: Fact, expected: bool },
    /// All of these.
    All(Vec<Question>),
    /// Any of these.
    Any(Vec<Question>),
}

/// How values stand to patterns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::policy) enum Relation {
    /// One of the patterns matches every value.
    Covered,
    /// None does.
    NotCovered,
    /// One of the patterns matches some value.
    Met,
    /// None does.
    NotMet,
}

impl Relation {
    fn negated(self) -> Self {
        match self {
            Self::Covered => Self::NotCovered,
            Self::NotCovered => Self::Covered,
            Self::Met => Self::NotMet,
            Self::NotMet => Self::Met,
        }
    }
}

impl Question {
    /// All of these. Relations to several sets that are one to their union are put together.
    pub(in crate::policy) fn all(questions: Vec<Self>) -> Self {
        let flat = questions.into_iter().flat_map(|own| match own {
            Self::All(parts) => parts,
            other => vec![other],
        });
        let merged = merge(flat, &[Relation::NotCovered, Relation::NotMet]);
        one_of(merged, Self::All)
    }

    /// Any of these.
    pub(in crate::policy) fn any(questions: Vec<Self>) -> Self {
        let flat = questions.into_iter().flat_map(|own| match own {
            Self::Any(parts) => parts,
            other => vec![other],
        });
        let merged = merge(flat, &[Relation::Covered, Relation::Met]);
        one_of(merged, Self::Any)
    }

    pub(in crate::policy) fn negated(self) -> Self {
        match self {
            Self::Text {
                fact,
                patterns,
                relation,
            } => Self::Text {
                fact,
                patterns,
                relation: relation.negated(),
            },
            Self::Has { fact, expected } => Self::Has {
                fact,
                expected: !expected,
            },
            Self::All(parts) => Self::Any(parts.into_iter().map(Self::negated).collect()),
            Self::Any(parts) => Self::All(parts.into_iter().map(Self::negated).collect()),
        }
    }

    /// Whether it holds for `extent`. Where `budget` does not suffice, no permit applies by it, and
    /// every forbid does.
    pub(in crate::policy) fn holds(&self, extent: &Extent<'_>, budget: &Budget) -> bool {
        match self {
            Self::Text {
                fact,
                patterns,
                relation,
            } => {
                let asked = extent.of(*fact);
                let covered = || asked.is_some_and(|asked| patterns.covers(asked, budget));
                let met = || asked.is_some_and(|asked| patterns.overlaps(asked, budget));
                match relation {
                    Relation::Covered => covered(),
                    Relation::NotCovered => !covered(),
                    Relation::Met => met(),
                    Relation::NotMet => !met(),
                }
            }
            Self::Has { fact, expected } => extent.of(*fact).is_some() == *expected,
            Self::All(parts) => parts.iter().all(|part| part.holds(extent, budget)),
            Self::Any(parts) => parts.iter().any(|part| part.holds(extent, budget)),
        }
    }

    /// Every set that is asked to stand so to what is asked for of `wanted`.
    pub(in crate::policy) fn sets(&self, wanted: Fact, relation: Relation) -> Vec<&PatternSet> {
        match self {
            Self::Text {
                fact,
                patterns,
                relation: own,
            } if (*fact, *own) == (wanted, relation) => vec![patterns],
            Self::All(parts) | Self::Any(parts) => {
                let parts = parts.iter();
                parts.flat_map(|own| own.sets(wanted, relation)).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Whether some part of it asks for a request without `wanted`.
    pub(in crate::policy) fn wants_no(&self, wanted: Fact) -> bool {
        match self {
            Self::Has { fact, expected } => *fact == wanted && !expected,
            Self::All(parts) | Self::Any(parts) => parts.iter().any(|own| own.wants_no(wanted)),
            Self::Text { .. } => false,
        }
    }
}

/// Puts what has one of these relations to the same fact into one.
fn merge(questions: impl Iterator<Item = Question>, relations: &[Relation]) -> Vec<Question> {
    let mut others = Vec::new();
    let mut sets: HashMap<(Fact, Relation), Vec<PatternSet>> = HashMap::new();
    for question in questions {
        match question {
            Question::Text {
                fact,
                patterns,
                relation,
            } if relations.contains(&relation) => {
                sets.entry((fact, relation)).or_default().push(patterns);
            }
            other => others.push(other),
        }
    }
    let mut merged: Vec<((Fact, Relation), PatternSet)> = sets
        .into_iter()
        .map(|(key, sets)| (key, PatternSet::union(sets)))
        .collect();
    merged.sort_by_key(|(key, _)| *key);
    let merged = merged
        .into_iter()
        .map(|((fact, relation), patterns)| Question::Text {
            fact,
            patterns,
            relation,
        });
    // Those that cost least come first.
    merged.chain(others).collect()
}

fn one_of(mut questions: Vec<Question>, join: impl Fn(Vec<Question>) -> Question) -> Question {
    match (questions.len(), questions.pop()) {
        (1, Some(only)) => only,
        (_, last) => {
            questions.extend(last);
            join(questions)
        }
    }
}

/// The questions of a generation, each once, by their numbers.
#[derive(Debug, Default)]
pub(in crate::policy) struct Questions {
    all: Vec<Question>,
    numbers: HashMap<Question, u32>,
    /// Expressions that all policies together became beyond those that are written.
    added: usize,
}

impl Questions {
    /// Counts what a policy became beyond what is written. `false` where that is too much, of all
    /// policies together.
    #[must_use]
    pub(in crate::policy) fn count_added(&mut self, expressions: usize) -> bool {
        self.added += expressions;
        !self.is_full()
    }

    /// Whether the policies became too large together: then no other one need be read.
    pub(in crate::policy) fn is_full(&self) -> bool {
        self.added > MAX_ADDED_EXPRESSIONS
    }

    /// The number of a question.
    pub(in crate::policy) fn number(&mut self, question: Question) -> u32 {
        // A bundle of four thousand million questions is not loaded.
        let next = u32::try_from(self.all.len()).unwrap_or(u32::MAX);
        let number = *self.numbers.entry(question.clone()).or_insert(next);
        if number == next {
            self.all.push(question);
        }
        number
    }

    pub(in crate::policy) fn get(&self, number: u32) -> Option<&Question> {
        self.all.get(number as usize)
    }

    /// Those of `numbers` that hold for `extent`.
    pub(in crate::policy) fn holding(
        &self,
        numbers: &[u32],
        extent: &Extent<'_>,
        budget: &Budget,
    ) -> Vec<u32> {
        let numbers = numbers.iter().copied();
        numbers
            .filter(|number| {
                self.get(*number)
                    .is_some_and(|own| own.holds(extent, budget))
            })
            .collect()
    }
}
