//! `taskpass migrate`: migrates a PostgreSQL database to the current schema, with its owner's role.
//!
//! `serve` never does this in production, because its role can neither change the schema nor
//! rewrite the ledger. This command grants that role its rights.

use clap::Args;
use serde_json::json;

use super::CliError;
use super::output::{self, Form};
use super::serve::ConfigFile;
use crate::config::{Config, Mode, ProcessEnvironment, Scope, StoreKind};
use crate::store::StoreError;
use crate::store::postgres::{Postgres, PostgresSettings};

/// Migrate the PostgreSQL database to the current schema
#[derive(Args, Debug)]
#[command(
    after_help = "TASKPASS_DATABASE_URL (or …_FILE) gives the database, with the role that owns it.\n\nExample:\n  taskpass migrate --grant-to taskpass_serve"
)]
pub(super) struct Migrate {
    #[command(flatten)]
    file: ConfigFile,
    /// Give this role the rights that `serve` needs, and no others
    #[arg(long, value_name = "ROLE")]
    grant_to: Option<String>,
}

impl Migrate {
    pub(super) async fn run(self, form: Form) -> Result<(), CliError> {
        let path = self.file.path()?;
        let text = std::fs::read_to_string(&path).map_err(|error| {
            CliError::Usage(format!("{} cannot be read: {error}", path.display()))
        })?;
        // A migration needs no sealing keys and should not have access to them.
        let (mode, scope) = (Mode::Production, Scope::Database);
        let config = Config::parse_within(&path, &text, &ProcessEnvironment, mode, scope)
            .map_err(|errors| CliError::Usage(errors.to_string()))?;
        if config.store.kind != StoreKind::Postgres {
            return Err(CliError::Usage(
                "the store is SQLite, which `taskpass serve` migrates itself".into(),
            ));
        }
        let Some(url) = &config.secrets.database_url else {
            return Err(CliError::Usage("TASKPASS_DATABASE_URL is missing".into()));
        };
        let settings = PostgresSettings {
            max_connections: 1,
            ..PostgresSettings::default()
        };
        let postgres = Postgres::connect(url, settings).await;
        let postgres = postgres.map_err(|e| failed(&e))?;
        postgres.migrate().await.map_err(|e| failed(&e))?;
        if !form.is_json() {
            output::line("the database is up to date")?;
        }
        if let Some(role) = &self.grant_to {
            postgres.grant_serving(role).await.map_err(|e| failed(&e))?;
        }
        match (form, &self.grant_to) {
            (Form::Json, role) => output::json(&json!({"migrated": true, "granted_to": role})),
            (Form::Text, Some(role)) => output::line(format!("{role} may serve")),
            (Form::Text, None) => Ok(()),
        }
    }
}

fn failed(error: &StoreError) -> CliError {
    CliError::Unavailable(match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    })
}
