//! A store's record of the log that its own log succeeds, and the first leaf, which names it too.
//!
//! `read` opens the sealed record, and `check_first_leaf` compares it with the leaf. A broker
//! serves a new log only after `SuccessionRecord::check_finished`.
//!
//! The rule: an attacker who can delete a row cannot change a leaf, so both must name the same log.
//! A record or leaf that was changed is `StartError::Unfit` with the remedy. [`super::succession`]
//! writes the record, and [`super::assembly`] checks it at each start.

use serde::{Deserialize, Serialize};

use super::{StartError, unfit, unfit_store};
use crate::crypto::digest::Mac;
use crate::domain::leaf::{Event, Leaf, LeafError};
use crate::domain::succession::{Succession, SuccessionReason};
use crate::ledger::SUCCESSION_MAC;
use crate::merkle::leaf_hash;
use crate::store::Store;
use crate::store::meta::SealedSuccession;

/// A store's record of the log that its own log succeeds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct SuccessionRecord {
    /// The succeeded log, and the reason.
    #[serde(flatten)]
    pub(super) succession: Succession,
    /// Whether restrictions of the old log are still to be carried over.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) unfinished: bool,
}

impl SuccessionRecord {
    pub(super) fn seal(&self, mac: &Mac) -> Result<SealedSuccession, StartError> {
        let document = serde_json::to_string(self).map_err(unfit)?;
        Ok(SealedSuccession {
            mac: mac.tag(SUCCESSION_MAC, &[document.as_bytes()]),
            document,
        })
    }

    /// Refuses to serve a new log that has not carried over all restrictions of the old one.
    pub(super) fn check_finished(&self, origin: &str) -> Result<(), StartError> {
        if !self.unfinished {
            return Ok(());
        }
        let command = match self.succession.reason {
            SuccessionReason::Lost => "taskpass ledger new-origin",
            SuccessionReason::KeyRevoked => "taskpass keys revoke --ledger",
        };
        Err(unfit(format!(
            "the log `{origin}` was begun to replace `{}`, but the command was interrupted before \
             all restrictions were carried over; run `{command}` again with the same configurations",
            self.succession.origin
        )))
    }
}

/// Reads which log the store's own log succeeds. Fails if the record's MAC does not verify.
pub(super) async fn read(store: &Store, mac: &Mac) -> Result<Option<SuccessionRecord>, StartError> {
    let Some(sealed) = store.succession().await.map_err(unfit_store)? else {
        return Ok(None);
    };
    let document = sealed.document.as_bytes();
    let genuine = mac.verify(SUCCESSION_MAC, &[document], &sealed.mac);
    genuine
        .map_err(|_| unfit("the table succession was changed by another program; restore it"))?;
    serde_json::from_slice(document).map(Some).map_err(unfit)
}

/// The part of the first leaf that names the succeeded log.
pub(super) struct Genesis {
    pub(super) predecessor: Option<Succession>,
}

/// Reads the first leaf. Returns `None` if there is none, or if its body was pruned.
pub(super) async fn first_leaf(store: &Store) -> Result<Option<Genesis>, StartError> {
    let leaf = store.leaf(0).await.map_err(unfit_store)?;
    let Some((hash, body)) = leaf.and_then(|leaf| Some((leaf.hash, leaf.body?))) else {
        return Ok(None);
    };
    if leaf_hash(&body) != hash {
        return Err(unfit("the body of the first leaf does not match its hash"));
    }
    let unread = |error: LeafError| unfit(format!("the first leaf of the log: {error}"));
    let Event::Genesis { predecessor, .. } = Leaf::from_bytes(&body).map_err(unread)?.event else {
        return Err(unfit("the first leaf of the log is not a genesis leaf"));
    };
    Ok(Some(Genesis { predecessor }))
}

/// Checks that the first leaf and the table name the same predecessor. An attacker who can delete a
/// row cannot change a leaf.
pub(super) async fn check_first_leaf(
    store: &Store,
    succeeds: Option<&Succession>,
) -> Result<(), StartError> {
    let Some(Genesis { predecessor: leaf }) = first_leaf(store).await? else {
        return Ok(());
    };
    if leaf.as_ref() == succeeds {
        return Ok(());
    }
    let says = |succession: Option<&Succession>| match succession {
        Some(succession) => format!("the log `{}`", succession.origin),
        None => "no log".to_owned(),
    };
    Err(unfit(format!(
        "by its first leaf this log succeeds {}, but by the table succession it succeeds {}: \
         the table was changed by another program; restore it",
        says(leaf.as_ref()),
        says(succeeds)
    )))
}
