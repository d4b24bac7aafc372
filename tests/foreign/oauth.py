"""OAuth with Authlib, unchanged as published: tokens, introspection, revocation, errors.

The file `given` holds the broker's address and the client's credentials. Each passed check is a line of
the output, and the first failure ends the run.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

os.environ["AUTHLIB_INSECURE_TRANSPORT"] = "1"

import requests
from authlib.integrations.base_client import OAuthError
from authlib.integrations.requests_client import OAuth2Session
from authlib.oauth2.rfc7523 import PrivateKeyJWT
from authlib.oauth2.rfc8414 import AuthorizationServerMetadata, get_well_known_url
from authlib.oauth2.rfc9068 import JWTBearerTokenValidator
from joserfc.jwk import ECKey, KeySet

EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
JWT = "urn:ietf:params:oauth:token-type:jwt"

given = json.loads(Path("given").read_text())
found = requests.get(get_well_known_url(given["issuer"], external=True), timeout=10).json()
metadata = AuthorizationServerMetadata(found)
wanted = {"resource": given["audience"], "scope": "orders:read", "task_type": "job"}


def anyone() -> OAuth2Session:
    return OAuth2Session(given["client"], token_endpoint_auth_method="none")


def exchange(**more: str) -> dict:
    form = {**wanted, "subject_token": given["attestations"].pop(0), "subject_token_type": JWT, **more}
    return anyone().fetch_token(metadata["token_endpoint"], grant_type=EXCHANGE, **form)


def credentials(key: str, **claims: object) -> dict:
    session = OAuth2Session(given["client"], ECKey.import_key(key), token_endpoint_auth_method="private_key_jwt")
    # RFC 7523bis: the issuer is the audience, and the assertion has a type. It expires soon.
    claims = {"exp": int(time.time()) + 60, **claims}
    header = {"typ": "client-authentication+jwt"}
    session.register_client_auth_method(PrivateKeyJWT(given["issuer"], claims, header, "ES256"))
    return session.fetch_token(metadata["token_endpoint"], grant_type="client_credentials", **wanted)


def bearer(token: str):
    def authenticate(_auth, _method, uri, headers, body):
        return uri, {**headers, "Authorization": f"Bearer {token}"}, body

    session = OAuth2Session(given["client"], token_endpoint_auth_method="bearer",
                            revocation_endpoint_auth_method="bearer")
    session.register_client_auth_method(("bearer", authenticate))
    return session


def introspect(token: str) -> dict:
    answer = bearer(given["admin"]).introspect_token(metadata["introspection_endpoint"], token=token)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(error: str, how, *args: object, **kwargs: object) -> None:
    try:
        how(*args, **kwargs)
    except OAuthError as refusal:
        assert refusal.error == error, (refusal.error, refusal.description, error)
        return
    raise AssertionError(f"{error} was expected")


class Validator(JWTBearerTokenValidator):
    def get_jwks(self) -> KeySet:
        return KeySet.import_key_set(requests.get(metadata["jwks_uri"], timeout=10).json())


def main() -> None:
    assert metadata["issuer"] == given["issuer"]
    print("discovery finds the endpoints")

    granted = exchange()
    assert (granted["token_type"], granted["scope"]) == ("Bearer", "orders:read"), granted
    validator = Validator(issuer=given["issuer"], resource_server=given["audience"])
    claims = validator.authenticate_token(granted["access_token"])
    validator.validate_token(claims, ["orders:read"], None)
    assert claims["client_id"] == "dev:agent%3Areports"
    print("an attestation is exchanged for a token that verifies by the published keys")

    own = credentials(given["key"])
    assert validator.authenticate_token(own["access_token"])["client_id"] == f"workload:{given['client']}"
    print("a registered key authenticates its client")

    token = granted["access_token"]
    assert introspect(token)["active"] is True
    answer = bearer(given["stranger"]).revoke_token(metadata["revocation_endpoint"], token=token)
    assert (answer.status_code, answer.json()["error"]) == (400, "unauthorized_client"), answer.text
    answer = bearer(given["attestations"].pop(0)).revoke_token(metadata["revocation_endpoint"], token=token)
    assert answer.status_code == 200, answer.text
    assert introspect(token) == {"active": False}
    assert introspect(own["access_token"])["active"] is True
    print("introspection reports a token as active until it is revoked")

    refused("invalid_request", exchange, subject_token=given["for_another"])
    refused("invalid_request", exchange, subject_token=given["used"])
    refused("invalid_target", exchange, resource="https://elsewhere.example")
    refused("invalid_scope", exchange, scope="orders:delete")
    refused("invalid_client", credentials, ECKey.generate_key("P-256").as_pem(private=True).decode())
    refused("invalid_client", credentials, given["key"], exp=int(time.time()) - 60)
    refused("invalid_client", credentials, given["key"], aud=metadata["token_endpoint"])
    print("errors have the codes of the standards")


if __name__ == "__main__":
    main()
