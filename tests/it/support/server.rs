//! A server on loopback with a runtime of its own, so that it serves plain and async tests alike.

use std::net::SocketAddr;

use axum::Router;
use tokio::runtime::Runtime;

use super::free_address;

/// The server. It ends with its owner.
pub struct Server {
    pub address: SocketAddr,
    runtime: Option<Runtime>,
}

impl Server {
    /// One at an address where nothing is.
    pub fn start(app: Router) -> Self {
        Self::start_at(free_address(), app)
    }

    /// One at this address, where another may have been a moment ago.
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
            // Long enough for tests that open very many connections at once.
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
            // Unlike a plain drop this may happen within an async test.
            runtime.shutdown_background();
        }
    }
}
