//! The memory that bodies of requests take, before it is known who sent them.
//!
//! [`Bodies`] reads a body within the route's limit. The rules: all bodies that are being read or
//! used take at most [`MAX_BODIES_BYTES`], and those of one address [`MAX_ADDRESS_BODIES_BYTES`].
//! Memory is taken when bytes arrive, and not for an announced length, so that a client which sends
//! nothing takes nothing. A [`BodyShare`] is the memory of one body; dropping it gives the memory
//! back. The request's timeout ends the wait for a body, and so drops its share. Each piece is
//! copied, because a piece of one byte would keep a whole buffer of its connection.
//!
//! Failures: a body beyond the route's limit is a 413, one that breaks off a 400. If the memory for
//! all bodies is in use, a body waits for [`BODY_WAIT_SECONDS`] and is then refused with a 503; one
//! of an address that has its whole share is refused at once. `json` and `oauth::form` call this
//! module, which calls `limits` for the shares of addresses.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use axum::RequestExt as _;
use axum::body::HttpBody as _;
use axum::extract::Request;
use http_body_util::{BodyExt as _, LengthLimitError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::client_address::ClientAddress;
use super::limits::{AddressShare, AddressShares};
use super::problem::Problem;
use crate::broker::BrokerError;
use crate::domain::limits::{BODY_WAIT_SECONDS, MAX_ADDRESS_BODIES_BYTES, MAX_BODIES_BYTES};

/// The unit of the shares.
const UNIT_BYTES: usize = 1024;

/// The memory for the beginning of a body, which doubles as more arrives. Usual bodies fit into it.
const FIRST_BYTES: usize = 4 * 1024;

/// The memory for the bodies of all requests.
#[derive(Clone, Debug)]
pub(super) struct Bodies {
    /// The units that are not in use.
    all: Arc<Semaphore>,
    /// The units in use, by address.
    by_address: Arc<AddressShares>,
    /// How long a body waits for memory.
    wait: Duration,
}

/// The memory that one body takes.
#[derive(Debug, Default)]
pub(super) struct BodyShare(Vec<(Option<AddressShare>, OwnedSemaphorePermit)>);

/// A whole body. Keep the share for as long as anything that was made of the body.
#[derive(Debug, Default)]
pub(super) struct ReadBody {
    pub(super) bytes: Vec<u8>,
    pub(super) share: BodyShare,
}

impl Default for Bodies {
    fn default() -> Self {
        Self::new(
            MAX_BODIES_BYTES / UNIT_BYTES,
            MAX_ADDRESS_BODIES_BYTES / UNIT_BYTES,
            Duration::from_secs(BODY_WAIT_SECONDS),
        )
    }
}

impl Bodies {
    /// With these numbers of units for all bodies and for those of one address.
    fn new(all: usize, of_one_address: usize, wait: Duration) -> Self {
        Self {
            all: Arc::new(Semaphore::new(all)),
            by_address: Arc::new(AddressShares::new(of_one_address)),
            wait,
        }
    }

    /// Reads a request's body, within the route's limit.
    pub(super) async fn read(&self, request: Request) -> Result<ReadBody, Problem> {
        let address = request.extensions().get::<ClientAddress>().copied();
        let mut arriving = request.into_limited_body();
        // The smaller one of the announced length and the route's limit.
        let most = arriving.size_hint().upper();
        let most = most.and_then(|most| usize::try_from(most).ok());
        let mut body = ReadBody::default();
        while let Some(frame) = arriving.frame().await {
            let frame = frame.map_err(|error| unread(&error))?;
            // Other frames are trailers, which have no meaning here.
            let Ok(piece) = frame.into_data() else {
                continue;
            };
            let length = body.bytes.len() + piece.len();
            let capacity = body.bytes.capacity();
            if length > capacity {
                let wanted = capacity_for(length, most);
                let more = self.take(address, wanted - capacity).await?;
                body.share.0.push(more);
                body.bytes.reserve_exact(wanted - body.bytes.len());
            }
            body.bytes.extend_from_slice(&piece);
        }
        Ok(body)
    }

    /// Takes memory for more bytes of a body from this address.
    async fn take(
        &self,
        address: Option<ClientAddress>,
        bytes: usize,
    ) -> Result<(Option<AddressShare>, OwnedSemaphorePermit), Problem> {
        let overloaded = || Problem::from(BrokerError::Overloaded);
        let units = bytes.div_ceil(UNIT_BYTES);
        let of_address = match address {
            None => None,
            Some(ClientAddress(address)) => {
                let share = self.by_address.take(address, units);
                Some(share.ok_or_else(overloaded)?)
            }
        };
        let units = u32::try_from(units).map_err(|_| Problem::too_large())?;
        let free = Arc::clone(&self.all).acquire_many_owned(units);
        match timeout(self.wait, free).await {
            Ok(Ok(permit)) => Ok((of_address, permit)),
            Ok(Err(_)) | Err(_) => Err(overloaded()),
        }
    }
}

/// The memory for a body of which so many bytes have arrived, and of which there are at most so
/// many.
fn capacity_for(arrived: usize, most: Option<usize>) -> usize {
    let doubled = arrived.next_power_of_two().max(FIRST_BYTES);
    most.map_or(doubled, |most| doubled.min(most)).max(arrived)
}

fn unread(error: &axum::Error) -> Problem {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.is::<LengthLimitError>() {
            return Problem::too_large();
        }
        cause = error.source();
    }
    Problem::invalid("", "the body could not be read")
}

#[cfg(test)]
mod tests {
    use std::io;

    use axum::body::{Body, Bytes};
    use axum::http::StatusCode;

    use super::*;

    fn from(address: &str, body: impl Into<Body>) -> Request {
        let mut request = Request::new(body.into());
        let address = ClientAddress(address.parse().unwrap());
        request.extensions_mut().insert(address);
        request
    }

    const ONE: &str = "192.0.2.1";
    const OTHER: &str = "192.0.2.2";

    #[tokio::test]
    async fn a_body_takes_what_has_arrived_and_gives_it_back() {
        let bodies = Bodies::new(64, 64, Duration::ZERO);
        let whole = bodies.read(from(ONE, vec![7; 1_025])).await.unwrap();
        assert_eq!(whole.bytes, [7; 1_025]);
        assert_eq!(bodies.all.available_permits(), 62);
        drop(whole);
        // A body in pieces of a byte, of unknown length.
        let pieces = (0..5_000_u32).map(|n| Ok::<_, io::Error>(vec![n.to_be_bytes()[3]]));
        let pieces = Body::from_stream(futures_util::stream::iter(pieces));
        let in_pieces = bodies.read(from(ONE, pieces)).await.unwrap();
        assert_eq!(in_pieces.bytes.len(), 5_000);
        assert_eq!(in_pieces.bytes[4_999], 4_999_u32.to_be_bytes()[3]);
        assert_eq!(in_pieces.bytes.capacity(), 8_192);
        assert_eq!(bodies.all.available_permits(), 56);
        drop(in_pieces);
        let nothing = bodies.read(from(ONE, Body::empty())).await.unwrap();
        assert!(nothing.bytes.is_empty());
        assert_eq!(bodies.all.available_permits(), 64);
    }

    #[tokio::test]
    async fn an_address_has_its_share_and_takes_nothing_from_others() {
        let bodies = Bodies::new(64, 8, Duration::ZERO);
        let held = bodies.read(from(ONE, vec![7; 8_192])).await.unwrap();
        let refused = bodies.read(from(ONE, vec![7; 1])).await.unwrap_err();
        assert_eq!(refused.slug(), "overloaded");
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(bodies.all.available_permits(), 56);
        bodies.read(from(OTHER, vec![7; 8_192])).await.unwrap();
        drop(held);
        bodies.read(from(ONE, vec![7; 8_192])).await.unwrap();
    }

    #[tokio::test]
    async fn a_body_waits_for_memory_until_its_time_is_over() {
        let hour = Duration::from_hours(1);
        let patient = Bodies::new(8, 64, hour);
        let impatient = Bodies {
            wait: Duration::ZERO,
            ..patient.clone()
        };
        let held = patient.read(from(ONE, vec![7; 8_192])).await.unwrap();
        let refused = impatient.read(from(OTHER, vec![7; 1])).await.unwrap_err();
        assert_eq!(refused.slug(), "overloaded");
        let (read, ()) = tokio::join!(patient.read(from(OTHER, vec![7; 1])), async { drop(held) });
        assert_eq!(read.unwrap().bytes, [7]);
    }

    #[tokio::test]
    async fn a_body_that_is_too_large_or_breaks_off_takes_nothing() {
        let bodies = Bodies::default();
        let all = bodies.all.available_permits();
        // The limit of a route that sets none is 2 MB.
        let large = bodies.read(from(ONE, vec![7; 2_097_153])).await;
        assert_eq!(large.unwrap_err().slug(), "payload-too-large");
        let pieces = [
            Ok(Bytes::from_static(b"{")),
            Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
        ];
        let broken = Body::from_stream(futures_util::stream::iter(pieces));
        let broken = bodies.read(from(ONE, broken)).await;
        assert_eq!(broken.unwrap_err().slug(), "invalid-request");
        assert_eq!(bodies.all.available_permits(), all);
    }

    #[test]
    fn memory_doubles_up_to_the_length() {
        for (arrived, most, wanted) in [
            (1, None, 4_096),
            (1, Some(1_000), 1_000),
            (4_097, Some(65_536), 8_192),
            (40_000, Some(65_536), 65_536),
            (40_000, Some(50_000), 50_000),
            (40_000, Some(1), 40_000),
        ] {
            assert_eq!(capacity_for(arrived, most), wanted, "{arrived} {most:?}");
        }
    }
}
