//! The command line: one file a command.
//!
//! `serve`, `migrate` and `dev` run the broker; the others are clients of its HTTP interface and
//! can do nothing that the interface does not let their caller do. `ledger verify`
//! and `coverage`, `policy check` and `test`, and `attest check`, need no broker at all.
//!
//! Exit codes are for scripts: 0 done, 1 refused (by policy, or because a proof does not hold),
//! 2 the command line or a file is not as it must be, 3 could not reach or establish.
//!
//! No secret is ever an argument, where every process of the machine could read it: tokens come
//! from a file, from standard input or from a variable, and are printed only by the commands whose
//! purpose that is.

mod admins;
mod attest;
mod aws;
mod client;
mod completions;
mod coverage;
mod dev;
mod evidence;
mod exec;
mod health;
mod held;
mod key_withdrawal;
mod keys;
mod lease;
mod ledger;
mod migrate;
mod openapi;
mod output;
mod policy;
mod request;
mod retry;
mod revocations;
mod revoke;
mod serve;
mod sessions;
mod task;
mod wanted;
mod workloads;

use std::io::Write as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The command line.
#[derive(Debug, Parser)]
#[command(
    name = "taskpass",
    version,
    about = "A just-in-time credential broker: one credential, for one task, decided before it exists",
    after_help = "Try it: taskpass dev\n\nExit codes: 0 done, 1 refused, 2 usage, 3 could not reach or establish.",
    disable_help_subcommand = true,
    propagate_version = true
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Serve),
    Migrate(migrate::Migrate),
    Dev(dev::Dev),
    Exec(exec::Exec),
    Aws(aws::Aws),
    Request(request::Request),
    Task(task::Task),
    Sessions(sessions::Sessions),
    Revoke(revoke::Revoke),
    Revocations(revocations::Revocations),
    Lift(revocations::Lift),
    Policy(policy::Policy),
    Ledger(ledger::Ledger),
    Workloads(workloads::Workloads),
    Admins(admins::Admins),
    Attest(attest::Attest),
    Keys(keys::Keys),
    Openapi(openapi::Openapi),
    Health(health::Health),
    Completions(completions::Completions),
}

/// Why a command came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// Policy, or whoever was asked, said no; or a proof does not hold.
    #[error("{0}")]
    Refused(String),
    /// The command line, or a file that it names, is not as it must be.
    #[error("{0}")]
    Usage(String),
    /// Something could not be reached or established.
    #[error("{0}")]
    Unestablished(String),
    /// Nobody reads the output any more.
    #[error("the reader of the output went away")]
    ReaderGone,
    /// A command that was run for somebody ended so, and said itself what there was to say.
    #[error("the command ended with {0}")]
    Ended(u8),
    /// All was said already.
    #[error("refused")]
    Told,
}

impl Failure {
    /// What could not be established, with its cause.
    fn unestablished(error: impl std::fmt::Display) -> Self {
        Self::Unestablished(error.to_string())
    }

    fn code(&self) -> u8 {
        match self {
            Self::ReaderGone => 0,
            Self::Ended(code) => *code,
            Self::Refused(_) | Self::Told => 1,
            Self::Usage(_) => 2,
            Self::Unestablished(_) => 3,
        }
    }
}

/// The seconds of `30s`, `5m`, `24h` or `7d`.
fn seconds_of(text: &str) -> Option<u64> {
    let unit = match text.chars().last()? {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => return None,
    };
    let number = text.get(..text.len().saturating_sub(1))?;
    Some(u64::from(number.parse::<u32>().ok()?) * unit)
}

/// Runs a command to its end.
#[must_use]
pub fn run(cli: Cli) -> ExitCode {
    let Err(failure) = dispatch(cli.command) else {
        return ExitCode::SUCCESS;
    };
    if !matches!(
        failure,
        Failure::ReaderGone | Failure::Told | Failure::Ended(_)
    ) {
        // It may quote what somebody else wrote. Nothing is left to be done when even this cannot be
        // written.
        let text = output::printable_lines(&failure.to_string());
        drop(writeln!(std::io::stderr().lock(), "taskpass: {text}"));
    }
    ExitCode::from(failure.code())
}

/// The system does not let this process hide from others, so that it does not begin.
#[must_use]
pub fn not_hidden(error: &std::io::Error) -> ExitCode {
    let text = format!("taskpass: cannot deny other processes to read this one: {error}");
    drop(writeln!(std::io::stderr().lock(), "{text}"));
    ExitCode::from(Failure::Unestablished(text).code())
}

fn dispatch(command: Command) -> Result<(), Failure> {
    match command {
        Command::Serve(serve) => block_on(serve.run()),
        Command::Migrate(migrate) => block_on(migrate.run()),
        Command::Dev(dev) => block_on(dev.run()),
        Command::Exec(exec) => {
            exec.withhold()?;
            block_on(exec.run())
        }
        Command::Aws(aws) => block_on(aws.run()),
        Command::Request(request) => block_on(request.run()),
        Command::Task(task) => block_on(task.run()),
        Command::Sessions(sessions) => block_on(sessions.run()),
        Command::Revoke(revoke) => block_on(revoke.run()),
        Command::Revocations(revocations) => block_on(revocations.run()),
        Command::Lift(lift) => block_on(lift.run()),
        Command::Policy(policy) => block_on(policy.run()),
        Command::Ledger(ledger) => block_on(ledger.run()),
        Command::Workloads(workloads) => block_on(workloads.run()),
        Command::Admins(admins) => block_on(admins.run()),
        Command::Attest(attest) => attest.run(),
        Command::Keys(keys) => block_on(keys.run()),
        Command::Openapi(openapi) => openapi.run(),
        Command::Health(health) => block_on(health.run()),
        Command::Completions(completions) => completions.run(),
    }
}

fn block_on(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        // Decisions are made on these threads.
        .thread_stack_size(crate::policy::RUNTIME_STACK_BYTES)
        .build()
        .map_err(|error| Failure::Unestablished(format!("cannot start: {error}")))?;
    let result = runtime.block_on(work);
    // Work that a stop gave up on must not hold the process.
    runtime.shutdown_background();
    result
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed_and_every_command_has_an_example() {
        fn check(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            assert!(command.get_about().is_some(), "{path} says what it does");
            if command.has_subcommands() {
                command.get_subcommands().for_each(|sub| check(sub, &path));
                return;
            }
            let help = command.get_after_help().map(ToString::to_string);
            let help = help.unwrap_or_default();
            assert!(help.contains("taskpass "), "{path} has an example");
        }
        let mut command = Cli::command();
        command.build();
        command.clone().debug_assert();
        check(&command, "");
    }
}
