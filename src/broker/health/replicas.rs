//! Checks whether all replicas have the same endpoints.
//!
//! Each replica has its own configuration of endpoints. `compare_replicas` publishes the digest of
//! this replica's table, reads those of the other replicas, and deletes rows of replicas that have
//! stopped. `other_endpoints` returns the replicas whose digest differed in the last round.
//!
//! The reason: otherwise a generation could be able to decide on one replica and not on another, or
//! replicas could send the same request to different servers. A difference is reported by a log
//! line, a metric and readiness, and stops nothing. A store that fails gives `FailClosed`, and the
//! last result stays. The sweeper calls `compare_replicas`; `http::ops` reads the result.

use tracing::warn;

use super::Health;
use crate::broker::error::BrokerError;
use crate::clock::Timestamp;
use crate::domain::endpoint::EndpointsDigest;
use crate::store::replicas::ReplicaRow;

/// For how long a replica counts as running after it updated its row: several rounds.
const ALIVE_SECONDS: u64 = 60;

/// A replica's row is deleted if the replica has not updated it for this long.
const FORGOTTEN_SECONDS: u64 = 3_600;

/// A running replica whose endpoints differ from this replica's.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct OtherEndpoints {
    /// The name of the replica.
    pub replica: String,
    pub endpoints: EndpointsDigest,
}

impl Health {
    /// The running replicas whose endpoints differ from this replica's, as of the last round.
    #[must_use]
    pub fn other_endpoints(&self) -> Vec<OtherEndpoints> {
        self.other_endpoints.load().as_ref().clone()
    }

    /// Publishes the digest of this replica's endpoints and compares it with the other replicas'.
    /// Returns the number of deleted rows.
    pub async fn compare_replicas(&self, now: Timestamp) -> Result<u64, BrokerError> {
        let own = ReplicaRow {
            name: self.core.replica().to_owned(),
            endpoints: self.generations.endpoints_digest(),
            seen_at: now,
        };
        self.core.store().put_replica(&own).await?;
        let alive = self
            .core
            .store()
            .replicas(
                now.minus_seconds(ALIVE_SECONDS),
                now.plus_seconds(ALIVE_SECONDS),
            )
            .await?;
        let others: Vec<OtherEndpoints> = alive
            .into_iter()
            .filter(|row| row.endpoints != own.endpoints)
            .map(|row| OtherEndpoints {
                replica: row.name,
                endpoints: row.endpoints,
            })
            .collect();
        self.core.metrics().other_endpoints(others.len());
        if others != *self.other_endpoints.load_full() {
            for other in &others {
                warn!(
                    replica = other.replica,
                    endpoints = %other.endpoints,
                    own = %own.endpoints,
                    "another replica has different endpoints; configure the same `[endpoints]` on \
                     all replicas"
                );
            }
            self.other_endpoints.store(others.into());
        }
        let gone = self.core.store().forget_replicas(
            now.minus_seconds(FORGOTTEN_SECONDS),
            now.plus_seconds(FORGOTTEN_SECONDS),
        );
        Ok(gone.await?)
    }
}
