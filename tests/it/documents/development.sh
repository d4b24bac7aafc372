# shellcheck shell=bash
# A broker in development mode, as `make dev` starts it, for the tutorials and the README.
#
# ROOT is the project's directory. Afterwards the environment has URL, ISSUER and ADMIN.

mkdir -p target/debug
ln -s "$(command -v taskpass)" target/debug/taskpass
ln -s "$ROOT/examples" examples
taskpass dev --no-story --listen 127.0.0.1:0 --json > dev.json 2> dev.log &
until grep -q '}$' dev.json 2> /dev/null; do
  kill -0 $!
  sleep 0.1
done
URL=$(jq -r .url dev.json)
ISSUER=$(jq -r .issuer dev.json)
ADMIN=$(jq -r .admin_token dev.json)
# `make dev` listens at the default of `--url`.
export URL ISSUER ADMIN TASKPASS_URL=$URL
