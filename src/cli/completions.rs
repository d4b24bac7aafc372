//! `taskpass completions`: what a shell needs to complete our command line.

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::{Cli, Failure, output};

/// Print a shell's completions
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  taskpass completions bash > ~/.local/share/bash-completion/completions/taskpass"
)]
pub(super) struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self) -> Result<(), Failure> {
        let mut script = Vec::new();
        let mut command = Cli::command();
        clap_complete::generate(self.shell, &mut command, "taskpass", &mut script);
        output::raw(&script)
    }
}
