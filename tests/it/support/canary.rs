//! Searches for secrets that must not be stored: in files, in directories, in every table of a
//! database.
//!
//! A secret is searched for as it is, in hexadecimal and in base64, because a database prints bytes
//! in hexadecimal and the parts of a token are in base64. Finding one half of it counts as well: a
//! SQLite page may end within a value, and a log line may be cut.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

use super::hex;
use super::postgres::postgres_program;

/// Minimum length in bytes: shorter secrets would be found by chance.
const SHORTEST_SECRET: usize = 16;
/// Length in bytes of the prefix by which needles are looked up; no needle is shorter.
const STEM: usize = 8;

/// A set of secrets to search for.
#[derive(Debug, Default)]
pub struct Canaries {
    needles: Vec<Needle>,
}

#[derive(Debug)]
struct Needle {
    name: String,
    form: &'static str,
    bytes: Vec<u8>,
}

/// A place where a secret was found. It does not contain the secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub place: String,
    /// The name given to [`Canaries::add`].
    pub secret: String,
    /// The encoding in which it was found.
    pub form: &'static str,
    /// Byte offset in the file or in the dump.
    pub offset: usize,
}

impl Canaries {
    /// An empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `secret` under this name.
    pub fn add(&mut self, name: &str, secret: impl AsRef<[u8]>) {
        let secret = secret.as_ref();
        assert!(
            secret.len() >= SHORTEST_SECRET,
            "{name} is too short to be told from chance"
        );
        let (front, back) = secret.split_at(secret.len() / 2);
        for half in [front, back] {
            self.needle(name, "plain", half.to_vec());
            self.needle(name, "hexadecimal", hex(half).into_bytes());
            self.needle(name, "HEXADECIMAL", hex(half).to_uppercase().into_bytes());
            for shift in 0..3 {
                self.needle(name, "base64", base64_core(&STANDARD_NO_PAD, half, shift));
                self.needle(
                    name,
                    "base64url",
                    base64_core(&URL_SAFE_NO_PAD, half, shift),
                );
            }
        }
    }

    fn needle(&mut self, name: &str, form: &'static str, bytes: Vec<u8>) {
        let known = self.needles.iter().any(|needle| needle.bytes == bytes);
        if bytes.len() >= STEM && !known {
            self.needles.push(Needle {
                name: name.to_owned(),
                form,
                bytes,
            });
        }
    }

    /// Fails if a secret is in `text`, which came from `place`.
    #[track_caller]
    pub fn assert_absent_in_text(&self, place: &str, text: impl AsRef<[u8]>) {
        report(&self.search(place, text.as_ref()));
    }

    /// Fails if a secret is in the file, or in a file anywhere below the directory.
    #[track_caller]
    pub fn assert_absent_in(&self, path: impl AsRef<Path>) {
        report(&self.search_path(path.as_ref()));
    }

    /// Fails if a secret is in any table of the database.
    #[track_caller]
    pub fn assert_absent_in_postgres(&self, url: &str) {
        report(&self.search_postgres(url));
    }

    /// The secrets found in `haystack`: each needle once, at its first position.
    pub fn search(&self, place: &str, haystack: &[u8]) -> Vec<Finding> {
        let mut stems: HashMap<[u8; STEM], Vec<&Needle>> = HashMap::new();
        for needle in &self.needles {
            let stem = needle.bytes[..STEM].try_into().unwrap();
            stems.entry(stem).or_default().push(needle);
        }
        let mut findings: Vec<Finding> = Vec::new();
        for (offset, window) in haystack.windows(STEM).enumerate() {
            let stem: [u8; STEM] = window.try_into().unwrap();
            for needle in stems.get(&stem).into_iter().flatten() {
                let found = haystack[offset..].starts_with(&needle.bytes);
                let told = |finding: &Finding| {
                    (&finding.secret, finding.form) == (&needle.name, needle.form)
                };
                if found && !findings.iter().any(told) {
                    findings.push(Finding {
                        place: place.to_owned(),
                        secret: needle.name.clone(),
                        form: needle.form,
                        offset,
                    });
                }
            }
        }
        findings
    }

    /// The secrets found in the file, or in the files below the directory.
    pub fn search_path(&self, path: &Path) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut left: Vec<PathBuf> = vec![path.to_owned()];
        while let Some(path) = left.pop() {
            let kind = fs::symlink_metadata(&path)
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
                .file_type();
            if kind.is_dir() {
                left.extend(fs::read_dir(&path).unwrap().map(|it| it.unwrap().path()));
            } else if kind.is_file() {
                let bytes = fs::read(&path).unwrap();
                findings.extend(self.search(&path.display().to_string(), &bytes));
            }
        }
        findings
    }

    /// The secrets found in a dump of the database.
    pub fn search_postgres(&self, url: &str) -> Vec<Finding> {
        let output = Command::new(postgres_program("pg_dump"))
            .args(["--no-owner", "--dbname", url])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "pg_dump: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let database = url.rsplit('/').next().unwrap_or_default();
        self.search(&format!("database {database}"), &output.stdout)
    }
}

/// The part of `bytes`' base64 that does not depend on neighbouring bytes, in a text where they
/// begin at a position with this remainder modulo three.
fn base64_core(engine: &impl base64::Engine, bytes: &[u8], shift: usize) -> Vec<u8> {
    let lead = (3 - shift) % 3;
    let whole = bytes.get(lead..).unwrap_or_default();
    let whole = &whole[..whole.len() / 3 * 3];
    engine.encode(whole).into_bytes()
}

#[track_caller]
fn report(findings: &[Finding]) {
    let list = findings.iter().fold(String::new(), |mut list, finding| {
        let Finding {
            place,
            secret,
            form,
            offset,
        } = finding;
        writeln!(list, "  {secret} in {form} at byte {offset} of {place}").unwrap();
        list
    });
    assert!(findings.is_empty(), "secrets found:\n{list}");
}

mod tests {
    use super::*;
    use crate::support::postgres::empty_database;
    use crate::support::sqlite::fresh_sqlite;
    use sqlx::{Connection, SqliteConnection};

    const SECRET: &str = "tph_0vCm3hQ9xWb7Zk2LrT5yNf8sJd1aGe4uPi6oRqEwXzY";

    fn canaries() -> Canaries {
        let mut canaries = Canaries::new();
        canaries.add("handle", SECRET);
        canaries
    }

    #[test]
    fn every_form_is_found_and_nothing_else() {
        let canaries = canaries();
        assert_eq!(canaries.search("text", b""), []);
        assert_eq!(
            canaries.search("text", b"nothing to see, tph_ and so on"),
            []
        );
        let finding = &canaries.search("log", format!("a handle: {SECRET}").as_bytes())[0];
        assert_eq!((finding.place.as_str(), finding.offset), ("log", 10));

        for lead in ["", "x", "xy", "xyz"] {
            let text = format!("{lead}{SECRET}?>");
            for encoded in [
                hex(text.as_bytes()),
                hex(text.as_bytes()).to_uppercase(),
                STANDARD_NO_PAD.encode(&text),
                URL_SAFE_NO_PAD.encode(&text),
            ] {
                assert!(
                    !canaries.search("", encoded.as_bytes()).is_empty(),
                    "{encoded}"
                );
            }
        }
        // Either half is found.
        let (front, back) = SECRET.split_at(SECRET.len() / 2);
        assert_eq!(canaries.search("", front.as_bytes()).len(), 1);
        assert_eq!(canaries.search("", back.as_bytes()).len(), 1);
    }

    #[test]
    #[should_panic(expected = "handle in plain at byte 3 of answer")]
    fn a_finding_names_its_place() {
        canaries().assert_absent_in_text("answer", format!("{{\"{SECRET}\"}}").replace('"', "'x"));
    }

    #[tokio::test]
    async fn sqlite_files_are_searched() {
        let sqlite = fresh_sqlite();
        let mut connection = SqliteConnection::connect(&sqlite.url()).await.unwrap();
        let canaries = canaries();
        // More than a page, so that the secret may lie across two pages.
        let sql = "CREATE TABLE t (x TEXT); INSERT INTO t VALUES ('harmless')";
        sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
        canaries.assert_absent_in(sqlite.dir());
        for padding in 4_000..4_060 {
            sqlx::query("UPDATE t SET x = $1")
                .bind("x".repeat(padding) + SECRET + &"y".repeat(5_000))
                .execute(&mut connection)
                .await
                .unwrap();
            assert!(!canaries.search_path(sqlite.dir()).is_empty(), "{padding}");
        }
    }

    #[tokio::test]
    async fn postgres_tables_are_searched() {
        let database = empty_database();
        let mut connection = database.connect().await;
        let canaries = canaries();
        let sql = "CREATE TABLE t (a text, b bytea, c jsonb); INSERT INTO t VALUES ('harmless')";
        sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
        canaries.assert_absent_in_postgres(&database.url());
        for (column, value, form) in [
            ("a", SECRET.to_owned(), "plain"),
            ("b", SECRET.to_owned(), "hexadecimal"),
            ("c", format!("{{\"deep\": [\"{SECRET}\"]}}"), "plain"),
        ] {
            let sql = format!("DELETE FROM t; INSERT INTO t ({column}) VALUES ('{value}')");
            sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
                .execute(&mut connection)
                .await
                .unwrap();
            let findings = canaries.search_postgres(&database.url());
            assert!(
                findings.iter().any(|it| it.form == form),
                "{column}: {findings:?}"
            );
        }
    }
}
