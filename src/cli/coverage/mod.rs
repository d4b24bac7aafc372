//! `taskpass ledger coverage`: joins external actions to the decisions in a log, and prints which
//! of them had one. The judgement is [`crate::audit::coverage`]'s.
//!
//! The exit code is 0 if every action is proven, 1 if not, and 3 if the facts do not suffice.
//! Arguments or files that cannot be used are [`CliError::Usage`]. `print` makes the table.

mod print;

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};

use super::CliError;
use super::output::{self, Form};
use crate::audit::coverage::{
    self, Allowed, Conclusion, Decisions, Filter, MAX_MAPPING_BYTES, Mapping, RecordFormat, Report,
    Run, Settings,
};
use crate::client::read_file;
use crate::clock::{Clock as _, SystemClock, Timestamp};
use crate::files::NewFile;
use crate::merkle::VerifierKey;

/// The longest file of keys that is read, in bytes.
const MAX_KEY_FILE_BYTES: u64 = 64 * 1024;

/// The largest permitted difference of clocks, in seconds.
const MAX_SKEW_SECONDS: u64 = 300;

/// How often progress is printed.
const PROGRESS: Duration = Duration::from_millis(500);

/// The formats of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Files of AWS CloudTrail records
    Cloudtrail,
    /// Events of OCSF in JSON
    Ocsf,
    /// JSON lines that --mapping explains
    Jsonl,
}

/// The key by which actions are grouped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum GroupBy {
    /// By the principal that acted
    Principal,
    /// By the resource acted on
    Resource,
    /// By the name of the action
    Action,
}

impl From<GroupBy> for coverage::GroupBy {
    fn from(by: GroupBy) -> Self {
        match by {
            GroupBy::Principal => Self::Principal,
            GroupBy::Resource => Self::Resource,
            GroupBy::Action => Self::Action,
        }
    }
}

/// Join external actions to the log's decisions: proven, outside the grant, after the end, unproven
#[derive(Args, Debug)]
#[command(
    after_help = "Exits with 0 only if every action was judged and proven, 1 if one was not proven, 3 if that could not be established. Nothing is fetched. See docs/reference/coverage.md.\n\nExamples:\n  \
    taskpass ledger coverage --log log.jsonl --key-file log.vkey --records trail/*.json.gz\n  \
    taskpass ledger coverage --log log.jsonl --key-file log.vkey --records access.jsonl --mapping access.toml --svg coverage.svg\n  \
    zcat archive/*.gz | taskpass ledger coverage --log log.jsonl --key-file log.vkey --format ocsf --records - --json"
)]
pub(super) struct Coverage {
    /// The log, written by `taskpass ledger export`
    #[arg(long, value_name = "FILE")]
    log: PathBuf,
    /// A verifier key of the log; may be given several times
    #[arg(long = "key", value_name = "VKEY", value_parser = vkey, required_unless_present = "key_file")]
    keys: Vec<VerifierKey>,
    /// A file with verifier keys, one a line
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// The records, compressed by gzip or not; `-` is standard input
    #[arg(long, value_name = "FILE", required = true, num_args = 1..)]
    records: Vec<PathBuf>,
    /// The format of the records [default: jsonl with --mapping, cloudtrail otherwise]
    #[arg(long)]
    format: Option<Format>,
    /// The locations of the records' fields: JSON pointers in a TOML file
    #[arg(long, value_name = "FILE")]
    mapping: Option<PathBuf>,
    /// The permitted difference of clocks, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(..=MAX_SKEW_SECONDS))]
    skew: u64,
    /// The time of the log's export, in RFC 3339. Without it, actions later than the log's last
    /// entry are not judged, because they may have been ended since
    #[arg(long, value_name = "TIME", value_parser = moment)]
    as_of: Option<Timestamp>,
    /// Read only records that match: principal=, action= or resource= with a pattern, or several of
    /// them separated by commas, which must all match
    #[arg(long, value_name = "FILTER")]
    only: Vec<Filter>,
    /// Set aside records that match, and count them
    #[arg(long, value_name = "FILTER")]
    except: Vec<Filter>,
    /// The percentage of actions that may be unproven
    #[arg(long, value_name = "PERCENT", default_value = "0", value_parser = percent)]
    allow_unproven: f64,
    /// The percentage of actions that need not be judged
    #[arg(long, value_name = "PERCENT", default_value = "0", value_parser = percent)]
    allow_unjudged: f64,
    /// The key by which actions are grouped
    #[arg(long, value_enum, default_value_t = GroupBy::Principal)]
    by: GroupBy,
    /// The number of examples to show for each class
    #[arg(long, value_name = "COUNT", default_value_t = 5, value_parser = clap::value_parser!(u16).range(..=1_000))]
    examples: u16,
    /// The memory that the log's permits may take, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 2_048, value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    index_mib: u32,
    /// Write a picture of the result to this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

fn vkey(text: &str) -> Result<VerifierKey, String> {
    text.trim()
        .parse()
        .map_err(|error: crate::merkle::KeyError| error.to_string())
}

fn moment(text: &str) -> Result<Timestamp, String> {
    coverage::time(text).map_err(|_| "it is not RFC 3339 with an offset".into())
}

fn percent(text: &str) -> Result<f64, String> {
    let text = text.strip_suffix('%').unwrap_or(text);
    let number: f64 = text.parse().map_err(|_| "it is not a number".to_owned())?;
    if (0.0..=100.0).contains(&number) {
        return Ok(number);
    }
    Err("it is not between 0 and 100".into())
}

impl Coverage {
    /// Reads the log and the records, judges, and prints the result.
    pub(super) fn run(self, form: Form) -> Result<(), CliError> {
        let keys = self.keys()?;
        let format = self.record_format()?;
        self.check_inputs()?;
        let mut progress = Progress::new();
        let log = coverage::open(&self.log).map_err(|error| unreadable(&self.log, &error))?;
        let most = self.index_mib as usize * 1024 * 1024;
        let decisions = Decisions::read(log, &keys, most, |at, of| {
            progress.tell(|| format!("the log: {at} of {of} entries"));
        })?;
        let settings = self.settings();
        let mut run = Run::new(&decisions, &settings, format);
        for path in &self.records {
            run.read(path, |count| progress.tell(|| format!("{count} records")));
        }
        progress.end();
        let report = run.finish();
        if let Some(path) = &self.svg {
            write_picture(path, &report)?;
        }
        output::even_unread(if form.is_json() {
            output::json(&report.to_json())
        } else {
            print::print(&report)
        })?;
        match report.verdict() {
            Conclusion::Covered => Ok(()),
            // The report was already printed.
            Conclusion::NotCovered => Err(CliError::AlreadyReported),
            Conclusion::NotEstablished => Err(CliError::ChildExited(3)),
        }
    }

    fn settings(&self) -> Settings {
        Settings {
            skew_seconds: self.skew,
            as_of: self.as_of,
            only: self.only.clone(),
            except: self.except.clone(),
            by: self.by.into(),
            examples: usize::from(self.examples),
            allowed: Allowed {
                unproven: self.allow_unproven,
                unjudged: self.allow_unjudged,
            },
        }
    }

    fn record_format(&self) -> Result<RecordFormat, CliError> {
        let mapping = self.mapping.as_deref().map(read_mapping).transpose()?;
        let format = self.format.unwrap_or(match mapping {
            Some(_) => Format::Jsonl,
            None => Format::Cloudtrail,
        });
        match (format, mapping) {
            (Format::Cloudtrail, None) => Ok(RecordFormat::Cloudtrail),
            (Format::Cloudtrail, Some(_)) => Err(CliError::Usage(
                "records of CloudTrail need no mapping: remove --mapping".into(),
            )),
            (Format::Ocsf, mapping) => Ok(RecordFormat::Ocsf(mapping.unwrap_or_default())),
            (Format::Jsonl, Some(mapping)) => {
                mapping.check()?;
                Ok(RecordFormat::Mapped(mapping))
            }
            (Format::Jsonl, None) => Err(CliError::Usage(
                "JSON lines need --mapping, which gives the locations of their fields".into(),
            )),
        }
    }

    /// Checks the arguments before a long reading begins.
    fn check_inputs(&self) -> Result<(), CliError> {
        let latest = SystemClock.now().plus_seconds(MAX_SKEW_SECONDS);
        if self.as_of.is_some_and(|as_of| as_of > latest) {
            return Err(CliError::Usage(
                "--as-of is in the future: it must be the time of the log's export".into(),
            ));
        }
        let all = || self.records.iter().chain([&self.log]);
        if all()
            .filter(|path| path.as_path() == Path::new("-"))
            .count()
            > 1
        {
            return Err(CliError::Usage(
                "standard input can be read only once".into(),
            ));
        }
        for path in all().filter(|path| path.as_path() != Path::new("-")) {
            let found = std::fs::metadata(path).map_err(|error| unreadable(path, &error))?;
            if found.is_dir() {
                let path = path.display();
                return Err(CliError::Usage(format!(
                    "{path} is a directory, not a file"
                )));
            }
        }
        self.check_picture()
    }

    /// Refuses to overwrite an input with the picture.
    fn check_picture(&self) -> Result<(), CliError> {
        let picture = self
            .svg
            .as_deref()
            .and_then(|path| path.canonicalize().ok());
        let Some(picture) = picture else {
            return Ok(());
        };
        let more = [&self.key_file, &self.mapping].into_iter().flatten();
        let mut read = self.records.iter().chain([&self.log]).chain(more);
        if read.any(|path| path.canonicalize().is_ok_and(|path| path == picture)) {
            return Err(CliError::Usage(
                "--svg names an input file, which would be overwritten".into(),
            ));
        }
        Ok(())
    }

    fn keys(&self) -> Result<Vec<VerifierKey>, CliError> {
        let mut keys = self.keys.clone();
        if let Some(file) = &self.key_file {
            let wrong = |why: &str| CliError::Usage(format!("{}: {why}", file.display()));
            let text = String::from_utf8(read_file(file, MAX_KEY_FILE_BYTES)?)
                .map_err(|_| wrong("the file is not UTF-8"))?;
            for line in text.lines().filter(|line| !line.trim().is_empty()) {
                keys.push(vkey(line).map_err(|why| wrong(&why))?);
            }
        }
        if keys.is_empty() {
            return Err(CliError::Usage("no verifier key was given".into()));
        }
        Ok(keys)
    }
}

fn unreadable(path: &Path, error: &std::io::Error) -> CliError {
    CliError::Unavailable(format!("cannot read {}: {error}", path.display()))
}

fn read_mapping(path: &Path) -> Result<Mapping, CliError> {
    let content = read_file(path, MAX_MAPPING_BYTES)?;
    Ok(Mapping::parse(&path.display().to_string(), &content)?)
}

fn write_picture(path: &Path, report: &Report<'_>) -> Result<(), CliError> {
    let picture = coverage::draw(report).map_err(CliError::unavailable)?;
    let written = NewFile::begin(path).and_then(|mut new| {
        new.write_all(picture.as_bytes())?;
        new.keep()
    });
    written
        .map_err(|error| CliError::Unavailable(format!("cannot write {}: {error}", path.display())))
}

/// Progress, for a user at a terminal.
struct Progress {
    shown: bool,
    last: Option<Instant>,
}

impl Progress {
    fn new() -> Self {
        Self {
            shown: false,
            last: std::io::stderr().is_terminal().then(Instant::now),
        }
    }

    fn tell(&mut self, text: impl FnOnce() -> String) {
        let Some(last) = self.last.filter(|last| last.elapsed() >= PROGRESS) else {
            return;
        };
        self.last = Some(last + last.elapsed());
        self.shown = true;
        // A failure to print progress is ignored.
        drop(write!(std::io::stderr().lock(), "\r\u{1b}[K{}", text()));
    }

    fn end(&mut self) {
        if self.shown {
            drop(write!(std::io::stderr().lock(), "\r\u{1b}[K"));
        }
    }
}
