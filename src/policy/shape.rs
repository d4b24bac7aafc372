//! How deep a policy text may be, told before Cedar reads it.
//!
//! Cedar reads, checks and evaluates policies by recursion: one level of stack for each nested
//! bracket, and for each term of a chain such as `a || b || c`. A text of a few kilobytes could take
//! more stack than any thread has, and the process would abort. So the text is first gone over token
//! by token, without recursion, and what nests too deep or chains too long is refused with its line.
//! What is let through fits on the stacks of [`super::stack`].
//!
//! This looks at brackets and operators alone. What else is wrong with a text, Cedar says.

use super::problem::PolicyProblem;
use crate::domain::generation::PolicyFile;
use crate::domain::limits::{MAX_POLICY_NESTING, MAX_POLICY_TERMS};

/// Every place at which a policy of this file is too deep: at most one for each policy.
pub(super) fn check(file: &PolicyFile) -> Vec<PolicyProblem> {
    let mut shape = Shape::default();
    let mut problems = Vec::new();
    for (at, token) in Tokens::new(&file.text) {
        let found = shape.take(token);
        if let Some((message, remedy)) = found.filter(|_| !shape.is_told) {
            shape.is_told = true;
            problems.push(PolicyProblem::at(file, at, message, remedy));
        }
    }
    problems
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token<'a> {
    /// A bracket that opens.
    Open,
    /// A bracket that closes.
    Close,
    Comma,
    Semicolon,
    Dot,
    /// `&&`, `||`, `+`, `-`, `*`: what makes chains.
    Chain,
    /// Any other operator.
    Operator,
    Word(&'a str),
    Text,
}

/// One bracket that is open, or the policy itself.
#[derive(Clone, Copy, Debug, Default)]
struct Group {
    /// Terms of the chain that is being read.
    terms: usize,
    /// The longest chain in brackets of the expression that is being read.
    within: usize,
    /// The longest of the expressions before it, which stand beside it.
    beside: usize,
    /// `if`s of the expression that is being read: any of them may be within the others.
    ifs: usize,
    /// Accesses of the term that is being read: `a.b.c`.
    accesses: usize,
}

impl Group {
    fn longest(&self) -> usize {
        self.beside.max(self.terms + self.within)
    }
}

/// What is open at one place of a text.
#[derive(Debug)]
struct Shape {
    groups: Vec<Group>,
    /// Whether this policy was complained of.
    is_told: bool,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            groups: vec![Group::default()],
            is_told: false,
        }
    }
}

type Complaint = (String, &'static str);

impl Shape {
    fn take(&mut self, token: Token<'_>) -> Option<Complaint> {
        match token {
            Token::Open => {
                self.groups.push(Group::default());
                return self.check_nesting();
            }
            Token::Close => {
                // One that closes nothing is for Cedar to complain of.
                if self.groups.len() > 1
                    && let Some(closed) = self.groups.pop()
                {
                    let group = self.group();
                    group.within = group.within.max(closed.longest());
                }
            }
            Token::Comma => {
                let group = self.group();
                *group = Group {
                    beside: group.longest(),
                    ..Group::default()
                };
            }
            Token::Semicolon if self.groups.len() == 1 => *self = Self::default(),
            Token::Dot => {
                self.group().accesses += 1;
                return self.check_nesting();
            }
            Token::Chain => {
                let group = self.group();
                (group.terms, group.accesses) = (group.terms + 1, 0);
                return self.check_terms();
            }
            Token::Word("if") => {
                let group = self.group();
                (group.ifs, group.accesses) = (group.ifs + 1, 0);
                return self.check_nesting();
            }
            // Conditions are joined like terms of a chain.
            Token::Word("when" | "unless") => {
                self.group().terms += 1;
                return self.check_terms();
            }
            Token::Word("then" | "else" | "in" | "has" | "like" | "is") | Token::Operator => {
                self.group().accesses = 0;
            }
            Token::Semicolon | Token::Word(_) | Token::Text => {}
        }
        None
    }

    fn group(&mut self) -> &mut Group {
        let last = self.groups.len() - 1;
        &mut self.groups[last]
    }

    fn check_nesting(&self) -> Option<Complaint> {
        let nesting = |group: &Group| group.ifs + group.accesses;
        let depth = self.groups.len() - 1 + self.groups.iter().map(nesting).sum::<usize>();
        (depth > MAX_POLICY_NESTING).then(|| {
            (
                format!(
                    "brackets, `if` and `.` are nested more than {MAX_POLICY_NESTING} deep here"
                ),
                "take brackets away that change nothing, write `if` as && and ||, or split the policy",
            )
        })
    }

    fn check_terms(&self) -> Option<Complaint> {
        let within = self.groups.last().map_or(0, |group| group.within);
        let terms = within + self.groups.iter().map(|group| group.terms).sum::<usize>();
        (terms > MAX_POLICY_TERMS).then(|| {
            (
                format!("a chain of operators has more than {MAX_POLICY_TERMS} terms here"),
                "write a set, [\"…\", \"…\"].contains(…), or split the policy into several",
            )
        })
    }
}

/// The tokens of a text, as far as they matter here.
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

    /// The end of the text literal that begins at `at`.
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

    fn end_of_word(&self, at: usize) -> usize {
        let rest = self.text.as_bytes().get(at..).unwrap_or_default();
        let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_' || *byte >= 0x80;
        at + rest.iter().take_while(|byte| is_word(byte)).count()
    }
}

impl<'a> Iterator for Tokens<'a> {
    type Item = (usize, Token<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let at = self.at;
            let byte = self.byte(at)?;
            let next = self.byte(at + 1);
            let (length, token) = match (byte, next) {
                (b'/', Some(b'/')) => {
                    let rest = self.text.as_bytes().get(at..).unwrap_or_default();
                    self.at += rest.iter().take_while(|byte| **byte != b'\n').count();
                    continue;
                }
                (b'"', _) => (self.end_of_text(at) - at, Token::Text),
                (b'(' | b'[' | b'{', _) => (1, Token::Open),
                (b')' | b']' | b'}', _) => (1, Token::Close),
                (b',', _) => (1, Token::Comma),
                (b';', _) => (1, Token::Semicolon),
                (b'.', _) => (1, Token::Dot),
                (b'&', Some(b'&')) | (b'|', Some(b'|')) => (2, Token::Chain),
                (b'+' | b'-' | b'*', _) => (1, Token::Chain),
                (b'=' | b'!' | b'<' | b'>', Some(b'=')) => (2, Token::Operator),
                (b'!' | b'<' | b'>' | b'=' | b':' | b'@' | b'?' | b'/' | b'%', _) => {
                    (1, Token::Operator)
                }
                (byte, _) if byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80 => {
                    let end = self.end_of_word(at);
                    let word = self.text.get(at..end).unwrap_or_default();
                    (end - at, Token::Word(word))
                }
                _ => {
                    self.at += 1;
                    continue;
                }
            };
            self.at += length;
            return Some((at, token));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> Vec<PolicyProblem> {
        check(&PolicyFile {
            name: "a.cedar".into(),
            text: text.into(),
        })
    }

    fn with(condition: &str) -> String {
        format!(
            "// a comment with ((((\n@id(\"(((\\\"((\")\npermit (principal, action, resource)\nwhen {{ {condition} }};\n"
        )
    }

    /// The condition's own braces are one level.
    const NESTED: usize = MAX_POLICY_NESTING - 1;

    fn nest(open: &str, close: &str, times: usize) -> String {
        format!("{}true{}", open.repeat(times), close.repeat(times))
    }

    #[test]
    fn what_nests_as_deep_as_may_be_is_let_through_and_one_more_is_told_with_its_line() {
        for (open, close) in [
            ("(", ")"),
            ("[", "]"),
            ("!(", ")"),
            ("{a: ", "}"),
            ("if true then ", " else false"),
            ("if ", " then true else false"),
        ] {
            let good = with(&nest(open, close, NESTED));
            assert_eq!(problems(&good), [], "{open}");
            let found = problems(&with(&nest(open, close, NESTED + 1)));
            let [problem] = &found[..] else {
                panic!("{open}: {found:?}");
            };
            assert_eq!((problem.file.as_str(), problem.line), ("a.cedar", 4));
            assert!(problem.message.contains("nested more than 128 deep"));
            assert!(!problem.remedy.is_empty());
        }
        assert_eq!(
            problems(&with(&format!("context{}", ".a".repeat(NESTED)))),
            []
        );
        let deep = problems(&with(&format!("context{}", ".a".repeat(NESTED + 1))));
        assert_eq!(deep.len(), 1);
        // One for each policy, and nothing of what is closed again.
        let twice = with(&nest("(", ")", 1_000)).repeat(2);
        assert_eq!(problems(&twice).len(), 2);
        let wide = with(&vec!["((true))"; 1_000].join(" && "));
        assert_eq!(problems(&wide), []);
    }

    #[test]
    fn a_chain_as_long_as_may_be_is_let_through_and_one_more_is_told() {
        // `when` is a term itself.
        for operator in ["||", "&&", "+", "-", "*"] {
            let chain = |terms: usize| vec!["a"; terms].join(operator);
            assert_eq!(problems(&with(&chain(MAX_POLICY_TERMS))), []);
            let found = problems(&with(&chain(MAX_POLICY_TERMS + 1)));
            assert_eq!((found.len(), found[0].line), (1, 4));
            assert!(found[0].message.contains("more than 4096 terms"));
        }
        // Chains within chains are as deep as both together.
        let half = vec!["a"; MAX_POLICY_TERMS / 2 + 1].join(" || ");
        assert_eq!(problems(&with(&format!("({half}) && b"))).len(), 0);
        assert_eq!(problems(&with(&format!("({half}) && {half}"))).len(), 1);
        assert_eq!(problems(&with(&format!("{half} && ({half})"))).len(), 1);
        // Side by side they are not: elements of a set, and policies.
        assert_eq!(
            problems(&with(&format!("[{half}, {half}, {half}]"))).len(),
            0
        );
        assert_eq!(problems(&with(&half).repeat(3)).len(), 0);
        let clauses = "when { true } ".repeat(MAX_POLICY_TERMS + 1);
        let text = format!("permit (principal, action, resource) {clauses};");
        assert_eq!(problems(&text).len(), 1);
    }

    #[test]
    fn what_is_no_policy_is_left_to_cedar() {
        for text in [
            "",
            ")))",
            "\"",
            "\"\\",
            "/",
            "// (((",
            "\u{e9}\u{e9} &",
            "a ; ) b",
        ] {
            assert_eq!(problems(text), [], "{text}");
        }
    }
}
