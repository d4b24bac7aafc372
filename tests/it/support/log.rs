//! A transparency log made by the tests: tree, proofs, signatures and leaves, implemented from the
//! RFC's recursive definitions without the product's code.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::digest::{SHA256, digest};
use ring::signature::{ED25519, UnparsedPublicKey};
use serde_json::{Value, json};

use super::hex;
use super::keys::{Algorithm, Key, base64url, sign_jwt};

pub const ORIGIN: &str = "broker.test/log";
pub const SESSION: &str = "0198b2a0-0000-7000-8000-000000000002";
pub const DECISION: &str = "0198b2a0-0000-7000-8000-000000000001";
pub const TASK: &str = "0198b2a0-0000-7000-8000-000000000003";
/// 2026-10-26T03:33:20Z in Unix seconds, the latest expiry that the permit allows.
pub const EXP: i64 = 1_792_985_600;

pub fn sha256(bytes: &[u8]) -> Vec<u8> {
    digest(&SHA256, bytes).as_ref().to_vec()
}

/// A signer of notes: a log or a witness.
pub struct Log {
    pub key: Key,
    name: String,
}

impl Log {
    pub fn new(name: &str) -> Self {
        Self {
            key: Key::generate(Algorithm::EdDsa),
            name: name.into(),
        }
    }

    fn typed_key(&self, kind: u8) -> Vec<u8> {
        let x = self.key.jwk()["x"].as_str().unwrap().to_owned();
        [vec![kind], URL_SAFE_NO_PAD.decode(x).unwrap()].concat()
    }

    fn key_id(&self, kind: u8) -> Vec<u8> {
        let named = [self.name.as_bytes(), b"\n", &self.typed_key(kind)].concat();
        sha256(&named)[..4].to_vec()
    }

    fn key_text(&self, kind: u8) -> String {
        let typed = STANDARD.encode(self.typed_key(kind));
        format!("{}+{}+{typed}", self.name, hex(&self.key_id(kind)))
    }

    /// Its verifier key as a log.
    pub fn vkey(&self) -> String {
        self.key_text(1)
    }

    /// Its verifier key as a witness.
    pub fn witness_key(&self) -> String {
        self.key_text(4)
    }

    /// The line that it adds to a checkpoint as a witness (C2SP tlog-cosignature).
    pub fn cosign(&self, text: &str, time: u64) -> String {
        let message = format!("cosignature/v1\ntime {time}\n{text}");
        let signature = self.key.sign(message.as_bytes());
        let blob = [self.key_id(4), time.to_be_bytes().to_vec(), signature].concat();
        format!("\u{2014} {} {}\n", self.name, STANDARD.encode(blob))
    }

    pub fn sign(&self, text: &str) -> String {
        let blob = [self.key_id(1), self.key.sign(text.as_bytes())].concat();
        format!("{text}\n\u{2014} {} {}\n", self.name, STANDARD.encode(blob))
    }

    pub fn checkpoint(&self, origin: &str, size: usize, root: &[u8]) -> String {
        self.sign(&format!("{origin}\n{size}\n{}\n", STANDARD.encode(root)))
    }
}

pub fn root(leaves: &[Vec<u8>]) -> Vec<u8> {
    if let [leaf] = leaves {
        return leaf.clone();
    }
    let (left, right) = leaves.split_at(leaves.len().next_power_of_two() / 2);
    sha256(&[vec![1], root(left), root(right)].concat())
}

pub fn inclusion(index: usize, leaves: &[Vec<u8>]) -> Vec<Vec<u8>> {
    if leaves.len() == 1 {
        return Vec::new();
    }
    let middle = leaves.len().next_power_of_two() / 2;
    let (left, right) = leaves.split_at(middle);
    let (mut path, sibling) = if index < middle {
        (inclusion(index, left), right)
    } else {
        (inclusion(index - middle, right), left)
    };
    path.push(root(sibling));
    path
}

pub fn leaf_hash(leaf: &[u8]) -> Vec<u8> {
    sha256(&[&[0], leaf].concat())
}

/// The receipt of `leaf` at index 4 of a log of 7 whose checkpoint names `origin`.
pub fn receipt_in(log: &Log, origin: &str, leaf: &Value) -> Value {
    let bytes = serde_json::to_vec(leaf).unwrap();
    let mut leaves: Vec<Vec<u8>> = (0..7_u8).map(|n| leaf_hash(&[n])).collect();
    leaves[4] = leaf_hash(&bytes);
    let proof = inclusion(4, &leaves);
    json!({
        "leaf": STANDARD.encode(&bytes),
        "leaf_hash": STANDARD.encode(&leaves[4]),
        "index": 4,
        "tree_size": 7,
        "inclusion_proof": proof.iter().map(|h| STANDARD.encode(h)).collect::<Vec<_>>(),
        "checkpoint": log.checkpoint(origin, 7, &root(&leaves)),
    })
}

pub fn receipt(log: &Log, leaf: &Value) -> Value {
    receipt_in(log, ORIGIN, leaf)
}

/// The lifetime that [`permit`] grants, in seconds.
pub const LIFE: u64 = 142_400;

pub fn permit(kid: &str) -> Value {
    json!({
        "v": 2, "origin": ORIGIN, "at": "2026-10-24T12:00:00Z", "event": "decision",
        "decision": DECISION, "outcome": "permit", "workload": "dev:agent%3Areports",
        "attestor": "dev", "resource": "orders-api", "task": TASK, "session": SESSION,
        "grant": details(), "audience": "https://orders.example",
        "expires_at": "2026-10-26T03:33:20Z", "minter": "jwt", "kid": kid,
        "issuer": "https://broker.test",
        "revocability": {"class": "expiry_only", "open_sessions": "none", "expires_by": "itself"},
        "generation": format!("sha256:{}", "a".repeat(64)), "policies": ["reports-read"],
        "input": "b".repeat(64)
    })
}

pub fn denial() -> Value {
    json!({
        "v": 2, "origin": ORIGIN, "at": "2026-10-24T12:00:00Z", "event": "decision",
        "decision": DECISION, "outcome": "deny", "refusal": "not-permitted",
        "workload": "dev:agent%3Areports", "attestor": "dev", "resource": "orders-api",
        "generation": format!("sha256:{}", "a".repeat(64)), "input": "b".repeat(64)
    })
}

pub fn details() -> Value {
    json!([{
        "type": "api", "actions": ["orders:read"], "locations": ["https://orders.example/v1"]
    }])
}

pub fn claims(receipt: &Value) -> Value {
    let hash = STANDARD.decode(receipt["leaf_hash"].as_str().unwrap());
    json!({
        "iss": "https://broker.test", "sub": "dev:agent%3Areports",
        "client_id": "dev:agent%3Areports", "aud": "https://orders.example",
        "iat": EXP - 300, "exp": EXP, "jti": SESSION, "sid": SESSION, "task": TASK,
        "scope": "orders:read", "authorization_details": details(),
        "dec": base64url(&hash.unwrap()),
    })
}

pub fn token(key: &Key, claims: &Value) -> String {
    let header = json!({"alg": "ES256", "typ": "at+jwt", "kid": key.kid});
    sign_jwt(&header, claims, key)
}

/// SUBPROOF of RFC 9162 §2.1.4.1: a proof that the tree of all leaves continues the tree of the
/// first `from`.
pub fn consistency(from: usize, leaves: &[Vec<u8>]) -> Vec<Vec<u8>> {
    fn subproof(from: usize, leaves: &[Vec<u8>], whole: bool) -> Vec<Vec<u8>> {
        if from == leaves.len() {
            return if whole {
                Vec::new()
            } else {
                vec![root(leaves)]
            };
        }
        let middle = leaves.len().next_power_of_two() / 2;
        let (left, right) = leaves.split_at(middle);
        let (mut path, sibling) = if from <= middle {
            (subproof(from, left, whole), right)
        } else {
            (subproof(from - middle, right, false), left)
        };
        path.push(root(sibling));
        path
    }
    subproof(from, leaves, true)
}

/// RFC 9162 §2.1.4.2: whether a proof shows that the tree of `second` leaves continues the tree of
/// `first`.
pub fn continues(
    (first, first_root): (u64, &[u8]),
    (second, second_root): (u64, &[u8]),
    proof: &[Vec<u8>],
) -> bool {
    if first == second {
        return proof.is_empty() && first_root == second_root;
    }
    if first == 0 || first > second {
        return first == 0 && proof.is_empty();
    }
    let mut path = proof.to_vec();
    if first.is_power_of_two() {
        path.insert(0, first_root.to_vec());
    }
    let Some((seed, path)) = path.split_first() else {
        return false;
    };
    let node = |left: &[u8], right: &[u8]| sha256(&[&[1], left, right].concat());
    let (mut fnode, mut snode) = (first - 1, second - 1);
    while fnode & 1 == 1 {
        (fnode, snode) = (fnode >> 1, snode >> 1);
    }
    let (mut old, mut new) = (seed.clone(), seed.clone());
    for hash in path {
        if snode == 0 {
            return false;
        }
        if fnode & 1 == 1 || fnode == snode {
            (old, new) = (node(hash, &old), node(hash, &new));
            while fnode & 1 == 0 && fnode != 0 {
                (fnode, snode) = (fnode >> 1, snode >> 1);
            }
        } else {
            new = node(&new, hash);
        }
        (fnode, snode) = (fnode >> 1, snode >> 1);
    }
    snode == 0 && old == first_root && new == second_root
}

/// The signed text of a note; `None` unless one of `vkeys` signed it.
pub fn signed_by(note: &str, vkeys: &[String]) -> Option<String> {
    let (text, lines) = note.rsplit_once("\n\n")?;
    let text = format!("{text}\n");
    let known = vkeys.iter().any(|vkey| {
        let mut parts = vkey.splitn(3, '+');
        let (name, id) = (parts.next().unwrap(), parts.next().unwrap());
        let key = STANDARD.decode(parts.next().unwrap()).unwrap();
        lines.lines().any(|line| {
            let blob = line.strip_prefix(&format!("\u{2014} {name} "));
            let Some(blob) = blob.and_then(|blob| STANDARD.decode(blob).ok()) else {
                return false;
            };
            let key = UnparsedPublicKey::new(&ED25519, &key[1..]);
            hex(&blob[..4]) == id && key.verify(text.as_bytes(), &blob[4..]).is_ok()
        })
    });
    known.then_some(text)
}

mod tests {
    use super::*;

    /// A generated proof verifies.
    #[test]
    fn a_proof_that_is_made_is_one_that_holds() {
        let leaves: Vec<Vec<u8>> = (0..20_u8).map(|n| leaf_hash(&[n])).collect();
        for second in 1..=20 {
            let now = root(&leaves[..second]);
            for first in 1..=second {
                let before = root(&leaves[..first]);
                let proof = consistency(first, &leaves[..second]);
                let (first, second) = (first as u64, second as u64);
                assert!(continues((first, &before), (second, &now), &proof));
                assert!(!continues((first, &now[1..]), (second, &now), &proof));
                let other = leaf_hash(&[99]);
                assert!(!continues((first, &before), (second, &other), &proof));
            }
        }
    }
}
