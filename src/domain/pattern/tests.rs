use super::*;

fn covers(outer: &str, inner: &str) -> bool {
    covers_within(outer, inner, &Budget::of_one_comparison())
}

fn overlap(one: &str, other: &str) -> bool {
    overlap_within(one, other, &Budget::of_one_comparison())
}
use crate::domain::limits::{MAX_GRANT_TEXT_BYTES, MAX_WILDCARDS};
use proptest::prelude::*;

/// The definition of a match, in the simplest form.
fn matches(pattern: &[char], text: &[char]) -> bool {
    match (pattern.first(), text.first()) {
        (None, None) => true,
        (Some('*'), _) => {
            matches(&pattern[1..], text) || (!text.is_empty() && matches(pattern, &text[1..]))
        }
        // A `*` within one part of an ARN.
        (Some('~'), _) => {
            matches(&pattern[1..], text)
                || (text.first().is_some_and(|c| *c != ':') && matches(pattern, &text[1..]))
        }
        (Some('?'), Some(_)) => matches(&pattern[1..], &text[1..]),
        (Some(a), Some(b)) if a == b => matches(&pattern[1..], &text[1..]),
        _ => false,
    }
}

fn pattern(text: &str) -> Pattern {
    Pattern::new(text.chars().map(|c| match c {
        '*' => Token::Many,
        '~' => Token::ManyInPart,
        '?' => Token::One,
        c => Token::Char(c),
    }))
}

/// Every text of up to `length` of these characters.
fn texts(letters: &str, length: usize) -> Vec<Vec<char>> {
    let mut all = vec![Vec::new()];
    let mut last: Vec<Vec<char>> = all.clone();
    for _ in 0..length {
        last = last
            .iter()
            .flat_map(|text| {
                letters
                    .chars()
                    .map(move |c| [text.as_slice(), &[c]].concat())
            })
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
        ("*x???*y*", "x*y??y", true),
        ("*x???*y*", "x*y?y", false),
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

fn steps(outer: &str, inner: &str) -> (bool, u64) {
    let budget = Budget::new(MAX_COMPARISON_STEPS);
    let answer = Pattern::parse(outer).covers(&Pattern::parse(inner), &budget);
    (answer, budget.spent())
}

#[test]
fn patterns_that_were_made_to_be_hard_take_a_bounded_number_of_steps() {
    // The maximum number of wildcards, each between characters.
    let open = "?".repeat(MAX_WILDCARDS - 2);
    for outer in [
        format!("*a{open}a*"),
        format!("*a{}b*", open.replace('?', "?a")),
        format!("*{}b*", open.replace('?', "a?")),
    ] {
        for inner in [
            format!("{}{}", "a*".repeat(MAX_WILDCARDS), "a".repeat(400)),
            format!("{}{}b", "a*".repeat(MAX_WILDCARDS), "ab".repeat(200)),
            format!("{}b", "aa*ab?".repeat(MAX_WILDCARDS / 2)),
            format!("{}{}", "*ab".repeat(MAX_WILDCARDS), "b".repeat(300)),
        ] {
            assert!(inner.len() <= MAX_GRANT_TEXT_BYTES);
            let (_, spent) = steps(&outer, &inner);
            assert!(
                spent <= MAX_COMPARISON_STEPS + 1,
                "{outer} {inner}: {spent}"
            );
            let budget = Budget::new(MAX_COMPARISON_STEPS);
            let (one, other) = (Pattern::parse(&outer), Pattern::parse(&inner));
            std::hint::black_box(one.overlaps(&other, &budget));
            assert!(budget.spent() <= MAX_GRANT_TEXT_BYTES as u64);
        }
    }
}

/// Regression: this pair occupied a thread for three seconds. Requests can no longer contain
/// either pattern, and the comparison takes few steps now.
#[test]
fn one_comparison_of_patterns_took_seconds() {
    let open = "?".repeat(200);
    let outer = format!("*a{open}*");
    let inner = format!("{}{open}", "a*".repeat(140));
    let budget = Budget::new(u64::MAX);
    assert!(Pattern::parse(&outer).covers(&Pattern::parse(&inner), &budget));
    let product = (outer.len() as u64 + 1) * (inner.len() as u64 + 1);
    assert!(budget.spent() <= product, "{}", budget.spent());
    assert!(count_wildcards(&outer) > MAX_WILDCARDS && count_wildcards(&inner) > MAX_WILDCARDS);
}

#[test]
fn a_pattern_of_many_characters_took_memory_by_the_square_of_its_length() {
    let many: String = (0..5_000)
        .filter_map(|n| char::from_u32(0x4e00 + n))
        .collect();
    let pattern = Pattern::parse(&format!("{many}*{many}"));
    assert!(pattern.chars.len() <= pattern.tokens.len());
    let budget = Budget::new(u64::MAX);
    assert!(pattern.may_match(&format!("{many}x{many}"), &budget));
    assert!(!pattern.may_match(&format!("{many}x{}", &many[3..]), &budget));
    assert!(pattern.covers(&Pattern::parse(&format!("{many}?*{many}")), &budget));
}

#[test]
fn a_budget_that_is_used_up_gives_the_safe_answers() {
    let budget = Budget::new(3);
    assert!(!covers_within("*abc", "aaaaaabc", &budget));
    assert!(budget.is_exhausted());
    assert!(overlap_within("*abc", "xyz", &budget));
    assert!(overlap_within("a", "b", &budget));
    assert!(!covers_within("a", "a", &budget));
}

#[test]
fn without_question_marks_between_characters_the_steps_are_at_most_the_product() {
    let outer = "*ab".repeat(100);
    let inner = format!("{}{}", "a*b?".repeat(60), "*ba".repeat(60));
    let budget = Budget::new(u64::MAX);
    std::hint::black_box(Pattern::parse(&outer).covers(&Pattern::parse(&inner), &budget));
    let product = 2 * (outer.len() as u64 + 1) * (inner.len() as u64 + 1);
    assert!(budget.spent() <= product, "{}", budget.spent());
}

fn any_pattern(parts: &[&'static str]) -> impl Strategy<Value = String> + use<> {
    let part = prop::sample::select(parts.to_vec());
    prop::collection::vec(part, 0..6).prop_map(|parts| parts.concat())
}

proptest! {
    #[test]
    fn a_pattern_covers_another_just_when_it_matches_all_of_it(
        outer in any_pattern(&["a", "b", "*", "?"]), inner in any_pattern(&["a", "b", "*", "?"])
    ) {
        let (p, q): (Vec<char>, Vec<char>) = (outer.chars().collect(), inner.chars().collect());
        let all = texts("abz", 7);
        let within = all.iter().filter(|text| matches(&q, text)).all(|text| matches(&p, text));
        prop_assert_eq!(covers(&outer, &inner), within, "{} in {}", inner, outer);
    }

    #[test]
    fn patterns_overlap_just_when_some_text_matches_both(
        one in any_pattern(&["a", ":", "*", "?", "~"]), other in any_pattern(&["a", ":", "*", "?"])
    ) {
        let (p, q): (Vec<char>, Vec<char>) = (one.chars().collect(), other.chars().collect());
        let both = texts("a:z", 7).iter().any(|text| matches(&p, text) && matches(&q, text));
        let budget = Budget::new(MAX_COMPARISON_STEPS);
        let (one_is, other_is) = (pattern(&one), pattern(&other));
        prop_assert_eq!(one_is.overlaps(&other_is, &budget), both, "{} and {}", one, other);
        prop_assert_eq!(other_is.overlaps(&one_is, &budget), both, "{} and {}", other, one);
    }

    #[test]
    fn a_star_within_a_part_is_covered_by_what_matches_all_of_it(
        outer in any_pattern(&["a", ":", "*", "?"]), inner in any_pattern(&["a", ":", "~", "?"])
    ) {
        let (p, q): (Vec<char>, Vec<char>) = (outer.chars().collect(), inner.chars().collect());
        let all = texts("a:z", 7);
        let within = all.iter().filter(|text| matches(&q, text)).all(|text| matches(&p, text));
        let budget = Budget::new(MAX_COMPARISON_STEPS);
        prop_assert_eq!(pattern(&outer).covers(&pattern(&inner), &budget), within);
    }
}
