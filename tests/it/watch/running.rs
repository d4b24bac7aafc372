//! A monitor that keeps running: outages, kills, and state that it cannot write.

use super::*;
use crate::support::process::Signal;

#[test]
fn a_monitor_goes_on_after_an_outage_remembers_over_a_kill_and_ends_at_a_contradiction() {
    let scene = Scene::new();
    scene.show(&grown(200, 200, 0));
    let mut process = scene.watch(&["--every", "1s", "--json"]).spawn();
    wait_for(&process, "first-contact", 1);
    scene.server.set(Manner::Status("checkpoint", 502));
    wait_for(&process, "unreachable", 2);
    scene.server.set(Manner::Good);
    let note = scene.show(&grown(300, 300, 0));
    wait_for(&process, "grown", 1);
    wait_for(&process, "unchanged", 1);
    assert_eq!(scene.kept(), note);
    let seen = lines(&process);
    let last = seen.last().unwrap();
    assert_eq!(
        (&last["size"], &last["origin"]),
        (&json!(300), &json!(ORIGIN))
    );
    assert!(
        seen.iter()
            .all(|line| line["contradiction"] == false && line["evidence"].is_null())
    );

    process.kill();
    assert_eq!(scene.kept(), note);
    // A checkpoint from while the monitor was down is compared with the stored one.
    scene.show(&grown(400, 299, 1));
    process.restart();
    assert_eq!(process.wait(SOON).code(), Some(1));
    let last = lines(&process).pop().unwrap();
    assert_eq!(
        (&last["verdict"], &last["contradiction"]),
        (&json!("fork"), &json!(true))
    );
    let [file] = scene.evidence().try_into().unwrap();
    assert_eq!(last["evidence"], file.to_str().unwrap());
    says(&scene.check(&file), 0, "PROVEN");
    assert_eq!(scene.kept(), note);

    scene.show(&grown(400, 400, 0));
    for (start, signal) in [Signal::Term, Signal::Int].into_iter().enumerate() {
        process.restart();
        wait_for(&process, if start == 0 { "grown" } else { "unchanged" }, 2);
        process.signal(signal);
        assert_eq!(process.wait(SOON).code(), Some(0), "{signal:?}");
    }
}

#[test]
fn a_head_that_could_not_be_kept_is_kept_as_soon_as_it_can_be() {
    let scene = Scene::new();
    let directory = scene.directory.path().join("kept");
    let away = scene.directory.path().join("away");
    let state = directory.join("state");
    fs::create_dir(&directory).unwrap();
    let key = scene.log.vkey();
    let known = scene.show(&grown(10, 10, 0));
    let mut process = watch(scene.server.url(), &key, &state, &["--every", "1s"])
        .arg("--json")
        .spawn();
    wait_for(&process, "first-contact", 1);
    fs::rename(&directory, &away).unwrap();
    let note = scene.show(&grown(20, 20, 0));
    // The problem is reported in each round, whether or not the log can be read.
    let told = |verdict: &str| {
        let lines = lines(&process);
        let of = lines.iter().filter(|line| line["verdict"] == verdict);
        of.filter(|line| line["warnings"].to_string().contains("NOT KEPT"))
            .count()
    };
    wait_until("the monitor warns", SOON, || {
        told("grown") == 1 && told("unchanged") > 1
    });
    scene.server.set(Manner::Status("checkpoint", 503));
    wait_until("the monitor warns", SOON, || told("unreachable") > 0);
    scene.server.set(Manner::Good);
    assert_eq!(fs::read_to_string(away.join("state")).unwrap(), known);
    fs::rename(&away, &directory).unwrap();
    wait_until("the checkpoint is stored", SOON, || {
        fs::read_to_string(&state).unwrap() == note
    });
    process.kill();
    scene.show(&grown(15, 15, 0));
    let ended = watch(scene.server.url(), &key, &state, &["--once"]).run();
    says(&ended, 1, "CONTRADICTION (rollback)");
}

#[test]
fn a_monitor_that_nobody_hears_does_not_end_as_if_all_were_well() {
    let scene = Scene::known(9);
    let program = env!("CARGO_BIN_EXE_taskpass");
    let (url, key, state) = (scene.server.url(), scene.log.vkey(), scene.state());
    let script = format!(
        "{program} ledger watch --url {url} --key '{key}' --state {} --every 1s {{}} | exec true; \
         exit ${{PIPESTATUS[0]}}",
        state.display()
    );
    for more in ["", "--json"] {
        let script = script.replace("{}", more);
        let ended = Launch::program("/bin/bash", ["-c", &script]).run();
        says(&ended, 3, "the reader of the output went away");
    }
    scene.show(&grown(12, 3, 1));
    let script = script.replace("{}", "--once --json");
    let ended = Launch::program("/bin/bash", ["-c", &script]).run();
    says(&ended, 1, "CONTRADICTION (fork)");
}

#[test]
fn a_first_contact_is_kept_though_standard_error_is_broken() {
    let scene = Scene::new();
    let shown = scene.show(&grown(9, 9, 0));
    let ended = scene.watch(&["--once"]).with_broken_stderr().run();
    assert_eq!(ended.code(), Some(0));
    assert!(ended.stdout.contains("first contact"), "{}", ended.stdout);
    assert_eq!(scene.kept(), shown);

    // A monitor that cannot write its warnings ends.
    let options = ["--every", "1s", "--stale", "1s"];
    let ended = scene.watch(&options).with_broken_stderr().run();
    assert_eq!(ended.code(), Some(3));
}
