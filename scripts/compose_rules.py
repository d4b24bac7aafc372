"""Checks rules for docker-compose.yml and the Dockerfile that go beyond validity."""

import re
import sys
from pathlib import Path

from ruamel.yaml import YAML

SECRET_DIR = "/run/secrets/"
DIGEST = re.compile(r"@sha256:[0-9a-f]{64}$")
# The image that the operator builds from the Dockerfile; no registry has it.
BUILT_HERE = "taskpass:local"
faults: list[str] = []


def require(holds: object, what: str) -> None:
    if not holds:
        faults.append(what)


def check_service(name: str, service: dict, compose: dict) -> None:
    services = compose["services"]
    require(service.get("read_only") is True, f"{name}: the root file system must be read-only")
    require(service.get("cap_drop") == ["ALL"], f"{name}: every capability must be dropped")
    require(not service.get("cap_add"), f"{name}: no capability may be added")
    require("no-new-privileges:true" in service.get("security_opt", []), f"{name}: no-new-privileges is missing")
    require(not service.get("privileged"), f"{name}: must not be privileged")
    for space in ("network_mode", "pid", "ipc"):
        require(service.get(space) != "host", f"{name}: {space} must not be the host's")
    user = str(service.get("user", ""))
    require(re.fullmatch(r"[1-9]\d*:[1-9]\d*", user), f"{name}: user must be numbers and not root, is {user!r}")
    image = re.sub(r"\$\{[^}]*:-([^}]*)\}", r"\1", service.get("image", ""))
    require(DIGEST.search(image) or image == BUILT_HERE, f"{name}: the image needs its digest: a tag can be moved")
    limits = service.get("deploy", {}).get("resources", {}).get("limits", {})
    for limit in ("cpus", "memory", "pids"):
        require(limit in limits, f"{name}: no limit on {limit}")
    require("stop_grace_period" in service, f"{name}: no stop_grace_period")
    for port in service.get("ports", []):
        require(str(port).startswith("127.0.0.1:"), f"{name}: port {port} is published beyond loopback")

    mine = set(service.get("secrets", []))
    for secret in mine:
        require(secret in compose["secrets"], f"{name}: secret {secret} is not declared")
    for key, value in service.get("environment", {}).items():
        if str(value).startswith(SECRET_DIR):
            require(str(value).removeprefix(SECRET_DIR) in mine, f"{name}: {key} names a secret that the service does not have")
        secretive = re.search(r"PASSWORD|SECRET|SEALING|DATABASE_URL|TOKEN", key)
        require(not secretive or key.endswith("_FILE"), f"{name}: {key} must come as a file")
    for volume in service.get("volumes", []):
        require(isinstance(volume, dict), f"{name}: write volumes in the long form")
        if isinstance(volume, dict) and volume["type"] == "volume":
            require(volume["source"] in compose["volumes"], f"{name}: volume {volume['source']} is not declared")
        elif isinstance(volume, dict):
            require(volume.get("read_only") is True, f"{name}: {volume['target']} must be read-only")
    for network in service.get("networks", []):
        require(network in compose["networks"], f"{name}: network {network} is not declared")
    for other, how in service.get("depends_on", {}).items():
        require(other in services, f"{name}: depends on {other}, which does not exist")
        if how.get("condition") == "service_healthy" and other in services:
            require("test" in services[other].get("healthcheck", {}), f"{name}: waits for {other}, which has no health check")


def check_compose(path: Path) -> None:
    compose = YAML(typ="safe").load(path)
    for name, service in compose["services"].items():
        check_service(name, service, compose)
    services = compose["services"]
    broker, migrate = services["broker"], services["migrate"]
    require(
        broker["depends_on"].get("migrate", {}).get("condition") == "service_completed_successfully",
        "broker: must wait until the migration is done",
    )
    require("owner_database_url" not in broker["secrets"], "broker: must not hold the owner's role")
    require("sealing_keys" not in migrate["secrets"], "migrate: must not hold the sealing keys")
    used = {s for service in services.values() for s in service.get("secrets", [])}
    for secret in compose["secrets"]:
        require(secret in used, f"no service uses the secret {secret}")
    require(compose["networks"]["data"].get("internal") is True, "the database's network must be internal")


def check_dockerfile(path: Path) -> None:
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.split(None, 1) for line in text.splitlines() if line.strip() and not line.startswith("#")]
    last = max(i for i, line in enumerate(lines) if line[0] == "FROM")
    final = {}
    for word, rest in (line for line in lines[last:]):
        final.setdefault(word, []).append(rest)
    require(last > 0, "Dockerfile: build and runtime must be separate stages")
    require(re.fullmatch(r"[1-9]\d*:[1-9]\d*", final.get("USER", [""])[-1]), "Dockerfile: USER must be numbers and not root")
    require("RUN" not in final, "Dockerfile: the runtime stage has no shell to RUN anything with")
    require("HEALTHCHECK" in final, "Dockerfile: HEALTHCHECK is missing")
    for word in ("ENTRYPOINT", "CMD"):
        require(final.get(word, [""])[0].startswith("["), f"Dockerfile: {word} must be in exec form")
    for line in lines:
        if line[0] == "FROM":
            image = line[1].split()[0]
            require(DIGEST.search(image), f"Dockerfile: {image} needs its digest: a tag can be moved")
        if line[0] == "COPY" and "--from=" not in line[1]:
            for source in line[1].split()[:-1]:
                require(source.startswith("--") or (path.parent / source).exists(), f"Dockerfile: {source} does not exist")
    require("syntax=" not in text, "Dockerfile: remove syntax=: its tag can be moved to another frontend")
    require(not re.search(r"^(ARG|ENV)\b.*(PASSWORD|SECRET|TOKEN|SEALING)", text, re.MULTILINE), "Dockerfile: a secret in a layer")


check_compose(Path(sys.argv[1]))
check_dockerfile(Path(sys.argv[2]))
for fault in faults:
    print(fault, file=sys.stderr)
print(f"compose: {len(faults)} rules broken", file=sys.stderr)
sys.exit(1 if faults else 0)
