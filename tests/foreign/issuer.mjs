// An OpenID provider: oidc-provider, unchanged as published. Each client is a workload, which gets
// signed access tokens (RFC 9068) with its client credentials, for the resource it names.
//
//   node issuer.mjs PORT
//
// The secret is for these tests only and protects nothing.

import { generateKeyPairSync } from 'node:crypto';
import { Provider } from 'oidc-provider';

const [, , port] = process.argv;
const issuer = `https://issuer-${port}.test`;
const clients = ['agent:reports', 'agent:nobody'].map((client_id) => ({
  client_id,
  client_secret: 'test-only',
  grant_types: ['client_credentials'],
  redirect_uris: [],
  response_types: [],
  id_token_signed_response_alg: 'ES256',
}));

const key = generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey.export({ format: 'jwk' });

const provider = new Provider(issuer, {
  clients,
  jwks: { keys: [{ ...key, kid: 'first', use: 'sig', alg: 'ES256' }] },
  cookies: { keys: ['test-only'] },
  extraTokenClaims: () => ({ run: 'run-1' }),
  features: {
    clientCredentials: { enabled: true },
    devInteractions: { enabled: false },
    resourceIndicators: {
      enabled: true,
      getResourceServerInfo: (_ctx, resource) => ({
        scope: 'attest',
        audience: resource,
        accessTokenTTL: 300,
        accessTokenFormat: 'jwt',
        jwt: { sign: { alg: 'ES256' } },
      }),
    },
  },
});

provider.listen(Number(port), '127.0.0.1', () => console.log(`serving ${issuer}`));
