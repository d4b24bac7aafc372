//! The walk over the pages of the table of endings, from one place up to the newest head.
//!
//! [`Walk::step`] takes the pages one after the other. [`Walk::at`] is the place after which the
//! next page begins, and [`Walk::is_broken`] says that the rows do not continue those that were read
//! before the walk.
//!
//! The rule: the rows of a page come from one snapshot with the head, so they must be consistent
//! with each other and with the head; only the first one may fail to continue the rows of an earlier
//! snapshot. After a full page the next one begins with its last row once more. So a row between
//! two pages is compared within a snapshot too, and rows that no broker wrote are found even if they
//! fill whole pages. Failures: `Forged` for such a row. Rows that are missing only
//! break the walk: whether they were deleted or belong to another server is not known. Nothing is
//! read here: `super` reads the pages.

use super::FollowError;
use crate::store::endings::{ChainedEnding, EndingPosition, EndingsChain};
use crate::store::endings_reader::EndingsPage;
use crate::store::heads::Head;

/// How far the table was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReadTo {
    /// The position of the last row. `None` in an empty log.
    pub(super) position: Option<EndingPosition>,
    /// The digest of the rows up to there.
    chain: EndingsChain,
}

impl ReadTo {
    /// After every ending below a head.
    pub(super) fn head(head: Head, chain: EndingsChain) -> Self {
        // No row of the head's last leaf follows this position.
        let last = head.size.checked_sub(1);
        let position = last.map(|index| EndingPosition { index, n: u64::MAX });
        Self { position, chain }
    }

    fn row(row: &ChainedEnding) -> Self {
        Self {
            position: Some(row.record.position),
            chain: row.after(),
        }
    }

    /// The place after which the page behind this one is read: only the last row comes once more.
    fn overlapping(page: &EndingsPage) -> Option<Self> {
        match &page.rows[..] {
            [] => None,
            [only] => Some(Self::row(only)),
            [.., before, _] => Some(Self::row(before)),
        }
    }
}

/// Whether a page continues the rows that were read before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Continuity {
    /// It does; the digest after its last row.
    Continues(EndingsChain),
    /// It does not: rows were deleted, or the server is another one.
    Broken,
}

/// A walk over the pages.
#[derive(Clone, Copy, Debug)]
pub(super) struct Walk {
    at: ReadTo,
    is_broken: bool,
}

impl Walk {
    /// A walk over the rows after a place.
    pub(super) fn after(at: ReadTo) -> Self {
        Self {
            at,
            is_broken: false,
        }
    }

    /// The place after which the next page begins: the newest head after a page that was not full.
    pub(super) fn at(&self) -> ReadTo {
        self.at
    }

    /// Whether a page failed to continue the rows before it.
    pub(super) fn is_broken(&self) -> bool {
        self.is_broken
    }

    /// Takes the next page, with the head and the digest of all rows at the same moment.
    pub(super) fn step(
        &mut self,
        page: &EndingsPage,
        head: Head,
        newest: EndingsChain,
    ) -> Result<(), FollowError> {
        let after = match continuity(self.at.chain, page, head, newest)? {
            Continuity::Continues(after) => after,
            Continuity::Broken => {
                self.is_broken = true;
                newest
            }
        };
        let overlapping = ReadTo::overlapping(page).filter(|_| page.is_full);
        self.at = overlapping.unwrap_or_else(|| ReadTo::head(head, after));
        Ok(())
    }
}

/// Whether a page continues the rows with the digest `known`.
pub(super) fn continuity(
    known: EndingsChain,
    page: &EndingsPage,
    head: Head,
    newest: EndingsChain,
) -> Result<Continuity, FollowError> {
    let forged = |row: &ChainedEnding| {
        let EndingPosition { index, n } = row.record.position;
        FollowError::Forged(format!(
            "the table ending: row {n} of leaf {index}, or a row next to it, was not written by a \
             broker of this log; nothing is issued; find out who wrote it"
        ))
    };
    let Some((first, rest)) = page.rows.split_first() else {
        return Ok(if known == newest {
            Continuity::Continues(known)
        } else {
            Continuity::Broken
        });
    };
    let mut chain = first.after();
    let mut last = first;
    for row in rest {
        if row.before != chain || row.record.position <= last.record.position {
            return Err(forged(row));
        }
        chain = row.after();
        last = row;
    }
    let beyond = last.record.position.index >= head.size;
    if beyond || (!page.is_full && chain != newest) {
        return Err(forged(last));
    }
    if first.before == known {
        Ok(Continuity::Continues(chain))
    } else {
        Ok(Continuity::Broken)
    }
}
