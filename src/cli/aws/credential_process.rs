//! `taskpass aws credential-process`: the credential that AWS's SDKs and tools ask a command for.
//!
//! They call it early, often and many at once. All calls that ask for the same as the same workload
//! share one task and one session, kept by [`super::cache`]. Each call asks the broker whether the
//! task is still good, which is its heartbeat too: what was ended is not given out again. When the
//! broker cannot be asked, a session is given out while its own time lasts, which it would outlive
//! anyway. Little of it left, another is taken within the same task, which opens one task and no
//! more: after its end calls are refused, unless the caller said that another may be opened after
//! its deadline.

use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::cache::{Slot, default_directory};
use crate::cli::client::Address;
use crate::cli::evidence::EvidenceArgs;
use crate::cli::held::{Asker, Held};
use crate::cli::lease::Lease;
use crate::cli::retry::RetryArgs;
use crate::cli::wanted::{AnyTask, Wanted};
use crate::cli::{Failure, output};
use crate::clock::{Clock as _, SystemClock, Timestamp};
use crate::crypto::digest::sha256_parts;

/// How long the broker may take to say how the task stands.
const BEAT_TIMEOUT: Duration = Duration::from_secs(10);

/// SDKs wait a minute for a call: it has to answer before.
const MAX_RETRY: Duration = Duration::from_secs(30);

/// Print a session of a role as AWS's SDKs expect it of `credential_process`
#[derive(Args, Debug)]
#[command(
    after_help = "All calls that ask for the same as the same workload share one task and one session. When the task \
    is over, they are refused.\n\nExamples:\n  \
    taskpass aws credential-process --resource reports-bucket --action s3:GetObject --task-type nightly-report\n  \
    In ~/.aws/config:\n    [profile reports]\n    \
    credential_process = taskpass aws credential-process --resource reports-bucket --action s3:GetObject --task-type nightly-report"
)]
pub(super) struct CredentialProcess {
    #[command(flatten)]
    address: Address,
    #[command(flatten)]
    evidence: EvidenceArgs,
    #[command(flatten)]
    wanted: Wanted,
    #[command(flatten)]
    task: AnyTask,
    #[command(flatten)]
    retry: RetryArgs,
    /// When the deadline of the task has passed, open another; without this nothing comes after it
    #[arg(long, conflicts_with = "task")]
    reopen: bool,
    /// Print nothing: complete the task that earlier calls opened, and forget what they got
    #[arg(long)]
    end: bool,
    /// Where the calls share what they got [default: `$XDG_RUNTIME_DIR/taskpass`, or `taskpass-` and
    /// the user's id among temporary files]
    #[arg(long, env = "TASKPASS_CACHE_DIR", value_name = "DIR")]
    cache_dir: Option<PathBuf>,
}

/// What an earlier call left.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kept {
    /// A session.
    Held(Box<Held>),
    /// The task was over, for this reason. Its credential is not kept.
    Over {
        why: String,
        deadline: Timestamp,
        /// The task and its handle, for `--end`. `None` for a task that was joined.
        #[serde(default)]
        task: Option<Value>,
    },
}

impl CredentialProcess {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let asker = Asker {
            client: self.address.client()?,
            source: self.evidence.source(&self.address.url)?,
            wanted: self.wanted.of_aws(),
            retry: self.retry.limit().min(MAX_RETRY),
        };
        let task = self.task.body()?;
        let directory = match &self.cache_dir {
            Some(directory) => directory.clone(),
            None => default_directory()?,
        };
        let slot = Slot::lock(&directory, &self.key(&asker, &task)?).await?;
        if self.end {
            return self.finish(&asker, &slot).await;
        }
        let held = match slot.read()? {
            Some(Kept::Held(held)) => self.seen_again(&asker, &slot, *held).await?,
            Some(Kept::Over { deadline, .. }) if self.may_reopen(deadline) => None,
            Some(Kept::Over { why, .. }) => return Err(self.refused(&why)),
            None => None,
        };
        let held = match held {
            Some(held) => held,
            None => self.open(&asker, &slot, &task).await?,
        };
        let spoken = held.spoken("SessionToken", &[("Version", json!(1))]);
        output::json_line(&spoken)
    }

    /// All that makes a difference to what is given out.
    fn key(&self, asker: &Asker, task: &Value) -> Result<String, Failure> {
        let parts = [
            self.address.url.as_str(),
            &asker.source.fingerprint()?,
            &asker.wanted.body(task).to_string(),
        ];
        let key = sha256_parts("taskpass:credential-process", &parts.map(str::as_bytes));
        Ok(URL_SAFE_NO_PAD.encode(key))
    }

    async fn open(&self, asker: &Asker, slot: &Slot, task: &Value) -> Result<Held, Failure> {
        let granted = asker.ask(task).await?;
        let joined = self.task.is_joined().then_some(task);
        let held = Held::of_aws(&granted, joined, &asker.source, SystemClock.now());
        let kept = held.and_then(|held| {
            slot.write(&json!({ "held": held }))?;
            Ok(held)
        });
        if kept.is_err() && joined.is_none() {
            // Nobody will ever get it: it ends here.
            Lease::of(&asker.client, &granted, 0)?.end(false).await;
        }
        kept
    }

    /// What an earlier call got, if it may still be given out; nothing if a new task may be opened.
    async fn seen_again(
        &self,
        asker: &Asker,
        slot: &Slot,
        mut held: Held,
    ) -> Result<Option<Held>, Failure> {
        let over = match self.standing(asker, &held).await {
            Ok(over) => over,
            Err(failure) => {
                output::note(format!("taskpass: the broker was not asked: {failure}"));
                None
            }
        };
        let now = SystemClock.now();
        let over = over.or_else(|| (now >= held.deadline).then(|| "expired".to_owned()));
        if let Some(why) = over {
            let deadline = held.deadline;
            // The handle is kept until the broker confirms the end.
            let task = (!self.task.is_joined()).then_some(&held.task);
            slot.write(&json!({ "over": { "why": why, "deadline": deadline, "task": task } }))?;
            if self.may_reopen(deadline) {
                return Ok(None);
            }
            return Err(self.refused(&why));
        }
        let renewed = held.renew_if_due(asker, now).await;
        slot.write(&json!({ "held": held }))?;
        match renewed {
            Ok(()) if held.is_good(now) => Ok(Some(held)),
            Ok(()) => Err(Failure::Unestablished(
                "the session is over, and there is no fresh attestation for another".into(),
            )),
            Err(failure) if held.is_good(now) => {
                output::note(format!("taskpass: not renewed: {failure}"));
                Ok(Some(held))
            }
            Err(failure) => Err(failure),
        }
    }

    /// Why the task is over or the session was revoked; `None` while both are good.
    async fn standing(&self, asker: &Asker, held: &Held) -> Result<Option<String>, Failure> {
        let lease = Lease::joined(&asker.client, &held.task, 0)?;
        let beat = timeout(BEAT_TIMEOUT, lease.beat(Some(&held.session)));
        beat.await
            .map_err(|_| Failure::Unestablished("no answer in time".into()))?
    }

    async fn finish(&self, asker: &Asker, slot: &Slot) -> Result<(), Failure> {
        let Some(kept) = slot.read()? else {
            return Err(Failure::Refused(
                "no call with these arguments and this attestation has left anything to end".into(),
            ));
        };
        let task = match kept {
            Kept::Held(held) => Some(held.task),
            Kept::Over { task, .. } => task,
        };
        if let Some(task) = task
            && !self.task.is_joined()
        {
            let lease = Lease::joined(&asker.client, &task, 0)?;
            lease.finish(true).await?;
        }
        slot.clear()
    }

    fn may_reopen(&self, deadline: Timestamp) -> bool {
        self.reopen && SystemClock.now() >= deadline
    }

    fn refused(&self, why: &str) -> Failure {
        let how = if self.task.is_joined() {
            ""
        } else {
            "; the same command with --end forgets it, and the next call opens another"
        };
        Failure::Refused(format!("the task is over: {}{how}", why.trim_end()))
    }
}
