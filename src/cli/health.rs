//! `taskpass health`: whether a broker is alive, for container engines that have no other client.

use clap::Args;
use serde_json::json;
use url::Url;

use super::CliError;
use super::connection::Authorities;
use super::output::Form;

/// Check whether a broker is alive, or ready
#[derive(Args, Debug)]
#[command(
    after_help = "Exits with 0 if it is, and with 3 if it is not.\n\nExample:\n  taskpass health --url http://127.0.0.1:8443/readyz"
)]
pub(super) struct Health {
    /// The URL to check: a broker's /livez or /readyz
    #[arg(
        long,
        value_name = "URL",
        default_value = "http://127.0.0.1:8443/livez"
    )]
    url: Url,
    #[command(flatten)]
    authorities: Authorities,
}

impl Health {
    pub(super) async fn run(self, form: Form) -> Result<(), CliError> {
        let client = self.authorities.client_at(&self.url)?;
        let answer = client.send(reqwest::Method::GET, "").await?;
        if answer.status.is_success() {
            return form.write(&json!({"healthy": true}), "healthy");
        }
        let text = answer.failure();
        Err(CliError::Unavailable(text.to_string()))
    }
}
