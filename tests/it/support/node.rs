//! Programs for Node.js, with the packages that `scripts/setup test` installs.

use std::path::PathBuf;

use super::process::Launch;

/// One of the scripts in `tests/foreign`, beside the packages it imports.
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
    // A module's imports are looked for from where it lies.
    Launch::program(program, [name])
        .file(name, std::fs::read(source).unwrap())
        .link("node_modules", packages)
}
