//! `taskpass keys revoke`: it describes the effects, asks for confirmation, and issuance continues.

use serde_json::{Value, json};

use crate::support::process::{Ended, Launch};
use crate::support::rig::{ADMIN, Kind, Rig, ask};
use crate::support::server::Server;
use crate::support::terminal;

async fn begin(kind: Kind) -> Rig {
    Rig::on(kind).start().await
}

/// Runs the command as the admin of the broker at `server`.
fn run_as_admin(launch: Launch, server: &Server) -> Ended {
    let url = format!("http://localhost:{}", server.address.port());
    launch
        .env("TASKPASS_URL", url)
        .env("TASKPASS_TOKEN", ADMIN)
        .run()
}

fn keys(server: &Server, arguments: &[&str]) -> Ended {
    let launch = Launch::taskpass(["keys"].iter().chain(arguments).copied());
    run_as_admin(launch, server)
}

/// Runs `taskpass keys revoke` at a terminal, where the user types `answer` to the question.
/// Returns the output, followed by `exit=` and the exit code.
fn revoke_at_a_terminal(server: &Server, kid: &str, answer: &str) -> String {
    let program = [env!("CARGO_BIN_EXE_taskpass"), "keys", "revoke", "--", kid];
    let steps = json!([["wait", "Type `yes`:"], ["type", answer]]);
    let launch = terminal::launch(&program.map(str::to_owned), &steps);
    let ran = run_as_admin(launch, server);
    assert_eq!(ran.code(), Some(0), "{}\n{}", ran.stdout, ran.stderr);
    ran.stdout
}

/// The id of the key that signs access tokens.
fn signing(server: &Server) -> String {
    let listed = keys(server, &["list", "--json"]);
    assert_eq!(listed.code(), Some(0), "{listed:?}");
    let listed: Value = serde_json::from_str(&listed.stdout).unwrap();
    let keys = listed["keys"].as_array().unwrap();
    let own = keys
        .iter()
        .find(|key| key["purpose"] == "access_token" && key["signing"] == true);
    own.unwrap()["kid"].as_str().unwrap().to_owned()
}

on_both_stores! {
    fn keys_revoke_says_what_stops_and_asks_and_issuance_goes_on;
    fn keys_revoke_asks_at_a_terminal_and_withdraws_only_after_yes;
}

async fn keys_revoke_says_what_stops_and_asks_and_issuance_goes_on(mut rig: Rig) {
    let (server, _) = rig.serve();
    let issued = rig
        .issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
    let kid = signing(&server);
    assert_eq!(kid, issued.session.kid);
    // Without a terminal there is no confirmation: the command describes the effects and
    // changes nothing.
    let asked = keys(&server, &["revoke", "--", &kid]);
    assert_eq!(asked.code(), Some(2), "{asked:?}");
    for part in [
        "would be withdrawn; it signs new tokens now",
        "ends: 1 live session(s)",
        "issuance goes on: ",
        "may accept its tokens until ",
        "nothing was done",
        "--yes",
    ] {
        assert!(asked.stderr.contains(part), "{part}: {}", asked.stderr);
    }
    assert_eq!(signing(&server), kid);
    assert!(rig.is_good(&issued).await);

    let done = keys(&server, &["revoke", "--yes", "--", &kid]);
    assert_eq!(done.code(), Some(0), "{done:?}");
    for part in [
        "is withdrawn; it signed new tokens until now",
        "issuance goes on: ",
    ] {
        assert!(done.stdout.contains(part), "{part}: {}", done.stdout);
    }
    assert!(!rig.is_good(&issued).await);
    let next = rig
        .issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
    assert!(rig.is_good(&next).await);

    // The next successor has not been published for long enough, and the output says so.
    let kid = signing(&server);
    let done = keys(&server, &["revoke", "--yes", "--json", "--", &kid]);
    let told: Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(
        (&told["kid"], &told["withdrawn"]),
        (&Value::from(kid), &Value::from(true))
    );
    assert!(
        told["successor"].is_null() && told["issuance_resumes_at"].is_string(),
        "{told}"
    );
}

async fn keys_revoke_asks_at_a_terminal_and_withdraws_only_after_yes(mut rig: Rig) {
    let (server, _) = rig.serve();
    let issued = rig
        .issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
    let kid = signing(&server);
    // The last answer is end of input.
    for answer in ["no\n", "y\n", "\n", "\u{4}"] {
        let seen = revoke_at_a_terminal(&server, &kid, answer);
        for part in [
            "would be withdrawn; it signs new tokens now",
            "ends: 1 live session(s)",
            "Withdraw the key?",
            "nothing was done",
            "exit=1",
        ] {
            assert!(seen.contains(part), "{answer:?}: {part}: {seen}");
        }
    }
    assert_eq!(signing(&server), kid);
    assert!(rig.is_good(&issued).await);

    let seen = revoke_at_a_terminal(&server, &kid, "yes\n");
    for part in ["is withdrawn; it signed new tokens until now", "exit=0"] {
        assert!(seen.contains(part), "{part}: {seen}");
    }
    assert!(!rig.is_good(&issued).await);
}
