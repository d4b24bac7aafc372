//! A fleet's log: its keys, its leaves, and receipts that verify under them.

use base64::engine::general_purpose::STANDARD;

use super::*;

/// Verifies the receipt of an answer with the log's keys.
pub async fn verify(
    fleet: &Fleet,
    replica: &Replica,
    granted: &Value,
) -> taskpass::merkle::Receipt {
    let keys = vkeys(fleet, replica).await;
    let keys: Vec<taskpass::merkle::VerifierKey> =
        keys.iter().map(|key| key.parse().unwrap()).collect();
    let receipt: taskpass::merkle::Receipt =
        serde_json::from_value(granted["receipt"].clone()).unwrap();
    receipt.verify(&keys).unwrap();
    receipt
}

/// The log's keys, as a replica publishes them.
pub async fn vkeys(fleet: &Fleet, replica: &Replica) -> Vec<String> {
    let keys = replica.client.get_as(&fleet.admin, "/v1/ledger/keys").await;
    serde_json::from_value(keys.expect(200)["vkeys"].clone()).unwrap()
}

/// Asserts that no session or permit lacks its counterpart, and that the log continues the tree of
/// an earlier grant.
pub async fn assert_sound(fleet: &Fleet, replica: &Replica, earlier: &Value) {
    assert_eq!(
        fleet.orphans(),
        (0, 0),
        "a session without its leaf, or a permit without its session"
    );
    let granted = replica.ask(&fleet.token()).await.expect(201);
    let receipt = verify(fleet, replica, &granted).await;
    let old = verify(fleet, replica, earlier).await;
    let path = format!(
        "/v1/ledger/consistency?from={}&to={}",
        old.tree_size, receipt.tree_size
    );
    let proof = replica.client.get_as(&fleet.admin, &path).await.expect(200);
    let proof: Vec<taskpass::merkle::Hash> =
        serde_json::from_value(proof["consistency_proof"].clone()).unwrap();
    let root = |checkpoint: &str| checkpoint.lines().nth(2).unwrap().parse().unwrap();
    taskpass::merkle::verify_consistency(
        old.tree_size,
        receipt.tree_size,
        &proof,
        &root(&old.checkpoint),
        &root(&receipt.checkpoint),
    )
    .unwrap();
}

/// A replica's newest checkpoint, and every leaf under it, byte for byte.
pub async fn whole_log(fleet: &Fleet, replica: &Replica) -> (String, Vec<Vec<u8>>) {
    let get = async |path: &str| replica.client.get_as(&fleet.admin, path).await;
    let checkpoint = get("/v1/ledger/checkpoint").await;
    assert_eq!(checkpoint.status, 200);
    let checkpoint = checkpoint.text();
    let size: u64 = checkpoint.lines().nth(1).unwrap().parse().unwrap();
    let mut leaves = Vec::new();
    for index in 0..size {
        let entry = get(&format!("/v1/ledger/entries/{index}"))
            .await
            .expect(200);
        let leaf = entry["leaf"].as_str().unwrap();
        leaves.push(STANDARD.decode(leaf).unwrap());
    }
    (checkpoint, leaves)
}
