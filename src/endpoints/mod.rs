//! The servers to which this replica may send secrets, and the addresses to which it may connect.
//!
//! `[endpoints.NAME]` of a replica's own configuration defines a server's address, the authorities
//! that may certify it, and the token that it receives. A generation only names an endpoint. If
//! this replica does not have the name, or has it for another use, the generation cannot be used
//! here.
//!
//! Requests without a configured endpoint carry no secret. They go to public addresses only
//! ([`address`]), except those to AWS, whose host follows from the role's partition and region.
//!
//! - [`table`]: the table of endpoints, and its validation.
//! - [`address`]: public addresses, and the client that connects to no others.
//! - [`own_credentials`]: the AWS roles for which the host's credentials are used.
//! - [`secret_files`]: files that no endpoint may name.
//! - [`unfit_endpoint`]: the error for a setting that a generation needs and this replica lacks.

pub mod address;
pub mod own_credentials;
pub mod secret_files;
pub mod table;
pub mod unfit_endpoint;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

pub use self::address::{PublicClient, RefusedAddress};
pub use self::own_credentials::OwnCredentials;
pub use self::table::{Endpoint, EndpointError, EndpointSpec, EndpointTable};
pub use self::unfit_endpoint::UnfitEndpoint;

/// The authorities of a PEM file; `None` if it has none or one that cannot be used.
#[must_use]
pub fn authorities(pem: &[u8]) -> Option<RootCertStore> {
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        store.add(certificate.ok()?).ok()?;
    }
    (!store.is_empty()).then_some(store)
}
