// State: install once, snapshot, start ten sandboxes from it; then fork a running process into three that count on.

import assert from "node:assert/strict";
import { Sandbox, Snapshot } from "@vercel/sandbox";

const REGISTRY = process.env.DEMO_NPM_REGISTRY;
const COPIES = 10;
const FORKS = 3;
const SERVER = `
const ms = require("ms");
require("http").createServer((_, answer) => answer.end("up for " + ms(Math.ceil(process.uptime()) * 1000)))
  .listen(3000, () => console.log("listening"));
`;
const COUNTER = `
import itertools, socket, time
for n in itertools.count(1):
    print(socket.gethostname(), n, flush=True)
    time.sleep(0.05)
`;

const sandboxes = [];
let snapshot;

async function run(sandbox, command) {
  const done = await sandbox.runCommand("sh", ["-c", command]);
  const text = (await done.stdout()) + (await done.stderr());
  assert.equal(done.exitCode, 0, text);
  return text.trim();
}
async function timed(work) {
  const began = performance.now();
  return [await work(), `${(performance.now() - began).toFixed(0)} ms`];
}
/** Lines of a command's output until one is as wanted. */
async function lines(command, wanted) {
  let text = "";
  for await (const { data } of command.logs()) {
    text += data;
    const whole = text.split("\n").slice(0, -1);
    if (whole.some(wanted)) return whole;
  }
  assert.fail(`the command ended before that: ${text.slice(-500)}`);
}

try {
  const first = await Sandbox.create({ timeout: 600_000, persistent: false, env: { NPM_CONFIG_REGISTRY: REGISTRY } });
  sandboxes.push(first);
  const [, install] = await timed(() => run(first, "npm install --silent --no-audit --no-fund ms"));
  await first.writeFiles([{ path: "server.js", content: SERVER }]);
  const [taken, sealing] = await timed(() => first.snapshot());
  snapshot = taken;
  console.log(`snapshot  npm install in ${install}, once; its files kept in ${sealing}`);

  const [copies, starting] = await timed(() =>
    Promise.all(
      Array.from({ length: COPIES }, async () => {
        const copy = await Sandbox.create({ persistent: false, timeout: 600_000, source: { type: "snapshot", snapshotId: snapshot.snapshotId } });
        sandboxes.push(copy);
        const server = await copy.runCommand({ cmd: "node", args: ["server.js"], detached: true });
        await lines(server, (line) => line === "listening");
        return run(copy, "curl -sS http://127.0.0.1:3000/");
      }),
    ),
  );
  assert.ok(copies.every((answer) => /^up for \d+s$/.test(answer)), copies.join());
  console.log(`copies    ${COPIES} sandboxes from it, each with its server answering ("${copies[0]}"), in ${starting}`);

  const parent = await Sandbox.create({ persistent: false, timeout: 600_000 });
  sandboxes.push(parent);
  const counter = await parent.runCommand({ cmd: "python3", args: ["-c", COUNTER], detached: true });
  await lines(counter, (line) => line.endsWith(" 20"));
  // What the vendor's client has no method for: the running machine itself, processes and all.
  const [forked, forking] = await timed(async () => {
    const answer = await fetch(`${process.env.HUTCH_URL}/api/v2/sandboxes/${parent.name}/fork`, {
      method: "POST",
      headers: { authorization: `Bearer ${process.env.HUTCH_TOKEN}`, "content-type": "application/json" },
      body: JSON.stringify({ memory: true, count: FORKS, name: "fork" }),
    });
    const body = await answer.json();
    assert.equal(answer.status, 200, JSON.stringify(body));
    return Promise.all(body.forks.map(({ sandbox }) => Sandbox.get({ name: sandbox.name, resume: false })));
  });
  sandboxes.push(...forked);
  console.log(`fork      a Python process that counts, into ${FORKS} sandboxes, in ${forking}`);
  for (const fork of [parent, ...forked]) {
    const command = await fork.getCommand(counter.cmdId);
    const printed = await lines(command, (line) => line.startsWith(`${fork.name} `) && Number(line.split(" ")[1]) >= 40);
    const numbers = printed.map((line) => Number(line.split(" ")[1]));
    assert.deepEqual(numbers, Array.from(numbers, (_, index) => index + 1), "a number is missing, or was counted twice");
    const own = printed.findIndex((line) => line.startsWith(`${fork.name} `));
    console.log(`count     ${fork === parent ? "the parent" : fork.name}: ${own ? `…${own} in its parent, then on ` : ""}to ${numbers.at(-1)}`);
  }
} finally {
  await Promise.all(sandboxes.map((sandbox) => sandbox.delete()));
  await snapshot?.delete();
  assert.ok(!snapshot || (await Snapshot.get({ snapshotId: snapshot.snapshotId })).status === "deleted");
}
