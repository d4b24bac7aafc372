//! The values of queries, which are written as text.

use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// Parses a text only if it is the canonical spelling: a number without a sign or leading zeros, an
/// id as the broker writes it.
#[must_use]
pub fn in_one_spelling<T: FromStr + ToString>(text: &str) -> Option<T> {
    let value: T = text.parse().ok()?;
    (value.to_string() == text).then_some(value)
}

/// Reads a whole number of a query.
pub fn number<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr + ToString,
{
    let text = String::deserialize(deserializer)?;
    in_one_spelling(&text).ok_or_else(|| D::Error::custom("not a whole number, or out of range"))
}

/// Reads an optional whole number.
pub fn maybe_number<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr + ToString,
{
    number(deserializer).map(Some)
}

/// `cursor` and `limit` select a page of a listing and are not part of the filter to which a cursor
/// is bound, so a query is written without them. (An unconditional skip would also remove them from
/// the OpenAPI description.)
pub(super) fn is_marker<T>(_: &T) -> bool {
    true
}
