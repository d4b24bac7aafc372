//! Measures how fast `taskpass policy replay` evaluates recorded decisions.
//!
//! The records are made from a real one. Each has an input of its own, so that no evaluation can be
//! reused. The time includes the start of the program and the reading of the file.
//!
//! `make bench ARGS=--replay` runs it. `--decisions N` sets the number of records; `--smoke` only
//! checks that everything works.

#![allow(
    clippy::disallowed_methods,
    clippy::struct_excessive_bools,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::must_use_candidate,
    clippy::needless_pass_by_value,
    clippy::missing_panics_doc,
    clippy::similar_names,
    clippy::unused_self,
    clippy::wildcard_imports,
    dead_code,
    missing_docs,
    unreachable_pub,
    unused_imports,
    reason = "a benchmark prints its results and panics on errors"
)]

#[path = "../tests/it/support/mod.rs"]
mod support;

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::process::Command;
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use support::ci::{begin, ci_token, decide, decisions};
use support::fleet::body;
use support::rig::Kind;
use taskpass::crypto::digest::salted;
use taskpass::merkle::leaf_hash;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let given = |name: &str| arguments.iter().position(|argument| argument == name);
    let smoke = given("--smoke").is_some();
    let count = given("--decisions")
        .and_then(|at| arguments.get(at + 1))
        .map_or(if smoke { 1_000 } else { 100_000 }, |text| {
            text.parse().unwrap()
        });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(measure(count));
}

async fn measure(count: u32) {
    let (fleet, replica) = begin(Kind::Sqlite).await;
    decide(&replica, &ci_token(&fleet, "prod", false), &body()).await;
    let written = decisions(&fleet, &replica);
    let real: Value = serde_json::from_str(written.lines().next().unwrap()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("decisions.jsonl");
    different(&real, count, BufWriter::new(File::create(&path).unwrap()));
    let bytes = fs::metadata(&path).unwrap().len();
    let began = Instant::now();
    let ended = Command::new(env!("CARGO_BIN_EXE_taskpass"))
        .args(["policy", "replay", "--json", "--config", "taskpass.toml"])
        .args(["--candidate", "policies", "--decisions"])
        .arg(&path)
        .current_dir(replica.process.dir())
        .output()
        .unwrap();
    let took = began.elapsed().as_secs_f64();
    let report: Value = serde_json::from_slice(&ended.stdout).unwrap();
    assert_eq!(
        (&report["evaluated"], &report["unchanged"]),
        (&json!(count), &json!(count))
    );
    assert_eq!(ended.status.code(), Some(0));
    let (megabytes, each) = (bytes / 1_000_000, took / f64::from(count));
    println!(
        "{count} different decisions, {megabytes} MB, in {took:.1} s: {:.0} a second, a million in {:.0} s",
        1.0 / each,
        1e6 * each
    );
}

/// Writes different records, each made from a real one with its own input, so that no evaluation
/// can be reused.
fn different(real: &Value, count: u32, mut into: impl Write) {
    let bytes = |member: &str| STANDARD.decode(real[member].as_str().unwrap()).unwrap();
    let mut leaf: Value = serde_json::from_slice(&bytes("leaf")).unwrap();
    let mut input: Value = serde_json::from_slice(&bytes("input")).unwrap();
    let salt: [u8; 16] = bytes("salt").try_into().unwrap();
    for index in 0..count {
        input["credential"]["left_seconds"] = json!(3_600 + index);
        let opened = input.to_string().into_bytes();
        leaf["input"] = json!(salted(&salt, &opened));
        let leaf = leaf.to_string().into_bytes();
        let record = json!({
            "index": index, "leaf_hash": leaf_hash(&leaf).to_string(),
            "leaf": STANDARD.encode(&leaf), "salt": real["salt"], "input": STANDARD.encode(&opened),
        });
        writeln!(into, "{record}").unwrap();
    }
    let last = count - 1;
    let end = json!({"end": {"records": count, "first": 0, "last": last}});
    writeln!(into, "{end}").unwrap();
}
