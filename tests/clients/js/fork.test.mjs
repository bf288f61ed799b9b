import assert from "node:assert/strict";
import { Sandbox, Snapshot } from "@vercel/sandbox";
import { refusal, test, withSandbox } from "./support.mjs";

const source = {
  env: { A: "1", B: "1" },
  tags: { kept: "yes" },
  ports: [3000],
  timeout: 90_000,
  resources: { vcpus: 1 },
  networkPolicy: "deny-all",
  snapshotExpiration: 2 * 86_400_000,
};

test("§6.6 a fork has its source's snapshot and settings, and what is given replaces them whole", async () => {
  await withSandbox(source, async (sandbox) => {
    const plain = await Sandbox.fork({ sourceSandbox: sandbox.name, persistent: false });
    assert.equal(plain.currentSession().sourceSnapshotId, undefined, "there is no snapshot yet: from its image");
    assert.deepEqual([plain.timeout, plain.vcpus, plain.networkPolicy, plain.tags], [90_000, 1, "deny-all", { kept: "yes" }]);
    assert.deepEqual(plain.routes.map((route) => route.port), [3000]);
    assert.notEqual(plain.routes[0].subdomain, sandbox.routes[0].subdomain);
    assert.equal(plain.snapshotExpiration, source.snapshotExpiration);
    assert.equal(await (await plain.runCommand("sh", ["-c", "echo $A$B"])).stdout(), "11\n");
    await plain.delete();

    await sandbox.writeFiles([{ path: "/tmp/f", content: "saved" }]);
    const snapshot = await sandbox.snapshot();
    await sandbox.writeFiles([{ path: "/tmp/f", content: "later" }]);
    const fork = await Sandbox.fork({ sourceSandbox: sandbox.name, persistent: false, env: { B: "2" }, tags: {}, ports: [], timeout: 80_000 });
    assert.equal(fork.currentSession().sourceSnapshotId, snapshot.snapshotId);
    assert.deepEqual([fork.timeout, fork.tags, fork.routes], [80_000, undefined, []]);
    assert.equal(String(await fork.readFileToBuffer({ path: "/tmp/f" })), "saved");
    assert.equal(await (await fork.runCommand("sh", ["-c", "echo $A-$B"])).stdout(), "-2\n");
    await fork.delete();
    await snapshot.delete();
    const gone = await refusal(Sandbox.fork({ sourceSandbox: sandbox.name }));
    assert.deepEqual([gone.status, gone.code], [410, "snapshot_not_found"]);
    assert.equal((await refusal(Sandbox.fork({ sourceSandbox: "nobody" }))).status, 404);
  });
});

test("§6.5 snapshots outlive their sandbox, orphans only without deleteOrphanSnapshots", async () => {
  const status = async (id) => (await Snapshot.get({ snapshotId: id })).status;
  const sandbox = await Sandbox.create({ persistent: true });
  const { snapshot } = await sandbox.stop();
  await sandbox.delete();
  assert.equal(await status(snapshot.id), "created");
  const source = { type: "snapshot", snapshotId: snapshot.id };
  const first = await Sandbox.create({ source, persistent: true });
  const own = (await first.stop()).snapshot;
  await withSandbox({ source: { type: "snapshot", snapshotId: own.id } }, async () => {
    await first.delete({ deleteOrphanSnapshots: true });
    assert.equal(await status(own.id), "created", "another sandbox has it");
  });
  const second = await Sandbox.create({ source, persistent: true });
  const orphan = (await second.stop()).snapshot;
  await second.delete({ deleteOrphanSnapshots: true });
  assert.equal(await status(orphan.id), "deleted");
  for (const id of [snapshot.id, own.id]) await (await Snapshot.get({ snapshotId: id })).delete();
});
