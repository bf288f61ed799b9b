import assert from "node:assert/strict";
import { Sandbox } from "@vercel/sandbox";
import { refusal, withSandbox, test } from "./support.mjs";

const image = process.env.HUTCH_TEST_IMAGE;

test("§16.2 an image of a registry is pulled and runs as it says", async () => {
  assert.ok(image, "HUTCH_TEST_IMAGE names an image");
  await withSandbox({ image, env: { COLOUR: "blue" } }, async (sandbox) => {
    assert.equal(sandbox.cwd, "/srv");
    assert.match(sandbox.image, /@sha256:[0-9a-f]{64}$/);
    const who = await sandbox.runCommand("sh", ["-c", "id -un; pwd; echo $HOME $COLOUR $GREETING"]);
    assert.equal(await who.stdout(), "joe\n/srv\n/home/joe blue hello\n");
    await sandbox.writeFiles([{ path: "note.txt", content: "kept" }]);
    const read = await sandbox.runCommand("cat", ["/srv/note.txt"]);
    assert.equal(await read.stdout(), "kept");
    const root = await sandbox.runCommand({ cmd: "id", args: ["-u"], sudo: true });
    assert.equal(await root.stdout(), "0\n");
  });
});

test("§16.2 a sandbox from an image goes on where it stopped", async () => {
  const sandbox = await Sandbox.create({ image, persistent: true });
  try {
    await sandbox.runCommand("sh", ["-c", "echo kept > /tmp/note"]);
    await sandbox.stop();
    const read = await sandbox.runCommand("cat", ["/tmp/note"]);
    assert.equal(await read.stdout(), "kept\n");
  } finally {
    await sandbox.delete();
  }
});

test("§16.2 an image that its registry does not have is refused", async () => {
  const missing = image.replace(/:[^:]*$/, ":missing");
  const { status, code } = await refusal(Sandbox.create({ image: missing, persistent: false }));
  assert.deepEqual([status, code], [404, "not_found"]);
});
