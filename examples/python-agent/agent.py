#!/usr/bin/env python3
"""An agent that does one task with one credential.

It opens a task, requests a credential, uses it, sends heartbeats while it works,
and completes the task. After any failure it aborts the task. If the agent is
killed, the task expires because the heartbeats stop. The agent needs only
Python's standard library.

    TASKPASS_URL      the broker
    TASKPASS_ATTEST   a command that prints a fresh attestation each time
    ORDERS_URL        the API to read from
    HEARTBEAT         the longest time between two heartbeats, in seconds [30]

Exit codes: 0 done, 1 refused or ended by the broker, 3 a server cannot be reached.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
import urllib.error
import urllib.request

HEARTBEAT_SECONDS = int(os.environ.get("HEARTBEAT", "30"))


class Refused(Exception):
    """The broker refused. The message has the request that it would permit."""


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would send the token to another server."""

    def redirect_request(self, *_):
        return None


OPENER = urllib.request.build_opener(NoRedirects)


def call(url, authorization, body=None):
    """Sends one request with JSON and returns the answer."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": authorization, "Content-Type": "application/json"}
    request = urllib.request.Request(url, data=data, headers=headers)
    with OPENER.open(request, timeout=60) as answer:
        return json.load(answer)


class Task:
    """An open task at the broker, and the right to act for it."""

    def __init__(self, broker, kind, purpose):
        self.broker = broker.rstrip("/")
        self.over = threading.Event()
        self._done = threading.Event()
        new = {"type": kind, "purpose": purpose, "heartbeat_seconds": HEARTBEAT_SECONDS}
        opened = self._ask("/v1/tasks", "Bearer " + attestation(), new)
        self.id = opened["task"]["id"]
        self._handle = opened["task"]["handle"]

    def __enter__(self):
        threading.Thread(target=self._keep, daemon=True).start()
        return self

    def __exit__(self, failure, *_):
        self._done.set()
        how = "complete" if failure is None else "abort"
        # A task that has ended already cannot be ended again; that is no failure.
        with contextlib.suppress(Refused, OSError):
            self._act(how)

    def credential(self, resource, *actions):
        """A credential for this task. Each attestation can be used for one request."""
        wanted = {
            "task": {"id": self.id, "handle": self._handle},
            "resource": resource,
            "authorization_details": [{"type": "api", "actions": list(actions)}],
        }
        granted = self._ask("/v1/credentials", "Bearer " + attestation(), wanted)
        return granted["credential"]["access_token"]

    def _keep(self):
        """Sends heartbeats. Stops after a refusal, but not while the broker cannot be reached."""
        while not self._done.wait(HEARTBEAT_SECONDS / 3):
            try:
                sessions = self._act("heartbeat")["sessions"]
            except Refused:
                sessions = [{"end_reason": "the task has ended"}]
            except OSError:
                continue
            # A session that only expired does not end the task.
            if any(session["end_reason"] not in (None, "expired") for session in sessions):
                self.over.set()
                return

    def _act(self, what):
        return self._ask(f"/v1/tasks/{self.id}/{what}", "Handle " + self._handle, {})

    def _ask(self, path, authorization, body):
        try:
            return call(self.broker + path, authorization, body)
        except urllib.error.HTTPError as error:
            if error.code >= 500 or error.code == 429:
                raise
            problem = json.load(error)
            # The proof of the refusal is long, and of no use in this message.
            problem.pop("receipt", None)
            raise Refused(json.dumps(problem, indent=2)) from None


def attestation():
    """A fresh attestation from the platform."""
    command = os.environ["TASKPASS_ATTEST"]
    printed = subprocess.run(command, shell=True, check=True, stdout=subprocess.PIPE, text=True)
    return printed.stdout.strip()


def main():
    orders = os.environ["ORDERS_URL"]
    with Task(os.environ["TASKPASS_URL"], "nightly-report", "monthly numbers for finance") as task:
        token = task.credential("orders-api", *sys.argv[1:] or ["orders:read"])
        # The work continues page by page, and stops when the task has ended.
        page, total = orders, 0
        while page:
            if task.over.is_set():
                raise Refused("the task ended during the work")
            answer = call(page, "Bearer " + token)
            total += sum(order["amount"] for order in answer["orders"])
            page = answer.get("next")
    print(f"orders: {total}")


if __name__ == "__main__":
    try:
        main()
    except Refused as refusal:
        sys.exit(f"refused: {refusal}")
    except (OSError, subprocess.CalledProcessError) as failure:
        print(f"failed: {failure}", file=sys.stderr)
        sys.exit(3)
