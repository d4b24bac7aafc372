//! `taskpass openapi`: prints the description of the HTTP interface, generated from the code.

use clap::Args;

use super::{CliError, output};

/// Print the description of the HTTP interface
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  taskpass openapi > openapi.json")]
pub(super) struct Openapi {}

impl Openapi {
    #[expect(clippy::unused_self, reason = "the same signature as other commands")]
    pub(super) fn run(self) -> Result<(), CliError> {
        output::json(&crate::http::openapi())
    }
}
