import assert from "node:assert/strict";
import { Sandbox } from "@vercel/sandbox";
import { refusal, test } from "./support.mjs";

for (const [options, field] of [
  [{ name: "not a name" }, "name"],
  [{ timeout: 1 }, "timeout"],
  [{ ports: [80] }, "ports"],
  [{ resources: { vcpus: 3 } }, "vcpus"],
  [{ image: "no/such/image:latest" }, "no/such/image"],
  [{ source: { type: "snapshot", snapshotId: "snap_none" } }, ""],
]) {
  test(`§4.6 a create with ${JSON.stringify(options)} is refused and told why`, async () => {
    const { status, code, message } = await refusal(Sandbox.create({ persistent: false, ...options }));
    assert.ok([400, 404, 410].includes(status), `status ${status}`);
    assert.match(code, /^[a-z_]+$/);
    assert.ok(message.includes(field), message);
  });
}

test("§4.6 a sandbox that does not exist is 404", async () => {
  const { status, code } = await refusal(Sandbox.get({ name: "nobody" }));
  assert.deepEqual({ status, code }, { status: 404, code: "not_found" });
});
