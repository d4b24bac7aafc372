//! The life of a credential: the terms of permits, the deadline of the task, and approvals.

use super::*;

#[test]
fn the_strictest_of_all_satisfied_permits_sets_the_life() {
    let permit = |id: &str, ttl: &str, scope: &str| {
        format!(
            "@id(\"{id}\")\n@description(\"d\")\n@max_ttl(\"{ttl}\")\npermit ({AGENT}, {scope});\n"
        )
    };
    let compiled = loaded(
        &[
            permit("wide", "600", "action in Action::\"any\", resource"),
            permit(
                "narrow",
                "60",
                "action == Action::\"orders:write\", resource",
            ),
        ]
        .concat(),
    );
    let ttl = |actions: &[&str], asked| {
        decide(&compiled, "orders-api", actions, asked)
            .verdict
            .map(|permitted| permitted.ttl_seconds)
    };
    assert_eq!(ttl(&["orders:read"], None), Ok(300));
    assert_eq!(ttl(&["orders:read"], Some(600)), Ok(600));
    assert_eq!(ttl(&["orders:read", "orders:write"], None), Ok(60));
    assert_eq!(ttl(&["orders:write"], Some(60)), Ok(60));
    for (actions, asked, max) in [
        (&["orders:read"][..], 601, 600),
        (&["orders:read", "orders:write"], 61, 60),
    ] {
        let refusal = ttl(actions, Some(asked)).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::TtlTooLong);
        assert_eq!(refusal.allowed.unwrap().max_ttl_seconds, Some(max));
    }
}

/// Regression: the refusal named one maximum, and the next request at that maximum was told a
/// smaller one.
#[test]
fn a_life_that_is_too_long_is_told_the_true_maximum_at_once() {
    let compiled = loaded(&format!(
        "@id(\"read\") @description(\"d\") @max_ttl(\"600\")
         permit ({AGENT}, action == Action::\"orders:read\", resource);"
    ));
    let resource = compiled.catalog().resource("orders-api").unwrap();
    assert_eq!(resource.max_ttl_seconds, 900);
    let told = |asked, left: Option<u64>| {
        let detail = details(json!([{"type": "api", "actions": ["orders:read"]}]));
        let ask = ask(&compiled, "orders-api", detail, Some(asked));
        let now = Timestamp::from_seconds(NOW);
        let decided = compiled.decide(&Question {
            workload: &agent(),
            roles: Some(&BTreeSet::new()),
            ask: &ask,
            revocability: REVOCABILITY,
            task: facts(),
            bounds: left.map(|left| Bounds {
                not_after: now.plus_seconds(left),
                retried: false,
            }),
            now,
        });
        let refusal = decided.verdict.unwrap_err();
        assert_eq!(refusal.code, RefusalCode::TtlTooLong, "{refusal:?}");
        (
            refusal.detail.clone(),
            refusal.allowed.unwrap().max_ttl_seconds,
        )
    };
    for asked in [601, 900, 901, 1_000, 999_999, u64::MAX] {
        let said = format!("ttl_seconds {asked} is more than the permitted 600");
        assert_eq!(told(asked, None), (said, Some(600)));
        let said = format!("ttl_seconds {asked} is more than the permitted 100");
        assert_eq!(
            told(asked, Some(100)),
            (said, Some(100)),
            "the life left by a parent counts too"
        );
    }
    assert_eq!(told(101, Some(100)).1, Some(100));
}

#[test]
fn no_credential_outlives_its_task() {
    let compiled = loaded(&format!(
        "permit ({AGENT}, action in Action::\"any\", resource);"
    ));
    let decide = |asked, left| {
        let detail = details(json!([{"type": "api", "actions": ["orders:read"]}]));
        let ask = ask(&compiled, "orders-api", detail, asked);
        let task = TaskFacts {
            deadline_seconds_left: left,
            ..facts()
        };
        decide_as(&compiled, &agent(), &[], &ask, task).verdict
    };
    assert_eq!(decide(None, 40).unwrap().ttl_seconds, 40);
    assert_eq!(decide(Some(40), 40).unwrap().ttl_seconds, 40);
    let late = decide(Some(41), 40).unwrap_err();
    assert_eq!(late.code, RefusalCode::TtlTooLong);
    assert_eq!(late.allowed.unwrap().max_ttl_seconds, Some(40));
    assert_eq!(decide(None, 0).unwrap_err().code, RefusalCode::TaskEnded);
    // A number that Cedar cannot represent is refused, not rounded.
    assert_eq!(
        decide(None, u64::MAX).unwrap_err().code,
        RefusalCode::PolicyError
    );
}

#[test]
fn one_approval_among_the_satisfied_permits_asks_for_a_person() {
    let compiled = loaded(&format!(
        "permit ({AGENT}, action in Action::\"any\", resource);
         @id(\"ask\") @description(\"d\") @approval(\"required\") @max_ttl(\"60\")
         permit ({AGENT}, action == Action::\"orders:write\", resource);"
    ));
    let decision = decide(
        &compiled,
        "orders-api",
        &["orders:read", "orders:write"],
        Some(60),
    );
    assert_eq!(decision.outcome(), Outcome::Pending);
    assert_eq!(decision.policies, ["ask", "p0"]);
    // No approval is requested for a request that is refused anyway.
    let long = refusal(decide(&compiled, "orders-api", &["orders:write"], Some(61)));
    assert_eq!(long.code, RefusalCode::TtlTooLong);
    let free = decide(&compiled, "orders-api", &["orders:read"], Some(61));
    assert_eq!(free.outcome(), Outcome::Permit);
}

#[test]
fn of_a_permit_the_first_life_that_is_too_long_is_told() {
    let (generation, compiled) = build(
        parts(&format!(
            "@id(\"short\") @description(\"d\") @max_ttl(\"600\")\n permit ({AGENT}, action in Action::\"any\", resource == Api::\"billing\");"
        )),
        &[],
    )
    .unwrap();
    let decision = decide(&compiled, "billing", &["bill:read"], None);
    assert_eq!(decision.outcome(), Outcome::Permit);
    let why = compiled
        .explain(&decision.input, &decision, &generation.policies)
        .unwrap();
    let lives: Vec<&str> = why
        .changes
        .iter()
        .filter(|change| change.fact == "ttl_seconds")
        .map(|change| change.to.as_str())
        .collect();
    assert!(lives.contains(&"601"), "{lives:?}");
}

/// Regression: policy was evaluated for the default life of 300 s, and a life of 60 s was granted.
#[test]
fn a_life_that_is_cut_short_is_asked_about_once_more() {
    let compiled = loaded(&format!(
        "@id(\"short\") @description(\"d\") @max_ttl(\"60\")
         permit ({AGENT}, action in Action::\"any\", resource == Api::\"billing\");
         @id(\"long\") @description(\"d\")
         forbid (principal, action, resource == Api::\"billing\")
         when {{ context has ttl_seconds && context.ttl_seconds < 100 }};"
    ));
    for ttl_seconds in [None, Some(60), Some(100)] {
        let decision = decide(&compiled, "billing", &["bill:read"], ttl_seconds);
        assert_eq!(decision.outcome(), Outcome::Deny, "{ttl_seconds:?}");
        let again = compiled.redecide(&decision.input).unwrap();
        assert_eq!(again.verdict, decision.verdict);
    }
    let without = decide(&compiled, "billing", &["bill:read"], None);
    assert_eq!(without.policies, ["long"]);
    let compiled = loaded(&format!(
        "@id(\"short\") @description(\"d\") @max_ttl(\"60\")
         permit ({AGENT}, action in Action::\"any\", resource == Api::\"billing\");
         @id(\"long\") @description(\"d\")
         forbid (principal, action, resource == Api::\"billing\")
         when {{ context has ttl_seconds && context.ttl_seconds < 60 }};"
    ));
    let decision = decide(&compiled, "billing", &["bill:read"], None);
    assert_eq!(decision.verdict.unwrap().ttl_seconds, 60);
}
