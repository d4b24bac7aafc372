//! A judge of IAM policies that shares no code with the broker: iam-simulate, in a process of its
//! own (`tests/foreign/judge.mjs`). It knows AWS's actions, resources and conditions.

use serde_json::{Value, json};

use super::node;

/// The account in which everything is.
pub const ACCOUNT: &str = "123456789012";

/// One request to AWS, and the policies under which it is made.
#[derive(Clone, Debug)]
pub struct Question {
    action: String,
    resource: String,
    context: Value,
    role: Vec<Value>,
    session: Option<Value>,
    name: String,
}

/// What the judge says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may.
    Allowed,
    /// It may not.
    Denied(Denial),
}

/// Why it may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denial {
    /// A deny stands in the way, whatever else would allow.
    Explicit,
    /// Nothing allows it.
    Implicit,
}

impl Question {
    /// May a session of the role `reports`, whose own policy allows everything, do this? The session
    /// has no policy yet, and the request comes from nowhere in particular.
    pub fn new(action: &str, resource: &str) -> Self {
        Self {
            action: action.to_owned(),
            resource: resource.to_owned(),
            context: json!({}),
            role: vec![allowing_everything()],
            session: None,
            name: "tp-00000000000000000000000000000000".to_owned(),
        }
        .session_name("tp-00000000000000000000000000000000")
    }

    /// The session's name, which is also in `aws:userid`.
    #[must_use]
    pub fn session_name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self.with("aws:userid", &format!("AROAEXAMPLE:{name}"))
    }

    /// A key of the request's context.
    #[must_use]
    pub fn with(mut self, key: &str, value: &str) -> Self {
        self.context[key] = json!(value);
        self
    }

    /// The session's policy.
    #[must_use]
    pub fn session(mut self, policy: &Value) -> Self {
        self.session = Some(policy.clone());
        self
    }

    /// One more policy of the role, as an inline policy would be.
    #[must_use]
    pub fn role(mut self, policy: &Value) -> Self {
        self.role.push(policy.clone());
        self
    }

    /// This policy and no other as the role's.
    #[must_use]
    pub fn only_role(mut self, policy: &Value) -> Self {
        self.role = vec![policy.clone()];
        self
    }

    /// The same without a policy of the session, and with the role allowing everything.
    #[must_use]
    pub fn unconfined(mut self) -> Self {
        self.session = None;
        self.role = vec![allowing_everything()];
        self
    }

    fn line(&self) -> String {
        let mut line = json!({
            "principal": format!("arn:aws:sts::{ACCOUNT}:assumed-role/reports/{}", self.name),
            "action": self.action,
            "resource": self.resource,
            "account": ACCOUNT,
            "context": self.context,
            "role": self.role,
        });
        if let Some(session) = &self.session {
            line["session"] = session.clone();
        }
        line.to_string()
    }
}

/// A policy under which everything is allowed.
pub fn allowing_everything() -> Value {
    json!({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]})
}

/// The verdicts on all of these, from one run of the judge. A question that it cannot judge as it was
/// meant, because a policy is malformed or it does not know an action, fails the test.
pub fn ask(questions: &[Question]) -> Vec<Verdict> {
    let lines: Vec<String> = questions.iter().map(Question::line).collect();
    let ended = node::script("judge.mjs")
        .file("questions", lines.join("\n"))
        .run();
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr);
    let verdicts: Vec<Verdict> = ended
        .stdout
        .lines()
        .zip(questions)
        .map(|(answer, question)| verdict(answer, question))
        .collect();
    assert_eq!(verdicts.len(), questions.len());
    verdicts
}

fn verdict(answer: &str, question: &Question) -> Verdict {
    let answer: Value = serde_json::from_str(answer).unwrap();
    match answer["verdict"].as_str() {
        Some("Allowed") => Verdict::Allowed,
        Some("ExplicitlyDenied") => Verdict::Denied(Denial::Explicit),
        Some("ImplicitlyDenied") => Verdict::Denied(Denial::Implicit),
        _ => panic!("the judge cannot say: {answer}\n{question:?}"),
    }
}

/// Holds the judge to what is expected of each question, all in one run. A denial has to be the doing
/// of the policies under test: unconfined, the same request is allowed.
pub fn expect(expected: &[(Question, Verdict)]) {
    let mut questions: Vec<Question> = expected.iter().map(|(asked, _)| asked.clone()).collect();
    questions.extend(expected.iter().map(|(asked, _)| asked.clone().unconfined()));
    let verdicts = ask(&questions);
    let (under_test, unconfined) = verdicts.split_at(expected.len());
    for (((question, expected), got), free) in expected.iter().zip(under_test).zip(unconfined) {
        assert_eq!(got, expected, "{question:?}");
        assert_eq!(*free, Verdict::Allowed, "unconfined: {question:?}");
    }
}

mod tests {
    use super::*;

    #[test]
    fn the_judge_tells_allowed_from_denied_and_why() {
        let nothing_but = |action: &str| {
            json!({"Version": "2012-10-17", "Statement": [{
                "Effect": "Allow", "Action": action, "Resource": "*"
            }]})
        };
        let deny = json!({"Version": "2012-10-17", "Statement": [{
            "Effect": "Deny", "Action": "s3:*", "Resource": "*",
            "Condition": {"DateGreaterThanEquals": {"aws:CurrentTime": "2030-01-01T00:00:00Z"}}
        }]});
        let get = || Question::new("s3:GetObject", "arn:aws:s3:::b/k");
        expect(&[
            (get().session(&nothing_but("s3:Get*")), Verdict::Allowed),
            (
                get().session(&nothing_but("s3:Put*")),
                Verdict::Denied(Denial::Implicit),
            ),
            (
                get().only_role(&nothing_but("s3:Put*")),
                Verdict::Denied(Denial::Implicit),
            ),
            (
                get()
                    .role(&deny)
                    .with("aws:CurrentTime", "2030-01-01T00:00:00Z"),
                Verdict::Denied(Denial::Explicit),
            ),
            (
                get()
                    .role(&deny)
                    .with("aws:CurrentTime", "2029-12-31T23:59:59Z"),
                Verdict::Allowed,
            ),
        ]);
    }

    #[test]
    #[should_panic(expected = "the judge cannot say")]
    fn a_question_about_nothing_is_no_answer() {
        ask(&[Question::new("s3:NoSuchThing", "arn:aws:s3:::b/k")]);
    }
}
