//! `taskpass ledger watch`: monitors a log of another operator, and checks the evidence of a
//! monitor. Prints the findings of [`crate::audit::monitor`].
//!
//! A contradiction is exit code 1, arguments or a state file that cannot be used are
//! [`CliError::Usage`], and a log that cannot be read is exit code 3.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use url::Url;

use crate::audit::monitor::{Alarm, Evidence, MAX_EVIDENCE_BYTES, Monitor, Round, Target};
use crate::cli::connection::Authorities;
use crate::cli::output::{self, Form};
use crate::cli::{CliError, seconds_of};
use crate::client::{read_file, read_secret};
use crate::merkle::{Trust, VerifierKey, WitnessKey};

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
    pub(super) async fn run(self, form: Form) -> Result<(), CliError> {
        if let Some(file) = &self.check {
            return check(file, &self.keys, form);
        }
        let monitor = self.monitor()?;
        let listen = |kind| signal(kind).map_err(CliError::unavailable);
        let mut terminate = listen(SignalKind::terminate())?;
        let mut interrupt = listen(SignalKind::interrupt())?;
        let name = tokio::select! {
            ended = self.follow(monitor, form) => return ended,
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        if self.once {
            return Err(CliError::Unavailable(format!(
                "ended by {name} before the log was checked"
            )));
        }
        Ok(())
    }

    fn monitor(&self) -> Result<Monitor, CliError> {
        let Some(url) = &self.url else {
            return Err(CliError::Usage(
                "`--url` and at least one `--key` are required".into(),
            ));
        };
        Monitor::check_target(url, &self.keys)?;
        let token = self.token_file.as_deref().map(read_secret).transpose()?;
        Ok(Monitor::new(Target {
            url,
            token: token.as_ref(),
            authorities: self.authorities.read()?,
            trust: Trust {
                keys: self.keys.clone(),
                witnesses: self.witnesses.clone(),
            },
            state: self.state.clone(),
            stale: self.stale,
        })?)
    }

    /// Checks the log, once or until it contradicts itself.
    async fn follow(&self, mut monitor: Monitor, form: Form) -> Result<(), CliError> {
        let mut failures = 0;
        loop {
            let round = match monitor.check(announce_first_contact).await {
                Ok(round) => round,
                Err(alarm) => return Err(contradiction(&monitor, &alarm, form)),
            };
            let told = self
                .tell(&monitor, &round, form)
                .map_err(|failure| match failure {
                    // For other commands a closed output is a quiet end. A monitor must be heard.
                    CliError::BrokenPipe => CliError::unavailable(failure),
                    other => other,
                });
            if self.once {
                return result(round).and(told);
            }
            told?;
            if let Some(why) = monitor.unwitnessed() {
                return Err(CliError::Unavailable(why));
            }
            failures = if round.is_read { 0 } else { failures + 1 };
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

    fn tell(&self, monitor: &Monitor, round: &Round, form: Form) -> Result<(), CliError> {
        let now = round.at;
        if form.is_json() {
            let kept = monitor.kept();
            output::json_line(&json!({
                "at": now, "url": monitor.url(), "origin": monitor.origin(),
                "verdict": round.verdict, "contradiction": false, "detail": round.detail,
                "size": kept.map(|kept| kept.head.size), "root": kept.map(|kept| kept.head.root),
                "warnings": round.warnings, "evidence": Value::Null,
            }))?;
        } else if round.is_read {
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

/// Tells that the log's first checkpoint is accepted without a comparison.
fn announce_first_contact(monitor: &Monitor) {
    output::note(
        "taskpass: FIRST CONTACT: no earlier checkpoint of this log is known, so this one is accepted as it is; later ones are compared with it",
    );
    if monitor.is_in_memory() {
        output::note("taskpass: without --state the checkpoint is lost when this process ends");
    }
}

/// Verifies a file of evidence with the log's keys only.
fn check(file: &Path, keys: &[VerifierKey], form: Form) -> Result<(), CliError> {
    let content = read_file(file, MAX_EVIDENCE_BYTES)?;
    let evidence = Evidence::read(&file.display().to_string(), &content)?;
    match evidence.proves(keys) {
        Ok(says) => form.write(
            &json!({"proven": true, "detail": says}),
            format!("PROVEN: {says}"),
        ),
        Err(why) => Err(CliError::Refused(format!("not proven: {why}"))),
    }
}

/// Reports a contradiction on every output.
fn contradiction(monitor: &Monitor, alarm: &Alarm, form: Form) -> CliError {
    let (kept, found) = (monitor.kept(), &alarm.found);
    let location = match &alarm.evidence {
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
    if form.is_json() {
        let path = alarm.evidence.as_ref().ok();
        let path = path.map(|path| path.display().to_string());
        let line = json!({
            "at": alarm.at, "url": monitor.url(), "origin": monitor.origin(),
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
    CliError::Refused(format!(
        "CONTRADICTION ({}) by {}: {}\n  {location}\n  {proof}",
        found.kind.name(),
        monitor.url(),
        found.says
    ))
}

/// The result of `--once`: success only if the log was read and satisfies all requirements.
fn result(round: Round) -> Result<(), CliError> {
    let faults = round.into_faults();
    if faults.is_empty() {
        return Ok(());
    }
    Err(CliError::Unavailable(faults.join("\n  ")))
}
