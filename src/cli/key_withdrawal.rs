//! `taskpass keys revoke` for a key of access tokens: shows the effects, asks, and withdraws the
//! key.
//!
//! Without confirmation nothing is done: [`CliError::Refused`] for another answer,
//! [`CliError::Usage`] if there is no terminal to ask. `super::keys` calls [`withdraw`];
//! `broker::signing_keys` withdraws the key.

use std::io::{BufRead as _, IsTerminal as _};

use super::CliError;
use super::connection::Connection;
use super::output::{self, Form};
use crate::client::Reply;
use crate::wire::keys::{KeyWithdrawalBody, RevokeKeyBody};

/// Withdraws the key. Without `yes`, a dry run shows the effects first, and the user must confirm
/// at the terminal.
pub(super) async fn withdraw(
    connection: &Connection,
    kid: &str,
    yes: bool,
    form: Form,
) -> Result<(), CliError> {
    let encoded = crate::domain::workload::encode_value(kid);
    let path = format!("/v1/keys/{encoded}/revoke");
    if !yes {
        let client = connection.client()?;
        let dry_run = RevokeKeyBody { dry_run: true };
        let would: Reply<KeyWithdrawalBody> = client.post(&path, &dry_run).await?;
        output::alert(told(&would.read()?, kid))?;
        ask()?;
    }
    // Read the token again: the dry run may have used up an attestation.
    let client = connection.client()?;
    let withdraw = RevokeKeyBody { dry_run: false };
    let done: Reply<KeyWithdrawalBody> = client.post(&path, &withdraw).await?;
    if form.is_json() {
        return output::json(done.json()?);
    }
    output::line(output::printable_lines(&told(&done.read()?, kid)))
}

/// Asks the user at the terminal for confirmation.
fn ask() -> Result<(), CliError> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Err(CliError::Usage(
            "nothing was done: standard input is not a terminal, so you cannot be asked; pass --yes \
             to withdraw the key"
                .into(),
        ));
    }
    output::alert("Withdraw the key? Type `yes`:")?;
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer)?;
    if answer.trim() == "yes" {
        return Ok(());
    }
    Err(CliError::Refused("nothing was done".into()))
}

/// Describes the effects of the withdrawal or of its dry run.
fn told(answer: &KeyWithdrawalBody, kid: &str) -> String {
    let mut lines = vec![match (answer.withdrawn, answer.signing) {
        (true, true) => format!("{kid} is withdrawn; it signed new tokens until now"),
        (true, false) => format!("{kid} is withdrawn; it did not sign new tokens"),
        (false, true) => format!("{kid} would be withdrawn; it signs new tokens now"),
        (false, false) => format!("{kid} would be withdrawn; it does not sign new tokens now"),
    }];
    let more = if answer.has_more { "more than " } else { "" };
    lines.push(match answer.matched {
        Some(matched) => format!("ends: {more}{matched} live session(s), whose tokens it signed"),
        None => "ended: every session whose token it signed".into(),
    });
    lines.push(match (&answer.successor, answer.issuance_resumes_at) {
        (Some(successor), _) => format!("issuance goes on: {successor} signs"),
        (None, Some(at)) => format!(
            "issuance stops until {at}: no other key has been published long enough to sign"
        ),
        (None, None) => "issuance stops until keys.rs256_private_key_file holds another key".into(),
    });
    lines.push(format!(
        "verifiers that do not ask the broker may accept its tokens until {}",
        answer.cached_until
    ));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_stops_and_until_when_is_told() {
        let answer = json!({
            "kid": "k1", "withdrawn": false, "signing": true, "successor": "k2",
            "issuance_resumes_at": null, "matched": 3, "cached_until": "2026-12-01T00:00:00Z"
        });
        let mut answer: KeyWithdrawalBody = serde_json::from_value(answer).unwrap();
        let would = told(&answer, "k1");
        for part in [
            "k1 would be withdrawn; it signs new tokens now",
            "ends: 3 live session(s)",
            "issuance goes on: k2 signs",
            "until 2026-12-01T00:00:00Z",
        ] {
            assert!(would.contains(part), "{part}: {would}");
        }
        answer.successor = None;
        answer.issuance_resumes_at = Some("2026-12-02T00:00:00Z".parse().unwrap());
        assert!(told(&answer, "k1").contains("issuance stops until 2026-12-02T00:00:00Z"));
        answer.issuance_resumes_at = None;
        assert!(told(&answer, "k1").contains("rs256_private_key_file"));
    }
}
