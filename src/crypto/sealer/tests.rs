use super::*;
use proptest::prelude::*;

const CONTEXT: SealContext<'static> = SealContext {
    purpose: "access_token",
    kid: "key-1",
    algorithm: "ES256",
    not_before: Timestamp::EPOCH,
    not_after: Timestamp::MAX,
};

fn text(seed: u8) -> SecretString {
    let bytes: Vec<u8> = (seed..seed + 32).collect();
    format!("tpk1_{}", URL_SAFE_NO_PAD.encode(bytes)).into()
}

fn keys(seeds: &[u8]) -> SealingKeys {
    let texts: Vec<_> = seeds.iter().map(|seed| text(*seed)).collect();
    SealingKeys::parse(&texts).unwrap()
}

#[tokio::test]
async fn a_sealed_secret_opens_in_its_own_context() {
    let keys = keys(&[1]);
    let sealer: &dyn Sealer = &keys;
    for secret in [&b""[..], b"secret", &vec![7; MAX_PLAINTEXT_BYTES]] {
        let envelope = sealer.seal(CONTEXT, secret).await.unwrap();
        let opened = sealer.open(CONTEXT, &envelope).await.unwrap();
        assert_eq!(opened.as_slice(), secret);
        assert_ne!(envelope, sealer.seal(CONTEXT, secret).await.unwrap());
    }
    let long = vec![0; MAX_PLAINTEXT_BYTES + 1];
    assert!(matches!(
        sealer.seal(CONTEXT, &long).await,
        Err(SealError::TooLong)
    ));
}

#[test]
fn every_changed_byte_is_noticed() {
    let keys = keys(&[1]);
    let envelope = keys.seal_locally(CONTEXT, b"secret").unwrap();
    for index in 0..envelope.len() {
        for flip in [1, 0x80] {
            let mut bad = envelope.clone();
            bad[index] ^= flip;
            let error = keys.open_locally(CONTEXT, &bad).unwrap_err();
            match index {
                0 => assert!(matches!(error, OpenError::Malformed)),
                1..=8 => assert!(matches!(error, OpenError::NoSuchKey(_))),
                _ => assert!(matches!(error, OpenError::Tampered)),
            }
        }
    }
    for length in 0..envelope.len() {
        assert!(keys.open_locally(CONTEXT, &envelope[..length]).is_err());
    }
    let longer = [envelope, vec![0]].concat();
    assert!(keys.open_locally(CONTEXT, &longer).is_err());
}

#[test]
fn a_change_of_any_associated_field_is_refused() {
    let keys = keys(&[1]);
    let envelope = keys.seal_locally(CONTEXT, b"secret").unwrap();
    for context in [
        SealContext {
            purpose: "ledger",
            ..CONTEXT
        },
        SealContext {
            kid: "key-2",
            ..CONTEXT
        },
        SealContext {
            algorithm: "EdDSA",
            ..CONTEXT
        },
        SealContext {
            not_before: Timestamp::from_micros(1),
            ..CONTEXT
        },
        SealContext {
            not_after: Timestamp::from_micros(1),
            ..CONTEXT
        },
        // A byte that moves from one field to the next.
        SealContext {
            purpose: "access_tokenk",
            kid: "ey-1",
            ..CONTEXT
        },
    ] {
        assert!(matches!(
            keys.open_locally(context, &envelope),
            Err(OpenError::Tampered)
        ));
    }
    assert!(keys.open_locally(CONTEXT, &envelope).is_ok());
}

#[test]
fn the_first_key_seals_all_open_and_a_missing_one_is_named() {
    let old = keys(&[1]);
    let new = keys(&[2, 1]);
    let envelope = old.seal_locally(CONTEXT, b"secret").unwrap();
    assert!(!old.needs_reseal(&envelope));
    assert!(new.needs_reseal(&envelope));
    assert!(new.needs_reseal(b"rubbish"));
    let opened = new.open_locally(CONTEXT, &envelope).unwrap();
    let resealed = new.seal_locally(CONTEXT, &opened).unwrap();
    assert!(!new.needs_reseal(&resealed));
    let id = new.key_ids()[0];
    let error = old.open_locally(CONTEXT, &resealed).unwrap_err();
    assert!(matches!(error, OpenError::NoSuchKey(missing) if missing == id));
    assert!(error.to_string().contains(&id.to_string()));
}

#[test]
fn a_list_that_changed_is_taken_over_and_what_was_sealed_before_still_opens() {
    let running = keys(&[1]);
    let mac = running.mac("o");
    let shared = mac.clone();
    let envelope = running.seal_locally(CONTEXT, b"secret").unwrap();
    let tag = mac.tag("row", &[b"x"]);
    assert_eq!(running.take_over(&keys(&[2, 1])), []);
    mac.take_over(&running.mac("o"));
    assert!(running.needs_reseal(&envelope));
    assert!(running.open_locally(CONTEXT, &envelope).is_ok());
    let newer = running.seal_locally(CONTEXT, b"secret").unwrap();
    assert!(keys(&[2]).open_locally(CONTEXT, &newer).is_ok());
    assert!(shared.verify("row", &[b"x"], &tag).is_ok());
    let by_new = keys(&[2]).mac("o");
    assert!(
        by_new
            .verify("row", &[b"x"], &shared.tag("row", &[b"x"]))
            .is_ok()
    );
    // A key that was removed too early keeps opening until the next start, and its id is
    // returned.
    assert_eq!(running.take_over(&keys(&[2])), keys(&[1]).key_ids());
    mac.take_over(&running.mac("o"));
    assert!(running.open_locally(CONTEXT, &envelope).is_ok());
    assert!(shared.verify("row", &[b"x"], &tag).is_ok());
}

#[test]
fn the_mac_follows_the_list() {
    let tag = keys(&[1]).mac("o").tag("row", &[b"x"]);
    assert!(keys(&[2, 1]).mac("o").verify("row", &[b"x"], &tag).is_ok());
    assert!(keys(&[2]).mac("o").verify("row", &[b"x"], &tag).is_err());
    assert!(keys(&[1]).mac("p").verify("row", &[b"x"], &tag).is_err());
}

#[test]
fn a_bad_sealing_key_is_told_by_its_place_and_never_shown() {
    let body = |bytes: &[u8]| format!("tpk1_{}", URL_SAFE_NO_PAD.encode(bytes));
    let good = text(1).expose_secret().to_owned();
    for (second, error) in [
        (String::new(), SealingKeyError::Prefix { position: 2 }),
        ("canary".into(), SealingKeyError::Prefix { position: 2 }),
        (
            good.replace("tpk1_", "tpk2_"),
            SealingKeyError::Prefix { position: 2 },
        ),
        (
            "tpk1_canary!".into(),
            SealingKeyError::NotBase64 { position: 2 },
        ),
        (
            format!("{good}="),
            SealingKeyError::NotBase64 { position: 2 },
        ),
        (
            "tpk1_".into(),
            SealingKeyError::Length {
                position: 2,
                bytes: 0,
            },
        ),
        (
            body(&[1; 31]),
            SealingKeyError::Length {
                position: 2,
                bytes: 31,
            },
        ),
        (
            body(&[1; 33]),
            SealingKeyError::Length {
                position: 2,
                bytes: 33,
            },
        ),
        (body(&[0; 32]), SealingKeyError::NotRandom { position: 2 }),
        (good.clone(), SealingKeyError::Twice { position: 2 }),
    ] {
        let list = [good.clone().into(), second.clone().into()];
        let got = SealingKeys::parse(&list).unwrap_err();
        assert_eq!(got, error);
        assert!(second.is_empty() || !format!("{got} {got:?}").contains(&second));
    }
    assert_eq!(SealingKeys::parse(&[]).unwrap_err(), SealingKeyError::None);
    let many: Vec<_> = (0..17).map(text).collect();
    assert_eq!(
        SealingKeys::parse(&many).unwrap_err(),
        SealingKeyError::TooMany
    );
    assert!(SealingKeys::parse(&many[..16]).is_ok());
    let spaced = [SecretString::from(format!(" {good}\n"))];
    assert!(SealingKeys::parse(&spaced).is_ok());
}

#[test]
fn a_generated_key_parses() {
    let text = SealingKeys::generate(&SystemRandom::new()).unwrap();
    assert!(SealingKeys::parse(&[text]).is_ok());
}

#[test]
fn debug_shows_ids_alone() {
    let keys = keys(&[1]);
    let id = keys.key_ids()[0].to_string();
    let shown = format!(
        "{keys:?} {keys:#?} {:?} {:#?}",
        keys.mac("o"),
        keys.mac("o")
    );
    assert!(shown.contains(&id));
    assert!(!shown.contains("1, 2, 3") && !shown.contains("010203"));
    assert!(!shown.contains(text(1).expose_secret()));
}

#[test]
fn without_randomness_nothing_is_sealed() {
    struct Broken;
    impl Random for Broken {
        fn fill(&self, _: &mut [u8]) -> Result<(), NoRandomness> {
            Err(NoRandomness)
        }
    }
    let keys = SealingKeys::parse_with(&[text(1)], Box::new(Broken)).unwrap();
    assert!(matches!(
        keys.seal_locally(CONTEXT, b"x"),
        Err(SealError::NoRandomness(_))
    ));
}

proptest! {
    #[test]
    fn random_bytes_do_not_open(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let keys = keys(&[1]);
        prop_assert!(keys.open_locally(CONTEXT, &bytes).is_err());
        let mut likely = vec![VERSION];
        likely.extend_from_slice(keys.key_ids()[0].as_bytes());
        likely.extend_from_slice(&bytes);
        prop_assert!(keys.open_locally(CONTEXT, &likely).is_err());
    }

    #[test]
    fn no_text_makes_the_key_parser_panic(text in "(tpk1_)?\\PC{0,60}") {
        drop(SealingKeys::parse(&[text.into()]));
    }
}
