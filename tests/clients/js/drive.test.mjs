import assert from "node:assert/strict";
import { Drive, Sandbox } from "@vercel/sandbox";
import { refusal, withSandbox, test } from "./support.mjs";

const unique = (name) => `${name}-${process.pid}`;
const output = async (sandbox, script) => (await sandbox.runCommand("sh", ["-c", script])).stdout();

async function withDrive(name, body, options = {}) {
  const drive = await Drive.getOrCreate({ name: unique(name), maxSize: 256 * 1024 ** 2, ...options });
  try {
    return await body(drive);
  } finally {
    await drive.delete().catch((error) => {
      if (error?.response?.status !== 404) throw error;
    });
  }
}

test("§12 a drive is got or created, listed and deleted", async () => {
  await withDrive("listed", async (drive) => {
    assert.equal(drive.name, unique("listed"));
    assert.equal(drive.maxSize, 256 * 1024 ** 2);
    assert.equal(drive.region, "iad1");
    const again = await Drive.getOrCreate({ name: drive.name });
    assert.equal(again.driveId, drive.driveId);
    const { status, code } = await refusal(Drive.getOrCreate({ name: drive.name, maxSize: 1024 ** 3 }));
    assert.deepEqual({ status, code }, { status: 409, code: "conflict" });
    await withDrive("listed-too", async (other) => {
      const found = await (await Drive.list({ limit: 1, sortBy: "name", namePrefix: "listed" })).toArray();
      const names = found.map((one) => one.name);
      assert.ok(names.includes(drive.name) && names.includes(other.name));
    });
    await drive.delete();
    assert.ok(!(await (await Drive.list()).toArray()).some((one) => one.driveId === drive.driveId));
  });
});

test("§12 one sandbox writes, others read it as of their start", async () => {
  await withDrive("shared", async (drive) => {
    const early = await refusal(Sandbox.create({ persistent: false, mounts: { "/seen": drive.snapshot() } }));
    assert.deepEqual([early.status, early.code], [409, "drive_not_initialized"]);
    await withSandbox({ mounts: { "/data": drive } }, async (writer) => {
      assert.deepEqual(writer.mounts, { "/data": { drive: drive.name, mode: "read-write" } });
      await writer.writeFiles([{ path: "/data/f", content: Buffer.from("one") }]);
      const [holder] = (await (await Drive.list()).toArray()).filter((one) => one.name === drive.name);
      assert.equal(holder.currentSandboxName, writer.name);
      assert.equal(holder.currentSessionId, writer.currentSession().sessionId);
      const second = await refusal(Sandbox.create({ persistent: false, mounts: { "/data": drive } }));
      assert.deepEqual([second.status, second.code], [409, "drive_attached"]);
      assert.deepEqual((await refusal(drive.delete())).code, "drive_attached");
      await withSandbox({ mounts: { "/seen": drive.snapshot() } }, async (reader) => {
        await writer.writeFiles([{ path: "/data/f", content: Buffer.from("two") }]);
        assert.equal(await output(reader, "cat /seen/f; touch /seen/x 2>/dev/null || echo ' read-only'"), "one read-only\n");
      });
    });
    await withSandbox({ mounts: { "/data": drive } }, async (writer) => assert.equal(await output(writer, "cat /data/f"), "two"));
  });
});

test("§12 a persistent sandbox mounts its drives again, and its snapshots have nothing of them", async () => {
  await withDrive("kept", async (drive) => {
    await withSandbox({ persistent: true, mounts: { "/data": drive } }, async (sandbox) => {
      await sandbox.runCommand("sh", ["-c", "echo drive > /data/f; echo own > own.txt"]);
      await sandbox.stop();
      assert.equal(await output(sandbox, "cat /data/f own.txt"), "drive\nown\n");
      await sandbox.update({ mounts: {} });
      await sandbox.stop();
      assert.equal(await output(sandbox, "ls -A /data; cat own.txt"), "own\n");
      assert.equal(sandbox.mounts, undefined);
    });
  });
});

test("§12 a full drive says so, and only there", async () => {
  await withDrive(
    "full",
    async (drive) => {
      await withSandbox({ mounts: { "/data": drive } }, async (sandbox) => {
        const script = "dd if=/dev/urandom of=/data/f bs=1M count=40 conv=fsync 2>&1; dd if=/dev/urandom of=/tmp/f bs=1M count=40 2>&1";
        const said = await output(sandbox, script);
        assert.match(said, /quota exceeded|No space left/);
        assert.match(said, /40\+0 records out/);
      });
    },
    { maxSize: 24 * 1024 ** 2 },
  );
});
