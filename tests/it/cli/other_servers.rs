//! Answers of a server that is not the broker, such as a proxy in between: no command takes one for
//! the broker's, in either form of output.

use wiremock::matchers::any;
use wiremock::{Mock, MockServer, ResponseTemplate};

use super::*;

const ID: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_success_of_a_server_in_between_is_no_answer_of_the_broker() {
    let commands = [
        &["sessions", "list"][..],
        &["sessions", "show", ID],
        &["sessions", "revoke", ID, "--reason", "r"],
        &["revoke", "all", "--reason", "r"],
        &["revoke", "all", "--reason", "r", "--dry-run"],
        &["revocations", "list"],
        &["lift", ID],
        &["task", "list"],
        &["admins", "list"],
        &["admins", "bind", "ci:a"],
        &["admins", "unbind", "ci:a"],
        &["workloads", "list"],
        &["keys", "list"],
        &["keys", "rotate", "ledger"],
        &["ledger", "keys"],
        &["ledger", "forget", ID],
    ];
    for body in [
        "<html>Sign in to the network</html>",
        "",
        "null",
        "{\"status\": \"ok\"}",
    ] {
        let server = MockServer::start().await;
        let page = ResponseTemplate::new(200).set_body_string(body);
        Mock::given(any()).respond_with(page).mount(&server).await;
        let url = server.uri();
        for command in commands {
            for form in [&[][..], &["--json"]] {
                let line = [command, &["--url", &url], form].concat();
                let ended = Launch::taskpass(line.iter().copied())
                    .env("TASKPASS_TOKEN", "tpa_secret")
                    .run();
                let told = format!("{body:?}: {line:?}: {}{}", ended.stdout, ended.stderr);
                assert_eq!(ended.code(), Some(3), "{told}");
                assert!(!told.contains("tpa_secret"), "{told}");
            }
        }
    }
}
