//! The command line without a broker: help, exit codes, policies, completions, and above all
//! receipts. The tests make the receipts, tree and signatures included, without the product's code.
//! Each test then corrupts one part and expects a refusal.

mod answers;
mod commands;
mod other_servers;
mod policies;
mod receipts;

use serde_json::{Value, json};

use crate::support::keys::{Algorithm, Key};
use crate::support::log::{
    DECISION, LIFE, Log, ORIGIN, SESSION, TASK, claims, denial, details, leaf_hash, permit,
    receipt, sha256, token,
};
use crate::support::process::{Ended, Launch};

fn taskpass(arguments: &[&str]) -> Ended {
    Launch::taskpass(arguments.iter().copied()).run()
}

/// A log, a signing key, and a permit's receipt with the credential that carries it.
struct Sample {
    log: Log,
    signer: Key,
    receipt: Value,
    token: String,
}

impl Sample {
    fn new() -> Self {
        let (log, signer) = (Log::new(ORIGIN), Key::generate(Algorithm::Es256));
        let receipt = receipt(&log, &permit(&signer.kid));
        let token = token(&signer, &claims(&receipt));
        Self {
            log,
            signer,
            receipt,
            token,
        }
    }

    fn issued(&self) -> Value {
        json!({
            "credential": {"type": "jwt", "access_token": self.token, "expires_in": LIFE},
            "session": {
                "id": SESSION, "workload": "dev:agent%3Areports", "resource": "orders-api",
                "authorization_details": details()
            },
            "decision": {"id": DECISION, "outcome": "permit"},
            "receipt": self.receipt,
        })
    }

    fn verify(&self, file: &Value, more: &[&str]) -> Ended {
        self.verify_bytes(file.to_string().into_bytes(), more)
    }

    fn verify_bytes(&self, file: impl Into<Vec<u8>>, more: &[&str]) -> Ended {
        let vkey = self.log.vkey();
        let arguments = ["ledger", "verify", "file", "--key", &vkey];
        let jwks = json!({"keys": [self.signer.jwk()]});
        Launch::taskpass(arguments.iter().chain(more).copied())
            .file("file", file)
            .file("token", self.token.clone())
            .file("jwks", jwks.to_string())
            .run()
    }
}

#[track_caller]
fn holds(ended: &Ended) -> String {
    assert_eq!(ended.code(), Some(0), "{}{}", ended.stdout, ended.stderr);
    assert!(
        ended.stdout.contains("everything holds"),
        "{}",
        ended.stdout
    );
    ended.stdout.clone()
}

#[track_caller]
fn fails(ended: &Ended, why: &str) {
    let (out, err) = (&ended.stdout, &ended.stderr);
    assert_eq!(ended.code(), Some(1), "{out}{err}");
    assert!(
        out.contains("FAILED: ") && out.contains(why),
        "{why}: {out}"
    );
    assert!(out.ends_with("does not hold\n"), "{out}");
}
