//! `taskpass exec`: runs one command, for one task, with one credential.
//!
//! It gets an attestation, opens the task, delivers the credential to the command, sends heartbeats
//! while the command runs, and completes or aborts the task when no process of the command is left.
//! If this process is killed, its heartbeats stop, and the broker ends the task after the longest
//! permitted interval.
//!
//! The error of a request for the credential is the command's error. Afterwards the exit code is
//! that of the command, or 1 if the task ended first. `child` runs the command, `deliver` delivers
//! the credential, and [`crate::client`] calls the broker.

mod child;
mod deliver;
mod endpoint;
mod renewal;
mod signals;
mod terminal;

use std::ffi::OsString;
use std::time::Duration;

use clap::{Args, ValueEnum};

use self::child::Child;
use self::deliver::Delivered;
use self::signals::{Signals, exit_code};
use super::connection::Address;
use super::credential_args::{CredentialArgs, NewTask};
use super::evidence::EvidenceArgs;
use super::retry_args::RetryArgs;
use super::{CliError, output};
use crate::client::Reply;
use crate::client::credentials::CredentialRequester;
use crate::client::task_lease::TaskLease;
use crate::process;
use crate::wire::credentials::IssuedBody;

/// Run a command with a credential that ends when the command ends
#[derive(Args, Debug)]
#[command(
    after_help = "The exit code is the command's, or 128 and a signal's number if a signal ended it; 1 refused, 2 \
    usage, 3 could not reach or establish before the command started.\n\nExamples:\n  \
    taskpass exec --resource reports-bucket --action s3:GetObject --aws --task-type nightly-report -- aws s3 ls s3://reports\n  \
    taskpass exec --resource orders-api --action orders:read --task-type nightly-report -- ./report.py"
)]
pub(super) struct Exec {
    #[command(flatten)]
    address: Address,
    #[command(flatten)]
    evidence: EvidenceArgs,
    #[command(flatten)]
    wanted: CredentialArgs,
    #[command(flatten)]
    task: NewTask,
    #[command(flatten)]
    retry: RetryArgs,
    /// The longest time between two heartbeats: the credential outlives this process that long if
    /// it is killed
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(3..=3600))]
    heartbeat: u64,
    /// The time between SIGTERM and SIGKILL for processes of the command: those that it leaves when
    /// it ends, and all of them if the task ends before the command
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    grace: u64,
    /// How the command gets the credential
    #[arg(long = "as", value_name = "HOW", value_enum, default_value_t = DeliverAs::Env)]
    how: DeliverAs,
    /// The variable with the token, or with the path of its file [default: `TASKPASS_ACCESS_TOKEN`,
    /// `TASKPASS_ACCESS_TOKEN_FILE`]
    #[arg(long, value_name = "NAME")]
    variable: Option<String>,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// How the command gets the credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum DeliverAs {
    /// In variables, for AWS those that its tools read; not renewed, so it may end before the task
    Env,
    /// In a file that only its owner may read; renewed while the task lasts, removed at the end
    File,
    /// From a local endpoint that AWS's tools query; renewed while the task lasts
    Endpoint,
}

/// The names of the variables that the command does not get; `*` stands for any suffix.
pub(super) fn removed_variables() -> impl Iterator<Item = String> {
    deliver::removed_names()
}

impl Exec {
    /// Removes secrets from the environment of this process, which the command could read. If there
    /// are any, the process executes the program again without them.
    pub(super) fn withhold(&self) -> Result<(), CliError> {
        let names = deliver::withheld(self.evidence.variable());
        process::withhold(&names).map_err(|error| {
            CliError::Unavailable(format!("cannot keep secrets from the command: {error}"))
        })
    }

    pub(super) async fn run(self) -> Result<(), CliError> {
        // The first process of a container ignores every signal that it does not listen to.
        let mut signals = Signals::listen()?;
        let client = self.address.client()?;
        let requester = CredentialRequester {
            client: client.clone(),
            source: self.evidence.source(&self.address.url)?,
            request: self.wanted.request(),
            retry: self.retry.limit(),
        };
        let body = self.task.body(Some(self.heartbeat));
        let granted = tokio::select! {
            granted = requester.request(&body) => granted?,
            signal = signals.ending() => {
                return Err(CliError::ChildExited(exit_code(signal.as_raw())));
            }
        };
        let lease = TaskLease::of(&client, &granted, self.heartbeat)?;
        let ended = self
            .with_lease(requester, granted, &lease, &mut signals)
            .await;
        // End the task in every case: the credential must not outlive the command.
        lease.end(matches!(ended, Ok(CommandEnd::Code(0)))).await;
        match ended? {
            CommandEnd::Code(0) => Ok(()),
            CommandEnd::Code(code) => Err(CliError::ChildExited(code)),
            CommandEnd::Lost(why) => Err(CliError::Refused(why)),
        }
    }

    /// Runs the command. When this returns, its processes have ended, and the delivered credential
    /// is removed.
    async fn with_lease(
        &self,
        requester: CredentialRequester,
        granted: Reply<IssuedBody>,
        lease: &TaskLease,
        signals: &mut Signals,
    ) -> Result<CommandEnd, CliError> {
        let to = deliver::DeliveryArgs {
            how: self.how,
            variable: self.variable.as_deref(),
            // The command does not get the variable from which the attestation was read.
            hidden: self.evidence.variable(),
        };
        let delivered = Delivered::prepare(to, &granted.read()?, requester)?;
        let grace = Duration::from_secs(self.grace);
        let mut child = match Child::start(&self.command, &delivered.environment, grace) {
            Ok(child) => child,
            Err(code) => return Ok(CommandEnd::Code(code)),
        };
        let serving = delivered.serve();
        let why = tokio::select! {
            code = child.run(signals) => return Ok(CommandEnd::Code(code)),
            why = lease.keep() => why,
            never = serving => match never {},
        };
        // End the group before the message: standard error may block, or have no reader.
        child.end_group(signals).await;
        output::note(format!("taskpass: {why}; the command was told to stop"));
        Ok(CommandEnd::Lost(why))
    }
}

/// How the command ended.
enum CommandEnd {
    /// With this exit code.
    Code(u8),
    /// The task ended before the command, for this reason.
    Lost(String),
}
