//! Signs requests to S3 (AWS Signature Version 4), with credentials from the sources that AWS's own
//! tools use.
//!
//! [`Signer::sign`] fetches the credentials and adds the headers of the signature to a whole
//! request: method, path, headers and body.
//!
//! The rule: a signature covers the digest of the body, so a request cannot be changed on its way.
//! The headers are marked as sensitive, so that they are not logged. Failures: the error is a text
//! without secrets, if there are no credentials within [`PATIENCE`] or the request cannot be
//! signed; the request is then not sent. The provider caches and renews the credentials. Only
//! `checkpoint_store` calls this module, and sends the request.

use std::time::{Duration, SystemTime};

use aws_sdk_sts::config::{Credentials, ProvideCredentials, SharedCredentialsProvider};
use aws_sigv4::http_request::{
    PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SigningSettings,
    UriPathNormalizationMode, sign,
};
use aws_sigv4::sign::v4::SigningParams;
use reqwest::Request;
use reqwest::header::{HeaderName, HeaderValue};

use super::PATIENCE;
use crate::clock::{Clock, SystemClock};

/// Signs requests to S3 in one region.
#[derive(Debug)]
pub struct Signer {
    region: String,
    credentials: SharedCredentialsProvider,
}

impl Signer {
    pub(super) fn new(region: String, credentials: SharedCredentialsProvider) -> Self {
        Self {
            region,
            credentials,
        }
    }

    /// Signs a whole request: method, path, headers and body.
    pub(super) async fn sign(&self, request: &mut Request) -> Result<(), String> {
        // The provider caches the credentials until they expire.
        let credentials = self.credentials.provide_credentials();
        let credentials = tokio::time::timeout(PATIENCE, credentials)
            .await
            .map_err(|_| format!("no credentials for S3 within {PATIENCE:?}"))?;
        let credentials: Credentials =
            credentials.map_err(|error| format!("no credentials for S3: {error}"))?;
        let signed = self.headers(request, credentials)?;
        for (name, value) in signed {
            let parsed = HeaderName::try_from(name).ok();
            let value = HeaderValue::try_from(value).ok();
            let (name, mut value) = parsed.zip(value).ok_or("the signature is no header")?;
            value.set_sensitive(true);
            request.headers_mut().insert(name, value);
        }
        Ok(())
    }

    fn headers(
        &self,
        request: &Request,
        credentials: Credentials,
    ) -> Result<Vec<(String, String)>, String> {
        let unsigned = |error: &dyn std::fmt::Display| format!("a request to S3: {error}");
        let identity = credentials.into();
        // S3 compares the time with its own clock.
        let seconds = u64::try_from(SystemClock.now().seconds()).unwrap_or_default();
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        // S3 does not normalise paths, and requires the digest of the body.
        let mut settings = SigningSettings::default();
        settings.percent_encoding_mode = PercentEncodingMode::Single;
        settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
        settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
        let parameters = SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name("s3")
            .time(time)
            .settings(settings)
            .build()
            .map_err(|error| unsigned(&error))?
            .into();
        let headers = request
            .headers()
            .iter()
            .filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)));
        let body = request.body().and_then(reqwest::Body::as_bytes);
        let signable = SignableRequest::new(
            request.method().as_str(),
            request.url().as_str(),
            headers,
            SignableBody::Bytes(body.unwrap_or_default()),
        );
        let signable = signable.map_err(|error| unsigned(&error))?;
        let signed = sign(signable, &parameters).map_err(|error| unsigned(&error))?;
        let own = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        Ok(signed.output().headers().map(own).collect())
    }
}
