//! Ending one session of a role before it expires: the broker writes a policy of the role that
//! denies the session, writes the document as a whole, reads it back, and repairs it after another
//! writer changed it.
//!
//! One test uses moto's IAM for the whole flow. The others use a test IAM, which keeps documents,
//! counts calls and fails as it is told.

mod denial;
mod role;
mod room;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use sqlx::Connection as _;
use taskpass::broker::BrokerError;
use taskpass::broker::issuance::Issued;
use taskpass::broker::revocation::{BlockRequest, RevokeRequest};
use taskpass::domain::cutoff::Selector;
use taskpass::domain::deny_list::RevocationProgress;
use taskpass::domain::request::{CredentialRequest, TaskSelector};
use taskpass::domain::session::SessionState;
use taskpass::domain::task::TaskEnd;
use taskpass::ids::SessionId;
use taskpass::sweep;
use wiremock::matchers::method;
use wiremock::{Mock, MockServer, ResponseTemplate};

use crate::support::judge::{self, Denial, Question, Verdict};
use crate::support::rig::{Kind, POLICIES, Rig, ask, job};
use crate::support::sts::expiration;

pub const ROLE: &str = "arn:aws:iam::123456789012:role/reports";
pub const REVOKER: &str = "arn:aws:iam::123456789012:role/taskpass-revoker";
const POLICY: &str = "TaskpassRevokedSessions";
const BOUND: u64 = 120;
const TTL: u64 = 600;
const DENIED: Verdict = Verdict::Denied(Denial::Explicit);

const MORE: &str = r#"
@id("bucket") @description("reports reads its bucket") @max_ttl("600")
permit (principal == Workload::dev::"dev:agent%3Areports", action in Action::"s3:Get*",
  resource == Aws::"reports-bucket");
"#;

fn bucket(entries: u32) -> Value {
    json!({
        "name": "reports-bucket", "kind": "aws", "owner": "data", "actions": ["s3:Get*"],
        "locations": ["arn:aws:s3:::reports/*"], "default_ttl_seconds": TTL,
        "aws": {
            "role_arn": ROLE, "mode": "web_identity", "region": "eu-central-1",
            "endpoint": "aws",
            "revocation": {
                "role_arn": REVOKER, "propagation_seconds": BOUND, "max_entries": entries,
                "endpoint": "aws"
            }
        }
    })
}

async fn rig_with(kind: Kind, aws: &str, resources: Vec<Value>) -> Rig {
    let policies = format!("{POLICIES}{MORE}");
    let rig = Rig::on(kind)
        .policies(&policies)
        .aws(aws)
        .resources(resources)
        .start()
        .await;
    rig.broker.keys.follow(rig.now()).await.unwrap();
    rig
}

pub async fn rig(kind: Kind, aws: &str, entries: u32) -> Rig {
    rig_with(kind, aws, vec![bucket(entries)]).await
}

async fn try_issue(rig: &Rig) -> Result<Issued, BrokerError> {
    let request = CredentialRequest {
        task: TaskSelector::Open(job()),
        resource: "reports-bucket".into(),
        grant: serde_json::from_value(json!([{
            "type": "aws", "actions": ["s3:GetObject"], "resources": ["arn:aws:s3:::reports/x"]
        }]))
        .unwrap(),
        ..ask(&["orders:read"])
    };
    rig.issue("agent:reports", request).await
}

pub async fn issued(rig: &Rig, count: usize) -> Vec<Issued> {
    let mut all = Vec::new();
    for _ in 0..count {
        all.push(try_issue(rig).await.unwrap());
    }
    all
}

/// Advances the clock by so many seconds and runs the sweeper once a second.
pub async fn pass(rig: &Rig, seconds: u64) {
    for _ in 0..seconds {
        rig.clock.advance(1);
        sweep::sweep(&rig.broker, rig.now()).await;
    }
}

async fn state(rig: &Rig, session: SessionId) -> SessionState {
    let view = rig.broker.core.store().session_view(session).await.unwrap();
    view.unwrap().status_at(rig.now()).state
}

async fn progress(rig: &Rig, session: SessionId) -> Option<RevocationProgress> {
    rig.broker
        .core
        .store()
        .revocation_progress(session)
        .await
        .unwrap()
}

/// Activates a generation in which the resource's registration is changed.
pub async fn activate(rig: &Rig, change: impl FnOnce(&mut Value)) {
    let (_, bytes) = rig
        .broker
        .administration
        .generation(&rig.admin())
        .await
        .unwrap();
    let mut generation: Value = serde_json::from_slice(&bytes).unwrap();
    let resources = generation["resources"].as_array_mut().unwrap();
    let own = resources
        .iter_mut()
        .find(|resource| resource["name"] == "reports-bucket");
    change(own.unwrap());
    let generation = serde_json::from_value(generation).unwrap();
    let activated = rig
        .broker
        .administration
        .activate_own("test", generation)
        .await;
    activated.unwrap();
}

/// The question whether the role's policies alone let a session read.
fn judged(document: &Value, session: SessionId) -> Question {
    Question::new("s3:GetObject", "arn:aws:s3:::reports/x")
        .session_name(&format!("tp-{}", session.uuid().simple()))
        .role(document)
}

fn user(session: SessionId) -> String {
    format!("*:tp-{}", session.uuid().simple())
}

/// The sessions that a deny document names, and the document's number.
fn named(document: &str) -> (Vec<String>, u64) {
    let document: Value = serde_json::from_str(document).unwrap();
    let listing = &document["Statement"][0];
    assert_eq!(
        (&listing["Effect"], &listing["Action"], &listing["Resource"]),
        (&json!("Deny"), &json!(["*"]), &json!(["*"]))
    );
    let users = listing["Condition"]["StringLike"]["aws:userid"].clone();
    let mut users: Vec<String> = serde_json::from_value(users).unwrap();
    assert_eq!(
        users.remove(0),
        "*:tp-",
        "the first entry matches no session"
    );
    let number = listing["Sid"].as_str().unwrap().rsplit_once('G').unwrap().1;
    (users, number.parse().unwrap())
}

/// A test STS that grants, and a test IAM that keeps documents.
pub struct Aws {
    pub server: MockServer,
    iam: Arc<Mutex<Iam>>,
}

#[derive(Default)]
pub struct Iam {
    pub document: Option<String>,
    writes: usize,
    /// Number of documents refused for their size.
    too_large: usize,
    reads: usize,
    /// The error code of a refusal; `None` while IAM works.
    refusing: Option<&'static str>,
    /// Number of sessions that fit into a document in addition to the role's other policies; `None`
    /// for no limit.
    most: Option<usize>,
    /// IAM acknowledges a write without storing the document.
    forgetting: bool,
    /// STS sends unreadable answers, except to the broker itself.
    mute_sts: bool,
    /// The form of each `AssumeRole` call in which the broker took its own role.
    pub own: Vec<BTreeMap<String, String>>,
}

impl Iam {
    fn answer(&mut self, form: &BTreeMap<String, String>) -> ResponseTemplate {
        let action = form["Action"].as_str();
        let xml = |body: String| ResponseTemplate::new(200).set_body_raw(body, "text/xml");
        let no = |status: u16, code: &str| {
            let body = format!(
                "<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>account \
                 123456789012</Message></Error><RequestId>1</RequestId></ErrorResponse>"
            );
            ResponseTemplate::new(status).set_body_raw(body, "text/xml")
        };
        if action.starts_with("AssumeRole") {
            let name = form["RoleSessionName"].as_str();
            if name == "taskpass-revoker" {
                self.own.push(form.clone());
            } else if self.mute_sts {
                return xml("<<<".into());
            }
            let expiration = expiration(form);
            let role = form["RoleArn"].rsplit_once('/').unwrap().1.to_owned();
            return xml(format!(
                "<{action}Response xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><{action}Result>\
                 <AssumedRoleUser><Arn>arn:aws:sts::123456789012:assumed-role/{role}/{name}</Arn>\
                 <AssumedRoleId>AROAEXAMPLE:{name}</AssumedRoleId></AssumedRoleUser><Credentials>\
                 <AccessKeyId>ASIAEXAMPLE</AccessKeyId><SecretAccessKey>made</SecretAccessKey>\
                 <SessionToken>token</SessionToken><Expiration>{expiration}</Expiration>\
                 </Credentials></{action}Result></{action}Response>"
            ));
        }
        assert_eq!(
            (form["RoleName"].as_str(), form["PolicyName"].as_str()),
            ("reports", POLICY)
        );
        if let Some(code) = self.refusing {
            return no(if code == "Throttling" { 429 } else { 403 }, code);
        }
        if action == "PutRolePolicy" {
            let count = named(&form["PolicyDocument"]).0.len();
            if self.most.is_some_and(|most| count > most) {
                self.too_large += 1;
                return no(409, "LimitExceeded");
            }
            self.writes += 1;
            if !self.forgetting {
                self.document = Some(form["PolicyDocument"].clone());
            }
            return xml("<PutRolePolicyResponse></PutRolePolicyResponse>".into());
        }
        self.reads += 1;
        match &self.document {
            None => no(404, "NoSuchEntity"),
            Some(document) => {
                let encoded: String =
                    url::form_urlencoded::byte_serialize(document.as_bytes()).collect();
                xml(format!(
                    "<GetRolePolicyResponse><GetRolePolicyResult><RoleName>reports</RoleName>\
                     <PolicyName>{POLICY}</PolicyName><PolicyDocument>{}</PolicyDocument>\
                     </GetRolePolicyResult></GetRolePolicyResponse>",
                    encoded.replace('+', "%20")
                ))
            }
        }
    }
}

impl Aws {
    pub async fn start() -> Self {
        let server = MockServer::start().await;
        let iam = Arc::new(Mutex::new(Iam::default()));
        let own = Arc::clone(&iam);
        let answer = move |request: &wiremock::Request| {
            let form = url::form_urlencoded::parse(&request.body)
                .into_owned()
                .collect();
            own.lock().unwrap().answer(&form)
        };
        Mock::given(method("POST"))
            .respond_with(answer)
            .mount(&server)
            .await;
        Self { server, iam }
    }

    pub fn with<T>(&self, look: impl FnOnce(&mut Iam) -> T) -> T {
        look(&mut self.iam.lock().unwrap())
    }

    pub fn named(&self) -> (Vec<String>, u64) {
        named(&self.with(|iam| iam.document.clone().unwrap()))
    }
}

pub fn revoke_resource(deny_all_earlier_sessions: bool) -> RevokeRequest {
    RevokeRequest {
        selector: Selector::Resource("reports-bucket".into()),
        block: BlockRequest::Default,
        deny_all_earlier_sessions,
        reason: "incident".into(),
        allow_unknown: false,
        dry_run: false,
    }
}

/// The value of a metric; the metric must exist from the start.
fn metric(rig: &Rig, name: &str) -> u64 {
    let text = rig.broker.core.metrics().render();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let value = line.unwrap_or_else(|| panic!("no {name}: {text}"));
    value.trim().parse().unwrap()
}
