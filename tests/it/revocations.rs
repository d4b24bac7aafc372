//! Revocations as admins see them: those in force, the callers they block, and the difference
//! between a mistyped name and a precaution.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::http::{Client, assert_problem, send};
use crate::support::process::{Ended, Launch};
use crate::support::rig::{ADMIN, Kind, POLICIES, Rig, ask, ask_joining, handle, refusal};
use crate::support::server::Server;

const REPORTS: &str = "dev:agent%3Areports";

const READERS: &str = r#"
@id("readers") @description("readers read revocations")
permit (principal in Role::"reader", action == Action::"readRevocations", resource == Broker::"taskpass");
@id("listers") @description("listers read sessions too")
permit (principal in Role::"lister", action == Action::"listSessions", resource == Broker::"taskpass");
"#;

struct World {
    rig: Rig,
    client: Client,
    server: Server,
}

async fn begin(kind: Kind) -> World {
    let policies = format!("{POLICIES}{READERS}");
    let mut rig = Rig::on(kind).policies(&policies).start().await;
    let (server, client) = rig.serve();
    World {
        rig,
        client,
        server,
    }
}

impl World {
    async fn revoke(&self, body: Value) -> Value {
        let answer = self.client.post_json(ADMIN, "/v1/revocations", &body);
        answer.await.expect(200)
    }

    async fn list(&self, query: &str) -> Vec<Value> {
        let path = format!("/v1/revocations{query}");
        let answer = self.client.get_as(ADMIN, &path).await.expect(200);
        answer["revocations"].as_array().unwrap().clone()
    }

    /// Runs a command as an admin.
    fn run(&self, arguments: &[&str]) -> Ended {
        let url = format!("http://localhost:{}", self.server.address.port());
        let connection = ["--url", &url, "--token-file", "token"];
        Launch::taskpass(arguments.iter().chain(&connection).copied())
            .file("token", ADMIN)
            .run()
    }
}

fn names(rows: &[Value], member: &str) -> Vec<String> {
    let name = |row: &Value| match &row[member] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    rows.iter().map(name).collect()
}

on_both_stores! {
    fn a_block_is_listed_found_by_its_selector_shown_and_lifted;
    fn a_listing_of_revocations_is_read_page_by_page;
    fn a_selector_of_what_never_existed_is_refused_by_name;
    fn of_lifts_at_once_one_is_recorded_and_all_name_its_leaf;
    fn a_reader_of_revocations_is_told_how_many_sessions_and_not_which;
    fn a_task_that_is_revoked_is_over_and_cannot_be_joined;
    fn the_command_line_shows_what_is_blocked_and_what_would_end;
}

async fn a_block_is_listed_found_by_its_selector_shown_and_lifted(world: World) {
    assert_eq!(world.list("").await, Vec::<Value>::new());
    world
        .rig
        .issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
    let held = world.revoke(json!({
        "selector": {"workload": REPORTS}, "block_seconds": "until_lifted", "reason": "lost laptop",
    })).await;
    let over = world
        .revoke(json!({
            "selector": {"resource": "orders-api"}, "block_seconds": 0, "reason": "drill",
        }))
        .await;
    assert_eq!(
        held["blocked_until"], "until_lifted",
        "the answer names the blocked requests"
    );
    assert_eq!(held["selector"], json!({"workload": REPORTS}));
    assert_eq!(over.get("blocked_until"), None);

    let all = world.list("").await;
    assert_eq!(
        names(&all, "id"),
        names(&[over.clone(), held.clone()], "id"),
        "newest first"
    );
    assert_eq!(
        (&all[1]["reason"], &all[1]["block_active"]),
        (&json!("lost laptop"), &json!(true))
    );
    assert_eq!(all[0]["block_active"], false);
    let standing = world.list("?standing=true").await;
    assert_eq!(
        names(&standing, "id"),
        names(std::slice::from_ref(&held), "id")
    );
    let found = world.list("?selector=resource%3Dorders-api").await;
    assert_eq!(names(&found, "id"), names(&[over], "id"));
    assert_eq!(world.list("?selector=all").await, Vec::<Value>::new());

    let id = held["id"].as_str().unwrap();
    let shown = world
        .client
        .get_as(ADMIN, &format!("/v1/revocations/{id}"))
        .await
        .expect(200);
    assert_eq!(
        (&shown["reason"], &shown["matched"]),
        (&json!("lost laptop"), &json!(1))
    );
    let (path, nothing) = (format!("/v1/revocations/{id}/lift"), json!({}));
    let lifted = world.client.post_json(ADMIN, &path, &nothing).await;
    assert_eq!(lifted.expect(200)["block_active"], false);
    assert_eq!(world.list("?standing=true").await, Vec::<Value>::new());
}

async fn a_listing_of_revocations_is_read_page_by_page(world: World) {
    for number in 0..5 {
        world
            .revoke(json!({
                "selector": {"all": true}, "block_seconds": 0, "reason": format!("drill {number}"),
            }))
            .await;
    }
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let path = format!("/v1/revocations?limit=2{cursor}");
        let page = world.client.get_as(ADMIN, &path).await.expect(200);
        seen.extend(names(page["revocations"].as_array().unwrap(), "reason"));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(
        seen,
        ["drill 4", "drill 3", "drill 2", "drill 1", "drill 0"]
    );
    for (query, status) in [
        ("limit=0", 400),
        ("selector=everything%3D1", 400),
        ("standing=x", 400),
        ("cursor=x", 400),
        ("standing=true&standing=true", 400),
    ] {
        let answer = world
            .client
            .get_as(ADMIN, &format!("/v1/revocations?{query}"))
            .await;
        assert_eq!(answer.status, status, "{query}: {}", answer.text());
    }
    let own = world.rig.token("agent:reports", json!({}));
    let refused = world.client.get_as(&own, "/v1/revocations").await;
    assert_problem(&refused, 403, "forbidden");
}

async fn a_selector_of_what_never_existed_is_refused_by_name(world: World) {
    let unknown = [
        json!({"resource": "order-api"}),
        json!({"resource": "*"}),
        json!({"resource": " "}),
        json!({"resource": ""}),
        json!({"policy": "data-reed"}),
        json!({"attestor": "githup"}),
        json!({"workload": "dev:agent%3Areportz"}),
        json!({"task": "01900000-0000-7000-8000-000000000000"}),
        json!({"signing_key": "x"}),
        json!({"generation": format!("sha256:{}", "ab".repeat(32))}),
    ];
    for dry_run in [true, false] {
        for selector in &unknown {
            let body = json!({"selector": selector, "reason": "x", "dry_run": dry_run});
            let answer = world
                .client
                .post_json(ADMIN, "/v1/revocations", &body)
                .await;
            let problem = assert_problem(&answer, 404, "not-found");
            let value = selector.as_object().unwrap().values().next().unwrap();
            let detail = problem["detail"].as_str().unwrap();
            assert!(detail.contains(value.as_str().unwrap()), "{detail}");
        }
    }
    assert_eq!(
        world.list("").await,
        Vec::<Value>::new(),
        "nothing was revoked"
    );
    // Before a workload's first use, the revocation may be intended.
    let meant = json!({"selector": {"workload": "dev:agent%3Areportz"}, "reason": "x", "allow_unknown": true});
    world.revoke(meant).await;

    let issued = world
        .rig
        .issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
    // Both databases compare names by exact characters.
    let upper = issued.session.policies[0].to_uppercase();
    assert_ne!(upper, issued.session.policies[0]);
    for selector in [
        json!({"policy": upper}),
        json!({"policy": "x".repeat(60_000)}),
    ] {
        let body = json!({"selector": selector, "reason": "x"});
        let answer = world
            .client
            .post_json(ADMIN, "/v1/revocations", &body)
            .await;
        assert_problem(&answer, 404, "not-found");
    }
    for name in ["", "red\u{202e}", "\u{1b}[31m", &"x".repeat(65)] {
        for kind in ["resource", "attestor", "policy", "signing_key"] {
            let body = json!({"selector": {kind: name}, "reason": "x", "allow_unknown": true});
            let answer = world
                .client
                .post_json(ADMIN, "/v1/revocations", &body)
                .await;
            assert_eq!(answer.status, 400, "{kind} {name:?}: {}", answer.text());
        }
    }
    let known = [
        json!({"resource": "archive-api"}),
        json!({"policy": &issued.session.policies[0]}),
        json!({"attestor": "dev"}),
        json!({"workload": REPORTS}),
        json!({"task": issued.task.id.to_string()}),
        json!({"signing_key": &issued.session.kid}),
        json!({"generation": issued.session.generation.to_string()}),
    ];
    for selector in known {
        world
            .revoke(json!({"selector": selector, "reason": "x", "dry_run": true}))
            .await;
    }
    for body in [
        r#"{"selector": {"all": true}, "selector": {"all": true}, "reason": "x"}"#,
        r#"{"selector": {"resource": "a", "resource": "b"}, "reason": "x"}"#,
        r#"{"selector": {}, "reason": "x"}"#,
        r#"{"selector": "*", "reason": "x"}"#,
    ] {
        let request = world
            .client
            .request(Method::POST, "/v1/revocations")
            .bearer_auth(ADMIN);
        let request = request
            .header("content-type", "application/json")
            .body(body);
        assert_eq!(send(request).await.status, 400, "{body}");
    }
}

async fn of_lifts_at_once_one_is_recorded_and_all_name_its_leaf(world: World) {
    world
        .rig
        .issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
    let held = world
        .revoke(json!({"selector": {"workload": REPORTS}, "reason": "x"}))
        .await;
    let path = format!("/v1/revocations/{}/lift", held["id"].as_str().unwrap());
    let nothing = json!({});
    let lift = || world.client.post_json(ADMIN, &path, &nothing);
    let (one, two, three) = tokio::join!(lift(), lift(), lift());
    let lifted = [one.expect(200), two.expect(200), three.expect(200)];
    let leaf = lifted[0]["lifted_index"].as_u64().unwrap();
    for other in &lifted {
        assert_eq!(other["lifted_index"], leaf, "{lifted:?}");
    }
}

async fn a_reader_of_revocations_is_told_how_many_sessions_and_not_which(world: World) {
    world
        .rig
        .issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
    let held = world
        .revoke(json!({
            "selector": {"resource": "orders-api"}, "block_seconds": 0, "reason": "x",
        }))
        .await;
    assert_eq!(held["sessions"].as_array().unwrap().len(), 1, "{held}");
    for (role, sessions) in [("reader", 0), ("lister", 1)] {
        let bind = json!({"workload": "dev:agent%3Aorders", "role": role});
        let bound = world.client.post_json(ADMIN, "/v1/admins", &bind).await;
        assert_eq!(bound.status, 204, "{}", bound.text());
        let reader = world.rig.token("agent:orders", json!({}));
        let path = format!("/v1/revocations/{}", held["id"].as_str().unwrap());
        let shown = world.client.get_as(&reader, &path).await.expect(200);
        assert_eq!(shown["matched"], 1, "{shown}");
        assert_eq!(
            shown["sessions"].as_array().unwrap().len(),
            sessions,
            "{role}: {shown}"
        );
    }
}

async fn a_task_that_is_revoked_is_over_and_cannot_be_joined(world: World) {
    let issued = world
        .rig
        .issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
    let task = issued.task.id;
    let body = json!({"selector": {"task": task.to_string()}, "block_seconds": 0, "reason": "x"});
    world.revoke(body).await;
    let shown = world
        .client
        .get_as(ADMIN, &format!("/v1/tasks/{task}"))
        .await
        .expect(200);
    assert_eq!(
        shown["task"]["state"].as_str().or(shown["state"].as_str()),
        Some("aborted"),
        "{shown}"
    );
    let joined = world
        .rig
        .issue("agent:reports", ask_joining(&issued, &["orders:read"]))
        .await;
    assert_eq!(refusal(joined), "task-ended");
    let beat = world
        .client
        .request(Method::POST, &format!("/v1/tasks/{task}/heartbeat"));
    let beat = beat.header(
        "taskpass-task",
        secrecy::ExposeSecret::expose_secret(&handle(&issued)),
    );
    assert!(!(200..300).contains(&send(beat).await.status));
}

async fn the_command_line_shows_what_is_blocked_and_what_would_end(world: World) {
    world
        .rig
        .issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
    let selector = format!("workload={REPORTS}");
    let tried = world.run(&["revoke", &selector, "--dry-run", "--reason", "x"]);
    assert_eq!(tried.code(), Some(0), "{tried:?}");
    assert!(tried.stdout.contains("1 session(s) would end"), "{tried:?}");
    assert!(
        tried.stdout.contains("orders-api"),
        "the output names the session: {tried:?}"
    );
    let slip = world.run(&["revoke", "workload=dev:nobody", "--reason", "x"]);
    assert_eq!(slip.code(), Some(1), "{slip:?}");
    assert!(slip.stderr.contains("workload=dev:nobody"), "{slip:?}");
    let slip = world.run(&["revoke", "workload=dev:nobody", "--reason", "x", "--json"]);
    let told: Value = serde_json::from_str(&slip.stdout).unwrap();
    assert_eq!(told["error"]["kind"], "refused");
    assert_eq!(
        told["error"]["problem"]["type"],
        "urn:taskpass:problem:not-found"
    );

    let done = world.run(&[
        "revoke",
        &selector,
        "--until-lifted",
        "--reason",
        "lost laptop",
    ]);
    assert!(
        done.stdout.contains(&format!(
            "{selector} gets nothing new until the revocation is lifted"
        )),
        "{done:?}"
    );
    let listed = world.run(&["revocations", "list", "--standing"]);
    let line = listed
        .stdout
        .lines()
        .find(|line| line.contains(&selector))
        .unwrap();
    assert!(line.contains("lost laptop"), "{listed:?}");
    let id = line.split_whitespace().next().unwrap();
    let shown = world.run(&["revocations", "show", id]);
    assert!(shown.stdout.contains("\"matched\": 1"), "{shown:?}");
    assert_eq!(world.run(&["revocations", "lift", id]).code(), Some(0));
    let left = world.run(&["revocations", "list", "--standing", "--json"]);
    let left: Value = serde_json::from_str(&left.stdout).unwrap();
    assert_eq!(left["revocations"], json!([]));
}
