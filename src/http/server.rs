//! The listeners: TLS on ring, timeouts for slow clients, a limit of connections.
//!
//! [`Sockets`] binds the addresses, [`start`] serves the interface, and [`start_metrics`] the
//! metrics. [`Bounded`] accepts connections within the limits. The rules: a connection beyond a
//! limit is closed before a byte of it is read, and trusted proxies are exempt from the limit by
//! address.
//!
//! Failures: an address in use or an unfit certificate is an `io::Error` at the start. A listener
//! that fails later is only logged. `app` calls this module. It calls `router`, `tls` for
//! certificates, `limits` for the connections of an address, and `unread` to end connections whose
//! client does not read.

use std::future::{Ready, ready};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum_server::Handle;
use axum_server::accept::Accept;
use futures_util::future::BoxFuture;
use tokio::net::{TcpSocket, TcpStream};
use tower_http::add_extension::AddExtension;
use tracing::warn;

use super::client_address::TrustedProxies;
use super::limits::{AddressShare, AddressShares};
use super::tls::ServedTls;
use super::unread::WriteTimeout;
use super::{AppState, ops, router};
use crate::broker::Broker;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::shutdown::Shutdown;

/// The queue of connections to accept. When it is full, the kernel drops new connections, whose
/// clients try again after a second or more: a burst of silent connections would delay active
/// clients.
const BACKLOG: u32 = 4_096;

/// Open files other than connections: the store's, the log's, and outgoing requests.
const OTHER_FILES: u64 = 256;

/// Raises the limit of open files as far as permitted, and warns if it is too low for the
/// configured number of connections.
fn allow_open_files(connections: usize) {
    let needed = OTHER_FILES.saturating_add(connections as u64);
    match rlimit::increase_nofile_limit(needed) {
        Ok(allowed) if allowed < needed => warn!(
            allowed,
            needed,
            "too few open files for max_connections: raise the limit (LimitNOFILE, ulimit -Hn)"
        ),
        Ok(_) => {}
        Err(error) => warn!(%error, needed, "the limit of open files cannot be read"),
    }
}

/// The largest head of a request, and with it the largest buffer of a connection in HTTP/1.1: room
/// for two of the longest tokens. A request with a larger one is refused.
const HEAD_BYTES: u32 = 32 * 1024;

/// Maximum number of simultaneous requests on one connection in HTTP/2. A client that sends more
/// waits or opens another connection.
const STREAMS: u32 = 32;

/// How many bytes of one body in HTTP/2 a client may send before the server takes them: the largest
/// body of a caller.
const STREAM_WINDOW: u32 = 64 * 1024;

/// The same for all bodies on one connection. It bounds the memory for bodies that wait to be read.
const CONNECTION_WINDOW: u32 = 128 * 1024;

/// The largest number of connections to the metrics listener; a scraper needs one.
const METRICS_CONNECTIONS: usize = 64;

/// Serves metrics on a separate socket until shutdown; returns once it listens.
pub async fn start_metrics(
    metrics: Arc<Metrics>,
    config: &Config,
    socket: TcpSocket,
    shutdown: &Shutdown,
) -> io::Result<SocketAddr> {
    let serve = move || std::future::ready(ops::exposition(&metrics));
    let app = axum::Router::new()
        .route("/metrics", axum::routing::get(serve))
        .into_make_service();
    let patience = Duration::from_secs(config.server.header_timeout_seconds);
    let handle = Handle::new();
    let mut server = axum_server::from_tcp(listen(socket)?)?
        .handle(handle.clone())
        .first_request_timeout(patience)
        .acceptor(Bounded::new(
            handle.clone(),
            METRICS_CONNECTIONS,
            METRICS_CONNECTIONS,
        ));
    let http = server.http_builder();
    http.http1()
        .header_read_timeout(patience)
        .max_buf_size(16 * 1024);
    http.http2()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(Some(8));
    let serving = {
        let handle = handle.clone();
        let stopping = shutdown.stopping();
        async move {
            let listening = server.serve(app);
            tokio::pin!(listening);
            tokio::select! {
                ended = &mut listening => return log_end(ended),
                () = stopping => handle.graceful_shutdown(Some(patience)),
            }
            log_end(listening.await);
        }
    };
    drop(shutdown.spawn("metrics", serving));
    let listening = handle.listening().await;
    listening.ok_or_else(|| io::Error::other("the listener for metrics did not start"))
}

/// A listener that serves.
#[derive(Debug)]
pub struct Served {
    /// The address that it listens on.
    pub address: SocketAddr,
    /// The certificate that it presents. `None` if it does not terminate TLS.
    pub tls: Option<ServedTls>,
}

/// Serves the broker until shutdown; returns once it listens.
pub async fn start(
    broker: Arc<Broker>,
    config: &Config,
    sockets: Sockets,
    shutdown: &Shutdown,
) -> io::Result<Served> {
    let metrics = Arc::clone(broker.core.metrics());
    let app =
        router(AppState::new(broker, config)).into_make_service_with_connect_info::<SocketAddr>();
    let settings = &config.server;
    allow_open_files(settings.max_connections);
    let headers = Duration::from_secs(settings.header_timeout_seconds);
    let handle = Handle::new();
    let mut server = axum_server::from_tcp(listen(sockets.server)?)?
        .handle(handle.clone())
        .first_request_timeout(headers)
        .acceptor(
            Bounded::new(
                handle.clone(),
                settings.max_connections,
                settings.connections_per_address(),
            )
            .trusting(TrustedProxies::new(&settings.trusted_proxies))
            .cutting_off_after(headers),
        );
    let http = server.http_builder();
    http.http1()
        .header_read_timeout(headers)
        .max_buf_size(HEAD_BYTES as usize);
    http.http2()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(Some(Duration::from_secs(30)))
        .keep_alive_timeout(Duration::from_secs(10))
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEAD_BYTES);

    let tls = ServedTls::read(&settings.tls, metrics).await?;
    let acceptor = tls.as_ref().map(ServedTls::acceptor);
    let serving = {
        let handle = handle.clone();
        let finish = Duration::from_secs(settings.finish_seconds);
        let stopping = shutdown.stopping();
        async move {
            let listening: BoxFuture<'_, io::Result<()>> = match acceptor {
                None => Box::pin(server.serve(app)),
                Some(tls) => {
                    let tls = tls.handshake_timeout(headers);
                    Box::pin(server.map(|bounded| tls.acceptor(bounded)).serve(app))
                }
            };
            tokio::pin!(listening);
            tokio::select! {
                ended = &mut listening => return log_end(ended),
                () = stopping => handle.graceful_shutdown(Some(finish)),
            }
            log_end(listening.await);
        }
    };
    // Tracked like a request: it ends with its last connection.
    drop(shutdown.spawn("http", serving));
    let address = handle.listening().await;
    let address = address.ok_or_else(|| io::Error::other("the listener did not start"))?;
    Ok(Served { address, tls })
}

/// The addresses that a broker will listen on, bound before anything else is created. Until a
/// socket listens, the kernel refuses its clients.
#[derive(Debug)]
pub struct Sockets {
    server: TcpSocket,
    metrics: Option<TcpSocket>,
}

impl Sockets {
    /// Binds the addresses of a configuration.
    pub fn bind(config: &Config) -> io::Result<Self> {
        let named =
            |error: io::Error, name: &str| io::Error::new(error.kind(), format!("{name}: {error}"));
        let server = config.server.listen;
        let metrics = config.metrics.listen;
        Ok(Self {
            server: bind(server).map_err(|error| named(error, &server.to_string()))?,
            metrics: match metrics {
                Some(address) => Some(
                    bind(address)
                        .map_err(|error| named(error, &format!("metrics.listen {address}")))?,
                ),
                None => None,
            },
        })
    }

    /// Removes and returns the socket for metrics, if there is one.
    pub fn take_metrics(&mut self) -> Option<TcpSocket> {
        self.metrics.take()
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // After a restart, connections of the previous process may still be in TIME_WAIT.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

fn listen(socket: TcpSocket) -> io::Result<std::net::TcpListener> {
    socket.listen(BACKLOG)?.into_std()
}

fn log_end(ended: io::Result<()>) {
    if let Err(error) = ended {
        tracing::error!(%error, "the listener failed");
    }
}

/// How long a client may read nothing, by default.
const WRITE_PATIENCE: Duration = Duration::from_secs(10);

/// Accepts a limited number of connections; a connection beyond the limit is closed before a byte
/// of it is read.
#[derive(Clone)]
pub struct Bounded {
    handle: Handle<SocketAddr>,
    connections: usize,
    by_address: Arc<AddressShares>,
    proxies: TrustedProxies,
    write_patience: Duration,
}

impl Bounded {
    /// For a server's handle, with the limit of all connections and the limit of those from one
    /// address.
    #[must_use]
    pub fn new(handle: Handle<SocketAddr>, connections: usize, of_one_address: usize) -> Self {
        Self {
            handle,
            connections,
            by_address: Arc::new(AddressShares::new(of_one_address)),
            proxies: TrustedProxies::default(),
            write_patience: WRITE_PATIENCE,
        }
    }

    /// Closes the connection of a client that reads nothing for this long.
    #[must_use]
    pub fn cutting_off_after(self, write_patience: Duration) -> Self {
        Self {
            write_patience,
            ..self
        }
    }

    /// Exempts trusted proxies, whose connections are those of many clients, from the limit by
    /// address.
    #[must_use]
    pub(super) fn trusting(self, proxies: TrustedProxies) -> Self {
        Self { proxies, ..self }
    }

    fn take_slot(&self, peer: IpAddr) -> io::Result<Option<Arc<AddressShare>>> {
        if self.proxies.contain(peer) {
            return Ok(None);
        }
        let slot = self.by_address.take(peer, 1);
        let slot = slot.ok_or_else(|| io::Error::other("too many connections from one address"))?;
        Ok(Some(Arc::new(slot)))
    }
}

impl<S> Accept<TcpStream, S> for Bounded {
    type Stream = WriteTimeout<TcpStream>;
    /// The service carries the connection's slot: both are dropped when the connection ends.
    type Service = AddExtension<S, Option<Arc<AddressShare>>>;
    type Future = Ready<io::Result<(Self::Stream, Self::Service)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        // The count includes the connection that is being accepted.
        if self.handle.connection_count() > self.connections {
            return ready(Err(io::Error::other("too many connections")));
        }
        ready(stream.set_nodelay(true).and_then(|()| {
            let slot = self.take_slot(stream.peer_addr()?.ip())?;
            let stream = WriteTimeout::new(stream, self.write_patience);
            Ok((stream, AddExtension::new(service, slot)))
        }))
    }
}
