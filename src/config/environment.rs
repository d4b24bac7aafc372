//! Access to environment variables, as a parameter.
//!
//! [`Environment`] is the only way to a variable (except for `process` itself), so tests can pass a
//! map instead. [`ProcessEnvironment`] also has the variables that [`process`] withheld from other
//! processes. An unset variable is `None`; one that is not UTF-8 is [`NotText`]. The caller
//! decides the meaning of an empty value.

use std::collections::BTreeMap;

use crate::process;

/// The variable's value is not UTF-8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not UTF-8 text")]
pub struct NotText;

/// A source of environment variables.
pub trait Environment {
    /// The value of a variable, if it is set.
    ///
    /// # Errors
    /// [`NotText`].
    fn get(&self, name: &str) -> Result<Option<String>, NotText>;
}

/// The environment of this process, including the variables that it withholds from other processes.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcessEnvironment;

impl ProcessEnvironment {
    /// The names of the variables that child processes would inherit, except names that are not
    /// UTF-8.
    #[must_use]
    pub fn names(self) -> Vec<String> {
        let names = std::env::vars_os().map(|(name, _)| name.into_string());
        names.filter_map(Result::ok).collect()
    }
}

impl Environment for ProcessEnvironment {
    #[expect(
        clippy::disallowed_methods,
        reason = "the only code that reads the environment"
    )]
    fn get(&self, name: &str) -> Result<Option<String>, NotText> {
        if let Some(value) = process::withheld(name) {
            return value.to_str().map(str::to_owned).map(Some).ok_or(NotText);
        }
        match std::env::var(name) {
            Ok(value) => Ok(Some(value)),
            Err(std::env::VarError::NotPresent) => Ok(None),
            Err(std::env::VarError::NotUnicode(_)) => Err(NotText),
        }
    }
}

impl Environment for BTreeMap<String, String> {
    fn get(&self, name: &str) -> Result<Option<String>, NotText> {
        Ok(BTreeMap::get(self, name).cloned())
    }
}
