"""Tests the third-party verification: correct answers pass, and every fault is detected."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path

import verify

FAULTS = [
    "issuer", "token-issuer", "audience", "signature", "typ", "jti", "scope", "dec", "long-life", "no-expiry",
    "private-key", "permits-all", "leaf-origin", "leaf-session", "leaf-hash", "index", "proof", "root", "note", "fork",
]  # fmt: skip


def findings(fault: str) -> tuple[list[str], list[str], str]:
    """The passed and failed checks against a broker with one fault, and the output."""
    verify.passed.clear()
    verify.failed.clear()
    printed = io.StringIO()
    with verify.running(str(Path(__file__).with_name("fake_broker.py")), {"FAKE_FAULT": fault}) as dev:
        with contextlib.redirect_stdout(printed):
            verify.verify(dev)
    return list(verify.passed), list(verify.failed), printed.getvalue()


def main() -> int:
    # The fake broker is a script that runs in this Python environment.
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    good = bad = 0
    passed, failed, printed = findings("")
    if failed or len(passed) < 100:
        print(printed)
        print(f"FAILED  without a fault: {len(passed)} passed, {len(failed)} failed")
        bad += 1
    else:
        good += 1
    for fault in FAULTS:
        _, failed, _ = findings(fault)
        if failed:
            good += 1
        else:
            bad += 1
            print(f"FAILED  not detected: {fault}")
    print(f"selftest: {good} passed, {bad} failed")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
