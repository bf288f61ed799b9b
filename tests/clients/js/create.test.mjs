import assert from "node:assert/strict";
import { Sandbox } from "@vercel/sandbox";
import { refusal, withSandbox, test } from "./support.mjs";

test("§6.1 a created sandbox runs and says what it is", async () => {
  await withSandbox({ timeout: 120_000, env: { COLOUR: "blue" }, tags: { purpose: "test" }, ports: [3000] }, async (sandbox) => {
    assert.match(sandbox.name, /^[a-zA-Z0-9_-]{1,128}$/);
    assert.equal(sandbox.status, "running");
    assert.equal(sandbox.cwd, "/vercel");
    assert.equal(sandbox.timeout, 120_000);
    assert.equal(sandbox.persistent, false);
    assert.equal(sandbox.memory, sandbox.vcpus * 2048);
    assert.match(sandbox.image, /^vercel\/sandbox\/universal@sha256:[0-9a-f]{64}$/);
    assert.deepEqual(sandbox.tags, { purpose: "test" });
    assert.equal(sandbox.routes.length, 1);
    assert.equal(sandbox.routes[0].port, 3000);
    assert.match(sandbox.routes[0].subdomain, /^sb-[a-z0-9]{12}$/);
    assert.match(sandbox.currentSession().sessionId, /^sbx_[A-Za-z0-9]{28}$/);
    const who = await sandbox.runCommand("sh", ["-c", "id -un; pwd; echo $HOME $COLOUR $LANG"]);
    assert.equal(await who.stdout(), "ubuntu\n/vercel\n/vercel blue C.UTF-8\n");
  });
});

test("§6.1 a name is taken once", async () => {
  const name = `taken-${process.pid}`;
  await withSandbox({ name }, async () => {
    const { status } = await refusal(Sandbox.create({ name, persistent: false }));
    assert.equal(status, 409);
  });
});

test("§6.1 getOrCreate finds what is there", async () => {
  const name = `found-${process.pid}`;
  await withSandbox({ name }, async (sandbox) => {
    const again = await Sandbox.getOrCreate({ name, persistent: false });
    assert.equal(again.currentSession().sessionId, sandbox.currentSession().sessionId);
  });
});

for (const [runtime, program, wanted] of [
  ["node22", "node", /^v22\./],
  ["node24", "node", /^v24\./],
  ["python3.13", "python3", /^Python 3\.13\./],
]) {
  test(`§6.1 the legacy runtime ${runtime} has its user, directory and program`, async () => {
    await withSandbox({ runtime }, async (sandbox) => {
      assert.equal(sandbox.cwd, "/vercel/sandbox");
      const who = await sandbox.runCommand("id", ["-un"]);
      assert.equal(await who.stdout(), "vercel-sandbox\n");
      const version = await sandbox.runCommand(program, ["--version"]);
      assert.match(await version.stdout(), wanted);
    });
  });
}
