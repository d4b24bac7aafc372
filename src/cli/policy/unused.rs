//! `taskpass policy unused`: lists grants that no request used, and proposes narrower policies.
//!
//! A grant that no request used is exit code 1. If the records do not suffice, the error is
//! [`CliError::Unavailable`] and no proposal is written. `policy::unused` compares, and
//! `super::lines` and `super::source` read.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::super::CliError;
use super::super::connection::Connection;
use super::super::output::{self, Form, printable};
use super::Source;
use super::lines::{self, Whole};
use super::replay::{feed_file, feed_pages, is_before};
use super::source::{Pages, check_leaf, since};
use crate::clock::{Clock as _, SystemClock, Timestamp};
use crate::domain::generation::{Generation, PolicyFile};
use crate::domain::record::Record;
use crate::policy;
use crate::policy::record::{RecordError, Recorded};
use crate::policy::unused::{NOT_SEEN, PolicyUse, Proposal, Read, UnusedOn, Usage, proposed};

/// The arguments of `unused`.
#[derive(Args, Debug)]
pub(super) struct UnusedArgs {
    #[command(flatten)]
    source: Source,
    /// The start of the period: 30m, 24h or 30d ago, or a time in RFC 3339
    #[arg(long, value_name = "AGE", value_parser = since, required_unless_present = "decisions")]
    since: Option<Timestamp>,
    /// Read decisions from this file, written by `policy decisions`, instead of from a broker
    #[arg(long, value_name = "FILE")]
    decisions: Option<PathBuf>,
    /// Write the narrower policies to this new directory, for review
    #[arg(long, value_name = "DIR")]
    proposal: Option<PathBuf>,
    #[command(flatten)]
    connection: Connection,
}

impl UnusedArgs {
    pub(super) fn run(self, form: Form) -> Result<(), CliError> {
        let built = self.source.build(None);
        let built = built.map_err(|unbuilt| unbuilt.or_unfit(CliError::Usage))?;
        let mut usage = Usage::new(&built.compiled, SystemClock.now());
        let mut failed = Ok(());
        let mut spans = Vec::new();
        let mut take = |lines: String| {
            let batch = spans.len() as u64;
            match lines::read(batch, &lines, |record| self.record(&mut usage, record)) {
                Ok(span) => spans.push(span),
                Err(failure) => failed = Err(failure),
            }
            failed.is_ok()
        };
        let fed = if let Some(path) = &self.decisions {
            feed_file(path, &mut take)
        } else {
            let pages = Pages::new(self.connection.client()?, self.since);
            let runtime = tokio::runtime::Handle::current();
            tokio::task::block_in_place(|| feed_pages(pages, &runtime, &mut take))
        };
        failed?;
        fed?;
        let whole = Whole::of(spans)?;
        let cut_short = self.decisions.as_ref();
        let cut_short = cut_short.and_then(|_| whole.cut_short(self.since));
        if cut_short.is_some() {
            usage.note_cut_short();
        }
        let known = known(usage.read(), cut_short);
        let mut uses = usage.report(&built.generation);
        let narrower = proposed(&built.generation, &built.compiled, &mut uses);
        if let (Some(directory), Ok(())) = (&self.proposal, &known) {
            write(directory, &narrower, &tests_beside(&built.directory)?)?;
        }
        let shown = UsageText {
            read: usage.read(),
            uses: &uses,
        };
        let shown = if form.is_json() {
            output::json(&json!({
                "generation": built.compiled.digest(),
                "since": self.since,
                "read": shown.read,
                "policies": uses,
                "not_seen": NOT_SEEN,
            }))
        } else {
            output::line(shown.to_string())
        };
        output::even_unread(shown)?;
        known?;
        if uses.iter().any(PolicyUse::is_wide) {
            return Err(CliError::AlreadyReported);
        }
        Ok(())
    }

    fn record(&self, usage: &mut Usage<'_>, record: &Record) -> Result<(), CliError> {
        check_leaf(record)?;
        match Recorded::open(record) {
            Ok(recorded) if self.since.is_some_and(|since| recorded.at() < since) => Ok(()),
            Ok(recorded) => usage.add(&recorded).map_err(CliError::unavailable),
            Err(RecordError::Pruned(_)) => {
                if !is_before(record, self.since) {
                    usage.note_pruned();
                }
                Ok(())
            }
            Err(error) => {
                let text = format!("FAILED: index {}: {error}", record.index);
                Err(CliError::Refused(text))
            }
        }
    }
}

/// Fails if the records do not show all use: then unused grants cannot be determined.
fn known(read: &Read, cut_short: Option<String>) -> Result<(), CliError> {
    let why = if read.told() == 0 {
        "there is no recorded permit that the current policies give, so use cannot be determined"
            .to_owned()
    } else if let Some(why) = cut_short {
        why
    } else if !read.complete() {
        "the use of some decisions is not known, so nothing is proposed".to_owned()
    } else {
        return Ok(());
    };
    Err(CliError::Unavailable(why))
}

/// The tests next to the policies, which must hold for narrower policies, too.
fn tests_beside(directory: &Path) -> Result<Vec<PolicyFile>, CliError> {
    if !directory.join("tests").is_dir() {
        return Ok(Vec::new());
    }
    policy::read_tests(directory).map_err(|problem| CliError::Usage(problem.to_string()))
}

/// Writes to a directory that must not exist yet, so that no file is overwritten.
fn write(directory: &Path, generation: &Generation, tests: &[PolicyFile]) -> Result<(), CliError> {
    let unwritten = |error: std::io::Error| {
        CliError::Usage(format!(
            "{} cannot be written: {error}",
            directory.display()
        ))
    };
    fs::create_dir(directory).map_err(unwritten)?;
    for file in &generation.policies {
        write_new(&directory.join(&file.name), &file.text).map_err(unwritten)?;
    }
    if !tests.is_empty() {
        let test_directory = directory.join("tests");
        fs::create_dir(&test_directory).map_err(unwritten)?;
        for file in tests {
            write_new(&test_directory.join(&file.name), &file.text).map_err(unwritten)?;
        }
    }
    Ok(())
}

/// Creates a file that must not exist yet, even as a link.
fn write_new(path: &Path, text: &str) -> std::io::Result<()> {
    fs::File::create_new(path)?.write_all(text.as_bytes())
}

struct UsageText<'a> {
    read: &'a Read,
    uses: &'a [PolicyUse],
}

impl fmt::Display for UsageText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let read = self.read;
        write!(f, "{} recorded permits", read.permits)?;
        if let (Some(first), Some(last)) = (read.first, read.last) {
            write!(f, ", of decisions from {first} to {last}")?;
        }
        if read.no_longer_permitted > 0 {
            let count = read.no_longer_permitted;
            write!(
                f,
                "\nleft out: {count} that these policies no longer permit"
            )?;
        }
        if read.pruned > 0 {
            write!(
                f,
                "\nleft out: {} pruned ones. Their use is not known: they may have used grants that \
                 are listed as unused",
                read.pruned
            )?;
        }
        write!(
            f,
            "\n\n  {:<28} {:>8}  {:<20}  unused",
            "policy", "used", "last used"
        )?;
        for own in self.uses {
            let last = own.last_used.map(|at| at.floor_to_second().to_string());
            write!(
                f,
                "\n  {:<28} {:>8}  {:<20}  {}",
                own.policy,
                own.used,
                last.as_deref().unwrap_or("never"),
                printable(&summary(own))
            )?;
        }
        for own in self.uses.iter().filter(|own| own.is_wide()) {
            write!(
                f,
                "\n\n{}:{} `{}`",
                printable(&own.file),
                own.line,
                own.policy
            )?;
            details(f, own)?;
        }
        f.write_str("\n\nNot visible to the broker, and so not counted:")?;
        for what in NOT_SEEN {
            write!(f, "\n- {what}")?;
        }
        Ok(())
    }
}

fn summary(own: &PolicyUse) -> String {
    if own.used == 0 {
        return "everything".to_owned();
    }
    let actions: usize = own.unused.iter().map(|on| on.actions.len()).sum();
    let locations: BTreeSet<(&str, &String)> = own
        .unused
        .iter()
        .flat_map(|on| on.locations.iter().map(|at| (on.resource.as_str(), at)))
        .collect();
    let mut parts = Vec::new();
    for (count, what) in [(actions, "action"), (locations.len(), "location")] {
        if count > 0 {
            parts.push(format!(
                "{count} {what}{}",
                if count == 1 { "" } else { "s" }
            ));
        }
    }
    if let Some((longest, most)) = own.longest_ttl_seconds.zip(own.max_ttl_seconds)
        && longest < most
    {
        parts.push(format!("life beyond {longest} of {most} s"));
    }
    if parts.is_empty() {
        return "nothing".to_owned();
    }
    parts.join(", ")
}

fn details(f: &mut fmt::Formatter<'_>, own: &PolicyUse) -> fmt::Result {
    if own.used > 0 {
        write!(f, ", used by {} workload(s)", own.workloads)?;
    }
    for on in &own.unused {
        let UnusedOn {
            resource,
            entirely,
            actions,
            locations,
        } = on;
        let of = if *entirely { "nothing of" } else { "never on" };
        let all = [actions.join(", "), locations.join(", ")];
        let all: Vec<String> = all.into_iter().filter(|text| !text.is_empty()).collect();
        write!(
            f,
            "\n  {of} {}: {}",
            printable(resource),
            printable(&all.join("; "))
        )?;
    }
    if let Some(why) = own.kept {
        write!(f, "\n  its scope is unchanged: {why}")?;
    }
    match &own.proposal {
        Some(Proposal::Remove) => f.write_str("\n  would have sufficed: nothing; remove it"),
        Some(Proposal::Narrow { text }) => {
            f.write_str("\n  would have sufficed:")?;
            for line in text.lines() {
                write!(f, "\n    {}", printable(line))?;
            }
            Ok(())
        }
        None => Ok(()),
    }
}
