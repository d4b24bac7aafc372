//! The file's text with source positions: from a key to its line, and from an error to its key.
//!
//! [`Document::parse`] indexes the positions, and [`Document::read`] reads the sections. Attestors
//! and resources are read one by one, because serde would lose their positions.
//!
//! No message quotes a value of the file, since a user may have pasted a secret under the wrong
//! key: values are cut from the parser's messages, and a key is quoted only if it is short and
//! plain. The first error of the parser or of serde ends the reading and is a [`ConfigErrors`].
//! `config::check` looks for contradictions afterwards, and asks [`Document::error`] for the line
//! of each.

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use super::error::{ConfigError, ConfigErrors, Position};
use super::sections::File;
use crate::domain::catalog::{CatalogError, Resource, WrittenResource};
use crate::domain::limits::MAX_NAME_BYTES;
use crate::domain::trust::{AttestorSpec, KeySpec, OidcSpec, OidcWritten, SpiffeSpec};

/// A parsed configuration file.
pub(super) struct Document<'t> {
    path: PathBuf,
    text: &'t str,
    /// Every key and array element, by dotted path, with its span in the text, in tree order.
    spans: Vec<(String, Range<usize>)>,
}

impl<'t> Document<'t> {
    pub(super) fn parse(path: &Path, text: &'t str) -> Result<Self, ConfigErrors> {
        let mut document = Self {
            path: path.to_owned(),
            text,
            spans: Vec::new(),
        };
        let root = DeTable::parse(text).map_err(|error| document.explain(&error))?;
        index_table(root.get_ref(), "", &mut document.spans);
        Ok(document)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The sections of the file.
    pub(super) fn read(&self) -> Result<File, ConfigErrors> {
        let mut root = DeTable::parse(self.text).map_err(|error| self.explain(&error))?;
        // Serde buffers a tagged enum and loses the positions of its parts, so the tag is read
        // here.
        let attestors = match root.get_mut().remove("attestors") {
            None => Vec::new(),
            Some(list) => self.attestors(list)?,
        };
        // Whether a resource's members fit its kind is known once all are read. So each resource is
        // read here, where its position is known.
        let resources = match root.get_mut().remove("resources") {
            None => Vec::new(),
            Some(list) => self.resources(list)?,
        };
        let deserializer = toml::de::Deserializer::from(root);
        let mut file = File::deserialize(deserializer).map_err(|error| self.explain(&error))?;
        file.attestors = attestors;
        file.resources = resources;
        Ok(file)
    }

    fn attestors(
        &self,
        list: toml::Spanned<DeValue<'_>>,
    ) -> Result<Vec<AttestorSpec>, ConfigErrors> {
        let not_tables = || self.not_tables("attestors", "write each attestor as [[attestors]]");
        let DeValue::Array(list) = list.into_inner() else {
            return Err(not_tables());
        };
        let mut specs = Vec::new();
        for (index, mut value) in list.into_iter().enumerate() {
            let DeValue::Table(table) = value.get_mut() else {
                return Err(not_tables());
            };
            let kind = table.remove("kind");
            let kind = kind.as_ref().and_then(|kind| kind.get_ref().as_str());
            let deserializer = |value| ValueDeserializer::from(value);
            let spec = match kind {
                Some("oidc") => match OidcWritten::deserialize(deserializer(value)) {
                    Ok(written) => Ok(AttestorSpec::Oidc(self.resolve(index, written)?)),
                    Err(error) => Err(error),
                },
                Some("key") => KeySpec::deserialize(deserializer(value)).map(AttestorSpec::Key),
                Some("spiffe") => {
                    SpiffeSpec::deserialize(deserializer(value)).map(AttestorSpec::Spiffe)
                }
                _ => {
                    let key = format!("attestors.{index}.kind");
                    let remedy = "set `kind = \"oidc\"`, `\"key\"` or `\"spiffe\"`";
                    return Err(self.error(&key, "is not a kind of attestor", remedy).into());
                }
            };
            specs.push(spec.map_err(|error| self.explain(&error))?);
        }
        Ok(specs)
    }

    fn resources(&self, list: toml::Spanned<DeValue<'_>>) -> Result<Vec<Resource>, ConfigErrors> {
        let DeValue::Array(list) = list.into_inner() else {
            return Err(self.not_tables("resources", "write each resource as [[resources]]"));
        };
        let mut resources = Vec::new();
        for (index, value) in list.into_iter().enumerate() {
            let written = WrittenResource::deserialize(ValueDeserializer::from(value));
            let written = written.map_err(|error| self.explain(&error))?;
            let resource = Resource::try_from(written).map_err(|error| {
                let (problem, remedy) = catalog_complaint(&error);
                self.error(&format!("resources.{index}"), problem, remedy)
            })?;
            resources.push(resource);
        }
        Ok(resources)
    }

    fn not_tables(&self, key: &str, remedy: &str) -> ConfigErrors {
        self.error(key, "is not an array of tables", remedy).into()
    }

    fn resolve(&self, index: usize, written: OidcWritten) -> Result<OidcSpec, ConfigErrors> {
        written.resolve().map_err(|refusal| {
            let key = format!("attestors.{index}.{}", refusal.key);
            let key = key.trim_end_matches('.');
            self.error(key, refusal.problem, refusal.remedy).into()
        })
    }

    /// An error for `key`, at its line or that of the nearest enclosing table.
    pub(super) fn error(
        &self,
        key: &str,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> ConfigError {
        ConfigError {
            at: Some(self.locate(key)),
            ..ConfigError::unplaced(&self.path, key, problem, remedy)
        }
    }

    fn locate(&self, key: &str) -> Position {
        let mut key = key;
        loop {
            if let Some((_, span)) = self.spans.iter().find(|(path, _)| path == key) {
                return self.position(span.start);
            }
            match key.rsplit_once('.') {
                Some((above, _)) => key = above,
                None => return Position { line: 1, column: 1 },
            }
        }
    }

    fn position(&self, offset: usize) -> Position {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let line = before.matches('\n').count() + 1;
        let column = before.get(line_start..).map_or(0, |l| l.chars().count()) + 1;
        Position { line, column }
    }

    /// Converts an error of serde or the parser, without its quotation of the text.
    fn explain(&self, error: &toml::de::Error) -> ConfigError {
        let span = error.span().unwrap_or(0..0);
        let mut key = self.key_at(&span);
        if key.is_empty() && error.message().starts_with("duplicate key") {
            let text = self.text.get(span.clone()).filter(|text| is_name(text));
            text.unwrap_or_default().clone_into(&mut key);
        }
        let problem = without_values(error.message());
        let remedy = remedy_for(&problem, &key);
        let problem = if key.is_empty() {
            problem
        } else {
            format!("is wrong: {problem}")
        };
        ConfigError {
            at: Some(self.position(span.start)),
            ..ConfigError::unplaced(&self.path, &key, problem, remedy)
        }
    }

    /// The innermost key whose name or value contains the span.
    fn key_at(&self, span: &Range<usize>) -> String {
        let around = |entry: &&(String, Range<usize>)| {
            entry.1.start <= span.start && span.end <= entry.1.end && !span.is_empty()
        };
        self.spans
            .iter()
            .filter(around)
            .min_by_key(|(_, entry)| entry.len())
            .map(|(path, _)| path.clone())
            .unwrap_or_default()
    }
}

/// The problem and the remedy of an error of a resource or a task type.
pub(super) fn catalog_complaint(error: &CatalogError) -> (String, String) {
    match error {
        CatalogError::Name { .. } => (
            "has an invalid name".to_owned(),
            format!("use 1 to {MAX_NAME_BYTES} of a-z, 0-9, `-` and `_`"),
        ),
        CatalogError::Duplicate { what, .. } => (
            format!("is a {what} whose name is used twice"),
            "give each a different name".to_owned(),
        ),
        CatalogError::Invalid { problem, .. } => {
            (format!("is wrong: {problem}"), "correct it".to_owned())
        }
    }
}

fn index_table(table: &DeTable<'_>, above: &str, spans: &mut Vec<(String, Range<usize>)>) {
    for (key, value) in table {
        let name = if is_name(key.get_ref()) {
            key.get_ref()
        } else {
            "…"
        };
        let path = if above.is_empty() {
            name.to_owned()
        } else {
            format!("{above}.{name}")
        };
        spans.push((path.clone(), key.span()));
        index_value(value, &path, spans);
    }
}

fn index_value(
    value: &toml::Spanned<DeValue<'_>>,
    path: &str,
    spans: &mut Vec<(String, Range<usize>)>,
) {
    match value.get_ref() {
        DeValue::Table(table) => {
            spans.push((path.to_owned(), value.span()));
            index_table(table, path, spans);
        }
        DeValue::Array(list) => {
            for (index, element) in list.iter().enumerate() {
                let path = format!("{path}.{index}");
                spans.push((path.clone(), element.span()));
                index_value(element, &path, spans);
            }
            spans.push((path.to_owned(), value.span()));
        }
        _ => spans.push((path.to_owned(), value.span())),
    }
}

/// Whether text is short and plain enough to be a mistyped name rather than a misplaced secret.
fn is_name(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-' || b == b'#';
    !text.is_empty() && text.len() <= 40 && text.bytes().all(plain)
}

/// Removes quoted values from a message, except short names: a user may have pasted a secret where
/// a number belongs.
fn without_values(message: &str) -> String {
    let mut message = message.lines().collect::<Vec<_>>().join(" ");
    if let (Some(start), Some(end)) = (message.find("string \""), message.rfind("\", expected"))
        && start + "string".len() < end
    {
        message.replace_range(start + "string".len()..=end, "");
    }
    for kind in ["unknown field `", "unknown variant `"] {
        if let Some(rest) = message.strip_prefix(kind)
            && let Some((name, expected)) = rest.rsplit_once("`, expected")
        {
            // The expected names are in backquotes, too.
            let name = name.split('`').next().unwrap_or_default();
            if !is_name(name) {
                message = format!("{} …, expected{expected}", kind.trim_end_matches(" `"));
            }
        }
    }
    message
}

fn remedy_for(problem: &str, key: &str) -> String {
    let secret = ["url", "password", "database_url"];
    if key.starts_with("store.") && secret.iter().any(|name| key.ends_with(name)) {
        return format!(
            "secrets do not belong in this file: set {} instead",
            super::DATABASE_URL_VARIABLE
        );
    }
    let remedy = if problem.starts_with("missing field") {
        "add it; taskpass.example.toml describes every key"
    } else if problem.starts_with("unknown field") {
        "remove it or correct its spelling"
    } else if problem.starts_with("unknown variant") {
        "use one of the expected values"
    } else if problem.starts_with("invalid type") || problem.starts_with("invalid value") {
        "give a value of the expected type"
    } else if problem.starts_with("duplicate") {
        "keep one of the two"
    } else {
        "correct it; taskpass.example.toml shows the form"
    };
    remedy.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_quotes_no_value() {
        let cases = [
            (
                "invalid type: string \"hunter2\", expected u64",
                "invalid type: string, expected u64",
            ),
            (
                "invalid value: string \"a\", expected b\", expected c",
                "invalid value: string, expected c",
            ),
            (
                "unknown variant `sqlit`, expected `sqlite` or `postgres`",
                "unknown variant `sqlit`, expected `sqlite` or `postgres`",
            ),
            (
                "unknown variant `postgres://u:p@h/d`, expected `sqlite`",
                "unknown variant …, expected `sqlite`",
            ),
            (
                "unknown field `isuer`, expected one of `issuer`, `listen`",
                "unknown field `isuer`, expected one of `issuer`, `listen`",
            ),
        ];
        for (message, wanted) in cases {
            assert_eq!(without_values(message), wanted);
        }
    }
}
