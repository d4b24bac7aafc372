//! Runs the shell blocks of the documents that are marked with these tests. `scripts/check-docs`
//! checks that every other block has a mark with the reason why no test runs it.
//!
//! The blocks of one page run in order, in one shell and one directory, against a real broker.

mod broker;
mod how_to;
mod page;
mod tutorials;

use std::path::{Path, PathBuf};

use self::page::{Block, blocks, search_path, test_of};
use crate::support::process::Launch;

/// The mark of blocks that need no broker. Each of them runs in a directory of its own.
const ALONE: &str = "documents::marked_blocks_of_the_pages_succeed";

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

/// The pages of the documents and the README.
fn all_pages(root: &Path) -> Vec<PathBuf> {
    let mut found = vec![root.join("README.md")];
    pages(&root.join("docs"), &mut found);
    found
}

#[test]
fn marked_blocks_of_the_pages_succeed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut count = 0;
    for page in all_pages(root) {
        let text = std::fs::read_to_string(&page).unwrap();
        for block in blocks(&text, ALONE) {
            let Block::Commands { script, .. } = block else {
                continue;
            };
            let ended = Launch::program("bash", ["-euo", "pipefail", "-c", &script])
                .env("PATH", search_path())
                .link("policies", root.join("policies"))
                .run();
            let name = page.display();
            assert_eq!(ended.code(), Some(0), "{name}: {script}\n{}", ended.stderr);
            count += 1;
        }
    }
    assert!(count >= 4, "{count} blocks");
}

/// A test runs only the blocks of its own page, so a mark on another page would run nothing.
#[test]
fn each_block_is_marked_with_the_test_of_its_page() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for page in all_pages(root) {
        let text = std::fs::read_to_string(&page).unwrap();
        let name = page.strip_prefix(root).unwrap().to_str().unwrap();
        let own = test_of(name);
        for mark in text.split("<!-- run: documents::").skip(1) {
            let end = mark.find([';', ' ']).unwrap();
            let test = format!("documents::{}", &mark[..end]);
            assert!(test == ALONE || test == own, "{name}: {test} is not {own}");
        }
    }
}
