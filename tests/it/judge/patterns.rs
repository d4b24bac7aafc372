//! The broker's comparison of patterns, checked against the matching of the independent judge.

use std::collections::BTreeSet;

use serde_json::json;
use taskpass::domain::action::ActionName;
use taskpass::domain::location::Location;
use taskpass::domain::pattern::{self, Budget};

use super::OBJECT;
use crate::support::judge::{Question, Verdict, ask as judged};

/// A generator that yields the same numbers in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        // This is SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % limit as u64).unwrap()
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len())]
    }

    fn text(&mut self, of: &[&str], longest: usize) -> String {
        let length = self.below(longest + 1);
        (0..length).map(|_| self.pick(of)).collect()
    }

    /// A text that `pattern` matches.
    fn instance(&mut self, pattern: &str, of: &[&str]) -> String {
        let part = |c| match c {
            '*' => self.text(of, 3),
            '?' => self.pick(of).to_owned(),
            c => c.to_string(),
        };
        pattern.chars().map(part).collect()
    }
}

/// A granted pattern, a requested pattern, and a concrete text.
struct Triple {
    granted: String,
    asked: String,
    /// Whether the broker says that the requested pattern is within the granted one.
    within: bool,
    concrete: String,
}

/// Gives the triples to the judge; `question` makes a question from a pattern and a concrete text.
/// If the requested pattern is within the granted one, the granted pattern must match every text
/// that the requested one matches. Of the other pairs, most must have a text that only the
/// requested one matches.
fn hold(triples: &[Triple], question: impl Fn(&str, &str) -> Question) {
    let questions: Vec<Question> = triples
        .iter()
        .flat_map(|t| {
            [
                question(&t.asked, &t.concrete),
                question(&t.granted, &t.concrete),
            ]
        })
        .collect();
    let verdicts = judged(&questions);
    let (mut shown, mut within) = (0, BTreeSet::new());
    let (mut outside, mut witnessed) = (BTreeSet::new(), BTreeSet::new());
    for (triple, verdicts) in triples.iter().zip(verdicts.chunks(2)) {
        let pair = (&triple.granted, &triple.asked);
        let matched = [0, 1].map(|n| verdicts[n] == Verdict::Allowed);
        let Triple {
            granted,
            asked,
            concrete,
            ..
        } = triple;
        if triple.within {
            within.insert(pair);
            shown += usize::from(matched[0]);
            assert!(
                !matched[0] || matched[1],
                "`{asked}` is no part of `{granted}`: `{concrete}`"
            );
        } else {
            outside.insert(pair);
            if matched == [true, false] {
                witnessed.insert(pair);
            }
        }
    }
    assert!(
        within.len() > 90 && shown > 250,
        "{} within, {shown} times shown: too little to show anything",
        within.len()
    );
    assert!(
        witnessed.len() * 10 >= outside.len() * 9,
        "of {} that are not within only {} are shown not to be",
        outside.len(),
        witnessed.len()
    );
}

#[test]
fn what_is_within_a_pattern_is_matched_by_it_as_the_judge_matches() {
    let mut numbers = Numbers(0x7461_736b);
    let (parts, letters) = (["a", "b", "*", "?", "a", "*"], ["a", "b", "z"]);
    let mut triples = Vec::new();
    for n in 0..300 {
        let granted = numbers.text(&parts, 5);
        // Every second requested pattern is within the granted one, or almost.
        let asked = match n % 2 {
            0 => numbers.text(&parts, 5),
            _ => numbers.instance(&granted, &parts),
        };
        let within = pattern::covers_within(&granted, &asked, &Budget::of_one_comparison());
        for _ in 0..6 {
            // A request never has an empty text, so add a letter.
            let concrete = format!("x{}", numbers.instance(&asked, &letters));
            let (granted, asked) = (format!("x{granted}"), format!("x{asked}"));
            triples.push(Triple {
                granted,
                asked,
                within,
                concrete,
            });
        }
    }
    hold(&triples, |pattern, text| {
        let allow = json!({"Version": "2012-10-17", "Statement": [{
            "Effect": "Allow", "Action": "*", "Resource": "*",
            "Condition": {"StringLike": {"aws:userid": [pattern]}}
        }]});
        Question::new("s3:ListAllMyBuckets", "*")
            .with("aws:userid", text)
            .only_role(&allow)
    });
}

#[test]
fn what_is_within_a_location_is_a_resource_of_it_as_the_judge_matches() {
    let mut numbers = Numbers(0x6172_6e73);
    let (parts, letters) = (["a", "*", "?", "/", "b", "*"], ["a", "b", "/", "z"]);
    let location = |text: &str| Location::try_from(text.to_owned());
    let mut triples = Vec::new();
    while triples.len() < 1_200 {
        let bucket = numbers.text(&["a", "b", "*", "?"], 2);
        let granted = format!("arn:aws:s3:::b{bucket}/{}", numbers.text(&parts, 3));
        let asked = match numbers.below(2) {
            0 => format!("arn:aws:s3:::b{bucket}/{}", numbers.text(&parts, 4)),
            _ => numbers.instance(&granted, &parts),
        };
        let (Ok(outer), Ok(inner)) = (location(&granted), location(&asked)) else {
            continue;
        };
        let within = outer.covers_within(&inner, &Budget::of_one_comparison());
        for _ in 0..6 {
            let concrete = numbers.instance(&asked, &letters);
            let key = concrete.split_once('/').map(|(_, key)| key);
            if key.is_some_and(|key| !key.is_empty()) {
                let (granted, asked) = (granted.clone(), asked.clone());
                triples.push(Triple {
                    granted,
                    asked,
                    within,
                    concrete,
                });
            }
        }
    }
    hold(&triples, |pattern, object| {
        let allow = json!({"Version": "2012-10-17", "Statement": [{
            "Effect": "Allow", "Action": "s3:GetObject", "Resource": pattern
        }]});
        Question::new("s3:GetObject", object).only_role(&allow)
    });
}

#[test]
fn what_is_within_an_action_is_an_action_of_it_as_the_judge_matches() {
    // Actions of AWS on an object, so that one resource suits all of them.
    let real = [
        "GetObject",
        "GetObjectAcl",
        "GetObjectTagging",
        "GetObjectVersion",
        "GetObjectVersionAcl",
        "GetObjectVersionTagging",
        "GetObjectRetention",
        "GetObjectLegalHold",
        "PutObject",
        "PutObjectAcl",
        "PutObjectTagging",
        "PutObjectVersionAcl",
        "PutObjectRetention",
        "DeleteObject",
        "DeleteObjectTagging",
        "DeleteObjectVersion",
        "RestoreObject",
        "AbortMultipartUpload",
    ];
    let mut numbers = Numbers(0x6163_746e);
    let mut widened = |name: &str| {
        let mut name: Vec<char> = name.chars().collect();
        let at = "s3:".len() + numbers.below(name.len() - "s3:".len());
        let (length, with) = match numbers.below(3) {
            0 => (1, "?"),
            _ => (numbers.below(name.len() - at + 1), "*"),
        };
        name.splice(at..at + length, with.chars());
        if numbers.below(3) == 0 {
            name = name.iter().map(char::to_ascii_lowercase).collect();
        }
        name.into_iter().collect::<String>()
    };
    let action = |text: &str| ActionName::try_from(text.to_owned());
    let mut triples = Vec::new();
    for name in real.iter().cycle().take(200) {
        let asked = widened(&format!("s3:{name}"));
        let granted = widened(&asked);
        if let (Ok(outer), Ok(inner)) = (action(&granted), action(&asked)) {
            let within = outer.covers_within(&inner, &Budget::of_one_comparison());
            triples.extend(real.iter().map(|name| Triple {
                granted: granted.clone(),
                asked: asked.clone(),
                within,
                concrete: format!("s3:{name}"),
            }));
        }
    }
    // Two patterns may differ only in names that AWS does not have; such pairs show nothing here.
    // Of the actions that the broker does not count as requested, the judge gets a sample.
    triples.retain(
        |Triple {
             asked,
             within,
             concrete,
             ..
         }| {
            let asked_for = pattern::covers_within(
                &asked.to_lowercase(),
                &concrete.to_lowercase(),
                &Budget::of_one_comparison(),
            );
            *within && (asked_for || numbers.below(6) == 0)
        },
    );
    let questions = |pattern: &str, action: &str| {
        let allow = json!({"Version": "2012-10-17", "Statement": [{
            "Effect": "Allow", "Action": pattern, "Resource": "*"
        }]});
        Question::new(action, OBJECT).only_role(&allow)
    };
    hold(&triples, questions);
}
