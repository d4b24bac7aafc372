//! The location of the shared checkpoint: a file on a disk that the replicas share, or an object
//! behind HTTP.
//!
//! [`CheckpointStore`] is one of both, [`VersionedNote`] its content with a version, and
//! `CheckpointStore::swap` a conditional write. `CheckpointStore::is_careless` finds out whether an
//! object store ignores conditions.
//!
//! The rule: a write never replaces content that the writer did not read: the file changes under a
//! lock, the object by conditional requests (RFC 9110, section 13.1). Every access ends within
//! [`PATIENCE`]. Failures: `Swapped::Changed` means that the content was another one; it is no
//! error. A [`CheckpointStoreError`] names the file or URL; a missing file counts as empty only if
//! its directory exists. Nothing is tried again here. `ledger::shared` calls this module and judges
//! the note; `s3` signs requests to S3.

mod s3;

use std::collections::BTreeMap;
use std::fs::TryLockError;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_sdk_sts::config::SharedCredentialsProvider;
use reqwest::header::{
    AUTHORIZATION, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_MATCH, IF_NONE_MATCH,
};
use reqwest::{Response, StatusCode, Url};
use tokio::sync::{Semaphore, oneshot};

use crate::files::{
    FileError, beside, check_writable, open_lock, open_private, secret_in, write_whole,
};
use crate::outgoing::{self, BodyError};

/// The longest time for one read or one write.
const PATIENCE: Duration = Duration::from_secs(3);

/// The longest wait for a lock, within [`PATIENCE`].
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// An entity tag that no object ever has.
const NEVER: &str = "\"taskpass-never-was\"";

/// The largest note that is read. A checkpoint has a few hundred bytes, and a line per witness.
const MAX_NOTE_BYTES: usize = 64 * 1024;

/// A location that holds one note or none.
#[derive(Debug)]
pub enum CheckpointStore {
    /// A file on a shared disk.
    File(SharedFile),
    /// An object behind HTTP.
    Object(Box<Object>),
}

/// A file. Its lock file has the same name with `.lock` appended.
#[derive(Debug)]
pub struct SharedFile {
    path: PathBuf,
    /// Admits one thread to the disk at a time.
    turn: Arc<Semaphore>,
}

/// An object that is read and written by conditional requests: `GET` answers 200 with a strong
/// `ETag`, or 404; `PUT` honours `If-Match` and `If-None-Match: *`.
#[derive(Debug)]
pub struct Object {
    url: Url,
    headers: HeaderMap,
    authorization: Authorization,
    client: reqwest::Client,
}

/// The authorization of requests for an object.
#[derive(Debug)]
pub enum Authorization {
    /// Requests carry no authorization.
    None,
    /// The content of this file, sent as `Authorization`. The file is read for each request, since
    /// such tokens are renewed.
    File(PathBuf),
    /// A signature of AWS Signature Version 4.
    S3(s3::Signer),
}

impl Authorization {
    /// For a bucket in `region`, with these credentials.
    #[must_use]
    pub fn s3(region: String, credentials: SharedCredentialsProvider) -> Self {
        Self::S3(s3::Signer::new(region, credentials))
    }
}

/// The content of a location, with its version for a conditional write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionedNote {
    /// The note. `None` if the location is empty.
    pub note: Option<Vec<u8>>,
    version: Version,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Version {
    /// The note itself is the version.
    Content,
    Tag(HeaderValue),
    /// The object does not exist.
    Absent,
    /// The note was written, and the answer had no entity tag.
    Unknown,
}

/// The result of a swap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Swapped {
    /// The location holds the new note.
    Done(VersionedNote),
    /// The location did not hold the expected content.
    Changed,
}

/// Why a location could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointStoreError {
    /// The file or its lock failed.
    #[error("{0}: {1}")]
    File(PathBuf, std::io::Error),
    /// The file, its directory or its lock cannot be opened, or other users can access it.
    #[error(transparent)]
    Unfit(#[from] FileError),
    /// Another process holds the lock.
    #[error("{0}: another process held its lock for {LOCK_PATIENCE:?}")]
    Locked(PathBuf),
    /// The disk does not answer.
    #[error("{0}: the disk did not answer for {PATIENCE:?}")]
    Hangs(PathBuf),
    /// The request failed.
    #[error("{0}: {1}")]
    Request(Box<Url>, reqwest::Error),
    /// The request could not be signed.
    #[error("{0}: {1}")]
    Unsigned(Box<Url>, String),
    /// The answer is not one of a conditional request.
    #[error("{0}: {1}")]
    Answer(Box<Url>, String),
    /// The content is too large for a checkpoint.
    #[error("the content has more than {MAX_NOTE_BYTES} bytes, too many for a checkpoint")]
    Large,
    /// The process is stopping.
    #[error("the broker is stopping")]
    Stopping,
}

impl CheckpointStore {
    /// A file on a disk that the replicas share.
    #[must_use]
    pub fn file(path: PathBuf) -> Self {
        Self::File(SharedFile {
            path,
            turn: Arc::new(Semaphore::new(1)),
        })
    }

    /// An object behind HTTP. `headers` are sent with each request.
    pub fn object(
        url: Url,
        headers: &BTreeMap<String, String>,
        authorization: Authorization,
    ) -> Result<Self, String> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let parsed = HeaderName::try_from(name).ok().zip(value.parse().ok());
            let (name, value) =
                parsed.ok_or_else(|| format!("the header `{name}` is not valid"))?;
            map.insert(name, value);
        }
        let client = outgoing::direct_client().timeout(PATIENCE).build();
        let client = client.map_err(|error| error.to_string())?;
        Ok(Self::Object(Box::new(Object {
            url,
            headers: map,
            authorization,
            client,
        })))
    }

    /// The content of the location.
    pub async fn read(&self) -> Result<VersionedNote, CheckpointStoreError> {
        match self {
            Self::File(file) => {
                let note = file.with(read_file).await?;
                Ok(VersionedNote {
                    note,
                    version: Version::Content,
                })
            }
            Self::Object(object) => object.read().await,
        }
    }

    /// Replaces `old` by `note`, if the location still holds `old`.
    pub async fn swap(
        &self,
        old: &VersionedNote,
        note: &str,
    ) -> Result<Swapped, CheckpointStoreError> {
        match self {
            Self::File(file) => {
                let (old, note) = (old.note.clone(), note.to_owned());
                file.with(move |path| swap_file(path, old.as_deref(), &note))
                    .await
            }
            Self::Object(object) => object.swap(old, note).await,
        }
    }

    /// Whether the location ignores conditions: it accepts a change from a version that never
    /// existed. The change writes the current note, so an accepted one loses nothing. False for a
    /// file, which is locked, and for an empty location, where this cannot be tried.
    pub async fn is_careless(&self, kept: &VersionedNote) -> Result<bool, CheckpointStoreError> {
        let note = kept.note.as_deref().map(std::str::from_utf8);
        let (Self::Object(object), Some(Ok(note))) = (self, note) else {
            return Ok(false);
        };
        let never = VersionedNote {
            note: None,
            version: Version::Tag(HeaderValue::from_static(NEVER)),
        };
        let swapped = object.swap(&never, note).await?;
        Ok(swapped != Swapped::Changed)
    }
}

impl std::fmt::Display for CheckpointStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(file) => file.path.display().fmt(f),
            Self::Object(object) => object.url.fmt(f),
        }
    }
}

impl Object {
    async fn read(&self) -> Result<VersionedNote, CheckpointStoreError> {
        let request = self.client.get(self.url.clone());
        let answer = self.send(request).await?;
        match answer.status() {
            StatusCode::NOT_FOUND => Ok(VersionedNote {
                note: None,
                version: Version::Absent,
            }),
            StatusCode::OK => {
                let tag = strong_tag(&answer)
                    .ok_or_else(|| self.unusable("the answer has no strong ETag"))?;
                Ok(VersionedNote {
                    note: Some(self.body(answer).await?),
                    version: Version::Tag(tag),
                })
            }
            other => Err(self.unusable(&format!("GET was answered with {other}"))),
        }
    }

    async fn swap(&self, old: &VersionedNote, note: &str) -> Result<Swapped, CheckpointStoreError> {
        let condition = match &old.version {
            Version::Tag(tag) => (IF_MATCH, tag.clone()),
            Version::Absent => (IF_NONE_MATCH, HeaderValue::from_static("*")),
            Version::Content | Version::Unknown => return Ok(Swapped::Changed),
        };
        let request = self
            .client
            .put(self.url.clone())
            .header(condition.0, condition.1)
            .header(CONTENT_TYPE, "text/plain; charset=utf-8")
            .body(note.to_owned());
        let answer = self.send(request).await?;
        match answer.status() {
            status if status.is_success() => Ok(Swapped::Done(VersionedNote {
                note: Some(note.as_bytes().to_vec()),
                version: strong_tag(&answer).map_or(Version::Unknown, Version::Tag),
            })),
            // Object stores answer 409 to concurrent conditional writes.
            StatusCode::PRECONDITION_FAILED | StatusCode::CONFLICT => Ok(Swapped::Changed),
            other => Err(self.unusable(&format!("PUT was answered with {other}"))),
        }
    }

    async fn send(
        &self,
        request: reqwest::RequestBuilder,
    ) -> Result<Response, CheckpointStoreError> {
        let request = request.headers(self.headers.clone()).build();
        let mut request = request.map_err(|error| self.failed(error))?;
        if let Authorization::S3(signer) = &self.authorization {
            let signed = signer.sign(&mut request).await;
            signed
                .map_err(|why| CheckpointStoreError::Unsigned(Box::new(self.url.clone()), why))?;
        } else if let Authorization::File(file) = &self.authorization {
            let failed = |error| CheckpointStoreError::File(file.clone(), error);
            let text = tokio::fs::read_to_string(file).await.map_err(failed)?;
            let mut value = HeaderValue::try_from(secret_in(&text))
                .map_err(|_| failed(std::io::Error::from(ErrorKind::InvalidData)))?;
            value.set_sensitive(true);
            request.headers_mut().insert(AUTHORIZATION, value);
        }
        let sent = self.client.execute(request).await;
        sent.map_err(|error| self.failed(error))
    }

    fn failed(&self, error: reqwest::Error) -> CheckpointStoreError {
        CheckpointStoreError::Request(Box::new(self.url.clone()), error.without_url())
    }

    async fn body(&self, answer: Response) -> Result<Vec<u8>, CheckpointStoreError> {
        let body = outgoing::body(answer, MAX_NOTE_BYTES).await;
        body.map_err(|error| match error {
            BodyError::Large(_) => CheckpointStoreError::Large,
            BodyError::Broken(error) => self.failed(error),
        })
    }

    fn unusable(&self, what: &str) -> CheckpointStoreError {
        CheckpointStoreError::Answer(Box::new(self.url.clone()), what.to_owned())
    }
}

/// Weak tags only mark equivalent content (RFC 9110, section 8.8.1), which does not suffice for a
/// swap.
fn strong_tag(answer: &Response) -> Option<HeaderValue> {
    let tag = answer.headers().get(ETAG)?;
    tag.as_bytes().starts_with(b"\"").then(|| tag.clone())
}

impl SharedFile {
    /// Accesses the disk on a separate thread, one at a time: a hanging disk blocks only that
    /// thread.
    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Path) -> Result<T, CheckpointStoreError> + Send + 'static,
    ) -> Result<T, CheckpointStoreError> {
        let done = async {
            let turn = Arc::clone(&self.turn).acquire_owned().await;
            let turn = turn.map_err(|_| CheckpointStoreError::Stopping)?;
            let (answer, outcome) = oneshot::channel();
            let path = self.path.clone();
            std::thread::Builder::new()
                .name("place".to_owned())
                .spawn(move || {
                    let done = work(&path);
                    drop(turn);
                    // The caller may have given up.
                    drop(answer.send(done));
                })
                .map_err(|error| CheckpointStoreError::File(self.path.clone(), error))?;
            outcome.await.unwrap_or(Err(CheckpointStoreError::Stopping))
        };
        let done = tokio::time::timeout(PATIENCE, done).await;
        done.unwrap_or_else(|_| Err(CheckpointStoreError::Hangs(self.path.clone())))
    }
}

fn read_file(path: &Path) -> Result<Option<Vec<u8>>, CheckpointStoreError> {
    use std::io::Read as _;
    let failed = |error| CheckpointStoreError::File(path.to_owned(), error);
    let Some(file) = open_private(path)? else {
        return missing(path).map(|()| None);
    };
    let mut note = Vec::new();
    let bound = MAX_NOTE_BYTES as u64 + 1;
    file.take(bound).read_to_end(&mut note).map_err(failed)?;
    if note.len() > MAX_NOTE_BYTES {
        return Err(CheckpointStoreError::Large);
    }
    Ok(Some(note))
}

/// A missing file counts as empty only if its directory exists. Without the directory, for example
/// before a mount, the content is unknown.
fn missing(path: &Path) -> Result<(), CheckpointStoreError> {
    let directory = path.parent().filter(|path| !path.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new("."));
    let failed = |error| CheckpointStoreError::File(directory.to_owned(), error);
    if std::fs::metadata(directory).map_err(failed)?.is_dir() {
        return Ok(());
    }
    Err(failed(ErrorKind::NotADirectory.into()))
}

/// Refuses a shared file that a start could not read, or could not create. Creates nothing. Fails
/// after [`PATIENCE`] if the disk does not answer.
pub fn check_shared_file(path: &Path) -> Result<(), CheckpointStoreError> {
    let (answer, outcome) = std::sync::mpsc::channel();
    let checked = path.to_owned();
    std::thread::Builder::new()
        .name("place".to_owned())
        .spawn(move || {
            // The caller may have stopped waiting.
            drop(answer.send(check_file(&checked)));
        })
        .map_err(|error| CheckpointStoreError::File(path.to_owned(), error))?;
    let outcome = outcome.recv_timeout(PATIENCE);
    outcome.unwrap_or_else(|_| Err(CheckpointStoreError::Hangs(path.to_owned())))
}

fn check_file(path: &Path) -> Result<(), CheckpointStoreError> {
    if read_file(path)?.is_some() {
        return Ok(());
    }
    check_writable(path)?;
    check_writable(&beside(path, ".lock"))?;
    Ok(())
}

fn swap_file(path: &Path, old: Option<&[u8]>, note: &str) -> Result<Swapped, CheckpointStoreError> {
    let lock = beside(path, ".lock");
    let held = open_lock(&lock)?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match held.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(TryLockError::WouldBlock) => {
                return Err(CheckpointStoreError::Locked(path.to_owned()));
            }
            Err(TryLockError::Error(error)) => return Err(CheckpointStoreError::File(lock, error)),
        }
    }
    if read_file(path)?.as_deref() != old {
        return Ok(Swapped::Changed);
    }
    write_whole(path, note.as_bytes())
        .map_err(|error| CheckpointStoreError::File(path.to_owned(), error))?;
    Ok(Swapped::Done(VersionedNote {
        note: Some(note.as_bytes().to_vec()),
        version: Version::Content,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(swapped: Swapped) -> VersionedNote {
        match swapped {
            Swapped::Done(kept) => kept,
            Swapped::Changed => panic!("the swap was refused"),
        }
    }

    #[tokio::test]
    async fn a_file_changes_only_from_what_was_read() {
        let directory = tempfile::tempdir().unwrap();
        let store = CheckpointStore::file(directory.path().join("checkpoint"));
        let nothing = store.read().await.unwrap();
        assert_eq!(nothing.note, None);
        let first = done(store.swap(&nothing, "one").await.unwrap());
        assert_eq!(store.read().await.unwrap(), first);
        assert_eq!(
            store.swap(&nothing, "other").await.unwrap(),
            Swapped::Changed
        );
        let second = done(store.swap(&first, "two").await.unwrap());
        assert_eq!(store.swap(&first, "three").await.unwrap(), Swapped::Changed);
        assert_eq!(store.read().await.unwrap(), second);
        assert_eq!(second.note.as_deref(), Some(b"two".as_slice()));
    }

    #[tokio::test]
    async fn of_many_that_swap_at_once_one_does() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("checkpoint");
        let store = CheckpointStore::file(path.clone());
        let nothing = store.read().await.unwrap();
        let mut tries = tokio::task::JoinSet::new();
        for n in 0..16 {
            let (store, nothing) = (CheckpointStore::file(path.clone()), nothing.clone());
            tries.spawn(async move { store.swap(&nothing, &n.to_string()).await.unwrap() });
        }
        let all = tries.join_all().await;
        let won: Vec<VersionedNote> = all
            .into_iter()
            .filter_map(|swapped| match swapped {
                Swapped::Done(kept) => Some(kept),
                Swapped::Changed => None,
            })
            .collect();
        assert_eq!(won, [store.read().await.unwrap()]);
    }

    #[tokio::test]
    async fn what_is_too_large_or_no_file_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("checkpoint");
        write_whole(&path, &vec![b'x'; MAX_NOTE_BYTES + 1]).unwrap();
        let large = CheckpointStore::file(path).read().await;
        assert!(matches!(large, Err(CheckpointStoreError::Large)));
        let folder = CheckpointStore::file(directory.path().to_owned())
            .read()
            .await;
        assert!(matches!(folder, Err(CheckpointStoreError::Unfit(..))));
    }

    #[tokio::test]
    async fn what_is_not_mounted_is_not_empty() {
        let directory = tempfile::tempdir().unwrap();
        let gone = directory.path().join("mnt/checkpoint");
        let read = CheckpointStore::file(gone.clone()).read().await;
        assert!(
            matches!(read, Err(CheckpointStoreError::File(..))),
            "{read:?}"
        );
        std::fs::create_dir(gone.parent().unwrap()).unwrap();
        assert_eq!(CheckpointStore::file(gone).read().await.unwrap().note, None);
    }

    #[test]
    fn a_check_of_a_shared_file_refuses_what_a_start_would_and_makes_nothing() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("mnt/checkpoint");
        let refused = check_shared_file(&path);
        assert!(
            matches!(refused, Err(CheckpointStoreError::File(..))),
            "{refused:?}"
        );
        let parent = path.parent().unwrap();
        std::fs::create_dir(parent).unwrap();
        check_shared_file(&path).unwrap();
        assert_eq!(std::fs::read_dir(parent).unwrap().count(), 0);
        let open_to = |path: &Path, mode| {
            let mode = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(path, mode).unwrap();
        };
        open_to(parent, 0o777);
        let refused = check_shared_file(&path).unwrap_err().to_string();
        assert!(refused.contains("chmod go-w"), "{refused}");
        open_to(parent, 0o700);
        let lock = beside(&path, ".lock");
        std::fs::write(&lock, "").unwrap();
        open_to(&lock, 0o644);
        let refused = check_shared_file(&path).unwrap_err().to_string();
        assert!(refused.contains("chmod 0600"), "{refused}");
        open_to(&lock, 0o600);
        write_whole(&path, b"note").unwrap();
        check_shared_file(&path).unwrap();
    }

    #[tokio::test]
    async fn a_disk_that_hangs_keeps_one_thread_and_nobody_waiting() {
        let directory = tempfile::tempdir().unwrap();
        let store = CheckpointStore::file(directory.path().join("checkpoint"));
        let CheckpointStore::File(file) = &store else {
            unreachable!()
        };
        let (comes_back, hangs) = std::sync::mpsc::channel::<()>();
        let began = Instant::now();
        let first = file.with(move |path| {
            // Blocks like a system call that the disk does not answer, until the test releases it.
            hangs.recv().ok();
            read_file(path)
        });
        let (first, ..) = tokio::join!(first, async {
            for read in futures_util::future::join_all([store.read(), store.read()]).await {
                assert!(
                    matches!(read, Err(CheckpointStoreError::Hangs(_))),
                    "{read:?}"
                );
            }
        });
        assert!(
            matches!(first, Err(CheckpointStoreError::Hangs(_))),
            "{first:?}"
        );
        assert!(began.elapsed() < PATIENCE * 2);
        assert_eq!(
            file.turn.available_permits(),
            0,
            "the first read's thread holds it"
        );
        // Once the disk answers again, so does the location.
        drop(comes_back);
        assert_eq!(store.read().await.unwrap().note, None);
    }
}
