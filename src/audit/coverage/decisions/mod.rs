//! The decisions and ends in a log, in a compact form: a row for each permit, and the ends with
//! their times.
//!
//! A permit takes 112 bytes for its row and 8 for the two orders in which it is looked up; an end
//! takes 32. Values that permits share are kept once: workload, resource, policies and grant. The
//! total is bounded, and a log that needs more is refused with the required size. The data is used
//! only after the reader of the log has verified it.
//!
//! `builder` makes the rows, [`super::judge`] looks them up, and `merkle::log_file` reads the log.

mod builder;

use std::collections::HashMap;
use std::io::BufRead;

use uuid::Uuid;

use self::builder::Builder;
use crate::audit::AuditError;
use crate::clock::Timestamp;
use crate::domain::cutoff::Selector;
use crate::domain::grant::Grant;
use crate::domain::session::{EndReason, SessionState};
use crate::domain::task::{TaskChain, TaskEnd, TaskLife, TaskState};
use crate::domain::text::printable;
use crate::domain::validity::{CutOff, Ending, SessionLife, StatusFacts, is_dated_ahead};
use crate::domain::workload::Identity;
use crate::ids::{SessionId, TaskId};
use crate::merkle::{Hash, LogFileError, LogReader, VerifierKey};

/// The longest chain of derived sessions in a valid log.
const MAX_ANCESTORS: usize = 64;

/// The number of entries between two reports of progress.
const STRIDE: u64 = 16_384;

/// One permit, without the values that it shares with others.
#[derive(Clone, Debug)]
struct Row {
    hash: Hash,
    session: SessionId,
    task: TaskId,
    /// The session from which it was derived; nil if there is none.
    parent: Uuid,
    at: Timestamp,
    expires_at: Timestamp,
    index: u64,
    profile: u32,
    chain: u32,
}

/// The values that permits share.
#[derive(Debug)]
struct Profile {
    grant: Grant,
    resource: String,
    /// The `aud` claim; for an AWS session, the ARN of its role.
    audience: String,
    workload: Identity,
    aws: bool,
    /// Every selector that matches the permit, except for those of its tasks.
    selectors: Vec<Selector>,
}

/// The end of a session or a task, as a leaf records it.
#[derive(Clone, Copy, Debug)]
struct LoggedEnd<T> {
    what: Uuid,
    at: Timestamp,
    how: T,
}

/// One permit, with its shared values.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Permit<'a> {
    row: &'a Row,
    profile: &'a Profile,
}

impl Permit<'_> {
    /// The index of its leaf.
    pub(crate) fn index(&self) -> u64 {
        self.row.index
    }

    /// The time of its decision.
    pub(crate) fn at(&self) -> Timestamp {
        self.row.at
    }

    pub(crate) fn grant(&self) -> &Grant {
        &self.profile.grant
    }

    pub(crate) fn resource(&self) -> &str {
        &self.profile.resource
    }

    /// The API, or the AWS role, for which it is.
    pub(crate) fn audience(&self) -> &str {
        &self.profile.audience
    }

    pub(crate) fn workload(&self) -> &str {
        self.profile.workload.as_str()
    }

    /// Whether its credential is an AWS session.
    pub(crate) fn is_aws(&self) -> bool {
        self.profile.aws
    }

    /// The number of its shared values, which include its grant.
    pub(crate) fn profile(&self) -> u32 {
        self.row.profile
    }
}

/// The decisions of a verified log.
#[derive(Debug, Default)]
pub(crate) struct Decisions {
    origin: String,
    /// The log that it succeeds; `None` for a log without predecessor.
    succeeds: Option<String>,
    size: u64,
    root: String,
    last_at: Option<Timestamp>,
    rows: Vec<Row>,
    by_hash: Vec<u32>,
    by_session: Vec<u32>,
    profiles: Vec<Profile>,
    chains: Vec<Box<[TaskId]>>,
    sessions_ended: Vec<LoggedEnd<EndReason>>,
    tasks_ended: Vec<LoggedEnd<TaskEnd>>,
    cutoffs: HashMap<Selector, Vec<(u64, Timestamp)>>,
    /// The times that admins accepted, with their leaves. Earlier permits with a later date have
    /// ended.
    accepted: Vec<(u64, Timestamp)>,
    /// The hashes of leaves whose bodies were pruned or cannot be read by this version.
    unread: Vec<Hash>,
    unknown: u64,
    last_unread: Option<u64>,
}

impl Decisions {
    /// Reads a log to its end. `most` limits the bytes that are kept.
    pub(crate) fn read(
        input: impl BufRead,
        keys: &[VerifierKey],
        most: usize,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<Self, AuditError> {
        let mut reader = LogReader::open(input, keys).map_err(failure)?;
        let signed = reader.checkpoint().clone();
        let all = Self {
            origin: signed.origin.clone(),
            size: signed.size,
            root: signed.root.to_string(),
            ..Self::default()
        };
        let mut builder = Builder::new(all, most);
        while let Some(entry) = reader.next_entry().map_err(failure)? {
            if entry.index % STRIDE == 0 {
                progress(entry.index, signed.size);
            }
            builder.take(&entry)?;
        }
        reader.finish().map_err(failure)?;
        builder.finish()
    }

    /// The origin of the log.
    pub(crate) fn origin(&self) -> &str {
        &self.origin
    }

    /// The origin of the log that it succeeds.
    pub(crate) fn succeeds(&self) -> Option<&str> {
        self.succeeds.as_deref()
    }

    /// The number of leaves.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// The log's root hash, in the form of the checkpoint.
    pub(crate) fn root(&self) -> &str {
        &self.root
    }

    /// The latest time in the log.
    pub(crate) fn last_at(&self) -> Option<Timestamp> {
        self.last_at
    }

    /// The number of permits.
    pub(crate) fn permits(&self) -> usize {
        self.rows.len()
    }

    /// The number of leaves whose body was pruned.
    pub(crate) fn pruned(&self) -> u64 {
        (self.unread.len() as u64).saturating_sub(self.unknown)
    }

    /// The number of leaves that this version cannot read.
    pub(crate) fn unknown(&self) -> u64 {
        self.unknown
    }

    /// Whether the log has an unread leaf, which may be a permit.
    pub(crate) fn has_gaps(&self) -> bool {
        self.last_unread.is_some()
    }

    /// Whether an unread leaf after this permit may have ended it, or a permit from which it was
    /// derived is unread.
    pub(crate) fn may_have_ended_unseen(&self, permit: &Permit<'_>) -> bool {
        let gap_after = |row: &Row| self.last_unread.is_some_and(|last| last > row.index);
        if gap_after(permit.row) {
            return true;
        }
        let mut row = permit.row;
        for _ in 0..MAX_ANCESTORS {
            if row.parent.is_nil() {
                return false;
            }
            match self.find_session(row.parent) {
                Some(parent) if parent.index < row.index => row = parent,
                _ => return true,
            }
        }
        true
    }

    /// The permit whose leaf has this hash.
    pub(crate) fn by_hash(&self, hash: &Hash) -> Option<Permit<'_>> {
        let key = |at: &u32| self.row(*at).hash;
        let found = self.by_hash.binary_search_by_key(hash, key).ok()?;
        Some(self.permit(self.row(*self.by_hash.get(found)?)))
    }

    /// The permit of this session.
    pub(crate) fn by_session(&self, session: SessionId) -> Option<Permit<'_>> {
        self.find_session(session.uuid())
            .map(|row| self.permit(row))
    }

    /// Whether the log has an unread leaf with this hash.
    pub(crate) fn is_unread(&self, hash: &Hash) -> bool {
        self.unread.binary_search(hash).is_ok()
    }

    /// When and how a permit ended, at the latest by its own expiry. The rule is that of
    /// [`crate::domain::validity`], applied to the facts in the leaves.
    pub(crate) fn first_end(&self, permit: &Permit<'_>) -> Ending {
        let mut tasks: Vec<TaskLife> = Vec::new();
        let mut ancestors = Vec::new();
        let mut cut_off: Option<CutOff> = None;
        let mut row = permit.row;
        for step in 0..MAX_ANCESTORS {
            if step > 0 {
                ancestors.push(self.session_life(row));
            }
            let parents = self.chains.get(row.chain as usize);
            let parents = parents.into_iter().flat_map(|chain| chain.iter().copied());
            for task in std::iter::once(row.task).chain(parents) {
                let is_known = tasks.iter().any(|life| life.id == task);
                if !is_known {
                    tasks.push(self.task_life(task));
                }
            }
            let first = self.first_cut_off(row, step > 0);
            cut_off = [cut_off, first]
                .into_iter()
                .flatten()
                .min_by_key(|cut| cut.at);
            match self.find_session(row.parent) {
                Some(parent) if parent.index < row.index => row = parent,
                _ => break,
            }
        }
        let facts = StatusFacts {
            life: self.session_life(permit.row),
            tasks: &TaskChain(tasks),
            cut_off,
            ancestors,
            // `may_have_ended_unseen` covers this case.
            orphaned_at: None,
        };
        facts.first_end()
    }

    /// The session's facts in the leaves. They do not show when an end takes effect at a back end.
    fn session_life(&self, row: &Row) -> SessionLife {
        let ended = first_of(&self.sessions_ended, row.session.uuid());
        SessionLife {
            state: ended.map_or(SessionState::Active, |_| SessionState::Ended),
            end_reason: ended.map(|ended| ended.how),
            ended_at: ended.map(|ended| ended.at),
            confirmed_at: None,
            expires_at: row.expires_at,
            known_after_seconds: None,
        }
    }

    /// The task's facts in the leaves. No permit lives longer than its task's deadline, and a leaf
    /// records when missing heartbeats ended the task.
    fn task_life(&self, task: TaskId) -> TaskLife {
        let ended = first_of(&self.tasks_ended, task.uuid());
        TaskLife {
            id: task,
            state: ended.map_or(TaskState::Open, |ended| ended.how.state()),
            opened_at: Timestamp::EPOCH,
            deadline: Timestamp::MAX,
            heartbeat_seconds: None,
            heard_at: Timestamp::EPOCH,
            ended_at: ended.map(|ended| ended.at),
        }
    }

    /// The first cutoff that matches a permit or a task above it.
    fn first_cut_off(&self, row: &Row, is_above: bool) -> Option<CutOff> {
        let first = |selector: &Selector| self.cut_off(selector, row.index).min();
        let profile = self.profiles.get(row.profile as usize);
        let selectors = profile.into_iter().flat_map(|profile| &profile.selectors);
        let selected = selectors.map(|selector| (first(selector), is_above));
        let parents = self.chains.get(row.chain as usize);
        let parents = parents.into_iter().flat_map(|chain| chain.iter().copied());
        let tasks = std::iter::once((row.task, is_above)).chain(parents.map(|task| (task, true)));
        let tasks = tasks.map(|(task, inherited)| (first(&Selector::Task(task)), inherited));
        let matched = selected
            .chain(tasks)
            .filter_map(|(at, inherited)| Some(CutOff { at: at?, inherited }));
        let accepted = self.accepted.iter().filter_map(|accepted| {
            let ahead = is_dated_ahead(row.at, row.index, &[*accepted]);
            ahead.then_some(CutOff {
                at: accepted.1,
                inherited: is_above,
            })
        });
        matched.chain(accepted).min_by_key(|cut| cut.at)
    }

    fn cut_off(&self, selector: &Selector, after: u64) -> impl Iterator<Item = Timestamp> {
        let none: &[(u64, Timestamp)] = &[];
        let cuts = self.cutoffs.get(selector).map_or(none, Vec::as_slice);
        let from = cuts.partition_point(|(index, _)| *index <= after);
        cuts.iter().skip(from).map(|(_, at)| *at)
    }

    fn find_session(&self, session: Uuid) -> Option<&Row> {
        if session.is_nil() {
            return None;
        }
        let key = |at: &u32| self.row(*at).session.uuid();
        let found = self.by_session.binary_search_by_key(&session, key).ok()?;
        Some(self.row(*self.by_session.get(found)?))
    }

    fn row(&self, at: u32) -> &Row {
        &self.rows[at as usize]
    }

    fn permit<'a>(&'a self, row: &'a Row) -> Permit<'a> {
        Permit {
            row,
            profile: &self.profiles[row.profile as usize],
        }
    }
}

/// The earliest recorded end of `what`.
fn first_of<T: Copy>(all: &[LoggedEnd<T>], what: Uuid) -> Option<LoggedEnd<T>> {
    let from = all.partition_point(|ended| ended.what < what);
    let own = all.iter().skip(from).take_while(|ended| ended.what == what);
    own.min_by_key(|ended| ended.at).copied()
}

fn failure(error: LogFileError) -> AuditError {
    match error {
        LogFileError::Io(error) => AuditError::Unavailable(format!("cannot read the log: {error}")),
        LogFileError::Head(why) => AuditError::Input(format!(
            "the log file has no valid beginning: {}",
            printable(&why)
        )),
        other => AuditError::Disproven(format!(
            "the log cannot be verified: {}",
            printable(&other.to_string())
        )),
    }
}
