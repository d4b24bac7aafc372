//! A small HTTP client, checks of answers, and senders of raw and slow requests.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Once;
use std::time::{Duration, Instant};

use reqwest::header::HeaderMap;
use reqwest::{Method, RequestBuilder};
use serde_json::Value;

use super::{SOON, documented};

/// A client of one server, with a time limit and without redirects and proxies.
#[derive(Clone, Debug)]
pub struct Client {
    base: String,
    inner: reqwest::Client,
}

impl Client {
    /// A client of the server at `base`, for instance `http://127.0.0.1:7070`.
    pub fn new(base: &str) -> Self {
        Self::with_timeout(base, SOON)
    }

    /// A client that waits for a whole answer no longer than `timeout`.
    pub fn with_timeout(base: &str, timeout: Duration) -> Self {
        Self::built(base, timeout, |builder| builder)
    }

    /// A client that connects from this local address.
    pub fn from_address(base: &str, address: std::net::IpAddr) -> Self {
        Self::built(base, SOON, |builder| builder.local_address(address))
    }

    /// A client over TLS that trusts the PEM certificate `trusted`, and presents the certificate
    /// and key in `own`.
    pub fn over_tls(
        base: &str,
        trusted: &str,
        own: Option<&str>,
        version: reqwest::tls::Version,
    ) -> Self {
        let trusted = reqwest::Certificate::from_pem(trusted.as_bytes()).unwrap();
        let own = own.map(|pem| reqwest::Identity::from_pem(pem.as_bytes()).unwrap());
        Self::built(base, SOON, |builder| {
            let builder = builder
                .tls_certs_only([trusted])
                .tls_version_min(version)
                .tls_version_max(version);
            match own {
                None => builder,
                Some(own) => builder.identity(own),
            }
        })
    }

    fn built(
        base: &str,
        timeout: Duration,
        with: impl FnOnce(reqwest::ClientBuilder) -> reqwest::ClientBuilder,
    ) -> Self {
        install_crypto_provider();
        let builder = reqwest::Client::builder()
            .timeout(timeout)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            // A broker closes connections after five seconds of silence, so do not reuse older
            // ones.
            .pool_idle_timeout(Duration::from_secs(2));
        let inner = with(builder).build().unwrap();
        Self {
            base: base.trim_end_matches('/').to_owned(),
            inner,
        }
    }

    /// Begins a request; [`send`] sends it.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.inner.request(method, format!("{}{path}", self.base))
    }

    pub async fn get(&self, path: &str) -> Answer {
        send(self.request(Method::GET, path)).await
    }

    /// `GET path` with a bearer token.
    pub async fn get_as(&self, bearer: &str, path: &str) -> Answer {
        send(self.request(Method::GET, path).bearer_auth(bearer)).await
    }

    /// `GET path`; returns an error if there is no answer.
    pub async fn try_get(&self, path: &str) -> reqwest::Result<Answer> {
        try_send(self.request(Method::GET, path)).await
    }

    /// `POST path` with a JSON body and a bearer token.
    pub async fn post_json(&self, bearer: &str, path: &str, body: &Value) -> Answer {
        let request = self.request(Method::POST, path).bearer_auth(bearer);
        send(request.json(body)).await
    }

    /// `POST path` with a bearer token and a body that a JSON library would not write.
    pub async fn post_raw(
        &self,
        bearer: &str,
        path: &str,
        content_type: &str,
        body: impl Into<reqwest::Body>,
    ) -> Answer {
        let request = self.request(Method::POST, path).bearer_auth(bearer);
        send(request.header("content-type", content_type).body(body)).await
    }

    /// `POST path` with a form, as the OAuth endpoints expect it.
    pub async fn post_form(&self, path: &str, form: &[(&str, &str)]) -> Answer {
        send(self.request(Method::POST, path).form(form)).await
    }
}

/// Makes ring the process's crypto provider for TLS. Must be called before the first client is
/// built.
pub fn install_crypto_provider() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // It fails if the product has already installed the same provider.
        drop(rustls::crypto::ring::default_provider().install_default());
    });
}

/// Sends a request that must be answered, with any status.
pub async fn send(request: RequestBuilder) -> Answer {
    try_send(request)
        .await
        .unwrap_or_else(|error| panic!("no answer: {error:?}"))
}

/// Sends a request that may stay unanswered. A broker's answer must match its description.
pub async fn try_send(request: RequestBuilder) -> reqwest::Result<Answer> {
    let (client, request) = request.build_split();
    let request = request?;
    let (method, path) = (request.method().clone(), request.url().path().to_owned());
    let response = client.execute(request).await?;
    let answer = Answer {
        status: response.status().as_u16(),
        headers: response.headers().clone(),
        body: response.bytes().await?.to_vec(),
    };
    documented::check(method.as_str(), &path, &answer);
    Ok(answer)
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Answer {
    /// A header field's value; `None` if it is missing or not text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON; fails if it is not.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error} in {}: {}", self.status, self.text()))
    }

    /// Asserts the status, and returns the body as JSON.
    #[track_caller]
    pub fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        self.json()
    }

    fn media_type(&self) -> &str {
        let value = self.header("content-type").unwrap_or_default();
        value.split(';').next().unwrap_or_default().trim()
    }
}

/// Checks that `answer` is the problem `slug` (RFC 9457) with this status, and returns it.
#[track_caller]
pub fn assert_problem(answer: &Answer, status: u16, slug: &str) -> Value {
    let text = answer.text();
    assert_eq!(answer.status, status, "{text}");
    assert_eq!(answer.media_type(), "application/problem+json", "{text}");
    let problem = answer.json();
    let kind = format!("urn:taskpass:problem:{slug}");
    assert_eq!(problem["type"], Value::from(kind), "{text}");
    assert_eq!(problem["status"], Value::from(status), "{text}");
    let title = problem["title"].as_str().unwrap_or_default();
    assert!(!title.is_empty(), "a problem has a title: {text}");
    problem
}

/// Checks that `answer` is the OAuth error `code` (RFC 6749) with `Cache-Control: no-store`, and
/// returns it.
#[track_caller]
pub fn assert_oauth_error(answer: &Answer, status: u16, code: &str) -> Value {
    let text = answer.text();
    assert_eq!(answer.status, status, "{text}");
    assert_eq!(answer.media_type(), "application/json", "{text}");
    let error = answer.json();
    assert_eq!(error["error"], Value::from(code), "{text}");
    assert_no_store(answer);
    error
}

/// Checks that `answer` has `Cache-Control: no-store`.
#[track_caller]
pub fn assert_no_store(answer: &Answer) {
    let control = answer.header("cache-control").unwrap_or_default();
    let found = control.split(',').any(|part| part.trim() == "no-store");
    assert!(found, "Cache-Control is {control:?}");
}

/// Sends `bytes` unchanged and returns everything received until the server closes the connection
/// or is silent for `patience`.
pub fn exchange_raw(server: SocketAddr, bytes: &[u8], patience: Duration) -> Vec<u8> {
    let mut stream = TcpStream::connect_timeout(&server, SOON).unwrap();
    stream.set_read_timeout(Some(patience)).unwrap();
    // A server may refuse before it has read everything, so ignore errors while writing.
    drop(stream.write_all(bytes));
    let mut answer = Vec::new();
    drop(stream.read_to_end(&mut answer));
    answer
}

/// The status code of a raw answer; `None` if it does not begin with a status line.
pub fn raw_status(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|byte| *byte == b'\r').next()?;
    let line = std::str::from_utf8(line).ok()?;
    line.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()
}

/// The result of sending slowly.
#[derive(Clone, Debug)]
pub struct SlowOutcome {
    /// Number of bytes sent.
    pub sent: usize,
    /// Time until the server answered or closed the connection; `None` if it did neither.
    pub ended_after: Option<Duration>,
    pub answer: Vec<u8>,
}

/// Slow-loris: sends `bytes` one at a time, with a pause after each, until the server answers or
/// closes the connection, or `patience` has passed.
pub fn send_slowly(
    server: SocketAddr,
    bytes: &[u8],
    pause: Duration,
    patience: Duration,
) -> SlowOutcome {
    send_then_slowly(server, &[], bytes, pause, patience)
}

/// The same as [`send_slowly`], after `beginning`, which is sent at once and not counted.
pub fn send_then_slowly(
    server: SocketAddr,
    beginning: &[u8],
    bytes: &[u8],
    pause: Duration,
    patience: Duration,
) -> SlowOutcome {
    let begin = Instant::now();
    let mut stream = TcpStream::connect_timeout(&server, SOON).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.write_all(beginning).unwrap();
    // The timeout of reading is the pause.
    stream.set_read_timeout(Some(pause)).unwrap();
    let mut outcome = SlowOutcome {
        sent: 0,
        ended_after: None,
        answer: Vec::new(),
    };
    let mut chunk = [0; 1024];
    while begin.elapsed() < patience {
        let gone = match bytes.get(outcome.sent) {
            Some(byte) => stream.write_all(&[*byte]).is_err(),
            None => false,
        };
        if !gone && outcome.sent < bytes.len() {
            outcome.sent += 1;
        }
        match stream.read(&mut chunk) {
            Ok(length) => {
                outcome.answer.extend_from_slice(&chunk[..length]);
                outcome.ended_after = Some(begin.elapsed());
                break;
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => {
                outcome.ended_after = Some(begin.elapsed());
                break;
            }
        }
    }
    outcome
}

/// Opens `count` silent connections. They stay open until the result is dropped.
pub fn open_sockets(server: SocketAddr, count: usize) -> Vec<TcpStream> {
    allow_open_files(count + 512);
    (0..count)
        .map(|number| {
            TcpStream::connect_timeout(&server, SOON)
                .unwrap_or_else(|error| panic!("connection {number}: {error}"))
        })
        .collect()
}

/// Raises the limit of open files of this process, and so of processes it starts later, to at least
/// `count`. Fails if the system's hard limit is lower.
pub fn allow_open_files(count: usize) {
    let soft = prlimit(&["--nofile", "--raw", "--noheadings", "--output", "SOFT"]);
    if soft.trim().parse::<usize>().is_ok_and(|soft| soft < count) {
        prlimit(&[&format!("--nofile={count}:")]);
    }
}

/// The system's hard limit of this process's open files.
pub fn most_open_files() -> usize {
    let hard = prlimit(&["--nofile", "--raw", "--noheadings", "--output", "HARD"]);
    // The output is a number, or `unlimited`.
    hard.trim().parse().unwrap_or(usize::MAX)
}

/// Reads or sets a limit of this process.
fn prlimit(arguments: &[&str]) -> String {
    let output = Command::new("prlimit")
        .args(["--pid", &std::process::id().to_string()])
        .args(arguments)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

mod tests {
    use super::*;
    use crate::support::issuer::{Behaviour, Issuer};
    use serde_json::json;

    fn answer(status: u16, content_type: &'static str, body: &Value) -> Answer {
        let mut headers = HeaderMap::new();
        headers.insert("content-type", content_type.parse().unwrap());
        headers.insert("cache-control", "private, no-store".parse().unwrap());
        Answer {
            status,
            headers,
            body: body.to_string().into_bytes(),
        }
    }

    fn address(issuer: &Issuer) -> SocketAddr {
        issuer
            .base()
            .strip_prefix("http://")
            .unwrap()
            .parse()
            .unwrap()
    }

    #[test]
    fn a_problem_is_recognised() {
        let body = json!({"type": "urn:taskpass:problem:denied", "title": "Denied", "status": 403});
        let good = answer(403, "application/problem+json", &body);
        assert_eq!(assert_problem(&good, 403, "denied"), body);
        assert_no_store(&good);

        let refused = [
            answer(403, "application/json", &body),
            answer(401, "application/problem+json", &body),
            answer(
                403,
                "application/problem+json",
                &json!({"type": "urn:taskpass:problem:denied", "title": "Denied", "status": 401}),
            ),
            answer(
                403,
                "application/problem+json",
                &json!({"type": "about:blank", "title": "Denied", "status": 403}),
            ),
        ];
        for wrong in refused {
            let outcome = std::panic::catch_unwind(|| assert_problem(&wrong, 403, "denied"));
            assert!(outcome.is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn an_oauth_error_is_recognised() {
        let error = answer(400, "application/json", &json!({"error": "invalid_grant"}));
        assert_oauth_error(&error, 400, "invalid_grant");
    }

    #[test]
    fn malformed_http_reaches_the_server() {
        let issuer = Issuer::start();
        let answer = exchange_raw(address(&issuer), b"NOT HTTP\r\n\r\n", SOON);
        assert_eq!(raw_status(&answer), Some(400));
    }

    #[test]
    fn a_slow_sender_tells_how_it_fared() {
        let issuer = Issuer::start();
        let request = b"GET /jwks HTTP/1.1\r\nhost: x\r\n\r\n";
        let pause = Duration::from_millis(2);
        let served = send_slowly(address(&issuer), request, pause, SOON);
        assert_eq!(served.sent, request.len());
        assert_eq!(raw_status(&served.answer), Some(200));

        issuer.jwks(Behaviour::Hang);
        let waiting = send_slowly(address(&issuer), request, pause, Duration::from_millis(300));
        assert!(waiting.ended_after.is_none());
    }

    #[tokio::test]
    async fn many_silent_connections_stay_open() {
        let issuer = Issuer::start();
        let sockets = open_sockets(address(&issuer), 1_500);
        assert_eq!(sockets.len(), 1_500);
        assert_eq!(Client::new(issuer.base()).get("/jwks").await.status, 200);
    }
}
