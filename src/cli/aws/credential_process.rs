//! `taskpass aws credential-process`: the command that AWS's SDKs and tools run to get credentials.
//!
//! They run it early, often and many times at once. All calls with the same request and workload
//! share one task and one session, cached by [`crate::client::session_cache`]. Each call sends a
//! heartbeat, which also shows whether the task is still open: an ended session is not returned
//! again. If the broker cannot be reached, the cached session is returned until it expires; it
//! would stay valid until then anyway. When little of its life is left, it is renewed within the
//! same task. The calls open one task only: after its end they are refused, unless `--reopen`
//! permits another task after the deadline.

use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::Args;
use rustix::process::geteuid;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::timeout;

use crate::cli::connection::Address;
use crate::cli::credential_args::{AnyTask, CredentialArgs};
use crate::cli::evidence::EvidenceArgs;
use crate::cli::retry_args::RetryArgs;
use crate::cli::{CliError, output};
use crate::client::ClientError;
use crate::client::credentials::CredentialRequester;
use crate::client::session::CachedSession;
use crate::client::session_cache::CacheEntry;
use crate::client::task_lease::TaskLease;
use crate::clock::{Clock as _, SystemClock, Timestamp};
use crate::config::{Environment as _, ProcessEnvironment};
use crate::crypto::digest::sha256_parts;
use crate::wire::credentials::TaskBody;

/// How long the broker may take to answer a heartbeat.
const BEAT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long requests are retried. SDKs wait a minute for a call, so it must end earlier.
const MAX_RETRY: Duration = Duration::from_secs(30);

/// Print a session of a role in the form that AWS's SDKs expect from `credential_process`
#[derive(Args, Debug)]
#[command(
    after_help = "All calls with the same request and workload share one task and one session. When the task \
    has ended, they are refused.\n\nExamples:\n  \
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
    wanted: CredentialArgs,
    #[command(flatten)]
    task: AnyTask,
    #[command(flatten)]
    retry: RetryArgs,
    /// When the task's deadline has passed, open another task; without this, later calls are
    /// refused
    #[arg(long, conflicts_with = "task")]
    reopen: bool,
    /// Print nothing: complete the task that earlier calls opened, and delete its cached session
    #[arg(long)]
    end: bool,
    /// The directory of the cache that calls share [default: `$XDG_RUNTIME_DIR/taskpass`, or
    /// `taskpass-` and the user's id among temporary files]
    #[arg(long, env = "TASKPASS_CACHE_DIR", value_name = "DIR")]
    cache_dir: Option<PathBuf>,
}

/// The cached state that an earlier call wrote.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum CachedState {
    /// The session of an open task.
    #[serde(rename = "held")]
    Open(Box<CachedSession>),
    /// The task has ended, for the reason `why`. Its credential is not kept.
    #[serde(rename = "over")]
    Ended {
        why: String,
        deadline: Timestamp,
        /// The task and its handle, for `--end`. `None` for a task that was joined.
        #[serde(default)]
        task: Option<TaskBody>,
    },
}

/// The default directory: in the user's runtime directory, which exists while the user is logged
/// in, or one with the user's id among temporary files.
fn default_directory() -> Result<PathBuf, ClientError> {
    let named = ProcessEnvironment
        .get("XDG_RUNTIME_DIR")
        .map_err(|_| ClientError::Invalid("XDG_RUNTIME_DIR is not UTF-8".into()))?;
    let named = named.map(PathBuf::from).filter(|path| path.is_absolute());
    Ok(match named {
        Some(runtime) => runtime.join("taskpass"),
        None => std::env::temp_dir().join(format!("taskpass-{}", geteuid().as_raw())),
    })
}

impl CredentialProcess {
    pub(super) async fn run(self) -> Result<(), CliError> {
        let requester = CredentialRequester {
            client: self.address.client()?,
            source: self.evidence.source(&self.address.url)?,
            request: self.wanted.of_aws().request(),
            retry: self.retry.limit().min(MAX_RETRY),
        };
        let task = self.task.body()?;
        let directory = match &self.cache_dir {
            Some(directory) => directory.clone(),
            None => default_directory()?,
        };
        let slot = CacheEntry::lock(&directory, &self.key(&requester, &task)?).await?;
        if self.end {
            return self.finish(&requester, &slot).await;
        }
        let held = match slot.read()? {
            Some(CachedState::Open(held)) => self.seen_again(&requester, &slot, *held).await?,
            Some(CachedState::Ended { deadline, .. }) if self.may_reopen(deadline) => None,
            Some(CachedState::Ended { why, .. }) => return Err(self.refused(&why)),
            None => None,
        };
        let held = match held {
            Some(held) => held,
            None => self.open(&requester, &slot, &task).await?,
        };
        let spoken = held.spoken("SessionToken", &[("Version", json!(1))]);
        output::json_line(&spoken)
    }

    /// The name of the cache entry: a digest of all that determines the credential.
    fn key(&self, requester: &CredentialRequester, task: &TaskBody) -> Result<String, CliError> {
        let request = serde_json::to_string(&requester.request.within(task));
        let parts = [
            self.address.url.as_str(),
            &requester.source.fingerprint()?,
            &request.map_err(CliError::unavailable)?,
        ];
        let key = sha256_parts("taskpass:credential-process", &parts.map(str::as_bytes));
        Ok(URL_SAFE_NO_PAD.encode(key))
    }

    async fn open(
        &self,
        requester: &CredentialRequester,
        slot: &CacheEntry,
        task: &TaskBody,
    ) -> Result<CachedSession, CliError> {
        let granted = requester.request(task).await?;
        let joined = self.task.is_joined().then_some(task);
        let held = granted.read().and_then(|issued| {
            CachedSession::of_aws(&issued, joined, &requester.source, SystemClock.now())
        });
        let kept = held.and_then(|held| {
            slot.write(&json!({ "held": held }))?;
            Ok(held)
        });
        if kept.is_err() && joined.is_none() {
            // The session cannot be returned, so its task ends here.
            TaskLease::of(&requester.client, &granted, 0)?
                .end(false)
                .await;
        }
        Ok(kept?)
    }

    /// The session of an earlier call, if it may still be returned; `None` if a new task may be
    /// opened.
    async fn seen_again(
        &self,
        requester: &CredentialRequester,
        slot: &CacheEntry,
        mut held: CachedSession,
    ) -> Result<Option<CachedSession>, CliError> {
        let over = match self.why_over(requester, &held).await {
            Ok(over) => over,
            Err(failure) => {
                output::note(format!(
                    "taskpass: the broker could not be asked: {failure}"
                ));
                None
            }
        };
        let now = SystemClock.now();
        let over = over.or_else(|| (now >= held.deadline).then(|| "expired".to_owned()));
        if let Some(why) = over {
            let deadline = held.deadline;
            // Keep the handle until the broker confirms the end.
            let task = (!self.task.is_joined()).then_some(&held.task);
            slot.write(&json!({ "over": { "why": why, "deadline": deadline, "task": task } }))?;
            if self.may_reopen(deadline) {
                return Ok(None);
            }
            return Err(self.refused(&why));
        }
        let renewed = held.renew_if_due(requester, now).await;
        slot.write(&json!({ "held": held }))?;
        match renewed {
            Ok(()) if held.is_good(now) => Ok(Some(held)),
            Ok(()) => Err(CliError::Unavailable(
                "the session has ended, and there is no fresh attestation for another".into(),
            )),
            Err(failure) if held.is_good(now) => {
                output::note(format!("taskpass: not renewed: {failure}"));
                Ok(Some(held))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Why the task ended or the session was revoked; `None` if both are usable.
    async fn why_over(
        &self,
        requester: &CredentialRequester,
        held: &CachedSession,
    ) -> Result<Option<String>, ClientError> {
        let lease = TaskLease::joined(&requester.client, &held.task, 0)?;
        let beat = timeout(BEAT_TIMEOUT, lease.beat(Some(held.session)));
        beat.await
            .map_err(|_| ClientError::Unavailable("no answer in time".into()))?
    }

    async fn finish(
        &self,
        requester: &CredentialRequester,
        slot: &CacheEntry,
    ) -> Result<(), CliError> {
        let Some(kept) = slot.read()? else {
            return Err(CliError::Refused(
                "there is no cached task for these arguments and this attestation".into(),
            ));
        };
        let task = match kept {
            CachedState::Open(held) => Some(held.task),
            CachedState::Ended { task, .. } => task,
        };
        if let Some(task) = task
            && !self.task.is_joined()
        {
            let lease = TaskLease::joined(&requester.client, &task, 0)?;
            lease.finish(true).await?;
        }
        Ok(slot.clear()?)
    }

    fn may_reopen(&self, deadline: Timestamp) -> bool {
        self.reopen && SystemClock.now() >= deadline
    }

    fn refused(&self, why: &str) -> CliError {
        let how = if self.task.is_joined() {
            ""
        } else {
            "; the same command with --end clears the cache, and the next call opens another task"
        };
        CliError::Refused(format!("the task has ended: {}{how}", why.trim_end()))
    }
}
