//! `taskpass dev`: a complete broker on the developer's machine, with samples, an issuer, and a
//! demonstration that runs once.
//!
//! It is the production broker. It fetches and verifies attestations from its own issuer over HTTP
//! like those of any other issuer, logs decisions and seals keys. Restrictions keep it out of
//! production: it listens on loopback only, its store is marked `dev`, its log's origin is a
//! development origin, and it does not start if production settings are in the environment.
//!
//! Web pages in the developer's browser must not reach it: the issuer, and the broker in this mode,
//! refuse a foreign `Host`, any `Origin`, and bodies that a form could send.
//!
//! - [`settings`]: the samples, as a configuration.
//! - [`issuer`]: the OIDC issuer. [`guard`]: the checks against web pages.
//! - [`shop`]: the demonstration's resource server. [`story`]: the demonstration.

mod guard;
mod issuer;
pub(super) mod settings;
mod shop;
mod story;

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;

use self::issuer::Issuer;
use self::settings::Settings;
use super::CliError;
use super::output::{self, Form};
use super::serve::in_order;
use crate::app::{self, App};
use crate::broker::access::tokens::ADMIN_PREFIX;
use crate::clock::SystemClock;
use crate::config::{
    self, Environment, LOG_VARIABLE, Log, LogFormat, LogLevel, ProcessEnvironment,
};
use crate::crypto::{SystemRandom, random_token};
use crate::shutdown::Signals;
use crate::telemetry;

/// Try it: a broker on this machine, with samples and a demonstration
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  taskpass dev\n  taskpass dev --no-story --listen 127.0.0.1:0 --json"
)]
pub(super) struct Dev {
    /// The address to listen on; loopback only, port 0 for any free port
    #[arg(long, default_value = "127.0.0.1:7070", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// The directory of the store, of its sealing key and of the last checkpoint
    #[arg(long, default_value = ".taskpass", value_name = "DIR")]
    data_dir: PathBuf,
    /// A PostgreSQL database in place of SQLite; it is migrated, and marked as a development store
    #[arg(long, value_name = "URL")]
    database_url: Option<String>,
    /// Skip the demonstration
    #[arg(long)]
    no_story: bool,
}

/// A running development broker.
struct Running {
    url: String,
    issuer: String,
    admin: SecretString,
}

impl Dev {
    pub(super) async fn run(self, form: Form) -> Result<(), CliError> {
        self.refuse_production()?;
        let log = Log {
            format: LogFormat::Text,
            level: LogLevel::Warn,
        };
        let filter = ProcessEnvironment.get(LOG_VARIABLE).ok().flatten();
        telemetry::init(&log, filter.as_deref()).map_err(|e| CliError::Usage(e.to_string()))?;

        let listen = with_port(self.listen)?;
        let issuer = Issuer::bind(listen).await?;
        let running = Running {
            url: format!("http://{listen}"),
            issuer: issuer.url().to_owned(),
            admin: random_token(ADMIN_PREFIX, &SystemRandom::new())
                .map_err(CliError::unavailable)?,
        };
        issuer.for_audience(&running.url);
        // The issuer and the broker end together.
        tokio::select! {
            ended = issuer.serve() => ended,
            ended = self.broker(listen, running, form) => ended,
        }
    }

    async fn broker(
        &self,
        listen: SocketAddr,
        running: Running,
        form: Form,
    ) -> Result<(), CliError> {
        let config = Settings {
            listen,
            issuer: &running.issuer,
            data_dir: &self.data_dir,
            database_url: self.database_url.as_deref(),
        }
        .config()?;
        let options = app::Options {
            clock: Arc::new(SystemClock),
            dev_admin_token: Some(running.admin.clone()),
            policies: Some(settings::policies()),
            minters: Vec::new(),
        };
        // Before the start, since a signal may come as soon as the broker serves.
        let mut signals = Signals::install().map_err(CliError::unavailable)?;
        let prepared = tokio::select! {
            prepared = app::prepare(config, options) => prepared.map_err(CliError::unavailable)?,
            _ = signals.next() => return Ok(()),
        };
        let app: App = prepared.serve().await.map_err(CliError::unavailable)?;
        if form.is_json() {
            output::json_line(&json!({
                "url": running.url,
                "issuer": running.issuer,
                "audience": running.url,
                "admin_token": running.admin.expose_secret(),
            }))?;
        }
        let served = async {
            if !self.no_story {
                story::play(&running, form).await?;
            }
            if !form.is_json() {
                output::line(commands(&running))?;
            }
            Ok::<(), CliError>(())
        };
        let told = tokio::select! {
            told = served => told,
            // `run` stops at once, and a second signal ends the process.
            _ = signals.next() => {
                app.shutdown.request();
                return in_order(&app.run(signals).await);
            }
        };
        if told.is_err() {
            app.shutdown.request();
            app.run(signals).await;
            return told;
        }
        in_order(&app.run(signals).await)
    }

    /// Refuses to run on an address that other machines can reach, or with production settings.
    fn refuse_production(&self) -> Result<(), CliError> {
        if !self.listen.ip().is_loopback() {
            return Err(CliError::Usage(format!(
                "--listen {} can be reached from other machines; `dev` listens on loopback only",
                self.listen
            )));
        }
        let found = config::production_settings(&ProcessEnvironment);
        if found.is_empty() {
            return Ok(());
        }
        Err(CliError::Usage(format!(
            "the environment has production settings: {}; unset them",
            found.join(", ")
        )))
    }
}

/// Chooses a free port if `listen` has port 0: the broker's issuer must contain the port before the
/// broker listens.
fn with_port(listen: SocketAddr) -> Result<SocketAddr, CliError> {
    if listen.port() != 0 {
        return Ok(listen);
    }
    TcpListener::bind(listen)
        .and_then(|listener| listener.local_addr())
        .map_err(|error| CliError::Unavailable(format!("cannot listen on {listen}: {error}")))
}

/// Commands for the user to paste, with addresses and tokens filled in.
fn commands(running: &Running) -> String {
    let Running { url, issuer, admin } = running;
    let admin = admin.expose_secret();
    let json = "-H 'Content-Type: application/json'";
    // The program's full path, because `make dev` does not install it.
    let program = std::env::current_exe().unwrap_or_else(|_| "taskpass".into());
    let program = program.display();
    format!(
        r#"
The broker is at {url}, its development issuer at {issuer}. Ctrl-C stops both. To paste:

# An attestation for the reporting agent, which can be used once:
TOKEN=$(curl -s {issuer}/token {json} -d '{{"sub": "agent:reports"}}' | sed 's/.*"token":"\([^"]*\)".*/\1/')

# A credential for a task of its own:
curl -s {url}/v1/credentials -H "Authorization: Bearer $TOKEN" {json} -d '{{
  "task": {{"type": "nightly-report", "purpose": "monthly numbers"}},
  "resource": "orders-api",
  "authorization_details": [{{"type": "api", "actions": ["orders:read"]}}]
}}'

# The active sessions, and a dry run of ending all of them:
export TASKPASS_URL={url} TASKPASS_TOKEN={admin}
{program} sessions list --state active
{program} revoke all --dry-run --reason "a dry run"
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_loopback_it_does_not_start() {
        let dev = |listen: &str| Dev {
            listen: listen.parse().unwrap(),
            data_dir: PathBuf::new(),
            database_url: None,
            no_story: true,
        };
        for bad in ["0.0.0.0:7070", "10.0.0.1:7070", "[::]:7070"] {
            let refused = dev(bad).refuse_production();
            assert!(matches!(refused, Err(CliError::Usage(_))), "{bad}");
        }
    }
}
