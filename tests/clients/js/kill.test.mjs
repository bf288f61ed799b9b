import assert from "node:assert/strict";
import { withSandbox, test } from "./support.mjs";

async function started(sandbox, script) {
  const command = await sandbox.runCommand({ cmd: "sh", args: ["-c", script], detached: true });
  for await (const line of command.logs()) {
    if (line.data.includes("ready")) break;
  }
  return command;
}

test("§8.4 signals end a command with 128 plus their number", async () => {
  await withSandbox({}, async (sandbox) => {
    for (const [signal, code] of [
      ["SIGTERM", 143],
      ["SIGKILL", 137],
      ["SIGINT", 130],
      [1, 129],
    ]) {
      const command = await started(sandbox, "echo ready; exec sleep 600");
      await command.kill(signal);
      assert.equal((await command.wait()).exitCode, code, `signal ${signal}`);
    }
  });
});

test("§8.4 a trap's own exit code wins", async () => {
  await withSandbox({}, async (sandbox) => {
    const command = await started(sandbox, "trap 'exit 42' TERM; echo ready; while :; do sleep 0.05; done");
    await command.kill();
    assert.equal((await command.wait()).exitCode, 42);
  });
});

test("§8.4 an aborted wait leaves the command running", async () => {
  await withSandbox({}, async (sandbox) => {
    const command = await started(sandbox, "echo ready; exec sleep 600");
    const abort = new AbortController();
    const waiting = command.wait({ signal: abort.signal });
    abort.abort();
    await assert.rejects(waiting);
    assert.equal((await sandbox.getCommand(command.cmdId)).exitCode, null);
  });
});
