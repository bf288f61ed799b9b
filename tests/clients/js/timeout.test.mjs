import assert from "node:assert/strict";
import { Sandbox } from "@vercel/sandbox";
import { refusal, withSandbox, test } from "./support.mjs";

test("§13.2 a command's time limit kills it", async () => {
  await withSandbox({}, async (sandbox) => {
    const done = await sandbox.runCommand({ cmd: "sleep", args: ["600"], timeoutMs: 300 });
    assert.equal(done.exitCode, 137);
  });
});

test("§13.2 a sandbox's time limit ends its session, and what runs in it", async () => {
  await withSandbox({ timeout: 2_000 }, async (sandbox) => {
    const command = await sandbox.runCommand({ cmd: "sleep", args: ["600"], detached: true });
    const started = Date.now();
    await assert.rejects(command.wait());
    assert.ok(Date.now() - started < 15_000);
    const { status, code } = await refusal(sandbox.runCommand("true"));
    // Ephemeral: there is nothing to resume from.
    assert.deepEqual({ status, code }, { status: 400, code: "snapshot_not_found" });
    const later = await Sandbox.get({ name: sandbox.name, resume: false });
    assert.equal(later.status, "stopped");
  });
});

test("§13.2 an extended session lives longer by exactly that", async () => {
  await withSandbox({ timeout: 60_000 }, async (sandbox) => {
    const before = sandbox.expiresAt;
    await sandbox.extendTimeout(90_000);
    const later = await Sandbox.get({ name: sandbox.name, resume: false });
    assert.equal(later.currentSession().timeout, 150_000);
    assert.equal(later.timeout, 60_000, "the sandbox's own timeout stays");
    if (before !== undefined) assert.equal(later.expiresAt - before, 90_000);
    const { status, code } = await refusal(sandbox.extendTimeout(5 * 86_400_000));
    assert.deepEqual({ status, code }, { status: 400, code: "sandbox_timeout_invalid" });
  });
});
