//! Tests of policy suites.

use super::*;

fn run_suite(toml: &str) -> suite::Report {
    let (_, compiled) = build(samples(), &[]).unwrap();
    let file = PolicyFile {
        name: "t.toml".into(),
        text: toml.into(),
    };
    suite::run(&compiled, &[file], Timestamp::from_seconds(NOW))
}

fn case(extra: &str) -> String {
    format!(
        "[[credential]]\nname = \"c\"\nattestor = \"dev\"\nidentity = \"dev:agent%3Areports\"\nclaims = {{ sub = \"s\" }}\nresource = \"orders-api\"\nactions = [\"orders:read\"]\ntask_type = \"nightly-report\"\n{extra}\n"
    )
}

#[test]
fn a_suite_in_which_nothing_is_refused_fails() {
    let report = run_suite(&case("expect = \"permit\""));
    assert!(!report.passed());
    assert!(
        report.to_string().contains("no case is refused"),
        "{report}"
    );
    assert!(!run_suite("").passed());
}

#[test]
fn a_case_that_names_what_does_not_exist_is_an_error_and_no_denial() {
    let denied = case("expect = \"deny\"");
    for (from, to, says) in [
        ("orders-api", "order-api", "no resource `order-api`"),
        ("orders:read", "orders:reed", "no action `orders:reed`"),
        ("nightly-report", "nightly", "no task type `nightly`"),
        (
            "attestor = \"dev\"",
            "attestor = \"aws\"",
            "no attestor `aws`",
        ),
        ("dev:agent", "agent", "is no identity"),
        ("sub = \"s\"", "sub = 1", "another type"),
        ("sub = \"s\"", "", "`sub` is missing"),
        (
            "sub = \"s\"",
            "sub = \"s\", tier = \"x\"",
            "no claim `tier`",
        ),
        (
            "expect =",
            "policies = [\"nope\"]\nexpect =",
            "no policy `nope`",
        ),
        (
            "expect =",
            "locations = [\"https://x.example\"]\nexpect =",
            "does not serve",
        ),
    ] {
        let report = run_suite(&denied.replacen(from, to, 1));
        assert!(!report.passed());
        assert!(report.to_string().contains(says), "{to}: {report}");
    }
    for bad in [
        denied.replace("expect", "expct"),
        denied.replace("\"deny\"", "\"maybe\""),
    ] {
        let report = run_suite(&bad);
        assert_eq!(report.problems[0].file, "t.toml");
        assert!(report.problems[0].line > 0);
    }
}

#[test]
fn a_case_says_what_was_expected_and_what_came() {
    let report = run_suite(&case(
        "expect = \"deny\"\ncode = \"ttl-too-long\"\npolicies = []\ngranted_ttl_seconds = 1",
    ));
    let failures = report.cases[0].failures.join("; ");
    assert_eq!(
        failures,
        "outcome: expected deny, got permit; code: expected ttl-too-long, got none; \
         policies: expected [], got [reports-open, reports-read]; \
         granted_ttl_seconds: expected 1, got 300"
    );
}

#[test]
fn a_case_has_the_revocability_of_its_resource_unless_it_names_another() {
    let mut parts = samples();
    parts.policies.push(PolicyFile {
        name: "more.cedar".into(),
        text: "@id(\"ends\") @description(\"d\")\nforbid (principal, action in Action::\"any\", resource) when { context.revocability.expires_by == \"broker\" };".into(),
    });
    let (_, compiled) = build(parts, &[]).unwrap();
    let by_broker = "revocability = { class = \"bounded\", bound_seconds = 60, open_sessions = \"kept\", expires_by = \"broker\" }\nexpect = \"deny\"\npolicies = [\"ends\"]";
    let file = PolicyFile {
        name: "t.toml".into(),
        text: case("expect = \"permit\"") + &case(by_broker),
    };
    let report = suite::run(&compiled, &[file], Timestamp::from_seconds(NOW));
    assert!(report.passed(), "{report}");
}
