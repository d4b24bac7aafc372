//! Small but deep policies: they load and decide on any thread, or they are refused with their
//! line.

use super::*;
use crate::domain::limits::MAX_POLICY_TERMS;

/// Conditions with `size` terms or levels. Each holds for a request of `agent` for `billing`, and
/// each comes with a mistake for its deepest position.
fn shapes(size: usize) -> Vec<(&'static str, String, String)> {
    let chain =
        |term: &dyn Fn(usize) -> String, op: &str| (0..size).map(term).collect::<Vec<_>>().join(op);
    let nest = |open: &str, inner: &str, close: &str| {
        format!("{}{inner}{}", open.repeat(size), close.repeat(size))
    };
    let (good, bad) = ("context.task.depth == 1", "context.task.depth == \"1\"");
    let mut all = Vec::new();
    for op in ["||", "&&"] {
        let other = |n: usize| match op {
            "||" => format!("context.task.depth == {}", n + 1_000),
            _ => format!("context.task.depth != {}", n + 1_000),
        };
        let with = |inner: &str| format!("{inner} {op} {}", chain(&other, op));
        all.push(("chain", with(good), with(bad)));
        let place = |n: usize| match op {
            "||" => format!("context.location like \"https://nowhere/{n}/*\""),
            _ => format!("context.location != \"https://nowhere/{n}\""),
        };
        let with = |inner: &str| format!("{inner} {op} {}", chain(&place, op));
        let somewhere = "context.location like \"https://billing*\"";
        all.push(("places", with(somewhere), with("context.location like 5")));
    }
    for (name, open, close) in [
        ("brackets", "(", ")"),
        ("negations", "!!(", ")"),
        ("then", "if context.ttl_seconds > 0 then ", " else false"),
        ("else", "if context.ttl_seconds < 0 then false else ", ""),
        ("conditions", "if (", ") then true else false"),
        ("sets", "[true].contains(", ")"),
        ("records", "{a: ", "}.a"),
    ] {
        all.push((name, nest(open, good, close), nest(open, bad, close)));
    }
    let clauses = |inner: &str| {
        let more = " }\nwhen { context.task.depth < 7".repeat(size.saturating_sub(1));
        format!("{inner}{more}")
    };
    all.push(("clauses", clauses(good), clauses(bad)));
    all
}

fn permit(condition: &str) -> String {
    format!(
        "\npermit ({AGENT}, action in Action::\"any\", resource == Api::\"billing\")\nwhen {{ {condition} }};"
    )
}

fn decides(compiled: &CompiledGeneration) -> Outcome {
    decide(compiled, "billing", &["bill:read"], None).outcome()
}

/// Runs `work` on a thread with little stack.
fn on_a_small_stack<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(384 << 10);
        thread.spawn_scoped(scope, work).unwrap().join().unwrap()
    })
}

#[test]
fn a_deep_policy_aborted_the_process_or_failed_where_it_was_evaluated() {
    for size in [35, 61] {
        for (shape, good, _) in shapes(size) {
            let loaded = on_a_small_stack(|| {
                let compiled = load(&permit(&good));
                compiled.map(|compiled| decides(&compiled))
            });
            match loaded {
                Ok(outcome) => assert_eq!(outcome, Outcome::Permit, "{shape} of {size}"),
                Err(problems) => panic!("{shape} of {size}: {problems:?}"),
            }
        }
    }
    for size in [250, MAX_POLICY_TERMS / 2] {
        for (shape, good, _) in shapes(size) {
            let problems = on_a_small_stack(|| {
                let compiled = load(&permit(&good));
                compiled.map(|compiled| decides(&compiled))
            });
            let is_chain = ["chain", "places", "clauses"].contains(&shape);
            match problems {
                Ok(outcome) => {
                    assert!(is_chain, "{shape} of {size}");
                    assert_eq!(outcome, Outcome::Permit, "{shape} of {size}");
                }
                Err(problems) => {
                    assert!(!is_chain, "{shape} of {size}: {problems:?}");
                    let problem = &problems[0];
                    assert_eq!((problem.file.as_str(), problem.line), ("test.cedar", 4));
                    assert!(problem.message.contains("nested more than"), "{problem}");
                }
            }
        }
    }
}

#[test]
fn a_chain_of_five_thousand_terms_is_refused_with_its_line() {
    for (shape, good, _) in shapes(5_000) {
        if shape == "chain" || shape == "places" || shape == "clauses" {
            let problems = load(&permit(&good)).unwrap_err();
            assert_eq!(problems.len(), 1, "{shape}");
            let line = if shape == "clauses" { 4 + 4_096 } else { 4 };
            assert_eq!(problems[0].line, line, "{shape}");
            assert!(problems[0].message.contains("more than 4096 terms"));
        }
    }
}

/// Cedar's validator stops without a finding if a policy is too deep for its stack.
#[test]
fn a_mistake_in_the_deepest_place_is_found() {
    for size in [35, 1_000] {
        for (shape, _, bad) in shapes(size) {
            let Err(problems) = load(&permit(&bad)) else {
                panic!("{shape} of {size} loaded");
            };
            assert_eq!(problems[0].file, "test.cedar", "{shape}: {problems:?}");
            assert!(problems[0].line >= 4, "{shape}: {problems:?}");
        }
    }
}

#[test]
fn negations_and_conditions_within_each_other_have_a_limit_of_their_own() {
    // Few brackets, each with parts that take several levels in the evaluation.
    let nest = |times: usize| {
        let open = "!!!!(context.task.depth > 0 && ".repeat(times);
        format!("{open}true{}", ")".repeat(times))
    };
    let compiled = loaded(&permit(&nest(30)));
    assert_eq!(on_a_small_stack(|| decides(&compiled)), Outcome::Permit);
    let problems = load(&permit(&nest(50))).unwrap_err();
    assert!(problems[0].message.contains("levels deep"), "{problems:?}");
    assert_eq!(problems[0].line, 1);
}

#[test]
fn a_deep_policy_is_explained_and_read_again_on_any_thread() {
    let (_, good, _) = shapes(2_000).swap_remove(0);
    let refusing = permit(&good.replacen("== 1 ", "== 2 ", 1));
    let (generation, compiled) = build(parts(&refusing), &[]).unwrap();
    let decision = decide(&compiled, "billing", &["bill:read"], None);
    assert_eq!(decision.outcome(), Outcome::Deny);
    on_a_small_stack(|| {
        let why = compiled.explain(&decision.input, &decision, &generation.policies);
        assert_eq!(why.unwrap().refused.len(), 2);
        let again = CompiledGeneration::compile_recorded(&generation, compiled.digest()).unwrap();
        let again = again.redecide(&decision.input).unwrap();
        assert_eq!(again.verdict, decision.verdict);
        drop(compiled);
    });
}
