//! The log as a client of its witnesses (C2SP tlog-witness, `add-checkpoint`).
//!
//! [`Ledger::tell_witnesses`] serves all witnesses; `follow` and `tell` serve one, and
//! [`cosigned_note`] puts the cosignatures of one size into a note. Each witness is sent the newest
//! checkpoint, at most about once a second, with the proof that it continues the checkpoint that
//! this witness signed last. The store keeps its cosignature. Every replica does this, starting
//! from the cosignatures in the store: the first replica to submit a size saves the others the
//! request.
//!
//! The rule: only a cosignature that the witness's key verifies, with a time near the clock, is
//! stored. The witnesses are independent of each other: one that is slow, dead or wrong delays
//! nothing else. Failures: a [`Failure`] causes a warning, a metric and a pause. No answer of a
//! witness stops the ledger, because refusals are not signed; those that may mean a fork are logged
//! as errors. `app` runs this worker; `proofs` makes the proofs, `store::cosigned` keeps the rows.

use std::fmt;
use std::time::Duration;

use futures_util::future::join_all;
use reqwest::header::CONTENT_TYPE;
use reqwest::{Client, StatusCode, Url};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use super::proofs::{self, NoProof};
use super::{Ledger, Signed};
use crate::merkle::{
    Checkpoint, Note, NoteError, WitnessKey, add_checkpoint_body, parse_witness_size,
};
use crate::outgoing::{self, BodyError};
use crate::store::StoreError;
use crate::store::cosigned::CosignedRow;
use crate::store::heads::{ForeignHead, HeadError};

/// The least time between two submissions to a witness.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// The longest pause after failures.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// The longest time for one request.
const PATIENCE: Duration = Duration::from_secs(5);

/// The largest answer that is read; a witness sends one or two lines.
const MAX_ANSWER_BYTES: usize = 16 * 1024;

/// How often a witness may name another size before it is paused.
const TRIES: u32 = 3;

/// How many rows are read to find the last cosignature of a witness. All are genuine unless another
/// party wrote to the table.
const ROWS: u32 = 16;

/// The largest difference in seconds between a witness's time and the clock for which a cosignature
/// is accepted.
const MAX_SKEW_SECONDS: u64 = 300;

/// The media type of an answer that names the size that the witness last signed.
const SIZE_TYPE: &str = "text/x.tlog.size";

/// One witness: its address and its key.
#[derive(Debug)]
pub struct Witness {
    key: WitnessKey,
    vkey: String,
    url: Url,
    client: Client,
}

/// A witness's answer.
enum Answer {
    /// One or more signature lines.
    Signed(Vec<u8>),
    /// The size that the witness last signed, if not the expected one.
    Saw(u64),
}

/// Why a witness signed nothing.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("it cannot be reached: {0}")]
    Unreachable(reqwest::Error),
    #[error("it failed: {0}")]
    Failed(StatusCode),
    #[error(
        "it does not know this log (404): give it the origin and the keys that `taskpass ledger \
         keys` shows"
    )]
    UnknownLog,
    #[error(
        "it rejects the log's signature (403): give it the keys that `taskpass ledger keys` shows"
    )]
    UnknownKey,
    #[error("it refused with {0}: check ledger.witnesses.url and the witness's own limits")]
    Refused(StatusCode),
    #[error("its answer is more than {MAX_ANSWER_BYTES} bytes")]
    Large,
    #[error("its answer is not the size of a checkpoint")]
    NoSize,
    #[error("its signature is not valid: {0}; compare ledger.witnesses.vkey with its own key")]
    Signature(NoteError),
    #[error("its clock shows {0}, more than {MAX_SKEW_SECONDS} s from this replica's clock")]
    Clock(u64),
    #[error("it named another size {TRIES} times")]
    NoAgreement,
    #[error(
        "it signed a checkpoint of {theirs} leaves, and the store has {ours}: the store was rewound, \
         or the witness is wrong; find out which, with the checkpoints that others kept"
    )]
    Ahead { theirs: u64, ours: u64 },
    #[error(
        "the table cosigned says that it signed a checkpoint of {theirs} leaves, and the store has \
         {ours}: the store was rewound, or another party wrote to the table"
    )]
    Row { theirs: u64, ours: u64 },
    #[error(
        "it says that the checkpoint of {ours} leaves does not continue the one of {old} that it \
         signed: the log was forked, or the witness is wrong; find out which, with the checkpoints \
         that others kept"
    )]
    Fork { old: u64, ours: u64 },
    #[error("the store: {0}")]
    Store(#[from] StoreError),
    #[error(transparent)]
    Foreign(#[from] ForeignHead),
    #[error("no proof for it: {0}")]
    NoProof(#[from] NoProof),
    #[error("the proof is longer than the protocol carries")]
    LongProof,
}

impl Failure {
    /// Every value of the metric's label.
    const REASONS: [&'static str; 5] =
        ["unreachable", "refused", "unusable", "inconsistent", "own"];

    /// The value of the metric's label.
    fn reason(&self) -> &'static str {
        match self {
            Self::Unreachable(_) | Self::Failed(_) => "unreachable",
            Self::UnknownLog | Self::UnknownKey | Self::Refused(_) => "refused",
            Self::Large
            | Self::NoSize
            | Self::Signature(_)
            | Self::Clock(_)
            | Self::NoAgreement => "unusable",
            Self::Ahead { .. } | Self::Row { .. } | Self::Fork { .. } => "inconsistent",
            Self::Store(_) | Self::Foreign(_) | Self::NoProof(_) | Self::LongProof => "own",
        }
    }
}

impl From<HeadError> for Failure {
    fn from(error: HeadError) -> Self {
        match error {
            HeadError::Store(error) => error.into(),
            HeadError::Foreign(why) => why.into(),
        }
    }
}

impl Witness {
    /// The witness that accepts submissions under `prefix` and signs with `key`.
    pub fn new(prefix: &str, key: WitnessKey) -> Result<Self, String> {
        let url = format!("{}/add-checkpoint", prefix.trim_end_matches('/'));
        let client = outgoing::direct_client().timeout(PATIENCE).build();
        Ok(Self {
            vkey: key.to_string(),
            key,
            url: url.parse().map_err(|error| format!("{url}: {error}"))?,
            client: client.map_err(|error| error.to_string())?,
        })
    }

    async fn add_checkpoint(&self, old: u64, ours: u64, body: String) -> Result<Answer, Failure> {
        let unreachable = |error: reqwest::Error| Failure::Unreachable(error.without_url());
        let request = self.client.post(self.url.clone()).body(body);
        let answer = request.send().await.map_err(unreachable)?;
        let status = answer.status();
        let kind = answer.headers().get(CONTENT_TYPE);
        let is_size = kind.is_some_and(|kind| kind.as_bytes() == SIZE_TYPE.as_bytes());
        match status {
            StatusCode::OK => {}
            StatusCode::CONFLICT if is_size => {}
            // The witness answers so if it signed another tree of the same size.
            StatusCode::CONFLICT if old == ours => return Err(Failure::Fork { old, ours }),
            StatusCode::CONFLICT => return Err(Failure::NoSize),
            StatusCode::UNPROCESSABLE_ENTITY => return Err(Failure::Fork { old, ours }),
            StatusCode::NOT_FOUND => return Err(Failure::UnknownLog),
            StatusCode::FORBIDDEN => return Err(Failure::UnknownKey),
            status if status.is_server_error() => return Err(Failure::Failed(status)),
            status => return Err(Failure::Refused(status)),
        }
        let body = outgoing::body(answer, MAX_ANSWER_BYTES).await;
        let body = body.map_err(|error| match error {
            BodyError::Large(_) => Failure::Large,
            BodyError::Broken(error) => unreachable(error),
        })?;
        if status == StatusCode::OK {
            return Ok(Answer::Signed(body));
        }
        let size = parse_witness_size(&body).ok_or(Failure::NoSize)?;
        Ok(Answer::Saw(size))
    }
}

impl fmt::Display for Witness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.key.name())
    }
}

/// The note of one size: the log's signed checkpoint with the cosignature of each witness. `None`
/// if there are no rows, or the first one holds no note. Verifies no signature.
#[must_use]
pub fn cosigned_note(rows: &[CosignedRow]) -> Option<(u64, String)> {
    let text = |row: &CosignedRow| {
        let note = Note::parse(row.checkpoint.as_bytes()).ok()?;
        Some(note.unverified_text().to_owned())
    };
    let first = rows.first()?;
    let signed = text(first)?;
    let mut note = first.checkpoint.clone();
    for row in rows {
        // A line over another text would make the note invalid for readers that know that witness.
        if text(row).as_ref() != Some(&signed) {
            continue;
        }
        // A note with too many signatures would be invalid, too.
        let longer = format!("{note}{}", row.line);
        if Note::parse(longer.as_bytes()).is_ok() {
            note = longer;
        }
    }
    Some((first.size, note))
}

impl Ledger {
    /// Sends new checkpoints to the witnesses until `stop`.
    pub async fn tell_witnesses(self, witnesses: Vec<Witness>, stop: CancellationToken) {
        let told = join_all(witnesses.iter().map(|witness| self.follow(witness)));
        // An interrupted request is repeated at the next start.
        drop(stop.run_until_cancelled(told).await);
    }

    async fn follow(&self, witness: &Witness) {
        self.parts
            .metrics
            .witness_begins(witness.key.name(), &Failure::REASONS);
        let mut newest = self.checkpoints();
        let mut pause = TELL_EVERY;
        loop {
            let signed = newest.borrow_and_update().clone();
            let told = match &signed {
                Some(signed) => self.tell(witness, signed).await,
                None => Ok(()),
            };
            match told {
                Ok(()) => {
                    pause = TELL_EVERY;
                    tokio::time::sleep(pause).await;
                    if newest.changed().await.is_err() {
                        return;
                    }
                }
                Err(why) => {
                    self.count(witness, &why);
                    tokio::time::sleep(pause).await;
                    pause = LONGEST_PAUSE.min(pause * 2);
                }
            }
        }
    }

    fn count(&self, witness: &Witness, why: &Failure) {
        let reason = why.reason();
        self.parts
            .metrics
            .witness_failed(witness.key.name(), reason);
        if reason == "inconsistent" {
            error!(%witness, %why, "a witness contradicts the log");
        } else {
            warn!(%witness, %why, "a witness signed nothing");
        }
    }

    /// The size that a witness signed last, according to the store. Others may be able to write to
    /// the table, so a row counts only if its signature is valid.
    async fn last_signed(&self, witness: &Witness) -> Result<u64, Failure> {
        let store = &self.parts.store;
        let last = store.last_cosigned(&witness.vkey).await?.unwrap_or(0);
        // A row is written only after the leaves that it covers.
        let ours = self.head().await?.map_or(0, |head| head.size);
        if last > ours {
            self.count(witness, &Failure::Row { theirs: last, ours });
        }
        let rows = store.cosigned_until(&witness.vkey, ours, ROWS).await?;
        let genuine = |row: &&CosignedRow| {
            let note = Note::parse(row.checkpoint.as_bytes()).ok()?;
            let text = note.unverified_text();
            let said: Checkpoint = text.parse().ok()?;
            witness.key.cosigned(text, row.line.as_bytes()).ok()?;
            Some(said.origin == self.parts.origin && said.size == row.size)
        };
        let last = rows.iter().find(|row| genuine(row) == Some(true));
        Ok(last.map_or(0, |row| row.size))
    }

    /// Submits one checkpoint, unless the witness signed a later one.
    async fn tell(&self, witness: &Witness, signed: &Signed) -> Result<(), Failure> {
        let (store, metrics) = (&self.parts.store, &self.parts.metrics);
        let name = witness.key.name();
        let ours = signed.head.size;
        let mut old = self.last_signed(witness).await?;
        metrics.witness_size(name, old);
        if old >= ours {
            return Ok(());
        }
        for _ in 0..TRIES {
            let stored = self.head().await?.map_or(0, |head| head.size);
            let proof = proofs::consistency(store, old, ours, stored).await?;
            let body = add_checkpoint_body(old, &proof, &signed.checkpoint);
            let body = body.ok_or(Failure::LongProof)?;
            match witness.add_checkpoint(old, ours, body).await? {
                Answer::Signed(answer) => {
                    let row = self.read(witness, signed, &answer)?;
                    store.put_cosigned(&row).await?;
                    metrics.witness_size(name, ours);
                    debug!(%witness, size = ours, "a witness signed the checkpoint");
                    return Ok(());
                }
                Answer::Saw(theirs) if theirs > ours => {
                    let head = self.head().await?.map_or(0, |head| head.size);
                    if theirs <= head {
                        // Another replica submitted first.
                        return Ok(());
                    }
                    return Err(Failure::Ahead { theirs, ours: head });
                }
                // Same size, but the witness refused it: its root must differ.
                Answer::Saw(theirs) if theirs == old && old == ours => {
                    return Err(Failure::Fork { old, ours });
                }
                Answer::Saw(theirs) => old = theirs,
            }
        }
        Err(Failure::NoAgreement)
    }

    fn read(
        &self,
        witness: &Witness,
        signed: &Signed,
        answer: &[u8],
    ) -> Result<CosignedRow, Failure> {
        let note = Note::parse(signed.checkpoint.as_bytes()).map_err(Failure::Signature)?;
        let read = witness.key.cosigned(note.unverified_text(), answer);
        let (time, line) = read.map_err(Failure::Signature)?;
        let now = u64::try_from(self.parts.clock.now().seconds()).unwrap_or(0);
        if now.abs_diff(time) > MAX_SKEW_SECONDS {
            return Err(Failure::Clock(time));
        }
        let name = witness.key.name();
        self.parts.metrics.witness_signed(name, time);
        Ok(CosignedRow {
            size: signed.head.size,
            vkey: witness.vkey.clone(),
            witness: name.to_owned(),
            line,
            checkpoint: signed.checkpoint.to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    use super::*;
    use crate::merkle::MAX_NOTE_SIGNATURES;

    fn line(of: u8) -> String {
        format!("\u{2014} w{of} {}\n", STANDARD.encode([of; 76]))
    }

    #[test]
    fn a_note_has_the_words_of_as_many_witnesses_as_readers_take() {
        let checkpoint = format!(
            "one.test/log\n1\n{}\n\n{}",
            STANDARD.encode([0; 32]),
            line(0)
        );
        let row = |of| CosignedRow {
            size: 1,
            vkey: String::new(),
            witness: format!("w{of}"),
            line: line(of),
            checkpoint: checkpoint.clone(),
        };
        let mut rows: Vec<CosignedRow> = (1..=40).map(row).collect();
        rows[1].line = "not a signature\n".into();
        let (size, note) = cosigned_note(&rows).unwrap();
        let note = Note::parse(note.as_bytes()).unwrap();
        assert_eq!((size, note.signatures().len()), (1, MAX_NOTE_SIGNATURES));
        assert!(note.signatures().iter().all(|known| known.name != "w2"));
    }
}
