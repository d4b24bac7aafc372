//! Patterns with wildcards: `*` matches any text, `?` any one character, and every other character
//! itself.
//!
//! Both comparisons are exact: whether one pattern matches all that another matches
//! ([`Pattern::covers`]), and whether some text matches both ([`Pattern::overlaps`]). An
//! approximation would grant too much. For example, `a*b` is within `a*` because `a*` matches every
//! text that `a*b` matches, not because both have the same prefix.
//!
//! Each comparison spends a [`Budget`]. One that runs out gives the safe answer: *not covered*,
//! *overlapping*. The caller must then refuse, as [`Budget::is_exhausted`] tells it.
//! [`super::grant`] compares rights with this module, and `policy::asked` compares requested values
//! with the texts in policies. They decide the meaning of actions and locations.
//!
//! # Cost
//! The positions in a pattern are a bit set with one bit for each position, so a step over one
//! character takes a few machine words. Overlap takes one step for each character. Inclusion takes
//! one step for each pair of a position in the inner pattern and a set of positions in the outer
//! one. A later position after which the outer pattern accepts everything that an earlier one
//! accepts replaces the earlier one. So a pattern without `?` between characters has at most as
//! many sets as positions. Patterns with such `?` can have more.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::hash::{Hash, Hasher};

use super::limits::MAX_COMPARISON_STEPS;

/// The number of steps that several comparisons may take together.
///
/// One step moves one set of positions over one character of a pattern: a few to a hundred
/// nanoseconds. When the steps are used up, every further comparison gives the safe answer and
/// [`Budget::is_exhausted`] is true. The only valid result is then a refusal.
#[derive(Debug)]
pub struct Budget {
    limit: u64,
    spent: Cell<u64>,
}

impl Budget {
    /// Creates a budget of `limit` steps.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self {
            limit,
            spent: Cell::new(0),
        }
    }

    /// The budget of a single comparison. A request has many comparisons and one budget for all of
    /// them, so use this only for comparisons outside requests, such as those of a report.
    #[must_use]
    pub fn of_one_comparison() -> Self {
        Self::new(MAX_COMPARISON_STEPS)
    }

    /// Spends `steps`. `false` if fewer are left.
    #[must_use]
    pub fn spend(&self, steps: u64) -> bool {
        let spent = self.spent.get().saturating_add(steps);
        self.spent.set(spent);
        spent <= self.limit
    }

    /// Whether a comparison needed more steps than were left.
    #[must_use]
    pub fn is_exhausted(&self) -> bool {
        self.spent.get() > self.limit
    }

    /// Number of spent steps.
    #[must_use]
    pub fn spent(&self) -> u64 {
        self.spent.get()
    }
}

/// Whether `outer` matches everything that `inner` matches; `false` if `budget` runs out.
#[must_use]
pub fn covers_within(outer: &str, inner: &str, budget: &Budget) -> bool {
    if !budget.spend(1) {
        return false;
    }
    if outer == inner || !has_wildcards(outer) {
        // A text without wildcards covers only itself.
        return outer == inner;
    }
    budget.spend(reading(outer, inner))
        && Pattern::parse(outer).covers(&Pattern::parse(inner), budget)
}

/// Whether some text matches both; `true` if `budget` runs out.
#[must_use]
pub fn overlap_within(one: &str, other: &str, budget: &Budget) -> bool {
    if !budget.spend(1) {
        return true;
    }
    if !has_wildcards(one) && !has_wildcards(other) {
        return one == other;
    }
    !budget.spend(reading(one, other))
        || Pattern::parse(one).overlaps(&Pattern::parse(other), budget)
}

/// The cost of parsing two patterns, in steps.
fn reading(one: &str, other: &str) -> u64 {
    (one.len() as u64).saturating_add(other.len() as u64) / 16
}

/// Whether a text has wildcards.
#[must_use]
pub fn has_wildcards(text: &str) -> bool {
    text.contains(WILDCARDS)
}

/// Number of wildcards in a text.
#[must_use]
pub fn count_wildcards(text: &str) -> usize {
    text.matches(WILDCARDS).count()
}

const WILDCARDS: [char; 2] = ['*', '?'];

/// One element of a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Token {
    /// Matches this one character.
    Char(char),
    /// Matches any one character.
    One,
    /// Matches any text, including none.
    Many,
    /// Matches any text without a colon: a `*` for a whole part of an ARN.
    ManyInPart,
}

impl Token {
    fn is_many(self) -> bool {
        matches!(self, Self::Many | Self::ManyInPart)
    }
}

/// A set of positions in a pattern, its end included.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Positions(Vec<u64>);

const WORD: usize = u64::BITS as usize;

impl Positions {
    fn empty(positions: usize) -> Self {
        Self(vec![0; positions.div_ceil(WORD)])
    }

    fn insert(&mut self, position: usize) {
        if let Some(word) = self.0.get_mut(position / WORD) {
            *word |= 1 << (position % WORD);
        }
    }

    fn contains(&self, position: usize) -> bool {
        self.0
            .get(position / WORD)
            .is_some_and(|word| word >> (position % WORD) & 1 == 1)
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    fn lowest(&self) -> Option<usize> {
        let (at, word) = self.0.iter().enumerate().find(|(_, word)| **word != 0)?;
        Some(at * WORD + word.trailing_zeros() as usize)
    }

    /// The highest position that is also in `of`.
    fn highest_in(&self, of: &Self) -> Option<usize> {
        let mut words = self.0.iter().zip(&of.0).map(|(a, b)| a & b).enumerate();
        let (at, word) = words.rfind(|(_, word)| *word != 0)?;
        Some(at * WORD + WORD - 1 - word.leading_zeros() as usize)
    }

    fn clear_below(&mut self, position: usize) {
        for (at, word) in self.0.iter_mut().enumerate() {
            if at < position / WORD {
                *word = 0;
            } else if at == position / WORD {
                *word &= u64::MAX << (position % WORD);
            }
        }
    }

    /// Adds the successors of those positions of `from` that are also in `of`.
    fn add_next(&mut self, from: &Self, of: impl Fn(usize) -> u64) {
        let mut carry = 0;
        for (at, (word, from)) in self.0.iter_mut().zip(&from.0).enumerate() {
            let moved = from & of(at);
            *word |= moved << 1 | carry;
            carry = moved >> (WORD - 1);
        }
    }

    /// Adds the positions of `from` that are also in `of`.
    fn add(&mut self, from: &Self, of: &Self) {
        for (word, (from, of)) in self.0.iter_mut().zip(from.0.iter().zip(&of.0)) {
            *word |= from & of;
        }
    }

    fn word(&self, at: usize) -> u64 {
        self.0.get(at).copied().unwrap_or_default()
    }
}

/// A parsed pattern with indices that make steps over it cheap.
#[derive(Clone, Debug)]
pub struct Pattern {
    tokens: Vec<Token>,
    one: Positions,
    many: Positions,
    in_part: Positions,
    /// The positions in runs of `?` that end with `*`, and the positions of these `*`. A later one
    /// of a run accepts everything that an earlier one accepts.
    gap: Positions,
    /// The positions of each character, sorted: one entry for each nonempty word of its bit set. So
    /// memory is proportional to the length of the pattern, however many characters differ.
    chars: Vec<(char, usize, u64)>,
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.tokens == other.tokens
    }
}

impl Eq for Pattern {}

impl Hash for Pattern {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.tokens.hash(state);
    }
}

impl Pattern {
    /// Parses a pattern in the broker's syntax.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        Self::new(text.chars().map(|c| match c {
            '*' => Token::Many,
            '?' => Token::One,
            c => Token::Char(c),
        }))
    }

    /// Creates a pattern from tokens. Normalises adjacent wildcards: `?` before `*`, and one `*`
    /// for several.
    #[must_use]
    pub fn new(tokens: impl IntoIterator<Item = Token>) -> Self {
        let mut ordered: Vec<Token> = Vec::new();
        for token in tokens {
            match (token, ordered.last()) {
                (Token::Many, Some(Token::Many)) => {}
                (Token::One, Some(Token::Many)) => {
                    ordered.pop();
                    ordered.extend([Token::One, Token::Many]);
                }
                _ => ordered.push(token),
            }
        }
        Self::of(ordered)
    }

    fn of(tokens: Vec<Token>) -> Self {
        let none = Positions::empty(tokens.len() + 1);
        let mut pattern = Self {
            one: none.clone(),
            many: none.clone(),
            in_part: none.clone(),
            gap: none.clone(),
            chars: Vec::new(),
            tokens: Vec::new(),
        };
        let mut in_gap = false;
        for (at, token) in tokens.iter().enumerate().rev() {
            in_gap = *token == Token::Many || in_gap && *token == Token::One;
            if in_gap {
                pattern.gap.insert(at);
            }
        }
        for (at, token) in tokens.iter().enumerate() {
            match token {
                Token::One => pattern.one.insert(at),
                Token::Many => pattern.many.insert(at),
                Token::ManyInPart => pattern.in_part.insert(at),
                Token::Char(c) => pattern.chars.push((*c, at / WORD, 1 << (at % WORD))),
            }
        }
        pattern.chars.sort_unstable();
        pattern.chars.dedup_by(|later, earlier| {
            let same = (later.0, later.1) == (earlier.0, earlier.1);
            if same {
                earlier.2 |= later.2;
            }
            same
        });
        pattern.tokens = tokens;
        pattern
    }

    /// The tokens, normalised.
    #[must_use]
    pub fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    /// Whether it matches everything that `inner` matches; `false` if `budget` runs out.
    #[must_use]
    pub fn covers(&self, inner: &Self, budget: &Budget) -> bool {
        // For a wildcard of `inner`, try a character that this pattern does not name. Only a
        // wildcard matches it, and a wildcard matches every other character too.
        let open = None;
        let end = self.tokens.len();
        let takes_all = match self.tokens.last() {
            Some(Token::Many) => Some(end - 1),
            _ => None,
        };
        // A position from which everything is accepted needs no further check.
        let is_open = |positions: &Positions| {
            takes_all.is_none_or(|takes_all| !positions.contains(takes_all))
        };
        // The distinct sets of positions that `inner` can lead to.
        let mut reached = BTreeSet::from([self.start()]);
        for token in &inner.tokens {
            let mut to_see: Vec<Positions> = reached.into_iter().filter(is_open).collect();
            reached = BTreeSet::new();
            let character = match token {
                Token::Char(c) => Some(*c),
                Token::One | Token::Many | Token::ManyInPart => open,
            };
            while let Some(positions) = to_see.pop() {
                if positions.is_empty() || !budget.spend(self.step_cost()) {
                    return false;
                }
                let next = self.step(&positions, character);
                if !token.is_many() {
                    reached.insert(next);
                } else if reached.insert(positions) && !reached.contains(&next) {
                    to_see.push(next);
                }
            }
        }
        reached
            .iter()
            .all(|positions| !is_open(positions) || positions.contains(end))
    }

    /// Whether some text matches both; `true` if `budget` runs out.
    #[must_use]
    pub fn overlaps(&self, other: &Self, budget: &Budget) -> bool {
        self.overlaps_tokens(other.tokens.iter().copied(), budget)
    }

    /// Whether it matches this text; `true` if `budget` runs out.
    #[must_use]
    pub fn may_match(&self, text: &str, budget: &Budget) -> bool {
        self.overlaps_tokens(text.chars().map(Token::Char), budget)
    }

    /// Whether some text matches both this pattern and one of these tokens; `true` if `budget` runs
    /// out.
    #[must_use]
    pub fn overlaps_tokens(&self, tokens: impl Iterator<Item = Token>, budget: &Budget) -> bool {
        // The positions that this pattern can reach over texts that match the tokens so far.
        let mut reached = self.closed(Positions::from_start(self.tokens.len() + 1));
        for token in tokens {
            if !budget.spend(self.step_cost()) {
                return true;
            }
            reached = match token {
                Token::Char(c) => self.step_all(&reached, Some(c)),
                Token::One => self.step_over_one(&reached),
                Token::Many => self.reach(reached, |_| true),
                Token::ManyInPart => self.reach(reached, |token| token != Token::Char(':')),
            };
            if reached.is_empty() {
                return false;
            }
        }
        reached.contains(self.tokens.len())
    }

    /// The cost of one step. More than one only for patterns that no request can have.
    fn step_cost(&self) -> u64 {
        (self.one.0.len() as u64).div_ceil(16)
    }

    fn start(&self) -> Positions {
        self.furthest(self.closed(Positions::from_start(self.tokens.len() + 1)))
    }

    /// The positions after one more character; `None` is a character that the pattern does not
    /// name. Omits positions that a later one replaces.
    fn step(&self, positions: &Positions, character: Option<char>) -> Positions {
        self.furthest(self.step_all(positions, character))
    }

    fn step_all(&self, positions: &Positions, character: Option<char>) -> Positions {
        let entries = character.map_or(&[][..], |c| self.entries(c));
        let mut next = Positions::empty(self.tokens.len() + 1);
        next.add_next(positions, |at| {
            let found = entries.binary_search_by_key(&at, |(_, word, _)| *word).ok();
            let bits = found.and_then(|found| entries.get(found));
            self.one.word(at) | bits.map_or(0, |(_, _, bits)| *bits)
        });
        next.add(positions, &self.many);
        if character != Some(':') {
            next.add(positions, &self.in_part);
        }
        self.closed(next)
    }

    /// The entries of a character in `chars`.
    fn entries(&self, character: char) -> &[(char, usize, u64)] {
        let from = self.chars.partition_point(|(own, _, _)| *own < character);
        let rest = self.chars.get(from..).unwrap_or_default();
        let length = rest.partition_point(|(own, _, _)| *own == character);
        rest.get(..length).unwrap_or_default()
    }

    /// The positions after any one character.
    fn step_over_one(&self, positions: &Positions) -> Positions {
        let mut next = Positions::empty(self.tokens.len() + 1);
        next.add_next(positions, |at| {
            !(self.many.word(at) | self.in_part.word(at))
        });
        next.add(positions, &self.many);
        next.add(positions, &self.in_part);
        self.closed(next)
    }

    /// Adds every position that can be reached over tokens that are `passable`.
    fn reach(&self, mut positions: Positions, passable: impl Fn(Token) -> bool) -> Positions {
        let Some(lowest) = positions.lowest() else {
            return positions;
        };
        for (at, token) in self.tokens.iter().enumerate().skip(lowest) {
            if positions.contains(at) && passable(*token) {
                positions.insert(at + 1);
            }
        }
        self.closed(positions)
    }

    /// Adds the positions that are reached if each `*` matches nothing more.
    fn closed(&self, mut positions: Positions) -> Positions {
        // More than one iteration only if two kinds of `*` are adjacent.
        loop {
            let (mut carry, mut changed) = (0, false);
            for (at, word) in positions.0.iter_mut().enumerate() {
                let moved = *word & (self.many.word(at) | self.in_part.word(at));
                let more = *word | moved << 1 | carry;
                carry = moved >> (WORD - 1);
                changed |= more != *word;
                *word = more;
            }
            if !changed {
                return positions;
            }
        }
    }

    fn furthest(&self, mut positions: Positions) -> Positions {
        if let Some(furthest) = positions.highest_in(&self.gap) {
            positions.clear_below(furthest);
        }
        positions
    }
}

impl Positions {
    fn from_start(positions: usize) -> Self {
        let mut start = Self::empty(positions);
        start.insert(0);
        start
    }
}

#[cfg(test)]
mod tests;
