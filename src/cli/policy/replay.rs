//! `taskpass policy replay`: what would have changed. And `policy decisions`, which writes what it
//! reads into a file.
//!
//! Records come in pages from the broker, or from a file with one a line, and are evaluated on all
//! cores: one thread reads, the others evaluate, and between them is a bounded queue, so that a log
//! of any length needs constant memory.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;

use super::super::Failure;
use super::super::client::Connection;
use super::super::output::{self, printable};
use super::super::serve::ConfigFile;
use super::source::{Pages, check_leaf, since};
use super::{Source, list};
use crate::clock::Timestamp;
use crate::domain::record::Record;
use crate::policy::CompiledGeneration;
use crate::policy::record::{RecordError, Recorded};
use crate::policy::replay::{Kind, Replay, Tally};

/// Lines that go to a thread at once.
const BATCH_LINES: usize = 512;
/// The longest line of a file: a leaf and an input in base64, and room.
const MAX_LINE_BYTES: u64 = 1024 * 1024;
/// How often it is told how far it is.
const PROGRESS: Duration = Duration::from_secs(2);
/// What is said of a line that is none.
pub(super) const NO_RECORD: &str = "a line is not the record of a decision";
/// Groups that are shown; `--json` has all.
const SHOWN_GROUPS: usize = 30;

/// How `replay` is called.
#[derive(Args, Debug)]
pub(super) struct ReplayArgs {
    /// The directory of the policies to try [default: the configuration's policy.directory]
    #[arg(long, value_name = "DIR")]
    candidate: Option<PathBuf>,
    #[command(flatten)]
    file: ConfigFile,
    /// Take attestors, resources and task types of the development mode, and no configuration
    #[arg(long, conflicts_with = "config")]
    dev: bool,
    /// How far back: 30m, 24h, 7d; or a time as RFC 3339 has it
    #[arg(long, value_name = "AGE", value_parser = since, required_unless_present = "decisions")]
    since: Option<Timestamp>,
    /// Read decisions from this file, as `policy decisions` writes it, instead of from a broker
    #[arg(long, value_name = "FILE")]
    decisions: Option<PathBuf>,
    #[command(flatten)]
    connection: Connection,
    /// Evaluate as if every policy that merely observes were enforced already
    #[arg(long)]
    as_if_enforced: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// How `decisions` is called.
#[derive(Args, Debug)]
pub(super) struct DecisionsArgs {
    /// How far back: 30m, 24h, 7d; or a time as RFC 3339 has it
    #[arg(long, value_name = "AGE", value_parser = since)]
    since: Option<Timestamp>,
    #[command(flatten)]
    connection: Connection,
}

impl DecisionsArgs {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let mut pages = Pages::new(self.connection.client()?, self.since);
        while let Some(page) = pages.next().await? {
            output::raw(page.as_bytes())?;
        }
        Ok(())
    }
}

impl ReplayArgs {
    pub(super) fn run(self) -> Result<(), Failure> {
        let source = Source {
            directory: self.candidate.clone(),
            file: self.file.clone(),
            dev: self.dev,
        };
        let built = source
            .build()?
            .map_err(|problems| Failure::Usage(list(&problems)))?;
        let candidate = Candidate {
            compiled: &built.compiled,
            since: self.since,
            as_if_enforced: self.as_if_enforced,
        };
        let began = Instant::now();
        let tally = if let Some(path) = &self.decisions {
            evaluate(&candidate, |give| feed_file(path, give))?
        } else {
            let pages = Pages::new(self.connection.client()?, self.since);
            let runtime = tokio::runtime::Handle::current();
            // This thread waits for pages, and the runtime's others fetch them.
            tokio::task::block_in_place(|| {
                let feed = |give: Give<'_>| feed_pages(pages, &runtime, give);
                evaluate(&candidate, feed)
            })?
        };
        let took = began.elapsed();
        if self.json {
            output::json(&json!({
                "candidate": built.compiled.digest(),
                "since": self.since,
                "as_if_enforced": self.as_if_enforced,
                "evaluated": tally.evaluated,
                "unchanged": tally.unchanged,
                "newly_denied": tally.of_kind(Kind::NewlyDenied),
                "newly_permitted": tally.of_kind(Kind::NewlyPermitted),
                "other_ttl": tally.of_kind(Kind::OtherTtl),
                "other_refusal": tally.of_kind(Kind::OtherRefusal),
                "refused_before_policy": tally.never_asked,
                "pruned": tally.pruned,
                "seconds": took.as_secs_f64(),
                "groups": tally.groups(),
            }))?;
        } else {
            output::line(Shown(&tally).to_string())?;
        }
        if tally.changed() {
            return Err(Failure::Told);
        }
        if tally.evaluated == 0 {
            return Err(Failure::Unestablished(
                "no decision could be evaluated, which shows nothing".into(),
            ));
        }
        Ok(())
    }
}

/// Takes whole lines to whoever evaluates them. `false` means that nobody wants more.
pub(super) type Give<'a> = &'a mut dyn FnMut(String) -> bool;

pub(super) fn feed_pages(
    mut pages: Pages,
    runtime: &tokio::runtime::Handle,
    give: Give<'_>,
) -> Result<(), Failure> {
    while let Some(page) = runtime.block_on(pages.next())? {
        if !give(page) {
            break;
        }
    }
    Ok(())
}

pub(super) fn feed_file(path: &Path, give: Give<'_>) -> Result<(), Failure> {
    let place = path.display();
    let unreadable =
        |error: io::Error| Failure::Unestablished(format!("{place} cannot be read: {error}"));
    let mut reader: Box<dyn BufRead> = if path == Path::new("-") {
        Box::new(BufReader::new(io::stdin()))
    } else {
        let file = File::open(path);
        let file = file.map_err(|e| Failure::Usage(format!("{place} cannot be read: {e}")))?;
        Box::new(BufReader::with_capacity(1 << 20, file))
    };
    let mut batch = String::new();
    let mut lines = 0;
    loop {
        let before = batch.len();
        let mut limited = reader.by_ref().take(MAX_LINE_BYTES + 1);
        let read = limited.read_line(&mut batch).map_err(unreadable)?;
        if (batch.len() - before) as u64 > MAX_LINE_BYTES {
            return Err(Failure::Usage(format!(
                "{place} has a line of more than {MAX_LINE_BYTES} bytes"
            )));
        }
        lines += 1;
        if read == 0 || lines == BATCH_LINES {
            lines = 0;
            if !give(std::mem::take(&mut batch)) || read == 0 {
                return Ok(());
            }
        }
    }
}

/// What evaluates, and what it evaluates.
struct Candidate<'a> {
    compiled: &'a CompiledGeneration,
    since: Option<Timestamp>,
    as_if_enforced: bool,
}

/// What the threads share.
struct Work<'a> {
    candidate: &'a Candidate<'a>,
    queue: Mutex<Receiver<String>>,
    done: AtomicU64,
    stopped: AtomicBool,
}

impl Work<'_> {
    /// Evaluates until there is nothing more. Whoever fails goes on taking, so that nobody waits
    /// for it with a full queue.
    fn run(&self) -> Result<Tally, Failure> {
        let mut replay = Replay::new(self.candidate.compiled, self.candidate.as_if_enforced);
        let mut failed = None;
        loop {
            let taken = {
                let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
                queue.recv()
            };
            let Ok(lines) = taken else {
                break;
            };
            if self.stopped.load(Ordering::Relaxed) {
                continue;
            }
            if let Err(failure) = self.lines(&mut replay, &lines) {
                self.stopped.store(true, Ordering::Relaxed);
                failed = Some(failure);
            }
        }
        match failed {
            Some(failure) => Err(failure),
            None => Ok(replay.finish()),
        }
    }

    fn lines(&self, replay: &mut Replay<'_>, lines: &str) -> Result<(), Failure> {
        for line in lines.lines().filter(|line| !line.trim().is_empty()) {
            let record: Record = serde_json::from_str(line)
                .map_err(|error| Failure::Usage(format!("{NO_RECORD}: {error}")))?;
            self.done.fetch_add(1, Ordering::Relaxed);
            check_leaf(&record)?;
            let recorded = match Recorded::open(&record) {
                Ok(recorded) => recorded,
                Err(RecordError::Pruned(_)) => {
                    replay.note_pruned();
                    continue;
                }
                Err(error) => {
                    return Err(Failure::Refused(format!(
                        "FAILED: index {}: {error}",
                        record.index
                    )));
                }
            };
            if self
                .candidate
                .since
                .is_some_and(|since| recorded.at() < since)
            {
                continue;
            }
            replay.add(&recorded).map_err(Failure::unestablished)?;
        }
        Ok(())
    }
}

fn evaluate(
    candidate: &Candidate<'_>,
    feed: impl FnOnce(Give<'_>) -> Result<(), Failure>,
) -> Result<Tally, Failure> {
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let (sender, queue) = sync_channel(threads * 2);
    let work = Work {
        candidate,
        queue: Mutex::new(queue),
        done: AtomicU64::new(0),
        stopped: AtomicBool::new(false),
    };
    let mut tally = Tally::default();
    let mut failed = Ok(());
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(|| work.run())).collect();
        let mut progress = Progress::new();
        let read = feed(&mut |lines| {
            progress.tell(work.done.load(Ordering::Relaxed));
            !work.stopped.load(Ordering::Relaxed) && sender.send(lines).is_ok()
        });
        drop(sender);
        for worker in workers {
            match worker.join() {
                Ok(Ok(part)) => tally = std::mem::take(&mut tally).merged(part),
                Ok(Err(failure)) => failed = Err(failure),
                Err(_) => failed = Err(Failure::Unestablished("a thread failed".into())),
            }
        }
        // What was wrong with a record says more than that the reading then stopped.
        if failed.is_ok() {
            failed = read;
        }
    });
    failed.map(|()| tally)
}

/// Tells now and then how far it is.
struct Progress {
    began: Instant,
    told: Instant,
}

impl Progress {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            began: now,
            told: now,
        }
    }

    fn tell(&mut self, done: u64) {
        if self.told.elapsed() < PROGRESS {
            return;
        }
        self.told = Instant::now();
        let seconds = self.began.elapsed().as_secs().max(1);
        // Nobody has to read it.
        drop(output::note(format!(
            "{done} decisions, {} a second",
            done / seconds
        )));
    }
}

struct Shown<'a>(&'a Tally);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tally = self.0;
        write!(
            f,
            "{} decisions evaluated, {} come out as they did",
            tally.evaluated, tally.unchanged
        )?;
        for (count, what) in [
            (tally.never_asked, "refused before policy was asked"),
            (tally.pruned, "pruned"),
        ] {
            if count > 0 {
                write!(f, "\nleft out: {count} {what}")?;
            }
        }
        let groups = tally.groups();
        for kind in Kind::ALL {
            let of_kind = groups.iter().filter(|group| group.key.kind == kind);
            let count = tally.of_kind(kind);
            if count == 0 {
                continue;
            }
            write!(f, "\n\n{}: {count}", kind.as_text())?;
            for group in of_kind.clone().take(SHOWN_GROUPS) {
                let policies = match group.key.policies.join(", ") {
                    none if none.is_empty() => "no policy".to_owned(),
                    some => some,
                };
                let who = format!("{} on {}", group.key.workload, group.key.resource);
                write!(
                    f,
                    "\n  {:>8}  {} by {policies}",
                    group.count,
                    printable(&who)
                )?;
                let example = &group.example;
                write!(f, "\n            {} -> {}", example.was, example.would_be)?;
                if let Some(decision) = example.decision {
                    write!(f, ", as {decision} at {}", example.at)?;
                }
            }
            let more = of_kind.count().saturating_sub(SHOWN_GROUPS);
            if more > 0 {
                write!(f, "\n  and {more} groups more: --json has them")?;
            }
        }
        if groups.is_empty() && tally.evaluated > 0 {
            f.write_str("\nnothing would have changed")?;
        }
        Ok(())
    }
}
