//! Monitors a log of another operator.
//!
//! The monitor keeps the last checkpoint that it verified, compares every later one with it, and
//! reports when the log contradicts itself. It trusts the log's keys and its own file only. A
//! server can keep it from reading the log, which it reports, but can neither make it accept a fork
//! nor accuse the log of one. A server that keeps serving an older or another log is reported as
//! that.
//!
//! [`Monitor::check`] returns an [`Alarm`] only for a contradiction. A log that cannot be read is
//! part of the [`Round`], as a warning or a fault. [`check`] compares, [`evidence`] writes the
//! evidence, [`state`] keeps the checkpoint; `cli::ledger::watch` runs the checks.

mod check;
mod evidence;
mod log;
mod state;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;
use url::Url;

pub(crate) use self::check::Contradiction;
use self::check::{CheckResult, SignedHead};
pub(crate) use self::evidence::{Evidence, MAX_BYTES as MAX_EVIDENCE_BYTES};
use self::log::{Log, LogError};
pub(crate) use self::state::KeptCheckpoint;
use self::state::StateFile;
use super::AuditError;
use crate::clock::{Clock as _, SystemClock, Timestamp};
use crate::merkle::{Note, Trust, VerifierKey};

/// The longest time for one check. A server that answers slowly cannot extend it.
const ROUND_TIMEOUT: Duration = Duration::from_mins(1);
/// Consecutive checks without a cosigned checkpoint after which the monitor fails. There are
/// several because a witness may sign a moment after the log.
const UNWITNESSED_CHECKS: u32 = 3;

/// The log to monitor.
pub(crate) struct Target<'a> {
    pub(crate) url: &'a Url,
    /// The token for a log that is not public.
    pub(crate) token: Option<&'a SecretString>,
    /// The trusted certificate authorities; `None` for the system's.
    pub(crate) authorities: Option<Vec<reqwest::Certificate>>,
    /// The keys of the log, at least one, and of the witnesses.
    pub(crate) trust: Trust,
    /// The file that keeps the last verified checkpoint; `None` keeps it in memory.
    pub(crate) state: Option<PathBuf>,
    /// After this time without a larger or newer checkpoint there is a warning.
    pub(crate) stale: Option<Duration>,
}

/// A monitor of one log.
pub(crate) struct Monitor {
    log: Log,
    trust: Trust,
    origin: String,
    state: StateFile,
    kept: Option<KeptCheckpoint>,
    /// Whether the kept checkpoint is not yet on disk.
    unkept: bool,
    /// Consecutive checks whose checkpoint no given witness had cosigned.
    unwitnessed: u32,
    /// Checkpoints that the log signed and that were not yet compared with a later one.
    open: Vec<SignedHead>,
    stale: Option<Duration>,
}

/// The result of one check that found no contradiction.
pub(crate) struct Round {
    /// The time of the result, by this machine's clock.
    pub(crate) at: Timestamp,
    /// The name of the result in JSON.
    pub(crate) verdict: &'static str,
    /// The result as a sentence.
    pub(crate) detail: String,
    /// Findings that are not as required but contradict nothing.
    pub(crate) warnings: Vec<String>,
    /// Whether the log could be read.
    pub(crate) is_read: bool,
}

/// A contradiction, with its evidence.
pub(crate) struct Alarm {
    /// The time of the finding, by this machine's clock.
    pub(crate) at: Timestamp,
    pub(crate) found: Box<Contradiction>,
    /// The file with the evidence, or why it could not be written.
    pub(crate) evidence: io::Result<PathBuf>,
}

impl Monitor {
    /// Checks the URL, and that all keys belong to one log. Needs no file, so that a wrong command
    /// line can be reported before an unreadable file.
    pub(crate) fn check_target(url: &Url, keys: &[VerifierKey]) -> Result<(), AuditError> {
        origin_of(keys)?;
        Log::check_base(url)
    }

    /// Reads the kept state. All keys must belong to one log.
    pub(crate) fn new(target: Target<'_>) -> Result<Self, AuditError> {
        let origin = origin_of(&target.trust.keys)?.to_owned();
        let log = Log::new(target.url, target.token, target.authorities)?;
        let state = StateFile(target.state);
        Ok(Self {
            log,
            kept: state.load(&target.trust.keys)?,
            trust: target.trust,
            unkept: false,
            unwitnessed: 0,
            open: Vec::new(),
            state,
            origin,
            stale: target.stale,
        })
    }

    /// The log's URL, without a slash at its end.
    pub(crate) fn url(&self) -> &str {
        self.log.base()
    }

    /// The log's name, which its keys have.
    pub(crate) fn origin(&self) -> &str {
        &self.origin
    }

    /// The last verified checkpoint.
    pub(crate) fn kept(&self) -> Option<&KeptCheckpoint> {
        self.kept.as_ref()
    }

    /// Whether the kept checkpoint is lost when this process ends.
    pub(crate) fn is_in_memory(&self) -> bool {
        self.state.0.is_none()
    }

    /// Why the last checks together are a failure; `None` if they are not.
    pub(crate) fn unwitnessed(&self) -> Option<String> {
        (self.unwitnessed >= UNWITNESSED_CHECKS).then(|| {
            format!(
                "UNWITNESSED: in the last {UNWITNESSED_CHECKS} checks none of the {} given \
                 witnesses had cosigned the checkpoint",
                self.trust.witnesses.len()
            )
        })
    }

    /// Checks the log once. Keeps a verified checkpoint, and writes the evidence of a
    /// contradiction. If no earlier checkpoint of the log is known, calls `first_contact` before the
    /// new one is on disk: if the process ends in between, the next one reports it again.
    pub(crate) async fn check(
        &mut self,
        first_contact: impl FnOnce(&Self),
    ) -> Result<Round, Alarm> {
        let checking = check::check(
            &self.log,
            &self.trust,
            &self.origin,
            self.kept.as_ref(),
            &mut self.open,
        );
        let result = tokio::time::timeout(ROUND_TIMEOUT, checking).await;
        let result = result.unwrap_or_else(|_| {
            let why = format!("{} did not complete the answers in time", self.log.base());
            CheckResult::Unknown(LogError::Unreachable(why))
        });
        self.judge(result, SystemClock.now(), first_contact)
    }

    fn judge(
        &mut self,
        result: CheckResult,
        now: Timestamp,
        first_contact: impl FnOnce(&Self),
    ) -> Result<Round, Alarm> {
        let mut warnings = Vec::new();
        let (verdict, detail, is_read) = match result {
            CheckResult::Contradicted(found) => {
                self.keep(&mut warnings);
                let kept = self.kept.as_ref();
                let evidence = evidence::write(&self.state, &found, kept, self.log.base(), now);
                return Err(Alarm {
                    at: now,
                    found,
                    evidence,
                });
            }
            CheckResult::Unknown(LogError::Unreachable(why)) => ("unreachable", why, false),
            CheckResult::Unknown(LogError::Unreadable(why)) => ("unreadable", why, false),
            CheckResult::First(seen) => {
                let detail = format!("first contact: {}", described(&seen));
                first_contact(self);
                self.accept(seen, true, now, &mut warnings);
                ("first-contact", detail, true)
            }
            CheckResult::Same(seen) => {
                let detail = format!("consistent: {}, as before", described(&seen));
                let newer = seen.witnessed_at > self.witnessed_at();
                self.accept(seen, newer, now, &mut warnings);
                ("unchanged", detail, true)
            }
            CheckResult::Grown(seen) => {
                let before = self.kept.as_ref().map_or(0, |kept| kept.head.size);
                let detail = format!(
                    "consistent: {}, which begin with the {before} known before",
                    described(&seen)
                );
                self.accept(seen, true, now, &mut warnings);
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
            at: now,
            verdict,
            detail,
            warnings,
            is_read,
        })
    }

    /// Counts the cosignatures of a verified head, and takes it as the kept one if `keep`.
    fn accept(&mut self, seen: SignedHead, keep: bool, now: Timestamp, warnings: &mut Vec<String>) {
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
        self.kept = Some(KeptCheckpoint {
            note: seen.note,
            head: seen.head,
            since: now,
        });
        self.unkept = true;
    }

    /// Writes the kept checkpoint to disk. A full disk must not end the monitor: each check tries
    /// again and reports it.
    fn keep(&mut self, warnings: &mut Vec<String>) {
        let Some(kept) = self.kept.as_ref().filter(|_| self.unkept) else {
            return;
        };
        match self.state.save(kept, &self.trust.keys) {
            Ok(()) => self.unkept = false,
            Err(error) => warnings.push(format!("NOT KEPT: {error}")),
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
}

impl Round {
    /// Why the check is not a success; empty if the log was read and satisfies all requirements.
    pub(crate) fn into_faults(self) -> Vec<String> {
        let mut faults = self.warnings;
        if !self.is_read {
            faults.insert(0, format!("{}: {}", self.verdict, self.detail));
        }
        faults
    }
}

/// The name of the log to which all keys belong.
fn origin_of(keys: &[VerifierKey]) -> Result<&str, AuditError> {
    let Some(first) = keys.first() else {
        return Err(AuditError::Input("no verifier key was given".into()));
    };
    if keys.iter().any(|key| key.name() != first.name()) {
        return Err(AuditError::Input(
            "the keys belong to more than one log; watch each log separately".into(),
        ));
    }
    Ok(first.name())
}

fn described(seen: &SignedHead) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "broker.example/log+e93fef39+AT0QF683dFtYaPP11+WYDRph3ydibLMUXuaKJih/Xlj3";
    const HEAD: &str = "broker.example/log\n5\nwrs5SvomIJ4G0W1jT8Lam0uZCSRhycCDQrwUVuFlkb4=\n";

    #[test]
    fn a_first_contact_is_announced_before_its_checkpoint_is_on_disk() {
        drop(rustls::crypto::ring::default_provider().install_default());
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        let url = Url::parse("http://127.0.0.1:1").unwrap();
        let monitor = Monitor::new(Target {
            url: &url,
            token: None,
            authorities: None,
            trust: Trust {
                keys: vec![KEY.parse().unwrap()],
                witnesses: Vec::new(),
            },
            state: Some(path.clone()),
            stale: None,
        });
        let mut monitor = monitor.ok().unwrap();
        let seen = SignedHead {
            note: format!("{HEAD}\n"),
            head: HEAD.parse().unwrap(),
            witnesses: 0,
            witnessed_at: 0,
        };
        let mut announced = 0;
        let first = CheckResult::First(seen.clone());
        let round = monitor.judge(first, SystemClock.now(), |_| {
            announced += 1;
            assert!(!path.exists());
        });
        assert_eq!(round.ok().unwrap().warnings, Vec::<String>::new());
        assert!(path.exists());
        let same = CheckResult::Same(seen);
        let round = monitor.judge(same, SystemClock.now(), |_| announced += 1);
        assert!(round.is_ok());
        assert_eq!(announced, 1);
    }
}
