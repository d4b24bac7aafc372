//! Policies about a part of the requested rights, and policies with deep expressions, with the real
//! binary: at both issuing endpoints, in `policy check`, in an activation and at a start.

use serde_json::{Value, json};

use crate::support::fleet::{Fleet, Replica, body};
use crate::support::http::{Answer, assert_oauth_error, assert_problem, send};
use crate::support::process::{Ended, Launch};

/// The reports may read all orders except those of the payroll, and may not write there.
const PAYROLL: &str = r#"
@id("no-payroll") @description("no workload reads the payroll")
forbid (principal, action == Action::"orders:read", resource == Api::"orders-api")
when { context.location like "https://orders.example/v1/payroll*" };
"#;

async fn ask(fleet: &Fleet, replica: &Replica, locations: &[&str]) -> Answer {
    let mut asked = body();
    if !locations.is_empty() {
        asked["authorization_details"][0]["locations"] = json!(locations);
    }
    let token = fleet.token();
    replica
        .client
        .post_json(&token, "/v1/credentials", &asked)
        .await
}

/// The same at the token endpoint; without locations, by scope.
async fn exchange(fleet: &Fleet, replica: &Replica, locations: &[&str]) -> Answer {
    let mut form = vec![
        (
            "grant_type",
            "urn:ietf:params:oauth:grant-type:token-exchange".to_owned(),
        ),
        ("subject_token", fleet.token()),
        (
            "subject_token_type",
            "urn:ietf:params:oauth:token-type:jwt".to_owned(),
        ),
        ("resource", "https://orders.example".to_owned()),
        ("task_type", "job".to_owned()),
    ];
    if locations.is_empty() {
        form.push(("scope", "orders:read".to_owned()));
    } else {
        let details = json!([{"type": "api", "actions": ["orders:read"], "locations": locations}]);
        form.push(("authorization_details", details.to_string()));
    }
    let request = replica
        .client
        .request(reqwest::Method::POST, "/oauth2/token");
    send(request.form(&form)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_about_a_part_holds_at_both_doors_for_who_asks_for_the_whole() {
    let (fleet, replica) = Fleet::sqlite().more_policies(PAYROLL).start().await;
    for (locations, granted) in [
        (&["https://orders.example/v1/payroll/42"][..], false),
        (&["https://orders.example/v1/payroll"], false),
        (&["https://orders.example/v1"], false),
        (&[], false),
        (&["https://orders.example/v1/orders"], true),
    ] {
        let native = ask(&fleet, &replica, locations).await;
        let token = exchange(&fleet, &replica, locations).await;
        if granted {
            native.expect(201);
            token.expect(200);
            continue;
        }
        let problem = assert_problem(&native, 403, "denied");
        assert_eq!(problem["code"], "not-permitted");
        assert_eq!(problem["allowed"], Value::Null, "{problem}");
        let code = match locations {
            [] => "invalid_scope",
            _ => "invalid_authorization_details",
        };
        assert_oauth_error(&token, 400, code);
    }
    // Of several locations, the refusal offers the permitted ones, and a request for them succeeds.
    let both = [
        "https://orders.example/v1/payroll",
        "https://orders.example/v1/orders",
    ];
    let problem = assert_problem(&ask(&fleet, &replica, &both).await, 403, "denied");
    let allowed = &problem["allowed"]["authorization_details"];
    assert_eq!(allowed[0]["locations"], json!([both[1]]), "{problem}");

    // Explaining the decision gives the same result, and names the forbid and the location to which
    // it applies.
    let id = problem["decision"]["id"].as_str().unwrap();
    let refused = ask(&fleet, &replica, &[]).await.json();
    let whole = refused["decision"]["id"].as_str().unwrap();
    for (decision, location) in [(id, both[0]), (whole, "https://orders.example/v1/*")] {
        let url = format!("http://{}", replica.address);
        let told = Launch::taskpass(["policy", "explain", decision, "--json", "--url", &url])
            .env("TASKPASS_TOKEN", &fleet.admin)
            .run();
        assert_eq!(told.code(), Some(0), "{}{}", told.stdout, told.stderr);
        let told: Value = serde_json::from_str(&told.stdout).unwrap();
        assert_eq!(told["reproduced"], true, "{told}");
        let right = &told["explanation"]["refused"][0];
        assert_eq!(right["location"], location, "{told}");
        assert_eq!(right["forbidden_by"][0]["policy"], "no-payroll", "{told}");
    }
}

/// Unusual spellings of `authorization_details`, at both endpoints.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rights_that_are_written_oddly_were_read_as_more_than_was_asked() {
    let (fleet, replica) = Fleet::postgres().start().await;
    let read = r#""type":"api","actions":["orders:read"]"#;
    let bad = [
        (format!(r#"[{{{read},"locations":[]}}]"#), "/0/locations"),
        (format!(r#"[{{{read},"locations":null}}]"#), "/0/locations"),
        (format!(r#"[{{{read},"resources":[]}}]"#), "/0/resources"),
        (
            format!(r#"[{{{read},"resources":["arn:aws:s3:::b"]}}]"#),
            "/0",
        ),
        (r#"[{"type":"api","actions":[]}]"#.to_owned(), "/0/actions"),
        (
            format!(r#"[{{{read},"actions":["orders:write"]}}]"#),
            "/0/actions",
        ),
        (
            r#"[{"type":"api","actions":["orders:write"],"actions":["orders:read"]}]"#.to_owned(),
            "/0/actions",
        ),
        (
            format!(r#"[{{{read},"loc\u0061tions":[]}}]"#),
            "/0/locations",
        ),
        (r#"[["api",["orders:read"]]]"#.to_owned(), "/0"),
        (
            r#"[["api",["orders:read"],["https://orders.example/v1"]]]"#.to_owned(),
            "/0",
        ),
        (format!("{{{read}}}"), ""),
    ];
    let native = async |details: &str| {
        let text = body().to_string();
        let own = body()["authorization_details"].to_string();
        let request = replica
            .client
            .request(reqwest::Method::POST, "/v1/credentials")
            .bearer_auth(fleet.token())
            .header("content-type", "application/json");
        send(request.body(text.replace(&own, details))).await
    };
    let token = async |details: &str| {
        let form = [
            (
                "grant_type",
                "urn:ietf:params:oauth:grant-type:token-exchange",
            ),
            ("subject_token", &fleet.token()),
            ("subject_token_type", "urn:ietf:params:oauth:token-type:jwt"),
            ("resource", "https://orders.example"),
            ("task_type", "job"),
            ("authorization_details", details),
        ];
        let request = replica
            .client
            .request(reqwest::Method::POST, "/oauth2/token");
        send(request.form(&form)).await
    };
    for (details, pointer) in bad {
        let problem = assert_problem(&native(&details).await, 400, "invalid-request");
        let expected = format!("/authorization_details{pointer}");
        assert_eq!(problem["pointer"], expected, "{details}: {problem}");
        let refused = token(&details).await;
        assert_oauth_error(&refused, 400, "invalid_authorization_details");
    }
    assert_oauth_error(&token("[{").await, 400, "invalid_authorization_details");
    let good = format!("[{{{read}}}]");
    native(&good).await.expect(201);
    token(&good).await.expect(200);
    // The task must be an object with named members, too.
    let mut positional = body();
    positional["task"] = json!([null, null, "job"]);
    let answer = replica
        .client
        .post_json(&fleet.token(), "/v1/credentials", &positional)
        .await;
    let problem = assert_problem(&answer, 400, "invalid-request");
    assert_eq!(problem["pointer"], "/task", "{problem}");
}

// ---------------------------------------------------------------- depth

/// A permit for the reports under `condition`, which is on the file's second line.
fn policy(condition: &str) -> String {
    format!(
        "@id(\"many\") @description(\"d\") permit (principal == Workload::dev::\"dev:agent%3Aorders\",\n\
         action == Action::\"orders:read\", resource == Api::\"orders-api\") when {{ {condition} }};\n"
    )
}

fn places(count: usize) -> String {
    let all: Vec<String> = (0..count)
        .map(|n| {
            let place = format!("https://orders.example/v1/{n}");
            format!("context.location == \"{place}\" || context.location like \"{place}/*\"")
        })
        .collect();
    all.join(" || ")
}

fn brackets(count: usize) -> String {
    format!(
        "{}context.task.depth == 1{}",
        "(".repeat(count),
        ")".repeat(count)
    )
}

fn chain(count: usize, op: &str) -> String {
    let terms: Vec<String> = (0..count)
        .map(|n| format!("context.task.depth != {}", n + 2))
        .collect();
    terms.join(op)
}

fn ifs(count: usize) -> String {
    let open = "if context.task.depth == 1 then ".repeat(count);
    format!("{open}true{}", " else false".repeat(count))
}

fn sets(count: usize) -> String {
    let (open, close) = ("[true].contains(".repeat(count), ")".repeat(count));
    format!("{open}context.task.depth == 1{close}")
}

/// Conditions with a depth that Cedar noticed and the broker did not.
fn hidden() -> [(&'static str, String); 4] {
    let mut accesses = "principal".to_owned();
    for count in (1..126).rev() {
        accesses = format!("({accesses}){}", ".a".repeat(count));
    }
    let chain = vec!["true"; 4_090].join(" && ");
    let ifs = "if\u{a0}true then\u{a0}".repeat(20_000);
    [
        (
            "indices",
            format!("principal{} == 1", "[\"a\"]".repeat(50_000)),
        ),
        (
            "a carriage return",
            format!("true // c\r && {}", brackets(20_000)),
        ),
        (
            "spaces",
            format!("{ifs}true{}", " else false".repeat(20_000)),
        ),
        ("accesses", format!("{accesses} == 1 && {chain}")),
    ]
}

/// Whether a refusal names the depth, or the character that hides it.
fn tells_the_depth(refusal: &str) -> bool {
    let reasons = [
        "deep here",
        "terms here",
        "no line feed after it",
        "in ASCII",
    ];
    reasons.iter().any(|reason| refusal.contains(reason))
}

/// Whether the file passes `policy test`, or stops it.
fn test(policies: &str) -> Ended {
    let cases = "[[admin]]\nname = \"none\"\nattestor = \"dev\"\nidentity = \"dev:alice\"\n\
                 claims = { sub = \"alice\" }\nroles = []\nactions = [\"approve\"]\nexpect = \"deny\"\n";
    Launch::taskpass(["policy", "test", "p", "--dev"])
        .file("p/all.cedar", policies)
        .file("p/tests/all.toml", cases)
        .run()
}

fn check(policies: &str) -> Ended {
    let dev = policies.replace("dev:agent%3Aorders", "dev:agent%3Areports");
    Launch::taskpass(["policy", "check", "p", "--dev"])
        .file("p/all.cedar", dev)
        .run()
}

#[test]
fn a_deep_policy_is_good_or_refused_with_its_line_and_aborts_no_check() {
    for (name, deep) in [
        ("35 ||", chain(35, " || ")),
        ("61 &&", chain(61, " && ")),
        ("250 ||", chain(250, " || ")),
        ("4000 &&", chain(4_000, " && ")),
        ("36 brackets", brackets(36)),
        ("60 ifs", ifs(60)),
        ("40 sets", sets(40)),
        ("1000 places", places(1_000)),
    ] {
        let good = check(&policy(&deep));
        assert_eq!(good.code(), Some(0), "{name}: {}", good.stderr);
    }
    for (name, deep) in [
        ("5000 ||", chain(5_000, " || ")),
        ("1000 brackets", brackets(1_000)),
        ("1000 ifs", ifs(1_000)),
        ("1000 sets", sets(1_000)),
    ] {
        let refused = check(&policy(&deep));
        assert_eq!(refused.code(), Some(1), "{name}: {}", refused.stderr);
        let place = refused.stderr.contains("all.cedar:2:");
        let told = refused.stderr.contains("nested more than") || refused.stderr.contains("terms");
        assert!(place && told, "{name}: {}", refused.stderr);
    }
}

#[test]
fn a_depth_that_only_cedar_saw_aborted_the_check_the_test_and_the_start() {
    for (name, deep) in hidden() {
        for refused in [check(&policy(&deep)), test(&policy(&deep))] {
            assert_eq!(refused.code(), Some(1), "{name}: {}", refused.stderr);
            let place = refused.stderr.contains("all.cedar:2:");
            assert!(
                place && tells_the_depth(&refused.stderr),
                "{name}: {}",
                refused.stderr
            );
        }
    }
}

#[test]
fn a_permit_by_equality_alone_is_listed() {
    let by_equality = policy("context.location == \"https://orders.example/v1/7\"");
    let listed = check(&by_equality);
    assert_eq!(listed.code(), Some(0), "{}", listed.stderr);
    let note = "note: permit `many` names `https://orders.example/v1/7` with == only";
    assert!(listed.stdout.contains(note), "{}", listed.stdout);
    assert!(!check(&policy(&places(1))).stdout.contains("note:"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_starts_with_a_thousand_places_and_decides_by_them() {
    let policies = policy(&places(1_000));
    let (fleet, replica) = Fleet::sqlite().more_policies(&policies).start().await;
    let orders = || {
        fleet
            .issuer
            .token(json!({"sub": "agent:orders", "run": "run-1"}))
    };
    // The fleet's other permits would permit everything, so use this test's own resource.
    let mut asked = body();
    asked["authorization_details"][0]["locations"] = json!(["https://orders.example/v1/999"]);
    let granted = replica
        .client
        .post_json(&orders(), "/v1/credentials", &asked)
        .await
        .expect(201);
    let id = granted["decision"]["id"].as_str().unwrap();
    let url = format!("http://{}", replica.address);
    let told = Launch::taskpass(["policy", "explain", id, "--json", "--url", &url])
        .env("TASKPASS_TOKEN", &fleet.admin)
        .run();
    let told: Value = serde_json::from_str(&told.stdout).unwrap();
    let policies = told["explanation"]["policies"].as_array().unwrap();
    assert!(policies.iter().any(|own| own["policy"] == "many"), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_activation_of_a_deep_policy_ended_every_request_in_flight() {
    let (fleet, replica) = Fleet::postgres().start().await;
    let with = |condition: &str| {
        let mut generation = fleet.generation(&replica);
        let text = generation["policies"][0]["text"].as_str().unwrap();
        generation["policies"][0]["text"] = json!(format!("{}{text}", policy(condition)));
        generation
    };
    let activate = async |condition: &str| {
        replica
            .client
            .post_json(&fleet.admin, "/v1/generations", &with(condition))
            .await
    };
    for deep in [
        chain(5_000, " || "),
        brackets(1_000),
        ifs(1_000),
        sets(1_000),
    ]
    .into_iter()
    .chain(hidden().map(|(_, deep)| deep))
    {
        let checked = replica
            .client
            .post_json(&fleet.admin, "/v1/generations/check", &with(&deep))
            .await;
        for refused in [checked, activate(&deep).await] {
            assert!((400..500).contains(&refused.status), "{}", refused.text());
            assert!(tells_the_depth(&refused.text()), "{}", refused.text());
        }
    }
    for deep in [
        chain(61, " || "),
        chain(4_000, " && "),
        brackets(36),
        ifs(60),
        sets(40),
    ] {
        activate(&deep).await.expect(201);
        // It must permit: a failed evaluation would be a refusal.
        let token = fleet
            .issuer
            .token(json!({"sub": "agent:orders", "run": "run-1"}));
        let answer = replica
            .client
            .post_json(&token, "/v1/credentials", &body())
            .await;
        answer.expect(201);
    }
}

#[test]
fn a_broker_does_not_start_from_a_policy_that_is_too_deep_and_says_where() {
    let fleet = Fleet::sqlite();
    let replica = fleet.replica();
    let config = std::fs::read_to_string(replica.process.dir().join("taskpass.toml")).unwrap();
    let config = config.replace(
        &replica.address.to_string(),
        &crate::support::free_address().to_string(),
    );
    let key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";
    let seen = [chain(5_000, " || "), brackets(1_000)];
    for deep in seen.into_iter().chain(hidden().map(|(_, deep)| deep)) {
        let ended = Launch::taskpass(["serve", "--config", "taskpass.toml"])
            .config(config.clone())
            .file("policies/all.cedar", policy(&deep))
            .env("TASKPASS_SEALING_KEYS", format!("tpk1_{key}"))
            .run();
        assert_eq!(ended.code(), Some(2), "{}", ended.stderr);
        assert!(ended.stderr.contains("all.cedar:2:"), "{}", ended.stderr);
    }
}
