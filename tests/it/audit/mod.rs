//! An auditor with a pinned key verifies offline that a decision was logged (even if the key of
//! that time is retired), that it was logged before the credential was used and by which clock, and
//! that a log is complete. The logs here are made without the product's code; each test then
//! corrupts one part.

mod receipts;
mod whole_log;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::support::fleet::{Fleet, body};
use crate::support::http::Client;
use crate::support::keys::{Algorithm, Key};
use crate::support::log::{
    Log, ORIGIN, SESSION, TASK, claims, consistency, denial, inclusion, leaf_hash, permit, root,
    sha256, token,
};
use crate::support::process::{Ended, Launch};

/// 2026-10-24T12:10:00Z, in Unix seconds.
const WITNESSED: u64 = 1_792_843_800;
const KEY: usize = 2;
const DENIAL: usize = 3;
const PERMIT: usize = 4;
const OLD: usize = 9;
const NEW: usize = 21;

/// A change that corrupts the lines of a log file.
type Spoil<'a> = &'a dyn Fn(&mut Vec<Value>);

/// A log with two sizes, [`OLD`] and [`NEW`], whose log key was replaced in between.
struct Grown {
    retired: Log,
    current: Log,
    witness: Log,
    signer: Key,
    bodies: Vec<Vec<u8>>,
    leaves: Vec<Vec<u8>>,
}

impl Grown {
    fn new() -> Self {
        let signer = Key::generate(Algorithm::Es256);
        let leaf = |event: Value| {
            let mut leaf = json!({"v": 2, "origin": ORIGIN, "at": "2026-10-24T12:00:00Z"});
            leaf.as_object_mut()
                .unwrap()
                .extend(event.as_object().unwrap().clone());
            leaf
        };
        let generation = format!("sha256:{}", "a".repeat(64));
        let mut leaves = vec![
            leaf(json!({"event": "genesis", "vkey": "k", "heads_authenticated": true})),
            leaf(json!({
                "event": "activated", "generation": generation,
                "endpoints": format!("sha256:{}", "b".repeat(64)), "by": "admin"
            })),
            leaf(json!({
                "event": "key", "purpose": "access_token", "kid": signer.kid, "change": "added",
                "public_key": signer.jwk().to_string(), "by": "broker"
            })),
            denial(),
            permit(&signer.kid),
            leaf(
                json!({"event": "session_ended", "session": SESSION, "reason": "revoked", "by": "x"}),
            ),
            leaf(json!({"event": "task_ended", "task": TASK, "state": "completed", "by": "x"})),
        ];
        leaves.resize(NEW, denial());
        let bodies: Vec<Vec<u8>> = leaves
            .iter()
            .map(|leaf| serde_json::to_vec(leaf).unwrap())
            .collect();
        Self {
            retired: Log::new(ORIGIN),
            current: Log::new(ORIGIN),
            witness: Log::new("witness.test/w"),
            signer,
            leaves: bodies.iter().map(|body| leaf_hash(body)).collect(),
            bodies,
        }
    }

    fn text(&self, size: usize) -> String {
        format!(
            "{ORIGIN}\n{size}\n{}\n",
            STANDARD.encode(root(&self.leaves[..size]))
        )
    }

    fn receipt(&self, size: usize, checkpoint: &str) -> Value {
        self.receipt_of(PERMIT, size, checkpoint)
    }

    fn receipt_of(&self, index: usize, size: usize, checkpoint: &str) -> Value {
        let leaves = &self.leaves[..size];
        let proof = inclusion(index, leaves);
        json!({
            "leaf": STANDARD.encode(&self.bodies[index]),
            "leaf_hash": STANDARD.encode(&leaves[index]),
            "index": index,
            "tree_size": size,
            "inclusion_proof": proof.iter().map(|h| STANDARD.encode(h)).collect::<Vec<_>>(),
            "checkpoint": checkpoint,
        })
    }

    /// The receipt of the decision, signed with the key that is now retired.
    fn old_receipt(&self) -> Value {
        self.receipt(OLD, &self.retired.sign(&self.text(OLD)))
    }

    fn proof(&self) -> Value {
        let hashes = consistency(OLD, &self.leaves);
        let hashes: Vec<String> = hashes.iter().map(|hash| STANDARD.encode(hash)).collect();
        json!({"from": OLD, "to": NEW, "consistency_proof": hashes})
    }

    /// The credential, valid from the time of the decision.
    fn token(&self) -> String {
        token(&self.signer, &self.claims())
    }

    fn claims(&self) -> Value {
        let mut claims = claims(&self.old_receipt());
        claims["iat"] = json!(WITNESSED - 600);
        claims
    }

    /// The exported log, after `change` has edited its lines.
    fn file(&self, change: impl FnOnce(&mut Vec<Value>)) -> String {
        let mut lines = vec![json!({
            "format": "taskpass-log@v1", "checkpoint": self.current.sign(&self.text(NEW))
        })];
        lines.extend(
            (0..).zip(&self.bodies).map(
                |(index, body): (u64, _)| json!({"index": index, "leaf": STANDARD.encode(body)}),
            ),
        );
        change(&mut lines);
        // The product writes `format` before `checkpoint`.
        let head = format!(
            "{{\"format\":{},\"checkpoint\":{}}}\n",
            lines[0]["format"], lines[0]["checkpoint"]
        );
        let rest: Vec<String> = lines[1..].iter().map(|line| format!("{line}\n")).collect();
        head + &rest.concat()
    }

    fn verify(&self, file: &str, more: &[&str]) -> Ended {
        self.launch(file, more).run()
    }

    fn launch(&self, file: &str, more: &[&str]) -> Launch {
        let key = self.current.vkey();
        let arguments = ["ledger", "verify", "file", "--key", &key];
        Launch::taskpass(arguments.iter().chain(more).copied())
            .file("file", file)
            .file("token", self.token())
            .file("newest", self.current.sign(&self.text(NEW)))
            .file("old", self.current.sign(&self.text(OLD)))
            .file("witnessed", self.witnessed(WITNESSED))
            .file("proof", self.proof().to_string())
            .file("jwks", json!({"keys": [self.signer.jwk()]}).to_string())
    }

    /// The old checkpoint, signed by the retired key and cosigned by the witness.
    fn witnessed(&self, time: u64) -> String {
        let text = self.text(OLD);
        self.retired.sign(&text) + &self.witness.cosign(&text, time)
    }
}

#[track_caller]
fn holds(ended: &Ended, says: &str) {
    assert_eq!(ended.code(), Some(0), "{}{}", ended.stdout, ended.stderr);
    assert!(ended.stdout.contains(says), "{says}: {}", ended.stdout);
}

#[track_caller]
fn fails(ended: &Ended, says: &str) {
    assert_eq!(ended.code(), Some(1), "{}{}", ended.stdout, ended.stderr);
    assert!(ended.stdout.contains(says), "{says}: {}", ended.stdout);
    assert!(
        ended.stdout.ends_with("does not hold\n"),
        "{}",
        ended.stdout
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_log_is_exported_and_verified_and_only_a_reader_gets_it() {
    let (fleet, replica) = Fleet::postgres().start().await;
    let granted = replica.ask(&fleet.token()).await.expect(201);
    for _ in 0..3 {
        let mut refused = body();
        refused["resource"] = json!("nothing");
        replica
            .client
            .post_json(&fleet.token(), "/v1/credentials", &refused)
            .await;
    }
    let url = format!("http://{}", replica.address);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("log.jsonl");
    let export = Launch::taskpass(["ledger", "export", "--url", &url, "--token-file", "admin"])
        .file("admin", fleet.admin.clone())
        .arg("--output")
        .arg(file.to_str().unwrap())
        .run();
    assert_eq!(export.code(), Some(0), "{}", export.stderr);
    let log = std::fs::read(&file).unwrap();
    let keys = Client::new(&url)
        .get_as(&fleet.admin, "/v1/ledger/keys")
        .await
        .expect(200);
    let key = keys["vkeys"][0].as_str().unwrap();
    let ended = Launch::taskpass([
        "ledger",
        "verify",
        "log",
        "--key",
        key,
        "--credential-file",
        "token",
    ])
    .file("log", log)
    .file(
        "token",
        granted["credential"]["access_token"].as_str().unwrap(),
    )
    .run();
    holds(&ended, "decided: permit for");
    holds(&ended, "1 × permit");
    holds(&ended, "was checked with the key that leaf");
    // One leaf, as a `tlog-proof` for third-party tools.
    let decision = granted["decision"]["id"].as_str().unwrap();
    let index = granted["receipt"]["index"].to_string();
    let proof = |leaf: &str| {
        Launch::taskpass(["ledger", "receipt", leaf, "--tlog-proof", "--url", &url])
            .arg("--token-file")
            .arg("admin")
            .file("admin", fleet.admin.clone())
            .run()
    };
    for leaf in [decision, &index] {
        let exported = proof(leaf);
        assert_eq!(exported.code(), Some(0), "{}", exported.stderr);
        assert!(
            exported
                .stdout
                .starts_with("c2sp.org/tlog-proof@v1\nextra ")
        );
        let with = |file: &str| {
            let token = granted["credential"]["access_token"].as_str().unwrap();
            let arguments = [
                "ledger",
                "verify",
                "file",
                "--key",
                key,
                "--credential-file",
                "token",
                "--unchecked-signature",
            ];
            Launch::taskpass(arguments)
                .file("file", file)
                .file("token", token)
                .run()
        };
        holds(&with(&exported.stdout), "file: a tlog-proof\n");
        let moved = format!("\nindex {index}\n");
        let spoilt = exported.stdout.replacen(&moved, "\nindex 0\n", 1);
        assert_ne!(spoilt, exported.stdout);
        fails(&with(&spoilt), "FAILED: ");
    }
    let none = proof("4000000");
    assert_eq!((none.code(), none.stdout.as_str()), (Some(1), ""));
    // Neither a workload with a decision in the log nor a stranger may export it.
    let own = Client::new(&url)
        .get_as(&fleet.token(), "/v1/ledger/export")
        .await;
    assert_eq!(own.status, 404);
    assert_eq!(Client::new(&url).get("/v1/ledger/export").await.status, 401);
}
