//! Values of answers that a later broker may extend.
//!
//! The server writes known values only, and a request is read strictly. A client also accepts values
//! that it does not know, so that it can print them.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A value of an answer: one that this version knows, or another one.
///
/// It is written as the value itself, and every JSON value can be read. Compare with
/// [`Open::Known`]: an unknown value is equal to no known one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Open<T> {
    /// A value that this version knows.
    Known(T),
    /// A value that this version does not know, as it was received.
    Unknown(Value),
}

impl<T> Open<T> {
    /// The value if this version knows it.
    #[must_use]
    pub fn known(&self) -> Option<&T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Unknown(_) => None,
        }
    }
}

impl<T> From<T> for Open<T> {
    fn from(value: T) -> Self {
        Self::Known(value)
    }
}

/// Writes a text without quotes, and every other value as JSON.
impl<T: Serialize> fmt::Display for Open<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match serde_json::to_value(self).map_err(|_| fmt::Error)? {
            Value::String(text) => f.write_str(&text),
            other => write!(f, "{other}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::domain::task::TaskState;

    #[test]
    fn an_unknown_value_is_read_printed_and_equal_to_no_known_one() {
        let read = |value: Value| serde_json::from_value::<Open<TaskState>>(value).unwrap();
        let open = read(json!("open"));
        assert_eq!(open, Open::Known(TaskState::Open));
        assert_eq!(open.known(), Some(&TaskState::Open));
        assert_eq!(open.to_string(), "open");
        for (value, text) in [(json!("paused"), "paused"), (json!({"a": 1}), "{\"a\":1}")] {
            let later = read(value.clone());
            assert_eq!(later.known(), None);
            assert_eq!(later.to_string(), text);
            assert_eq!(serde_json::to_value(&later).unwrap(), value);
        }
        let missing: Option<Open<TaskState>> = serde_json::from_value(Value::Null).unwrap();
        assert_eq!(missing, None);
    }
}
