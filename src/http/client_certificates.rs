//! Client certificates in the TLS handshake: requested, optional, and used as proof of a key.
//!
//! RFC 8705 §3 binds a token to a certificate by the key in it, and the handshake's signature
//! proves that the client has that key. So a self-signed certificate suffices: names, dates and
//! chains are checked only if authorities are configured. Code that relies on a certificate's
//! subject has to check it; a binding only proves that two requests used the same certificate.
//!
//! [`Possession`] is the verifier that `tls` installs. Failures: a certificate that is too large,
//! that cannot be parsed, or that the authorities did not sign ends the handshake. A client without
//! a certificate is accepted. `attest::certificate` reads the key for the binding.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{
    WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    SignatureScheme,
};

/// The largest size of a client's certificates in bytes; usual chains need a quarter of it. Each
/// connection keeps them while it is open.
const MAX_CERTIFICATES_BYTES: usize = 16 * 1024;

/// Verifies that a client holds the key of its certificate.
#[derive(Debug)]
pub(super) struct Possession {
    algorithms: WebPkiSupportedAlgorithms,
    /// The authorities that must have signed the certificate, if configured.
    authorities: Option<Arc<dyn ClientCertVerifier>>,
}

impl Possession {
    /// Accepts any certificate, or only those that `authorities` signed.
    pub(super) fn new(
        authorities: Option<RootCertStore>,
    ) -> Result<Arc<Self>, VerifierBuilderError> {
        let provider = Arc::new(ring::default_provider());
        let algorithms = provider.signature_verification_algorithms;
        let authorities = match authorities {
            None => None,
            Some(roots) => Some(
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                    .allow_unauthenticated()
                    .build()?,
            ),
        };
        Ok(Arc::new(Self {
            algorithms,
            authorities,
        }))
    }
}

impl ClientCertVerifier for Possession {
    fn client_auth_mandatory(&self) -> bool {
        // Most callers, and probes, present no certificate.
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        let authorities = self.authorities.as_ref();
        authorities.map_or(&[], |authorities| authorities.root_hint_subjects())
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        // The size is checked before anything is parsed.
        let bytes: usize = intermediates.iter().map(|hint| hint.len()).sum();
        if bytes.saturating_add(end_entity.len()) > MAX_CERTIFICATES_BYTES {
            return Err(CertificateError::ApplicationVerificationFailure.into());
        }
        ParsedCertificate::try_from(end_entity)?;
        match &self.authorities {
            Some(authorities) => authorities.verify_client_cert(end_entity, intermediates, now),
            None => Ok(ClientCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
