//! The key that a token is bound to by its issuer (`cnf`, RFC 7800), and whether its bearer has it.
//!
//! A token with `cnf` is worth nothing without its key, and so is not a bearer token: `jkt` is the
//! thumbprint of a DPoP key (RFC 9449 §6), `x5t#S256` the hash of a client certificate (RFC 8705
//! §3.1). Any other member is a condition that cannot be checked here, and so does not hold.

use serde_json::Value;

use super::error::printable_issuer as printable;
use super::explain::Outcome;
use super::{AttestError, Evidence, TokenScheme, certificate};
use crate::crypto::jwt::Claims;
use crate::domain::workload::KeyBinding;

/// Every key that a token's bearer has to prove.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Confirmation(Vec<KeyBinding>);

impl Confirmation {
    /// What a token's `cnf` demands: nothing where it has none.
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
                return refused("a confirmation method has a value of another kind than text");
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

    /// Whether a caller that proves these keys has every one, for the operator. A key of a kind that
    /// is not among them is not checked.
    pub(super) fn hold_against(&self, proved: &[KeyBinding]) -> Outcome {
        let mut unchecked = Vec::new();
        for key in &self.0 {
            let same_kind =
                |other: &&KeyBinding| std::mem::discriminant(*other) == std::mem::discriminant(key);
            match proved.iter().find(same_kind) {
                Some(other) if other == key => {}
                Some(_) => {
                    let why = match key {
                        KeyBinding::Jkt(_) => "the DPoP proof is by another key",
                        KeyBinding::X5t(_) => "the client certificate is another one",
                    };
                    return Outcome::Fails(AttestError::Confirmation(why));
                }
                None => unchecked.push(match key {
                    KeyBinding::Jkt(value) => format!(
                        "each call needs `Authorization: DPoP` and a proof by the key whose `jkt` is \
                         {}; give the key's thumbprint with --dpop-jkt to check it",
                        printable(value)
                    ),
                    KeyBinding::X5t(value) => format!(
                        "each call has to come over mutual TLS with the certificate whose `x5t#S256` \
                         is {}; give the certificate's hash with --x5t-s256 to check it",
                        printable(value)
                    ),
                }),
            }
        }
        if unchecked.is_empty() {
            return Outcome::Holds;
        }
        Outcome::NotChecked(unchecked.join("; ").into())
    }

    /// Whether the caller proved every key: `proved` is that of its DPoP proof.
    pub(super) fn check(
        &self,
        evidence: &Evidence,
        proved: Option<&KeyBinding>,
    ) -> Result<(), AttestError> {
        let refused = |why| Err(AttestError::Confirmation(why));
        for key in &self.0 {
            match key {
                KeyBinding::Jkt(_) if proved.is_none() => {
                    return refused("send a DPoP proof by the key that the token is bound to");
                }
                KeyBinding::Jkt(_) if proved != Some(key) => {
                    return refused("the DPoP proof is by another key");
                }
                // RFC 9449 §7.2: taken as a bearer's it would be good for whoever has it.
                KeyBinding::Jkt(_) if evidence.scheme == TokenScheme::Bearer => {
                    return refused("send the token as `Authorization: DPoP`, not as `Bearer`");
                }
                KeyBinding::X5t(_) if certificate::key(evidence).as_ref() != Some(key) => {
                    return refused("call over mutual TLS with the certificate it is bound to");
                }
                KeyBinding::Jkt(_) | KeyBinding::X5t(_) => {}
            }
        }
        Ok(())
    }
}
