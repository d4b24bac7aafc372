//! A server on loopback with a runtime of its own, so that it works in plain and async tests.

use std::net::SocketAddr;

use axum::Router;
use tokio::runtime::Runtime;

use super::free_address;

/// A running server. It stops when dropped.
pub struct Server {
    pub address: SocketAddr,
    runtime: Option<Runtime>,
}

impl Server {
    /// Starts a server at a free address.
    pub fn start(app: Router) -> Self {
        Self::start_at(free_address(), app)
    }

    /// Starts a server at this address, which another server may just have left.
    pub fn start_at(address: SocketAddr, app: Router) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = {
            let _context = runtime.enter();
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.set_reuseaddr(true).unwrap();
            socket.bind(address).unwrap();
            // A backlog long enough for tests that open many connections at once.
            socket.listen(4096).unwrap()
        };
        runtime.spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self {
            address,
            runtime: Some(runtime),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Unlike a plain drop, this is allowed within an async test.
            runtime.shutdown_background();
        }
    }
}
