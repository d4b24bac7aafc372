#!/usr/bin/env bash
# Runs once, on the first start of an empty server. Creates two roles and the database:
#   taskpass_owner   owns the schema; only `taskpass migrate` uses it
#   taskpass_serve   the broker connects with it; the migrations grant it the tables
#                    that it may read, insert into or update
set -euo pipefail

secrets=${SECRETS_DIR:-/run/secrets}

psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username "${POSTGRES_USER:-postgres}" --dbname postgres \
  --set owner_password="$(cat "$secrets/owner_password")" \
  --set serve_password="$(cat "$secrets/serve_password")" <<'SQL'
CREATE ROLE taskpass_owner LOGIN PASSWORD :'owner_password';
CREATE ROLE taskpass_serve LOGIN PASSWORD :'serve_password';
CREATE DATABASE taskpass OWNER taskpass_owner ENCODING 'UTF8' TEMPLATE template0;
REVOKE ALL ON DATABASE taskpass FROM PUBLIC;
GRANT CONNECT ON DATABASE taskpass TO taskpass_serve;
\connect taskpass
ALTER SCHEMA public OWNER TO taskpass_owner;
REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO taskpass_serve;
SQL
