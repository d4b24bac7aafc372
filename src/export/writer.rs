//! Writes lines to a file or to standard output on a separate thread: a hanging disk, or a pipe
//! without a reader, blocks only that thread.
//!
//! [`Writer::start`] starts the thread, `write` hands over a batch, and `queue_compare` has the
//! file's length compared. A file is opened for each batch, so that a rotation needs no signal.
//!
//! The rule: a batch counts as delivered once it is synced to disk. An incomplete last line, left
//! by a crash, is removed: it was not delivered and is sent again. A rotation that copies the file
//! and then truncates it loses the lines in between, and only the file's length reveals it. So the
//! length is compared before each batch and about once a second. Failures: an error of the disk, a
//! batch that takes longer than `patience`, and a last line that this broker did not write are
//! `io::Error`s; the caller sends the batch again. While an earlier batch hangs, nothing more is
//! written. Only `super` calls this module; a truncation is reported to it and stops nothing.

use std::fs::{File, Metadata};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use tokio::sync::{Mutex, oneshot};

use crate::files::open_to_append;

/// How far back the end of the last complete line is searched; more than the longest line.
const MAX_TAIL_BYTES: u64 = 4 * 1024 * 1024;

/// The target of the lines.
#[derive(Clone, Debug)]
pub(super) enum SinkTarget {
    File(PathBuf),
    Stdout,
}

enum Job {
    Write {
        lines: Vec<u8>,
        done: oneshot::Sender<io::Result<()>>,
    },
    /// Compares the file's length, and then clears the flag.
    Compare(Arc<AtomicBool>),
}

/// A file that became shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Truncated {
    /// Its length after the last batch, in bytes.
    pub(super) was: u64,
    /// Its present length, in bytes.
    pub(super) is: u64,
}

/// The file after the last batch.
#[derive(Clone, Copy, Debug)]
struct FileState {
    device: u64,
    inode: u64,
    length: u64,
}

impl FileState {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
        }
    }

    /// Whether the same file was truncated since. A renamed file has another inode.
    fn truncated(self, now: Self) -> Option<Truncated> {
        let same = (self.device, self.inode) == (now.device, now.inode);
        (same && now.length < self.length).then_some(Truncated {
            was: self.length,
            is: now.length,
        })
    }
}

/// Writes batches of lines, one after another.
pub(super) struct Writer {
    jobs: mpsc::Sender<Job>,
    /// Whether a length comparison is queued.
    is_compare_queued: Arc<AtomicBool>,
    /// A batch that timed out and may still be running.
    late: Mutex<Option<oneshot::Receiver<io::Result<()>>>>,
}

impl Writer {
    /// Starts the thread. It calls `truncated` for a file that became shorter.
    pub(super) fn start(
        target: SinkTarget,
        truncated: impl Fn(Truncated) + Send + 'static,
    ) -> io::Result<Self> {
        let (jobs, work) = mpsc::channel::<Job>();
        // The thread is never joined: it may hang in a write that cannot be interrupted.
        std::thread::Builder::new()
            .name("export".into())
            .spawn(move || {
                let mut torn = false;
                let mut left = None;
                for job in work {
                    match job {
                        Job::Compare(waits) => {
                            if let Some(cut) = compare(&target, &mut left) {
                                truncated(cut);
                            }
                            waits.store(false, Ordering::SeqCst);
                        }
                        Job::Write { lines, done } => {
                            let written = write(&target, &lines, torn, left, &truncated);
                            torn = written.is_err();
                            left = written.as_ref().ok().copied().flatten();
                            // The caller may have stopped waiting.
                            drop(done.send(written.map(drop)));
                        }
                    }
                }
            })?;
        Ok(Self {
            jobs,
            is_compare_queued: Arc::default(),
            late: Mutex::new(None),
        })
    }

    /// Queues a comparison of the file's length, unless one is queued already.
    pub(super) fn queue_compare(&self) {
        if !self.is_compare_queued.swap(true, Ordering::SeqCst) {
            // If the thread is gone, the next write fails and reports it.
            drop(
                self.jobs
                    .send(Job::Compare(Arc::clone(&self.is_compare_queued))),
            );
        }
    }

    /// Writes complete lines. While an earlier batch hangs, nothing more is queued.
    pub(super) async fn write(&self, lines: Vec<u8>, patience: Duration) -> io::Result<()> {
        let mut late = self.late.lock().await;
        if let Some(receiver) = late.as_mut() {
            let slow = || io::Error::from(io::ErrorKind::TimedOut);
            // Its outcome does not matter: it was not counted as delivered, so the next batch
            // repeats it.
            drop(
                tokio::time::timeout(patience, receiver)
                    .await
                    .map_err(|_| slow())?,
            );
            *late = None;
        }
        let (done, mut receiver) = oneshot::channel();
        let gone = || io::Error::other("the writer's thread has ended");
        self.jobs
            .send(Job::Write { lines, done })
            .map_err(|_| gone())?;
        let written = tokio::time::timeout(patience, &mut receiver).await;
        if written.is_err() {
            *late = Some(receiver);
        }
        written?.map_err(|_| gone())?
    }
}

/// Whether the file became shorter. If so, its present length is used from now on.
fn compare(target: &SinkTarget, left: &mut Option<FileState>) -> Option<Truncated> {
    let SinkTarget::File(path) = target else {
        return None;
    };
    let before = (*left)?;
    let now = FileState::of(&std::fs::metadata(path).ok()?);
    let cut = before.truncated(now)?;
    *left = Some(now);
    Some(cut)
}

/// `torn`: the last batch failed, perhaps within a line. `left`: the file after the last batch.
/// Returns the file after this batch, with the length that it has unless it was truncated
/// meanwhile.
fn write(
    target: &SinkTarget,
    lines: &[u8],
    torn: bool,
    left: Option<FileState>,
    truncated: &impl Fn(Truncated),
) -> io::Result<Option<FileState>> {
    match target {
        SinkTarget::Stdout => {
            let mut out = io::stdout().lock();
            // Output cannot be taken back: a line break ends the torn line.
            if torn {
                out.write_all(b"\n")?;
            }
            out.write_all(lines)?;
            out.flush()?;
            Ok(None)
        }
        SinkTarget::File(path) => {
            let mut file = open_to_append(path)?;
            let found = FileState::of(&file.metadata()?);
            if let Some(cut) = left.and_then(|left| left.truncated(found)) {
                truncated(cut);
            }
            cut_unfinished(&mut file)?;
            let length = file.metadata()?.len() + lines.len() as u64;
            file.write_all(lines)?;
            file.sync_data()?;
            // The length is computed, not read: a truncation after the write is then found by the
            // next comparison.
            Ok(Some(FileState { length, ..found }))
        }
    }
}

/// Removes an incomplete last line.
fn cut_unfinished(file: &mut File) -> io::Result<()> {
    let length = file.metadata()?.len();
    let mut at = length;
    let mut block = [0_u8; 4096];
    while at > 0 && length - at < MAX_TAIL_BYTES {
        let from = at.saturating_sub(block.len() as u64);
        let part = usize::try_from(at - from).unwrap_or(block.len());
        file.seek(SeekFrom::Start(from))?;
        let (read, _) = block.split_at_mut(part);
        file.read_exact(read)?;
        if let Some(end) = read.iter().rposition(|byte| *byte == b'\n') {
            return cut_from(file, from + end as u64 + 1, length);
        }
        at = from;
    }
    if at == 0 {
        return cut_from(file, 0, length);
    }
    Err(io::Error::other(
        "the file's last line is longer than any event",
    ))
}

/// Removes the bytes from `whole` on if they begin like a line of this broker, so that a wrong path
/// in the configuration destroys nothing.
fn cut_from(file: &mut File, whole: u64, length: u64) -> io::Result<()> {
    const BEGIN: &[u8] = b"{\"";
    if whole == length {
        return Ok(());
    }
    let mut begin = Vec::new();
    file.seek(SeekFrom::Start(whole))?;
    file.take(BEGIN.len() as u64).read_to_end(&mut begin)?;
    if !BEGIN.starts_with(&begin) {
        return Err(io::Error::other(
            "the file ends in a line that this broker did not write; the file was not changed",
        ));
    }
    file.set_len(whole)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn empty(path: &Path) {
        let file = File::options().write(true).open(path).unwrap();
        file.set_len(0).unwrap();
    }

    fn write_new(target: &SinkTarget) -> io::Result<Option<FileState>> {
        write(target, b"new\n", false, None, &|_| {})
    }

    #[test]
    fn a_cut_that_came_right_after_the_write_is_seen_at_the_next_look() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events");
        let target = SinkTarget::File(path.clone());
        std::fs::write(&path, "one\n").unwrap();
        let mut left = write_new(&target).unwrap();
        assert_eq!(left.unwrap().length, 8);
        // As if the file had been truncated between the write and the read of the length.
        empty(&path);
        let cut = Truncated { was: 8, is: 0 };
        assert_eq!(compare(&target, &mut left), Some(cut));
        assert_eq!(
            compare(&target, &mut left),
            None,
            "a truncation must be reported once"
        );
    }

    #[test]
    fn a_line_that_a_crash_left_is_cut_off_and_whole_ones_stay() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events");
        let target = SinkTarget::File(path.clone());
        for (before, after) in [
            ("", "new\n"),
            ("{\"specv", "new\n"),
            ("one\n", "one\nnew\n"),
            ("one\n{", "one\nnew\n"),
            ("one\n{\"id\":\"tp-7", "one\nnew\n"),
        ] {
            std::fs::write(&path, before).unwrap();
            write_new(&target).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), after, "{before}");
        }
        let long = format!("one\n{{\"{}", "x".repeat(10_000));
        std::fs::write(&path, long).unwrap();
        write_new(&target).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\nnew\n");
    }

    #[test]
    fn what_is_no_file_of_lines_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        assert!(write_new(&SinkTarget::File(dir.path().to_owned())).is_err());
        let path = dir.path().join("other");
        for other in [
            vec![0; 5 * 1024 * 1024],
            b"tpk1_a-secret-without-an-end-of-line".to_vec(),
            b"lines\nand [more]".to_vec(),
        ] {
            std::fs::write(&path, &other).unwrap();
            assert!(write_new(&SinkTarget::File(path.clone())).is_err());
            assert_eq!(std::fs::read(&path).unwrap(), other);
        }
    }

    #[tokio::test]
    async fn a_file_that_was_cut_is_told_of_before_the_next_line_and_one_that_was_renamed_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events");
        let (told, cuts) = mpsc::channel();
        let writer = Writer::start(SinkTarget::File(path.clone()), move |cut| {
            told.send(cut).unwrap();
        });
        let writer = writer.unwrap();
        let soon = Duration::from_secs(30);
        writer.write(b"one\ntwo\n".to_vec(), soon).await.unwrap();
        writer.queue_compare();
        std::fs::rename(&path, dir.path().join("events.1")).unwrap();
        writer.write(b"three\n".to_vec(), soon).await.unwrap();
        assert!(cuts.try_recv().is_err(), "nothing was cut");
        // As `copytruncate` does; then nothing is written for a long time.
        std::fs::copy(&path, dir.path().join("events.2")).unwrap();
        empty(&path);
        writer.queue_compare();
        let cut = Truncated { was: 6, is: 0 };
        assert_eq!(cuts.recv_timeout(soon).unwrap(), cut);
        writer.write(b"four\n".to_vec(), soon).await.unwrap();
        assert!(
            cuts.try_recv().is_err(),
            "a truncation must be reported once"
        );
        // The next line is written before the next comparison.
        empty(&path);
        writer.write(b"five\n".to_vec(), soon).await.unwrap();
        assert_eq!(cuts.try_recv().unwrap(), Truncated { was: 5, is: 0 });
    }

    #[tokio::test]
    async fn nothing_is_written_behind_what_hangs() {
        let (jobs, work) = mpsc::channel::<Job>();
        let writer = Writer {
            jobs,
            is_compare_queued: Arc::default(),
            late: Mutex::new(None),
        };
        let soon = Duration::from_millis(20);
        let slow = writer.write(b"a\n".to_vec(), soon).await.unwrap_err();
        assert_eq!(slow.kind(), io::ErrorKind::TimedOut);
        let slow = writer.write(b"b\n".to_vec(), soon).await.unwrap_err();
        assert_eq!(slow.kind(), io::ErrorKind::TimedOut);
        let batch = |job| match job {
            Job::Write { lines, done } => (lines, done),
            Job::Compare(_) => panic!("no comparison was queued"),
        };
        let (first, done) = batch(work.try_recv().unwrap());
        assert_eq!(first, b"a\n");
        assert!(work.try_recv().is_err(), "the second waits for the first");
        done.send(Ok(())).unwrap();
        let thread = std::thread::spawn(move || {
            let (lines, done) = batch(work.recv().unwrap());
            done.send(Ok(())).unwrap();
            lines
        });
        writer
            .write(b"a\nb\n".to_vec(), Duration::from_secs(9))
            .await
            .unwrap();
        assert_eq!(thread.join().unwrap(), b"a\nb\n");
    }
}
