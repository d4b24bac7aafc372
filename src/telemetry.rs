//! Logs, and W3C trace context, which connects them to the logs of callers.
//!
//! No log line may hold a secret. These rules ensure it:
//!
//! - Functions are instrumented with `#[instrument(skip_all, fields(…))]`, always with `skip_all`:
//!   a line shows only the fields that the code names.
//! - Errors carry no values of requests.
//! - Secrets have types that cannot be printed.
//! - The log line of a panic holds its source location only: the message may quote a value.
//! - The configured level applies to this crate. Dependencies do not follow these rules, so they
//!   log warnings only, unless an operator sets `TASKPASS_LOG`. Even then their `trace` lines stay
//!   off, because some dependencies write whole requests and answers there.
//!
//! [`init`] sets up the log once for each process; a bad filter or a second call is a
//! [`TelemetryError`]. Each line carries the fields of all enclosing spans, such as the request's
//! id and the client's address, at every level; [`crate::http`] opens those spans.
//!
//! A `traceparent` is untrusted input. [`TraceContext`] parses it strictly, and an invalid one
//! starts a new trace. It serves correlation only. Traces are not exported.

use std::fmt;
use std::io::IsTerminal;

use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::filter::{FilterExt as _, filter_fn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::{EnvFilter, Registry, reload};

use crate::config::{Log, LogFormat, LogLevel};
use crate::ids::{NoRandomness, Random};

/// Logs could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter in the environment is not valid.
    #[error("the log filter is not valid; write it like `warn,taskpass=debug`")]
    Filter,
    /// This process has installed a subscriber already.
    #[error("logs are already set up")]
    AlreadySet,
}

/// Changes the log level while the process runs.
#[derive(Clone, Debug)]
pub struct LogControl {
    filter: reload::Handle<EnvFilter, Registry>,
    is_fixed: bool,
}

impl LogControl {
    /// Logs at `level` from now on. Returns false, without effect, if the environment sets a
    /// filter.
    pub fn set_level(&self, level: LogLevel) -> Result<bool, TelemetryError> {
        if self.is_fixed {
            return Ok(false);
        }
        let filter = parse_filter(&at_level(level))?;
        let reloaded = self.filter.reload(filter);
        reloaded.map_err(|_| TelemetryError::Filter)?;
        Ok(true)
    }
}

/// Sends logs and panics to standard error from now on. `filter` replaces the configured level.
pub fn init(log: &Log, filter: Option<&str>) -> Result<LogControl, TelemetryError> {
    let ansi = std::io::stderr().is_terminal();
    let (subscriber, control) = subscriber(log, filter, ansi, std::io::stderr)?;
    tracing::subscriber::set_global_default(subscriber).map_err(|_| TelemetryError::AlreadySet)?;
    std::panic::set_hook(Box::new(|panic| {
        let location = panic.location().map(ToString::to_string);
        tracing::error!(place = location.as_deref(), "panic");
    }));
    Ok(control)
}

type BoxedSubscriber = Box<dyn Subscriber + Send + Sync>;

fn subscriber<W>(
    log: &Log,
    filter: Option<&str>,
    ansi: bool,
    writer: W,
) -> Result<(BoxedSubscriber, LogControl), TelemetryError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let ours = at_level(log.level);
    let (reloadable, handle) = reload::Layer::new(parse_filter(filter.unwrap_or(&ours))?);
    let control = LogControl {
        filter: handle,
        is_fixed: filter.is_some(),
    };
    let filter = reloadable.and(filter_fn(may_be_logged));
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    let subscriber: BoxedSubscriber = match log.format {
        LogFormat::Json => {
            let lines = lines.json().flatten_event(true).with_current_span(false);
            Box::new(Registry::default().with(lines.with_filter(filter)))
        }
        LogFormat::Text => {
            let lines = lines.with_ansi(ansi);
            Box::new(Registry::default().with(lines.with_filter(filter)))
        }
    };
    Ok((subscriber, control))
}

fn at_level(level: LogLevel) -> String {
    format!("warn,taskpass={}", level.as_str())
}

fn parse_filter(filter: &str) -> Result<EnvFilter, TelemetryError> {
    let parsed = EnvFilter::builder().parse(filter);
    parsed.map_err(|_| TelemetryError::Filter)
}

/// Whether a line may be logged under any filter: `trace` lines of dependencies may not.
fn may_be_logged(line: &Metadata<'_>) -> bool {
    line.target().starts_with(env!("CARGO_PKG_NAME")) || *line.level() <= Level::DEBUG
}

/// The id of a trace; never all zeros.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId([u8; 16]);

/// The id of one step of a trace; never all zeros.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanId([u8; 8]);

macro_rules! hex_id {
    ($name:ident, $bytes:literal) => {
        impl $name {
            fn new(random: &dyn Random) -> Result<Self, NoRandomness> {
                let mut bytes = [0; $bytes];
                random.fill(&mut bytes)?;
                // All zeros means "none", and receivers refuse it.
                if bytes == [0; $bytes] {
                    bytes[$bytes - 1] = 1;
                }
                Ok(Self(bytes))
            }

            fn parse(text: &str) -> Option<Self> {
                let mut bytes = [0; $bytes];
                parse_hex(text, &mut bytes)?;
                (bytes != [0; $bytes]).then_some(Self(bytes))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

hex_id!(TraceId, 16);
hex_id!(SpanId, 8);

/// Lower-case hex of exactly the right length, as the standard requires.
fn parse_hex(text: &str, bytes: &mut [u8]) -> Option<()> {
    let lower = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if text.len() != bytes.len() * 2 || !text.bytes().all(lower) {
        return None;
    }
    for (index, byte) in bytes.iter_mut().enumerate() {
        let pair = text.get(index * 2..index * 2 + 2)?;
        *byte = u8::from_str_radix(pair, 16).ok()?;
    }
    Some(())
}

/// A position in a trace (W3C Trace Context).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct TraceContext {
    pub trace_id: TraceId,
    pub span_id: SpanId,
    /// Whether the caller records this trace.
    pub sampled: bool,
}

impl TraceContext {
    /// Starts a trace.
    pub fn start(random: &dyn Random) -> Result<Self, NoRandomness> {
        Ok(Self {
            trace_id: TraceId::new(random)?,
            span_id: SpanId::new(random)?,
            sampled: false,
        })
    }

    /// A new span: in the caller's trace if its `traceparent` is valid, otherwise in a new trace.
    /// The caller of this function passes `None` for a request with several such headers.
    pub fn continue_from(
        traceparent: Option<&str>,
        random: &dyn Random,
    ) -> Result<Self, NoRandomness> {
        match traceparent.and_then(Self::parse) {
            Some(caller) => caller.child(random),
            None => Self::start(random),
        }
    }

    /// A new span in the same trace.
    pub fn child(&self, random: &dyn Random) -> Result<Self, NoRandomness> {
        Ok(Self {
            span_id: SpanId::new(random)?,
            ..*self
        })
    }

    /// Parses a `traceparent` header. Version 00 has exactly four fields; later ones may append
    /// more.
    #[must_use]
    pub fn parse(header: &str) -> Option<Self> {
        let mut parts = header.splitn(5, '-');
        let mut version = [0];
        parse_hex(parts.next()?, &mut version)?;
        let trace_id = TraceId::parse(parts.next()?)?;
        let span_id = SpanId::parse(parts.next()?)?;
        let mut flags = [0];
        parse_hex(parts.next()?, &mut flags)?;
        let exact = parts.next().is_none();
        match version {
            [0xff] => None,
            [0] if !exact => None,
            _ => Some(Self {
                trace_id,
                span_id,
                sampled: flags[0] & 1 == 1,
            }),
        }
    }
}

/// The value of the `traceparent` header.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = u8::from(self.sampled);
        write!(f, "00-{}-{}-{flags:02x}", self.trace_id, self.span_id)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::config::LogLevel;

    const EXAMPLE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    struct Fixed(u8);

    impl Random for Fixed {
        fn fill(&self, bytes: &mut [u8]) -> Result<(), NoRandomness> {
            bytes.fill(self.0);
            Ok(())
        }
    }

    #[test]
    fn a_traceparent_survives_its_text() {
        let context = TraceContext::parse(EXAMPLE).unwrap();
        assert!(context.sampled);
        assert_eq!(context.to_string(), EXAMPLE);
        let unsampled = EXAMPLE.replace("-01", "-fe");
        assert!(!TraceContext::parse(&unsampled).unwrap().sampled);
    }

    #[test]
    fn a_traceparent_that_is_not_one_is_refused() {
        let upper = EXAMPLE.to_uppercase();
        for bad in [
            "",
            "00",
            upper.as_str(),
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473\u{e9}-00f067aa0ba902b7-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "0g-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            " 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(TraceContext::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_later_version_may_say_more() {
        let later = EXAMPLE.replacen("00", "01", 1) + "-more-of-it";
        assert!(TraceContext::parse(&later).is_some());
    }

    #[test]
    fn a_step_stays_in_a_valid_trace_and_leaves_an_invalid_one() {
        let caller = TraceContext::parse(EXAMPLE).unwrap();
        let ours = TraceContext::continue_from(Some(EXAMPLE), &Fixed(7)).unwrap();
        assert_eq!(ours.trace_id, caller.trace_id);
        assert_ne!(ours.span_id, caller.span_id);
        let fresh = TraceContext::continue_from(Some("nonsense"), &Fixed(7)).unwrap();
        assert_eq!(fresh.trace_id.to_string(), "07".repeat(16));
        // Even a source of zeros yields ids that receivers accept.
        let zero = TraceContext::start(&Fixed(0)).unwrap();
        assert!(TraceContext::parse(&zero.to_string()).is_some());
    }

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(log: &Log, filter: Option<&str>, act: impl FnOnce()) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let (subscriber, _) = subscriber(log, filter, false, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, act);
        let bytes = lines.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_json_line_is_one_object_with_the_fields_of_all_its_spans() {
        for level in [LogLevel::Info, LogLevel::Warn] {
            let log = Log {
                level,
                ..Log::default()
            };
            let text = logged(&log, None, || {
                let span = tracing::error_span!("request", request_id = "00f067aa0ba902b7");
                span.in_scope(|| {
                    let inner = tracing::error_span!("issue", outcome = "deny");
                    inner.in_scope(|| tracing::warn!(code = "blocked", "two\nlines"));
                });
            });
            assert_eq!(text.lines().count(), 1, "{text}");
            let line: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(line["code"], "blocked");
            assert_eq!(line["spans"][0]["request_id"], "00f067aa0ba902b7", "{line}");
            assert_eq!(line["spans"][1]["outcome"], "deny", "{line}");
        }
    }

    #[test]
    fn the_level_changes_while_the_process_runs() {
        let lines = Lines::default();
        let writer = lines.clone();
        let of = |filter| {
            let writer = writer.clone();
            subscriber(&Log::default(), filter, false, move || writer.clone()).unwrap()
        };
        let (subscriber, control) = of(None);
        tracing::subscriber::with_default(subscriber, || {
            tracing::debug!("before");
            assert!(control.set_level(LogLevel::Debug).unwrap());
            tracing::debug!("in between");
            assert!(control.set_level(LogLevel::Error).unwrap());
            tracing::warn!("after");
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert!(text.contains("in between"), "{text}");
        assert!(
            !text.contains("before") && !text.contains("after"),
            "{text}"
        );
        let (_subscriber, fixed) = of(Some("taskpass=warn"));
        assert!(!fixed.set_level(LogLevel::Debug).unwrap());
    }

    #[test]
    fn dependencies_stay_at_warnings() {
        let log = Log {
            format: LogFormat::Text,
            level: LogLevel::Trace,
        };
        let act = || {
            tracing::trace!("ours");
            tracing::info!(target: "sqlx", "theirs");
            tracing::warn!(target: "sqlx", "warned");
        };
        let text = logged(&log, None, act);
        assert!(text.contains("ours") && text.contains("warned"), "{text}");
        assert!(!text.contains("theirs"), "{text}");
        assert!(logged(&log, Some("sqlx=info"), act).contains("theirs"));
        // `trace` lines of dependencies, which may quote requests, stay off under every filter.
        let quoting = || {
            tracing::trace!(target: "aws_smithy_runtime::client::orchestrator", "a whole answer");
            tracing::debug!(target: "aws_smithy_runtime", "a stage");
        };
        let text = logged(&log, Some("trace,aws_smithy_runtime=trace"), quoting);
        assert!(
            text.contains("a stage") && !text.contains("a whole answer"),
            "{text}"
        );
        assert!(matches!(
            subscriber(&log, Some("taskpass=["), false, std::io::sink),
            Err(TelemetryError::Filter)
        ));
    }
}
