//! `taskpass policy unused`: what policies grant and nobody used, and what would have sufficed.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::super::Failure;
use super::super::client::Connection;
use super::super::output::{self, printable};
use super::Source;
use super::replay::{NO_RECORD, feed_file, feed_pages};
use super::source::{Pages, check_leaf, since};
use crate::clock::{Clock as _, SystemClock, Timestamp};
use crate::domain::generation::Generation;
use crate::domain::record::Record;
use crate::policy::record::{RecordError, Recorded};
use crate::policy::unused::{NOT_SEEN, PolicyUse, Proposal, Read, UnusedOn, Usage, proposed};

/// How `unused` is called.
#[derive(Args, Debug)]
pub(super) struct UnusedArgs {
    #[command(flatten)]
    source: Source,
    /// How far back: 30m, 24h, 30d; or a time as RFC 3339 has it
    #[arg(long, value_name = "AGE", value_parser = since, required_unless_present = "decisions")]
    since: Option<Timestamp>,
    /// Read decisions from this file, as `policy decisions` writes it, instead of from a broker
    #[arg(long, value_name = "FILE")]
    decisions: Option<PathBuf>,
    /// Write the narrower policies into this new directory, to be reviewed
    #[arg(long, value_name = "DIR")]
    proposal: Option<PathBuf>,
    #[command(flatten)]
    connection: Connection,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

impl UnusedArgs {
    pub(super) fn run(self) -> Result<(), Failure> {
        let built = self
            .source
            .build()?
            .map_err(|problems| Failure::Usage(super::list(&problems)))?;
        let mut usage = Usage::new(&built.compiled);
        let mut failed = Ok(());
        let mut take = |lines: String| {
            failed = self.lines(&mut usage, &lines);
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
        let mut uses = usage.report(&built.generation, SystemClock.now());
        let narrower = proposed(&built.generation, &built.compiled, &mut uses);
        if let Some(directory) = &self.proposal {
            write(directory, &narrower)?;
        }
        let shown = Shown {
            read: usage.read(),
            uses: &uses,
        };
        if self.json {
            output::json(&json!({
                "generation": built.compiled.digest(),
                "since": self.since,
                "read": shown.read,
                "policies": uses,
                "not_seen": NOT_SEEN,
            }))?;
        } else {
            output::line(shown.to_string())?;
        }
        if uses.iter().any(PolicyUse::is_wide) {
            return Err(Failure::Told);
        }
        Ok(())
    }

    fn lines(&self, usage: &mut Usage<'_>, lines: &str) -> Result<(), Failure> {
        for line in lines.lines().filter(|line| !line.trim().is_empty()) {
            let record: Record = serde_json::from_str(line)
                .map_err(|error| Failure::Usage(format!("{NO_RECORD}: {error}")))?;
            check_leaf(&record)?;
            match Recorded::open(&record) {
                Ok(recorded) if self.since.is_some_and(|since| recorded.at() < since) => {}
                Ok(recorded) => usage.add(&recorded).map_err(Failure::unestablished)?,
                Err(RecordError::Pruned(_)) => usage.note_pruned(),
                Err(error) => {
                    let text = format!("FAILED: index {}: {error}", record.index);
                    return Err(Failure::Refused(text));
                }
            }
        }
        Ok(())
    }
}

/// Into a directory that is not there yet, so that nothing is written over.
fn write(directory: &Path, generation: &Generation) -> Result<(), Failure> {
    let unwritten = |error: std::io::Error| {
        Failure::Usage(format!(
            "{} cannot be written: {error}",
            directory.display()
        ))
    };
    fs::create_dir(directory).map_err(unwritten)?;
    for file in &generation.policies {
        fs::write(directory.join(&file.name), &file.text).map_err(unwritten)?;
    }
    Ok(())
}

struct Shown<'a> {
    read: Read,
    uses: &'a [PolicyUse],
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let read = &self.read;
        write!(f, "{} permits on record", read.permits)?;
        if let (Some(first), Some(last)) = (read.first, read.last) {
            write!(f, ", of decisions from {first} to {last}")?;
        }
        if read.no_longer_permitted > 0 {
            let count = read.no_longer_permitted;
            write!(
                f,
                "\nleft out: {count} that these policies do not permit any more"
            )?;
        }
        if read.pruned > 0 {
            write!(
                f,
                "\nleft out: {} pruned. What they used is not known: something told as unused may \
                 have been used by them",
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
        f.write_str("\n\nNot seen by the broker, and so not counted:")?;
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
        write!(f, "\n  its scope is left alone: {why}")?;
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
