//! `taskpass reference`: prints the environment variables and the exit codes as one page, or the
//! help of every command as another.
//!
//! The variables of flags come from clap's description of the command line; the others are in
//! [`VARIABLES`]. A test compares that table with the variable names in the source.
//!
//! It fails only if the output cannot be written. `super::error` has the exit codes, and
//! `config::environment` reads the variables.

use std::collections::BTreeMap;

use clap::{Args, CommandFactory as _};
use serde::Serialize;
use serde_json::json;

use super::output::{self, Form};
use super::{Cli, CliError, ExitClass, exec};
use crate::config;

/// Print the environment variables and exit codes, or the help of every command
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  taskpass reference\n  taskpass reference --json\n  \
                  taskpass reference --commands"
)]
pub(super) struct Reference {
    /// Print the help of every command instead
    #[arg(long)]
    commands: bool,
}

/// An environment variable without a flag.
struct Variable {
    name: &'static str,
    /// Whether `NAME_FILE` may name a file with the value.
    file: bool,
    /// The commands that read it, or that set it for another program.
    used_by: &'static str,
    meaning: &'static str,
}

const fn read(name: &'static str, used_by: &'static str, meaning: &'static str) -> Variable {
    Variable {
        name,
        file: false,
        used_by,
        meaning,
    }
}

const fn secret(name: &'static str, used_by: &'static str, meaning: &'static str) -> Variable {
    Variable {
        name,
        file: true,
        used_by,
        meaning,
    }
}

const EXEC_SETS: &str = "set by `exec`";
const EXEC_AWS: &str = "set by `exec` for AWS, removed otherwise";

/// All variables that do not belong to a flag.
const VARIABLES: &[Variable] = &[
    read(
        config::CONFIG_VARIABLE,
        "`serve`, `migrate`, and commands with `--config`",
        "The path of the configuration file [default: taskpass.toml]",
    ),
    secret(
        config::DATABASE_URL_VARIABLE,
        "`serve`, `migrate`, `ledger new-origin`",
        "The URL of the PostgreSQL database",
    ),
    secret(
        config::SEALING_KEYS_VARIABLE,
        "`serve`, `ledger new-origin`",
        "The sealing keys, separated by commas or line breaks: the first seals, all of them open",
    ),
    secret(
        "TASKPASS_OLD_DATABASE_URL",
        "`ledger new-origin`, `keys revoke --ledger`",
        "The URL of the old log's PostgreSQL database",
    ),
    read(
        config::LOG_VARIABLE,
        "`serve`, `dev`",
        "A log filter in place of `log.level`, such as `info,taskpass::attest=debug`",
    ),
    read(
        "TASKPASS_TOKEN",
        "every command that sends a token",
        "The attestation or the admin's token; `--token-env` names another variable",
    ),
    read(
        "TASKPASS_HANDLE",
        "`task`; set by `request --env`, removed by `exec`",
        "The handle of a task",
    ),
    read(
        "TASKPASS_CREDENTIAL",
        "set by `request --env`, removed by `exec`",
        "The credential",
    ),
    read(
        "TASKPASS_TASK",
        "set by `exec`, `request --env`",
        "The id of the task",
    ),
    read(
        "TASKPASS_SESSION",
        "set by `exec`, `request --env`",
        "The id of the session",
    ),
    read(
        "TASKPASS_ACCESS_TOKEN",
        EXEC_SETS,
        "The access token, with `--as env`; `--variable` names another variable",
    ),
    read(
        "TASKPASS_ACCESS_TOKEN_FILE",
        EXEC_SETS,
        "The file with the access token, with `--as file`",
    ),
    read(
        "TASKPASS_WITHHELD_FD",
        "`exec`, between its own two steps",
        "The descriptor that passes on the variables which the command must not read",
    ),
    read(
        "ACTIONS_ID_TOKEN_REQUEST_URL",
        "commands that attest; removed by `exec`",
        "The URL at which GitHub Actions issues the job's OIDC token",
    ),
    read(
        "ACTIONS_ID_TOKEN_REQUEST_TOKEN",
        "commands that attest; removed by `exec`",
        "The token that authenticates that request to GitHub Actions",
    ),
    read(
        "SPIFFE_ENDPOINT_SOCKET",
        "commands that attest",
        "The socket of the SPIFFE Workload API",
    ),
    read(
        "KUBERNETES_SERVICE_HOST",
        "commands that attest",
        "The host of the Kubernetes API, which issues a token for each task",
    ),
    read(
        "KUBERNETES_SERVICE_PORT",
        "commands that attest",
        "The port of the Kubernetes API",
    ),
    read(
        "SSL_CERT_FILE",
        "every command, `serve`",
        "A file with the certificates of the trusted authorities, in place of the system's",
    ),
    read(
        "SSL_CERT_DIR",
        "every command, `serve`",
        "A directory with such files",
    ),
    read(
        "XDG_RUNTIME_DIR",
        "`aws credential-process`",
        "The directory of its cache, unless `--cache-dir` gives one",
    ),
    read("AWS_ACCESS_KEY_ID", EXEC_AWS, "The access key id"),
    read("AWS_SECRET_ACCESS_KEY", EXEC_AWS, "The secret access key"),
    read("AWS_SESSION_TOKEN", EXEC_AWS, "The session token"),
    read(
        "AWS_CREDENTIAL_EXPIRATION",
        EXEC_AWS,
        "When the session ends",
    ),
    read("AWS_REGION", EXEC_AWS, "The region that was granted"),
    read(
        "AWS_DEFAULT_REGION",
        EXEC_AWS,
        "The region that was granted",
    ),
    read(
        "AWS_EC2_METADATA_DISABLED",
        EXEC_AWS,
        "`true`: SDKs do not use the machine's own role",
    ),
    read(
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "set by `exec --as endpoint`, removed otherwise",
        "The local endpoint that returns the session",
    ),
    read(
        "AWS_CONTAINER_AUTHORIZATION_TOKEN",
        "set by `exec --as endpoint`, removed otherwise",
        "The token of that endpoint",
    ),
    read(
        "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
        "removed by `exec`; `serve` refuses it as the file of an endpoint",
        "The path of a file with other credentials",
    ),
    read(
        "AWS_CONFIG_FILE",
        EXEC_AWS,
        "An empty file, because profiles would name other credentials",
    ),
];

/// One row of the page's table.
#[derive(Serialize)]
struct Row {
    name: String,
    used_by: String,
    meaning: String,
}

/// The help of one command.
#[derive(Serialize)]
struct CommandHelp {
    command: String,
    help: String,
}

impl Reference {
    pub(super) fn run(self, form: Form) -> Result<(), CliError> {
        match form {
            Form::Text if self.commands => output::raw(commands_page().as_bytes()),
            Form::Json if self.commands => output::json(&helps()),
            Form::Text => output::raw(page().as_bytes()),
            Form::Json => output::json(&json!({
                "variables": rows(),
                "exit_codes": exit_codes().map(|(code, meaning)| json!({"code": code, "meaning": meaning})).collect::<Vec<_>>(),
            })),
        }
    }
}

/// All variables, by name.
fn rows() -> Vec<Row> {
    let mut rows = of_flags();
    for variable in VARIABLES {
        let name = if variable.file {
            format!("`{0}` or `{0}_FILE`", variable.name)
        } else {
            format!("`{}`", variable.name)
        };
        rows.push(Row {
            name,
            used_by: variable.used_by.into(),
            meaning: variable.meaning.into(),
        });
    }
    for name in exec::removed_variables() {
        let name = format!("`{name}`");
        if !rows.iter().any(|row| row.name == name) {
            rows.push(Row {
                name,
                used_by: "removed by `exec`".into(),
                meaning: "Would give the command other credentials or servers".into(),
            });
        }
    }
    rows.sort_by(|one, other| one.name.trim_matches('`').cmp(other.name.trim_matches('`')));
    rows
}

/// The variables of flags, with the commands that have the flag.
fn of_flags() -> Vec<Row> {
    fn collect(
        command: &clap::Command,
        path: &str,
        found: &mut BTreeMap<String, (String, String, Vec<String>)>,
    ) {
        for argument in command.get_arguments() {
            let (Some(name), Some(flag)) = (argument.get_env(), argument.get_long()) else {
                continue;
            };
            let name = name.to_string_lossy().into_owned();
            let help = argument.get_help().map(ToString::to_string);
            let entry = found
                .entry(name)
                .or_insert_with(|| (flag.to_owned(), help.unwrap_or_default(), Vec::new()));
            entry.2.push(path.to_owned());
        }
        for sub in command.get_subcommands() {
            let path = format!("{path} {}", sub.get_name());
            collect(sub, path.trim(), found);
        }
    }
    let mut command = Cli::command();
    command.build();
    let mut found = BTreeMap::new();
    collect(&command, "", &mut found);
    let rows = found.into_iter().map(|(name, (flag, help, commands))| Row {
        name: format!("`{name}`"),
        used_by: match commands.as_slice() {
            few @ ([] | [_] | [_, _] | [_, _, _]) => few
                .iter()
                .map(|command| format!("`{command}`"))
                .collect::<Vec<_>>()
                .join(", "),
            _ => format!("every command with `--{flag}`"),
        },
        meaning: format!("`--{flag}`: {help}"),
    });
    rows.collect()
}

fn exit_codes() -> impl Iterator<Item = (String, &'static str)> {
    let done = ("0".to_owned(), "Done.");
    let failed = ExitClass::ALL.map(|kind| (kind.code().to_string(), kind.meaning()));
    let of_exec = [
        (
            "the command's own".to_owned(),
            "`exec`: the command ended with this code, or with 128 and a signal's number.",
        ),
        (
            "126, 127".to_owned(),
            "`exec`: the command cannot be run, or does not exist.",
        ),
    ];
    std::iter::once(done).chain(failed).chain(of_exec)
}

fn page() -> String {
    let mut page = String::from(
        "# Environment variables and exit codes\n\n\
         `taskpass reference` prints this page from the code. A flag takes precedence over its \
         variable.\n\n\
         ## Environment variables\n\n\
         | variable | used by | meaning |\n|---|---|---|\n",
    );
    for Row {
        name,
        used_by,
        meaning,
    } in rows()
    {
        let meaning = meaning.replace('|', "\\|").replace('\n', " ");
        page.push_str("| ");
        page.push_str(&[name, used_by, meaning].join(" | "));
        page.push_str(" |\n");
    }
    page.push_str("\n## Exit codes\n\n| code | meaning |\n|---|---|\n");
    for (code, meaning) in exit_codes() {
        page.push_str("| ");
        page.push_str(&[code.as_str(), meaning].join(" | "));
        page.push_str(" |\n");
    }
    page.push_str(
        "\nWith `--json` a command writes its result on standard output as JSON. If it fails, it writes \
         `{\"error\": {\"kind\", \"exit_code\", \"detail\", \"problem\"}}` there instead; \
         `problem` is the broker's answer, if there was one. `exec` leaves standard output to its \
         command, and writes that document to standard error.\n",
    );
    page
}

/// The help of each command by its name, in the order of the command line.
fn helps() -> Vec<CommandHelp> {
    fn collect(command: &mut clap::Command, name: &str, found: &mut Vec<CommandHelp>) {
        let help = command.render_long_help().to_string();
        let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
        found.push(CommandHelp {
            command: name.to_owned(),
            help: lines.join("\n"),
        });
        for sub in command.get_subcommands_mut() {
            // clap adds a command `help` to each group.
            if sub.get_name() != "help" && !sub.is_hide_set() {
                let name = format!("{name} {}", sub.get_name());
                collect(sub, &name, found);
            }
        }
    }
    let mut command = Cli::command();
    command.build();
    let mut found = Vec::new();
    collect(&mut command, "taskpass", &mut found);
    found
}

fn commands_page() -> String {
    let mut page = String::from(
        "# Commands\n\n\
         `taskpass reference --commands` prints this page from the code: the help of each command.\n",
    );
    for CommandHelp { command, help } in helps() {
        page.push_str("\n## ");
        page.push_str(&command);
        page.push_str("\n\n```text\n");
        page.push_str(help.trim());
        page.push_str("\n```\n");
    }
    page
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    /// The names of variables in a source file, without its tests.
    fn names_in(text: &str, names: &mut BTreeSet<String>) {
        let own = text.split("#[cfg(test)]").next().unwrap_or_default();
        for piece in own.split('"').skip(1).step_by(2) {
            let prefixes = [
                "TASKPASS_",
                "ACTIONS_",
                "SPIFFE_",
                "XDG_",
                "AWS_",
                "SSL_",
                "KUBERNETES_",
            ];
            let is_name = prefixes.iter().any(|prefix| piece.starts_with(prefix))
                && piece
                    .chars()
                    .all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_');
            if is_name {
                names.insert(piece.to_owned());
            }
        }
    }

    fn walk(directory: &Path, names: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, names);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                names_in(&std::fs::read_to_string(&path).unwrap(), names);
            }
        }
    }

    #[test]
    fn every_variable_that_the_source_names_is_on_the_page() {
        let mut names = BTreeSet::new();
        walk(
            &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
            &mut names,
        );
        assert!(names.len() > 30, "{names:?}");
        let page = page();
        let missing: Vec<_> = names
            .iter()
            .filter(|name| {
                let (one, many) = (format!("`{name}`"), format!("`{name}*`"));
                !page.contains(&one) && !page.contains(&many)
            })
            .collect();
        assert!(missing.is_empty(), "not on the page: {missing:?}");
    }

    #[test]
    fn the_page_in_the_documents_is_the_one_that_the_code_gives() {
        let written = include_str!("../../docs/reference/environment.md");
        assert!(
            written == page(),
            "run: taskpass reference > docs/reference/environment.md"
        );
    }

    #[test]
    fn the_help_of_every_command_in_the_documents_is_the_one_that_the_code_gives() {
        let written = include_str!("../../docs/reference/commands.md");
        assert!(written.contains("\n## taskpass ledger verify\n"));
        assert!(
            written == commands_page(),
            "run: taskpass reference --commands > docs/reference/commands.md"
        );
    }

    #[test]
    fn no_variable_stands_twice() {
        let rows = rows();
        let names: BTreeSet<_> = rows.iter().map(|row| &row.name).collect();
        assert_eq!(names.len(), rows.len());
    }
}
