//! Nonces for DPoP proofs (RFC 9449 §8). A party that has a workload's key for a moment cannot make
//! proofs for later use, because it does not know later nonces.
//!
//! A nonce is a time span with a MAC of the broker. Nonces are not stored, and every replica
//! accepts those of the others.
//!
//! [`DpopNonces::is_good`] is `false` for an old nonce and for one without the broker's MAC; the
//! caller is then told to repeat the request with the current nonce. `super::dpop` reads the proof,
//! `http` sends the nonce.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::clock::Timestamp;
use crate::crypto::digest::Mac;

/// How long one nonce is issued. It is also valid in the next span, so for at least a minute.
const SPAN_SECONDS: i64 = 60;

const PURPOSE: &str = "dpop-nonce";

/// Creates and verifies nonces.
#[derive(Clone)]
pub struct DpopNonces(Mac);

impl fmt::Debug for DpopNonces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DpopNonces")
    }
}

impl DpopNonces {
    /// Creates nonces with the broker's MAC.
    #[must_use]
    pub fn new(mac: Mac) -> Self {
        Self(mac)
    }

    /// The nonce for this time.
    #[must_use]
    pub fn current(&self, now: Timestamp) -> String {
        let span = span(now).to_be_bytes();
        let mut bytes = span.to_vec();
        bytes.extend(self.0.tag(PURPOSE, &[&span]));
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Whether the broker issued this nonce recently. A nonce of the next span may come from a
    /// replica whose clock is ahead.
    #[must_use]
    pub fn is_good(&self, nonce: &str, now: Timestamp) -> bool {
        let Ok(bytes) = URL_SAFE_NO_PAD.decode(nonce) else {
            return false;
        };
        let Some((given, tag)) = bytes.split_first_chunk::<8>() else {
            return false;
        };
        let age = span(now).checked_sub(i64::from_be_bytes(*given));
        matches!(age, Some(-1..=1)) && self.0.verify(PURPOSE, &[given], tag).is_ok()
    }
}

fn span(now: Timestamp) -> i64 {
    now.seconds() / SPAN_SECONDS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::random::SystemRandom;
    use crate::crypto::sealer::SealingKeys;

    fn nonces() -> DpopNonces {
        let key = SealingKeys::generate(&SystemRandom::new()).unwrap();
        DpopNonces::new(SealingKeys::parse(&[key]).unwrap().mac("o"))
    }

    #[test]
    fn a_nonce_is_good_for_a_minute_at_every_replica_and_at_no_other_broker() {
        let at = Timestamp::from_seconds(1_800_000_030);
        let (nonces, others) = (nonces(), nonces());
        let nonce = nonces.current(at);
        assert!(
            nonce
                .bytes()
                .all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\')
        );
        for seconds in [0, 30, 60, 89] {
            assert!(
                nonces.is_good(&nonce, at.plus_seconds(seconds)),
                "{seconds}"
            );
        }
        assert!(nonces.is_good(&nonce, at.minus_seconds(31)));
        assert!(!nonces.is_good(&nonce, at.plus_seconds(90)));
        assert!(!nonces.is_good(&nonce, at.minus_seconds(91)));
        assert!(!others.is_good(&nonce, at));
    }

    #[test]
    fn nothing_that_was_changed_is_a_nonce() {
        let at = Timestamp::from_seconds(1_800_000_000);
        let nonces = nonces();
        let nonce = nonces.current(at);
        for n in 0..nonce.len() {
            let mut changed = nonce.clone().into_bytes();
            changed[n] = if changed[n] == b'A' { b'B' } else { b'A' };
            // The last character has bits that decode to nothing; a strict decoder refuses those.
            let changed = String::from_utf8(changed).unwrap();
            assert!(!nonces.is_good(&changed, at), "{n}");
        }
        for bad in [
            "",
            "AAAAAAAAAAA",
            &nonce[..12],
            &format!("{nonce}AAAA"),
            "✓",
        ] {
            assert!(!nonces.is_good(bad, at), "{bad}");
        }
    }
}
