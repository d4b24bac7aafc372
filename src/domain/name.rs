//! The rule for names that operators choose: resources, task types, attestors, roles, policies,
//! endpoints and sinks.
//!
//! A name stands in logs, metrics, leaves and policies, so it has only characters that need no
//! quoting anywhere. [`is_name`] answers `false` for any other text; its callers word the refusal.

use super::limits::MAX_NAME_BYTES;

/// Whether a text is 1 to [`MAX_NAME_BYTES`] of a-z, 0-9, `-` and `_`.
#[must_use]
pub fn is_name(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    (1..=MAX_NAME_BYTES).contains(&text.len()) && text.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_short_and_has_plain_characters() {
        for good in ["a", "0", "-", "orders_api-2", &"a".repeat(MAX_NAME_BYTES)] {
            assert!(is_name(good), "{good}");
        }
        for bad in [
            "",
            "A",
            "a b",
            "a.b",
            "ä",
            "a\n",
            &"a".repeat(MAX_NAME_BYTES + 1),
        ] {
            assert!(!is_name(bad), "{bad:?}");
        }
    }
}
