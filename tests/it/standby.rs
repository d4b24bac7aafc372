//! A real failover: PostgreSQL, a standby that replicates asynchronously, and a broker that has
//! acknowledged commits which the standby never received.

use crate::succession::{NEW, OLD, World, credential};
use crate::support::postgres::fresh_database;
use crate::support::standby::Pair;
use crate::support::{SOON, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_failover_to_a_standby_that_lagged_nothing_is_granted_until_a_new_log_begins() {
    let pair = Pair::start();
    let world = World::on(Some((pair.database(), fresh_database())));
    let mut old = world.start(OLD);
    world.activate(&old).await;
    let early = old.ask(&world.token("agent:a", 0)).await.expect(201);
    let received = world.published_by(&old).await;
    pair.cut_off_standby();
    let late = old.ask(&world.token("agent:a", 0)).await.expect(201);
    let size = world.published_by(&old).await;
    assert!(size > received);

    pair.fail_over();
    let readiness = async || old.client.get("/readyz").await.text();
    until("the broker has noticed the loss", SOON, async || {
        let asked = old.ask(&world.token("agent:a", 0)).await;
        assert_ne!(asked.status, 201, "{}", asked.text());
        readiness().await.contains("rewound or forked")
    })
    .await;
    let alarm = readiness().await;
    // The alarm names both sizes. A sweeper may have recorded an entry meanwhile.
    let (had, shows) = (
        size_after(&alarm, "had size "),
        size_after(&alarm, "shows size "),
    );
    assert!(had >= size && shows >= received && had > shows, "{alarm}");
    old.process.terminate();
    let refused = world.serve(OLD).run();
    assert_ne!(refused.code(), Some(0));
    assert_eq!(size_after(&refused.stderr, "had size "), had, "{refused:?}");
    assert_eq!(
        size_after(&refused.stderr, "shows size "),
        shows,
        "{refused:?}"
    );

    let begun = world.begin(&[]);
    assert_eq!(begun["predecessor"]["origin"], OLD);
    assert_eq!(begun["predecessor"]["size"], had);
    let new = world.start(NEW);
    world.activate(&new).await;
    for granted in [&early, &late] {
        assert!(!new.is_good(&world.admin, credential(granted)).await);
    }
}

fn size_after(text: &str, words: &str) -> u64 {
    let (_, after) = text.split_once(words).unwrap();
    after.split(' ').next().unwrap().parse().unwrap()
}
