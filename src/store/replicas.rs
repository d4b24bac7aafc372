//! The configuration that each replica reports.

use super::{Store, StoreError, read, write};
use crate::clock::Timestamp;
use crate::domain::endpoint::EndpointsDigest;

/// The last report of a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaRow {
    /// The replica's name, as in its leases.
    pub name: String,
    /// The digest of its endpoints.
    pub endpoints: EndpointsDigest,
    /// The time of the report, by the replica's own clock.
    pub seen_at: Timestamp,
}

impl Store {
    /// Writes a replica's report.
    pub async fn put_replica(&self, row: &ReplicaRow) -> Result<(), StoreError> {
        write!(self, db => {
            sqlx::query(
                "/* put_replica */ INSERT INTO replica (name, endpoints, seen_at) \
                 VALUES ($1, $2, $3) ON CONFLICT (name) DO UPDATE \
                 SET endpoints = excluded.endpoints, seen_at = excluded.seen_at",
            )
            .bind(&row.name)
            .bind(&row.endpoints.0)
            .bind(row.seen_at)
            .execute(db)
            .await?;
        });
        Ok(())
    }

    /// The replicas whose last report is between two instants, by name.
    pub async fn replicas(
        &self,
        from: Timestamp,
        until: Timestamp,
    ) -> Result<Vec<ReplicaRow>, StoreError> {
        let rows: Vec<(String, String, Timestamp)> = read!(self, db => {
            sqlx::query_as(
                "/* replicas */ SELECT name, endpoints, seen_at FROM replica \
                 WHERE seen_at >= $1 AND seen_at <= $2 ORDER BY name",
            )
            .bind(from)
            .bind(until)
            .fetch_all(db)
            .await?
        });
        let rows = rows
            .into_iter()
            .map(|(name, endpoints, seen_at)| ReplicaRow {
                name,
                endpoints: EndpointsDigest(endpoints),
                seen_at,
            });
        Ok(rows.collect())
    }

    /// Deletes the replicas whose last report is not between two instants.
    pub async fn forget_replicas(
        &self,
        from: Timestamp,
        until: Timestamp,
    ) -> Result<u64, StoreError> {
        let gone = write!(self, db => {
            sqlx::query("/* forget_replicas */ DELETE FROM replica WHERE seen_at < $1 OR seen_at > $2")
                .bind(from)
                .bind(until)
                .execute(db)
                .await?
                .rows_affected()
        });
        Ok(gone)
    }
}
