// OAuth with openid-client and oauth4webapi, unchanged as published. The file `given` holds the broker's
// address and the client's credentials. Each passed check is a line of the output, and the first failure
// ends the run.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import * as oauth from 'oauth4webapi';
import * as client from 'openid-client';

const given = JSON.parse(readFileSync('given', 'utf8'));
const EXCHANGE = 'urn:ietf:params:oauth:grant-type:token-exchange';
const JWT = 'urn:ietf:params:oauth:token-type:jwt';
const loopback = { [oauth.allowInsecureRequests]: true };

async function check(name, how) {
  await how();
  console.log(name);
}

// Each attestation can be used only once.
const attestation = () => given.attestations.shift();

function exchange(more = {}) {
  const form = {
    subject_token: attestation(),
    subject_token_type: JWT,
    resource: given.audience,
    scope: 'orders:read',
    task_type: 'job',
    ...more,
  };
  return Object.fromEntries(Object.entries(form).filter(([, value]) => value !== undefined));
}

const credentials = { resource: given.audience, scope: 'orders:read', task_type: 'job' };

async function imported(pem) {
  const der = Buffer.from(pem.replace(/-----[^-]+-----|\s/g, ''), 'base64');
  return crypto.subtle.importKey('pkcs8', der, { name: 'ECDSA', namedCurve: 'P-256' }, false, ['sign']);
}

// RFC 7523bis requires a type in the assertion's header; the client has an option for it.
const typed = { [client.modifyAssertion]: (header) => { header.typ = 'client-authentication+jwt'; } };
const bearer = (token) => (_as, _client, _body, headers) => headers.set('authorization', `Bearer ${token}`);

const configured = (authentication, algorithm = 'oauth2') =>
  client.discovery(new URL(given.issuer), given.client, undefined, authentication, {
    algorithm,
    execute: [client.allowInsecureRequests],
  });

// Asserts that the client finds this error of the standard in the answer.
async function refused(how, error, status = 400) {
  await assert.rejects(how, (thrown) => {
    assert.ok(thrown instanceof client.ResponseBodyError, thrown.stack);
    assert.deepEqual([thrown.status, thrown.error], [status, error], thrown.error_description);
    assert.ok(thrown.error_description.length > 0);
    return true;
  });
}

const key = await imported(given.key);
const anyone = await configured(client.None());
const named = await configured(client.PrivateKeyJwt({ key, kid: given.kid }, typed));
const introspect = async (token) =>
  client.tokenIntrospection(await configured(bearer(given.admin)), token);

// A resource server with oauth4webapi, which validates the token of a request.
async function server() {
  const issuer = new URL(given.issuer);
  const found = await oauth.discoveryRequest(issuer, { algorithm: 'oauth2', ...loopback });
  return oauth.processDiscoveryResponse(issuer, found);
}
const as = await server();
const carrying = (authorization) => new Request(given.audience, { headers: { authorization } });
const validated = (request, options = {}) =>
  oauth.validateJwtAccessToken(as, request, given.audience, { ...loopback, ...options });

await check('discovery finds the endpoints by either document', async () => {
  for (const algorithm of ['oauth2', 'oidc']) {
    const metadata = (await configured(client.None(), algorithm)).serverMetadata();
    assert.equal(metadata.issuer, given.issuer);
    assert.equal(metadata.token_endpoint, `${given.issuer}/oauth2/token`);
    assert.ok(metadata.grant_types_supported.includes(EXCHANGE));
    assert.ok(metadata.token_endpoint_auth_methods_supported.includes('private_key_jwt'));
  }
});

let exchanged;
await check('an attestation is exchanged for a token', async () => {
  exchanged = await client.genericGrantRequest(anyone, EXCHANGE, exchange());
  assert.equal(exchanged.token_type, 'bearer');
  assert.equal(exchanged.issued_token_type, 'urn:ietf:params:oauth:token-type:access_token');
  assert.equal(exchanged.scope, 'orders:read');
  assert.ok(exchanged.expiresIn() > 0);
});

await check('the token verifies by the published keys, for its audience alone', async () => {
  const claims = await validated(carrying(`Bearer ${exchanged.access_token}`));
  assert.equal(claims.client_id, 'dev:agent%3Areports');
  const other = oauth.validateJwtAccessToken(
    as, carrying(`Bearer ${exchanged.access_token}`), 'https://other.example', loopback);
  await assert.rejects(other, /"aud"/);
  // Change the signature's first letter, all of whose bits are significant.
  const at = exchanged.access_token.lastIndexOf('.') + 1;
  const letter = exchanged.access_token[at] === 'A' ? 'B' : 'A';
  const altered = exchanged.access_token.slice(0, at) + letter + exchanged.access_token.slice(at + 1);
  await assert.rejects(validated(carrying(`Bearer ${altered}`)), /signature/);
});

await check('rights in detail are granted as asked', async () => {
  const details = [{ type: 'api', actions: ['orders:read'], locations: ['https://orders.example/v1/7'] }];
  const granted = await client.genericGrantRequest(anyone, EXCHANGE,
    exchange({ scope: undefined, authorization_details: JSON.stringify(details) }));
  assert.deepEqual(granted.authorization_details, details);
});

let own;
await check('a registered key authenticates its client', async () => {
  own = await client.clientCredentialsGrant(named, credentials);
  const claims = await validated(carrying(`Bearer ${own.access_token}`));
  assert.equal(claims.client_id, `workload:${given.client}`);
});

await check('a token is bound to the key of its DPoP proof', async () => {
  const pair = await client.randomDPoPKeyPair('ES256');
  const DPoP = client.getDPoPHandle(named, pair);
  for (const granted of [
    await client.clientCredentialsGrant(named, credentials, { DPoP }),
    await client.genericGrantRequest(anyone, EXCHANGE, exchange(), { DPoP }),
  ]) {
    assert.equal(granted.token_type, 'dpop');
    const bound = (await introspect(granted.access_token)).cnf;
    assert.equal(bound.jkt, await DPoP.calculateThumbprint());
    let sent;
    const send = async (handle) => oauth.protectedResourceRequest(granted.access_token, 'GET',
      new URL(given.audience), undefined, null, {
        DPoP: handle,
        [oauth.customFetch]: (url, options) => {
          sent = new Request(url, options);
          return new Response();
        },
      });
    await send(oauth.DPoP({ client_id: given.client }, pair));
    const claims = await validated(sent, { requireDPoP: true });
    assert.equal(claims.cnf.jkt, bound.jkt);
    // It is refused as a bearer token and with another key's proof.
    await assert.rejects(validated(carrying(`Bearer ${granted.access_token}`)));
    await send(oauth.DPoP({ client_id: given.client }, await client.randomDPoPKeyPair('ES256')));
    await assert.rejects(validated(sent, { requireDPoP: true }));
  }
});

await check('introspection reports a token as active until it is revoked', async () => {
  const told = await introspect(exchanged.access_token);
  assert.deepEqual([told.active, told.scope, told.aud], [true, 'orders:read', given.audience]);
  const strangers = await configured(bearer(given.stranger));
  await refused(() => client.tokenRevocation(strangers, exchanged.access_token), 'unauthorized_client');
  assert.equal((await introspect(exchanged.access_token)).active, true);
  await client.tokenRevocation(await configured(bearer(attestation())), exchanged.access_token);
  assert.equal((await introspect(exchanged.access_token)).active, false);
  assert.equal((await introspect('no token at all')).active, false);
  assert.equal((await introspect(own.access_token)).active, true);
});

await check('errors of an exchange have the codes of the standards', async () => {
  const ask = (more, type = EXCHANGE) => () => client.genericGrantRequest(anyone, type, exchange(more));
  await refused(ask({ subject_token: given.for_another }), 'invalid_request');
  await refused(ask({ subject_token: given.used }), 'invalid_request');
  await refused(ask({ subject_token: 'a.b.c' }), 'invalid_request');
  await refused(ask({ subject_token_type: 'urn:ietf:params:oauth:token-type:saml2' }), 'invalid_request');
  await refused(ask({ resource: 'https://elsewhere.example' }), 'invalid_target');
  await refused(ask({ audience: 'orders-api' }), 'invalid_target');
  await refused(ask({ scope: 'orders:delete' }), 'invalid_scope');
  // This request needs a person's approval.
  await refused(ask({ scope: 'orders:write' }), 'access_denied');
  await refused(ask({ scope: undefined, authorization_details: '[{"type":"gcp"}]' }),
    'invalid_authorization_details');
  await refused(ask({}, 'urn:ietf:params:oauth:grant-type:device_code'), 'unsupported_grant_type');
});

await check('an invalid proof is reported as such', async () => {
  const pair = await client.randomDPoPKeyPair('ES256');
  for (const wrong of [
    (header, claims) => { claims.htm = 'GET'; },
    (header, claims) => { claims.htu = 'https://elsewhere.example/oauth2/token'; },
    (header, claims) => { claims.iat += 600; },
    (header) => { header.typ = 'JWT'; },
  ]) {
    const DPoP = client.getDPoPHandle(named, pair, { [client.modifyAssertion]: wrong });
    await refused(() => client.clientCredentialsGrant(named, credentials, { DPoP }), 'invalid_dpop_proof');
  }
});

await check('a failed client authentication is reported as such', async () => {
  const stranger = (await client.randomDPoPKeyPair('ES256')).privateKey;
  const late = { [client.modifyAssertion]: (header, claims) => {
    typed[client.modifyAssertion](header);
    claims.exp = claims.iat - 60;
  } };
  const elsewhere = { [client.modifyAssertion]: (header, claims) => {
    typed[client.modifyAssertion](header);
    claims.aud = 'https://elsewhere.example';
  } };
  for (const authentication of [
    client.PrivateKeyJwt({ key: stranger, kid: given.kid }, typed),
    client.PrivateKeyJwt({ key, kid: given.kid }, late),
    client.PrivateKeyJwt({ key, kid: given.kid }, elsewhere),
    client.None(),
  ]) {
    const config = await configured(authentication);
    await refused(() => client.clientCredentialsGrant(config, credentials), 'invalid_client');
  }
});
