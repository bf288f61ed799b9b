// Notes which public members of the SDK each test uses and which endpoints it asks, so that docs/compatibility.md can say which
// rows a passing test shows. A member that another member calls does not count.

import { AsyncLocalStorage } from "node:async_hooks";
import { appendFileSync } from "node:fs";
import { test as nodeTest } from "node:test";
import * as sdk from "@vercel/sandbox";

const inside = new AsyncLocalStorage();
let used = new Set();

function note(name) {
  if (!inside.getStore()) used.add(name);
}

function watch(owner, className) {
  for (const [name, property] of Object.entries(Object.getOwnPropertyDescriptors(owner))) {
    const shown = `js:${className}.${name}`;
    if (name === "constructor" || name === "prototype" || !property.configurable) continue;
    if (property.get) {
      const { get } = property;
      Object.defineProperty(owner, name, {
        ...property,
        get() {
          note(shown);
          return get.call(this);
        },
      });
    } else if (typeof property.value === "function") {
      const method = property.value;
      Object.defineProperty(owner, name, {
        ...property,
        value(...args) {
          note(shown);
          return inside.run(true, () => method.apply(this, args));
        },
      });
    }
  }
}

for (const [className, value] of Object.entries(sdk)) {
  if (typeof value === "function" && value.prototype && /^[A-Z]/.test(className)) {
    watch(value, className);
    watch(value.prototype, className);
  }
}

const real = globalThis.fetch;
globalThis.fetch = function fetch(input, init) {
  const url = new URL(typeof input === "string" ? input : (input.url ?? input.href));
  const path = url.pathname.replace(/^\/api/, "");
  if (/^\/v\d\/sandboxes/.test(path)) used.add(`http:${init?.method ?? "GET"} ${path}`);
  return real(input, init);
};

/** Node's `test`; what a test used is noted when it has passed. */
export function test(title, ...rest) {
  const body = rest.pop();
  nodeTest(title, ...rest, async (context) => {
    used = new Set();
    await body(context);
    if (process.env.HUTCH_SHOWN) appendFileSync(process.env.HUTCH_SHOWN, `${JSON.stringify({ title, shown: [...used] })}\n`);
  });
}
