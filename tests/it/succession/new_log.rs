//! A new log after a loss or a stolen key: the acts that begin it, the refusals, and the records that
//! it carries over.

use taskpass::clock::ManualClock;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::too_many_lines, reason = "one sequence of steps")]
async fn after_a_loss_a_new_log_begins_and_nothing_from_before_counts() {
    let world = World::new(false);
    let mut old = world.start(OLD);
    let early = old.ask(&world.token("agent:a", 0)).await.expect(201);
    block(&world, &old, "dev:thief").await;
    world.published_by(&old).await;
    old.process.terminate();
    let untouched = world.move_on(["ledger", "new-origin"], &["--yes"]);
    assert_eq!(untouched.code(), Some(2), "{untouched:?}");
    assert!(
        untouched.stderr.contains("no loss is known"),
        "{untouched:?}"
    );
    copy(&world.path("old-data"), &world.path("backup"));
    let mut old = world.start(OLD);
    let late = old.ask(&world.token("agent:a", 0)).await.expect(201);
    let size = world.published_by(&old).await;
    old.process.terminate();
    // The disk is lost, and a backup is restored.
    std::fs::remove_dir_all(world.path("old-data")).unwrap();
    copy(&world.path("backup"), &world.path("old-data"));
    let refused = world.serve(OLD).run();
    assert!(
        refused.stderr.contains("rewound") && refused.code() != Some(0),
        "{refused:?}"
    );

    let told = world.move_on(["ledger", "new-origin"], &[]);
    assert_eq!(told.code(), Some(2), "{told:?}");
    for word in [OLD, NEW, "rewound", &size.to_string(), "--yes"] {
        assert!(told.stderr.contains(word), "{word}: {told:?}");
    }
    assert_eq!(world.published(), (OLD.to_owned(), size));
    assert_an_old_bootstrap_token_is_refused(&world);
    let unused = [0, AHEAD - 1].map(|ahead| world.token("agent:a", ahead));
    let begun = world.begin(&[]);
    assert_eq!(begun["predecessor"]["origin"], OLD);
    assert_eq!(begun["predecessor"]["size"], size);
    assert_eq!(begun["predecessor"]["reason"], "lost");
    assert_eq!(begun["carried_over"]["blocks"], 1);
    assert_eq!(begun["denied"], json!([ROLE]));
    assert_eq!(
        world.published().0,
        NEW,
        "the shared checkpoint belongs to the new log"
    );

    let mut new = world.start(NEW);
    for granted in [&early, &late] {
        assert!(!new.is_good(&world.admin, credential(granted)).await);
        let place = payload(credential(granted))["status"]["status_list"].clone();
        assert_eq!(place["uri"], "http://127.0.0.1:7070/status/0");
    }
    assert_eq!(
        list(&new, 0).await,
        [0xff; 8192],
        "all sessions of the old log are invalid"
    );
    let jwks = new.client.get("/.well-known/jwks.json").await.expect(200);
    let header = credential(&early).split('.').next().unwrap();
    let header: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).unwrap()).unwrap();
    assert!(!jwks.to_string().contains(header["kid"].as_str().unwrap()));
    // It is unknown which evidence was used, so all evidence from before the loss is refused.
    for unused in unused {
        let stale = new.ask(&unused).await;
        assert_eq!(stale.status, 401, "{}", stale.text());
    }
    let blocked = new.ask(&world.later_token("thief")).await;
    assert_eq!(blocked.status, 403, "{}", blocked.text());
    assert!(blocked.text().contains("blocked"), "{}", blocked.text());
    let granted = new.ask(&world.later_token("agent:a")).await.expect(201);
    assert!(new.is_good(&world.admin, credential(&granted)).await);
    let place = payload(credential(&granted))["status"]["status_list"].clone();
    assert_eq!(place["uri"], "http://127.0.0.1:7070/status/16");
    let bits = list(&new, 16).await;
    let index = usize::try_from(place["idx"].as_u64().unwrap()).unwrap();
    assert_eq!(
        bits[index / 8] >> (index % 8) & 1,
        0,
        "the new session is valid"
    );
    assert_eq!(
        bits[64..],
        [0; 8192 - 64],
        "no bit is set beyond the log's end"
    );
    let first = new
        .client
        .get_as(&new.admin, "/v1/ledger/entries/0")
        .await
        .expect(200);
    let leaf = first["leaf"].as_str().unwrap();
    let leaf = base64::engine::general_purpose::STANDARD
        .decode(leaf)
        .unwrap();
    let leaf: Value = serde_json::from_slice(&leaf).unwrap();
    assert_eq!(leaf["event"], "genesis");
    assert_eq!(leaf["predecessor"], begun["predecessor"]);
    let receipt = world.path("granted.json");
    std::fs::write(&receipt, granted.to_string()).unwrap();
    let key = begun["vkey"].as_str().unwrap();
    let receipt = receipt.to_str().unwrap();
    // Verify the receipt only, without the credential's signature.
    let verify = [
        "ledger",
        "verify",
        receipt,
        "--key",
        key,
        "--unchecked-signature",
    ];
    assert_eq!(world.program(verify).run().code(), Some(0));
    world.published_by(&new).await;
    new.process.terminate();

    assert_old_log_has_ended(&world, &late);
}

/// In a new store the token's day would begin again, so a holder of the old token could use it.
fn assert_an_old_bootstrap_token_is_refused(world: &World) {
    let digest = |token: &str| {
        let digest = ring::digest::digest(&ring::digest::SHA256, token.as_bytes());
        hex(digest.as_ref())
    };
    let config = world.path(file(NEW));
    let good = std::fs::read_to_string(&config).unwrap();
    let same = good.replace(&digest(&world.admin), &digest(&world.old_admin));
    std::fs::write(&config, same).unwrap();
    let refused = world.move_on(["ledger", "new-origin"], &["--yes"]);
    assert_eq!(refused.code(), Some(2), "{refused:?}");
    assert!(refused.stderr.contains("bootstrap_token_sha256"));
    std::fs::write(&config, good).unwrap();
}

fn assert_old_log_has_ended(world: &World, late: &Value) {
    // The shared checkpoint stops a broker on the old log, even one that lost its own checkpoint.
    std::fs::remove_file(world.path("checkpoint")).unwrap();
    let refused = world.serve(OLD).run();
    assert!(
        refused.stderr.contains("another log is kept there"),
        "{refused:?}"
    );
    // A completed succession does not begin another time.
    let stranger = world.path("kept.note");
    std::fs::write(&stranger, late["receipt"]["checkpoint"].as_str().unwrap()).unwrap();
    let twice = ["--yes", "--checkpoint", stranger.to_str().unwrap()];
    let again = world.move_on(["ledger", "new-origin"], &twice);
    assert_eq!(again.code(), Some(2), "{again:?}");
    assert!(again.stderr.contains("has already replaced"), "{again:?}");
    let kept = late["receipt"]["checkpoint"].as_str().unwrap();
    std::fs::write(&stranger, kept.replace(OLD, "third.test/log")).unwrap();
    let foreign = world.move_on(["ledger", "new-origin"], &twice);
    assert_eq!(foreign.code(), Some(3), "{foreign:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stolen_log_key_is_revoked_with_its_log_and_what_only_it_vouches_for_is_listed() {
    let world = World::new(false);
    let mut old = world.start(OLD);
    old.ask(&world.token("agent:a", 0)).await.expect(201);
    let keys = old
        .client
        .get_as(&old.admin, "/v1/ledger/keys")
        .await
        .expect(200);
    let first = keys["vkeys"][0].as_str().unwrap().to_owned();
    let published = world.published_by(&old).await;
    old.process.terminate();
    let listed = world.path("alone.jsonl");
    let arguments = ["--list", listed.to_str().unwrap()];
    let told = world.move_on(["keys", "revoke", "--ledger", &first], &arguments);
    assert_eq!(told.code(), Some(2), "{told:?}");
    let lines = std::fs::read_to_string(&listed).unwrap();
    let lines: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    // The list includes entries of the sweeper from before the end.
    let size = lines.len() as u64;
    assert!(size >= published);
    assert!(
        told.stderr
            .contains(&format!("{size} leaves, from 0 to {}", size - 1)),
        "{told:?}"
    );
    assert_eq!(lines[0]["event"], "genesis");
    assert!(lines.iter().any(|line| line["decision"].is_string()));
    let stranger = first.replace(OLD, "other.test/log");
    let unknown = world.move_on(["keys", "revoke", "--ledger", &stranger], &[]);
    assert_eq!(unknown.code(), Some(2), "{unknown:?}");

    // A second log key signs too: entries that it signed do not depend on the revoked key alone.
    let mut old = world.start(OLD);
    world.admin(&old, "/v1/keys/rotate-ledger", json!({})).await;
    world.published_by(&old).await;
    old.process.terminate();
    let json = ["--yes", "--json"];
    let ended = world.move_on(["keys", "revoke", "--ledger", &first], &json);
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    let begun: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(begun["vouched_by_this_key_alone"]["count"], 0);
    assert_eq!(begun["predecessor"]["reason"], "key_revoked");
    assert_eq!(begun["predecessor"]["revoked_key"], first.as_str());
    let new = world.start(NEW);
    new.ask(&world.later_token("agent:a")).await.expect(201);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_log_is_given_up_while_a_broker_still_keeps_it() {
    let world = World::new(true);
    let mut old = world.start(OLD);
    world.activate(&old).await;
    let keys = old.client.get_as(&old.admin, "/v1/ledger/keys").await;
    let first = keys.expect(200)["vkeys"][0].as_str().unwrap().to_owned();
    world.published_by(&old).await;
    let revoke = || world.move_on(["keys", "revoke", "--ledger", &first], &["--yes"]);
    let told = revoke();
    assert_eq!(told.code(), Some(2), "{told:?}");
    assert!(told.stderr.contains("stop all of them"), "{told:?}");
    assert_eq!(world.published().0, OLD);
    old.process.terminate();
    // The server notices with a delay that the last connection is closed.
    until("the log is replaced", SOON, async || {
        revoke().code() == Some(0)
    })
    .await;
    assert_eq!(world.published().0, NEW);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_permits_is_carried_over_only_when_somebody_says_so() {
    for carry in [false, true] {
        let world = World::new(true);
        let (database, _) = world.databases.as_ref().unwrap();
        let mut old = world.start(OLD);
        world.activate(&old).await;
        let jwk = crate::support::keys::Key::generate(crate::support::keys::Algorithm::EdDsa);
        let registered = json!({"attestor": "keys", "workload": "robot", "jwk": jwk.jwk()});
        world.admin(&old, "/v1/workloads", registered).await;
        let bound = json!({"workload": "dev:boss", "role": "operator"});
        world.admin(&old, "/v1/admins", bound).await;
        block(&world, &old, "dev:thief").await;
        let standby = database.copy();
        until("the broker works again", SOON, async || {
            old.ask(&world.token("agent:a", 0)).await.status == 201
        })
        .await;
        world.published_by(&old).await;
        old.process.terminate();
        database.fail_over_to(standby);
        let begun = world.begin(if carry { &["--carry-over"] } else { &[] });
        let carried = &begun["carried_over"];
        assert_eq!(carried["blocks"], 1);
        assert_eq!(carried["workload_keys"], u64::from(carry));
        assert_eq!(carried["admin_bindings"], u64::from(carry));
        assert_eq!(carried["generation"].is_string(), carry);
        let new = world.start(NEW);
        if !carry {
            world.activate(&new).await;
        }
        let admins = new
            .client
            .get_as(&new.admin, "/v1/admins")
            .await
            .expect(200);
        assert_eq!(admins.to_string().contains("dev:boss"), carry);
        new.ask(&world.later_token("agent:a")).await.expect(201);
        let blocked = new.ask(&world.later_token("thief")).await;
        assert_eq!(blocked.status, 403, "{}", blocked.text());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_was_begun_and_cut_short_serves_nobody_until_it_is_gone_on_with() {
    let world = World::new(false);
    let size = world.lose(1).await;
    // The new store accepts the first leaves, and then fails.
    Store::Sqlite(Sqlite::open(&world.path(data(NEW)), 1).await.unwrap())
        .close()
        .await;
    world
        .run_sql(
            NEW,
            &["CREATE TRIGGER full BEFORE INSERT ON cutoff \
               WHEN (SELECT count(*) FROM cutoff) > 0 BEGIN SELECT RAISE(ABORT, 'full'); END"],
        )
        .await;
    let cut_short = world.move_on(["ledger", "new-origin"], &["--yes"]);
    assert_eq!(cut_short.code(), Some(3), "{cut_short:?}");
    world.run_sql(NEW, &["DROP TRIGGER full"]).await;
    // The shared checkpoint and the replica's file no longer hold the old log's checkpoint.
    assert_eq!(world.published().0, NEW);
    let refused = world.serve(NEW).run();
    assert_ne!(refused.code(), Some(0), "{refused:?}");
    for word in ["interrupted", "taskpass ledger new-origin", OLD, NEW] {
        assert!(refused.stderr.contains(word), "{word}: {refused:?}");
    }
    let told = world.move_on(["ledger", "new-origin"], &[]);
    assert!(told.stderr.contains("this one continues it"), "{told:?}");
    let refused = world.serve(NEW).run();
    assert!(refused.stderr.contains("interrupted"), "{refused:?}");

    let begun = world.begin(&[]);
    assert_eq!(begun["predecessor"]["size"], size);
    assert_eq!(begun["carried_over"]["blocks"], 1);
    assert_eq!(begun["denied"], json!([ROLE]));
    let mut new = world.start(NEW);
    let blocked = new.ask(&world.later_token("thief")).await;
    assert_eq!(blocked.status, 403, "{}", blocked.text());
    new.ask(&world.later_token("agent:a")).await.expect(201);
    new.process.terminate();
    let store = Sqlite::open_to_read(&world.path(data(NEW)), 1).await;
    let store = Store::Sqlite(store.unwrap().unwrap());
    let cutoffs = store.cutoffs(100).await.unwrap();
    let kinds: Vec<&str> = cutoffs
        .iter()
        .map(|it| it.claimed().selector.kind())
        .collect();
    assert_eq!(kinds, ["workload", "resource", "all"], "each selector once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_taken_over_stops_a_new_log_before_it_begins() {
    let world = World::new(false);
    let nothing = world.move_on(["ledger", "new-origin"], &["--yes"]);
    assert_eq!(nothing.code(), Some(3), "{nothing:?}");
    assert!(nothing.stderr.contains("there is no store"), "{nothing:?}");
    assert!(
        !world.path(data(OLD)).exists(),
        "the old store is only read"
    );
    let size = world.lose(1).await;
    let stolen = "UPDATE cutoff SET value = 'dev:nobody' WHERE value = 'dev:thief'";
    world.run_sql(OLD, &[stolen]).await;
    let refused = world.move_on(["ledger", "new-origin"], &["--yes"]);
    assert_eq!(refused.code(), Some(3), "{refused:?}");
    assert!(
        refused
            .stderr
            .contains("other than the broker: the table cutoff: the cutoff 01"),
        "{refused:?}"
    );
    assert_eq!(world.published(), (OLD.to_owned(), size));
    // The replica's checkpoint may be the only evidence of a loss, so an unreadable file stops the
    // command.
    let [file, kept] = ["checkpoint", "kept"].map(|name| world.path(name));
    std::fs::rename(&file, &kept).unwrap();
    std::fs::create_dir(&file).unwrap();
    let refused = world.move_on(["ledger", "new-origin"], &["--yes"]);
    assert_eq!(refused.code(), Some(3), "{refused:?}");
    assert!(
        refused.stderr.contains(file.to_str().unwrap()),
        "{refused:?}"
    );
    std::fs::remove_dir(&file).unwrap();
    std::fs::rename(&kept, &file).unwrap();
    // A shared checkpoint that is missing but existed before stops the command as well.
    let [place, kept] = ["place", "kept"].map(|name| world.path(name));
    std::fs::rename(&place, &kept).unwrap();
    let refused = world.move_on(["ledger", "new-origin"], &["--yes"]);
    assert_eq!(refused.code(), Some(3), "{refused:?}");
    assert!(refused.stderr.contains("is missing"), "{refused:?}");
    std::fs::rename(&kept, &place).unwrap();
    let back = "UPDATE cutoff SET value = 'dev:thief' WHERE value = 'dev:nobody'";
    world.run_sql(OLD, &[back]).await;
    assert_eq!(world.begin(&[])["carried_over"]["blocks"], 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_third_log_gives_out_none_of_the_places_of_the_second() {
    let world = World::new(false);
    let first = world.key(world.start(OLD)).await;
    let yes = ["--yes"];
    let moved = world.move_on(["keys", "revoke", "--ledger", &first], &yes);
    assert_eq!(moved.code(), Some(0), "{moved:?}");
    let place = |granted: &Value| {
        let place = payload(credential(granted))["status"]["status_list"].clone();
        place["uri"].as_str().unwrap().to_owned()
    };
    let new = world.start(NEW);
    let second = new.ask(&world.later_token("agent:a")).await.expect(201);
    assert!(place(&second).ends_with("/status/16"), "{second}");
    let key = world.key(new).await;
    let revoke = ["keys", "revoke", "--ledger", &key];
    // The first log's token is not in the second log's configuration, but its store knows it.
    let config = world.path(file(THIRD));
    let good = std::fs::read_to_string(&config).unwrap();
    let digest =
        |token: &str| hex(ring::digest::digest(&ring::digest::SHA256, token.as_bytes()).as_ref());
    let first = good.replace(&digest(&world.third_admin), &digest(&world.old_admin));
    std::fs::write(&config, first).unwrap();
    let refused = world.move_between([NEW, THIRD], revoke, &yes);
    assert_eq!(refused.code(), Some(2), "{refused:?}");
    assert!(
        refused.stderr.contains("the old log accepted"),
        "{refused:?}"
    );
    std::fs::write(&config, good).unwrap();
    let moved = world.move_between([NEW, THIRD], revoke, &yes);
    assert_eq!(moved.code(), Some(0), "{moved:?}");
    let mut third = world.start(THIRD);
    for number in [0, 16] {
        let bits = list(&third, number).await;
        assert_eq!(
            bits, [0xff; 8192],
            "{number}: all earlier sessions are invalid"
        );
    }
    let granted = third.ask(&world.later_token("agent:a")).await.expect(201);
    assert!(place(&granted).ends_with("/status/32"), "{granted}");
    third.process.terminate();
    // Deleting the record of the succession does not restore the sessions it ended.
    world.run_sql(THIRD, &["DELETE FROM succession"]).await;
    let refused = world.serve(THIRD).run();
    assert_ne!(refused.code(), Some(0), "{refused:?}");
    assert!(refused.stderr.contains("by its first leaf"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_log_signs_with_no_key_of_the_old_one() {
    let mut world = World::new(false);
    let pem = world.path("rsa.pem");
    std::fs::write(&pem, include_str!("../support/test_only_rsa_key.pem")).unwrap();
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&pem, private).unwrap();
    world.keys =
        "access_token_algorithm = \"RS256\"\nrs256_private_key_file = \"rsa.pem\"".to_owned();
    let configured = world.config(NEW, free_address());
    std::fs::write(world.path(file(NEW)), configured).unwrap();
    world.lose(1).await;
    let refused = world.move_on(["ledger", "new-origin"], &["--yes"]);
    assert_eq!(refused.code(), Some(2), "{refused:?}");
    assert!(
        refused
            .stderr
            .contains("rs256_private_key_file is a key of the old log"),
        "{refused:?}"
    );
    // The old configuration need not name the key any more: the old store knows it.
    world.keys = String::new();
    let forgotten = world.config(OLD, free_address());
    std::fs::write(world.path(file(OLD)), forgotten).unwrap();
    let refused = world.move_on(["ledger", "new-origin"], &["--yes"]);
    assert_eq!(refused.code(), Some(2), "{refused:?}");
    let another = world.config(NEW, free_address());
    std::fs::write(world.path(file(NEW)), another).unwrap();
    world.begin(&[]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fork_is_a_loss_though_the_store_has_more_leaves_than_what_proves_it() {
    let world = World::new(false);
    world.lose(1).await;
    let fork = world.path("fork");
    std::fs::copy(world.path("checkpoint"), &fork).unwrap();
    // The standby that the other replicas use has no record of the shared checkpoint.
    for name in ["place", "checkpoint"] {
        std::fs::remove_file(world.path(name)).unwrap();
    }
    let unheard = "UPDATE store_meta SET shared_place = NULL";
    world.run_sql(OLD, &[unheard]).await;
    let mut old = world.start(OLD);
    for _ in 0..4 {
        old.ask(&world.token("agent:a", 0)).await.expect(201);
    }
    let size = world.published_by(&old).await;
    old.process.terminate();
    let nothing = world.move_on(["ledger", "new-origin"], &[]);
    assert!(nothing.stderr.contains("no loss is known"), "{nothing:?}");
    let kept = ["--checkpoint", fork.to_str().unwrap()];
    let told = world.move_on(["ledger", "new-origin"], &kept);
    for word in ["rewound or forked", fork.to_str().unwrap()] {
        assert!(told.stderr.contains(word), "{told:?}");
    }
    let begun = world.begin(&kept);
    assert!(begun["predecessor"]["size"].as_u64().unwrap() >= size);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn by_a_wrong_clock_no_log_is_given_up() {
    let world = World::new(true);
    let old = OldLog::open(world.read(OLD), NEW, vec![], &[], now()).await;
    let (old, config) = (old.unwrap(), world.read(NEW));
    for wrong in [now().minus_seconds(5), now().plus_seconds(5)] {
        let clock = ManualClock::new(wrong);
        let refused = begin(&config, clock, &old.give_up(wrong), &old, false).await;
        let told = refused.err().unwrap().to_string();
        assert!(told.contains("differ by"), "{told}");
    }
}
