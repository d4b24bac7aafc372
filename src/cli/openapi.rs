//! `taskpass openapi`: the description of the HTTP interface.

use clap::Args;

use super::client::{Address, Client};
use super::{Failure, output};

/// Print the description of a broker's HTTP interface
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  taskpass openapi > openapi.json")]
pub(super) struct Openapi {
    #[command(flatten)]
    address: Address,
}

impl Openapi {
    pub(super) async fn run(self) -> Result<(), Failure> {
        output::json(&Client::new(&self.address.url)?.get("/openapi.json").await?)
    }
}
