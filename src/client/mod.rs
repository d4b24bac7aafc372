//! The client of a broker's HTTP interface.
//!
//! A token is sent over https or to this machine only, and redirects are not followed. Requests are
//! built from the shapes of [`crate::wire`], and a successful answer is a [`Reply`] that is read as
//! one of them. An error answer becomes sentences. [`retry`] repeats requests after transient failures, [`evidence`] gets
//! attestations, [`credentials`] requests credentials with them, [`session`] renews a cached one,
//! and [`task_lease`] keeps a task alive. Nothing here prints: notes go to a [`Notify`].

mod answer;
pub(crate) mod credentials;
mod error;
pub(crate) mod evidence;
mod input;
mod reply;
pub(crate) mod retry;
pub(crate) mod session;
pub(crate) mod session_cache;
pub(crate) mod task_lease;

use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderValue};
use reqwest::{Method, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use serde_json::Value;
use url::Url;
use zeroize::Zeroizing;

pub(crate) use self::answer::{Answer, observed};
pub(crate) use self::error::{AnswerKind, ClientError};
pub(crate) use self::input::{read_file, read_secret, secret_of, write_new_secret};
pub(crate) use self::reply::{Nothing, Reply};
use self::retry::{AttemptError, TRY_TIMEOUT};
use crate::outgoing::{self, BodyError, innermost, is_loopback};

/// The longest time for connecting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest pause within a stream, and its longest duration.
const READ_TIMEOUT: Duration = Duration::from_mins(1);
const STREAM_TIMEOUT: Duration = Duration::from_hours(24);
/// The longest time for a whole answer.
const TOTAL_TIMEOUT: Duration = Duration::from_mins(1);
/// The longest answer that is read, in bytes.
const MAX_ANSWER_BYTES: usize = 16 * 1024 * 1024;
/// How often a rate-limited request is sent again, with a pause of one second each time.
const MAX_WAITS: u32 = 120;

/// Receives notes for people, for example that a request is retried. No result depends on a note.
pub(crate) type Notify = fn(&str);

/// A receiver that drops all notes.
pub(crate) fn silent(_: &str) {}

/// A client of one broker, or of the sample server in `taskpass dev`.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: Url,
    authorization: Option<HeaderValue>,
    notify: Notify,
}

impl Client {
    /// A client without a token that trusts the system's authorities.
    pub(crate) fn new(base: &Url) -> Result<Self, ClientError> {
        Self::trusting(base, None)
    }

    /// Checks that a token may be sent to this base URL: over https, or to this machine.
    pub(crate) fn check_base(base: &Url) -> Result<(), ClientError> {
        if base.scheme() == "https" || (base.scheme() == "http" && is_loopback(base)) {
            return Ok(());
        }
        Err(ClientError::Invalid(format!(
            "{base} is neither https nor on this machine: the token could be read in transit"
        )))
    }

    /// A client without a token that trusts `authorities` only; without them, the system's.
    pub(crate) fn trusting(
        base: &Url,
        authorities: Option<Vec<reqwest::Certificate>>,
    ) -> Result<Self, ClientError> {
        Self::check_base(base)?;
        let mut builder = outgoing::client()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(TOTAL_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .user_agent(concat!("taskpass/", env!("CARGO_PKG_VERSION")));
        if is_loopback(base) {
            builder = builder.no_proxy();
        }
        if let Some(authorities) = authorities {
            builder = builder.tls_certs_only(authorities);
        }
        let http = builder
            .build()
            .map_err(|error| ClientError::Unavailable(format!("no HTTP client: {error}")))?;
        Ok(Self {
            http,
            base: base.clone(),
            authorization: None,
            notify: silent,
        })
    }

    /// The same client with a receiver of its notes.
    pub(crate) fn with_notify(self, notify: Notify) -> Self {
        Self { notify, ..self }
    }

    /// The receiver of notes.
    pub(crate) fn notify(&self) -> Notify {
        self.notify
    }

    /// The same client with `token` as a bearer token.
    pub(crate) fn with_bearer(self, token: &SecretString) -> Result<Self, ClientError> {
        self.with_authorization("Bearer", token)
    }

    /// The same client with `token` under the authentication scheme `scheme`.
    pub(crate) fn with_authorization(
        mut self,
        scheme: &str,
        token: &SecretString,
    ) -> Result<Self, ClientError> {
        let value = Zeroizing::new(format!("{scheme} {}", token.expose_secret()));
        let mut value = HeaderValue::from_str(&value).map_err(|_| {
            ClientError::Invalid("the token has characters that are not valid in a header".into())
        })?;
        value.set_sensitive(true);
        self.authorization = Some(value);
        Ok(self)
    }

    /// Sends `GET path`, which must succeed.
    pub(crate) async fn get<T>(&self, path: &str) -> Result<Reply<T>, ClientError> {
        self.send(Method::GET, path).await?.success()
    }

    /// Sends `POST path` with JSON, which must succeed.
    pub(crate) async fn post<T>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<Reply<T>, ClientError> {
        self.send_json(Method::POST, path, body).await?.success()
    }

    /// Sends `GET path`, whose answer is text.
    pub(crate) async fn get_text(&self, path: &str) -> Result<String, ClientError> {
        let answer = self.send(Method::GET, path).await?;
        answer.check()?;
        Ok(answer.text)
    }

    /// Sends `GET path` and returns the answer unread. The caller must limit its length.
    pub(crate) async fn stream(&self, path: &str) -> Result<reqwest::Response, ClientError> {
        let request = self.http.get(self.at(path)?).timeout(STREAM_TIMEOUT);
        let response = self.answer(request).await?;
        if response.status().is_success() {
            return Ok(response);
        }
        let whole = self.whole(response, operation(&Method::GET, path)).await;
        Err(whole.map_err(|error| self.unread(&error))?.failure())
    }

    /// Like [`Self::get_text`], for one of many requests: waits when it is rate-limited.
    pub(crate) async fn get_text_patiently(&self, path: &str) -> Result<String, ClientError> {
        for _ in 0..MAX_WAITS {
            let answer = self.send(Method::GET, path).await?;
            if answer.status != StatusCode::TOO_MANY_REQUESTS {
                answer.check()?;
                return Ok(answer.text);
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        Err(ClientError::Unavailable(format!(
            "{} still answers that there are too many requests",
            self.base
        )))
    }

    /// Sends `DELETE path` with JSON that names the object to delete, which must succeed.
    pub(crate) async fn delete(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<(), ClientError> {
        self.send_json(Method::DELETE, path, body).await?.done()
    }

    /// Sends a request without a body, and returns the answer of any status.
    pub(crate) async fn send(&self, method: Method, path: &str) -> Result<Answer, ClientError> {
        let operation = operation(&method, path);
        let request = self.http.request(method, self.at(path)?);
        self.finish(request, operation).await
    }

    /// Sends a request with JSON, and returns the answer of any status.
    pub(crate) async fn send_json(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<Answer, ClientError> {
        let operation = operation(&method, path);
        let request = self.http.request(method, self.at(path)?).json(body);
        self.finish(request, operation).await
    }

    /// Makes one attempt of a request that may be repeated, with this `Idempotency-Key` if it needs
    /// one. A transient error answer is a fault, like a missing answer.
    pub(crate) async fn try_once(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
        key: Option<&str>,
    ) -> Result<Answer, AttemptError> {
        let operation = operation(&method, path);
        let mut request = self.http.request(method, self.at(path)?);
        request = request.timeout(TRY_TIMEOUT).json(body);
        if let Some(key) = key {
            request = request.header("Idempotency-Key", format!("\"{key}\""));
        }
        let described =
            |error: &reqwest::Error| ClientError::Unavailable(reason(&self.base, error));
        let sent = self.authorized(request).send().await;
        let response =
            sent.map_err(|error| AttemptError::of_transport(&error, described(&error)))?;
        let whole = self.whole(response, operation).await;
        let answer = whole.map_err(|error| match error {
            BodyError::Broken(error) => AttemptError::of_transport(&error, described(&error)),
            BodyError::Large(_) => self.unread(&error).into(),
        })?;
        // A load balancer or another server in between may answer for a broker that is down.
        let foreign = !answer.status.is_success() && answer.slug().is_empty();
        if foreign || retry::is_transient(answer.status) || answer.slug() == "in-progress" {
            return Err(AttemptError::transient(
                answer.failure(),
                answer.retry_after,
            ));
        }
        Ok(answer)
    }

    /// Sends `POST path` with a form, as the OAuth endpoints require.
    pub(crate) async fn post_form(
        &self,
        path: &str,
        form: &[(&str, &str)],
    ) -> Result<Answer, ClientError> {
        let request = self.http.post(self.at(path)?).form(form);
        self.finish(request, operation(&Method::POST, path)).await
    }

    fn at(&self, path: &str) -> Result<Url, ClientError> {
        let base = self.base.as_str().trim_end_matches('/');
        Url::parse(&format!("{base}{path}"))
            .map_err(|error| ClientError::Invalid(format!("{base}{path} is not a URL: {error}")))
    }

    async fn finish(
        &self,
        request: reqwest::RequestBuilder,
        operation: String,
    ) -> Result<Answer, ClientError> {
        let response = self.answer(request).await?;
        let whole = self.whole(response, operation).await;
        whole.map_err(|error| self.unread(&error))
    }

    fn authorized(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match &self.authorization {
            Some(value) => request.header(AUTHORIZATION, value.clone()),
            None => request,
        }
    }

    async fn answer(
        &self,
        request: reqwest::RequestBuilder,
    ) -> Result<reqwest::Response, ClientError> {
        let sent = self.authorized(request).send().await;
        sent.map_err(|error| ClientError::Unavailable(reason(&self.base, &error)))
    }

    /// The failure for an answer whose body could not be read.
    fn unread(&self, error: &BodyError) -> ClientError {
        ClientError::Unavailable(match error {
            BodyError::Broken(error) => reason(&self.base, error),
            BodyError::Large(bytes) => {
                format!("{} answered with more than {bytes} bytes", self.base)
            }
        })
    }

    async fn whole(
        &self,
        response: reqwest::Response,
        operation: String,
    ) -> Result<Answer, BodyError> {
        let status = response.status();
        let retry_after = retry::retry_after(response.headers());
        let skew = answer::skew(response.headers());
        let bytes = outgoing::body(response, MAX_ANSWER_BYTES).await?;
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Ok(Answer {
            operation,
            status,
            body,
            text,
            retry_after,
            skew,
        })
    }
}

/// The method and the path of a request, without its query.
fn operation(method: &Method, path: &str) -> String {
    let path = path.split_once('?').map_or(path, |(path, _)| path);
    format!("{method} {path}")
}

/// Describes why there was no answer.
fn reason(base: &Url, error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return format!("{base} did not answer in time");
    }
    let why = innermost(error);
    if retry::is_refused_certificate(error) {
        return format!(
            "cannot reach {base}: {why}; if a private authority signed its certificate, give that \
             authority's certificate with --ca-file"
        );
    }
    format!("cannot reach {base}: {why}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_not_sent_in_the_clear_to_another_machine() {
        for bad in [
            "http://broker.example",
            "ftp://127.0.0.1",
            "http://10.0.0.1",
        ] {
            let refused = Client::new(&Url::parse(bad).unwrap());
            assert!(matches!(refused, Err(ClientError::Invalid(_))), "{bad}");
        }
    }

    #[test]
    fn a_token_never_shows_in_debug() {
        drop(rustls::crypto::ring::default_provider().install_default());
        let url = Url::parse("http://127.0.0.1:1").unwrap();
        let client = Client::new(&url).unwrap();
        let client = client.with_bearer(&"tpa_secret".into()).unwrap();
        assert!(!format!("{client:?}").contains("tpa_secret"));
    }
}
