//! Filters by which the user selects records. Records that are left out are counted.
//!
//! A text that is no filter is an error of the command line. A record that cannot be read meets no
//! filter, and [`super::Run`] counts it before it applies any.

use std::str::FromStr;

use super::record::Record;

/// `principal=…`, `action=…` or `resource=…` with a pattern, in which `*` stands for any text and
/// `?` for any one character. Several of them, separated by commas, must all match.
#[derive(Clone, Debug)]
pub(crate) struct Filter(Vec<(Field, Vec<char>)>);

#[derive(Clone, Copy, Debug)]
enum Field {
    Principal,
    Action,
    Resource,
}

const FIELDS: [(&str, Field); 3] = [
    ("principal=", Field::Principal),
    ("action=", Field::Action),
    ("resource=", Field::Resource),
];

impl FromStr for Filter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut all: Vec<(Field, Vec<char>)> = Vec::new();
        for part in text.split(',') {
            let begun = |(name, of): &(&str, Field)| Some((*of, part.strip_prefix(name)?));
            match (FIELDS.iter().find_map(begun), all.last_mut()) {
                (Some((of, pattern)), _) => all.push((of, pattern.chars().collect())),
                // A pattern may contain a comma.
                (None, Some((_, pattern))) => pattern.extend(",".chars().chain(part.chars())),
                (None, None) => {
                    return Err("it must begin with principal=, action= or resource=".into());
                }
            }
        }
        if all.iter().any(|(_, pattern)| pattern.is_empty()) {
            return Err("a pattern must follow the =".into());
        }
        Ok(Self(all))
    }
}

impl Filter {
    /// Whether it matches a record.
    pub(crate) fn matches(&self, record: &Record) -> bool {
        self.0.iter().all(|(of, pattern)| {
            let text = match of {
                Field::Principal => &record.principal,
                Field::Action => &record.action,
                Field::Resource => &record.resource,
            };
            matches(pattern, text)
        })
    }
}

/// Matches a text literally: unlike in a grant, a `*` in the text is only a star.
fn matches(pattern: &[char], text: &str) -> bool {
    let text: Vec<char> = text.chars().collect();
    let (mut at, mut of) = (0, 0);
    // The position of the last `*` in the pattern, and how far it has matched the text.
    let mut star: Option<(usize, usize)> = None;
    while let Some(&c) = text.get(at) {
        match (pattern.get(of), star) {
            (Some('*'), _) => {
                star = Some((of, at));
                of += 1;
            }
            (Some(&own), _) if own == '?' || own == c => {
                at += 1;
                of += 1;
            }
            (_, Some((begin, taken))) => {
                star = Some((begin, taken + 1));
                (at, of) = (taken + 1, begin + 1);
            }
            _ => return false,
        }
    }
    pattern.iter().skip(of).all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(pattern: &str, text: &str) -> bool {
        matches(&pattern.chars().collect::<Vec<_>>(), text)
    }

    #[test]
    fn a_star_is_any_text_and_a_question_mark_any_one_character() {
        for (pattern, text) in [
            ("*", ""),
            ("*", "anything"),
            ("a*c", "abc"),
            ("a*c", "abcbc"),
            ("a*b*c", "a--b-b--c"),
            ("a?c", "a*c"),
            ("?", "é"),
            ("**x", "x"),
        ] {
            assert!(holds(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("a", "ab"),
            ("?", ""),
            ("a*c", "ab"),
            ("a*b", "*"),
            ("x", "X"),
        ] {
            assert!(!holds(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn a_filter_says_of_what() {
        for bad in ["", "x", "principal", "principal=", "who=eve", "*"] {
            assert!(bad.parse::<Filter>().is_err(), "{bad}");
        }
        for bad in ["principal=a,action=", "principal=,action=a", ",action=a"] {
            assert!(bad.parse::<Filter>().is_err(), "{bad}");
        }
        assert!("resource=arn:aws:s3:::b/x=y*".parse::<Filter>().is_ok());
        let parts = |text: &str| text.parse::<Filter>().unwrap().0.len();
        assert_eq!(parts("principal=a,action=b,resource=c"), 3);
        assert_eq!(parts("resource=a,b"), 1);
    }
}
