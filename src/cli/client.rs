//! The client of a broker's HTTP interface, and the arguments for its address and token.
//!
//! A token is sent over https or to this machine only, and redirects are not followed. An error
//! answer becomes sentences: the refusal, its reason, and the permitted alternative.

use std::io::{ErrorKind, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use reqwest::header::{AUTHORIZATION, DATE, HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use url::{Host, Url};
use zeroize::Zeroizing;

use super::evidence::Source;
use super::output::printable;
use super::retry::{self, Fault, TRY_TIMEOUT};
use super::{Failure, Kind};
use crate::clock::{Clock as _, SystemClock};
use crate::config::{Environment, ProcessEnvironment};
use crate::domain::decision::Observed;
use crate::files::{create_private, secret_in};
use crate::http::problem;
use crate::outgoing::{self, BodyError};

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
/// The longest token that is read, in bytes.
const MAX_TOKEN_BYTES: u64 = 64 * 1024;
/// The longest file of authorities that is read, in bytes: four times the size of the system's
/// file.
const MAX_AUTHORITIES_BYTES: u64 = 1024 * 1024;
/// A refusal mentions a difference of more than these seconds between this machine's clock and the
/// broker's.
const TOLD_SKEW_SECONDS: u64 = 30;

/// The address of the broker.
#[derive(Args, Clone, Debug)]
pub(super) struct Address {
    /// The broker's base URL
    #[arg(
        long,
        env = "TASKPASS_URL",
        default_value = "http://127.0.0.1:7070",
        value_name = "URL"
    )]
    pub(super) url: Url,
    #[command(flatten)]
    pub(super) authorities: Authorities,
}

/// The trusted certificate authorities.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct Authorities {
    /// A PEM file with the only authorities that are trusted for the server's certificate; without
    /// it, the system's, or those of `SSL_CERT_FILE`
    #[arg(long, env = "TASKPASS_CA_FILE", value_name = "FILE")]
    ca_file: Option<PathBuf>,
}

impl Authorities {
    /// The certificates in `ca_file`; `None` if no file was given.
    pub(super) fn read(&self) -> Result<Option<Vec<reqwest::Certificate>>, Failure> {
        let Some(file) = &self.ca_file else {
            return Ok(None);
        };
        let pem = read_file(file, MAX_AUTHORITIES_BYTES)?;
        let read = reqwest::Certificate::from_pem_bundle(&pem).unwrap_or_default();
        if read.is_empty() {
            return Err(Failure::Usage(format!(
                "--ca-file {}: the file holds no PEM certificate",
                file.display()
            )));
        }
        Ok(Some(read))
    }
}

impl Address {
    /// A client without a token.
    pub(super) fn client(&self) -> Result<Client, Failure> {
        Client::believing(&self.url, &self.authorities)
    }
}

/// The broker's address, and the token.
#[derive(Args, Clone, Debug)]
pub(super) struct Connection {
    #[command(flatten)]
    pub(super) address: Address,
    #[command(flatten)]
    token: Token,
}

/// The source of the token: an attestation, or an admin's token.
#[derive(Args, Clone, Debug)]
pub(super) struct Token {
    /// The file with the token, an attestation or an admin's; `-` is standard input
    #[arg(long, env = "TASKPASS_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The variable with the token
    #[arg(long, value_name = "NAME", default_value = "TASKPASS_TOKEN")]
    token_env: String,
}

impl Connection {
    /// A client that presents the token.
    pub(super) fn client(&self) -> Result<Client, Failure> {
        let Address { url, authorities } = &self.address;
        self.token.client_at(url, authorities)
    }

    /// The source of the attestation.
    pub(super) fn source(&self) -> Result<Source, Failure> {
        match &self.token.token_file {
            Some(file) if file != Path::new("-") => Ok(Source::File(file.clone())),
            _ => self.token.read().map(Source::Variable),
        }
    }
}

impl Token {
    /// A client of the broker at `url` that presents the token.
    pub(super) fn client_at(
        &self,
        url: &Url,
        authorities: &Authorities,
    ) -> Result<Client, Failure> {
        Client::believing(url, authorities)?.with_bearer(&self.read()?)
    }

    fn read(&self) -> Result<SecretString, Failure> {
        let name = self.token_env.as_str();
        if let Some(file) = &self.token_file {
            return read_secret(file);
        }
        match ProcessEnvironment.get(name) {
            Ok(Some(token)) => trimmed(&Zeroizing::new(token), name),
            Ok(None) => Err(Failure::Usage(format!(
                "no token: give a file with --token-file, or set {name}"
            ))),
            Err(_) => Err(Failure::Usage(format!("{name} is not UTF-8"))),
        }
    }
}

/// Reads a secret from a file, or from standard input for `-`.
pub(super) fn read_secret(file: &Path) -> Result<SecretString, Failure> {
    let place = file.display().to_string();
    let mut text = Zeroizing::new(String::new());
    let read = if file == Path::new("-") {
        let stdin = std::io::stdin().lock();
        stdin.take(MAX_TOKEN_BYTES).read_to_string(&mut text)
    } else {
        std::fs::File::open(file)
            .and_then(|file| file.take(MAX_TOKEN_BYTES).read_to_string(&mut text))
    };
    read.map_err(|error| Failure::Unestablished(format!("cannot read {place}: {error}")))?;
    trimmed(&text, &place)
}

/// Writes a secret to a private file that must not exist yet.
pub(super) fn write_new_secret(file: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let place = file.display();
    let written = create_private(file).and_then(|mut made| {
        made.write_all(bytes)?;
        made.sync_all()
    });
    written.map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => Failure::Usage(format!(
            "{place} already exists and is not overwritten: give another file"
        )),
        _ => Failure::Unestablished(format!("cannot write {place}: {error}")),
    })
}

fn trimmed(text: &str, place: &str) -> Result<SecretString, Failure> {
    let text = secret_in(text);
    if text.is_empty() {
        return Err(Failure::Usage(format!("{place} holds no token")));
    }
    Ok(SecretString::from(text))
}

/// Reads a file that the user named, or standard input for `-`.
pub(super) fn read_file(file: &Path, at_most: u64) -> Result<Vec<u8>, Failure> {
    let place = file.display();
    let mut bytes = Vec::new();
    let read = if file == Path::new("-") {
        let stdin = std::io::stdin().lock();
        stdin.take(at_most + 1).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(file).and_then(|file| file.take(at_most + 1).read_to_end(&mut bytes))
    };
    read.map_err(|error| Failure::Unestablished(format!("cannot read {place}: {error}")))?;
    if bytes.len() as u64 > at_most {
        return Err(Failure::Usage(format!(
            "{place} has more than {at_most} bytes"
        )));
    }
    Ok(bytes)
}

/// A client of one broker, or of the sample server in `taskpass dev`.
#[derive(Clone, Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    base: Url,
    authorization: Option<HeaderValue>,
}

/// A complete answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// The body as JSON; null if it is empty or not JSON.
    pub(super) body: Value,
    /// The body as received, if it is text.
    text: String,
    /// The pause that the answer requests before another attempt.
    pub(super) retry_after: Option<Duration>,
    /// How many seconds this machine's clock is ahead of the server's. `None` if the answer has no
    /// date.
    skew: Option<i64>,
}

impl Client {
    /// A client without a token that trusts the system's authorities.
    pub(super) fn new(base: &Url) -> Result<Self, Failure> {
        Self::believing(base, &Authorities::default())
    }

    /// A client without a token that trusts `authorities`.
    pub(super) fn believing(base: &Url, authorities: &Authorities) -> Result<Self, Failure> {
        let loopback = is_loopback(base);
        if base.scheme() != "https" && !(base.scheme() == "http" && loopback) {
            return Err(Failure::Usage(format!(
                "{base} is neither https nor on this machine: the token could be read in transit"
            )));
        }
        let mut builder = outgoing::client()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(TOTAL_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .user_agent(concat!("taskpass/", env!("CARGO_PKG_VERSION")));
        if loopback {
            builder = builder.no_proxy();
        }
        if let Some(authorities) = authorities.read()? {
            builder = builder.tls_certs_only(authorities);
        }
        let http = builder
            .build()
            .map_err(|error| Failure::Unestablished(format!("no HTTP client: {error}")))?;
        Ok(Self {
            http,
            base: base.clone(),
            authorization: None,
        })
    }

    /// The same client with `token` as a bearer token.
    pub(super) fn with_bearer(self, token: &SecretString) -> Result<Self, Failure> {
        self.with_authorization("Bearer", token)
    }

    /// The same client with `token` under the authentication scheme `scheme`.
    pub(super) fn with_authorization(
        mut self,
        scheme: &str,
        token: &SecretString,
    ) -> Result<Self, Failure> {
        let value = Zeroizing::new(format!("{scheme} {}", token.expose_secret()));
        let mut value = HeaderValue::from_str(&value).map_err(|_| {
            Failure::Usage("the token has characters that are not valid in a header".into())
        })?;
        value.set_sensitive(true);
        self.authorization = Some(value);
        Ok(self)
    }

    /// Sends `GET path`, which must succeed.
    pub(super) async fn get(&self, path: &str) -> Result<Value, Failure> {
        self.send(Method::GET, path, None).await?.success()
    }

    /// Sends `POST path` with JSON, which must succeed.
    pub(super) async fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.send(Method::POST, path, Some(body)).await?.success()
    }

    /// Sends `GET path`, whose answer is text.
    pub(super) async fn get_text(&self, path: &str) -> Result<String, Failure> {
        let answer = self.send(Method::GET, path, None).await?;
        let text = answer.text.clone();
        answer.success().map(|_| text)
    }

    /// Sends `GET path` and returns the answer unread. The caller must limit its length.
    pub(super) async fn stream(&self, path: &str) -> Result<reqwest::Response, Failure> {
        let request = self.http.get(self.at(path)?).timeout(STREAM_TIMEOUT);
        let response = self.answer(request).await?;
        if response.status().is_success() {
            return Ok(response);
        }
        let whole = self.whole(response).await;
        Err(whole.map_err(|error| self.unread(&error))?.failure())
    }

    /// Like [`Self::get_text`], for one of many requests: waits when it is rate-limited.
    pub(super) async fn get_text_patiently(&self, path: &str) -> Result<String, Failure> {
        for _ in 0..MAX_WAITS {
            let answer = self.send(Method::GET, path, None).await?;
            if answer.status != StatusCode::TOO_MANY_REQUESTS {
                let text = answer.text.clone();
                return answer.success().map(|_| text);
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        Err(Failure::Unestablished(format!(
            "{} still answers that there are too many requests",
            self.base
        )))
    }

    /// Sends `DELETE path` with JSON that names the object to delete, which must succeed.
    pub(super) async fn delete(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.send(Method::DELETE, path, Some(body)).await?.success()
    }

    /// Sends a request, and returns the answer of any status.
    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Answer, Failure> {
        let mut request = self.http.request(method, self.at(path)?);
        if let Some(body) = body {
            request = request.json(body);
        }
        self.finish(request).await
    }

    /// Makes one attempt of a request that may be repeated, with this `Idempotency-Key` if it needs
    /// one. A transient error answer is a fault, like a missing answer.
    pub(super) async fn try_once(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        key: Option<&str>,
    ) -> Result<Answer, Fault> {
        let mut request = self.http.request(method, self.at(path)?);
        request = request.timeout(TRY_TIMEOUT);
        if let Some(body) = body {
            request = request.json(body);
        }
        if let Some(key) = key {
            request = request.header("Idempotency-Key", format!("\"{key}\""));
        }
        let told = |error: &reqwest::Error| Failure::Unestablished(reason(&self.base, error));
        let sent = self.authorized(request).send().await;
        let response = sent.map_err(|error| Fault::of_transport(&error, told(&error)))?;
        let answer = self.whole(response).await.map_err(|error| match error {
            BodyError::Broken(error) => Fault::of_transport(&error, told(&error)),
            BodyError::Large(_) => self.unread(&error).into(),
        })?;
        // A load balancer or another server in between may answer for a broker that is down.
        let foreign = !answer.status.is_success() && answer.slug().is_empty();
        if foreign || retry::is_transient(answer.status) || answer.slug() == "in-progress" {
            return Err(Fault::transient(answer.failure(), answer.retry_after));
        }
        Ok(answer)
    }

    /// Sends `POST path` with a form, as the OAuth endpoints require.
    pub(super) async fn post_form(
        &self,
        path: &str,
        form: &[(&str, &str)],
    ) -> Result<Answer, Failure> {
        self.finish(self.http.post(self.at(path)?).form(form)).await
    }

    fn at(&self, path: &str) -> Result<Url, Failure> {
        let base = self.base.as_str().trim_end_matches('/');
        Url::parse(&format!("{base}{path}"))
            .map_err(|error| Failure::Usage(format!("{base}{path} is not a URL: {error}")))
    }

    async fn finish(&self, request: reqwest::RequestBuilder) -> Result<Answer, Failure> {
        let response = self.answer(request).await?;
        let whole = self.whole(response).await;
        whole.map_err(|error| self.unread(&error))
    }

    fn authorized(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match &self.authorization {
            Some(value) => request.header(AUTHORIZATION, value.clone()),
            None => request,
        }
    }

    async fn answer(&self, request: reqwest::RequestBuilder) -> Result<reqwest::Response, Failure> {
        let sent = self.authorized(request).send().await;
        sent.map_err(|error| Failure::Unestablished(reason(&self.base, &error)))
    }

    /// The failure for an answer whose body could not be read.
    fn unread(&self, error: &BodyError) -> Failure {
        Failure::Unestablished(match error {
            BodyError::Broken(error) => reason(&self.base, error),
            BodyError::Large(bytes) => {
                format!("{} answered with more than {bytes} bytes", self.base)
            }
        })
    }

    async fn whole(&self, response: reqwest::Response) -> Result<Answer, BodyError> {
        let status = response.status();
        let retry_after = retry::retry_after(response.headers());
        let skew = skew(response.headers());
        let bytes = outgoing::body(response, MAX_ANSWER_BYTES).await?;
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Ok(Answer {
            status,
            body,
            text,
            retry_after,
            skew,
        })
    }
}

/// How many seconds this machine's clock is ahead of the server that set the `Date` header.
fn skew(headers: &HeaderMap) -> Option<i64> {
    let date = httpdate::parse_http_date(headers.get(DATE)?.to_str().ok()?).ok()?;
    let theirs = date.duration_since(std::time::UNIX_EPOCH).ok()?.as_secs();
    let ours = SystemClock.now().seconds();
    Some(ours.saturating_sub(i64::try_from(theirs).ok()?))
}

impl Answer {
    /// The body of a successful answer, or the failure that the problem document describes.
    pub(super) fn success(self) -> Result<Value, Failure> {
        if self.status == StatusCode::ACCEPTED {
            return Err(Failure::Unestablished(
                "not decided yet: a person must approve the request first".into(),
            ));
        }
        if self.status.is_success() {
            return Ok(self.body);
        }
        Err(self.failure())
    }

    /// The kind of problem of a problem document; empty for any other body.
    pub(super) fn slug(&self) -> &str {
        slug(&self.body)
    }

    /// The failure that the answer describes, as sentences with an exit code. A wrong clock of this
    /// machine is mentioned, because it can explain why its evidence was refused. Only a problem
    /// document of the broker counts as a refusal: an answer of another server does not show the
    /// broker's decision.
    pub(super) fn failure(&self) -> Failure {
        let mut text = describe(self.status, &self.body);
        let skew = self
            .skew
            .filter(|skew| skew.unsigned_abs() > TOLD_SKEW_SECONDS);
        if let (Some(skew), 400 | 401) = (skew, self.status.as_u16()) {
            let side = if skew > 0 { "ahead of" } else { "behind" };
            let seconds = skew.unsigned_abs();
            text = format!(
                "{text}\n  this machine's clock is {seconds} s {side} the broker's: set it"
            );
        }
        let kind = match self.status.as_u16() {
            _ if self.slug().is_empty() => Kind::Unestablished,
            401 | 403 | 404 | 409 | 410 => Kind::Refused,
            400..=499 if self.status != StatusCode::TOO_MANY_REQUESTS => Kind::Usage,
            _ => Kind::Unestablished,
        };
        Failure::Answered {
            kind,
            text,
            problem: self.body.clone(),
        }
    }
}

/// The kind of a problem document of the broker; empty for any other document.
pub(super) fn slug(problem: &Value) -> &str {
    let kind = problem.get("type").and_then(Value::as_str);
    kind.and_then(|kind| kind.strip_prefix(problem::URN))
        .unwrap_or_default()
}

/// Whether the URL's host is this machine.
pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

/// The innermost cause: "connection refused" says more than "error sending request", and holds no
/// address.
pub(super) fn innermost(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
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

/// Describes a problem (RFC 9457) or an OAuth error (RFC 6749) in sentences.
fn describe(status: StatusCode, body: &Value) -> String {
    let text = |name: &str| body.get(name).and_then(Value::as_str).map(printable);
    let slug = printable(slug(body));
    let is_oauth = text("error").is_some();
    let mut lines = Vec::new();
    let first = text("detail")
        .or_else(|| text("error_description"))
        .or_else(|| text("title"))
        .or_else(|| text("error"));
    lines.push(match (slug.as_str(), first) {
        ("", Some(first)) if is_oauth => format!("{status}: {first}"),
        ("", Some(first)) => format!("{status}: {first} (not the broker's answer)"),
        ("", None) => format!("{status} (not the broker's answer)"),
        (slug, Some(first)) => format!("{slug}: {first}"),
        (slug, None) => format!("{slug}: the broker answered {status}"),
    });
    if let Some(code) = text("code").or_else(|| text("reason")) {
        lines.push(format!("  reason: {code}"));
    }
    let list = body.get("errors").and_then(Value::as_array);
    for error in list.into_iter().flatten() {
        lines.push(format!("  {}", printable(&one_line(error))));
    }
    if let Some(pointer) = text("pointer") {
        lines.push(format!("  at: {pointer}"));
    }
    if let Some(allowed) = body.get("allowed").filter(|allowed| !allowed.is_null()) {
        lines.extend(would_be_allowed(allowed));
    }
    if let Some(id) = body.pointer("/decision/id").and_then(Value::as_str) {
        lines.push(format!("  decision: {}", printable(id)));
    }
    lines.extend(observed(body).map(|text| format!("  {text}")));
    if let Some(session) = text("session_id").or_else(|| text("session")) {
        lines.push(format!("  session: {session}"));
    }
    lines.join("\n")
}

/// Describes the findings of policies that only observe; `None` if there are none.
pub(super) fn observed(answer: &Value) -> Option<String> {
    let observed = answer.pointer("/decision/observed")?;
    let told = serde_json::from_value::<Observed>(observed.clone());
    let text = told.map_or_else(|_| observed.to_string(), |told| told.to_string());
    Some(printable(&format!("observed, not enforced: {text}")))
}

fn one_line(value: &Value) -> String {
    let text = |name: &str| value.get(name).and_then(Value::as_str);
    match (text("pointer"), text("detail")) {
        (Some(pointer), Some(detail)) => format!("{pointer}: {detail}"),
        _ => value.to_string(),
    }
}

/// Describes the request that policy would permit instead, one line for each limit.
fn would_be_allowed(allowed: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    let details = allowed.get("authorization_details");
    for detail in details.and_then(Value::as_array).into_iter().flatten() {
        let words = |name: &str| {
            let list = detail.get(name).and_then(Value::as_array);
            let words: Vec<String> = list
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .map(printable)
                .collect();
            words.join(", ")
        };
        let (actions, places) = (words("actions"), words("locations"));
        let place = if places.is_empty() {
            String::new()
        } else {
            format!(" at {places}")
        };
        lines.push(format!("  would be allowed: {actions}{place}"));
    }
    for (name, limit) in [
        ("max_ttl_seconds", "a life"),
        ("max_deadline_seconds", "a deadline"),
        ("max_heartbeat_seconds", "a heartbeat interval"),
    ] {
        if let Some(seconds) = allowed.get(name).and_then(Value::as_u64) {
            lines.push(format!(
                "  would be allowed: {limit} of {seconds} s at most"
            ));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn answer(status: u16, body: Value) -> Answer {
        Answer {
            status: StatusCode::from_u16(status).unwrap(),
            text: body.to_string(),
            body,
            retry_after: None,
            skew: None,
        }
    }

    #[test]
    fn a_token_is_not_sent_in_the_clear_to_another_machine() {
        for bad in [
            "http://broker.example",
            "ftp://127.0.0.1",
            "http://10.0.0.1",
        ] {
            let refused = Client::new(&Url::parse(bad).unwrap());
            assert!(matches!(refused, Err(Failure::Usage(_))), "{bad}");
        }
    }

    #[test]
    fn a_refusal_says_what_why_and_what_would_do() {
        let problem = json!({
            "type": "urn:taskpass:problem:denied", "status": 403, "title": "Denied",
            "detail": "orders:write is not permitted", "code": "not-permitted",
            "allowed": {
                "authorization_details": [{"type": "api", "actions": ["orders:read"]}],
                "max_ttl_seconds": 600
            },
            "decision": {"id": "d-1"}
        });
        let failure = answer(403, problem).failure();
        assert_eq!(failure.code(), 1);
        assert_eq!(
            failure.to_string(),
            "denied: orders:write is not permitted\n  reason: not-permitted\n  \
             would be allowed: orders:read\n  would be allowed: a life of 600 s at most\n  \
             decision: d-1"
        );
    }

    #[test]
    fn only_a_problem_document_of_the_broker_is_a_refusal() {
        for status in [400, 401, 403, 404, 409, 410] {
            for body in [
                Value::Null,
                json!({"message": "no"}),
                json!({"type": "about:blank", "detail": "no"}),
            ] {
                let failure = answer(status, body).failure();
                assert_eq!(failure.code(), 3, "{status}");
                let text = failure.to_string();
                assert!(text.contains("not the broker's answer"), "{text}");
            }
        }
    }

    #[test]
    fn each_status_has_its_exit_code() {
        let problem = json!({"type": "urn:taskpass:problem:not-found", "detail": "why"});
        for (status, code) in [
            (401, 1),
            (403, 1),
            (404, 1),
            (409, 1),
            (400, 2),
            (413, 2),
            (422, 2),
            (302, 3),
            (429, 3),
            (500, 3),
            (503, 3),
        ] {
            assert_eq!(
                answer(status, problem.clone()).failure().code(),
                code,
                "{status}"
            );
        }
        assert!(answer(202, json!({})).success().is_err());
        assert!(answer(200, json!({})).success().is_ok());
    }

    #[test]
    fn a_wrong_clock_is_named_where_evidence_is_refused() {
        let told = |status: u16, skew: Option<i64>| {
            let answer = Answer {
                skew,
                ..answer(status, Value::Null)
            };
            answer.failure().to_string()
        };
        assert!(told(401, Some(120)).ends_with("clock is 120 s ahead of the broker's: set it"));
        assert!(told(400, Some(-31)).ends_with("clock is 31 s behind the broker's: set it"));
        for (status, skew) in [
            (401, Some(30)),
            (401, None),
            (403, Some(120)),
            (503, Some(120)),
        ] {
            assert!(!told(status, skew).contains("clock"), "{status} {skew:?}");
        }
    }

    #[test]
    fn the_difference_of_two_clocks_is_read_from_a_date() {
        let dated = |text: &str| {
            let value = HeaderValue::from_str(text).unwrap();
            skew(&HeaderMap::from_iter([(DATE, value)]))
        };
        let seconds = u64::try_from(SystemClock.now().seconds()).unwrap();
        let now = std::time::UNIX_EPOCH + Duration::from_secs(seconds);
        let now = httpdate::fmt_http_date(now);
        assert!(dated(&now).unwrap().abs() < 30);
        assert!(dated("Sun, 06 Nov 1994 08:49:37 GMT").unwrap() > 900_000_000);
        assert_eq!(dated("yesterday"), None);
        assert_eq!(skew(&HeaderMap::new()), None);
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_a_token() {
        let read = trimmed("\u{feff} tpa_secret\r\n", "file").unwrap();
        assert_eq!(read.expose_secret(), "tpa_secret");
        assert!(trimmed("\u{feff}\r\n", "file").is_err());
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
