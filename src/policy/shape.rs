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
enum Before {
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
    before: Before,
    /// After a problem: the number of brackets that are still open. The rest of the policy is
    /// skipped.
    skipped: Option<usize>,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            groups: vec![Group::default()],
            before: Before::Other,
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
            Token::Number | Token::Text | Token::Close(_) => Before::Operand,
            Token::Word(_) if before == Before::Dot => Before::Field,
            Token::Word(word) if !is_operator(word) => Before::Operand,
            Token::Dot => Before::Dot,
            _ => Before::Other,
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
            Token::Word(word) if before != Before::Dot => match word {
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

    fn open(&mut self, closing: char, before: Before) -> Option<Complaint> {
        let group = self.group();
        group.accesses += match (before, closing) {
            (Before::Operand, ')' | ']') | (Before::Field, ']') => 1,
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
mod tests {
    use cedar_policy::{Policy, pst};
    use proptest::prelude::*;

    use super::*;
    use crate::policy::balance;
    use crate::policy::stack::with_load_stack;

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

    /// The braces of the condition are one level.
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
        // One problem for each policy, and none for brackets that are closed again.
        let twice = with(&nest("(", ")", 1_000)).repeat(2);
        assert_eq!(problems(&twice).len(), 2);
        let many = with(&nest("(", ")", 1_000)).repeat(2 * MAX_PROBLEMS);
        assert_eq!(problems(&many).len(), MAX_PROBLEMS);
        let wide = with(&vec!["((true))"; 1_000].join(" && "));
        assert_eq!(problems(&wide), []);
    }

    #[test]
    fn a_chain_as_long_as_may_be_is_let_through_and_one_more_is_told() {
        // `when` counts as a term itself.
        for operator in ["||", "&&", "+", "-", "*"] {
            let chain = |terms: usize| vec!["a"; terms].join(operator);
            assert_eq!(problems(&with(&chain(MAX_POLICY_TERMS))), []);
            let found = problems(&with(&chain(MAX_POLICY_TERMS + 1)));
            assert_eq!((found.len(), found[0].line), (1, 4));
            assert!(found[0].message.contains("more than 4096 terms"));
        }
        // The depth of nested chains is the sum of both.
        let half = vec!["a"; MAX_POLICY_TERMS / 2 + 1].join(" || ");
        assert_eq!(problems(&with(&format!("({half}) && b"))).len(), 0);
        assert_eq!(problems(&with(&format!("({half}) && {half}"))).len(), 1);
        assert_eq!(problems(&with(&format!("{half} && ({half})"))).len(), 1);
        // Sibling chains do not add up: neither elements of a set nor policies.
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
        for text in ["", "\"", "\"\\", "/", "// (((", "((", "a & b", "a ; # b"] {
            assert_eq!(problems(text), [], "{text}");
        }
    }

    /// The depth at the end of the text of a condition.
    fn depth_of(condition: &str) -> Depth {
        let mut shape = Shape::default();
        for (_, token) in Tokens::new(condition) {
            assert_eq!(shape.take(token), None, "{condition}");
        }
        assert_eq!(shape.groups.len(), 1, "{condition}");
        shape.group().depth()
    }

    #[test]
    fn accesses_by_index_and_those_after_a_bracket_were_not_counted() {
        let index = |times: usize| with(&format!("principal{} == 1", "[\"a\"]".repeat(times)));
        // The text within the last brackets is no level, but its brackets are.
        assert_eq!(problems(&index(NESTED - 1)), []);
        for times in [NESTED, 50_000] {
            let found = problems(&index(times));
            assert_eq!((found.len(), found[0].line), (1, 4), "{times}");
            assert!(found[0].message.contains("nested more than 128 deep"));
        }
        // Accesses after words that are operators elsewhere, and through calls.
        for access in [".in[\"a\"]", ".if[\"a\"]", ".contains(1)", "(1)", "[a][b]"] {
            let text = with(&format!("principal{} == 1", access.repeat(NESTED)));
            assert_eq!(problems(&text).len(), 1, "{access}");
        }
        let after = |times: usize| with(&format!("((context){}).a", ".a".repeat(times)));
        assert_eq!(problems(&after(NESTED - 3)), []);
        assert_eq!(problems(&after(NESTED - 2)).len(), 1);
        let mut condition = "principal".to_owned();
        for accesses in (1..=125).rev() {
            condition = format!("({condition}){}", ".a".repeat(accesses));
        }
        assert_eq!(problems(&with(&condition)).len(), 1);
        // `if`s in brackets, with accesses after them.
        let ifs = "if true then ".repeat(100) + "a" + &" else a".repeat(100);
        assert_eq!(problems(&with(&format!("({ifs}).a"))), []);
        let text = with(&format!("({ifs}){}", ".a".repeat(30)));
        assert_eq!(problems(&text).len(), 1);
        // A set as the operand of a comparison is no access.
        let sets = vec!["a in [b] || [c] == [d] && !(e)"; 200].join(" || ");
        assert_eq!(problems(&with(&sets)), []);
    }

    #[test]
    fn what_ends_a_comment_for_cedar_did_not_for_us() {
        let deep = nest("(", ")", 20_000);
        let found = problems(&with(&format!("true // c\r && {deep}")));
        let [problem] = &found[..] else {
            panic!("{found:?}");
        };
        assert_eq!((problem.line, problem.column), (4, 17));
        assert!(problem.message.contains("carriage return"), "{problem}");
        assert!(!problem.remedy.is_empty());
        for bad in ["\r", "true\r", "// c\r\r\n", "\"a\rb\" == \"\""] {
            assert_eq!(problems(&with(bad)).len(), 1, "{bad:?}");
        }
        let lines = with(&format!("true // c (((\r\n && {}", nest("(", ")", 9)));
        assert_eq!(
            problems(&lines.replace('\n', "\r\n").replace("\r\r", "\r")),
            []
        );
    }

    #[test]
    fn a_space_beyond_ascii_made_words_one_that_are_two_to_cedar() {
        for space in [
            "\u{a0}", "\u{85}", "\u{2003}", "\u{2028}", "\u{feff}", "\u{e9}",
        ] {
            let open = format!("if{space}true then{space}");
            let text = with(&nest(&open, " else false", 20_000));
            let found = problems(&text);
            let [problem] = &found[..] else {
                panic!("{space:?}: {found:?}");
            };
            assert_eq!((problem.line, problem.column), (4, 10));
            let code = u32::from(space.chars().next().unwrap());
            assert!(
                problem.message.contains(&format!("U+{code:04X}")),
                "{problem}"
            );
            // Texts and comments may contain it.
            let fine = with(&format!("\"{space}\" == \"\" // {space}\n"));
            assert_eq!(problems(&fine), [], "{space:?}");
        }
        // A number ends where a word begins.
        let glued = nest("if 0then ", " else 0", 20_000);
        assert_eq!(problems(&with(&glued)).len(), 1);
    }

    #[test]
    fn brackets_that_do_not_match_are_refused() {
        for (text, at) in [("a )", 2), ("(]", 1), ("[(})]", 2), ("([{a)", 4)] {
            let found = problems(text);
            assert_eq!((found.len(), found[0].column), (1, at + 1), "{text}");
        }
        // Cedar's parser skips a bracket of the wrong kind and continues within the first.
        let text = with(&"[a), ".repeat(100_000));
        assert_eq!(problems(&text).len(), 1);
        // The check continues with the next policy.
        let next = format!("permit (]; {}", with("a )"));
        assert_eq!(problems(&next).len(), 2);
    }

    /// An enclosing expression: the text around its operand, and the depth that it adds.
    #[derive(Clone, Debug)]
    enum Around {
        Brackets,
        Set,
        Record,
        Field(usize),
        Index(usize),
        Call,
        If(u8),
        Chain(&'static str, usize, bool),
        Not,
    }

    /// Puts an operand with its depth into an enclosing expression.
    fn put(around: &Around, (inner, depth): (String, Depth)) -> (String, Depth) {
        let (text, nesting, terms) = match around {
            Around::Brackets => (format!("( {inner} )"), 1, 0),
            Around::Set => (format!("[ {inner} , true ]"), 1, 0),
            Around::Record => (format!("{{ a : {inner} }}"), 1, 0),
            Around::Field(times) => (format!("{inner} {}", ". a ".repeat(*times)), *times, 0),
            Around::Index(times) => (
                format!("{inner} {}", "[ \"a(\" ] ".repeat(*times)),
                *times,
                0,
            ),
            Around::Call => (format!("[ true ] . contains ( {inner} )"), 2, 0),
            Around::If(0) => (format!("( if {inner} then true else true )"), 2, 0),
            Around::If(1) => (format!("( if true then {inner} else true )"), 2, 0),
            Around::If(_) => (format!("( if true then true else {inner} )"), 2, 0),
            Around::Chain(op, times, first) => {
                let others = vec!["true"; *times].join(&format!(" {op} "));
                let text = match first {
                    true => format!("( {inner} {op} {others} )"),
                    false => format!("( {others} {op} {inner} )"),
                };
                (text, 1, *times)
            }
            Around::Not => (format!("( ! {inner} )"), 1, 0),
        };
        let depth = Depth {
            nesting: depth.nesting + nesting,
            terms: depth.terms + terms,
        };
        (text, depth)
    }

    fn around() -> impl Strategy<Value = Around> {
        let op = prop::sample::select(vec!["&&", "||"]);
        prop_oneof![
            Just(Around::Brackets),
            Just(Around::Set),
            Just(Around::Record),
            (1_usize..9).prop_map(Around::Field),
            (1_usize..9).prop_map(Around::Index),
            Just(Around::Call),
            (0_u8..3).prop_map(Around::If),
            (op, 1_usize..9, any::<bool>())
                .prop_map(|(op, times, first)| Around::Chain(op, times, first)),
            Just(Around::Not),
        ]
    }

    fn parsed(text: &str) -> Option<pst::Policy> {
        let read = || Policy::parse(None, text).ok()?.to_pst().ok();
        with_load_stack(read).unwrap()
    }

    fn levels(expr: &pst::Expr) -> usize {
        let parts = balance::parts(expr).into_iter();
        1 + parts.map(|part| levels(part)).max().unwrap_or(0)
    }

    proptest! {
        #[test]
        fn an_expression_is_never_deeper_than_it_is_told_to_be(
            arounds in prop::collection::vec(around(), 0..12),
            spaces in prop::collection::vec(
                prop::sample::select(vec![" ", "\n", "\r\n", "\t", "\u{b}", "// ((\u{a0}\n", "//\" [\r\n"]),
                1..9,
            ),
        ) {
            let start = ("context".to_owned(), Depth::default());
            let (text, depth) = arounds.iter().fold(start, |inner, own| put(own, inner));
            let mut spaces = spaces.into_iter().cycle();
            let spaced: String = text
                .split(' ')
                .flat_map(|word| [word, spaces.next().unwrap_or(" ")])
                .collect();
            let told = depth_of(&spaced);
            prop_assert!(told.nesting >= depth.nesting && told.terms >= depth.terms, "{}: {:?}", spaced, told);
            // The reported depth exceeds the real one only slightly.
            prop_assert!(told.nesting <= depth.nesting + 2 && told.terms <= depth.terms + 1, "{:?}", told);
            let policy = parsed(&format!("permit (principal, action, resource) when {{ {spaced} }};"));
            let policy = policy.unwrap();
            let [pst::Clause::When(condition)] = &policy.body().clauses()[..] else {
                panic!("{spaced}");
            };
            let levels = levels(condition);
            prop_assert!(levels <= told.nesting + told.terms + 2, "{}: {} {:?}", spaced, levels, told);
        }

        #[test]
        fn cedar_reads_the_same_tokens(
            parts in prop::collection::vec(
                prop::sample::select(vec![
                    " ", "\n", "\r\n", "\r", "\t", "\u{b}", "\u{c}", "\u{a0}", "\u{85}", "//", "/", "\"", "\\\"",
                    "\"// (\"", "true", "&&", "||", "==", "1", "a", "_", "if", "then", "else", "(", ")", "[", "]",
                    "context", ".", "!", "-", "<", "=", "in", "has", "like", "\u{e9}", "::",
                ]),
                0..12,
            ),
            prefix in prop::sample::select(vec!["", "true &&", "true//", "\"a\" ==", "context has"]),
        ) {
            let text = format!(
                "permit (principal, action, resource) when {{ {prefix} {} \n true }};",
                parts.concat()
            );
            if !problems(&text).is_empty() {
                return Ok(());
            }
            let mut tokens = Tokens::new(&text);
            let mut alone = String::new();
            while let Some((at, _)) = tokens.next() {
                alone += &text[at..tokens.at];
                alone.push(' ');
            }
            // The policy, rebuilt from our tokens, is the same policy for Cedar.
            if let Some(policy) = parsed(&text) {
                prop_assert_eq!(Some(policy), parsed(&alone), "{:?} is not {}", text, alone);
            }
        }
    }
}
