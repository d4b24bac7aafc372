use super::*;
use crate::crypto::SealingKeys;
use crate::crypto::random::SystemRandom;
use proptest::prelude::*;

/// A purpose that keeps a single key. Tests of more than one key use access tokens.
const PURPOSE: KeyPurpose = KeyPurpose::Federation;
const ALGORITHM: Algorithm = Algorithm::Es256;
const SCHEDULE: KeySchedule = KeySchedule {
    publish_lead_seconds: 100,
    period_seconds: 1_000,
    slack_seconds: 50,
    max_ttl_seconds: 300,
    margin_seconds: 10,
};

fn at(seconds: u64) -> Timestamp {
    Timestamp::EPOCH.plus_seconds(seconds)
}

/// Performs the rotation that is due at `now`.
fn rotate(
    keys: &mut Vec<SigningKeyRecord>,
    algorithm: Algorithm,
    schedule: &KeySchedule,
    now: Timestamp,
) -> bool {
    let plan = plan_rotation(keys, PURPOSE, algorithm, schedule, now);
    let made = plan.is_some();
    if let Some(new) = plan {
        keys.push(new.record(format!("key-{}", keys.len()), PURPOSE, algorithm));
    }
    made
}

fn signer(keys: &[SigningKeyRecord], now: Timestamp) -> Option<&str> {
    signer_at(keys, PURPOSE, &SCHEDULE, now).map(|key| key.kid.as_str())
}

#[test]
fn the_first_key_signs_at_once_and_its_successor_exactly_when_it_ends() {
    let mut keys = vec![];
    let start = at(1_000);
    assert!(rotate(&mut keys, ALGORITHM, &SCHEDULE, start));
    assert_eq!(signer(&keys, start), Some("key-0"));
    let due = rotation_due(&keys, PURPOSE, ALGORITHM, &SCHEDULE);
    assert_eq!(due, at(1_850));
    assert!(!rotate(&mut keys, ALGORITHM, &SCHEDULE, at(1_849)));
    assert!(rotate(&mut keys, ALGORITHM, &SCHEDULE, due));
    assert!(!rotate(&mut keys, ALGORITHM, &SCHEDULE, due));
    assert_eq!(signer(&keys, at(1_999)), Some("key-0"));
    assert_eq!(signer(&keys, at(2_000)), Some("key-1"));
    let published = |seconds| published_at(&keys, PURPOSE, at(seconds)).count();
    assert_eq!((published(1_849), published(1_850)), (1, 2));
    assert_eq!((published(2_309), published(2_310)), (2, 1));
    let plan = plan_rotation(&keys, PURPOSE, ALGORITHM, &SCHEDULE, at(2_310));
    assert_eq!(plan, None);
    assert!(keys[0].is_over(at(2_310)));
}

/// A period so short that the successor is created within a clock step of the first key.
#[test]
fn the_successor_of_a_short_first_key_waits_for_its_end() {
    let short = KeySchedule {
        publish_lead_seconds: 1,
        period_seconds: 2,
        slack_seconds: 0,
        ..SCHEDULE
    };
    let mut keys = vec![];
    assert!(rotate(&mut keys, ALGORITHM, &short, at(0)));
    assert!(rotate(&mut keys, ALGORITHM, &short, at(1)));
    let signing = |seconds| {
        let signing = keys.iter().filter(|key| key.may_sign(&short, at(seconds)));
        signing.map(|key| key.kid.as_str()).collect::<Vec<_>>()
    };
    assert_eq!(signing(1), ["key-0"]);
    assert_eq!(signing(2), ["key-1"]);
}

#[test]
fn a_late_rotation_leaves_a_gap_and_never_signs_early() {
    let mut keys = vec![];
    rotate(&mut keys, ALGORITHM, &SCHEDULE, at(0));
    assert!(rotate(&mut keys, ALGORITHM, &SCHEDULE, at(960)));
    assert_eq!(signer(&keys, at(1_000)), None);
    assert_eq!(signer(&keys, at(1_059)), None);
    assert_eq!(signer(&keys, at(1_060)), Some("key-1"));
}

#[test]
fn after_a_revocation_the_successor_waits_its_lead() {
    let mut keys = vec![];
    rotate(&mut keys, ALGORITHM, &SCHEDULE, at(0));
    keys[0].revoked_at = Some(at(500));
    assert_eq!(signer(&keys, at(500)), None);
    assert_eq!(published_at(&keys, PURPOSE, at(500)).count(), 0);
    assert!(rotate(&mut keys, ALGORITHM, &SCHEDULE, at(500)));
    assert_eq!(signer(&keys, at(599)), None);
    assert_eq!(signer(&keys, at(600)), Some("key-1"));
}

#[test]
fn a_successor_that_verifiers_know_steps_in_before_its_turn() {
    let mut keys = vec![];
    rotate(&mut keys, ALGORITHM, &SCHEDULE, at(0));
    assert!(rotate(&mut keys, ALGORITHM, &SCHEDULE, at(850)));
    assert_eq!(keys[1].active_from, at(1_000));
    // Verifiers know it, but it is not active yet.
    assert_eq!(signer(&keys, at(960)), Some("key-0"));
    keys[0].revoked_at = Some(at(900));
    assert_eq!(signer(&keys, at(949)), None);
    assert_eq!(signer(&keys, at(950)), Some("key-1"));
    // Its life is not extended: it ends at its planned time.
    assert_eq!(signer(&keys, at(1_999)), Some("key-1"));
    assert_eq!(signer(&keys, at(2_000)), None);
}

#[test]
fn another_algorithm_takes_over_after_its_lead_without_a_gap() {
    let mut keys = vec![];
    rotate(&mut keys, ALGORITHM, &SCHEDULE, at(0));
    assert!(rotate(&mut keys, Algorithm::EdDsa, &SCHEDULE, at(200)));
    assert!(!rotate(&mut keys, Algorithm::EdDsa, &SCHEDULE, at(201)));
    assert_eq!(signer(&keys, at(299)), Some("key-0"));
    assert_eq!(signer(&keys, at(300)), Some("key-1"));
}

#[test]
fn the_configured_algorithm_goes_before_what_older_keys_would_do() {
    let preferring = |keys: &[SigningKeyRecord], algorithm, now| {
        signer_preferring(keys, PURPOSE, algorithm, &SCHEDULE, now).map(|key| key.kid.clone())
    };
    let other = Algorithm::EdDsa;
    // Changed at 200 and reverted at 400: the former key is alive and known.
    let mut keys = vec![];
    rotate(&mut keys, ALGORITHM, &SCHEDULE, at(0));
    rotate(&mut keys, other, &SCHEDULE, at(200));
    assert!(!rotate(&mut keys, ALGORITHM, &SCHEDULE, at(400)));
    assert_eq!(signer(&keys, at(400)), Some("key-1"));
    assert_eq!(
        preferring(&keys, ALGORITHM, at(400)),
        Some("key-0".to_owned())
    );
    // Changed when a successor of the former algorithm had been published for 1,000.
    let mut keys = vec![];
    rotate(&mut keys, ALGORITHM, &SCHEDULE, at(0));
    assert!(rotate(&mut keys, ALGORITHM, &SCHEDULE, at(860)));
    assert!(rotate(&mut keys, other, &SCHEDULE, at(870)));
    assert_eq!(signer(&keys, at(1_000)), Some("key-1"));
    for (now, kid) in [(969, "key-0"), (970, "key-2"), (1_000, "key-2")] {
        assert_eq!(preferring(&keys, other, at(now)), Some(kid.to_owned()));
    }
}

/// Performs all rotations that are due for access tokens at `now`. Returns the number of
/// created keys.
fn rotate_access(keys: &mut Vec<SigningKeyRecord>, now: Timestamp) -> usize {
    let purpose = KeyPurpose::AccessToken;
    let before = keys.len();
    while let Some(new) = plan_rotation(keys, purpose, ALGORITHM, &SCHEDULE, now) {
        keys.push(new.record(format!("key-{}", keys.len()), purpose, ALGORITHM));
        assert!(keys.len() < before + 3, "{keys:?}");
    }
    keys.len() - before
}

#[test]
fn a_successor_that_verifiers_know_is_published_always() {
    let purpose = KeyPurpose::AccessToken;
    let mut keys = vec![];
    for now in 1_000..8_000 {
        rotate_access(&mut keys, at(now));
        let signing = signer_at(&keys, purpose, &SCHEDULE, at(now)).unwrap();
        // If any key is missing, another one signs at once.
        let others = keys.iter().filter(|key| key.kid != signing.kid);
        let others: Vec<_> = others.cloned().collect();
        assert!(
            signer_at(&others, purpose, &SCHEDULE, at(now)).is_some(),
            "at {now}"
        );
        assert!(
            published_at(&keys, purpose, at(now)).count() <= 5,
            "at {now}"
        );
    }
    assert!(keys.len() <= 11, "{}", keys.len());
}

#[test]
fn after_a_revocation_the_next_successor_is_published_at_once() {
    let purpose = KeyPurpose::AccessToken;
    let mut keys = vec![];
    assert_eq!(rotate_access(&mut keys, at(1_000)), 2);
    for revoked in 0..6 {
        let now = at(1_200 + 101 * revoked);
        let signing = signer_at(&keys, purpose, &SCHEDULE, now)
            .unwrap()
            .kid
            .clone();
        let found = keys.iter_mut().find(|key| key.kid == signing);
        found.unwrap().revoked_at = Some(now);
        assert!(
            signer_at(&keys, purpose, &SCHEDULE, now).is_some(),
            "{revoked}"
        );
        assert_eq!(rotate_access(&mut keys, now), 1, "{revoked}");
    }
}

#[test]
fn the_first_key_of_an_earlier_version_gets_a_successor_that_waits_its_lead() {
    let purpose = KeyPurpose::AccessToken;
    let mut keys = vec![];
    rotate_access(&mut keys, at(0));
    keys.truncate(1);
    assert_eq!(rotate_access(&mut keys, at(500)), 1);
    assert_eq!(keys[1].active_from, keys[0].retire_at);
    keys[0].revoked_at = Some(at(550));
    assert!(signer_at(&keys, purpose, &SCHEDULE, at(599)).is_none());
    assert!(signer_at(&keys, purpose, &SCHEDULE, at(600)).is_some());
}

#[test]
fn dates_that_hurry_a_key_do_not_make_it_sign_before_its_lead() {
    let mut keys = vec![];
    rotate(&mut keys, ALGORITHM, &SCHEDULE, at(0));
    rotate(&mut keys, ALGORITHM, &SCHEDULE, at(850));
    keys[1].active_from = at(851);
    assert_eq!(signer(&keys, at(949)), Some("key-0"));
    assert_eq!(signer(&keys, at(950)), Some("key-1"));
}

#[test]
fn a_key_that_was_erased_or_dated_ahead_is_replaced() {
    let month = 31 * 86_400;
    let mut keys = vec![];
    rotate(&mut keys, ALGORITHM, &SCHEDULE, at(0));
    // A clock that was a month ahead created the next key and erased the signing one.
    assert!(rotate(&mut keys, ALGORITHM, &SCHEDULE, at(month)));
    assert!(
        !rotate(&mut keys, ALGORITHM, &SCHEDULE, at(100)),
        "the first one still signs"
    );
    assert!(
        rotate(&mut keys, ALGORITHM, &SCHEDULE, at(850)),
        "its successor is due"
    );
    assert_eq!(signer(&keys, at(1_000)), Some("key-2"));
    keys[2].erased = true;
    keys[0].erased = true;
    assert_eq!(signer(&keys, at(900)), None);
    assert_eq!(published_at(&keys, PURPOSE, at(900)).count(), 0);
    assert!(rotate(&mut keys, ALGORITHM, &SCHEDULE, at(900)));
    assert_eq!(
        signer(&keys, at(999)),
        None,
        "not before verifiers can know it"
    );
    assert_eq!(signer(&keys, at(1_000)), Some("key-3"));
}

#[test]
fn purposes_do_not_mix() {
    let mut keys = vec![];
    rotate(&mut keys, ALGORITHM, &SCHEDULE, at(0));
    assert!(signer_at(&keys, KeyPurpose::Ledger, &SCHEDULE, at(1)).is_none());
    assert_eq!(
        published_at(&keys, KeyPurpose::AccessToken, at(1)).count(),
        0
    );
    for purpose in KeyPurpose::ALL {
        assert_eq!(purpose.as_str().parse(), Ok(purpose));
    }
    assert!("jwt".parse::<KeyPurpose>().is_err());
}

#[test]
fn a_schedule_that_cannot_keep_up_is_refused() {
    assert_eq!(SCHEDULE.check(), Ok(()));
    let period = |period_seconds| KeySchedule {
        period_seconds,
        ..SCHEDULE
    };
    assert_eq!(period(151).check(), Ok(()));
    assert_eq!(period(150).check(), Err(BadSchedule));
    let huge = KeySchedule {
        slack_seconds: u64::MAX,
        ..SCHEDULE
    };
    assert_eq!(huge.check(), Err(BadSchedule));
}

#[test]
fn the_tag_holds_every_field() {
    let text = SealingKeys::generate(&SystemRandom::new()).unwrap();
    let mac = SealingKeys::parse(&[text]).unwrap().mac("o");
    let mut keys = vec![];
    rotate(&mut keys, ALGORITHM, &SCHEDULE, at(7));
    let key = keys.remove(0);
    let tag = key.tag(&mac, b"envelope");
    assert_eq!(key.verify_tag(&mac, b"envelope", &tag), Ok(()));
    assert!(key.verify_tag(&mac, b"another", &tag).is_err());
    let changes: [fn(&mut SigningKeyRecord); 9] = [
        |key| key.kid.push('x'),
        |key| key.purpose = KeyPurpose::Ledger,
        |key| key.algorithm = Algorithm::EdDsa,
        |key| key.created_at = at(1),
        |key| key.published_at = at(1),
        |key| key.active_from = at(1),
        |key| key.retire_at = at(1),
        |key| key.remove_at = at(1),
        |key| key.revoked_at = Some(at(0)),
    ];
    for change in changes {
        let mut altered = key.clone();
        change(&mut altered);
        assert_eq!(
            altered.verify_tag(&mac, b"envelope", &tag),
            Err(MacError::Mismatch)
        );
    }
}

fn schedules() -> impl Strategy<Value = KeySchedule> {
    (
        0_u64..200,
        0_u64..100,
        1_u64..1_000,
        0_u64..2_000,
        0_u64..60,
    )
        .prop_map(
            |(lead, slack, extra, max_ttl_seconds, margin_seconds)| KeySchedule {
                publish_lead_seconds: lead,
                period_seconds: lead + slack + extra,
                slack_seconds: slack,
                max_ttl_seconds,
                margin_seconds,
            },
        )
}

proptest! {
    /// Rotation happens on schedule, each time at most as late as the slack permits.
    #[test]
    fn keys_follow_one_another_without_a_gap_and_verify_to_the_last_token(
        schedule in schedules(),
        start in 0_u64..10_000,
        delays in proptest::collection::vec(0_u64..100, 1..8),
        probes in proptest::collection::vec(0.0..1.0_f64, 1..40),
    ) {
        prop_assert_eq!(schedule.check(), Ok(()));
        let mut keys = vec![];
        prop_assert!(rotate(&mut keys, ALGORITHM, &schedule, at(start)));
        for delay in delays {
            let due = rotation_due(&keys, PURPOSE, ALGORITHM, &schedule);
            let when = due.plus_seconds(delay.min(schedule.slack_seconds));
            prop_assert!(rotate(&mut keys, ALGORITHM, &schedule, when));
        }
        let end = keys.last().unwrap().retire_at;
        let length = at(start).seconds_until(end);
        let mut instants: Vec<u64> = vec![start, start + length - 1];
        for key in &keys {
            for edge in [key.published_at, key.active_from, key.retire_at, key.remove_at] {
                let edge = edge.seconds().unsigned_abs();
                instants.extend([edge.saturating_sub(1), edge, edge + 1]);
            }
        }
        #[expect(
            clippy::cast_precision_loss, clippy::cast_possible_truncation,
            clippy::cast_sign_loss, reason = "a position in a short stretch of time"
        )]
        instants.extend(probes.iter().map(|part| start + (length as f64 * part) as u64));
        for now in instants.into_iter().map(at) {
            if now < at(start) || now >= end {
                continue;
            }
            let able = keys.iter().filter(|key| key.may_sign(&schedule, now)).count();
            prop_assert_eq!(able, 1, "at {}", now);
            let key = signer_at(&keys, PURPOSE, &schedule, now).unwrap();
            // The last token that it can sign now is verifiable with the key set until it
            // expires.
            let over = now.plus_seconds(schedule.max_ttl_seconds);
            prop_assert!(key.is_published(now) && key.is_published(over));
            // Every key set that is at most as old as the lead contains it, except for the
            // first key.
            if key.kid != "key-0" {
                let cached = now.minus_seconds(schedule.publish_lead_seconds);
                prop_assert!(key.is_published(cached));
            }
        }
    }

    /// With any revocation and any delay of the worker.
    #[test]
    fn a_revoked_key_is_gone_and_no_key_signs_before_verifiers_know_it(
        schedule in schedules(),
        steps in proptest::collection::vec((1_u64..800, any::<u8>()), 1..30),
    ) {
        let mut keys = vec![];
        let mut now = at(10_000);
        rotate(&mut keys, ALGORITHM, &schedule, now);
        for (advance, what) in steps {
            now = now.plus_seconds(advance);
            match what % 4 {
                0 => {
                    let index = usize::from(what / 4) % keys.len();
                    keys[index].revoked_at.get_or_insert(now);
                }
                1 => {}
                _ => {
                    let algorithm = if what > 200 { Algorithm::EdDsa } else { ALGORITHM };
                    rotate(&mut keys, algorithm, &schedule, now);
                }
            }
            for key in keys.iter().filter(|key| key.revoked_at.is_some()) {
                for instant in [now, key.active_from, key.published_at, key.retire_at] {
                    prop_assert!(!key.is_published(instant));
                    prop_assert!(!key.may_sign(&schedule, instant));
                }
            }
            let known = keys.iter().any(|key| key.could_sign(&schedule, now));
            prop_assert_eq!(signer_at(&keys, PURPOSE, &schedule, now).is_some(), known);
            if let Some(key) = signer_at(&keys, PURPOSE, &schedule, now) {
                prop_assert!(key.revoked_at.is_none());
                let cached = now.minus_seconds(schedule.publish_lead_seconds);
                prop_assert!(key.kid == "key-0" || key.published_at <= cached);
                prop_assert!(key.is_published(now.plus_seconds(schedule.max_ttl_seconds)));
            }
        }
    }
}
