import assert from "node:assert/strict";
import { Drive, Sandbox } from "@vercel/sandbox";
import { test, withSandbox } from "./support.mjs";

test("§5.1 a sandbox's properties, while it runs and after", async () => {
  const options = { snapshotExpiration: 2 * 86_400_000, keepLastSnapshots: { count: 2 }, timeout: 60_000, persistent: true };
  await withSandbox(options, async (sandbox) => {
    assert.deepEqual([sandbox.runtime, sandbox.region, sandbox.failoverRegions], ["node22", "iad1", []]);
    assert.ok(sandbox.interactivePort > 0);
    assert.equal(sandbox.networkId, undefined);
    assert.equal(sandbox.sourceSnapshotId, undefined);
    assert.equal(sandbox.snapshotExpiration, 2 * 86_400_000);
    assert.deepEqual(sandbox.keepLastSnapshots, { count: 2, deleteEvicted: true });
    assert.ok(sandbox.updatedAt >= sandbox.createdAt && sandbox.statusUpdatedAt >= sandbox.createdAt);
    assert.equal(sandbox.totalDurationMs, undefined, "absent in the answer to a create");
    const running = await Sandbox.get({ name: sandbox.name, resume: false });
    for (const total of ["totalEgressBytes", "totalIngressBytes", "totalActiveCpuDurationMs", "totalDurationMs"]) {
      assert.equal(running[total], 0, total);
    }
    assert.deepEqual([running.activeCpuUsageMs, running.networkTransfer], [undefined, undefined]);
    await sandbox.stop();
    const stopped = await Sandbox.get({ name: sandbox.name, resume: false });
    assert.equal(stopped.expiresAt, undefined);
    assert.equal(stopped.totalDurationMs, stopped.currentSession().duration);
    assert.equal(stopped.totalActiveCpuDurationMs, stopped.activeCpuUsageMs);
    assert.deepEqual(Object.keys(stopped.networkTransfer).sort(), ["egress", "ingress"]);
    assert.equal(stopped.totalEgressBytes + stopped.totalIngressBytes, stopped.networkTransfer.egress + stopped.networkTransfer.ingress);
    await sandbox.update({ keepLastSnapshots: null });
    assert.equal((await Sandbox.get({ name: sandbox.name, resume: false })).keepLastSnapshots, undefined);
    await sandbox.delete({ deleteOrphanSnapshots: true });
  });
});

test("§11 kept snapshots are the newest, and evicted ones are deleted", async () => {
  await withSandbox({ keepLastSnapshots: { count: 2 } }, async (sandbox) => {
    const made = [];
    for (let number = 0; number < 3; number++) made.push(await sandbox.snapshot());
    assert.deepEqual(made[2].regions, ["iad1"]);
    assert.ok(made[2].updatedAt >= made[2].createdAt);
    const listed = await sandbox.listSnapshots({ limit: 2 });
    assert.equal(listed.pagination.count, 2);
    const all = await listed.toArray();
    assert.deepEqual(
      all.map((snapshot) => [snapshot.id, snapshot.status]),
      [[made[2].snapshotId, "created"], [made[1].snapshotId, "created"], [made[0].snapshotId, "deleted"]],
    );
    assert.deepEqual(all.map((snapshot) => snapshot.parentId), [made[1].snapshotId, made[0].snapshotId, undefined]);
    for (const snapshot of made) await snapshot.delete();
  });
});

test("§12 a drive's properties", async () => {
  const drive = await Drive.getOrCreate({ name: `properties-${process.pid}`, maxSize: 64 * 1024 ** 2 });
  assert.match(drive.projectId, /^prj_/);
  assert.ok(drive.updatedAt >= drive.createdAt);
  await drive.delete();
});

test("§17.1 access and chown are those of the guest", async () => {
  await withSandbox({}, async ({ fs }) => {
    await fs.writeFile("f", "x");
    await fs.access("f");
    await assert.rejects(fs.access("nothing"), { code: "ENOENT" });
    await fs.chown("f", 1000, 27);
    assert.equal((await fs.stat("f")).gid, 27);
    await assert.rejects(fs.chown("f", 0, 0));
    assert.equal(await fs.readFile("f", { encoding: "utf8" }), "x");
    await assert.rejects(fs.mkdir("f"));
    await assert.rejects(fs.readdir("nothing"), { code: "ENOENT" });
    await assert.rejects(fs.rm("nothing"), { code: "ENOENT" });
    await fs.rm("nothing", { force: true });
  });
});

test("§15 routes have a host for each port, and sessions can be told of others", async () => {
  await withSandbox({ ports: [3000, 8080] }, async (sandbox) => {
    assert.match(sandbox.domain(8080), /^https:\/\/sb-[a-z0-9]{12}\./);
    assert.notEqual(sandbox.domain(3000), sandbox.domain(8080));
    assert.throws(() => sandbox.domain(4000), /No route for port 4000/);
    const session = sandbox.currentSession();
    session.updateRoutes([{ url: "https://x", subdomain: "sb-000000000000", port: 4000 }]);
    assert.match(session.domain(4000), /sb-000000000000/);
  });
});
