//! Checks `[ledger]`: the origin of the log, the shared checkpoint and the witnesses.
//!
//! The rule: a URL that the broker will send requests to holds no secret and cannot be read or
//! changed in transit, and a checkpoint is not kept where it would be rewound with the store.
//!
//! A fault is added to the [`Checker`]; `super` calls this file. The start opens the shared
//! checkpoint and finds faults of the location itself.

use std::collections::BTreeSet;

use url::Url;

use super::super::sections;
use super::super::{DEV_ORIGIN_HOST, Mode};
use super::{Checker, is_plain_on_loopback};
use crate::domain::limits::MAX_LEDGER_KEYS;
use crate::merkle::{MAX_NOTE_SIGNATURES, WitnessKey};

/// The longest origin of a log, in bytes.
const MAX_ORIGIN_BYTES: usize = 255;

/// The most witnesses of one log. A note holds that many signatures and those of the log's keys.
const MAX_WITNESSES: usize = 16;
const _: () = assert!(MAX_WITNESSES + MAX_LEDGER_KEYS <= MAX_NOTE_SIGNATURES);

impl Checker<'_> {
    pub(super) fn ledger(&mut self, file: &sections::File, mode: Mode) {
        let key = "ledger.origin";
        let origin = &file.ledger.origin;
        let remedy = "give a name without a scheme, for example broker.example/log";
        if origin.is_empty() || origin.len() > MAX_ORIGIN_BYTES {
            let problem = format!("is empty or longer than {MAX_ORIGIN_BYTES} bytes");
            return self.refuse(key, problem, remedy);
        }
        let plain = |b: u8| b.is_ascii_graphic() && b != b'+';
        if !origin.bytes().all(plain) {
            let problem = "has a space, a plus sign or an unprintable character";
            return self.refuse(key, problem, remedy);
        }
        if origin.contains("://") {
            return self.refuse(key, "has a scheme", remedy);
        }
        let host = origin.split(['/', ':']).next().unwrap_or_default();
        let host = host.to_ascii_lowercase();
        let dev = host == DEV_ORIGIN_HOST || host.ends_with(&format!(".{DEV_ORIGIN_HOST}"));
        match mode {
            Mode::Production if dev => {
                self.refuse(key, "is the origin of a development ledger", remedy);
            }
            Mode::Dev if !dev => {
                let remedy = format!("use {DEV_ORIGIN_HOST} for development");
                self.refuse(key, "is not the origin of a development ledger", remedy);
            }
            _ => {}
        }
        if let Some(shared) = &file.ledger.shared_checkpoint {
            self.shared_checkpoint(shared, file);
        }
        self.witnesses(&file.ledger.witnesses, origin);
    }

    fn witnesses(&mut self, witnesses: &[sections::Witness], origin: &str) {
        if witnesses.len() > MAX_WITNESSES {
            let remedy = format!("keep at most {MAX_WITNESSES}");
            self.refuse("ledger.witnesses", "has too many entries", remedy);
        }
        let mut names = BTreeSet::from([origin.to_owned()]);
        for (index, witness) in witnesses.iter().enumerate() {
            let key = |part: &str| format!("ledger.witnesses.{index}.{part}");
            if !is_safe_to_ask(&witness.url) {
                self.refuse(
                    &key("url"),
                    "is not safe to send requests to",
                    "give an https URL (http on loopback only) without a user, password, query or \
                     fragment; the broker appends `/add-checkpoint` to it",
                );
            }
            match witness.vkey.parse::<WitnessKey>() {
                Err(error) => self.refuse(
                    &key("vkey"),
                    format!("is not a witness key: {error}"),
                    "give the key that the witness publishes, of type 0x04: <name>+<id>+<base64>",
                ),
                Ok(vkey) if !names.insert(vkey.name().to_owned()) => self.refuse(
                    &key("vkey"),
                    format!("has the name of another witness, `{}`", vkey.name()),
                    "list each witness once",
                ),
                Ok(_) => {}
            }
        }
    }

    fn shared_checkpoint(&mut self, shared: &sections::SharedCheckpoint, file: &sections::File) {
        let key = |part: &str| format!("ledger.shared_checkpoint{part}");
        match (&shared.file, &shared.url) {
            (None, None) => {
                let remedy = "give a file on a disk that all replicas share, or a url";
                return self.refuse(&key(""), "names neither a file nor a URL", remedy);
            }
            (Some(_), Some(_)) => {
                return self.refuse(
                    &key(".url"),
                    "is set together with file",
                    "remove one of them",
                );
            }
            (Some(path), None) => {
                if *path == file.ledger.checkpoint_file {
                    let remedy = "give another path: that one is this replica's own";
                    self.refuse(&key(".file"), "is ledger.checkpoint_file", remedy);
                }
                let sqlite = file.store.sqlite.as_ref();
                if sqlite.is_some_and(|sqlite| path.starts_with(&sqlite.data_dir)) {
                    let problem = "is in the store's directory and would be rewound with it";
                    self.refuse(&key(".file"), problem, "store it in another directory");
                }
                let asked = shared.authorization_file.is_some() || shared.s3_region.is_some();
                if asked || !shared.headers.is_empty() {
                    let remedy = "remove authorization_file, s3_region and headers";
                    self.refuse(&key(".file"), "takes no headers", remedy);
                }
                return;
            }
            (None, Some(text)) => {
                if !is_safe_to_ask(text) {
                    self.refuse(
                        &key(".url"),
                        "is not safe to send requests to",
                        "give an https URL (http on loopback only) without a user, password, query \
                         or fragment; put secrets into authorization_file",
                    );
                }
            }
        }
        if shared.s3_region.is_some() && shared.authorization_file.is_some() {
            let remedy = "remove one of them: S3 requires AWS signatures";
            self.refuse(
                &key(".s3_region"),
                "is set together with authorization_file",
                remedy,
            );
        }
        let secret = |name: &&String| {
            let name = name.to_ascii_lowercase();
            ["authorization", "cookie", "if-match", "if-none-match"].contains(&name.as_str())
        };
        if let Some(name) = shared.headers.keys().find(secret) {
            let remedy = "remove it; put secrets into authorization_file";
            self.refuse(&key(".headers"), format!("must not have `{name}`"), remedy);
        }
        let header = |(name, value): &(&String, &String)| {
            reqwest::header::HeaderName::try_from(*name).is_err()
                || reqwest::header::HeaderValue::try_from(*value).is_err()
        };
        if let Some((name, _)) = shared.headers.iter().find(header) {
            let remedy = "give header names and values that are valid in HTTP";
            self.refuse(
                &key(".headers"),
                format!("`{name}` is not a valid header"),
                remedy,
            );
        }
    }
}

/// Whether a URL contains no secret, and answers from it cannot be changed in transit.
fn is_safe_to_ask(text: &str) -> bool {
    Url::parse(text).is_ok_and(|url| {
        let plain = url.username().is_empty() && url.password().is_none();
        let bare = url.query().is_none() && url.fragment().is_none();
        plain && bare && (url.scheme() == "https" || is_plain_on_loopback(&url))
    })
}
