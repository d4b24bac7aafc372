use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use uuid::Uuid;

use super::super::appender::sign;
use super::*;
use crate::clock::{ManualClock, Timestamp};
use crate::crypto::digest::Mac;
use crate::crypto::jwk::Algorithm;
use crate::crypto::random::SystemRandom;
use crate::crypto::sealer::SealingKeys;
use crate::crypto::signer::{LocalSigner, PrivateKey, Signer as _};
use crate::ids::BatchId;
use crate::ledger::LedgerKey;
use crate::ledger::containment::unverified;
use crate::merkle::{Edge, Hash, VerifierKey};
use crate::store::append::{LeafRow, Needs, Writes};
use crate::store::endings::EndingsChain;
use crate::store::sqlite::Sqlite;

const ORIGIN: &str = "one.test/log";

fn mac() -> Mac {
    let key = SealingKeys::generate(&SystemRandom::new()).unwrap();
    SealingKeys::parse(&[key]).unwrap().mac(ORIGIN)
}

async fn store(directory: &std::path::Path, hashes: &[Hash], mac: &Mac) -> Store {
    let directory = directory.join("data");
    let store = Store::Sqlite(Sqlite::open(&directory, 1).await.unwrap());
    let leaves = hashes.iter().zip(0..).map(|(hash, index)| LeafRow {
        index,
        hash: *hash,
        body: Vec::new(),
        decision: None,
        subject: None,
        at: Timestamp::EPOCH,
        input: None,
        purpose: None,
    });
    let writes = Writes {
        leaves: leaves.collect(),
        head: Some(HeadSeal::new(ORIGIN, mac).seal(
            head(hashes),
            BatchId::from(Uuid::nil()),
            EndingsChain::EMPTY,
        )),
        ..Writes::default()
    };
    let mut connection = store.ledger_connection().await.unwrap();
    connection.enter(&Needs::default()).await.unwrap();
    connection.write(&writes).await.unwrap();
    connection.commit().await.unwrap();
    drop(connection);
    store
}

/// There are no other replicas with keys.
struct NoOthers;

impl LedgerKeySource for NoOthers {
    fn read(&self) -> BoxFuture<'_, Result<Vec<LedgerKey>, String>> {
        Box::pin(async { Ok(Vec::new()) })
    }
}

fn parts(store: Store, keys: Vec<LedgerKey>, mac: Mac) -> LedgerParts {
    LedgerParts {
        store,
        origin: ORIGIN.into(),
        keys: Arc::new(ArcSwap::from_pointee(keys)),
        key_source: Arc::new(NoOthers),
        mac,
        clock: ManualClock::new(Timestamp::EPOCH),
        metrics: Arc::new(Metrics::new()),
        succeeds: None,
    }
}

fn head(hashes: &[Hash]) -> Head {
    let mut edge = Edge::empty();
    edge.append(hashes);
    Head {
        size: edge.size(),
        root: edge.root(),
    }
}

#[tokio::test]
async fn what_others_published_is_never_written_over_by_less() {
    let directory = tempfile::tempdir().unwrap();
    let hashes: Vec<Hash> = (0..5).map(|n| Hash::from([n; 32])).collect();
    let key = PrivateKey::generate(Algorithm::EdDsa).unwrap();
    let signer = LocalSigner::new(&key).unwrap();
    let public = signer.public_jwk().ed25519_bytes().unwrap();
    let key = LedgerKey {
        verifier: VerifierKey::new(ORIGIN, public).unwrap(),
        signer: Arc::new(signer),
    };
    let mac = mac();
    let parts = parts(store(directory.path(), &hashes, &mac).await, vec![key], mac);
    let location = || CheckpointStore::file(directory.path().join("place"));
    let there = async || {
        let kept = location().read().await.unwrap();
        unverified(&kept.note.unwrap()).unwrap().size
    };
    let of = async |size: usize| sign(&parts, head(&hashes[..size])).await.unwrap();
    let fast = SharedCheckpoint::new(location(), &parts, Alarm::default());
    let slow = SharedCheckpoint::new(location(), &parts, Alarm::default());
    let (mut its, mut other) = (None, None);
    fast.publish(&of(4).await, &mut its).await.unwrap();
    // `slow` learns that `fast` has published more, also for its own next checkpoints. An equal
    // size is no reason to publish again.
    for size in [2, 3, 4] {
        slow.publish(&of(size).await, &mut other).await.unwrap();
        assert_eq!(there().await, 4);
    }
    slow.publish(&of(5).await, &mut other).await.unwrap();
    assert_eq!(there().await, 5);
    fast.publish(&of(4).await, &mut its).await.unwrap();
    assert_eq!(there().await, 5);
}

#[tokio::test]
async fn a_pool_that_leads_to_another_server_proves_nothing_and_accuses_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let hashes: Vec<Hash> = (0..5).map(|n| Hash::from([n; 32])).collect();
    let mac = mac();
    let store = store(directory.path(), &hashes, &mac).await;
    let parts = parts(store, Vec::new(), mac);
    let location = CheckpointStore::file(directory.path().join("place"));
    let shared = SharedCheckpoint::new(location, &parts, Alarm::default());
    // The pool's server may have more leaves by then.
    for count in [1, 3, 5] {
        let shown = head(&hashes[..count]);
        shared.check_pool(Some(shown)).await.unwrap();
    }
    let longer: Vec<Hash> = (0..6).map(|n| Hash::from([n; 32])).collect();
    let other: Vec<Hash> = (7..10).map(|n| Hash::from([n; 32])).collect();
    for shown in [None, Some(head(&longer)), Some(head(&other))] {
        let told = shared.check_pool(shown).await;
        assert!(
            matches!(&told, Err(SharedError::Unavailable(why)) if why.contains("different servers")),
            "{told:?}"
        );
    }
}
