//! The form of our types in each database: instants are `TIMESTAMPTZ` or microseconds, unsigned
//! numbers are signed.
//!
//! The conversions of `Timestamp` come first, then `signed` and `unsigned` for counts and indices,
//! `minter`, and `digest`.
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
