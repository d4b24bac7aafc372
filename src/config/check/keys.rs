//! Checks `[keys]` and `[admin]`: the algorithm, the times of rotation, and the bootstrap token.
//!
//! The rule: verifiers know a key before it signs. `crate::crypto::keyring` checks the schedule
//! itself; this file names the setting that breaks it.
//!
//! A fault is added to the [`Checker`], which reports all of them together.

use super::super::sections::{self, AccessTokenAlgorithm};
use super::Checker;

impl Checker<'_> {
    pub(super) fn keys(&mut self, file: &sections::File) {
        let keys = &file.keys;
        let rs256 = keys.access_token_algorithm == AccessTokenAlgorithm::Rs256;
        match (&keys.rs256_private_key_file, rs256) {
            (None, true) => self.refuse(
                "keys.access_token_algorithm",
                "is RS256, for which the broker does not create keys",
                "add rs256_private_key_file, or use ES256",
            ),
            (Some(_), false) => self.refuse(
                "keys.rs256_private_key_file",
                "is not used by this algorithm",
                "remove it, or set `access_token_algorithm = \"RS256\"`",
            ),
            _ => {}
        }
        let ranges = [
            ("rotation_seconds", keys.rotation_seconds, 3_600, 31_536_000),
            (
                "publish_lead_seconds",
                keys.publish_lead_seconds,
                60,
                2_592_000,
            ),
            ("jwks_cache_seconds", keys.jwks_cache_seconds, 60, 86_400),
        ];
        for (name, value, min, max) in ranges {
            self.range(&format!("keys.{name}"), value, min, max);
        }
        if keys.publish_lead_seconds >= keys.rotation_seconds {
            self.refuse(
                "keys.publish_lead_seconds",
                "is not shorter than rotation_seconds: the next key would be due before the current \
                 one signs",
                format!("give less than {}", keys.rotation_seconds),
            );
        } else if keys.schedule().check().is_err() {
            let slack = keys.schedule().slack_seconds;
            self.refuse(
                "keys.publish_lead_seconds",
                format!(
                    "leaves less than {slack} seconds of rotation_seconds, which the broker \
                     reserves for creating the next key"
                ),
                format!(
                    "give less than {}",
                    keys.rotation_seconds.saturating_sub(slack)
                ),
            );
        }
        if keys.publish_lead_seconds < keys.jwks_cache_seconds {
            self.refuse(
                "keys.publish_lead_seconds",
                "is shorter than jwks_cache_seconds: verifiers would receive tokens of unknown keys",
                format!("give at least {}", keys.jwks_cache_seconds),
            );
        }
    }

    pub(super) fn admin(&mut self, file: &sections::File) {
        let Some(hash) = &file.admin.bootstrap_token_sha256 else {
            return;
        };
        if hash.len() != 64 || !hash.bytes().all(|b| b.is_ascii_hexdigit()) {
            self.refuse(
                "admin.bootstrap_token_sha256",
                "is not 64 hex digits",
                "give the SHA-256 that `taskpass keys bootstrap` printed, never the token itself",
            );
        }
    }
}
