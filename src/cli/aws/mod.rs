//! `taskpass aws`: what AWS's own tools call.

mod cache;
mod credential_process;

use clap::{Args, Subcommand};

use super::Failure;

/// Give AWS's own tools their credentials
#[derive(Args, Debug)]
pub(super) struct Aws {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    CredentialProcess(credential_process::CredentialProcess),
}

impl Aws {
    pub(super) async fn run(self) -> Result<(), Failure> {
        match self.command {
            Command::CredentialProcess(process) => process.run().await,
        }
    }
}
