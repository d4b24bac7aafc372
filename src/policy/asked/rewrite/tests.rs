use super::*;
use crate::policy::stack::with_load_stack;

fn rewritten(policy: &str) -> Result<(String, Questions), Unaskable> {
    let read = || {
        let policy = Policy::parse(None, policy).unwrap();
        let mut questions = Questions::default();
        let rule = rewrite(&policy, false, &mut questions)?;
        let text = rule.policy.to_cedar().unwrap();
        Ok((
            text.split_whitespace().collect::<Vec<_>>().join(" "),
            questions,
        ))
    };
    with_load_stack(read).unwrap()
}

fn condition(condition: &str) -> String {
    let policy = format!("permit (principal, action, resource) when {{ {condition} }};");
    let (text, _) = rewritten(&policy).unwrap();
    let (_, rest) = text.split_once('{').unwrap();
    rest.trim_end_matches("};").trim().to_owned()
}

const DEEP: &str = "context.task.depth == 1";

#[test]
fn what_speaks_of_what_is_asked_for_alone_becomes_one_question() {
    for alone in [
        "context.location == \"a\"",
        "\"a\" != context.location",
        "context has region",
        "[\"a\", \"b\"].contains(context.action)",
        "context.location like \"a*\" && !(context.location == \"ab\" || context.location like \"a*c\")",
        "if context.location == \"a\" then context has region else !(context has action)",
    ] {
        assert_eq!(condition(alone), "context.asked.contains(0)", "{alone}");
    }
    assert_eq!(
        condition(&format!(
            "{DEEP} && context.location == \"a\" && (context.location == \"b\" || {DEEP})"
        )),
        "context.asked.contains(1) && (context.task.depth == 1) && \
             (context.asked.contains(0) || (context.task.depth == 1))"
    );
    assert_eq!(condition(DEEP), DEEP);
}

#[test]
fn a_list_of_places_is_one_question_whatever_its_length() {
    let list: Vec<String> = (0..500)
        .map(|n| format!("context.location == \"a{n}\" || context.location like \"a{n}/*\""))
        .collect();
    let policy = format!(
        "permit (principal, action, resource) when {{ {} }};",
        list.join(" || ")
    );
    let (text, questions) = rewritten(&policy).unwrap();
    assert!(text.contains("context.asked.contains(0)") && text.len() < 100);
    let Some(ExtentQuestion::Text { patterns, .. }) = questions.get(0) else {
        panic!("{questions:?}");
    };
    assert_eq!(patterns.exact().len(), 500);
    assert_eq!(questions.get(1), None);
}

#[test]
fn what_cannot_be_asked_about_many_values_is_told_with_the_form_that_can() {
    for (condition, says) in [
        (
            "context.location == principal.identity",
            "uses context.location",
        ),
        (
            "context.location == context.action",
            "uses context.location",
        ),
        (
            "[context.location].contains(\"a\")",
            "uses context.location",
        ),
        (
            "[\"a\"].containsAny([context.location])",
            "uses context.location",
        ),
        (
            "[\"a\", principal.identity].contains(context.location)",
            "uses context.location",
        ),
        (
            "(context.location == \"a\") == true",
            "uses context.location",
        ),
        ("{a: context.region}.a == \"a\"", "uses context.region"),
        ("context.action < 1", "uses context.action"),
        ("context has location.a", "uses context.location"),
        (
            "(if context.location == \"a\" then 1 else 2) < context.ttl_seconds",
            "uses context.location",
        ),
        ("context == {}", "`context` as a whole"),
        ("{a: context}.a.task.depth == 1", "`context` as a whole"),
        (
            "(if true then context else context).location == \"a\"",
            "`context` as a whole",
        ),
        (
            "context.location == \"a\" && context.ttl_seconds + 1 > 3",
            "with a computation",
        ),
        (
            "context.location == \"a\" && -context.ttl_seconds > 3",
            "with a computation",
        ),
        (
            "context.location == \"a\" && decimal(\"1.0\").lessThan(decimal(\"1.1\"))",
            "with a computation",
        ),
        (
            "context.location == \"a\" && E::\"e\".a == 1",
            "with a computation",
        ),
    ] {
        for word in ["when", "unless"] {
            for effect in ["permit", "forbid"] {
                let policy =
                    format!("{effect} (principal, action, resource) {word} {{ {condition} }};");
                let refused = rewritten(&policy).unwrap_err();
                assert!(refused.message.contains(says), "{condition}: {refused:?}");
                assert!(!refused.remedy.is_empty());
            }
        }
    }
    let stars = "*a".repeat(MAX_WILDCARDS + 1);
    let policy = format!(
        "permit (principal, action, resource) when {{ context.location like \"{stars}\" }};"
    );
    assert!(
        rewritten(&policy)
            .unwrap_err()
            .message
            .contains("wildcards")
    );
    // Each `if` in the condition of another `if` doubles the size.
    let mut condition = "context.location == \"a\"".to_owned();
    for _ in 0..40 {
        condition = format!("if {condition} then {DEEP} else true");
    }
    let policy = format!("permit (principal, action, resource) when {{ {condition} }};");
    assert!(
        rewritten(&policy)
            .unwrap_err()
            .message
            .contains("too large")
    );
}
