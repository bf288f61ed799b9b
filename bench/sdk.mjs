// Drives the real @vercel/sandbox: reads one JSON object per line, `{"argv": ["node", "-v"]}`, creates a sandbox, has the
// command answer, deletes the sandbox, and prints `{"ms"}` or `{"error"}`. Started by bench/javascript.py.

import { createInterface } from "node:readline";

import { Sandbox } from "@vercel/sandbox";

for await (const line of createInterface({ input: process.stdin })) {
  const [command, ...args] = JSON.parse(line).argv;
  let sandbox;
  try {
    const start = performance.now();
    sandbox = await Sandbox.create({ persistent: false, timeout: 600_000, resources: { vcpus: 2 } });
    const finished = await sandbox.runCommand(command, args);
    const ms = performance.now() - start;
    if (finished.exitCode !== 0) throw new Error(`${command} ended with ${finished.exitCode}`);
    console.log(JSON.stringify({ ms, stdout: await finished.stdout() }));
  } catch (error) {
    console.log(JSON.stringify({ error: String(error) }));
  } finally {
    await sandbox?.delete();
  }
}
