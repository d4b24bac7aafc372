//! `taskpass ledger new-origin` and `taskpass keys revoke --ledger`: ends a log, and begins its
//! successor.
//!
//! Without `--yes`, and with a configuration that does not fit, it changes nothing and returns
//! [`CliError::Usage`]. `app::succession` does the work, on the stores and without a broker.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use serde_json::{Value, json};

use super::MAX_FILE_BYTES;
use crate::app::StartError;
use crate::app::succession::{self, Evidence, NewLog, OldLog};
use crate::cli::CliError;
use crate::cli::output::{self, Form};
use crate::cli::serve::ConfigFile;
use crate::client::read_file;
use crate::clock::{Clock, SystemClock};
use crate::config::{
    Config, DATABASE_URL_VARIABLE, Environment, Mode, NotText, ProcessEnvironment,
};
use crate::domain::succession::{Succession, SuccessionReason};
use crate::files::NewFile;
use crate::merkle::VerifierKey;

/// The variable with the URL of the old store's database; with `_FILE` appended, the path of a file
/// that holds it.
const OLD_DATABASE_URL_VARIABLE: &str = "TASKPASS_OLD_DATABASE_URL";

/// Begin a new log after leaves were lost
#[derive(Args, Debug)]
pub(in crate::cli) struct NewOrigin {
    #[command(flatten)]
    file: ConfigFile,
    /// The old log's configuration; `TASKPASS_OLD_DATABASE_URL` or `…_FILE` gives its PostgreSQL
    /// database
    #[arg(long, value_name = "FILE")]
    old_config: PathBuf,
    #[command(flatten)]
    how: SuccessionArgs,
}

/// The arguments that both commands share.
#[derive(Args, Debug)]
pub(in crate::cli) struct SuccessionArgs {
    /// A signed checkpoint of the old log that was kept elsewhere; may be given several times. The
    /// checkpoint file and the shared checkpoint of the old configuration are read anyway
    #[arg(long = "checkpoint", value_name = "FILE")]
    checkpoints: Vec<PathBuf>,
    /// A verifier key of the old log that its store no longer has; may be given several times
    #[arg(long = "key", value_name = "VKEY", value_parser = super::vkey)]
    keys: Vec<VerifierKey>,
    /// Carry over registered workload keys, admins and the active generation as well. Those whose
    /// removal was recorded in a lost leaf come back with them
    #[arg(long)]
    carry_over: bool,
    /// Begin the new log; without this the command only prints the effects
    #[arg(long)]
    yes: bool,
}

impl SuccessionArgs {
    /// Whether the user confirmed the command with `--yes`.
    pub(in crate::cli) fn is_confirmed(&self) -> bool {
        self.yes
    }
}

/// The process's environment, where the database is the old store's.
struct OldStoreEnvironment;

impl Environment for OldStoreEnvironment {
    fn get(&self, name: &str) -> Result<Option<String>, NotText> {
        match name.strip_prefix(DATABASE_URL_VARIABLE) {
            Some(ending) => ProcessEnvironment.get(&format!("{OLD_DATABASE_URL_VARIABLE}{ending}")),
            None => ProcessEnvironment.get(name),
        }
    }
}

impl NewOrigin {
    pub(super) async fn run(self, form: Form) -> Result<(), CliError> {
        let opened = Opened::new(&self.file, &self.old_config, &self.how, None).await?;
        if let Some(succession) = opened.cut_short(SuccessionReason::Lost, None).await? {
            return opened
                .go_on(&succession, TAKEN_UP, &json!({}), &self.how, form)
                .await;
        }
        let Some(lost) = opened.old.lost().await.map_err(failed)? else {
            return Err(CliError::Usage(format!(
                "no loss is known: the store of `{}` contains {}; give a later checkpoint with \
                 --checkpoint, or revoke a stolen key with `taskpass keys revoke --ledger`",
                opened.old.origin(),
                match opened.old.known() {
                    Some((name, known)) => format!("the {} leaves of {name}", known.size),
                    None => "all leaves that its checkpoint file shows, which are none".to_owned(),
                },
            )));
        };
        let succession = opened.old.give_up(SystemClock.now());
        opened
            .go_on(&succession, &lost, &json!({}), &self.how, form)
            .await
    }
}

/// Ends a log whose key was stolen, and writes the leaves that only that key covers to `list`.
pub(in crate::cli) async fn revoke_log_key(
    file: &ConfigFile,
    old_config: &std::path::Path,
    how: &SuccessionArgs,
    key: &VerifierKey,
    list: Option<&std::path::Path>,
    form: Form,
) -> Result<(), CliError> {
    let opened = Opened::new(file, old_config, how, Some(key)).await?;
    if !opened.old.has_key(key) {
        return Err(CliError::Usage(format!(
            "{key} is not a key of the log `{}`; `taskpass ledger keys` lists its keys",
            opened.old.origin()
        )));
    }
    let mut out = match list {
        Some(path) => {
            let made = NewFile::begin(path).map_err(|error| unwritten(path, &error))?;
            Some(std::io::BufWriter::new(made))
        }
        None => None,
    };
    let (mut from, mut to) = (None, None);
    let count = opened
        .old
        .vouched_by_alone(key, |orphan| {
            from.get_or_insert(orphan.index);
            to = Some(orphan.index);
            if let Some(out) = &mut out {
                let line = serde_json::to_string(&orphan)
                    .map_err(|error| StartError::Unfit(error.to_string()))?;
                writeln!(out, "{line}").map_err(|error| StartError::Unfit(error.to_string()))?;
            }
            Ok(())
        })
        .await
        .map_err(failed)?;
    if let (Some(out), Some(path)) = (out, list) {
        let written = out
            .into_inner()
            .map_err(std::io::IntoInnerError::into_error);
        let kept = written.and_then(NewFile::keep);
        kept.map_err(|error| unwritten(path, &error))?;
    }
    let told = match (from, to) {
        (Some(from), Some(to)) => format!(
            "{count} leaves, from {from} to {to}, are covered by checkpoints of this key only: \
             only an earlier copy of a checkpoint can prove them"
        ),
        _ => {
            "every leaf is covered by a checkpoint that another key of the log or a witness signed"
                .to_owned()
        }
    };
    let alone = json!({"vouched_by_this_key_alone": {"count": count, "first": from, "last": to}});
    if let Some(succession) = opened
        .cut_short(SuccessionReason::KeyRevoked, Some(key))
        .await?
    {
        return opened.go_on(&succession, TAKEN_UP, &alone, how, form).await;
    }
    let revoked = opened.old.revoke(key, SystemClock.now()).await;
    let (succession, not_believed) = revoked.map_err(failed)?;
    for checkpoint in not_believed {
        output::note(format!(
            "rejected: {checkpoint}: the store does not contain it, and no other key or witness \
             signed it; keep it, because the holder of the stolen key may have signed it; if it is a \
             replica's checkpoint_file, move it away"
        ));
    }
    opened.go_on(&succession, &told, &alone, how, form).await
}

/// Printed when the new log was begun by an earlier run.
const TAKEN_UP: &str = "an earlier run was interrupted, and this one continues it";

struct Opened {
    config: Config,
    old: OldLog,
}

impl Opened {
    async fn new(
        file: &ConfigFile,
        old_config: &std::path::Path,
        how: &SuccessionArgs,
        revoked: Option<&VerifierKey>,
    ) -> Result<Self, CliError> {
        let config = file.load()?;
        let old_config = Config::load(old_config, &OldStoreEnvironment, Mode::Production)
            .map_err(|errors| CliError::Usage(errors.to_string()))?;
        if old_config.ledger.origin == config.ledger.origin {
            return Err(CliError::Usage(format!(
                "both configurations have the origin `{}`: give the new log another ledger.origin and \
                 an empty store",
                config.ledger.origin
            )));
        }
        let issuers = [&config, &old_config].map(|it| it.server.issuer.as_str());
        if issuers[0] != issuers[1] {
            return Err(CliError::Usage(format!(
                "{}: server.issuer is `{}`, and the old log's is `{}`. An issuer must not change: roles \
                 in AWS trust it, and the deny lists on them are marked with it, so sessions of the old \
                 log could not be denied. Use the old issuer",
                config.source.display(),
                issuers[0],
                issuers[1]
            )));
        }
        let bootstrap = &config.admin.bootstrap_token_sha256;
        if bootstrap.is_some() && *bootstrap == old_config.admin.bootstrap_token_sha256 {
            // The token would be valid for another day in a new store.
            return Err(CliError::Usage(format!(
                "{}: admin.bootstrap_token_sha256 is that of the old log: a holder of that token could \
                 bind admins for another day; create another token with `taskpass keys bootstrap`",
                config.source.display()
            )));
        }
        let evidence: Result<Vec<Evidence>, CliError> = how
            .checkpoints
            .iter()
            .map(|file| {
                Ok(Evidence {
                    name: file.display().to_string(),
                    note: read_file(file, MAX_FILE_BYTES)?,
                })
            })
            .collect();
        let successor = &config.ledger.origin;
        let now = SystemClock.now();
        let keys: Vec<VerifierKey> = how.keys.iter().chain(revoked).cloned().collect();
        let old = OldLog::open(old_config, successor, evidence?, &keys, now).await;
        let old = old.map_err(failed)?;
        if old.has_seen_bootstrap_of(&config).await.map_err(failed)? {
            return Err(CliError::Usage(format!(
                "{}: the old log accepted admin.bootstrap_token_sha256; create another token with \
                 `taskpass keys bootstrap`",
                config.source.display()
            )));
        }
        if let Some(kid) = old.signed_with_key_of(&config).map_err(failed)? {
            return Err(CliError::Usage(format!(
                "{}: keys.rs256_private_key_file is a key of the old log ({kid}): tokens that it signed \
                 would be accepted as the new log's; create another key",
                config.source.display()
            )));
        }
        Ok(Self { config, old })
    }

    /// The succession that an interrupted run began for the same reason. No other record of its
    /// details may be left.
    async fn cut_short(
        &self,
        reason: SuccessionReason,
        key: Option<&VerifierKey>,
    ) -> Result<Option<Succession>, CliError> {
        let Some(begun) = succession::begun(&self.config).await.map_err(failed)? else {
            return Ok(None);
        };
        let new = &self.config.ledger.origin;
        let of = &begun.succession;
        let same = of.origin == self.old.origin()
            && of.reason == reason
            && of.revoked_key == key.map(ToString::to_string);
        if same && !begun.finished {
            return Ok(Some(begun.succession));
        }
        Err(CliError::Usage(if same {
            format!(
                "the log `{new}` has already replaced `{}`; start brokers with it",
                of.origin
            )
        } else {
            format!(
                "the store of `{new}` was begun to replace `{}` for another reason: a new log \
                 needs an empty store",
                of.origin
            )
        }))
    }

    /// Prints the effects, and carries them out if the user confirmed.
    async fn go_on(
        &self,
        succession: &Succession,
        why: &str,
        more: &Value,
        how: &SuccessionArgs,
        form: Form,
    ) -> Result<(), CliError> {
        let new = &self.config.ledger.origin;
        output::note(format!(
            "the log `{}` ends at {} leaves: {why}",
            succession.origin, succession.size
        ));
        output::note(format!(
            "the log `{new}` replaces it. Tokens issued before are refused when the broker is \
             asked, and evidence from before is refused. Sessions at back ends are denied there by \
             deny lists once a broker runs; sessions of a target without a deny list live until they \
             expire. Both are listed at the end"
        ));
        if !how.yes {
            return Err(CliError::Usage(
                "nothing was done; stop every broker of the old log, then add --yes".into(),
            ));
        }
        let connected = self.old.connected_brokers().await.map_err(failed)?;
        if connected > 0 {
            return Err(CliError::Usage(format!(
                "nothing was done: brokers still have {connected} connection(s) to the old log's \
                 database; stop all of them first"
            )));
        }
        let begun = succession::begin(
            &self.config,
            Arc::new(SystemClock),
            succession,
            &self.old,
            how.carry_over,
        );
        let begun = begun.await.map_err(failed)?;
        if form.is_json() {
            return output::json(&self.report(succession, &begun, more));
        }
        let carried = &begun.carried;
        output::line(format!("the log `{new}` has begun; its key is"))?;
        output::line(&begun.vkey)?;
        output::line(format!(
            "carried over: {} block(s), {} workload key(s), {} admin(s), generation: {}",
            carried.blocks,
            carried.workload_keys,
            carried.admin_bindings,
            carried
                .generation
                .map_or("none".into(), |it| it.to_string()),
        ))?;
        if !carried.denied.is_empty() {
            let denied = carried.denied.join(", ");
            output::line(format!(
                "older sessions will be denied, once a broker runs and has written the deny lists, by \
                 {denied}"
            ))?;
        }
        for left in &carried.expires_naturally {
            output::line(format!(
                "NOT ENDED: sessions of {} may live until {}: {}",
                left.target, left.until, left.reason
            ))?;
        }
        output::line(
            "give the new key to all verifiers, and start every broker with the new configuration",
        )
    }

    fn report(&self, succession: &Succession, begun: &NewLog, more: &Value) -> Value {
        let carried = &begun.carried;
        let mut report = json!({
            "origin": self.config.ledger.origin,
            "vkey": begun.vkey,
            "checkpoint": begun.checkpoint,
            "predecessor": succession,
            "carried_over": {
                "blocks": carried.blocks,
                "workload_keys": carried.workload_keys,
                "admin_bindings": carried.admin_bindings,
                "generation": carried.generation,
            },
            "denied": carried.denied,
            "expires_naturally": carried.expires_naturally,
        });
        if let (Some(report), Some(more)) = (report.as_object_mut(), more.as_object()) {
            report.extend(more.clone());
        }
        report
    }
}

fn failed(error: impl std::fmt::Display) -> CliError {
    CliError::unavailable(error)
}

fn unwritten(path: &std::path::Path, error: &std::io::Error) -> CliError {
    CliError::Unavailable(format!("cannot write {}: {error}", path.display()))
}
