//! The key to which an issuer bound a token (`cnf`, RFC 7800), and the check that the caller holds
//! it.
//!
//! A token with `cnf` is not a bearer token and is useless without its key. `jkt` is the thumbprint
//! of a DPoP key (RFC 9449 §6), `x5t#S256` the hash of a client certificate (RFC 8705 §3.1).
//! [`Confirmation`] holds every key that the token names, and the caller must prove all of them.
//!
//! Any other member is a condition that the broker cannot check, so the token is refused. Every
//! refusal is [`AttestError::Confirmation`] with the reason. A token without `cnf` passes. The
//! proofs themselves are verified in [`super::dpop`] and by the TLS handshake
//! ([`super::certificate`]); [`super::Attestors`] calls this file after the token's signature has
//! verified.

use serde_json::Value;

use super::condition_result::ConditionResult;
use super::error::printable_issuer as printable;
use super::{AttestError, Evidence, TokenScheme, certificate};
use crate::crypto::jwt::Claims;
use crate::domain::workload::KeyBinding;

/// Every key that the caller must prove.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Confirmation(Vec<KeyBinding>);

impl Confirmation {
    /// The keys in a token's `cnf`; empty without `cnf`.
    pub(super) fn of(claims: &Claims) -> Result<Self, AttestError> {
        let refused = |why| Err(AttestError::Confirmation(why));
        let members = match claims.get("cnf") {
            None => return Ok(Self::default()),
            Some(Value::Object(members)) if !members.is_empty() => members,
            Some(_) => return refused("it is not an object that names a key"),
        };
        let mut keys = Vec::new();
        for (method, value) in members {
            let Some(value) = value.as_str().filter(|value| !value.is_empty()) else {
                return refused("a confirmation method has a value that is not a text");
            };
            keys.push(match method.as_str() {
                "jkt" => KeyBinding::Jkt(value.to_owned()),
                "x5t#S256" => KeyBinding::X5t(value.to_owned()),
                _ => return refused("a confirmation method is neither `jkt` nor `x5t#S256`"),
            });
        }
        Ok(Self(keys))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// For the operator: whether a caller that proves these keys proves every required one. A key
    /// of a kind that is not among them is not checked.
    pub(super) fn hold_against(&self, proved: &[KeyBinding]) -> ConditionResult {
        let mut unchecked = Vec::new();
        for key in &self.0 {
            let same_kind =
                |other: &&KeyBinding| std::mem::discriminant(*other) == std::mem::discriminant(key);
            match proved.iter().find(same_kind) {
                Some(other) if other == key => {}
                Some(_) => {
                    let why = match key {
                        KeyBinding::Jkt(_) => "the DPoP proof is by another key",
                        KeyBinding::X5t(_) => "the client certificate is a different one",
                    };
                    return ConditionResult::Fails(AttestError::Confirmation(why));
                }
                None => unchecked.push(match key {
                    KeyBinding::Jkt(value) => format!(
                        "each call needs `Authorization: DPoP` and a proof by the key whose `jkt` is \
                         {}; give the key's thumbprint with --dpop-jkt to check it",
                        printable(value)
                    ),
                    KeyBinding::X5t(value) => format!(
                        "each call needs mutual TLS with the certificate whose `x5t#S256` \
                         is {}; give the certificate's hash with --x5t-s256 to check it",
                        printable(value)
                    ),
                }),
            }
        }
        if unchecked.is_empty() {
            return ConditionResult::Holds;
        }
        ConditionResult::NotChecked(unchecked.join("; ").into())
    }

    /// Checks that the caller proved every key. `proved` is the key of its DPoP proof.
    pub(super) fn check(
        &self,
        evidence: &Evidence,
        proved: Option<&KeyBinding>,
    ) -> Result<(), AttestError> {
        let refused = |why| Err(AttestError::Confirmation(why));
        for key in &self.0 {
            match key {
                KeyBinding::Jkt(_) if proved.is_none() => {
                    return refused("send a DPoP proof by the key to which the token is bound");
                }
                KeyBinding::Jkt(_) if proved != Some(key) => {
                    return refused("the DPoP proof is by another key");
                }
                // RFC 9449 §7.2: as a bearer token it would serve every party that has a copy.
                KeyBinding::Jkt(_) if evidence.scheme == TokenScheme::Bearer => {
                    return refused("send the token as `Authorization: DPoP`, not as `Bearer`");
                }
                KeyBinding::X5t(_) if certificate::key(evidence).as_ref() != Some(key) => {
                    return refused(
                        "call over mutual TLS with the certificate that the token is bound to",
                    );
                }
                KeyBinding::Jkt(_) | KeyBinding::X5t(_) => {}
            }
        }
        Ok(())
    }
}
