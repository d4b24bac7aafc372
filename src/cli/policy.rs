//! `taskpass policy`: checking, testing and activating what decides.
//!
//! `explain` decides again what a broker has on record, by the generation that decided, and `replay`
//! by a candidate. `unused` tells what of the policies nobody needed.
//!
//! `check`, `test` and `schema` work offline, from the files alone: no secret, no database, no
//! broker. They check the configuration as `serve --check` does, but for its secrets and the files that
//! it names, which need not be there. What they build is what `activate` sends, digest and all.

mod explain;
mod lines;
mod replay;
mod source;
mod unused;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use url::Url;

use super::Failure;
use super::client::{Authorities, Connection, Token};
use super::dev::settings;
use super::output::{self, Form};
use super::serve::ConfigFile;
use crate::app::{self, CheckError};
use crate::clock::{Clock as _, SystemClock, Timestamp};
use crate::config::{Config, Mode};
use crate::domain::generation::Generation;
use crate::policy::{self, CompiledGeneration, NamedPlaces, Notes, PolicyProblem, suite};

/// Check, test and activate policies
#[derive(Args, Debug)]
pub(super) struct Policy {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check policies, and what the configuration registers, without a broker or against one
    #[command(
        after_help = "Without --url it is not checked whether a bound admin could still activate the next generation: the bindings are in the broker. With it the broker checks everything that activation would check; the token needs the right readGeneration.\n\nExamples:\n  taskpass policy check\n  taskpass policy check policies --dev\n  taskpass policy check --url https://broker.example --token-file admin-token"
    )]
    Check(Check),
    /// Run the tests in the directory `tests` beside the policies
    #[command(
        after_help = "A policy that merely observes counts from its day on, and so do its tests: --at says when they are decided.\n\nExamples:\n  taskpass policy test\n  taskpass policy test policies --dev\n  taskpass policy test --at 2027-01-01T00:00:00Z"
    )]
    Test(Test),
    /// Print the Cedar schema that the configuration gives
    #[command(after_help = "Example:\n  taskpass policy schema > policies/taskpass.cedarschema")]
    Schema(Schema),
    /// Send the generation to a broker, to decide from now on
    #[command(after_help = "Example:\n  taskpass policy activate --token-file admin-token")]
    Activate(Activate),
    /// Decide a recorded decision again, and say why it came out so and what would have turned it
    #[command(
        after_help = "Exits 0 when it comes out byte for byte as it is on record, 1 when it does not, or when leaf, input or generation are not what they were, 3 when it cannot be told: not there, not for this caller, pruned, or decided by another engine and different by this one.\n\nExample:\n  taskpass policy explain 0198b2a0-0000-7000-8000-000000000001 --token-file admin-token"
    )]
    Explain(explain::Explain),
    /// Decide what is on record by other policies, and say what would have changed
    #[command(
        after_help = "Exits 0 when nothing would have changed, 1 when something would, or when a record is not what was logged (it says so on standard error), 2 for a candidate or a file that does not load, 3 when it cannot be told: nothing to evaluate, or nothing changed in what could be evaluated and there is more that was pruned, cut off, or lacks what the candidate asks for. It evaluates what is on record. What is on none (what attestors would make of evidence, for example) is listed with the result. Reading page by page needs an admin's token, or evidence that may come again.\n\nExamples:\n  taskpass policy replay --since 7d --candidate policies --token-file admin-token\n  taskpass policy replay --decisions decisions.jsonl --candidate policies --json"
    )]
    Replay(replay::ReplayArgs),
    /// Say what policies grant and nobody used, and propose narrower ones
    #[command(
        after_help = "Exits 0 when everything was used, 1 when something was not or a record is not what was logged (it says so on standard error), 2 for policies or a file that do not load, 3 when it cannot be told: no permit on record, or some of which it is not known what they used. Then nothing is proposed. A proposal is for review: check it as any candidate.\n\nExamples:\n  taskpass policy unused --since 30d --token-file admin-token\n  taskpass policy unused --since 30d --proposal narrower --token-file admin-token\n  taskpass policy test narrower\n  taskpass policy replay --since 30d --candidate narrower --token-file admin-token"
    )]
    Unused(unused::UnusedArgs),
    /// Write recorded decisions, with their inputs, one a line: what replay and unused read
    #[command(
        after_help = "The inputs hold claims of workloads: keep the file as the log itself.\n\nExample:\n  taskpass policy decisions --since 7d --token-file admin-token > decisions.jsonl"
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
    /// Take attestors, resources and task types of the development mode, and no configuration
    #[arg(long, conflicts_with = "config")]
    dev: bool,
}

#[derive(Args, Debug)]
struct Check {
    #[command(flatten)]
    source: Source,
    /// The broker that checks it too, with its endpoints and the admins that are bound there
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
    /// The instant that the cases are decided at [default: now]
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

/// A generation from files, and where its policies are.
struct Built {
    generation: Generation,
    compiled: CompiledGeneration,
    directory: PathBuf,
}

/// Why there is no generation.
enum Unbuilt {
    /// The files give one that could not decide.
    Unfit(Vec<PolicyProblem>),
    /// The files cannot be read.
    Failed(Failure),
}

impl Unbuilt {
    /// The failure of a command that needs a generation. `unfit` makes one of the list of problems.
    fn or_unfit(self, unfit: impl FnOnce(String) -> Failure) -> Failure {
        match self {
            Self::Unfit(problems) => unfit(list(&problems)),
            Self::Failed(failure) => failure,
        }
    }
}

impl From<Failure> for Unbuilt {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl Source {
    /// The configuration's text. None of its secrets is needed, nor any file that it names.
    fn configuration(&self) -> Result<Config, Failure> {
        let config = if self.dev {
            let path = Path::new("development-settings.toml");
            Config::parse_text(path, &settings::sample_configuration(), Mode::Dev)
        } else {
            Config::load_text(&self.file.path()?, Mode::Production)
        };
        config.map_err(|errors| Failure::Usage(errors.to_string()))
    }

    /// What the files say should decide, if a broker with this configuration could activate it at `at`.
    fn build(&self, at: Option<Timestamp>) -> Result<Built, Unbuilt> {
        let mut config = self.configuration()?;
        if let Some(directory) = &self.directory {
            config.policy.directory.clone_from(directory);
        }
        let checked = match app::check(&config, None, at) {
            Ok(checked) => checked,
            Err(CheckError::Generation(unfit)) => {
                return Err(Unbuilt::Unfit(unfit.into_problems()));
            }
            Err(other) => return Err(Failure::Usage(other.to_string()).into()),
        };
        Ok(Built {
            generation: checked.generation,
            compiled: checked.compiled,
            directory: config.policy.directory,
        })
    }

    fn built(&self) -> Result<Built, Failure> {
        let built = self.build(None);
        built.map_err(|unbuilt| unbuilt.or_unfit(Failure::Refused))
    }
}

fn list(problems: &[PolicyProblem]) -> String {
    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

impl Policy {
    pub(super) async fn run(self, form: Form) -> Result<(), Failure> {
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

/// A policy that is not enforced is not to be overlooked.
fn say_what_observes(compiled: &CompiledGeneration) -> Result<(), Failure> {
    for (policy, until) in compiled.observing(SystemClock.now()) {
        output::line(format!(
            "NOT ENFORCED before {until}: `{policy}` merely observes"
        ))?;
    }
    Ok(())
}

/// What loads and does not do what it seems to.
fn say_notes(notes: &Notes) -> Result<(), Failure> {
    let more = |own: &NamedPlaces| match own.count {
        1 => String::new(),
        count => format!(" and {} more", count - 1),
    };
    for own in &notes.unmet_places {
        output::line(format!(
            "note: forbid `{}` names `{}`{}, which no location of a request can be: compare it with \
             the registered locations (https, lower-case host, no default port, no escapes, no //)",
            own.policy,
            own.first,
            more(own)
        ))?;
    }
    for own in &notes.lasting {
        output::line(format!(
            "note: resource `{}`: the action `{}` allows `{}`, by which a session can leave {} behind \
             that outlives it and no revocation ends; register narrower actions",
            own.resource, own.action, own.allows, own.leaves
        ))?;
    }
    for policy in &notes.without_region {
        output::line(format!(
            "note: policy `{policy}` asks for a request without a region. On AWS every request has \
             regions: name those that are meant, [\"…\"].contains(context.region)"
        ))?;
    }
    for own in &notes.single_places {
        let more = more(own);
        output::line(format!(
            "note: permit `{}` names `{}`{more} by == alone. It covers that single place, and who asks \
             for a URL asks for what is below it too: add || context.location like \"{}/*\"",
            own.policy, own.first, own.first
        ))?;
    }
    Ok(())
}

impl Check {
    async fn check(self, form: Form) -> Result<(), Failure> {
        let now = SystemClock.now();
        let built = match self.source.build(Some(now)) {
            Ok(built) => Ok(built),
            Err(Unbuilt::Unfit(problems)) => Err(problems),
            Err(Unbuilt::Failed(failure)) => return Err(failure),
        };
        let told = match (&self.url, &built) {
            (Some(url), Ok(built)) => {
                let body = serde_json::to_value(&built.generation);
                let body = body.map_err(Failure::unestablished)?;
                let client = self.token.client_at(url, &self.authorities)?;
                Some(client.post("/v1/generations/check", &body).await?)
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
                "observed_policies": observing, "problems": problems, "single_places": notes.single_places,
                "unmet_places": notes.unmet_places, "without_region": notes.without_region,
                "lasting": notes.lasting,
                // What only the broker knows; null where it was not asked.
                "bound_identities": told.as_ref().map(|told| &told["bound_identities"]),
                "able_to_activate": told.as_ref().map(|told| &told["able_to_activate"]),
            })))?;
            return built.map(drop).map_err(|_| Failure::Told);
        }
        let built = built.map_err(|problems| Failure::Refused(list(&problems)))?;
        output::line(format!(
            "good: {} policies in {}, generation {}",
            built.compiled.policy_ids().count(),
            built.directory.display(),
            built.compiled.digest()
        ))?;
        say_notes(built.compiled.notes())?;
        match &told {
            None => output::line(
                "not checked: whether an admin that is bound at the broker could activate the next \
                 generation; --url asks it",
            )?,
            Some(told) => output::line(format!(
                "at the broker: {} of {} bound identities could activate the next generation",
                told["able_to_activate"], told["bound_identities"]
            ))?,
        }
        say_what_observes(&built.compiled)
    }
}

impl Test {
    fn run(self, form: Form) -> Result<(), Failure> {
        let built = self.source.built()?;
        let tests = policy::read_tests(&built.directory)
            .map_err(|problem| Failure::Refused(problem.to_string()))?;
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
        Err(Failure::Told)
    }
}

impl Activate {
    async fn run(self, form: Form) -> Result<(), Failure> {
        let built = self.source.build(Some(SystemClock.now()));
        let built = built.map_err(|unbuilt| unbuilt.or_unfit(Failure::Refused))?;
        let body = serde_json::to_value(&built.generation).map_err(Failure::unestablished)?;
        let client = self.connection.client()?;
        let answer = client.post("/v1/generations", &body).await?;
        if form.is_json() {
            return output::json(&answer);
        }
        output::line(format!(
            "generation {} decides from now on",
            built.compiled.digest()
        ))?;
        say_what_observes(&built.compiled)
    }
}
