//! Client commands that connect to a broker over TLS: the certificate authorities that they trust.

use std::fs;

use crate::support::fleet::{Fleet, ORDERS_ARGUMENTS};
use crate::support::process::{Launch, Signal};
use crate::support::tls::Authority;
use crate::support::{SOON, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_of_a_private_authority_is_believed_only_with_ca_file() {
    let (fleet, replica) = Fleet::sqlite().over_tls("", None).start().await;
    let (authority, other) = (Authority::new(), Authority::new());
    let server = authority.server();
    let directory = replica.process.dir();
    fs::write(directory.join("private-key.pem"), &server.key_pem).unwrap();
    fs::write(directory.join("certificate.pem"), &server.pem).unwrap();
    replica.process.signal(Signal::Hup);

    let url = format!("https://{}", replica.address);
    let command = |arguments: &[&str]| {
        Launch::taskpass(arguments.iter().copied())
            .file("ca.pem", authority.pem())
            .file("other.pem", other.pem())
            .file("empty.pem", "no certificate")
            .file("token", fleet.token())
    };
    let readyz = format!("{url}/readyz");
    let health = |options: &[&str]| {
        let arguments = [&["health", "--url", &readyz][..], options].concat();
        command(&arguments)
    };
    until("the authority's certificate is served", SOON, async || {
        health(&["--ca-file", "ca.pem"]).run().code() == Some(0)
    })
    .await;
    let by_variable = health(&[]).env("TASKPASS_CA_FILE", "ca.pem").run();
    assert_eq!(by_variable.code(), Some(0), "{}", by_variable.stderr);

    let request = |options: &[&str]| {
        let fixed = ["request", "--url", &url, "--token-file", "token"];
        let arguments = [&fixed[..], &ORDERS_ARGUMENTS, options].concat();
        command(&arguments).run()
    };
    let granted = request(&["--ca-file", "ca.pem"]);
    assert_eq!(granted.code(), Some(0), "{}", granted.stderr);

    let cases: [(&[&str], i32, &str); 3] = [
        (&[], 3, "with --ca-file"),
        (&["--ca-file", "other.pem"], 3, "with --ca-file"),
        (&["--ca-file", "empty.pem"], 2, "--ca-file empty.pem"),
    ];
    for (options, code, says) in cases {
        for refused in [health(options).run(), request(options)] {
            assert_eq!(refused.code(), Some(code), "{options:?}: {refused:?}");
            assert_eq!(refused.stdout, "", "{options:?}");
            assert!(refused.stderr.contains(says), "{options:?}: {refused:?}");
            let tried_again = refused.stderr.contains("retrying for");
            assert!(!tried_again, "{options:?}: {refused:?}");
        }
    }
}
