//! Where this replica may send what is secret, and which addresses it may connect to.
//!
//! `[endpoints.NAME]` of a replica's own configuration says where a server is, which authorities its
//! certificate may come from and which token it is shown. A generation only names an endpoint. A name
//! that this replica does not have, or has for another use, makes the generation unfit here.
//!
//! Requests for which no endpoint is configured carry no secret. They go to public addresses alone
//! ([`address`]), except those to AWS, whose host follows from the role's partition and region.
//!
//! - [`table`]: the table, and what it refuses.
//! - [`address`]: which addresses are public, and the client that connects to no other.
//! - [`own_credentials`]: for which roles of AWS the credentials of the host are used.
//! - [`secret_files`]: files that no endpoint may name.

pub mod address;
pub mod own_credentials;
pub mod secret_files;
pub mod table;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

pub use self::address::{PublicClient, RefusedAddress};
pub use self::own_credentials::OwnCredentials;
pub use self::table::{Endpoint, EndpointError, EndpointSpec, EndpointTable, UnfitEndpoint};

/// The authorities of a PEM file, if it has any and all of them can be used.
#[must_use]
pub fn authorities(pem: &[u8]) -> Option<RootCertStore> {
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        store.add(certificate.ok()?).ok()?;
    }
    (!store.is_empty()).then_some(store)
}
