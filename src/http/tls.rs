//! The listener's TLS: the certificate that it presents, and its replacement by a renewed one.
//!
//! [`ServedTls`] reads the files at the start, and `reload` reads them again. [`check`] reads them
//! without serving. The rules: the key must match the certificate. A listener that asks for client
//! certificates resumes no TLS session, because a resumed one would not prove the key again.
//!
//! Failures: files that cannot be read or do not match are an `io::Error`; a reload with an error
//! changes nothing. `None` from `read` means that the listener has no TLS. `server`, `app::check`
//! and `app::reload` call this module; `client_certificates` verifies clients.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::{RootCertStore, ServerConfig};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::client_certificates::Possession;
use crate::clock::Timestamp;
use crate::config::{ClientCertificates, Tls};
use crate::metrics::Metrics;

/// The certificate that the listener presents in each new handshake.
#[derive(Clone, Debug)]
pub struct ServedTls {
    settings: Tls,
    config: RustlsConfig,
    metrics: Arc<Metrics>,
}

impl ServedTls {
    /// Reads the configured files. `None` if the listener does not terminate TLS.
    pub(super) async fn read(settings: &Tls, metrics: Arc<Metrics>) -> io::Result<Option<Self>> {
        let Some((config, not_after)) = read(settings).await? else {
            return Ok(None);
        };
        metrics.tls_not_after(not_after);
        Ok(Some(Self {
            settings: settings.clone(),
            config: RustlsConfig::from_config(Arc::new(config)),
            metrics,
        }))
    }

    pub(super) fn acceptor(&self) -> RustlsAcceptor {
        RustlsAcceptor::new(self.config.clone())
    }

    /// Reads the files again and uses them from the next handshake on. Returns the end of the
    /// certificate's validity. An error changes nothing.
    pub async fn reload(&self) -> io::Result<Timestamp> {
        let Some((config, not_after)) = read(&self.settings).await? else {
            return Err(io::Error::other("[server.tls] names no certificate"));
        };
        self.config.reload_from_config(Arc::new(config));
        self.metrics.tls_not_after(not_after);
        Ok(not_after)
    }
}

async fn read(settings: &Tls) -> io::Result<Option<(ServerConfig, Timestamp)>> {
    let (Some(certificate), Some(key)) = (&settings.certificate, &settings.private_key) else {
        return Ok(None);
    };
    let (certificate, key) = (certificate.clone(), key.clone());
    let clients = (settings.client_certificates == ClientCertificates::Bind)
        .then(|| settings.client_ca.clone());
    let config =
        tokio::task::spawn_blocking(move || server_config(&certificate, &key, clients.as_ref()));
    config.await.map_err(io::Error::other)?.map(Some)
}

/// Checks that the broker can terminate TLS with the configured files.
///
/// # Errors
///
/// The cause, with the name of the file.
pub fn check(settings: &Tls) -> io::Result<()> {
    let (Some(certificate), Some(key)) = (&settings.certificate, &settings.private_key) else {
        return Ok(());
    };
    let clients =
        (settings.client_certificates == ClientCertificates::Bind).then_some(&settings.client_ca);
    server_config(certificate, key, clients).map(drop)
}

fn named(path: &Path, error: &dyn std::fmt::Display) -> io::Error {
    io::Error::other(format!("{}: {error}", path.display()))
}

/// `clients` is `Some` if clients are asked for certificates. It then holds the file of the
/// authorities that must have signed them, or `None` if any certificate will do.
fn server_config(
    certificate: &Path,
    key: &Path,
    clients: Option<&Option<PathBuf>>,
) -> io::Result<(ServerConfig, Timestamp)> {
    let chain = certificates(certificate)?;
    let not_after = not_after(&chain).ok_or_else(|| named(certificate, &"holds no certificate"))?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| named(key, &error))?;
    let builder = ServerConfig::builder();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(authorities) => {
            let roots = authorities.as_deref().map(authorities_of).transpose()?;
            let verifier = Possession::new(roots).map_err(io::Error::other)?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    // This also checks that the key belongs to the certificate.
    let mut config = builder
        .with_single_cert(chain, private)
        .map_err(|error| named(certificate, &error))?;
    if clients.is_some() {
        // A resumed session would carry a certificate whose key was not proven on this connection.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    }
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok((config, not_after))
}

fn certificates(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| named(path, &error))
}

/// The end of the shortest validity in a chain.
fn not_after(chain: &[CertificateDer<'_>]) -> Option<Timestamp> {
    let ends = chain.iter().map(|certificate| {
        let (_, read) = X509Certificate::from_der(certificate).ok()?;
        Some(read.validity().not_after.timestamp())
    });
    let ends: Option<Vec<i64>> = ends.collect();
    ends?.into_iter().min().map(Timestamp::from_seconds)
}

fn authorities_of(path: &Path) -> io::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for authority in certificates(path)? {
        roots.add(authority).map_err(|error| named(path, &error))?;
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(not_after: (i32, u8, u8)) -> CertificateDer<'static> {
        let mut params = rcgen::CertificateParams::default();
        let (year, month, day) = not_after;
        params.not_after = rcgen::date_time_ymd(year, month, day);
        let key = rcgen::KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().clone()
    }

    #[test]
    fn a_chain_is_valid_until_its_first_certificate_ends() {
        let chain = [certificate((2031, 1, 1)), certificate((2030, 1, 1))];
        let end = Timestamp::from_seconds(1_893_456_000);
        assert_eq!(not_after(&chain), Some(end));
        assert_eq!(not_after(&[]), None);
        assert_eq!(not_after(&[CertificateDer::from(vec![1, 2, 3])]), None);
    }
}
