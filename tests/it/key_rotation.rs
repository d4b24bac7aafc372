//! Rotations of the broker's own keys: several at once, too many, and rows that earlier versions
//! left.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use secrecy::SecretString;
use taskpass::app::Assembled;
use taskpass::broker::keys::{ledger_key_dates, make_key};
use taskpass::broker::revocation::{BlockRequest, RevokeRequest};
use taskpass::broker::{Broker, BrokerError};
use taskpass::crypto::SealingKeys;
use taskpass::crypto::jwk::{Algorithm, PublicJwk};
use taskpass::crypto::keyring::{KeyPurpose, SigningKeyRecord};
use taskpass::crypto::sealer::Sealer;
use taskpass::crypto::signer::{SignError, Signer};
use taskpass::domain::cutoff::{Selector, True};
use taskpass::domain::limits::{MAX_LEDGER_KEYS, MAX_PUBLISHED_KEYS};
use taskpass::ledger::{LedgerKey, LedgerStatus};
use taskpass::merkle::Note;
use taskpass::store::append::{ActWrite, Needs, Writes};
use taskpass::store::keys::SigningKeyRow;

use crate::support::SOON;
use crate::support::rig::{Kind, Rig, ask};

const DAY: u64 = 86_400;

async fn begin(kind: Kind) -> Rig {
    Rig::on(kind).start().await
}

async fn records(rig: &Rig, purpose: KeyPurpose) -> Vec<SigningKeyRecord> {
    let keys = rig
        .broker
        .signing_keys
        .list_keys(&rig.admin())
        .await
        .unwrap();
    let records = keys.into_iter().map(|key| key.record);
    records.filter(|record| record.purpose == purpose).collect()
}

/// Asserts that the log has exactly one key without an end, and that it is the current key.
async fn assert_one_endless_key(rig: &Rig) {
    let ledger = records(rig, KeyPurpose::Ledger).await;
    let endless: Vec<_> = ledger
        .iter()
        .filter(|key| key.is_endless(KeyPurpose::Ledger))
        .collect();
    assert_eq!(endless.len(), 1, "{ledger:?}");
    rig.broker.keys.follow(rig.now()).await.unwrap();
    let current = rig.broker.core.ledger().keys();
    assert_eq!(current[0].signer.kid(), endless[0].kid);
}

/// Advances the clock day by day, and makes the keys that are due.
async fn advance_days(rig: &Rig, days: u64) {
    for _ in 0..days {
        rig.clock.advance(DAY);
        rig.broker.keys.follow(rig.now()).await.unwrap();
    }
}

/// Asserts that the log still works a month later, also on a replica that starts then.
async fn assert_works_after_a_month(rig: &mut Rig) {
    advance_days(rig, 31).await;
    assert_eq!(
        rig.broker.core.ledger().keys().len(),
        1,
        "the retired keys are no longer published"
    );
    rig.issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
    rig.restart().await.unwrap();
    rig.issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
    assert_one_endless_key(rig).await;
}

/// Rotates the log's key `count` times at once, with these brokers in turn. Returns the number of
/// successful rotations.
async fn rotate_at_once(rig: &Rig, brokers: &[&Arc<Broker>], count: usize) -> usize {
    let rotations = (0..count).map(|n| {
        let broker = Arc::clone(brokers[n % brokers.len()]);
        let admin = rig.admin();
        tokio::spawn(async move { broker.signing_keys.rotate_ledger_key(&admin).await })
    });
    let mut made = 0;
    for rotated in futures_util::future::join_all(rotations).await {
        match rotated.unwrap() {
            Ok(_) => made += 1,
            Err(BrokerError::TooManyKeys { most, until }) => {
                assert_eq!(most, MAX_LEDGER_KEYS);
                assert!(until > rig.now() && until < rig.now().plus_seconds(31 * DAY));
            }
            Err(other) => panic!("{other}"),
        }
    }
    made
}

/// The rig's sealing keys.
fn sealing(rig: &Rig) -> SealingKeys {
    let key = std::fs::read_to_string(rig.directory().join("dev-sealing-key")).unwrap();
    SealingKeys::parse(&[SecretString::from(key)]).unwrap()
}

/// Writes rows of keys without the broker's rules, as an earlier version could.
async fn put_keys(rig: &Rig, rows: Vec<SigningKeyRow>) {
    let acts = rows
        .into_iter()
        .map(|row| ActWrite::SigningKey(Box::new(row)));
    let writes = Writes {
        acts: acts.collect(),
        ..Writes::default()
    };
    let mut connection = rig.broker.core.store().ledger_connection().await.unwrap();
    connection.enter(&Needs::default()).await.unwrap();
    connection.write(&writes).await.unwrap();
    connection.commit().await.unwrap();
}

/// Gives every ledger key an end in a month.
async fn end_all_ledger_keys(rig: &Rig) {
    let sealing = sealing(rig);
    let mac = sealing.mac(rig.broker.core.ledger().origin());
    let ledger = records(rig, KeyPurpose::Ledger).await;
    let rows = rig.broker.core.store().signing_keys().await.unwrap();
    let mut ended = Vec::new();
    for mut record in ledger {
        let row = rows.iter().find(|row| row.kid == record.kid).unwrap();
        let secret = sealing.open(record.seal_context(), &row.sealed).await;
        // Never set a row's end later.
        record.retire_at = record.retire_at.min(rig.now().plus_seconds(30 * DAY));
        record.remove_at = record.retire_at;
        let secret = secret.unwrap();
        let sealed = sealing.seal(record.seal_context(), &secret).await.unwrap();
        ended.push(SigningKeyRow {
            retire_at: record.retire_at,
            remove_at: record.remove_at,
            mac: record.tag(&mac, &sealed),
            sealed,
            ..row.clone()
        });
    }
    put_keys(rig, ended).await;
}

/// Adds a ledger key without an end.
async fn put_ledger_key(rig: &Rig) {
    let sealing = sealing(rig);
    let mac = sealing.mac(rig.broker.core.ledger().origin());
    let dates = ledger_key_dates(rig.now());
    let made = make_key(
        dates,
        KeyPurpose::Ledger,
        Algorithm::EdDsa,
        None,
        &sealing,
        &mac,
    );
    put_keys(rig, vec![made.await.unwrap().into_row()]).await;
}

/// A key whose signing fails.
struct Unable(LedgerKey);

impl Signer for Unable {
    fn algorithm(&self) -> Algorithm {
        self.0.signer.algorithm()
    }

    fn public_jwk(&self) -> &PublicJwk {
        self.0.signer.public_jwk()
    }

    fn kid(&self) -> &str {
        self.0.signer.kid()
    }

    fn sign<'a>(&'a self, _: &'a [u8]) -> BoxFuture<'a, Result<Vec<u8>, SignError>> {
        Box::pin(async { Err(SignError::Failed) })
    }
}

fn unable(key: &LedgerKey) -> LedgerKey {
    LedgerKey {
        verifier: key.verifier.clone(),
        signer: Arc::new(Unable(key.clone())),
    }
}

on_both_stores! {
    fn ledger_rotations_at_the_same_time_do_not_retire_each_other;
    fn a_rotation_that_readers_would_not_bear_is_refused_before_anything_is_recorded;
    fn the_revocation_of_the_signing_key_does_not_stop_issuance;
    fn the_revocation_of_a_key_that_does_not_sign_says_so;
    fn the_newest_ledger_key_is_kept_and_followed_though_an_earlier_version_gave_it_an_end;
    fn a_store_that_has_more_ledger_keys_than_a_note_has_room_for_starts_again;
    fn an_act_that_is_recorded_and_not_signed_is_not_told_as_nothing_done;
}

async fn ledger_rotations_at_the_same_time_do_not_retire_each_other(mut rig: Rig) {
    for count in [2, 8] {
        let before = records(&rig, KeyPurpose::Ledger).await.len();
        let made = rotate_at_once(&rig, &[&rig.broker], count).await;
        let after = records(&rig, KeyPurpose::Ledger).await.len();
        assert_eq!(after - before, made);
        assert_eq!(
            made,
            count.min(MAX_LEDGER_KEYS - 1),
            "as many keys as may be published"
        );
        assert_one_endless_key(&rig).await;
        assert_works_after_a_month(&mut rig).await;
    }
}

async fn a_rotation_that_readers_would_not_bear_is_refused_before_anything_is_recorded(
    mut rig: Rig,
) {
    for _ in 1..MAX_LEDGER_KEYS {
        rig.broker
            .signing_keys
            .rotate_ledger_key(&rig.admin())
            .await
            .unwrap();
    }
    let size = rig.broker.core.ledger().basis();
    for _ in 0..40 {
        let refused = rig
            .broker
            .signing_keys
            .rotate_ledger_key(&rig.admin())
            .await;
        assert!(
            matches!(refused, Err(BrokerError::TooManyKeys { .. })),
            "{refused:?}"
        );
    }
    assert_eq!(
        rig.broker.core.ledger().basis(),
        size,
        "nothing was recorded"
    );
    let issued = rig
        .issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
    let note = Note::parse(issued.receipt.checkpoint.as_bytes()).unwrap();
    assert_eq!(note.signatures().len(), MAX_LEDGER_KEYS);
    rig.restart().await.unwrap();
    assert_works_after_a_month(&mut rig).await;
    rig.broker
        .signing_keys
        .rotate_ledger_key(&rig.admin())
        .await
        .unwrap();
    // The number of keys that sign access tokens is limited too.
    let mut made = 0;
    let refused = loop {
        match rig.broker.signing_keys.rotate_keys(&rig.admin()).await {
            Ok(_) => made += 1,
            Err(refused) => break refused,
        }
        assert!(made < MAX_PUBLISHED_KEYS);
    };
    assert!(
        matches!(refused, BrokerError::TooManyKeys { .. }),
        "{refused}"
    );
    let published = rig.broker.keys.published_jwks();
    assert_eq!(
        published["keys"].as_array().unwrap().len(),
        MAX_PUBLISHED_KEYS
    );
}

async fn the_revocation_of_the_signing_key_does_not_stop_issuance(rig: Rig) {
    let published = |rig: &Rig| {
        rig.broker.keys.published_jwks()["keys"]
            .as_array()
            .unwrap()
            .len()
    };
    assert_eq!(published(&rig), 2, "the signing key and its successor");
    let issued = rig
        .issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
    let kid = issued.session.kid.clone();

    // A dry run describes the effects and changes nothing.
    let size = rig.broker.core.ledger().basis();
    let would = rig
        .broker
        .signing_keys
        .revoke_key(&rig.admin(), &kid, true)
        .await
        .unwrap();
    assert_eq!(
        (would.done, would.signing, would.matched),
        (false, true, Some(1))
    );
    assert!(
        would.successor.is_some() && would.resumes_at.is_none(),
        "{would:?}"
    );
    assert_eq!(rig.broker.core.ledger().basis(), size);
    assert!(rig.is_good(&issued).await);

    let done = rig
        .broker
        .signing_keys
        .revoke_key(&rig.admin(), &kid, false)
        .await
        .unwrap();
    assert_eq!((done.done, &done.successor), (true, &would.successor));
    assert!(!rig.is_good(&issued).await);
    let next = rig
        .issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
    assert_eq!(Some(&next.session.kid), done.successor.as_ref());
    assert!(rig.is_good(&next).await);
    assert_eq!(published(&rig), 2, "a new successor is published at once");

    // Verifiers do not know the new successor yet. Another revocation reports that issuance
    // would pause, and until when.
    let lead = rig.broker.keys.jwks_cache_seconds();
    let again = rig
        .broker
        .signing_keys
        .revoke_key(&rig.admin(), &next.session.kid, true)
        .await
        .unwrap();
    assert_eq!((again.signing, &again.successor), (true, &None));
    assert_eq!(again.resumes_at, Some(rig.now().plus_seconds(lead)));
    rig.clock.advance(lead);
    rig.broker.keys.follow(rig.now()).await.unwrap();
    let again = rig
        .broker
        .signing_keys
        .revoke_key(&rig.admin(), &next.session.kid, false)
        .await
        .unwrap();
    assert!(again.successor.is_some(), "{again:?}");
    rig.issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
}

async fn the_revocation_of_a_key_that_does_not_sign_says_so(rig: Rig) {
    let kid = rig
        .broker
        .signing_keys
        .rotate_keys(&rig.admin())
        .await
        .unwrap();
    let done = rig
        .broker
        .signing_keys
        .revoke_key(&rig.admin(), &kid, false)
        .await
        .unwrap();
    assert_eq!((done.done, done.signing), (true, false));
    assert!(done.successor.is_some());
    let unknown = rig
        .broker
        .signing_keys
        .revoke_key(&rig.admin(), "nobody", true)
        .await;
    assert!(
        matches!(unknown, Err(BrokerError::NotFound(_))),
        "{unknown:?}"
    );
    let ledger = rig.broker.core.ledger().keys()[0].signer.kid().to_owned();
    let other = rig
        .broker
        .signing_keys
        .revoke_key(&rig.admin(), &ledger, true)
        .await;
    assert!(
        matches!(other, Err(BrokerError::Invalid { .. })),
        "{other:?}"
    );
}

async fn the_newest_ledger_key_is_kept_and_followed_though_an_earlier_version_gave_it_an_end(
    mut rig: Rig,
) {
    rig.broker
        .signing_keys
        .rotate_ledger_key(&rig.admin())
        .await
        .unwrap();
    // Two rotations at once once left such rows: every key has an end.
    end_all_ledger_keys(&rig).await;
    rig.broker.keys.follow(rig.now()).await.unwrap();
    assert_one_endless_key(&rig).await;
    advance_days(&rig, 28).await;
    end_all_ledger_keys(&rig).await;
    rig.stop().await;
    rig.clock.advance(31 * DAY);
    // By its dates no key may sign. The newest key signs nevertheless, and the broker makes
    // another key without an end.
    rig.restart().await.unwrap();
    assert_one_endless_key(&rig).await;
    rig.issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
    assert_eq!(rig.broker.health.unready(), None);
}

async fn a_store_that_has_more_ledger_keys_than_a_note_has_room_for_starts_again(mut rig: Rig) {
    for _ in 0..36 {
        put_ledger_key(&rig).await;
    }
    rig.restart().await.unwrap();
    let issued = rig
        .issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
    let note = Note::parse(issued.receipt.checkpoint.as_bytes()).unwrap();
    assert_eq!(note.signatures().len(), MAX_LEDGER_KEYS);
    assert_eq!(rig.broker.core.ledger().status(), LedgerStatus::Serving);
    assert_one_endless_key(&rig).await;
}

async fn an_act_that_is_recorded_and_not_signed_is_not_told_as_nothing_done(rig: Rig) {
    let issued = rig
        .issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
    let keys = rig.broker.core.ledger().keys();
    rig.broker.core.ledger().take_keys(vec![unable(&keys[0])]);
    let revoked = rig
        .broker
        .revocation
        .revoke_many(
            &rig.admin(),
            RevokeRequest {
                selector: Selector::All(True),
                block: BlockRequest::Seconds(0),
                deny_all_earlier_sessions: false,
                reason: "drill".into(),
                allow_unknown: false,
                dry_run: false,
            },
        )
        .await
        .unwrap();
    assert_eq!(revoked.radius.unwrap().matched, 1);
    assert!(!rig.is_good(&issued).await);
    // Until the batch is signed the broker is not ready, and it releases no permit without a
    // receipt.
    let why = rig.broker.health.unready().unwrap();
    assert!(why.contains("could not be signed"), "{why}");
    let refused = rig.issue("agent:reports", ask(&["orders:read"])).await;
    assert!(
        matches!(refused, Err(BrokerError::FailClosed(_))),
        "{refused:?}"
    );
    rig.broker.core.ledger().take_keys(keys.to_vec());
    rig.broker.health.check_health().await.unwrap();
    assert_eq!(rig.broker.health.unready(), None);
    rig.issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ledger_rotations_on_two_replicas_at_the_same_time_do_not_retire_each_other() {
    for count in [2, 8] {
        let mut rig = Rig::on(Kind::Postgres).start().await;
        let other = rig.replica().await;
        let made = rotate_at_once(&rig, &[&rig.broker, &other.broker], count).await;
        assert_eq!(made, count.min(MAX_LEDGER_KEYS - 1));
        assert_one_endless_key(&rig).await;
        stop(other).await;
        assert_works_after_a_month(&mut rig).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_due_is_made_by_one_of_two_replicas() {
    let rig = Rig::on(Kind::Postgres).start().await;
    let other = rig.replica().await;
    let before = records(&rig, KeyPurpose::AccessToken).await;
    let due = before[0].retire_at;
    rig.clock.pass(due);
    let now = rig.now();
    let (one, two) = tokio::join!(rig.broker.keys.follow(now), other.broker.keys.follow(now));
    assert_eq!(
        one.unwrap() + two.unwrap(),
        2,
        "the next key and its successor"
    );
    let after = records(&rig, KeyPurpose::AccessToken).await;
    assert_eq!(after.len(), before.len() + 2);
    stop(other).await;
}

async fn stop(other: Assembled) {
    other.shutdown.drain_then_stop(Duration::ZERO, SOON).await;
}
