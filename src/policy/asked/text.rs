//! The values of one fact that are asked for together.

use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::fmt;

use crate::domain::grant::{ARN_PARTS, ActionName, Location};
use crate::domain::pattern::{Pattern, Token};

/// Texts that are asked for together.
#[derive(Debug)]
pub(in crate::policy) struct AskedText {
    /// What all of them begin with.
    head: String,
    rest: Rest,
    /// All of it as a pattern, once it is needed.
    pattern: OnceCell<Pattern>,
}

/// What follows the head.
#[derive(Debug)]
enum Rest {
    Nothing,
    Anything,
    Tokens(Vec<Token>),
}

/// How texts compare with sets of patterns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::policy) enum Kind {
    /// One text, the head.
    Single,
    /// Every text that begins with the head.
    Prefix,
    /// The texts of a pattern.
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

    /// The texts of a pattern of ours.
    #[cfg(test)]
    pub(in crate::policy) fn parse(pattern: &str) -> Self {
        Self::new(Pattern::parse(pattern).tokens().iter().copied())
    }

    fn text(text: &str) -> Self {
        Self::new(text.chars().map(Token::Char))
    }

    /// Every text.
    fn anything() -> Self {
        Self::new([Token::Many])
    }

    /// A location. A URL is two: the place, and what is below it. Every place below it is asked for,
    /// those with characters that no URL of a request can have included.
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
            // A `*` of the frame does not reach over a colon; in the resource it does.
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

    /// An action of AWS.
    pub(in crate::policy) fn of_action(action: &ActionName) -> Self {
        let folded = action.folded();
        Self::new(folded.chars().map(|c| match c {
            '*' => Token::Many,
            '?' => Token::One,
            c => Token::Char(c),
        }))
    }

    /// The regions of a request to AWS: the one that it names, else those that sessions of the role work
    /// in, else any.
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

    pub(in crate::policy) fn kind(&self) -> Kind {
        match self.rest {
            Rest::Nothing => Kind::Single,
            Rest::Anything => Kind::Prefix,
            Rest::Tokens(_) => Kind::Pattern,
        }
    }

    /// All of it as a pattern.
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
