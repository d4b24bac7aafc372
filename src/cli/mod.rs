//! The command line: one file for each command.
//!
//! `serve`, `migrate` and `dev` run the broker. The other commands are clients of its HTTP
//! interface and have only the rights of their caller. `ledger verify`, `coverage`,
//! `policy check`, `policy test` and `attest check` need no broker.
//!
//! Exit codes serve scripts: 0 success; 1 refused by policy, or a proof does not hold; 2 the
//! command line or a file is wrong; 3 a server or a fact could not be reached or established.
//!
//! No argument is ever a secret, because every process of the machine could read it. Tokens come
//! from a file, from standard input or from a variable. Only commands whose purpose it is print
//! them.

mod admins;
mod attest;
mod aws;
mod completions;
mod connection;
mod coverage;
mod credential_args;
mod dev;
mod error;
mod evidence;
mod exec;
mod health;
mod key_withdrawal;
mod keys;
mod ledger;
mod migrate;
mod openapi;
mod output;
mod policy;
mod reference;
mod request;
mod retry_args;
mod revocations;
mod revoke;
mod serve;
mod sessions;
mod task;
mod workloads;

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub(crate) use self::error::{CliError, ExitClass};
use self::output::Form;

/// The parsed command line.
#[derive(Debug, Parser)]
#[command(
    name = "taskpass",
    version,
    about = "A just-in-time credential broker: one credential, for one task, decided before it exists",
    after_help = "Try it: taskpass dev\n\nExit codes: 0 success, 1 refused, 2 usage, 3 could not reach or establish.",
    disable_help_subcommand = true,
    propagate_version = true
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Print JSON: the result, or the error
    #[arg(long, global = true, display_order = 900)]
    json: bool,
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
    Reference(reference::Reference),
    Completions(completions::Completions),
}

/// Parses a duration such as `30s`, `5m`, `24h` or `7d` into seconds.
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

/// Runs a command line, whose first element is the program's name.
#[must_use]
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return unparsed(&error, &arguments),
    };
    let form = if cli.json { Form::Json } else { Form::Text };
    let own_output = !matches!(cli.command, Command::Exec(_));
    let Err(failure) = dispatch(cli.command, form) else {
        return ExitCode::SUCCESS;
    };
    output::report(&failure, form, own_output);
    ExitCode::from(failure.code())
}

/// Prints help, the version, or the error of a command line that does not parse.
fn unparsed(error: &clap::Error, arguments: &[OsString]) -> ExitCode {
    let mut own = arguments.iter().take_while(|argument| *argument != "--");
    if error.use_stderr() && own.any(|argument| argument == "--json") {
        let failure = CliError::Usage(error.render().to_string().trim_end().to_owned());
        output::report(&failure, Form::Json, true);
        return ExitCode::from(failure.code());
    }
    // If this cannot be written, there is no way to report it.
    drop(error.print());
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(ExitClass::Usage.code()))
}

/// Reports that the system refused to hide this process from others. The program does not start
/// then.
#[must_use]
pub fn not_hidden(error: &std::io::Error) -> ExitCode {
    let text = format!("taskpass: cannot prevent other processes from reading this one: {error}");
    drop(writeln!(std::io::stderr().lock(), "{text}"));
    ExitCode::from(CliError::Unavailable(text).code())
}

fn dispatch(command: Command, form: Form) -> Result<(), CliError> {
    match command {
        Command::Serve(serve) => block_on(serve.run(form)),
        Command::Migrate(migrate) => block_on(migrate.run(form)),
        Command::Dev(dev) => block_on(dev.run(form)),
        Command::Exec(exec) => {
            exec.withhold()?;
            block_on(exec.run())
        }
        Command::Aws(aws) => block_on(aws.run(form)),
        Command::Request(request) => block_on(request.run(form)),
        Command::Task(task) => block_on(task.run(form)),
        Command::Sessions(sessions) => block_on(sessions.run(form)),
        Command::Revoke(revoke) => block_on(revoke.run(form)),
        Command::Revocations(revocations) => block_on(revocations.run(form)),
        Command::Lift(lift) => block_on(lift.run(form)),
        Command::Policy(policy) => block_on(policy.run(form)),
        Command::Ledger(ledger) => block_on(ledger.run(form)),
        Command::Workloads(workloads) => block_on(workloads.run(form)),
        Command::Admins(admins) => block_on(admins.run(form)),
        Command::Attest(attest) => attest.run(form),
        Command::Keys(keys) => block_on(keys.run(form)),
        Command::Openapi(openapi) => openapi.run(),
        Command::Health(health) => block_on(health.run(form)),
        Command::Reference(reference) => reference.run(form),
        Command::Completions(completions) => completions.run(),
    }
}

fn block_on(work: impl Future<Output = Result<(), CliError>>) -> Result<(), CliError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        // These threads evaluate policies.
        .thread_stack_size(crate::policy::RUNTIME_STACK_BYTES)
        .build()
        .map_err(|error| CliError::Unavailable(format!("cannot start: {error}")))?;
    let result = runtime.block_on(work);
    // Do not wait for work that a stop gave up on.
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
            assert!(command.get_about().is_some(), "{path} has no description");
            if command.has_subcommands() {
                command.get_subcommands().for_each(|sub| check(sub, &path));
                return;
            }
            let help = command.get_after_help().map(ToString::to_string);
            let help = help.unwrap_or_default();
            assert!(help.contains("taskpass "), "{path} has no example");
        }
        let mut command = Cli::command();
        command.build();
        command.clone().debug_assert();
        check(&command, "");
    }
}
