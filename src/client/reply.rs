//! The bodies of successful answers, and of requests without parameters.
//!
//! A body is read as the shape that the operation answers with. A body that does not fit is
//! [`ClientError::Unavailable`], with the operation and the member. Members that this version does
//! not know are ignored. [`super::Client`] limits the size of every answer.

use std::marker::PhantomData;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::ClientError;

/// The body of a request without parameters: an empty object.
#[derive(Debug, Serialize)]
pub(crate) struct Nothing {}

/// The body of a successful answer, which [`Reply::read`] reads as a `T`.
///
/// It has no `Debug`, because it may hold a credential.
pub(crate) struct Reply<T> {
    raw: Value,
    /// The method and the path of the request.
    operation: String,
    shape: PhantomData<fn() -> T>,
}

impl<T> Reply<T> {
    pub(super) fn new(raw: Value, operation: String) -> Self {
        Self {
            raw,
            operation,
            shape: PhantomData,
        }
    }

    /// The body as it was received, with unknown members. It is null if the body was empty or not
    /// JSON.
    pub(crate) fn raw(&self) -> &Value {
        &self.raw
    }
}

impl<T: DeserializeOwned> Reply<T> {
    /// The body as it was received, for `--json`, if it can be read as a `T`. The answer of a server
    /// in between, which did nothing, must not pass as the broker's.
    pub(crate) fn json(&self) -> Result<&Value, ClientError> {
        self.read()?;
        Ok(&self.raw)
    }

    /// Reads the body as a `T`. The error quotes no value, because a value may be a secret.
    pub(crate) fn read(&self) -> Result<T, ClientError> {
        serde_path_to_error::deserialize(&self.raw).map_err(|error| {
            // The other texts of serde may quote the value.
            let text = error.inner().to_string();
            let why = if text.starts_with("missing field") {
                text.as_str()
            } else {
                "the value has another form than expected"
            };
            let location = match error.path().to_string() {
                root if root == "." => String::new(),
                path => format!("`{path}`: "),
            };
            ClientError::Unavailable(format!(
                "the answer to {} cannot be used: {location}{why}",
                self.operation
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::wire::admins::AdminsBody;

    fn reply(raw: Value) -> Reply<AdminsBody> {
        Reply::new(raw, "GET /v1/admins".to_owned())
    }

    #[test]
    fn a_body_is_read_and_keeps_its_unknown_members() {
        let raw =
            json!({"admins": [{"workload": "ci:a", "role": "admin", "since": 1}], "more": []});
        let read = reply(raw.clone());
        assert_eq!(read.read().unwrap().admins[0].role, "admin");
        assert_eq!(read.json().unwrap(), &raw);
        assert!(reply(Value::Null).json().is_err(), "a page of a proxy");
    }

    #[test]
    fn a_body_that_does_not_fit_names_the_operation_and_the_member_and_quotes_no_value() {
        for (raw, parts) in [
            (
                json!({"admins": [{"workload": "ci:a", "role": "admin"}, {"workload": "ci:b"}]}),
                ["`admins[1]`", "missing field `role`"],
            ),
            (
                json!({"admins": "tpa_secret"}),
                ["`admins`", "another form"],
            ),
            (Value::Null, ["GET /v1/admins", "another form"]),
        ] {
            let error = reply(raw).read().unwrap_err();
            assert!(matches!(error, ClientError::Unavailable(_)));
            let text = error.to_string();
            assert!(text.contains("GET /v1/admins"), "{text}");
            for part in parts {
                assert!(text.contains(part), "{part}: {text}");
            }
            assert!(!text.contains("tpa_secret"), "{text}");
        }
    }
}
