//! Contradictions of a log: each is reported with evidence, and the kept state stays.

use super::*;
use crate::support::log::consistency;

#[test]
fn a_fork_is_called_out_with_evidence_that_convinces_others() {
    for (old, new, fork) in [
        (5, 8, 3),
        (256, 600, 255),
        (300, 301, 0),
        (512, 65_800, 511),
    ] {
        let scene = Scene::known(old);
        let kept = scene.kept();
        let other = grown(new, fork, 1);
        let note = scene.show(&other);
        let ended = scene.once(&[]);
        says(&ended, 1, "CONTRADICTION (fork)");
        assert_eq!(scene.kept(), kept, "the known checkpoint is kept");
        let [file] = scene.evidence().try_into().unwrap();
        assert!(
            ended.stderr.contains(file.to_str().unwrap()),
            "{}",
            ended.stderr
        );
        let found = read(&file);
        assert_eq!(found["kept"], json!(kept));
        assert_eq!(found["fetched"], json!(note));
        // The proof is RFC 9162's, so any verifier accepts it.
        let proof: Vec<String> = consistency(old, &other)
            .iter()
            .map(|h| STANDARD.encode(h))
            .collect();
        assert_eq!(found["consistency_proof"], json!(proof));
        assert_eq!(
            found["older_root"],
            json!(STANDARD.encode(root(&other[..old])))
        );
        assert!(!found["tiles"].as_object().unwrap().is_empty());
        says(&scene.check(&file), 0, "PROVEN: broker.test/log signed");

        // The fork is reported each time, and earlier evidence is kept.
        says(&scene.once(&[]), 1, "CONTRADICTION (fork)");
        assert_eq!(scene.evidence().len(), 2);
        assert_eq!(read(&file), found);
    }
}

#[test]
fn evidence_that_was_made_up_convinces_nobody() {
    let scene = Scene::known(300);
    let honest = scene
        .log
        .checkpoint(ORIGIN, 600, &root(&grown(600, 600, 0)));
    scene.show(&grown(600, 200, 1));
    says(&scene.once(&[]), 1, "CONTRADICTION (fork)");
    let [file] = scene.evidence().try_into().unwrap();
    let spoilt = |change: &dyn Fn(&mut Value)| {
        let mut found = read(&file);
        change(&mut found);
        let path = scene.directory.path().join("spoilt");
        fs::write(&path, found.to_string()).unwrap();
        scene.check(&path)
    };
    says(&spoilt(&|_| {}), 0, "PROVEN");
    says(&check(&file, &Log::new(ORIGIN).vkey()), 1, "no known key");
    says(
        &spoilt(&|e| e["fetched"] = json!(honest)),
        1,
        "leads to another root",
    );
    says(
        &spoilt(&|e| e["older_root"] = json!(STANDARD.encode([7; 32]))),
        1,
        "another root",
    );
    says(
        &spoilt(&|e| e["consistency_proof"][0] = json!(STANDARD.encode([7; 32]))),
        1,
        "another root",
    );
    says(
        &spoilt(&|e| e["consistency_proof"] = Value::Null),
        1,
        "no proof",
    );
    says(
        &spoilt(&|e| e["kept"] = e["fetched"].clone()),
        1,
        "both notes have the same tree",
    );
    says(&spoilt(&|e| e["kept"] = Value::Null), 1, "only one note");
    says(
        &spoilt(&|e| e["format"] = json!("v2")),
        2,
        "does not have the format",
    );
    says(
        &spoilt(&|e| e["more"] = json!(1)),
        2,
        "not evidence of a monitor",
    );
    let swapped = |e: &mut Value| {
        let kept = e["kept"].take();
        e["kept"] = e["fetched"].take();
        e["fetched"] = kept;
    };
    says(&spoilt(&swapped), 1, "only the monitor attests");
    // A tree that continues the older one is no evidence against it.
    let continued = |e: &mut Value| {
        let all = grown(600, 600, 0);
        let proof: Vec<String> = consistency(300, &all)
            .iter()
            .map(|h| STANDARD.encode(h))
            .collect();
        e["fetched"] = json!(honest);
        e["older_root"] = json!(STANDARD.encode(root(&all[..300])));
        e["consistency_proof"] = json!(proof);
    };
    says(&spoilt(&continued), 1, "continues the smaller");
}

type Case<'a> = (&'a str, &'a str, &'a dyn Fn(&Scene));

#[test]
fn every_other_contradiction_is_shouted_and_what_was_known_stays() {
    let leaves = grown(300, 300, 0);
    let stranger = Log::new(ORIGIN);
    let elsewhere = Log::new("another.test/log");
    let other_root = |scene: &Scene| drop(scene.show(&grown(300, 299, 1)));
    let rollback = |scene: &Scene| drop(scene.show(&leaves[..299]));
    let signed_by_another = |scene: &Scene| drop(scene.server.show(&stranger, ORIGIN, &leaves));
    let other_origin =
        |scene: &Scene| drop(scene.server.show(&elsewhere, "another.test/log", &leaves));
    // The pinned key counts only for its own log.
    let own_key_other_origin =
        |scene: &Scene| drop(scene.server.show(&scene.log, "another.test/log", &leaves));
    let changed = |scene: &Scene| {
        let note = scene.log.checkpoint(ORIGIN, 300, &root(&leaves));
        scene
            .server
            .show_note(&note.replacen("\n300\n", "\n301\n", 1), &leaves);
    };
    let cases: [Case<'_>; 6] = [
        (
            "other-root",
            "PROVEN: broker.test/log signed two trees of 300",
            &other_root,
        ),
        (
            "rollback",
            "not proven: broker.test/log signed 300 leaves and 299",
            &rollback,
        ),
        (
            "bad-signature",
            "not proven: the fetched note",
            &signed_by_another,
        ),
        (
            "other-origin",
            "not proven: the fetched note",
            &other_origin,
        ),
        (
            "other-origin",
            "not proven: the fetched note",
            &own_key_other_origin,
        ),
        ("bad-signature", "not proven: the fetched note", &changed),
    ];
    for (kind, verdict, show) in cases {
        let scene = Scene::known(300);
        let kept = scene.kept();
        show(&scene);
        let ended = scene.once(&["--json"]);
        says(&ended, 1, &format!("CONTRADICTION ({kind})"));
        let line: Value = serde_json::from_str(&ended.stdout).unwrap();
        assert_eq!(line["verdict"], kind);
        assert_eq!(line["contradiction"], true);
        let [file] = scene.evidence().try_into().unwrap();
        assert_eq!(line["evidence"], file.to_str().unwrap());
        assert_eq!(
            (&read(&file)["kind"], &read(&file)["kept"]),
            (&json!(kind), &json!(kept))
        );
        let checked = scene.check(&file);
        says(&checked, i32::from(kind != "other-root"), verdict);
        assert_eq!(scene.kept(), kept);
        // A first contact with another log or key stores nothing.
        if kind == "other-origin" || kind == "bad-signature" {
            fs::remove_file(scene.state()).unwrap();
            says(&scene.once(&[]), 1, kind);
            assert!(!scene.state().exists());
        }
    }
}

#[test]
fn what_cannot_be_read_neither_passes_nor_is_called_a_fork() {
    let scene = Scene::known(300);
    let kept = scene.kept();
    let honest = grown(66_000, 66_000, 0);
    let forked = grown(66_000, 250, 1);
    let manners = [
        (Manner::Flood("checkpoint"), "more than"),
        (Manner::Flood("tile"), "more than 8192 bytes"),
        (Manner::Redirect("checkpoint"), "redirects are not followed"),
        (Manner::Redirect("tile"), "redirects are not followed"),
        (
            Manner::Status("checkpoint", 404),
            "a broker's log is under /ledger",
        ),
        (Manner::Status("checkpoint", 500), "answered 500"),
        (Manner::Status("tile", 429), "answered 429"),
        (Manner::Status("tile/0/001", 404), "does not exist"),
        (Manner::Status("tile/1", 404), "does not exist"),
        (Manner::Cut("checkpoint"), "cannot reach"),
        (Manner::Cut("tile"), "cannot reach"),
        (Manner::Lie(0), "the tiles lead to root"),
        (Manner::Lie(1), "the tiles lead to root"),
        (Manner::Short, "not 256 hashes"),
        (Manner::Long, "more than 8192 bytes"),
        (Manner::OtherTree, "the tiles lead to root"),
    ];
    for leaves in [&honest, &forked] {
        scene.show(leaves);
        for (manner, text) in manners {
            scene.server.set(manner);
            let ended = scene.once(&[]);
            let said = &ended.stderr;
            assert_eq!(ended.code(), Some(3), "{manner:?}: {said}");
            assert!(said.contains(text), "{manner:?}: {said}");
            assert_eq!(scene.kept(), kept, "{manner:?}");
        }
    }
    scene.server.set(Manner::Good);
    let no_notes = [
        "",
        "<html>",
        "broker.test/log\n",
        "\u{0}",
        "a\nb\nc\n\n\u{2014} x AAAA\n",
    ];
    for note in no_notes {
        scene.server.show_note(note, &honest);
        says(&scene.once(&[]), 3, "not a checkpoint");
    }
    assert_eq!(scene.evidence(), Vec::<PathBuf>::new());
    assert!(
        !scene
            .server
            .asked()
            .iter()
            .any(|path| path.starts_with("/elsewhere"))
    );
    // Once the server works again, the log is checked.
    scene.show(&honest);
    says(&scene.once(&[]), 0, "66000 leaves");
    assert_ne!(scene.kept(), kept);
}

#[test]
fn a_head_that_is_asked_for_again_is_held_against_what_follows() {
    let note = |scene: &Scene, leaves: &[Vec<u8>]| {
        scene.log.checkpoint(ORIGIN, leaves.len(), &root(leaves))
    };
    let (other, stranger) = (Log::new("another.test/log"), Log::new(ORIGIN));
    for (now, fork) in [(300, 250), (400, 250), (300, 300), (400, 300)] {
        let scene = Scene::known(300);
        let kept = scene.kept();
        let older = note(&scene, &grown(280, fork, 1));
        scene.show(&grown(now, now, 0));
        scene.server.show_before(&[&older, &older]);
        let ended = scene.once(&[]);
        if fork < 280 {
            says(&ended, 1, "CONTRADICTION (fork)");
            let [file] = scene.evidence().try_into().unwrap();
            assert_eq!(read(&file)["kept"], json!(older));
            says(&scene.check(&file), 0, "PROVEN: broker.test/log signed 280");
            assert_eq!(scene.kept(), kept);
        } else {
            says(&ended, 0, &format!("consistent: broker.test/log has {now}"));
        }
    }
    // A proxy may serve a foreign checkpoint briefly, so the monitor reports one only after four
    // times.
    let leaves = grown(300, 300, 0);
    let nobodys = [
        other.checkpoint("another.test/log", 300, &root(&leaves)),
        stranger.checkpoint(ORIGIN, 300, &root(&leaves)),
    ];
    for nobodys in &nobodys {
        let scene = Scene::known(300);
        scene.server.show_before(&[nobodys; 3].map(String::as_str));
        says(&scene.once(&[]), 0, "as before");
        scene.server.show_before(&[nobodys; 4].map(String::as_str));
        says(&scene.once(&[]), 1, "CONTRADICTION");
    }
}

#[test]
fn a_log_is_held_to_what_it_signed_though_its_tiles_did_not_come() {
    let forked = grown(30, 10, 1);
    let later = [
        (grown(30, 30, 0), "other-root"),
        (grown(20, 20, 0), "rollback"),
        (grown(40, 40, 0), "fork"),
    ];
    for (leaves, kind) in later {
        let scene = Scene::known(20);
        let kept = scene.kept();
        let signed = scene.show(&forked);
        scene.server.set(Manner::Status("tile", 404));
        let mut process = scene.watch(&["--every", "1s", "--json"]).spawn();
        wait_for(&process, "unreadable", 1);
        scene.show(&leaves);
        scene.server.set(Manner::Good);
        assert_eq!(process.wait(SOON).code(), Some(1), "{kind}");
        let last = lines(&process).pop().unwrap();
        assert_eq!(last["verdict"], kind);
        let [file] = scene.evidence().try_into().unwrap();
        assert_eq!(read(&file)["kept"], json!(signed));
        let proven = i32::from(kind == "rollback");
        says(&scene.check(&file), proven, "broker.test/log signed");
        assert_eq!(scene.kept(), kept);
    }
}

#[test]
fn what_another_watch_has_kept_is_not_taken_back() {
    let scene = Scene::known(20);
    let process = scene.watch(&["--every", "1s", "--json"]).spawn();
    wait_for(&process, "unchanged", 1);
    let all = grown(40, 40, 0);
    let larger = scene.log.checkpoint(ORIGIN, 30, &root(&all[..30]));
    let fork = scene.log.checkpoint(ORIGIN, 25, &root(&grown(25, 9, 1)));
    scene.server.set(Manner::Status("checkpoint", 503));
    wait_for(&process, "unreachable", 1);
    for (there, size) in [(&larger, 25), (&fork, 25), (&"not a note".to_owned(), 26)] {
        write_private(&scene.state(), there.as_bytes());
        scene.show(&all[..size]);
        scene.server.set(Manner::Good);
        wait_until("the monitor warns", SOON, || {
            let last = lines(&process).pop().unwrap();
            last["size"] == size && last["warnings"].to_string().contains("NOT KEPT")
        });
        assert_eq!(&scene.kept(), there);
    }
    // The monitor replaces it once its own checkpoint is larger.
    write_private(&scene.state(), larger.as_bytes());
    let newest = scene.show(&all);
    wait_until("the new checkpoint is stored", SOON, || {
        scene.kept() == newest
    });
}
