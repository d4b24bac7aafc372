//! Questions: the conditions of policies on the requested values.
//!
//! A [`ExtentQuestion`] compares the values of one [`Fact`] with a set of patterns, or joins other
//! questions by *and* and *or*. [`Questions`] numbers the distinct questions of a generation, so
//! that an evaluated policy can name each by its number.
//!
//! Nothing here returns an error. If the budget of comparisons runs out, [`ExtentQuestion::holds`]
//! gives the answer by which no permit and every forbid applies. A request without the fact neither
//! meets nor is covered by any pattern. [`super::rewrite`] makes the questions when a generation is
//! loaded, and `policy::slice` asks for those of the candidate policies at each request.

use std::collections::HashMap;

use super::patterns::PatternSet;
use super::{Extent, Fact};
use crate::domain::limits::MAX_ADDED_EXPRESSIONS;
use crate::domain::pattern::Budget;

/// A condition on the requested values.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in crate::policy) enum ExtentQuestion {
    /// Compares the requested values of a fact with a set of patterns.
    Text {
        fact: Fact,
        patterns: PatternSet,
        relation: Relation,
    },
    /// Whether a request has this fact.
    Has { fact: Fact, expected: bool },
    /// All of these hold.
    All(Vec<ExtentQuestion>),
    /// At least one of these holds.
    Any(Vec<ExtentQuestion>),
}

/// A relation between the requested values and a set of patterns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::policy) enum Relation {
    /// One pattern of the set matches every value.
    Covered,
    /// No pattern of the set matches every value.
    NotCovered,
    /// One pattern of the set matches some value.
    Met,
    /// No pattern of the set matches any value.
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

impl ExtentQuestion {
    /// The conjunction of `questions`. Merges the sets of a relation that holds for several sets
    /// exactly if it holds for their union.
    pub(in crate::policy) fn all(questions: Vec<Self>) -> Self {
        let flat = questions.into_iter().flat_map(|own| match own {
            Self::All(parts) => parts,
            other => vec![other],
        });
        let merged = merge(flat, &[Relation::NotCovered, Relation::NotMet]);
        one_of(merged, Self::All)
    }

    /// The disjunction of `questions`.
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

    /// Whether the question holds for `extent`. If `budget` runs out, the result makes no permit
    /// apply and every forbid apply.
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

    /// Every set that the question compares by `relation` with the fact `wanted`.
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

    /// Whether a part of the question requires that the request lacks the fact `wanted`.
    pub(in crate::policy) fn wants_no(&self, wanted: Fact) -> bool {
        match self {
            Self::Has { fact, expected } => *fact == wanted && !expected,
            Self::All(parts) | Self::Any(parts) => parts.iter().any(|own| own.wants_no(wanted)),
            Self::Text { .. } => false,
        }
    }
}

/// Merges the questions that have one of `relations` to the same fact.
fn merge(
    questions: impl Iterator<Item = ExtentQuestion>,
    relations: &[Relation],
) -> Vec<ExtentQuestion> {
    let mut others = Vec::new();
    let mut sets: HashMap<(Fact, Relation), Vec<PatternSet>> = HashMap::new();
    for question in questions {
        match question {
            ExtentQuestion::Text {
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
        .map(|((fact, relation), patterns)| ExtentQuestion::Text {
            fact,
            patterns,
            relation,
        });
    // The cheapest questions come first.
    merged.chain(others).collect()
}

fn one_of(
    mut questions: Vec<ExtentQuestion>,
    join: impl Fn(Vec<ExtentQuestion>) -> ExtentQuestion,
) -> ExtentQuestion {
    match (questions.len(), questions.pop()) {
        (1, Some(only)) => only,
        (_, last) => {
            questions.extend(last);
            join(questions)
        }
    }
}

/// The distinct questions of a generation. A question's number is its position.
#[derive(Debug, Default)]
pub(in crate::policy) struct Questions {
    all: Vec<ExtentQuestion>,
    numbers: HashMap<ExtentQuestion, u32>,
    /// Number of expressions that rewriting added to all policies together.
    added: usize,
}

impl Questions {
    /// Counts the expressions that rewriting added to one policy. `false` if the total of all
    /// policies is above the limit.
    #[must_use]
    pub(in crate::policy) fn count_added(&mut self, expressions: usize) -> bool {
        self.added += expressions;
        !self.is_full()
    }

    /// Whether the total is above the limit, so that loading can stop.
    pub(in crate::policy) fn is_full(&self) -> bool {
        self.added > MAX_ADDED_EXPRESSIONS
    }

    /// The number of a question. Adds the question if it is new.
    pub(in crate::policy) fn number(&mut self, question: ExtentQuestion) -> u32 {
        // A bundle with 2^32 questions does not load.
        let next = u32::try_from(self.all.len()).unwrap_or(u32::MAX);
        let number = *self.numbers.entry(question.clone()).or_insert(next);
        if number == next {
            self.all.push(question);
        }
        number
    }

    pub(in crate::policy) fn get(&self, number: u32) -> Option<&ExtentQuestion> {
        self.all.get(number as usize)
    }

    /// The questions among `numbers` that hold for `extent`.
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
