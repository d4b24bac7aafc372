"""Compares the HTTP description with the broker that serves it.

    description.py BINARY     starts `BINARY dev` and ends it; exits 0 if all checks pass

openapi-spec-validator checks that the description is valid. Schemathesis makes valid and invalid
requests from it and checks that the answers match it. Each request has its own attestation, because an
attestation can be used only once.
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

# Number of random requests for each operation, in addition to those at the limits of its values.
EXAMPLES = int(os.environ.get("TASKPASS_DESCRIPTION_EXAMPLES", "12"))

# Checks of Schemathesis that are skipped, each with its reason.
NOT_CHECKED = {
    # The broker may refuse a well-formed request because of policy, unregistered names or earlier
    # requests. The statuses of such answers are still checked.
    "positive_data_acceptance": "400 also covers rules that the schema cannot express",
    # These two follow links between operations, and the description has none.
    "use_after_free": "no deleted object can be requested again",
    "ensure_resource_availability": "callers do not choose the paths of created objects",
    "object_level_authorization": "tests/it tests access to other callers' objects with two callers",
    # Some operations authenticate by the form or the configuration, without `Authorization`.
    "ignored_auth": "tests/it/cutoffs and tests/it/attestation call every operation without evidence",
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
                print("FAILED  the broker's answers match the description")
            else:
                print("ok      the broker's answers match the description")
            for name, why in NOT_CHECKED.items():
                print(f"        skipped: {name}: {why}")
        finally:
            process.terminate()
            process.wait(timeout=30)
    print(f"description: {2 - min(2, len(failed))} passed, {min(2, len(failed))} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
