//! Rules about a part, asked about a whole.
//!
//! A request can ask for many places, actions and regions at once: a URL stands for everything below
//! it, a pattern for everything that it matches, and what is left out for everything registered. A
//! policy speaks of single ones: `context.location like "https://h/v1/payroll/*"`. What is granted
//! must hold nothing that policy would refuse if that were asked for alone. So a policy is not
//! evaluated at one value of these facts, but for *all values that are asked for together*:
//!
//! | where a comparison helps | it is read as | and holds |
//! |---|---|---|
//! | a permit to apply | every value that is asked for matches | covers ([`patterns::PatternSet::covers`]) |
//! | a forbid to apply | some value that is asked for matches | overlaps ([`patterns::PatternSet::overlaps`]) |
//!
//! A negation (`!`, `!=`, `unless`) turns the one into the other, `if a then b else c` is read as
//! `a && b || !a && c`, and `context has location` is true wherever there are locations. By
//! induction over a condition, what is read in the first way holds only if the condition holds at each
//! value, and what is read in the second way holds if it holds at any. So a permit never applies to
//! more than it would to each value alone, and a forbid never to less; and asking for less never turns
//! a permit into a refusal. Where two comparisons in one condition depend on each other, more is
//! refused than would have to be, never less.
//!
//! At load every part of a condition that speaks of these facts alone becomes a [`question`], and in
//! the policy that is evaluated a lookup of its number in `context.asked` ([`rewrite`]). For each
//! request the questions of the policies that it meets are answered, and Cedar evaluates once. The
//! schema of that evaluation has no `location`, `action` and `region`, so that a policy in which one of
//! them was overlooked would not load.
//!
//! A URL is asked for twice, as the place itself and as what is below it, so that the usual
//! `context.location == "X" || context.location like "X/*"` is exact.

pub(super) mod patterns;
pub(super) mod question;
pub(super) mod rewrite;
pub(super) mod text;

/// The member of an evaluation's context with the numbers of the questions that hold. A policy that names
/// it does not load: the schema of policies has no such member, and by it `context has asked` is false,
/// while it is true where the policy is evaluated.
pub(super) const ASKED: &str = "asked";

/// A fact of which many values can be asked for at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Fact {
    /// `context.location`.
    Location,
    /// `context.action`: an action of AWS, in lower case.
    Action,
    /// `context.region`.
    Region,
}

impl Fact {
    /// The fact that a member of the context is.
    pub(super) fn of(member: &str) -> Option<Self> {
        match member {
            "location" => Some(Self::Location),
            "action" => Some(Self::Action),
            "region" => Some(Self::Region),
            _ => None,
        }
    }

    /// The member's name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Location => "location",
            Self::Action => "action",
            Self::Region => "region",
        }
    }
}

/// What is asked for: the values of each fact, each value combined with each. None where a request has
/// no such fact.
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
