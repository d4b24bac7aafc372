//! Where the replicas of a broker keep one checkpoint together: a file on a disk that they share,
//! or an object behind HTTP. Nothing is ever written over what was not read: the file changes under
//! a lock, the object by conditional requests (RFC 9110, section 13.1).

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

/// The longest time for one reading or one writing.
const PATIENCE: Duration = Duration::from_secs(3);

/// The longest time that a lock is waited for, within that.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// A tag that no object ever has.
const NEVER: &str = "\"taskpass-never-was\"";

/// The largest note that is read. Ours has a few hundred bytes, and a line for each witness.
const MAX_NOTE_BYTES: usize = 64 * 1024;

/// A place that holds one note or none.
#[derive(Debug)]
pub enum Place {
    /// A file.
    File(SharedFile),
    /// An object behind HTTP.
    Object(Box<Object>),
}

/// A file. Beside it stands a lock, by the same name with `.lock`.
#[derive(Debug)]
pub struct SharedFile {
    path: PathBuf,
    /// Whose turn it is with the disk.
    turn: Arc<Semaphore>,
}

/// An object that conditional requests read and write: `GET` answers 200 with a strong `ETag`, or
/// 404; `PUT` heeds `If-Match` and `If-None-Match: *`.
#[derive(Debug)]
pub struct Object {
    url: Url,
    headers: HeaderMap,
    authorization: Authorization,
    client: reqwest::Client,
}

/// How requests for an object show that they may.
#[derive(Debug)]
pub enum Authorization {
    /// Not at all.
    None,
    /// By what this file holds, which goes as `Authorization`; read anew for each request, since
    /// such things are renewed.
    File(PathBuf),
    /// By a signature, as S3 wants it.
    S3(s3::Signer),
}

impl Authorization {
    /// For a bucket in `region`, with these credentials.
    #[must_use]
    pub fn s3(region: String, credentials: SharedCredentialsProvider) -> Self {
        Self::S3(s3::Signer::new(region, credentials))
    }
}

/// What a place held, and what tells it from what it will hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The note; none where nothing was kept yet.
    pub note: Option<Vec<u8>>,
    version: Version,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Version {
    /// The note itself.
    Content,
    Tag(HeaderValue),
    /// An object that is not there.
    Absent,
    /// It was written, and the answer did not say as what.
    Unknown,
}

/// What became of a swap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Swapped {
    /// The place holds the new note.
    Done(Kept),
    /// It held something else than was read.
    Changed,
}

/// Why a place could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// The file, or the lock beside it.
    #[error("{0}: {1}")]
    File(PathBuf, std::io::Error),
    /// The file, its directory or the lock beside it cannot be opened, or other users can get at it.
    #[error(transparent)]
    Unfit(#[from] FileError),
    /// Another process holds the lock.
    #[error("{0}: the lock beside it was held for {LOCK_PATIENCE:?}")]
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
    /// The answer is none that conditional requests have.
    #[error("{0}: {1}")]
    Answer(Box<Url>, String),
    /// What it holds is too large for a checkpoint.
    #[error("it holds more than {MAX_NOTE_BYTES} bytes, which is no checkpoint")]
    Large,
    /// The runtime is going down.
    #[error("the broker is stopping")]
    Stopping,
}

impl Place {
    /// A file on a disk that the replicas share.
    #[must_use]
    pub fn file(path: PathBuf) -> Self {
        Self::File(SharedFile {
            path,
            turn: Arc::new(Semaphore::new(1)),
        })
    }

    /// A place behind HTTP. `headers` go with each request.
    pub fn object(
        url: Url,
        headers: &BTreeMap<String, String>,
        authorization: Authorization,
    ) -> Result<Self, String> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let parsed = HeaderName::try_from(name).ok().zip(value.parse().ok());
            let (name, value) = parsed.ok_or_else(|| format!("`{name}` is no header"))?;
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

    /// What it holds.
    pub async fn read(&self) -> Result<Kept, PlaceError> {
        match self {
            Self::File(file) => {
                let note = file.with(read_file).await?;
                Ok(Kept {
                    note,
                    version: Version::Content,
                })
            }
            Self::Object(object) => object.read().await,
        }
    }

    /// Puts `note` in the place of `old`, if that is what it still holds.
    pub async fn swap(&self, old: &Kept, note: &str) -> Result<Swapped, PlaceError> {
        match self {
            Self::File(file) => {
                let (old, note) = (old.note.clone(), note.to_owned());
                file.with(move |path| swap_file(path, old.as_deref(), &note))
                    .await
            }
            Self::Object(object) => object.swap(old, note).await,
        }
    }

    /// Whether what it holds changes from what never was there; it must not. What it already holds
    /// is offered, so that a place that takes it loses nothing.
    pub async fn is_careless(&self, kept: &Kept) -> Result<bool, PlaceError> {
        let note = kept.note.as_deref().map(std::str::from_utf8);
        let (Self::Object(object), Some(Ok(note))) = (self, note) else {
            return Ok(false);
        };
        let never = Kept {
            note: None,
            version: Version::Tag(HeaderValue::from_static(NEVER)),
        };
        let swapped = object.swap(&never, note).await?;
        Ok(swapped != Swapped::Changed)
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(file) => file.path.display().fmt(f),
            Self::Object(object) => object.url.fmt(f),
        }
    }
}

impl Object {
    async fn read(&self) -> Result<Kept, PlaceError> {
        let request = self.client.get(self.url.clone());
        let answer = self.send(request).await?;
        match answer.status() {
            StatusCode::NOT_FOUND => Ok(Kept {
                note: None,
                version: Version::Absent,
            }),
            StatusCode::OK => {
                let tag = strong_tag(&answer)
                    .ok_or_else(|| self.unusable("the answer has no strong ETag"))?;
                Ok(Kept {
                    note: Some(self.body(answer).await?),
                    version: Version::Tag(tag),
                })
            }
            other => Err(self.unusable(&format!("GET was answered with {other}"))),
        }
    }

    async fn swap(&self, old: &Kept, note: &str) -> Result<Swapped, PlaceError> {
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
            status if status.is_success() => Ok(Swapped::Done(Kept {
                note: Some(note.as_bytes().to_vec()),
                version: strong_tag(&answer).map_or(Version::Unknown, Version::Tag),
            })),
            // Object stores say 409 where two conditional writes meet.
            StatusCode::PRECONDITION_FAILED | StatusCode::CONFLICT => Ok(Swapped::Changed),
            other => Err(self.unusable(&format!("PUT was answered with {other}"))),
        }
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<Response, PlaceError> {
        let request = request.headers(self.headers.clone()).build();
        let mut request = request.map_err(|error| self.failed(error))?;
        if let Authorization::S3(signer) = &self.authorization {
            let signed = signer.sign(&mut request).await;
            signed.map_err(|why| PlaceError::Unsigned(Box::new(self.url.clone()), why))?;
        } else if let Authorization::File(file) = &self.authorization {
            let failed = |error| PlaceError::File(file.clone(), error);
            let text = tokio::fs::read_to_string(file).await.map_err(failed)?;
            let mut value = HeaderValue::try_from(secret_in(&text))
                .map_err(|_| failed(std::io::Error::from(ErrorKind::InvalidData)))?;
            value.set_sensitive(true);
            request.headers_mut().insert(AUTHORIZATION, value);
        }
        let sent = self.client.execute(request).await;
        sent.map_err(|error| self.failed(error))
    }

    fn failed(&self, error: reqwest::Error) -> PlaceError {
        PlaceError::Request(Box::new(self.url.clone()), error.without_url())
    }

    async fn body(&self, answer: Response) -> Result<Vec<u8>, PlaceError> {
        let body = outgoing::body(answer, MAX_NOTE_BYTES).await;
        body.map_err(|error| match error {
            BodyError::Large(_) => PlaceError::Large,
            BodyError::Broken(error) => self.failed(error),
        })
    }

    fn unusable(&self, what: &str) -> PlaceError {
        PlaceError::Answer(Box::new(self.url.clone()), what.to_owned())
    }
}

/// Weak tags stand for what only means the same (RFC 9110, section 8.8.1): no ground for a swap.
fn strong_tag(answer: &Response) -> Option<HeaderValue> {
    let tag = answer.headers().get(ETAG)?;
    tag.as_bytes().starts_with(b"\"").then(|| tag.clone())
}

impl SharedFile {
    /// Works with the disk on a thread of its own, one at a time: a disk that hangs keeps that thread,
    /// and nobody else.
    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Path) -> Result<T, PlaceError> + Send + 'static,
    ) -> Result<T, PlaceError> {
        let done = async {
            let turn = Arc::clone(&self.turn).acquire_owned().await;
            let turn = turn.map_err(|_| PlaceError::Stopping)?;
            let (answer, outcome) = oneshot::channel();
            let path = self.path.clone();
            std::thread::Builder::new()
                .name("place".to_owned())
                .spawn(move || {
                    let done = work(&path);
                    drop(turn);
                    // Whoever asked may have given up.
                    drop(answer.send(done));
                })
                .map_err(|error| PlaceError::File(self.path.clone(), error))?;
            outcome.await.unwrap_or(Err(PlaceError::Stopping))
        };
        let done = tokio::time::timeout(PATIENCE, done).await;
        done.unwrap_or_else(|_| Err(PlaceError::Hangs(self.path.clone())))
    }
}

fn read_file(path: &Path) -> Result<Option<Vec<u8>>, PlaceError> {
    use std::io::Read as _;
    let failed = |error| PlaceError::File(path.to_owned(), error);
    let Some(file) = open_private(path)? else {
        return missing(path).map(|()| None);
    };
    let mut note = Vec::new();
    let bound = MAX_NOTE_BYTES as u64 + 1;
    file.take(bound).read_to_end(&mut note).map_err(failed)?;
    if note.len() > MAX_NOTE_BYTES {
        return Err(PlaceError::Large);
    }
    Ok(Some(note))
}

/// A file may be missing from a directory that is there. Where the directory is not, nobody knows
/// what it holds.
fn missing(path: &Path) -> Result<(), PlaceError> {
    let directory = path.parent().filter(|path| !path.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new("."));
    let failed = |error| PlaceError::File(directory.to_owned(), error);
    if std::fs::metadata(directory).map_err(failed)?.is_dir() {
        return Ok(());
    }
    Err(failed(ErrorKind::NotADirectory.into()))
}

/// Refuses a shared file that a start could not read, or could not write where there is none yet. Makes
/// nothing. A disk that does not answer is an error after [`PATIENCE`].
pub fn check_shared_file(path: &Path) -> Result<(), PlaceError> {
    let (answer, outcome) = std::sync::mpsc::channel();
    let checked = path.to_owned();
    std::thread::Builder::new()
        .name("place".to_owned())
        .spawn(move || {
            // The caller may have stopped waiting.
            drop(answer.send(check_file(&checked)));
        })
        .map_err(|error| PlaceError::File(path.to_owned(), error))?;
    let outcome = outcome.recv_timeout(PATIENCE);
    outcome.unwrap_or_else(|_| Err(PlaceError::Hangs(path.to_owned())))
}

fn check_file(path: &Path) -> Result<(), PlaceError> {
    if read_file(path)?.is_some() {
        return Ok(());
    }
    check_writable(path)?;
    check_writable(&beside(path, ".lock"))?;
    Ok(())
}

fn swap_file(path: &Path, old: Option<&[u8]>, note: &str) -> Result<Swapped, PlaceError> {
    let lock = beside(path, ".lock");
    let held = open_lock(&lock)?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match held.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(TryLockError::WouldBlock) => return Err(PlaceError::Locked(path.to_owned())),
            Err(TryLockError::Error(error)) => return Err(PlaceError::File(lock, error)),
        }
    }
    if read_file(path)?.as_deref() != old {
        return Ok(Swapped::Changed);
    }
    write_whole(path, note.as_bytes()).map_err(|error| PlaceError::File(path.to_owned(), error))?;
    Ok(Swapped::Done(Kept {
        note: Some(note.as_bytes().to_vec()),
        version: Version::Content,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(swapped: Swapped) -> Kept {
        match swapped {
            Swapped::Done(kept) => kept,
            Swapped::Changed => panic!("it was changed"),
        }
    }

    #[tokio::test]
    async fn a_file_changes_only_from_what_was_read() {
        let directory = tempfile::tempdir().unwrap();
        let place = Place::file(directory.path().join("checkpoint"));
        let nothing = place.read().await.unwrap();
        assert_eq!(nothing.note, None);
        let first = done(place.swap(&nothing, "one").await.unwrap());
        assert_eq!(place.read().await.unwrap(), first);
        assert_eq!(
            place.swap(&nothing, "other").await.unwrap(),
            Swapped::Changed
        );
        let second = done(place.swap(&first, "two").await.unwrap());
        assert_eq!(place.swap(&first, "three").await.unwrap(), Swapped::Changed);
        assert_eq!(place.read().await.unwrap(), second);
        assert_eq!(second.note.as_deref(), Some(b"two".as_slice()));
    }

    #[tokio::test]
    async fn of_many_that_swap_at_once_one_does() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("checkpoint");
        let place = Place::file(path.clone());
        let nothing = place.read().await.unwrap();
        let mut tries = tokio::task::JoinSet::new();
        for n in 0..16 {
            let (place, nothing) = (Place::file(path.clone()), nothing.clone());
            tries.spawn(async move { place.swap(&nothing, &n.to_string()).await.unwrap() });
        }
        let all = tries.join_all().await;
        let won: Vec<Kept> = all
            .into_iter()
            .filter_map(|swapped| match swapped {
                Swapped::Done(kept) => Some(kept),
                Swapped::Changed => None,
            })
            .collect();
        assert_eq!(won, [place.read().await.unwrap()]);
    }

    #[tokio::test]
    async fn what_is_too_large_or_no_file_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("checkpoint");
        write_whole(&path, &vec![b'x'; MAX_NOTE_BYTES + 1]).unwrap();
        let large = Place::file(path).read().await;
        assert!(matches!(large, Err(PlaceError::Large)));
        let folder = Place::file(directory.path().to_owned()).read().await;
        assert!(matches!(folder, Err(PlaceError::Unfit(..))));
    }

    #[tokio::test]
    async fn what_is_not_mounted_is_not_empty() {
        let directory = tempfile::tempdir().unwrap();
        let gone = directory.path().join("mnt/checkpoint");
        let read = Place::file(gone.clone()).read().await;
        assert!(matches!(read, Err(PlaceError::File(..))), "{read:?}");
        std::fs::create_dir(gone.parent().unwrap()).unwrap();
        assert_eq!(Place::file(gone).read().await.unwrap().note, None);
    }

    #[test]
    fn a_check_of_a_shared_file_refuses_what_a_start_would_and_makes_nothing() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("mnt/checkpoint");
        let refused = check_shared_file(&path);
        assert!(matches!(refused, Err(PlaceError::File(..))), "{refused:?}");
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
        let place = Place::file(directory.path().join("checkpoint"));
        let Place::File(file) = &place else {
            unreachable!()
        };
        let (comes_back, hangs) = std::sync::mpsc::channel::<()>();
        let began = Instant::now();
        let first = file.with(move |path| {
            // Until the test says so, as a system call that the disk does not answer.
            hangs.recv().ok();
            read_file(path)
        });
        let (first, ..) = tokio::join!(first, async {
            for read in futures_util::future::join_all([place.read(), place.read()]).await {
                assert!(matches!(read, Err(PlaceError::Hangs(_))), "{read:?}");
            }
        });
        assert!(matches!(first, Err(PlaceError::Hangs(_))), "{first:?}");
        assert!(began.elapsed() < PATIENCE * 2);
        assert_eq!(file.turn.available_permits(), 0, "the first one's thread");
        // It comes back, and so does the place.
        drop(comes_back);
        assert_eq!(place.read().await.unwrap().note, None);
    }
}
