//! Heads of the log, and the MAC that proves that a broker wrote one.
//!
//! The serving role may insert rows into the tables of the log. A replica that followed a forged
//! row would sign a checkpoint over leaves that no broker decided. So each head carries a MAC under
//! the sealing keys, and a [`SealedHead`] becomes a [`Head`] only after [`HeadSeal::open`] checked
//! it. A head covers every leaf below it, so one MAC is enough for the whole log up to there.
//!
//! Failures: `None` means an empty log. A wrong MAC, or a leaf behind the newest head, is a
//! [`ForeignHead`]; the ledger stops when it finds one. A store that does not answer is
//! [`HeadError::Store`]. `ledger` and `app` call this module; only `store::append` writes heads.
//! The root is not recomputed here: the ledger compares it with the leaf hashes.

use sqlx::FromRow;

use super::codec::{digest, unsigned};
use super::endings::EndingsChain;
use super::{Store, StoreError, read};
use crate::crypto::digest::{Mac, MacError};
use crate::ids::BatchId;
use crate::merkle::Hash;

/// The purpose under which the MAC of a head is computed.
const HEAD_MAC: &str = "ledger_head";

/// A head of the log: the size and the root of its tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The number of leaves in the tree.
    pub size: u64,
    /// The root of the tree.
    pub root: Hash,
}

/// A head as its row has it. Size and root are unverified until [`HeadSeal::open`] checked the MAC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedHead {
    claimed: Head,
    batch: BatchId,
    /// The digest of all rows of the table of endings. `None` if an older binary wrote the head,
    /// which recorded no endings.
    endings: Option<EndingsChain>,
    mac: Vec<u8>,
    /// The first leaf behind this head, if the row was read as the newest. A broker commits leaves
    /// and their head together, so there is none unless a leaf was forged.
    uncovered: Option<u64>,
}

/// Why a head is not followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the other names say it all")]
pub enum ForeignHead {
    /// Its MAC does not match.
    #[error(
        "the table ledger_head: the head of size {} root {} (batch {batch}) was not written by a \
         broker of this log: {why}; nothing is issued; find out who wrote it",
        claimed.size, claimed.root
    )]
    Forged {
        /// The unverified size and root of the row.
        claimed: Head,
        /// The batch id of the row.
        batch: BatchId,
        why: MacError,
    },
    /// There are leaves behind the newest head.
    #[error(
        "the table leaf: leaf {index} is behind the newest head (size {size}), so it was not written \
         by a broker of this log; nothing is issued; find out who wrote it"
    )]
    Uncovered {
        /// The index of the first of these leaves.
        index: u64,
        /// The size of the newest head.
        size: u64,
    },
}

/// Why the newest head was not read.
#[derive(Debug, thiserror::Error)]
pub enum HeadError {
    /// The store did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A row of the log's tables was not written by a broker of this log.
    #[error(transparent)]
    Foreign(#[from] ForeignHead),
}

/// Makes and checks the MACs of one log's heads.
#[derive(Clone, Debug)]
pub struct HeadSeal {
    origin: String,
    mac: Mac,
}

impl HeadSeal {
    /// For the log with this origin, under these sealing keys.
    #[must_use]
    pub fn new(origin: &str, mac: &Mac) -> Self {
        Self {
            origin: origin.to_owned(),
            mac: mac.clone(),
        }
    }

    /// Adds the MAC to a head. `endings` is the digest of the endings up to it.
    #[must_use]
    pub fn seal(&self, head: Head, batch: BatchId, endings: EndingsChain) -> SealedHead {
        let endings = Some(endings);
        let mac = with_fields(&self.origin, head, batch, endings, |fields| {
            self.mac.tag(HEAD_MAC, fields)
        });
        SealedHead {
            claimed: head,
            batch,
            endings,
            mac,
            uncovered: None,
        }
    }

    /// The head, if a broker of this log wrote its row and no leaf is behind it.
    pub fn open(&self, sealed: &SealedHead) -> Result<Head, ForeignHead> {
        let SealedHead {
            claimed,
            batch,
            endings,
            ..
        } = *sealed;
        let checked = with_fields(&self.origin, claimed, batch, endings, |fields| {
            self.mac.verify(HEAD_MAC, fields, &sealed.mac)
        });
        checked.map_err(|why| ForeignHead::Forged {
            claimed,
            batch,
            why,
        })?;
        match sealed.uncovered {
            None => Ok(claimed),
            Some(index) => Err(ForeignHead::Uncovered {
                index,
                size: claimed.size,
            }),
        }
    }
}

fn with_fields<T>(
    origin: &str,
    head: Head,
    batch: BatchId,
    endings: Option<EndingsChain>,
    then: impl FnOnce(&[&[u8]]) -> T,
) -> T {
    let size = head.size.to_be_bytes();
    let batch = batch.uuid();
    let fields: [&[u8]; 4] = [
        origin.as_bytes(),
        &size,
        head.root.as_bytes(),
        batch.as_bytes(),
    ];
    match endings {
        None => then(&fields),
        Some(endings) => then(&[
            fields[0],
            fields[1],
            fields[2],
            fields[3],
            endings.as_bytes(),
        ]),
    }
}

impl SealedHead {
    pub(super) fn size(&self) -> u64 {
        self.claimed.size
    }

    /// The digest of the endings up to this head. Before the first recorded ending it is that of no
    /// rows.
    #[must_use]
    pub fn endings(&self) -> EndingsChain {
        self.endings.unwrap_or(EndingsChain::EMPTY)
    }

    pub(super) fn root(&self) -> &Hash {
        &self.claimed.root
    }

    /// The batch that wrote the head.
    #[must_use]
    pub fn batch(&self) -> BatchId {
        self.batch
    }

    pub(super) fn mac(&self) -> &[u8] {
        &self.mac
    }
}

/// The columns of a head's row.
#[derive(FromRow)]
pub(super) struct HeadRow {
    size: i64,
    root: Vec<u8>,
    batch_id: BatchId,
    mac: Vec<u8>,
    endings: Option<Vec<u8>>,
    #[sqlx(default)]
    uncovered: Option<i64>,
}

impl HeadRow {
    /// The size, as a server shows it. A negative one, which no broker writes, counts as an empty
    /// log.
    pub(super) fn size(&self) -> u64 {
        unsigned("head", self.size).unwrap_or(0)
    }
}

impl TryFrom<HeadRow> for SealedHead {
    type Error = StoreError;

    fn try_from(row: HeadRow) -> Result<Self, StoreError> {
        Ok(Self {
            claimed: Head {
                size: unsigned("head", row.size)?,
                root: Hash::from(digest("root", &row.root)?),
            },
            batch: row.batch_id,
            endings: row
                .endings
                .map(|digest| EndingsChain::from_column(&digest))
                .transpose()?,
            mac: row.mac,
            uncovered: row
                .uncovered
                .map(|index| unsigned("leaf", index))
                .transpose()?,
        })
    }
}

/// The row of the newest head, and the first leaf behind it.
pub(super) const HEAD: &str = "/* head */ SELECT size, root, batch_id, mac, endings, \
     (SELECT min(idx) FROM leaf WHERE idx >= size) AS uncovered \
     FROM ledger_head ORDER BY size DESC LIMIT 1";

impl Store {
    /// The row of the newest head, and the first leaf behind it; checks neither.
    pub async fn sealed_head(&self) -> Result<Option<SealedHead>, StoreError> {
        let row: Option<HeadRow> = read!(self, db => {
            sqlx::query_as(HEAD)
            .fetch_optional(db)
            .await?
        });
        row.map(SealedHead::try_from).transpose()
    }

    /// The newest head, if a broker of this log wrote it.
    pub async fn head(&self, seal: &HeadSeal) -> Result<Option<Head>, HeadError> {
        let sealed = self.sealed_head().await?;
        let head = sealed.map(|sealed| seal.open(&sealed)).transpose();
        Ok(head?)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::crypto::SealingKeys;
    use crate::crypto::random::SystemRandom;

    fn seal(origin: &str) -> HeadSeal {
        let key = SealingKeys::generate(&SystemRandom::new()).unwrap();
        HeadSeal::new(origin, &SealingKeys::parse(&[key]).unwrap().mac(origin))
    }

    fn head(size: u64, root: u8) -> Head {
        Head {
            size,
            root: Hash::from([root; 32]),
        }
    }

    #[test]
    fn a_head_is_believed_only_as_the_broker_of_this_log_wrote_it() {
        let ours = seal("one.test/log");
        let batch = BatchId::from(Uuid::from_u128(1));
        let sealed = ours.seal(head(7, 1), batch, EndingsChain::EMPTY);
        assert_eq!(ours.open(&sealed), Ok(head(7, 1)));
        let other_log = HeadSeal::new("two.test/log", &ours.mac);
        assert!(other_log.open(&sealed).is_err());
        let changed = [
            SealedHead {
                claimed: head(8, 1),
                ..sealed.clone()
            },
            SealedHead {
                claimed: head(7, 2),
                ..sealed.clone()
            },
            SealedHead {
                batch: BatchId::from(Uuid::from_u128(2)),
                ..sealed.clone()
            },
            SealedHead {
                mac: vec![0; sealed.mac.len()],
                ..sealed.clone()
            },
            SealedHead {
                mac: Vec::new(),
                ..sealed.clone()
            },
            seal("one.test/log").seal(head(7, 1), batch, EndingsChain::EMPTY),
            SealedHead {
                endings: None,
                ..sealed.clone()
            },
        ];
        for changed in changed {
            let told = ours.open(&changed).unwrap_err();
            assert!(matches!(told, ForeignHead::Forged { .. }), "{told}");
        }
    }

    #[test]
    fn a_leaf_behind_the_newest_head_is_foreign() {
        let ours = seal("one.test/log");
        let batch = BatchId::from(Uuid::from_u128(1));
        let sealed = SealedHead {
            uncovered: Some(7),
            ..ours.seal(head(7, 1), batch, EndingsChain::EMPTY)
        };
        let told = ours.open(&sealed).unwrap_err().to_string();
        assert!(
            told.contains("leaf 7 is behind the newest head (size 7)"),
            "{told}"
        );
    }
}
