"""The caller of Schemathesis's requests: an administrator, or a workload with an unused attestation."""

from __future__ import annotations

import json
import os
import urllib.request

import schemathesis

ISSUER, ADMIN = os.environ["TASKPASS_ISSUER"], os.environ["TASKPASS_ADMIN"]
NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))

# Paths that a workload calls for itself.
OF_WORKLOADS = ("/v1/credentials", "/v1/tasks")


def attestation() -> str:
    request = urllib.request.Request(
        f"{ISSUER}/token",
        data=json.dumps({"sub": "agent:reports"}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with NO_PROXY.open(request, timeout=10) as answer:
        return json.loads(answer.read())["token"]


@schemathesis.auth(refresh_interval=None)
class Caller:
    def get(self, case, context):
        workload = case.method == "POST" and case.path.startswith(OF_WORKLOADS)
        return attestation() if workload else ADMIN

    def set(self, case, data, context):
        case.headers = case.headers or {}
        case.headers["Authorization"] = f"Bearer {data}"


@schemathesis.hook
def filter_headers(context, headers):
    # The broker refuses any request with an invalid proof; tests/it covers that.
    return not (headers and "DPoP" in headers)
