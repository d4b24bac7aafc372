//! Which checkpoints, witnesses and keys of the old log its successor accepts.

use aws_sdk_iam::config::{Credentials, SharedCredentialsProvider};
use taskpass::ledger::checkpoint_store::{Authorization, CheckpointStore, Swapped};
use taskpass::merkle::VerifierKey;

use super::*;
use crate::support::witness::{Manner, Witness};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaves_under_a_witnessed_checkpoint_are_vouched_for_by_the_witness() {
    let witness = Witness::start("witness.test/w", Manner::Good);
    let mut world = World::new(false);
    world.place = format!("{}\n{}", world.place, witness.table());
    let mut old = world.start(OLD);
    let keys = old.client.get_as(&old.admin, "/v1/ledger/keys").await;
    let first = keys.expect(200)["vkeys"][0].as_str().unwrap().to_owned();
    witness.trust(std::slice::from_ref(&first));
    old.ask(&world.token("agent:a", 0)).await.expect(201);
    let granted = world.published_by(&old).await;
    until("the witness has signed the checkpoint", SOON, async || {
        witness.size() >= granted
    })
    .await;
    // The witness does not see the following entries.
    witness.set(Manner::Status(503));
    until("the witness's signature is stored", SOON, async || {
        let metrics = old.client.get("/metrics").await.text();
        let size = witness.size();
        let kept = format!("taskpass_witness_size{{witness=\"witness.test/w\"}} {size}\n");
        metrics.contains(&kept)
    })
    .await;
    let size = witness.size();
    old.ask(&world.token("agent:a", 0)).await.expect(201);
    old.process.terminate();
    let all = world.published().1;
    assert!(all > size);
    let told = world.move_on(["keys", "revoke", "--ledger", &first], &[]);
    let listed = |from: u64| format!("{} leaves, from {from} to {}", all - from, all - 1);
    assert!(told.stderr.contains(&listed(size)), "{told:?}");
    // A row with a larger size than the witness signed is ignored.
    world
        .run_sql(
            OLD,
            &[
                "DELETE FROM cosigned WHERE size < (SELECT max(size) FROM cosigned)",
                "UPDATE cosigned SET size = (SELECT max(size) FROM ledger_head)",
            ],
        )
        .await;
    let told = world.move_on(["keys", "revoke", "--ledger", &first], &[]);
    assert!(told.stderr.contains(&listed(0)), "{told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_is_kept_in_a_bucket_that_wants_signed_requests() {
    let moto = Moto::start();
    let (id, secret) = moto.bucket("checkpoints").await;
    moto.enforce().await;
    let mut world = World::new(false);
    let url = format!("{}/checkpoints/of%20all", moto.url());
    world.place = format!("url = \"{url}\"\ns3_region = \"eu-central-1\"");
    let address = free_address();
    std::fs::write(world.path("old.toml"), world.config(OLD, address)).unwrap();
    let launch = |secret: &str| {
        world
            .serve(OLD)
            .env("AWS_ACCESS_KEY_ID", &id)
            .env("AWS_SECRET_ACCESS_KEY", secret)
    };
    let refused = launch("another").run();
    assert!(refused.stderr.contains("shared checkpoint"), "{refused:?}");
    assert!(refused.stderr.contains("403"), "{refused:?}");
    let mut process = launch(&secret).spawn();
    process.wait_ready(address);
    let broker = Broker {
        process,
        client: Client::new(&format!("http://{address}")),
        admin: world.old_admin.clone(),
    };
    let read = async || {
        let region = "eu-central-1".to_owned();
        let credentials = Credentials::new(&id, &secret, None, None, "test");
        let credentials = SharedCredentialsProvider::new(credentials);
        let signed = Authorization::s3(region, credentials);
        let place =
            CheckpointStore::object(url.parse().unwrap(), &BTreeMap::new(), signed).unwrap();
        let kept = place.read().await.unwrap();
        (place, kept)
    };
    for _ in 0..2 {
        broker.ask(&world.token("agent:a", 0)).await.expect(201);
        let checkpoint = broker.client.get_as(&broker.admin, "/v1/ledger/checkpoint");
        let checkpoint = checkpoint.await.text();
        until("the checkpoint is in the bucket", SOON, async || {
            read().await.1.note == Some(checkpoint.clone().into_bytes())
        })
        .await;
    }
    // The bucket refuses to overwrite a checkpoint that the broker has not read.
    let (place, kept) = read().await;
    broker.ask(&world.token("agent:a", 0)).await.expect(201);
    until("the checkpoint changes", SOON, async || {
        read().await.1 != kept
    })
    .await;
    assert_eq!(
        place.swap(&kept, "over it").await.unwrap(),
        Swapped::Changed
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_only_a_revoked_key_signed_is_not_believed() {
    let world = World::new(false);
    let vkey = world.key(world.start(OLD)).await;
    // A tree that the store does not have, signed by the log's key, as its thief could sign it.
    let theirs = world.lose(3).await;
    std::fs::remove_file(world.path("checkpoint")).unwrap();
    let note = std::fs::read_to_string(world.path("place")).unwrap();
    let old = OldLog::open(world.read(OLD), NEW, vec![], &[], now()).await;
    let old = old.unwrap();
    let own = old.head().size;
    assert_eq!(old.known().map(|(_, known)| known.size), Some(theirs));
    drop(old);
    let revoke = ["keys", "revoke", "--ledger", &vkey];
    let told = world.move_on(revoke, &[]);
    assert_eq!(told.code(), Some(2), "{told:?}");
    let root = note.lines().nth(2).unwrap();
    assert!(
        told.stderr.contains(&format!(
            "place: size {theirs} root {root}: the store does not"
        )),
        "{told:?}"
    );
    let ended = world.move_on(revoke, &["--yes", "--json"]);
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    let begun: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(begun["predecessor"]["size"], own);
    assert_ne!(begun["predecessor"]["root"], root);
    assert_eq!(world.published().0, NEW);
    let new = world.start(NEW);
    new.ask(&world.later_token("agent:a")).await.expect(201);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_was_retired_long_ago_is_still_known_as_the_logs() {
    let world = World::new(false);
    let mut old = world.start(OLD);
    let keys = old.client.get_as(&old.admin, "/v1/ledger/keys").await;
    let first = keys.expect(200)["vkeys"][0].as_str().unwrap().to_owned();
    world.admin(&old, "/v1/keys/rotate-ledger", json!({})).await;
    world.published_by(&old).await;
    old.process.terminate();
    let later = now().plus_seconds(40 * 86_400);
    let first: VerifierKey = first.parse().unwrap();
    let pinned = std::slice::from_ref(&first);
    let old = OldLog::open(world.read(OLD), NEW, vec![], pinned, later).await;
    let old = old.unwrap();
    assert!(old.has_key(&first));
    let stranger = VerifierKey::new(OLD, *b"01234567890123456789012345678901");
    assert!(!old.has_key(&stranger.unwrap()));
}
