//! AWS actions by which a session can create access that outlives it: a policy on another resource
//! or principal, a grant, running code, a login with its own life.
//!
//! [`lasting_actions`] lists the registered actions of a resource that cover such an action. The
//! list is a warning and refuses nothing: some tasks need these actions, so the broker grants them.
//! The session policy (`mint::aws::policy`) denies the other ways, which no task needs.
//!
//! The list is incomplete if the budget of comparisons runs out. It is empty for resources without
//! an AWS role, and for a role that is registered with `may_leave`. `policy::notes` calls this file
//! and shows the list to operators.

use super::action::ActionName;
use super::catalog::Resource;
use super::pattern::Budget;

/// The actions in lower case, grouped by the access that they leave behind.
const LASTING: [(&str, &[&str]); 5] = [
    (
        "a policy or a member of a user, a group or a role",
        &[
            "iam:putuserpolicy",
            "iam:attachuserpolicy",
            "iam:putgrouppolicy",
            "iam:attachgrouppolicy",
            "iam:attachrolepolicy",
            "iam:addusertogroup",
            "iam:createpolicyversion",
            "iam:setdefaultpolicyversion",
            "iam:createuser",
        ],
    ),
    (
        "an assignment of permissions to people or accounts",
        &[
            "sso:*",
            "sso-directory:*",
            "identitystore:*",
            "ram:createresourceshare",
            "ram:associateresourceshare",
            "organizations:*",
        ],
    ),
    (
        "a policy or a grant of a resource",
        &[
            "kms:creategrant",
            "kms:putkeypolicy",
            "s3:putbucketpolicy",
            "s3:putbucketacl",
            "s3:putobjectacl",
            "s3:putaccesspointpolicy",
            "sns:addpermission",
            "sns:settopicattributes",
            "sqs:addpermission",
            "sqs:setqueueattributes",
            "secretsmanager:putresourcepolicy",
            "ecr:setrepositorypolicy",
            "events:putpermission",
            "dynamodb:putresourcepolicy",
            "glue:putresourcepolicy",
            "ec2:modifysnapshotattribute",
            "ec2:modifyimageattribute",
            "rds:modifydbsnapshotattribute",
            "lambda:addpermission",
            "lambda:addlayerversionpermission",
        ],
    ),
    (
        "code that runs on with another role",
        &[
            "lambda:createfunction",
            "lambda:updatefunctioncode",
            "lambda:updatefunctionconfiguration",
            "lambda:createfunctionurlconfig",
            "ssm:sendcommand",
            "ssm:startsession",
        ],
    ),
    (
        "a login with a life of its own",
        &[
            "ecr:getauthorizationtoken",
            "codeartifact:getauthorizationtoken",
            "redshift:getclustercredentials",
            "rds-db:connect",
        ],
    ),
];

/// A registered action by which a session can leave access behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastingAction {
    /// The registered action or pattern.
    pub action: ActionName,
    /// The AWS action that it covers.
    pub allows: String,
    /// The access that outlives the session.
    pub leaves: &'static str,
}

/// The registered actions of a resource by which its sessions can leave access behind, the first of
/// each group. Empty for a resource with `may_leave` and for other kinds. Incomplete if `budget`
/// runs out.
#[must_use]
pub fn lasting_actions(resource: &Resource, budget: &Budget) -> Vec<LastingAction> {
    let role = resource.kind.aws_role();
    if role.is_none_or(|role| role.may_leave) {
        return Vec::new();
    }
    let mut found = Vec::new();
    for action in &resource.actions {
        for (leaves, actions) in LASTING {
            let names = actions.iter().filter_map(|name| {
                let name = ActionName::try_from((*name).to_owned()).ok()?;
                action.overlaps_within(&name, budget).then_some(name)
            });
            let first = names.into_iter().next();
            if budget.is_exhausted() {
                return found;
            }
            found.extend(first.map(|name| LastingAction {
                action: action.clone(),
                allows: name.to_string(),
                leaves,
            }));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn resource(actions: &[&str], may_leave: bool) -> Resource {
        serde_json::from_value(json!({
            "name": "r", "kind": "aws", "owner": "data", "actions": actions,
            "locations": ["arn:aws:s3:::reports/*"],
            "aws": {
                "role_arn": "arn:aws:iam::123456789012:role/reports", "mode": "web_identity",
                "region": "eu-central-1", "may_leave": may_leave
            }
        }))
        .unwrap()
    }

    fn found(actions: &[&str]) -> Vec<String> {
        let budget = Budget::new(100_000);
        let found = lasting_actions(&resource(actions, false), &budget);
        found.into_iter().map(|own| own.allows).collect()
    }

    #[test]
    fn a_way_out_of_a_session_that_stays_with_the_grant_is_told() {
        for (action, allows) in [
            ("iam:PutUserPolicy", "iam:putuserpolicy"),
            ("iam:Put*", "iam:putuserpolicy"),
            ("kms:CreateGrant", "kms:creategrant"),
            ("kms:Create*", "kms:creategrant"),
            ("lambda:AddPermission", "lambda:addpermission"),
            ("sso:CreateAccountAssignment", "sso:*"),
            ("s3:PutBucketP?licy", "s3:putbucketpolicy"),
            ("ecr:GetAuthorizationToken", "ecr:getauthorizationtoken"),
        ] {
            assert!(
                found(&[action]).contains(&allows.to_owned()),
                "{action}: {:?}",
                found(&[action])
            );
        }
        assert_eq!(found(&["s3:*"]), ["s3:putbucketpolicy"]);
        for harmless in [
            "s3:Get*",
            "s3:PutObject",
            "dynamodb:Query",
            "kms:Decrypt",
            "iam:Get*",
        ] {
            assert!(found(&[harmless]).is_empty(), "{harmless}");
        }
        let budget = Budget::new(100_000);
        assert!(lasting_actions(&resource(&["s3:*"], true), &budget).is_empty());
    }
}
