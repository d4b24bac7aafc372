//! `taskpass policy`: checks, tests and activates policies.
//!
//! `explain` evaluates a recorded decision again with the generation that decided, `replay` with a
//! candidate. `unused` lists the grants of policies that no request used.
//!
//! `check`, `test` and `schema` work offline from the files: they need no secret, no database and
//! no broker. They check the configuration as `serve --check` does, except for its secrets and the
//! files that it names, which need not exist. They build the same generation as `activate` sends,
//! with the same digest.
//!
//! Policies that do not load are [`CliError::Usage`]; a failed test is exit code 1.
//! [`crate::policy`] has the checks, and the broker makes them again at an activation.

mod explain;
mod lines;
mod replay;
mod source;
mod unused;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use url::Url;

use super::CliError;
use super::connection::{Authorities, Connection, Token};
use super::dev::settings;
use super::output::{self, Form};
use super::serve::ConfigFile;
use crate::app::{self, CheckError};
use crate::client::Reply;
use crate::clock::{Clock as _, SystemClock, Timestamp};
use crate::config::{Config, Mode};
use crate::domain::generation::Generation;
use crate::policy::{self, CompiledGeneration, NamedLocations, Notes, PolicyProblem, suite};
use crate::wire::generations::{ActivatedBody, CheckedBody};

/// Check, test and activate policies
#[derive(Args, Debug)]
pub(super) struct Policy {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check policies and the configuration, without a broker or against one
    #[command(
        after_help = "Without --url the command cannot check whether a bound admin could still activate the next generation, because the broker holds the bindings. With --url the broker checks everything that activation would check; the token needs the right readGeneration.\n\nExamples:\n  taskpass policy check\n  taskpass policy check policies --dev\n  taskpass policy check --url https://broker.example --token-file admin-token"
    )]
    Check(Check),
    /// Run the tests in the directory `tests` next to the policies
    #[command(
        after_help = "A policy that only observes takes effect on its date, and so do its tests: --at gives the time of the decisions.\n\nExamples:\n  taskpass policy test\n  taskpass policy test policies --dev\n  taskpass policy test --at 2027-01-01T00:00:00Z"
    )]
    Test(Test),
    /// Print the Cedar schema that follows from the configuration
    #[command(after_help = "Example:\n  taskpass policy schema > policies/taskpass.cedarschema")]
    Schema(Schema),
    /// Send the generation to a broker, which decides by it from now on
    #[command(after_help = "Example:\n  taskpass policy activate --token-file admin-token")]
    Activate(Activate),
    /// Evaluate a recorded decision again, and explain its outcome and the changes that would turn
    /// it
    #[command(
        after_help = "Exits with 0 if the outcome is byte for byte the recorded one, 1 if it is not, or if leaf, input or generation do not match the record, 3 if that cannot be established: the record is missing, not readable for this caller or pruned, or another engine decided and this one decides differently.\n\nExample:\n  taskpass policy explain 0198b2a0-0000-7000-8000-000000000001 --token-file admin-token"
    )]
    Explain(explain::Explain),
    /// Evaluate recorded decisions with other policies, and print the differences
    #[command(
        after_help = "Exits with 0 if no outcome would change, 1 if one would, or if a record does not match the log (reported on standard error), 2 if a candidate or a file does not load, 3 if that cannot be established: there is nothing to evaluate, or no outcome changed but some records were pruned, cut off, or lack data that the candidate uses. It evaluates records only. The result lists the effects that no record shows, for example of changed attestors. Reading page by page needs an admin's token, or evidence that can be used several times.\n\nExamples:\n  taskpass policy replay --since 7d --candidate policies --token-file admin-token\n  taskpass policy replay --decisions decisions.jsonl --candidate policies --json"
    )]
    Replay(replay::ReplayArgs),
    /// List the grants of policies that no request used, and propose narrower policies
    #[command(
        after_help = "Exits with 0 if all grants were used, 1 if one was not or a record does not match the log (reported on standard error), 2 if policies or a file do not load, 3 if that cannot be established: there is no recorded permit, or the record does not show which grants some permits used. Then there is no proposal. Review a proposal and check it like any candidate.\n\nExamples:\n  taskpass policy unused --since 30d --token-file admin-token\n  taskpass policy unused --since 30d --proposal narrower --token-file admin-token\n  taskpass policy test narrower\n  taskpass policy replay --since 30d --candidate narrower --token-file admin-token"
    )]
    Unused(unused::UnusedArgs),
    /// Write recorded decisions with their inputs, one a line: the input of replay and unused
    #[command(
        after_help = "The inputs hold claims of workloads: protect the file like the log itself.\n\nExample:\n  taskpass policy decisions --since 7d --token-file admin-token > decisions.jsonl"
    )]
    Decisions(replay::DecisionsArgs),
}

#[derive(Args, Debug)]
struct Source {
    /// The directory of the policies [default: the configuration's policy.directory]
    #[arg(value_name = "DIR")]
    directory: Option<PathBuf>,
    #[command(flatten)]
    file: ConfigFile,
    /// Use the attestors, resources and task types of the development mode, and no configuration
    #[arg(long, conflicts_with = "config")]
    dev: bool,
}

#[derive(Args, Debug)]
struct Check {
    #[command(flatten)]
    source: Source,
    /// A broker that also checks the generation, with its endpoints and its bound admins
    #[arg(long, value_name = "URL")]
    url: Option<Url>,
    #[command(flatten)]
    authorities: Authorities,
    #[command(flatten)]
    token: Token,
}

#[derive(Args, Debug)]
struct Test {
    #[command(flatten)]
    source: Source,
    /// The time of the cases' decisions [default: now]
    #[arg(long, value_name = "TIME")]
    at: Option<Timestamp>,
}

#[derive(Args, Debug)]
struct Schema {
    #[command(flatten)]
    source: Source,
}

#[derive(Args, Debug)]
struct Activate {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    connection: Connection,
}

/// A generation from files, with the directory of its policies.
struct BuiltGeneration {
    generation: Generation,
    compiled: CompiledGeneration,
    directory: PathBuf,
}

/// Why no generation was built.
enum BuildError {
    /// The files yield a generation that cannot be used.
    Unfit(Vec<PolicyProblem>),
    /// The files cannot be read.
    Failed(CliError),
}

impl BuildError {
    /// The failure of a command that needs a generation. `unfit` creates it from the list of
    /// problems.
    fn or_unfit(self, unfit: impl FnOnce(String) -> CliError) -> CliError {
        match self {
            Self::Unfit(problems) => unfit(list(&problems)),
            Self::Failed(failure) => failure,
        }
    }
}

impl From<CliError> for BuildError {
    fn from(failure: CliError) -> Self {
        Self::Failed(failure)
    }
}

impl Source {
    /// Reads the configuration's text, without its secrets and the files that it names.
    fn configuration(&self) -> Result<Config, CliError> {
        let config = if self.dev {
            let path = Path::new("development-settings.toml");
            Config::parse_text(path, &settings::sample_configuration(), Mode::Dev)
        } else {
            Config::load_text(&self.file.path()?, Mode::Production)
        };
        config.map_err(|errors| CliError::Usage(errors.to_string()))
    }

    /// Builds the generation of the files, if a broker with this configuration could activate it at
    /// `at`.
    fn build(&self, at: Option<Timestamp>) -> Result<BuiltGeneration, BuildError> {
        let mut config = self.configuration()?;
        if let Some(directory) = &self.directory {
            config.policy.directory.clone_from(directory);
        }
        let checked = match app::check(&config, None, at) {
            Ok(checked) => checked,
            Err(CheckError::Generation(unfit)) => {
                return Err(BuildError::Unfit(unfit.into_problems()));
            }
            Err(other) => return Err(CliError::Usage(other.to_string()).into()),
        };
        Ok(BuiltGeneration {
            generation: checked.generation,
            compiled: checked.compiled,
            directory: config.policy.directory,
        })
    }

    fn built(&self) -> Result<BuiltGeneration, CliError> {
        let built = self.build(None);
        built.map_err(|unbuilt| unbuilt.or_unfit(CliError::Refused))
    }
}

fn list(problems: &[PolicyProblem]) -> String {
    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

impl Policy {
    pub(super) async fn run(self, form: Form) -> Result<(), CliError> {
        match self.command {
            Command::Check(check) => check.check(form).await,
            Command::Test(test) => test.run(form),
            Command::Schema(schema) => {
                let built = schema.source.built()?;
                let text = built.generation.schema.as_str();
                match form {
                    Form::Json => output::json(&json!({"schema": text})),
                    Form::Text => output::raw(text.as_bytes()),
                }
            }
            Command::Activate(activate) => activate.run(form).await,
            Command::Explain(explain) => explain.run(form).await,
            Command::Replay(replay) => replay.run(form),
            Command::Unused(unused) => unused.run(form),
            Command::Decisions(decisions) => decisions.run().await,
        }
    }
}

/// Prints each policy that only observes, so that it is not taken for an enforced one.
fn say_what_observes(compiled: &CompiledGeneration) -> Result<(), CliError> {
    for (policy, until) in compiled.observing(SystemClock.now()) {
        output::line(format!(
            "NOT ENFORCED before {until}: `{policy}` only observes"
        ))?;
    }
    Ok(())
}

/// Prints notes on policies that load but may not have the intended effect.
fn say_notes(notes: &Notes) -> Result<(), CliError> {
    let more = |own: &NamedLocations| match own.count {
        1 => String::new(),
        count => format!(" and {} more", count - 1),
    };
    for own in &notes.unmet_locations {
        output::line(format!(
            "note: forbid `{}` names `{}`{}, which no location of a request can match: compare it \
             with the registered locations (https, lower-case host, no default port, no escapes, \
             no //, no query)",
            own.policy,
            own.first,
            more(own)
        ))?;
    }
    for own in &notes.lasting {
        output::line(format!(
            "note: resource `{}`: the action `{}` allows `{}`, with which a session can create {}, \
             which outlives the session and which no revocation ends; register narrower actions",
            own.resource, own.action, own.allows, own.leaves
        ))?;
    }
    for policy in &notes.without_region {
        output::line(format!(
            "note: policy `{policy}` tests for a request without a region. Every request on AWS has \
             regions: name the intended ones, [\"…\"].contains(context.region)"
        ))?;
    }
    for own in &notes.single_locations {
        let more = more(own);
        output::line(format!(
            "note: permit `{}` names `{}`{more} with == only. It covers that exact location, but a \
             request for a URL includes the locations below it: add || context.location like \"{}/*\"",
            own.policy, own.first, own.first
        ))?;
    }
    Ok(())
}

impl Check {
    async fn check(self, form: Form) -> Result<(), CliError> {
        let now = SystemClock.now();
        let built = match self.source.build(Some(now)) {
            Ok(built) => Ok(built),
            Err(BuildError::Unfit(problems)) => Err(problems),
            Err(BuildError::Failed(failure)) => return Err(failure),
        };
        let told = match (&self.url, &built) {
            (Some(url), Ok(built)) => {
                let client = self.token.client_at(url, &self.authorities)?;
                let path = "/v1/generations/check";
                let reply: Reply<CheckedBody> = client.post(path, &built.generation).await?;
                Some(reply.read()?)
            }
            _ => None,
        };
        if form.is_json() {
            let problems = built.as_ref().err().cloned().unwrap_or_default();
            let compiled = built.as_ref().ok().map(|built| &built.compiled);
            let observing = compiled.into_iter().flat_map(|own| own.observing(now));
            let observing: Vec<Value> = observing
                .map(|(policy, until)| json!({"policy": policy, "enforced_from": until}))
                .collect();
            let notes = compiled.map(|own| own.notes().clone()).unwrap_or_default();
            output::even_unread(output::json(&json!({
                "good": built.is_ok(), "generation": compiled.map(CompiledGeneration::digest),
                "observed_policies": observing, "problems": problems, "single_places": notes.single_locations,
                "unmet_places": notes.unmet_locations, "without_region": notes.without_region,
                "lasting": notes.lasting,
                // Only the broker knows these values; null if it was not asked.
                "bound_identities": told.as_ref().map(|told| told.bound_identities),
                "able_to_activate": told.as_ref().map(|told| told.able_to_activate),
            })))?;
            return built.map(drop).map_err(|_| CliError::AlreadyReported);
        }
        let built = built.map_err(|problems| CliError::Refused(list(&problems)))?;
        output::line(format!(
            "good: {} policies in {}, generation {}",
            built.compiled.policy_ids().count(),
            built.directory.display(),
            built.compiled.digest()
        ))?;
        say_notes(built.compiled.notes())?;
        match &told {
            None => output::line(
                "not checked: whether a bound admin could activate the next generation; --url asks \
                 the broker",
            )?,
            Some(told) => output::line(format!(
                "at the broker: {} of {} bound identities could activate the next generation",
                told.able_to_activate, told.bound_identities
            ))?,
        }
        say_what_observes(&built.compiled)
    }
}

impl Test {
    fn run(self, form: Form) -> Result<(), CliError> {
        let built = self.source.built()?;
        let tests = policy::read_tests(&built.directory)
            .map_err(|problem| CliError::Refused(problem.to_string()))?;
        let report = suite::run(
            &built.compiled,
            &tests,
            self.at.unwrap_or_else(|| SystemClock.now()),
        );
        let shown = if form.is_json() {
            let cases: Vec<Value> = report
                .cases
                .iter()
                .map(
                    |case| json!({"file": case.file, "name": case.name, "failures": case.failures}),
                )
                .collect();
            output::json(&json!({
                "passed": report.passed(),
                "cases": cases,
                "problems": report.problems,
                "untested": report.untested,
            }))
        } else {
            output::line(report.to_string())
        };
        output::even_unread(shown)?;
        if report.passed() {
            return Ok(());
        }
        Err(CliError::AlreadyReported)
    }
}

impl Activate {
    async fn run(self, form: Form) -> Result<(), CliError> {
        let built = self.source.build(Some(SystemClock.now()));
        let built = built.map_err(|unbuilt| unbuilt.or_unfit(CliError::Refused))?;
        let client = self.connection.client()?;
        let path = "/v1/generations";
        let reply: Reply<ActivatedBody> = client.post(path, &built.generation).await?;
        if form.is_json() {
            return output::json(reply.json()?);
        }
        output::line(format!(
            "generation {} decides from now on",
            built.compiled.digest()
        ))?;
        say_what_observes(&built.compiled)
    }
}
