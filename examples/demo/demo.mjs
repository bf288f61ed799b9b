// Hutch in one file: an untrusted program, real input, its output as it comes, its result back, checked; and what it cost.
// Everything below is the vendor's own @vercel/sandbox; `hutch env` is what sends it to the local server.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { Sandbox } from "@vercel/sandbox";

const LOG = "access.log";
const timings = [];

async function timed(what, work) {
  const start = performance.now();
  const result = await work();
  timings.push([what, performance.now() - start]);
  return result;
}

/** The answer, worked out here and in another way than analyse.py does it. */
function expected(text) {
  const lines = text.trimEnd().split("\n");
  const requests = lines.map((line) => line.split('"')).filter((parts) => parts[1] !== "-");
  const tally = (values) => values.reduce((counts, value) => counts.set(value, (counts.get(value) ?? 0) + 1), new Map());
  const tails = requests.map((parts) => parts[2].trim().split(" ").map(Number));
  const paths = tally(requests.map((parts) => parts[1].split(" ")[1].split("?")[0]));
  const durations = tails.map(([, , ms]) => ms).sort((a, b) => a - b);
  return {
    requests: requests.length,
    unreadable: lines.length - requests.length,
    clients: new Set(requests.map((parts) => parts[0].split(" ")[0])).size,
    bytes: tails.reduce((sum, [, size]) => sum + size, 0),
    statuses: Object.fromEntries(tally(tails.map(([status]) => String(status)))),
    busiest: [...paths].sort(([a, m], [b, n]) => n - m || (a < b ? -1 : 1)).slice(0, 5),
    p95_ms: durations[Math.ceil(durations.length * 0.95) - 1],
  };
}

const sandboxes = [];
try {
  const sandbox = await timed("create a sandbox", () => Sandbox.create({ persistent: false, timeout: 600_000, resources: { vcpus: 2 } }));
  sandboxes.push(sandbox);
  console.log(`created   ${sandbox.name} from ${sandbox.image.slice(0, 60)}…`);

  const where = await timed("first command", () => sandbox.runCommand("sh", ["-c", ". /etc/os-release; echo $PRETTY_NAME, $(uname -sr), user $(id -un)"]));
  assert.equal(where.exitCode, 0);
  console.log(`inside    ${(await where.stdout()).trim()}`);

  const log = await readFile(LOG);
  await timed(`write the program and ${(log.length / 1024).toFixed(0)} KiB of input`, async () =>
    sandbox.writeFiles([
      { path: "analyse.py", content: await readFile("analyse.py") },
      { path: "input/access.log", content: log },
    ]),
  );

  await timed("run it, streaming its output", async () => {
    const running = await sandbox.runCommand({ cmd: "python3", args: ["analyse.py", "input/access.log", "report.json"], detached: true });
    for await (const { stream, data } of running.logs()) {
      for (const line of data.trimEnd().split("\n")) console.log(`${stream}    ${line}`);
    }
    assert.equal((await running.wait()).exitCode, 0, "the program failed");
  });

  const report = JSON.parse(await timed("read the result back", () => sandbox.readFileToBuffer({ path: "report.json" })));
  assert.deepEqual(report, expected(log.toString()), "the result is wrong");
  console.log(`result    ${report.requests} requests of ${report.clients} clients, p95 ${report.p95_ms} ms, busiest ${report.busiest[0][0]}: as computed here`);

  const other = await timed("create another sandbox", () => Sandbox.create({ persistent: false, timeout: 600_000 }));
  sandboxes.push(other);
  assert.equal(await other.readFileToBuffer({ path: "/vercel/report.json" }), null, "another sandbox sees the result");
  const seen = await other.runCommand("sh", ["-c", "ls /vercel; ps -eo args"]);
  assert.ok(!(await seen.stdout()).includes("analyse.py"), "another sandbox sees the program");
  console.log("isolation the other sandbox sees neither the program nor its files");

  await timed("stop the sandbox", () => sandbox.stop());
  const session = (await Sandbox.get({ name: sandbox.name, resume: false })).currentSession();
  assert.ok(session.activeCpuUsageMs > 0, "no CPU time was measured");
  console.log(`cost      ${session.activeCpuUsageMs} ms of CPU in ${session.duration} ms, ${sandbox.vcpus} vCPU, ${sandbox.memory} MB`);
  const { ingress, egress } = session.networkTransfer ?? { ingress: 0, egress: 0 };
  console.log(`          ${ingress} bytes in, ${egress} bytes out`);
} finally {
  for (const sandbox of sandboxes) await sandbox.delete();
}

console.log();
for (const [what, ms] of timings) console.log(`${ms.toFixed(0).padStart(7)} ms  ${what}`);
