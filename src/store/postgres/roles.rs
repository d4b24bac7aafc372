//! The rights of the role that serves.
//!
//! `grant_serving` gives a role the rights that serving needs, and `check_confined` refuses a role
//! with more. An owner or superuser could change every row, and a role that may create objects
//! could let an object of its own stand in for the broker's.
//!
//! Failures: `Unfit` with the statement that takes the right away. `app` checks at the start, and
//! `taskpass migrate` grants.

use super::Postgres;
use crate::store::StoreError;

impl Postgres {
    /// Gives `role` the rights that serving needs and no more: leaves, tiles and heads can be
    /// inserted and read, never updated or deleted.
    pub async fn grant_serving(&self, role: &str) -> Result<(), StoreError> {
        let fine = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        if role.is_empty() || role.len() > 63 || !role.bytes().all(fine) {
            return Err(StoreError::Unfit(
                "a role's name is 1 to 63 of a-z, 0-9 and `_`".into(),
            ));
        }
        // An identifier cannot be a parameter; a function in the database quotes it.
        sqlx::query("/* confine_serving */ SELECT taskpass_confine_serving($1)")
            .bind(role)
            .execute(&self.pool)
            .await?;
        self.check_confined(Some(role)).await?;
        sqlx::query(include_str!("grant_serving.sql").trim_end())
            .bind(role)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Checks that a role, or the connected one, has only the rights that serving needs. It must
    /// not be able to become an owner or a superuser by `SET ROLE`: an owner can change every row.
    /// And it must not be able to create objects: a temporary table or function of its own could
    /// stand in for one of the broker's.
    pub async fn check_confined(&self, role: Option<&str>) -> Result<(), StoreError> {
        self.check_no_owner(role).await?;
        self.check_no_creator(role).await
    }

    /// `pg_has_role(…, 'MEMBER')` is true for every kind of membership, inherited or not, for the
    /// role itself, and for a superuser with every role.
    async fn check_no_owner(&self, role: Option<&str>) -> Result<(), StoreError> {
        let found: Option<(String, String, String)> = sqlx::query_as(
            "/* check_no_owner */ SELECT r.rolname::text, o.rolname::text, o.what \
             FROM pg_catalog.pg_roles r CROSS JOIN LATERAL ( \
               SELECT s.oid, s.rolname, CASE WHEN s.rolsuper THEN 'is a superuser' \
                 WHEN s.rolcreaterole THEN 'may create roles and so join others' \
                 ELSE 'may write to every table' END AS what, 0 AS rank \
               FROM pg_catalog.pg_roles s \
               WHERE s.rolsuper OR s.rolcreaterole OR s.rolname = 'pg_write_all_data' \
               UNION ALL SELECT d.datdba, pg_get_userbyid(d.datdba), \
                 'owns the database ' || quote_ident(d.datname), 1 \
               FROM pg_catalog.pg_database d WHERE d.datname = current_database() \
               UNION ALL SELECT n.nspowner, pg_get_userbyid(n.nspowner), \
                 'owns the schema ' || quote_ident(n.nspname), 2 \
               FROM pg_catalog.pg_namespace n WHERE n.oid = (SELECT c.relnamespace \
                 FROM pg_catalog.pg_class c WHERE c.oid = 'ledger_head'::regclass) \
               UNION ALL SELECT c.relowner, pg_get_userbyid(c.relowner), \
                 'owns the table ' || quote_ident(c.relname), 3 \
               FROM pg_catalog.pg_class c WHERE c.relkind IN ('r', 'p') AND c.relnamespace = \
                 (SELECT h.relnamespace FROM pg_catalog.pg_class h \
                  WHERE h.oid = 'ledger_head'::regclass) \
             ) AS o WHERE r.rolname = coalesce($1, current_user::text) \
             AND pg_has_role(r.oid, o.oid, 'MEMBER') ORDER BY o.oid <> r.oid, o.rank LIMIT 1",
        )
        .bind(role)
        .fetch_optional(&self.pool)
        .await?;
        let Some((role, owner, what)) = found else {
            return Ok(());
        };
        let how = if role == owner {
            format!("the role `{role}` {what}, so it can change every row")
        } else {
            format!(
                "the role `{role}` may become `{owner}` by SET ROLE, which {what}, so it can \
                 change every row; if it is a member of that role, run this as its administrator: \
                 REVOKE \"{owner}\" FROM \"{role}\""
            )
        };
        Err(StoreError::Unfit(format!(
            "{how}; serve with a role that neither owns the database nor is a superuser, made by \
             `taskpass migrate --grant-to ROLE`"
        )))
    }

    async fn check_no_creator(&self, role: Option<&str>) -> Result<(), StoreError> {
        let (role, database, schema, temporary, create): (String, String, String, bool, bool) =
            sqlx::query_as(
                "/* check_confined */ SELECT r.rolname::text, current_database()::text, \
                 n.nspname::text, \
                 has_database_privilege(r.oid, current_database(), 'TEMPORARY'), \
                 has_schema_privilege(r.oid, n.oid, 'CREATE') \
                 FROM pg_catalog.pg_roles r, pg_catalog.pg_namespace n \
                 WHERE r.rolname = coalesce($1, current_user::text) AND n.oid = \
                 (SELECT c.relnamespace FROM pg_catalog.pg_class c \
                  WHERE c.oid = 'ledger_head'::regclass)",
            )
            .bind(role)
            .fetch_one(&self.pool)
            .await?;
        let statement = match (temporary, create) {
            (false, false) => return Ok(()),
            (true, _) => {
                format!("REVOKE TEMPORARY ON DATABASE \"{database}\" FROM PUBLIC, \"{role}\"")
            }
            (false, true) => {
                format!("REVOKE CREATE ON SCHEMA \"{schema}\" FROM PUBLIC, \"{role}\"")
            }
        };
        let right = if temporary {
            format!("temporary objects in the database `{database}`")
        } else {
            format!("objects in the schema `{schema}`")
        };
        Err(StoreError::Unfit(format!(
            "the role `{role}` may create {right}, which could stand in for the ledger's own; run \
             this as the owner: {statement}; or serve with a role that neither owns the database nor \
             is a superuser, made by `taskpass migrate --grant-to ROLE`"
        )))
    }
}
