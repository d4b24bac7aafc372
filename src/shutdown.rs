//! Tracked work, and the orderly stop of the process.
//!
//! A queued request must run to its end even if its caller disconnects, so it cannot live in the
//! connection's task. [`Shutdown`] spawns it, and no other code spawns tasks (except blocking calls
//! that it awaits). A stop has phases, in an order that loses no answer that was released:
//!
//! 1. *Running.*
//! 2. *Draining*: the replica reports that it is not ready and serves on, so that load balancers
//!    have time to notice.
//! 3. *Stopping*: listeners accept no new connections, and tracked requests finish. Then the
//!    workers are told to stop. The ledger's appender is one of them and must outlive the requests
//!    that wait for it. A listener is tracked like a request and ends with its last connection: no
//!    request can begin once the workers stop.
//!
//! Each phase has a limit; [`Stopped`] counts the work that exceeded it, and the caller exits
//! regardless. A second signal ends the process at once. That has the effect of a crash, from which
//! the sweepers recover.
//!
//! A worker that ends without having been told to is a fault of the whole process: a broker without
//! its appender or sweepers must not look healthy. It starts the same orderly stop and is reported.
//! A panic in tracked work is counted and logged under the task's name, and is [`Lost`] for the
//! code that waits for it; the process goes on. [`crate::app`] and [`crate::http`] spawn here; the
//! exit status is left to the command.

use std::fmt;
use std::future::Future;
use std::io;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{FutureExt, Stream, StreamExt, stream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::metrics::Metrics;

/// Time for the workers to stop, in seconds: enough for a batch or one round of a sweeper.
const WORKER_SECONDS: u64 = 10;

/// Names of the tasks that are spawned for requests. Their panic counters start at zero with the
/// process, those of workers when the worker is spawned.
const REQUEST_TASKS: [&str; 6] = [
    "http",
    "issue",
    "metrics",
    "revoke",
    "status_list",
    "unclaimed",
];

/// The phase of a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// No stop was requested.
    Running,
    /// Reported as not ready, but still serving.
    Draining,
    /// Accepting no new connections.
    Stopping,
}

/// Tracked work yielded no result: it panicked, or the runtime is shut down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the task `{task}` did not finish")]
#[expect(missing_docs, reason = "the names say it all")]
pub struct Lost {
    pub task: &'static str,
}

/// Tracked work. Dropping this does not stop the work.
#[derive(Debug)]
pub struct Task<T> {
    name: &'static str,
    handle: JoinHandle<Option<T>>,
}

impl<T> Future for Task<T> {
    type Output = Result<T, Lost>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let lost = Lost { task: self.name };
        Pin::new(&mut self.handle)
            .poll(context)
            .map(|joined| joined.ok().flatten().ok_or(lost))
    }
}

/// The result of a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// The worker that ended without being told to; `None` if all went on until then.
    pub failed_worker: Option<&'static str>,
    /// Requests that did not finish in time.
    pub unfinished_requests: usize,
    /// Workers that did not finish in time.
    pub unfinished_workers: usize,
    /// Whether a second signal ended the stop early.
    pub forced: bool,
}

impl Stopped {
    /// Whether all work finished in time and no worker ended by itself.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.failed_worker.is_none()
            && self.unfinished_requests == 0
            && self.unfinished_workers == 0
            && !self.forced
    }
}

/// Spawns all work and stops it. Clones share their state.
#[derive(Clone, Debug)]
pub struct Shutdown(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    metrics: Arc<Metrics>,
    requests: TaskTracker,
    workers: TaskTracker,
    requested: CancellationToken,
    draining: CancellationToken,
    stopping: CancellationToken,
    workers_stop: CancellationToken,
    failed_worker: OnceLock<&'static str>,
    started: OnceLock<()>,
}

impl Shutdown {
    /// In the phase [`Phase::Running`].
    #[must_use]
    pub fn new(metrics: Arc<Metrics>) -> Self {
        for name in REQUEST_TASKS {
            metrics.task_begins(name);
        }
        Self(Arc::new(Inner {
            metrics,
            requests: TaskTracker::new(),
            workers: TaskTracker::new(),
            requested: CancellationToken::new(),
            draining: CancellationToken::new(),
            stopping: CancellationToken::new(),
            workers_stop: CancellationToken::new(),
            failed_worker: OnceLock::new(),
            started: OnceLock::new(),
        }))
    }

    /// Marks the end of the start. A worker that ends earlier without an error ends because the
    /// start failed: that end is not reported as the cause.
    pub fn started(&self) {
        self.0.started.get_or_init(|| ());
    }

    /// The current phase.
    #[must_use]
    pub fn phase(&self) -> Phase {
        if self.0.stopping.is_cancelled() {
            Phase::Stopping
        } else if self.0.draining.is_cancelled() {
            Phase::Draining
        } else {
            Phase::Running
        }
    }

    /// Completes when listeners must stop accepting connections.
    pub fn stopping(&self) -> WaitForCancellationFutureOwned {
        self.0.stopping.clone().cancelled_owned()
    }

    /// Requests an orderly stop, as a signal does; [`Self::run`] carries it out.
    pub fn request(&self) {
        self.0.requested.cancel();
    }

    /// Runs a request's work to its end even if no task waits for it. It keeps the current span.
    pub fn spawn<F>(&self, name: &'static str, work: F) -> Task<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.spawn_on(&self.0.requests, name, work)
    }

    /// Runs a worker. `work` receives the token that tells it to stop; if it ends earlier, the
    /// whole process stops.
    pub fn spawn_worker<F, E>(
        &self,
        name: &'static str,
        work: impl FnOnce(CancellationToken) -> F,
    ) -> Task<()>
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: fmt::Display + Send,
    {
        self.0.metrics.task_begins(name);
        let this = self.clone();
        let work = work(self.0.workers_stop.clone());
        self.spawn_on(&self.0.workers, name, async move {
            let ended = this.watched(name, work).await;
            if let Some(Err(error)) = &ended {
                tracing::error!(worker = name, %error, "a worker failed");
            }
            let told = this.0.workers_stop.is_cancelled();
            if !told || !matches!(ended, Some(Ok(()))) {
                // Only the first worker is the cause; later ones may have ended as a consequence.
                let first = *this.0.failed_worker.get_or_init(|| name);
                if this.0.started.get().is_some() || !matches!(ended, Some(Ok(()))) {
                    tracing::error!(worker = name, first, "a worker ended; stopping");
                } else {
                    tracing::debug!(worker = name, first, "a worker ended during the start");
                }
                this.request();
            }
        })
    }

    /// Waits for a signal or a request to stop, stops in order, and returns the result. The caller
    /// exits the process afterwards even if work is still running.
    pub async fn run(&self, mut signals: Signals, drain: Duration, finish: Duration) -> Stopped {
        tokio::select! {
            name = signals.next() => tracing::info!(signal = name, "stopping"),
            () = self.0.requested.cancelled() => tracing::info!("stopping as requested"),
        }
        let second = tokio::select! {
            stopped = self.drain_then_stop(drain, finish) => return stopped,
            name = signals.next() => name,
        };
        tracing::warn!(signal = second, "stopping at once");
        Stopped {
            forced: true,
            ..self.so_far()
        }
    }

    /// Drains for `drain`, gives requests `finish` to end, then stops the workers.
    pub async fn drain_then_stop(&self, drain: Duration, finish: Duration) -> Stopped {
        self.0.draining.cancel();
        tokio::time::sleep(drain).await;
        self.0.stopping.cancel();
        let unfinished_requests = wait(&self.0.requests, finish).await;
        self.0.workers_stop.cancel();
        wait(&self.0.workers, Duration::from_secs(WORKER_SECONDS)).await;
        let stopped = Stopped {
            unfinished_requests,
            ..self.so_far()
        };
        if stopped.is_clean() {
            tracing::info!("stopped");
        } else {
            tracing::error!(?stopped, "stopped, but not in order");
        }
        stopped
    }

    fn so_far(&self) -> Stopped {
        Stopped {
            failed_worker: self.0.failed_worker.get().copied(),
            unfinished_requests: self.0.requests.len(),
            unfinished_workers: self.0.workers.len(),
            forced: false,
        }
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the only code that spawns: tracked, named and watched"
    )]
    fn spawn_on<F>(&self, tracker: &TaskTracker, name: &'static str, work: F) -> Task<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let this = self.clone();
        let work = async move { this.watched(name, work).await }.in_current_span();
        Task {
            name,
            handle: tokio::spawn(tracker.track_future(work)),
        }
    }

    /// The output of the work, or `None` if it panicked.
    async fn watched<F: Future>(&self, name: &'static str, work: F) -> Option<F::Output> {
        // A panic drops all state of the work, so no other code sees a half-changed value.
        let ended = AssertUnwindSafe(work).catch_unwind().await;
        if ended.is_err() {
            tracing::error!(task = name, "a tracked task panicked");
            self.0.metrics.task_panic(name);
        }
        ended.ok()
    }
}

/// Waits at most `at_most` until the tracker is empty; returns the number of tasks left.
async fn wait(tracker: &TaskTracker, at_most: Duration) -> usize {
    tracker.close();
    match tokio::time::timeout(at_most, tracker.wait()).await {
        Ok(()) => 0,
        Err(_) => tracker.len(),
    }
}

/// The signals that request a stop, by name.
pub struct Signals(Pin<Box<dyn Stream<Item = &'static str> + Send>>);

impl fmt::Debug for Signals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signals")
    }
}

impl Signals {
    /// Listens for SIGTERM and SIGINT. From then on they no longer end the process by themselves.
    pub fn install() -> io::Result<Self> {
        let listen = |kind, name| -> io::Result<_> {
            let mut signal = signal(kind)?;
            Ok(stream::poll_fn(move |context| {
                signal.poll_recv(context).map(|got| got.map(|()| name))
            }))
        };
        let terminate = listen(SignalKind::terminate(), "SIGTERM")?;
        let interrupt = listen(SignalKind::interrupt(), "SIGINT")?;
        Ok(Self::from_stream(stream::select(terminate, interrupt)))
    }

    /// Signals from another source, for tests and for brokers inside another program.
    pub fn from_stream(signals: impl Stream<Item = &'static str> + Send + 'static) -> Self {
        Self(Box::pin(signals))
    }

    /// Waits for the next signal and returns its name; forever if the source has ended.
    pub async fn next(&mut self) -> &'static str {
        match self.0.next().await {
            Some(name) => name,
            // The stream ended; wait forever rather than report a signal.
            None => pin!(std::future::pending()).await,
        }
    }
}

/// The signals that make a running process read its files again.
pub struct Hangups(Pin<Box<dyn Stream<Item = ()> + Send>>);

impl fmt::Debug for Hangups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hangups")
    }
}

impl Hangups {
    /// Listens for SIGHUP. From then on it no longer ends the process.
    pub fn install() -> io::Result<Self> {
        let mut signal = signal(SignalKind::hangup())?;
        let hangups = stream::poll_fn(move |context| signal.poll_recv(context));
        Ok(Self(Box::pin(hangups)))
    }

    /// Waits for the next signal.
    pub async fn next(&mut self) {
        if self.0.next().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Mutex;

    use tokio::sync::{mpsc, oneshot};
    use tokio_stream::wrappers::UnboundedReceiverStream;

    use super::*;

    const NONE: Duration = Duration::ZERO;
    const SHORT: Duration = Duration::from_millis(30);
    const LONG: Duration = Duration::from_secs(20);

    fn shutdown() -> (Shutdown, Arc<Metrics>) {
        let metrics = Arc::new(Metrics::new());
        (Shutdown::new(Arc::clone(&metrics)), metrics)
    }

    fn signals() -> (mpsc::UnboundedSender<&'static str>, Signals) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let signals = Signals::from_stream(UnboundedReceiverStream::new(receiver));
        (sender, signals)
    }

    #[tokio::test]
    async fn work_goes_on_when_nobody_waits_for_it() {
        let (shutdown, _) = shutdown();
        let (done, finished) = oneshot::channel();
        drop(shutdown.spawn("request", async move {
            tokio::task::yield_now().await;
            done.send(()).unwrap();
        }));
        finished.await.unwrap();
        assert_eq!(shutdown.spawn("request", async { 7 }).await, Ok(7));
    }

    #[tokio::test]
    async fn a_panic_is_counted_and_leaves_other_work_running() {
        let (shutdown, metrics) = shutdown();
        let lost = shutdown.spawn("request", async { panic!("on purpose") });
        assert_eq!(lost.await, Err::<(), _>(Lost { task: "request" }));
        assert_eq!(shutdown.phase(), Phase::Running);
        let text = metrics.render();
        assert!(text.contains("taskpass_task_panics_total{task=\"request\"} 1"));
        assert!(shutdown.drain_then_stop(NONE, LONG).await.is_clean());
    }

    #[tokio::test]
    async fn phases_come_in_order_and_workers_outlive_requests() {
        let (shutdown, _) = shutdown();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (observer, log) = (shutdown.clone(), Arc::clone(&seen));
        let request = shutdown.spawn("request", async move {
            log.lock()
                .unwrap()
                .push(("request began", observer.phase()));
            observer.stopping().await;
            tokio::time::sleep(SHORT).await;
            log.lock().unwrap().push(("request", observer.phase()));
        });
        let log = Arc::clone(&seen);
        let observer = shutdown.clone();
        let worker = shutdown.spawn_worker("appender", |stop| async move {
            stop.cancelled().await;
            log.lock().unwrap().push(("worker", observer.phase()));
            Ok::<_, Infallible>(())
        });
        tokio::task::yield_now().await;
        let mut stop = pin!(shutdown.drain_then_stop(SHORT, LONG));
        assert!((&mut stop).now_or_never().is_none());
        assert_eq!(shutdown.phase(), Phase::Draining);
        let stopped = stop.await;
        assert!(stopped.is_clean(), "{stopped:?}");
        assert_eq!((request.await, worker.await), (Ok(()), Ok(())));
        let seen = seen.lock().unwrap().clone();
        let wanted = [
            ("request began", Phase::Running),
            ("request", Phase::Stopping),
            ("worker", Phase::Stopping),
        ];
        assert_eq!(seen, wanted);
    }

    #[tokio::test]
    async fn a_request_that_does_not_finish_is_reported() {
        let (shutdown, _) = shutdown();
        drop(shutdown.spawn("request", std::future::pending::<()>()));
        let stopped = shutdown.drain_then_stop(NONE, SHORT).await;
        assert_eq!(stopped.unfinished_requests, 1);
        assert!(!stopped.is_clean());
    }

    #[tokio::test]
    async fn a_worker_that_ends_unbidden_stops_the_process() {
        for panics in [false, true] {
            let (shutdown, metrics) = shutdown();
            drop(shutdown.spawn_worker("appender", |_stop| async move {
                assert!(!panics, "on purpose");
                Err("the store is gone")
            }));
            let (_sender, signals) = signals();
            let stopped = shutdown.run(signals, NONE, LONG).await;
            assert_eq!(stopped.failed_worker, Some("appender"));
            let counted = "taskpass_task_panics_total{task=\"appender\"} 1";
            assert_eq!(metrics.render().contains(counted), panics);
        }
    }

    #[tokio::test]
    async fn a_signal_stops_in_order() {
        let (shutdown, _) = shutdown();
        let (sender, signals) = signals();
        sender.send("SIGTERM").unwrap();
        assert!(shutdown.run(signals, NONE, LONG).await.is_clean());
        assert_eq!(shutdown.phase(), Phase::Stopping);
    }

    #[tokio::test]
    async fn a_second_signal_stops_at_once() {
        let (shutdown, _) = shutdown();
        drop(shutdown.spawn("request", std::future::pending::<()>()));
        let (sender, signals) = signals();
        sender.send("SIGTERM").unwrap();
        sender.send("SIGINT").unwrap();
        let stopped = shutdown.run(signals, LONG, LONG).await;
        assert!(stopped.forced);
        assert_eq!(stopped.unfinished_requests, 1);
    }

    #[tokio::test]
    async fn a_request_to_stop_is_as_good_as_a_signal() {
        let (shutdown, _) = shutdown();
        let signals = Signals::from_stream(stream::empty());
        shutdown.request();
        assert!(shutdown.run(signals, NONE, LONG).await.is_clean());
    }

    #[tokio::test]
    async fn the_signals_of_the_process_arrive() {
        let mut signals = Signals::install().unwrap();
        for (option, name) in [("-TERM", "SIGTERM"), ("-INT", "SIGINT")] {
            let id = std::process::id().to_string();
            let kill = std::process::Command::new("kill")
                .args([option, &id])
                .status();
            assert!(kill.unwrap().success());
            assert_eq!(signals.next().await, name);
        }
    }
}
