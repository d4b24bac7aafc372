//! An STS of ours, which writes down what it was asked and answers as it was told.

use std::collections::BTreeMap;

use wiremock::matchers::method;
use wiremock::{Mock, MockServer, ResponseTemplate};

/// An STS that answers as it is told.
pub struct Sts(MockServer);

impl Sts {
    /// It answers like this.
    pub async fn answering(answer: impl wiremock::Respond + 'static) -> Self {
        let server = MockServer::start().await;
        Mock::given(method("POST"))
            .respond_with(answer)
            .mount(&server)
            .await;
        Self(server)
    }

    /// Where it is.
    pub fn url(&self) -> String {
        self.0.uri()
    }

    /// It grants whatever it is asked for.
    pub async fn granting() -> Self {
        Self::answering(|request: &wiremock::Request| {
            let form = form(&request.body);
            let action = &form["Action"];
            let session = &form["RoleSessionName"];
            ResponseTemplate::new(200).set_body_raw(granted(action, session), "text/xml")
        })
        .await
    }

    /// It refuses with this code.
    pub async fn refusing(status: u16, code: &'static str) -> Self {
        Self::answering(move |_: &wiremock::Request| {
            ResponseTemplate::new(status).set_body_raw(refusal_of(code), "text/xml")
        })
        .await
    }

    /// What it was asked, in order.
    pub async fn asked(&self) -> Vec<BTreeMap<String, String>> {
        let requests = self.0.received_requests().await.unwrap();
        requests.iter().map(|request| form(&request.body)).collect()
    }
}

/// How STS refuses.
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

/// How STS grants.
pub fn granted(action: &str, session: &str) -> String {
    format!(
        "<{action}Response xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><{action}Result>\
         <AssumedRoleUser><Arn>arn:aws:sts::123456789012:assumed-role/reports/{session}</Arn>\
         <AssumedRoleId>AROAEXAMPLE:{session}</AssumedRoleId></AssumedRoleUser><Credentials>\
         <AccessKeyId>ASIAEXAMPLE</AccessKeyId><SecretAccessKey>made-for-{session}</SecretAccessKey>\
         <SessionToken>token-of-{session}</SessionToken><Expiration>2100-01-01T00:00:00Z</Expiration>\
         </Credentials></{action}Result></{action}Response>"
    )
}
