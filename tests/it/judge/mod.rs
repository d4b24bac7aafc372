//! The effective rights of AWS sessions, computed by an evaluator of IAM policies that shares no
//! code with the broker. The tests read the policies sent to STS and give them to that evaluator.
//! It also judges the comparison of patterns ([`patterns`]) and the policy that denies single
//! sessions.
//!
//! These tests do not show that AWS itself decides in the same way: see `docs/reference/aws-sessions.md`.

mod patterns;

use serde_json::{Value, json};
use taskpass::broker::issuance::Issued;
use taskpass::clock::Timestamp;
use taskpass::domain::request::{CredentialRequest, TaskSelector};

use crate::support::judge::{ACCOUNT, Denial, Question, Verdict, allowing_everything, expect};
use crate::support::rig::{BUCKET_POLICY, Kind, POLICIES, Rig, ask, job};
use crate::support::sts::Sts;

const MORE: &str = r#"
@id("account") @description("and may do whatever the account's own policies allow") @max_ttl("600")
permit (principal == Workload::dev::"dev:agent%3Areports", action, resource == Aws::"account");
@id("open-account") @description("the same, and leave")  @max_ttl("600")
permit (principal == Workload::dev::"dev:agent%3Areports", action, resource == Aws::"open-account");
"#;

const EXPLICIT: Verdict = Verdict::Denied(Denial::Explicit);
const IMPLICIT: Verdict = Verdict::Denied(Denial::Implicit);

async fn rig(aws: &str) -> Rig {
    let role = |more: Value| {
        let mut role = json!({
            "role_arn": format!("arn:aws:iam::{ACCOUNT}:role/reports"), "mode": "web_identity",
            "region": "eu-central-1", "endpoint": "aws",
        });
        for (name, value) in more.as_object().unwrap() {
            role[name] = value.clone();
        }
        role
    };
    let everything = json!([
        "arn:aws:s3:::*",
        format!("arn:aws:iam::{ACCOUNT}:*"),
        format!("arn:aws:sts::{ACCOUNT}:*")
    ]);
    let wide = |name: &str, more: Value| {
        json!({
            "name": name, "kind": "aws", "owner": "data", "actions": ["s3:*", "iam:*", "sts:*"],
            "locations": everything, "aws": role(more)
        })
    };
    let resources = vec![
        json!({
            "name": "bucket", "kind": "aws", "owner": "data",
            "actions": ["s3:*"], "locations": ["arn:aws:s3:::*"],
            "aws": role(json!({
                "regions": ["eu-central-1", "eu-west-1"],
                "source_networks": ["203.0.113.0/24", "2001:db8::/32"]
            }))
        }),
        wide("account", json!({})),
        wide("open-account", json!({"may_leave": true})),
    ];
    let policies = format!("{POLICIES}{BUCKET_POLICY}{MORE}");
    let rig = Rig::on(Kind::Sqlite)
        .policies(&policies)
        .aws(aws)
        .resources(resources)
        .start()
        .await;
    rig.broker.keys.follow(rig.now()).await.unwrap();
    rig
}

/// A session, and the session policy that the broker sent to STS.
async fn session(rig: &Rig, sts: &Sts, resource: &str, detail: Value) -> (Issued, Value) {
    let request = CredentialRequest {
        task: TaskSelector::Open(job()),
        resource: resource.into(),
        grant: serde_json::from_value(json!([detail])).unwrap(),
        ..ask(&["orders:read"])
    };
    let issued = rig.issue("agent:reports", request).await.unwrap();
    let policy = &sts.asked().await.pop().unwrap()["Policy"];
    (issued, serde_json::from_str(policy).unwrap())
}

fn reading() -> Value {
    json!({
        "type": "aws", "actions": ["s3:GetObject", "s3:GetObjectT*"],
        "resources": ["arn:aws:s3:::reports/team/*"], "region": "eu-central-1"
    })
}

/// A request within all of the session's conditions: in time, in the region, from the network.
fn in_order(action: &str, resource: &str, now: Timestamp) -> Question {
    Question::new(action, resource)
        .with("aws:RequestedRegion", "eu-central-1")
        .with("aws:SourceIp", "203.0.113.9")
        .with("aws:ViaAWSService", "false")
        .with("aws:CurrentTime", &now.to_string())
}

const OBJECT: &str = "arn:aws:s3:::reports/team/july.csv";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_may_what_was_granted_and_nothing_beside_it() {
    let sts = Sts::granting().await;
    let rig = rig(&sts.url()).await;
    let (issued, policy) = session(&rig, &sts, "bucket", reading()).await;
    let now = issued.session.issued_at;
    let asks = |action: &str, resource: &str| in_order(action, resource, now).session(&policy);
    let get = || asks("s3:GetObject", OBJECT);
    let mut expected = vec![
        (get(), Verdict::Allowed),
        (asks("s3:GetObjectTagging", OBJECT), Verdict::Allowed),
        (
            asks("s3:GetObject", "arn:aws:s3:::reports/team/a/b"),
            Verdict::Allowed,
        ),
        (get().with("aws:SourceIp", "2001:db8::7"), Verdict::Allowed),
        // A registered region that was not granted, and a region that is not registered.
        (get().with("aws:RequestedRegion", "eu-west-1"), IMPLICIT),
        (get().with("aws:RequestedRegion", "us-east-1"), EXPLICIT),
        (get().with("aws:SourceIp", "198.51.100.9"), EXPLICIT),
        (get().with("aws:SourceIp", "203.0.114.9"), EXPLICIT),
        (get().with("aws:SourceIp", "2001:db9::7"), EXPLICIT),
        // An AWS service that acts for the session, from an address of its own.
        (
            get()
                .with("aws:SourceIp", "198.51.100.9")
                .with("aws:ViaAWSService", "true"),
            Verdict::Allowed,
        ),
    ];
    for action in [
        "s3:PutObject",
        "s3:DeleteObject",
        "s3:GetObjectAcl",
        "s3:GetObjectVersion",
    ] {
        expected.push((asks(action, OBJECT), IMPLICIT));
    }
    for object in [
        "arn:aws:s3:::reports/teams/july.csv",
        "arn:aws:s3:::reports/july.csv",
        "arn:aws:s3:::reports/other/team/july.csv",
        "arn:aws:s3:::reports2/team/july.csv",
        "arn:aws:s3:::report/team/july.csv",
        "arn:aws:s3:::reports/Team/july.csv",
    ] {
        expected.push((asks("s3:GetObject", object), IMPLICIT));
    }
    for (action, resource) in [
        ("s3:ListBucket", "arn:aws:s3:::reports"),
        ("s3:ListAllMyBuckets", "*"),
        ("s3:PutBucketPolicy", "arn:aws:s3:::reports"),
        (
            "dynamodb:GetItem",
            "arn:aws:dynamodb:eu-central-1:123456789012:table/reports",
        ),
        ("secretsmanager:ListSecrets", "*"),
    ] {
        expected.push((asks(action, resource), IMPLICIT));
    }
    expect(&expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_is_over_at_its_end_and_not_a_second_later() {
    let sts = Sts::granting().await;
    let rig = rig(&sts.url()).await;
    let (issued, policy) = session(&rig, &sts, "bucket", reading()).await;
    let (start, end) = (issued.session.issued_at, issued.session.expires_at);
    assert!(
        start.seconds_until(end) <= 600,
        "AWS's shortest session is 900 s"
    );
    let at = |time: Timestamp| in_order("s3:GetObject", OBJECT, time).session(&policy);
    expect(&[
        (at(start), Verdict::Allowed),
        (
            at(Timestamp::from_seconds(end.seconds() - 1)),
            Verdict::Allowed,
        ),
        (at(end), EXPLICIT),
        (at(end.plus_seconds(1)), EXPLICIT),
        (at(start.plus_seconds(899)), EXPLICIT),
        (at(start.plus_seconds(86_400)), EXPLICIT),
    ]);
}

/// Actions with which a session could get other credentials or undo its own end.
const WAYS_OUT: &[(&str, &str)] = &[
    ("sts:AssumeRole", "role/other"),
    ("sts:AssumeRoot", "root"),
    ("sts:GetSessionToken", "*"),
    ("sts:GetWebIdentityToken", "*"),
    ("sts:GetDelegatedAccessToken", "*"),
    ("sts:GetServiceBearerToken", "*"),
    ("iam:CreateAccessKey", "user/other"),
    ("iam:UpdateAccessKey", "user/other"),
    ("iam:CreateLoginProfile", "user/other"),
    ("iam:UpdateLoginProfile", "user/other"),
    ("iam:CreateServiceSpecificCredential", "user/other"),
    ("iam:ResetServiceSpecificCredential", "user/other"),
    ("iam:UploadSSHPublicKey", "user/other"),
    ("iam:UploadSigningCertificate", "user/other"),
    ("iam:CreateDelegationRequest", "delegation-request/x"),
    ("iam:SendDelegationToken", "delegation-request/x"),
    ("iam:CreateRole", "role/new"),
    ("iam:CreateSAMLProvider", "saml-provider/new"),
    ("iam:UpdateSAMLProvider", "saml-provider/known"),
    (
        "iam:CreateOpenIDConnectProvider",
        "oidc-provider/new.example",
    ),
    (
        "iam:AddClientIDToOpenIDConnectProvider",
        "oidc-provider/known.example",
    ),
    (
        "iam:UpdateOpenIDConnectProviderThumbprint",
        "oidc-provider/known.example",
    ),
    ("iam:PassRole", "role/other"),
    ("iam:PutRolePolicy", "role/reports"),
    ("iam:DeleteRolePolicy", "role/reports"),
    ("iam:UpdateAssumeRolePolicy", "role/reports"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn there_is_no_way_out_of_a_session_but_where_the_resource_says_so() {
    let sts = Sts::granting().await;
    let rig = rig(&sts.url()).await;
    let detail = json!({"type": "aws", "actions": ["s3:*", "iam:*", "sts:*"]});
    let (issued, closed) = session(&rig, &sts, "account", detail.clone()).await;
    let (_, open) = session(&rig, &sts, "open-account", detail).await;
    let now = issued.session.issued_at;
    let mut expected = Vec::new();
    for (action, resource) in WAYS_OUT {
        let arn = match *resource {
            "*" => "*".to_owned(),
            resource => format!("arn:aws:iam::{ACCOUNT}:{resource}"),
        };
        let way = in_order(action, &arn, now);
        expected.push((way.clone().session(&closed), EXPLICIT));
        // A policy that names resources does not allow actions without a resource.
        let open_verdict = if arn == "*" {
            IMPLICIT
        } else {
            Verdict::Allowed
        };
        expected.push((way.session(&open), open_verdict));
    }
    let federated = format!("arn:aws:sts::{ACCOUNT}:federated-user/x");
    let federated = in_order("sts:GetFederationToken", &federated, now);
    expected.push((federated.session(&closed), EXPLICIT));
    // The rest of the granted rights are usable.
    for (action, resource) in [
        (
            "iam:GetRole",
            format!("arn:aws:iam::{ACCOUNT}:role/reports"),
        ),
        ("iam:GetUser", format!("arn:aws:iam::{ACCOUNT}:user/other")),
        ("s3:PutObject", OBJECT.to_owned()),
    ] {
        expected.push((
            in_order(action, &resource, now).session(&closed),
            Verdict::Allowed,
        ));
    }
    expect(&expected);
}

/// A policy of the role that denies these sessions everything.
fn denying(names: &[String]) -> Value {
    let ids: Vec<String> = names.iter().map(|name| format!("*:{name}")).collect();
    json!({"Version": "2012-10-17", "Statement": [{
        "Effect": "Deny", "Action": "*", "Resource": "*",
        "Condition": {"StringLike": {"aws:userid": ids}}
    }]})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deny_of_some_sessions_is_the_end_of_these_and_of_no_neighbour() {
    let sts = Sts::granting().await;
    let rig = rig(&sts.url()).await;
    let (revoked, policy) = session(&rig, &sts, "bucket", reading()).await;
    let (neighbour, other_policy) = session(&rig, &sts, "bucket", reading()).await;
    let name = |issued: &Issued| format!("tp-{}", issued.session.id.uuid().simple());
    let (revoked, neighbour) = (name(&revoked), name(&neighbour));
    let others = |n: u32| format!("tp-{n:032x}");
    let mut names: Vec<String> = (1..100).map(others).collect();
    names.push(revoked.clone());
    let deny = denying(&names);
    let now = rig.now();
    let asks = |name: &str, policy: &Value| {
        in_order("s3:GetObject", OBJECT, now)
            .session_name(name)
            .session(policy)
    };
    let mut expected = vec![
        (asks(&revoked, &policy), Verdict::Allowed),
        (asks(&revoked, &policy).role(&deny), EXPLICIT),
        (
            asks(&neighbour, &other_policy).role(&deny),
            Verdict::Allowed,
        ),
        (asks(&others(1), &policy).role(&deny), EXPLICIT),
        (asks(&others(99), &policy).role(&deny), EXPLICIT),
        (asks(&others(100), &policy).role(&deny), Verdict::Allowed),
        // The deny applies to every policy of the session and every role.
        (asks(&revoked, &allowing_everything()).role(&deny), EXPLICIT),
        (
            asks(&revoked, &policy)
                .with("aws:userid", &format!("AROAOTHER:{revoked}"))
                .role(&deny),
            EXPLICIT,
        ),
    ];
    // Similar names are not denied, because the document holds whole names.
    for alike in [
        format!("{revoked}0"),
        format!("x{revoked}"),
        revoked[..34].to_owned(),
    ] {
        expected.push((asks(&alike, &policy).role(&deny), Verdict::Allowed));
    }
    expect(&expected);
}
