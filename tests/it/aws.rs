//! Sessions of roles in AWS: the request to STS, the released credential, and the state that
//! remains when STS refuses, lies, answers late or is unreachable.
//!
//! Two servers stand in for AWS: moto's server, which keeps roles and sessions and can identify a
//! caller, and a test STS, which records requests and answers as it is told.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use secrecy::ExposeSecret;
use serde_json::{Value, json};
use taskpass::broker::BrokerError;
use taskpass::broker::issuance::Issued;
use taskpass::domain::kind::MinterKind;
use taskpass::domain::request::{CredentialRequest, TaskSelector};
use taskpass::domain::session::{EndReason, SessionState};
use taskpass::mint::Credential;
use taskpass::store::sessions::SessionFilter;
use wiremock::ResponseTemplate;

use crate::support::canary::Canaries;
use crate::support::keys::{peek, verifies};
use crate::support::moto::Moto;
use crate::support::rig::{Kind, POLICIES, Rig, ask, job, refusal};
use crate::support::sts::{Sts, form, granted, refusal_of};

const ROLE: &str = "arn:aws:iam::123456789012:role/reports";

const MORE: &str = r#"
@id("bucket") @description("reports reads its bucket") @max_ttl("600")
permit (principal == Workload::dev::"dev:agent%3Areports", action in Action::"s3:Get*",
  resource == Aws::"reports-bucket");
@id("bucket-list") @description("and lists it") @max_ttl("600")
permit (principal == Workload::dev::"dev:agent%3Areports", action == Action::"s3:ListBucket",
  resource == Aws::"reports-bucket");
@id("no-acl") @description("nobody reads access lists")
forbid (principal, action == Action::"s3:GetObjectAcl", resource == Aws::"reports-bucket");
@id("own-role") @description("reports uses the other role too")
permit (principal == Workload::dev::"dev:agent%3Areports", action in Action::"s3:Get*",
  resource == Aws::"assumed-bucket");
"#;

fn resource(name: &str, mode: &str) -> Value {
    json!({
        "name": name, "kind": "aws", "owner": "data",
        "actions": ["s3:Get*", "s3:GetObjectAcl", "s3:ListBucket", "s3:*"],
        "locations": ["arn:aws:s3:::reports", "arn:aws:s3:::reports/*"],
        "aws": {
            "role_arn": ROLE, "mode": mode, "region": "eu-central-1", "endpoint": "aws",
            "regions": ["eu-central-1", "eu-west-1"]
        }
    })
}

/// A rig on SQLite: the requests to AWS do not depend on the store.
pub async fn rig(aws: &str) -> Rig {
    rig_on(Kind::Sqlite, aws).await
}

pub async fn rig_on(kind: Kind, aws: &str) -> Rig {
    let resources = vec![
        resource("reports-bucket", "web_identity"),
        resource("assumed-bucket", "assume_role"),
    ];
    let policies = format!("{POLICIES}{MORE}");
    Rig::on(kind)
        .policies(&policies)
        .aws(aws)
        .resources(resources)
        .start()
        .await
}

pub fn wanting(resource: &str, detail: Value) -> CredentialRequest {
    CredentialRequest {
        task: TaskSelector::Open(job()),
        resource: resource.into(),
        grant: serde_json::from_value(json!([detail])).unwrap(),
        ..ask(&["orders:read"])
    }
}

pub fn reading() -> Value {
    json!({
        "type": "aws", "actions": ["s3:GetObject"], "resources": ["arn:aws:s3:::reports/team/*"],
        "region": "eu-central-1"
    })
}

async fn asked(rig: &Rig, detail: Value) -> Result<Issued, BrokerError> {
    rig.issue("agent:reports", wanting("reports-bucket", detail))
        .await
}

/// The state of the last request's session, and why it ended.
pub async fn last_session(rig: &Rig) -> Option<(SessionState, Option<EndReason>)> {
    let filter = SessionFilter {
        limit: 100,
        ..SessionFilter::default()
    };
    let all = rig
        .broker
        .core
        .store()
        .list_sessions(&filter)
        .await
        .unwrap();
    let last = all.iter().max_by_key(|view| view.session.leaf_index)?;
    Some((last.session.state, last.session.end_reason))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_permit_becomes_a_session_that_is_named_tagged_and_confined() {
    let sts = Sts::granting().await;
    let rig = rig(&sts.url()).await;
    let issued = asked(&rig, reading()).await.unwrap();
    let session = &issued.session;
    let name = format!("tp-{}", session.id.uuid().simple());
    let Credential::AwsSts {
        secret_access_key,
        session_token,
        expiration,
        region,
        ..
    } = &issued.credential
    else {
        panic!("{:?}", issued.credential);
    };
    assert_eq!(
        secret_access_key.expose_secret(),
        format!("made-for-{name}")
    );
    assert_eq!(session_token.expose_secret(), format!("token-of-{name}"));
    let mut canaries = Canaries::new();
    canaries.add("secret access key", secret_access_key.expose_secret());
    canaries.add("session token", session_token.expose_secret());
    canaries.assert_absent_in(rig.directory());
    canaries.assert_absent_in_text("Debug", format!("{issued:?}"));
    assert_eq!(
        (region.as_str(), *expiration),
        ("eu-central-1", session.expires_at)
    );
    assert!(!format!("{:?}", issued.credential).contains("made-for"));
    assert_eq!(session.state, SessionState::Active);
    assert_eq!(
        (session.audience.as_str(), session.minter),
        (ROLE, MinterKind::Aws)
    );

    let asked = sts.asked().await;
    let [call] = &asked[..] else {
        panic!("{asked:?}")
    };
    assert_eq!(call["Action"], "AssumeRoleWithWebIdentity");
    assert_eq!(
        (call["RoleArn"].as_str(), call["RoleSessionName"].as_str()),
        (ROLE, name.as_str())
    );
    assert_eq!(
        call["DurationSeconds"], "900",
        "AWS's shortest session is 900 s"
    );
    let policy: Value = serde_json::from_str(&call["Policy"]).unwrap();
    assert_eq!(
        policy["Statement"][0]["Resource"],
        json!(["arn:aws:s3:::reports/team/*"])
    );
    let end = &policy["Statement"][1]["Condition"]["DateGreaterThanEquals"]["aws:CurrentTime"];
    assert_eq!(
        end,
        &json!([session.expires_at]),
        "the session policy holds the session's end"
    );

    let token = &call["WebIdentityToken"];
    let (header, claims) = peek(token);
    let jwks = rig.broker.keys.federation_jwks();
    let jwk = &jwks["keys"][0];
    assert_eq!(header["kid"], jwk["kid"]);
    assert!(verifies(token, jwk));
    assert!(
        !rig.broker
            .keys
            .published_jwks()
            .to_string()
            .contains(jwk["x"].as_str().unwrap())
    );
    assert_eq!(claims["iss"], "http://127.0.0.1:7070/federation/aws");
    assert_eq!(
        (&claims["sub"], &claims["aud"]),
        (
            &json!("resource:reports-bucket"),
            &json!("sts.amazonaws.com")
        )
    );
    assert!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap() <= 60);
    let leaf = base64url(&issued.receipt.leaf_hash.as_bytes()[..]);
    assert_eq!(
        claims["https://aws.amazon.com/source_identity"],
        json!(leaf)
    );
    let tags = &claims["https://aws.amazon.com/tags"];
    assert_eq!(
        tags["principal_tags"]["TaskpassSession"],
        json!([session.id.to_string()])
    );
    assert_eq!(tags["principal_tags"]["TaskpassDecision"], json!([leaf]));
    assert_eq!(tags["transitive_tag_keys"].as_array().unwrap().len(), 2);
    // The broker does not accept the token as an attestation or as a credential.
    let introspected = rig
        .broker
        .verification
        .introspect(&rig.admin(), &token.clone().into())
        .await
        .unwrap();
    assert!(matches!(
        introspected.introspection,
        taskpass::broker::verification::introspect::Introspection::Inactive
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_asked_of_sts_that_policy_and_registration_do_not_give() {
    let sts = Sts::granting().await;
    let rig = rig(&sts.url()).await;
    let detail = |name: &str, value: Value| {
        let mut detail = reading();
        detail[name] = value;
        detail
    };
    let many: Vec<String> = (0..16)
        .map(|n| format!("arn:aws:s3:::reports/{n}-{}", "x".repeat(120)))
        .collect();
    for (detail, code) in [
        (detail("actions", json!(["s3:PutObject"])), "not-permitted"),
        (
            detail("actions", json!(["iam:CreateUser"])),
            "unknown-action",
        ),
        (detail("actions", json!(["s3:*"])), "not-permitted"),
        // `s3:Get*` is permitted, but it includes the forbidden `s3:GetObjectAcl`.
        (detail("actions", json!(["s3:Get*"])), "not-permitted"),
        (
            detail("actions", json!(["s3:getobjectacl"])),
            "not-permitted",
        ),
        (
            detail("actions", json!(["s3:GetObject?cl"])),
            "not-permitted",
        ),
        (
            detail("resources", json!(["arn:aws:s3:::*"])),
            "unknown-location",
        ),
        (
            detail("resources", json!(["arn:aws:s3:::reports*"])),
            "unknown-location",
        ),
        (
            detail("resources", json!(["arn:aws-cn:s3:::reports/x"])),
            "unknown-location",
        ),
        (detail("region", json!("us-east-1")), "unknown-location"),
        (detail("resources", json!(many)), "too-many-rights"),
        (
            json!({"type": "api", "actions": ["s3:GetObject"]}),
            "unknown-action",
        ),
    ] {
        let told = refusal(asked(&rig, detail.clone()).await);
        assert!(told.contains(code), "{detail}: {told}");
    }
    let other = rig
        .issue("agent:orders", wanting("reports-bucket", reading()))
        .await;
    assert!(refusal(other).contains("not-permitted"));
    let api = rig
        .issue("agent:reports", wanting("orders-api", reading()))
        .await;
    assert!(refusal(api).contains("unknown-action"));
    assert!(sts.asked().await.is_empty());
    assert_eq!(last_session(&rig).await, None);
    asked(
        &rig,
        detail(
            "actions",
            json!(["s3:GetObject", "s3:GetObjectT*", "s3:ListBucket"]),
        ),
    )
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_sts_refuses_was_not_made_and_nobody_reads_its_words() {
    for (code, overloaded) in [
        ("AccessDenied", false),
        ("MalformedPolicyDocument", false),
        ("InvalidParameterValue", false),
        ("ExpiredTokenException", false),
        ("Throttling", true),
    ] {
        let sts = Sts::refusing(400, code).await;
        let rig = rig(&sts.url()).await;
        let error = asked(&rig, reading()).await.unwrap_err();
        assert_eq!(
            matches!(error, BrokerError::Overloaded),
            overloaded,
            "{code}: {error}"
        );
        assert!(!error.to_string().contains("SECRET"), "{error}");
        let ended = Some((SessionState::Ended, Some(EndReason::Failed)));
        assert_eq!(last_session(&rig).await, ended, "{code}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_else_sts_answers_is_taken_for_a_session() {
    type Answer = Box<dyn Fn(&wiremock::Request) -> ResponseTemplate + Send + Sync>;
    let told = |change: fn(String) -> String| -> Answer {
        Box::new(move |request| {
            let body = change(granted(&form(&request.body)));
            ResponseTemplate::new(200).set_body_raw(body, "text/xml")
        })
    };
    let raw = |status: u16, body: &'static str| -> Answer {
        Box::new(move |_| ResponseTemplate::new(status).set_body_raw(body, "text/xml"))
    };
    let answers: Vec<(&str, Answer)> = vec![
        (
            "another session",
            told(|body| body.replace("assumed-role/reports/tp-", "assumed-role/reports/tq-")),
        ),
        (
            "another account",
            told(|body| body.replace("sts::123456789012", "sts::999999999999")),
        ),
        ("no key", told(|body| body.replace("ASIAEXAMPLE", ""))),
        (
            "a key with a line in it",
            told(|body| body.replace("ASIAEXAMPLE", "ASIA\nX")),
        ),
        (
            "no credentials",
            told(|body| body.replace("Credentials>", "Nothing>")),
        ),
        ("nonsense", raw(200, "<<<")),
        ("a page", raw(200, "<html>welcome</html>")),
        ("an internal error", raw(500, "")),
        (
            "an unknown refusal",
            raw(
                400,
                "<ErrorResponse><Error><Code>Odd</Code></Error></ErrorResponse>",
            ),
        ),
    ];
    for (what, answer) in answers {
        let sts = Sts::answering(answer).await;
        let rig = rig(&sts.url()).await;
        let error = asked(&rig, reading()).await.unwrap_err();
        assert!(
            matches!(error, BrokerError::FailClosed(_)),
            "{what}: {error}"
        );
        let ending = Some((SessionState::Ending, Some(EndReason::Failed)));
        assert_eq!(last_session(&rig).await, ending, "{what}");
    }
    // STS is unreachable.
    let rig = rig("http://127.0.0.1:9").await;
    assert!(matches!(
        asked(&rig, reading()).await,
        Err(BrokerError::FailClosed(_))
    ));
    assert_eq!(last_session(&rig).await.unwrap().1, Some(EndReason::Failed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_says_nothing_of_an_earlier_try_that_was_lost() {
    let calls = AtomicU32::new(0);
    let sts = Sts::answering(move |_: &wiremock::Request| {
        if calls.fetch_add(1, Ordering::SeqCst) == 0 {
            // AWS may have made the session before this error.
            return ResponseTemplate::new(500);
        }
        ResponseTemplate::new(400).set_body_raw(refusal_of("AccessDenied"), "text/xml")
    })
    .await;
    let rig = rig(&sts.url()).await;
    assert!(asked(&rig, reading()).await.is_err());
    assert_eq!(sts.asked().await.len(), 2);
    let ending = Some((SessionState::Ending, Some(EndReason::Failed)));
    assert_eq!(last_session(&rig).await, ending);
    // Throttling means that AWS made no session, so a refusal after it is definite.
    let calls = AtomicU32::new(0);
    let sts = Sts::answering(move |_: &wiremock::Request| {
        let first = calls.fetch_add(1, Ordering::SeqCst) == 0;
        let code = if first { "Throttling" } else { "AccessDenied" };
        ResponseTemplate::new(400).set_body_raw(refusal_of(code), "text/xml")
    })
    .await;
    let rig = self::rig(&sts.url()).await;
    assert!(asked(&rig, reading()).await.is_err());
    assert_eq!(sts.asked().await.len(), 2);
    let ended = Some((SessionState::Ended, Some(EndReason::Failed)));
    assert_eq!(last_session(&rig).await, ended);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redirect_is_not_followed() {
    let elsewhere = Sts::granting().await;
    let target = elsewhere.url();
    let sts =
        Sts::answering(ResponseTemplate::new(307).insert_header("location", target.as_str())).await;
    let rig = rig(&sts.url()).await;
    assert!(asked(&rig, reading()).await.is_err());
    assert!(
        elsewhere.asked().await.is_empty(),
        "the token was sent to another server"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_sts_that_dawdles_is_left_in_time() {
    let slow = ResponseTemplate::new(200).set_delay(Duration::from_mins(1));
    let sts = Sts::answering(slow).await;
    let rig = rig(&sts.url()).await;
    let begin = std::time::Instant::now();
    assert!(matches!(
        asked(&rig, reading()).await,
        Err(BrokerError::FailClosed(_))
    ));
    assert!(
        begin.elapsed() < Duration::from_secs(30),
        "{:?}",
        begin.elapsed()
    );
    assert_eq!(
        last_session(&rig).await,
        Some((SessionState::Ending, Some(EndReason::Failed)))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_of_moto_is_who_it_says() {
    let moto = Moto::start();
    let rig = rig(&moto.url()).await;
    let issued = asked(&rig, reading()).await.unwrap();
    let Credential::AwsSts {
        access_key_id,
        secret_access_key,
        session_token,
        ..
    } = &issued.credential
    else {
        panic!("{:?}", issued.credential);
    };
    let credentials = aws_sdk_sts::config::Credentials::new(
        access_key_id,
        secret_access_key.expose_secret(),
        Some(session_token.expose_secret().to_owned()),
        None,
        "test",
    );
    let config = aws_sdk_sts::Config::builder()
        .behavior_version_latest()
        .region(aws_sdk_sts::config::Region::new("eu-central-1"))
        .endpoint_url(moto.url())
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .credentials_provider(credentials)
        .build();
    let caller = aws_sdk_sts::Client::from_conf(config)
        .get_caller_identity()
        .send()
        .await
        .unwrap();
    let expected = format!(
        "arn:aws:sts::123456789012:assumed-role/reports/tp-{}",
        issued.session.id.uuid().simple()
    );
    assert_eq!(caller.arn(), Some(expected.as_str()));
}

fn base64url(bytes: &[u8]) -> String {
    crate::support::keys::base64url(bytes)
}
