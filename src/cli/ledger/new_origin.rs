//! `taskpass ledger new-origin` and `taskpass keys revoke --ledger`: giving a log up, and beginning
//! the one that takes its place.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use serde_json::{Value, json};

use super::MAX_FILE_BYTES;
use crate::app::StartError;
use crate::app::succession::{self, Begun, Evidence, Old};
use crate::cli::Failure;
use crate::cli::client::read_file;
use crate::cli::output::{self, Form};
use crate::cli::serve::ConfigFile;
use crate::clock::{Clock, SystemClock};
use crate::config::{
    Config, DATABASE_URL_VARIABLE, Environment, Mode, NotText, ProcessEnvironment,
};
use crate::domain::succession::{Succession, Why};
use crate::files::NewFile;
use crate::merkle::VerifierKey;

/// Where the old store's database is said to be; with `_FILE` appended, a file that says so.
const OLD_DATABASE_URL_VARIABLE: &str = "TASKPASS_OLD_DATABASE_URL";

/// Begin a new log after leaves were lost
#[derive(Args, Debug)]
pub(in crate::cli) struct NewOrigin {
    #[command(flatten)]
    file: ConfigFile,
    /// The configuration that the log was kept by so far. Its PostgreSQL database is named by
    /// `TASKPASS_OLD_DATABASE_URL` or `…_FILE`
    #[arg(long, value_name = "FILE")]
    old_config: PathBuf,
    #[command(flatten)]
    how: How,
}

/// How a log is succeeded, whatever for.
#[derive(Args, Debug)]
pub(in crate::cli) struct How {
    /// A signed checkpoint of the old log that somebody kept; may be given several times. The
    /// checkpoint file and the shared checkpoint of the old configuration are looked at anyway
    #[arg(long = "checkpoint", value_name = "FILE")]
    checkpoints: Vec<PathBuf>,
    /// A verifier key of the old log that its store has forgotten; may be given several times
    #[arg(long = "key", value_name = "VKEY", value_parser = super::vkey)]
    keys: Vec<VerifierKey>,
    /// Take over registered workload keys, admins and the generation that decides as well. What was
    /// taken back after a lost leaf comes back with them
    #[arg(long)]
    carry_over: bool,
    /// Do it; otherwise it is only told
    #[arg(long)]
    yes: bool,
}

impl How {
    /// Whether it is to be done without asking.
    pub(in crate::cli) fn is_confirmed(&self) -> bool {
        self.yes
    }
}

/// The process's environment, in which the old store's database is the database.
struct OfTheOld;

impl Environment for OfTheOld {
    fn get(&self, name: &str) -> Result<Option<String>, NotText> {
        match name.strip_prefix(DATABASE_URL_VARIABLE) {
            Some(ending) => ProcessEnvironment.get(&format!("{OLD_DATABASE_URL_VARIABLE}{ending}")),
            None => ProcessEnvironment.get(name),
        }
    }
}

impl NewOrigin {
    pub(super) async fn run(self, form: Form) -> Result<(), Failure> {
        let opened = Opened::new(&self.file, &self.old_config, &self.how, None).await?;
        if let Some(succession) = opened.cut_short(Why::Lost, None).await? {
            return opened
                .go_on(&succession, TAKEN_UP, &json!({}), &self.how, form)
                .await;
        }
        let Some(lost) = opened.old.lost().await.map_err(failed)? else {
            return Err(Failure::Usage(format!(
                "nothing is known to be lost: the store of `{}` contains {}; a later checkpoint is \
                 given with --checkpoint, and a key that somebody else had is revoked with \
                 `taskpass keys revoke --ledger`",
                opened.old.origin(),
                match opened.old.known() {
                    Some((name, known)) => format!("the {} leaves of {name}", known.size),
                    None => "all that its checkpoint file says, which is nothing".to_owned(),
                },
            )));
        };
        let succession = opened.old.give_up(SystemClock.now());
        opened
            .go_on(&succession, &lost, &json!({}), &self.how, form)
            .await
    }
}

/// Gives a log up whose key somebody else had, and writes to `list` what only that key vouches for.
pub(in crate::cli) async fn revoke_log_key(
    file: &ConfigFile,
    old_config: &std::path::Path,
    how: &How,
    key: &VerifierKey,
    list: Option<&std::path::Path>,
    form: Form,
) -> Result<(), Failure> {
    let opened = Opened::new(file, old_config, how, Some(key)).await?;
    if !opened.old.has_key(key) {
        return Err(Failure::Usage(format!(
            "{key} is no key of the log `{}`; `taskpass ledger keys` shows them",
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
            "{count} leaves, from {from} to {to}, stand under checkpoints of this key alone: \
             only whoever kept a checkpoint from before can vouch for them"
        ),
        _ => "every leaf stands under a checkpoint that another key of the log or a witness signed"
            .to_owned(),
    };
    let alone = json!({"vouched_by_this_key_alone": {"count": count, "first": from, "last": to}});
    if let Some(succession) = opened.cut_short(Why::KeyRevoked, Some(key)).await? {
        return opened.go_on(&succession, TAKEN_UP, &alone, how, form).await;
    }
    let revoked = opened.old.revoke(key, SystemClock.now()).await;
    let (succession, not_believed) = revoked.map_err(failed)?;
    for checkpoint in not_believed {
        output::note(format!(
            "not believed: {checkpoint}: the store does not contain it, and nobody else signed it; \
             keep it, for it may be of whoever had the key, and move it away where it is a replica's \
             checkpoint_file"
        ));
    }
    opened.go_on(&succession, &told, &alone, how, form).await
}

/// Said of a new log that was begun before.
const TAKEN_UP: &str = "this was begun before and cut short, and is gone on with";

struct Opened {
    config: Config,
    old: Old,
}

impl Opened {
    async fn new(
        file: &ConfigFile,
        old_config: &std::path::Path,
        how: &How,
        revoked: Option<&VerifierKey>,
    ) -> Result<Self, Failure> {
        let config = file.load()?;
        let old_config = Config::load(old_config, &OfTheOld, Mode::Production)
            .map_err(|errors| Failure::Usage(errors.to_string()))?;
        if old_config.ledger.origin == config.ledger.origin {
            return Err(Failure::Usage(format!(
                "both configurations say `{}`: give the new log a ledger.origin of its own, and an \
                 empty store",
                config.ledger.origin
            )));
        }
        let issuers = [&config, &old_config].map(|it| it.server.issuer.as_str());
        if issuers[0] != issuers[1] {
            return Err(Failure::Usage(format!(
                "{}: server.issuer is `{}`, and the old log's is `{}`; an issuer is for ever: roles in \
                 AWS trust it, and their lists of denied sessions are marked with it, so sessions of \
                 the old log could not be denied. Say the old issuer",
                config.source.display(),
                issuers[0],
                issuers[1]
            )));
        }
        let bootstrap = &config.admin.bootstrap_token_sha256;
        if bootstrap.is_some() && *bootstrap == old_config.admin.bootstrap_token_sha256 {
            // In a new store its day begins anew.
            return Err(Failure::Usage(format!(
                "{}: admin.bootstrap_token_sha256 is the old one, and whoever kept that token could \
                 make admins with it for another day; make a new one with `taskpass keys bootstrap`",
                config.source.display()
            )));
        }
        let evidence: Result<Vec<Evidence>, Failure> = how
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
        let old = Old::open(old_config, successor, evidence?, &keys, now).await;
        let old = old.map_err(failed)?;
        if old.has_seen_bootstrap_of(&config).await.map_err(failed)? {
            return Err(Failure::Usage(format!(
                "{}: admin.bootstrap_token_sha256 was one of the old log's; make a new one with \
                 `taskpass keys bootstrap`",
                config.source.display()
            )));
        }
        if let Some(kid) = old.signed_with_key_of(&config).map_err(failed)? {
            return Err(Failure::Usage(format!(
                "{}: keys.rs256_private_key_file is the old one ({kid}), and what it signed would be \
                 taken for the new log's; make a new one",
                config.source.display()
            )));
        }
        Ok(Self { config, old })
    }

    /// The succession that was begun for the same reason, and cut short. What it began with may be
    /// known by nobody else any more.
    async fn cut_short(
        &self,
        reason: Why,
        key: Option<&VerifierKey>,
    ) -> Result<Option<Succession>, Failure> {
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
        Err(Failure::Usage(if same {
            format!(
                "the log `{new}` has taken the place of `{}` already; start brokers with it",
                of.origin
            )
        } else {
            format!(
                "the store of `{new}` was begun in the place of `{}` for another reason: a new log \
                 needs an empty store",
                of.origin
            )
        }))
    }

    /// Tells what will be, and does it where that was said.
    async fn go_on(
        &self,
        succession: &Succession,
        why: &str,
        more: &Value,
        how: &How,
        form: Form,
    ) -> Result<(), Failure> {
        let new = &self.config.ledger.origin;
        output::note(format!(
            "the log `{}` is given up as of {} leaves: {why}",
            succession.origin, succession.size
        ));
        output::note(format!(
            "the log `{new}` takes its place; what was issued before is refused wherever the broker is \
             asked, and evidence from before is not believed. Sessions that back ends made are denied \
             there by their lists once a broker runs; those of a place without a list live until they \
             expire. Both are named when it is done"
        ));
        if !how.yes {
            return Err(Failure::Usage(
                "nothing was done; stop every broker of the old log, then say --yes".into(),
            ));
        }
        let connected = self.old.connected_brokers().await.map_err(failed)?;
        if connected > 0 {
            return Err(Failure::Usage(format!(
                "nothing was done: brokers still have {connected} connection(s) to the old log's \
                 database; stop every one of them first"
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
                "older sessions will be denied, once a broker runs and has written their lists, by \
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
            "give the new key to all who verify, and start every broker with the new configuration",
        )
    }

    fn report(&self, succession: &Succession, begun: &Begun, more: &Value) -> Value {
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

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::unestablished(error)
}

fn unwritten(path: &std::path::Path, error: &std::io::Error) -> Failure {
    Failure::Unestablished(format!("cannot write {}: {error}", path.display()))
}
