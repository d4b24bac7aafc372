//! Policies that only observe: attempts to make one weaken, widen or outlive a decision.

use super::properties::cases;
use super::*;
use crate::domain::decision::{Observed, ObservedEffect};
use crate::domain::kind::ResourceKind;

/// A day after [`NOW`], and a day before it.
const AHEAD: &str = "2026-11-30";
const PAST: &str = "2026-11-17";
/// The day of [`NOW`], as the last day of observing.
const TODAY: &str = "2026-11-18";
const FORBID: &str =
    "forbid (AGENT, action, resource == Api::\"billing\") when { context.ttl_seconds < 200 };";

fn base() -> String {
    format!(
        "permit ({AGENT}, action in [Action::\"bill:read\", Action::\"orders:read\"], resource == Api::\"billing\");"
    )
}

/// A policy about `billing` that observes until the end of `day`.
fn observing(id: &str, day: &str, more: &str, effect: &str, condition: &str) -> String {
    format!(
        "\n@id(\"{id}\") @description(\"d\") @mode(\"observe\") @enforce_after(\"{day}\") {more}\n\
         {effect} ({AGENT}, action == Action::\"bill:read\", resource == Api::\"billing\"){condition};"
    )
}

fn forbid(day: &str) -> String {
    observing("freeze", day, "", "forbid", "")
}

fn observed(decision: &Decision) -> &Observed {
    decision.observed.as_deref().unwrap()
}

fn names(observed: &Observed) -> Vec<(&str, ObservedEffect)> {
    let policies = observed.policies.iter();
    policies
        .map(|own| (own.policy.as_str(), own.effect))
        .collect()
}

#[test]
fn an_observed_forbid_denies_nothing_and_is_told() {
    let compiled = loaded(&(base() + &forbid(AHEAD)));
    let decision = decide(&compiled, "billing", &["bill:read"], None);
    assert_eq!(decision.outcome(), Outcome::Permit);
    assert_eq!(decision.policies, ["p0"]);
    let told = observed(&decision);
    assert_eq!(names(told), [("freeze", ObservedEffect::Forbid)]);
    assert_eq!(
        told.policies[0].enforced_from.to_string(),
        "2026-12-01T00:00:00Z"
    );
    assert_eq!(
        (told.outcome_if_enforced, told.refusal, told.ttl_seconds),
        (Outcome::Deny, Some(RefusalCode::NotPermitted), None)
    );
    // A request that the policy does not apply to has no record of it.
    let other = decide(&compiled, "billing", &["orders:read"], None);
    assert_eq!((other.outcome(), other.observed), (Outcome::Permit, None));
}

#[test]
fn the_clock_of_the_request_decides_whether_the_day_is_over() {
    let compiled = loaded(&(base() + &forbid(TODAY)));
    let ask = ask(
        &compiled,
        "billing",
        details(json!([{"type": "api", "actions": ["bill:read"]}])),
        None,
    );
    let at = |micros: i64| {
        let end = "2026-11-19T00:00:00Z".parse::<Timestamp>().unwrap();
        compiled.decide(&Question {
            workload: &agent(),
            roles: Some(&BTreeSet::new()),
            ask: &ask,
            revocability: REVOCABILITY,
            task: facts(),
            bounds: None,
            now: Timestamp::from_micros(end.micros() + micros),
        })
    };
    let last = at(-1);
    assert_eq!(last.outcome(), Outcome::Permit);
    assert!(last.observed.is_some());
    for micros in [0, 1, 86_400_000_000] {
        let enforced = at(micros);
        assert_eq!(enforced.outcome(), Outcome::Deny);
        assert_eq!(enforced.policies, ["freeze"]);
        assert_eq!(enforced.observed, None);
    }
    // A decision made again uses the recorded instant.
    let again = compiled.redecide(&last.input).unwrap();
    assert_eq!(
        (again.outcome(), again.observed),
        (Outcome::Permit, last.observed)
    );
    let input = Input::read(&last.input).unwrap();
    let enforced = compiled.decide_at(&input, Timestamp::MAX);
    assert_eq!(enforced.outcome(), Outcome::Deny);
}

#[test]
fn a_result_is_reused_until_the_day_of_a_policy_is_over_and_after_it() {
    let compiled = loaded(&(base() + &forbid(TODAY)));
    let ask = ask(
        &compiled,
        "billing",
        details(json!([{"type": "api", "actions": ["bill:read"]}])),
        None,
    );
    let end = "2026-11-19T00:00:00Z".parse::<Timestamp>().unwrap();
    for (micros, outcome, reused) in [
        (-2, Outcome::Permit, false),
        (-1, Outcome::Permit, true),
        (0, Outcome::Deny, false),
        (1, Outcome::Deny, true),
        (-3, Outcome::Permit, true),
    ] {
        let decision = compiled.decide(&Question {
            workload: &agent(),
            roles: Some(&BTreeSet::new()),
            ask: &ask,
            revocability: REVOCABILITY,
            task: facts(),
            bounds: None,
            now: Timestamp::from_micros(end.micros() + micros),
        });
        assert_eq!((decision.outcome(), decision.reused), (outcome, reused));
        assert_eq!(decision.observed.is_some(), outcome == Outcome::Permit);
        let again = compiled.redecide(&decision.input).unwrap();
        assert_eq!(again.verdict, decision.verdict);
        assert_eq!(again.observed, decision.observed);
    }
}

#[test]
fn other_facts_and_policies_that_fail_are_evaluated_each_time() {
    let compiled = loaded(&format!(
        "permit ({AGENT}, action in Action::\"any\", resource == Api::\"billing\");
         forbid (principal, action == Action::\"bill:read\", resource == Api::\"billing\")
         when {{ context.ttl_seconds * 9223372036854775807 > 0 && principal in Role::\"r1\" }};"
    ));
    let detail = details(json!([{"type": "api", "actions": ["orders:read"]}]));
    let ask_read = ask(&compiled, "billing", detail, None);
    let decide_in = |roles: &[&str]| decide_as(&compiled, &agent(), roles, &ask_read, facts());
    assert!(!decide_in(&[]).reused);
    assert!(decide_in(&[]).reused);
    assert!(!decide_in(&["r1"]).reused);
    assert!(!decide(&compiled, "billing", &["orders:read"], Some(60)).reused);
    for _ in 0..2 {
        let decision = decide(&compiled, "billing", &["bill:read"], None);
        assert_eq!(
            (decision.outcome(), decision.reused),
            (Outcome::Indeterminate, false)
        );
    }
}

#[test]
fn a_day_in_the_past_enforces() {
    let compiled = loaded(&(base() + &forbid(PAST)));
    let decision = decide(&compiled, "billing", &["bill:read"], None);
    assert_eq!(
        (decision.outcome(), decision.observed),
        (Outcome::Deny, None)
    );
    assert_eq!(compiled.observing(Timestamp::from_seconds(NOW)).count(), 0);
}

#[test]
fn an_observed_permit_grants_nothing_until_its_day_is_over() {
    let permit = |day| observing("more", day, "", "permit", "");
    let compiled = loaded(&permit(AHEAD));
    let decision = decide(&compiled, "billing", &["bill:read"], None);
    assert_eq!(decision.outcome(), Outcome::Deny);
    let told = observed(&decision);
    assert_eq!(names(told), [("more", ObservedEffect::Permit)]);
    assert_eq!(
        (told.outcome_if_enforced, told.ttl_seconds),
        (Outcome::Permit, Some(300))
    );
    // An offer does not rely on it either.
    assert_eq!(refusal(decision).allowed, None);
    let later = loaded(&permit(PAST));
    let decision = decide(&later, "billing", &["bill:read"], None);
    assert_eq!(decision.outcome(), Outcome::Permit);
}

#[test]
fn what_observes_takes_nothing_from_another_forbid_and_adds_nothing_to_a_life() {
    // An enforced forbid applies regardless of observing policies.
    let enforced =
        format!("forbid ({AGENT}, action == Action::\"bill:read\", resource == Api::\"billing\");");
    for beside in [
        forbid(AHEAD),
        observing("more", AHEAD, "", "permit", ""),
        observing("more", AHEAD, "@max_ttl(\"900\")", "permit", ""),
    ] {
        let compiled = loaded(&(base() + &enforced + &beside));
        let decision = decide(&compiled, "billing", &["bill:read"], None);
        assert_eq!(
            (decision.outcome(), &decision.policies),
            (Outcome::Deny, &vec!["p1".to_owned()])
        );
        assert_eq!(observed(&decision).outcome_if_enforced, Outcome::Deny);
    }
    // An observing permit does not shorten the life; from its day on, the strictest term does.
    let short = base().replace(
        "permit",
        "@id(\"p\") @description(\"d\") @max_ttl(\"120\") permit",
    );
    for (more, would_be) in [("@max_ttl(\"900\")", 120), ("@max_ttl(\"60\")", 60)] {
        let text = short.clone() + &observing("life", AHEAD, more, "permit", "");
        let compiled = loaded(&text);
        let decision = decide(&compiled, "billing", &["bill:read"], Some(120));
        assert_eq!(decision.verdict.as_ref().unwrap().ttl_seconds, 120);
        let told = observed(&decision);
        match would_be {
            120 => assert_eq!(
                (told.outcome_if_enforced, told.ttl_seconds),
                (Outcome::Permit, Some(120))
            ),
            _ => assert_eq!(told.refusal, Some(RefusalCode::TtlTooLong)),
        }
        let asked_more = decide(&compiled, "billing", &["bill:read"], Some(121));
        let refused = refusal(asked_more);
        assert_eq!(refused.code, RefusalCode::TtlTooLong);
        assert_eq!(refused.allowed.unwrap().max_ttl_seconds, Some(120));
    }
    // An observing @approval requests no approval, and does not lift an enforced one.
    let approval = observing("ask", AHEAD, "@approval(\"required\")", "permit", "");
    let decision = decide(
        &loaded(&(base() + &approval)),
        "billing",
        &["bill:read"],
        None,
    );
    assert_eq!(decision.outcome(), Outcome::Permit);
    assert_eq!(observed(&decision).outcome_if_enforced, Outcome::Pending);
}

#[test]
fn an_observed_policy_that_fails_is_told_and_makes_nothing_indeterminate() {
    let overflow = " when { context.ttl_seconds + 9223372036854775807 > 0 }";
    let compiled = loaded(&(base() + &observing("bad", AHEAD, "", "forbid", overflow)));
    let decision = decide(&compiled, "billing", &["bill:read"], None);
    assert_eq!(decision.outcome(), Outcome::Permit);
    let told = observed(&decision);
    assert_eq!(names(told), [("bad", ObservedEffect::Error)]);
    assert_eq!(told.outcome_if_enforced, Outcome::Indeterminate);
    let compiled = loaded(&(base() + &observing("bad", PAST, "", "forbid", overflow)));
    let decision = decide(&compiled, "billing", &["bill:read"], None);
    assert_eq!(decision.outcome(), Outcome::Indeterminate);
}

#[test]
fn only_what_is_registered_as_of_low_risk_is_observed() {
    let with = |scope: &str| {
        format!(
            "@id(\"x\") @description(\"d\") @mode(\"observe\") @enforce_after(\"{AHEAD}\") forbid (principal, {scope});"
        )
    };
    for (scope, says) in [
        // The default risk is not low.
        (
            "action, resource == Api::\"orders-api\"",
            "`orders-api` is not registered with risk = \"low\"",
        ),
        ("action, resource", "does not name one resource"),
        ("action, resource is Api", "does not name one resource"),
        (
            "action, resource in Api::\"billing\"",
            "does not name one resource",
        ),
        (
            "action == Action::\"openTask\", resource == TaskType::\"nightly-report\"",
            "not about a registered resource",
        ),
        (
            "action == Action::\"readLedger\", resource == Broker::\"taskpass\"",
            "not about a registered resource",
        ),
    ] {
        let text = refused(&with(scope));
        assert!(text.contains(says), "{scope}: {text}");
    }
    loaded(&with("action, resource == Api::\"billing\""));

    // A task type with the name of a low-risk resource is not a resource.
    let mut named_alike = parts(&with(
        "action == Action::\"openTask\", resource == TaskType::\"billing\"",
    ));
    let task_type =
        json!({"name": "billing", "max_deadline_seconds": 60, "resources": ["billing"]});
    named_alike
        .task_types
        .push(serde_json::from_value(task_type).unwrap());
    let problems = build(named_alike, &[]).unwrap_err();
    assert!(
        problems[0]
            .message
            .contains("not about a registered resource"),
        "{}",
        problems[0]
    );

    // A low-risk resource whose credentials are valid at another resource that is not low-risk.
    let mut shared = parts(&with("action, resource == Api::\"billing\""));
    let audience = shared.resources[1].audience().to_owned();
    let ResourceKind::Jwt(api) = &mut shared.resources[0].kind else {
        panic!("not an API");
    };
    api.audience = audience;
    let problems = build(shared, &[]).unwrap_err();
    assert!(
        problems[0]
            .message
            .contains("also valid at resource `orders-api`"),
        "{}",
        problems[0]
    );

    // At most as many as one leaf can name.
    let many = |count: usize| -> String {
        let all = (0..count).map(|n| observing(&format!("o{n}"), AHEAD, "", "forbid", ""));
        all.collect()
    };
    loaded(&many(16));
    assert!(refused(&many(17)).contains("more than 16"));
}

#[test]
fn a_generation_in_which_a_resource_is_no_longer_of_low_risk_does_not_load() {
    let (generation, _) = build(parts(&(base() + &forbid(AHEAD))), &[]).unwrap();
    let mut changed = generation.clone();
    for resource in &mut changed.resources {
        resource.risk = crate::domain::catalog::Risk::Normal;
    }
    assert!(CompiledGeneration::compile(&generation, &[]).is_ok());
    assert!(CompiledGeneration::compile(&changed, &[]).is_err());
}

fn any_observing(id: usize) -> impl Strategy<Value = String> {
    let effect = prop_oneof![Just("permit"), Just("forbid")];
    let more = prop_oneof![
        Just(""),
        Just("@max_ttl(\"60\")"),
        Just("@max_ttl(\"900\")")
    ];
    let condition = prop_oneof![
        Just(""),
        Just(" when { context.ttl_seconds > 100 }"),
        Just(" when { context.ttl_seconds + 9223372036854775807 > 0 }"),
    ];
    (effect, more, condition).prop_map(move |(effect, more, condition)| {
        let more = if effect == "forbid" { "" } else { more };
        observing(&format!("o{id}"), AHEAD, more, effect, condition)
    })
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn whatever_observes_the_verdict_is_that_of_the_others_alone(
        permit: bool,
        enforced_forbid: bool,
        observing in (any_observing(0), any_observing(1)),
        ttl in prop::option::of(1_u64..900),
    ) {
        let mut text = String::new();
        if permit {
            text += &base();
        }
        if enforced_forbid {
            text += &FORBID.replace("AGENT", AGENT);
        }
        let alone = loaded(&text);
        let together = loaded(&(text + &observing.0 + &observing.1));
        for action in ["bill:read", "orders:read"] {
            let before = decide(&alone, "billing", &[action], ttl);
            let beside = decide(&together, "billing", &[action], ttl);
            prop_assert_eq!(&before.verdict, &beside.verdict);
            prop_assert_eq!(&before.policies, &beside.policies);
            let again = together.redecide(&beside.input).unwrap();
            prop_assert_eq!(&again.verdict, &beside.verdict);
            prop_assert_eq!(again.observed, beside.observed);
        }
    }
}
