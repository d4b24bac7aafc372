//! Golden bytes: compares stored and signed formats byte for byte with files in
//! `tests/fixtures/golden`.
//!
//! Stored or signed bytes cannot change later. A format that must change gets a new version, or a
//! new kind of leaf, with an additional fixture. So never edit a fixture: the ignored test below
//! writes the missing ones and overwrites none.
//!
//! [`samples`] has a value of each format; this file writes them and compares.

mod samples;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::crypto::sealer::Sealer as _;
use crate::domain::generation::Generation;
use crate::domain::leaf::Leaf;
use crate::merkle::Receipt;

use self::samples::*;

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden")
}

/// The content of every fixture, by file name.
async fn made() -> BTreeMap<String, Vec<u8>> {
    let mut made = BTreeMap::new();
    let mut add = |name: String, bytes: Vec<u8>| {
        assert!(made.insert(name.clone(), bytes).is_none(), "{name} twice");
    };
    for (which, event) in events() {
        let name = match which {
            "" => kind(&event).to_owned(),
            which => format!("{}-{which}", kind(&event)),
        };
        let version = Leaf::VERSION;
        let bytes = leaf(event).to_bytes().unwrap();
        add(format!("leaf-v{version}-{name}.json"), bytes);
    }
    let format = Generation::FORMAT;
    let document = generation().to_bytes().unwrap();
    add(format!("generation-v{format}.json"), document);
    let receipt = serde_json::to_vec(&receipt()).unwrap();
    add("receipt.json".into(), receipt);
    add("token-claims.json".into(), token_claims());
    let envelope = sealing_keys().seal(CONTEXT, SECRET).await.unwrap();
    add("envelope-v1.bin".into(), envelope);
    made
}

fn fixture(name: &str) -> Vec<u8> {
    let path = directory().join(name);
    std::fs::read(&path).unwrap_or_else(|error| {
        panic!(
            "{}: {error}; `cargo nextest run --run-ignored only -E 'test(golden)'` writes missing \
            fixtures",
            path.display()
        )
    })
}

#[tokio::test]
async fn stored_and_signed_formats_come_out_byte_for_byte() {
    let made = made().await;
    for (name, bytes) in &made {
        let kept = fixture(name);
        assert!(
            kept == *bytes,
            "{name} changed. Stored and signed bytes cannot change: give the format a new version \
             or the leaf a new kind, with a fixture of its own.\n  kept: {}\n  made: {}",
            String::from_utf8_lossy(&kept),
            String::from_utf8_lossy(bytes)
        );
    }
}

#[test]
fn every_kind_of_leaf_has_a_fixture_and_every_fixture_is_read_back() {
    let sampled: BTreeSet<&str> = events().iter().map(|(_, event)| kind(event)).collect();
    assert_eq!(sampled, KINDS.iter().copied().collect());
    for (which, event) in events() {
        let name = match which {
            "" => kind(&event).to_owned(),
            which => format!("{}-{which}", kind(&event)),
        };
        let kept = fixture(&format!("leaf-v{}-{name}.json", Leaf::VERSION));
        assert_eq!(Leaf::from_bytes(&kept).unwrap(), leaf(event), "{name}");
        let written: serde_json::Value = serde_json::from_slice(&kept).unwrap();
        let told = written["event"].as_str().unwrap();
        assert!(name.starts_with(told), "{name} is called {told}");
    }
}

#[tokio::test]
async fn what_the_fixtures_hold_is_believed() {
    let format = Generation::FORMAT;
    let kept: Generation =
        serde_json::from_slice(&fixture(&format!("generation-v{format}.json"))).unwrap();
    assert_eq!(kept, generation());

    let kept: Receipt = serde_json::from_slice(&fixture("receipt.json")).unwrap();
    kept.verify(&[log_key().1]).unwrap();

    let opened = sealing_keys()
        .open(CONTEXT, &fixture("envelope-v1.bin"))
        .await
        .unwrap();
    assert_eq!(opened.as_slice(), SECRET);
}

#[tokio::test]
async fn nothing_else_lies_among_the_fixtures() {
    let made = made().await;
    for entry in std::fs::read_dir(directory()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(made.contains_key(&name), "no format has the fixture {name}");
    }
}

#[tokio::test]
#[ignore = "writes the fixtures that are missing"]
async fn write_the_missing_fixtures() {
    std::fs::create_dir_all(directory()).unwrap();
    for (name, bytes) in made().await {
        let path = directory().join(&name);
        if !path.exists() {
            std::fs::write(path, bytes).unwrap();
        }
    }
}
