//! Writes the rows of the table of endings.
//!
//! `postgres` inserts all rows of a batch in one statement; `sqlite` inserts row by row. If other
//! replicas wait for one of the rows, PostgreSQL notifies their followers at the commit. They read
//! the other rows within their interval.
//!
//! The rule: the rows continue the chain of the newest head, and the batch's head has the digest
//! after the last of them. The ledger computes both; this module checks nothing. A batch without
//! endings runs no statement. Failures: a failed statement is a `StoreError`, and the transaction
//! rolls back. Only `store::append` calls this module; [`crate::store::endings`] reads the table.

use sqlx::postgres::PgConnection;
use sqlx::sqlite::SqliteConnection;

use super::column;
use crate::store::StoreError;
use crate::store::codec::signed;
use crate::store::endings::{CHANNEL, ChainedEnding, EndingSubject};

/// Whether followers are notified of a row. Tasks and sessions end at any rate, and each
/// notification makes every replica read.
fn is_notified(subject: &EndingSubject) -> bool {
    match subject {
        EndingSubject::Task(_) | EndingSubject::Session(_) => false,
        EndingSubject::Cutoff(_)
        | EndingSubject::Lift(_)
        | EndingSubject::SigningKey(_)
        | EndingSubject::Activation(_)
        | EndingSubject::Roles(_)
        | EndingSubject::WorkloadKey(_) => true,
    }
}

pub(super) async fn postgres(
    connection: &mut PgConnection,
    endings: &[ChainedEnding],
) -> Result<(), StoreError> {
    if endings.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "/* write_endings */ WITH written AS ( \
         INSERT INTO ending (idx, n, kind, subject, matters_until, chain_before) \
         SELECT * FROM unnest($1::int8[], $2::int8[], $3::text[], $4::text[], $5::timestamptz[], \
         $6::bytea[])) \
         SELECT pg_notify($7, '') WHERE $8",
    )
    .bind(column(endings, |e| signed(e.record.position.index)))
    .bind(column(endings, |e| signed(e.record.position.n)))
    .bind(column(endings, |e| e.record.subject.kind()))
    .bind(column(endings, |e| e.record.subject.value()))
    .bind(column(endings, |e| e.record.matters_until))
    .bind(column(endings, |e| e.before.as_bytes().to_vec()))
    .bind(CHANNEL)
    .bind(endings.iter().any(|e| is_notified(&e.record.subject)))
    .execute(connection)
    .await?;
    Ok(())
}

pub(super) async fn sqlite(
    connection: &mut SqliteConnection,
    endings: &[ChainedEnding],
) -> Result<(), StoreError> {
    for ending in endings {
        let record = &ending.record;
        sqlx::query(
            "/* write_endings */ INSERT INTO ending \
             (idx, n, kind, subject, matters_until, chain_before) VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(signed(record.position.index))
        .bind(signed(record.position.n))
        .bind(record.subject.kind())
        .bind(record.subject.value())
        .bind(record.matters_until)
        .bind(ending.before.as_bytes().as_slice())
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::cutoff::{Selector, True};

    #[test]
    fn frequent_ends_notify_nobody() {
        let id = Uuid::from_u128(1);
        assert!(!is_notified(&EndingSubject::Task(id.into())));
        assert!(!is_notified(&EndingSubject::Session(id.into())));
        assert!(is_notified(&EndingSubject::Cutoff(Selector::All(True))));
        assert!(is_notified(&EndingSubject::SigningKey("k1".into())));
    }
}
