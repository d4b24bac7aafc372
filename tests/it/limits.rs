//! Limits, over HTTP from the real binary: a request above a limit leaves no entry in the log.

use serde_json::{Value, json};

use crate::support::fleet::{Fleet, Replica, body};
use crate::support::http::{Answer, assert_problem};

async fn tree_size(fleet: &Fleet, replica: &Replica) -> u64 {
    let checkpoint = replica
        .client
        .get_as(&fleet.admin, "/v1/ledger/checkpoint")
        .await;
    assert_eq!(checkpoint.status, 200);
    checkpoint.text().lines().nth(1).unwrap().parse().unwrap()
}

/// Asserts a refusal by this limit, with the standard headers.
fn assert_limited(answer: &Answer, policy: &str) {
    assert_problem(answer, 429, "rate-limited");
    let seconds: u64 = answer.header("retry-after").unwrap().parse().unwrap();
    assert!(seconds >= 1);
    let told = answer.header("ratelimit").unwrap();
    assert_eq!(told, format!("\"{policy}\";r=0;t={seconds}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_identity_that_asks_too_often_waits_and_is_not_recorded() {
    let (fleet, replica) = Fleet::sqlite()
        .limits([1, 5, 100_000, 100_000])
        .start()
        .await;
    let before = tree_size(&fleet, &replica).await;
    let (mut granted, mut limited) = (0, 0);
    // Send all at once: a busy machine would spread them over seconds, and every second permits one
    // more.
    let tokens: Vec<String> = (0..20).map(|_| fleet.token()).collect();
    let asks = tokens.iter().map(|token| replica.ask(token));
    for answer in futures_util::future::join_all(asks).await {
        if answer.status == 201 {
            granted += 1;
        } else {
            assert_limited(&answer, "identity");
            limited += 1;
        }
    }
    assert!(
        granted >= 5 && limited > 0,
        "{granted} granted, {limited} limited"
    );
    let other = fleet
        .issuer
        .token(json!({"sub": "agent:reports-2", "run": "run-1"}));
    let answer = replica.ask(&other).await;
    assert_problem(&answer, 403, "denied");
    let grown = tree_size(&fleet, &replica).await - before;
    assert_eq!(grown, granted + 1, "a limited request adds no leaf");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_asks_too_often_waits_whoever_it_says_it_is() {
    let (_fleet, replica) = Fleet::sqlite()
        .limits([100_000, 100_000, 1, 30])
        .start()
        .await;
    let mut limited = 0;
    let tokens: Vec<String> = (0..60).map(|n| format!("not-a-token-{n}")).collect();
    let asks = tokens.iter().map(|token| replica.ask(token));
    for answer in futures_util::future::join_all(asks).await {
        if answer.status != 401 {
            assert_limited(&answer, "address");
            assert_eq!(
                answer.header("ratelimit-policy").unwrap(),
                "\"address\";q=1;w=1"
            );
            limited += 1;
        }
    }
    assert!(limited > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn denials_have_a_budget_and_noise_has_none() {
    let (fleet, replica) = Fleet::sqlite().start().await;
    let mut greedy = body();
    greedy["ttl_seconds"] = json!(601);
    let before = tree_size(&fleet, &replica).await;
    for n in 0..50 {
        let noise = format!("eyJhbGciOiJub25lIn0.e30.{n}");
        assert_eq!(replica.ask(&noise).await.status, 401);
    }
    assert_eq!(
        tree_size(&fleet, &replica).await,
        before,
        "a caller without evidence adds no leaf"
    );

    let mut denied = 0;
    let spent = loop {
        let token = fleet.token();
        let answer = replica
            .client
            .post_json(&token, "/v1/credentials", &greedy)
            .await;
        if answer.status != 403 {
            break answer;
        }
        denied += 1;
        assert!(denied < 100, "the limit for denials did not apply");
    };
    assert_problem(&spent, 429, "rate-limited");
    assert!(spent.header("retry-after").is_some());
    assert_eq!(tree_size(&fleet, &replica).await, before + denied);
    // A permitted request does not count against the limit for denials.
    let granted: Value = replica.ask(&fleet.token()).await.expect(201);
    assert_eq!(granted["decision"]["outcome"], "permit");
}
