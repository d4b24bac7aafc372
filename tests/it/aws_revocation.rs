//! Ending one session of a role before it expires: the broker writes a policy of the role that
//! denies the session, writes the document as a whole, reads it back, and repairs it after another
//! writer changed it.
//!
//! One test uses moto's IAM for the whole flow. The others use a test IAM, which keeps documents,
//! counts calls and fails as it is told.

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
use taskpass::domain::revocability::{ExpiresBy, OpenSessions, Revocability, RevocationClass};
use taskpass::domain::session::SessionState;
use taskpass::domain::task::TaskEnd;
use taskpass::ids::SessionId;
use taskpass::store::Store;
use taskpass::sweep;
use wiremock::matchers::method;
use wiremock::{Mock, MockServer, ResponseTemplate};

use crate::support::judge::{self, Denial, Question, Verdict};
use crate::support::moto::Moto;
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
    let rig = Rig::with_aws(kind, &policies, aws, resources).await;
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

/// One of several sessions is revoked: the role denies that session and no other. The session
/// counts as ended once the broker has read the document back, the bound has passed, and the
/// document is still in place.
async fn one_of_many(kind: Kind) {
    let moto = Moto::start();
    let iam = moto.iam();
    for role in ["reports", "taskpass-revoker"] {
        iam.create_role()
            .role_name(role)
            .assume_role_policy_document(r#"{"Version":"2012-10-17","Statement":[]}"#)
            .send()
            .await
            .unwrap();
    }
    let rig = rig(kind, &moto.url(), 200).await;
    let all = issued(&rig, 5).await;
    let bounded = Revocability {
        class: RevocationClass::Bounded {
            bound_seconds: BOUND,
        },
        open_sessions: OpenSessions::None,
        expires_by: ExpiresBy::BackEnd,
    };
    assert_eq!(all[2].session.revocability, bounded);
    let one = all[2].session.id;
    rig.revoke(one).await;
    assert_eq!(state(&rig, one).await, SessionState::Ending);
    pass(&rig, 3).await;

    let request = iam.get_role_policy().role_name("reports");
    let policy = request.policy_name(POLICY).send().await.unwrap();
    let text = percent_encoding::percent_decode_str(policy.policy_document());
    let text = text.decode_utf8().unwrap();
    assert_eq!(named(&text), (vec![user(one)], 1));
    let standing = progress(&rig, one).await.unwrap();
    let written = standing.written_at.unwrap();

    pass(&rig, BOUND - 5).await;
    assert_eq!(state(&rig, one).await, SessionState::Ending);
    assert!(rig.now() < written.plus_seconds(BOUND));
    pass(&rig, 12).await;
    assert_eq!(state(&rig, one).await, SessionState::Ended);
    let session = rig.broker.core.store().session(one).await.unwrap().unwrap();
    assert!(session.confirmed_at.unwrap() >= written.plus_seconds(BOUND));
    for other in [0, 1, 3, 4].map(|n| all[n].session.id) {
        assert_eq!(state(&rig, other).await, SessionState::Active);
        assert_eq!(progress(&rig, other).await, None);
    }

    // A judge that is not part of the product evaluates the role's policy.
    let document: Value = serde_json::from_str(&text).unwrap();
    let mut questions = vec![(judged(&document, one), DENIED)];
    for other in [0, 1, 3, 4] {
        questions.push((judged(&document, all[other].session.id), Verdict::Allowed));
    }
    judge::expect(&questions);

    // Once all sessions have expired, the list is empty.
    pass(&rig, TTL).await;
    let request = iam.get_role_policy().role_name("reports");
    let policy = request.policy_name(POLICY).send().await.unwrap();
    let text = percent_encoding::percent_decode_str(policy.policy_document());
    assert_eq!(named(&text.decode_utf8().unwrap()), (vec![], 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_revoked_among_many_dies_alone_on_sqlite() {
    one_of_many(Kind::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_revoked_among_many_dies_alone_on_postgresql() {
    one_of_many(Kind::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_broker_writes_as_a_role_of_its_own_that_may_do_nothing_else() {
    let aws = Aws::start().await;
    let rig = rig(Kind::Sqlite, &aws.server.uri(), 200).await;
    let all = issued(&rig, 2).await;
    rig.revoke(all[0].session.id).await;
    pass(&rig, 3).await;
    rig.revoke(all[1].session.id).await;
    pass(&rig, 3).await;
    assert_eq!(aws.named().0.len(), 2);
    let own = aws.with(|iam| iam.own.clone());
    let [call] = &own[..] else {
        panic!("the broker reuses its own AWS session: {own:?}")
    };
    assert_eq!(
        (call["RoleArn"].as_str(), call["DurationSeconds"].as_str()),
        (REVOKER, "900")
    );
    assert_eq!(
        serde_json::from_str::<Value>(&call["Policy"]).unwrap(),
        json!({"Version": "2012-10-17", "Statement": [{
            "Effect": "Allow", "Action": ["iam:GetRolePolicy", "iam:PutRolePolicy"],
            "Resource": [ROLE]
        }]})
    );
    let (_, claims) = crate::support::keys::peek(&call["WebIdentityToken"]);
    assert_eq!(
        (&claims["sub"], &claims["aud"]),
        (&json!("revoker"), &json!("sts.amazonaws.com"))
    );
    let life = claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap();
    assert!(life <= 60);
    assert_eq!(claims.get("https://aws.amazon.com/tags"), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_document_that_was_written_over_is_put_right_and_nothing_counts_meanwhile() {
    let aws = Aws::start().await;
    let rig = rig(Kind::Sqlite, &aws.server.uri(), 200).await;
    let all = issued(&rig, 3).await;
    rig.revoke(all[0].session.id).await;
    pass(&rig, 3).await;
    let stale = aws.with(|iam| iam.document.clone());
    rig.revoke(all[1].session.id).await;
    pass(&rig, 3).await;
    assert_eq!(aws.named().1, 2);
    // A slow replica writes an old document that it read long ago.
    aws.with(|iam| iam.document = stale);
    pass(&rig, 65).await;
    let (users, number) = aws.named();
    assert_eq!((users.len(), number), (2, 3));
    let first = progress(&rig, all[0].session.id).await.unwrap();
    let second = progress(&rig, all[1].session.id).await.unwrap();
    assert!(
        second.written_at > first.written_at,
        "the bound starts again with the repair: {second:?}"
    );
    pass(&rig, 60).await;
    assert_eq!(
        state(&rig, all[0].session.id).await,
        SessionState::Ended,
        "it was named in every document"
    );
    assert_eq!(state(&rig, all[1].session.id).await, SessionState::Ending);
    pass(&rig, 130).await;
    assert_eq!(state(&rig, all[1].session.id).await, SessionState::Ended);

    // The broker also repairs a document in which a person changed a single word.
    aws.with(|iam| {
        iam.document = iam
            .document
            .as_ref()
            .map(|text| text.replace("Deny", "Allow"));
    });
    pass(&rig, 62).await;
    assert_eq!(aws.named().0.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_brokers_document_is_left_alone() {
    let aws = Aws::start().await;
    let rig = rig(Kind::Sqlite, &aws.server.uri(), 200).await;
    let foreign = json!({"Version": "2012-10-17", "Statement": [{
        "Sid": "TaskpassOtherG4", "Effect": "Deny", "Action": ["*"], "Resource": ["*"],
        "Condition": {"StringLike": {"aws:userid": ["*:tp-"]}}
    }]})
    .to_string();
    aws.with(|iam| iam.document = Some(foreign.clone()));
    let all = issued(&rig, 1).await;
    rig.revoke(all[0].session.id).await;
    pass(&rig, 10).await;
    assert_eq!(aws.with(|iam| iam.document.clone()), Some(foreign));
    assert_eq!(aws.with(|iam| iam.writes), 0);
    assert_eq!(state(&rig, all[0].session.id).await, SessionState::Ending);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_read_back_is_not_believed() {
    let aws = Aws::start().await;
    let rig = rig(Kind::Sqlite, &aws.server.uri(), 200).await;
    let all = issued(&rig, 1).await;
    let one = all[0].session.id;
    aws.with(|iam| iam.forgetting = true);
    rig.revoke(one).await;
    pass(&rig, BOUND + 60).await;
    assert_eq!(state(&rig, one).await, SessionState::Ending);
    assert_eq!(progress(&rig, one).await.unwrap().written_at, None);
    let tried = aws.with(|iam| iam.writes);
    assert!((3..12).contains(&tried), "attempts with pauses: {tried}");
    aws.with(|iam| iam.forgetting = false);
    pass(&rig, 200).await;
    assert!(progress(&rig, one).await.unwrap().written_at.is_some());
    pass(&rig, 200).await;
    assert_eq!(state(&rig, one).await, SessionState::Ended);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_iam_that_refuses_or_throttles_is_asked_again_until_the_session_is_over() {
    for code in ["AccessDenied", "Throttling", "NoSuchEntity"] {
        let aws = Aws::start().await;
        let rig = rig(Kind::Sqlite, &aws.server.uri(), 200).await;
        let all = issued(&rig, 1).await;
        let one = all[0].session.id;
        aws.with(|iam| iam.refusing = Some(code));
        rig.revoke(one).await;
        pass(&rig, 20).await;
        assert_eq!(state(&rig, one).await, SessionState::Ending, "{code}");
        let text = rig.broker.core.metrics().render();
        let failures = text
            .lines()
            .find(|line| line.starts_with("taskpass_deny_list_failures_total "));
        assert!(
            failures.is_some_and(|line| !line.ends_with(" 0")),
            "{code}: {failures:?}"
        );
        aws.with(|iam| iam.refusing = None);
        pass(&rig, 30).await;
        assert_eq!(aws.named().0, [user(one)], "{code}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_over_and_ends_by_itself_in_time_is_not_put_on_the_list_and_what_is_revoked_is() {
    let aws = Aws::start().await;
    let rig = rig(Kind::Sqlite, &aws.server.uri(), 200).await;
    let all = issued(&rig, 2).await;
    rig.clock.advance(TTL - BOUND + 1);
    rig.revoke(all[0].session.id).await;
    rig.end(&all[1], TaskEnd::Complete).await.unwrap();
    pass(&rig, 5).await;
    for (one, listed) in all.iter().zip([true, false]) {
        let standing = progress(&rig, one.session.id).await.unwrap();
        assert_eq!(standing.listed, listed, "{standing:?}");
        assert_eq!(state(&rig, one.session.id).await, SessionState::Ending);
    }
    assert_eq!(aws.named().0.len(), 1);
    pass(&rig, BOUND).await;
    assert_eq!(state(&rig, all[0].session.id).await, SessionState::Ended);
    assert_eq!(state(&rig, all[1].session.id).await, SessionState::Ended);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn completions_take_half_of_the_room_and_issuing_stops_before_it_is_full() {
    let aws = Aws::start().await;
    let rig = rig(Kind::Sqlite, &aws.server.uri(), 8).await;
    let all = issued(&rig, 14).await;
    for one in &all[..6] {
        rig.end(one, TaskEnd::Complete).await.unwrap();
    }
    pass(&rig, 3).await;
    let mut listed = Vec::new();
    for one in &all[..6] {
        listed.push(progress(&rig, one.session.id).await.unwrap().listed);
    }
    assert_eq!(listed.iter().filter(|listed| **listed).count(), 4);
    try_issue(&rig).await.unwrap();
    for one in &all[6..8] {
        rig.revoke(one.session.id).await;
    }
    pass(&rig, 3).await;
    let refused = try_issue(&rig).await.unwrap_err();
    assert!(matches!(refused, BrokerError::Overloaded), "{refused}");
    // Live sessions can still be revoked, up to the list's last entry.
    for one in &all[8..12] {
        rig.revoke(one.session.id).await;
    }
    pass(&rig, 3).await;
    assert_eq!(aws.named().0.len(), 8);
    let mut left = Vec::new();
    for one in &all[6..12] {
        let standing = progress(&rig, one.session.id).await.unwrap();
        if !standing.listed {
            left.push(one.session.id);
        }
    }
    assert_eq!(
        left.len(),
        2,
        "two sessions do not fit and stay valid until they expire"
    );
    assert_eq!(state(&rig, left[0]).await, SessionState::Ending);
    pass(&rig, TTL).await;
    assert_eq!(state(&rig, left[0]).await, SessionState::Ended);
    try_issue(&rig).await.unwrap();
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_admin_has_every_earlier_session_of_a_role_denied_at_once() {
    let aws = Aws::start().await;
    let rig = rig(Kind::Sqlite, &aws.server.uri(), 8).await;
    let all = issued(&rig, 12).await;
    rig.clock.advance(70);
    let late = issued(&rig, 1).await;
    rig.clock.advance(5);
    let admin = rig.admin();
    let done = rig
        .broker
        .revocation
        .revoke_many(&admin, revoke_resource(true))
        .await;
    let cutoff = done.unwrap().cutoff.unwrap();
    assert_eq!(cutoff.deny_policy_target.as_deref(), Some(ROLE));
    pass(&rig, 1).await;
    let after = issued(&rig, 1).await;
    pass(&rig, 3).await;
    let document = aws.with(|iam| iam.document.clone()).unwrap();
    let document: Value = serde_json::from_str(&document).unwrap();
    let at = cutoff.committed_at.floor_to_second().to_string();
    assert_eq!(
        document["Statement"][1],
        json!({"Effect": "Deny", "Action": ["*"], "Resource": ["*"], "Condition": {
            "DateLessThan": {"aws:TokenIssueTime": [at]},
            "Null": {"aws:PrincipalTag/TaskpassSession": ["false"]}
        }})
    );
    let made = |seconds: u64, session: SessionId| {
        judged(&document, session).with(
            "aws:TokenIssueTime",
            &cutoff
                .committed_at
                .minus_seconds(seconds)
                .floor_to_second()
                .to_string(),
        )
    };
    let tag = "aws:PrincipalTag/TaskpassSession";
    let (early, new) = (all[0].session.id, after[0].session.id);
    judge::expect(&[
        (made(70, early).with(tag, &early.to_string()), DENIED),
        (made(1, early).with(tag, &early.to_string()), DENIED),
        (made(0, new).with(tag, &new.to_string()), Verdict::Allowed),
        // Another principal, without the session tag, uses the same role.
        (made(70, new), Verdict::Allowed),
    ]);
    pass(&rig, BOUND + 70).await;
    for one in &all {
        assert_eq!(state(&rig, one.session.id).await, SessionState::Ended);
    }
    // STS may have made this session after the cutoff's instant, so the list names it.
    assert!(aws.named().0.contains(&user(late[0].session.id)));
    assert_eq!(state(&rig, late[0].session.id).await, SessionState::Ended);
    assert_eq!(state(&rig, after[0].session.id).await, SessionState::Active);
    // The cutoff's leaf holds the role's name, and the row's MAC covers it.
    let reread = rig
        .broker
        .revocation
        .revocation(&admin, cutoff.id)
        .await
        .unwrap();
    assert_eq!(
        reread.cutoff.unwrap().deny_policy_target.as_deref(),
        Some(ROLE)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_role_that_one_resource_has_to_itself_is_denied_as_a_whole() {
    let aws = Aws::start().await;
    let mut shared = bucket(8);
    shared["name"] = json!("other-bucket");
    let rig = rig_with(Kind::Sqlite, &aws.server.uri(), vec![bucket(8), shared]).await;
    let admin = rig.admin();
    for selector in [
        Selector::Resource("reports-bucket".into()),
        Selector::Resource("orders-api".into()),
        Selector::Resource("nowhere".into()),
        Selector::Attestor("dev".into()),
    ] {
        let ask = RevokeRequest {
            selector: selector.clone(),
            allow_unknown: true,
            ..revoke_resource(true)
        };
        let refused = rig.broker.revocation.revoke_many(&admin, ask).await;
        let Err(BrokerError::Invalid { pointer, detail }) = refused else {
            panic!("{selector:?}: {refused:?}")
        };
        assert_eq!(pointer, "/deny_all_earlier_sessions", "{detail}");
    }
    assert!(rig.broker.core.store().cutoffs(9).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mint_of_unknown_outcome_stays_denied_for_as_long_as_it_could_have_been_made() {
    let aws = Aws::start().await;
    let rig = rig(Kind::Sqlite, &aws.server.uri(), 200).await;
    aws.with(|iam| iam.mute_sts = true);
    assert!(try_issue(&rig).await.is_err());
    let sessions = rig
        .broker
        .core
        .store()
        .list_sessions(&taskpass::store::sessions::SessionFilter {
            limit: 9,
            ..Default::default()
        })
        .await
        .unwrap();
    let one = &sessions[0].session;
    // The lease must expire before the broker can assume that no mint is still running.
    pass(&rig, 70).await;
    assert_eq!(aws.named().0, [user(one.id)]);
    rig.clock.advance(TTL);
    pass(&rig, 3).await;
    assert_eq!(state(&rig, one.id).await, SessionState::Ended);
    assert_eq!(
        aws.named().0,
        [user(one.id)],
        "the session's own policy has expired, and the list still names it"
    );
    rig.clock.advance(900);
    pass(&rig, 3).await;
    assert!(aws.named().0.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_write_one_after_the_other_and_lose_nobody() {
    let aws = Aws::start().await;
    let rig = rig(Kind::Postgres, &aws.server.uri(), 200).await;
    let other = rig.replica().await;
    let all = issued(&rig, 24).await;
    for (n, one) in all.iter().enumerate() {
        rig.revoke(one.session.id).await;
        if n % 4 == 3 {
            rig.clock.advance(1);
            let now = rig.now();
            tokio::join!(
                sweep::sweep(&rig.broker, now),
                sweep::sweep(&other.broker, now)
            );
        }
    }
    pass(&rig, 70).await;
    let (users, number) = aws.named();
    assert_eq!(users.len(), 24);
    let writes = aws.with(|iam| iam.writes);
    assert_eq!(
        u64::try_from(writes).unwrap(),
        number,
        "each write has its own number, and the document holds the last one"
    );
    pass(&rig, BOUND + 10).await;
    for one in &all {
        assert_eq!(state(&rig, one.session.id).await, SessionState::Ended);
    }
    other.store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_of_a_role_that_its_resource_left_are_ended_where_they_were_made() {
    let aws = Aws::start().await;
    let rig = rig(Kind::Sqlite, &aws.server.uri(), 200).await;
    let all = issued(&rig, 1).await;
    activate(&rig, |resource| {
        resource["aws"]["role_arn"] = json!("arn:aws:iam::123456789012:role/moved");
    })
    .await;
    rig.revoke(all[0].session.id).await;
    pass(&rig, 3).await;
    assert_eq!(aws.named().0, [user(all[0].session.id)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_are_ended_as_they_were_promised_when_their_resource_gives_its_list_up() {
    let aws = Aws::start().await;
    let rig = rig(Kind::Sqlite, &aws.server.uri(), 200).await;
    let all = issued(&rig, 1).await;
    activate(&rig, |resource| {
        resource["aws"]
            .as_object_mut()
            .unwrap()
            .remove("revocation");
    })
    .await;
    rig.revoke(all[0].session.id).await;
    pass(&rig, 3).await;
    assert_eq!(aws.named().0, [user(all[0].session.id)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_a_workload_does_takes_the_room_that_an_admin_needs() {
    let aws = Aws::start().await;
    let rig = rig(Kind::Sqlite, &aws.server.uri(), 12).await;
    let all = issued(&rig, 10).await;
    // Sessions that a workload revokes itself use the same share of the list as those that end by
    // completion or by a missing heartbeat.
    for one in &all[..8] {
        let own = rig.evidence("agent:reports");
        rig.broker
            .revocation
            .revoke_session(&own, one.session.id)
            .await
            .unwrap();
    }
    pass(&rig, 3).await;
    assert_eq!(aws.named().0.len(), 6);
    try_issue(&rig).await.unwrap();
    let mut left = Vec::new();
    for one in &all[..8] {
        if !progress(&rig, one.session.id).await.unwrap().listed {
            left.push(one.session.id);
        }
    }
    // A session that has ended here, but lives on at AWS because the list was full, is denied when
    // an admin revokes it, by id or by a cutoff.
    rig.revoke(left[0]).await;
    pass(&rig, 3).await;
    assert!(aws.named().0.contains(&user(left[0])));
    assert_eq!(aws.named().0.len(), 7);
    let admin = rig.admin();
    rig.broker
        .revocation
        .revoke_many(&admin, revoke_resource(false))
        .await
        .unwrap();
    pass(&rig, 65).await;
    assert!(aws.named().0.contains(&user(left[1])));
    assert_eq!(aws.named().0.len(), 11);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_roles_denial_that_was_written_over_counts_from_its_return() {
    let aws = Aws::start().await;
    let rig = rig(Kind::Sqlite, &aws.server.uri(), 8).await;
    let all = issued(&rig, 1).await;
    rig.clock.advance(70);
    let admin = rig.admin();
    rig.broker
        .revocation
        .revoke_many(&admin, revoke_resource(true))
        .await
        .unwrap();
    pass(&rig, 5).await;
    // The document is removed, and IAM is unreachable for longer than the bound.
    aws.with(|iam| {
        iam.document = None;
        iam.refusing = Some("ServiceFailure");
    });
    pass(&rig, BOUND + 65).await;
    assert_eq!(state(&rig, all[0].session.id).await, SessionState::Ending);
    aws.with(|iam| iam.refusing = None);
    pass(&rig, BOUND - 10).await;
    assert!(
        aws.with(|iam| iam.document.is_some()),
        "the document is written again"
    );
    assert_eq!(state(&rig, all[0].session.id).await, SessionState::Ending);
    pass(&rig, BOUND + 70).await;
    assert_eq!(state(&rig, all[0].session.id).await, SessionState::Ended);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_is_ahead_of_our_records_loses_nobody() {
    let aws = Aws::start().await;
    let rig = rig(Kind::Sqlite, &aws.server.uri(), 200).await;
    let all = issued(&rig, 1).await;
    rig.revoke(all[0].session.id).await;
    pass(&rig, 3).await;
    // The list names a session that the restored store does not know.
    let stranger = SessionId::from(uuid::Uuid::from_u128(7));
    aws.with(|iam| {
        let own = format!("\"{}\"", user(all[0].session.id));
        // A document names the sessions in order.
        let both = format!("\"{}\",{own}", user(stranger));
        let text = iam.document.take().unwrap().replace(&own, &both);
        iam.document = Some(text.replace("G1\"", "G9\""));
    });
    pass(&rig, 65).await;
    assert!(aws.named().0.contains(&user(stranger)));
    rig.clock.advance(20);
    let more = issued(&rig, 1).await;
    rig.revoke(more[0].session.id).await;
    pass(&rig, 3).await;
    let (users, number) = aws.named();
    assert_eq!((users.len(), number), (3, 10));
    assert!(users.contains(&user(stranger)), "{users:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_is_not_denied_as_a_whole_while_a_resource_that_left_it_has_sessions_there() {
    let aws = Aws::start().await;
    let mut leaving = bucket(8);
    leaving["name"] = json!("other-bucket");
    let rig = rig_with(Kind::Sqlite, &aws.server.uri(), vec![bucket(8), leaving]).await;
    issued(&rig, 1).await;
    // The other resource now has the role to itself, but the first resource's sessions still live
    // there.
    activate(&rig, |resource| {
        resource["aws"]["role_arn"] = json!("arn:aws:iam::123456789012:role/moved");
    })
    .await;
    let ask = RevokeRequest {
        selector: Selector::Resource("other-bucket".into()),
        ..revoke_resource(true)
    };
    let refused = rig.broker.revocation.revoke_many(&rig.admin(), ask).await;
    let Err(BrokerError::Invalid { detail, .. }) = refused else {
        panic!("{refused:?}")
    };
    assert!(detail.contains("have not expired"), "{detail}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_issued_where_it_could_not_be_ended() {
    let aws = Aws::start().await;
    let rig = rig(Kind::Sqlite, &aws.server.uri(), 200).await;
    let all = issued(&rig, 1).await;
    aws.with(|iam| iam.refusing = Some("AccessDenied"));
    rig.revoke(all[0].session.id).await;
    pass(&rig, 5).await;
    try_issue(&rig).await.unwrap();
    pass(&rig, 250).await;
    let refused = try_issue(&rig).await.unwrap_err();
    assert!(matches!(refused, BrokerError::Overloaded), "{refused}");
    aws.with(|iam| iam.refusing = None);
    pass(&rig, 190).await;
    try_issue(&rig).await.unwrap();
}

/// The value of a metric; the metric must exist from the start.
fn metric(rig: &Rig, name: &str) -> u64 {
    let text = rig.broker.core.metrics().render();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let value = line.unwrap_or_else(|| panic!("no {name}: {text}"));
    value.trim().parse().unwrap()
}

const LISTED: &str = "taskpass_denied_sessions_total{outcome=\"listed\"}";
const LEFT: &str = "taskpass_denied_sessions_total{outcome=\"expires_naturally\"}";
const SHORT: &str = "taskpass_deny_lists_short";

/// The role's other inline policies leave space for fewer sessions than the registration states.
async fn a_list_without_room(kind: Kind) {
    let aws = Aws::start().await;
    let rig = rig(kind, &aws.server.uri(), 8).await;
    for alarm in [LISTED, LEFT, SHORT] {
        assert_eq!(
            metric(&rig, alarm),
            0,
            "{alarm} exists before anything happens"
        );
    }
    let all = issued(&rig, 6).await;
    aws.with(|iam| iam.most = Some(2));
    // Completed tasks' sessions ask for entries before the admin's revocations do.
    for one in &all[..3] {
        rig.end(one, TaskEnd::Complete).await.unwrap();
    }
    for one in &all[3..] {
        rig.revoke(one.session.id).await;
    }
    assert_eq!(
        metric(&rig, LISTED),
        0,
        "nothing is written and counted yet"
    );
    pass(&rig, 2).await;
    // The document names as many sessions as fit, those an admin revoked first, and the metric
    // counts only those.
    let (users, _) = aws.named();
    assert_eq!(users.len(), 2, "{users:?}");
    let is_named = |one: &&Issued| users.contains(&user(one.session.id));
    assert_eq!(all[3..].iter().filter(is_named).count(), 2);
    assert_eq!(metric(&rig, LISTED), 2);
    assert!(metric(&rig, LEFT) >= 4);
    assert_eq!(metric(&rig, SHORT), 1);
    // The broker refuses to issue for this role before it decides a request.
    let size = rig.broker.core.ledger().basis();
    let refused = try_issue(&rig).await.unwrap_err();
    assert!(matches!(refused, BrokerError::Overloaded), "{refused}");
    assert_eq!(rig.broker.core.ledger().basis(), size);
    // The other sessions are recorded as left to expiry, and they end when they expire.
    let left = all[3..]
        .iter()
        .find(|one| !is_named(one))
        .unwrap()
        .session
        .id;
    assert!(!progress(&rig, left).await.unwrap().listed);
    assert_eq!(state(&rig, left).await, SessionState::Ending);
    // Meanwhile the broker does not send IAM the oversized document again and again.
    let refused = aws.with(|iam| iam.too_large);
    pass(&rig, 120).await;
    assert!(aws.with(|iam| iam.too_large) <= refused + 3);
    pass(&rig, TTL).await;
    assert_eq!(state(&rig, left).await, SessionState::Ended);
    assert!(
        try_issue(&rig).await.is_err(),
        "the list's size is still limited"
    );
    // When the other policies are removed, the broker finds out by writing a list of the registered
    // size.
    aws.with(|iam| iam.most = Some(8));
    pass(&rig, 960).await;
    assert_eq!(metric(&rig, SHORT), 0);
    assert!(
        aws.named().0.is_empty(),
        "names that belong to no session are removed"
    );
    let one = issued(&rig, 1).await;
    rig.revoke(one[0].session.id).await;
    pass(&rig, 3).await;
    assert_eq!(aws.named().0, [user(one[0].session.id)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_issued_at_a_role_that_has_no_room_for_its_list_on_sqlite() {
    a_list_without_room(Kind::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_issued_at_a_role_that_has_no_room_for_its_list_on_postgresql() {
    a_list_without_room(Kind::Postgres).await;
}

/// A session that an admin revoked by id keeps its priority, however often the sweeper schedules it
/// again.
async fn admin_revocations_go_first(kind: Kind) {
    let aws = Aws::start().await;
    let rig = rig(kind, &aws.server.uri(), 4).await;
    let all = issued(&rig, 7).await;
    // Sessions that an admin revoked fill the list.
    for one in &all[..4] {
        rig.revoke(one.session.id).await;
    }
    rig.end(&all[4], TaskEnd::Complete).await.unwrap();
    pass(&rig, 3).await;
    assert_eq!(aws.named().0.len(), 4);
    // The admin revokes one session whose task was completed, and one that is live.
    for one in &all[4..6] {
        rig.revoke(one.session.id).await;
    }
    rig.end(&all[6], TaskEnd::Complete).await.unwrap();
    // The sweeper schedules each again, from the sessions' own records.
    pass(&rig, 130).await;
    assert_eq!(aws.named().0.len(), 4);
    for one in &all[4..] {
        assert!(!progress(&rig, one.session.id).await.unwrap().listed);
    }
    // Two entries become free: they go to the admin's two revocations, not to the completed task's
    // session.
    forget(&rig, &all[..2]).await;
    pass(&rig, 65).await;
    let users = aws.named().0;
    assert_eq!(users.len(), 4);
    for one in &all[4..6] {
        assert!(users.contains(&user(one.session.id)), "{users:?}");
    }
}

/// Deletes the entries, as after the sessions' expiry.
async fn forget(rig: &Rig, sessions: &[Issued]) {
    for one in sessions {
        let id = one.session.id.uuid();
        let text = "DELETE FROM deny_entry WHERE session_id = $1";
        match rig.broker.core.store() {
            Store::Postgres(_) => {
                let url = rig.database().url();
                let mut database = sqlx::PgConnection::connect(&url).await.unwrap();
                let deleted = sqlx::query(text).bind(id).execute(&mut database).await;
                assert_eq!(deleted.unwrap().rows_affected(), 1);
                database.close().await.unwrap();
            }
            Store::Sqlite(sqlite) => {
                let deleted = sqlx::query(text).bind(id).execute(sqlite.writer()).await;
                assert_eq!(deleted.unwrap().rows_affected(), 1);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_admins_revocation_by_id_goes_first_when_room_comes_free_on_sqlite() {
    admin_revocations_go_first(Kind::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_admins_revocation_by_id_goes_first_when_room_comes_free_on_postgresql() {
    admin_revocations_go_first(Kind::Postgres).await;
}

/// Entries that replicas import from IAM and entries that they request meanwhile together never
/// exceed the list's size.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_stands_with_more_names_than_registered_loses_none_of_them() {
    for kind in [Kind::Sqlite, Kind::Postgres] {
        let aws = Aws::start().await;
        let rig = rig(kind, &aws.server.uri(), 8).await;
        let all = issued(&rig, 2).await;
        rig.revoke(all[0].session.id).await;
        pass(&rig, 3).await;
        // The store was restored from a backup; the earlier registration allowed more entries.
        let strangers: Vec<String> = (1..=12_u128)
            .map(|n| user(SessionId::from(uuid::Uuid::from_u128(n))))
            .collect();
        aws.with(|iam| {
            let own = format!("\"{}\"", user(all[0].session.id));
            let more = strangers.iter().map(|name| format!("\"{name}\","));
            let text = iam.document.take().unwrap();
            let text = text.replace(&own, &format!("{}{own}", more.collect::<String>()));
            iam.document = Some(text.replace("G1\"", "G9\""));
        });
        // The next write must name all of them.
        rig.revoke(all[1].session.id).await;
        for _ in 0..70 {
            pass(&rig, 1).await;
            let (users, _) = aws.named();
            for name in strangers.iter().chain([&user(all[0].session.id)]) {
                assert!(
                    users.contains(name),
                    "a denied session is missing in the list: {name}"
                );
            }
            assert!(users.len() <= 13, "{users:?}");
        }
        let full = try_issue(&rig).await;
        assert!(matches!(full, Err(BrokerError::Overloaded)), "{full:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_adopted_has_its_room_and_no_list_is_larger_than_registered() {
    let aws = Aws::start().await;
    let rig = rig(Kind::Postgres, &aws.server.uri(), 8).await;
    let other = rig.replica().await;
    let all = issued(&rig, 10).await;
    rig.revoke(all[0].session.id).await;
    pass(&rig, 3).await;
    // The store was restored from a backup: the list names six sessions that the store does not
    // know.
    let strangers: Vec<String> = (1..=6_u128)
        .map(|n| user(SessionId::from(uuid::Uuid::from_u128(n))))
        .collect();
    aws.with(|iam| {
        let own = format!("\"{}\"", user(all[0].session.id));
        let more = strangers.iter().map(|name| format!("\"{name}\","));
        let text = iam.document.take().unwrap();
        let text = text.replace(&own, &format!("{}{own}", more.collect::<String>()));
        iam.document = Some(text.replace("G1\"", "G9\""));
    });
    for one in &all[1..] {
        rig.revoke(one.session.id).await;
    }
    for _ in 0..70 {
        rig.clock.advance(1);
        let now = rig.now();
        tokio::join!(
            sweep::sweep(&rig.broker, now),
            sweep::sweep(&other.broker, now)
        );
        assert!(aws.named().0.len() <= 8, "{:?}", aws.named());
    }
    let users = aws.named().0;
    assert_eq!(users.len(), 8);
    for name in strangers.iter().chain([&user(all[0].session.id)]) {
        assert!(
            users.contains(name),
            "a denied session is missing in the list: {name}"
        );
    }
    other.store.close().await;
}
