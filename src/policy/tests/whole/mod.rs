//! A policy about a part of a request holds for requests for the whole, in any spelling.
//!
//! `oracle` compares decisions about random policies with the policies as written, and `steps` tests
//! the cost of comparisons.

mod oracle;
mod steps;

use super::*;

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
            "https://billing.example/a/x?page=1",
            "https://billing.example/a;x/y",
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
    assert_eq!(unmet, [("p1", 10), ("p3", 1)], "{notes:?}");
    assert_eq!(notes.without_region, ["p5"]);
}
