//! `taskpass completions`: prints the completion script of a shell.

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::{Cli, CliError, output};

/// Print the completion script of a shell
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  taskpass completions bash > ~/.local/share/bash-completion/completions/taskpass"
)]
pub(super) struct Completions {
    /// The name of the shell
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self) -> Result<(), CliError> {
        let mut script = Vec::new();
        let mut command = Cli::command();
        clap_complete::generate(self.shell, &mut command, "taskpass", &mut script);
        output::raw(&script)
    }
}
