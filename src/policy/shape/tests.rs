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
