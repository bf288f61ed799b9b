// Sends what @vercel/sandbox and its command line ask of https://vercel.com/api to a Hutch server instead, and what is asked of
// sandboxes' ports (`sandbox.domain(3000)`, https://SUBDOMAIN.vercel.run) to its ingress.
//
//   HUTCH_URL=http://127.0.0.1:7070 HUTCH_INGRESS_URL=http://127.0.0.1:7071 node --import /path/to/redirect.mjs program.mjs
//
// `hutch env` sets all of it. Nothing else is touched: other requests, other programs and their options pass as they are.
// The npm package in npm/ is this file under a name: `import { redirect } from "@hutch/redirect"`.

import dns from "node:dns";

const VENDOR = "https://vercel.com/api";
const PORTS = /^(https|wss):\/\/([a-z0-9-]+)\.vercel\.run(?::443)?(?=[/?#]|$)/i;
// A program and its dependencies may each have a copy of this file; there is one `fetch` to replace.
const state = (globalThis.__hutchRedirect ??= { target: undefined, health: undefined, ingress: undefined, installed: undefined });

function redirected(real, input, init) {
  const { target, health } = state;
  const url = typeof input === "string" ? input : input instanceof URL ? input.href : input.url;
  if (url === VENDOR || url.startsWith(`${VENDOR}/`) || url.startsWith(`${VENDOR}?`)) {
    const there = target + url.slice(VENDOR.length);
    return real(input instanceof Request ? new Request(there, input) : there, init);
  }
  if (url === health) {
    return Promise.resolve(new Response(null, { status: 200 }));
  }
  const port = portUrl(url);
  if (port) {
    return real(input instanceof Request ? new Request(port, input) : port, init);
  }
  return real(input, init);
}

// The URL of the ingress for one of a port; null for every other. Names below localhost are for this machine, whose resolver may
// not know them.
function portUrl(url) {
  const base = state.ingress;
  const found = base && PORTS.exec(url);
  if (!found) return null;
  const suffix = (isLocal(base) ? "localhost" : base.hostname) + (base.port ? `:${base.port}` : "");
  const rest = url.slice(found[0].length);
  return `${base.protocol}//${found[2].toLowerCase()}.${suffix}${rest.startsWith("/") ? rest : `/${rest}`}`;
}

function isLocal(base) {
  return base.hostname === "127.0.0.1" || base.hostname === "[::1]";
}

function resolveLocally() {
  const lookup = dns.lookup;
  dns.lookup = function (hostname, options, callback) {
    if (!state.ingress || !isLocal(state.ingress) || !/\.localhost\.?$/i.test(hostname)) {
      return lookup.apply(this, arguments);
    }
    const address = state.ingress.hostname.replace(/[[\]]/g, "");
    const family = address.includes(":") ? 6 : 4;
    const done = typeof options === "function" ? options : callback;
    const all = typeof options === "object" && options?.all;
    process.nextTick(() => (all ? done(null, [{ address, family }]) : done(null, address, family)));
    return {};
  };
}

function installSockets() {
  const RealSocket = globalThis.WebSocket;
  if (!RealSocket) return;
  globalThis.WebSocket = class WebSocket extends RealSocket {
    constructor(url, ...rest) {
      super(portUrl(String(url))?.replace(/^http/, "ws") ?? url, ...rest);
    }
  };
}

/**
 * From here on the vendor's clients in this thread talk to the server at `url`, and to ports of its sandboxes at `ingressUrl`.
 * Called again, to another one.
 */
export function redirect({ url = process.env.HUTCH_URL, ingressUrl = process.env.HUTCH_INGRESS_URL } = {}) {
  if (!url) throw new TypeError("redirect() needs the server's URL: redirect({ url: \"http://127.0.0.1:7070\" }), or HUTCH_URL");
  const server = String(url).replace(/\/+$/, "").replace(/\/api$/, "");
  // The command line asks the host of a terminal over https, without its port, whether it is well before it connects.
  const health = `https://${new URL(server).hostname}/health`;
  const ingress = ingressUrl ? new URL(String(ingressUrl)) : undefined;
  Object.assign(state, { target: `${server}/api`, health, ingress });
  if (globalThis.fetch !== state.installed) {
    if (!state.installed) {
      resolveLocally();
      installSockets();
    }
    // Somebody may have wrapped the one from before, which then lies below: each has its own to go on with.
    const real = globalThis.fetch;
    state.installed = globalThis.fetch = function fetch(input, init) {
      return redirected(real, input, init);
    };
  }
}

if (process.env.HUTCH_URL && !state.target) redirect();
