//! Runs the marked blocks of a page in order, in one shell and one directory.
//!
//! A mark is a comment in the line before a block:
//!
//! - `<!-- run: TEST -->`: the test runs the block. With `; exit code 1` after the name, the block's
//!   last command must end with this code.
//! - `<!-- file: NAME -->`: the block is the contents of a file that the reader writes.
//! - `<!-- appended: NAME -->`: the reader adds the block to a file.

use std::path::Path;
use std::time::Duration;

use crate::support::process::Launch;

/// The longest time for all blocks of a page. A passing test needs a few seconds.
const PATIENCE: Duration = Duration::from_mins(5);

const FENCE: &str = "```";

/// The line that the shell prints before each block.
const BEGIN: &str = "=== the next block of the page ===\n";

/// Ends the broker and other background processes with the shell.
const CLEAN_UP: &str = "trap 'kill $(jobs -p) 2> /dev/null || true; wait' EXIT";

#[derive(Debug, PartialEq, Eq)]
pub enum Block {
    Commands {
        script: String,
        /// The exit code of the last command.
        code: u8,
        /// The lines of output that the page shows.
        printed: Vec<String>,
    },
    File {
        name: String,
        /// Whether the text is added to the end of the file.
        appended: bool,
        text: String,
    },
}

impl Block {
    /// The block as a part of a shell script.
    fn script(&self) -> String {
        match self {
            Self::Commands {
                script, code: 0, ..
            } => {
                format!("printf '{}\\n'\n{script}\n", BEGIN.trim_end())
            }
            Self::Commands { script, code, .. } => format!(
                "printf '{}\\n'\nstatus=0\n{script} || status=$?\n[ \"$status\" -eq {code} ]\n",
                BEGIN.trim_end()
            ),
            Self::File {
                name,
                appended,
                text,
            } => {
                let redirection = if *appended { ">>" } else { ">" };
                format!("cat {redirection} {name} <<'END-OF-FILE'\n{text}\nEND-OF-FILE\n")
            }
        }
    }
}

/// The blocks of a page that this test runs, and the files that the page shows.
pub fn blocks(text: &str, test: &str) -> Vec<Block> {
    let mut lines = text.lines();
    let mut found = Vec::new();
    while let Some(line) = lines.next() {
        let comment = line.trim().strip_prefix("<!-- ");
        let mark = comment.and_then(|rest| rest.strip_suffix(" -->"));
        let Some((kind, argument)) = mark.and_then(|mark| mark.split_once(": ")) else {
            continue;
        };
        let (argument, code) = argument
            .split_once("; exit code ")
            .map_or((argument, 0), |(name, code)| (name, code.parse().unwrap()));
        let is_file = matches!(kind, "file" | "appended");
        if !is_file && (kind != "run" || argument != test) {
            continue;
        }
        let opening = lines.next().expect("a block follows the mark");
        let indent = opening.len() - opening.trim_start().len();
        let language = opening.trim_start().strip_prefix(FENCE);
        let language = language.expect("a block follows the mark");
        let body: Vec<&str> = lines
            .by_ref()
            .take_while(|line| line.trim() != FENCE)
            .map(|line| line.get(indent..).unwrap_or_default())
            .collect();
        found.push(if is_file {
            Block::File {
                name: argument.to_owned(),
                appended: kind == "appended",
                text: body.join("\n"),
            }
        } else {
            let (script, printed) = match language {
                "console" => console(&body),
                _ => (body.join("\n"), Vec::new()),
            };
            Block::Commands {
                script,
                code,
                printed,
            }
        });
    }
    found
}

/// Splits a console block into its commands and the output that it shows. A command continues in
/// the next line after a backslash, after a pipe, and inside a quoted text.
fn console(body: &[&str]) -> (String, Vec<String>) {
    let mut commands = String::new();
    let mut printed = Vec::new();
    let mut continues = false;
    for line in body {
        let command = if continues {
            Some(*line)
        } else {
            line.strip_prefix("$ ")
        };
        let Some(command) = command else {
            printed.push((*line).to_owned());
            continue;
        };
        commands.push_str(command);
        commands.push('\n');
        // Each complete command has an even number of quotes.
        let in_quotes = commands.matches('\'').count() % 2 == 1;
        continues = in_quotes || command.ends_with(['\\', '|']);
    }
    (commands.trim_end().to_owned(), printed)
}

/// Whether a line of output is the expected one. `…` stands for any text.
fn fits(expected: &str, line: &str) -> bool {
    let Some((first, others)) = expected.split_once('…') else {
        return expected == line;
    };
    let Some(rest) = line.strip_prefix(first) else {
        return false;
    };
    let mut ends = rest.char_indices().map(|(at, _)| at).chain([rest.len()]);
    ends.any(|at| fits(others, &rest[at..]))
}

fn single_spaced(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Fails unless the output has the lines that the page shows, in their order. Spaces at both ends
/// and the width of columns may differ, and the output may have more lines.
fn assert_printed(expected: &[String], output: &str) {
    let mut lines = output.lines().map(single_spaced);
    for line in expected.iter().map(|line| single_spaced(line)) {
        assert!(
            line.is_empty() || lines.any(|printed| fits(&line, &printed)),
            "the page shows `{line}`, and the commands printed:\n{output}"
        );
    }
}

/// `PATH` with the `taskpass` of this build.
pub fn search_path() -> String {
    let binary = Path::new(env!("CARGO_BIN_EXE_taskpass"));
    let folder = binary.parent().unwrap().display();
    format!("{folder}:{}", std::env::var("PATH").unwrap())
}

/// The full name of the test that runs a page: `documents::how_to::change_policies` for
/// `docs/how-to/change-policies.md`.
pub fn test_of(page: &str) -> String {
    let stem = Path::new(page).file_stem().unwrap().to_str().unwrap();
    let stem = stem.replace('-', "_").to_lowercase();
    let is_lesson = page == "README.md" || page.starts_with("docs/tutorials/");
    let module = if is_lesson { "tutorials" } else { "how_to" };
    format!("documents::{module}::{stem}")
}

/// A page with the environment of its blocks.
#[derive(Debug)]
pub struct Page {
    path: &'static str,
    set_up: String,
    replaced: Vec<(&'static str, String)>,
    environment: Vec<(&'static str, String)>,
}

impl Page {
    pub fn new(path: &'static str) -> Self {
        Self {
            path,
            set_up: String::new(),
            replaced: Vec::new(),
            environment: Vec::new(),
        }
    }

    /// Adds commands that run before the blocks.
    #[must_use]
    pub fn set_up(mut self, script: &str) -> Self {
        self.set_up.push_str(script);
        self.set_up.push('\n');
        self
    }

    /// Replaces a name or address in the blocks, if they have it.
    #[must_use]
    pub fn replace(mut self, from: &'static str, to: impl Into<String>) -> Self {
        self.replaced.push((from, to.into()));
        self
    }

    #[must_use]
    pub fn env(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.environment.push((name, value.into()));
        self
    }

    /// Runs the blocks, and compares their output with the page.
    pub fn run(self) -> Ran {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(root.join(self.path)).unwrap();
        let blocks = blocks(&text, &test_of(self.path));
        let mut body: String = blocks.iter().map(Block::script).collect();
        for (from, to) in &self.replaced {
            body = body.replace(*from, to);
        }
        let script = format!("{CLEAN_UP}\n{}{body}", self.set_up);
        let mut launch = Launch::program("bash", ["-euo", "pipefail", "-c", &script])
            .env("PATH", search_path())
            .env("ROOT", root.as_os_str());
        for (name, value) in self.environment {
            launch = launch.env(name, value);
        }
        let mut shell = launch.spawn();
        let status = shell.wait(PATIENCE);
        assert!(status.success(), "{}: {status}", self.path);
        let stdout = shell.stdout();
        let outputs: Vec<String> = stdout.split(BEGIN).skip(1).map(str::to_owned).collect();
        let mut each = outputs.iter();
        for block in &blocks {
            if let Block::Commands { printed, .. } = block {
                assert_printed(printed, each.next().expect("each block began"));
            }
        }
        assert!(!outputs.is_empty(), "{} has no marked block", self.path);
        Ran {
            outputs,
            stderr: shell.stderr(),
        }
    }
}

/// The output of a page's blocks.
#[derive(Debug)]
pub struct Ran {
    /// The standard output of each block.
    outputs: Vec<String>,
    stderr: String,
}

impl Ran {
    /// Fails unless the block with this number, from 1 on, printed the text.
    #[track_caller]
    pub fn printed(&self, block: usize, text: &str) -> &Self {
        let output = &self.outputs[block - 1];
        assert!(
            output.contains(text),
            "no `{text}` in block {block}:\n{output}"
        );
        self
    }

    /// Fails unless the text was printed to standard error.
    #[track_caller]
    pub fn complained(&self, text: &str) -> &Self {
        assert!(
            self.stderr.contains(text),
            "no `{text}` in:\n{}",
            self.stderr
        );
        self
    }
}

#[test]
fn blocks_are_read_with_their_marks() {
    let page = "Text\n\n    <!-- run: a::b; exit code 1 -->\n    ```console\n    $ one 'x\n        y' |\n      \
                two\n    out\n    ```\n<!-- run: a::c -->\n```sh\nthree\n```\n<!-- file: f -->\n```toml\n\
                k = 1\n```\n";
    let commands = Block::Commands {
        script: "one 'x\n    y' |\n  two".to_owned(),
        code: 1,
        printed: vec!["out".to_owned()],
    };
    let file = Block::File {
        name: "f".to_owned(),
        appended: false,
        text: "k = 1".to_owned(),
    };
    assert_eq!(blocks(page, "a::b"), [commands, file]);
}

#[test]
fn output_is_compared_with_any_text_for_an_ellipsis() {
    assert!(fits("a … c", "a b c"));
    assert!(fits("…c", "abc"));
    assert!(!fits("a … c", "a b d"));
    assert_printed(&["a  1".to_owned(), "…".to_owned()], "x\n a 1\nb\n");
    let missing = std::panic::catch_unwind(|| assert_printed(&["b".to_owned()], "a\n"));
    assert!(missing.is_err());
}
