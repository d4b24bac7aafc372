"""Compares the HTTP description with the broker that serves it.

    description.py BINARY     starts `BINARY dev` and ends it; exits 0 if all checks pass

openapi-spec-validator checks that the description is valid. Each JSON body and each form must have an
example, and each example must match its schema. Schemathesis makes valid and invalid requests from the
description and checks that the answers match it. Each request has its own attestation, because an
attestation can be used only once.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from openapi_schema_validator import OAS31Validator, oas31_format_checker
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

# Media types whose bodies must have examples, in addition to those that end in `+json`.
WITH_EXAMPLES = ("application/json", "application/x-www-form-urlencoded")

# A value that no member of a body may have: no schema of the description permits fractions.
WRONG = 0.5

NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def get(url: str) -> dict:
    with NO_PROXY.open(url, timeout=10) as answer:
        return json.loads(answer.read())


def bodies(document: dict) -> Iterator[tuple[str, str | None]]:
    """Each JSON body and form of each operation, with the name of its schema."""
    for path, item in document["paths"].items():
        for method, operation in item.items():
            contents = {"request": operation.get("requestBody", {})} | operation["responses"]
            for which, body in contents.items():
                for media_type, content in body.get("content", {}).items():
                    if media_type in WITH_EXAMPLES or media_type.endswith("+json"):
                        reference = content.get("schema", {}).get("$ref", "")
                        name = reference.removeprefix("#/components/schemas/")
                        yield f"{method} {path} {which}", name or None


def faults_of_schema(document: dict, name: str) -> list[str]:
    """The faults of the examples of a schema. An example may have only members that are described."""
    examples = document["components"]["schemas"][name].get("examples", [])
    schema = {
        "$ref": f"#/components/schemas/{name}",
        "unevaluatedProperties": False,
        "components": document["components"],
    }
    validator = OAS31Validator(schema, format_checker=oas31_format_checker)
    faults = [] if examples else [f"{name} has no example"]
    for number, example in enumerate(examples):
        faults += [
            f"{name}, example {number}: {fault.message[:300]} at {list(fault.path)}"
            for fault in validator.iter_errors(example)
        ]
    return faults


def spoiled(examples: list[dict]) -> Iterator[tuple[str, list[dict]]]:
    """The examples with one mistake each: all of these must be detected."""
    yield "no example", []
    for number, example in enumerate(examples):
        for member in [*example, "no_such_member"]:
            changed = copy.deepcopy(examples)
            changed[number][member] = WRONG
            yield f"example {number} with another {member}", changed


def faults_of_examples(document: dict) -> tuple[list[str], int, int]:
    """The faults, the number of bodies and the number of mistakes that were detected."""
    faults, names, count, detected = [], set(), 0, 0
    without = {f"{method} {path}" for path, item in document["paths"].items() for method in item}
    for called, name in bodies(document):
        count += 1
        without.discard(called.rsplit(" ", 1)[0])
        if name is None:
            faults.append(f"{called}: its schema has no name")
        else:
            names.add(name)
    faults += [f"{called} has no body to check" for called in sorted(without)]
    schemas = document["components"]["schemas"]
    for name in sorted(names):
        own = faults_of_schema(document, name)
        faults += own
        if own:
            continue
        # The check itself: it has to detect a mistake in each member of each example.
        examples = schemas[name]["examples"]
        for mistake, changed in spoiled(examples):
            schemas[name]["examples"] = changed
            if faults_of_schema(document, name):
                detected += 1
            else:
                faults.append(f"{name}: the check does not detect {mistake}")
        schemas[name]["examples"] = examples
    if not detected:
        faults.append("no mistake was detected in any example")
    return faults, count, detected


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
            if faults:
                failed.append("validity")
            else:
                print(f"ok      the description is valid, with {len(document['paths'])} paths")
            wrong, count, detected = faults_of_examples(document)
            for fault in wrong:
                print(f"FAILED  the examples: {fault}")
            if wrong:
                failed.append("examples")
            else:
                print(f"ok      {count} bodies have valid examples; {detected} mistakes are detected")
            environment = {
                **os.environ,
                "SCHEMATHESIS_HOOKS": "description_hooks",
                "PYTHONPATH": str(Path(__file__).parent),
                "TASKPASS_ISSUER": told["issuer"],
                "TASKPASS_ADMIN": told["admin_token"],
            }
            # A body beyond the limits is rejected with 413, which is not in the tool's own list.
            rejected = [400, 401, 403, 404, 405, 406, 409, 413, 415, 422, 428, 429, "5xx"]
            Path(directory, "schemathesis.toml").write_text(
                f"[checks.negative_data_rejection]\nexpected-statuses = {json.dumps(rejected)}\n",
                encoding="utf-8",
            )
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
    print(f"description: {3 - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
