//! `taskpass revoke`: ends everything that a selector matches.
//!
//! A selector that cannot be parsed is [`CliError::Usage`]; a refusal of the broker is the
//! command's error. `broker::revocation` revokes, and `super::revocations` shows the progress.

use clap::Args;

use super::CliError;
use super::connection::Connection;
use super::output::{self, Form};
use crate::client::Reply;
use crate::domain::cutoff::Selector;
use crate::wire::revocations::{BlockBody, RevocationAsk, RevocationBody, UntilLifted};

/// End everything that a selector matches
#[derive(Args, Debug)]
#[command(
    after_help = "A selector is workload=…, task=…, resource=…, attestor=…, generation=…, policy=…, signing_key=… or all.\n\
    Workloads, attestors and `all` are blocked for an hour unless another time is given.\n\nExamples:\n  \
    taskpass revoke workload=github:repo:1234 --dry-run --reason \"who is affected?\" --token-file admin-token\n  \
    taskpass revoke all --until-lifted --reason \"incident 7\" --token-file admin-token"
)]
#[expect(clippy::struct_excessive_bools, reason = "each is a separate switch")]
pub(super) struct Revoke {
    /// The selector: `kind=value`, or `all`
    selector: Selector,
    #[command(flatten)]
    connection: Connection,
    /// Print the sessions that would end, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Block new credentials for this time; 0 for no block
    #[arg(long, value_name = "SECONDS", conflicts_with = "until_lifted")]
    block_seconds: Option<u64>,
    /// Block new credentials until `taskpass lift`
    #[arg(long)]
    until_lifted: bool,
    /// Make AWS refuse all earlier sessions of the broker on the resource's role, not only those
    /// for which the deny policy has room
    #[arg(long)]
    deny_all_earlier_sessions: bool,
    /// Revoke even if the broker has no record of the selector's value
    #[arg(long)]
    allow_unknown: bool,
    /// The reason, for the ledger
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

impl Revoke {
    pub(super) async fn run(self, form: Form) -> Result<(), CliError> {
        let client = self.connection.client()?;
        let reply: Reply<RevocationBody> = client.post("/v1/revocations", &self.body()).await?;
        let revoked = reply.read()?;
        let json = form.is_json().then(|| reply.json()).transpose()?;
        if self.dry_run {
            if revoked.matched.is_none() && !revoked.has_more {
                return Err(lacks("the number of sessions"));
            }
            return match json {
                Some(json) => output::json(json),
                None => print_dry_run(&revoked),
            };
        }
        let Some(cutoff) = &revoked.cutoff else {
            return Err(lacks("the revocation"));
        };
        if let Some(json) = json {
            return output::json(json);
        }
        let id = cutoff.id;
        let Some(matched) = revoked.matched else {
            return output::line(format!(
                "revocation {id} is in force; the sessions that it ends could not be counted"
            ));
        };
        let more = if revoked.has_more { "more than " } else { "" };
        output::line(format!(
            "revocation {id}: {more}{matched} session(s) matched, {} ended, {} ending; {}",
            revoked.ended.unwrap_or_default(),
            revoked.ending.unwrap_or_default(),
            kept_out(cutoff.blocked_until.as_deref(), &self.selector),
        ))
    }

    fn body(&self) -> RevocationAsk {
        let block_seconds = if self.until_lifted {
            Some(BlockBody::Until(UntilLifted::UntilLifted))
        } else {
            self.block_seconds.map(BlockBody::Seconds)
        };
        RevocationAsk {
            selector: self.selector.clone(),
            block_seconds,
            deny_all_earlier_sessions: self.deny_all_earlier_sessions,
            reason: self.reason.clone(),
            allow_unknown: self.allow_unknown,
            dry_run: self.dry_run,
        }
    }
}

/// Prints the sessions that the revocation would end.
fn print_dry_run(revoked: &RevocationBody) -> Result<(), CliError> {
    // Do not show a missing number as 0.
    let Some(matched) = revoked.matched else {
        return output::line(
            "the sessions that would end could not be counted in time; nothing was changed",
        );
    };
    let more = if revoked.has_more { "more than " } else { "" };
    output::line(format!(
        "{more}{matched} session(s) would end; nothing was changed"
    ))?;
    if matched == 0 {
        return Ok(());
    }
    let rows = revoked.sessions.iter().flatten().map(|session| {
        [
            session.id.to_string(),
            session.state.to_string(),
            session.workload.to_string(),
            session.resource.clone(),
            session.expires_at.to_string(),
        ]
    });
    output::listing(["id", "state", "workload", "resource", "expires_at"], rows)
}

fn lacks(part: &str) -> CliError {
    CliError::Unavailable(format!(
        "the answer to POST /v1/revocations lacks {part}; see `taskpass revocations list`"
    ))
}

/// Describes the block of a revocation.
fn kept_out(blocked_until: Option<&str>, selector: &Selector) -> String {
    match blocked_until {
        None => "nothing new is refused".to_owned(),
        Some("until_lifted") => {
            format!("{selector} gets nothing new until the revocation is lifted")
        }
        Some(until) => format!(
            "{selector} gets nothing new until {}",
            output::printable(until)
        ),
    }
}
