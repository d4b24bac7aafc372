//! Whether all replicas would ask the same servers.
//!
//! Endpoints stand in each replica's own configuration. Each replica publishes the digest of its
//! table, and readiness names those whose digest differs: a generation could be fit on one and unfit
//! on another, or send the same request to two different servers.

use tracing::warn;

use super::Health;
use crate::broker::error::BrokerError;
use crate::clock::Timestamp;
use crate::domain::endpoint::EndpointsDigest;
use crate::store::replicas::ReplicaRow;

/// For how long a replica counts as running after it described itself. Several rounds.
const ALIVE_SECONDS: u64 = 60;

/// After that long without a word a replica's row is deleted.
const FORGOTTEN_SECONDS: u64 = 3_600;

/// A running replica with other endpoints than ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherEndpoints {
    /// The replica.
    pub replica: String,
    /// The digest of its endpoints.
    pub endpoints: EndpointsDigest,
}

impl Health {
    /// The running replicas with other endpoints than ours, as of the last round.
    #[must_use]
    pub fn other_endpoints(&self) -> Vec<OtherEndpoints> {
        self.other_endpoints.load().as_ref().clone()
    }

    /// Describes this replica to the others, and compares what they say with it.
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
                    "a replica has other endpoints than this one"
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
