import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { buffer } from "node:stream/consumers";
import { refusal, withSandbox, test } from "./support.mjs";

test("§9 files go in and come out byte for byte", async () => {
  await withSandbox({}, async (sandbox) => {
    const blob = randomBytes(3 * 1024 * 1024 + 17);
    await sandbox.writeFiles([
      { path: "blob.bin", content: blob },
      { path: "deep/er/grüße 🐇.txt", content: "text" },
      { path: "/tmp/absolute", content: "absolute" },
      { path: "empty", content: "" },
      { path: `${"long-".repeat(30)}name/${"l".repeat(200)}`, content: "long" },
    ]);
    assert.ok(blob.equals(await sandbox.readFileToBuffer({ path: "blob.bin" })));
    assert.ok(blob.equals(await buffer(await sandbox.readFile({ path: "/vercel/blob.bin" }))));
    assert.equal(String(await sandbox.readFileToBuffer({ path: "er/grüße 🐇.txt", cwd: "/vercel/deep" })), "text");
    assert.equal(String(await sandbox.readFileToBuffer({ path: "/tmp/absolute" })), "absolute");
    assert.equal((await sandbox.readFileToBuffer({ path: "empty" })).length, 0);
    assert.equal(String(await sandbox.readFileToBuffer({ path: `${"long-".repeat(30)}name/${"l".repeat(200)}` })), "long");
  });
});

test("§9 files belong to the default user and keep their mode", async () => {
  await withSandbox({}, async (sandbox) => {
    await sandbox.writeFiles([
      { path: "plain", content: "x" },
      { path: "run.sh", content: "#!/bin/sh\necho ran\n", mode: 0o755 },
    ]);
    const modes = await sandbox.runCommand("stat", ["-c", "%U %a", "plain", "run.sh"]);
    assert.equal(await modes.stdout(), "ubuntu 644\nubuntu 755\n");
    assert.equal(await (await sandbox.runCommand("./run.sh")).stdout(), "ran\n");
  });
});

test("§9 what is not there is null, what may not be read is refused", async () => {
  await withSandbox({}, async (sandbox) => {
    assert.equal(await sandbox.readFileToBuffer({ path: "missing" }), null);
    assert.equal(await sandbox.readFile({ path: "missing" }), null);
    await sandbox.runCommand({ cmd: "sh", args: ["-c", "echo secret > /root/secret; chmod 600 /root/secret"], sudo: true });
    const answer = await sandbox.readFileToBuffer({ path: "/root/secret" }).catch((error) => error.response.status);
    assert.ok(answer === null || (answer >= 400 && answer < 500), `got ${answer}`);
  });
});

test("§9 directories are made once", async () => {
  await withSandbox({}, async (sandbox) => {
    await sandbox.mkDir("made");
    const again = await refusal(sandbox.mkDir("made"));
    assert.equal(again.status, 400);
    assert.equal(again.code, "file_error");
    assert.match(again.message, /File exists/);
    const orphan = await refusal(sandbox.mkDir("no/parent"));
    assert.equal(orphan.code, "file_error");
    assert.match(orphan.message, /No such file or directory/);
  });
});

test("§9 a file downloads to this machine", async () => {
  const here = await mkdtemp(join(tmpdir(), "hutch-"));
  try {
    await withSandbox({}, async (sandbox) => {
      await sandbox.writeFiles([{ path: "report.txt", content: "done" }]);
      const path = await sandbox.downloadFile({ path: "report.txt" }, { path: "copy.txt", cwd: here });
      assert.equal(await readFile(path, "utf8"), "done");
    });
  } finally {
    await rm(here, { recursive: true });
  }
});
