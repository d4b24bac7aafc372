//! `taskpass request`: requests a credential.
//!
//! A refusal is the command's error. An AWS credential without `--json` is [`CliError::Usage`],
//! because it cannot be printed as one text. `client::credentials` sends the request.

use clap::Args;

use super::CliError;
use super::connection::Connection;
use super::credential_args::{AnyTask, CredentialArgs};
use super::output::{self, Form};
use super::retry_args::RetryArgs;
use crate::client::credentials::CredentialRequester;
use crate::client::observed;
use crate::wire::credentials::{CredentialBody, IssuedBody};

/// Request a credential
#[derive(Args, Debug)]
#[command(
    after_help = "Prints the credential. The request uses up the attestation.\n\nExamples:\n  \
    taskpass request --token-file attestation.jwt --resource orders-api --action orders:read --task-type nightly-report\n  \
    eval \"$(taskpass request --env --resource orders-api --action orders:read --task-type nightly-report)\""
)]
pub(super) struct Request {
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    wanted: CredentialArgs,
    #[command(flatten)]
    task: AnyTask,
    #[command(flatten)]
    retry: RetryArgs,
    /// Print shell commands that set variables: the credential, the session, the task and its
    /// handle
    #[arg(long, conflicts_with = "json")]
    env: bool,
}

impl Request {
    pub(super) async fn run(self, form: Form) -> Result<(), CliError> {
        // Refuse before the request: afterwards the task would be open and its handle lost.
        if self.wanted.is_aws() && !form.is_json() {
            return Err(CliError::Usage(
                "an AWS session cannot be printed as text: add --json, or use `taskpass exec` or \
                 `taskpass aws credential-process`"
                    .into(),
            ));
        }
        let requester = CredentialRequester {
            client: self.connection.address.client()?,
            source: self.connection.source()?,
            request: self.wanted.request(),
            retry: self.retry.limit(),
        };
        let reply = requester.request_silently(&self.task.body()?).await?;
        if form.is_json() {
            return output::json(reply.json()?);
        }
        let issued = reply.read()?;
        let CredentialBody::Jwt { access_token, .. } = &issued.credential else {
            return Err(CliError::Unavailable(
                "the answer holds no printable credential".into(),
            ));
        };
        let token = access_token.expose();
        if !self.env {
            output::line(token)?;
            return say_what_was_granted(&issued);
        }
        export("TASKPASS_CREDENTIAL", token)?;
        export("TASKPASS_SESSION", &issued.session.id.to_string())?;
        export("TASKPASS_TASK", &issued.task.id.to_string())?;
        match &issued.task.handle {
            Some(handle) => export("TASKPASS_HANDLE", handle.expose()),
            None => Ok(()),
        }
    }
}

/// Prints the rest of the answer on standard error, so that standard output holds the credential
/// only. It includes the handle: without it the new task could not be kept alive, joined or ended.
fn say_what_was_granted(issued: &IssuedBody) -> Result<(), CliError> {
    let (session, task) = (&issued.session, &issued.task);
    output::alert(format!(
        "session {} until {}, task {}, decision {}",
        session.id, session.expires_at, task.id, issued.decision.id,
    ))?;
    if let Some(handle) = &task.handle {
        output::alert(format!(
            "the task's handle, a secret: {}\n  \
             TASKPASS_HANDLE=… taskpass task complete {} ends the task with it",
            output::printable(handle.expose()),
            task.id,
        ))?;
    }
    observed(issued.decision.observed.as_ref()).map_or(Ok(()), output::alert)
}

/// Prints a shell command that sets a variable.
fn export(name: &str, value: &str) -> Result<(), CliError> {
    output::line(format!("export {name}={}", quoted(value)))
}

/// Quotes a value as one word of a POSIX shell.
fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_one_word_of_a_shell() {
        assert_eq!(quoted("a'; rm -r $HOME"), "'a'\\''; rm -r $HOME'");
    }
}
