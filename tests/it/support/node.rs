//! Programs for Node.js, with the packages that `scripts/setup test` installs.

use std::path::PathBuf;

use super::process::Launch;

/// A script of `tests/foreign`, with the packages that it imports.
pub fn script(name: &str) -> Launch {
    let tools = std::env::var_os("TASKPASS_TEST_NODE").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(".tools/node"),
        PathBuf::from,
    );
    let (program, packages) = (tools.join("node"), tools.join("node_modules"));
    assert!(
        program.exists() && packages.exists(),
        "{} is incomplete: run `scripts/setup test`",
        tools.display()
    );
    let source = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/foreign")
        .join(name);
    // Node resolves imports relative to the script's directory.
    Launch::program(program, [name])
        .file(name, std::fs::read(source).unwrap())
        .link("node_modules", packages)
}
