//! Checks the depth of a policy text before Cedar reads it.
//!
//! Cedar parses, validates and evaluates policies by recursion: each nested bracket and each term
//! of a chain such as `a || b || c` takes one level of stack. A text of a few kilobytes could take
//! more stack than any thread has, and the process would abort. Therefore [`check`] first scans the
//! text token by token, without recursion, and refuses deep nesting and long chains with their
//! line. Texts that pass fit on the stacks of [`super::stack`].
//!
//! The count is valid only if this tokenizer and Cedar's produce the same tokens. So the check
//! refuses every character that the two could read differently: a carriage return that no line feed
//! follows (it ends a comment for Cedar), and any non-ASCII character outside of texts and comments
//! (Cedar accepts spaces that are not ASCII). It also refuses brackets that do not match, since
//! Cedar's parser continues after an error and may count them differently.
//!
//! The result is a list of problems, at most one for each policy; an empty list means that Cedar
//! may read the text. Cedar reports all other errors. [`super::bundle`] calls this file for each
//! policy file.

use super::problem::PolicyProblem;
use crate::domain::generation::PolicyFile;
use crate::domain::limits::{MAX_POLICY_NESTING, MAX_POLICY_TERMS, MAX_PROBLEMS};

/// Every position at which a policy of this file is too deep or can be read in two ways. Reports at
/// most one for each policy.
pub(super) fn check(file: &PolicyFile) -> Vec<PolicyProblem> {
    if let Some(at) = lone_carriage_return(&file.text) {
        return vec![PolicyProblem::at(
            file,
            at,
            "a carriage return has no line feed after it",
            "end lines with a line feed alone or with both; in a text, write \\r",
        )];
    }
    let mut shape = Shape::default();
    let mut problems = Vec::new();
    for (at, token) in Tokens::new(&file.text) {
        if let Some((message, remedy)) = shape.take(token) {
            shape.skip_policy();
            problems.push(PolicyProblem::at(file, at, message, remedy));
            if problems.len() == MAX_PROBLEMS {
                break;
            }
        }
    }
    problems
}

fn lone_carriage_return(text: &str) -> Option<usize> {
    let mut found = text.match_indices('\r').map(|(at, _)| at);
    found.find(|at| text.as_bytes().get(at + 1) != Some(&b'\n'))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token<'a> {
    /// An opening bracket, given by the bracket that closes it.
    Open(char),
    /// A closing bracket, as written.
    Close(char),
    Comma,
    Semicolon,
    Dot,
    /// `&&`, `||`, `+`, `-`, `*`, `/`, `%`: the operators that form chains.
    Chain,
    /// An operator that forms no chain.
    Operator,
    Word(&'a str),
    Number,
    Text,
    /// A non-ASCII character outside of texts and comments.
    Foreign(char),
}

/// Two depths of an expression. Each is the maximum over all paths through it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Depth {
    /// Number of nested brackets, `if`s and accesses.
    nesting: usize,
    /// Number of terms of nested chains.
    terms: usize,
}

/// One open bracket, or the policy itself.
#[derive(Clone, Copy, Debug, Default)]
struct Group {
    /// The bracket that closes it; `None` for the policy itself.
    closing: Option<char>,
    /// The depth at its start, its own bracket included.
    outer: Depth,
    /// Number of terms of the current chain.
    terms: usize,
    /// The longest bracketed chain within the current expression.
    within: usize,
    /// Number of `if`s in the current expression. Each may be nested in the others.
    ifs: usize,
    /// Number of accesses of the current term: `a.b["c"](d)`.
    accesses: usize,
    /// Depth of the deepest bracket of the current term. Accesses after it enclose it.
    enclosed: usize,
    /// Depth of the deepest earlier term, its accesses included.
    deepest: usize,
    /// Depth of the earlier sibling expressions.
    beside: Depth,
}

impl Group {
    /// The depth of the content, without its own bracket.
    fn depth(&self) -> Depth {
        Depth {
            nesting: self.beside.nesting.max(self.ifs + self.deepest_term()),
            terms: self.beside.terms.max(self.terms + self.within),
        }
    }

    fn deepest_term(&self) -> usize {
        self.deepest.max(self.enclosed + self.accesses)
    }

    /// Begins another term of the same expression.
    fn begin_term(&mut self) {
        self.deepest = self.deepest_term();
        (self.accesses, self.enclosed) = (0, 0);
    }

    /// Begins a sibling expression.
    fn begin_expression(&mut self) {
        *self = Self {
            closing: self.closing,
            outer: self.outer,
            beside: self.depth(),
            ..Self::default()
        };
    }
}

/// The kind of the previous token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PrecedingToken {
    /// The end of an operand. A bracket after it accesses the operand.
    Operand,
    Dot,
    /// A name after a dot. `a.b(c)` is one access.
    Field,
    Other,
}

/// The open brackets at one position of a text.
#[derive(Debug)]
struct Shape {
    groups: Vec<Group>,
    before: PrecedingToken,
    /// After a problem: the number of brackets that are still open. The rest of the policy is
    /// skipped.
    skipped: Option<usize>,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            groups: vec![Group::default()],
            before: PrecedingToken::Other,
            skipped: None,
        }
    }
}

type Complaint = (String, &'static str);

impl Shape {
    fn take(&mut self, token: Token<'_>) -> Option<Complaint> {
        if let Some(open) = self.skipped {
            self.skipped = match token {
                Token::Semicolon if open == 0 => {
                    *self = Self::default();
                    None
                }
                Token::Open(_) => Some(open + 1),
                Token::Close(_) => Some(open.saturating_sub(1)),
                _ => Some(open),
            };
            return None;
        }
        let before = self.before;
        self.before = match token {
            Token::Number | Token::Text | Token::Close(_) => PrecedingToken::Operand,
            Token::Word(_) if before == PrecedingToken::Dot => PrecedingToken::Field,
            Token::Word(word) if !is_operator(word) => PrecedingToken::Operand,
            Token::Dot => PrecedingToken::Dot,
            _ => PrecedingToken::Other,
        };
        match token {
            Token::Open(closing) => return self.open(closing, before),
            Token::Close(bracket) => return self.close(bracket),
            Token::Comma => self.group().begin_expression(),
            Token::Semicolon if self.groups.len() == 1 => *self = Self::default(),
            Token::Dot => {
                self.group().accesses += 1;
                return self.check_nesting();
            }
            Token::Chain => return self.begin_link(),
            Token::Word(word) if before != PrecedingToken::Dot => match word {
                "if" => {
                    let group = self.group();
                    group.begin_term();
                    group.ifs += 1;
                    return self.check_nesting();
                }
                // Cedar joins conditions like terms of a chain.
                "when" | "unless" => return self.begin_link(),
                word if is_operator(word) => self.group().begin_term(),
                _ => {}
            },
            Token::Operator => self.group().begin_term(),
            Token::Foreign(character) => {
                return Some((
                    format!(
                        "the character U+{:04X} is not allowed outside of texts and comments",
                        u32::from(character)
                    ),
                    "write policies in ASCII; only texts and comments may contain other characters",
                ));
            }
            Token::Semicolon | Token::Word(_) | Token::Number | Token::Text => {}
        }
        None
    }

    /// Skips the rest of a policy that has a problem.
    fn skip_policy(&mut self) {
        self.skipped = Some(self.groups.len() - 1);
        self.groups.truncate(1);
    }

    fn open(&mut self, closing: char, before: PrecedingToken) -> Option<Complaint> {
        let group = self.group();
        group.accesses += match (before, closing) {
            (PrecedingToken::Operand, ')' | ']') | (PrecedingToken::Field, ']') => 1,
            _ => 0,
        };
        let opened = Group {
            closing: Some(closing),
            outer: Depth {
                nesting: group.outer.nesting + group.ifs + group.accesses + 1,
                terms: group.outer.terms + group.terms,
            },
            ..Group::default()
        };
        self.groups.push(opened);
        self.check_nesting()
    }

    fn close(&mut self, bracket: char) -> Option<Complaint> {
        let closed = *self.group();
        if closed.closing != Some(bracket) {
            let message = match closed.closing {
                Some(expected) => format!("found `{bracket}`, expected `{expected}`"),
                None => format!("`{bracket}` closes no bracket"),
            };
            if self.groups.len() > 1 {
                self.groups.pop();
            }
            return Some((message, "close every bracket with the matching one"));
        }
        self.groups.pop();
        let depth = closed.depth();
        let group = self.group();
        group.within = group.within.max(depth.terms);
        group.enclosed = group.enclosed.max(depth.nesting + 1);
        None
    }

    fn begin_link(&mut self) -> Option<Complaint> {
        let group = self.group();
        group.begin_term();
        group.terms += 1;
        self.check_terms()
    }

    fn group(&mut self) -> &mut Group {
        let last = self.groups.len() - 1;
        &mut self.groups[last]
    }

    fn check_nesting(&mut self) -> Option<Complaint> {
        let group = self.group();
        let depth = group.outer.nesting + group.ifs + group.enclosed + group.accesses;
        (depth > MAX_POLICY_NESTING).then(|| {
            (
                format!(
                    "brackets, `if` and accesses are nested more than {MAX_POLICY_NESTING} deep here"
                ),
                "remove redundant brackets, write `if` as && and ||, or split the policy",
            )
        })
    }

    fn check_terms(&mut self) -> Option<Complaint> {
        let group = self.group();
        let terms = group.outer.terms + group.terms + group.within;
        (terms > MAX_POLICY_TERMS).then(|| {
            (
                format!("a chain of operators has more than {MAX_POLICY_TERMS} terms here"),
                "write a set, [\"…\", \"…\"].contains(…), or split the policy into several",
            )
        })
    }
}

/// Whether a word joins operands and is no operand itself.
fn is_operator(word: &str) -> bool {
    matches!(
        word,
        "if" | "then" | "else" | "in" | "has" | "like" | "is" | "when" | "unless"
    )
}

/// The tokens of a text, as detailed as this check needs.
struct Tokens<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Tokens<'a> {
    fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    fn byte(&self, at: usize) -> Option<u8> {
        self.text.as_bytes().get(at).copied()
    }

    /// The end of the string literal that begins at `at`.
    fn end_of_text(&self, at: usize) -> usize {
        let mut at = at + 1;
        while let Some(byte) = self.byte(at) {
            match byte {
                b'\\' => at += 2,
                b'"' => return at + 1,
                _ => at += 1,
            }
        }
        self.text.len()
    }

    /// The end of the run of `wanted` bytes from `at` on.
    fn end_of(&self, at: usize, wanted: impl Fn(u8) -> bool) -> usize {
        let rest = self.text.as_bytes().get(at..).unwrap_or_default();
        at + rest.iter().take_while(|byte| wanted(**byte)).count()
    }
}

impl<'a> Iterator for Tokens<'a> {
    type Item = (usize, Token<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let at = self.at;
            let byte = self.byte(at)?;
            let next = self.byte(at + 1);
            let (end, token) = match (byte, next) {
                (b'/', Some(b'/')) => {
                    self.at = self.end_of(at, |byte| byte != b'\n');
                    continue;
                }
                (b'"', _) => (self.end_of_text(at), Token::Text),
                (b'(', _) => (at + 1, Token::Open(')')),
                (b'[', _) => (at + 1, Token::Open(']')),
                (b'{', _) => (at + 1, Token::Open('}')),
                (b')' | b']' | b'}', _) => (at + 1, Token::Close(char::from(byte))),
                (b',', _) => (at + 1, Token::Comma),
                (b';', _) => (at + 1, Token::Semicolon),
                (b'.', _) => (at + 1, Token::Dot),
                (b'&', Some(b'&')) | (b'|', Some(b'|')) => (at + 2, Token::Chain),
                (b'+' | b'-' | b'*' | b'/' | b'%', _) => (at + 1, Token::Chain),
                (b'=' | b'!' | b'<' | b'>', Some(b'=')) => (at + 2, Token::Operator),
                (b'!' | b'<' | b'>' | b'=' | b':' | b'@' | b'?', _) => (at + 1, Token::Operator),
                // Cedar reads `1if` as a number and a word.
                (b'0'..=b'9', _) => (self.end_of(at, |own| own.is_ascii_digit()), Token::Number),
                (b'a'..=b'z' | b'A'..=b'Z' | b'_', _) => {
                    let end = self.end_of(at, |own| own.is_ascii_alphanumeric() || own == b'_');
                    let word = self.text.get(at..end).unwrap_or_default();
                    (end, Token::Word(word))
                }
                (0x80.., _) => {
                    let rest = self.text.get(at..).unwrap_or_default();
                    let character = rest.chars().next().unwrap_or(char::REPLACEMENT_CHARACTER);
                    (at + character.len_utf8(), Token::Foreign(character))
                }
                // Spaces, and characters that Cedar's tokenizer refuses.
                _ => {
                    self.at += 1;
                    continue;
                }
            };
            self.at = end;
            return Some((at, token));
        }
    }
}

#[cfg(test)]
mod tests;
