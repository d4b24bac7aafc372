//! AWS roles: resources of kind `aws`.
//!
//! [`AwsRole`] is the registration: the role, the way to obtain a session ([`AwsMode`]) and the
//! restrictions of all its sessions. [`AwsRevocation`] names the inline policy that revokes single
//! sessions, and [`RoleArn`] are the parts of a role's ARN. Actions and locations can be patterns,
//! and actions are compared without regard to case, as AWS does.
//!
//! A registration that breaks a rule is refused with the reason as a text, which `domain::catalog`
//! returns as a `CatalogError`. A text that is no role's ARN, or a region without a host in the
//! role's partition, is `None`.
//!
//! [`super::ResourceKind`] calls this file. Nothing here calls AWS: `mint::aws` does.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{KindMembers, Registration};
use crate::domain::action::ActionName;
use crate::domain::endpoint::{EndpointName, EndpointUse};
use crate::domain::limits::MAX_CHAINED_SESSION_SECONDS;
use crate::domain::location::Location;
use crate::domain::pattern::Budget;
use crate::domain::revocability::{ExpiresBy, OpenSessions, Revocability, RevocationClass};

/// Audiences of the broker's tokens for AWS. No other token of the broker has one of them.
pub const FEDERATION_AUDIENCES: [&str; 2] = ["sts.amazonaws.com", "sts.amazonaws.com.cn"];

/// Maximum number of networks and regions to which sessions are restricted. Each uses space in the
/// session policy.
const MAX_PINS: usize = 16;

/// The method by which the broker obtains a session of the role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AwsMode {
    /// As an OpenID provider that AWS trusts. The broker holds no AWS key.
    WebIdentity,
    /// With the AWS credentials of the replica's host, if `[aws.own_credentials]` of its
    /// configuration permits that.
    AssumeRole,
}

/// A role and the restrictions of all its sessions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AwsRole {
    /// The role's ARN: `arn:aws:iam::123456789012:role/reports`.
    pub role_arn: String,
    /// The method by which the broker obtains a session.
    pub mode: AwsMode,
    /// The region of the STS endpoint.
    pub region: String,
    /// The endpoint to call instead of AWS's own STS; `None` calls AWS's own.
    #[serde(default)]
    pub endpoint: Option<EndpointName>,
    /// The external id that the role's trust policy requires, in mode `assume_role`. `None` sends
    /// none.
    #[serde(default)]
    pub external_id: Option<String>,
    /// The regions in which sessions work; empty means all.
    #[serde(default)]
    pub regions: BTreeSet<String>,
    /// The networks in CIDR notation from which sessions work; empty means all.
    #[serde(default)]
    pub source_networks: BTreeSet<String>,
    /// Whether a session may create access that outlives it: assume roles, create keys, pass roles.
    /// Ending the session does not end such access, so the class is `expiry_only`.
    #[serde(default)]
    pub may_leave: bool,
    /// The method of revoking single sessions. `None`: the class is `expiry_only`.
    #[serde(default)]
    pub revocation: Option<AwsRevocation>,
}

/// Revokes single sessions by an inline policy of the role that denies them. The policy belongs to
/// the broker alone; other parties must not write it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AwsRevocation {
    /// In mode `web_identity`: the role that may read and write the inline policy. `None` in mode
    /// `assume_role`, in which the broker writes with its own credentials.
    #[serde(default)]
    pub role_arn: Option<String>,
    /// Name of the inline policy.
    #[serde(default = "default_policy_name")]
    pub policy_name: String,
    /// Seconds after a write until the policy is in effect everywhere, 1 to 3,600. AWS guarantees
    /// no time; minutes are safe.
    #[serde(default = "default_propagation_seconds")]
    pub propagation_seconds: u64,
    /// The endpoint to call instead of AWS's own IAM; `None` calls AWS's own.
    #[serde(default)]
    pub endpoint: Option<EndpointName>,
    /// Maximum number of sessions that the policy can name, 4 to 230. A role without other inline
    /// policies has space for 230.
    #[serde(default = "default_max_entries")]
    pub max_entries: u32,
}

fn default_policy_name() -> String {
    "TaskpassRevokedSessions".into()
}

fn default_propagation_seconds() -> u64 {
    300
}

fn default_max_entries() -> u32 {
    200
}

/// The parts of a role's ARN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoleArn<'a> {
    /// One of `aws`, `aws-cn` and `aws-us-gov`.
    pub partition: &'a str,
    /// The account id, 12 digits.
    pub account: &'a str,
    /// The role's name without its path.
    pub name: &'a str,
}

impl<'a> RoleArn<'a> {
    /// Splits a role's ARN. `None` if `text` is not the ARN of one role.
    #[must_use]
    pub fn parse(text: &'a str) -> Option<Self> {
        let parts: Vec<&str> = text.split(':').collect();
        let ["arn", partition, "iam", "", account, role] = parts[..] else {
            return None;
        };
        let path = role.strip_prefix("role/")?;
        let name = path.rsplit('/').next()?;
        let fine = |b: u8| b.is_ascii_alphanumeric() || b"_+=,.@-/".contains(&b);
        let known = ["aws", "aws-cn", "aws-us-gov"].contains(&partition);
        let numbered = account.len() == 12 && account.bytes().all(|b| b.is_ascii_digit());
        let named = (1..=64).contains(&name.len()) && path.bytes().all(fine);
        (known && numbered && named).then_some(Self {
            partition,
            account,
            name,
        })
    }
}

impl RoleArn<'_> {
    /// The host of an AWS service in the role's partition, within AWS's own domain. `None` if
    /// `region` is not in that partition. IAM has one host for each partition.
    #[must_use]
    pub fn service_host(&self, service: &str, region: &str) -> Option<String> {
        let of_partition = match region.split('-').next()? {
            "cn" => "aws-cn",
            "us" if region.starts_with("us-gov-") => "aws-us-gov",
            _ => "aws",
        };
        if !is_aws_region(region) || of_partition != self.partition {
            return None;
        }
        let domain = if self.partition == "aws-cn" {
            "amazonaws.com.cn"
        } else {
            "amazonaws.com"
        };
        Some(match (service, self.partition) {
            ("iam", "aws") => format!("iam.{domain}"),
            ("iam", "aws-us-gov") => format!("iam.us-gov.{domain}"),
            ("iam", _) => format!("iam.cn-north-1.{domain}"),
            _ => format!("{service}.{region}.{domain}"),
        })
    }
}

/// The host of STS in a region, in the region's partition. `None` if `region` is not an AWS region.
#[must_use]
pub fn sts_host(region: &str) -> Option<String> {
    let host = |partition| {
        let role = RoleArn {
            partition,
            account: "",
            name: "",
        };
        role.service_host("sts", region)
    };
    ["aws", "aws-cn", "aws-us-gov"].into_iter().find_map(host)
}

/// Whether `text` has the form of an AWS region name, such as `eu-central-1`: at least two groups
/// of letters, then a number. It becomes part of a host name.
fn is_aws_region(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let Some((number, [area, rest @ ..])) = parts.split_last() else {
        return false;
    };
    let letters = |part: &&str| {
        (1..=12).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_lowercase())
    };
    let counted = (1..=2).contains(&number.len()) && number.bytes().all(|b| b.is_ascii_digit());
    counted && area.len() == 2 && letters(area) && !rest.is_empty() && rest.iter().all(letters)
}

/// Whether `text` could be the name of an AWS region: 4 to 32 lower-case letters, digits and `-`.
/// It may name a region that does not exist.
#[must_use]
pub fn is_region(text: &str) -> bool {
    let fine = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (4..=32).contains(&text.len()) && text.bytes().all(fine)
}

/// Whether `own` is `asked` or a pattern that matches all of it, ignoring case as AWS does.
pub(super) fn covers_action(own: &ActionName, asked: &ActionName, budget: &Budget) -> bool {
    own.covers_on_aws(asked, budget)
}

/// The registered actions that policy decides about if `asked` is requested. Both can be patterns.
/// They are the narrowest registered ones that match all of `asked`, and every other one that
/// overlaps it, so that a policy about a part also applies to requests for more. Policies reach the
/// wider actions by `action in`. So a smaller request never leads to decisions about additional
/// actions.
pub(super) fn decided_as<'a>(
    actions: &'a BTreeSet<ActionName>,
    asked: &ActionName,
    budget: &Budget,
) -> Vec<&'a ActionName> {
    let concerned: Vec<_> = actions
        .iter()
        .filter(|own| own.overlaps_within(asked, budget))
        .map(|own| (own, own.covers_on_aws(asked, budget)))
        .collect();
    if budget.is_exhausted() {
        return Vec::new();
    }
    // Of the actions that match all of it, those without a narrower one among them.
    let is_wider = |own: &ActionName| {
        let mut covering = concerned.iter().filter(|(_, covers)| *covers);
        covering.any(|(other, _)| own.is_wider_than(other, budget))
    };
    concerned
        .iter()
        .filter(|(own, covers)| !covers || !is_wider(own))
        .map(|(own, _)| *own)
        .collect()
}

impl AwsRole {
    /// AWS checks the credential at each call. Only a session that may assume other roles can open
    /// sessions that outlive it.
    pub(super) fn revocability(&self) -> Revocability {
        Revocability {
            class: match &self.revocation {
                Some(list) => RevocationClass::Bounded {
                    bound_seconds: list.propagation_seconds,
                },
                None => RevocationClass::ExpiryOnly,
            },
            open_sessions: if self.may_leave {
                OpenSessions::Kept
            } else {
                OpenSessions::None
            },
            expires_by: ExpiresBy::BackEnd,
        }
    }

    /// The parts of the role's ARN; `None` if it is not the ARN of one role.
    #[must_use]
    pub fn parsed(&self) -> Option<RoleArn<'_>> {
        RoleArn::parse(&self.role_arn)
    }

    /// Whether the broker obtains its sessions as an OpenID provider that AWS trusts.
    #[must_use]
    pub fn is_federated(&self) -> bool {
        match self.mode {
            AwsMode::WebIdentity => true,
            AwsMode::AssumeRole => false,
        }
    }

    pub(super) fn read(members: KindMembers) -> Result<Self, String> {
        let KindMembers {
            audience,
            verifiers,
            verification,
            aws,
        } = members;
        let role = aws.ok_or("kind `aws` needs [resources.aws] with the role")?;
        if !audience.is_empty() || verification.is_some() {
            return Err(
                "audience and verification are for kind `jwt`; kind `aws` has a role \
                instead"
                    .into(),
            );
        }
        if !verifiers.is_empty() {
            return Err(
                "verifiers are for kind `jwt`; sessions of AWS cannot be introspected".into(),
            );
        }
        Ok(role)
    }

    pub(super) fn into_members(self) -> KindMembers {
        KindMembers {
            aws: Some(self),
            ..KindMembers::default()
        }
    }

    pub(super) fn check(&self, registration: &Registration<'_>) -> Result<(), String> {
        if !registration.actions.iter().all(ActionName::is_aws) {
            return Err("an action is a service, a colon and a name or pattern: `s3:Get*`".into());
        }
        if !registration.locations.iter().all(Location::is_arn) {
            return Err(
                "a location is an ARN or a pattern of ARNs: `arn:aws:s3:::reports/*`".into(),
            );
        }
        let too_long = registration.max_ttl_seconds > MAX_CHAINED_SESSION_SECONDS;
        if self.mode == AwsMode::AssumeRole && too_long {
            return Err(format!(
                "max_ttl_seconds must be 1 to {MAX_CHAINED_SESSION_SECONDS} in mode \
                `assume_role`: AWS limits sessions that are created with the credentials of \
                another role; use mode `web_identity` for a longer life"
            ));
        }
        self.check_role()
    }

    /// The reason why the role cannot be registered together with `other`, the role of the resource
    /// `name`; `None` if it can. The deny policy belongs to the role, so resources with the same
    /// role must have the same settings for it.
    pub(super) fn conflict_with(&self, other: &Self, name: &str) -> Option<String> {
        let conflicts = self.role_arn == other.role_arn && self.revocation != other.revocation;
        conflicts.then(|| {
            format!(
                "`{name}` has the same role with another [resources.aws.revocation]; give both the \
                 same, or each its own role"
            )
        })
    }

    /// The endpoints that it names.
    pub(super) fn endpoints(&self) -> Vec<(&'static str, &EndpointName, EndpointUse)> {
        let list = self.revocation.as_ref();
        let sts = self.endpoint.as_ref();
        let iam = list.and_then(|list| list.endpoint.as_ref());
        let sts = sts.map(|name| ("aws/endpoint", name, EndpointUse::Sts));
        let iam = iam.map(|name| ("aws/revocation/endpoint", name, EndpointUse::Iam));
        sts.into_iter().chain(iam).collect()
    }

    fn check_role(&self) -> Result<(), String> {
        let Some(role) = self.parsed() else {
            return Err(
                "role_arn is not the ARN of a role: `arn:aws:iam::123456789012:role/…`".into(),
            );
        };
        if !is_region(&self.region) || !self.regions.iter().all(|region| is_region(region)) {
            return Err("a region is written like `eu-central-1`".into());
        }
        if role.service_host("sts", &self.region).is_none() {
            return Err(format!(
                "the region `{}` has no STS of the role's partition `{}`",
                self.region, role.partition
            ));
        }
        if self.regions.len() > MAX_PINS || self.source_networks.len() > MAX_PINS {
            return Err(format!("at most {MAX_PINS} regions and source networks"));
        }
        if let Some(bad) = self.source_networks.iter().find(|text| !is_network(text)) {
            return Err(format!("`{bad}` is not a network like `203.0.113.0/24`"));
        }
        if let Some(id) = &self.external_id {
            let fine = |b: u8| b.is_ascii_alphanumeric() || b"_+=,.@:/-".contains(&b);
            if !(2..=1_224).contains(&id.len()) || !id.bytes().all(fine) {
                return Err("external_id has 2 to 1224 letters, digits or _+=,.@:/-".into());
            }
            if self.mode == AwsMode::WebIdentity {
                return Err("external_id is for mode `assume_role`".into());
            }
        }
        match &self.revocation {
            Some(revocation) => revocation.check(self, role),
            None => Ok(()),
        }
    }
}

impl AwsRevocation {
    fn check(&self, of: &AwsRole, role: RoleArn<'_>) -> Result<(), String> {
        let fine = |b: u8| b.is_ascii_alphanumeric() || b"_+=,.@-".contains(&b);
        if !(1..=128).contains(&self.policy_name.len()) || !self.policy_name.bytes().all(fine) {
            return Err("revocation.policy_name has 1 to 128 letters, digits or _+=,.@-".into());
        }
        if !(1..=3_600).contains(&self.propagation_seconds) {
            return Err("revocation.propagation_seconds must be 1 to 3600".into());
        }
        if !(4..=230).contains(&self.max_entries) {
            return Err("revocation.max_entries must be 4 to 230".into());
        }
        if of.may_leave {
            return Err(
                "revocation and may_leave exclude each other: revoking a session does not end the \
                access that it created"
                    .into(),
            );
        }
        match (of.mode, self.role_arn.as_deref().map(RoleArn::parse)) {
            (AwsMode::WebIdentity, None) => Err(
                "revocation.role_arn must name a role that may write the policy: in this mode the \
                broker has no AWS key"
                    .into(),
            ),
            (AwsMode::AssumeRole, Some(_)) => Err(
                "revocation.role_arn is for mode `web_identity`; in this mode the broker writes \
                with its own credentials"
                    .into(),
            ),
            (_, Some(None)) => Err("revocation.role_arn is not the ARN of a role".into()),
            (_, Some(Some(writer))) if writer.account != role.account => {
                Err("revocation.role_arn is a role of another account".into())
            }
            (_, Some(Some(writer))) if writer == role => Err(
                "revocation.role_arn is the role itself: its revoked sessions could remove the \
                denial"
                    .into(),
            ),
            _ => Ok(()),
        }
    }
}

fn is_network(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else {
        return false;
    };
    match (address.parse::<std::net::IpAddr>(), bits.parse::<u8>()) {
        (Ok(std::net::IpAddr::V4(_)), Ok(bits)) => bits <= 32,
        (Ok(std::net::IpAddr::V6(_)), Ok(bits)) => bits <= 128,
        _ => false,
    }
}

#[cfg(test)]
mod tests;
