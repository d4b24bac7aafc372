"""Verifies a running broker's output with third-party libraries.

    verify.py BINARY     starts `BINARY dev` and ends it; exits 0 if all checks pass
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace

# Plain HTTP is acceptable only here, because `taskpass dev` listens only on loopback.
os.environ["AUTHLIB_INSECURE_TRANSPORT"] = "1"

import jwt as pyjwt
from authlib.oauth2 import OAuth2Error
from authlib.oauth2.rfc8414 import AuthorizationServerMetadata, get_well_known_url
from authlib.oauth2.rfc9068 import JWTBearerTokenValidator
from authlib.oidc.discovery import OpenIDProviderMetadata
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from joserfc.errors import ExpiredTokenError
from joserfc.jwk import KeySet
from joserfc.jwt import JWTClaimsRegistry
from sigstore._internal.merkle import verify_merkle_inclusion
from sigstore._internal.rekor.checkpoint import SignedCheckpoint
from sigstore._internal.trust import Keyring
from sigstore._utils import KeyID
from sigstore.errors import VerificationError
from sigstore_models.common.v1 import PublicKey, PublicKeyDetails

AUDIENCE = "https://orders.example"
LOCATION = "https://orders.example/v1"
START_SECONDS = 60
HTTP_SECONDS = 10

passed: list[str] = []
failed: list[str] = []


def check(name: str, act: Callable[[], object]) -> object:
    """Runs one check. Returns its result, or None after a failure."""
    try:
        result = act()
    except Exception as error:  # any exception of a library fails the check
        failed.append(name)
        print(f"FAILED  {name}\n        {type(error).__name__}: {error}")
        return None
    passed.append(name)
    print(f"ok      {name}")
    return result


def refused(name: str, act: Callable[[], object], *errors: type[Exception]) -> None:
    """Checks that `act` raises one of `errors`, which mean refusal."""

    def inner() -> None:
        try:
            act()
        except errors:
            return
        raise AssertionError("was accepted")

    check(name, inner)


def holds(condition: object, what: str) -> None:
    if not condition:
        raise AssertionError(what)


# --- HTTP --------------------------------------------------------------------

NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def call(method: str, url: str, body: object = None, token: str | None = None) -> tuple[int, dict]:
    headers = {"Accept": "application/json"}
    data = None
    if body is not None:
        data = json.dumps(body).encode()
        headers["Content-Type"] = "application/json"
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    request = urllib.request.Request(url, data=data, headers=headers, method=method)
    try:
        with NO_PROXY.open(request, timeout=HTTP_SECONDS) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"{}")


def get(url: str, token: str | None = None) -> dict:
    status, body = call("GET", url, token=token)
    holds(status == 200, f"GET {url} answered {status}: {body}")
    return body


# --- The broker --------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running(binary: str, environment: dict[str, str] | None = None) -> Iterator[dict]:
    """A development broker on a free port, whose data are removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="taskpass-foreign-") as scratch:
        command = [
            os.path.abspath(binary), "dev", "--no-story", "--json",
            "--listen", f"127.0.0.1:{free_port()}", "--data-dir", os.path.join(scratch, "data"),
        ]
        with open(os.path.join(scratch, "log"), "w+b") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, cwd=scratch,
                env={**os.environ, **(environment or {})},
            )
            # A broker that prints nothing must not block the run.
            watchdog = threading.Timer(START_SECONDS, process.kill)
            watchdog.start()
            try:
                line = process.stdout.readline()
                watchdog.cancel()
                # Keep reading: a full pipe would block the broker.
                threading.Thread(target=process.stdout.read, daemon=True).start()
                if not line.startswith(b"{"):
                    log.seek(0)
                    raise SystemExit(f"{command[0]} dev did not start: {line!r}\n{log.read().decode(errors='replace')}")
                yield json.loads(line)
            finally:
                watchdog.cancel()
                process.terminate()
                try:
                    process.wait(timeout=20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def ask(dev: dict, subject: str) -> tuple[int, dict]:
    """Gets an attestation and requests a credential with it."""
    status, attested = call("POST", f"{dev['issuer'].rstrip('/')}/token", {"sub": subject})
    holds(status == 200, f"the development issuer answered {status}: {attested}")
    return call(
        "POST",
        f"{dev['url'].rstrip('/')}/v1/credentials",
        {
            "task": {"type": "nightly-report", "purpose": "verified by foreign clients", "deadline_seconds": 600},
            "resource": "orders-api",
            "authorization_details": [{"type": "api", "actions": ["orders:read"], "locations": [LOCATION]}],
            "ttl_seconds": 300,
        },
        token=attested["token"],
    )


def grant(dev: dict) -> dict:
    status, body = ask(dev, "agent:reports")
    holds(status == 201, f"expected 201, got {status}: {body}")
    return body


def refusal(dev: dict) -> dict:
    status, body = ask(dev, "agent:nobody")
    holds(status == 403, f"expected 403, got {status}: {body}")
    holds(body.get("type") == "urn:taskpass:problem:denied", f"type is {body.get('type')}")
    holds("credential" not in body, "a refusal carries a credential")
    return body


# --- Tokens ------------------------------------------------------------------


def b64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def b64url_bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def flipped(data: bytes, at: int = 0) -> bytes:
    altered = bytearray(data)
    altered[at] ^= 1
    return bytes(altered)


def accepted(metadata) -> None:
    """Validates every member with Authlib. Exception: a server without grant types needs no token
    endpoint, which Authlib would require."""
    for key in metadata.REGISTRY_KEYS:
        unused = key == "token_endpoint" and metadata.get("grant_types_supported") == []
        if not unused or key in metadata:
            getattr(metadata, f"validate_{key}")()


def discover(url: str) -> dict:
    """OpenID discovery: the document must name the issuer under which it is found."""
    first = get(f"{url.rstrip('/')}/.well-known/openid-configuration")
    metadata = OpenIDProviderMetadata(get(f"{first['issuer'].rstrip('/')}/.well-known/openid-configuration"))
    holds(metadata["issuer"] == first["issuer"], "the issuer is not the one it was found under")
    accepted(metadata)
    return metadata


def server_metadata(issuer: str) -> None:
    metadata = AuthorizationServerMetadata(get(get_well_known_url(issuer, external=True)))
    holds(metadata["issuer"] == issuer, "the issuer is not the one it was found under")
    accepted(metadata)


class Validator(JWTBearerTokenValidator):
    """Authlib's RFC 9068 validator on a fetched key set."""

    def __init__(self, issuer: str, audience: str, jwks: dict):
        super().__init__(issuer=issuer, resource_server=audience)
        self.jwks = KeySet.import_key_set(jwks)

    def get_jwks(self) -> KeySet:
        return self.jwks


def by_authlib(token: str, issuer: str, jwks: dict, audience: str = AUDIENCE, scope: str = "orders:read") -> dict:
    validator = Validator(issuer, audience, jwks)
    claims = validator.authenticate_token(token)
    validator.validate_token(claims, [scope], None)
    return dict(claims)


def by_pyjwt(token: str, issuer: str, keys: pyjwt.PyJWKClient, audience: str = AUDIENCE) -> dict:
    holds(pyjwt.get_unverified_header(token).get("typ") == "at+jwt", "typ is not at+jwt")
    return pyjwt.decode(
        token,
        keys.get_signing_key_from_jwt(token).key,
        algorithms=["ES256", "EdDSA", "RS256"],
        issuer=issuer,
        audience=audience,
        options={"require": ["iss", "sub", "aud", "client_id", "iat", "exp", "jti"]},
    )


def check_token(body: dict, issuer: str, jwks_uri: str) -> None:
    token = body["credential"]["access_token"]
    jwks = get(jwks_uri)
    keys = pyjwt.PyJWKClient(jwks_uri, timeout=HTTP_SECONDS)
    not_valid = (OAuth2Error, pyjwt.InvalidTokenError, pyjwt.PyJWKClientError, ValueError, AssertionError)

    def public_only() -> None:
        private = {"d", "p", "q", "dp", "dq", "qi", "k"}
        holds(jwks["keys"], "no keys")
        for key in jwks["keys"]:
            holds(not private & set(key), f"{key.get('kid')} has private parts")

    check("jwks: public keys only", public_only)
    claims = check("token: Authlib accepts it as RFC 9068", lambda: by_authlib(token, issuer, jwks))
    check("token: PyJWT accepts it through the JWKS", lambda: by_pyjwt(token, issuer, keys))
    if not claims:
        return

    def agrees() -> None:
        session, credential = body["session"], body["credential"]
        holds(claims["aud"] in (AUDIENCE, [AUDIENCE]), f"aud is {claims['aud']}")
        holds(claims["jti"] == session["id"] == claims["sid"], "jti, sid and the session differ")
        holds(claims["task"] == body["task"]["id"] == session["task_id"], "task differs")
        holds(claims["authorization_details"] == session["authorization_details"], "grant differs")
        holds(claims["exp"] - claims["iat"] <= 300, "expires later than requested")
        holds(0 < credential["expires_in"] <= 300, f"expires_in is {credential['expires_in']}")
        holds(claims["iat"] <= time.time() + 1 < claims["exp"], "is not valid now")

    check("token: its claims match the answer", agrees)
    check(
        "token: dec is the hash of the decision's leaf",
        lambda: holds(b64url_bytes(claims["dec"]) == base64.b64decode(body["receipt"]["leaf_hash"]), "differs"),
    )

    header, payload, signature = token.split(".")
    wider = {**claims, "scope": "orders:read orders:write"}
    longer = {**claims, "exp": claims["exp"] + 3600}
    for what, altered in {
        "a wider scope": ".".join([header, b64url(json.dumps(wider).encode()), signature]),
        "a later expiry": ".".join([header, b64url(json.dumps(longer).encode()), signature]),
        "an altered signature": ".".join([header, payload, b64url(flipped(b64url_bytes(signature), 7))]),
        "no signature": ".".join([header, payload, ""]),
        "alg none": ".".join([b64url(b'{"alg":"none","typ":"at+jwt"}'), payload, ""]),
    }.items():
        refused(f"token: Authlib refuses {what}", lambda t=altered: by_authlib(t, issuer, jwks), *not_valid)
        refused(f"token: PyJWT refuses {what}", lambda t=altered: by_pyjwt(t, issuer, keys), *not_valid)
    refused("token: Authlib refuses it for another audience",
            lambda: by_authlib(token, issuer, jwks, audience="https://other.example"), *not_valid)
    refused("token: PyJWT refuses it for another audience",
            lambda: by_pyjwt(token, issuer, keys, audience="https://other.example"), *not_valid)
    refused("token: PyJWT refuses it from another issuer",
            lambda: by_pyjwt(token, issuer + "/other", keys), *not_valid)
    refused("token: Authlib refuses it for a scope not granted",
            lambda: by_authlib(token, issuer, jwks, scope="orders:write"), *not_valid)
    # joserfc, which Authlib uses, takes the time as a parameter.
    refused("token: joserfc refuses it at its expiry",
            lambda: JWTClaimsRegistry(now=claims["exp"], exp={"essential": True}).validate(claims), ExpiredTokenError)


# --- The ledger --------------------------------------------------------------


class LogKey:
    """A signed-note verifier key: `name+hash+base64(type ‖ key)`."""

    def __init__(self, vkey: str):
        self.name, hint, encoded = vkey.split("+", 2)
        typed = base64.b64decode(encoded, validate=True)
        holds(typed[0] == 1 and len(typed) == 33, "not an Ed25519 key")
        digest = hashlib.sha256(self.name.encode() + b"\n" + typed).digest()
        holds(digest[:4].hex() == hint, "the key's hash does not belong to it")
        self.id = digest[:4]
        key = Ed25519PublicKey.from_public_bytes(typed[1:])
        spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        # Sigstore's message type for a trusted key, and its key ring.
        self.ring = Keyring([
            PublicKey(raw_bytes=base64.b64encode(spki), key_details=PublicKeyDetails.PKIX_ED25519)
        ])


def verified_checkpoint(text: str, keys: list[LogKey]) -> tuple[str, int, bytes]:
    """The origin, size and root of a checkpoint, after verifying its signature by a key of the log."""
    signed = SignedCheckpoint.from_text(text)
    key = next((key for key in keys if key.name == signed.checkpoint.origin), None)
    holds(key, f"no key for origin {signed.checkpoint.origin}")
    holds(signed.checkpoint.log_size >= 0, "negative size")
    error: Exception | None = None
    for key in (key for key in keys if key.name == signed.checkpoint.origin):
        try:
            signed.signed_note.verify(key.ring, KeyID(key.id))
            return signed.checkpoint.origin, signed.checkpoint.log_size, bytes.fromhex(signed.checkpoint.log_hash)
        except VerificationError as refusal:
            error = refusal
    raise error or VerificationError("no key matches")


def verified_receipt(receipt: dict, keys: list[LogKey]) -> bytes:
    """The leaf of a receipt, after verifying its inclusion with sigstore."""
    leaf = base64.b64decode(receipt["leaf"], validate=True)
    origin, size, root = verified_checkpoint(receipt["checkpoint"], keys)
    holds(size == receipt["tree_size"], "the checkpoint has another size")
    # Sigstore does not check that the index is in the tree.
    holds(0 <= receipt["index"] < size, "the index is not in the tree")
    proof = SimpleNamespace(
        log_index=receipt["index"],
        tree_size=size,
        root_hash=root,
        hashes=[base64.b64decode(node, validate=True) for node in receipt["inclusion_proof"]],
    )
    verify_merkle_inclusion(SimpleNamespace(_inner=SimpleNamespace(inclusion_proof=proof, canonicalized_body=leaf)))
    leaf_hash = hashlib.sha256(b"\x00" + leaf).digest()
    holds(base64.b64decode(receipt["leaf_hash"]) == leaf_hash, "leaf_hash does not match the leaf")
    holds(json.loads(leaf)["origin"] == origin, "the leaf belongs to another log")
    return leaf


def receipt_tampering(receipt: dict) -> Iterator[tuple[str, dict]]:
    """Receipts with one alteration each, which must not verify."""

    def b64(data: bytes) -> str:
        return base64.b64encode(data).decode()

    leaf = base64.b64decode(receipt["leaf"])
    altered = flipped(leaf, len(leaf) // 2)
    consistent_hash = b64(hashlib.sha256(b"\x00" + altered).digest())
    yield "an altered leaf", {**receipt, "leaf": b64(altered), "leaf_hash": consistent_hash}
    for at, node in enumerate(receipt["inclusion_proof"]):
        proof = list(receipt["inclusion_proof"])
        proof[at] = b64(flipped(base64.b64decode(node), 31))
        yield f"an altered proof hash {at}", {**receipt, "inclusion_proof": proof}
    if receipt["inclusion_proof"]:
        yield "a shortened proof", {**receipt, "inclusion_proof": receipt["inclusion_proof"][:-1]}
    yield "a lengthened proof", {**receipt, "inclusion_proof": [*receipt["inclusion_proof"], b64(bytes(32))]}
    yield "another index", {**receipt, "index": receipt["index"] ^ 1}
    yield "an index beyond the tree", {**receipt, "index": receipt["index"] + receipt["tree_size"]}

    origin, size, root, *rest = receipt["checkpoint"].split("\n")
    bigger = "\n".join([origin, str(int(size) + 1), root, *rest])
    yield "a checkpoint of another size", {**receipt, "checkpoint": bigger, "tree_size": receipt["tree_size"] + 1}
    other_root = "\n".join([origin, size, b64(flipped(base64.b64decode(root))), *rest])
    yield "a checkpoint with another root", {**receipt, "checkpoint": other_root}
    note, signature = receipt["checkpoint"].rstrip("\n").rsplit(" ", 1)
    forged = b64(flipped(base64.b64decode(signature), 20))
    yield "a checkpoint with a forged signature", {**receipt, "checkpoint": f"{note} {forged}\n"}
    unsigned = receipt["checkpoint"].split("\n\n")[0] + "\n\n"
    yield "a checkpoint without a signature", {**receipt, "checkpoint": unsigned}


def check_receipt(name: str, receipt: dict, keys: list[LogKey], mentions: str) -> None:
    leaf = check(f"{name}: sigstore accepts the checkpoint and the inclusion proof",
                 lambda: verified_receipt(receipt, keys))
    if leaf is None:
        return
    check(f"{name}: the leaf names the decision's subject", lambda: holds(mentions in leaf.decode(), f"{mentions} is not in it"))
    for what, altered in receipt_tampering(receipt):
        refused(f"{name}: refused with {what}", lambda r=altered: verified_receipt(r, keys),
                VerificationError, AssertionError, ValueError)
    other = LogKey(forged_vkey(keys[0].name))
    refused(f"{name}: refused by another key of the same name", lambda: verified_receipt(receipt, [other]), VerificationError)


def forged_vkey(name: str) -> str:
    typed = b"\x01" + Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    hint = hashlib.sha256(name.encode() + b"\n" + typed).digest()[:4].hex()
    return f"{name}+{hint}+{base64.b64encode(typed).decode()}"


def check_ledger(dev: dict, granted: list[dict], denied: dict) -> None:
    url, admin = dev["url"].rstrip("/"), dev["admin_token"]
    keys = check("ledger: its verifier keys are well formed",
                 lambda: [LogKey(vkey) for vkey in get(f"{url}/v1/ledger/keys", admin)["vkeys"]])
    if not keys:
        return
    for number, body in enumerate(granted):
        check_receipt(f"receipt {number}", body["receipt"], keys, body["session"]["id"])
    check_receipt("receipt of a refusal", denied["receipt"], keys, denied["decision"]["id"])

    def all_of_one_log() -> None:
        receipts = [body["receipt"] for body in [*granted, denied]]
        roots = {}
        for receipt in receipts:
            _, size, root = verified_checkpoint(receipt["checkpoint"], keys)
            holds(roots.setdefault(size, root) == root, f"two roots at size {size}")
        indexes = [receipt["index"] for receipt in receipts]
        holds(len(set(indexes)) == len(indexes), "two leaves at one index")

    check("ledger: one root for each size, one leaf for each index", all_of_one_log)

    # The log only grows: leaves proven earlier are still in the latest tree.
    def still_there() -> None:
        receipts = [body["receipt"] for body in [*granted, denied]]
        latest = max(receipts, key=lambda receipt: receipt["tree_size"])
        for receipt in receipts:
            entry = f"{url}/v1/ledger/entries/{receipt['index']}"
            proof = get(f"{entry}/proof?tree_size={latest['tree_size']}", admin)["inclusion_proof"]
            later = {key: latest[key] for key in ("tree_size", "checkpoint")}
            verified_receipt({**receipt, **later, "inclusion_proof": proof}, keys)

    check("ledger: every leaf is still in the latest tree", still_there)


# --- All of it ---------------------------------------------------------------


def verify(dev: dict) -> None:
    metadata = check("discovery: Authlib accepts the OpenID configuration", lambda: discover(dev["url"]))
    if metadata:
        check("discovery: Authlib accepts the authorization server's metadata", lambda: server_metadata(metadata["issuer"]))

    # One request alone, then several at once, so that the proofs have different shapes.
    def several() -> list[dict]:
        with ThreadPoolExecutor(max_workers=6) as pool:
            return [grant(dev), *pool.map(lambda _: grant(dev), range(6)), grant(dev)]

    granted = check("broker: grants a request that policy permits", several)
    denied = check("broker: refuses a request that policy does not permit, with a receipt", lambda: refusal(dev))
    if granted and metadata:
        check_token(granted[0], metadata["issuer"], metadata["jwks_uri"])
    if granted and denied:
        check_ledger(dev, granted, denied)


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    with running(sys.argv[1]) as dev:
        verify(dev)
    print(f"\nforeign: {len(passed)} passed, {len(failed)} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
