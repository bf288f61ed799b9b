// A real OpenID provider on a free port of this machine. It prints its URL as a line of JSON and takes commands as lines of JSON on
// standard input, each answered with a line: {"start": {"clients", "accounts"}} begins anew with new keys, {"rotate": true} has new
// keys and forgets nothing else, {"accounts": {...}} changes who there is. It ends with its standard input.
import { createServer } from "node:http";
import { generateKeyPairSync, randomBytes } from "node:crypto";
import { createInterface } from "node:readline";
import Provider from "oidc-provider";

// Standard output is for answers; the library has its remarks there, too.
console.info = console.warn = () => {};

let clients = [];
let accounts = {};
let handler;

const server = createServer((request, response) => handler(request, response));
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
const issuer = `http://127.0.0.1:${server.address().port}`;
const cookieKey = randomBytes(16).toString("hex");

function key() {
  const pair = generateKeyPairSync("rsa", { modulusLength: 2048 });
  return { ...pair.privateKey.export({ format: "jwk" }), use: "sig", alg: "RS256", kid: randomBytes(8).toString("hex") };
}

function start() {
  const provider = new Provider(issuer, {
    clients: clients.map((client) => ({
      grant_types: ["authorization_code"],
      response_types: ["code"],
      token_endpoint_auth_method: client.client_secret ? "client_secret_basic" : "none",
      ...client,
    })),
    jwks: { keys: [key()] },
    // As the specification has it: what the scopes ask for is at the userinfo endpoint.
    claims: { openid: ["sub"], email: ["email", "email_verified"], profile: ["name"], groups: ["groups"] },
    scopes: ["openid", "email", "profile", "groups"],
    cookies: { keys: [cookieKey] },
    features: { devInteractions: { enabled: true } },
    pkce: { required: () => true },
    findAccount: (context, id) => accounts[id] && { accountId: id, claims: () => ({ sub: id, ...accounts[id] }) },
  });
  handler = provider.callback();
}

console.log(JSON.stringify({ issuer }));
for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line);
  if (command.start) {
    ({ clients, accounts } = command.start);
    start();
  }
  if (command.rotate) start();
  if (command.accounts) accounts = command.accounts;
  console.log(JSON.stringify({ done: true }));
}
process.exit(0);
