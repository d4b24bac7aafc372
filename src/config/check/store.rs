//! Checks `[store]`: the kind of database, its section, and the ranges of its settings.
//!
//! The rule: a section of the other database is refused, because its settings would have no effect.
//! `super::secrets` checks the database's URL, which is not in the file.

use super::super::Mode;
use super::super::sections::{self, StoreKind};
use super::Checker;
use crate::domain::limits::CUT_WAL_BYTES;

impl Checker<'_> {
    pub(super) fn store(&mut self, file: &sections::File, mode: Mode) {
        let store = &file.store;
        match store.kind {
            StoreKind::Sqlite => {
                if store.postgres.is_some() {
                    let remedy = "remove it, or set `kind = \"postgres\"`";
                    self.refuse("store.postgres", "is not used by `sqlite`", remedy);
                }
                match &store.sqlite {
                    None => self.refuse(
                        "store.kind",
                        "is `sqlite`, which needs a directory",
                        "add [store.sqlite] with data_dir",
                    ),
                    Some(sqlite) => {
                        let connections = u64::from(sqlite.read_connections);
                        self.range("store.sqlite.read_connections", connections, 1, 64);
                        let (least, most) = (CUT_WAL_BYTES, 1 << 40);
                        let bytes = sqlite.max_wal_bytes;
                        self.range("store.sqlite.max_wal_bytes", bytes, least, most);
                        let beside = file.ledger.checkpoint_file.starts_with(&sqlite.data_dir);
                        if mode == Mode::Production && beside {
                            self.refuse(
                                "ledger.checkpoint_file",
                                "is in the store's directory and would be rewound with it",
                                "store it in another directory, if possible on another disk",
                            );
                        }
                    }
                }
            }
            StoreKind::Postgres => {
                if store.sqlite.is_some() {
                    let remedy = "remove it, or set `kind = \"sqlite\"`";
                    self.refuse("store.sqlite", "is not used by `postgres`", remedy);
                }
                let postgres = store.postgres_or_default();
                let ranges = [
                    (
                        "max_connections",
                        u64::from(postgres.max_connections),
                        2,
                        1_000,
                    ),
                    (
                        "acquire_timeout_seconds",
                        postgres.acquire_timeout_seconds,
                        1,
                        60,
                    ),
                    (
                        "statement_timeout_seconds",
                        postgres.statement_timeout_seconds,
                        1,
                        60,
                    ),
                    (
                        "append_timeout_seconds",
                        postgres.append_timeout_seconds,
                        1,
                        10,
                    ),
                    ("read_lease_seconds", postgres.read_lease_seconds, 2, 60),
                ];
                for (name, value, min, max) in ranges {
                    self.range(&format!("store.postgres.{name}"), value, min, max);
                }
            }
        }
    }
}
