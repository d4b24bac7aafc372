//! The ledger's own requests to others: short, to nobody but who was asked, and with bounded answers.

use std::time::Duration;

use reqwest::{Client, Response};

/// Why an answer's body was not read.
#[derive(Debug)]
pub(super) enum BodyError {
    /// It has more bytes than were expected.
    Large,
    /// It broke off, or took too long.
    Broken(reqwest::Error),
}

/// A client that waits so long for a whole answer, follows no redirect and uses no proxy.
pub(super) fn client(patience: Duration) -> Result<Client, String> {
    // An error means that a provider is installed already; `main` installs the same one.
    drop(rustls::crypto::ring::default_provider().install_default());
    Client::builder()
        .timeout(patience)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .user_agent("taskpass")
        .build()
        .map_err(|error| error.to_string())
}

/// An answer's body, if it has at most so many bytes.
pub(super) async fn body(mut answer: Response, at_most: usize) -> Result<Vec<u8>, BodyError> {
    let mut body = Vec::new();
    loop {
        match answer.chunk().await {
            Ok(None) => return Ok(body),
            Ok(Some(chunk)) if body.len() + chunk.len() > at_most => return Err(BodyError::Large),
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Err(error) => return Err(BodyError::Broken(error)),
        }
    }
}
