//! The requested values of one fact, as a set of texts.
//!
//! [`AskedText`] is such a set: one text, every text with a prefix, or every text that a pattern
//! matches ([`TextKind`]). It covers at least every value that the credential would permit, so that
//! a forbid about any of them is found. A URL has two sets: the location itself, and everything
//! below it.
//!
//! Nothing here returns an error: the values were checked when the request was read
//! (`domain::grant`). `policy::inquiry` makes the sets of a request, and [`super::patterns`]
//! compares them with those of policies.

use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::fmt;

use crate::domain::action::ActionName;
use crate::domain::location::{ARN_PARTS, Location};
use crate::domain::pattern::{Pattern, Token};

/// A set of texts that one request asks for.
#[derive(Debug)]
pub(in crate::policy) struct AskedText {
    /// The common prefix of all texts.
    head: String,
    rest: Rest,
    /// The whole set as a pattern, computed on first use.
    pattern: OnceCell<Pattern>,
}

/// The part of the texts after the head.
#[derive(Debug)]
enum Rest {
    Nothing,
    Anything,
    Tokens(Vec<Token>),
}

/// The form of the set, which determines how it compares with patterns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::policy) enum TextKind {
    /// One text: the head.
    Single,
    /// Every text that begins with the head.
    Prefix,
    /// The texts that a pattern matches.
    Pattern,
}

impl AskedText {
    fn new(tokens: impl IntoIterator<Item = Token>) -> Self {
        let mut tokens = tokens.into_iter();
        let mut head = String::new();
        let mut rest = Vec::new();
        for token in tokens.by_ref() {
            match token {
                Token::Char(c) => head.push(c),
                other => {
                    rest.push(other);
                    break;
                }
            }
        }
        rest.extend(tokens);
        Self {
            head,
            rest: match rest[..] {
                [] => Rest::Nothing,
                [Token::Many] => Rest::Anything,
                _ => Rest::Tokens(rest),
            },
            pattern: OnceCell::new(),
        }
    }

    /// Parses a pattern in the broker's syntax.
    #[cfg(test)]
    pub(in crate::policy) fn parse(pattern: &str) -> Self {
        Self::new(Pattern::parse(pattern).tokens().iter().copied())
    }

    fn text(text: &str) -> Self {
        Self::new(text.chars().map(Token::Char))
    }

    /// The set of all texts.
    fn anything() -> Self {
        Self::new([Token::Many])
    }

    /// The sets of a location. A URL has two: the location itself, and everything below it,
    /// including texts with characters that no URL of a request can have.
    pub(in crate::policy) fn of_location(location: &Location) -> Vec<Self> {
        let text = location.as_str();
        if !location.is_arn() {
            let below = text.chars().chain(['/']).map(Token::Char);
            return vec![Self::text(text), Self::new(below.chain([Token::Many]))];
        }
        let mut tokens = Vec::new();
        for (index, part) in text.splitn(ARN_PARTS, ':').enumerate() {
            if index > 0 {
                tokens.push(Token::Char(':'));
            }
            // Before the resource part of an ARN, a `*` does not match a colon. In the resource
            // part it does.
            let many = match index + 1 {
                ARN_PARTS => Token::Many,
                _ => Token::ManyInPart,
            };
            tokens.extend(part.chars().map(|c| match c {
                '*' => many,
                '?' => Token::One,
                c => Token::Char(c),
            }));
        }
        vec![Self::new(tokens)]
    }

    /// The set of one AWS action.
    pub(in crate::policy) fn of_action(action: &ActionName) -> Self {
        let folded = action.folded();
        Self::new(folded.chars().map(|c| match c {
            '*' => Token::Many,
            '?' => Token::One,
            c => Token::Char(c),
        }))
    }

    /// The regions of a request to AWS: the region that it names, else the regions of the role's
    /// sessions, else any region.
    pub(in crate::policy) fn of_region(
        named: Option<&str>,
        registered: &BTreeSet<String>,
    ) -> Vec<Self> {
        match named {
            Some(region) => vec![Self::text(region)],
            None if registered.is_empty() => vec![Self::anything()],
            None => registered.iter().map(|region| Self::text(region)).collect(),
        }
    }

    pub(in crate::policy) fn head(&self) -> &str {
        &self.head
    }

    pub(in crate::policy) fn kind(&self) -> TextKind {
        match self.rest {
            Rest::Nothing => TextKind::Single,
            Rest::Anything => TextKind::Prefix,
            Rest::Tokens(_) => TextKind::Pattern,
        }
    }

    /// The whole set as a pattern.
    pub(in crate::policy) fn pattern(&self) -> &Pattern {
        self.pattern.get_or_init(|| Pattern::new(self.tokens()))
    }

    fn tokens(&self) -> impl Iterator<Item = Token> {
        let rest = match &self.rest {
            Rest::Nothing => &[][..],
            Rest::Anything => &[Token::Many],
            Rest::Tokens(tokens) => tokens,
        };
        self.head
            .chars()
            .map(Token::Char)
            .chain(rest.iter().copied())
    }
}

impl fmt::Display for AskedText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for token in self.tokens() {
            match token {
                Token::Char(c) => write!(f, "{c}")?,
                Token::One => f.write_str("?")?,
                Token::Many | Token::ManyInPart => f.write_str("*")?,
            }
        }
        Ok(())
    }
}
