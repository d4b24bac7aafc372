//! Patterns with wildcards: `*` for any text, `?` for any one character, everything else for itself.
//!
//! Two questions are asked of them, and both are answered exactly: whether one pattern matches all
//! that another matches, and whether there is anything that both match. A shortcut in either is a
//! hole: `a*b` is not within `a*` "because it starts alike", it is within it because it is.

use std::collections::BTreeSet;

/// How many combinations of positions are looked at before an inclusion is taken not to hold. Real
/// patterns need a few hundred; only one that was made to be hard comes near.
const MAX_STATES: usize = 20_000;

/// Where a match of a pattern can stand: the positions in it that could come next.
type Positions = BTreeSet<usize>;

/// Whether `outer` matches everything that `inner` matches.
#[must_use]
pub fn covers(outer: &str, inner: &str) -> bool {
    let outer: Vec<char> = outer.chars().collect();
    let inner: Vec<char> = inner.chars().collect();
    // What `inner` leaves open is tried with a character that `outer` does not name: `outer` can
    // match that only by a wildcard of its own, and a wildcard matches every other one as well.
    let open = None;
    let mut to_see = vec![(0, closure(&outer, Positions::from([0])))];
    let mut seen = BTreeSet::new();
    while let Some((at, positions)) = to_see.pop() {
        if positions.is_empty() || seen.len() > MAX_STATES {
            return false;
        }
        if !seen.insert((at, positions.clone())) {
            continue;
        }
        match inner.get(at) {
            None => {
                if !positions.contains(&outer.len()) {
                    return false;
                }
            }
            Some('*') => {
                to_see.push((at, step(&outer, &positions, open)));
                to_see.push((at + 1, positions));
            }
            Some('?') => to_see.push((at + 1, step(&outer, &positions, open))),
            Some(c) => to_see.push((at + 1, step(&outer, &positions, Some(*c)))),
        }
    }
    true
}

/// The positions after one more character, `None` being one that the pattern does not name.
fn step(pattern: &[char], positions: &Positions, character: Option<char>) -> Positions {
    let next = positions
        .iter()
        .filter_map(|&position| match pattern.get(position) {
            Some('*') => Some(position),
            Some('?') => Some(position + 1),
            Some(c) if Some(*c) == character => Some(position + 1),
            _ => None,
        });
    closure(pattern, next.collect())
}

/// With what can be reached by letting a `*` match nothing more.
fn closure(pattern: &[char], mut positions: Positions) -> Positions {
    let mut to_see: Vec<usize> = positions.iter().copied().collect();
    while let Some(position) = to_see.pop() {
        if pattern.get(position) == Some(&'*') && positions.insert(position + 1) {
            to_see.push(position + 1);
        }
    }
    positions
}

/// Whether there is anything that both match.
#[must_use]
pub fn overlap(one: &str, other: &str) -> bool {
    let one: Vec<char> = one.chars().collect();
    let other: Vec<char> = other.chars().collect();
    // `reached[j]`: the first `i` of `one` and the first `j` of `other` have a match in common.
    let mut reached = vec![false; other.len() + 1];
    for i in 0..=one.len() {
        let mut row = vec![false; other.len() + 1];
        for j in 0..=other.len() {
            let last_one = i.checked_sub(1).map(|i| one[i]);
            let last_other = j.checked_sub(1).map(|j| other[j]);
            row[j] = match (last_one, last_other) {
                (None, None) => true,
                (Some('*'), _) if reached[j] => true,
                (_, Some('*')) | (Some('*'), Some(_)) if j > 0 && row[j - 1] => true,
                (Some(_), Some('*')) if i > 0 && reached[j] => true,
                (Some(a), Some(b)) => {
                    let alike = a == b && a != '*' || a == '?' && b != '*' || b == '?' && a != '*';
                    alike && reached[j - 1]
                }
                _ => false,
            };
        }
        reached = row;
    }
    reached[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What a pattern matches, said the simplest way.
    fn matches(pattern: &[char], text: &[char]) -> bool {
        match (pattern.first(), text.first()) {
            (None, None) => true,
            (Some('*'), _) => {
                matches(&pattern[1..], text) || (!text.is_empty() && matches(pattern, &text[1..]))
            }
            (Some('?'), Some(_)) => matches(&pattern[1..], &text[1..]),
            (Some(a), Some(b)) if a == b => matches(&pattern[1..], &text[1..]),
            _ => false,
        }
    }

    /// Every text of up to `length` of these characters.
    fn texts(length: usize) -> Vec<Vec<char>> {
        let mut all = vec![Vec::new()];
        let mut last: Vec<Vec<char>> = all.clone();
        for _ in 0..length {
            last = last
                .iter()
                .flat_map(|text| "abz".chars().map(move |c| [text.as_slice(), &[c]].concat()))
                .collect();
            all.extend(last.clone());
        }
        all
    }

    #[test]
    fn what_looks_alike_is_told_apart() {
        for (outer, inner, expected) in [
            ("s3:*", "s3:Get*", true),
            ("s3:Get*", "s3:*", false),
            ("s3:Get*", "s3:GetObject", true),
            ("s3:Get*", "s3:Ge*", false),
            ("s3:*Object", "s3:GetObject", true),
            ("s3:*Object", "s3:GetObject*", false),
            ("a*", "a*b", true),
            ("a*b", "a*", false),
            ("*?", "?*", true),
            ("?*", "*?", true),
            ("??*", "*?", false),
            ("*a*", "*a", true),
            ("a*b*c", "a*c", false),
            ("a*c", "a*b*c", true),
            ("", "", true),
            ("*", "", true),
            ("?", "*", false),
            ("a", "?", false),
            ("ab", "ab", true),
            ("bucket/team", "bucket/team*", false),
        ] {
            assert_eq!(covers(outer, inner), expected, "{outer} covers {inner}");
        }
        for (one, other, expected) in [
            ("s3:Get*", "s3:*Object", true),
            ("s3:Get*", "s3:Put*", false),
            ("*", "", true),
            ("?", "", false),
            ("a*", "*b", true),
            ("a?c", "ab", false),
            ("*a", "*b", false),
        ] {
            assert_eq!(overlap(one, other), expected, "{one} and {other}");
            assert_eq!(overlap(other, one), expected, "{other} and {one}");
        }
    }

    #[test]
    fn a_pattern_that_was_made_to_be_hard_is_refused_in_time() {
        let hard = "*a".repeat(200);
        let harder = format!("{}{}", "*a?".repeat(100), "*");
        assert!(covers("*", &harder));
        // Whatever the answer, it comes, and a yes is never a guess.
        assert!(!covers(&hard, &harder) && overlap(&hard, &harder));
    }

    fn any_pattern() -> impl Strategy<Value = String> {
        let part = prop::sample::select(vec!["a", "b", "*", "?"]);
        prop::collection::vec(part, 0..6).prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn a_pattern_covers_another_just_when_it_matches_all_of_it(
            outer in any_pattern(), inner in any_pattern()
        ) {
            let (p, q): (Vec<char>, Vec<char>) = (outer.chars().collect(), inner.chars().collect());
            let all = texts(7);
            let within = all.iter().filter(|text| matches(&q, text)).all(|text| matches(&p, text));
            prop_assert_eq!(covers(&outer, &inner), within, "{} in {}", inner, outer);
        }

        #[test]
        fn patterns_overlap_just_when_some_text_matches_both(
            one in any_pattern(), other in any_pattern()
        ) {
            let (p, q): (Vec<char>, Vec<char>) = (one.chars().collect(), other.chars().collect());
            let both = texts(7).iter().any(|text| matches(&p, text) && matches(&q, text));
            prop_assert_eq!(overlap(&one, &other), both, "{} and {}", one, other);
        }
    }
}
