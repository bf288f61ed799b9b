// The firewall: install while everything is open, lock down to one API with a key that the sandbox never sees, while a process
// keeps running; then try to steal the key.

import assert from "node:assert/strict";
import { Sandbox } from "@vercel/sandbox";

const API = "https://api.demo.test";
const KEY = process.env.DEMO_API_KEY;
const REGISTRY = process.env.DEMO_NPM_REGISTRY;
const CALLER = `
setInterval(async () => {
  const answer = await fetch("${API}/v1/orders").then((response) => response.status, (error) => error.cause?.code ?? "failed");
  console.log(answer);
}, 200);
`;

const sandbox = await Sandbox.create({ persistent: false, timeout: 600_000, env: { NPM_CONFIG_REGISTRY: REGISTRY } });
async function run(command) {
  const done = await sandbox.runCommand("sh", ["-c", command]);
  return { code: done.exitCode, text: (await done.stdout()) + (await done.stderr()) };
}
async function audit() {
  const url = `${process.env.HUTCH_URL}/api/hutch/v1/sandboxes/${sandbox.name}/audit?limit=1000`;
  const answer = await fetch(url, { headers: { authorization: `Bearer ${process.env.HUTCH_TOKEN}` } });
  return (await answer.json()).records;
}
async function until(condition, what) {
  for (const end = Date.now() + 120_000; Date.now() < end; await new Promise((resolve) => setTimeout(resolve, 50))) {
    if (await condition()) return;
  }
  assert.fail(`${what}: not within 120 s`);
}

try {
  const installed = await run("npm install --silent --no-audit --no-fund ms && node -p 'require(\"ms\")(\"2 days\")'");
  assert.equal(installed.code, 0, installed.text);
  assert.match(installed.text, /^172800000$/m);
  console.log("open      npm install ms, from the registry, and it works");

  await sandbox.writeFiles([{ path: "caller.mjs", content: CALLER }]);
  const caller = await sandbox.runCommand({ cmd: "node", args: ["caller.mjs"], detached: true });
  const answers = [];
  const reading = (async () => {
    for await (const { data } of caller.logs()) answers.push(...data.trim().split("\n"));
  })().catch(() => {});
  await until(() => answers.includes("401"), "the API refuses a caller without a key");
  console.log("caller    a process calls the API again and again: 401, it has no key");

  const began = performance.now();
  await sandbox.updateNetworkPolicy({
    allow: {
      "api.demo.test": [
        { match: { path: { exact: "/v1/orders" }, method: ["GET"] }, transform: [{ headers: { authorization: `Bearer ${KEY}` } }] },
        { match: { path: { exact: "/debug" } }, transform: [{ headers: { authorization: `Bearer ${KEY}` } }] },
      ],
    },
  });
  console.log(`locked    to ${API} with a key, in ${(performance.now() - began).toFixed(0)} ms; everything else is closed`);
  await until(() => answers.at(-1) === "200", "the same process is let in");
  console.log("caller    the same process: 200, with a key that is not in the sandbox");

  // Everywhere but in what is older than the key: the image's programs, which emulated machines take long to read.
  const places = "/etc /home /opt /root /run /srv /tmp /var /vercel";
  const searched = await run(`sudo grep -rl '${KEY}' ${places} 2>/dev/null; env; sudo sh -c 'cat /proc/*/environ' 2>/dev/null`);
  assert.ok(!searched.text.includes(KEY), "the key is in the sandbox");
  const echoed = await run(`curl -sS ${API}/debug`);
  assert.match(echoed.text, /\*{40}/, echoed.text);
  assert.ok(!echoed.text.includes(KEY), "the key came back");
  console.log(`theft     asking the API to repeat the key: "authorization": "${"*".repeat(16)}…", masked on its way back`);
  const elsewhere = await run("curl -sS --max-time 60 https://example.com/?stolen");
  assert.notEqual(elsewhere.code, 0, "another server was reached");
  const fronted = await run(`curl -sS --max-time 60 -H 'Host: example.com' ${API}/v1/orders`);
  assert.match(fronted.text, /name_mismatch/, fronted.text);
  console.log(`theft     to another server: ${elsewhere.text.trim().split("\n").pop()}`);

  await until(async () => (await audit()).some((record) => record.reason === "name_mismatch"), "the audit has the attempts");
  const records = await audit();
  assert.ok(!JSON.stringify(records).includes(KEY), "the key is in the audit");
  const count = (condition) => records.filter(condition).length;
  console.log(
    `audit     ${records.length} records: ${count((record) => record.decision === "inject")} requests with the key, ` +
      `${count((record) => record.reflected)} answers with it masked, refused: ` +
      [...new Set(records.filter((record) => record.decision === "deny").map((record) => record.reason))].join(", "),
  );
  await caller.kill();
  await reading;
} finally {
  await sandbox.delete();
}
