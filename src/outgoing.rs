//! Requests to other servers: no redirects, and bounded answers.
//!
//! [`client`] and [`direct_client`] begin every client of this program, and [`body`] reads an
//! answer up to a limit. A redirect could send a credential to another server, and an endless
//! answer could fill the memory. A body beyond the limit or one that breaks off is a [`BodyError`];
//! nothing of it is returned. Timeouts, authorities and addresses are the caller's choice. The
//! clients of the AWS SDK are not made here.

use reqwest::redirect::Policy;
use reqwest::{ClientBuilder, Response};
use url::{Host, Url};

/// Why an answer's body was not read.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The body is longer than the limit, in bytes.
    #[error("the answer has more than {0} bytes")]
    Large(usize),
    /// The body broke off or took too long.
    #[error("{}", .0)]
    Broken(#[from] reqwest::Error),
}

/// A client that follows no redirect and uses the proxy that the environment names, if any.
pub fn client() -> ClientBuilder {
    // An error means that a provider is already installed; `main` installs the same one.
    drop(rustls::crypto::ring::default_provider().install_default());
    reqwest::Client::builder()
        .redirect(Policy::none())
        .user_agent("taskpass")
}

/// A client that follows no redirect and uses no proxy.
pub fn direct_client() -> ClientBuilder {
    client().no_proxy()
}

/// Reads an answer's body.
///
/// # Errors
///
/// [`BodyError::Large`] if the body has more than `at_most` bytes; the rest is not read.
/// [`BodyError::Broken`] if the body did not arrive completely.
pub async fn body(mut answer: Response, at_most: usize) -> Result<Vec<u8>, BodyError> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        if body.len() + chunk.len() > at_most {
            return Err(BodyError::Large(at_most));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Whether the URL's host is this machine.
#[must_use]
pub fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

/// The innermost cause: "connection refused" says more than "error sending request", and holds no
/// address.
#[must_use]
pub fn innermost(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
