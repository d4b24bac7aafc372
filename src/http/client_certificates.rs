//! Client certificates in the TLS handshake: asked for, not demanded, and believed in one thing.
//!
//! RFC 8705 §3 binds a token to a certificate by the key that is in it, and the handshake's
//! signature shows that the client holds that key. So a self-signed certificate is as good as any:
//! names, dates and chains are judged only where authorities are configured. Whoever leans on what
//! a certificate says of its subject has to judge that; a binding says only "the same again".

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

/// All of a client's certificates together: ordinary chains take a quarter of it. Each connection
/// keeps them as long as it is open.
const MAX_CERTIFICATES_BYTES: usize = 16 * 1024;

/// Verifies that a client holds the key of the certificate it presents.
#[derive(Debug)]
pub(super) struct Possession {
    algorithms: WebPkiSupportedAlgorithms,
    /// Who must have signed it, where that matters.
    authorities: Option<Arc<dyn ClientCertVerifier>>,
}

impl Possession {
    /// Of any certificate, or of those that `authorities` signed.
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
        // Most callers attest by a token alone, and so do probes.
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
        // Before anything is parsed.
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
