// What every version of the JavaScript SDK from 2.0 on has: node smoke.mjs PACKAGE

import assert from "node:assert/strict";

const { Sandbox, Snapshot } = await import(process.argv[2]);
const sandbox = await Sandbox.create({ persistent: true, timeout: 60_000, ports: [3000], env: { COLOUR: "blue" } });
try {
  assert.equal(sandbox.status, "running");
  const done = await sandbox.runCommand("sh", ["-c", "echo $COLOUR; echo problem >&2; exit 3"]);
  assert.deepEqual([done.exitCode, await done.stdout(), await done.stderr()], [3, "blue\n", "problem\n"]);
  const detached = await sandbox.runCommand({ cmd: "sleep", args: ["600"], detached: true });
  await detached.kill();
  assert.equal((await detached.wait()).exitCode, 143);
  await sandbox.mkDir("made");
  await sandbox.writeFiles([{ path: "made/f", content: Buffer.from("kept") }]);
  assert.equal(String(await sandbox.readFileToBuffer({ path: "made/f" })), "kept");
  assert.equal(await sandbox.readFileToBuffer({ path: "nothing" }), null);
  await sandbox.updateNetworkPolicy({ allow: ["example.com"] });
  await sandbox.extendTimeout(5_000);
  await sandbox.stop();
  assert.equal(String(await sandbox.readFileToBuffer({ path: "made/f" })), "kept", "it resumes");
  const snapshot = await sandbox.snapshot();
  const child = await Sandbox.create({ source: { type: "snapshot", snapshotId: snapshot.snapshotId }, persistent: false });
  assert.equal(String(await child.readFileToBuffer({ path: "made/f" })), "kept");
  await child.delete();
  assert.equal((await Snapshot.get({ snapshotId: snapshot.snapshotId })).status, "created");
  const listed = await Sandbox.list({ sortBy: "name", namePrefix: sandbox.name });
  assert.deepEqual(listed.sandboxes.map((one) => one.name), [sandbox.name]);
} finally {
  await sandbox.delete();
}
for (const { id } of (await Snapshot.list({ name: sandbox.name })).snapshots) {
  await (await Snapshot.get({ snapshotId: id })).delete();
}
console.log("whole");
