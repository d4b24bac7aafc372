//! `taskpass exec`: one command, for one task, with one credential.
//!
//! It finds the attestation, opens the task, puts the credential where the command looks for it,
//! heartbeats while the command runs, and completes or aborts the task when it ends. If it is
//! killed itself nobody heartbeats, and the broker ends the task by its silence.

mod child;
mod deliver;
mod endpoint;

use std::ffi::OsString;

use clap::{Args, ValueEnum};
use serde_json::Value;

use self::child::{Child, Signals};
use self::deliver::Delivered;
use super::client::{Address, Client};
use super::evidence::EvidenceArgs;
use super::held::Asker;
use super::lease::Lease;
use super::wanted::{NewTask, Wanted};
use super::{Failure, output};
use crate::process;

/// Run a command with a credential that lives as long as it runs
#[derive(Args, Debug)]
#[command(
    after_help = "The exit code is the command's; 1 refused, 2 usage, 3 could not reach or establish before it \
    started.\n\nExamples:\n  \
    taskpass exec --resource reports-bucket --action s3:GetObject --aws --task-type nightly-report -- aws s3 ls s3://reports\n  \
    taskpass exec --resource orders-api --action orders:read --task-type nightly-report -- ./report.py"
)]
pub(super) struct Exec {
    #[command(flatten)]
    address: Address,
    #[command(flatten)]
    evidence: EvidenceArgs,
    #[command(flatten)]
    wanted: Wanted,
    #[command(flatten)]
    task: NewTask,
    /// The longest silence: how long the credential outlives this process when it is killed
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(3..=3600))]
    heartbeat: u64,
    /// How the command gets the credential
    #[arg(long = "as", value_name = "HOW", value_enum, default_value_t = How::Env)]
    how: How,
    /// The variable of a token, or of the file that holds it [default: `TASKPASS_ACCESS_TOKEN`,
    /// `TASKPASS_ACCESS_TOKEN_FILE`]
    #[arg(long, value_name = "NAME")]
    variable: Option<String>,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// How the command gets the credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum How {
    /// In variables: for AWS those that its tools read
    Env,
    /// In a file that only its owner may read, removed at the end
    File,
    /// From an endpoint on this machine, as AWS's tools ask for it; renewed while the task lasts
    Endpoint,
}

impl Exec {
    /// Takes secrets out of the environment that the command could read of this process. Where there
    /// are some, the program starts again here.
    pub(super) fn withhold(&self) -> Result<(), Failure> {
        let names = deliver::withheld(self.evidence.variable());
        process::withhold(&names).map_err(|error| {
            Failure::Unestablished(format!("cannot keep secrets from the command: {error}"))
        })
    }

    pub(super) async fn run(self) -> Result<(), Failure> {
        let client = Client::new(&self.address.url)?;
        let asker = Asker {
            client: client.clone(),
            source: self.evidence.source(&self.address.url)?,
            wanted: self.wanted.clone(),
        };
        let granted = asker.ask(&self.task.body(Some(self.heartbeat))).await?;
        let lease = Lease::of(&client, &granted, self.heartbeat)?;
        let ended = self.with_lease(asker, granted, &lease).await;
        // Whatever happened, the credential dies with the command.
        lease.end(matches!(ended, Ok(Ended::Well))).await;
        match ended? {
            Ended::Well => Ok(()),
            Ended::Code(code) => Err(Failure::Ended(code)),
            Ended::Lost(why) => Err(Failure::Refused(why)),
        }
    }

    async fn with_lease(
        &self,
        asker: Asker,
        granted: Value,
        lease: &Lease,
    ) -> Result<Ended, Failure> {
        let to = deliver::To {
            how: self.how,
            variable: self.variable.as_deref(),
            // The command does not get what its own attestation was read from.
            hidden: self.evidence.variable(),
        };
        let mut signals = Signals::listen()?;
        let mut delivered = Delivered::prepare(to, &granted, asker)?;
        let mut child = match Child::start(&self.command, &delivered.environment) {
            Ok(child) => child,
            Err(code) => return Ok(Ended::Code(code)),
        };
        let serving = delivered.serve();
        tokio::select! {
            ended = child.wait(&mut signals) => ended,
            why = lease.keep() => {
                output::note(format!("taskpass: {why}; the command is told to stop"))?;
                child.stop().await;
                Ok(Ended::Lost(why))
            }
            never = serving => match never {},
        }
    }
}

/// How the command ended.
enum Ended {
    Well,
    Code(u8),
    /// The task was over before the command was.
    Lost(String),
}
