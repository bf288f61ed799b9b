import assert from "node:assert/strict";
import { once } from "node:events";
import { PassThrough } from "node:stream";
import { withSandbox, test } from "./support.mjs";

// The second line is written only after the first one was seen here: what is not streamed can't pass.
const HANDSHAKE = "mkfifo /tmp/go; echo first; read line < /tmp/go; echo second; echo problem >&2; exit 4";

test("§8.3 logs of a detached command arrive while it runs, and again from the start", async () => {
  await withSandbox({}, async (sandbox) => {
    const command = await sandbox.runCommand({ cmd: "sh", args: ["-c", HANDSHAKE], detached: true });
    assert.match(command.cmdId, /^cmd_[0-9a-f]{28}$/);
    assert.equal(command.exitCode, null);
    const seen = [];
    for await (const line of command.logs()) {
      seen.push(line);
      if (line.data === "first\n") await sandbox.runCommand("sh", ["-c", "echo go > /tmp/go"]);
    }
    const joined = (stream) => seen.filter((line) => line.stream === stream).map((line) => line.data).join("");
    assert.equal(joined("stdout"), "first\nsecond\n");
    assert.equal(joined("stderr"), "problem\n");
    assert.equal((await command.wait()).exitCode, 4);
    const again = await sandbox.getCommand(command.cmdId);
    assert.equal(again.exitCode, 4);
    assert.equal(await again.stdout(), "first\nsecond\n");
  });
});

test("§8.3 a waited command streams into writables while it runs", async () => {
  await withSandbox({}, async (sandbox) => {
    const stdout = new PassThrough();
    const running = sandbox.runCommand({ cmd: "sh", args: ["-c", HANDSHAKE], stdout });
    const [first] = await once(stdout, "data");
    assert.equal(String(first), "first\n");
    await sandbox.runCommand("sh", ["-c", "echo go > /tmp/go"]);
    assert.equal((await running).exitCode, 4);
  });
});

test("§8.3 large output arrives whole and in order", async () => {
  await withSandbox({}, async (sandbox) => {
    const done = await sandbox.runCommand("seq", ["1", "500000"]);
    const lines = (await done.stdout()).split("\n");
    assert.equal(lines.pop(), "");
    assert.equal(lines.length, 500_000);
    assert.ok(lines.every((line, index) => line === String(index + 1)));
  });
});

test("§8.3 characters that a program writes in two pieces stay whole", async () => {
  await withSandbox({}, async (sandbox) => {
    const script = "import os,time; b='🐇'.encode()*20000\nfor i in range(0,len(b),4099): os.write(1,b[i:i+4099])";
    const done = await sandbox.runCommand("python3", ["-c", script]);
    assert.equal(await done.stdout(), "🐇".repeat(20_000));
  });
});
