import assert from "node:assert/strict";
import { Sandbox } from "@vercel/sandbox";
import { refusal, withSandbox, test } from "./support.mjs";

test("§7.2 a stopped session says what it used, and stays stopped", async () => {
  await withSandbox({}, async (sandbox) => {
    const busy = await sandbox.runCommand("sh", ["-c", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"]);
    assert.equal(busy.exitCode, 0);
    const stopped = await sandbox.stop();
    assert.equal(stopped.status, "stopped");
    const later = await Sandbox.get({ name: sandbox.name, resume: false });
    assert.equal(later.status, "stopped");
    const session = later.currentSession();
    assert.ok(session.activeCpuUsageMs > 0, `active CPU is ${session.activeCpuUsageMs}`);
    assert.equal((await sandbox.stop()).status, "stopped", "stopping again is fine");
    const { status, code } = await refusal(sandbox.runCommand("true"));
    assert.deepEqual({ status, code }, { status: 400, code: "snapshot_not_found" });
  });
});

test("§7.2 a deleted sandbox is gone, and its name is free", async () => {
  const name = `gone-${process.pid}`;
  await withSandbox({ name }, async (sandbox) => {
    await sandbox.delete();
    assert.equal((await refusal(Sandbox.get({ name }))).status, 404);
    await withSandbox({ name }, async (second) => {
      assert.notEqual(second.currentSession().sessionId, sandbox.currentSession().sessionId);
    });
  });
});
