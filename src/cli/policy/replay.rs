//! `taskpass policy replay`: shows which recorded decisions would change. `taskpass policy
//! decisions` writes its input to a file.
//!
//! Records come in pages from the broker, or from a file with one record a line. One thread reads,
//! and the others evaluate, on all cores. The queue of batches between them is bounded, and so are
//! the lines and bytes of a batch: a log of any length needs constant memory, except for a few
//! numbers for each batch.
//!
//! A changed decision is exit code 1, as is a record that does not match the log. If nothing could
//! be evaluated, or a record is pruned, the error is [`CliError::Unavailable`]. `crate::policy`
//! evaluates, `super::lines` and `super::source` read.

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

use super::super::CliError;
use super::super::connection::Connection;
use super::super::output::{self, Form, printable};
use super::super::serve::ConfigFile;
use super::Source;
use super::lines::{self, LastLine, Span, Whole};
use super::source::{Pages, check_leaf, since, unavailable};
use crate::clock::{Clock as _, SystemClock, Timestamp};
use crate::domain::record::Record;
use crate::policy::CompiledGeneration;
use crate::policy::record::{RecordError, Recorded, decided_at};
use crate::policy::replay::{DifferenceKind, NOT_COMPARED, Replay, Tally};

/// The most lines in a batch.
const BATCH_LINES: usize = 512;
/// The most bytes in a batch, not counting its last line.
const BATCH_BYTES: usize = 4 * 1024 * 1024;
/// The longest line of a file, in bytes: enough for a leaf and an input in base64.
const MAX_LINE_BYTES: u64 = 1024 * 1024;
/// How often progress is printed.
const PROGRESS: Duration = Duration::from_secs(2);
/// The most groups that are printed; `--json` prints all.
const SHOWN_GROUPS: usize = 30;

/// The arguments of `replay`.
#[derive(Args, Debug)]
pub(super) struct ReplayArgs {
    /// The directory of the policies to try [default: the configuration's policy.directory]
    #[arg(long, value_name = "DIR")]
    candidate: Option<PathBuf>,
    #[command(flatten)]
    file: ConfigFile,
    /// Use the attestors, resources and task types of the development mode, and no configuration
    #[arg(long, conflicts_with = "config")]
    dev: bool,
    /// The start of the period: 30m, 24h or 7d ago, or a time in RFC 3339
    #[arg(long, value_name = "AGE", value_parser = since, required_unless_present = "decisions")]
    since: Option<Timestamp>,
    /// Read decisions from this file, written by `policy decisions`, instead of from a broker
    #[arg(long, value_name = "FILE")]
    decisions: Option<PathBuf>,
    #[command(flatten)]
    connection: Connection,
    /// Evaluate as if policies that only observe were already enforced
    #[arg(long)]
    as_if_enforced: bool,
}

/// The arguments of `decisions`.
#[derive(Args, Debug)]
pub(super) struct DecisionsArgs {
    /// The start of the period: 30m, 24h or 7d ago, or a time in RFC 3339
    #[arg(long, value_name = "AGE", value_parser = since)]
    since: Option<Timestamp>,
    #[command(flatten)]
    connection: Connection,
}

impl DecisionsArgs {
    pub(super) async fn run(self) -> Result<(), CliError> {
        let mut pages = Pages::new(self.connection.client()?, self.since);
        let mut spans = Vec::new();
        while let Some(page) = pages.next().await? {
            spans.push(lines::read(spans.len() as u64, &page, |_| Ok(()))?);
            output::raw(page.as_bytes())?;
        }
        output::json_line(&LastLine::new(&Whole::of(spans)?, self.since))
    }
}

impl ReplayArgs {
    pub(super) fn run(self, form: Form) -> Result<(), CliError> {
        let source = Source {
            directory: self.candidate.clone(),
            file: self.file.clone(),
            dev: self.dev,
        };
        let built = source.build(None);
        let built = built.map_err(|unbuilt| unbuilt.or_unfit(CliError::Usage))?;
        let candidate = Candidate {
            compiled: &built.compiled,
            since: self.since,
            at: if self.as_if_enforced {
                Timestamp::MAX
            } else {
                SystemClock.now()
            },
        };
        let began = Instant::now();
        let (tally, whole) = if let Some(path) = &self.decisions {
            evaluate(&candidate, |sink| feed_file(path, sink))?
        } else {
            let pages = Pages::new(self.connection.client()?, self.since);
            let runtime = tokio::runtime::Handle::current();
            // This thread waits for pages, which the runtime's other threads fetch.
            tokio::task::block_in_place(|| {
                let feed = |sink: LineSink<'_>| feed_pages(pages, &runtime, sink);
                evaluate(&candidate, feed)
            })?
        };
        let took = began.elapsed();
        let cut_short = self.decisions.as_ref();
        let cut_short = cut_short.and_then(|_| whole.cut_short(self.since));
        let shown = if form.is_json() {
            output::json(&json!({
                "candidate": built.compiled.digest(),
                "since": self.since,
                "as_if_enforced": self.as_if_enforced,
                "first": tally.first,
                "last": tally.last,
                "evaluated": tally.evaluated,
                "unchanged": tally.unchanged,
                "newly_denied": tally.of_kind(DifferenceKind::NewlyDenied),
                "newly_permitted": tally.of_kind(DifferenceKind::NewlyPermitted),
                "other_ttl": tally.of_kind(DifferenceKind::OtherTtl),
                "other_refusal": tally.of_kind(DifferenceKind::OtherRefusal),
                "refused_before_policy": tally.never_asked,
                "pruned": tally.pruned,
                "cannot_be_told": tally.unknown,
                "cut_short": cut_short,
                "not_compared": NOT_COMPARED,
                "seconds": took.as_secs_f64(),
                "groups": tally.groups(),
            }))
        } else {
            output::line(TallyText(&tally).to_string())
        };
        output::even_unread(shown)?;
        verdict(&tally, cut_short)
    }
}

/// The result that determines the exit code. A change is certain even if records are missing; the
/// absence of changes is not.
fn verdict(tally: &Tally, cut_short: Option<String>) -> Result<(), CliError> {
    if tally.changed() {
        return Err(CliError::AlreadyReported);
    }
    if tally.evaluated == 0 {
        return Err(CliError::Unavailable(
            "no decision could be evaluated, so nothing was established".into(),
        ));
    }
    if !tally.complete() {
        return Err(CliError::Unavailable(
            "for some decisions it cannot be established whether they would change".into(),
        ));
    }
    cut_short.map_or(Ok(()), |why| Err(CliError::Unavailable(why)))
}

/// Passes whole lines to the evaluation. Returns false when no more lines are needed.
pub(super) type LineSink<'a> = &'a mut dyn FnMut(String) -> bool;

pub(super) fn feed_pages(
    mut pages: Pages,
    runtime: &tokio::runtime::Handle,
    sink: LineSink<'_>,
) -> Result<(), CliError> {
    while let Some(page) = runtime.block_on(pages.next()).map_err(unavailable)? {
        if !sink(page) {
            break;
        }
    }
    Ok(())
}

pub(super) fn feed_file(path: &Path, sink: LineSink<'_>) -> Result<(), CliError> {
    let name = path.display();
    let unreadable =
        |error: io::Error| CliError::Unavailable(format!("{name} cannot be read: {error}"));
    let mut reader: Box<dyn BufRead> = if path == Path::new("-") {
        Box::new(BufReader::new(io::stdin()))
    } else {
        let file = File::open(path);
        let file = file.map_err(|e| CliError::Usage(format!("{name} cannot be read: {e}")))?;
        Box::new(BufReader::with_capacity(1 << 20, file))
    };
    let mut batch = String::new();
    let mut lines = 0;
    loop {
        let before = batch.len();
        let mut limited = reader.by_ref().take(MAX_LINE_BYTES + 1);
        let read = limited.read_line(&mut batch).map_err(unreadable)?;
        if (batch.len() - before) as u64 > MAX_LINE_BYTES {
            return Err(CliError::Usage(format!(
                "{name} has a line of more than {MAX_LINE_BYTES} bytes"
            )));
        }
        lines += 1;
        if read == 0 || lines == BATCH_LINES || batch.len() >= BATCH_BYTES {
            lines = 0;
            if !sink(std::mem::take(&mut batch)) || read == 0 {
                return Ok(());
            }
        }
    }
}

/// The policies to evaluate, and the period.
struct Candidate<'a> {
    compiled: &'a CompiledGeneration,
    since: Option<Timestamp>,
    /// The time that determines which policies are enforced.
    at: Timestamp,
}

/// The state that the threads share.
struct Work<'a> {
    candidate: &'a Candidate<'a>,
    queue: Mutex<Receiver<(u64, String)>>,
    done: AtomicU64,
    stopped: AtomicBool,
}

impl Work<'_> {
    /// Evaluates until the queue is closed. After a failure it continues to receive, so that the
    /// reader does not wait on a full queue.
    fn run(&self) -> Result<(Tally, Vec<Span>), CliError> {
        let mut replay = Replay::new(self.candidate.compiled, self.candidate.at);
        let mut spans = Vec::new();
        let mut failed = None;
        loop {
            let taken = {
                let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
                queue.recv()
            };
            let Ok((batch, lines)) = taken else {
                break;
            };
            if self.stopped.load(Ordering::Relaxed) {
                continue;
            }
            match lines::read(batch, &lines, |record| self.record(&mut replay, record)) {
                Ok(span) => spans.push(span),
                Err(failure) => {
                    self.stopped.store(true, Ordering::Relaxed);
                    failed = Some(failure);
                }
            }
        }
        match failed {
            Some(failure) => Err(failure),
            None => Ok((replay.finish(), spans)),
        }
    }

    fn record(&self, replay: &mut Replay<'_>, record: &Record) -> Result<(), CliError> {
        self.done.fetch_add(1, Ordering::Relaxed);
        check_leaf(record)?;
        let recorded = match Recorded::open(record) {
            Ok(recorded) => recorded,
            Err(RecordError::Pruned(_)) => {
                if !is_before(record, self.candidate.since) {
                    replay.note_pruned();
                }
                return Ok(());
            }
            Err(error) => {
                return Err(CliError::Refused(format!(
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
            return Ok(());
        }
        replay.add(&recorded).map_err(CliError::unavailable)
    }
}

/// Whether the remaining data of a record shows that it is older than `since`.
pub(super) fn is_before(record: &Record, since: Option<Timestamp>) -> bool {
    let at = since.and_then(|_| decided_at(record));
    at.zip(since).is_some_and(|(at, since)| at < since)
}

fn evaluate(
    candidate: &Candidate<'_>,
    feed: impl FnOnce(LineSink<'_>) -> Result<(), CliError>,
) -> Result<(Tally, Whole), CliError> {
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let (sender, queue) = sync_channel(threads * 2);
    let work = Work {
        candidate,
        queue: Mutex::new(queue),
        done: AtomicU64::new(0),
        stopped: AtomicBool::new(false),
    };
    let mut tally = Tally::default();
    let mut spans = Vec::new();
    let mut failed = Ok(());
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(|| work.run())).collect();
        let mut progress = Progress::new(Instant::now());
        let mut batch = 0;
        let read = feed(&mut |lines| {
            let done = work.done.load(Ordering::Relaxed);
            if let Some(text) = progress.due(Instant::now(), done) {
                // Progress notes are optional: failures to write them are ignored.
                output::note(text);
            }
            batch += 1;
            !work.stopped.load(Ordering::Relaxed) && sender.send((batch, lines)).is_ok()
        });
        drop(sender);
        for worker in workers {
            match worker.join() {
                Ok(Ok((part, read))) => {
                    tally = std::mem::take(&mut tally).merged(part);
                    spans.extend(read);
                }
                Ok(Err(failure)) => failed = Err(failure),
                Err(_) => failed = Err(CliError::Unavailable("a thread failed".into())),
            }
        }
        // An error of a record is more informative than the end of reading that it caused.
        if failed.is_ok() {
            failed = read;
        }
    });
    failed?;
    Ok((tally, Whole::of(spans)?))
}

/// Prints progress from time to time.
struct Progress {
    began: Instant,
    told: Instant,
}

impl Progress {
    fn new(now: Instant) -> Self {
        Self {
            began: now,
            told: now,
        }
    }

    /// The progress note if one is due now.
    fn due(&mut self, now: Instant, done: u64) -> Option<String> {
        if now.saturating_duration_since(self.told) < PROGRESS {
            return None;
        }
        self.told = now;
        let seconds = now.saturating_duration_since(self.began).as_secs().max(1);
        Some(format!("{done} decisions, {} a second", done / seconds))
    }
}

struct TallyText<'a>(&'a Tally);

impl fmt::Display for TallyText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tally = self.0;
        write!(
            f,
            "{} decisions evaluated, {} unchanged",
            tally.evaluated, tally.unchanged
        )?;
        if let (Some(first), Some(last)) = (tally.first, tally.last) {
            write!(
                f,
                "\nread: from index {} of {} to index {} of {}",
                first.index, first.at, last.index, last.at
            )?;
        }
        for (count, reason) in [
            (tally.never_asked, "refused before policy was asked"),
            (tally.pruned, "pruned"),
        ] {
            if count > 0 {
                write!(f, "\nleft out: {count} {reason}")?;
            }
        }
        for (why, count) in &tally.unknown {
            write!(
                f,
                "\ncannot be established: {count}, since {}",
                why.as_text()
            )?;
        }
        let groups = tally.groups();
        for kind in DifferenceKind::ALL {
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
                write!(f, "\n  and {more} more groups: --json lists them")?;
            }
        }
        if groups.is_empty() && tally.evaluated > 0 {
            f.write_str(if tally.complete() {
                "\nno decision would have changed"
            } else {
                "\nno decision that could be evaluated would have changed"
            })?;
        }
        f.write_str("\n\nOn no record, and so not compared:")?;
        for what in NOT_COMPARED {
            write!(f, "\n- {what}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_now_and_then_how_far_it_is() {
        let began = Instant::now();
        let mut progress = Progress::new(began);
        let at = |seconds| began + Duration::from_secs(seconds);
        assert_eq!(progress.due(at(1), 500), None);
        assert_eq!(
            progress.due(at(2), 30_000).unwrap(),
            "30000 decisions, 15000 a second"
        );
        // Not again at once; the rate counts from the beginning.
        assert_eq!(progress.due(at(3), 31_000), None);
        assert_eq!(
            progress.due(at(10), 40_000).unwrap(),
            "40000 decisions, 4000 a second"
        );
    }

    #[test]
    fn a_batch_is_bounded_in_lines_and_in_bytes() {
        let batches = |line: &str, count: usize| {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), format!("{line}\n").repeat(count)).unwrap();
            let mut given = Vec::new();
            feed_file(file.path(), &mut |batch| {
                given.push(batch.len());
                true
            })
            .unwrap();
            given
        };
        let short = batches("x", BATCH_LINES + 1);
        assert_eq!(short, [2 * BATCH_LINES, 2]);
        let long = batches(&"x".repeat((1 << 20) - 1), 5);
        assert_eq!(long.len(), 2);
        assert_eq!(long[0], BATCH_BYTES);
    }

    #[test]
    fn to_find_no_change_in_a_part_shows_nothing_of_the_whole() {
        let tally = |evaluated, pruned| {
            let mut tally = Tally::default();
            (tally.evaluated, tally.unchanged) = (evaluated, evaluated);
            tally.pruned = pruned;
            tally
        };
        assert!(verdict(&tally(3, 0), None).is_ok());
        for (tally, cut_short) in [
            (tally(0, 0), None),
            (tally(3, 1), None),
            (tally(3, 0), Some("cut".to_owned())),
        ] {
            let refused = verdict(&tally, cut_short).unwrap_err();
            assert!(matches!(refused, CliError::Unavailable(_)), "{refused}");
        }
    }
}
