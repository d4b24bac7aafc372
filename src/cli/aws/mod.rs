//! `taskpass aws`: commands for AWS's tools and roles.

mod credential_process;
mod trust_policy;

use clap::{Args, Subcommand};

use super::CliError;
use super::output::Form;

/// Get credentials for AWS's tools, and print the trust policies of roles
#[derive(Args, Debug)]
pub(super) struct Aws {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    CredentialProcess(Box<credential_process::CredentialProcess>),
    TrustPolicy(trust_policy::TrustPolicy),
}

impl Aws {
    pub(super) async fn run(self, form: Form) -> Result<(), CliError> {
        match self.command {
            Command::CredentialProcess(process) => process.run().await,
            Command::TrustPolicy(policy) => policy.run(form),
        }
    }
}
