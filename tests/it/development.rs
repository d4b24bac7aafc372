//! Development mode as a process: its demonstration, on both stores, and the requests that it
//! refuses.

use base64::Engine as _;
use serde_json::{Value, json};

use crate::support::configuration::{Configuration, small_tables, sqlite_in};
use crate::support::http::{Client, send};
use crate::support::postgres::empty_database;
use crate::support::process::{Launch, Process};
use crate::support::random_bytes;

/// Starts a broker in development mode and returns it with the description it prints after its
/// demonstration.
fn start(more: &[&str]) -> (Process, Value) {
    let common = ["dev", "--listen", "127.0.0.1:0", "--json"];
    let arguments = common.iter().chain(more).map(|word| (*word).to_owned());
    let mut process = Launch::taskpass(arguments).spawn();
    process.wait_for_output("\n");
    let line = process.stdout();
    let told = serde_json::from_str(line.lines().next().unwrap()).unwrap();
    (process, told)
}

async fn grant(told: &Value, sub: &str) -> u16 {
    let client = Client::new("");
    let attested = client
        .request(
            reqwest::Method::POST,
            &format!("{}/token", told["issuer"].as_str().unwrap()),
        )
        .json(&json!({"sub": sub}));
    let token = send(attested).await.expect(200)["token"]
        .as_str()
        .unwrap()
        .to_owned();
    let url = told["url"].as_str().unwrap();
    let body = json!({
        "task": {"type": "nightly-report"}, "resource": "orders-api",
        "authorization_details": [{"type": "api", "actions": ["orders:read"]}],
    });
    Client::new(url)
        .post_json(&token, "/v1/credentials", &body)
        .await
        .status
}

async fn serves_the_samples(told: &Value) {
    assert_eq!(grant(told, "agent:reports").await, 201);
    assert_eq!(grant(told, "agent:nobody").await, 403);
    let client = Client::new(told["url"].as_str().unwrap());
    let admin = told["admin_token"].as_str().unwrap();
    let listed = client.get_as(admin, "/v1/sessions").await.expect(200);
    assert!(!listed["sessions"].as_array().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_story_is_played_and_the_samples_are_served_on_sqlite() {
    let (_process, told) = start(&[]);
    serves_the_samples(&told).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_story_is_played_and_the_samples_are_served_on_postgresql() {
    let database = empty_database();
    let (_process, told) = start(&["--database-url", &database.url()]);
    serves_the_samples(&told).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_web_page_that_somebody_has_open_gets_nothing() {
    let (_process, told) = start(&["--no-story"]);
    let url = told["url"].as_str().unwrap();
    let client = Client::new(url);
    let admin = told["admin_token"].as_str().unwrap();
    for (name, value) in [
        ("host", "rebound.example"),
        ("host", "rebound.example:7070"),
        ("origin", "https://evil.example"),
        ("origin", "null"),
        ("origin", url),
    ] {
        for path in ["/v1/sessions", "/livez", "/openapi.json"] {
            let request = client
                .request(reqwest::Method::GET, path)
                .bearer_auth(admin)
                .header(name, value);
            assert_eq!(send(request).await.status, 403, "{name}: {value} at {path}");
        }
        let issuer = told["issuer"].as_str().unwrap();
        let token = Client::new("")
            .request(reqwest::Method::POST, &format!("{issuer}/token"))
            .header(name, value)
            .json(&json!({"sub": "agent:reports"}));
        assert_eq!(
            send(token).await.status,
            403,
            "{name}: {value} at the issuer"
        );
    }
    let form = client
        .request(reqwest::Method::POST, "/v1/credentials")
        .bearer_auth(admin)
        .header("content-type", "text/plain")
        .body("{}");
    assert_eq!(send(form).await.status, 415);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn production_never_serves_a_development_store_nor_the_reverse() {
    let (mut process, told) = start(&["--no-story", "--data-dir", "store"]);
    let url = told["url"].as_str().unwrap();
    assert_eq!(Client::new(url).get("/readyz").await.status, 200);
    process.terminate();
    let directory = process.dir().join("store");
    let config = Configuration {
        server: "listen = \"127.0.0.1:0\"",
        store: &sqlite_in(&directory),
        tables: &small_tables(),
        ..Configuration::default()
    }
    .text();
    let key = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(random_bytes(32));
    let serve = |config: &str| {
        Launch::taskpass(["serve"])
            .config(config)
            .file("policies/none.cedar", "")
            .env("TASKPASS_SEALING_KEYS", format!("tpk1_{key}"))
    };
    let refused = serve(&config).run();
    assert_eq!(refused.code(), Some(3), "{}", refused.stderr);
    assert!(
        refused.stderr.contains("development store"),
        "{}",
        refused.stderr
    );

    let mut own = serve(&config.replace(&directory.display().to_string(), "own")).spawn();
    own.wait_for_output("serving");
    own.terminate();
    let made = own.dir().join("own");
    let arguments = ["dev", "--listen", "127.0.0.1:0", "--no-story", "--data-dir"];
    let refused = Launch::taskpass(arguments).arg(made.as_os_str()).run();
    assert_eq!(refused.code(), Some(3), "{}", refused.stderr);
    assert!(refused.stderr.contains("production"), "{}", refused.stderr);
}
