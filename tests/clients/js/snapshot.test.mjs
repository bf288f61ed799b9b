import assert from "node:assert/strict";
import { Sandbox, Snapshot } from "@vercel/sandbox";
import { refusal, withSandbox, test } from "./support.mjs";

const read = async (sandbox, path) => (await sandbox.readFileToBuffer({ path }))?.toString();

test("§11 a persistent sandbox goes on where it stopped", async () => {
  await withSandbox({ persistent: true, env: { COLOUR: "blue" } }, async (sandbox) => {
    await sandbox.writeFiles([{ path: "kept.txt", content: Buffer.from("one") }, { path: "/tmp/t", content: Buffer.from("two") }]);
    const first = sandbox.currentSession().sessionId;
    await sandbox.stop();
    assert.ok((await Sandbox.get({ name: sandbox.name, resume: false })).currentSnapshotId?.startsWith("snap_"));
    // The client resumes by itself.
    const done = await sandbox.runCommand("sh", ["-c", "cat kept.txt /tmp/t; echo $COLOUR"]);
    assert.equal(await done.stdout(), "onetwoblue\n");
    assert.notEqual(sandbox.currentSession().sessionId, first);
    let resumed = 0;
    await sandbox.stop();
    const again = await Sandbox.get({ name: sandbox.name, resume: true, onResume: async () => void resumed++ });
    assert.equal(resumed, 1);
    assert.equal(await read(again, "kept.txt"), "one");
  });
});

test("§11 a snapshot begins other sandboxes, until it is deleted", async () => {
  await withSandbox({}, async (sandbox) => {
    await sandbox.runCommand("sh", ["-c", "echo made > made.txt"]);
    const snapshot = await sandbox.snapshot({ expiration: 86_400_000 });
    assert.equal(snapshot.status, "created");
    assert.ok(snapshot.sizeBytes > 0);
    assert.equal(snapshot.expiresAt - snapshot.createdAt, 86_400_000);
    const source = { type: "snapshot", snapshotId: snapshot.snapshotId };
    await withSandbox({ source }, async (child) => {
      assert.equal(child.currentSession().sourceSnapshotId, snapshot.snapshotId);
      assert.equal(await read(child, "made.txt"), "made\n");
      await child.runCommand("rm", ["made.txt"]);
    });
    const fork = await Sandbox.fork({ sourceSandbox: sandbox.name });
    try {
      assert.equal(await read(fork, "made.txt"), "made\n");
    } finally {
      await fork.delete();
    }
    // A second one of a sandbox that the first one ended: the client resumes in between.
    const second = await sandbox.snapshot();
    assert.notEqual(second.snapshotId, snapshot.snapshotId);
    const listed = (await Snapshot.list({ name: sandbox.name })).snapshots.map((one) => one.id);
    assert.deepEqual(listed.slice(0, 2), [second.snapshotId, snapshot.snapshotId]);
    const { snapshots } = await Snapshot.tree({ snapshotId: second.snapshotId });
    assert.deepEqual(snapshots.map((node) => node.snapshot.id), [snapshot.snapshotId]);
    await second.delete();
    await snapshot.delete();
    assert.equal((await Snapshot.get({ snapshotId: snapshot.snapshotId })).status, "deleted");
    const { status, code } = await refusal(Sandbox.create({ source }));
    assert.deepEqual({ status, code }, { status: 410, code: "snapshot_not_found" });
  });
});

test("§11 resumes at once are one", async () => {
  await withSandbox({ persistent: true }, async (sandbox) => {
    await sandbox.stop();
    const found = await Promise.all(Array.from({ length: 6 }, () => Sandbox.get({ name: sandbox.name, resume: true })));
    assert.equal(new Set(found.map((one) => one.currentSession().sessionId)).size, 1);
  });
});
