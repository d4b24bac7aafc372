//! Secrets in requests and answers.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize, Serializer};

/// A secret that a request or an answer carries: a token, a handle, a key.
///
/// Writing it as JSON exposes the secret. A value of this type is written to the body of a request
/// or an answer, to the private files of `client::session_cache`, and to the printed result of a
/// command whose purpose is to print it. Never write it to a log, an error or a ledger entry. Its
/// debug form shows no part of the secret.
#[derive(Clone, Deserialize)]
#[serde(transparent)]
pub struct SecretText(SecretString);

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText(…)")
    }
}

impl SecretText {
    /// The secret as text, for use at once.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// The secret, for use in this process.
    #[must_use]
    pub fn into_secret(self) -> SecretString {
        self.0
    }
}

impl From<SecretString> for SecretText {
    fn from(secret: SecretString) -> Self {
        Self(secret)
    }
}

impl Serialize for SecretText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.expose_secret())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_written_to_a_body_and_not_to_a_log() {
        let secret: SecretText = serde_json::from_str("\"tph_1\"").unwrap();
        assert_eq!(serde_json::to_string(&secret).unwrap(), "\"tph_1\"");
        assert!(!format!("{secret:?}").contains("tph_1"));
        assert_eq!(secret.expose(), "tph_1");
        assert_eq!(secret.into_secret().expose_secret(), "tph_1");
    }
}
