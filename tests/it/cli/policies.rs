//! Commands on policies: check, schema, and the trust policy of a role.

use super::*;

const POLICIES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/policies");

#[test]
fn the_sample_policies_are_good_and_pass_their_tests() {
    let check = taskpass(&["policy", "check", POLICIES, "--dev"]);
    assert_eq!(check.code(), Some(0), "{}", check.stderr);
    assert!(check.stdout.starts_with("good: "), "{}", check.stdout);
    let test = taskpass(&["policy", "test", POLICIES, "--dev"]);
    assert_eq!(test.code(), Some(0), "{}{}", test.stdout, test.stderr);
    assert!(test.stdout.contains(" 0 failed"), "{}", test.stdout);
    let json = taskpass(&["policy", "test", POLICIES, "--dev", "--json"]);
    let report: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(report["passed"], true);
}

#[test]
fn the_schema_beside_the_policies_is_the_one_that_the_samples_give() {
    let schema = taskpass(&["policy", "schema", POLICIES, "--dev"]);
    let stored = std::fs::read_to_string(format!("{POLICIES}/taskpass.cedarschema")).unwrap();
    assert_eq!(schema.stdout, stored);
}

#[test]
fn a_bad_policy_and_a_failed_test_are_refusals() {
    let good = std::fs::read_to_string(format!("{POLICIES}/orders.cedar")).unwrap();
    let admin = std::fs::read_to_string(format!("{POLICIES}/admin.cedar")).unwrap();
    let with = |orders: String, test: &str, command: &str, more: &[&str]| {
        let arguments = ["policy", command, "p", "--dev"];
        Launch::taskpass(arguments.iter().chain(more).copied())
            .file("p/orders.cedar", orders)
            .file("p/admin.cedar", admin.clone())
            .file("p/tests/one.toml", test)
            .run()
    };
    let case = |expect: &str| {
        format!(
            "[[task]]\nname = \"mallory\"\nattestor = \"dev\"\nidentity = \"dev:mallory\"\n\
             claims = {{ sub = \"mallory\" }}\ntask_type = \"fix-order\"\nexpect = \"{expect}\"\n"
        )
    };
    assert_eq!(
        with(good.clone(), &case("deny"), "test", &[]).code(),
        Some(0)
    );
    let failed = with(good.clone(), &case("permit"), "test", &[]);
    assert_eq!(failed.code(), Some(1), "{}", failed.stdout);
    assert!(failed.stdout.contains("FAIL"), "{}", failed.stdout);

    let misspelt = good.replacen("@max_ttl", "@max_tll", 1);
    let bad = with(misspelt.clone(), "", "check", &[]);
    assert_eq!(bad.code(), Some(1), "{}", bad.stderr);
    assert!(bad.stderr.contains("orders.cedar:"), "{}", bad.stderr);
    let bad = with(misspelt, "", "check", &["--json"]);
    assert_eq!(bad.code(), Some(1));
    let report: Value = serde_json::from_str(&bad.stdout).unwrap();
    assert_eq!(report["good"], false);
    assert!(!report["problems"].as_array().unwrap().is_empty());
}

#[test]
fn policies_are_checked_against_a_configuration_without_its_secrets() {
    let example = include_str!("../../../taskpass.example.toml");
    let policy = "@id(\"x\") @description(\"d\") permit (principal == Workload::workload::\"workload:reports\", \
         action == Action::\"orders:read\", resource == Api::\"orders-api\");";
    let check = Launch::taskpass(["policy", "check"])
        .config(example)
        .file("policies/x.cedar", policy)
        .run();
    assert_eq!(check.code(), Some(0), "{}", check.stderr);
    let none = taskpass(&["policy", "check", "nowhere", "--dev"]);
    assert_eq!(none.code(), Some(1), "{}", none.stderr);
    let no_configuration = taskpass(&["policy", "check"]);
    assert_eq!(
        no_configuration.code(),
        Some(2),
        "{}",
        no_configuration.stderr
    );
}

#[test]
fn the_trust_policy_of_a_role_is_printed_and_one_that_trusts_too_many_is_told() {
    let example = include_str!("../../../taskpass.example.toml");
    let run = |more: &[&str], policy: &str| {
        let arguments = ["aws", "trust-policy", "--resource", "reports-bucket"];
        Launch::taskpass(arguments.iter().chain(more))
            .config(example)
            .file("has.json", policy)
            .run()
    };
    for (more, subject) in [
        (vec![], "resource:reports-bucket"),
        (vec!["--revoker"], "revoker"),
    ] {
        let printed = run(&more, "");
        assert_eq!(printed.code(), Some(0), "{}", printed.stderr);
        assert!(
            printed.stdout.contains(&format!("\"{subject}\"")),
            "{}",
            printed.stdout
        );
        let judged = run(
            &[&more[..], &["--check", "has.json"]].concat(),
            &printed.stdout,
        );
        assert_eq!(judged.code(), Some(0), "{}", judged.stderr);
        let wider = printed.stdout.replace("StringEquals", "StringLike");
        let judged = run(&[&more[..], &["--check", "has.json"]].concat(), &wider);
        assert_eq!(judged.code(), Some(1), "{}", judged.stdout);
        assert!(
            judged.stderr.contains("no StringEquals on"),
            "{}",
            judged.stderr
        );
        // The trust policy may let another principal assume the role as well.
        let root = "arn:aws:iam::123456789012:root";
        let mut policy: Value = serde_json::from_str(&printed.stdout).unwrap();
        let other =
            json!({"Effect": "Allow", "Principal": {"AWS": root}, "Action": "sts:AssumeRole"});
        policy["Statement"].as_array_mut().unwrap().push(other);
        let check = [&more[..], &["--check", "has.json"]].concat();
        let judged = run(&check, &policy.to_string());
        assert_eq!(judged.code(), Some(1), "{}", judged.stdout);
        assert!(judged.stderr.contains(root), "{}", judged.stderr);
        let judged = run(
            &[&check[..], &["--expect", root]].concat(),
            &policy.to_string(),
        );
        assert_eq!(judged.code(), Some(0), "{}", judged.stderr);
    }
    for (more, policy) in [
        (vec!["--check", "has.json"], "{"),
        (vec!["--check", "nowhere.json"], ""),
        (vec!["--resource", "orders-api"], ""),
    ] {
        assert_eq!(run(&more, policy).code(), Some(2), "{more:?}");
    }
}
