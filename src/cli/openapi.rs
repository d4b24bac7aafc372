//! `taskpass openapi`: the description of the HTTP interface.

use clap::Args;

use super::{Failure, output};

/// Print the description of the HTTP interface
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  taskpass openapi > openapi.json")]
pub(super) struct Openapi {}

impl Openapi {
    pub(super) fn run(self) -> Result<(), Failure> {
        let Self {} = self;
        output::line(crate::http::openapi_json())
    }
}
