#!/usr/bin/env python3
"""A fake broker for testing the third-party verification: it decides and stores nothing.

It answers the few requests of verify.py in the broker's format, with the one
fault that FAKE_FAULT names.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import sys
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jwt as pyjwt
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

FAULT = os.environ.get("FAKE_FAULT", "")
ORIGIN = "dev.taskpass.example/log"
LOCK = threading.Lock()

log_key = Ed25519PrivateKey.generate()
token_key = ec.generate_private_key(ec.SECP256R1())
other_key = ec.generate_private_key(ec.SECP256R1())
leaves: list[bytes] = [json.dumps({"v": 2, "origin": ORIGIN, "event": "genesis"}).encode()]


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def split(size: int) -> int:
    """The largest power of two below `size`."""
    return 1 << (size - 1).bit_length() - 1


def root(items: list[bytes]) -> bytes:
    if len(items) == 1:
        return sha256(b"\x00" + items[0])
    half = split(len(items))
    return sha256(b"\x01" + root(items[:half]) + root(items[half:]))


def path(index: int, items: list[bytes]) -> list[bytes]:
    if len(items) == 1:
        return []
    half = split(len(items))
    if index < half:
        return [*path(index, items[:half]), root(items[half:])]
    return [*path(index - half, items[half:]), root(items[:half])]


def typed_key() -> bytes:
    return b"\x01" + log_key.public_key().public_bytes_raw()


def key_id() -> bytes:
    return sha256(ORIGIN.encode() + b"\n" + typed_key())[:4]


def forked(items: list[bytes]) -> list[bytes]:
    """The same log with another first grant."""
    return [items[0], b"another grant", *items[2:]]


def append(event: dict) -> dict:
    leaf = json.dumps({"v": 2, "origin": "another log" if FAULT == "leaf-origin" else ORIGIN, **event}).encode()
    with LOCK:
        leaves.append(leaf)
        items = list(leaves)
    index = len(items) - 1
    top = root(items)
    if FAULT == "fork" and len(items) > 4:
        items = forked(items)
        top = root(items)
    proof = path(index, items)
    if FAULT == "proof":
        proof = [sha256(node) for node in proof]
    text = f"{ORIGIN}\n{len(items)}\n{b64(top if FAULT != 'root' else sha256(top))}\n"
    signature = log_key.sign(text.encode() if FAULT != "note" else text.encode() + b"\n")
    return {
        "leaf": b64(leaf),
        "leaf_hash": b64(sha256((b"\x00" if FAULT != "leaf-hash" else b"") + leaf)),
        "index": index if FAULT != "index" else 0,
        "tree_size": len(items),
        "inclusion_proof": [b64(node) for node in proof],
        "checkpoint": f"{text}\n\u2014 {ORIGIN} {b64(key_id() + signature)}\n",
    }


def credential(url: str, asked: dict) -> tuple[int, dict]:
    session, task, decision = (str(uuid.uuid4()) for _ in range(3))
    logged = str(uuid.uuid4()) if FAULT == "leaf-session" else session
    receipt = append({"event": "decision", "decision": decision, "outcome": "permit", "session": logged})
    now = int(time.time())
    leaf_hash = base64.b64decode(receipt["leaf_hash"])
    claims = {
        "iss": url if FAULT != "token-issuer" else url + "/elsewhere",
        "sub": "dev:agent%3Areports",
        "aud": "https://orders.example" if FAULT != "audience" else "https://other.example",
        "client_id": "dev:agent%3Areports",
        "iat": now,
        "exp": now + (300 if FAULT != "long-life" else 86400),
        "jti": session if FAULT != "jti" else str(uuid.uuid4()),
        "scope": "orders:read" if FAULT != "scope" else "orders:write",
        "authorization_details": asked["authorization_details"],
        "task": task,
        "sid": session,
        "dec": base64.urlsafe_b64encode(sha256(leaf_hash) if FAULT == "dec" else leaf_hash).rstrip(b"=").decode(),
    }
    if FAULT == "no-expiry":
        del claims["exp"]
    headers = {"kid": "one", "typ": "at+jwt" if FAULT != "typ" else "JWT"}
    token = pyjwt.encode(claims, token_key if FAULT != "signature" else other_key, algorithm="ES256", headers=headers)
    return 201, {
        "credential": {"type": "jwt", "access_token": token, "token_type": "Bearer", "expires_in": 300},
        "session": {"id": session, "state": "active", "task_id": task, "authorization_details": asked["authorization_details"]},
        "task": {"id": task, "state": "open"},
        "decision": {"id": decision, "outcome": "permit"},
        "receipt": receipt,
    }


def refusal() -> tuple[int, dict]:
    decision = str(uuid.uuid4())
    receipt = append({"event": "decision", "decision": decision, "outcome": "deny"})
    problem = {"type": "urn:taskpass:problem:denied", "decision": {"id": decision, "outcome": "deny"}, "receipt": receipt}
    return 403, problem


class Handler(BaseHTTPRequestHandler):
    url = ""

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, body: dict) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        metadata = {
            "issuer": self.url if FAULT != "issuer" else self.url + "/elsewhere",
            "token_endpoint": f"{self.url}/oauth2/token",
            "jwks_uri": f"{self.url}/.well-known/jwks.json",
            "response_types_supported": ["token"],
            "grant_types_supported": ["urn:ietf:params:oauth:grant-type:token-exchange"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256", "RS256"],
        }
        jwk = json.loads(pyjwt.algorithms.ECAlgorithm.to_jwk(
            token_key if FAULT == "private-key" else token_key.public_key()))
        vkey = f"{ORIGIN}+{key_id().hex()}+{b64(typed_key())}"
        answers = {
            "/.well-known/openid-configuration": metadata,
            "/elsewhere/.well-known/openid-configuration": {**metadata, "issuer": self.url},
            "/.well-known/oauth-authorization-server": metadata,
            "/.well-known/jwks.json": {"keys": [{**jwk, "kid": "one", "use": "sig", "alg": "ES256"}]},
            "/v1/ledger/keys": {"vkeys": [vkey]},
        }
        found = answers.get(self.path)
        if self.path.startswith("/v1/ledger/entries/"):
            index = int(self.path.split("/")[4])
            items = leaves[: int(self.path.rpartition("=")[2])]
            items = forked(items) if FAULT == "fork" else items
            found = {"inclusion_proof": [b64(node) for node in path(index, items)]}
        self.answer(200 if found else 404, found or {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/idp/token":
            self.answer(200, {"token": body["sub"]})
        elif self.headers["Authorization"] == "Bearer agent:reports" or FAULT == "permits-all":
            self.answer(*credential(self.url, body))
        else:
            self.answer(*refusal())


def main() -> None:
    host, port = sys.argv[sys.argv.index("--listen") + 1].rsplit(":", 1)
    server = ThreadingHTTPServer((host, int(port)), Handler)
    Handler.url = f"http://{host}:{port}"
    print(json.dumps({"url": Handler.url, "issuer": f"{Handler.url}/idp", "audience": "made-up", "admin_token": "admin"}), flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
