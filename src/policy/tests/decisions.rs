//! Decisions, and attempts to make policy fail open.

use super::*;

#[test]
fn a_forbid_that_fails_to_evaluate_refuses_instead_of_being_skipped() {
    // It passes strict validation: types do not exclude an overflow.
    let compiled = loaded(&format!(
        "permit ({AGENT}, action in Action::\"any\", resource);
         forbid (principal, action == Action::\"orders:read\", resource)
         when {{ context.ttl_seconds * 9223372036854775807 > 0 }};"
    ));
    let decision = decide(&compiled, "orders-api", &["orders:read"], Some(60));
    assert_eq!(decision.outcome(), Outcome::Indeterminate);
    assert_eq!(decision.policies, ["p1"]);
    let refusal = refusal(decision);
    assert_eq!(refusal.code, RefusalCode::PolicyError);
    assert_eq!(refusal.allowed, None);
    assert!(!refusal.detail.contains("p1"), "{}", refusal.detail);
    // One invalid value spoils the request, not other policies.
    let decision = decide(
        &compiled,
        "orders-api",
        &["orders:read", "orders:write"],
        None,
    );
    assert_eq!(decision.outcome(), Outcome::Indeterminate);
    let decision = decide(&compiled, "orders-api", &["orders:write"], None);
    assert_eq!(decision.outcome(), Outcome::Permit);
}

#[test]
fn a_forbid_that_reads_a_missing_attribute_does_not_load_and_would_refuse() {
    let policies = format!(
        "permit ({AGENT}, action in Action::\"any\", resource);
         forbid (principal, action, resource) when {{ principal.claims.tier == \"bad\" }};"
    );
    assert!(refused(&policies).contains("tier"));
    let (mut generation, _) = build(parts("forbid (principal, action, resource);"), &[]).unwrap();
    generation.policies = parts(&policies).policies;
    let slipped_through = CompiledGeneration::unvalidated(&generation);
    let decision = decide(&slipped_through, "orders-api", &["orders:read"], None);
    assert_eq!(decision.outcome(), Outcome::Indeterminate);
    assert_eq!(decision.policies, ["p1"]);
}

#[test]
fn a_permit_that_fails_to_evaluate_refuses_even_beside_one_that_holds() {
    let compiled = loaded(&format!(
        "permit ({AGENT}, action in Action::\"any\", resource);
         permit ({AGENT}, action in Action::\"any\", resource)
         when {{ context.ttl_seconds * 9223372036854775807 > 0 }};"
    ));
    let decision = decide(&compiled, "orders-api", &["orders:read"], Some(60));
    assert_eq!(decision.outcome(), Outcome::Indeterminate);
}

#[test]
fn a_workload_without_a_declared_claim_or_with_another_type_is_refused() {
    let compiled =
        loaded("permit (principal in Role::\"r\", action in Action::\"any\", resource);");
    let detail = details(json!([{"type": "api", "actions": ["orders:read"]}]));
    let ask = ask(&compiled, "orders-api", detail, None);
    for bad in [
        workload("dev", "agent", &[]),
        workload("dev", "agent", &[("sub", ClaimValue::Long(1))]),
        workload(
            "dev",
            "agent",
            &[("sub", text("a")), ("admin", ClaimValue::Bool(true))],
        ),
        workload("unknown", "agent", &[("sub", text("a"))]),
    ] {
        let decision = decide_as(&compiled, &bad, &["r"], &ask, facts());
        assert_eq!(decision.outcome(), Outcome::Indeterminate, "{bad:?}");
    }
    let good = decide_as(&compiled, &agent(), &["r"], &ask, facts());
    assert_eq!(good.outcome(), Outcome::Permit);
}

#[test]
fn the_action_hierarchy_works_in_permits_and_in_forbids() {
    let permits = format!("permit ({AGENT}, action in Action::\"any\", resource);");
    let compiled = loaded(&permits);
    assert_eq!(
        decide(
            &compiled,
            "orders-api",
            &["orders:read", "orders:write"],
            None
        )
        .outcome(),
        Outcome::Permit
    );
    let compiled = loaded(&format!(
        "{permits} forbid (principal, action in Action::\"any\", resource == Api::\"billing\");"
    ));
    assert_eq!(
        decide(&compiled, "orders-api", &["orders:read"], None).outcome(),
        Outcome::Permit
    );
    let decision = decide(&compiled, "billing", &["bill:read"], None);
    assert_eq!(
        (decision.outcome(), decision.policies),
        (Outcome::Deny, vec!["p1".to_owned()])
    );
}

#[test]
fn a_forbid_finds_the_groups_of_an_action_that_is_not_requested() {
    let permit = format!("permit ({AGENT}, action in Action::\"any\", resource);");
    for condition in [
        "when { Action::\"orders:read\" in Action::\"any\" }",
        "when { [true].contains(Action::\"orders:read\" in [Action::\"any\"]) }",
        "when { (if true then Action::\"orders:read\" else action) is Action in Action::\"any\" }",
        "unless { Action::\"openTask\" in Action::\"any\" }",
        // The right side of an `in` can have a second one.
        "when { action in (if Action::\"orders:read\" in Action::\"any\" then Action::\"any\" else Action::\"openTask\") }",
    ] {
        let forbid =
            format!("forbid (principal, action == Action::\"bill:read\", resource) {condition};");
        let compiled = generated(&[permit.clone(), forbid]);
        let decision = decide(&compiled, "billing", &["bill:read"], None);
        assert_eq!(
            (decision.outcome(), decision.policies),
            (Outcome::Deny, vec!["g1".to_owned()]),
            "{condition}"
        );
    }
}

#[test]
fn an_evaluation_gets_the_actions_that_it_looks_up_and_no_others() {
    let compiled = generated(&[
        format!("permit ({AGENT}, action, resource) when {{ Action::\"bill:read\" in Action::\"any\" }};"),
        "forbid (principal, action in [Action::\"readLedger\", Action::\"readMetrics\"], resource) \
         when { action == Action::\"readMetrics\" };"
            .to_owned(),
    ]);
    let decision = decide(&compiled, "orders-api", &["orders:read"], None);
    let input = Input::read(&decision.input).unwrap();
    let budget = Budget::new(MAX_REQUEST_STEPS);
    let inquiry = compiled.inquiry(&input, &budget).unwrap();
    let actions: BTreeSet<String> = inquiry
        .entities
        .iter()
        .map(cedar_policy::Entity::uid)
        .filter(|uid| uid.type_name().basename() == "Action")
        .map(|uid| uid.id().unescaped().to_owned())
        .collect();
    let expected = ["any", "bill:read", "orders:read"].map(str::to_owned);
    assert_eq!(actions, BTreeSet::from(expected));
}

#[test]
fn nothing_asked_is_nothing_permitted() {
    let compiled = loaded(&format!(
        "permit ({AGENT}, action in Action::\"any\", resource);"
    ));
    let good = decide(&compiled, "billing", &["bill:read"], None);
    let input: serde_json::Value = serde_json::from_slice(&good.input).unwrap();
    let mut empty = input.clone();
    empty["credential"]["authorization_details"] = json!([]);
    let mut no_location = input.clone();
    let detail = &mut no_location["credential"]["authorization_details"][0];
    detail.as_object_mut().unwrap().remove("locations");
    let mut elsewhere = input.clone();
    elsewhere["credential"]["authorization_details"][0]["locations"] =
        json!(["https://evil.example"]);
    let mut foreign = input.clone();
    foreign["credential"]["authorization_details"][0]["actions"] = json!(["orders:write"]);
    for bad in [empty, no_location, elsewhere, foreign] {
        let decision = compiled.redecide(bad.to_string().as_bytes()).unwrap();
        assert_eq!(decision.outcome(), Outcome::Deny, "{bad}");
    }
    for list in ["locations", "actions"] {
        let mut bad = input.clone();
        bad["credential"]["authorization_details"][0][list] = json!([]);
        let read = compiled.redecide(bad.to_string().as_bytes());
        assert!(matches!(read, Err(PolicyError::Input(_))), "{read:?}");
    }
}

#[test]
fn without_a_policy_everything_is_denied() {
    let compiled = loaded("forbid (principal in Role::\"nobody\", action, resource);");
    let decision = decide(&compiled, "orders-api", &["orders:read"], None);
    assert_eq!(decision.outcome(), Outcome::Deny);
    assert!(decision.policies.is_empty());
    let refusal = refusal(decision);
    assert_eq!(refusal.code, RefusalCode::NotPermitted);
    assert_eq!(
        refusal.detail,
        "policy does not permit `orders:read` at `https://orders.example/v1` on `orders-api`"
    );
    assert_eq!(refusal.allowed, None);
}

#[test]
fn opening_a_task_is_an_action_of_its_own() {
    let compiled = loaded(&format!(
        "permit ({AGENT}, action == Action::\"orders:read\", resource);
         permit ({AGENT}, action == Action::\"openTask\", resource == TaskType::\"fix-order\");"
    ));
    let detail = details(json!([{"type": "api", "actions": ["orders:read"]}]));
    let ask = ask(&compiled, "orders-api", detail, None);
    let opening = |task_type: &str| TaskFacts {
        task_type: task_type.into(),
        opens: true,
        ..facts()
    };
    let refused = refusal(decide_as(
        &compiled,
        &agent(),
        &[],
        &ask,
        opening("nightly-report"),
    ));
    assert_eq!(refused.code, RefusalCode::NotPermitted);
    assert!(refused.detail.contains("open a task"), "{}", refused.detail);
    assert_eq!(refused.allowed, None);
    let good = decide_as(&compiled, &agent(), &[], &ask, opening("fix-order"));
    assert_eq!(good.policies, ["p0", "p1"]);
    assert_eq!(good.outcome(), Outcome::Permit);

    let roles = BTreeSet::new();
    let now = Timestamp::from_seconds(NOW);
    let alone = compiled.decide_open_task(&agent(), Some(&roles), opening("fix-order"), now);
    assert_eq!(alone.verdict.unwrap().ttl_seconds, 0);
    assert_eq!(
        compiled.redecide(&alone.input).unwrap().outcome(),
        Outcome::Permit
    );
    let other = compiled.decide_open_task(&agent(), Some(&roles), opening("nightly-report"), now);
    assert_eq!(other.outcome(), Outcome::Deny);
    let unknown = compiled.decide_open_task(&agent(), Some(&roles), opening("nope"), now);
    assert_eq!(refusal(unknown).code, RefusalCode::UnknownTaskType);
}

#[test]
fn a_denial_offers_exactly_the_permitted_part() {
    let compiled = loaded(&format!(
        "@id(\"r\") @description(\"d\") @max_ttl(\"200\")
         permit ({AGENT}, action == Action::\"bill:read\", resource);
         permit ({AGENT}, action == Action::\"orders:read\", resource)
         when {{ context.location like \"https://billing.example/a*\" }};"
    ));
    let refusal = refusal(decide(
        &compiled,
        "billing",
        &["bill:read", "orders:read"],
        None,
    ));
    let allowed = refusal.allowed.unwrap();
    assert_eq!(
        allowed.authorization_details.unwrap(),
        details(json!([
            {"type": "api", "actions": ["orders:read"], "locations": ["https://billing.example/a"]},
            {"type": "api", "actions": ["bill:read"], "locations": ["https://billing.example/a", "https://billing.example/b"]}
        ]))
    );
    assert_eq!(allowed.max_ttl_seconds, Some(200));
}

#[test]
fn an_offer_leaves_out_a_place_with_a_refused_one_below_it() {
    let compiled = loaded(&format!(
        "permit ({AGENT}, action in Action::\"any\", resource);
         forbid (principal, action, resource) when {{ context has location && context.location == \"https://billing.example/a/secret\" }};"
    ));
    let asked = details(
        json!([{"type": "api", "actions": ["bill:read"], "locations":
        ["https://billing.example/a", "https://billing.example/a/secret", "https://billing.example/b"]}]),
    );
    let ask = ask(&compiled, "billing", asked, None);
    let refusal = refusal(decide_as(&compiled, &agent(), &[], &ask, facts()));
    assert_eq!(
        refusal.allowed.unwrap().authorization_details.unwrap(),
        details(
            json!([{"type": "api", "actions": ["bill:read"], "locations": ["https://billing.example/b"]}])
        )
    );
}

#[test]
fn a_denial_names_a_few_rights_and_counts_the_rest() {
    let compiled = loaded("forbid (principal, action, resource);");
    let locations: Vec<String> = (0..5)
        .map(|n| format!("https://billing.example/a/{n}"))
        .collect();
    let asked = details(json!([{"type": "api", "actions": ["bill:read"], "locations": locations}]));
    let ask = ask(&compiled, "billing", asked, None);
    let refusal = refusal(decide_as(&compiled, &agent(), &[], &ask, facts()));
    assert!(
        refusal.detail.contains(", and 1 more on `billing`"),
        "{}",
        refusal.detail
    );
}

#[test]
fn a_task_type_that_may_not_ask_for_the_resource_is_refused_when_joined_too() {
    let compiled = loaded(&format!(
        "permit ({AGENT}, action in Action::\"any\", resource);"
    ));
    let detail = details(json!([{"type": "api", "actions": ["bill:read"]}]));
    let ask = ask(&compiled, "billing", detail, None);
    let task = TaskFacts {
        task_type: "fix-order".into(),
        ..facts()
    };
    let refusal = refusal(decide_as(&compiled, &agent(), &[], &ask, task));
    assert_eq!(refusal.code, RefusalCode::ResourceNotForTask);
}

#[test]
fn the_input_holds_all_that_was_decided_on_and_no_free_text() {
    let compiled =
        loaded("permit (principal in Role::\"r\", action in Action::\"any\", resource);");
    let detail = details(json!([{"type": "api", "actions": ["orders:read"]}]));
    let ask = ask(&compiled, "orders-api", detail, Some(60));
    let decision = decide_as(&compiled, &agent(), &["r"], &ask, facts());
    let input: serde_json::Value = serde_json::from_slice(&decision.input).unwrap();
    assert_eq!(
        input,
        json!({
            "format": 3, "now": "2026-11-18T11:06:40Z",
            "principal": {"attestor": "dev", "identity": "dev:agent", "roles": ["r"], "claims": {"sub": "agent"}},
            "task": {"task_type": "nightly-report", "depth": 1, "deadline_seconds_left": 3600, "has_parent": false, "opens": false},
            "credential": {"resource": "orders-api", "ttl_seconds": 60, "authorization_details":
                [{"type": "api", "actions": ["orders:read"], "locations": ["https://orders.example/v1"]}],
                "revocability": {"class": "immediate", "bound_seconds": 5, "open_sessions": "none", "expires_by": "itself"}}
        })
    );
    assert!(
        !String::from_utf8(decision.input)
            .unwrap()
            .contains("free text")
    );
    for bad in [&b"{}"[..], b"", br#"{"format":3,"extra":1}"#] {
        assert!(matches!(compiled.redecide(bad), Err(PolicyError::Input(_))));
    }
    let earlier = String::from_utf8(decide_as(&compiled, &agent(), &["r"], &ask, facts()).input);
    let earlier = earlier.unwrap().replace("\"format\":3", "\"format\":2");
    assert_eq!(
        compiled.redecide(earlier.as_bytes()).unwrap_err(),
        PolicyError::Input("format 2".into())
    );
}

#[test]
fn roles_that_nobody_read_are_not_recorded_as_none() {
    let without = loaded(&format!(
        "permit ({AGENT}, action in Action::\"any\", resource == Api::\"billing\");"
    ));
    let forbid = "forbid (principal in Role::\"r\", action in Action::\"any\", resource);";
    let asks = loaded(&format!(
        "permit ({AGENT}, action in Action::\"any\", resource == Api::\"billing\");\n{forbid}"
    ));
    let detail = details(json!([{"type": "api", "actions": ["bill:read"]}]));
    let ask = ask(&without, "billing", detail, None);
    let judge = |compiled: &CompiledGeneration, roles: Option<&BTreeSet<String>>| {
        compiled.decide(&Question {
            workload: &agent(),
            roles,
            ask: &ask,
            revocability: REVOCABILITY,
            task: facts(),
            bounds: None,
            now: Timestamp::from_seconds(NOW),
        })
    };
    let unread = judge(&without, None);
    assert_eq!(unread.outcome(), Outcome::Permit);
    let text = String::from_utf8(unread.input.clone()).unwrap();
    assert!(!text.contains("roles"), "{text}");
    // A generation that needs roles decides nothing without them: a forbid would be missed.
    let refused = judge(&asks, None);
    assert_eq!(refused.outcome(), Outcome::Indeterminate);
    assert_eq!(
        asks.redecide(&unread.input).unwrap().outcome(),
        Outcome::Indeterminate
    );
    let none = judge(&asks, Some(&BTreeSet::new()));
    assert_eq!(none.outcome(), Outcome::Permit);

    let untold = |compiled: &CompiledGeneration, input: &[u8]| {
        compiled.unknown_reason(&Input::read(input).unwrap())
    };
    assert_eq!(untold(&without, &unread.input), None);
    assert_eq!(
        untold(&asks, &unread.input),
        Some(UnknownReason::RolesNotRead)
    );
    assert_eq!(untold(&asks, &none.input), None);
}

#[test]
fn an_input_that_lacks_what_a_candidate_declares_tells_nothing_of_it() {
    let policies =
        format!("permit ({AGENT}, action in Action::\"any\", resource == Api::\"billing\");");
    let compiled = loaded(&policies);
    let detail = details(json!([{"type": "api", "actions": ["bill:read"]}]));
    let ask = ask(&compiled, "billing", detail, None);
    let opens = TaskFacts {
        opens: true,
        ..facts()
    };
    let decision = decide_as(&compiled, &agent(), &[], &ask, opens);
    let untold = |change: &dyn Fn(&mut serde_json::Value)| {
        let candidate = parts(&policies);
        let mut spec = serde_json::to_value(&candidate.attestors[0]).unwrap();
        let mut task_type = serde_json::to_value(&candidate.task_types[0]).unwrap();
        let mut both = json!({"attestor": spec, "task": task_type});
        change(&mut both);
        spec = both["attestor"].take();
        task_type = both["task"].take();
        let mut candidate = candidate;
        candidate.attestors[0] = serde_json::from_value(spec).unwrap();
        candidate.task_types[0] = serde_json::from_value(task_type).unwrap();
        let (_, candidate) = build(candidate, &[]).unwrap();
        candidate.unknown_reason(&Input::read(&decision.input).unwrap())
    };
    assert_eq!(untold(&|_| {}), None);
    let claim = |optional: bool| json!({"type": "string", "optional": optional});
    assert_eq!(
        untold(&|both| both["attestor"]["claims"]["team"] = claim(false)),
        Some(UnknownReason::OtherClaims)
    );
    assert_eq!(
        untold(&|both| both["attestor"]["claims"]["team"] = claim(true)),
        None
    );
    assert_eq!(
        untold(&|both| both["task"]["max_deadline_seconds"] = json!(3_599)),
        Some(UnknownReason::LongerTask)
    );
    assert_eq!(
        untold(&|both| both["task"]["max_deadline_seconds"] = json!(3_600)),
        None
    );
}

#[test]
fn the_number_of_evaluations_is_bounded() {
    let compiled = loaded(&format!(
        "permit ({AGENT}, action in Action::\"any\", resource);"
    ));
    let places = |n: usize| -> Vec<String> {
        (0..n)
            .map(|n| format!("https://billing.example/a/{n}"))
            .collect()
    };
    let object =
        |n| json!({"type": "api", "actions": ["bill:read", "orders:read"], "locations": places(n)});
    let full = MAX_EVALUATIONS / 2 / 16;
    let asked = details(vec![object(16); full].into());
    let ask = ask(&compiled, "billing", asked, None);
    let decision = decide_as(&compiled, &agent(), &[], &ask, facts());
    assert_eq!(decision.outcome(), Outcome::Permit);
    let mut input: serde_json::Value = serde_json::from_slice(&decision.input).unwrap();
    input["credential"]["authorization_details"]
        .as_array_mut()
        .unwrap()
        .push(object(1));
    let over = compiled.redecide(input.to_string().as_bytes()).unwrap();
    assert_eq!(refusal(over).code, RefusalCode::TooManyRights);
}

#[test]
fn an_act_on_the_broker_that_cannot_be_decided_is_an_error() {
    let compiled = loaded(
        "permit (principal in Role::\"admin\", action == Action::\"readLedger\", resource);
         forbid (principal is Workload::ci_main, action == Action::\"readLedger\", resource)
         when { principal.claims.attempt * 9223372036854775807 > 0 };",
    );
    let roles = BTreeSet::from(["admin".to_owned()]);
    let who = agent();
    let admin = AdminPrincipal::Workload {
        workload: &who,
        roles: &roles,
    };
    assert_eq!(compiled.may(admin, AdminAction::ReadLedger), Ok(true));
    assert_eq!(compiled.may(admin, AdminAction::ManageKeys), Ok(false));
    assert_eq!(
        compiled.may(AdminPrincipal::Bootstrap, AdminAction::ReadLedger),
        Ok(false)
    );
    assert_eq!(
        compiled.may(AdminPrincipal::Dev, AdminAction::ReadLedger),
        Ok(false)
    );
    let ci = workload(
        "ci-main",
        "repo:1",
        &[
            ("repo_id", text("1")),
            ("branch", text("b")),
            ("actor", text("a")),
            ("attempt", ClaimValue::Long(2)),
        ],
    );
    let admin = AdminPrincipal::Workload {
        workload: &ci,
        roles: &roles,
    };
    assert_eq!(
        compiled.may(admin, AdminAction::ReadLedger),
        Err(PolicyError::Evaluation(vec!["p1".into()]))
    );
}

#[test]
fn roles_are_asked_for_where_a_policy_about_work_names_one() {
    for (policies, asked) in [
        (
            "permit (principal == Workload::dev::\"dev:agent\", action == Action::\"orders:read\", resource);",
            false,
        ),
        (
            "permit (principal in Role::\"admin\", action == Action::\"readLedger\", resource);",
            false,
        ),
        (
            "permit (principal in Role::\"r\", action == Action::\"orders:read\", resource);",
            true,
        ),
        (
            "permit (principal in Role::\"r\", action == Action::\"openTask\", resource);",
            true,
        ),
        ("forbid (principal in Role::\"r\", action, resource);", true),
        (
            "permit (principal == Workload::dev::\"dev:agent\", action == Action::\"orders:read\", resource) \
             unless { principal in [Role::\"a\", Role::\"b\"] };",
            true,
        ),
        (
            "forbid (principal in Role::\"r\", \
             action in [Action::\"readLedger\", Action::\"orders:read\"], resource);",
            true,
        ),
    ] {
        let all = format!(
            "permit (principal == Workload::dev::\"dev:agent\", action == Action::\"openTask\", resource);\n{policies}"
        );
        match load(&all) {
            Ok(compiled) => assert_eq!(compiled.asks_for_roles(), asked, "{policies}"),
            Err(problems) => panic!("{policies}: {problems:?}"),
        }
    }
}

/// The index: the number of candidate policies does not grow with the permits of other workloads.
#[test]
fn a_request_meets_the_policies_that_can_be_about_it_and_not_all() {
    let met = |count: usize| {
        let policies: Vec<String> = (0..count)
            .map(|n| match n {
                0 => format!("permit ({AGENT}, action in Action::\"any\", resource == Api::\"billing\");"),
                1 => "forbid (principal, action, resource) when { context has location && context.location == \"https://billing.example/z\" };".into(),
                n => format!("permit (principal == Workload::dev::\"dev:w{n}\", action in Action::\"any\", resource == Api::\"billing\") when {{ context.task.depth == 1 }};"),
            })
            .collect();
        let compiled = generated(&policies);
        let who = mapping::PrincipalInput {
            attestor: "dev".into(),
            identity: agent().identity,
            roles: Some(BTreeSet::new()),
            claims: BTreeMap::from([("sub".to_owned(), text("agent"))]),
        };
        let scene = compiled
            .model
            .workload_scene(&who, Some("billing"))
            .unwrap();
        let uid = compiled.model.resource("billing").unwrap();
        let action = compiled.model.action("bill:read");
        compiled
            .index
            .slice(&scene.principal, &scene.ancestors, &action, &uid)
            .len()
    };
    assert_eq!((met(2), met(10), met(500)), (2, 2, 2));
}
