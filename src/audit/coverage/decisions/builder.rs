//! Builds the decisions from the entries of a log.
//!
//! An entry of another log, of an earlier format version, or with a session that an earlier permit
//! has is [`AuditError::Disproven`]; a log that needs more memory than permitted is
//! [`AuditError::Unavailable`]. Only [`super::Decisions::read`] calls this file.

use std::collections::HashMap;
use std::mem::size_of;

use uuid::Uuid;

use super::{Decisions, LoggedEnd, Profile, Row};
use crate::audit::AuditError;
use crate::clock::Timestamp;
use crate::domain::cutoff::{Selector, SelectorSubject};
use crate::domain::grant::Grant;
use crate::domain::kind::MinterKind;
use crate::domain::leaf::{DecisionLeaf, Effect, Leaf, LeafError};
use crate::domain::session::EndReason;
use crate::domain::text::printable;
use crate::ids::{SessionId, TaskId};
use crate::merkle::{Hash, LogEntry, leaf_hash};

/// Builds [`Decisions`] from the entries of a log.
pub(super) struct Builder {
    all: Decisions,
    profiles: HashMap<Hash, u32>,
    chains: HashMap<Vec<TaskId>, u32>,
    bytes: usize,
    most: usize,
}

impl Builder {
    /// Completes `all`. `most` limits the bytes that are kept.
    pub(super) fn new(all: Decisions, most: usize) -> Self {
        Self {
            all,
            profiles: HashMap::new(),
            chains: HashMap::new(),
            bytes: 0,
            most,
        }
    }

    /// Adds the decision or the end that an entry of the log records.
    pub(super) fn take(&mut self, entry: &LogEntry) -> Result<(), AuditError> {
        let leaf = match entry.leaf.as_deref().map(Leaf::from_bytes) {
            Some(Ok(leaf)) => leaf,
            Some(Err(error @ LeafError::Earlier { .. })) => {
                let told = format!("leaf {}: {error}", entry.index);
                return Err(AuditError::Disproven(told));
            }
            unread => {
                self.all.unknown += u64::from(unread.is_some());
                self.all.last_unread = Some(entry.index);
                return self.keep(|all| &mut all.unread, entry.hash);
            }
        };
        if leaf.origin != self.all.origin {
            return Err(AuditError::Disproven(format!(
                "leaf {} belongs to another log than {}",
                entry.index,
                printable(&self.all.origin)
            )));
        }
        self.all.last_at = self.all.last_at.max(Some(leaf.at));
        match leaf.event.facets().effect {
            Effect::Permits(decision) => self.permit(entry.index, entry.hash, leaf.at, decision),
            Effect::Begins(succeeds) => {
                self.all.succeeds = succeeds.map(|former| former.origin.clone());
                Ok(())
            }
            Effect::EndsTasks(tasks, end) => tasks.iter().try_for_each(|task| {
                let ended = LoggedEnd {
                    what: task.uuid(),
                    at: leaf.at,
                    how: end,
                };
                self.keep(|all| &mut all.tasks_ended, ended)
            }),
            Effect::EndsSession(session, reason) => self.end_session(session, leaf.at, reason),
            Effect::CutsOff(selector) => {
                self.spend(size_of::<Selector>() + selector.value().len() + 64)?;
                let cuts = self.all.cutoffs.entry(selector.clone()).or_default();
                cuts.push((entry.index, leaf.at));
                Ok(())
            }
            Effect::CutsOffIssuedAfter(accepted) => {
                self.spend(2 * size_of::<(u64, Timestamp)>())?;
                self.all.accepted.push((entry.index, accepted));
                Ok(())
            }
            // None of these ends a credential. The withdrawal of a key is recorded with a cutoff.
            Effect::AddsKey(_) | Effect::EndsKey | Effect::Nothing => Ok(()),
        }
    }

    fn end_session(
        &mut self,
        session: SessionId,
        at: Timestamp,
        reason: EndReason,
    ) -> Result<(), AuditError> {
        let ended = LoggedEnd {
            what: session.uuid(),
            at,
            how: reason,
        };
        self.keep(|all| &mut all.sessions_ended, ended)
    }

    fn permit(
        &mut self,
        index: u64,
        hash: Hash,
        at: Timestamp,
        leaf: &DecisionLeaf,
    ) -> Result<(), AuditError> {
        if let Some(old) = leaf.supersedes {
            self.end_session(old, at, EndReason::Superseded)?;
        }
        // Opening a task without a credential is a permit, too, but no credential carries it.
        let (Some(session), Some(task), Some(expires_at), Some(grant)) =
            (leaf.session, leaf.task, leaf.expires_at, &leaf.grant)
        else {
            return Ok(());
        };
        let profile = self.profile(leaf, grant)?;
        let chain = self.chain(&leaf.task_parents)?;
        let row = Row {
            hash,
            session,
            task,
            parent: leaf.parent_session.map_or(Uuid::nil(), SessionId::uuid),
            at,
            expires_at,
            index,
            profile,
            chain,
        };
        // Two positions in the orders, which are created at the end.
        self.spend(2 * size_of::<u32>())?;
        self.keep(|all| &mut all.rows, row)
    }

    fn profile(&mut self, leaf: &DecisionLeaf, grant: &Grant) -> Result<u32, AuditError> {
        let minter = leaf.minter.as_deref().unwrap_or_default();
        let resource = leaf.resource.clone().unwrap_or_default();
        let audience = leaf.audience.clone().unwrap_or_default();
        let text = serde_json::to_vec(&(
            (&leaf.workload, &leaf.attestor, &resource, &audience, grant),
            (&leaf.generation, &leaf.kid, &leaf.policies, minter),
        ));
        let text = text.map_err(AuditError::unavailable)?;
        let key = leaf_hash(&text);
        if let Some(known) = self.profiles.get(&key) {
            return Ok(*known);
        }
        // The text, the parsed form, and the selectors, which repeat most of it.
        self.spend(4 * text.len() + size_of::<Profile>() + 64)?;
        let subject = SelectorSubject {
            workload: &leaf.workload,
            attestor: &leaf.attestor,
            resource: &resource,
            generation: leaf.generation,
            policies: &leaf.policies,
            kid: leaf.kid.as_deref(),
        };
        let selectors = subject.selectors();
        let number = number(self.all.profiles.len())?;
        self.all.profiles.push(Profile {
            grant: grant.clone(),
            resource,
            audience,
            workload: leaf.workload.clone(),
            aws: match MinterKind::parse(minter) {
                Some(MinterKind::Aws) => true,
                Some(MinterKind::Jwt) | None => false,
            },
            selectors,
        });
        self.profiles.insert(key, number);
        Ok(number)
    }

    fn chain(&mut self, parents: &[TaskId]) -> Result<u32, AuditError> {
        if let Some(known) = self.chains.get(parents) {
            return Ok(*known);
        }
        self.spend(2 * size_of_val(parents) + 96)?;
        let number = number(self.all.chains.len())?;
        self.all.chains.push(parents.into());
        self.chains.insert(parents.to_vec(), number);
        Ok(number)
    }

    /// Adds an element. The capacity grows by a quarter: doubling would temporarily need three
    /// times the present size.
    fn keep<T>(
        &mut self,
        list: impl FnOnce(&mut Decisions) -> &mut Vec<T>,
        one: T,
    ) -> Result<(), AuditError> {
        self.spend(size_of::<T>())?;
        let list = list(&mut self.all);
        if list.len() == list.capacity() {
            list.reserve_exact((list.len() / 4).max(64));
        }
        list.push(one);
        Ok(())
    }

    fn spend(&mut self, bytes: usize) -> Result<(), AuditError> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > self.most {
            return Err(AuditError::Unavailable(format!(
                "the log's first {} permits need more than {} MiB: raise the limit with --index-mib",
                self.all.rows.len(),
                self.most / (1024 * 1024)
            )));
        }
        Ok(())
    }

    /// Sorts the entries. Fails if two permits have the same session.
    pub(super) fn finish(self) -> Result<Decisions, AuditError> {
        let mut all = self.all;
        let count = number(all.rows.len())?;
        let mut by_hash: Vec<u32> = (0..count).collect();
        let mut by_session = by_hash.clone();
        by_hash.sort_unstable_by_key(|at| all.row(*at).hash);
        by_session.sort_unstable_by_key(|at| all.row(*at).session.uuid());
        let twice = by_session
            .iter()
            .zip(by_session.iter().skip(1))
            .find(|(one, next)| all.row(**one).session == all.row(**next).session);
        if let Some((one, next)) = twice {
            return Err(AuditError::Disproven(format!(
                "the log's leaves {} and {} permit the same session",
                all.row(*one).index,
                all.row(*next).index
            )));
        }
        (all.by_hash, all.by_session) = (by_hash, by_session);
        all.sessions_ended.sort_unstable_by_key(|ended| ended.what);
        all.tasks_ended.sort_unstable_by_key(|ended| ended.what);
        all.unread.sort_unstable();
        Ok(all)
    }
}

fn number(count: usize) -> Result<u32, AuditError> {
    u32::try_from(count)
        .map_err(|_| AuditError::Unavailable("the log has more permits than can be kept".into()))
}
