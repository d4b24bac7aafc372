//! Ensures that a replica loads one generation at a time. A load can take seconds of CPU time and
//! hundreds of megabytes, and a caller that may only read generations can request any number of
//! checks.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::broker::error::BrokerError;
use crate::domain::limits::LOAD_WAIT_SECONDS;

/// The only slot for a load.
#[derive(Debug, Default)]
pub(super) struct Loads(Arc<Mutex<()>>);

/// The right to load. Dropping it gives the slot to the next load.
pub(super) struct LoadSlot {
    _guard: OwnedMutexGuard<()>,
}

impl Loads {
    /// Waits for the slot without a limit.
    pub(super) async fn slot(&self) -> LoadSlot {
        LoadSlot {
            _guard: Arc::clone(&self.0).lock_owned().await,
        }
    }

    /// Waits for the slot for at most [`LOAD_WAIT_SECONDS`].
    pub(super) async fn slot_for_call(&self) -> Result<LoadSlot, BrokerError> {
        self.slot_within(Duration::from_secs(LOAD_WAIT_SECONDS))
            .await
    }

    async fn slot_within(&self, wait: Duration) -> Result<LoadSlot, BrokerError> {
        let slot = tokio::time::timeout(wait, self.slot()).await;
        slot.map_err(|_| BrokerError::Overloaded)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn any_number_of_generations_were_loaded_at_once() {
        let loads = Loads::default();
        let first = loads.slot_for_call().await.unwrap();
        let second = loads.slot_within(Duration::from_millis(20)).await;
        assert!(matches!(second, Err(BrokerError::Overloaded)));
        assert!(loads.slot().now_or_never().is_none());
        // A replica that follows the active generation waits without a limit.
        let (follower, ()) = tokio::join!(loads.slot(), async { drop(first) });
        drop(follower);
        assert!(loads.slot_within(Duration::from_mins(1)).await.is_ok());
    }
}
