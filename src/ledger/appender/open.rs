//! The creation of a log, and the opening of a log in the store.
//!
//! [`Ledger::begin`] commits the first entry of an empty store. [`Ledger::open`] reads the newest
//! head, checks the log, signs its checkpoint and returns the [`Ledger`] with its [`Appender`].
//!
//! The rule: no log is opened whose head lacks the broker's MAC, whose tiles do not give the root,
//! or which does not contain the checkpoints outside the store. A head is signed only after a later
//! commit was acknowledged. Failures: `Stopped` for such a log, with the reason; `Unavailable` if
//! the store does not answer; `Unknown` if the outcome of the first commit is unknown. If another
//! replica created the log first, `begin` succeeds and changes nothing. `app` and `app::succession`
//! call this module; `guard` and `proofs` do the checks.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::{Notify, watch};

use super::failure::Failure;
use super::{Appender, CONNECT_PATIENCE, sign};
use crate::ledger::clock_watch::ClockWatch;
use crate::ledger::cutoffs::Cutoffs;
use crate::ledger::entry::Request;
use crate::ledger::follower::View;
use crate::ledger::guard::Guard;
use crate::ledger::queue::queue;
use crate::ledger::shared::Through;
use crate::ledger::unrecorded::Unrecorded;
use crate::ledger::{AppendError, Ledger, LedgerParts, LedgerStatus, Shared, prepare, proofs};
use crate::merkle::Edge;
use crate::store::heads::SealedHead;
use crate::store::{Store, StoreError};

impl Ledger {
    /// Creates the log of an empty store with its first entry. Does nothing if another replica
    /// created it first. Signs nothing: the log's key is known only afterwards.
    pub async fn begin(
        parts: LedgerParts,
        guard: Guard,
        request: Request,
    ) -> Result<(), AppendError> {
        let succeeds = parts.succeeds.as_ref();
        guard
            .check_file(&parts.store, &parts.origin, None, succeeds)
            .await
            .map_err(AppendError::Stopped)?;
        let shared = guard.check_shared(None, Through::Pool).await;
        shared.map_err(|error| AppendError::Stopped(error.to_string()))?;
        let prepared = prepare(&parts.origin, request)?;
        let (_, queue) = queue();
        let clock = ClockWatch::new(Arc::clone(&parts.clock));
        let shared = shared_state(clock, &guard, 0);
        let mut appender = Appender::new(parts, queue, shared, Edge::empty(), guard);
        match appender.commit(&[&prepared]).await {
            Ok(committed) => committed
                .settled
                .into_iter()
                .try_for_each(|own| own.map(drop)),
            Err(Failure::Content(error)) => Err(AppendError::Poisoned(Arc::new(error))),
            Err(Failure::Unavailable(error)) => Err(AppendError::Unavailable(Arc::new(error))),
            Err(Failure::Unknown) => Err(AppendError::Unknown),
            Err(Failure::Fatal(why)) => Err(AppendError::Stopped(why)),
        }
    }

    /// Opens the log in the store, and checks it against the last checkpoint that was kept outside
    /// the store.
    pub async fn open(parts: LedgerParts, guard: Guard) -> Result<(Self, Appender), AppendError> {
        let unavailable = |error| AppendError::Unavailable(Arc::new(error));
        let clock = ClockWatch::new(Arc::clone(&parts.clock));
        clock.check(&parts.store).await.map_err(unavailable)?;
        let sealed = confirmed_head(&parts.store).await.map_err(unavailable)?;
        let head = sealed.map(|sealed| parts.head_seal().open(&sealed));
        let head = head
            .transpose()
            .map_err(|why| AppendError::Stopped(why.to_string()))?;
        // The pool must lead to a server that has at least this many leaves.
        parts.store.note_committed(head.map_or(0, |head| head.size));
        let edge = proofs::edge_at(&parts.store, head)
            .await
            .map_err(AppendError::Stopped)?;
        guard
            .check_file(&parts.store, &parts.origin, head, parts.succeeds.as_ref())
            .await
            .map_err(AppendError::Stopped)?;
        let signed = match head {
            Some(head) => Some(sign(&parts, head).await?),
            None => None,
        };
        // The start waits: without the shared checkpoint it could not detect a rewound store.
        let shared = guard.check_shared(signed.as_ref(), Through::Pool).await;
        shared.map_err(|error| AppendError::Stopped(error.to_string()))?;
        let (queue, waiting) = queue();
        let shared = shared_state(clock, &guard, edge.size());
        let ledger = Self {
            parts: parts.clone(),
            queue,
            shared: Arc::clone(&shared),
        };
        let appender = Appender::new(parts, waiting, shared, edge, guard);
        if let Some(signed) = signed {
            appender.show(signed);
        }
        Ok((ledger, appender))
    }
}

/// The row of the newest head. It will be signed and published, so it is returned only after a
/// later commit is acknowledged.
async fn confirmed_head(store: &Store) -> Result<Option<SealedHead>, StoreError> {
    let confirming = async { store.ledger_connection().await?.confirmed_head().await };
    let confirmed = tokio::time::timeout(CONNECT_PATIENCE, confirming).await;
    confirmed.unwrap_or_else(|_| {
        Err(StoreError::NotPrimary(format!(
            "a commit was not acknowledged within {CONNECT_PATIENCE:?}; its synchronous standby may be \
             gone"
        )))
    })
}

fn shared_state(clock: ClockWatch, guard: &Guard, size: u64) -> Arc<Shared> {
    Arc::new(Shared {
        clock,
        alarm: guard.alarm(),
        cutoffs: ArcSwap::from_pointee(Cutoffs::default()),
        size: size.into(),
        unrecorded: Unrecorded::default(),
        status: watch::Sender::new(LedgerStatus::Serving),
        latest: watch::Sender::new(None),
        view: View::default(),
        endings: Notify::new(),
    })
}
