//! Roles in AWS of a log that was given up: which are denied, which are reported.

use super::*;
use crate::support::rig::aws_endpoint;

/// The tables of a resource for an AWS role, with or without a list of denied sessions.
fn role(name: &str, lists: bool) -> String {
    role_of(name, &arn(name), lists.then_some(""))
}

fn arn(name: &str) -> String {
    format!("arn:aws:iam::123456789012:role/{name}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roles_that_are_registered_no_more_are_denied_or_named_with_their_time() {
    for lost in [true, false] {
        let mut world = World::new(false);
        // Three generations; the last one knows only one role.
        world.resources = format!("{}{}", role("listed", true), role("bare", false));
        let mut old = world.start(OLD);
        old.ask(&world.token("agent:a", 0)).await.expect(201);
        old.process.terminate();
        world.resources = role("once", true);
        world.start(OLD).process.terminate();
        world.resources = String::new();
        let key = if lost {
            world.lose(1).await;
            None
        } else {
            let mut old = world.start(OLD);
            let keys = old.client.get_as(&old.admin, "/v1/ledger/keys").await;
            let key = keys.expect(200)["vkeys"][0].as_str().unwrap().to_owned();
            world.published_by(&old).await;
            old.process.terminate();
            Some(key)
        };
        // A list that only its own row names, and a session that only its own row names.
        let registration = json!({
            "role_arn": arn("row"), "mode": "web_identity", "region": "eu-central-1",
            "revocation": {"role_arn": arn("revoker")}
        });
        let row = format!(
            "INSERT INTO deny_place (minter, name, registration, capacity, propagation_seconds, due_at) \
             VALUES ('aws', '{}', '{registration}', 8, 300, 0)",
            arn("row")
        );
        let session = format!(
            "UPDATE session SET minter = 'aws', is_local = 0, audience = '{}', state = 'active', end_reason = NULL, \
             ended_at = NULL, confirmed_at = NULL, expires_at = expires_at + 3600000000",
            arn("session")
        );
        world.run_sql(OLD, &[&row, &session]).await;
        let arguments = ["--yes", "--json"];
        let ended = match &key {
            None => world.move_on(["ledger", "new-origin"], &arguments),
            Some(key) => world.move_on(["keys", "revoke", "--ledger", key], &arguments),
        };
        assert_eq!(ended.code(), Some(0), "{ended:?}");
        assert!(!ended.stderr.contains("is over"), "{ended:?}");
        let begun: Value = serde_json::from_str(&ended.stdout).unwrap();
        let denied = ["listed", "once", "reports", "row"].map(arn);
        assert_eq!(begun["denied"], json!(denied));
        let left = begun["expires_naturally"].as_array().unwrap();
        let names: Vec<&Value> = left.iter().map(|left| &left["target"]).collect();
        assert_eq!(json!(names), json!(["bare", "session"].map(arn)));
        for left in left {
            let until = time::OffsetDateTime::parse(
                left["until"].as_str().unwrap(),
                &time::format_description::well_known::Rfc3339,
            );
            let hours = (until.unwrap().unix_timestamp() - unix_seconds()) / 3_600;
            assert!((11..=12).contains(&hours), "{left}");
            assert!(
                left["reason"].as_str().unwrap().contains("no deny list"),
                "{left}"
            );
        }
        // Each list is due in the new store, and has its cutoff.
        let store = Store::Sqlite(Sqlite::open(&world.path(data(NEW)), 1).await.unwrap());
        let places = store.deny_policy_targets().await.unwrap();
        let names: Vec<&str> = places.iter().map(|place| &*place.name).collect();
        assert_eq!(names, denied);
        let cutoffs = store.cutoffs(99).await.unwrap();
        for name in &denied {
            let denies = |cutoff: &taskpass::store::cutoffs::SealedCutoff| {
                cutoff.claimed().deny_policy_target.as_deref() == Some(name.as_str())
            };
            assert!(cutoffs.iter().any(denies), "{name}");
        }
        store.close().await;
    }
}

/// Replaces a log whose role is at `moto` and registered only in the old configuration. Returns the
/// report of `keys revoke --ledger`, run with `endpoints` in the new configuration.
async fn give_up_a_log_with_a_role_at(world: &mut World, moto: &Moto, endpoints: &str) -> Value {
    let iam = moto.iam();
    for name in ["once", "revoker"] {
        let made = iam.create_role().role_name(name);
        let trust = r#"{"Version":"2012-10-17","Statement":[]}"#;
        let made = made.assume_role_policy_document(trust).send().await;
        made.unwrap();
    }
    world.registers_role = false;
    let role = role_of("once", &arn("once"), Some("endpoint = \"aws\""));
    world.resources = format!("{role}\n{}", aws_endpoint(&moto.url()));
    let mut old = world.start(OLD);
    if world.databases.is_some() {
        world.activate(&old).await;
    }
    let keys = old.client.get_as(&old.admin, "/v1/ledger/keys").await;
    let key = keys.expect(200)["vkeys"][0].as_str().unwrap().to_owned();
    world.published_by(&old).await;
    old.process.terminate();
    endpoints.clone_into(&mut world.resources);
    let new = world.config(NEW, free_address());
    let another = new.replace(
        "issuer = \"http://127.0.0.1:7070\"",
        "issuer = \"http://localhost:7070\"",
    );
    assert_ne!(new, another);
    let revoke = ["keys", "revoke", "--ledger", &key];
    std::fs::write(world.path(file(NEW)), another).unwrap();
    let refused = world.move_on(revoke, &["--yes", "--json"]);
    assert_eq!(refused.code(), Some(2), "{refused:?}");
    assert!(refused.stdout.contains("server.issuer"), "{refused:?}");
    std::fs::write(world.path(file(NEW)), new).unwrap();
    let report = std::cell::RefCell::new(Value::Null);
    // PostgreSQL notices with a delay that the old broker's last connection is closed.
    until("the log is replaced", SOON, async || {
        let ended = world.move_on(revoke, &["--yes", "--json"]);
        if ended.code() == Some(0) {
            *report.borrow_mut() = serde_json::from_str(&ended.stdout).unwrap();
        }
        ended.code() == Some(0)
    })
    .await;
    report.into_inner()
}

/// Waits until the role `once` denies every session that is older than the new log.
async fn the_role_denies_older_sessions(moto: &Moto) {
    let iam = moto.iam();
    until("the policy is written", SOON, async || {
        let policy = iam.get_role_policy().role_name("once");
        let policy = policy.policy_name("TaskpassRevokedSessions").send().await;
        policy.is_ok_and(|policy| policy.policy_document().contains("TokenIssueTime"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_is_registered_no_more_gets_the_policy_that_the_report_promises() {
    for postgres in [false, true] {
        let moto = Moto::start();
        let mut world = World::new(postgres);
        let endpoint = aws_endpoint(&moto.url());
        let report = give_up_a_log_with_a_role_at(&mut world, &moto, &endpoint).await;
        assert_eq!(report["denied"], json!([arn("once")]));
        assert_eq!(report["expires_naturally"], json!([]));
        // On SQLite a generation without roles is active, and on PostgreSQL none.
        let _new = world.start(NEW);
        the_role_denies_older_sessions(&moto).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_whose_endpoint_is_configured_no_more_is_reported_as_left_until_it_is_again() {
    let moto = Moto::start();
    let mut world = World::new(false);
    let report = give_up_a_log_with_a_role_at(&mut world, &moto, "").await;
    assert_eq!(report["denied"], json!([]));
    let left = &report["expires_naturally"];
    assert_eq!(left.as_array().unwrap().len(), 1, "{left}");
    assert_eq!(left[0]["target"], arn("once"));
    let why = left[0]["reason"].as_str().unwrap();
    assert!(
        why.contains("no endpoint `aws`") && why.contains("[endpoints.aws]"),
        "{left}"
    );
    assert!(left[0]["until"].is_string(), "{left}");
    world.resources = aws_endpoint(&moto.url());
    let _new = world.start(NEW);
    the_role_denies_older_sessions(&moto).await;
}
