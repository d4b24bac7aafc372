//! Help, exit codes, JSON output, completions and wrong command lines.

use super::*;
use crate::support::hex;

#[test]
fn a_wrong_command_line_is_not_a_verdict() {
    let vkey = Log::new(ORIGIN).vkey();
    let flipped = vkey.replacen("broker", "braker", 1);
    for bad in [
        vec!["ledger", "verify", "file"],
        vec!["ledger", "verify", "--key", &vkey],
        vec!["ledger", "verify", "file", "--key", "broker.test/log"],
        vec!["ledger", "verify", "file", "--key", &flipped],
    ] {
        assert_eq!(taskpass(&bad).code(), Some(2), "{bad:?}");
    }
    let missing = taskpass(&["ledger", "verify", "nowhere", "--key", &vkey]);
    assert_eq!(missing.code(), Some(3), "{}", missing.stderr);
}

#[test]
fn every_command_has_help_with_an_example() {
    let leaves = [
        "serve",
        "migrate",
        "dev",
        "request",
        "task heartbeat",
        "task complete",
        "task abort",
        "task show",
        "task list",
        "sessions list",
        "sessions show",
        "sessions revoke",
        "revoke",
        "lift",
        "policy check",
        "policy test",
        "policy schema",
        "policy activate",
        "policy explain",
        "policy replay",
        "policy decisions",
        "policy unused",
        "ledger verify",
        "ledger receipt",
        "ledger export",
        "ledger consistency",
        "ledger new-origin",
        "ledger checkpoint",
        "ledger keys",
        "ledger watch",
        "ledger coverage",
        "ledger events",
        "workloads add",
        "workloads list",
        "workloads remove",
        "admins bind",
        "admins unbind",
        "admins list",
        "keys bootstrap",
        "keys sealing-key",
        "keys list",
        "keys rotate",
        "keys revoke",
        "keys reseal",
        "exec",
        "aws credential-process",
        "aws trust-policy",
        "openapi",
        "health",
        "completions",
    ];
    for command in leaves {
        let arguments: Vec<&str> = command.split(' ').chain(["--help"]).collect();
        let ended = taskpass(&arguments);
        assert_eq!(ended.code(), Some(0), "{command}: {}", ended.stderr);
        let example = format!("taskpass {command}");
        let help = ended.stdout;
        assert!(help.contains("Example"), "{command}: {help}");
        assert!(help.matches(&example).count() >= 2, "{command}: {help}");
    }
}

#[test]
fn the_help_says_which_commands_there_are() {
    insta::assert_snapshot!(taskpass(&["--help"]).stdout, @r"
    A just-in-time credential broker: one credential, for one task, decided before it exists

    Usage: taskpass [OPTIONS] <COMMAND>

    Commands:
      serve        Run the broker
      migrate      Migrate the PostgreSQL database to the current schema
      dev          Try it: a broker on this machine, with samples and a demonstration
      exec         Run a command with a credential that ends when the command ends
      aws          Get credentials for AWS's tools, and print the trust policies of roles
      request      Request a credential
      task         Heartbeat, complete, abort, show and list tasks
      sessions     List, show and revoke sessions
      revoke       End everything that a selector matches
      revocations  List and show revocations, and lift their blocks
      lift         Lift the block of a revocation
      policy       Check, test and activate policies
      ledger       Verify receipts and logs offline; export the log; show its head
      workloads    Register, list and remove workload keys
      admins       Bind identities to roles, and unbind them
      attest       Explain attestations
      keys         Create first secrets; list, rotate, revoke and reseal the broker's keys
      openapi      Print the description of the HTTP interface
      health       Check whether a broker is alive, or ready
      reference    Print the environment variables and exit codes, or the help of every command
      completions  Print the completion script of a shell

    Options:
          --json     Print JSON: the result, or the error
      -h, --help     Print help
      -V, --version  Print version

    Try it: taskpass dev

    Exit codes: 0 success, 1 refused, 2 usage, 3 could not reach or establish.
    ");
}

/// Every command that has no subcommands.
fn commands() -> Vec<String> {
    fn collect(command: &clap::Command, path: &str, found: &mut Vec<String>) {
        if !command.has_subcommands() {
            found.push(path.trim().to_owned());
        }
        for sub in command.get_subcommands() {
            collect(sub, &format!("{path} {}", sub.get_name()), found);
        }
    }
    let mut found = Vec::new();
    let command = <taskpass::cli::Cli as clap::CommandFactory>::command();
    collect(&command, "", &mut found);
    found
}

/// The error of a command that ran with `--json`.
#[track_caller]
fn told_as_json(text: &str) -> Value {
    let mut told: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
    told["error"].take()
}

#[test]
fn every_command_takes_json_and_tells_a_misuse_in_it() {
    let commands = commands();
    assert!(commands.len() > 45, "{commands:?}");
    for command in commands {
        let words: Vec<&str> = command.split(' ').collect();
        let help = taskpass(&[words.as_slice(), &["--help"]].concat()).stdout;
        assert!(help.contains("--json"), "{command}: {help}");
        let misused = taskpass(&[words.as_slice(), &["--json", "--no-such-option"]].concat());
        assert_eq!(misused.code(), Some(2), "{command}");
        let error = told_as_json(&misused.stdout);
        assert_eq!(
            (&error["kind"], &error["exit_code"]),
            (&json!("usage"), &json!(2))
        );
        let detail = error["detail"].as_str().unwrap();
        assert!(detail.contains("--no-such-option"), "{command}: {detail}");
        assert_eq!(misused.stderr, "", "{command}");
    }
    let misused = taskpass(&["exec", "--no-such-option", "--", "true", "--json"]);
    assert!(
        misused.stdout.is_empty(),
        "the flag after `--` belongs to the child command: {misused:?}"
    );
}

#[test]
fn what_cannot_be_reached_is_told_as_json() {
    let unreachable = ["--url", "http://127.0.0.1:1", "--json"];
    let listed = Launch::taskpass(["sessions", "list"])
        .arguments(&unreachable)
        .env("TASKPASS_TOKEN", "tpa_x")
        .run();
    assert_eq!(listed.code(), Some(3), "{listed:?}");
    let error = told_as_json(&listed.stdout);
    assert_eq!(
        (&error["kind"], &error["exit_code"]),
        (&json!("unestablished"), &json!(3))
    );
    // The standard output of `exec` belongs to its child command.
    let asked = [
        "exec",
        "--resource",
        "r",
        "--action",
        "a",
        "--task-type",
        "t",
    ];
    let executed = Launch::taskpass(asked)
        .arguments(&unreachable)
        .arguments(&["--", "true"])
        .env("TASKPASS_TOKEN", "tpa_x")
        .env("TASKPASS_RETRY_SECONDS", "0")
        .run();
    assert_eq!(
        (executed.code(), executed.stdout.as_str()),
        (Some(3), ""),
        "{executed:?}"
    );
    assert_eq!(told_as_json(&executed.stderr)["kind"], "unestablished");
}

#[test]
fn usage_is_one_code_and_what_cannot_be_reached_another() {
    for bad in [
        vec![],
        vec!["no-such-command"],
        vec!["serve", "--no-such-option"],
        vec!["serve", "--config", "nowhere.toml"],
        vec!["sessions", "list"],
        vec!["sessions", "show", "not-an-id"],
        vec!["revoke", "everything", "--reason", "x"],
        vec!["revoke", "all"],
        vec!["health", "--url", "http://broker.example"],
        vec!["request", "--resource", "r", "--task-type", "t"],
        vec!["migrate", "--config", "nowhere.toml"],
    ] {
        let ended = taskpass(&bad);
        assert_eq!(ended.code(), Some(2), "{bad:?}: {}", ended.stderr);
        assert!(
            !ended.stderr.is_empty() && ended.stdout.is_empty(),
            "{bad:?}"
        );
    }
    let nobody = taskpass(&["health", "--url", "http://127.0.0.1:1/livez"]);
    assert_eq!(nobody.code(), Some(3), "{}", nobody.stderr);
    let nobody = Launch::taskpass(["sessions", "list", "--url", "http://127.0.0.1:1"])
        .env("TASKPASS_TOKEN", "tpa_x")
        .run();
    assert_eq!(nobody.code(), Some(3), "{}", nobody.stderr);
    assert!(!nobody.stderr.contains("tpa_x"));
}

#[test]
fn a_development_broker_does_not_start_where_it_must_not() {
    let outside = taskpass(&["dev", "--listen", "0.0.0.0:0"]);
    assert_eq!(outside.code(), Some(2), "{}", outside.stderr);
    for name in [
        "TASKPASS_CONFIG",
        "TASKPASS_DATABASE_URL",
        "TASKPASS_DATABASE_URL_FILE",
        "TASKPASS_SEALING_KEYS",
        "TASKPASS_SEALING_KEYS_FILE",
    ] {
        let beside = Launch::taskpass(["dev", "--listen", "127.0.0.1:0", "--no-story"])
            .env(name, "x")
            .run();
        assert_eq!(beside.code(), Some(2), "{name}: {}", beside.stderr);
        assert!(beside.stderr.contains(name), "{}", beside.stderr);
    }
}

#[test]
fn a_bootstrap_token_is_printed_with_its_digest_and_differs_each_time() {
    let make = || {
        let ended = taskpass(&["keys", "bootstrap", "--json"]);
        assert_eq!(ended.code(), Some(0));
        serde_json::from_str::<Value>(&ended.stdout).unwrap()
    };
    let (one, two) = (make(), make());
    let token = one["token"].as_str().unwrap();
    assert!(token.starts_with("tpa_") && token.len() == 47, "{token}");
    assert_eq!(
        one["bootstrap_token_sha256"],
        hex(&sha256(token.as_bytes()))
    );
    assert_ne!(one["token"], two["token"]);
    let plain = taskpass(&["keys", "bootstrap"]);
    assert_eq!(
        plain.stdout.lines().count(),
        1,
        "the token alone: {}",
        plain.stdout
    );
    let sealing = taskpass(&["keys", "sealing-key"]).stdout;
    assert!(sealing.starts_with("tpk1_"), "{sealing}");
}

#[test]
fn completions_are_there_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ended = taskpass(&["completions", shell]);
        assert_eq!(ended.code(), Some(0), "{shell}");
        assert!(ended.stdout.contains("taskpass"), "{shell}");
    }
    assert_eq!(taskpass(&["completions", "cmd"]).code(), Some(2));
}
