//! Runs the production steps of `docs/how-to/run-on-postgresql.md`. Only host names and paths are
//! replaced.

use std::path::Path;
use std::time::Duration;

use crate::support::free_address;
use crate::support::postgres::{TestDatabase, fresh_database, postgres_program};
use crate::support::process::Launch;
use crate::support::random_hex;

/// The first shell block under this heading.
fn block(heading: &str) -> String {
    let page = include_str!("../../docs/how-to/run-on-postgresql.md");
    let (_, section) = page.split_once(heading).expect("the heading");
    let (_, rest) = section.split_once("```sh\n").expect("a shell block");
    let (block, _) = rest.split_once("\n```").expect("the block's end");
    assert!(!block.contains("\n## "), "the block is of this section");
    block.to_owned()
}

fn replaced(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "the page names {from}");
    text.replace(from, to)
}

/// The URL of the cluster's maintenance database.
fn cluster(database: &TestDatabase) -> url::Url {
    let mut url: url::Url = database.url().parse().unwrap();
    url.set_path("postgres");
    url
}

#[test]
fn the_production_block_of_the_readme_leads_to_an_admin_and_a_credential() {
    let database = fresh_database();
    let owner = cluster(&database);
    let server = database.address();
    let address = free_address();
    let unique = random_hex(4);
    let mut script = block("## All steps");
    for (from, to) in [
        ("https://broker.example", format!("http://{address}")),
        ("127.0.0.1:8443", address.to_string()),
        (
            "postgres://postgres@db.example/postgres",
            format!("\"{owner}\""),
        ),
        (
            "db.example/taskpass?sslmode=verify-full",
            format!("{server}/taskpass_{unique}"),
        ),
        ("DATABASE taskpass ", format!("DATABASE taskpass_{unique} ")),
        ("taskpass_owner", format!("taskpass_owner_{unique}")),
        ("taskpass_serve", format!("taskpass_serve_{unique}")),
    ] {
        script = replaced(&script, from, &to);
    }
    assert!(
        !script.contains("db.example"),
        "every host name is replaced"
    );
    // Stop the broker when the script ends.
    let script = format!("trap 'kill $!; wait' EXIT\n{script}\n");
    let folders = [
        Path::new(env!("CARGO_BIN_EXE_taskpass")),
        &postgres_program("psql"),
    ]
    .map(|program| program.parent().unwrap().display().to_string());
    let path = format!("{}:{}", folders.join(":"), std::env::var("PATH").unwrap());
    let mut shell = Launch::program("bash", ["-euo", "pipefail", "-c", &script])
        .env("PATH", path)
        .spawn();
    let status = shell.wait(Duration::from_mins(5));
    assert!(status.success(), "{status}");
    let printed = shell.stdout();
    for words in ["decides from now on", "workload:oncall has the role admin"] {
        assert!(printed.contains(words), "{words}: {printed}");
    }
    let listed = printed.lines().any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words == ["workload:oncall", "admin"]
    });
    assert!(listed, "{printed}");
    let token = printed
        .lines()
        .map(str::trim)
        .rfind(|line| !line.is_empty());
    let parts = token.map_or(0, |token| token.split('.').count());
    assert!(
        parts == 3 && token.is_some_and(|token| token.starts_with("eyJ")),
        "{printed}"
    );
    let config = std::fs::read_to_string(shell.dir().join("taskpass.toml")).unwrap();
    assert!(!config.contains("bootstrap_token_sha256"), "{config}");
    assert!(
        !printed.contains("tpa_"),
        "the script must not print the token"
    );
    // The broker would start again with this configuration, from which only the digest was removed.
    drop(database);
}
