//! Policies that read `context.revocability`: the effect that a revocation of the credential would
//! have.

use super::*;

fn permit() -> String {
    format!("permit ({AGENT}, action in Action::\"any\", resource);")
}

/// The decision about `agent` asking for one action of `billing`, whose minter states
/// `revocability`.
fn judge(compiled: &CompiledGeneration, revocability: Revocability) -> Decision {
    let detail = details(json!([{"type": "api", "actions": ["bill:read"]}]));
    compiled.decide(&Question {
        workload: &agent(),
        roles: Some(&BTreeSet::new()),
        ask: &ask(compiled, "billing", detail, None),
        revocability,
        task: facts(),
        bounds: None,
        now: Timestamp::from_seconds(NOW),
    })
}

fn outcome(condition: &str, revocability: Revocability) -> Outcome {
    let policy = format!(
        "{}\nforbid (principal, action in Action::\"any\", resource) when {{ {condition} }};",
        permit()
    );
    judge(&loaded(&policy), revocability).outcome()
}

#[test]
fn a_policy_can_refuse_each_answer() {
    let kept = Revocability {
        class: RevocationClass::ExpiryOnly,
        open_sessions: OpenSessions::Kept,
        expires_by: ExpiresBy::Broker,
    };
    for (condition, of_kept, of_token) in [
        ("context.revocability.expires_by == \"broker\"", true, false),
        (
            "context.revocability.open_sessions == \"kept\"",
            true,
            false,
        ),
        ("context.revocability.class == \"expiry_only\"", true, false),
        (
            "[\"bounded\", \"expiry_only\"].contains(context.revocability.class)",
            true,
            false,
        ),
        (
            // The bound of an immediate revocation is no part of the context.
            "context.revocability has bound_seconds && context.revocability.bound_seconds > 4",
            false,
            false,
        ),
        (
            "context.revocability has bound_seconds && context.revocability.bound_seconds > 5",
            false,
            false,
        ),
        ("!(context.revocability has bound_seconds)", true, true),
    ] {
        let expected = |refused| {
            if refused {
                Outcome::Deny
            } else {
                Outcome::Permit
            }
        };
        assert_eq!(outcome(condition, kept), expected(of_kept), "{condition}");
        assert_eq!(
            outcome(condition, REVOCABILITY),
            expected(of_token),
            "{condition}"
        );
    }
    let bounded = Revocability {
        class: RevocationClass::Bounded { bound_seconds: 60 },
        ..REVOCABILITY
    };
    for (seconds, expected) in [(59, Outcome::Deny), (60, Outcome::Permit)] {
        let condition = format!(
            "context.revocability has bound_seconds && context.revocability.bound_seconds > {seconds}"
        );
        assert_eq!(outcome(&condition, bounded), expected, "{condition}");
    }
}

#[test]
fn what_was_decided_on_is_recorded_and_decides_again() {
    let compiled = loaded(&format!(
        "{}\nforbid (principal, action in Action::\"any\", resource) when {{ context.revocability.expires_by == \"broker\" }};",
        permit()
    ));
    let broker = Revocability {
        expires_by: ExpiresBy::Broker,
        ..REVOCABILITY
    };
    for (revocability, expected) in [(REVOCABILITY, Outcome::Permit), (broker, Outcome::Deny)] {
        let decision = judge(&compiled, revocability);
        assert_eq!(decision.outcome(), expected);
        let again = compiled.redecide(&decision.input).unwrap();
        assert_eq!(again.outcome(), expected);
    }
}

#[test]
fn a_bound_is_read_only_where_there_is_one() {
    let problems = refused(
        "forbid (principal, action in Action::\"any\", resource) when { context.revocability.bound_seconds > 5 };",
    );
    assert!(problems.contains("bound_seconds"), "{problems}");
}

#[test]
fn an_answer_that_no_minter_gives_does_not_load() {
    for (member, wrong, right) in [
        ("class", "never", "bounded"),
        ("open_sessions", "closed", "kept"),
        ("expires_by", "brokr", "broker"),
    ] {
        for condition in [
            format!("context.revocability.{member} == \"{wrong}\""),
            format!("[\"{right}\", \"{wrong}\"].contains(context.revocability.{member})"),
        ] {
            let policy = format!(
                "forbid (principal, action in Action::\"any\", resource) when {{ {condition} }};"
            );
            let problems = refused(&policy);
            let said = format!("`context.revocability.{member}` is never `{wrong}`");
            assert!(problems.contains(&said), "{problems}");
            loaded(&policy.replace(wrong, right));
        }
    }
}

#[test]
fn an_explanation_names_the_answer_that_would_turn_the_decision() {
    let (generation, compiled) = build(
        parts(&format!(
            "{}\nforbid (principal, action in Action::\"any\", resource) when {{ context.revocability.expires_by == \"broker\" }};",
            permit()
        )),
        &[],
    )
    .unwrap();
    let decision = judge(
        &compiled,
        Revocability {
            expires_by: ExpiresBy::Broker,
            ..REVOCABILITY
        },
    );
    let why = compiled
        .explain(&decision.input, &decision, &generation.policies)
        .unwrap();
    let fact = "context.revocability.expires_by";
    let turned: Vec<&str> = why
        .changes
        .iter()
        .filter(|change| change.fact == fact)
        .map(|change| change.to.as_str())
        .collect();
    assert_eq!(turned, ["itself", "back_end"]);
}
