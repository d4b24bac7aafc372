//! Tiles, entry bundles and their paths, in the format of C2SP tlog-tiles.
//!
//! [`TileId`] names a tile or a prefix of it, [`Tile`] is a completed one, and [`TilePath`] is its
//! path below the log's URL. [`encode_entries`] and [`decode_entries`] convert bundles of leaves.
//!
//! A tile has one path only; any other text is a [`TilePathError`]. Bytes that are no bundle are a
//! [`BundleError`]. [`TileId::source`] says from which rows a store reads a tile, and answers
//! `None` for a tile that the store cannot have. The hashes are not checked here:
//! [`super::tile_plan`] uses them, and its caller compares the result with a known root.
//! `ledger::proofs` and `http::ledger` serve tiles.

use std::fmt;
use std::str::FromStr;

use super::hash::{Hash, HashError};
use super::parse_decimal;
use crate::domain::limits::MAX_LEAF_BYTES;

/// Number of hashes in a full tile, and of entries in a full bundle.
pub const TILE_WIDTH: usize = 256;

/// The highest level that a path can name.
const MAX_LEVEL: u64 = 63;

/// The longest path: a level of two digits, an index of twenty, a width of three.
const MAX_PATH_BYTES: usize = 64;

/// A completed tile, to be stored permanently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tile {
    /// Level; 0 holds leaf hashes.
    pub level: u8,
    /// Index within the level.
    pub index: u64,
    /// The 256 hashes of the tile.
    pub hashes: Vec<Hash>,
    /// The root over them, which is the hash `index` of the next level. Store it with the tile:
    /// incomplete tiles above level 0 are read from these roots.
    pub root: Hash,
}

/// A tile or a prefix of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TileId {
    /// Level; 0 holds leaf hashes.
    pub level: u8,
    /// Index within the level.
    pub index: u64,
    /// Number of its hashes, 1 to 256.
    pub width: u16,
}

/// The source of a tile's hashes in a store that keeps full tiles only. Each is one range read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TileSource {
    /// The tile is full and stored. Fewer of its hashes may be required.
    Stored,
    /// The tile is the incomplete one of level 0; its hashes are those of leaves.
    Leaves {
        /// Index of the first leaf.
        from: u64,
        /// Number of leaves to read.
        count: u64,
    },
    /// The tile is an incomplete one above level 0; its hashes are the roots of full tiles of the
    /// level below.
    Roots {
        /// Level of the tiles with these roots.
        level: u8,
        /// Index of the first such tile.
        from: u64,
        /// Number of tiles to read.
        count: u64,
    },
}

impl TileId {
    /// The source of the tile in a store with `stored_size` leaves, which may be more than the
    /// tile's tree has; `None` if that store cannot have the tile.
    #[must_use]
    pub fn source(&self, stored_size: u64) -> Option<TileSource> {
        let Self {
            level,
            index,
            width,
        } = *self;
        if width == 0 || usize::from(width) > TILE_WIDTH {
            return None;
        }
        let hashes = tile_shift(stored_size, u32::from(level));
        let from = index.checked_mul(TILE_WIDTH as u64)?;
        let count = u64::from(width);
        if from.checked_add(count)? > hashes {
            return None;
        }
        let full = tile_shift(stored_size, u32::from(level) + 1);
        Some(match level.checked_sub(1) {
            _ if index < full => TileSource::Stored,
            None => TileSource::Leaves { from, count },
            Some(level) => TileSource::Roots { level, from, count },
        })
    }
}

/// Number of complete nodes at a level of tiles in `leaves` leaves.
pub(super) fn tile_shift(leaves: u64, level: u32) -> u64 {
    leaves.checked_shr(level * 8).unwrap_or(0)
}

impl fmt::Display for TileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        TilePath::Hashes(*self).fmt(f)
    }
}

/// A path below the log's URL: `tile/<level>/<index>`, with `.p/<width>` for an incomplete tile,
/// and `entries` instead of a level for a bundle of entries. An index is written in groups of three
/// digits, each except the last after an `x`: 1234067 is `x001/x234/067`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TilePath {
    /// A tile of hashes.
    Hashes(TileId),
    /// A bundle of entries.
    Entries {
        /// Index of the bundle.
        index: u64,
        /// Number of entries, 1 to 256.
        width: u16,
    },
}

/// A text that is not the path of a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the path of a tile")]
pub struct TilePathError;

impl fmt::Display for TilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (index, width) = match self {
            Self::Hashes(id) => {
                write!(f, "tile/{}/", id.level)?;
                (id.index, id.width)
            }
            Self::Entries { index, width } => {
                f.write_str("tile/entries/")?;
                (*index, *width)
            }
        };
        write_index(f, index / 1_000)?;
        write!(f, "{:03}", index % 1_000)?;
        if usize::from(width) < TILE_WIDTH {
            write!(f, ".p/{width}")?;
        }
        Ok(())
    }
}

fn write_index(f: &mut fmt::Formatter<'_>, index: u64) -> fmt::Result {
    if index == 0 {
        return Ok(());
    }
    write_index(f, index / 1_000)?;
    write!(f, "x{:03}/", index % 1_000)
}

impl FromStr for TilePath {
    type Err = TilePathError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > MAX_PATH_BYTES {
            return Err(TilePathError);
        }
        let path = parse_path(text).ok_or(TilePathError)?;
        // A tile has one path only: a leading group of zeros or a width of 256 is not written back.
        if path.to_string() == text {
            Ok(path)
        } else {
            Err(TilePathError)
        }
    }
}

fn parse_path(text: &str) -> Option<TilePath> {
    let (level, rest) = text.strip_prefix("tile/")?.split_once('/')?;
    let (index, width) = match rest.split_once(".p/") {
        Some((index, width)) => (index, u16::try_from(parse_decimal(width)?).ok()?),
        None => (rest, 256),
    };
    if width == 0 || usize::from(width) > TILE_WIDTH {
        return None;
    }
    let mut number = 0_u64;
    for group in index.split('/') {
        let digits = group.strip_prefix('x').unwrap_or(group);
        if digits.len() != 3 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        number = number
            .checked_mul(1_000)?
            .checked_add(digits.parse().ok()?)?;
    }
    if level == "entries" {
        return Some(TilePath::Entries {
            index: number,
            width,
        });
    }
    let level = parse_decimal(level).filter(|level| *level <= MAX_LEVEL)?;
    Some(TilePath::Hashes(TileId {
        level: u8::try_from(level).ok()?,
        index: number,
        width,
    }))
}

/// Concatenates the hashes of a tile.
#[must_use]
pub fn hashes_to_bytes(hashes: &[Hash]) -> Vec<u8> {
    hashes.iter().flat_map(|hash| *hash.as_bytes()).collect()
}

/// Splits the bytes of a tile into hashes. An error unless they are whole hashes.
pub fn hashes_from_bytes(bytes: &[u8]) -> Result<Vec<Hash>, HashError> {
    bytes.chunks(Hash::BYTES).map(Hash::from_slice).collect()
}

/// The reason why entries or bytes are not a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// There are more than 256 entries.
    #[error("a bundle has at most 256 entries")]
    TooMany,
    /// The length of an entry does not fit in 16 bits.
    #[error("an entry has at most 65535 bytes")]
    EntryTooLong,
    /// The bytes end within an entry.
    #[error("the bundle ends within an entry")]
    Truncated,
}

/// Encodes a bundle: each entry after its length in two bytes, big-endian.
pub fn encode_entries<E: AsRef<[u8]>>(entries: &[E]) -> Result<Vec<u8>, BundleError> {
    if entries.len() > TILE_WIDTH {
        return Err(BundleError::TooMany);
    }
    let mut bundle = Vec::new();
    for entry in entries {
        let entry = entry.as_ref();
        if entry.len() > MAX_LEAF_BYTES {
            return Err(BundleError::EntryTooLong);
        }
        let length = u16::try_from(entry.len()).map_err(|_| BundleError::EntryTooLong)?;
        bundle.extend_from_slice(&length.to_be_bytes());
        bundle.extend_from_slice(entry);
    }
    Ok(bundle)
}

/// Decodes the entries of a bundle.
pub fn decode_entries(mut bundle: &[u8]) -> Result<Vec<&[u8]>, BundleError> {
    let mut entries = Vec::new();
    while !bundle.is_empty() {
        if entries.len() == TILE_WIDTH {
            return Err(BundleError::TooMany);
        }
        let (length, rest) = bundle
            .split_first_chunk::<2>()
            .ok_or(BundleError::Truncated)?;
        let (entry, rest) = rest
            .split_at_checked(usize::from(u16::from_be_bytes(*length)))
            .ok_or(BundleError::Truncated)?;
        entries.push(entry);
        bundle = rest;
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{Log, leaves};
    use super::super::tile_plan::EdgePlan;
    use super::*;

    fn tile(level: u8, index: u64, width: u16) -> TileId {
        TileId {
            level,
            index,
            width,
        }
    }

    #[test]
    fn the_specification_s_tree_of_70000_has_its_tiles() {
        let log = Log::of(&leaves(70_000));
        let full = |level| log.tiles.keys().filter(|(of, _)| *of == level).count();
        assert_eq!((full(0), full(1), full(2)), (273, 1, 0));
        let partial = EdgePlan::new(70_000);
        let paths: Vec<String> = partial.tiles().iter().map(TileId::to_string).collect();
        assert_eq!(
            paths,
            ["tile/0/273.p/112", "tile/1/001.p/17", "tile/2/000.p/1"]
        );
    }

    #[test]
    fn a_tile_is_read_from_where_a_store_of_full_tiles_has_it() {
        let source = |level, index, width| tile(level, index, width).source(70_000);
        assert_eq!(source(0, 272, 3), Some(TileSource::Stored));
        assert_eq!(
            source(0, 273, 112),
            Some(TileSource::Leaves {
                from: 69_888,
                count: 112
            })
        );
        assert_eq!(
            source(1, 1, 17),
            Some(TileSource::Roots {
                level: 0,
                from: 256,
                count: 17
            })
        );
        assert_eq!(
            source(2, 0, 1),
            Some(TileSource::Roots {
                level: 1,
                from: 0,
                count: 1
            })
        );
        for (level, index, width) in [
            (0, 273, 113),
            (0, 274, 1),
            (1, 1, 18),
            (2, 0, 2),
            (3, 0, 1),
            (63, 0, 1),
            (255, 0, 1),
            (0, u64::MAX, 1),
            (0, 0, 0),
            (0, 0, 257),
        ] {
            assert_eq!(source(level, index, width), None, "{level} {index} {width}");
        }
    }

    #[test]
    fn paths_have_one_form() {
        for (path, value) in [
            ("tile/0/000", TilePath::Hashes(tile(0, 0, 256))),
            (
                "tile/4/x001/x234/067",
                TilePath::Hashes(tile(4, 1_234_067, 256)),
            ),
            (
                "tile/63/x001/000.p/255",
                TilePath::Hashes(tile(63, 1_000, 255)),
            ),
            (
                "tile/entries/x001/234.p/1",
                TilePath::Entries {
                    index: 1_234,
                    width: 1,
                },
            ),
            (
                "tile/0/x018/x446/x744/x073/x709/x551/615.p/9",
                TilePath::Hashes(tile(0, u64::MAX, 9)),
            ),
        ] {
            assert_eq!(value.to_string(), path);
            assert_eq!(path.parse(), Ok(value));
        }
        for bad in [
            "",
            "tile",
            "tile/0",
            "tile/0/",
            "tile/0/0",
            "tile/0/00a",
            "tile/0/+01",
            "tile/0/0000",
            "tile/0/x000/001",
            "tile/0/001/002",
            "tile/0/x001",
            "tile/00/001",
            "tile/64/001",
            "tile/-1/001",
            "tile/data/001",
            "tile/0/001/",
            "/tile/0/001",
            "tile/0/001.p/0",
            "tile/0/001.p/256",
            "tile/0/001.p/01",
            "tile/0/001.p/",
            "tile/0/001.p/1/",
            "tile/0/001.p/1.p/1",
            "tile/0/x018/x446/x744/x073/x709/x551/616",
            "tile/0/x1x/001",
            "tile/0/x001/x001/x001/x001/x001/x001/x001/x001/x001/x001/x001/x001/x001/001",
        ] {
            assert_eq!(bad.parse::<TilePath>(), Err(TilePathError), "{bad}");
        }
    }

    #[test]
    fn bundles_are_bounded() {
        let longest = vec![7; MAX_LEAF_BYTES];
        let bundle = encode_entries(&[longest.as_slice(), b"", b"ab"]).unwrap();
        assert_eq!(bundle[..2], [0xff, 0xff]);
        assert_eq!(bundle[bundle.len() - 6..], [0, 0, 0, 2, b'a', b'b']);
        assert_eq!(
            decode_entries(&bundle).unwrap(),
            [longest.as_slice(), b"", b"ab"]
        );
        assert_eq!(
            encode_entries(&[vec![7; MAX_LEAF_BYTES + 1]]),
            Err(BundleError::EntryTooLong)
        );
        assert_eq!(encode_entries(&vec![b""; 257]), Err(BundleError::TooMany));
        let full = encode_entries(&vec![b""; 256]).unwrap();
        assert_eq!(decode_entries(&full).unwrap().len(), 256);
        assert_eq!(
            decode_entries(&[full, vec![0, 0]].concat()),
            Err(BundleError::TooMany)
        );
        assert_eq!(decode_entries(&[0]), Err(BundleError::Truncated));
        assert_eq!(decode_entries(&[0, 2, 1]), Err(BundleError::Truncated));
        assert_eq!(decode_entries(&[]), Ok(Vec::new()));
    }

    proptest! {
        #[test]
        fn any_tile_s_path_comes_back(
            level in 0_u8..64, index in any::<u64>(), width in 1_u16..=256,
        ) {
            for path in [
                TilePath::Hashes(tile(level, index, width)), TilePath::Entries { index, width },
            ] {
                prop_assert_eq!(path.to_string().parse(), Ok(path));
            }
        }

        #[test]
        fn any_text_is_a_path_or_an_error(text in "(tile/)?[0-9a-z./x]{0,40}|\\PC{0,40}") {
            if let Ok(path) = text.parse::<TilePath>() {
                prop_assert_eq!(path.to_string(), text);
            }
        }

        #[test]
        fn any_bytes_are_a_bundle_or_an_error(
            bytes in prop::collection::vec(prop_oneof![0_u8..4, any::<u8>()], 0..600),
        ) {
            if let Ok(entries) = decode_entries(&bytes) {
                prop_assert_eq!(&encode_entries(&entries).unwrap(), &bytes);
            }
            prop_assert_eq!(hashes_from_bytes(&bytes).is_ok(), bytes.len() % 32 == 0);
            if let Ok(hashes) = hashes_from_bytes(&bytes) {
                prop_assert_eq!(&hashes_to_bytes(&hashes), &bytes);
            }
        }
    }
}
