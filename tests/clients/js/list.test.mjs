import assert from "node:assert/strict";
import { Sandbox } from "@vercel/sandbox";
import { withSandbox, test } from "./support.mjs";

const prefix = `list-${process.pid}`;

test("§6.3 lists are newest first, paged and filtered", async () => {
  await withSandbox({ name: `${prefix}-a`, tags: { group: prefix } }, async () =>
    withSandbox({ name: `${prefix}-b`, tags: { group: prefix } }, async () =>
      withSandbox({ name: `${prefix}-c` }, async () => {
        const newest = await Sandbox.list();
        assert.equal(newest.sandboxes[0].name, `${prefix}-c`);

        const names = [];
        for await (const sandbox of await Sandbox.list({ sortBy: "name", sortOrder: "asc", namePrefix: prefix, limit: 2 })) {
          names.push(sandbox.name);
        }
        assert.deepEqual(names, [`${prefix}-a`, `${prefix}-b`, `${prefix}-c`]);

        const tagged = await Sandbox.list({ tags: { group: prefix } });
        assert.deepEqual(tagged.sandboxes.map((sandbox) => sandbox.name), [`${prefix}-b`, `${prefix}-a`]);
      }),
    ),
  );
});

test("§6.3 a sandbox lists its sessions", async () => {
  await withSandbox({}, async (sandbox) => {
    const { sessions } = await sandbox.listSessions();
    assert.deepEqual(sessions.map((session) => session.id), [sandbox.currentSession().sessionId]);
  });
});
