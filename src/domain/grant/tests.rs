use super::*;
use crate::domain::limits::{
    MAX_GRANT_TEXT_BYTES, MAX_LOCATION_BYTES, MAX_REQUEST_STEPS, MAX_WILDCARDS,
};
use crate::domain::location::InvalidLocation;
use proptest::prelude::*;

fn location(text: &str) -> Location {
    Location::try_from(text.to_owned()).unwrap()
}

impl Location {
    fn covers(&self, other: &Self) -> bool {
        self.covers_within(other, &Budget::of_one_comparison())
    }
}

impl Grant {
    fn covers(&self, other: &Self) -> bool {
        self.covers_within(other, &Budget::new(MAX_REQUEST_STEPS))
    }
}

#[test]
fn a_location_covers_what_is_below_it_and_not_what_looks_alike() {
    let base = location("https://orders.example/v1");
    assert!(base.covers(&location("https://orders.example/v1")));
    assert!(base.covers(&location("https://orders.example/v1/42")));
    assert!(!base.covers(&location("https://orders.example/v10")));
    assert!(!base.covers(&location("https://orders.example")));
    let host = location("https://orders.example");
    assert!(!host.covers(&location("https://orders.example.evil.example/v1")));
}

#[test]
fn a_location_with_two_readings_is_refused() {
    for bad in [
        "http://orders.example/v1",
        "https://user@orders.example/v1",
        "https://orders.example/v1?all",
        "https://orders.example/v1#top",
        "https://orders.example/v1/../admin",
        "https://orders.example/v1/%2e%2e/admin",
        "https://orders.example/v1/..;/admin",
        "https://orders.example/v1/..;x=1/admin",
        "https://orders.example/v1/.;/admin",
        "https://orders.example/v1/..;",
        // A server that removes parameters serves `/v1/payroll/42`.
        "https://orders.example/v1/payroll;x=1/42",
        "https://orders.example/v1/payroll;/42",
        "https://orders.example/v1/payroll/42;x",
        "https://orders.example//v1",
        "https://orders.example\\v1",
        // It would look like everything below /v1 but be a single location.
        "https://orders.example/v1/*",
        "https://orders.example/v*",
        "HTTPS://orders.example/v1",
        "https://ORDERS.example/v1",
        "https://orders.example:443/v1",
        " https://orders.example/v1",
        "/v1",
        "",
    ] {
        assert_eq!(
            Location::try_from(bad.to_owned()),
            Err(InvalidLocation),
            "{bad}"
        );
    }
}

#[test]
fn a_record_may_name_a_place_that_is_longer_than_a_grant_can() {
    let of = |length: usize| format!("https://h/{}", "x".repeat(length - 10));
    assert!(Location::try_from(of(MAX_GRANT_TEXT_BYTES)).is_ok());
    assert!(Location::try_from(of(MAX_GRANT_TEXT_BYTES + 1)).is_err());
    assert!(Location::accessed(of(MAX_LOCATION_BYTES)).is_ok());
    assert!(Location::accessed(of(MAX_LOCATION_BYTES + 1)).is_err());
}

#[test]
fn a_pattern_with_more_wildcards_than_any_needs_is_refused() {
    let action = |stars: usize| ActionName::try_from(format!("s3:{}", "a*".repeat(stars)));
    assert!(action(MAX_WILDCARDS).is_ok() && action(MAX_WILDCARDS + 1).is_err());
    let arn = |stars: usize| Location::try_from(format!("arn:aws:s3:::{}", "a?".repeat(stars)));
    assert!(arn(MAX_WILDCARDS).is_ok() && arn(MAX_WILDCARDS + 1).is_err());
    let key = |stars: usize| format!("https://h/{}", "x*".repeat(stars));
    assert!(Location::accessed(key(MAX_WILDCARDS + 1)).is_ok());
}

#[test]
fn a_grant_of_everything_is_compared_within_a_budget() {
    let grant = |star: &str| -> Grant {
        let actions: Vec<String> = (0..MAX_ACTIONS)
            .map(|n| format!("s3:{star}a{n}{star}b{}", "?a".repeat(8)))
            .collect();
        let locations: Vec<String> = (0..MAX_LOCATIONS)
            .map(|n| format!("arn:aws:s3:::{star}a{n}{star}b{}*", "?a".repeat(6)))
            .collect();
        let detail = serde_json::json!({"type": "aws", "actions": actions, "resources": locations});
        serde_json::from_value(vec![detail; MAX_DETAILS].into()).unwrap()
    };
    let budget = Budget::new(MAX_REQUEST_STEPS);
    assert!(grant("*").covers_within(&grant("*"), &budget));
    assert!(budget.spent() < 1_000, "{}", budget.spent());
    // A budget that runs out gives no positive answer.
    let budget = Budget::new(MAX_REQUEST_STEPS);
    let held = vec![grant("*"); 200];
    let asked = grant("*?");
    assert!(held.iter().all(|own| !own.covers_within(&asked, &budget)));
    assert!(budget.is_exhausted());
    assert!(budget.spent() < 2 * MAX_REQUEST_STEPS, "{}", budget.spent());
}

#[test]
fn an_empty_list_was_read_as_everything_that_is_registered() {
    for bad in [
        r#"[{"type":"api","actions":["a"],"locations":[]}]"#,
        r#"[{"type":"api","actions":["a"],"locations":null}]"#,
        r#"[{"type":"aws","actions":["s3:GetObject"],"resources":[]}]"#,
        r#"[{"type":"aws","actions":["s3:GetObject"],"resources":null}]"#,
        r#"[{"type":"aws","actions":["s3:GetObject"],"region":null}]"#,
        r#"[{"type":"aws","actions":["s3:GetObject"],"region":""}]"#,
        r#"[{"type":"api","actions":["a"],"resources":[]}]"#,
    ] {
        assert!(serde_json::from_str::<Grant>(bad).is_err(), "{bad}");
    }
}

#[test]
fn an_array_was_read_as_an_object_by_the_order_of_its_fields() {
    for bad in [
        r#"[["api",["a"]]]"#,
        r#"[["api",["a"],["https://h"]]]"#,
        r#"[["aws",["s3:GetObject"],["arn:aws:s3:::b"],"eu-west-1"]]"#,
        r#"[["api",{"actions":["a"]}]]"#,
        r#"[{"type":"api","actions":["a"],"actions":["b"]}]"#,
    ] {
        assert!(serde_json::from_str::<Grant>(bad).is_err(), "{bad}");
    }
    for good in [
        r#"[{"type":"api","actions":["a"]}]"#,
        r#"[{"type":"api","actions":["a"],"locations":["https://h"]}]"#,
        r#"[{"type":"aws","actions":["s3:GetObject"]}]"#,
        r#"[{"type":"aws","actions":["s3:GetObject"],"resources":["arn:aws:s3:::b"],"region":"eu-west-1"}]"#,
    ] {
        let grant: Grant = serde_json::from_str(good).unwrap();
        assert_eq!(serde_json::to_string(&grant).unwrap(), good);
    }
}

#[test]
fn an_unknown_type_or_field_is_an_error() {
    for bad in [
        r#"[{"type":"gcp","actions":["a"]}]"#,
        r#"[{"type":"api","actions":["a*"]}]"#,
        r#"[{"type":"api","actions":["a"],"locations":["arn:aws:s3:::b"]}]"#,
        r#"[{"type":"aws","actions":["a"]}]"#,
        r#"[{"type":"aws","actions":["*"]}]"#,
        r#"[{"type":"aws","actions":["s3:Get-Object"]}]"#,
        r#"[{"type":"aws","actions":["s3:GetObject"],"resources":["https://h"]}]"#,
        r#"[{"type":"aws","actions":["s3:GetObject"],"locations":["arn:aws:s3:::b"]}]"#,
        r#"[{"type":"aws","actions":["s3:GetObject"],"region":"EU"}]"#,
        r#"[{"type":"api","actions":["a"],"extra":1}]"#,
        r#"[{"actions":["a"]}]"#,
        r#"[{"type":"api"}]"#,
        r#"[{"type":"api","actions":[]}]"#,
        r#"[{"type":"aws","actions":[]}]"#,
        r#"[{"type":"api","actions":["a"],"resources":["arn:aws:s3:::b"]}]"#,
        r#"[{"type":"api","actions":["a"],"region":"eu-west-1"}]"#,
        r"[]",
    ] {
        assert!(serde_json::from_str::<Grant>(bad).is_err(), "{bad}");
    }
}

#[test]
fn an_arn_covers_what_it_matches_part_by_part() {
    let covers = |outer: &str, inner: &str| location(outer).covers(&location(inner));
    assert!(covers("arn:aws:s3:::b/*", "arn:aws:s3:::b/team/x"));
    assert!(covers("arn:aws:s3:::b/*", "arn:aws:s3:::b/team/*"));
    assert!(covers(
        "arn:aws:sqs:*:123456789012:q-*",
        "arn:aws:sqs:eu-west-1:123456789012:q-a"
    ));
    assert!(!covers("arn:aws:s3:::b/*", "arn:aws:s3:::b"));
    assert!(!covers("arn:aws:s3:::b/team", "arn:aws:s3:::b/*"));
    assert!(!covers("arn:aws:s3:::b*", "arn:aws-cn:s3:::b"));
    assert!(!covers(
        "arn:aws:sqs:eu-west-1:123456789012:*",
        "arn:aws:sqs:*:123456789012:q"
    ));
    // A wildcard of the resource does not match into the account before it.
    assert!(!covers(
        "arn:aws:sqs:eu-west-1::*",
        "arn:aws:sqs:eu-west-1:123456789012:q"
    ));
    assert!(!location("https://orders.example").covers(&location("arn:aws:s3:::b")));
    assert!(!location("arn:aws:s3:::*").covers(&location("https://orders.example")));
}

#[test]
fn an_arn_that_means_more_than_it_says_is_refused() {
    for bad in [
        "arn:",
        "arn:aws:s3",
        "arn:*:s3:::b",
        "arn:aws:*:::b",
        "arn:aws:s3:::",
        "arn:aws:s3:eu-*::b",
        "arn:aws:s3::1234*:b",
        "arn:aws:s3:::b/${aws:username}",
        "arn:aws:s3:::b\"c",
        "arn:aws:s3:::b c",
    ] {
        assert!(Location::try_from(bad.to_owned()).is_err(), "{bad}");
    }
}

#[test]
fn a_region_confines_and_its_absence_does_not() {
    let grant = |region: &str| -> Grant {
        let text = format!(
            r#"[{{"type":"aws","actions":["s3:Get*"],"resources":["arn:aws:s3:::b/*"]{region}}}]"#
        );
        serde_json::from_str(&text).unwrap()
    };
    let (anywhere, here, there) = (
        grant(""),
        grant(r#","region":"eu-west-1""#),
        grant(r#","region":"us-east-1""#),
    );
    assert!(anywhere.covers(&here) && here.covers(&here));
    assert!(!here.covers(&anywhere) && !here.covers(&there));
}

fn any_grant() -> impl Strategy<Value = Grant> {
    let action = prop::sample::select(vec!["a", "b", "c"]);
    let any_location = prop::sample::select(vec![
        "https://h",
        "https://h/x",
        "https://h/x/y",
        "https://h/xy",
    ]);
    let detail = (
        prop::collection::btree_set(action, 1..3),
        prop::collection::btree_set(any_location, 1..3),
    )
        .prop_map(|(actions, locations)| AuthorizationDetail::Api {
            actions: actions
                .into_iter()
                .map(|a| ActionName::try_from(a.to_owned()).unwrap())
                .collect(),
            locations: locations.into_iter().map(location).collect(),
        });
    prop::collection::vec(detail, 1..3).prop_map(Grant)
}

proptest! {
    #[test]
    fn covering_is_reflexive_and_transitive(a in any_grant(), b in any_grant(), c in any_grant()) {
        prop_assert!(a.covers(&a));
        if a.covers(&b) && b.covers(&c) {
            prop_assert!(a.covers(&c));
        }
    }

    #[test]
    fn nothing_outside_a_grant_is_permitted_by_what_it_covers(a in any_grant(), b in any_grant()) {
        if a.covers(&b) {
            for (action, location, region) in b.atoms() {
                prop_assert!(a.permits(action, location, region));
            }
        } else {
            prop_assert!(b.atoms().any(|(action, location, region)| !a.permits(action, location, region)));
        }
    }
}
