//! The signals that this process receives instead of its command.
//!
//! A signal that cannot be listened to is [`CliError::Unavailable`] before the command starts.
//! `super::child` passes the signals on.

use std::future::poll_fn;
use std::task::Poll;

use rustix::process::{Signal, getpid, getppid, getsid, kill_process};
use tokio::signal::unix::{self as stream, SignalKind};

use crate::cli::CliError;

/// The signals that this process listens to. If several are pending, the first of this list is
/// returned first: this process must learn that it was continued before it examines the state of
/// its command.
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

/// Signals that this process listens to even if it was started with them ignored. Without them it
/// would not notice the end of its command, or that it was continued itself.
const NEEDED: [Signal; 2] = [Signal::CONT, Signal::CHILD];

/// Signals that end a process that does not listen to them.
const ENDING: [Signal; 4] = [Signal::TERM, Signal::HUP, Signal::INT, Signal::QUIT];

/// The exit code that a shell gives a command that a signal ended.
pub(super) fn exit_code(signal: i32) -> u8 {
    let signal = u8::try_from(signal).unwrap_or(u8::MAX);
    signal.saturating_add(128)
}

/// A stream for each signal. Once it exists, these signals no longer act on this process by
/// themselves.
///
/// A signal that was ignored when this process started, as under `nohup` or in a background job of
/// `sh`, has no stream: this process goes on ignoring it, and the command inherits that.
pub(super) struct Signals(Vec<(Signal, stream::Signal)>);

impl Signals {
    pub(super) fn listen() -> Result<Self, CliError> {
        let ignored = Ignored::inherited();
        let listened = LISTENED
            .into_iter()
            .filter(|signal| NEEDED.contains(signal) || !ignored.contains(*signal));
        let streams = listened.map(|signal| {
            let opened = stream::signal(SignalKind::from_raw(signal.as_raw()));
            opened.map(|opened| (signal, opened))
        });
        let streams: Result<_, _> = streams.collect();
        streams.map(Self).map_err(CliError::unavailable)
    }

    /// The next signal. Cancelling this future loses no signal.
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

    /// The next signal that ends this process. Used before the command runs, when there is nothing
    /// to pass signals on to.
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

/// The set of signals that this process ignores. The bit `n - 1` stands for the signal `n`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ignored(u64);

impl Ignored {
    /// Reads the set from the system. Only Linux shows it; on other systems it is empty.
    fn inherited() -> Self {
        let status = std::fs::read_to_string("/proc/self/status");
        Self::shown_in(&status.unwrap_or_default())
    }

    /// The set in the text of `/proc/self/status`.
    fn shown_in(status: &str) -> Self {
        let mut lines = status.lines();
        let bits = lines.find_map(|line| line.strip_prefix("SigIgn:"));
        let bits = bits.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
        Self(bits.unwrap_or_default())
    }

    fn contains(self, signal: Signal) -> bool {
        let bit = u32::try_from(signal.as_raw() - 1).unwrap_or(u32::MAX);
        self.0.checked_shr(bit).is_some_and(|bits| bits & 1 == 1)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read_from_the_status_of_the_process() {
        // HUP (1), INT (2) and PIPE (13).
        let status =
            "SigBlk:\t0000000000004000\nSigIgn:\t0000000000001003\nSigCgt:\t0000000000000000\n";
        let ignored = Ignored::shown_in(status);
        for signal in [Signal::HUP, Signal::INT, Signal::PIPE] {
            assert!(ignored.contains(signal), "{signal:?}");
        }
        for signal in [Signal::QUIT, Signal::TERM, Signal::CHILD] {
            assert!(!ignored.contains(signal), "{signal:?}");
        }
        for odd in ["", "SigIgn:", "SigIgn:\tnone\n"] {
            assert_eq!(Ignored::shown_in(odd), Ignored(0), "{odd:?}");
        }
    }
}
