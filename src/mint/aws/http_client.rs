//! The HTTP client of all calls to AWS.
//!
//! [`http_client`] makes it, with `ring` for TLS. The rule: a client has its own trust. It accepts
//! the public authorities, or only those of an endpoint.
//!
//! Nothing fails here. [`super::clients`] and [`mod@super::own_credentials`] use the client; they
//! decide to which hosts a request may go.

use aws_sdk_sts::config::SharedHttpClient;
use aws_smithy_http_client::Builder;
use aws_smithy_http_client::tls::{Provider, TlsContext, rustls_provider::CryptoMode};

/// A client that trusts the public authorities, or only those of `context`.
pub(super) fn http_client(context: Option<TlsContext>) -> SharedHttpClient {
    let builder = Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring));
    match context {
        None => builder.build_https(),
        Some(context) => builder.tls_context(context).build_https(),
    }
}
