//! `taskpass ledger watch`: monitors a log of another operator.
//!
//! It keeps the last checkpoint that it verified, compares every later one with it, and raises an
//! alarm when the log contradicts itself. It trusts the log's keys and its own file only. A server
//! can keep it from reading the log, which it reports, but can neither make it accept a fork nor
//! accuse the log of one. A server that keeps serving an older or another log is reported as that.

mod evidence;
mod judge;
mod log;
mod state;

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use url::Url;

use self::judge::{Contradiction, Seen, Verdict};
use self::log::{Log, Trouble};
use self::state::{Kept, State};
use crate::cli::client::{Authorities, read_secret};
use crate::cli::output::{self, Form};
use crate::cli::{Failure, seconds_of};
use crate::clock::{Clock as _, SystemClock, Timestamp};
use crate::merkle::{Note, Trust, VerifierKey, WitnessKey};

/// The longest time for one check. A server that answers slowly cannot extend it.
const ROUND_TIMEOUT: Duration = Duration::from_mins(1);
/// Consecutive checks without a cosigned checkpoint after which the watch fails. There are several
/// because a witness may sign a moment after the log.
const UNWITNESSED_LOOKS: u32 = 3;
/// Failed checks are followed by pauses that double up to this length.
const LONGEST_PAUSE: Duration = Duration::from_mins(10);

#[derive(Args, Debug)]
pub(super) struct Watch {
    /// The log's URL, with `checkpoint` and `tile/…` below it; for a broker its own URL with
    /// `/ledger`
    #[arg(long, value_name = "URL", required_unless_present = "check")]
    url: Option<Url>,
    /// A verifier key of the log; may be given several times, for example after a rotation
    #[arg(long = "key", value_name = "VKEY", value_parser = super::vkey, required = true)]
    keys: Vec<VerifierKey>,
    /// The file that keeps the last verified checkpoint; evidence is written next to it [default:
    /// in memory]
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// Check once and exit
    #[arg(long)]
    once: bool,
    /// The time between two checks: 30s, 5m, 1h
    #[arg(long, value_name = "TIME", value_parser = span, default_value = "60s")]
    every: Duration,
    /// Warn when there was no larger or newer checkpoint for this time: 1h, 2d
    #[arg(long, value_name = "TIME", value_parser = span)]
    stale: Option<Duration>,
    /// The key of a witness; at least one of the given witnesses must have cosigned each
    /// checkpoint. A checkpoint without cosignature fails `--once`, and three in a row end the
    /// watch with exit code 3. May be given several times
    #[arg(long = "witness", value_name = "VKEY", value_parser = super::witness)]
    witnesses: Vec<WitnessKey>,
    /// The file with a token, for a log that is not public
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    #[command(flatten)]
    authorities: Authorities,
    /// Check a file of evidence instead, offline: exits with 0 if signatures and hashes alone prove
    /// that the log contradicted itself
    #[arg(long, value_name = "FILE", conflicts_with_all = ["url", "state", "once", "stale", "witnesses", "token_file"])]
    check: Option<PathBuf>,
}

fn span(text: &str) -> Result<Duration, String> {
    match seconds_of(text) {
        Some(seconds @ 1..) => Ok(Duration::from_secs(seconds)),
        _ => Err("write a time, 30s, 5m, 1h or 2d".into()),
    }
}

impl Watch {
    pub(super) async fn run(self, form: Form) -> Result<(), Failure> {
        if let Some(file) = &self.check {
            return evidence::check(file, &self.keys, form);
        }
        let monitor = self.monitor(form)?;
        let listen = |kind| signal(kind).map_err(Failure::unestablished);
        let mut terminate = listen(SignalKind::terminate())?;
        let mut interrupt = listen(SignalKind::interrupt())?;
        let name = tokio::select! {
            ended = monitor.run() => return ended,
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        if self.once {
            return Err(Failure::Unestablished(format!(
                "ended by {name} before the log was checked"
            )));
        }
        Ok(())
    }

    fn monitor(&self, form: Form) -> Result<Monitor, Failure> {
        let (Some(url), Some(first)) = (&self.url, self.keys.first()) else {
            return Err(Failure::Usage(
                "`--url` and at least one `--key` are required".into(),
            ));
        };
        let origin = first.name().to_owned();
        if self.keys.iter().any(|key| key.name() != origin) {
            return Err(Failure::Usage(
                "the keys belong to more than one log; watch each log separately".into(),
            ));
        }
        let token = self.token_file.as_deref().map(read_secret).transpose()?;
        let state = State(self.state.clone());
        Ok(Monitor {
            log: Log::new(url, token.as_ref(), &self.authorities)?,
            trust: Trust {
                keys: self.keys.clone(),
                witnesses: self.witnesses.clone(),
            },
            kept: state.load(&self.keys)?,
            unkept: false,
            unwitnessed: 0,
            open: Vec::new(),
            state,
            origin,
            once: self.once,
            every: self.every,
            stale: self.stale,
            form,
        })
    }
}

struct Monitor {
    log: Log,
    trust: Trust,
    origin: String,
    state: State,
    kept: Option<Kept>,
    /// Whether the kept checkpoint is not yet on disk.
    unkept: bool,
    /// Consecutive checks whose checkpoint no given witness had cosigned.
    unwitnessed: u32,
    /// Checkpoints that the log signed and that were not yet compared with a later one.
    open: Vec<Seen>,
    once: bool,
    every: Duration,
    stale: Option<Duration>,
    form: Form,
}

/// The result of one check, for printing.
struct Round {
    verdict: &'static str,
    /// The result as a sentence.
    detail: String,
    /// Findings that are not as required but contradict nothing.
    warnings: Vec<String>,
    /// Whether the log could be read.
    read: bool,
}

impl Monitor {
    async fn run(mut self) -> Result<(), Failure> {
        let mut failures = 0;
        loop {
            let look = judge::look(
                &self.log,
                &self.trust,
                &self.origin,
                self.kept.as_ref(),
                &mut self.open,
            );
            let verdict = tokio::time::timeout(ROUND_TIMEOUT, look).await;
            let verdict = verdict.unwrap_or_else(|_| {
                let why = format!("{} did not complete the answers in time", self.log.base());
                Verdict::Unknown(Trouble::Unreachable(why))
            });
            let now = SystemClock.now();
            let round = self.judge(verdict, now)?;
            let told = self.tell(&round, now).map_err(|failure| match failure {
                // For other commands a closed output is a quiet end. A monitor must be heard.
                Failure::ReaderGone => Failure::unestablished(failure),
                other => other,
            });
            if self.once {
                return round.result().and(told);
            }
            told?;
            if self.unwitnessed >= UNWITNESSED_LOOKS {
                return Err(Failure::Unestablished(format!(
                    "UNWITNESSED: in the last {UNWITNESSED_LOOKS} checks none of the {} given \
                     witnesses had cosigned the checkpoint",
                    self.trust.witnesses.len()
                )));
            }
            failures = if round.read { 0 } else { failures + 1 };
            tokio::time::sleep(self.pause(failures)).await;
        }
    }

    /// The pause after this many consecutive failed checks.
    fn pause(&self, failures: u32) -> Duration {
        let longer = self
            .every
            .saturating_mul(1 << failures.saturating_sub(1).min(10));
        longer.min(LONGEST_PAUSE.max(self.every))
    }

    /// Keeps a verified checkpoint, and describes the result. A contradiction is an error, which
    /// ends the watch.
    fn judge(&mut self, verdict: Verdict, now: Timestamp) -> Result<Round, Failure> {
        let mut warnings = Vec::new();
        let (verdict, detail, read) = match verdict {
            Verdict::Contradicted(found) => {
                self.keep(&mut warnings);
                return Err(self.shout(&found, now));
            }
            Verdict::Unknown(Trouble::Unreachable(why)) => ("unreachable", why, false),
            Verdict::Unknown(Trouble::Unreadable(why)) => ("unreadable", why, false),
            Verdict::First(seen) => {
                let detail = format!("first contact: {}", said(&seen));
                output::note(
                    "taskpass: FIRST CONTACT: no earlier checkpoint of this log is known, so this one is accepted as it is; later ones are compared with it",
                );
                if self.state.0.is_none() {
                    output::note(
                        "taskpass: without --state the checkpoint is lost when this process ends",
                    );
                }
                self.settle(seen, true, now, &mut warnings);
                ("first-contact", detail, true)
            }
            Verdict::Same(seen) => {
                let detail = format!("consistent: {}, as before", said(&seen));
                let newer = seen.witnessed_at > self.witnessed_at();
                self.settle(seen, newer, now, &mut warnings);
                ("unchanged", detail, true)
            }
            Verdict::Grown(seen) => {
                let before = self.kept.as_ref().map_or(0, |kept| kept.head.size);
                let detail = format!(
                    "consistent: {}, which begin with the {before} known before",
                    said(&seen)
                );
                self.settle(seen, true, now, &mut warnings);
                ("grown", detail, true)
            }
        };
        self.keep(&mut warnings);
        if let (Some(most), Some(kept)) = (self.stale, &self.kept) {
            let quiet = kept.since.seconds_until(now);
            if quiet >= most.as_secs() {
                warnings.push(format!(
                    "STALE: no larger or newer checkpoint for {quiet} seconds"
                ));
            }
        }
        Ok(Round {
            verdict,
            detail,
            warnings,
            read,
        })
    }

    /// Keeps a verified head if it is larger or newer than the kept one.
    fn settle(&mut self, seen: Seen, keep: bool, now: Timestamp, warnings: &mut Vec<String>) {
        if self.trust.witnesses.is_empty() || seen.witnesses > 0 {
            self.unwitnessed = 0;
        } else {
            self.unwitnessed += 1;
            let named = self.trust.witnesses.len();
            warnings.push(format!(
                "UNWITNESSED: none of the {named} given witnesses cosigned this checkpoint"
            ));
        }
        if !keep {
            return;
        }
        self.kept = Some(Kept {
            note: seen.note,
            head: seen.head,
            since: now,
        });
        self.unkept = true;
    }

    /// Writes the kept checkpoint to disk. A full disk must not end the watch: each check tries
    /// again and reports it.
    fn keep(&mut self, warnings: &mut Vec<String>) {
        let Some(kept) = self.kept.as_ref().filter(|_| self.unkept) else {
            return;
        };
        match self.state.save(kept, &self.trust.keys) {
            Ok(()) => self.unkept = false,
            Err(failure) => warnings.push(format!("NOT KEPT: {failure}")),
        }
    }

    /// The newest time at which a given witness cosigned the kept checkpoint.
    fn witnessed_at(&self) -> u64 {
        let kept = self.kept.as_ref().map(|kept| kept.note.as_bytes());
        let note = kept.and_then(|note| Note::parse(note).ok());
        let cosigned = note.and_then(|note| note.cosignatures(&self.trust.witnesses).ok());
        let times = cosigned.iter().flatten().map(|one| one.time);
        times.max().unwrap_or(0)
    }

    /// Writes the evidence, and reports the contradiction on every output.
    fn shout(&self, found: &Contradiction, now: Timestamp) -> Failure {
        let kept = self.kept.as_ref();
        let written = evidence::write(&self.state, found, kept, self.log.base(), now);
        let place = match &written {
            Ok(path) => format!("evidence: {}", path.display()),
            Err(error) => format!(
                "THE EVIDENCE COULD NOT BE WRITTEN ({error}), so here it is.\nKept:\n{}\nServed:\n{}",
                found
                    .against
                    .as_deref()
                    .unwrap_or(kept.map_or("nothing", |kept| &kept.note)),
                found.fetched
            ),
        };
        if self.form.is_json() {
            let path = written.ok().map(|path| path.display().to_string());
            let line = json!({
                "at": now, "url": self.log.base(), "origin": self.origin,
                "verdict": found.kind.name(), "contradiction": true, "detail": found.says,
                "size": kept.map(|kept| kept.head.size), "root": kept.map(|kept| kept.head.root),
                "warnings": [], "evidence": path,
            });
            // The reader of standard output may be gone; the exit code and standard error remain.
            drop(output::json_line(&line));
        }
        let proof = if found.kind.is_proof() {
            "The file proves this to every holder of the log's key: taskpass ledger watch --check"
        } else {
            "Only this monitor attests when it was served"
        };
        Failure::Refused(format!(
            "CONTRADICTION ({}) by {}: {}\n  {place}\n  {proof}",
            found.kind.name(),
            self.log.base(),
            found.says
        ))
    }

    fn tell(&self, round: &Round, now: Timestamp) -> Result<(), Failure> {
        if self.form.is_json() {
            let kept = self.kept.as_ref();
            output::json_line(&json!({
                "at": now, "url": self.log.base(), "origin": self.origin,
                "verdict": round.verdict, "contradiction": false, "detail": round.detail,
                "size": kept.map(|kept| kept.head.size), "root": kept.map(|kept| kept.head.root),
                "warnings": round.warnings, "evidence": Value::Null,
            }))?;
        } else if round.read {
            output::line(format!("{now} {}", round.detail))?;
        } else if !self.once {
            output::alert(format!("{now} {}: {}", round.verdict, round.detail))?;
        }
        if self.once {
            // The exit code and the error message carry the result.
            return Ok(());
        }
        for warning in &round.warnings {
            output::alert(format!("{now} {warning}"))?;
        }
        Ok(())
    }
}

impl Round {
    /// The result of `--once`: success only if the log was read and satisfies all requirements.
    fn result(self) -> Result<(), Failure> {
        let mut faults = self.warnings;
        if !self.read {
            faults.insert(0, format!("{}: {}", self.verdict, self.detail));
        }
        if faults.is_empty() {
            return Ok(());
        }
        Err(Failure::Unestablished(faults.join("\n  ")))
    }
}

fn said(seen: &Seen) -> String {
    let head = &seen.head;
    let witnesses = match seen.witnesses {
        0 => String::new(),
        1 => ", cosigned by 1 witness".into(),
        count => format!(", cosigned by {count} witnesses"),
    };
    format!(
        "{} has {} leaves, root {}{witnesses}",
        head.origin, head.size, head.root
    )
}
