// OAuth as the metadata advertises it, with openid-client and with oauth4webapi: every endpoint, with
// every advertised method. The file `given` holds the broker's address and the client's credentials.
// Each line of the output is a row of the table in docs/reference/standards.md: library, flow, result.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import * as oauth from 'oauth4webapi';
import * as client from 'openid-client';

const given = JSON.parse(readFileSync('given', 'utf8'));
const EXCHANGE = 'urn:ietf:params:oauth:grant-type:token-exchange';
const JWT = 'urn:ietf:params:oauth:token-type:jwt';
const insecure = { [oauth.allowInsecureRequests]: true };

// Each attestation can be used only once.
const attestation = () => given.attestations.shift();
const asked = { resource: given.audience, scope: 'orders:read', task_type: 'job' };
const exchange = () => ({ ...asked, subject_token: attestation(), subject_token_type: JWT });

async function row(library, flow, result, how) {
  await how();
  console.log(`${library} | ${flow} | ${result}`);
}

async function imported(pem) {
  const der = Buffer.from(pem.replace(/-----[^-]+-----|\s/g, ''), 'base64');
  return crypto.subtle.importKey('pkcs8', der, { name: 'ECDSA', namedCurve: 'P-256' }, false, ['sign']);
}

const key = await imported(given.key);
const pair = await client.randomDPoPKeyPair('ES256');
// RFC 7523bis requires a type in the assertion's header; both libraries have an option for it.
const typed = (symbol) => ({ [symbol]: (header) => { header.typ = 'client-authentication+jwt'; } });

{
  const library = 'openid-client';
  const configured = (authentication) =>
    client.discovery(new URL(given.issuer), given.client, undefined, authentication, {
      algorithm: 'oauth2', execute: [client.allowInsecureRequests],
    });
  const by = {
    none: client.None(),
    private_key_jwt: client.PrivateKeyJwt({ key, kid: given.kid }, typed(client.modifyAssertion)),
    Bearer: (_as, _client, _body, headers) => headers.set('authorization', `Bearer ${attestation()}`),
  };
  const anyone = await configured(by.none);
  const named = await configured(by.private_key_jwt);
  const metadata = anyone.serverMetadata();
  assert.deepEqual(metadata.token_endpoint_auth_methods_supported, ['private_key_jwt', 'none']);

  let exchanged;
  await row(library, 'token exchange, `none`', 'a token', async () => {
    exchanged = await client.genericGrantRequest(anyone, EXCHANGE, exchange());
    assert.equal(exchanged.token_type, 'bearer');
  });
  await row(library, 'token exchange for `jwt`, `none`', 'a token, as a `jwt`', async () => {
    const jwt = await client.genericGrantRequest(anyone, EXCHANGE, { ...exchange(), requested_token_type: JWT });
    assert.equal(jwt.issued_token_type, JWT);
  });
  await row(library, 'token exchange with DPoP', 'a bound token', async () => {
    const DPoP = client.getDPoPHandle(anyone, pair);
    const bound = await client.genericGrantRequest(anyone, EXCHANGE, exchange(), { DPoP });
    assert.equal(bound.token_type, 'dpop');
  });
  let own;
  await row(library, 'client credentials, `private_key_jwt`', 'a token', async () => {
    own = await client.clientCredentialsGrant(named, asked);
    assert.equal(own.token_type, 'bearer');
  });
  await row(library, 'client credentials, `client_secret_basic`', '401 with the challenge `Basic`', async () => {
    const secret = await configured(client.ClientSecretBasic('no secret'));
    await assert.rejects(client.clientCredentialsGrant(secret, asked), (thrown) => {
      assert.ok(thrown instanceof client.WWWAuthenticateChallengeError, thrown.stack);
      assert.equal(thrown.cause[0].scheme, 'basic');
      return true;
    });
  });
  for (const method of ['private_key_jwt', 'Bearer']) {
    assert.ok(metadata.introspection_endpoint_auth_methods_supported.includes(method));
    await row(library, `introspection, \`${method}\``, '`active` as policy lets the caller know', async () => {
      const told = await client.tokenIntrospection(await configured(by[method]), own.access_token);
      assert.equal(told.active, false);
    });
  }
  assert.deepEqual(metadata.revocation_endpoint_auth_methods_supported, ['private_key_jwt', 'Bearer', 'DPoP']);
  await row(library, 'revocation, `Bearer`', 'revoked', async () =>
    client.tokenRevocation(await configured(by.Bearer), exchanged.access_token));
  await row(library, 'revocation, `private_key_jwt`', 'revoked', async () =>
    client.tokenRevocation(named, own.access_token));
  await row(library, 'introspection after revocation', '`active: false`', async () => {
    const admin = await configured((_as, _client, _body, headers) =>
      headers.set('authorization', `Bearer ${given.admin}`));
    for (const token of [exchanged, own]) {
      assert.equal((await client.tokenIntrospection(admin, token.access_token)).active, false);
    }
  });
}

{
  const library = 'oauth4webapi';
  const issuer = new URL(given.issuer);
  const found = await oauth.discoveryRequest(issuer, { algorithm: 'oauth2', ...insecure });
  const as = await oauth.processDiscoveryResponse(issuer, found);
  const named = { client_id: given.client };
  const asserted = oauth.PrivateKeyJwt({ key, kid: given.kid }, typed(oauth.modifyAssertion));

  let own;
  await row(library, 'client credentials, `private_key_jwt`', 'a token', async () => {
    const answer = await oauth.clientCredentialsGrantRequest(as, named, asserted, asked, insecure);
    own = await oauth.processClientCredentialsResponse(as, named, answer);
  });
  await row(library, 'token exchange, `none`', 'a token', async () => {
    const answer = await oauth.genericTokenEndpointRequest(
      as, named, oauth.None(), EXCHANGE, new URLSearchParams(exchange()), insecure);
    await oauth.processGenericTokenEndpointResponse(as, named, answer);
  });
  await row(library, 'validation of the token by the published keys', 'its claims', async () => {
    const request = new Request(given.audience, { headers: { authorization: `Bearer ${own.access_token}` } });
    const claims = await oauth.validateJwtAccessToken(as, request, given.audience, insecure);
    assert.equal(claims.client_id, `workload:${given.client}`);
  });
  await row(library, 'introspection, `private_key_jwt`', '`active` as policy lets the caller know', async () => {
    const answer = await oauth.introspectionRequest(as, named, asserted, own.access_token, insecure);
    assert.equal((await oauth.processIntrospectionResponse(as, named, answer)).active, false);
  });
  await row(library, 'introspection as a signed statement (RFC 9701)', 'a statement that verifies', async () => {
    const options = { ...insecure, requestJwtResponse: true };
    const answer = await oauth.introspectionRequest(as, named, asserted, own.access_token, options);
    assert.match(answer.headers.get('content-type'), /^application\/token-introspection\+jwt/);
  });
  for (const path of ['introspection', 'revocation']) {
    await row(library, `${path}, \`DPoP\``, 'answered, for the key that was proved', async () => {
      assert.ok(as[`${path}_endpoint_auth_methods_supported`].includes('DPoP'));
      const DPoP = oauth.DPoP(named, pair);
      const asked = () => oauth.protectedResourceRequest(
        attestation(), 'POST', new URL(as[`${path}_endpoint`]),
        new Headers({ 'content-type': 'application/x-www-form-urlencoded' }),
        new URLSearchParams({ token: 'none' }), { DPoP, ...insecure });
      // The first answer has the nonce, which the handle remembers.
      const answer = await asked().catch((error) => {
        if (!oauth.isDPoPNonceError(error)) throw error;
        return asked();
      });
      assert.equal(answer.status, 200);
    });
  }
  await row(library, 'introspection with a bad token, `DPoP`', '401 with the challenge `DPoP error="invalid_token"`',
    async () => {
      const DPoP = oauth.DPoP(named, pair);
      const asking = oauth.protectedResourceRequest(
        own.access_token, 'POST', new URL(as.introspection_endpoint),
        new Headers({ 'content-type': 'application/x-www-form-urlencoded' }),
        new URLSearchParams({ token: 'none' }), { DPoP, ...insecure });
      await assert.rejects(asking, (thrown) => {
        assert.ok(thrown instanceof oauth.WWWAuthenticateChallengeError, thrown.stack);
        const [challenge] = thrown.cause;
        assert.deepEqual([challenge.scheme, challenge.parameters.error], ['dpop', 'invalid_token']);
        return true;
      });
    });
  await row(library, 'revocation, `private_key_jwt`', 'revoked', async () => {
    const answer = await oauth.revocationRequest(as, named, asserted, own.access_token, insecure);
    await oauth.processRevocationResponse(answer);
  });
}
