// Sends what @vercel/sandbox and its command line ask of https://vercel.com/api to a Hutch server instead.
//
//   HUTCH_URL=http://127.0.0.1:7070 node --import /path/to/redirect.mjs program.mjs
//
// `hutch env` sets both. Nothing else is touched: other requests, other programs and their options pass as they are.

const VENDOR = "https://vercel.com/api";
const server = process.env.HUTCH_URL?.replace(/\/+$/, "").replace(/\/api$/, "");

if (server && !globalThis.__hutchRedirect) {
  globalThis.__hutchRedirect = true;
  const target = `${server}/api`;
  // The command line asks the host of a terminal over https, without its port, whether it is well before it connects.
  const health = `https://${new URL(server).hostname}/health`;
  const real = globalThis.fetch;

  globalThis.fetch = function fetch(input, init) {
    const url = typeof input === "string" ? input : input instanceof URL ? input.href : input.url;
    if (url === VENDOR || url.startsWith(`${VENDOR}/`) || url.startsWith(`${VENDOR}?`)) {
      const redirected = target + url.slice(VENDOR.length);
      return real(input instanceof Request ? new Request(redirected, input) : redirected, init);
    }
    if (url === health) {
      return Promise.resolve(new Response(null, { status: 200 }));
    }
    return real(input, init);
  };
}
