//! Properties that hold for any policies and any question.

use super::*;

/// A generated policy, with the kinds of scope that the index distinguishes.
pub(super) fn any_policy() -> impl Strategy<Value = String> {
    let effect = prop::sample::select(vec!["permit", "permit", "permit", "forbid"]);
    let principal = prop::sample::select(vec![
        "principal",
        "principal == Workload::dev::\"dev:agent\"",
        "principal in Workload::dev::\"dev:agent\"",
        "principal == Workload::dev::\"dev:other\"",
        "principal in Role::\"r1\"",
        "principal in Role::\"r2\"",
        "principal is Workload::dev",
        "principal is Workload::ci_main",
        "principal is Workload::dev in Role::\"r1\"",
        "principal is Workload::ci_main in Role::\"r1\"",
    ]);
    let action = prop::sample::select(vec![
        "action",
        "action == Action::\"orders:read\"",
        "action == Action::\"bill:read\"",
        "action in Action::\"any\"",
        "action in [Action::\"any\", Action::\"orders:read\"]",
        "action in [Action::\"bill:read\", Action::\"openTask\"]",
    ]);
    let resource = prop::sample::select(vec![
        "resource",
        "resource == Api::\"billing\"",
        "resource in Api::\"billing\"",
        "resource == Api::\"orders-api\"",
        "resource is Api",
        "resource is TaskType",
        "resource is Api in Api::\"billing\"",
    ]);
    let when = prop::sample::select(vec![
        "",
        "",
        "",
        "when { context.task.depth == 1 }",
        "when { context has location && context.location like \"*/a\" }",
        "when { context.task.depth * 9223372036854775807 > 1 && context.task.depth > 1 }",
        "when { Action::\"bill:read\" in Action::\"any\" }",
        "unless { Action::\"openTask\" in [Action::\"bill:read\", Action::\"any\"] }",
        "when { action is Action in Action::\"any\" }",
        "when { (if context.task.depth == 1 then Action::\"orders:read\" else action) in Action::\"any\" }",
        "when { [Action::\"bill:read\", action].contains(action) }",
        "when { principal has nothing }",
        "when { principal.nothing }",
    ]);
    let annotation =
        prop::sample::select(vec!["", "", "max_ttl(\"60\")", "approval(\"required\")"]);
    (effect, principal, action, resource, when, annotation).prop_map(
        |(effect, principal, action, resource, when, annotation)| {
            let obligation = match (effect, annotation) {
                ("forbid", _) | (_, "") => String::new(),
                (_, annotation) => format!("@{annotation} "),
            };
            format!("{obligation}{effect} ({principal}, {action}, {resource}) {when};")
        },
    )
}

/// A generated policy about acts on the broker.
fn any_act_policy() -> impl Strategy<Value = String> {
    let effect = prop::sample::select(vec!["permit", "permit", "forbid"]);
    let principal = prop::sample::select(vec![
        "principal",
        "principal == Workload::dev::\"dev:agent\"",
        "principal in Role::\"r1\"",
        "principal is Workload::dev in Role::\"r2\"",
    ]);
    let action = prop::sample::select(vec![
        "action",
        "action == Action::\"readLedger\"",
        "action in [Action::\"readLedger\", Action::\"readMetrics\"]",
        "action in Action::\"any\"",
    ]);
    let when = prop::sample::select(vec![
        "",
        "",
        "when { action in Action::\"readLedger\" }",
        "when { Action::\"orders:read\" in Action::\"any\" }",
        "unless { Action::\"bill:read\" in [Action::\"any\"] }",
        "when { principal.nothing }",
    ]);
    (effect, principal, action, when).prop_map(|(effect, principal, action, when)| {
        format!("{effect} ({principal}, {action}, resource == Broker::\"taskpass\") {when};")
    })
}

pub(super) fn any_workload() -> impl Strategy<Value = Workload> {
    let ci = workload(
        "ci-main",
        "repo:1",
        &[
            ("repo_id", text("1")),
            ("branch", text("main")),
            ("actor", text("a")),
            ("attempt", ClaimValue::Long(1)),
        ],
    );
    let other = workload("dev", "other", &[("sub", text("other"))]);
    prop::sample::select(vec![agent(), agent(), other, ci])
}

pub(super) fn any_roles() -> impl Strategy<Value = BTreeSet<String>> {
    let role = prop::sample::select(vec!["r1".to_owned(), "r2".to_owned(), "r3".to_owned()]);
    prop::collection::btree_set(role, 0..3)
}

pub(super) fn any_details() -> impl Strategy<Value = Vec<AuthorizationDetail>> {
    let action = prop::sample::select(vec!["bill:read", "orders:read"]);
    let place = prop::sample::select(vec![
        "https://billing.example/a",
        "https://billing.example/a/x",
        "https://billing.example/b",
    ]);
    let detail = (
        prop::collection::btree_set(action, 1..3),
        prop::collection::btree_set(place, 1..4),
    )
        .prop_map(
            |(actions, places)| json!({"type": "api", "actions": actions, "locations": places}),
        );
    prop::collection::vec(detail, 1..3).prop_map(|all| details(all.into()))
}

/// A check runs few cases, because each compiles policies; `PROPTEST_CASES` sets another number.
pub(super) fn cases() -> ProptestConfig {
    let asked = ProptestConfig::default();
    match asked.cases {
        256 => ProptestConfig::with_cases(32),
        _ => asked,
    }
}

/// Removes binding terms: the whole set contains none, because they are in a set of their own.
fn without_terms(answer: slice::Answer) -> slice::Answer {
    match answer {
        slice::Answer::Permit(permits) => slice::Answer::Permit(slice::Permits {
            binding: BTreeSet::new(),
            ..permits
        }),
        other => other,
    }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn the_slice_answers_like_the_whole_set(
        policies in prop::collection::vec(any_policy(), 0..12),
        workload in any_workload(),
        roles in any_roles(),
    ) {
        let compiled = generated(&policies);
        let who = mapping::PrincipalInput {
            attestor: workload.attestor.clone(),
            identity: workload.identity.clone(),
            roles: Some(roles),
            claims: workload.claims.clone(),
        };
        let authorizer = cedar_policy::Authorizer::new();
        let agree = |scene: &mapping::Scene, action: &str, resource: &cedar_policy::EntityUid, context| {
            let action = compiled.model.action(action);
            let request = compiled.model.request(scene, &action, resource, context).unwrap();
            let slice = compiled.index.slice(&scene.principal, &scene.ancestors, &action, resource);
            let entities = compiled.model.entities(scene, slice.actions()).unwrap();
            let sliced = slice.evaluate(&request, &entities, Timestamp::MAX);
            // Half of the questions hold, independent of the request.
            let whole = compiled.index.whole();
            let entities = compiled.model.entities_by_schema(scene);
            let all = slice::join([authorizer.is_authorized(&request, &whole, &entities)]);
            let (sliced, all) = (without_terms(sliced), without_terms(all));
            prop_assert_eq!(sliced, all);
            Ok(())
        };
        let asked: Vec<u32> = (0..8).step_by(2).collect();
        for resource in ["billing", "orders-api"] {
            let scene = compiled.model.workload_scene(&who, Some(resource)).unwrap();
            let uid = compiled.model.resource(resource).unwrap();
            for action in ["orders:read", "bill:read"] {
                let context = mapping::credential_context(&facts(), &asked, 60, REVOCABILITY).unwrap();
                agree(&scene, action, &uid, context)?;
            }
        }
        let scene = compiled.model.workload_scene(&who, None).unwrap();
        let task_type = compiled.model.task_type("nightly-report");
        let context = mapping::task_context(&facts(), &asked).unwrap();
        agree(&scene, "openTask", &task_type, context)?;
    }

    #[test]
    fn entities_without_the_other_actions_answer_like_those_of_the_schema(
        policies in prop::collection::vec(any_policy(), 0..12),
        workload in any_workload(),
        roles in any_roles(),
        asked in any_details(),
    ) {
        let compiled = generated(&policies);
        let ask = ask(&compiled, "billing", asked, None);
        let decision = compiled.decide(&Question {
            workload: &workload,
            roles: Some(&roles),
            ask: &ask,
            revocability: REVOCABILITY,
            task: TaskFacts { opens: true, ..facts() },
            bounds: None,
            now: Timestamp::from_seconds(NOW),
        });
        let input = Input::read(&decision.input).unwrap();
        let budget = Budget::new(MAX_REQUEST_STEPS);
        let mut inquiry = compiled.inquiry(&input, &budget).unwrap();
        let answers = inquiry.answers(Timestamp::MAX, &budget);
        inquiry.entities = compiled.model.entities_by_schema(&inquiry.scene);
        prop_assert_eq!(answers, inquiry.answers(Timestamp::MAX, &budget));
        prop_assert!(!budget.is_exhausted());
    }

    #[test]
    fn acts_on_the_broker_are_decided_like_with_the_entities_of_the_schema(
        policies in prop::collection::vec(any_act_policy(), 0..8),
        roles in any_roles(),
    ) {
        let compiled = generated(&policies);
        let who = agent();
        for act in AdminAction::ALL.iter().copied() {
            let principal = AdminPrincipal::Workload { workload: &who, roles: &roles };
            let permitted = compiled.may_by(principal, act).ok();
            let input = mapping::PrincipalInput {
                attestor: who.attestor.clone(),
                identity: who.identity.clone(),
                roles: Some(roles.clone()),
                claims: who.claims.clone(),
            };
            let scene = compiled.model.workload_scene(&input, None).unwrap();
            let entities = compiled.model.entities_by_schema(&scene);
            let (action, broker) = (compiled.model.action(act.as_str()), compiled.model.broker());
            let context = mapping::broker_context(&[]).unwrap();
            let request = compiled.model.request(&scene, &action, &broker, context).unwrap();
            let whole = compiled.index.whole();
            let response = cedar_policy::Authorizer::new().is_authorized(&request, &whole, &entities);
            let expected = match slice::join([response]) {
                slice::Answer::Permit(permits) => Some(permits.satisfied),
                slice::Answer::Deny(_) => Some(BTreeSet::new()),
                slice::Answer::Error(_) => None,
            };
            prop_assert_eq!(permitted, expected);
        }
    }

    #[test]
    fn a_recorded_input_gives_the_same_decision_again(
        policies in prop::collection::vec(any_policy(), 0..8),
        workload in any_workload(),
        roles in any_roles(),
        asked in any_details(),
        ttl in prop::option::of(1_u64..900),
        opens: bool,
    ) {
        let compiled = generated(&policies);
        let ask = ask(&compiled, "billing", asked, ttl);
        let question = Question {
            workload: &workload,
            roles: Some(&roles),
            ask: &ask,
            revocability: REVOCABILITY,
            task: TaskFacts { opens, ..facts() },
            bounds: None,
            now: Timestamp::from_seconds(NOW),
        };
        let decision = compiled.decide(&question);
        let again = generated(&policies).redecide(&decision.input).unwrap();
        prop_assert_eq!(&again.verdict, &decision.verdict);
        prop_assert_eq!(&again.policies, &decision.policies);
        prop_assert_eq!(again.input, decision.input);
        prop_assert_eq!(again.generation, decision.generation);
    }

    #[test]
    fn a_reused_result_equals_that_of_an_evaluation(
        policies in prop::collection::vec(any_policy(), 0..8),
        workload in any_workload(),
        roles in any_roles(),
        asked in any_details(),
        ttl in prop::option::of(1_u64..900),
        left in prop::option::of(0_u64..900),
        later in 0_i64..100_000,
    ) {
        let compiled = generated(&policies);
        let ask = ask(&compiled, "billing", asked, ttl);
        let decide = |seconds| {
            let now = Timestamp::from_seconds(seconds);
            compiled.decide(&Question {
                workload: &workload,
                roles: Some(&roles),
                ask: &ask,
                revocability: REVOCABILITY,
                task: facts(),
                bounds: left.map(|left| Bounds {
                    not_after: now.plus_seconds(left),
                    retried: false,
                }),
                now,
            })
        };
        let (first, again) = (decide(NOW), decide(NOW + later));
        let is_error = first.outcome() == Outcome::Indeterminate;
        prop_assert_eq!((first.reused, again.reused), (false, !is_error));
        for decision in [first, again] {
            let evaluated = compiled.redecide(&decision.input).unwrap();
            prop_assert!(!evaluated.reused);
            prop_assert_eq!(evaluated.verdict, decision.verdict);
            prop_assert_eq!(evaluated.policies, decision.policies);
            prop_assert_eq!(evaluated.observed, decision.observed);
            prop_assert_eq!(evaluated.generation, decision.generation);
        }
    }

    #[test]
    fn what_is_offered_is_permitted_when_it_is_asked_for_and_was_asked_for_before(
        policies in prop::collection::vec(any_policy(), 1..8),
        asked in any_details(),
        ttl in prop::option::of(1_u64..900),
    ) {
        let compiled = generated(&policies);
        let roles = BTreeSet::from(["r1".to_owned()]);
        let decide = |ask: &ResolvedRequest| compiled.decide(&Question {
            workload: &agent(),
            roles: Some(&roles),
            ask,
            revocability: REVOCABILITY,
            task: facts(),
            bounds: None,
            now: Timestamp::from_seconds(NOW),
        });
        let first = ask(&compiled, "billing", asked, ttl);
        if let Err(refusal) = decide(&first).verdict
            && let Some(allowed) = refusal.allowed
        {
            let wanted = first.grant.clone();
            let offered = match allowed.authorization_details {
                Some(details) => Grant::try_from(details).unwrap(),
                None => wanted.clone(),
            };
            prop_assert!(wanted.covers_within(&offered, &Budget::new(u64::MAX)));
            let second = ResolvedRequest {
                grant: offered,
                ttl_seconds: allowed.max_ttl_seconds.or(ttl),
                resource: Arc::clone(&first.resource),
                task: first.task.clone(),
                retry: None,
            };
            let outcome = decide(&second).outcome();
            let fine = outcome == Outcome::Permit
                || (refusal.code == RefusalCode::TtlTooLong && outcome == Outcome::Pending);
            prop_assert!(fine, "{:?}", outcome);
        }
    }

    #[test]
    fn another_permit_never_turns_a_yes_into_a_policy_denial(
        policies in prop::collection::vec(any_policy(), 1..6),
        more in any_policy(),
    ) {
        let more = more.replace("forbid", "permit");
        let before = decide(&generated(&policies), "billing", &["bill:read"], None);
        let mut wider = policies;
        wider.push(more);
        let after = decide(&generated(&wider), "billing", &["bill:read"], None);
        if before.outcome() == Outcome::Permit {
            // Obligations may tighten the result and an error may make it indeterminate, but it is
            // not a denial.
            prop_assert_ne!(after.outcome(), Outcome::Deny);
        }
    }
}
