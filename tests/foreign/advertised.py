"""OAuth as the metadata advertises it, with Authlib or requests-oauthlib, as the first argument says. The
file `given` holds the broker's address and the client's credentials. Each line of the output is a row of
the table in docs/reference/standards.md: library, flow, result.
"""

from __future__ import annotations

import json
import os
import sys
import time
import uuid
from pathlib import Path
from urllib.parse import urlsplit

os.environ["AUTHLIB_INSECURE_TRANSPORT"] = os.environ["OAUTHLIB_INSECURE_TRANSPORT"] = "1"

import requests
from joserfc import jwt
from joserfc.jwk import ECKey

EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
JWT = "urn:ietf:params:oauth:token-type:jwt"
JWT_BEARER = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

given = json.loads(Path("given").read_text())
metadata = requests.get(f"{given['issuer']}/.well-known/oauth-authorization-server", timeout=10).json()
asked = {"resource": given["audience"], "scope": "orders:read", "task_type": "job"}
library = sys.argv[1]


def attestation() -> str:
    """Each attestation can be used only once."""
    return given["attestations"].pop(0)


def row(flow: str, result: str) -> None:
    print(f"{library} | {flow} | {result}", flush=True)


def advertises(endpoint: str, method: str) -> None:
    assert method in metadata[f"{endpoint}_endpoint_auth_methods_supported"], (endpoint, method)


def subject() -> dict:
    return {"subject_token": attestation(), "subject_token_type": JWT}


def by_authlib() -> None:
    from authlib.integrations.requests_client import OAuth2Session
    from authlib.oauth2.rfc7523 import PrivateKeyJWT

    def named() -> OAuth2Session:
        session = OAuth2Session(
            given["client"],
            ECKey.import_key(given["key"]),
            token_endpoint_auth_method="private_key_jwt",
            revocation_endpoint_auth_method="private_key_jwt",
        )
        # RFC 7523bis: the issuer is the audience, and the assertion has a type. It expires soon.
        claims, header = {"exp": int(time.time()) + 60}, {"typ": "client-authentication+jwt"}
        session.register_client_auth_method(PrivateKeyJWT(given["issuer"], claims, header, "ES256"))
        return session

    advertises("token", "none")
    anyone = OAuth2Session(given["client"], token_endpoint_auth_method="none")
    form = {**asked, **subject()}
    granted = anyone.fetch_token(metadata["token_endpoint"], grant_type=EXCHANGE, **form)
    assert granted["token_type"] == "Bearer", granted
    row("token exchange, `none`", "a token")
    advertises("token", "private_key_jwt")
    own = named().fetch_token(metadata["token_endpoint"], grant_type="client_credentials", **asked)
    row("client credentials, `private_key_jwt`", "a token")
    advertises("introspection", "private_key_jwt")
    answer = named().introspect_token(metadata["introspection_endpoint"], token=own["access_token"])
    assert (answer.status_code, answer.json()) == (200, {"active": False}), answer.text
    row("introspection, `private_key_jwt`", "`active` as policy lets the caller know")
    advertises("revocation", "private_key_jwt")
    answer = named().revoke_token(metadata["revocation_endpoint"], token=own["access_token"])
    assert answer.status_code == 200, answer.text
    row("revocation, `private_key_jwt`", "revoked")


def by_requests_oauthlib() -> None:
    from oauthlib.oauth2 import BackendApplicationClient
    from requests_oauthlib import OAuth2Session

    class Exchange(BackendApplicationClient):
        grant_type = EXCHANGE

    def assertion() -> dict:
        now = int(time.time())
        claims = {
            "iss": given["client"], "sub": given["client"], "aud": given["issuer"],
            "jti": str(uuid.uuid4()), "iat": now, "exp": now + 60,
        }
        header = {"alg": "ES256", "typ": "client-authentication+jwt", "kid": given["kid"]}
        signed = jwt.encode(header, claims, ECKey.import_key(given["key"]))
        return {"client_assertion_type": JWT_BEARER, "client_assertion": signed}

    def fetch(kind: type, more: dict) -> dict:
        session = OAuth2Session(client=kind(given["client"]))
        form = {**asked, **more}
        form.pop("scope")
        session.scope = asked["scope"]
        return session.fetch_token(
            metadata["token_endpoint"], include_client_id=True, scope=asked["scope"], **form
        )

    def bearing(token: str) -> OAuth2Session:
        return OAuth2Session(given["client"], token={"access_token": token, "token_type": "Bearer"})

    advertises("token", "none")
    granted = fetch(Exchange, subject())
    assert granted["token_type"] == "Bearer", granted
    row("token exchange, `none`", "a token")
    advertises("token", "private_key_jwt")
    own = fetch(BackendApplicationClient, assertion())
    row("client credentials, `private_key_jwt`", "a token")
    advertises("introspection", "Bearer")
    form = {"token": granted["access_token"]}
    answer = bearing(given["admin"]).post(metadata["introspection_endpoint"], data=form)
    assert answer.json()["active"] is True, answer.text
    row("introspection, `Bearer`", "`active: true`, to an administrator")
    advertises("introspection", "private_key_jwt")
    form = {"token": own["access_token"], **assertion()}
    answer = requests.post(metadata["introspection_endpoint"], data=form, timeout=10)
    assert (answer.status_code, answer.json()) == (200, {"active": False}), answer.text
    advertises("revocation", "Bearer")
    answer = bearing(attestation()).post(
        metadata["revocation_endpoint"], data={"token": granted["access_token"]}
    )
    assert answer.status_code == 200, answer.text
    row("revocation, `Bearer`", "revoked")
    answer = bearing(given["admin"]).post(
        metadata["introspection_endpoint"], data={"token": granted["access_token"]}
    )
    assert answer.json() == {"active": False}, answer.text
    row("introspection after revocation", "`active: false`")


if __name__ == "__main__":
    assert urlsplit(metadata["issuer"]).hostname == "127.0.0.1"
    {"Authlib": by_authlib, "requests-oauthlib": by_requests_oauthlib}[library]()
