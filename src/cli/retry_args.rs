//! The argument for the time during which requests are retried.

use std::time::Duration;

use clap::Args;

/// How long a request is retried.
#[derive(Args, Clone, Copy, Debug)]
pub(super) struct RetryArgs {
    /// How long to retry requests while the broker, or the issuer of the attestation, does not
    /// answer or cannot serve; 0 makes one attempt
    #[arg(
        long = "retry-seconds",
        env = "TASKPASS_RETRY_SECONDS",
        value_name = "SECONDS",
        default_value_t = 60,
        value_parser = clap::value_parser!(u64).range(0..=3600)
    )]
    seconds: u64,
}

impl RetryArgs {
    /// No attempt begins after this time.
    pub(super) fn limit(self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}
