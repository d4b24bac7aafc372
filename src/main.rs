//! The `taskpass` binary: installs ring as the only provider of cryptography and calls
//! [`taskpass::cli`].

use std::process::ExitCode;

/// Returns the memory of a burst to the system, which the allocator of the C library keeps.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Before the process reads a secret.
    if let Err(error) = taskpass::process::deny_inspection() {
        return taskpass::cli::not_hidden(&error);
    }
    // Before the first TLS connection and the first token.
    drop(rustls::crypto::ring::default_provider().install_default());
    taskpass::crypto::jwt_provider::install();
    taskpass::cli::run(std::env::args_os())
}
