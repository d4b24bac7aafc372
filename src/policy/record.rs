//! A recorded decision: the contents of its leaf's commitment, reading it, and reproducing it.
//!
//! A decision's leaf commits to the complete input of the evaluation and, if its subject may not
//! read them, to the policies that refused ([`committed`]). With the generation, this reproduces
//! the decision. To test whether it is *the same* decision, the leaf is written again from the
//! result, and its bytes must equal the recorded ones ([`Recorded::reproduce`]).
//!
//! Policy did not make two kinds of refusal, so these are not reproduced:
//! - Refusals before policy was evaluated (no such resource, a task that has ended). Their input is
//!   only their code.
//! - Refusals by the log, where the request became impossible between policy's permit and its
//!   append (a cutoff, no budget left). In their commitment no policies follow the input. Policy's
//!   own answer, a permit, is reproduced instead.
//!
//! A record that is pruned, malformed or does not match its commitment is a [`RecordError`]; a
//! decision that differs is [`NotReproduced`] with each difference. `broker::issuance` calls
//! [`committed`]; the offline commands read records. Whether the leaf is in the log is not checked
//! here: the caller compares it with its hash.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::error::PolicyError;
use super::generation::CompiledGeneration;
use super::input::Input;
use crate::clock::Timestamp;
use crate::crypto::digest::salted;
use crate::domain::decision::{Decision, Outcome, Refusal, RefusalCode};
use crate::domain::generation_digest::GenerationDigest;
use crate::domain::grant::Grant;
use crate::domain::leaf::{Commitment, DecisionLeaf, Event, Leaf, RecordedDecision, TaskLeaf};
use crate::domain::record::Record;
use crate::domain::workload::Identity;
use crate::ids::DecisionId;

/// The bytes that a decision's leaf commits to: the input and, if its subject may not read them,
/// the policies.
#[must_use]
pub fn committed(decision: &Decision) -> Vec<u8> {
    if decision.verdict.is_ok() {
        return decision.input.clone();
    }
    let mut bytes = decision.input.clone();
    bytes.push(b'\n');
    bytes.extend(serde_json::to_vec(&decision.policies).unwrap_or_default());
    bytes
}

const BEFORE_POLICY: &str = "refused_before_policy";

/// The input of a refusal before policy was evaluated.
#[must_use]
pub fn before_policy(code: RefusalCode) -> Vec<u8> {
    format!(r#"{{"{BEFORE_POLICY}":"{}"}}"#, code.as_str()).into_bytes()
}

/// A record that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// A part of the record was deleted after its retention. Hashes and proofs remain.
    #[error("{0} was pruned after its retention, so that this decision cannot be made again")]
    Pruned(&'static str),
    /// The record is not that of a decision. The text says why.
    #[error("not the record of a decision: {0}")]
    Malformed(String),
    /// The given opening does not match the leaf's commitment.
    #[error("the input is not the one that the leaf commits to: it was changed after the decision")]
    NotTheInput,
}

/// A decision that could not be reproduced.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the other names say it all")]
pub enum NotReproduced {
    /// The given generation is not the one that decided.
    #[error("generation {found} is not {recorded}, which decided")]
    OtherGeneration {
        recorded: GenerationDigest,
        found: GenerationDigest,
    },
    /// The recorded bytes are not the input of an evaluation.
    #[error(transparent)]
    Input(#[from] PolicyError),
    /// The result differs. Each text names a difference: `member: recorded …, again …`.
    #[error("the decision differs when it is made again: {}", .0.join("; "))]
    Different(Vec<String>),
}

/// The origin of a recorded outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DecidedBy {
    /// Policy was evaluated, and decided.
    Policy,
    /// Policy was not evaluated: the request was refused before, with this code.
    Never(RefusalCode),
    /// Policy permitted, and the log refused under its lock, with this code.
    Overtaken(RefusalCode),
}

/// A recorded decision with its opened input.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// Leaf index in the log.
    pub index: u64,
    leaf: Leaf,
    bytes: Vec<u8>,
    salt: [u8; 16],
    input: Vec<u8>,
    decided_by: DecidedBy,
}

impl Recorded {
    /// Reads a record. The caller has compared the leaf with its hash, if that matters.
    pub fn open(record: &Record) -> Result<Self, RecordError> {
        let malformed = |what: &str| RecordError::Malformed(what.to_owned());
        let decode = |text: &str, what| STANDARD.decode(text).map_err(|_| malformed(what));
        let leaf = record.leaf.as_deref();
        let bytes = decode(leaf.ok_or(RecordError::Pruned("its leaf"))?, "leaf")?;
        let leaf =
            Leaf::from_bytes(&bytes).map_err(|error| RecordError::Malformed(error.to_string()))?;
        let (Some(salt), Some(opened)) = (&record.salt, &record.input) else {
            return Err(RecordError::Pruned("its input"));
        };
        let salt: [u8; 16] = decode(salt, "salt")?
            .try_into()
            .map_err(|_| malformed("salt"))?;
        let opened = decode(opened, "input")?;
        let (commitment, refusal) = match leaf.event.facets().decision {
            Some(RecordedDecision::Request(decision)) => (&decision.input, decision.refusal),
            Some(RecordedDecision::TaskOpened(task)) => (&task.input, None),
            None => return Err(malformed("its leaf is not that of a decision")),
        };
        if commitment.0 != salted(&salt, &opened) {
            return Err(RecordError::NotTheInput);
        }
        // The recorded JSON has no line feed.
        let end = opened.iter().position(|byte| *byte == b'\n');
        let input = opened.get(..end.unwrap_or(opened.len()));
        let input = input.unwrap_or_default().to_vec();
        let decided_by = match (never_asked(&input), refusal, end) {
            (Some(said), Some(code), _) if said == code.as_str() => DecidedBy::Never(code),
            (Some(_), Some(_), _) => {
                return Err(malformed(
                    "its refusal code differs from the one in its input",
                ));
            }
            (None, Some(code), None) => DecidedBy::Overtaken(code),
            (None, _, _) => DecidedBy::Policy,
            (Some(_), None, _) => {
                return Err(malformed("it is a permit without an evaluation of policy"));
            }
        };
        Ok(Self {
            index: record.index,
            leaf,
            bytes,
            salt,
            input,
            decided_by,
        })
    }

    /// The origin of its outcome.
    #[must_use]
    pub fn decided_by(&self) -> &DecidedBy {
        &self.decided_by
    }

    /// The input of the evaluation.
    #[must_use]
    pub fn input(&self) -> &[u8] {
        &self.input
    }

    /// The time of the decision.
    #[must_use]
    pub fn at(&self) -> Timestamp {
        self.leaf.at
    }

    fn recorded(&self) -> Option<RecordedDecision<'_>> {
        self.leaf.event.facets().decision
    }

    /// The decision's id.
    #[must_use]
    pub fn decision(&self) -> Option<DecisionId> {
        self.recorded().map(|recorded| match recorded {
            RecordedDecision::Request(decision) => decision.decision,
            RecordedDecision::TaskOpened(task) => task.decision,
        })
    }

    /// The caller's identity.
    #[must_use]
    pub fn workload(&self) -> Option<&Identity> {
        self.recorded().map(|recorded| match recorded {
            RecordedDecision::Request(decision) => &decision.workload,
            RecordedDecision::TaskOpened(task) => &task.workload,
        })
    }

    /// The requested resource. `None` if the request only opened a task, or if it named no
    /// registered resource.
    #[must_use]
    pub fn resource(&self) -> Option<&str> {
        self.credential().and_then(|leaf| leaf.resource.as_deref())
    }

    /// The digest of the generation that decided.
    #[must_use]
    pub fn generation(&self) -> Option<GenerationDigest> {
        self.recorded().map(|recorded| match recorded {
            RecordedDecision::Request(decision) => decision.generation,
            RecordedDecision::TaskOpened(task) => task.generation,
        })
    }

    /// The outcome, and for a refusal its code.
    #[must_use]
    pub fn outcome(&self) -> (Outcome, Option<RefusalCode>) {
        self.credential()
            .map_or((Outcome::Permit, None), |leaf| (leaf.outcome, leaf.refusal))
    }

    /// The policies that permitted, as the leaf names them.
    #[must_use]
    pub fn policies(&self) -> &[String] {
        match self.recorded() {
            Some(RecordedDecision::Request(decision)) => &decision.policies,
            Some(RecordedDecision::TaskOpened(task)) => &task.policies,
            None => &[],
        }
    }

    /// The granted life in seconds; `None` for a refusal, or if the request only opened a task.
    #[must_use]
    pub fn granted_seconds(&self) -> Option<u64> {
        let until = self.credential().and_then(|leaf| leaf.expires_at);
        until.map(|until| self.leaf.at.floor_to_second().seconds_until(until))
    }

    /// The leaf of a decision about a credential, or of a refusal. `None` for the permit to open a
    /// task without a credential.
    #[must_use]
    pub fn credential(&self) -> Option<&DecisionLeaf> {
        match self.recorded()? {
            RecordedDecision::Request(decision) => Some(decision),
            RecordedDecision::TaskOpened(_) => None,
        }
    }

    /// Decides again by the generation that decided, and compares the result with the record, byte
    /// for byte. `None` if policy was not evaluated.
    pub fn reproduce(
        &self,
        generation: &CompiledGeneration,
    ) -> Result<Option<Decision>, NotReproduced> {
        if let Some(recorded) = self.generation()
            && recorded != generation.digest()
        {
            return Err(NotReproduced::OtherGeneration {
                recorded,
                found: generation.digest(),
            });
        }
        if let DecidedBy::Never(_) = self.decided_by {
            return Ok(None);
        }
        let input = Input::read(&self.input)?;
        let decision = generation.redecide(&self.input)?;
        let again = Leaf {
            at: input.now,
            event: self.event(&input, &decision),
            ..self.leaf.clone()
        };
        match again.to_bytes() {
            Ok(bytes) if bytes == self.bytes => Ok(Some(decision)),
            Ok(bytes) => Err(NotReproduced::Different(differences(&self.bytes, &bytes))),
            Err(error) => Err(NotReproduced::Different(vec![error.to_string()])),
        }
    }

    /// The leaf's event, with every value that the evaluation determines taken from it.
    fn event(&self, input: &Input, decision: &Decision) -> Event {
        let commitment = Commitment(salted(&self.salt, &committed(decision)));
        let permitted = decision.verdict.as_ref().ok();
        match self.recorded() {
            // If the commitment's contents changed (policies follow the input), the commitment must
            // differ too.
            Some(RecordedDecision::TaskOpened(task)) => Event::TaskOpened(Box::new(TaskLeaf {
                task_type: input.task.task_type.clone(),
                workload: input.principal.identity.clone(),
                attestor: input.principal.attestor.clone(),
                generation: decision.generation,
                policies: decision.policies.clone(),
                input: commitment,
                ..task.clone()
            })),
            Some(RecordedDecision::Request(leaf)) => {
                let mut leaf = leaf.clone();
                if !matches!(self.decided_by, DecidedBy::Overtaken(_)) {
                    leaf.outcome = decision.outcome();
                    leaf.refusal = refusal(decision).map(|refusal| refusal.code);
                    leaf.policies = match permitted {
                        Some(_) => decision.policies.clone(),
                        None => Vec::new(),
                    };
                    leaf.expires_at = permitted.map(|permitted| {
                        let issued_at = input.now.floor_to_second();
                        issued_at.plus_seconds(permitted.ttl_seconds)
                    });
                    let details = input.credential.as_ref().filter(|_| permitted.is_some());
                    leaf.grant = details.and_then(|asked| {
                        Grant::try_from(asked.authorization_details.clone()).ok()
                    });
                    leaf.revocability = details.map(|asked| asked.revocability);
                }
                leaf.workload = input.principal.identity.clone();
                leaf.attestor.clone_from(&input.principal.attestor);
                leaf.resource = input
                    .credential
                    .as_ref()
                    .map(|asked| asked.resource.clone());
                leaf.generation = decision.generation;
                leaf.observed.clone_from(&decision.observed);
                leaf.input = commitment;
                Event::Decision(Box::new(leaf))
            }
            None => self.leaf.event.clone(),
        }
    }
}

fn refusal(decision: &Decision) -> Option<&Refusal> {
    decision.verdict.as_ref().err()
}

/// The code of a refusal before policy was evaluated; `None` if the input is that of an evaluation.
fn never_asked(input: &[u8]) -> Option<String> {
    let read: Value = serde_json::from_slice(input).ok()?;
    let code = read.get(BEFORE_POLICY)?;
    Some(code.as_str().unwrap_or_default().to_owned())
}

/// The time of a decision whose leaf remains, even if other parts of its record were pruned. `None`
/// if the leaf was pruned or cannot be read.
#[must_use]
pub fn decided_at(record: &Record) -> Option<Timestamp> {
    let bytes = STANDARD.decode(record.leaf.as_deref()?).ok()?;
    let leaf = Leaf::from_bytes(&bytes).ok()?;
    Some(leaf.at)
}

/// The members in which two leaves differ.
fn differences(recorded: &[u8], again: &[u8]) -> Vec<String> {
    let read = |bytes| serde_json::from_slice::<Value>(bytes).unwrap_or_default();
    let (recorded, again) = (read(recorded), read(again));
    let members = |value: &Value| -> Vec<String> {
        value
            .as_object()
            .into_iter()
            .flatten()
            .map(|(name, _)| name.clone())
            .collect()
    };
    let mut names = members(&recorded);
    names.extend(members(&again));
    names.sort();
    names.dedup();
    let text = |value: Option<&Value>| value.map_or_else(|| "nothing".to_owned(), Value::to_string);
    let mut found: Vec<String> = names
        .iter()
        .filter(|name| recorded.get(name.as_str()) != again.get(name.as_str()))
        .map(|name| {
            let (was, is) = (recorded.get(name.as_str()), again.get(name.as_str()));
            format!("{name}: recorded {}, again {}", text(was), text(is))
        })
        .collect();
    if found.is_empty() {
        found.push("the leaf's members are equal, but its bytes differ".to_owned());
    }
    found
}
