//! Listings of the records of all callers, for a caller whose right to read them was checked.

use super::evidence::Reader;
use crate::domain::cutoff::Cutoff;
use crate::domain::task::Task;
use crate::domain::validity::SessionView;
use crate::store::StoreError;
use crate::store::cutoffs::CutoffFilter;
use crate::store::leaves::DecisionRow;
use crate::store::sessions::SessionFilter;
use crate::store::tasks::TaskFilter;
use crate::store::workload_keys::WorkloadKeyRow;

/// The listings of the store. Each holds records of many callers, so only a `Reader` returns them.
#[expect(
    clippy::disallowed_methods,
    reason = "a reader's evidence was used up, and no cutoff blocked it then"
)]
impl Reader<'_> {
    /// The sessions of a listing, newest first.
    pub(in crate::broker) async fn list_sessions(
        &self,
        filter: &SessionFilter,
    ) -> Result<Vec<SessionView>, StoreError> {
        self.store().list_sessions(filter).await
    }

    /// The tasks of a listing, newest first.
    pub(in crate::broker) async fn tasks(
        &self,
        filter: &TaskFilter,
    ) -> Result<Vec<Task>, StoreError> {
        self.store().tasks(filter).await
    }

    /// The cutoffs of a listing, newest first.
    pub(in crate::broker) async fn list_cutoffs(
        &self,
        filter: &CutoffFilter,
    ) -> Result<Vec<Cutoff>, StoreError> {
        self.store().list_cutoffs(filter).await
    }

    /// At most `count` decisions among the leaves of `[from, to)`, with the openings of their
    /// inputs.
    pub(in crate::broker) async fn decisions(
        &self,
        from: u64,
        to: u64,
        count: u32,
    ) -> Result<Vec<DecisionRow>, StoreError> {
        self.store().decisions(from, to, count).await
    }

    /// At most `limit` registered keys of workloads.
    pub(in crate::broker) async fn registered_keys(
        &self,
        limit: u32,
    ) -> Result<Vec<WorkloadKeyRow>, StoreError> {
        self.store().registered_keys(limit).await
    }
}
