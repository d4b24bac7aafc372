//! Policies about single values, evaluated for requests that name many values at once.
//!
//! One request can ask for many locations, actions and regions: a URL covers everything below it, a
//! pattern covers everything it matches, and an omitted member covers everything registered. A
//! policy compares with single values: `context.location like "https://h/v1/payroll/*"`. A grant
//! must not include any value that policy would refuse if it were requested alone. Therefore a
//! policy is evaluated for *all requested values together*:
//!
//! | makes apply | holds when | test |
//! |---|---|---|
//! | a permit | every requested value meets it | [covers](patterns::PatternSet::covers) |
//! | a forbid | some requested value meets it | [overlaps](patterns::PatternSet::overlaps) |
//!
//! A negation (`!`, `!=`, `unless`) swaps the two readings, `if a then b else c` is read as `a && b
//! || !a && c`, and `context has location` is true if a request has locations. By induction over a
//! condition: if the first reading holds, the condition holds for each value; if the condition
//! holds for any value, the second reading holds. So a permit never applies to more than it would
//! for each value alone, a forbid never to less, and a smaller request is never refused where a
//! larger one is permitted. If two comparisons in one condition depend on each other, the result
//! can be stricter than necessary, never weaker.
//!
//! At load, every part of a condition that depends on these facts alone becomes a [`question`]. In
//! the policy that Cedar evaluates, a lookup of the question's number in `context.asked` replaces
//! that part ([`rewrite`]). For each request, the broker first answers the questions of the
//! candidate policies, then Cedar evaluates once. The schema of that evaluation has no `location`,
//! `action` or `region`, so a policy in which the rewrite missed one of them does not load.
//!
//! A URL is requested as two values, the location itself and everything below it. This makes the
//! usual `context.location == "X" || context.location like "X/*"` exact.
//!
//! If the steps for comparing run out, no permit and every forbid applies. A policy that uses one
//! of these facts in any other way is refused when the generation is loaded.

pub(super) mod patterns;
pub(super) mod question;
pub(super) mod rewrite;
pub(super) mod text;

/// The member of the evaluation context that holds the numbers of the questions that hold. A policy
/// that names it does not load. The schema of policies has no such member: `context has asked` is
/// false there, and would be true where the policy is evaluated.
pub(super) const ASKED: &str = "asked";

/// A fact for which one request can name many values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Fact {
    /// `context.location`: a URL or an ARN.
    Location,
    /// `context.action`: an AWS action, in lower case.
    Action,
    /// `context.region`: an AWS region.
    Region,
}

impl Fact {
    /// The fact that the context member `member` holds, if it holds one.
    pub(super) fn of(member: &str) -> Option<Self> {
        match member {
            "location" => Some(Self::Location),
            "action" => Some(Self::Action),
            "region" => Some(Self::Region),
            _ => None,
        }
    }

    /// The name of the context member.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Location => "location",
            Self::Action => "action",
            Self::Region => "region",
        }
    }
}

/// The requested values: for each fact its values, in every combination. `None` if the request does
/// not have the fact.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Extent<'a> {
    pub(super) location: Option<&'a text::AskedText>,
    pub(super) action: Option<&'a text::AskedText>,
    pub(super) region: Option<&'a text::AskedText>,
}

impl<'a> Extent<'a> {
    pub(super) fn of(&self, fact: Fact) -> Option<&'a text::AskedText> {
        match fact {
            Fact::Location => self.location,
            Fact::Action => self.action,
            Fact::Region => self.region,
        }
    }
}
