//! The trust policy of a role: the policy that admits the broker's federation for one subject, and
//! the faults of an existing policy.
//!
//! [`Trusted`] is the subject: a resource, or the broker itself. [`Trusted::policy`] writes the
//! policy, and [`Trusted::faults_of`] lists the rights that the broker lacks, rights beyond those
//! it needs, and other principals that the role admits.
//!
//! An ARN that is not a role's, or an issuer that is no URL, is `None`. A statement that this file
//! cannot read counts as a fault. An empty list does not prove that AWS will accept the broker:
//! other policies of the account can deny it. The command `aws trust-policy` calls this file;
//! nothing is sent to AWS.

use serde_json::{Value, json};

use super::federation;
use crate::domain::kind::aws::RoleArn;
use crate::domain::pattern::{self, Budget};

/// The actions that the broker performs with the role of a resource.
const ACTIONS: [&str; 3] = [
    "sts:AssumeRoleWithWebIdentity",
    "sts:TagSession",
    "sts:SetSourceIdentity",
];

/// A subject of the broker's federation that a role trusts.
#[derive(Clone, Debug)]
pub struct Trusted {
    provider: String,
    /// The provider's name in conditions.
    key: String,
    audience: &'static str,
    subject: String,
    actions: &'static [&'static str],
}

impl Trusted {
    /// The resource with this name, at its role, for a broker with this issuer. `None` if the
    /// ARN is not a role's or the issuer is no URL.
    #[must_use]
    pub fn resource(issuer: &str, role_arn: &str, name: &str) -> Option<Self> {
        Self::new(issuer, role_arn, format!("resource:{name}"), &ACTIONS)
    }

    /// The broker itself, at the role by which it writes deny lists. `None` as in
    /// [`Self::resource`].
    #[must_use]
    pub fn revoker(issuer: &str, role_arn: &str) -> Option<Self> {
        let subject = federation::REVOKER_SUBJECT.to_owned();
        Self::new(issuer, role_arn, subject, &ACTIONS[..1])
    }

    fn new(
        issuer: &str,
        role_arn: &str,
        subject: String,
        actions: &'static [&'static str],
    ) -> Option<Self> {
        let role = RoleArn::parse(role_arn)?;
        let url = federation::issuer(issuer);
        let key = url.split_once("://")?.1.to_owned();
        Some(Self {
            provider: format!(
                "arn:{}:iam::{}:oidc-provider/{key}",
                role.partition, role.account
            ),
            key,
            audience: federation::audience(role_arn),
            subject,
            actions,
        })
    }

    /// The trust policy.
    #[must_use]
    pub fn policy(&self) -> Value {
        json!({"Version": "2012-10-17", "Statement": [{
            "Effect": "Allow",
            "Principal": {"Federated": self.provider},
            "Action": self.actions,
            "Condition": {"StringEquals": {
                format!("{}:aud", self.key): self.audience,
                format!("{}:sub", self.key): self.subject,
            }}
        }]})
    }

    /// The faults of an existing policy: rights that the broker lacks, rights beyond those it
    /// needs, and other principals that it admits. `expected` are other principals that may be
    /// admitted, as the policy writes them.
    #[must_use]
    pub fn faults_of(&self, policy: &Value, expected: &[String]) -> Vec<String> {
        let statements = policy.get("Statement").map(many).unwrap_or_default();
        let (ours, others): (Vec<&Value>, Vec<&Value>) = statements
            .into_iter()
            .filter(|statement| statement.get("Effect").and_then(Value::as_str) == Some("Allow"))
            .partition(|statement| self.lets_the_provider_in(statement));
        let mut faults = Vec::new();
        if ours.is_empty() {
            faults.push(format!("no statement admits {}", self.provider));
        }
        let of_ours = ours.into_iter();
        faults.extend(of_ours.flat_map(|statement| self.faults_of_statement(statement)));
        faults.extend(
            others
                .into_iter()
                .flat_map(|statement| faults_of_another(statement, expected)),
        );
        faults
    }

    fn lets_the_provider_in(&self, statement: &Value) -> bool {
        let principal = statement.get("Principal");
        let federated = principal.and_then(|principal| principal.get("Federated"));
        let federated = federated.map(texts).unwrap_or_default();
        let everybody = principal.and_then(|principal| principal.get("AWS"));
        principal.and_then(Value::as_str) == Some("*")
            || everybody.is_some_and(|who| texts(who).contains(&"*"))
            || federated
                .iter()
                .any(|who| *who == "*" || *who == self.provider)
    }

    fn faults_of_statement(&self, statement: &Value) -> Vec<String> {
        let mut faults = Vec::new();
        let equals = statement.pointer("/Condition/StringEquals");
        for (claim, wanted) in [("aud", self.audience), ("sub", self.subject.as_str())] {
            let key = format!("{}:{claim}", self.key);
            let given = equals.and_then(|equals| member(equals, &key)).map(texts);
            match given.as_deref() {
                Some([one]) if *one == wanted => {}
                Some(others) => faults.push(format!(
                    "`{key}` admits {} and should admit `{wanted}` only",
                    others.join(", ")
                )),
                None => faults.push(format!(
                    "no StringEquals on `{key}`: it should be `{wanted}`; without it the role \
                    admits tokens for other resources of the broker, or of other brokers"
                )),
            }
        }
        let actions = statement.get("Action").map(texts).unwrap_or_default();
        let allowed = |wanted: &str| actions.iter().any(|own| matches(own, wanted));
        let missing = self.actions.iter().filter(|wanted| !allowed(wanted));
        faults.extend(missing.map(|wanted| {
            format!("`{wanted}` is not allowed: AWS will refuse the broker's calls")
        }));
        faults
    }
}

/// The faults of a statement that admits other principals.
fn faults_of_another(statement: &Value, expected: &[String]) -> Vec<String> {
    const SET_SOURCE_IDENTITY: &str = "sts:SetSourceIdentity";
    let Some(who) = statement.get("Principal").and_then(principals) else {
        return vec![
            "a statement has `NotPrincipal` or a principal that cannot be read: it admits \
            principals without a decision of the broker"
                .into(),
        ];
    };
    let unexpected = who.iter().filter(|one| !expected.contains(one));
    let mut faults: Vec<String> = unexpected
        .map(|one| {
            format!(
                "`{one}` is admitted without a decision of the broker; add `--expect {one}` if \
                that is intended"
            )
        })
        .collect();
    let actions = statement.get("Action").map(texts);
    // Without a list of actions the statement has `NotAction`, which allows nearly everything.
    let may_name = |own: &&str| matches(own, SET_SOURCE_IDENTITY);
    if actions.is_none_or(|actions| actions.iter().any(may_name)) {
        faults.push(format!(
            "{} may set a source identity (`{SET_SOURCE_IDENTITY}`) and so look like a session of \
            the broker",
            who.join(", ")
        ));
    }
    faults
}

/// Whether an action in a policy, in any case and with wildcards, matches `action`.
fn matches(said: &str, action: &str) -> bool {
    pattern::covers_within(
        &said.to_ascii_lowercase(),
        &action.to_ascii_lowercase(),
        &Budget::of_one_comparison(),
    )
}

/// The principals that a `Principal` names, with or without their types. `None` if it names none in
/// a form that IAM has.
fn principals(principal: &Value) -> Option<Vec<String>> {
    let who: Vec<String> = match principal {
        Value::String(one) => vec![one.clone()],
        Value::Object(kinds) => {
            let named = kinds.values().flat_map(texts);
            named.map(str::to_owned).collect()
        }
        _ => Vec::new(),
    };
    (!who.is_empty()).then_some(who)
}

/// A member by its name, which IAM compares without case.
fn member<'a>(object: &'a Value, name: &str) -> Option<&'a Value> {
    let mut members = object.as_object()?.iter();
    members.find_map(|(own, value)| own.eq_ignore_ascii_case(name).then_some(value))
}

/// IAM writes a single value with or without a list around it.
fn many(value: &Value) -> Vec<&Value> {
    match value {
        Value::Array(all) => all.iter().collect(),
        one => vec![one],
    }
}

fn texts(value: &Value) -> Vec<&str> {
    many(value).into_iter().filter_map(Value::as_str).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ISSUER: &str = "https://broker.example";
    const ROLE: &str = "arn:aws:iam::123456789012:role/reports";

    type Change = fn(&mut Value);

    fn trusted() -> Trusted {
        Trusted::resource(ISSUER, ROLE, "reports-bucket").unwrap()
    }

    #[test]
    fn the_policy_that_it_should_be_has_no_fault() {
        let policy = trusted().policy();
        assert_eq!(
            policy["Statement"][0]["Condition"]["StringEquals"],
            json!({
                "broker.example/federation/aws:aud": "sts.amazonaws.com",
                "broker.example/federation/aws:sub": "resource:reports-bucket"
            })
        );
        let none: &[String] = &[];
        assert_eq!(trusted().faults_of(&policy, none), Vec::<String>::new());
        let revoker = Trusted::revoker(ISSUER, ROLE).unwrap();
        assert_eq!(revoker.faults_of(&revoker.policy(), none), *none);
        assert_eq!(trusted().faults_of(&revoker.policy(), none).len(), 3);
        // In the form that IAM may return, with statements that deny or that are expected.
        let mut single = policy.clone();
        single["Statement"] = json!([
            {"Effect": "Deny", "Principal": "*", "Action": "sts:AssumeRole"},
            {"Effect": "Allow", "Principal": {"AWS": "arn:aws:iam::123456789012:root"},
             "Action": "sts:AssumeRole"},
            policy["Statement"][0].clone()
        ]);
        let keys = &mut single["Statement"][2]["Condition"]["StringEquals"];
        keys["broker.example/federation/aws:sub"] = json!(["resource:reports-bucket"]);
        let expected = ["arn:aws:iam::123456789012:root".to_owned()];
        assert_eq!(trusted().faults_of(&single, &expected), *none);
        single["Statement"] = single["Statement"][2].clone();
        single["Statement"]["Action"] = json!("STS:*");
        assert_eq!(trusted().faults_of(&single, none), *none);
    }

    #[test]
    fn whoever_else_is_let_in_is_told_unless_expected() {
        let root = "arn:aws:iam::123456789012:root";
        let foreign = "arn:aws:iam::999999999999:root";
        let github = "arn:aws:iam::123456789012:oidc-provider/token.actions.githubusercontent.com";
        let naming = "may set a source identity";
        let allow = |who: Value, actions: Value| json!({"Effect": "Allow", "Principal": who, "Action": actions});
        let assume = json!("sts:AssumeRole");
        let also = json!(["sts:AssumeRole", "sts:SetSourceIdentity", "sts:TagSession"]);
        let not_principal =
            json!({"Effect": "Allow", "NotPrincipal": {"AWS": root}, "Action": "sts:AssumeRole"});
        let not_action =
            json!({"Effect": "Allow", "Principal": {"AWS": root}, "NotAction": "sts:TagSession"});
        let others = [
            (allow(json!({"AWS": root}), assume.clone()), vec![root]),
            (
                allow(json!({"AWS": [foreign, root]}), also.clone()),
                vec![foreign, root, naming],
            ),
            (
                allow(json!({"AWS": foreign}), json!("sts:Set*")),
                vec![foreign, naming],
            ),
            (
                allow(
                    json!({"Federated": github}),
                    json!("sts:AssumeRoleWithWebIdentity"),
                ),
                vec![github],
            ),
            (
                allow(json!({"Service": "ec2.amazonaws.com"}), assume.clone()),
                vec!["ec2.amazonaws.com"],
            ),
            (allow(json!({}), assume.clone()), vec!["cannot be read"]),
            (not_principal, vec!["NotPrincipal"]),
            (not_action, vec![root, naming]),
        ];
        for (other, told) in others {
            let mut policy = trusted().policy();
            policy["Statement"].as_array_mut().unwrap().push(other);
            let faults = trusted().faults_of(&policy, &[]);
            assert_eq!(faults.len(), told.len(), "{faults:?}");
            for (fault, told) in faults.iter().zip(told) {
                assert!(fault.contains(told), "{told}: {fault}");
            }
        }
        // An expected principal may be admitted but must not set a source identity like the
        // broker's.
        let mut policy = trusted().policy();
        policy["Statement"]
            .as_array_mut()
            .unwrap()
            .push(allow(json!({"AWS": root}), also));
        let faults = trusted().faults_of(&policy, &[root.to_owned()]);
        assert_eq!(faults.len(), 1);
        assert!(faults[0].contains(naming), "{faults:?}");
    }

    #[test]
    fn each_way_to_let_too_much_in_is_told() {
        let changed = |change: fn(&mut Value)| {
            let mut policy = trusted().policy();
            change(&mut policy["Statement"][0]);
            trusted().faults_of(&policy, &[])
        };
        let sub = "broker.example/federation/aws:sub";
        assert_eq!(sub, format!("{}:sub", trusted().key));
        let faults: [(Change, &str); 7] = [
            (|s| s["Effect"] = json!("Deny"), "no statement admits"),
            (|s| s["Condition"] = json!({}), "no StringEquals"),
            (
                |s| {
                    s["Condition"]["StringLike"] = s["Condition"]["StringEquals"].take();
                },
                "no StringEquals",
            ),
            (
                |s| {
                    s["Condition"]["StringEquals"]["broker.example/federation/aws:sub"] =
                        json!(["resource:reports-bucket", "resource:other"]);
                },
                "resource:other",
            ),
            (
                |s| {
                    s["Condition"]["StringEquals"]["broker.example/federation/aws:aud"] =
                        json!("sts.amazonaws.com.cn");
                },
                "aud",
            ),
            (
                |s| s["Action"] = json!("sts:AssumeRoleWithWebIdentity"),
                "sts:TagSession",
            ),
            (
                |s| {
                    s["Principal"] = json!("*");
                    s["Condition"] = json!({});
                },
                "no StringEquals",
            ),
        ];
        for (change, told) in faults {
            let faults = changed(change);
            assert!(
                faults.iter().any(|fault| fault.contains(told)),
                "{told}: {faults:?}"
            );
        }
        assert_eq!(trusted().faults_of(&json!("nonsense"), &[]).len(), 1);
    }
}
