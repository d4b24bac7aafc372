//! Policy files: reading a directory, parsing, names and annotations.
//!
//! [`read_directory`] and [`read_tests`] read files, and [`parse`] turns their text into
//! [`NamedPolicy`] values. Cedar names the policies of a text by their position, so an added policy
//! would change the names of others. Here each policy is renamed to its `@id`, and a policy without
//! one is refused. Unknown annotations are refused too: the typing error `@max_tll("60")` would
//! otherwise silently remove a limit.
//!
//! Every problem is returned with its file and line, not only the first. A directory without a
//! policy file is a problem, because every request would be refused. `super::shape` checks each
//! text before Cedar reads it, and `super::balance` flattens the chains. Types and meaning are not
//! checked here: `super::generation` validates the policies by the schema and by `super::lint`.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use cedar_policy::ffi::DetailedError;
use cedar_policy::{Effect, Policy, PolicyId, PolicySet};

use super::problem::PolicyProblem;
use super::{balance, shape};
use crate::clock::Timestamp;
use crate::domain::generation::PolicyFile;
use crate::domain::limits::{MAX_EVALUATION_DEPTH, MAX_PROBLEMS, MAX_TTL_SECONDS};
use crate::domain::name::is_name;

/// Obligations of a permit: conditions that bind when it is satisfied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Obligations {
    /// `@max_ttl`: the longest life of a credential, in seconds; `None` sets no limit.
    pub(super) max_ttl_seconds: Option<u64>,
    /// `@approval`: the name of the role whose member must approve first, or `required`. `None` if
    /// no approval is needed.
    pub(super) approval: Option<String>,
}

/// One policy with its name, its obligations and its source location.
#[derive(Clone, Debug)]
pub(super) struct NamedPolicy {
    pub(super) id: String,
    /// Index of the file in the bundle.
    pub(super) file: usize,
    /// Byte offset of its start in the file.
    pub(super) offset: usize,
    /// Length of its text in bytes.
    pub(super) length: usize,
    /// The policy under its `@id`, with its chains balanced.
    pub(super) policy: Policy,
    pub(super) obligations: Obligations,
    /// `@mode("observe")`: the instant of enforcement. Before it, the policy only observes. `None`
    /// enforces the policy from its activation on.
    pub(super) observed_until: Option<Timestamp>,
}

/// The policies of all files.
#[derive(Debug)]
pub(super) struct Parsed {
    /// Every policy, in the order of the files.
    pub(super) named: Vec<NamedPolicy>,
    /// The same policies as Cedar parsed them, with their positions in the text. They can be so
    /// deep that they must be used and dropped on the stack for loading only.
    pub(super) written: Vec<Policy>,
}

/// Reads the policies of a directory: the files whose names end in `.cedar`, sorted by name. Does
/// not enter subdirectories.
pub fn read_directory(directory: &Path) -> Result<Vec<PolicyFile>, PolicyProblem> {
    let unreadable = "name a directory that holds the policies";
    let none = "without policies every request is refused; write at least one";
    read_files(directory, "cedar", unreadable, none)
}

/// Reads the tests in the `tests` directory of a policy directory.
pub fn read_tests(directory: &Path) -> Result<Vec<PolicyFile>, PolicyProblem> {
    let tests = directory.join("tests");
    if !tests.exists() {
        return Err(PolicyProblem::of_file(
            tests.display().to_string(),
            "there are no tests of these policies: the directory does not exist",
            WRITE_TESTS,
        ));
    }
    let unreadable = "make it a readable directory that holds the tests";
    read_files(&tests, "toml", unreadable, WRITE_TESTS)
}

const WRITE_TESTS: &str =
    "write tests into it, in files that end in .toml, as in policies/tests/orders.toml";

fn read_files(
    directory: &Path,
    extension: &str,
    readable: &str,
    at_least_one: &str,
) -> Result<Vec<PolicyFile>, PolicyProblem> {
    let place = directory.display().to_string();
    let unreadable = |error: std::io::Error| {
        PolicyProblem::of_file(place.clone(), format!("cannot be read: {error}"), readable)
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.is_dir() || path.extension().is_none_or(|own| own != extension) {
            continue;
        }
        let name = path
            .file_name()
            .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let text = std::fs::read_to_string(&path).map_err(|error| {
            PolicyProblem::of_file(
                name.clone(),
                format!("cannot be read: {error}"),
                "make it readable UTF-8 text, or move it away",
            )
        })?;
        files.push(PolicyFile { name, text });
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    if files.is_empty() {
        return Err(PolicyProblem::of_file(
            place,
            format!("holds no file that ends in .{extension}"),
            at_least_one,
        ));
    }
    Ok(files)
}

/// Parses every file and names every policy. Reports all problems, not only the first. Call it on
/// the stack for loading ([`super::stack`]).
pub(super) fn parse(files: &[PolicyFile]) -> Result<Parsed, Vec<PolicyProblem>> {
    let mut problems = Vec::new();
    let mut found: Vec<NamedPolicy> = Vec::new();
    let mut written: Vec<Policy> = Vec::new();
    let mut first_place: BTreeMap<String, String> = BTreeMap::new();
    for (index, file) in files.iter().enumerate() {
        if problems.len() >= MAX_PROBLEMS {
            break;
        }
        let too_deep = shape::check(file);
        if !too_deep.is_empty() {
            problems.extend(too_deep);
            continue;
        }
        let set = match file.text.parse::<PolicySet>() {
            Ok(set) => set,
            Err(error) => {
                let error = DetailedError::from(&error);
                problems.extend(PolicyProblem::from_cedar(file, 0, &error));
                continue;
            }
        };
        for template in set.templates().take(MAX_PROBLEMS) {
            let text = template.to_string();
            problems.push(PolicyProblem::at(
                file,
                file.text.find(&text).unwrap_or(0),
                "templates are not supported",
                "write the policy out, without ?principal and ?resource",
            ));
        }
        for (policy, offset, length) in in_order(&set, &file.text) {
            let named = name(policy).and_then(|named| Ok((named, balanced(policy)?)));
            match named {
                Err(_) if problems.len() >= MAX_PROBLEMS => break,
                Err(problem) => {
                    problems.push(PolicyProblem::at(file, offset, problem.0, problem.1));
                }
                Ok(((id, obligations, observed_until), balanced)) => {
                    let first = first_place.insert(id.clone(), file.name.clone());
                    if let Some(first) = first.filter(|_| problems.len() < MAX_PROBLEMS) {
                        problems.push(PolicyProblem::at(
                            file,
                            offset,
                            format!("@id(\"{id}\") stands twice, first in {first}"),
                            "give each policy an id of its own",
                        ));
                    }
                    written.push(policy.new_id(PolicyId::new(&id)));
                    found.push(NamedPolicy {
                        policy: balanced.new_id(PolicyId::new(&id)),
                        id,
                        file: index,
                        offset,
                        length,
                        obligations,
                        observed_until,
                    });
                }
            }
        }
    }
    if problems.is_empty() {
        return Ok(Parsed {
            named: found,
            written,
        });
    }
    Err(problems)
}

/// Balances the chains of the policy. Refuses a policy that is too deep even then.
fn balanced(policy: &Policy) -> Result<Policy, Complaint> {
    let (balanced, depth) = balance::balanced(policy)
        .map_err(|error| (format!("a policy cannot be read: {error}"), ""))?;
    if depth > MAX_EVALUATION_DEPTH {
        return Err((
            format!(
                "the conditions of a policy are {depth} levels deep; at most {MAX_EVALUATION_DEPTH}"
            ),
            "remove redundant brackets, write `if` as && and ||, or split the policy",
        ));
    }
    Ok(balanced)
}

/// The policies of a text from top to bottom, each with its byte offset and its length in bytes.
fn in_order<'a>(set: &'a PolicySet, text: &str) -> Vec<(&'a Policy, usize, usize)> {
    let position = |policy: &Policy| {
        let id = policy.id().to_string();
        id.trim_start_matches("policy")
            .parse::<usize>()
            .unwrap_or(usize::MAX)
    };
    let mut policies: Vec<&Policy> = set.policies().collect();
    policies.sort_by_key(|policy| position(policy));
    let comments = comments(text);
    let in_comment = |at: usize| {
        let before = comments.partition_point(|comment| comment.start <= at);
        let last = before.checked_sub(1).and_then(|last| comments.get(last));
        last.is_some_and(|comment| comment.contains(&at))
    };
    let mut from = 0;
    policies
        .into_iter()
        .map(|policy| {
            // Cedar prints a policy as it was written, so its text can be searched for. A
            // commented-out policy can have the same text.
            let own = policy.to_string();
            let hits = text.get(from..).unwrap_or_default().match_indices(&own);
            let mut hits = hits.map(|(at, _)| from + at);
            let offset = hits.find(|at| !in_comment(*at)).unwrap_or(from);
            from = (offset + own.len()).min(text.len());
            (policy, offset, own.len())
        })
        .collect()
}

/// The ranges of the comments of a text: from `//` outside of strings to the end of the line.
fn comments(text: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut in_string = false;
    let mut bytes = text.bytes().enumerate().peekable();
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'"' => in_string = !in_string,
            b'\\' if in_string => drop(bytes.next()),
            b'/' if !in_string && bytes.peek().is_some_and(|(_, next)| *next == b'/') => {
                let end = bytes.find(|(_, byte)| *byte == b'\n');
                found.push(at..end.map_or(text.len(), |(end, _)| end));
            }
            _ => {}
        }
    }
    found
}

type Complaint = (String, &'static str);

/// Reads a policy's name, obligations and enforcement date from its annotations.
fn name(policy: &Policy) -> Result<(String, Obligations, Option<Timestamp>), Complaint> {
    let id = policy.annotation("id").ok_or_else(|| {
        (
            "a policy has no @id".to_owned(),
            "write @id(\"a-name\") before it; decisions and the ledger name policies by their @id",
        )
    })?;
    if !is_name(id) {
        return Err((
            format!("@id(\"{}\") is not a name", id.escape_debug()),
            "an id is 1 to 64 of a-z, 0-9, `-` and `_`",
        ));
    }
    if policy
        .annotation("description")
        .is_none_or(|text| text.trim().is_empty())
    {
        return Err((
            format!("policy `{id}` has no @description"),
            "describe its purpose in a sentence: @description(\"…\")",
        ));
    }
    let mut obligations = Obligations::default();
    for (key, value) in policy.annotations() {
        match key {
            "id" | "description" | "mode" | "enforce_after" => {}
            "max_ttl" => obligations.max_ttl_seconds = Some(max_ttl(id, value)?),
            "approval" => obligations.approval = Some(approval(id, value)?),
            _ => {
                return Err((
                    format!("policy `{id}`: unknown annotation @{key}"),
                    "known are @id, @description, @max_ttl, @approval, @mode and @enforce_after",
                ));
            }
        }
    }
    if policy.effect() == Effect::Forbid && obligations != Obligations::default() {
        return Err((
            format!("policy `{id}` is a forbid with an obligation"),
            "obligations bind permits only: put them on the permit",
        ));
    }
    Ok((id.to_owned(), obligations, observed_until(id, policy)?))
}

/// The end, in UTC, of the day that `@enforce_after` names. Observing requires both annotations:
/// without a date the policy would observe for ever.
fn observed_until(id: &str, policy: &Policy) -> Result<Option<Timestamp>, Complaint> {
    const DAY_SECONDS: u64 = 86_400;
    let (mode, after) = (
        policy.annotation("mode"),
        policy.annotation("enforce_after"),
    );
    match (mode, after) {
        (None, None) => return Ok(None),
        (Some("observe"), Some(_)) => {}
        (Some("observe"), None) => {
            return Err((
                format!("policy `{id}`: @mode(\"observe\") without @enforce_after"),
                "name the last day of observing: @enforce_after(\"2026-12-31\")",
            ));
        }
        (Some(mode), _) => {
            return Err((
                format!(
                    "policy `{id}`: there is no @mode(\"{}\")",
                    mode.escape_debug()
                ),
                "write @mode(\"observe\") with @enforce_after, or remove @mode to enforce the \
                    policy",
            ));
        }
        (None, Some(_)) => {
            return Err((
                format!("policy `{id}`: @enforce_after without @mode(\"observe\")"),
                "remove it: a policy is enforced from its activation on",
            ));
        }
    }
    let after = after.unwrap_or_default();
    let is_date = after.len() == 10
        && after.bytes().enumerate().all(|(at, b)| match at {
            4 | 7 => b == b'-',
            _ => b.is_ascii_digit(),
        });
    let day: Option<Timestamp> = format!("{after}T00:00:00Z").parse().ok();
    day.filter(|_| is_date)
        .map(|day| Some(day.plus_seconds(DAY_SECONDS)))
        .ok_or_else(|| {
            (
                format!(
                    "policy `{id}`: @enforce_after(\"{}\") is not a date",
                    after.escape_debug()
                ),
                "write the last day of observing, in UTC: @enforce_after(\"2026-12-31\")",
            )
        })
}

fn max_ttl(id: &str, value: &str) -> Result<u64, Complaint> {
    // Digits only: `parse` alone would accept `+60`.
    let digits = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
    value
        .parse()
        .ok()
        .filter(|seconds| digits && (1..=MAX_TTL_SECONDS).contains(seconds))
        .ok_or_else(|| {
            (
                format!(
                    "policy `{id}`: @max_ttl(\"{}\") is not a number of seconds from 1 to {MAX_TTL_SECONDS}",
                    value.escape_debug()
                ),
                "write whole seconds: @max_ttl(\"600\")",
            )
        })
}

/// Words by which an author probably means that no approval is needed. `@approval` would read them
/// as the name of a role.
const NO_APPROVAL: [&str; 10] = [
    "0",
    "auto",
    "automatic",
    "disabled",
    "false",
    "never",
    "no",
    "none",
    "not-required",
    "off",
];

fn approval(id: &str, value: &str) -> Result<String, Complaint> {
    if !is_name(value) {
        return Err((
            format!(
                "policy `{id}`: @approval(\"{}\") is not a word",
                value.escape_debug()
            ),
            "write @approval(\"required\"), or the name of the role that approves",
        ));
    }
    if NO_APPROVAL.contains(&value) {
        return Err((
            format!("policy `{id}`: @approval(\"{value}\") would ask for approval by that name"),
            "remove @approval where none is needed; it takes \"required\", or the name of the role \
             that approves",
        ));
    }
    Ok(value.to_owned())
}

#[cfg(test)]
mod tests;
