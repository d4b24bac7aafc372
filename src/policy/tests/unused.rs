//! Unused rights and the narrower bundle: it permits every used right with the same terms, and
//! nothing that the wider bundle did not.

use super::properties::{any_details, any_roles, any_workload, cases};
use super::*;
use crate::domain::kind::DetailType;
use crate::policy::unused::{PolicyUse, Proposal, Usage, proposed};

fn now() -> Timestamp {
    Timestamp::from_seconds(NOW)
}

/// A generation, as text and compiled.
fn both(policies: &str) -> (Generation, CompiledGeneration) {
    build(parts(policies), &[]).unwrap()
}

fn billing_details(actions: &[&str], locations: &[&str]) -> Vec<AuthorizationDetail> {
    details(json!([{"type": "api", "actions": actions, "locations": locations}]))
}

/// The report and the proposals for the permitted inputs `used`.
fn report(
    (generation, compiled): &(Generation, CompiledGeneration),
    used: &[Decision],
) -> (Vec<PolicyUse>, CompiledGeneration) {
    let mut usage = Usage::new(compiled, now());
    for decision in used {
        let who = Some("dev:agent");
        usage.note(now(), &decision.input, who).unwrap();
    }
    let mut told = usage.report(generation);
    let narrower = proposed(generation, compiled, &mut told);
    let compiled = CompiledGeneration::compile(&narrower, &[]).unwrap();
    (told, compiled)
}

fn find<'a>(told: &'a [PolicyUse], policy: &str) -> &'a PolicyUse {
    told.iter().find(|own| own.policy == policy).unwrap()
}

const A: &str = "https://billing.example/a";
const BELOW_A: &str = "https://billing.example/a/x";
const B: &str = "https://billing.example/b";

fn asked(compiled: &CompiledGeneration, actions: &[&str], places: &[&str]) -> Decision {
    let ask = ask(compiled, "billing", billing_details(actions, places), None);
    decide_as(compiled, &agent(), &[], &ask, facts())
}

#[test]
fn a_permit_is_narrowed_to_the_actions_places_and_life_that_were_used() {
    let wide = both(&format!(
        "permit ({AGENT}, action, resource is Api) when {{ context.task.depth == 1 }};"
    ));
    let used = [
        asked(&wide.1, &["bill:read"], &[A]),
        asked(&wide.1, &["bill:read"], &[BELOW_A]),
    ];
    let (told, narrower) = report(&wide, &used);
    let own = find(&told, "p0");
    assert_eq!(
        (own.used, own.workloads, own.last_used),
        (2, 1, Some(now()))
    );
    assert_eq!(
        (own.max_ttl_seconds, own.longest_ttl_seconds),
        (Some(900), Some(300))
    );
    let on: Vec<_> = own
        .unused
        .iter()
        .map(|on| {
            (
                on.resource.as_str(),
                on.entirely,
                on.actions.len(),
                on.locations.len(),
            )
        })
        .collect();
    assert_eq!(on, [("billing", false, 1, 1), ("orders-api", true, 2, 1)]);
    assert_eq!(own.unused[0].actions, ["orders:read"]);
    assert_eq!(own.unused[0].locations, [B]);
    let Some(Proposal::Narrow { text }) = &own.proposal else {
        panic!("{own:?}");
    };
    for part in [
        "@id(\"p0\")",
        "@description(\"d\")",
        "@max_ttl(\"300\")",
        "action == Action::\"bill:read\"",
        "resource == Api::\"billing\"",
        "depth",
        "context.location == \"https://billing.example/a\"",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    for decision in &used {
        let again = narrower.redecide(&decision.input).unwrap();
        assert_eq!(again.verdict, decision.verdict);
    }
    for (actions, places) in [
        (["orders:read"], [A]),
        (["bill:read"], [B]),
        (["orders:read"], [B]),
    ] {
        assert_eq!(asked(&wide.1, &actions, &places).outcome(), Outcome::Permit);
        assert_eq!(asked(&narrower, &actions, &places).outcome(), Outcome::Deny);
    }
}

#[test]
fn patterns_of_aws_are_narrowed_to_the_registered_ones_that_were_used() {
    let mut from = parts(&format!(
        "permit ({AGENT}, action in [Action::\"s3:GetObject\", Action::\"s3:PutObject\"], resource is {});",
        crate::policy::schema::resource_type(DetailType::Aws)
    ));
    let bucket = json!({
        "name": "bucket", "kind": "aws", "owner": "data",
        "actions": ["s3:GetObject", "s3:PutObject"],
        "locations": ["arn:aws:s3:::reports/*", "arn:aws:s3:::lo?s/*"],
        "aws": {
            "role_arn": "arn:aws:iam::123456789012:role/r", "mode": "web_identity",
            "region": "eu-central-1"
        }
    });
    from.resources.push(serde_json::from_value(bucket).unwrap());
    from.task_types[0].resources.insert("bucket".into());
    let wide = build(from, &[]).unwrap();
    let get = |compiled: &CompiledGeneration, action: &str, place: &str| {
        let right = json!([{"type": "aws", "actions": [action], "resources": [place]}]);
        let ask = ask(compiled, "bucket", details(right), None);
        decide_as(compiled, &agent(), &[], &ask, facts())
    };
    for (place, other) in [
        ("arn:aws:s3:::reports/2026/*", "arn:aws:s3:::lobs/x"),
        ("arn:aws:s3:::lo?s/x", "arn:aws:s3:::reports/x"),
    ] {
        let used = [get(&wide.1, "s3:GetObject", place)];
        assert_eq!(used[0].outcome(), Outcome::Permit);
        let (told, narrower) = report(&wide, &used);
        let own = find(&told, "p0");
        assert!(
            matches!(own.proposal, Some(Proposal::Narrow { .. })),
            "{own:?}"
        );
        let again = narrower.redecide(&used[0].input).unwrap();
        assert_eq!(again.verdict, used[0].verdict);
        for (action, place) in [("s3:PutObject", place), ("s3:GetObject", other)] {
            assert_eq!(get(&wide.1, action, place).outcome(), Outcome::Permit);
            assert_eq!(get(&narrower, action, place).outcome(), Outcome::Deny);
        }
    }
}

#[test]
fn what_was_never_used_can_go_and_what_was_wholly_used_stays() {
    let wide = both(&format!(
        "permit ({AGENT}, action == Action::\"bill:read\", resource == Api::\"billing\");\
         permit ({AGENT}, action == Action::\"orders:write\", resource == Api::\"orders-api\");\
         permit ({AGENT}, action == Action::\"openTask\", resource);\
         permit (principal == Bootstrap::\"token\", action == Action::\"readLedger\", resource);"
    ));
    let ask = ask(
        &wide.1,
        "billing",
        billing_details(&["bill:read"], &[A, B]),
        Some(900),
    );
    let used = [decide_as(&wide.1, &agent(), &[], &ask, facts())];
    let (told, narrower) = report(&wide, &used);
    // An act on the broker is not a grant.
    assert_eq!(told.len(), 3);
    assert!(!find(&told, "p0").is_wide(), "{told:?}");
    for never in ["p1", "p2"] {
        let own = find(&told, never);
        assert_eq!((own.used, &own.proposal), (0, &Some(Proposal::Remove)));
    }
    let left: Vec<&str> = narrower.policy_ids().collect();
    assert_eq!(left, ["p0", "p3"]);
}

#[test]
fn what_is_about_the_broker_alone_is_not_looked_at_whatever_its_scope_names() {
    let wide = both(&format!(
        "permit ({AGENT}, action == Action::\"bill:read\", resource == Api::\"billing\");\
         permit (principal in Role::\"admin\", action, resource == Broker::\"taskpass\");\
         permit (principal == Bootstrap::\"token\", action, resource);"
    ));
    let used = [asked(&wide.1, &["bill:read"], &[A])];
    let (told, narrower) = report(&wide, &used);
    let ids: Vec<&str> = told.iter().map(|own| own.policy.as_str()).collect();
    assert_eq!(ids, ["p0"]);
    let left: Vec<&str> = narrower.policy_ids().collect();
    assert_eq!(left, ["p0", "p1", "p2"]);
    let boss = BTreeSet::from(["admin".to_owned()]);
    let who = AdminPrincipal::Workload {
        workload: &agent(),
        roles: &boss,
    };
    assert_eq!(narrower.may(who, AdminAction::ManageAdmins), Ok(true));
}

#[test]
fn a_permit_that_opens_tasks_too_keeps_the_longest_life_of_what_it_opened_for() {
    let wide = both(&format!(
        "permit ({AGENT}, action in [Action::\"openTask\", Action::\"bill:read\"], resource);\
         permit ({AGENT}, action == Action::\"orders:read\", resource == Api::\"billing\");"
    ));
    let opens = TaskFacts {
        opens: true,
        ..facts()
    };
    let used = [("bill:read", 60), ("orders:read", 600)].map(|(action, ttl)| {
        let asked = billing_details(&[action], &[A]);
        let ask = ask(&wide.1, "billing", asked, Some(ttl));
        decide_as(&wide.1, &agent(), &[], &ask, opens.clone())
    });
    let (told, narrower) = report(&wide, &used);
    assert_eq!(find(&told, "p0").longest_ttl_seconds, Some(600));
    for decision in &used {
        let again = narrower.redecide(&decision.input).unwrap();
        assert_eq!(again.verdict, decision.verdict);
    }
}

#[test]
fn nothing_is_proposed_where_what_was_used_is_not_known() {
    let wide = both(&format!(
        "permit ({AGENT}, action == Action::\"bill:read\", resource == Api::\"billing\");\
         permit ({AGENT}, action == Action::\"orders:read\", resource == Api::\"billing\");"
    ));
    let used = asked(&wide.1, &["bill:read"], &[A]);
    let proposals = |fill: &dyn Fn(&mut Usage<'_>)| {
        let mut usage = Usage::new(&wide.1, now());
        fill(&mut usage);
        let told = usage.report(&wide.0);
        told.iter().filter(|own| own.proposal.is_some()).count()
    };
    let note = |usage: &mut Usage<'_>| usage.note(now(), &used.input, None).unwrap();
    assert_eq!(proposals(&|usage| note(usage)), 2);
    assert_eq!(proposals(&|_| {}), 0);
    assert_eq!(
        proposals(&|usage| {
            note(usage);
            usage.note_pruned();
        }),
        0
    );
    assert_eq!(
        proposals(&|usage| {
            note(usage);
            usage.note_cut_short();
        }),
        0
    );

    // Policies that were changed to use roles: the record does not have the caller's roles.
    let moved = both(
        "permit (principal in Role::\"r\", action in Action::\"any\", resource == Api::\"billing\");",
    );
    let before = both(&format!(
        "permit ({AGENT}, action == Action::\"bill:read\", resource == Api::\"billing\");"
    ));
    let detail = billing_details(&["bill:read"], &[A]);
    let unread = before.1.decide(&Question {
        workload: &agent(),
        roles: None,
        ask: &ask(&before.1, "billing", detail, None),
        revocability: REVOCABILITY,
        task: facts(),
        bounds: None,
        now: now(),
    });
    let mut usage = Usage::new(&moved.1, now());
    usage.note(now(), &unread.input, None).unwrap();
    let read = usage.read();
    assert_eq!(
        (read.permits, read.told(), read.no_longer_permitted),
        (1, 0, 0)
    );
    assert_eq!(
        read.unknown,
        BTreeMap::from([(UnknownReason::RolesNotRead, 1)])
    );
    assert_eq!(usage.report(&moved.0)[0].proposal, None);
}

#[test]
fn a_permit_whose_terms_bind_another_keeps_its_scope() {
    // Without the first permit, the second would permit more than a minute.
    let wide = both(&format!(
        "@id(\"short\") @description(\"d\") @max_ttl(\"60\") permit ({AGENT}, action in [Action::\"bill:read\", Action::\"orders:read\"], resource == Api::\"billing\");\
         @id(\"long\") @description(\"d\") @max_ttl(\"600\") permit ({AGENT}, action == Action::\"orders:read\", resource == Api::\"billing\");"
    ).replace("@id", "\n@id"));
    let used = [asked(&wide.1, &["bill:read"], &[A])];
    let (told, narrower) = report(&wide, &used);
    for id in ["short", "long"] {
        let own = find(&told, id);
        assert!(own.kept.is_some() && own.proposal.is_none(), "{own:?}");
    }
    let ttl = |compiled: &CompiledGeneration| {
        let decision = asked(compiled, &["orders:read"], &[A]);
        decision.verdict.unwrap().ttl_seconds
    };
    assert_eq!((ttl(&wide.1), ttl(&narrower)), (60, 60));
}

#[test]
fn what_is_not_permitted_any_more_used_nothing() {
    let before = both(&format!(
        "permit ({AGENT}, action, resource == Api::\"billing\");"
    ));
    let after = both(&format!(
        "permit ({AGENT}, action == Action::\"orders:read\", resource == Api::\"billing\");"
    ));
    let used = asked(&before.1, &["bill:read"], &[A]);
    let mut usage = Usage::new(&after.1, now());
    usage.note(now(), &used.input, None).unwrap();
    let read = usage.read();
    assert_eq!((read.permits, read.no_longer_permitted), (1, 1));
    assert_eq!(usage.report(&after.0)[0].used, 0);
}

fn any_permit() -> impl Strategy<Value = String> {
    let principal = prop::sample::select(vec![
        "principal == Workload::dev::\"dev:agent\"",
        "principal == Workload::dev::\"dev:other\"",
        "principal in Role::\"r1\"",
        "principal is Workload::dev in Role::\"r1\"",
        "principal in Role::\"r2\"",
    ]);
    let scope = prop::sample::select(vec![
        "action, resource is Api",
        "action, resource == Api::\"billing\"",
        "action == Action::\"bill:read\", resource",
        "action in [Action::\"bill:read\", Action::\"orders:read\"], resource is Api",
        "action in Action::\"any\", resource in Api::\"billing\"",
        "action in [Action::\"bill:read\", Action::\"openTask\"], resource",
        "action == Action::\"openTask\", resource",
    ]);
    let when = prop::sample::select(vec![
        "",
        "",
        "when { context.task.depth == 1 }",
        "unless { context.task.depth == 2 }",
    ]);
    let term = prop::sample::select(vec!["", "", "@max_ttl(\"60\")", "@max_ttl(\"600\")"]);
    (principal, scope, when, term).prop_map(|(principal, scope, when, term)| {
        // A life is no term for opening a task.
        let term = if scope.contains("== Action::\"openTask\"") {
            ""
        } else {
            term
        };
        format!("{term} permit ({principal}, {scope}) {when};")
    })
}

/// A request: workload, rights and life.
type Wish = (
    Workload,
    BTreeSet<String>,
    Vec<AuthorizationDetail>,
    Option<u64>,
    bool,
);

fn any_wish() -> impl Strategy<Value = Wish> {
    (
        any_workload(),
        any_roles(),
        any_details(),
        prop::option::of(1_u64..900),
        any::<bool>(),
    )
}

fn judge(compiled: &CompiledGeneration, (workload, roles, asked, ttl, opens): &Wish) -> Decision {
    compiled.decide(&Question {
        workload,
        roles: Some(roles),
        ask: &ask(compiled, "billing", asked.clone(), *ttl),
        revocability: REVOCABILITY,
        task: TaskFacts {
            opens: *opens,
            ..facts()
        },
        bounds: None,
        now: now(),
    })
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn the_narrower_permits_what_was_used_and_nothing_that_the_wider_did_not(
        permits in prop::collection::vec(any_permit(), 1..5),
        forbid: bool,
        used in prop::collection::vec(any_wish(), 0..4),
        other in prop::collection::vec(any_wish(), 8),
    ) {
        let numbered = permits.iter().enumerate();
        let mut text = numbered.fold(String::new(), |all, (index, permit)| {
            format!("{all}@id(\"g{index}\") @description(\"d\") {permit}\n")
        });
        if forbid {
            text.push_str("@id(\"no\") @description(\"d\") forbid (principal, action == Action::\"orders:read\", resource) when { context.ttl_seconds > 200 };\n");
        }
        let mut from = parts("");
        from.policies = vec![PolicyFile { name: "g.cedar".into(), text }];
        let wide = build(from, &[]).unwrap();
        let permitted: Vec<Decision> = used
            .iter()
            .map(|wish| judge(&wide.1, wish))
            .filter(|decision| decision.verdict.is_ok())
            .collect();
        let (_, narrower) = report(&wide, &permitted);
        for decision in &permitted {
            let again = narrower.redecide(&decision.input).unwrap();
            prop_assert_eq!(&again.verdict, &decision.verdict);
        }
        for wish in other.iter().chain(&used) {
            let (before, after) = (judge(&wide.1, wish), judge(&narrower, wish));
            if let Ok(after) = after.verdict {
                let before = before.verdict;
                prop_assert!(
                    before.as_ref().is_ok_and(|before| after.ttl_seconds <= before.ttl_seconds),
                    "{:?} became {:?}", before, after
                );
            }
        }
    }
}
