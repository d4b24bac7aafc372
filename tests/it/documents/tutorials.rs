//! The README and the tutorials.

use super::broker::{development, production};
use crate::support::free_address;

#[test]
fn readme() {
    development("README.md").run();
}

#[test]
fn ten_minutes() {
    development("docs/tutorials/ten-minutes.md")
        .run()
        .printed(3, "\"code\":\"not-permitted\"")
        .printed(4, "{\"active\":true")
        .printed(5, "{\"active\":false}")
        .printed(6, "decided: permit")
        .printed(6, "logged: yes");
}

#[test]
fn first_agent() {
    let orders = free_address().port().to_string();
    development("docs/tutorials/first-agent.md")
        .replace("7080", orders)
        .run()
        .printed(
            1,
            "{\"orders\": [{\"amount\": 1}, {\"amount\": 2}], \"next\": null}",
        )
        .printed(2, "orders: 3\n")
        .complained("refused: ")
        .complained("refused: the task ended during the work");
}

#[test]
fn first_pipeline() {
    // The page itself adds the attestor `github`.
    production("docs/tutorials/first-pipeline.md")
        .env("GITHUB", "no")
        .set_up("cp \"$ROOT/examples/github/policy.cedar\" policies/github.cedar")
        .run()
        .printed(1, "decides from now on");
}
