// Third-party resource servers that compare a bound token with the caller's proof: a DPoP proof with
// oauth4webapi, or a TLS client certificate with Node.js and jose. The file `given` holds the broker's
// address and the clients' credentials. Each passed check is a line of the output, and the first failure
// ends the run.

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import https from 'node:https';
import * as jose from 'jose';
import * as oauth from 'oauth4webapi';
import * as client from 'openid-client';

const given = JSON.parse(readFileSync('given', 'utf8'));
const EXCHANGE = 'urn:ietf:params:oauth:grant-type:token-exchange';

async function check(name, how) {
  await how();
  console.log(name);
}

// A request over TLS, with or without a certificate, on its own connection.
const fetchWith = (own) => (url, { method = 'GET', headers, body } = {}) =>
  new Promise((resolve, reject) => {
    const options = {
      method, headers: Object.fromEntries(new Headers(headers)), ca: given.trusted, agent: false, ...own,
    };
    const request = https.request(url, options, async (answer) => {
      const chunks = [];
      for await (const chunk of answer) chunks.push(chunk);
      resolve(new Response(Buffer.concat(chunks), { status: answer.statusCode, headers: answer.headers }));
    });
    request.on('error', reject).end(body?.toString());
  });

const configured = (own) =>
  client.discovery(new URL(given.issuer), 'agent', undefined, client.None(), {
    algorithm: 'oauth2', [client.customFetch]: fetchWith(own),
  });

async function granted(own, options = {}) {
  const form = {
    subject_token: given.attestations.shift(),
    subject_token_type: 'urn:ietf:params:oauth:token-type:jwt',
    resource: given.audience,
    scope: 'orders:read',
    task_type: 'job',
  };
  return client.genericGrantRequest(await configured(own), EXCHANGE, form, options);
}

const as = (await configured()).serverMetadata();
const viaTls = { [oauth.customFetch]: fetchWith() };
const keys = jose.createRemoteJWKSet(new URL(as.jwks_uri), { [jose.customFetch]: fetchWith() });

// The servers' checks. Each server answers with the claims, or with 401 and the reason.
const judges = {
  '/demands-a-proof': (request) =>
    oauth.validateJwtAccessToken(as, request, given.audience, { ...viaTls, requireDPoP: true }),
  '/takes-any': (request) => oauth.validateJwtAccessToken(as, request, given.audience, viaTls),
  '/demands-a-certificate': async (request, certificate) => {
    const [scheme, token] = request.headers.get('authorization').split(' ');
    assert.equal(scheme, 'Bearer', 'another scheme');
    const { payload } = await jose.jwtVerify(token, keys, {
      issuer: given.issuer, audience: given.audience, typ: 'at+jwt',
    });
    assert.ok(certificate, 'no certificate');
    const digest = createHash('sha256').update(certificate.raw).digest('base64url');
    assert.equal(payload.cnf?.['x5t#S256'], digest, 'another certificate');
    return payload;
  },
};

const server = https.createServer({
  key: given.server.key, cert: given.server.certificate, requestCert: true, rejectUnauthorized: false,
}, async (incoming, answer) => {
  const url = new URL(incoming.url, `https://${incoming.headers.host}`);
  const request = new Request(url, { method: incoming.method, headers: incoming.headers });
  try {
    const claims = await judges[url.pathname](request, incoming.socket.getPeerX509Certificate());
    answer.writeHead(200).end(JSON.stringify(claims));
  } catch (error) {
    answer.writeHead(401).end(error.message);
  }
});
await new Promise((listening) => server.listen(0, '127.0.0.1', listening));
const at = (path) => new URL(path, `https://127.0.0.1:${server.address().port}`);

async function served(url, options, own) {
  const answer = await fetchWith(own)(url, options);
  const text = await answer.text();
  assert.equal(answer.status, 200, text);
  return JSON.parse(text);
}

async function refused(why, url, options, own) {
  const answer = await fetchWith(own)(url, options);
  const text = await answer.text();
  assert.equal(answer.status, 401, text);
  assert.match(text, why);
}

const bearer = (token) => ({ headers: { authorization: `Bearer ${token.access_token}` } });

// The request of a client with a proof for it.
async function proving(token, pair, url, method = 'GET') {
  let sent;
  await oauth.protectedResourceRequest(token.access_token, method, url, undefined, null, {
    DPoP: oauth.DPoP({ client_id: 'agent' }, pair),
    [oauth.customFetch]: (_, options) => {
      sent = { method: options.method, headers: new Headers(options.headers) };
      return new Response();
    },
  });
  return sent;
}

const pair = await client.randomDPoPKeyPair('ES256');
const boundTo = async (pair, own) => granted(own, { DPoP: client.getDPoPHandle(await configured(own), pair) });
const demanding = at('/demands-a-proof');
const taking = at('/takes-any');
const byProof = await boundTo(pair);
const unbound = await granted();

await check('a bound token is served with a proof by its key', async () => {
  assert.equal(byProof.token_type, 'dpop');
  for (const url of [demanding, taking]) {
    for (const method of ['GET', 'DELETE']) {
      const claims = await served(url, await proving(byProof, pair, url, method));
      assert.deepEqual(Object.keys(claims.cnf), ['jkt']);
    }
  }
});

await check('as a bearer token it is refused, with or without its proof', async () => {
  for (const url of [demanding, taking]) {
    await refused(/no DPoP HTTP Header/, url, bearer(byProof));
    const sent = await proving(byProof, pair, url);
    sent.headers.set('authorization', `Bearer ${byProof.access_token}`);
    await refused(/scheme is not DPoP/, url, sent);
  }
});

await check('a proof by another key, for another URL, method or token, is refused', async () => {
  const other = await client.randomDPoPKeyPair('ES256');
  await refused(/confirmation mismatch/, demanding, await proving(byProof, other, demanding));
  await refused(/htu mismatch/, demanding, await proving(byProof, pair, taking));
  const elsewhere = await proving(byProof, pair, demanding);
  await refused(/htm mismatch/, demanding, { ...elsewhere, method: 'DELETE' });
  const second = await boundTo(pair);
  const sent = await proving(second, pair, demanding);
  sent.headers.set('authorization', `DPoP ${byProof.access_token}`);
  await refused(/ath mismatch/, demanding, sent);
});

await check('an unbound token is refused where a proof is required', async () => {
  await served(taking, bearer(unbound));
  await refused(/"cnf"/, demanding, bearer(unbound));
  await refused(/"cnf"/, demanding, await proving(unbound, pair, demanding));
});

const [one, two] = given.clients;
const certain = at('/demands-a-certificate');
let byCertificate;
await check('a bound token is served with its certificate', async () => {
  assert.equal(as.tls_client_certificate_bound_access_tokens, true);
  byCertificate = await granted(one);
  assert.equal(byCertificate.token_type, 'bearer');
  const claims = await served(certain, bearer(byCertificate), one);
  assert.deepEqual(Object.keys(claims.cnf), ['x5t#S256']);
});

await check('without that certificate, or with another, it is refused', async () => {
  await refused(/no certificate/, certain, bearer(byCertificate));
  await refused(/another certificate/, certain, bearer(byCertificate), two);
  await refused(/another certificate/, certain, bearer(await granted(two)), one);
  await served(certain, bearer(byCertificate), one);
});

await check('a token without a certificate binding is refused where one is required', async () => {
  await refused(/another certificate/, certain, bearer(unbound), one);
  await refused(/another certificate/, certain, bearer(byProof), one);
  // The client showed a proof and a certificate; the token then names the proof's key.
  await refused(/another certificate/, certain, bearer(await boundTo(pair, one)), one);
});

await check('a server that does not support certificates refuses a token bound to one', async () => {
  await refused(/unsupported JWT Confirmation method/, taking, bearer(byCertificate), one);
});

await check('introspection names the same binding', async () => {
  const asking = await client.discovery(new URL(given.issuer), 'server', undefined,
    (_as, _client, _body, headers) => headers.set('authorization', `Bearer ${given.admin}`),
    { algorithm: 'oauth2', [client.customFetch]: fetchWith() });
  for (const [token, type] of [[byProof, 'DPoP'], [byCertificate, 'Bearer'], [unbound, 'Bearer']]) {
    const told = await client.tokenIntrospection(asking, token.access_token);
    const { cnf } = jose.decodeJwt(token.access_token);
    assert.deepEqual([told.active, told.token_type, told.cnf], [true, type, cnf]);
  }
});

server.close();
