//! The HTTP door.

pub mod server {
    //! The listener.

    use std::net::SocketAddr;
    use std::sync::Arc;

    use crate::broker::Broker;
    use crate::config::Config;
    use crate::shutdown::Shutdown;

    /// Serves the broker; answers once it listens.
    #[expect(clippy::unused_async, reason = "the door is being built")]
    pub async fn start(
        _broker: Arc<Broker>,
        _config: &Config,
        _shutdown: &Shutdown,
    ) -> std::io::Result<SocketAddr> {
        Err(std::io::Error::other("the door is being built"))
    }
}
