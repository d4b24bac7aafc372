//! `[aws.own_credentials]`: the roles for which this replica uses the AWS credentials of its host.
//!
//! [`OwnCredentials`] lists roles and accounts. The API can change a generation but not this table.
//! So a generation alone never makes a replica search for its host's credentials, and never decides
//! to which AWS partition they go: each role must be in the partition of the table's region.
//!
//! [`OwnCredentials::errors`] returns every error in the table, and [`crate::config`] refuses to
//! start with one. A role of mode `assume_role` that the table does not permit is
//! [`UnfitEndpoint::OwnCredentials`]; roles of other modes need no permission.
//! [`super::EndpointTable`] answers for this table, and [`crate::mint`] obtains the credentials.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::unfit_endpoint::UnfitEndpoint;
use crate::domain::kind::aws::{AwsMode, AwsRole, RoleArn, sts_host};

/// The table as configured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OwnCredentials {
    /// The region whose STS may exchange the host's own token. All roles must be in its partition.
    pub region: String,
    /// ARNs of roles that may be assumed.
    #[serde(default)]
    pub role_arns: BTreeSet<String>,
    /// Ids of accounts. All roles of these accounts may be assumed.
    #[serde(default)]
    pub accounts: BTreeSet<String>,
}

/// An error in the table: the key, the problem and the remedy.
pub type OwnCredentialsError = (&'static str, String, String);

impl OwnCredentials {
    /// Every error in the table.
    #[must_use]
    pub fn errors(&self) -> Vec<OwnCredentialsError> {
        let mut errors = Vec::new();
        let mut refuse = |key, problem: String, remedy: &str| {
            errors.push((key, problem, remedy.to_owned()));
        };
        if sts_host(&self.region).is_none() {
            let remedy = "write an AWS region, such as eu-central-1";
            refuse("region", "is not an AWS region".to_owned(), remedy);
            return errors;
        }
        if self.role_arns.is_empty() && self.accounts.is_empty() {
            refuse(
                "",
                "allows no role".to_owned(),
                "list role_arns or accounts, or remove the table",
            );
        }
        for arn in &self.role_arns {
            let role = RoleArn::parse(arn);
            if role.is_none() {
                refuse(
                    "role_arns",
                    format!("has the entry `{arn}`, which is not the ARN of a role"),
                    "write `arn:aws:iam::123456789012:role/…`",
                );
            } else if role
                .and_then(|role| role.service_host("sts", &self.region))
                .is_none()
            {
                refuse(
                    "role_arns",
                    format!("has the role `{arn}`, which is not in the partition of `region`"),
                    "name roles of the region's partition",
                );
            }
        }
        let numbered =
            |account: &&String| account.len() == 12 && account.bytes().all(|b| b.is_ascii_digit());
        if !self.accounts.iter().all(|account| numbered(&account)) {
            let problem = "has an entry that is not an account id".to_owned();
            refuse("accounts", problem, "write twelve digits");
        }
        errors
    }

    fn allow(&self, role: &AwsRole) -> bool {
        let Some(arn) = role.parsed() else {
            return false;
        };
        let same_partition = arn.service_host("sts", &self.region).is_some();
        same_partition
            && (self.role_arns.contains(&role.role_arn) || self.accounts.contains(arn.account))
    }
}

/// Checks that `own` permits assuming a role of mode `assume_role`. Roles of other modes need no
/// permission.
pub(super) fn check(own: Option<&OwnCredentials>, role: &AwsRole) -> Result<(), UnfitEndpoint> {
    if role.mode != AwsMode::AssumeRole || own.is_some_and(|own| own.allow(role)) {
        return Ok(());
    }
    Err(UnfitEndpoint::OwnCredentials {
        role_arn: role.role_arn.clone(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn own(value: Value) -> OwnCredentials {
        serde_json::from_value(value).unwrap()
    }

    fn role(arn: &str, mode: &str) -> AwsRole {
        serde_json::from_value(json!({"role_arn": arn, "mode": mode, "region": "eu-central-1"}))
            .unwrap()
    }

    const REPORTS: &str = "arn:aws:iam::123456789012:role/reports";

    #[test]
    fn only_roles_that_the_replica_names_are_assumed_with_its_own_credentials() {
        let by_role = own(json!({"region": "eu-central-1", "role_arns": [REPORTS]}));
        let by_account = own(json!({"region": "us-east-1", "accounts": ["123456789012"]}));
        let china = "arn:aws-cn:iam::123456789012:role/reports";
        for (own, arn, allowed) in [
            (Some(&by_role), REPORTS, true),
            (
                Some(&by_role),
                "arn:aws:iam::123456789012:role/other",
                false,
            ),
            (Some(&by_role), china, false),
            (
                Some(&by_account),
                "arn:aws:iam::123456789012:role/other",
                true,
            ),
            (
                Some(&by_account),
                "arn:aws:iam::210987654321:role/reports",
                false,
            ),
            (Some(&by_account), china, false),
            (None, REPORTS, false),
        ] {
            let checked = check(own, &role(arn, "assume_role"));
            assert_eq!(checked.is_ok(), allowed, "{own:?} {arn}");
            assert!(check(own, &role(arn, "web_identity")).is_ok());
        }
        let unfit = check(None, &role(REPORTS, "assume_role")).unwrap_err();
        let told = unfit.to_string();
        assert!(
            told.contains(REPORTS) && told.contains("[aws.own_credentials]"),
            "{told}"
        );
    }

    #[test]
    fn a_table_that_allows_nothing_or_another_partition_is_refused() {
        for good in [
            json!({"region": "cn-north-1", "role_arns": ["arn:aws-cn:iam::123456789012:role/r"]}),
            json!({"region": "eu-central-1", "accounts": ["123456789012"]}),
        ] {
            assert_eq!(own(good).errors(), []);
        }
        for (bad, key) in [
            (json!({"region": "eu-central-1"}), ""),
            (
                json!({"region": "evil.example/", "role_arns": [REPORTS]}),
                "region",
            ),
            (
                json!({"region": "cn-north-1", "role_arns": [REPORTS]}),
                "role_arns",
            ),
            (
                json!({"region": "eu-central-1", "role_arns": ["*"]}),
                "role_arns",
            ),
            (
                json!({"region": "eu-central-1", "accounts": ["1234"]}),
                "accounts",
            ),
        ] {
            let errors = own(bad.clone()).errors();
            assert!(
                errors.iter().any(|(at, _, _)| *at == key),
                "{bad}: {errors:?}"
            );
        }
    }
}
