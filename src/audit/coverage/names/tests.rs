use super::*;

fn call(source: &str, name: &str) -> Call {
    Call {
        source: source.into(),
        name: name.into(),
        region: Region::of(Some("eu-central-1")),
        ..Call::default()
    }
}

fn right(source: &str, name: &str) -> String {
    match call(source, name).recorded_action() {
        RecordedAction::Rights { action, .. } => action.as_str().to_owned(),
        other => format!("{other:?}"),
    }
}

fn locations(call: &Call) -> Vec<String> {
    match call.recorded_action() {
        RecordedAction::Rights { locations, .. } => {
            locations.iter().map(|p| p.as_str().to_owned()).collect()
        }
        other => vec![format!("{other:?}")],
    }
}

#[test]
fn a_call_is_named_as_the_right_that_it_needs() {
    for (source, name, expected) in [
        ("s3.amazonaws.com", "GetObject", "s3:GetObject"),
        ("s3.amazonaws.com", "ListObjectsV2", "s3:ListBucket"),
        ("s3.amazonaws.com", "HeadObject", "s3:GetObject"),
        ("s3.amazonaws.com.cn", "UploadPart", "s3:PutObject"),
        (
            "monitoring.amazonaws.com",
            "PutMetricData",
            "cloudwatch:PutMetricData",
        ),
        (
            "lambda.amazonaws.com",
            "ListFunctions20150331",
            "lambda:ListFunctions",
        ),
        (
            "lambda.amazonaws.com",
            "GetFunction20150331v2",
            "lambda:GetFunction",
        ),
        (
            "cloudfront.amazonaws.com",
            "GetDistribution2020_05_31",
            "cloudfront:GetDistribution",
        ),
        ("dynamodb.amazonaws.com", "GetItem", "dynamodb:GetItem"),
        ("s3.amazonaws.com", "GetBucketCors", "s3:GetBucketCORS"),
        (
            "s3.amazonaws.com",
            "DeleteBucketInventoryConfiguration",
            "s3:PutInventoryConfiguration",
        ),
        (
            "s3.amazonaws.com",
            "ListBucketMetricsConfigurations",
            "s3:GetMetricsConfiguration",
        ),
        (
            "s3.amazonaws.com",
            "DeleteBucketPublicAccessBlock",
            "s3:PutBucketPublicAccessBlock",
        ),
    ] {
        assert_eq!(right(source, name), expected);
    }
    let mut versioned = call("s3.amazonaws.com", "HeadObject");
    versioned.version = Some("3sL4".into());
    let RecordedAction::Rights { action, .. } = versioned.recorded_action() else {
        panic!();
    };
    assert_eq!(action.as_str(), "s3:GetObjectVersion");
    for (source, name) in [
        ("s3.amazonaws.com", "CopyObject"),
        ("s3.amazonaws.com", "Get*"),
        ("s3.amazonaws.com", "Get Object"),
        ("s3.amazonaws.com", ""),
        ("evil.example", "GetObject"),
        ("amazonaws.com", "GetObject"),
        (".amazonaws.com", "GetObject"),
    ] {
        assert!(
            right(source, name).starts_with("Unclear"),
            "{source} {name}"
        );
    }
}

#[test]
fn tables_are_without_doubles() {
    for (n, (service, name, _)) in CALLS.iter().enumerate() {
        let same = |(s, c, _): &(&str, &str, &str)| s == service && c == name;
        assert!(!CALLS[n + 1..].iter().any(same), "{service}:{name}");
        let several = |(s, c, _): &(&str, &str, &[&str])| s == service && c == name;
        assert!(!SEVERAL.iter().any(several));
    }
}

fn entry(arn: &str, kind: &str) -> (Option<String>, Option<String>) {
    let arn = (!arn.is_empty()).then(|| arn.to_owned());
    (arn, Some(kind.to_owned()))
}

fn facts(call: &Call) -> (bool, bool) {
    match call.recorded_action() {
        RecordedAction::Rights { named, unclear, .. } => (named, unclear.is_some()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn of_an_object_and_its_bucket_the_object_is_what_counts() {
    let mut one = call("s3.amazonaws.com", "GetObject");
    assert_eq!(locations(&one), ["arn:aws:s3:*:*:*"]);
    one.bucket = Some("reports".into());
    // The object is not named.
    assert_eq!(locations(&one), ["arn:aws:s3:::reports/*"]);
    assert_eq!(facts(&one), (false, false));
    one.key = Some("team/x y".into());
    assert_eq!(locations(&one), ["arn:aws:s3:::reports/team/x?y"]);
    one.resources = vec![
        entry("arn:aws:s3:::reports", "AWS::S3::Bucket"),
        entry("arn:aws:s3:::reports/a", "AWS::S3::Object"),
    ];
    assert_eq!(locations(&one), ["arn:aws:s3:::reports/a"]);
    assert_eq!(facts(&one), (true, false));
    one.resources.pop();
    assert_eq!(locations(&one), ["arn:aws:s3:::reports/team/x?y"]);
    one.key = None;
    assert_eq!(locations(&one), ["arn:aws:s3:::reports/*"]);
    assert_eq!(facts(&one), (false, false));
    let mut list = call("s3.amazonaws.com", "ListObjectsV2");
    list.resources = vec![
        entry("", "AWS::S3::Object"),
        entry("arn:aws:s3:::reports", "AWS::S3::Bucket"),
    ];
    assert_eq!(locations(&list), ["arn:aws:s3:::reports"]);
    assert_eq!(facts(&list), (true, false));
    let mut china = call("sqs.amazonaws.com", "SendMessage");
    china.region = Region::of(Some("cn-north-1"));
    assert_eq!(locations(&china), ["arn:aws-cn:sqs:*:*:*"]);
}

#[test]
fn what_is_listed_and_cannot_be_read_leaves_the_call_unclear() {
    let mut one = call("s3.amazonaws.com", "GetObject");
    for odd in [
        entry("", "AWS::S3::Object"),
        entry("", "AWS::S3::Bucket"),
        entry("secret/x", "AWS::S3::Object"),
    ] {
        one.resources = vec![entry("arn:aws:s3:::reports/a", "AWS::S3::Object"), odd];
        assert_eq!(facts(&one), (true, true), "{one:?}");
        assert_eq!(locations(&one), ["arn:aws:s3:::reports/a"]);
    }
    let mut odd = call("s3.amazonaws.com", "GetObject");
    odd.odd = true;
    assert!(facts(&odd).1);
}

#[test]
fn the_name_of_an_object_may_be_as_long_as_s3_allows() {
    let mut one = call("s3.amazonaws.com", "GetObject");
    one.bucket = Some("reports".into());
    one.key = Some("k".repeat(1_024));
    assert_eq!(facts(&one), (true, false));
    assert!(locations(&one)[0].ends_with("kkk"));
    one.key = Some("k".repeat(5_000));
    assert_eq!(facts(&one), (false, false));
    assert!(locations(&one)[0].starts_with("arn:aws:s3:::reports/kkk"));
}

#[test]
fn what_needs_several_rights_says_without_which_it_was_not_granted() {
    for (service, name, rights) in SEVERAL {
        let RecordedAction::Unclear { needs, .. } =
            call(&format!("{service}.amazonaws.com"), name).recorded_action()
        else {
            panic!("{name}");
        };
        assert_eq!(needs.len(), rights.len(), "{name}");
    }
}
