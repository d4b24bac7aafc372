//! Ends streams whose other end does not read.
//!
//! A client that sends requests and never reads the answers fills the buffers in between. The
//! server would then wait forever to write, also at shutdown. [`WriteTimeout`] wraps a stream. The
//! rule: a write fails if no byte was accepted for the given time; any accepted byte restarts that
//! time. Reads are not limited here.
//!
//! Failures: `TimedOut` for the write, whereupon the caller drops the connection. `server::Bounded`
//! wraps each connection; this module calls only the stream.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// A stream that fails if it accepts no bytes for some time.
#[derive(Debug)]
pub struct WriteTimeout<S> {
    stream: S,
    patience: Duration,
    /// Runs while a write is pending.
    stuck: Option<Pin<Box<Sleep>>>,
}

impl<S> WriteTimeout<S> {
    /// Wraps this stream with this time-out.
    pub fn new(stream: S, patience: Duration) -> Self {
        Self {
            stream,
            patience,
            stuck: None,
        }
    }

    fn limit<T>(
        &mut self,
        context: &mut Context<'_>,
        polled: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.stuck = None;
            return polled;
        }
        let patience = self.patience;
        let stuck = self.stuck.get_or_insert_with(|| Box::pin(sleep(patience)));
        ready!(stuck.as_mut().poll(context));
        let unread = "the client does not read the answer";
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, unread)))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WriteTimeout<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WriteTimeout<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.limit(context, polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(context);
        self.limit(context, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_shutdown(context);
        self.limit(context, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.limit(context, polled)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[tokio::test]
    async fn a_stream_whose_other_end_does_not_read_fails_and_one_that_is_read_does_not() {
        let (ours, mut theirs) = duplex(64);
        let mut stream = WriteTimeout::new(ours, Duration::from_millis(200));
        let mut read = [0; 256];
        let (written, read) =
            tokio::join!(stream.write_all(&[7; 256]), theirs.read_exact(&mut read));
        written.unwrap();
        read.unwrap();
        let stuck = stream.write_all(&[7; 256]).await.unwrap_err();
        assert_eq!(stuck.kind(), io::ErrorKind::TimedOut);
        // Once the other end reads again, writes succeed again.
        theirs.read_exact(&mut [0; 64]).await.unwrap();
        stream.write_all(&[7; 64]).await.unwrap();
    }
}
