//! The `taskpass` binary: reads the command line, makes ring the one provider of cryptography, and
//! hands over to [`taskpass::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    // Before anything secret is in memory.
    if let Err(error) = taskpass::process::deny_inspection() {
        return taskpass::cli::not_hidden(&error);
    }
    // Before anything can open a TLS connection or look at a token.
    drop(rustls::crypto::ring::default_provider().install_default());
    taskpass::crypto::jwt_provider::install();
    taskpass::cli::run(std::env::args_os())
}
