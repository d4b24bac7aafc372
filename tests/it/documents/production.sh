# shellcheck shell=bash
# A broker as in production, on SQLite, for the blocks of the how-to guides.
#
# ADDRESS is its address, and URL its URL. With GITHUB=yes its configuration has the attestor
# `github`. Afterwards the directory holds the files that the guides name, and the environment has
# TASKPASS_URL and TASKPASS_TOKEN_FILE.

umask 077
taskpass keys sealing-key > sealing-keys
# One token that can be used several times stands for each of the guides' tokens.
digest=$(taskpass keys bootstrap --token-file admin-token)
cp admin-token auditor-token
cp admin-token bootstrap-token
keys=
for name in alice oncall reports bookkeeper invoices-server orders-server; do
  key=$(taskpass workloads new-key $name --key-file $name.pem)
  keys="$keys${keys:+, }$key"
done
cat > taskpass.toml <<END
[server]
issuer = "https://broker.example"
listen = "$ADDRESS"
drain_seconds = 0
[server.tls]
terminated_upstream = true
[store]
kind = "sqlite"
[store.sqlite]
data_dir = "data"
[ledger]
origin = "broker.example/log"
checkpoint_file = "checkpoint"
[admin]
bootstrap_token_sha256 = "$digest"

[[attestors]]
kind = "key"
name = "workload"
keys = [$keys]
[[resources]]
name = "orders-api"
kind = "jwt"
owner = "orders"
audience = "https://orders.example"
actions = ["orders:read", "orders:write"]
locations = ["https://orders.example/v1"]
verifiers = ["workload:orders-server"]
verification = "introspection"
[[task_types]]
name = "nightly-report"
max_deadline_seconds = 3600
resources = ["orders-api"]
[[task_types]]
name = "fix-order"
max_deadline_seconds = 3600
resources = ["orders-api"]
END
mkdir policies policies/tests
cat > policies/all.cedar <<'END'
@id("admins") @description("Admins and the bootstrap token may do everything but approve.")
permit (principal in Role::"admin",
  action in [Action::"listTasks", Action::"endTask", Action::"listSessions", Action::"revokeSession",
    Action::"revokeMany", Action::"liftCutoff", Action::"readRevocations", Action::"readLedger",
    Action::"introspect", Action::"readGeneration", Action::"activateGeneration", Action::"manageKeys",
    Action::"manageWorkloads", Action::"manageAdmins", Action::"acceptTime", Action::"readMetrics"],
  resource == Broker::"taskpass");

@id("token") @description("As admins.")
permit (principal == Bootstrap::"token",
  action in [Action::"listTasks", Action::"endTask", Action::"listSessions", Action::"revokeSession",
    Action::"revokeMany", Action::"liftCutoff", Action::"readRevocations", Action::"readLedger",
    Action::"introspect", Action::"readGeneration", Action::"activateGeneration", Action::"manageKeys",
    Action::"manageWorkloads", Action::"manageAdmins", Action::"acceptTime", Action::"readMetrics"],
  resource == Broker::"taskpass");

@id("reports-open") @description("The reports workload opens its nightly task.")
permit (principal == Workload::workload::"workload:reports",
  action == Action::"openTask", resource == TaskType::"nightly-report");

@id("reports-read") @description("The reports workload reads orders, ten minutes at most.") @max_ttl("600")
permit (principal == Workload::workload::"workload:reports",
  action == Action::"orders:read", resource == Api::"orders-api");

@id("orders-open") @description("The orders workload opens a task to fix an order.")
permit (principal == Workload::workload::"workload:orders",
  action == Action::"openTask", resource == TaskType::"fix-order");

@id("orders-fix") @description("The orders workload reads and writes orders while it fixes one.") @max_ttl("120")
permit (principal == Workload::workload::"workload:orders",
  action in [Action::"orders:read", Action::"orders:write"], resource == Api::"orders-api")
when { context.task.type == "fix-order" };
END
cat > policies/tests/all.toml <<'END'
[[credential]]
name = "the reports workload writes no orders"
attestor = "workload"
identity = "workload:reports"
resource = "orders-api"
actions = ["orders:write"]
task_type = "nightly-report"
expect = "deny"
code = "not-permitted"
END
if [ "$GITHUB" = yes ]; then
  cat >> taskpass.toml <<'END'
[[attestors]]
kind = "oidc"
preset = "github-actions"
name = "github"
audience = "https://broker.example"
required = { repository_owner_id = "65" }
END
fi
export TASKPASS_SEALING_KEYS_FILE=sealing-keys
taskpass policy check
taskpass serve > serve.log 2>&1 &
until taskpass health --url "$URL/readyz" 2> /dev/null; do
  kill -0 $!
  sleep 0.1
done
export TASKPASS_URL=$URL TASKPASS_TOKEN_FILE=admin-token
taskpass ledger keys > log.vkey
attest() {
  taskpass workloads assert "$1" --key-file "$1.pem" --audience https://broker.example
}
attest reports | taskpass request --json --token-file - --resource orders-api --action orders:read \
  --task-type nightly-report --purpose "monthly numbers" > answer.json
jq -r .credential.access_token answer.json > token.jwt
curl -s "$URL/.well-known/jwks.json" > jwks.json
