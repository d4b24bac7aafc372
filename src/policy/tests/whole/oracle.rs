//! Properties of decisions about random policies, compared with an oracle.
//!
//! The oracle does not use the comparison of requests: it evaluates each single text within a grant
//! by the policies as written.

use cedar_policy::{Authorizer, Context, PolicySet, RestrictedExpression};

use super::super::properties::cases;
use super::*;
use crate::domain::action::ActionName;
use crate::domain::location::Location;

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
        let entities = compiled.model.entities_by_schema(&scene);
        let response = Authorizer::new().is_authorized(&request, &set, &entities);
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

const LOCATIONS: [&str; 6] = ["a", "a/x", "a/x/y", "a/xy", "b", "b/x.pdf"];

fn url(own: &str) -> String {
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
    for own in LOCATIONS {
        all.push(format!("context.location == \"{}\"", url(own)));
        all.push(format!("context.location != \"{}\"", url(own)));
        all.push(format!("context.location like \"{}*\"", url(own)));
        all.push(format!("context.location like \"{}/*\"", url(own)));
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
        asked in prop::collection::btree_set(prop::sample::select(LOCATIONS.to_vec()), 0..4),
        ttl in prop::option::of(prop::sample::select(vec![30_u64, 60, 200])),
        now in now_or_then(),
    ) {
        let compiled = unvalidated(&policies, &[]);
        let wanted: Vec<String> = asked.iter().map(|own| url(own)).collect();
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
