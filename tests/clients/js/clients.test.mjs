// Several clients of one sandbox, clients that go away, and long waits.

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { Command, CommandFinished, Drive, Sandbox, Session, Snapshot } from "@vercel/sandbox";
import { WORKFLOW_DESERIALIZE, WORKFLOW_SERIALIZE } from "@workflow/serde";
import { test, withSandbox } from "./support.mjs";

const HANDSHAKE = "mkfifo /tmp/go; echo first; read line < /tmp/go; echo second; exit 4";

const OTHER = `
import { Sandbox } from "@vercel/sandbox";
const sandbox = await Sandbox.get({ name: process.argv[1] });
const command = await sandbox.getCommand(process.argv[2]);
for await (const line of command.logs()) {
  process.stdout.write(line.data);
  if (line.data === "first\\n") await sandbox.runCommand("sh", ["-c", "echo go > /tmp/go"]);
}
console.log((await command.wait()).exitCode);
`;

test("§8.3 another process finds the sandbox, its command, and all of its output", async () => {
  await withSandbox({}, async (sandbox) => {
    const command = await sandbox.runCommand({ cmd: "sh", args: ["-c", HANDSHAKE], detached: true });
    const argv = ["--input-type=module", "--eval", OTHER, sandbox.name, command.cmdId];
    const { stdout } = await promisify(execFile)(process.execPath, argv);
    assert.equal(stdout, "first\nsecond\n4\n");
    assert.equal((await command.wait()).exitCode, 4);
    assert.equal(await command.output(), "first\nsecond\n");
    assert.equal(await command.output("stderr"), "");
  });
});

test("§8.3 a reader that closes leaves the command and other readers alone", async () => {
  await withSandbox({}, async (sandbox) => {
    const command = await sandbox.runCommand({ cmd: "sh", args: ["-c", HANDSHAKE], detached: true });
    const early = command.logs();
    await early.next();
    early.close();
    await sandbox.runCommand("sh", ["-c", "echo go > /tmp/go"]);
    assert.equal(await command.stdout(), "first\nsecond\n");
  });
});

test("§8.1 an aborted command call is given up by the client and goes on in the sandbox", async () => {
  await withSandbox({}, async (sandbox) => {
    const abort = new AbortController();
    const running = sandbox.runCommand({
      cmd: "sh",
      args: ["-c", "echo started > /tmp/started; sleep 600"],
      signal: abort.signal,
    });
    await sandbox.runCommand("sh", ["-c", "until [ -e /tmp/started ]; do sleep 0.05; done"]);
    abort.abort();
    await assert.rejects(running, { name: "AbortError" });
    const alive = await sandbox.runCommand("sh", ["-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"]);
    assert.match(await alive.stdout(), /sleep 600/);
  });
});

test("§13.3 aborted calls are rejected, whichever they are", async () => {
  await withSandbox({}, async (sandbox) => {
    const signal = AbortSignal.abort();
    for (const call of [
      () => sandbox.runCommand("true", [], { signal }),
      () => sandbox.readFileToBuffer({ path: "f" }, { signal }),
      () => sandbox.writeFiles([{ path: "f", content: "" }], { signal }),
      () => sandbox.mkDir("d", { signal }),
      () => sandbox.extendTimeout(1000, { signal }),
      () => sandbox.update({ tags: {} }, { signal }),
      () => sandbox.stop({ signal }),
      () => sandbox.delete({ signal }),
      () => Sandbox.create({ signal, persistent: false }),
      () => Sandbox.get({ name: sandbox.name, signal }),
    ]) {
      await assert.rejects(call(), { name: "AbortError" }, String(call));
    }
    assert.equal((await sandbox.runCommand("true")).exitCode, 0);
  });
});

test("§4.4 the head of a long wait comes at once", async () => {
  await withSandbox({}, async (sandbox) => {
    const command = await sandbox.runCommand({ cmd: "sleep", args: ["600"], detached: true });
    const session = sandbox.currentSession().sessionId;
    const path = `https://vercel.com/api/v2/sandboxes/sessions/${session}/cmd/${command.cmdId}?wait=true`;
    const headers = { authorization: `Bearer ${process.env.HUTCH_TOKEN}` };
    const abort = new AbortController();
    const answer = await fetch(path, { headers, signal: AbortSignal.any([abort.signal, AbortSignal.timeout(1000)]) });
    assert.equal(answer.status, 200);
    assert.match(answer.headers.get("content-type"), /^application\/json/);
    abort.abort();
    await command.kill("SIGKILL");
    assert.equal((await command.wait()).exitCode, 137);
  });
});

test("§4.4 a wait of more than five minutes ends with the command", { skip: process.env.HUTCH_CAMPAIGN !== "full" && "only in the full campaign (make test-all): it takes 5 minutes" }, async () => {
  await withSandbox({ timeout: 600_000 }, async (sandbox) => {
    const command = await sandbox.runCommand({ cmd: "sh", args: ["-c", "sleep 310; exit 5"], detached: true });
    const [waited, direct] = await Promise.all([command.wait(), sandbox.runCommand("sh", ["-c", "sleep 310; exit 6"])]);
    assert.deepEqual([waited.exitCode, direct.exitCode], [5, 6]);
  });
});

test("§8.2 a finished command says when it ran, for how long, and waits no more", async () => {
  await withSandbox({}, async (sandbox) => {
    const before = Date.now();
    const done = await sandbox.runCommand("sh", ["-c", "sleep 0.3; echo out; echo err >&2"]);
    assert.equal(done.cwd, "/vercel");
    assert.ok(Math.abs(done.startedAt - before) < 60_000);
    assert.ok(done.durationMs >= 300, `it took ${done.durationMs} ms`);
    assert.equal(await done.wait(), done);
    assert.equal(await done.stderr(), "err\n");
    assert.equal(await done.output("both"), "out\nerr\n");
  });
});

test("§2.1 objects that were written down work again", async () => {
  await withSandbox({ ports: [3000] }, async (sandbox) => {
    const again = (value, kind) => kind[WORKFLOW_DESERIALIZE](JSON.parse(JSON.stringify(kind[WORKFLOW_SERIALIZE](value))));
    const revived = again(sandbox, Sandbox);
    assert.equal(revived.name, sandbox.name);
    const done = await revived.runCommand("echo", ["hello"]);
    assert.equal(await done.stdout(), "hello\n");
    assert.equal(await again(done, CommandFinished).stdout(), "hello\n");
    const detached = await revived.runCommand({ cmd: "echo", args: ["more"], detached: true });
    assert.equal((await again(detached, Command).wait()).exitCode, 0);
    assert.equal(again(sandbox.currentSession(), Session).sessionId, sandbox.currentSession().sessionId);
    const drive = await Drive.getOrCreate({ name: `serde-${process.pid}`, maxSize: 64 * 1024 ** 2 });
    assert.equal(again(drive, Drive).driveId, drive.driveId);
    await drive.delete();
    const snapshot = await sandbox.snapshot();
    const copy = again(snapshot, Snapshot);
    assert.equal(copy.snapshotId, snapshot.snapshotId);
    await copy.delete();
  });
});

test("§6.5 `await using` has the sandbox stopped", async () => {
  let name;
  {
    const sandbox = await Sandbox.create({ persistent: false });
    name = sandbox.name;
    await sandbox[Symbol.asyncDispose]();
  }
  const later = await Sandbox.get({ name });
  assert.equal(later.status, "stopped");
  await later.delete();
});
