import assert from "node:assert/strict";
import { collected, refusal, withSandbox, test } from "./support.mjs";

test("§8.1 waited commands have output, exit code, arguments, directory and environment", async () => {
  await withSandbox({ env: { LAYER: "sandbox", KEPT: "yes" } }, async (sandbox) => {
    assert.deepEqual(await collected(await sandbox.runCommand("sh", ["-c", "echo out; echo err >&2; exit 3"])), {
      exitCode: 3,
      stdout: "out\n",
      stderr: "err\n",
    });
    const words = ["two words", "quo'te", 'dou"ble', "$HOME", "grüße 🐇", "", "-n"];
    const printed = await sandbox.runCommand("printf", ["%s|", ...words]);
    assert.equal(await printed.stdout(), words.map((word) => `${word}|`).join(""));
    const there = await sandbox.runCommand({
      cmd: "sh",
      args: ["-c", "pwd; echo $LAYER $KEPT"],
      cwd: "/tmp",
      env: { LAYER: "command" },
    });
    assert.equal(await there.stdout(), "/tmp\ncommand yes\n");
  });
});

test("§8.1 sudo makes root and keeps the environment", async () => {
  await withSandbox({ env: { KEPT: "yes" } }, async (sandbox) => {
    const wanted = "0 root ubuntu /root yes\n";
    const script = "echo $(id -u) $USER $SUDO_USER $HOME $KEPT";
    const option = await sandbox.runCommand({ cmd: "sh", args: ["-c", script], sudo: true });
    assert.equal(await option.stdout(), wanted);
    const inside = await sandbox.runCommand("sudo", ["sh", "-c", script]);
    assert.equal(await inside.stdout(), wanted);
  });
});

test("§8.1 a command without standard input sees its end at once", async () => {
  await withSandbox({}, async (sandbox) => {
    const done = await sandbox.runCommand("cat");
    assert.deepEqual(await collected(done), { exitCode: 0, stdout: "", stderr: "" });
  });
});

test("§8.1 a program that does not exist is refused, not run", async () => {
  await withSandbox({}, async (sandbox) => {
    const { status, code, message } = await refusal(sandbox.runCommand("no-such-program"));
    assert.equal(status, 400);
    assert.equal(code, "executable_not_found");
    assert.match(message, /no-such-program/);
  });
});

test("§8.1 a waited command ends when its process does, whatever it left running", async () => {
  await withSandbox({}, async (sandbox) => {
    const done = await sandbox.runCommand("sh", ["-c", "sleep 600 & echo started"]);
    assert.equal(done.exitCode, 0);
    assert.equal(await done.stdout(), "started\n");
  });
});
