//! An evaluator of IAM policies that shares no code with the broker: iam-simulate, in a process of
//! its own (`tests/foreign/judge.mjs`). It knows AWS's actions, resources and conditions.

use serde_json::{Value, json};

use super::node;

/// The account of every principal and resource.
pub const ACCOUNT: &str = "123456789012";

/// One request to AWS, with the policies that apply to it.
#[derive(Clone, Debug)]
pub struct Question {
    action: String,
    resource: String,
    context: Value,
    role: Vec<Value>,
    session: Option<Value>,
    name: String,
}

/// The evaluator's verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Allowed,
    Denied(Denial),
}

/// The reason of a denial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denial {
    /// A policy denies it, even if another policy allows it.
    Explicit,
    /// No policy allows it.
    Implicit,
}

impl Question {
    /// A request by a session of the role `reports`. The role's policy allows everything, the
    /// session has no policy yet, and the request's context is empty.
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

    /// Sets the session's name, which is also in `aws:userid`.
    #[must_use]
    pub fn session_name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self.with("aws:userid", &format!("AROAEXAMPLE:{name}"))
    }

    /// Sets a key of the request's context.
    #[must_use]
    pub fn with(mut self, key: &str, value: &str) -> Self {
        self.context[key] = json!(value);
        self
    }

    /// Sets the session policy.
    #[must_use]
    pub fn session(mut self, policy: &Value) -> Self {
        self.session = Some(policy.clone());
        self
    }

    /// Adds an inline policy to the role.
    #[must_use]
    pub fn role(mut self, policy: &Value) -> Self {
        self.role.push(policy.clone());
        self
    }

    /// Replaces all policies of the role by this one.
    #[must_use]
    pub fn only_role(mut self, policy: &Value) -> Self {
        self.role = vec![policy.clone()];
        self
    }

    /// Removes the session policy and lets the role allow everything.
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

/// A policy that allows everything.
pub fn allowing_everything() -> Value {
    json!({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]})
}

/// The verdicts on all questions, from one run of the evaluator. Fails if it cannot judge a
/// question as intended, because a policy is malformed or an action is unknown.
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

/// Asserts the expected verdict of each question, all in one run. A denial must come from the
/// policies under test: without them, the same request must be allowed.
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
