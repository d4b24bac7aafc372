//! Webhook signatures by the Standard Webhooks specification: HMAC-SHA-256 over the message's id,
//! the time of the attempt and the body, with a secret that sender and receiver share.
//!
//! [`WebhookSecrets`] holds the secrets of one receiver. Several secrets sign at once, so that a
//! receiver can change from one to the next. A changed file replaces them in a running broker
//! ([`WebhookSecrets::take_over`]).
//!
//! A text without a usable secret, or with too many, is a [`WebhookSecretError`], which never shows
//! the text. Signing cannot fail. `config` reads the files, and `export::webhook` sends the
//! signature. Repeated and old messages are left to the receiver, which checks the id and the time.

use std::sync::Arc;

use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use zeroize::Zeroizing;

/// The prefix of a secret in text form.
pub const SECRET_PREFIX: &str = "whsec_";

/// Maximum number of secrets that sign at once: a change needs two, and one more is a margin. More
/// are refused.
pub const MAX_SECRETS: usize = 3;

/// The permitted length of a secret, by the specification.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// The reason why a text does not hold usable secrets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WebhookSecretError {
    /// No line has a secret.
    #[error("holds no secret")]
    None,
    /// The text has more than [`MAX_SECRETS`] secrets.
    #[error("holds more than {MAX_SECRETS} secrets")]
    TooMany,
    /// A line is not a secret in text form.
    #[error("holds a line that is not `{SECRET_PREFIX}` and 24 to 64 bytes in base64")]
    Form,
}

/// The secrets of one receiver. They cannot be printed. Clones share them.
#[derive(Clone)]
pub struct WebhookSecrets(Arc<ArcSwap<Vec<hmac::Key>>>);

impl std::fmt::Debug for WebhookSecrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WebhookSecrets({} of them)", self.0.load().len())
    }
}

impl WebhookSecrets {
    /// Parses secrets, one on each line.
    pub fn parse(text: &str) -> Result<Self, WebhookSecretError> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let keys = lines.map(|line| {
            let secret = line.strip_prefix(SECRET_PREFIX);
            let bytes = secret.and_then(|text| STANDARD.decode(text).ok());
            let bytes = Zeroizing::new(bytes.ok_or(WebhookSecretError::Form)?);
            if !SECRET_BYTES.contains(&bytes.len()) {
                return Err(WebhookSecretError::Form);
            }
            Ok(hmac::Key::new(hmac::HMAC_SHA256, &bytes))
        });
        let keys = keys.collect::<Result<Vec<_>, _>>()?;
        match keys.len() {
            0 => Err(WebhookSecretError::None),
            1..=MAX_SECRETS => Ok(Self(Arc::new(ArcSwap::from_pointee(keys)))),
            _ => Err(WebhookSecretError::TooMany),
        }
    }

    /// Replaces the secrets with those of `newer`, in all clones.
    pub fn take_over(&self, newer: &Self) {
        self.0.store(newer.0.load_full());
    }

    /// The value of `webhook-signature`: one signature for each secret.
    #[must_use]
    pub fn sign(&self, id: &str, unix_seconds: i64, body: &[u8]) -> String {
        let mut message = format!("{id}.{unix_seconds}.").into_bytes();
        message.extend_from_slice(body);
        let signed = |key: &hmac::Key| {
            let tag = hmac::sign(key, &message);
            format!("v1,{}", STANDARD.encode(tag))
        };
        let keys = self.0.load();
        keys.iter().map(signed).collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PUBLISHED: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    /// The test vector of the Standard Webhooks libraries.
    #[test]
    fn the_published_vector_is_signed_as_published() {
        let secrets = WebhookSecrets::parse(PUBLISHED).unwrap();
        let signed = secrets.sign(
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            br#"{"test": 2432232314}"#,
        );
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn each_of_several_secrets_signs() {
        let other = format!("whsec_{}", STANDARD.encode([7; 32]));
        let both = format!("{PUBLISHED}\n\n  {other}\n");
        let signed = WebhookSecrets::parse(&both).unwrap().sign("a", 1, b"{}");
        let one = |text: &str| WebhookSecrets::parse(text).unwrap().sign("a", 1, b"{}");
        assert_eq!(signed, format!("{} {}", one(PUBLISHED), one(&other)));
    }

    #[test]
    fn what_is_no_secret_is_refused_and_none_is_shown() {
        let short = format!("whsec_{}", STANDARD.encode([7; 23]));
        let long = format!("whsec_{}", STANDARD.encode([7; 65]));
        let bare = &PUBLISHED[SECRET_PREFIX.len()..];
        for bad in [&short, &long, bare, "whsec_", "whsec_*", "other"] {
            let refused = WebhookSecrets::parse(bad).unwrap_err();
            assert_eq!(refused, WebhookSecretError::Form, "{bad}");
            assert!(!refused.to_string().contains(bare));
        }
        let refused = |text: &str| WebhookSecrets::parse(text).unwrap_err();
        assert_eq!(refused(" \n"), WebhookSecretError::None);
        let many = [PUBLISHED; MAX_SECRETS + 1].join("\n");
        assert_eq!(refused(&many), WebhookSecretError::TooMany);
        let shown = format!("{:?}", WebhookSecrets::parse(PUBLISHED).unwrap());
        assert_eq!(shown, "WebhookSecrets(1 of them)");
    }
}
