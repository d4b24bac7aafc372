//! Judges actions: compares the credential in a record with the log's decisions.
//!
//! An action is *proven* if all of these hold: the signed log has the permit that its credential
//! carries; the permit was decided before the action, by the two clocks; the action is within the
//! permit's grant; neither the credential's expiry nor an entry of the log had ended it. Every
//! other result has its own class, and an action that cannot be judged is never proven.
//!
//! Nothing here fails: a missing fact makes the action *not judged*, with a [`Reason`].
//! [`super::Run`] calls [`Judge::judge`], and [`super::tally`] counts the result.

use std::collections::HashMap;

use super::decisions::{Decisions, Permit};
use super::record::{Credential, Record, RecordedAction, Region, RoleSeen};
use crate::clock::Timestamp;
use crate::domain::action::ActionName;
use crate::domain::grant::AuthorizationDetail;
use crate::domain::location::Location;
use crate::domain::pattern::{self, Budget};
use crate::domain::session::EndReason;
use crate::domain::task::TaskEnd;
use crate::domain::text::printable;
use crate::domain::validity::{EndCause, Ending};

/// The class of a judged action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Class {
    Proven,
    OutsideGrant,
    AfterEnd,
    Unproven,
    /// It could not be judged, and belongs to none of the other four.
    Unjudged,
}

impl Class {
    /// All classes, in the order of the report.
    pub(crate) const ALL: [Self; 5] = [
        Self::Proven,
        Self::OutsideGrant,
        Self::AfterEnd,
        Self::Unproven,
        Self::Unjudged,
    ];

    /// The name of the class in JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Proven => "proven",
            Self::OutsideGrant => "outside_grant",
            Self::AfterEnd => "after_end",
            Self::Unproven => "unproven",
            Self::Unjudged => "unjudged",
        }
    }

    /// The name of the class for people.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Proven => "proven",
            Self::OutsideGrant => "outside the grant",
            Self::AfterEnd => "after the end",
            Self::Unproven => "unproven",
            Self::Unjudged => "not judged",
        }
    }
}

/// The reason for a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Reason {
    Permitted,
    Action,
    Region,
    Location,
    Expired,
    Completed,
    Revoked,
    Superseded,
    Failed,
    TaskOver,
    CutOff,
    NoDecision,
    UnknownDecision,
    UnknownSession,
    NameAlone,
    HashAlone,
    OtherRole,
    Contradiction,
    DecidedLater,
    NoSessionOfAws,
    Unreadable,
    NoTime,
    Unclear,
    NoLocation,
    Pruned,
    AfterLog,
}

impl Reason {
    /// The name of the reason in JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Permitted => "permitted",
            Self::Action => "action",
            Self::Region => "region",
            Self::Location => "place",
            Self::Expired => "expired",
            Self::Completed => "completed",
            Self::Revoked => "revoked",
            Self::Superseded => "superseded",
            Self::Failed => "failed",
            Self::TaskOver => "task_over",
            Self::CutOff => "cut_off",
            Self::NoDecision => "no_decision",
            Self::UnknownDecision => "unknown_decision",
            Self::UnknownSession => "unknown_session",
            Self::NameAlone => "name_alone",
            Self::HashAlone => "hash_alone",
            Self::OtherRole => "other_role",
            Self::Contradiction => "contradiction",
            Self::DecidedLater => "decided_later",
            Self::NoSessionOfAws => "no_session_of_aws",
            Self::Unreadable => "unreadable",
            Self::NoTime => "no_time",
            Self::Unclear => "unclear",
            Self::NoLocation => "no_place",
            Self::Pruned => "pruned",
            Self::AfterLog => "after_log",
        }
    }
}

/// The verdict on one action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Judgement {
    pub(crate) class: Class,
    pub(crate) reason: Reason,
    /// The reason as a sentence.
    pub(crate) told: String,
    /// The index of the permit's leaf; `None` if no permit was found.
    pub(crate) leaf: Option<u64>,
    /// The workload and the resource of the permit.
    pub(crate) of: Option<(String, String)>,
    /// Whether the class would be worse without the allowance for clock differences.
    pub(crate) within_skew: bool,
    /// Whether the same AWS session was created before.
    pub(crate) made_again: bool,
}

impl Judgement {
    fn new(class: Class, reason: Reason, told: impl Into<String>) -> Self {
        Self {
            class,
            reason,
            told: told.into(),
            leaf: None,
            of: None,
            within_skew: false,
            made_again: false,
        }
    }

    /// The verdict on a record that could not be read.
    pub(crate) fn unreadable(why: &str) -> Self {
        Self::new(Class::Unjudged, Reason::Unreadable, why)
    }
}

/// The most answers that are cached, because logs repeat themselves. A full cache is emptied.
const MAX_ANSWERS: usize = 4_096;

/// Judges actions by the decisions of one log.
#[derive(Debug)]
pub(crate) struct Judge<'a> {
    decisions: &'a Decisions,
    skew_seconds: u64,
    /// The time up to which the log is known to be complete.
    until: Option<Timestamp>,
    answers: HashMap<(u32, ActionName, Location, Region), bool>,
    /// The permits whose AWS session was seen to be created: one bit for each leaf of the log.
    made: Vec<u64>,
}

impl<'a> Judge<'a> {
    /// A judge for this log, which was complete at `as_of` or later.
    pub(crate) fn new(
        decisions: &'a Decisions,
        skew_seconds: u64,
        as_of: Option<Timestamp>,
    ) -> Self {
        Self {
            decisions,
            skew_seconds,
            until: decisions.last_at().max(as_of),
            answers: HashMap::new(),
            made: Vec::new(),
        }
    }

    /// The time up to which the log is known to be complete.
    pub(crate) fn until(&self) -> Option<Timestamp> {
        self.until
    }

    pub(crate) fn judge(&mut self, record: &Record) -> Judgement {
        if record.credential.is_empty() {
            return Judgement::new(
                Class::Unproven,
                Reason::NoDecision,
                "it carries no decision: the broker was not asked",
            );
        }
        let permit = match self.permit(record) {
            Ok(permit) => permit,
            Err(verdict) => return verdict,
        };
        let mut verdict = match record.at {
            Ok(at) => self.judge_permitted(record, at, &permit),
            Err(why) => match self.within(record, &permit) {
                // The action was not granted at any time.
                Err((Class::OutsideGrant, reason, told)) => {
                    Judgement::new(Class::OutsideGrant, reason, told)
                }
                _ => Judgement::new(Class::Unjudged, Reason::NoTime, why),
            },
        };
        let made = verdict.class == Class::Proven && record.recorded_action == RecordedAction::Mint;
        verdict.made_again = made && self.was_made(permit.index());
        verdict.leaf = Some(permit.index());
        verdict.of = Some((permit.workload().to_owned(), permit.resource().to_owned()));
        verdict
    }

    /// Records that a session was created. Returns whether it had been created before.
    fn was_made(&mut self, leaf: u64) -> bool {
        let (word, bit) = (leaf / 64, 1 << (leaf % 64));
        let Ok(word) = usize::try_from(word) else {
            return false;
        };
        if self.made.len() <= word {
            self.made.resize(word + 1, 0);
        }
        let before = self.made.get(word).is_some_and(|bits| bits & bit != 0);
        if let Some(bits) = self.made.get_mut(word) {
            *bits |= bit;
        }
        before
    }

    /// Finds the permit that a record's credential carries.
    fn permit(&self, record: &Record) -> Result<Permit<'a>, Judgement> {
        let credential = &record.credential;
        let unproven = |reason, told: &str| Judgement::new(Class::Unproven, reason, told);
        let contradiction = || {
            unproven(
                Reason::Contradiction,
                "its session and its decision belong to different permits",
            )
        };
        if credential.contradictory {
            return Err(contradiction());
        }
        if credential.needs_both && credential.hash.is_none() {
            return Err(unproven(
                Reason::NameAlone,
                "its session has a name in the broker's form but no source identity, which the broker's \
                 sessions have: any principal that may assume a role can choose the name",
            ));
        }
        if credential.needs_both && credential.session.is_none() {
            return Err(unproven(
                Reason::HashAlone,
                "its source identity is that of a decision, but its session does not have the broker's \
                 name: the source identity stays with a session that assumes other roles",
            ));
        }
        if credential.foreign {
            return Err(unproven(
                Reason::Contradiction,
                "next to the broker's values it has a foreign value in a member for the broker's",
            ));
        }
        let permit = self.find(record, &contradiction)?;
        if credential.named && !permit.is_aws() {
            return Err(no_session_of_aws());
        }
        if permit.is_aws() {
            check_role(credential, &permit)?;
        }
        Ok(permit)
    }

    fn find(
        &self,
        record: &Record,
        contradiction: &dyn Fn() -> Judgement,
    ) -> Result<Permit<'a>, Judgement> {
        let (credential, at) = (&record.credential, record.at);
        let by_hash = credential.hash.map(|hash| {
            self.decisions.by_hash(&hash).ok_or_else(|| {
                if self.decisions.is_unread(&hash) {
                    return Judgement::new(
                        Class::Unjudged,
                        Reason::Pruned,
                        "its decision is in the log, but was pruned or cannot be read",
                    );
                }
                self.missing(at, Reason::UnknownDecision)
            })
        });
        let by_session = credential.session.map(|session| {
            let found = self.decisions.by_session(session);
            found.ok_or_else(|| self.missing(at, Reason::UnknownSession))
        });
        match (by_hash, by_session) {
            (Some(one), Some(other)) => {
                let one = one?;
                let other = other.map_err(|_| contradiction())?;
                if one.index() != other.index() {
                    return Err(contradiction());
                }
                Ok(one)
            }
            (Some(one), None) | (None, Some(one)) => one,
            (None, None) => Err(contradiction()),
        }
    }

    /// The verdict on a record whose decision the log does not hold.
    fn missing(&self, at: Result<Timestamp, &'static str>, reason: Reason) -> Judgement {
        match at {
            Err(why) => return Judgement::new(Class::Unjudged, Reason::NoTime, why),
            Ok(at) if self.is_after_log(at) => return self.after_log(),
            Ok(_) => {}
        }
        // The hash of an unread leaf is known, so only a session can be in an unread leaf.
        if reason == Reason::UnknownSession && self.decisions.has_gaps() {
            return Judgement::new(
                Class::Unjudged,
                Reason::Pruned,
                "its decision may be among the leaves whose bodies could not be read",
            );
        }
        let told = match reason {
            Reason::UnknownDecision => "no permit in the log has the hash that it carries",
            _ => "no permit in the log is for the session that it names",
        };
        Judgement::new(Class::Unproven, reason, told)
    }

    /// Clock differences are not allowed for here: an action that is later by the record's own
    /// clock may have been ended by then.
    fn is_after_log(&self, at: Timestamp) -> bool {
        self.until.is_none_or(|until| at > until)
    }

    fn after_log(&self) -> Judgement {
        let until = self.until.map_or_else(String::new, |at| format!(", {at}"));
        Judgement::new(
            Class::Unjudged,
            Reason::AfterLog,
            format!("it is later than the last entry of the log{until}: later entries are unknown"),
        )
    }

    fn judge_permitted(
        &mut self,
        record: &Record,
        at: Timestamp,
        permit: &Permit<'_>,
    ) -> Judgement {
        if at.plus_seconds(self.skew_seconds) < permit.at() {
            return Judgement::new(
                Class::Unproven,
                Reason::DecidedLater,
                format!("its permit was decided later, at {}", permit.at()),
            );
        }
        let mut end = self.decisions.first_end(permit);
        if let Some(own) = record.credential.expires_at.filter(|own| *own < end.at) {
            end = Ending {
                at: own,
                cause: EndCause::Expired,
                inherited: false,
            };
        }
        if at > end.at.plus_seconds(self.skew_seconds) {
            let (reason, told) = told(end);
            return Judgement::new(Class::AfterEnd, reason, told);
        }
        let within = self.within(record, permit);
        if let Err((class, reason, told)) = within {
            return Judgement::new(class, reason, told);
        }
        if self.decisions.may_have_ended_unseen(permit) {
            return Judgement::new(
                Class::Unjudged,
                Reason::Pruned,
                "the bodies that could not be read may include one that ended it",
            );
        }
        if self.is_after_log(at) {
            return self.after_log();
        }
        let mut verdict = Judgement::new(
            Class::Proven,
            Reason::Permitted,
            format!("permitted at {}, by leaf {}", permit.at(), permit.index()),
        );
        verdict.within_skew = at < permit.at() || at > end.at;
        verdict
    }

    /// Whether the action is within the grant. An action that is certainly outside is reported as
    /// such, even if other facts about it are unknown.
    fn within(
        &mut self,
        record: &Record,
        permit: &Permit<'_>,
    ) -> Result<(), (Class, Reason, String)> {
        let outside = |reason, told: String| Err((Class::OutsideGrant, reason, told));
        let unjudged = |reason, why: &str| Err((Class::Unjudged, reason, why.to_owned()));
        let details = permit.grant().details();
        let granted = |action: &ActionName| details.iter().any(|detail| gives(detail, action));
        let (action, locations, named, unclear) = match &record.recorded_action {
            RecordedAction::Mint if permit.is_aws() => return Ok(()),
            RecordedAction::Mint => {
                let Judgement {
                    class,
                    reason,
                    told,
                    ..
                } = no_session_of_aws();
                return Err((class, reason, told));
            }
            RecordedAction::Unclear { why, needs } => {
                return match needs.first() {
                    Some(first) if !needs.iter().any(granted) => {
                        outside(Reason::Action, format!("{first} was not granted"))
                    }
                    _ => unjudged(Reason::Unclear, why),
                };
            }
            RecordedAction::Rights {
                action,
                locations,
                named,
                unclear,
            } => (action, locations, *named, *unclear),
        };
        let region = &record.region;
        if !granted(action) {
            return outside(Reason::Action, format!("{action} was not granted"));
        }
        let here = details
            .iter()
            .filter(|detail| region.can_be_within(detail.region()) && gives(detail, action));
        if here.clone().next().is_none() {
            let region = region.name().unwrap_or("an unnamed region");
            return outside(
                Reason::Region,
                format!("{action} was not granted in {region}"),
            );
        }
        let elsewhere = |location: &Location| {
            let mut own = here.clone().flat_map(AuthorizationDetail::locations);
            named
                || !own.any(|own| {
                    pattern::overlap_within(
                        own.as_str(),
                        location.as_str(),
                        &Budget::of_one_comparison(),
                    )
                })
        };
        let mut everywhere = !locations.is_empty();
        for location in locations {
            if self.permits(permit, action, location, region) {
                continue;
            }
            if elsewhere(location) {
                return outside(Reason::Location, format!("{action} was not granted there"));
            }
            everywhere = false;
        }
        if let Some(why) = unclear {
            return unjudged(Reason::Unclear, why);
        }
        if !everywhere {
            return unjudged(Reason::NoLocation, "it does not name its object");
        }
        let surely = |location| self.permits(permit, action, location, &Region::Unnamed);
        if *region == Region::Unclear && !locations.iter().all(surely) {
            return unjudged(Reason::Unclear, "its region is not a valid region");
        }
        Ok(())
    }

    fn permits(
        &mut self,
        permit: &Permit<'_>,
        action: &ActionName,
        location: &Location,
        region: &Region,
    ) -> bool {
        let key = (
            permit.profile(),
            action.clone(),
            location.clone(),
            region.clone(),
        );
        if let Some(known) = self.answers.get(&key) {
            return *known;
        }
        if self.answers.len() >= MAX_ANSWERS {
            self.answers.clear();
        }
        let answer = permit.grant().details().iter().any(|detail| {
            region.can_be_within(detail.region())
                && gives(detail, action)
                && detail
                    .locations()
                    .iter()
                    .any(|own| own.covers_within(location, &Budget::of_one_comparison()))
        });
        self.answers.insert(key, answer);
        answer
    }
}

/// Whether one detail of a grant permits this action.
fn gives(detail: &AuthorizationDetail, action: &ActionName) -> bool {
    let of = detail.detail_type();
    let mut all = detail.actions().iter();
    all.any(|own| of.covers_action(own, action, &Budget::of_one_comparison()))
}

/// An AWS session must belong to the role of its decision, because callers in any account can
/// choose names and source identities.
fn check_role(credential: &Credential, permit: &Permit<'_>) -> Result<(), Judgement> {
    let decided = permit.audience();
    if let Some(other) = credential.roles.iter().find(|seen| !seen.is(decided)) {
        let other = printable(&other.to_string());
        let told = format!("its session belongs to {other}, but its decision is for {decided}");
        return Err(Judgement::new(Class::Unproven, Reason::OtherRole, told));
    }
    // A mapping that names the location of the session makes it trustworthy.
    let named = credential.roles.iter().any(RoleSeen::names_a_role);
    if credential.needs_both && !named {
        let told = "it does not name the role of its session";
        return Err(Judgement::new(Class::Unproven, Reason::OtherRole, told));
    }
    Ok(())
}

fn no_session_of_aws() -> Judgement {
    Judgement::new(
        Class::Unproven,
        Reason::NoSessionOfAws,
        "the permit that it names is not for an AWS session",
    )
}

fn told(end: Ending) -> (Reason, String) {
    let (reason, what) = match end.cause {
        EndCause::Expired | EndCause::Recorded(EndReason::Expired) => (Reason::Expired, "expired"),
        EndCause::Recorded(EndReason::Completed) => (Reason::Completed, "was completed"),
        EndCause::Recorded(EndReason::Revoked) => (Reason::Revoked, "was revoked"),
        EndCause::Recorded(EndReason::Superseded) => (Reason::Superseded, "was superseded"),
        EndCause::Recorded(EndReason::Failed) => (Reason::Failed, "was never confirmed"),
        EndCause::Task(TaskEnd::Complete) => (
            Reason::TaskOver,
            "ended with its task, which was completed,",
        ),
        EndCause::Task(TaskEnd::Abort) => {
            (Reason::TaskOver, "ended with its task, which was aborted,")
        }
        EndCause::Task(TaskEnd::Expire) => {
            (Reason::TaskOver, "ended with its task, which expired,")
        }
        EndCause::CutOff => (Reason::CutOff, "was cut off"),
    };
    let whose = if end.inherited {
        "the credential from which it was derived"
    } else {
        "its credential"
    };
    (reason, format!("{whose} {what} at {}", end.at))
}
