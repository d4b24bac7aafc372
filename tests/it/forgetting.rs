//! Deleting free text before its retention ends: the text is gone; proofs, and the facts that
//! decisions used, remain.

use std::path::Path;

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::fleet::{Fleet, Replica, body, vkeys};
use crate::support::http::{Answer, assert_problem, send};
use crate::support::process::{Ended, Launch};
use crate::support::rig::Kind;

const PURPOSE: &str = "a letter to Ann Archer of 7 Elm Street";
const REASON: &str = "Ben Baker of 9 Oak Street left";

async fn begin(kind: Kind) -> (Fleet, Replica) {
    Fleet::on(kind).start().await
}

fn command(replica: &Replica, token: &str, arguments: &[&str]) -> Ended {
    let url = format!("http://{}", replica.address);
    Launch::taskpass(arguments.iter().copied().chain(["--url", &url]))
        .env("TASKPASS_TOKEN", token)
        .run()
}

fn good(ended: &Ended) -> &str {
    assert_eq!(ended.code(), Some(0), "{}{}", ended.stdout, ended.stderr);
    &ended.stdout
}

/// Requests a credential with a purpose, and returns the whole answer.
async fn granted(fleet: &Fleet, replica: &Replica) -> Value {
    let mut request = body();
    request["task"]["purpose"] = PURPOSE.into();
    let token = fleet.token();
    let asked = replica
        .client
        .post_json(&token, "/v1/credentials", &request);
    asked.await.expect(201)
}

/// Commits a cutoff with a block and a reason, and returns its id.
async fn cut_off(fleet: &Fleet, replica: &Replica) -> String {
    let body = json!({"selector": {"workload": "dev:agent%3Agone"}, "reason": REASON, "allow_unknown": true});
    let cut = replica
        .client
        .post_json(&fleet.admin, "/v1/revocations", &body)
        .await;
    assert!(cut.status < 300, "{}", cut.text());
    cut.json()["id"].as_str().unwrap().to_owned()
}

async fn forgotten(replica: &Replica, token: &str, id: &str) -> Answer {
    let path = format!("/v1/decisions/{id}/purpose");
    let request = replica.client.request(Method::DELETE, &path);
    send(request.bearer_auth(token)).await
}

async fn forget(fleet: &Fleet, replica: &Replica, id: &str) -> u16 {
    forgotten(replica, &fleet.admin, id).await.status
}

/// Whether the text is in any row or, on SQLite, in any byte of the broker's files.
async fn is_kept(fleet: &Fleet, replica: &Replica, text: &str) -> bool {
    if let Some(database) = fleet.maybe_database() {
        let sql = "SELECT (SELECT count(*) FROM leaf_opening WHERE position($1 in purpose) > 0) \
                   + (SELECT count(*) FROM cutoff WHERE position($2 in reason) > 0)";
        let mut connection = database.connect().await;
        let counted = sqlx::query_as(sql).bind(text.as_bytes()).bind(text);
        let (rows,): (i64,) = counted.fetch_one(&mut connection).await.unwrap();
        return rows > 0;
    }
    is_in(&replica.process.dir().join("data"), text)
}

fn is_in(directory: &Path, text: &str) -> bool {
    let files = std::fs::read_dir(directory).unwrap();
    let mut bytes = files.map(|file| std::fs::read(file.unwrap().path()).unwrap());
    bytes.any(|bytes| {
        bytes
            .windows(text.len())
            .any(|part| part == text.as_bytes())
    })
}

on_both_stores! {
    by reference;

    fn a_forgotten_purpose_is_gone_and_the_receipt_and_the_explanation_hold;
    fn a_forgotten_reason_leaves_the_revocation_and_its_block;
    fn nobody_forgets_but_who_may_change_how_long_texts_are_kept;
}

async fn a_forgotten_purpose_is_gone_and_the_receipt_and_the_explanation_hold(
    (fleet, replica): &(Fleet, Replica),
) {
    let answer = granted(fleet, replica).await;
    let id = answer["decision"]["id"].as_str().unwrap();
    assert!(is_kept(fleet, replica, PURPOSE).await);
    let why = command(replica, &fleet.admin, &["policy", "explain", id, "--json"]);
    let before: Value = serde_json::from_str(good(&why)).unwrap();

    let told = command(replica, &fleet.admin, &["ledger", "forget", id]);
    assert_eq!(
        good(&told),
        format!("the text written for {id} is deleted; its entry stays\n")
    );
    assert!(!is_kept(fleet, replica, PURPOSE).await);
    // Deleting again changes nothing.
    assert_eq!(forget(fleet, replica, id).await, 204);

    let why = command(replica, &fleet.admin, &["policy", "explain", id, "--json"]);
    let after: Value = serde_json::from_str(good(&why)).unwrap();
    assert_eq!((&after, &after["reproduced"]), (&before, &json!(true)));
    let vkey = vkeys(fleet, replica).await.remove(0);
    let fresh = command(replica, &fleet.admin, &["ledger", "receipt", id]);
    for receipt in [answer.to_string(), good(&fresh).to_owned()] {
        let verify = [
            "ledger",
            "verify",
            "receipt.json",
            "--key",
            &vkey,
            "--unchecked-signature",
        ];
        let verified = Launch::taskpass(verify).file("receipt.json", receipt).run();
        good(&verified);
    }
    let log = replica.process.stderr();
    assert!(log.contains("a text was deleted") && !log.contains(PURPOSE));
}

async fn a_forgotten_reason_leaves_the_revocation_and_its_block(
    (fleet, replica): &(Fleet, Replica),
) {
    let id = cut_off(fleet, replica).await;
    assert!(is_kept(fleet, replica, REASON).await);
    assert_eq!(forget(fleet, replica, &id).await, 204);
    assert!(!is_kept(fleet, replica, REASON).await);
    assert_eq!(forget(fleet, replica, &id).await, 204);
    let path = format!("/v1/revocations/{id}");
    let shown = replica.client.get_as(&fleet.admin, &path).await.expect(200);
    assert_eq!(
        (&shown["lifted"], shown["blocked_until"].is_string()),
        (&json!(false), true),
        "{shown}"
    );
    // The changed row still has a valid MAC, so the broker keeps serving.
    let (other, asked) = (fleet.token(), body());
    replica
        .client
        .post_json(&other, "/v1/credentials", &asked)
        .await
        .expect(201);
    let (lift, nothing) = (format!("{path}/lift"), json!({}));
    let lifted = replica
        .client
        .post_json(&fleet.admin, &lift, &nothing)
        .await;
    assert!(lifted.status < 300, "{}", lifted.text());
}

async fn nobody_forgets_but_who_may_change_how_long_texts_are_kept(
    (fleet, replica): &(Fleet, Replica),
) {
    let answer = granted(fleet, replica).await;
    let id = answer["decision"]["id"].as_str().unwrap();
    assert_problem(
        &forgotten(replica, &fleet.token(), id).await,
        403,
        "forbidden",
    );
    assert_eq!(forgotten(replica, "nonsense", id).await.status, 401);
    assert!(is_kept(fleet, replica, PURPOSE).await);
    let told = command(replica, &fleet.token(), &["ledger", "forget", id]);
    assert_eq!(told.code(), Some(1), "{}", told.stderr);
    for nothing in ["0198b2a0-0000-7000-8000-000000000001", "nonsense"] {
        assert_problem(
            &forgotten(replica, &fleet.admin, nothing).await,
            404,
            "not-found",
        );
    }
    assert_eq!(
        command(replica, &fleet.admin, &["ledger", "forget", "nonsense"]).code(),
        Some(2)
    );
}
