//! The steps that comparing a request with policies takes, and the refusal when they run out.

use super::*;
use crate::domain::action::ActionName;

#[test]
fn a_thousand_places_in_a_policy_cost_no_more_than_one() {
    let permit = |locations: usize| {
        let all: Vec<String> = (0..locations)
            .map(|n| {
                let location = format!("https://billing.example/a/{n}");
                format!(
                    "context.location == \"{location}\" || context.location like \"{location}/*\""
                )
            })
            .collect();
        format!(
            "permit ({AGENT}, action == Action::\"bill:read\", resource == Api::\"billing\") when {{ {} }};",
            all.join(" || ")
        )
    };
    let steps = |compiled: &CompiledGeneration, location: &str| {
        let decision = at_billing(compiled, &[location]);
        let input = Input::read(&decision.input).unwrap();
        let budget = Budget::new(u64::MAX);
        let inquiry = compiled.inquiry(&input, &budget).unwrap();
        let answers = inquiry.answers(input.now, &budget);
        (decision.outcome(), answers.len(), budget.spent())
    };
    let (one, thousand) = (loaded(&permit(1)), loaded(&permit(1_000)));
    for location in [
        "https://billing.example/a/0",
        "https://billing.example/a/0/x",
    ] {
        let (few, many) = (steps(&one, location), steps(&thousand, location));
        assert_eq!((few.0, many.0), (Outcome::Permit, Outcome::Permit));
        assert_eq!(few.1, many.1);
        assert!(many.2 <= 2 * few.2, "{few:?} {many:?}");
    }
    for location in ["https://billing.example/a", "https://billing.example/b/0"] {
        let (few, many) = (steps(&one, location), steps(&thousand, location));
        assert_eq!((few.0, many.0), (Outcome::Deny, Outcome::Deny));
        assert!(many.2 <= 2 * few.2, "{few:?} {many:?}");
    }
    // Each of the thousand locations is permitted.
    for n in (0..1_000).step_by(37) {
        let location = format!("https://billing.example/a/{n}");
        assert_eq!(
            at_billing(&thousand, &[&location]).outcome(),
            Outcome::Permit
        );
        let next = format!("https://billing.example/a/{n}0000");
        assert_eq!(at_billing(&thousand, &[&next]).outcome(), Outcome::Deny);
    }
}

#[test]
fn a_request_that_takes_too_many_steps_is_refused_and_not_decided() {
    // The list contains no requested location, so everything has to be compared.
    let locations: Vec<String> = (0..1_000)
        .map(|n| format!("\"arn:aws:s3:::reports/{n}/abcdefghijklmnopqrstuvwxyz\""))
        .collect();
    let compiled = on_bucket(&format!(
        "permit ({AGENT}, action in Action::\"any\", {BUCKET})
         unless {{ [{}].contains(context.location) }};",
        locations.join(", ")
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
    let options = crate::policy::decide::EvaluationOptions {
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
