//! The serving role may call functions that run with the owner's rights. If it could create objects
//! of its own it might misuse them: these tests show that the functions resist this, and that the
//! broker then refuses to serve.

use secrecy::SecretString;
use sqlx::{AssertSqlSafe, PgConnection};
use taskpass::store::postgres::{Postgres, PostgresSettings};

use crate::support::fleet::Fleet;
use crate::support::postgres::{AGE_HEADS, TestDatabase, fresh_database};
use crate::support::process::Launch;

async fn run(connection: &mut PgConnection, sql: &str) -> Result<(), String> {
    let ran = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
        .execute(connection)
        .await;
    ran.map(drop).map_err(|error| error.to_string())
}

async fn owner(database: &TestDatabase) -> Postgres {
    let url = SecretString::from(database.url());
    Postgres::connect(&url, PostgresSettings::default())
        .await
        .unwrap()
}

/// A role for one test, dropped at its end.
async fn role(database: &TestDatabase, admin: &mut PgConnection) -> String {
    let role = format!("confined_{}", database.name().to_lowercase());
    run(admin, &format!("CREATE ROLE {role}")).await.unwrap();
    role
}

async fn gone(admin: &mut PgConnection, role: &str) {
    let gone = format!("RESET ROLE; DROP OWNED BY {role}; DROP ROLE {role}");
    run(admin, &gone).await.unwrap();
}

#[tokio::test]
async fn every_function_that_runs_as_its_owner_looks_in_pg_temp_last_and_is_lent_to_no_one_else() {
    let database = fresh_database();
    let mut admin = database.connect().await;
    let lent: Vec<(String, Vec<String>, bool)> = sqlx::query_as(
        "SELECT p.proname::text, coalesce(p.proconfig, '{}'), \
         has_function_privilege('public', p.oid, 'EXECUTE') \
         FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace \
         WHERE p.prosecdef AND n.nspname = 'public'",
    )
    .fetch_all(&mut admin)
    .await
    .unwrap();
    let names: Vec<&str> = lent.iter().map(|(name, ..)| name.as_str()).collect();
    assert!(names.contains(&"ledger_prune_bodies"), "{names:?}");
    for (name, settings, for_all) in &lent {
        let wanted = "search_path=pg_catalog, public, pg_temp";
        assert!(
            settings.iter().any(|it| it == wanted),
            "{name}: {settings:?}"
        );
        assert!(!for_all, "every role may run {name}");
    }
    let ours: Vec<String> = sqlx::query_scalar(
        "SELECT p.proname::text FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace \
         WHERE n.nspname = 'public' AND has_function_privilege('public', p.oid, 'EXECUTE')",
    )
    .fetch_all(&mut admin)
    .await
    .unwrap();
    assert_eq!(ours, Vec::<String>::new());
}

#[tokio::test]
async fn a_temporary_view_in_the_place_of_a_table_does_not_make_the_serving_role_the_owner() {
    let database = fresh_database();
    let mut admin = database.connect().await;
    let owner = owner(&database).await;
    let role = role(&database, &mut admin).await;
    owner.grant_serving(&role).await.unwrap();
    // Like a database that lets every role create temporary objects.
    let lax = format!("GRANT TEMPORARY ON DATABASE {} TO {role}", database.name());
    run(&mut admin, &lax).await.unwrap();
    let attack = format!(
        "SET ROLE {role}; \
         CREATE FUNCTION pg_temp.f() RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN \
             EXECUTE 'CREATE TABLE public.taken AS SELECT current_user::text AS by'; RETURN 0; END $$; \
         CREATE TEMPORARY VIEW leaf AS SELECT pg_temp.f() AS idx, 'epoch'::timestamptz AS at; \
         CREATE TEMPORARY VIEW ledger_head AS SELECT pg_temp.f() AS size; \
         CREATE TEMPORARY TABLE leaf_body_9 (idx bigint); \
         SELECT ledger_prune_bodies('infinity'); SELECT ledger_prune_heads(9, 9); \
         SELECT ledger_ensure_partitions(150994944, 150994944); RESET ROLE"
    );
    run(&mut admin, &attack).await.unwrap();
    let (taken, made): (bool, bool) = sqlx::query_as(
        "SELECT to_regclass('public.taken') IS NOT NULL, to_regclass('public.leaf_body_9') IS NOT NULL",
    )
    .fetch_one(&mut admin)
    .await
    .unwrap();
    assert!(!taken, "the role's function ran with the owner's rights");
    assert!(made, "the role's temporary table replaced a partition");
    gone(&mut admin, &role).await;
}

#[tokio::test]
async fn a_leaf_row_of_old_does_not_make_the_newest_partition_go() {
    let database = fresh_database();
    let mut admin = database.connect().await;
    let owner = owner(&database).await;
    let role = role(&database, &mut admin).await;
    owner.grant_serving(&role).await.unwrap();
    let attack = format!(
        "SET ROLE {role}; INSERT INTO leaf (idx, hash, at) VALUES \
         (16777215, decode(repeat('00', 32), 'hex'), 'epoch'); \
         SELECT ledger_prune_bodies('infinity'); RESET ROLE"
    );
    run(&mut admin, &attack).await.unwrap();
    let kept: bool = sqlx::query_scalar("SELECT to_regclass('public.leaf_body_0') IS NOT NULL")
        .fetch_one(&mut admin)
        .await
        .unwrap();
    assert!(kept, "the partition that is being written is gone");
    gone(&mut admin, &role).await;
}

/// A head far beyond the log, and the last leaf of the partition in use, with an old date.
const FORGED: &str = "INSERT INTO ledger_head (size, root, batch_id, mac, endings) VALUES \
     (1099511627776, decode(repeat('00', 32), 'hex'), gen_random_uuid(), '\\x00', \
     decode(repeat('00', 32), 'hex')); \
     INSERT INTO leaf (idx, hash, at) VALUES \
     (16777215, decode(repeat('00', 32), 'hex'), 'epoch')";

/// Calls of both functions that delete, with the widest arguments.
const PRUNE_ALL: &str = "SELECT ledger_prune_bodies('infinity'); \
     SELECT ledger_prune_heads(9223372036854775807, 1000000)";

/// Whether the first partition exists, and the sizes of all heads, smallest first.
async fn kept(admin: &mut PgConnection) -> (bool, Vec<i64>) {
    sqlx::query_as(
        "SELECT to_regclass('public.leaf_body_0') IS NOT NULL, \
         ARRAY(SELECT size FROM ledger_head ORDER BY size)",
    )
    .fetch_one(admin)
    .await
    .unwrap()
}

/// A log whose heads say that it has seven leaves.
async fn begin_log(admin: &mut PgConnection) {
    let heads = "INSERT INTO ledger_head (size, root, batch_id, mac, endings) \
         SELECT n, decode(repeat('00', 32), 'hex'), gen_random_uuid(), '\\x01', \
         decode(repeat('00', 32), 'hex') \
         FROM unnest(ARRAY[3, 7]) n";
    run(admin, heads).await.unwrap();
}

#[tokio::test]
async fn a_forged_head_makes_neither_the_partition_that_is_written_nor_the_newest_head_go() {
    let database = fresh_database();
    let mut admin = database.connect().await;
    let owner = owner(&database).await;
    let role = role(&database, &mut admin).await;
    owner.grant_serving(&role).await.unwrap();
    begin_log(&mut admin).await;
    let attack = format!("SET ROLE {role}; {FORGED}; {PRUNE_ALL}; {PRUNE_ALL}; RESET ROLE");
    run(&mut admin, &attack).await.unwrap();
    let all = (true, vec![3, 7, 1_099_511_627_776]);
    assert_eq!(kept(&mut admin).await, all);
    // They also delete nothing before a day, or a week, has passed.
    let later = "UPDATE ledger_seen SET at = at - interval '23 hours', transaction = 0";
    run(&mut admin, later).await.unwrap();
    let again = format!("SET ROLE {role}; {PRUNE_ALL}; RESET ROLE");
    run(&mut admin, &again).await.unwrap();
    assert_eq!(kept(&mut admin).await, all);
    let later = "UPDATE ledger_seen SET at = at - interval '5 days'";
    run(&mut admin, later).await.unwrap();
    let bodies = format!("SET ROLE {role}; SELECT ledger_prune_bodies('infinity'); RESET ROLE");
    run(&mut admin, &bodies).await.unwrap();
    assert_eq!(kept(&mut admin).await, all);
    // After the owner deletes the forged rows, they have no effect.
    let clean = "DELETE FROM ledger_head WHERE size > 7; DELETE FROM leaf WHERE idx > 7; \
                 UPDATE ledger_seen SET at = at - interval '9 days'";
    run(&mut admin, clean).await.unwrap();
    run(&mut admin, &again).await.unwrap();
    assert_eq!(kept(&mut admin).await, (true, vec![3, 7]));
    gone(&mut admin, &role).await;
}

#[tokio::test]
async fn what_a_transaction_saw_itself_deletes_nothing_however_long_it_lasts() {
    let database = fresh_database();
    let mut admin = database.connect().await;
    begin_log(&mut admin).await;
    // In a single transaction, where no other session sees the forged head, eight days seem to
    // pass.
    let attack = format!(
        "BEGIN; {FORGED}; {PRUNE_ALL}; UPDATE ledger_seen SET at = at - interval '8 days'; \
         SAVEPOINT s; {PRUNE_ALL}; COMMIT"
    );
    run(&mut admin, &attack).await.unwrap();
    assert_eq!(
        kept(&mut admin).await,
        (true, vec![3, 7, 1_099_511_627_776])
    );
}

#[tokio::test]
async fn what_lay_below_the_newest_head_of_a_week_ago_goes() {
    let database = fresh_database();
    let mut admin = database.connect().await;
    begin_log(&mut admin).await;
    run(&mut admin, FORGED).await.unwrap();
    run(&mut admin, AGE_HEADS).await.unwrap();
    run(&mut admin, PRUNE_ALL).await.unwrap();
    assert_eq!(kept(&mut admin).await, (false, vec![1_099_511_627_776]));
}

#[tokio::test]
async fn a_role_that_may_make_objects_of_its_own_is_not_granted_what_serving_needs() {
    let database = fresh_database();
    let mut admin = database.connect().await;
    let owner = owner(&database).await;
    let (role, name) = (role(&database, &mut admin).await, database.name());
    // `migrate` itself removes the rights that it can remove.
    let lax = format!(
        "GRANT TEMPORARY ON DATABASE {name} TO PUBLIC; GRANT CREATE ON SCHEMA public TO PUBLIC"
    );
    run(&mut admin, &lax).await.unwrap();
    owner.grant_serving(&role).await.unwrap();
    owner.check_confined(Some(&role)).await.unwrap();
    // It cannot remove rights that the role has through another role.
    let other = format!("{role}_other");
    for (right, statement) in [
        (
            format!("TEMPORARY ON DATABASE {name}"),
            format!("REVOKE TEMPORARY ON DATABASE \"{name}\" FROM PUBLIC, \"{role}\""),
        ),
        (
            "CREATE ON SCHEMA public".to_owned(),
            format!("REVOKE CREATE ON SCHEMA \"public\" FROM PUBLIC, \"{role}\""),
        ),
    ] {
        let give =
            format!("CREATE ROLE {other}; GRANT {right} TO {other}; GRANT {other} TO {role}");
        run(&mut admin, &give).await.unwrap();
        let told = owner.grant_serving(&role).await.unwrap_err().to_string();
        assert!(told.contains(&statement), "{told}");
        gone(&mut admin, &other).await;
    }
    gone(&mut admin, &role).await;
}

#[tokio::test]
async fn a_role_that_may_become_an_owner_by_set_role_is_not_confined() {
    let database = fresh_database();
    let mut admin = database.connect().await;
    let owner = owner(&database).await;
    let (role, name) = (role(&database, &mut admin).await, database.name());
    owner.grant_serving(&role).await.unwrap();
    let other = format!("{role}_other");
    let confined = async || match owner.check_confined(Some(&role)).await {
        Ok(()) => String::new(),
        Err(told) => told.to_string(),
    };
    for (own, disown, what) in [
        (
            format!("ALTER DATABASE {name} OWNER TO {other}"),
            format!("ALTER DATABASE {name} OWNER TO CURRENT_USER"),
            "owns the database",
        ),
        (
            format!("ALTER SCHEMA public OWNER TO {other}"),
            "ALTER SCHEMA public OWNER TO pg_database_owner".to_owned(),
            "owns the schema public",
        ),
        (
            format!("ALTER TABLE leaf OWNER TO {other}"),
            "ALTER TABLE leaf OWNER TO CURRENT_USER".to_owned(),
            "owns the table leaf",
        ),
        (
            format!("ALTER ROLE {other} SUPERUSER"),
            format!("ALTER ROLE {other} NOSUPERUSER"),
            "is a superuser",
        ),
        (
            format!("ALTER ROLE {other} CREATEROLE"),
            format!("ALTER ROLE {other} NOCREATEROLE"),
            "may create roles",
        ),
        (
            format!("GRANT pg_write_all_data TO {other}"),
            format!("REVOKE pg_write_all_data FROM {other}"),
            "may write to every table",
        ),
    ] {
        // Objects of the other role do not count while the serving role cannot become that role.
        let member = format!(
            "CREATE ROLE {other}; {own}; ALTER ROLE {role} NOINHERIT; GRANT {other} TO {role}"
        );
        run(&mut admin, &member).await.unwrap();
        let told = confined().await;
        assert!(
            told.contains(what) && told.contains("SET ROLE"),
            "{what}: {told}"
        );
        let told = owner.grant_serving(&role).await.unwrap_err().to_string();
        assert!(told.contains(what), "{what}: {told}");
        let apart = format!("REVOKE {other} FROM {role}");
        run(&mut admin, &apart).await.unwrap();
        assert_eq!(confined().await, "", "{what}");
        run(&mut admin, &disown).await.unwrap();
        gone(&mut admin, &other).await;
    }
    gone(&mut admin, &role).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn serve_refuses_a_role_that_may_make_objects_of_its_own() {
    let (fleet, replica) = Fleet::postgres().start().await;
    // The broker connects as the owner, here even as a superuser.
    let told = Launch::taskpass(["serve", "--config", "taskpass.toml"])
        .config(fleet.config(crate::support::free_address()))
        .file("policies/fleet.cedar", fleet.policies_text().to_owned())
        .env("TASKPASS_SEALING_KEYS", &fleet.sealing_key)
        .env("TASKPASS_DATABASE_URL", fleet.database().url())
        .run();
    assert!(!told.status.success());
    assert!(told.stderr.contains("is a superuser"), "{}", told.stderr);
    drop(replica);
}
