//! `taskpass keys revoke`: it says what would stop, asks, and issuance goes on.

use serde_json::Value;

use crate::support::fleet::{Fleet, Replica};
use crate::support::process::{Ended, Launch};
use crate::support::rig::Kind;

async fn begin(kind: Kind) -> (Fleet, Replica) {
    Fleet::on(kind).await
}

fn keys(fleet: &Fleet, replica: &Replica, arguments: &[&str]) -> Ended {
    Launch::taskpass(["keys"].iter().chain(arguments).copied())
        .env("TASKPASS_URL", format!("http://{}", replica.address))
        .env("TASKPASS_TOKEN", &fleet.admin)
        .run()
}

/// The key that signs access tokens.
fn signing(fleet: &Fleet, replica: &Replica) -> String {
    let listed = keys(fleet, replica, &["list", "--json"]);
    assert_eq!(listed.code(), Some(0), "{listed:?}");
    let listed: Value = serde_json::from_str(&listed.stdout).unwrap();
    let keys = listed["keys"].as_array().unwrap();
    let own = keys
        .iter()
        .find(|key| key["purpose"] == "access_token" && key["signs"] == true);
    own.unwrap()["kid"].as_str().unwrap().to_owned()
}

on_both_stores! {
    async fn keys_revoke_says_what_stops_and_asks_and_issuance_goes_on(fleet, replica) {
        let granted = replica.ask(&fleet.token()).await.expect(201);
        let kid = signing(fleet, replica);
        // Nobody can be asked here, so nothing is done; what would be is told.
        let asked = keys(fleet, replica, &["revoke", "--", &kid]);
        assert_eq!(asked.code(), Some(2), "{asked:?}");
        for part in [
            "would be withdrawn; it signs new tokens now",
            "ends: 1 live session(s)",
            "issuance goes on: ",
            "may take its tokens until ",
            "nothing was done",
            "--yes",
        ] {
            assert!(asked.stderr.contains(part), "{part}: {}", asked.stderr);
        }
        assert_eq!(signing(fleet, replica), kid);
        assert!(fleet.is_good(replica, &granted).await);

        let done = keys(fleet, replica, &["revoke", "--yes", "--", &kid]);
        assert_eq!(done.code(), Some(0), "{done:?}");
        assert!(done.stdout.contains("is withdrawn") && done.stdout.contains("issuance goes on"), "{}", done.stdout);
        assert!(!fleet.is_good(replica, &granted).await);
        let next = replica.ask(&fleet.token()).await.expect(201);
        assert!(fleet.is_good(replica, &next).await);

        // The next successor is published, and not for long enough: that is told, too.
        let kid = signing(fleet, replica);
        let done = keys(fleet, replica, &["revoke", "--yes", "--json", "--", &kid]);
        let told: Value = serde_json::from_str(&done.stdout).unwrap();
        assert_eq!((&told["kid"], &told["withdrawn"]), (&Value::from(kid), &Value::from(true)));
        assert!(told["successor"].is_null() && told["issuance_resumes_at"].is_string(), "{told}");
    }
}
