import assert from "node:assert/strict";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { buffer } from "node:stream/consumers";
import { Sandbox } from "@vercel/sandbox";
import { refusal, test, withSandbox } from "./support.mjs";

test("§5.2 a session says what it is, and what it was", async () => {
  await withSandbox({ timeout: 100_000, ports: [3000] }, async (sandbox) => {
    const session = sandbox.currentSession();
    assert.equal(session.status, "running");
    assert.deepEqual([session.timeout, session.cwd, session.runtime], [100_000, "/vercel", "node22"]);
    assert.equal(session.memory, session.vcpus * 2048);
    assert.equal(session.region, sandbox.region);
    assert.equal(session.createdAt.getTime(), session.requestedAt.getTime());
    assert.ok(session.startedAt >= session.createdAt && session.updatedAt >= session.createdAt);
    assert.ok(session.interactivePort > 0, "the command line asks for it");
    for (const absent of ["requestedStopAt", "stoppedAt", "abortedAt", "duration", "snapshottedAt", "activeCpuUsageMs"]) {
      assert.equal(session[absent], undefined, absent);
    }
    assert.deepEqual([session.networkPolicy, session.networkTransfer, session.sourceSnapshotId], [undefined, undefined, undefined]);
    assert.equal(session.routes[0].port, 3000);
    assert.equal(session.domain(3000), sandbox.domain(3000));
    assert.throws(() => session.domain(4000), /No route for port/);
    await session.stop();
    assert.equal(session.status, "stopped");
    assert.equal(session.duration, session.stoppedAt - session.startedAt);
    assert.ok(session.requestedStopAt <= session.stoppedAt);
    assert.deepEqual(Object.keys(session.networkTransfer).sort(), ["egress", "ingress"]);
    const first = session.requestedStopAt;
    await session.stop();
    assert.ok(session.requestedStopAt > first, "a stop of what has stopped is taken down anew");
  });
});

test("§13.3 a session's own methods never resume", async () => {
  const here = await mkdtemp(join(tmpdir(), "hutch-"));
  try {
    await withSandbox({ persistent: true }, async (sandbox) => {
      const session = sandbox.currentSession();
      await session.mkDir("made");
      await session.writeFiles([{ path: "made/f", content: "x" }]);
      assert.equal(String(await session.readFileToBuffer({ path: "made/f" })), "x");
      assert.equal(String(await buffer(await session.readFile({ path: "made/f" }))), "x");
      assert.equal(await readFile(await session.downloadFile({ path: "made/f" }, { path: "f", cwd: here }), "utf8"), "x");
      const done = await session.runCommand("echo", ["hello"]);
      assert.equal(await (await session.getCommand(done.cmdId)).stdout(), "hello\n");
      await session.extendTimeout(60_000);
      assert.equal(session.timeout, 360_000);
      await session.update({ networkPolicy: "deny-all" });
      assert.equal(session.networkPolicy, "deny-all");
      const snapshot = await session.snapshot({ expiration: 0 });
      assert.equal(snapshot.expiresAt, undefined);
      assert.equal(snapshot.sourceSessionId, session.sessionId);
      for (const call of [
        () => session.runCommand("true"),
        () => session.getCommand(done.cmdId),
        () => session.mkDir("x"),
        () => session.readFileToBuffer({ path: "made/f" }),
        () => session.writeFiles([{ path: "x", content: "" }]),
        () => session.openInteractive(),
        () => session.extendTimeout(1000),
        () => session.update({ networkPolicy: "allow-all" }),
        () => session.snapshot(),
      ]) {
        const { status, code } = await refusal(call());
        assert.deepEqual([status, code], [410, "sandbox_stopped"], String(call));
      }
      await snapshot.delete();
    });
  } finally {
    await rm(here, { recursive: true });
  }
});

test("§13.3 what a sandbox is asked resumes it, and onResume hears of it once", async () => {
  let resumed = 0;
  const onResume = async (sandbox) => {
    resumed += 1;
    assert.equal(sandbox.currentSession().status, "running");
  };
  await withSandbox({ persistent: true, onResume }, async (sandbox) => {
    for (const call of [
      () => sandbox.runCommand("true"),
      () => sandbox.mkDir(`made-${resumed}`),
      () => sandbox.writeFiles([{ path: "f", content: "x" }]),
      () => sandbox.readFileToBuffer({ path: "f" }),
      () => sandbox.extendTimeout(1000),
      () => sandbox.updateNetworkPolicy("deny-all"),
      () => sandbox.openInteractive(),
      () => sandbox.fs.exists("f"),
    ]) {
      const before = resumed;
      await sandbox.stop();
      await call();
      assert.equal(resumed, before + 1, String(call));
    }
    await sandbox.stop();
    await Promise.all(Array.from({ length: 5 }, () => sandbox.runCommand("true")));
    assert.equal(resumed, 9, "calls at once resume once");
    const { sessions } = await sandbox.listSessions({ limit: 3, sortOrder: "desc" });
    assert.equal(sessions.length, 3);
    assert.equal(sessions[0].id, sandbox.currentSession().sessionId);
  });
});

test("§13.1 what is asked while a session goes down is answered by the next one", async () => {
  await withSandbox({ persistent: true }, async (sandbox) => {
    await sandbox.runCommand("sh", ["-c", "head -c 50000000 /dev/urandom > big"]);
    const first = sandbox.currentSession().sessionId;
    const stopping = sandbox.stop();
    while ((await Sandbox.get({ name: sandbox.name, resume: false })).currentSession().status === "running") continue;
    const done = await sandbox.runCommand("sh", ["-c", "stat -c %s big"]);
    assert.equal(await done.stdout(), "50000000\n");
    await stopping;
    await sandbox.runCommand("true");
    assert.notEqual(sandbox.currentSession().sessionId, first);
  });
});

test("§6.1 getOrCreate creates, finds, and resumes when it is asked to", async () => {
  const name = `goc-${process.pid}`;
  let created = 0;
  const onCreate = async () => void created++;
  const sandbox = await Sandbox.getOrCreate({ name, persistent: true, onCreate });
  try {
    assert.equal(created, 1);
    await sandbox.writeFiles([{ path: "f", content: "kept" }]);
    const stopped = await sandbox.stop();
    assert.equal(stopped.snapshot.creationMethod, "automatic");
    const found = await Sandbox.getOrCreate({ name, resume: true, onCreate });
    assert.equal(created, 1);
    assert.equal(String(await found.readFileToBuffer({ path: "f" })), "kept");
    assert.equal(found.currentSession().sourceSnapshotId, stopped.snapshot.id);

    // Its snapshot gone, it is made anew: DELETE, then create.
    const { snapshot } = await found.stop();
    const { Snapshot } = await import("@vercel/sandbox");
    await (await Snapshot.get({ snapshotId: snapshot.id })).delete();
    const { status, code, message } = await refusal(Sandbox.get({ name, resume: true }));
    assert.deepEqual([status, code, message], [410, "snapshot_not_found", "Cannot resume sandbox: no snapshot available."]);
    const anew = await Sandbox.getOrCreate({ name, resume: true, onCreate, persistent: false });
    assert.equal(created, 2);
    assert.equal(await anew.readFileToBuffer({ path: "f" }), null);
  } finally {
    await (await Sandbox.get({ name })).delete({ deleteOrphanSnapshots: true });
  }
});
