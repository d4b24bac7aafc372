//! A test STS, which records requests and answers as it is told.

use std::collections::BTreeMap;

use taskpass::clock::Timestamp;
use wiremock::matchers::method;
use wiremock::{Mock, MockServer, ResponseTemplate};

use super::issuer::unix_seconds;
use super::keys::peek;

/// A running STS.
pub struct Sts(MockServer);

impl Sts {
    /// An STS that answers in this way.
    pub async fn answering(answer: impl wiremock::Respond + 'static) -> Self {
        let server = MockServer::start().await;
        Mock::given(method("POST"))
            .respond_with(answer)
            .mount(&server)
            .await;
        Self(server)
    }

    pub fn url(&self) -> String {
        self.0.uri()
    }

    /// An STS that grants every request.
    pub async fn granting() -> Self {
        Self::answering(|request: &wiremock::Request| {
            let body = granted(&form(&request.body));
            ResponseTemplate::new(200).set_body_raw(body, "text/xml")
        })
        .await
    }

    /// An STS that refuses with this status and code.
    pub async fn refusing(status: u16, code: &'static str) -> Self {
        Self::answering(move |_: &wiremock::Request| {
            ResponseTemplate::new(status).set_body_raw(refusal_of(code), "text/xml")
        })
        .await
    }

    /// An STS that grants every request, with a changed body.
    pub async fn granting_but(change: impl Fn(String) -> String + Send + Sync + 'static) -> Self {
        Self::answering(move |request: &wiremock::Request| {
            let body = change(granted(&form(&request.body)));
            ResponseTemplate::new(200).set_body_raw(body, "text/xml")
        })
        .await
    }

    /// The forms of all requests, in order.
    pub async fn asked(&self) -> Vec<BTreeMap<String, String>> {
        let requests = self.0.received_requests().await.unwrap();
        requests.iter().map(|request| form(&request.body)).collect()
    }
}

/// The body of STS's refusal with this code.
pub fn refusal_of(code: &str) -> String {
    format!(
        "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error>\
         <Type>Sender</Type><Code>{code}</Code><Message>SECRET account 123456789012</Message>\
         </Error><RequestId>1</RequestId></ErrorResponse>"
    )
}

/// The fields of a form.
pub fn form(body: &[u8]) -> BTreeMap<String, String> {
    url::form_urlencoded::parse(body).into_owned().collect()
}

/// The expiry of a requested session: its duration, counted from the token's `iat`, or from now
/// without a token.
pub fn expiration(form: &BTreeMap<String, String>) -> Timestamp {
    let token = form.get("WebIdentityToken");
    let made = token.and_then(|token| peek(token).1["iat"].as_i64());
    let seconds: u64 = form["DurationSeconds"].parse().unwrap();
    Timestamp::from_seconds(made.unwrap_or_else(unix_seconds)).plus_seconds(seconds)
}

/// The body of STS's answer that grants a form's request.
pub fn granted(form: &BTreeMap<String, String>) -> String {
    let (action, session) = (&form["Action"], &form["RoleSessionName"]);
    let expiration = expiration(form);
    format!(
        "<{action}Response xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><{action}Result>\
         <AssumedRoleUser><Arn>arn:aws:sts::123456789012:assumed-role/reports/{session}</Arn>\
         <AssumedRoleId>AROAEXAMPLE:{session}</AssumedRoleId></AssumedRoleUser><Credentials>\
         <AccessKeyId>ASIAEXAMPLE</AccessKeyId><SecretAccessKey>made-for-{session}</SecretAccessKey>\
         <SessionToken>token-of-{session}</SessionToken><Expiration>{expiration}</Expiration>\
         </Credentials></{action}Result></{action}Response>"
    )
}
