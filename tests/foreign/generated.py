"""Generates a client from the served OpenAPI document, and lists sessions with it.

    generated.py BINARY     starts `BINARY dev` and ends it; exits 0 if all checks pass

openapi-python-client makes a Python package with one function for each operation and one class for
each schema. A warning of the generator fails the run: it means that a part of the document has no
counterpart in the client. All calls of the broker below use the generated functions and classes.
"""

from __future__ import annotations

import copy
import datetime
import importlib
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from description import NO_PROXY, get, start

HERE = Path(__file__).parent
PACKAGE = "taskpass_client"
LOCATION = "https://orders.example/v1"
# The number of sessions of each workload. With pages of LIMIT, only some listings end with a full page.
SESSIONS = {"agent:reports": 6, "agent:orders": 3}
LIMIT = 2
TASKS = {"agent:reports": "nightly-report", "agent:orders": "fix-order"}

passed: list[str] = []
failed: list[str] = []


def check(name: str, act: Callable[[], Any]) -> Any:
    """Runs one check. Returns its result, or None after a failure."""
    try:
        result = act()
    except Exception as error:  # any exception of the generated client fails the check
        failed.append(name)
        print(f"FAILED  {name}\n        {type(error).__name__}: {error}")
        return None
    passed.append(name)
    print(f"ok      {name}")
    return result


def holds(condition: object, what: str) -> None:
    if not condition:
        raise AssertionError(what)


def generate(document: dict, directory: Path, package: str) -> subprocess.CompletedProcess[str]:
    """Runs the generator. It fails on any warning."""
    source = directory / f"{package}.json"
    source.write_text(json.dumps(document))
    command = [
        str(Path(sys.executable).with_name("openapi-python-client")), "generate",
        "--path", str(source), "--output-path", str(directory / package),
        "--meta", "none", "--config", str(HERE / "generator.yml"), "--fail-on-warning",
    ]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True)


def attestation(dev: dict, subject: str) -> str:
    """A token of the development issuer. An attestation can be used only once."""
    request = urllib.request.Request(
        f"{dev['issuer'].rstrip('/')}/token",
        data=json.dumps({"sub": subject}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with NO_PROXY.open(request, timeout=10) as answer:
        return json.loads(answer.read())["token"]


class Generated:
    """The generated package, and clients of the broker with it."""

    def __init__(self, dev: dict):
        self.dev = dev
        self.models = importlib.import_module(f"{PACKAGE}.models")
        self.unset = importlib.import_module(f"{PACKAGE}.types").UNSET
        self.clients = importlib.import_module(PACKAGE)

    def call(self, token: str, operation: str, *values: object, **named: object) -> Any:
        """Calls an operation, and returns the answer's status, headers and parsed body."""
        module = importlib.import_module(f"{PACKAGE}.api.default.{operation}")
        client = self.clients.AuthenticatedClient(
            base_url=self.dev["url"].rstrip("/"), token=token, raise_on_unexpected_status=True,
        )
        with client:
            return module.sync_detailed(*values, client=client, **named)

    def request(self, subject: str) -> Any:
        """Requests a credential under a new task."""
        models = self.models
        details = models.AuthorizationDetailType0(
            type_=models.AuthorizationDetailType0Type.API, actions=["orders:read"], locations=[LOCATION],
        )
        body = models.RequestBody(
            task=models.TaskBody(type_=TASKS.get(subject, "nightly-report"), deadline_seconds=600),
            resource="orders-api",
            authorization_details=[details],
            ttl_seconds=60,
        )
        return self.call(attestation(self.dev, subject), "credentials_request", body=body)

    def pages(self, token: Callable[[], str], **filters: object) -> Iterator[list]:
        """Every page of a listing of sessions."""
        cursor, seen = self.unset, set()
        while True:
            answer = self.call(token(), "sessions_list", limit=LIMIT, cursor=cursor, **filters)
            holds(answer.status_code == 200, f"{answer.status_code}: {answer.parsed}")
            page = answer.parsed
            holds(isinstance(page, self.models.SessionPage), f"a page is a {type(page).__name__}")
            holds(len(page.sessions) <= LIMIT, f"a page of {len(page.sessions)} sessions")
            yield page.sessions
            cursor = page.next_cursor
            if isinstance(cursor, type(self.unset)):
                return
            holds(isinstance(cursor, str) and cursor not in seen, f"the cursor is {cursor}")
            seen.add(cursor)


def typed(value: object, members: dict[str, type]) -> None:
    """Fails unless the members of a generated object have these types."""
    for name, kind in members.items():
        member = getattr(value, name)
        holds(isinstance(member, kind), f"{type(value).__name__}.{name} is {member!r}, not a {kind.__name__}")
    # Members that the document does not have would be here.
    holds(not value.additional_properties, f"undocumented: {sorted(value.additional_properties)}")


def typed_session(client: Generated, session: Any) -> None:
    models, time = client.models, datetime.datetime
    typed(session, {
        "id": UUID, "task_id": UUID, "decision_id": UUID, "state": models.SessionState,
        "issued_at": time, "expires_at": time, "revocability": models.Revocability,
    })  # fmt: skip
    holds(session.issued_at.tzinfo and session.expires_at.tzinfo, "a time has no zone")
    holds(session.issued_at < session.expires_at, "it expires before it is issued")
    for detail in session.authorization_details:
        holds(detail.type_ is models.AuthorizationDetailType0Type.API, f"type is {detail.type_!r}")
        holds(detail.actions == ["orders:read"], f"actions are {detail.actions}")
    holds(session.revocability.class_ in models.RevocabilityClass, "the class of revocability is no enum")


def issue(client: Generated) -> dict[str, list[UUID]]:
    """Issues sessions to the workloads by turns. Returns the ids, oldest first."""
    ids: dict[str, list[UUID]] = {subject: [] for subject in SESSIONS}
    for turn in range(max(SESSIONS.values())):
        for subject, count in SESSIONS.items():
            if turn >= count:
                continue
            answer = client.request(subject)
            holds(answer.status_code == 201, f"{answer.status_code}: {answer.parsed}")
            issued = answer.parsed
            holds(isinstance(issued, client.models.IssuedBody), f"a {type(issued).__name__}")
            typed_session(client, issued.session)
            typed(issued.task, {"id": UUID, "state": client.models.TaskState, "deadline": datetime.datetime})
            typed(issued.decision, {"id": UUID, "outcome": client.models.Outcome})
            holds(issued.decision.outcome is client.models.Outcome.PERMIT, f"outcome is {issued.decision.outcome}")
            ids[subject].append(issued.session.id)
    return ids


def listed(client: Generated, pages: list[list], expected: set[UUID]) -> None:
    """Fails unless the pages have these sessions, each once, newest first."""
    sessions = [session for page in pages for session in page]
    for session in sessions:
        typed_session(client, session)
    found = [session.id for session in sessions]
    holds(len(found) == len(set(found)), "a session is listed twice")
    holds(set(found) == expected, f"missing {expected - set(found)}, unknown {set(found) - expected}")
    times = [session.issued_at for session in sessions]
    holds(times == sorted(times, reverse=True), "the order is not newest first")


def check_listings(client: Generated, ids: dict[str, list[UUID]]) -> None:
    admin, every = client.dev["admin_token"], {one for own in ids.values() for one in own}

    def all_of(token: Callable[[], str], expected: set[UUID]) -> None:
        pages = list(client.pages(token))
        listed(client, pages, expected)
        # A full page has a cursor, even if no session follows.
        holds(len(pages) == len(expected) // LIMIT + 1, f"{len(pages)} pages")

    check(f"sessions: an admin finds each once in pages of {LIMIT}", lambda: all_of(lambda: admin, every))
    for subject, own in ids.items():
        check(f"sessions: {subject} finds only its own, each once",
              lambda subject=subject, own=own: all_of(lambda: attestation(client.dev, subject), set(own)))

    def revoked() -> None:
        models, target = client.models, ids["agent:reports"][2]
        answer = client.call(admin, "sessions_revoke", target, body=models.RevokeBody(reason="generated.py"))
        holds(answer.status_code == 200, f"{answer.status_code}: {answer.parsed}")
        typed(answer.parsed, {"id": UUID, "state": models.SessionState, "end_reason": models.EndReason,
                              "ended_at": datetime.datetime})  # fmt: skip
        holds(answer.parsed.id == target, "another session was revoked")
        holds(answer.parsed.end_reason is models.EndReason.REVOKED, f"end_reason is {answer.parsed.end_reason}")
        for state, expected in [
            (models.SessionState.ACTIVE, every - {target}),
            (models.SessionState.ENDED, {target}),
        ]:
            # The broker filters after it read a page, so pages may be short or empty.
            listed(client, list(client.pages(lambda: admin, state=state)), expected)

    check("sessions: a revoked one moves from the active to the ended", revoked)


def check_problems(client: Generated) -> None:
    models, admin = client.models, client.dev["admin_token"]

    def problem(answer: Any, status: int, kind: str) -> Any:
        holds(answer.status_code == status, f"{answer.status_code}: {answer.parsed}")
        found = answer.parsed
        holds(isinstance(found, models.ProblemBody), f"a {type(found).__name__}")
        typed(found, {"type_": models.ProblemBodyType, "title": str, "status": int, "detail": str})
        holds(found.type_ is models.ProblemBodyType(f"urn:taskpass:problem:{kind}"), f"type is {found.type_}")
        holds(found.status == status, f"status is {found.status}")
        return found

    def limit() -> None:
        found = problem(client.call(admin, "sessions_list", limit=0), 400, "invalid-request")
        holds(found.pointer == "/limit", f"pointer is {found.pointer}")

    def foreign_cursor() -> None:
        cursor = client.call(admin, "sessions_list", limit=LIMIT).parsed.next_cursor
        holds(isinstance(cursor, str), "the first page has no cursor")
        answer = client.call(admin, "sessions_list", limit=LIMIT, cursor=cursor, resource="orders-api")
        found = problem(answer, 400, "invalid-request")
        holds(found.pointer == "/cursor", f"pointer is {found.pointer}")

    def denied() -> None:
        found = problem(client.request("agent:stranger"), 403, "denied")
        typed(found.decision, {"id": UUID, "outcome": models.Outcome, "generation": str})
        holds(found.decision.outcome is models.Outcome.DENY, f"outcome is {found.decision.outcome}")
        typed(found.receipt, {"index": int, "tree_size": int, "checkpoint": str, "leaf": str})

    check("problem: a limit out of range names its parameter", limit)
    check("problem: a cursor of another filter is refused", foreign_cursor)
    check("problem: an invalid token is not accepted",
          lambda: problem(client.call("nonsense", "sessions_list"), 401, "attestation-failed"))
    check("problem: an unknown session is not found",
          lambda: problem(client.call(admin, "sessions_show", uuid4()), 404, "not-found"))
    check("problem: a refusal has its decision and receipt", denied)


def check_generator(document: dict, directory: Path) -> bool:
    """Whether the generator made the client. Also checks that this run would detect a warning."""

    def made() -> bool:
        ended = generate(document, directory, PACKAGE)
        holds(ended.returncode == 0, f"{ended.stdout}{ended.stderr}")
        return True

    def detected() -> None:
        altered = copy.deepcopy(document)
        content = altered["paths"]["/v1/sessions"]["get"]["responses"]["200"]["content"]
        content["application/unknown"] = content.pop("application/json")
        ended = generate(altered, directory, "faulty")
        holds(ended.returncode != 0, "a document with an unknown media type was accepted")
        holds("GET /v1/sessions" in ended.stdout + ended.stderr, "the warning does not name the operation")

    client = check("generator: it makes a client without a warning", made)
    check("generator: a warning fails the run", detected)
    return bool(client)


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="taskpass-generated-") as directory:
        sys.path.insert(0, directory)
        process, dev = start(os.path.abspath(sys.argv[1]), directory)
        try:
            if check_generator(get(f"{dev['url'].rstrip('/')}/openapi.json"), Path(directory)):
                client = Generated(dev)
                ids = check("sessions: the generated client requests them", lambda: issue(client))
                if ids:
                    check_listings(client, ids)
                check_problems(client)
        finally:
            process.terminate()
            process.wait(timeout=30)
    print(f"generated: {len(passed)} passed, {len(failed)} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
