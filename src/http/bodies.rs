//! The memory that bodies of requests take, before it is known who sent them.
//!
//! [`Bodies`] reads a body within the route's limit. The rules: bodies that are being read or used
//! take memory from one of three pools, by their [`Kind`], so that large bodies which are never
//! sent whole keep nothing from small ones. Each pool is limited for all bodies and for those of
//! one address. Memory is taken when bytes arrive, and not for an announced length, so that a
//! client which sends nothing takes nothing. A body that outgrows a pool moves to the next one. A
//! [`BodyShare`] is the memory of one body; dropping it gives the memory back. The request's
//! timeout ends the wait for a body, and so drops its share. Each piece is copied, because a piece
//! of one byte would keep a whole buffer of its connection.
//!
//! Failures: a body beyond the route's limit is a 413, one that breaks off a 400. A small body
//! waits for memory for [`BODY_WAIT_SECONDS`] and is then refused with a 503. A larger one is
//! refused at once, because bodies that keep a part while they wait for more would all wait for
//! each other; so is any body of an address that has its whole share. `json` and `oauth::form` call
//! this module, which calls `limits` for the shares of addresses.

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
use crate::domain::limits::{
    BODY_WAIT_SECONDS, MAX_ADDRESS_BODIES_BYTES, MAX_ADMIN_BODY_BYTES, MAX_BODY_BYTES,
    MAX_DOCUMENTS_BYTES, MAX_LARGE_BODIES_BYTES, MAX_SMALL_BODIES_BYTES, SMALL_BODY_BYTES,
};

/// The unit of the shares.
const UNIT_BYTES: usize = 1024;

/// The memory for the bodies of all requests.
#[derive(Clone, Debug)]
pub(super) struct Bodies {
    small: Pool,
    large: Pool,
    documents: Pool,
}

/// The pool that a body takes its memory from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// At most [`SMALL_BODY_BYTES`]: nearly every body.
    Small,
    /// Any other body of a caller.
    Large,
    /// A body that may exceed [`MAX_BODY_BYTES`]. The routes for such bodies read them after the
    /// caller was authorized.
    Document,
}

/// The memory for the bodies of one kind.
#[derive(Clone, Debug)]
struct Pool {
    /// The units that are not in use.
    free: Arc<Semaphore>,
    /// The units in use, by address.
    by_address: Arc<AddressShares>,
    /// How long a body waits for units; `None` if it is refused at once.
    wait: Option<Duration>,
}

/// Units of a pool, and of the share of an address in it.
type Part = (Option<AddressShare>, OwnedSemaphorePermit);

/// The memory that one body takes.
#[derive(Debug, Default)]
pub(super) struct BodyShare(Vec<Part>);

/// A whole body. Keep the share for as long as anything that was made of the body.
#[derive(Debug, Default)]
pub(super) struct ReadBody {
    pub(super) bytes: Vec<u8>,
    pub(super) share: BodyShare,
}

impl Default for Bodies {
    fn default() -> Self {
        let wait = Duration::from_secs(BODY_WAIT_SECONDS);
        let of_address = MAX_ADDRESS_BODIES_BYTES;
        Self {
            small: Pool::new(MAX_SMALL_BODIES_BYTES, of_address, Some(wait)),
            large: Pool::new(MAX_LARGE_BODIES_BYTES, of_address, None),
            documents: Pool::new(MAX_DOCUMENTS_BYTES, MAX_ADMIN_BODY_BYTES, None),
        }
    }
}

impl Bodies {
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
            if length > body.bytes.capacity() {
                self.grow(&mut body, length, most, address).await?;
            }
            body.bytes.extend_from_slice(&piece);
        }
        Ok(body)
    }

    /// Takes memory for a body of which so many bytes have arrived, and of which there are at most
    /// so many.
    async fn grow(
        &self,
        body: &mut ReadBody,
        arrived: usize,
        most: Option<usize>,
        address: Option<ClientAddress>,
    ) -> Result<(), Problem> {
        let (held, wanted) = (body.bytes.capacity(), capacity_for(arrived, most));
        let kind = Kind::of(wanted, most);
        let stays = Kind::of(held, most) == kind;
        let more = if stays { wanted - held } else { wanted };
        let part = self.pool(kind).take(address, more).await?;
        body.bytes.reserve_exact(wanted - body.bytes.len());
        if !stays {
            body.share.0.clear();
        }
        body.share.0.push(part);
        Ok(())
    }

    fn pool(&self, kind: Kind) -> &Pool {
        match kind {
            Kind::Small => &self.small,
            Kind::Large => &self.large,
            Kind::Document => &self.documents,
        }
    }
}

impl Kind {
    /// Of a body that takes so many bytes, and has at most so many.
    fn of(taken: usize, most: Option<usize>) -> Self {
        if most.unwrap_or(taken) > MAX_BODY_BYTES {
            Self::Document
        } else if taken > SMALL_BODY_BYTES {
            Self::Large
        } else {
            Self::Small
        }
    }
}

impl Pool {
    /// With these numbers of bytes for all bodies and for those of one address.
    fn new(all: usize, of_one_address: usize, wait: Option<Duration>) -> Self {
        Self {
            free: Arc::new(Semaphore::new(all / UNIT_BYTES)),
            by_address: Arc::new(AddressShares::new(of_one_address / UNIT_BYTES)),
            wait,
        }
    }

    /// Takes memory for more bytes of a body from this address.
    async fn take(&self, address: Option<ClientAddress>, bytes: usize) -> Result<Part, Problem> {
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
        let free = Arc::clone(&self.free);
        let permit = match self.wait {
            None => free.try_acquire_many_owned(units).ok(),
            Some(wait) => match timeout(wait, free.acquire_many_owned(units)).await {
                Ok(Ok(permit)) => Some(permit),
                Ok(Err(_)) | Err(_) => None,
            },
        };
        let permit = permit.ok_or_else(overloaded)?;
        Ok((of_address, permit))
    }
}

/// The memory for a body of which so many bytes have arrived, and of which there are at most so
/// many.
fn capacity_for(arrived: usize, most: Option<usize>) -> usize {
    let doubled = arrived.next_power_of_two().max(SMALL_BODY_BYTES);
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
    use http_body_util::Limited;

    use super::*;

    fn from(address: &str, body: impl Into<Body>) -> Request {
        let mut request = Request::new(body.into());
        let address = ClientAddress(address.parse().unwrap());
        request.extensions_mut().insert(address);
        request
    }

    /// A body in pieces of a byte, of unknown length, on a route for callers.
    fn in_pieces(length: u32) -> Body {
        let pieces = (0..length).map(|n| Ok::<_, io::Error>(vec![n.to_be_bytes()[3]]));
        let pieces = Body::from_stream(futures_util::stream::iter(pieces));
        Body::new(Limited::new(pieces, MAX_BODY_BYTES))
    }

    /// Each pool has these numbers of units, and no body waits.
    fn pools(all: usize, of_one_address: usize) -> Bodies {
        let pool = || Pool::new(all * UNIT_BYTES, of_one_address * UNIT_BYTES, None);
        Bodies {
            small: pool(),
            large: pool(),
            documents: pool(),
        }
    }

    /// The free units of the three pools.
    fn free(bodies: &Bodies) -> [usize; 3] {
        [&bodies.small, &bodies.large, &bodies.documents].map(|pool| pool.free.available_permits())
    }

    const ONE: &str = "192.0.2.1";
    const OTHER: &str = "192.0.2.2";

    #[tokio::test]
    async fn a_body_takes_what_has_arrived_and_gives_it_back() {
        let bodies = pools(128, 128);
        let whole = bodies.read(from(ONE, vec![7; 1_025])).await.unwrap();
        assert_eq!(whole.bytes, [7; 1_025]);
        assert_eq!(free(&bodies), [126, 128, 128]);
        drop(whole);
        // It begins as a small body.
        let grown = bodies.read(from(ONE, in_pieces(5_000))).await.unwrap();
        assert_eq!(grown.bytes.len(), 5_000);
        assert_eq!(grown.bytes[4_999], 4_999_u32.to_be_bytes()[3]);
        assert_eq!(grown.bytes.capacity(), 8_192);
        assert_eq!(free(&bodies), [128, 120, 128]);
        let longer = bodies.read(from(ONE, in_pieces(9_000))).await.unwrap();
        assert_eq!(free(&bodies), [128, 104, 128]);
        drop((grown, longer));
        let document = bodies.read(from(ONE, vec![7; 65_537])).await.unwrap();
        assert_eq!(free(&bodies), [128, 128, 63]);
        drop(document);
        let nothing = bodies.read(from(ONE, Body::empty())).await.unwrap();
        assert!(nothing.bytes.is_empty());
        assert_eq!(free(&bodies), [128; 3]);
    }

    #[tokio::test]
    async fn an_address_has_its_share_and_takes_nothing_from_others() {
        for (length, once_more) in [(4_096, 1), (8_192, 4_097)] {
            let bodies = pools(64, length / UNIT_BYTES);
            let held = bodies.read(from(ONE, vec![7; length])).await.unwrap();
            let refused = bodies.read(from(ONE, vec![7; once_more])).await;
            let refused = refused.unwrap_err();
            assert_eq!(refused.slug(), "overloaded");
            assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
            bodies.read(from(OTHER, vec![7; length])).await.unwrap();
            drop(held);
            assert_eq!(free(&bodies), [64; 3]);
            bodies.read(from(ONE, vec![7; length])).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_small_body_waits_for_memory_until_its_time_is_over() {
        let hour = Some(Duration::from_hours(1));
        let patient = Bodies {
            small: Pool::new(SMALL_BODY_BYTES, SMALL_BODY_BYTES, hour),
            ..pools(8, 8)
        };
        let mut impatient = patient.clone();
        impatient.small.wait = Some(Duration::ZERO);
        let held = patient.read(from(ONE, vec![7; 4_096])).await.unwrap();
        let refused = impatient.read(from(OTHER, vec![7; 1])).await.unwrap_err();
        assert_eq!(refused.slug(), "overloaded");
        let (read, ()) = tokio::join!(patient.read(from(OTHER, vec![7; 1])), async { drop(held) });
        assert_eq!(read.unwrap().bytes, [7]);
    }

    /// Half-sent large bodies took the memory of small ones, and one that waited for a large part
    /// kept small ones from free memory.
    #[tokio::test]
    async fn large_bodies_keep_no_memory_from_small_ones_and_do_not_wait() {
        let bodies = Bodies {
            large: Pool::new(8_192, 8_192, None),
            ..Bodies::default()
        };
        let all = free(&bodies);
        let held = bodies.read(from(ONE, vec![7; 8_192])).await.unwrap();
        assert_eq!(free(&bodies), [all[0], 0, all[2]]);
        for large in [Body::from(vec![7_u8; 4_097]), in_pieces(4_097)] {
            let refused = bodies.read(from(OTHER, large)).await.unwrap_err();
            assert_eq!(refused.slug(), "overloaded");
        }
        assert_eq!(free(&bodies), [all[0], 0, all[2]]);
        bodies.read(from(ONE, vec![7; 4_096])).await.unwrap();
        bodies.read(from(ONE, in_pieces(4_096))).await.unwrap();
        bodies.read(from(ONE, vec![7; 65_537])).await.unwrap();
        drop(held);
        assert_eq!(free(&bodies), all);
    }

    #[tokio::test]
    async fn a_body_that_is_too_large_or_breaks_off_takes_nothing() {
        let bodies = Bodies::default();
        let all = free(&bodies);
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
        assert_eq!(free(&bodies), all);
    }

    #[tokio::test]
    async fn the_largest_body_of_a_route_fits_into_the_share_of_one_address() {
        let bodies = Bodies::default();
        for length in [MAX_BODY_BYTES, 2_097_152] {
            let read = bodies.read(from(ONE, vec![7; length])).await;
            assert_eq!(read.unwrap().bytes.len(), length);
        }
        let address = Some(ClientAddress(ONE.parse().unwrap()));
        let document = bodies.documents.take(address, MAX_ADMIN_BODY_BYTES).await;
        assert!(document.is_ok());
    }

    #[test]
    fn a_body_moves_to_a_pool_of_its_kind() {
        for (taken, most, kind) in [
            (0, Some(65_536), Kind::Small),
            (4_096, Some(65_536), Kind::Small),
            (4_097, Some(65_536), Kind::Large),
            (65_536, Some(65_536), Kind::Large),
            (0, Some(65_537), Kind::Document),
            (65_536, None, Kind::Large),
            (65_537, None, Kind::Document),
        ] {
            assert_eq!(Kind::of(taken, most), kind, "{taken} {most:?}");
        }
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
