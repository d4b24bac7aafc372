//! `taskpass keys revoke` for a key of access tokens: shows the effects, asks, and withdraws the
//! key.
//!
//! Without confirmation nothing is done: [`CliError::Refused`] for another answer,
//! [`CliError::Usage`] if there is no terminal to ask. `super::keys` calls [`withdraw`];
//! `broker::signing_keys` withdraws the key.

use std::io::{BufRead as _, IsTerminal as _};

use serde_json::{Value, json};

use super::CliError;
use super::connection::Connection;
use super::output::{self, Form};

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
        let would = client.post(&path, &json!({"dry_run": true})).await?;
        output::alert(told(&would, kid))?;
        ask()?;
    }
    // Read the token again: the dry run may have used up an attestation.
    let client = connection.client()?;
    let done = client.post(&path, &json!({"dry_run": false})).await?;
    if form.is_json() {
        return output::json(&done);
    }
    output::line(output::printable_lines(&told(&done, kid)))
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
fn told(answer: &Value, kid: &str) -> String {
    let text = |name: &str| answer.get(name).and_then(Value::as_str);
    let done = answer.get("withdrawn").and_then(Value::as_bool) == Some(true);
    let signs = answer.get("signing").and_then(Value::as_bool) == Some(true);
    let mut lines = vec![match (done, signs) {
        (true, true) => format!("{kid} is withdrawn; it signed new tokens until now"),
        (true, false) => format!("{kid} is withdrawn; it did not sign new tokens"),
        (false, true) => format!("{kid} would be withdrawn; it signs new tokens now"),
        (false, false) => format!("{kid} would be withdrawn; it does not sign new tokens now"),
    }];
    let has_more = answer.get("has_more").and_then(Value::as_bool) == Some(true);
    let more = if has_more { "more than " } else { "" };
    lines.push(match answer.get("matched").and_then(Value::as_u64) {
        Some(matched) => format!("ends: {more}{matched} live session(s), whose tokens it signed"),
        None => "ended: every session whose token it signed".into(),
    });
    lines.push(match (text("successor"), text("issuance_resumes_at")) {
        (Some(successor), _) => format!("issuance goes on: {successor} signs"),
        (None, Some(at)) => format!(
            "issuance stops until {at}: no other key has been published long enough to sign"
        ),
        (None, None) => "issuance stops until keys.rs256_private_key_file holds another key".into(),
    });
    if let Some(until) = text("cached_until") {
        lines.push(format!(
            "verifiers that do not ask the broker may accept its tokens until {until}"
        ));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stops_and_until_when_is_told() {
        let mut answer = json!({
            "kid": "k1", "withdrawn": false, "signing": true, "successor": "k2",
            "issuance_resumes_at": null, "matched": 3, "cached_until": "2026-12-01T00:00:00Z"
        });
        let would = told(&answer, "k1");
        for part in [
            "k1 would be withdrawn; it signs new tokens now",
            "ends: 3 live session(s)",
            "issuance goes on: k2 signs",
            "until 2026-12-01T00:00:00Z",
        ] {
            assert!(would.contains(part), "{part}: {would}");
        }
        answer["successor"] = Value::Null;
        answer["issuance_resumes_at"] = json!("2026-12-02T00:00:00Z");
        assert!(told(&answer, "k1").contains("issuance stops until 2026-12-02T00:00:00Z"));
        answer["issuance_resumes_at"] = Value::Null;
        assert!(told(&answer, "k1").contains("rs256_private_key_file"));
    }
}
