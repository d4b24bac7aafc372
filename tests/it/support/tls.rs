//! Certificates made for one test, and TLS clients that observe the handshake.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, CustomExtension, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use rustls::client::ResolvesClientCert;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, RootCertStore, SignatureScheme,
    SupportedProtocolVersion,
};

use super::http::install_crypto_provider;
use super::keys::base64url;
use super::{SOON, random_hex};

/// A certificate with its key.
pub struct Identity {
    /// The certificate in DER.
    pub der: Vec<u8>,
    /// The certificate in PEM.
    pub pem: String,
    /// Its key in PEM.
    pub key_pem: String,
    key_der: Vec<u8>,
}

impl Identity {
    /// A self-signed server certificate for 127.0.0.1.
    pub fn server() -> Self {
        let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        // OpenSSL tries only the first of two authorities with the same name.
        let name = format!("server {}", random_hex(8));
        params.distinguished_name.push(DnType::CommonName, name);
        Self::signed_by_itself(params, &KeyPair::generate().unwrap())
    }

    /// The same, valid until this day.
    pub fn server_until(year: i32, month: u8, day: u8) -> Self {
        let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(year, month, day);
        Self::signed_by_itself(params, &KeyPair::generate().unwrap())
    }

    /// A self-signed client certificate with this common name.
    pub fn client(name: &str) -> Self {
        Self::client_with(name, &KeyPair::generate().unwrap())
    }

    /// The same for a given key.
    pub fn client_with(name: &str, key: &KeyPair) -> Self {
        Self::signed_by_itself(client(name), key)
    }

    /// A client certificate with an extension of so many bytes.
    pub fn large_client(bytes: usize) -> Self {
        let mut params = client("large");
        let extension =
            CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 55555, 1], vec![0; bytes]);
        params.custom_extensions.push(extension);
        Self::signed_by_itself(params, &KeyPair::generate().unwrap())
    }

    fn signed_by_itself(params: CertificateParams, key: &KeyPair) -> Self {
        Self::of(&params.self_signed(key).unwrap(), key)
    }

    fn of(certificate: &rcgen::Certificate, key: &KeyPair) -> Self {
        Self {
            der: certificate.der().to_vec(),
            pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            key_der: key.serialize_der(),
        }
    }

    /// The certificate and its key in one text.
    pub fn both_pem(&self) -> String {
        format!("{}{}", self.pem, self.key_pem)
    }

    /// The certificate's `x5t#S256` (RFC 8705 §3.1).
    pub fn thumbprint(&self) -> String {
        base64url(ring::digest::digest(&ring::digest::SHA256, &self.der).as_ref())
    }

    /// The certificate in the form that a rustls client presents.
    pub fn certified(&self) -> CertifiedKey {
        present(vec![self.der.clone()], self)
    }
}

/// A chain of these bytes with the key of `own`, whether they match or not.
pub fn present(chain: Vec<Vec<u8>>, own: &Identity) -> CertifiedKey {
    let key = PrivateKeyDer::try_from(own.key_der.clone()).unwrap();
    CertifiedKey::new(
        chain.into_iter().map(CertificateDer::from).collect(),
        rustls::crypto::ring::sign::any_supported_type(&key).unwrap(),
    )
}

fn client(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
}

/// An authority that signs certificates of clients and servers.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate of a server at 127.0.0.1, signed by this authority.
    pub fn server(&self) -> Identity {
        let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, "server");
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Identity::of(&certificate, &key)
    }

    /// A client certificate signed by this authority.
    pub fn client(&self, name: &str) -> Identity {
        let key = KeyPair::generate().unwrap();
        let certificate = client(name).signed_by(&key, &self.0).unwrap();
        Identity::of(&certificate, &key)
    }
}

/// Presents one certificate, or none, to any server, and counts the requests for one.
#[derive(Debug)]
struct Presents {
    certificate: Option<Arc<CertifiedKey>>,
    asked: std::sync::atomic::AtomicUsize,
}

impl ResolvesClientCert for Presents {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        self.certificate.clone()
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// A rustls client that resumes sessions if the server permits it.
pub struct Handshakes {
    config: Arc<ClientConfig>,
    presents: Arc<Presents>,
}

impl Handshakes {
    /// A client that trusts `server` and presents `certificate`.
    pub fn new(
        server: &Identity,
        certificate: Option<CertifiedKey>,
        version: &'static SupportedProtocolVersion,
    ) -> Self {
        install_crypto_provider();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(server.der.clone())).unwrap();
        let presents = Arc::new(Presents {
            certificate: certificate.map(Arc::new),
            asked: std::sync::atomic::AtomicUsize::default(),
        });
        let own: Arc<dyn ResolvesClientCert> = Arc::<Presents>::clone(&presents);
        let config = ClientConfig::builder_with_protocol_versions(&[version])
            .with_root_certificates(roots)
            .with_client_cert_resolver(own);
        Self {
            config: Arc::new(config),
            presents,
        }
    }

    /// Number of times that a server has requested a certificate.
    pub fn asked(&self) -> usize {
        self.presents
            .asked
            .load(std::sync::atomic::Ordering::SeqCst)
    }

    /// Connects and requests `/livez`. Returns the kind of the handshake and the first line of the
    /// answer.
    pub fn greet(&self, address: SocketAddr) -> std::io::Result<(HandshakeKind, String)> {
        let mut stream = TcpStream::connect_timeout(&address, SOON)?;
        stream.set_read_timeout(Some(SOON))?;
        let name = address.ip().into();
        let mut connection = ClientConnection::new(Arc::clone(&self.config), name).unwrap();
        let mut tls = rustls::Stream::new(&mut connection, &mut stream);
        let request =
            format!("GET /livez HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
        tls.write_all(request.as_bytes())?;
        // In TLS 1.3 the server may reject the certificate after the client has completed the
        // handshake.
        let mut answer = Vec::new();
        tls.read_to_end(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer);
        let line = answer.lines().next().unwrap_or_default().to_owned();
        Ok((connection.handshake_kind().unwrap(), line))
    }
}
