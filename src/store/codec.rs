//! The form of our types in each database: instants are `TIMESTAMPTZ` or microseconds, unsigned
//! numbers are signed.
//!
//! The conversions of `Timestamp` come first, then `signed` and `unsigned` for counts and indices,
//! `minter`, `digest`, and the keys of the rows of `retry`.
//!
//! The rule: a value that is read has a valid form or is refused; nothing is guessed. A value to
//! write that is too large saturates, because no count comes near the limit. Failures: a negative
//! count and a digest of another length are `Corrupt`: no broker wrote that row. An unknown minter
//! is `Unfit`, because a newer binary may have written it. All files of `store` use this module.

use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArgumentBuffer, PgHasArrayType, PgTypeInfo, PgValueRef};
use sqlx::sqlite::{SqliteArgumentsBuffer, SqliteTypeInfo, SqliteValueRef};
use sqlx::{Decode, Encode, Postgres, Sqlite, Type};
use time::OffsetDateTime;

use super::StoreError;
use crate::clock::Timestamp;
use crate::domain::kind::MinterKind;
use crate::domain::limits::IDEMPOTENCY_SECONDS;

impl Type<Postgres> for Timestamp {
    fn type_info() -> PgTypeInfo {
        <OffsetDateTime as Type<Postgres>>::type_info()
    }
}

impl PgHasArrayType for Timestamp {
    fn array_type_info() -> PgTypeInfo {
        <OffsetDateTime as PgHasArrayType>::array_type_info()
    }
}

impl<'q> Encode<'q, Postgres> for Timestamp {
    fn encode_by_ref(&self, buf: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        <OffsetDateTime as Encode<'q, Postgres>>::encode_by_ref(&(*self).into(), buf)
    }
}

impl<'r> Decode<'r, Postgres> for Timestamp {
    fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
        <OffsetDateTime as Decode<'r, Postgres>>::decode(value).map(Self::from)
    }
}

impl Type<Sqlite> for Timestamp {
    fn type_info() -> SqliteTypeInfo {
        <i64 as Type<Sqlite>>::type_info()
    }

    fn compatible(info: &SqliteTypeInfo) -> bool {
        <i64 as Type<Sqlite>>::compatible(info)
    }
}

impl Encode<'_, Sqlite> for Timestamp {
    fn encode_by_ref(&self, buf: &mut SqliteArgumentsBuffer) -> Result<IsNull, BoxDynError> {
        <i64 as Encode<'_, Sqlite>>::encode_by_ref(&self.micros(), buf)
    }
}

impl<'r> Decode<'r, Sqlite> for Timestamp {
    fn decode(value: SqliteValueRef<'r>) -> Result<Self, BoxDynError> {
        <i64 as Decode<'r, Sqlite>>::decode(value).map(Self::from_micros)
    }
}

/// The signed form of a count or index. A value that does not fit is far beyond every limit, and
/// saturates.
pub(super) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A count or index that was read. A negative one means that no broker wrote the row.
pub(super) fn unsigned(what: &'static str, value: i64) -> Result<u64, StoreError> {
    u64::try_from(value).map_err(|_| StoreError::Corrupt(what))
}

/// The kind of a minter. A newer binary may have written a kind that this binary does not know.
pub(super) fn minter(text: &str) -> Result<MinterKind, StoreError> {
    MinterKind::parse(text).ok_or_else(|| {
        StoreError::Unfit(format!(
            "a row names the minter `{text}`, which this binary does not know; run a newer binary"
        ))
    })
}

/// Fails unless `bytes` has exactly 32 bytes.
pub(super) fn digest(what: &'static str, bytes: &[u8]) -> Result<[u8; 32], StoreError> {
    bytes.try_into().map_err(|_| StoreError::Corrupt(what))
}

/// The length of the key of a row of `retry`.
pub(super) const RETRY_ROW_BYTES: usize = 36;

/// How far the clock of the replica that recorded a key, or the time of its request, may be from
/// the time that a search goes by. Replicas are a second apart at most, and a request waits for
/// seconds.
const RETRY_SLACK_SECONDS: u64 = 3_600;

const DAY_SECONDS: i64 = 86_400;

/// The key of the row for an `Idempotency-Key` with this digest: the day on which its use expires,
/// as a big-endian number of 4 bytes, then the digest. The day stands first, so that new rows are
/// added to the end of their index, and not all over it.
pub(super) fn retry_row(key: &[u8; 32], expires_at: Timestamp) -> [u8; RETRY_ROW_BYTES] {
    retry_row_on(key, day(expires_at))
}

/// The keys of all rows in which this digest can be bound at `now`: a use expires within
/// [`IDEMPOTENCY_SECONDS`]. They are on three days at most; the last is repeated if there are
/// fewer. Before them is the key of a row that was recorded before schema 5, which has no day.
pub(super) fn retry_rows(key: &[u8; 32], now: Timestamp) -> [[u8; RETRY_ROW_BYTES]; 4] {
    let first = day(now.minus_seconds(RETRY_SLACK_SECONDS));
    let last = day(now.plus_seconds(IDEMPOTENCY_SECONDS + RETRY_SLACK_SECONDS));
    let on = |after| retry_row_on(key, first.saturating_add(after).min(last));
    [retry_row_on(key, 0), on(0), on(1), on(2)]
}

/// The digest in the key of a row.
pub(super) fn retry_digest(row: &[u8]) -> Result<[u8; 32], StoreError> {
    let (_, key) = row
        .split_at_checked(4)
        .ok_or(StoreError::Corrupt("retry"))?;
    digest("retry", key)
}

fn retry_row_on(key: &[u8; 32], day: u32) -> [u8; RETRY_ROW_BYTES] {
    let mut row = [0; RETRY_ROW_BYTES];
    let (front, back) = row.split_at_mut(4);
    front.copy_from_slice(&day.to_be_bytes());
    back.copy_from_slice(key);
    row
}

/// The number of days since 1970. Instants before 1970 count as its first day.
fn day(at: Timestamp) -> u32 {
    u32::try_from(at.seconds().div_euclid(DAY_SECONDS)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_key_is_looked_for_in_every_row_in_which_it_can_be_bound(
            now in 0_i64..4_000_000_000,
            left in 1..=IDEMPOTENCY_SECONDS,
            apart in -3_600_i64..=3_600,
        ) {
            let searched = retry_rows(&[7; 32], Timestamp::from_seconds(now));
            let recorded_at = Timestamp::from_seconds(now + apart);
            let row = retry_row(&[7; 32], recorded_at.plus_seconds(left));
            prop_assert!(searched.contains(&row));
            prop_assert_eq!(retry_digest(&row).unwrap(), [7; 32]);
        }
    }

    #[test]
    fn later_keys_come_after_earlier_ones() {
        let row = |key, day: i64| retry_row(&[key; 32], Timestamp::from_seconds(day * DAY_SECONDS));
        assert!(row(9, 300) < row(1, 301));
        assert!(retry_digest(&[1; 3]).is_err());
    }
}
