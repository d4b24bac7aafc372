//! Runs the shell blocks of the documents that are marked with this module's test. They need no
//! broker; `scripts/check-docs` checks that every other block has another mark.

use std::path::{Path, PathBuf};

use crate::support::process::Launch;

/// The start of a block that this test runs.
const START: &str = "<!-- run: documents::marked_blocks_of_the_pages_succeed -->\n```console\n";

/// Every page in a directory and below it.
fn pages(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            pages(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "md") {
            found.push(path);
        }
    }
}

#[test]
fn marked_blocks_of_the_pages_succeed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    pages(&root.join("docs"), &mut found);
    let programs = Path::new(env!("CARGO_BIN_EXE_taskpass")).parent().unwrap();
    let inherited = std::env::var("PATH").unwrap();
    let path = format!("{}:{inherited}", programs.display());
    let mut count = 0;
    for page in found {
        let text = std::fs::read_to_string(&page).unwrap();
        for rest in text.split(START).skip(1) {
            let block = rest.split("```").next().unwrap();
            let commands: Vec<&str> = block
                .lines()
                .filter_map(|line| line.strip_prefix("$ "))
                .collect();
            let script = commands.join("\n");
            let ended = Launch::program("bash", ["-euo", "pipefail", "-c", &script])
                .env("PATH", path.clone())
                .link("policies", root.join("policies"))
                .run();
            let name = page.display();
            assert_eq!(ended.code(), Some(0), "{name}: {script}\n{}", ended.stderr);
            count += 1;
        }
    }
    assert!(count >= 3, "{count} blocks");
}
