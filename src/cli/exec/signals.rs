//! The signals that this process gets in place of its command.

use std::future::poll_fn;
use std::task::Poll;

use rustix::process::{Signal, getpid, getppid, getsid, kill_process};
use tokio::signal::unix::{self as stream, SignalKind};

use crate::cli::Failure;

/// The signals that are listened to. If several are pending, the first of this list is returned first:
/// this process must learn that it was continued before it judges the state of its command.
const LISTENED: [Signal; 10] = [
    Signal::CONT,
    Signal::TERM,
    Signal::HUP,
    Signal::INT,
    Signal::QUIT,
    Signal::USR1,
    Signal::USR2,
    Signal::WINCH,
    Signal::TSTP,
    Signal::CHILD,
];

/// Signals that end a process that does not listen to them.
const ENDING: [Signal; 4] = [Signal::TERM, Signal::HUP, Signal::INT, Signal::QUIT];

/// The exit code that a shell gives a command that a signal ended.
pub(super) fn exit_code(signal: i32) -> u8 {
    let signal = u8::try_from(signal).unwrap_or(u8::MAX);
    signal.saturating_add(128)
}

/// A stream for each signal. Once it exists, these signals no longer act on this process by
/// themselves.
pub(super) struct Signals(Vec<(Signal, stream::Signal)>);

impl Signals {
    pub(super) fn listen() -> Result<Self, Failure> {
        let streams = LISTENED.map(|signal| {
            let opened = stream::signal(SignalKind::from_raw(signal.as_raw()));
            opened.map(|opened| (signal, opened))
        });
        let streams: Result<_, _> = streams.into_iter().collect();
        streams.map(Self).map_err(Failure::unestablished)
    }

    /// The next signal. It can be cancelled: no signal is lost by that.
    pub(super) async fn next(&mut self) -> Signal {
        poll_fn(|context| {
            for (signal, stream) in &mut self.0 {
                if stream.poll_recv(context) == Poll::Ready(Some(())) {
                    return Poll::Ready(*signal);
                }
            }
            Poll::Pending
        })
        .await
    }

    /// The next signal that ends this process as long as it has no command to pass it on to.
    pub(super) async fn ending(&mut self) -> Signal {
        loop {
            match self.next().await {
                signal if ENDING.contains(&signal) => return signal,
                Signal::TSTP if can_be_continued() => stop_this_process(),
                _ => {}
            }
        }
    }
}

/// Whether there is a shell that could continue this process after a stop: its parent belongs to
/// the same session. The first process of a container has no such parent.
pub(super) fn can_be_continued() -> bool {
    let Some(parent) = getppid() else {
        return false;
    };
    match (getsid(Some(parent)), getsid(None)) {
        (Ok(theirs), Ok(ours)) => theirs == ours,
        _ => false,
    }
}

/// Stops this process. The call returns when the process is continued.
pub(super) fn stop_this_process() {
    // Ignore the result: a process may always signal itself.
    kill_process(getpid(), Signal::STOP).ok();
}
