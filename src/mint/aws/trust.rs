//! The trust policy that a role needs to be assumed by the broker's federation and by nobody else
//! who comes through it: as it should be, and what is wrong with one that stands.

use serde_json::{Value, json};

use super::federation;
use crate::domain::aws::RoleArn;

/// What the broker does with the role of a resource.
const ACTIONS: [&str; 3] = [
    "sts:AssumeRoleWithWebIdentity",
    "sts:TagSession",
    "sts:SetSourceIdentity",
];

/// Who may come in: one subject of the broker's federation.
#[derive(Clone, Debug)]
pub struct Trusted {
    provider: String,
    /// How conditions name the provider.
    key: String,
    audience: &'static str,
    subject: String,
    actions: &'static [&'static str],
}

impl Trusted {
    /// The resource of this name, at its role, for a broker of this issuer.
    #[must_use]
    pub fn resource(issuer: &str, role_arn: &str, name: &str) -> Option<Self> {
        Self::new(issuer, role_arn, format!("resource:{name}"), &ACTIONS)
    }

    /// The broker itself, at the role by which it writes what roles deny.
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

    /// The policy.
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

    /// What is wrong with a policy that stands. What it says of others is not judged.
    #[must_use]
    pub fn faults_of(&self, policy: &Value) -> Vec<String> {
        let statements = policy.get("Statement").map(many).unwrap_or_default();
        let ours: Vec<&Value> = statements
            .into_iter()
            .filter(|statement| statement.get("Effect").and_then(Value::as_str) == Some("Allow"))
            .filter(|statement| self.lets_the_provider_in(statement))
            .collect();
        if ours.is_empty() {
            return vec![format!("nothing lets {} in", self.provider)];
        }
        ours.into_iter()
            .flat_map(|statement| self.faults_of_statement(statement))
            .collect()
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
                    "`{key}` lets in {} and should let in `{wanted}` alone",
                    others.join(", ")
                )),
                None => faults.push(format!(
                    "no StringEquals on `{key}`: it should be `{wanted}`; without it every \
                     resource of the broker, or every broker's token, is let in"
                )),
            }
        }
        let actions = statement.get("Action").map(texts).unwrap_or_default();
        let allowed = |wanted: &str| {
            actions
                .iter()
                .any(|own| ["*", "sts:*"].contains(own) || own.eq_ignore_ascii_case(wanted))
        };
        let missing = self.actions.iter().filter(|wanted| !allowed(wanted));
        faults.extend(missing.map(|wanted| {
            format!("`{wanted}` is not allowed: AWS will refuse the broker's calls")
        }));
        faults
    }
}

/// A member by its name, which IAM compares without case.
fn member<'a>(object: &'a Value, name: &str) -> Option<&'a Value> {
    let mut members = object.as_object()?.iter();
    members.find_map(|(own, value)| own.eq_ignore_ascii_case(name).then_some(value))
}

/// IAM writes one thing with or without a list around it.
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
        assert_eq!(trusted().faults_of(&policy), Vec::<String>::new());
        let revoker = Trusted::revoker(ISSUER, ROLE).unwrap();
        assert_eq!(revoker.faults_of(&revoker.policy()), Vec::<String>::new());
        assert_eq!(trusted().faults_of(&revoker.policy()).len(), 3);
        // As IAM may give it back, and beside a statement about others.
        let mut single = policy.clone();
        single["Statement"] = json!([
            {"Effect": "Allow", "Principal": {"AWS": "arn:aws:iam::123456789012:root"},
             "Action": "sts:AssumeRole"},
            policy["Statement"][0].clone()
        ]);
        let keys = &mut single["Statement"][1]["Condition"]["StringEquals"];
        keys["broker.example/federation/aws:sub"] = json!(["resource:reports-bucket"]);
        assert_eq!(trusted().faults_of(&single), Vec::<String>::new());
        single["Statement"] = single["Statement"][1].clone();
        assert_eq!(trusted().faults_of(&single), Vec::<String>::new());
    }

    #[test]
    fn each_way_to_let_too_much_in_is_told() {
        let changed = |change: fn(&mut Value)| {
            let mut policy = trusted().policy();
            change(&mut policy["Statement"][0]);
            trusted().faults_of(&policy)
        };
        let sub = "broker.example/federation/aws:sub";
        assert_eq!(sub, format!("{}:sub", trusted().key));
        let faults: [(Change, &str); 7] = [
            (|s| s["Effect"] = json!("Deny"), "nothing lets"),
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
        assert_eq!(trusted().faults_of(&json!("nonsense")).len(), 1);
    }
}
