"""Holds the description of the interface, and the broker that serves it, against each other.

    description.py BINARY     starts `BINARY dev` and ends it; exit 0 if all holds

openapi-spec-validator says whether the description is one. Schemathesis makes requests of it, good ones
and bad ones, and says whether the answers are those that are described. Each request has an attestation
of its own, for each is good once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import urllib.request
from pathlib import Path

from openapi_spec_validator import OpenAPIV31SpecValidator

# Requests that are made up for each operation, beside those that the limits of its values give.
EXAMPLES = int(os.environ.get("TASKPASS_DESCRIPTION_EXAMPLES", "12"))

# What is not asked, each for its reason.
NOT_CHECKED = {
    # What is well-formed is refused all the same by policy, by names that are not registered and by what
    # has been before. Its statuses are checked like all others.
    "positive_data_acceptance": "400 is also for what no form says",
    # These two follow links between operations, and there are none.
    "use_after_free": "nothing is deleted that could be asked for again",
    "ensure_resource_availability": "nothing is created at a place that the caller chooses",
    "object_level_authorization": "tests/it looks for what is somebody else's with two callers",
    # An operation may be asked without `Authorization` where the form or the configuration authenticates.
    "ignored_auth": "every door is tried without evidence in tests/it/cutoffs and tests/it/attestation",
}

NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def get(url: str) -> dict:
    with NO_PROXY.open(url, timeout=10) as answer:
        return json.loads(answer.read())


def start(binary: str, directory: str) -> tuple[subprocess.Popen[str], dict]:
    command = [binary, "dev", "--listen", "127.0.0.1:0", "--no-story", "--json"]
    process = subprocess.Popen(command, cwd=directory, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    told = json.loads(process.stdout.readline())
    threading.Thread(target=process.stdout.read, daemon=True).start()
    return process, told


def main() -> int:
    binary = os.path.abspath(sys.argv[1])
    failed = []
    with tempfile.TemporaryDirectory() as directory:
        process, told = start(binary, directory)
        try:
            url = told["url"]
            document = get(f"{url}/openapi.json")
            faults = list(OpenAPIV31SpecValidator(document).iter_errors())
            for fault in faults:
                print(f"FAILED  the description: {fault.message[:300]} at {list(fault.path)[:8]}")
            failed += faults
            if not faults:
                print(f"ok      the description is valid, with {len(document['paths'])} paths")
            environment = {
                **os.environ,
                "SCHEMATHESIS_HOOKS": "description_hooks",
                "PYTHONPATH": str(Path(__file__).parent),
                "TASKPASS_ISSUER": told["issuer"],
                "TASKPASS_ADMIN": told["admin_token"],
            }
            run = [
                str(Path(sys.executable).with_name("schemathesis")), "run", f"{url}/openapi.json",
                "--phases", "examples,coverage,fuzzing",
                "--max-examples", str(EXAMPLES),
                "--seed", "20261130",
                "--exclude-checks", ",".join(NOT_CHECKED),
                "--request-timeout", "30",
                "--continue-on-failure",
                "--no-shrink",
                "--warnings", "off",
                "--suppress-health-check", "all",
            ]
            if subprocess.run(run, cwd=directory, env=environment).returncode != 0:
                failed.append("schemathesis")
                print("FAILED  the broker answers as it is described")
            else:
                print("ok      the broker answers as it is described")
            for name, why in NOT_CHECKED.items():
                print(f"        not asked: {name}: {why}")
        finally:
            process.terminate()
            process.wait(timeout=30)
    print(f"description: {2 - min(2, len(failed))} passed, {min(2, len(failed))} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
