use super::*;
use crate::domain::catalog::Catalog;
use serde_json::{Value, json};

#[test]
fn a_services_host_is_of_the_roles_partition() {
    let host = |partition: &str, service: &str, region: &str| {
        let arn = format!("arn:{partition}:iam::123456789012:role/r");
        RoleArn::parse(&arn).unwrap().service_host(service, region)
    };
    for (partition, service, region, expected) in [
        (
            "aws",
            "sts",
            "eu-central-1",
            Some("sts.eu-central-1.amazonaws.com"),
        ),
        (
            "aws",
            "sts",
            "ap-southeast-5",
            Some("sts.ap-southeast-5.amazonaws.com"),
        ),
        ("aws", "iam", "eu-central-1", Some("iam.amazonaws.com")),
        (
            "aws-us-gov",
            "sts",
            "us-gov-west-1",
            Some("sts.us-gov-west-1.amazonaws.com"),
        ),
        (
            "aws-us-gov",
            "iam",
            "us-gov-east-1",
            Some("iam.us-gov.amazonaws.com"),
        ),
        (
            "aws-cn",
            "sts",
            "cn-north-1",
            Some("sts.cn-north-1.amazonaws.com.cn"),
        ),
        (
            "aws-cn",
            "iam",
            "cn-northwest-1",
            Some("iam.cn-north-1.amazonaws.com.cn"),
        ),
        ("aws", "sts", "cn-north-1", None),
        ("aws-cn", "sts", "eu-central-1", None),
        ("aws-us-gov", "sts", "us-east-1", None),
        ("aws", "sts", "x.evil.example/", None),
        ("aws", "sts", "eu-central-1.evil", None),
        ("aws", "sts", "eu-1", None),
        ("aws", "sts", "eu--1", None),
        ("aws", "sts", "", None),
    ] {
        assert_eq!(
            host(partition, service, region).as_deref(),
            expected,
            "{region}"
        );
    }
}

fn action(text: &str) -> ActionName {
    ActionName::try_from(text.to_owned()).unwrap()
}

#[test]
fn policy_is_asked_about_the_narrowest_actions_and_about_those_in_common() {
    let registered: BTreeSet<ActionName> = ["s3:*", "s3:Get*", "s3:GetObject", "s3:Put*"]
        .map(action)
        .into();
    let asked = |text: &str| -> Vec<String> {
        let budget = Budget::new(100_000);
        let found = decided_as(&registered, &action(text), &budget);
        found.into_iter().map(ToString::to_string).collect()
    };
    assert_eq!(asked("s3:getobject"), ["s3:GetObject"]);
    assert_eq!(asked("s3:GetObjectAcl"), ["s3:Get*"]);
    assert_eq!(asked("s3:Get*"), ["s3:Get*", "s3:GetObject"]);
    assert!(asked("sqs:SendMessage").is_empty());
    assert!(decided_as(&registered, &action("s3:Get*"), &Budget::new(0)).is_empty());
}

#[test]
fn upper_and_lower_case_of_an_action_are_one() {
    let budget = Budget::new(1_000);
    assert!(covers_action(
        &action("s3:getobject"),
        &action("s3:GetObject"),
        &budget
    ));
    assert!(covers_action(
        &action("s3:Get*"),
        &action("s3:getobject"),
        &budget
    ));
    assert!(!covers_action(
        &action("s3:GetObject"),
        &action("s3:Get*"),
        &budget
    ));
}

const REVOKER: &str = "arn:aws:iam::123456789012:role/taskpass-revoker";

fn checked(change: impl Fn(&mut Value)) -> Result<(), String> {
    let mut resource = json!({
        "name": "reports-bucket", "kind": "aws", "owner": "data",
        "actions": ["s3:Get*"], "locations": ["arn:aws:s3:::reports/*"],
        "aws": {
            "role_arn": "arn:aws:iam::123456789012:role/team/reports",
            "mode": "web_identity", "region": "eu-central-1"
        }
    });
    change(&mut resource);
    let resource = serde_json::from_value(resource).map_err(|error| error.to_string())?;
    let catalog = Catalog::new(vec![resource], Vec::new(), &[]);
    catalog.map(drop).map_err(|error| error.to_string())
}

#[test]
fn a_chained_session_is_no_longer_than_aws_makes_it() {
    let with = |mode: &str, seconds: u64| {
        checked(|resource| {
            resource["aws"]["mode"] = json!(mode);
            resource["max_ttl_seconds"] = json!(seconds);
        })
    };
    with("assume_role", MAX_CHAINED_SESSION_SECONDS).unwrap();
    with("web_identity", MAX_CHAINED_SESSION_SECONDS + 1).unwrap();
    let refused = with("assume_role", MAX_CHAINED_SESSION_SECONDS + 1).unwrap_err();
    assert!(
        refused.contains("3600") && refused.contains("web_identity"),
        "{refused}"
    );
}

#[test]
fn a_role_is_checked_before_anybody_relies_on_it() {
    checked(|_| {}).unwrap();
    checked(|resource| resource["aws"]["revocation"] = json!({"role_arn": REVOKER})).unwrap();
    let both = checked(|resource| {
        resource["aws"]["revocation"] = json!({"role_arn": REVOKER});
        resource["aws"]["may_leave"] = json!(true);
    });
    assert!(both.unwrap_err().contains("exclude each other"));
    for (pointer, bad) in [
        ("/audience", json!("https://x.example")),
        ("/verification", json!("offline")),
        ("/verifiers", json!(["a:b"])),
        ("/actions", json!(["orders.read"])),
        ("/locations", json!(["https://orders.example"])),
        (
            "/aws/role_arn",
            json!("arn:aws:iam::123456789012:user/reports"),
        ),
        ("/aws/role_arn", json!("arn:aws:iam::1234:role/reports")),
        ("/aws/role_arn", json!("arn:aws:iam::123456789012:role/*")),
        ("/aws/region", json!("EU")),
        ("/aws/region", json!("cn-north-1")),
        ("/aws/region", json!("us-gov-west-1")),
        ("/aws/region", json!("evil")),
        ("/aws/region", json!("eu-central-1.evil.example")),
        ("/aws/region", json!("evil.example/")),
        ("/aws/region", json!("eu-central-1@evil")),
        ("/aws/regions", json!(["*"])),
        ("/aws/source_networks", json!(["10.0.0.0/33"])),
        ("/aws/source_networks", json!(["10.0.0.0"])),
        // Several session policies permit the union of their rights, so a managed one would
        // widen the policy of the grant.
        (
            "/aws/policy_arns",
            json!(["arn:aws:iam::aws:policy/AmazonS3ReadOnlyAccess"]),
        ),
        ("/aws/endpoint", json!("http://127.0.0.1:1/")),
        ("/aws/endpoint", json!({"url": "https://sts.example"})),
        ("/aws/external_id", json!("x1")),
        ("/aws/unknown", json!(1)),
        ("/aws/revocation", json!({})),
        (
            "/aws/revocation",
            json!({"role_arn": "arn:aws:iam::123456789012:role/team/reports"}),
        ),
        (
            "/aws/revocation",
            json!({"role_arn": "arn:aws:iam::999999999999:role/revoker"}),
        ),
        (
            "/aws/revocation",
            json!({"role_arn": REVOKER, "propagation_seconds": 0}),
        ),
        (
            "/aws/revocation",
            json!({"role_arn": REVOKER, "max_entries": 241}),
        ),
        (
            "/aws/revocation",
            json!({"role_arn": REVOKER, "policy_name": "a b"}),
        ),
    ] {
        let refused = checked(|resource| {
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            resource.pointer_mut(parent).unwrap()[key] = bad.clone();
        });
        assert!(refused.is_err(), "{pointer}: {bad}");
    }
}

#[test]
fn a_session_of_a_role_ends_at_its_back_end() {
    let role = |more: serde_json::Value| {
        let mut role = json!({
            "role_arn": "arn:aws:iam::123456789012:role/r", "mode": "assume_role",
            "region": "eu-central-1"
        });
        for (name, value) in more.as_object().unwrap() {
            role[name] = value.clone();
        }
        let role: AwsRole = serde_json::from_value(role).unwrap();
        role.revocability()
    };
    let plain = role(json!({}));
    assert_eq!(plain.class, RevocationClass::ExpiryOnly);
    assert_eq!(plain.open_sessions, OpenSessions::None);
    assert_eq!(plain.expires_by, ExpiresBy::BackEnd);
    let listed = role(json!({"revocation": {"propagation_seconds": 60}}));
    assert_eq!(listed.class, RevocationClass::Bounded { bound_seconds: 60 });
    let leaving = role(json!({"may_leave": true}));
    assert_eq!(leaving.open_sessions, OpenSessions::Kept);
}
