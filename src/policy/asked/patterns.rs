//! The texts and patterns that policies compare one fact with.
//!
//! Policies can list thousands of locations, and a request must not cost one comparison for each.
//! So a [`PatternSet`] sorts texts without wildcards, and patterns whose only wildcard is a final
//! `*`, and looks them up. All others are compared one by one.
//!
//! Both comparisons spend a budget. If it runs out, [`PatternSet::covers`] is `false` and
//! [`PatternSet::overlaps`] is `true`, so that no permit and every forbid applies. A set covers a
//! value only if one of its patterns alone does. [`super::rewrite`] builds the sets,
//! [`super::question`] compares them, and `domain::pattern` compares single patterns.

use super::text::{AskedText, TextKind};
use crate::domain::pattern::{Budget, Pattern, Token};

/// A set of texts and patterns. It matches if any of them matches.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(in crate::policy) struct PatternSet {
    /// Texts without wildcards, sorted.
    exact: Vec<String>,
    /// The prefixes of patterns whose only wildcard is a final `*`, sorted. No entry is a prefix of
    /// another.
    prefixes: Vec<String>,
    others: Vec<Pattern>,
}

impl PatternSet {
    /// Creates a set from patterns, each given as a list of its tokens.
    pub(in crate::policy) fn new<T: IntoIterator<Item = Token>>(
        patterns: impl IntoIterator<Item = T>,
    ) -> Self {
        let mut set = Self::default();
        for tokens in patterns {
            let mut tokens: Vec<Token> = tokens.into_iter().collect();
            tokens.dedup_by(|later, earlier| (*later, *earlier) == (Token::Many, Token::Many));
            let text = |tokens: &[Token]| -> Option<String> {
                let chars = tokens.iter().map(|token| match token {
                    Token::Char(c) => Some(*c),
                    _ => None,
                });
                chars.collect()
            };
            let (exact, head) = (text(&tokens), tokens.split_last());
            match (exact, head) {
                (Some(exact), _) => set.exact.push(exact),
                (None, Some((Token::Many, head))) if text(head).is_some() => {
                    set.prefixes.extend(text(head));
                }
                _ => set.others.push(Pattern::new(tokens)),
            }
        }
        set.ordered()
    }

    /// The union of `sets`.
    pub(in crate::policy) fn union(sets: impl IntoIterator<Item = Self>) -> Self {
        let mut all = Self::default();
        for set in sets {
            all.exact.extend(set.exact);
            all.prefixes.extend(set.prefixes);
            all.others.extend(set.others);
        }
        all.ordered()
    }

    fn ordered(mut self) -> Self {
        self.exact.sort_unstable();
        self.exact.dedup();
        self.prefixes.sort_unstable();
        // The order places a text directly after its prefixes.
        self.prefixes
            .dedup_by(|later, earlier| later.starts_with(earlier.as_str()));
        self
    }

    /// Whether one of the patterns matches every requested value; `false` if `budget` runs out.
    pub(in crate::policy) fn covers(&self, asked: &AskedText, budget: &Budget) -> bool {
        if !budget.spend(1) {
            return false;
        }
        let is_exact = asked.kind() == TextKind::Single && self.has_exact(asked.head());
        is_exact
            || self.has_prefix_of(asked.head())
            || self
                .others
                .iter()
                .any(|own| own.covers(asked.pattern(), budget))
    }

    /// Whether one of the patterns matches some requested value; `true` if `budget` runs out.
    pub(in crate::policy) fn overlaps(&self, asked: &AskedText, budget: &Budget) -> bool {
        if !budget.spend(1) {
            return true;
        }
        let head = asked.head();
        // A pattern for all texts with a prefix of the head matches every requested value.
        if self.has_prefix_of(head) {
            return true;
        }
        let found = match asked.kind() {
            TextKind::Single => self.has_exact(head),
            TextKind::Prefix => {
                !beginning_with(&self.exact, head).is_empty()
                    || !beginning_with(&self.prefixes, head).is_empty()
            }
            TextKind::Pattern => {
                let exact = beginning_with(&self.exact, head);
                let prefixes = beginning_with(&self.prefixes, head);
                exact
                    .iter()
                    .any(|text| asked.pattern().may_match(text, budget))
                    || prefixes.iter().any(|text| {
                        let tokens = text.chars().map(Token::Char).chain([Token::Many]);
                        asked.pattern().overlaps_tokens(tokens, budget)
                    })
            }
        };
        found
            || self
                .others
                .iter()
                .any(|own| own.overlaps(asked.pattern(), budget))
    }

    /// The texts without wildcards.
    pub(in crate::policy) fn exact(&self) -> &[String] {
        &self.exact
    }

    /// Each text and pattern as a set of its own, with its written form.
    pub(in crate::policy) fn singles(&self) -> impl Iterator<Item = (String, Self)> {
        let many = |text: &str| text.chars().map(Token::Char).chain([Token::Many]).collect();
        let exact = self.exact.iter();
        let exact = exact.map(|text| text.chars().map(Token::Char).collect::<Vec<Token>>());
        let prefixes = self.prefixes.iter().map(move |text| many(text));
        let others = self.others.iter().map(|own| own.tokens().to_vec());
        exact.chain(prefixes).chain(others).map(|tokens| {
            let written = tokens.iter().map(|token| match token {
                Token::Char(c) => *c,
                Token::One => '?',
                Token::Many | Token::ManyInPart => '*',
            });
            (written.collect(), Self::new([tokens]))
        })
    }

    fn has_exact(&self, text: &str) -> bool {
        self.exact
            .binary_search_by(|own| own.as_str().cmp(text))
            .is_ok()
    }

    /// Whether `text` begins with one of the prefixes. No prefix begins with another, so only the
    /// last one that sorts at or before `text` can match.
    fn has_prefix_of(&self, text: &str) -> bool {
        let behind = self.prefixes.partition_point(|own| own.as_str() <= text);
        let last = behind.checked_sub(1).and_then(|at| self.prefixes.get(at));
        last.is_some_and(|own| text.starts_with(own.as_str()))
    }
}

/// The entries of `texts`, which is sorted, that begin with `head`.
fn beginning_with<'a>(texts: &'a [String], head: &str) -> &'a [String] {
    let from = texts.partition_point(|text| text.as_str() < head);
    let rest = texts.get(from..).unwrap_or_default();
    let length = rest.partition_point(|text| text.starts_with(head));
    rest.get(..length).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::pattern;

    fn set(patterns: &[String]) -> PatternSet {
        PatternSet::new(
            patterns
                .iter()
                .map(|own| Pattern::parse(own).tokens().to_vec()),
        )
    }

    fn answers(patterns: &[String], asked: &str) -> (bool, bool) {
        let budget = Budget::new(u64::MAX);
        let (set, asked) = (set(patterns), AskedText::parse(asked));
        (set.covers(&asked, &budget), set.overlaps(&asked, &budget))
    }

    #[test]
    fn a_list_of_texts_and_prefixes_is_looked_up_in_few_steps() {
        let patterns: Vec<String> = (0..1_000)
            .flat_map(|n| [format!("https://h/{n}"), format!("https://h/{n}/*")])
            .collect();
        let set = set(&patterns);
        for (asked, expected) in [
            ("https://h/7", (true, true)),
            ("https://h/7/*", (true, true)),
            ("https://h/7/x/y", (true, true)),
            ("https://h/1000", (false, false)),
            ("https://h/*", (false, true)),
            ("https://h/99*", (false, true)),
            ("https://other/*", (false, false)),
        ] {
            let budget = Budget::new(u64::MAX);
            let asked_text = AskedText::parse(asked);
            let found = (
                set.covers(&asked_text, &budget),
                set.overlaps(&asked_text, &budget),
            );
            assert_eq!(found, expected, "{asked}");
            assert!(budget.spent() <= 2, "{asked}: {}", budget.spent());
        }
    }

    #[test]
    fn a_prefix_within_another_is_not_kept() {
        let patterns = ["ab*", "a*", "b", "abc*", "b*"].map(str::to_owned);
        assert_eq!(set(&patterns).prefixes, ["a", "b"]);
        assert_eq!(answers(&patterns, "abx"), (true, true));
        assert_eq!(answers(&["ab*".into(), "ac*".into()], "a*"), (false, true));
    }

    fn any_pattern(parts: &[&'static str]) -> impl Strategy<Value = String> + use<> {
        let part = prop::sample::select(parts.to_vec());
        prop::collection::vec(part, 0..5).prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn a_set_answers_like_its_patterns_one_by_one(
            patterns in prop::collection::vec(any_pattern(&["a", "b", "*"]), 0..6),
            asked in any_pattern(&["a", "b", "*", "?"]),
        ) {
            let budget = Budget::new(u64::MAX);
            let covers = patterns.iter().any(|own| pattern::covers_within(own, &asked, &budget));
            let overlaps = patterns.iter().any(|own| pattern::overlap_within(own, &asked, &budget));
            prop_assert_eq!(answers(&patterns, &asked), (covers, overlaps));
        }

        #[test]
        fn a_union_answers_like_its_sets(
            one in prop::collection::vec(any_pattern(&["a", "b", "*"]), 0..4),
            other in prop::collection::vec(any_pattern(&["a", "b", "*"]), 0..4),
            asked in any_pattern(&["a", "b", "*", "?"]),
        ) {
            let union = PatternSet::union([set(&one), set(&other)]);
            prop_assert_eq!(&union, &set(&[one.clone(), other.clone()].concat()));
            let (asked_text, budget) = (AskedText::parse(&asked), Budget::new(u64::MAX));
            let (of_one, of_other) = (answers(&one, &asked), answers(&other, &asked));
            prop_assert_eq!(union.covers(&asked_text, &budget), of_one.0 || of_other.0);
            prop_assert_eq!(union.overlaps(&asked_text, &budget), of_one.1 || of_other.1);
        }
    }
}
