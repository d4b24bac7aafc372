//! A policy about a part of a request holds for requests for the whole, in any spelling.
//!
//! The properties are compared with an oracle that does not use the comparison of requests: it
//! evaluates each single text within a grant by the policies as written.

use cedar_policy::{Authorizer, Context, PolicySet, RestrictedExpression};

use super::properties::cases;
use super::*;
use crate::domain::grant::{ActionName, Location};

/// The scope that permits `agent` to use the bucket.
const BUCKET: &str = "resource == Aws::\"reports\"";

/// [`parts`] with a bucket on AWS, whose sessions work in these regions.
fn with_bucket(policies: &str, regions: &[&str]) -> GenerationParts {
    let mut parts = parts(policies);
    parts.resources.push(
        serde_json::from_value(json!({
            "name": "reports", "kind": "aws", "owner": "data", "risk": "low",
            "actions": ["s3:Get*", "s3:PutObject", "s3:PutObjectAcl"],
            "locations": ["arn:aws:s3:::reports/*", "arn:aws:sqs:*:123456789012:reports-*"],
            "aws": {
                "role_arn": "arn:aws:iam::123456789012:role/reports", "mode": "web_identity",
                "region": "eu-west-1", "regions": regions
            }
        }))
        .unwrap(),
    );
    parts.task_types[0].resources.insert("reports".into());
    parts
}

fn on_bucket(policies: &str) -> CompiledGeneration {
    match build(with_bucket(policies, &[]), &[]) {
        Ok((_, compiled)) => compiled,
        Err(problems) => panic!("{policies}\n{problems:?}"),
    }
}

/// A generation of policies that are not validated, so that any condition is possible.
fn unvalidated(policies: &[String], regions: &[&str]) -> CompiledGeneration {
    let (frame, _) = build(
        with_bucket("forbid (principal, action, resource);", regions),
        &[],
    )
    .unwrap();
    let all = policies.iter().enumerate();
    let text = all.fold(String::new(), |all, (index, policy)| {
        format!("{all}@id(\"g{index}\") @description(\"d\") {policy}\n")
    });
    CompiledGeneration::unvalidated(&Generation {
        policies: vec![PolicyFile {
            name: "g.cedar".into(),
            text,
        }],
        ..frame
    })
}

fn decide_at(
    compiled: &CompiledGeneration,
    resource: &str,
    detail: &serde_json::Value,
    ttl_seconds: Option<u64>,
    now: Timestamp,
) -> Decision {
    let ask = ask(compiled, resource, details(json!([detail])), ttl_seconds);
    compiled.decide(&Question {
        workload: &agent(),
        roles: Some(&BTreeSet::new()),
        ask: &ask,
        revocability: REVOCABILITY,
        task: facts(),
        bounds: None,
        now,
    })
}

fn decided(compiled: &CompiledGeneration, resource: &str, detail: &serde_json::Value) -> Decision {
    decide_at(
        compiled,
        resource,
        detail,
        None,
        Timestamp::from_seconds(NOW),
    )
}

fn at_billing(compiled: &CompiledGeneration, locations: &[&str]) -> Decision {
    let detail = match locations {
        [] => json!({"type": "api", "actions": ["bill:read"]}),
        _ => json!({"type": "api", "actions": ["bill:read"], "locations": locations}),
    };
    decided(compiled, "billing", &detail)
}

fn in_bucket(
    compiled: &CompiledGeneration,
    action: &str,
    resource: Option<&str>,
    region: Option<&str>,
) -> Decision {
    let mut detail = json!({"type": "aws", "actions": [action]});
    if let Some(resource) = resource {
        detail["resources"] = json!([resource]);
    }
    if let Some(region) = region {
        detail["region"] = json!(region);
    }
    decided(compiled, "reports", &detail)
}

fn permit_all() -> String {
    format!("permit ({AGENT}, action in Action::\"any\", resource);")
}

#[test]
fn a_forbid_about_a_part_of_an_api_did_not_hold_for_the_whole() {
    let compiled = loaded(&format!(
        "{} forbid (principal, action == Action::\"bill:read\", resource == Api::\"billing\")
         when {{ context.location like \"https://billing.example/a/payroll*\" }};",
        permit_all()
    ));
    for (locations, outcome) in [
        (&["https://billing.example/a/payroll/42"][..], Outcome::Deny),
        (&["https://billing.example/a/payroll"], Outcome::Deny),
        (&["https://billing.example/a"], Outcome::Deny),
        (&[], Outcome::Deny),
        (
            &["https://billing.example/b", "https://billing.example/a"],
            Outcome::Deny,
        ),
        (&["https://billing.example/b"], Outcome::Permit),
        (&["https://billing.example/a/orders"], Outcome::Permit),
        (&["https://billing.example/a/pay"], Outcome::Permit),
    ] {
        let decision = at_billing(&compiled, locations);
        assert_eq!(decision.outcome(), outcome, "{locations:?}");
        let forbid = if outcome == Outcome::Deny { "p1" } else { "p0" };
        assert_eq!(decision.policies, [forbid], "{locations:?}");
    }
    // The rest of the request is offered.
    let refusal = refusal(at_billing(&compiled, &[]));
    assert_eq!(
        refusal.allowed.unwrap().authorization_details.unwrap(),
        details(json!([{"type": "api", "actions": ["bill:read"],
            "locations": ["https://billing.example/b"]}]))
    );
}

#[test]
fn a_permit_unless_about_a_part_did_not_hold_for_the_whole() {
    let compiled = loaded(&format!(
        "permit ({AGENT}, action == Action::\"bill:read\", resource == Api::\"billing\")
         unless {{ context.location == \"https://billing.example/a/x\"
                   || context.location == \"https://billing.example/b/y\" }};"
    ));
    for (location, outcome) in [
        ("https://billing.example/a", Outcome::Deny),
        ("https://billing.example/a/x", Outcome::Deny),
        ("https://billing.example/b", Outcome::Deny),
        ("https://billing.example/b/y", Outcome::Deny),
        ("https://billing.example/a/z", Outcome::Permit),
        // The locations below an excepted one are not excepted.
        ("https://billing.example/a/x/1", Outcome::Permit),
    ] {
        let decision = at_billing(&compiled, &[location]);
        assert_eq!(decision.outcome(), outcome, "{location}");
    }
    assert_eq!(at_billing(&compiled, &[]).outcome(), Outcome::Deny);
}

#[test]
fn a_rule_about_a_part_of_a_bucket_did_not_hold_for_the_whole() {
    let permit = format!("permit ({AGENT}, action in Action::\"any\", {BUCKET});");
    let forbid = |condition: &str| {
        on_bucket(&format!(
            "{permit} forbid (principal, action in Action::\"any\", {BUCKET}) when {{ {condition} }};"
        ))
    };
    let secret = forbid("context.location like \"arn:aws:s3:::reports/secret/*\"");
    for (resource, outcome) in [
        (Some("arn:aws:s3:::reports/secret/*"), Outcome::Deny),
        (Some("arn:aws:s3:::reports/secret/1"), Outcome::Deny),
        (Some("arn:aws:s3:::reports/*"), Outcome::Deny),
        (Some("arn:aws:s3:::reports/secre?/*"), Outcome::Deny),
        (Some("arn:aws:s3:::reports/??????/1"), Outcome::Deny),
        (Some("arn:aws:s3:::reports/*/1"), Outcome::Deny),
        (None, Outcome::Deny),
        (Some("arn:aws:s3:::reports/secret"), Outcome::Permit),
        (Some("arn:aws:s3:::reports/open/*"), Outcome::Permit),
        (Some("arn:aws:s3:::reports/secrets*"), Outcome::Permit),
        (
            Some("arn:aws:sqs:*:123456789012:reports-secret"),
            Outcome::Permit,
        ),
    ] {
        let decision = in_bucket(&secret, "s3:GetObject", resource, None);
        assert_eq!(decision.outcome(), outcome, "{resource:?}");
    }
    let here = Some("arn:aws:s3:::reports/open");
    let region = forbid("context has region && context.region == \"us-east-1\"");
    for (named, outcome) in [
        (Some("us-east-1"), Outcome::Deny),
        (None, Outcome::Deny),
        (Some("eu-west-1"), Outcome::Permit),
    ] {
        let decision = in_bucket(&region, "s3:GetObject", here, named);
        assert_eq!(decision.outcome(), outcome, "{named:?}");
    }
    let action = forbid("context.action == \"s3:GetObjectAcl\"");
    for (asked, outcome) in [
        ("s3:GetObjectAcl", Outcome::Deny),
        ("s3:getobjectacl", Outcome::Deny),
        ("s3:GetObjectAc?", Outcome::Deny),
        ("s3:GetObject*", Outcome::Deny),
        ("s3:Get*", Outcome::Deny),
        ("s3:GetObject", Outcome::Permit),
        ("s3:GetObjectAc", Outcome::Permit),
        ("s3:GetObject??", Outcome::Permit),
        ("s3:PutObjectAcl", Outcome::Permit),
    ] {
        let decision = in_bucket(&action, asked, here, None);
        assert_eq!(decision.outcome(), outcome, "{asked}");
    }
}

#[test]
fn what_is_left_out_is_everything_registered() {
    let permit = |condition: &str| {
        format!("permit ({AGENT}, action in Action::\"any\", {BUCKET}) when {{ {condition} }};")
    };
    let in_eu = permit("context has region && context.region == \"eu-west-1\"");
    let either =
        permit("context has region && [\"eu-west-1\", \"us-east-1\"].contains(context.region)");
    let not_us = permit("!(context has region && context.region == \"us-east-1\")");
    let two = [
        permit("context has region && context.region == \"eu-west-1\""),
        permit("context has region && context.region like \"us-*\""),
    ]
    .concat();
    let here = Some("arn:aws:s3:::reports/open");
    let asked = |policies: &str, regions: &[&str], named: Option<&str>| {
        let (_, compiled) = build(with_bucket(policies, regions), &[]).unwrap();
        in_bucket(&compiled, "s3:GetObject", here, named).outcome()
    };
    let both = &["eu-west-1", "us-east-1"][..];
    let (permitted, denied) = (Outcome::Permit, Outcome::Deny);
    assert_eq!(asked(&in_eu, &[], None), denied);
    assert_eq!(asked(&in_eu, both, None), denied);
    assert_eq!(asked(&in_eu, &["eu-west-1"], None), permitted);
    assert_eq!(asked(&in_eu, &[], Some("eu-west-1")), permitted);
    assert_eq!(asked(&either, &[], None), denied);
    assert_eq!(asked(&either, both, None), permitted);
    assert_eq!(asked(&two, both, None), permitted);
    assert_eq!(asked(&two, &[], None), denied);
    assert_eq!(asked(&not_us, &[], None), denied);
    assert_eq!(asked(&not_us, both, None), denied);
    assert_eq!(asked(&not_us, &["eu-west-1"], None), permitted);
}

#[test]
fn a_url_is_asked_for_as_the_place_and_as_what_is_below_it() {
    let permit = |condition: &str| {
        format!(
            "permit ({AGENT}, action == Action::\"bill:read\", resource == Api::\"billing\") when {{ {condition} }};"
        )
    };
    let (a, below) = ("https://billing.example/a", "https://billing.example/a/1");
    let outcomes = |condition: &str| {
        let compiled = loaded(&permit(condition));
        [a, below].map(|place| at_billing(&compiled, &[place]).outcome())
    };
    let (permitted, denied) = (Outcome::Permit, Outcome::Deny);
    let (is, like) = (
        format!("context.location == \"{a}\""),
        format!("context.location like \"{a}/*\""),
    );
    assert_eq!(outcomes(&format!("{is} || {like}")), [permitted, permitted]);
    assert_eq!(outcomes(&is), [denied, denied]);
    assert_eq!(outcomes(&like), [denied, permitted]);
    let both = [permit(&is), permit(&like)].concat();
    assert_eq!(at_billing(&loaded(&both), &[a]).outcome(), permitted);
    // The result is exact for an equivalent condition too.
    let turned = format!("!(context.location != \"{a}\" && !({like}))");
    assert_eq!(outcomes(&turned), [permitted, permitted]);

    // A permit by `==` alone is noted once, with its first location.
    let places = ["a", "b"].map(|own| format!("\"https://billing.example/{own}\""));
    let compiled = loaded(&format!(
        "{} {} {}",
        permit(&format!(
            "[{}].contains(context.location)",
            places.join(", ")
        )),
        permit(&format!("{is} || {like}")),
        "forbid (principal, action == Action::\"bill:read\", resource)
         when { context.location == \"https://billing.example/b\" };"
    ));
    let [told] = &compiled.notes().single_locations[..] else {
        panic!("{:?}", compiled.notes());
    };
    assert_eq!((told.policy.as_str(), told.count), ("p0", 2));
    assert_eq!(told.first, a);
}

#[test]
fn two_conditions_on_one_place_are_not_taken_for_two_places() {
    let compiled = loaded(&format!(
        "{} forbid (principal, action == Action::\"bill:read\", resource)
         when {{ context.location like \"*/payroll/*\" && context.location like \"*.pdf\" }};",
        permit_all()
    ));
    for (location, outcome) in [
        ("https://billing.example/a/payroll/1.pdf", Outcome::Deny),
        ("https://billing.example/a/payroll", Outcome::Deny),
        ("https://billing.example/a", Outcome::Deny),
        // It is read as a request for both conditions, although the locations below it could meet
        // only one of them.
        ("https://billing.example/a/payroll/1", Outcome::Deny),
        ("https://billing.example/b/1.pdf", Outcome::Deny),
    ] {
        let decision = at_billing(&compiled, &[location]);
        assert_eq!(decision.outcome(), outcome, "{location}");
    }
    let on_bucket = on_bucket(&format!(
        "permit ({AGENT}, action in Action::\"any\", {BUCKET})
         unless {{ context.location like \"*/payroll/*\" && context.location like \"*.pdf\" }};"
    ));
    for (resource, outcome) in [
        ("arn:aws:s3:::reports/payroll/1.pdf", Outcome::Deny),
        ("arn:aws:s3:::reports/payroll/1.p?f", Outcome::Deny),
        ("arn:aws:s3:::reports/payroll/*", Outcome::Deny),
        ("arn:aws:s3:::reports/payroll/1.txt", Outcome::Permit),
        ("arn:aws:s3:::reports/1.pdf", Outcome::Permit),
    ] {
        let decision = in_bucket(&on_bucket, "s3:GetObject", Some(resource), None);
        assert_eq!(decision.outcome(), outcome, "{resource}");
    }
}

#[test]
fn the_terms_of_a_permit_about_a_part_bind_who_asks_for_the_whole() {
    let with = |annotation: &str| {
        loaded(&format!(
            "{} @id(\"strict\") @description(\"d\") {annotation}
             permit ({AGENT}, action == Action::\"bill:read\", resource == Api::\"billing\")
             when {{ context.location like \"https://billing.example/a/payroll*\" }};",
            permit_all()
        ))
    };
    let short = with("@max_ttl(\"60\")");
    for (locations, ttl) in [
        (&["https://billing.example/a/payroll"][..], 60),
        (&["https://billing.example/a"], 60),
        (&[], 60),
        (&["https://billing.example/b"], 300),
        (&["https://billing.example/a/x"], 300),
    ] {
        let decision = at_billing(&short, locations);
        let granted = decision.verdict.as_ref().unwrap().ttl_seconds;
        assert_eq!(granted, ttl, "{locations:?}");
        let named = decision.policies.contains(&"strict".to_owned());
        assert_eq!(named, ttl == 60, "{locations:?}");
    }
    let approved = with("@approval(\"required\")");
    assert_eq!(at_billing(&approved, &[]).outcome(), Outcome::Pending);
    let elsewhere = at_billing(&approved, &["https://billing.example/b"]);
    assert_eq!(elsewhere.outcome(), Outcome::Permit);
}

#[test]
fn what_cannot_be_asked_about_many_values_does_not_load() {
    let forbid = |condition: &str| {
        format!(
            "\nforbid (principal is Workload::dev, action == Action::\"orders:read\", resource)\nwhen {{ {condition} }};"
        )
    };
    for (condition, says) in [
        (
            "context.location == principal.claims.sub",
            "uses context.location",
        ),
        (
            "(context.location == \"a\") == (context.task.depth == 1)",
            "uses context.location",
        ),
        ("{a: context.location}.a == \"x\"", "uses context.location"),
        (
            "context.location == \"a\" && context.ttl_seconds * 2 > 60",
            "with a computation",
        ),
    ] {
        let problems = refused(&forbid(condition));
        assert!(problems.contains(says), "{condition}: {problems}");
        assert!(problems.starts_with("test.cedar:1:"), "{problems}");
        assert!(problems.contains("policy `p0`") && problems.contains("\n    "));
    }
    // The accepted forms, and a computation in a policy of its own.
    loaded(&forbid(
        "(context.location == \"a\" && context.task.depth == 1) || context.location != \"b\"",
    ));
    loaded(&forbid("context.ttl_seconds * 2 > 60"));
}

#[test]
fn a_thousand_places_in_a_policy_cost_no_more_than_one() {
    let permit = |places: usize| {
        let all: Vec<String> = (0..places)
            .map(|n| {
                let place = format!("https://billing.example/a/{n}");
                format!("context.location == \"{place}\" || context.location like \"{place}/*\"")
            })
            .collect();
        format!(
            "permit ({AGENT}, action == Action::\"bill:read\", resource == Api::\"billing\") when {{ {} }};",
            all.join(" || ")
        )
    };
    let steps = |compiled: &CompiledGeneration, place: &str| {
        let decision = at_billing(compiled, &[place]);
        let input = Input::read(&decision.input).unwrap();
        let budget = Budget::new(u64::MAX);
        let inquiry = compiled.inquiry(&input, &budget).unwrap();
        let answers = inquiry.answers(input.now, &budget);
        (decision.outcome(), answers.len(), budget.spent())
    };
    let (one, thousand) = (loaded(&permit(1)), loaded(&permit(1_000)));
    for place in [
        "https://billing.example/a/0",
        "https://billing.example/a/0/x",
    ] {
        let (few, many) = (steps(&one, place), steps(&thousand, place));
        assert_eq!((few.0, many.0), (Outcome::Permit, Outcome::Permit));
        assert_eq!(few.1, many.1);
        assert!(many.2 <= 2 * few.2, "{few:?} {many:?}");
    }
    for place in ["https://billing.example/a", "https://billing.example/b/0"] {
        let (few, many) = (steps(&one, place), steps(&thousand, place));
        assert_eq!((few.0, many.0), (Outcome::Deny, Outcome::Deny));
        assert!(many.2 <= 2 * few.2, "{few:?} {many:?}");
    }
    // Each of the thousand locations is permitted.
    for n in (0..1_000).step_by(37) {
        let place = format!("https://billing.example/a/{n}");
        assert_eq!(at_billing(&thousand, &[&place]).outcome(), Outcome::Permit);
        let next = format!("https://billing.example/a/{n}0000");
        assert_eq!(at_billing(&thousand, &[&next]).outcome(), Outcome::Deny);
    }
}

#[test]
fn a_request_that_takes_too_many_steps_is_refused_and_not_decided() {
    // The list contains no requested location, so everything has to be compared.
    let places: Vec<String> = (0..1_000)
        .map(|n| format!("\"arn:aws:s3:::reports/{n}/abcdefghijklmnopqrstuvwxyz\""))
        .collect();
    let compiled = on_bucket(&format!(
        "permit ({AGENT}, action in Action::\"any\", {BUCKET})
         unless {{ [{}].contains(context.location) }};",
        places.join(", ")
    ));
    let resources: Vec<String> = (0..16)
        .map(|n| format!("arn:aws:s3:::reports/*?abcdefghij*{n}x"))
        .collect();
    let actions = ["s3:GetObject", "s3:GetObjectAcl", "s3:GetObjectTagging"];
    let detail = json!({"type": "aws", "actions": actions, "resources": resources});
    let refused = refusal(decided(&compiled, "reports", &detail));
    assert_eq!(refused.code, RefusalCode::TooManyRights);
    assert!(refused.detail.contains("steps"), "{}", refused.detail);
    assert_eq!(refused.allowed, None);
    let fewer = json!({"type": "aws", "actions": ["s3:GetObject"], "resources": [resources[0]]});
    assert_eq!(
        decided(&compiled, "reports", &fewer).outcome(),
        Outcome::Permit
    );
}

#[test]
fn a_policy_that_named_the_record_of_answers_permitted_everyone() {
    for condition in [
        "context has asked",
        "context has asked.x",
        "context.asked.contains(0)",
        "context[\"asked\"].contains(0)",
        "context has asked && context.location == \"a\"",
        "context has location || !(context has asked)",
        "(if context has asked then true else context has location)",
        "[context has asked].contains(true)",
    ] {
        let policy = format!(
            "permit ({AGENT}, action in Action::\"any\", resource == Api::\"billing\")
             when {{ context.task.type == \"nightly-report\" && (context.task.depth == 7 || {condition}) }};"
        );
        let problems = load(&policy).unwrap_err();
        assert!(!problems.is_empty(), "{condition}");
        let frame = super::parts("forbid (principal, action, resource);");
        let (frame, _) = build(frame, &[]).unwrap();
        // Not even without validation.
        let generation = Generation {
            policies: vec![PolicyFile {
                name: "a.cedar".into(),
                text: format!("@id(\"a\") @description(\"d\") {policy}"),
            }],
            ..frame
        };
        let digest = super::generation::digest_of(&generation).unwrap();
        let problems = CompiledGeneration::compile_recorded(&generation, digest).unwrap_err();
        assert!(
            problems[0].message.contains("context.asked"),
            "{condition}: {problems:?}"
        );
        assert!(!problems[0].remedy.is_empty());
    }
}

#[test]
fn an_action_of_aws_in_other_letters_was_refused() {
    let compiled = on_bucket(&format!(
        "permit ({AGENT}, action in Action::\"any\", {BUCKET});
         forbid (principal, action in Action::\"s3:PutObjectAcl\", {BUCKET});
         forbid (principal, action, {BUCKET})
         when {{ context has action && context.action == \"S3:getsecret\" }};"
    ));
    let everywhere = Some("arn:aws:s3:::reports/a");
    for (action, outcome) in [
        ("s3:PutObject", Outcome::Permit),
        ("s3:putobject", Outcome::Permit),
        ("s3:getobject", Outcome::Permit),
        ("s3:GETOBJECT", Outcome::Permit),
        ("s3:putobjectacl", Outcome::Deny),
        ("s3:PUTOBJECTACL", Outcome::Deny),
        ("s3:GetSecret", Outcome::Deny),
        ("s3:getsecret", Outcome::Deny),
    ] {
        let decision = in_bucket(&compiled, action, everywhere, None);
        assert_eq!(decision.outcome(), outcome, "{action}");
    }
    // For an API these are two actions.
    let api = loaded(&format!(
        "permit ({AGENT}, action in Action::\"any\", resource == Api::\"billing\");"
    ));
    let detail = json!({"type": "api", "actions": ["bill:Read"]});
    let details: Vec<AuthorizationDetail> = serde_json::from_value(json!([detail])).unwrap();
    let resource = api.catalog().resource("billing").unwrap();
    let budget = Budget::of_one_comparison();
    assert!(resource.check_serves(&details[0], &budget).is_err());
}

#[test]
fn forbids_that_no_request_meets_are_told() {
    let compiled = on_bucket(&format!(
        "permit ({AGENT}, action in Action::\"any\", resource);
         forbid (principal, action in Action::\"any\", resource == Api::\"billing\")
         when {{ {} }};
         forbid (principal, action in Action::\"any\", resource == Api::\"billing\")
         when {{ {} }};
         forbid (principal, action in Action::\"any\", {BUCKET})
         when {{ context.location like \"arn:aws:s3:::others/*\" }};
         forbid (principal, action in Action::\"any\", {BUCKET})
         when {{ context.location like \"arn:aws:s3:::*.pdf\" }};
         forbid (principal, action in Action::\"any\", {BUCKET})
         unless {{ context has region }};
         forbid (principal, action in Action::\"any\", {BUCKET})
         when {{ context has region && context.region == \"us-east-1\" }};",
        [
            "https://BILLING.example/a/x",
            "https://billing.example:443/a/x",
            "https://billing.example/a//x",
            "https://billing.example/a/%70ay",
            "http://billing.example/a/x",
            "https://other.example/a",
            "/a/x",
            "https://billing.example/c",
        ]
        .map(|own| format!("context.location == \"{own}\""))
        .join(" || "),
        [
            "https://billing.example/a",
            "https://billing.example/a/x",
            "https://billing.example/b/x/y",
            "https://billing.example/a/x*",
            "https://billing*",
            "*/x",
        ]
        .map(|own| format!("context.location like \"{own}\""))
        .join(" || "),
    ));
    let notes = compiled.notes();
    let unmet: Vec<(&str, usize)> = notes
        .unmet_locations
        .iter()
        .map(|own| (own.policy.as_str(), own.count))
        .collect();
    assert_eq!(unmet, [("p1", 8), ("p3", 1)], "{notes:?}");
    assert_eq!(notes.without_region, ["p5"]);
}

/// Regression: the offer compared eight permitted locations of every refused action with eight
/// refused ones, each pair with its own budget of steps, and again for each registered action. A
/// refusal took a minute of CPU time.
#[test]
fn the_offer_compares_patterns_within_the_steps_of_the_request() {
    let mut parts = with_bucket(
        &format!(
            "permit ({AGENT}, action in Action::\"any\", {BUCKET});
             forbid (principal, action, {BUCKET})
             when {{ context has location && context.location like \"*.pdf\" }};"
        ),
        &[],
    );
    let bucket = parts.resources.last_mut().unwrap();
    let names = [
        "s3:Get*",
        "s3:GetObject",
        "s3:GetObjectAcl",
        "s3:GetObjectTagging",
        "s3:GetBucketAcl",
    ];
    bucket.actions = names
        .map(|name| ActionName::try_from(name.to_owned()).unwrap())
        .into();
    let (_, compiled) = build(parts, &[]).unwrap();
    let permitted = |n: usize| format!("arn:aws:s3:::reports/*a??????????????b{n}");
    let refused = |n: usize| {
        format!(
            "arn:aws:s3:::reports/{}{}{n}.pdf",
            "a*".repeat(15),
            "a".repeat(31)
        )
    };
    let detail =
        |all: Vec<String>| json!({"type": "aws", "actions": ["s3:Get*"], "resources": all});
    let hard = (0..8).flat_map(|n| [permitted(n), refused(n)]).collect();
    let began = std::time::Instant::now();
    let decision = decided(&compiled, "reports", &detail(hard));
    // The refusal is a decision, with its policies. Without the bound it takes minutes here.
    assert!(began.elapsed() < std::time::Duration::from_mins(1));
    assert_eq!(decision.policies, ["p1"]);
    let verdict = refusal(decision.clone());
    assert_eq!(verdict.code, RefusalCode::NotPermitted, "{verdict:?}");
    assert_eq!(verdict.allowed, None);
    // The offer takes only the steps that remain after the decision.
    let input = Input::read(&decision.input).unwrap();
    let budget = Budget::new(crate::domain::limits::MAX_REQUEST_STEPS);
    let options = super::super::decide::EvaluationOptions {
        with_offer: true,
        at: input.now,
        budget: &budget,
    };
    assert!(
        compiled
            .evaluate_or_refuse(&input, options)
            .verdict
            .is_err()
    );
    assert!(budget.is_exhausted());
    // If they suffice, the offer is made, and it contains a right once even if several policies
    // decide about it.
    let easy = vec![permitted(0), "arn:aws:s3:::reports/a.pdf".to_owned()];
    let allowed = refusal(decided(&compiled, "reports", &detail(easy))).allowed;
    let offered = allowed.unwrap().authorization_details.unwrap();
    assert_eq!(
        serde_json::to_value(offered).unwrap(),
        json!([detail(vec![permitted(0)])])
    );
}

// ---------------------------------------------------------------- brute force

/// Conditions over these comparisons and over facts that are independent of the requested values.
fn condition(comparisons: Vec<String>) -> impl Strategy<Value = String> {
    let constant = prop::sample::select(vec![
        "context.task.depth == 1".to_owned(),
        "context.task.has_parent".to_owned(),
        "context.ttl_seconds < 100".to_owned(),
        "context has location".to_owned(),
        "context has region".to_owned(),
    ]);
    let leaf = prop_oneof![4 => prop::sample::select(comparisons), 1 => constant];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a}) && ({b})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a}) || ({b})")),
            inner.clone().prop_map(|a| format!("!({a})")),
            (inner.clone(), inner.clone(), inner)
                .prop_map(|(a, b, c)| format!("if {a} then {b} else {c}")),
        ]
    })
}

/// Policies about `resource`. Half of the time, one of them permits everything.
fn policies(
    resource: &'static str,
    comparisons: Vec<String>,
) -> impl Strategy<Value = Vec<String>> {
    let annotation = prop::sample::select(vec![
        "",
        "",
        "@max_ttl(\"60\")",
        "@approval(\"required\")",
        "@mode(\"observe\") @enforce_after(\"2026-11-30\")",
    ]);
    let effect = prop::sample::select(vec!["permit", "permit", "forbid"]);
    let word = prop::sample::select(vec!["when", "when", "unless"]);
    let policy = (annotation, effect, word, condition(comparisons)).prop_map(
        move |(annotation, effect, word, condition)| {
            let annotation = match effect {
                "forbid" if !annotation.starts_with("@mode") => "",
                _ => annotation,
            };
            format!(
                "{annotation} {effect} ({AGENT}, action in Action::\"any\", {resource}) {word} {{ {condition} }};"
            )
        },
    );
    (prop::collection::vec(policy, 1..5), any::<bool>()).prop_map(|(mut all, open)| {
        if open {
            all.push(permit_all());
        }
        all
    })
}

/// The result of the policies as written, for one text for each fact.
fn oracle(
    compiled: &CompiledGeneration,
    resource: &str,
    action: &ActionName,
    (location, region): (&str, Option<&str>),
    (ttl_seconds, now): (u64, Timestamp),
) -> Option<u64> {
    let who = mapping::PrincipalInput {
        attestor: "dev".into(),
        identity: agent().identity,
        roles: Some(BTreeSet::new()),
        claims: agent().claims,
    };
    let scene = compiled.model.workload_scene(&who, Some(resource)).unwrap();
    let counting = compiled
        .policies()
        .filter(|own| own.observed_until.is_none_or(|until| until <= now));
    let set = PolicySet::from_policies(counting.map(|own| own.policy.clone())).unwrap();
    let text = |text: &str| RestrictedExpression::new_string(text.to_owned());
    let registered = compiled.catalog().resource(resource).unwrap();
    let budget = Budget::new(u64::MAX);
    let mut longest = registered.max_ttl_seconds;
    for decided_as in registered.decided_as(action, &budget) {
        let mut pairs = vec![
            ("location".to_owned(), text(location)),
            (
                "revocability".to_owned(),
                mapping::revocability_record(REVOCABILITY).unwrap(),
            ),
            (
                "ttl_seconds".to_owned(),
                RestrictedExpression::new_long(ttl_seconds.try_into().unwrap()),
            ),
            (
                "task".to_owned(),
                RestrictedExpression::new_record([
                    ("type".to_owned(), text("nightly-report")),
                    ("depth".to_owned(), RestrictedExpression::new_long(1)),
                    (
                        "deadline_seconds".to_owned(),
                        RestrictedExpression::new_long(3_600),
                    ),
                    (
                        "has_parent".to_owned(),
                        RestrictedExpression::new_bool(false),
                    ),
                ])
                .unwrap(),
            ),
        ];
        if registered.kind.aws_role().is_some() {
            pairs.push(("action".to_owned(), text(action.as_str())));
            pairs.extend(region.map(|region| ("region".to_owned(), text(region))));
        }
        let request = cedar_policy::Request::new(
            scene.principal.clone(),
            compiled.model.action(decided_as.as_str()),
            compiled.model.resource(resource).unwrap(),
            Context::from_pairs(pairs).unwrap(),
            Some(&compiled.model.written),
        )
        .unwrap();
        let response = Authorizer::new().is_authorized(&request, &set, &scene.entities);
        match slice::join([response]) {
            slice::Answer::Permit(permits) => {
                for id in &permits.satisfied {
                    let terms = &compiled.obligations[id];
                    if terms.approval.is_some() {
                        return None;
                    }
                    longest = longest.min(terms.max_ttl_seconds.unwrap_or(longest));
                }
            }
            _ => return None,
        }
    }
    Some(longest)
}

const PLACES: [&str; 6] = ["a", "a/x", "a/x/y", "a/xy", "b", "b/x.pdf"];

fn place(own: &str) -> String {
    format!("https://billing.example/{own}")
}

fn url_comparisons() -> Vec<String> {
    let mut all = vec![
        "[\"https://billing.example/a\", \"https://billing.example/a/x\"].contains(context.location)"
            .to_owned(),
        "context.location like \"*.pdf\"".to_owned(),
        "context.location like \"*/x*\"".to_owned(),
        "context.location like \"*a/x\"".to_owned(),
    ];
    for own in PLACES {
        all.push(format!("context.location == \"{}\"", place(own)));
        all.push(format!("context.location != \"{}\"", place(own)));
        all.push(format!("context.location like \"{}*\"", place(own)));
        all.push(format!("context.location like \"{}/*\"", place(own)));
    }
    all
}

fn now_or_then() -> impl Strategy<Value = Timestamp> {
    let then: Timestamp = "2026-12-24T00:00:00Z".parse().unwrap();
    prop::sample::select(vec![Timestamp::from_seconds(NOW), then])
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn no_place_within_a_grant_is_refused_alone(
        policies in policies("resource == Api::\"billing\"", url_comparisons()),
        asked in prop::collection::btree_set(prop::sample::select(PLACES.to_vec()), 0..4),
        ttl in prop::option::of(prop::sample::select(vec![30_u64, 60, 200])),
        now in now_or_then(),
    ) {
        let compiled = unvalidated(&policies, &[]);
        let wanted: Vec<String> = asked.iter().map(|own| place(own)).collect();
        let detail = |locations: &[String]| {
            json!({"type": "api", "actions": ["bill:read", "orders:read"], "locations": locations})
        };
        let decision = decide_at(&compiled, "billing", &detail(&wanted), ttl, now);
        let again = compiled.redecide(&decision.input).unwrap();
        prop_assert_eq!(&again.verdict, &decision.verdict);
        prop_assert_ne!(decision.outcome(), Outcome::Indeterminate);
        if let Err(refusal) = &decision.verdict {
            // An offered request is permitted when it is requested.
            if let Some(offered) = refusal.allowed.as_ref().and_then(|own| own.authorization_details.clone()) {
                let ask = ask(&compiled, "billing", offered, refusal.allowed.as_ref().unwrap().max_ttl_seconds.or(ttl));
                let second = compiled.decide(&Question {
                    workload: &agent(), roles: Some(&BTreeSet::new()), ask: &ask, revocability: REVOCABILITY, task: facts(), bounds: None, now,
                });
                prop_assert!(
                    second.outcome() == Outcome::Permit
                        || refusal.code == RefusalCode::TtlTooLong && second.outcome() == Outcome::Pending
                );
            }
            return Ok(());
        }
        let granted = decision.verdict.as_ref().unwrap().ttl_seconds;
        let input: serde_json::Value = serde_json::from_slice(&decision.input).unwrap();
        let details: Vec<AuthorizationDetail> =
            serde_json::from_value(input["credential"]["authorization_details"].clone()).unwrap();
        let asked_ttl = ttl.unwrap_or(300);
        let inner = ["", "/x", "/x/y", "/payroll/1.pdf", "/q"];
        for location in details[0].locations() {
            for rest in inner {
                let text = format!("{location}{rest}");
                for action in details[0].actions() {
                    // The single text, by the policies as written.
                    let alone = oracle(&compiled, "billing", action, (&text, None), (asked_ttl, now));
                    prop_assert!(alone.is_some_and(|longest| granted <= longest), "{}: {:?}", text, alone);
                }
                // The location, requested alone.
                let alone = decide_at(&compiled, "billing", &detail(std::slice::from_ref(&text)), ttl, now);
                let life = alone.verdict.map(|terms| terms.ttl_seconds);
                prop_assert!(life.as_ref().is_ok_and(|life| *life >= granted), "{}: {:?}", text, life);
            }
        }
    }

    #[test]
    fn nothing_within_a_grant_on_aws_is_refused_alone(
        policies in policies(BUCKET, aws_comparisons()),
        asked in prop::sample::select(ASKED_ACTIONS.to_vec()),
        resource in prop::option::of(prop::sample::select(ASKED_ARNS.to_vec())),
        region in prop::option::of(prop::sample::select(REGIONS.to_vec())),
        confined: bool,
        ttl in prop::option::of(prop::sample::select(vec![30_u64, 60, 200])),
        now in now_or_then(),
    ) {
        let compiled = unvalidated(&policies, if confined { &REGIONS } else { &[] });
        let detail = |action: &str, resource: Option<&str>, region: Option<&str>| {
            let mut detail = json!({"type": "aws", "actions": [action]});
            if let Some(resource) = resource {
                detail["resources"] = json!([resource]);
            }
            if let Some(region) = region {
                detail["region"] = json!(region);
            }
            detail
        };
        let whole = detail(asked, resource, region);
        let decision = decide_at(&compiled, "reports", &whole, ttl, now);
        prop_assert_ne!(decision.outcome(), Outcome::Indeterminate);
        let Ok(permitted) = &decision.verdict else {
            return Ok(());
        };
        let location = |text: &str| Location::try_from(text.to_owned()).unwrap();
        let named = |text: &str| ActionName::try_from(text.to_owned()).unwrap();
        for action in SINGLE_ACTIONS.iter().filter(|own| named(asked).covers_within(&named(own), &Budget::of_one_comparison())) {
            let within = |own: &&&str| resource.is_none_or(|asked| location(asked).covers_within(&location(own), &Budget::of_one_comparison()));
            for arn in SINGLE_ARNS.iter().filter(within) {
                for one in REGIONS.iter().filter(|own| region.is_none_or(|asked| asked == **own)) {
                    let asked_ttl = ttl.unwrap_or(300);
                    let alone = oracle(
                        &compiled, "reports", &named(action), (arn, Some(one)), (asked_ttl, now),
                    );
                    prop_assert!(
                        alone.is_some_and(|longest| permitted.ttl_seconds <= longest),
                        "{} {} {}: {:?}", action, arn, one, alone
                    );
                    // An action that is registered without wildcards is requested as it is
                    // registered.
                    let folded = action.to_ascii_lowercase().replace("s3:put", "s3:Put");
                    let spelt = [(*action).to_owned(), folded.replace("Putobject", "PutObject")];
                    for spelt in spelt.into_iter().filter(|own| !own.ends_with("PutObjectacl")) {
                        let detail = detail(&spelt, Some(arn), Some(one));
                        let alone = decide_at(&compiled, "reports", &detail, ttl, now);
                        let life = alone.verdict.map(|terms| terms.ttl_seconds);
                        prop_assert!(
                            life.as_ref().is_ok_and(|life| *life >= permitted.ttl_seconds),
                            "{} {} {}: {:?}", spelt, arn, one, life
                        );
                    }
                }
            }
        }
    }
}

const REGIONS: [&str; 2] = ["eu-west-1", "us-east-1"];
const SINGLE_ACTIONS: [&str; 4] = [
    "s3:GetObject",
    "s3:GetObjectAcl",
    "s3:PutObject",
    "s3:PutObjectAcl",
];
const ASKED_ACTIONS: [&str; 7] = [
    "s3:GetObject",
    "s3:getobjectacl",
    "s3:GetObjectAc?",
    "s3:GetObject*",
    "s3:Get*",
    "s3:PutObject",
    "s3:Get*A*",
];
const SINGLE_ARNS: [&str; 6] = [
    "arn:aws:s3:::reports/a",
    "arn:aws:s3:::reports/a/x",
    "arn:aws:s3:::reports/secret/x",
    "arn:aws:s3:::reports/secret",
    "arn:aws:sqs:eu-west-1:123456789012:reports-a",
    "arn:aws:sqs:us-east-1:123456789012:reports-secret",
];
const ASKED_ARNS: [&str; 9] = [
    "arn:aws:s3:::reports/*",
    "arn:aws:s3:::reports/a",
    "arn:aws:s3:::reports/?",
    "arn:aws:s3:::reports/a*",
    "arn:aws:s3:::reports/*/x",
    "arn:aws:s3:::reports/secre?/*",
    "arn:aws:sqs:*:123456789012:reports-*",
    "arn:aws:sqs:eu-west-1:123456789012:reports-?",
    "arn:aws:sqs:*:123456789012:reports-secret",
];

fn aws_comparisons() -> Vec<String> {
    let mut all: Vec<String> = [
        "context.location like \"arn:aws:s3:::reports/secret/*\"",
        "context.location like \"arn:aws:s3:::reports/*\"",
        "context.location like \"*/x\"",
        "context.location like \"*secret*\"",
        "context.location like \"arn:aws:sqs:*\"",
        "context.location like \"arn:aws:sqs:us-*:reports-*\"",
        "context.location == \"arn:aws:s3:::reports/a\"",
        "context.location != \"arn:aws:s3:::reports/a/x\"",
        "context.action == \"s3:GetObjectAcl\"",
        "context.action like \"s3:Get*\"",
        "context.action like \"*Acl\"",
        "[\"s3:GetObject\", \"s3:PutObject\"].contains(context.action)",
        "context.action != \"s3:PutObject\"",
        "action == Action::\"s3:PutObjectAcl\"",
        "action in Action::\"s3:Get*\"",
    ]
    .map(str::to_owned)
    .to_vec();
    for region in REGIONS {
        all.push(format!(
            "context has region && context.region == \"{region}\""
        ));
        all.push(format!(
            "!(context has region && context.region == \"{region}\")"
        ));
        all.push(format!(
            "context has region && context.region != \"{region}\""
        ));
    }
    all
}
