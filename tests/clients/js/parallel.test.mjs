import assert from "node:assert/strict";
import { withSandbox, test } from "./support.mjs";

test("§8.1 a hundred commands at once keep their own output", async () => {
  await withSandbox({}, async (sandbox) => {
    const all = Array.from({ length: 100 }, (_, index) => index);
    const done = await Promise.all(
      all.map(async (index) => {
        const command = await sandbox.runCommand("sh", ["-c", `echo ${index}; exit ${index}`]);
        return [command.exitCode, await command.stdout()];
      }),
    );
    assert.deepEqual(done, all.map((index) => [index, `${index}\n`]));
  });
});

test("§8.1 sandboxes see nothing of each other", async () => {
  await withSandbox({}, async (one) =>
    withSandbox({}, async (other) => {
      await one.writeFiles([{ path: "/tmp/mine", content: "secret" }]);
      await one.runCommand({ cmd: "sleep", args: ["31415"], detached: true });
      assert.equal(await other.readFileToBuffer({ path: "/tmp/mine" }), null);
      const processes = await other.runCommand("sh", ["-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"]);
      assert.ok(!(await processes.stdout()).includes("31415"));
    }),
  );
});
