import assert from "node:assert/strict";
import { test } from "node:test";
import { Sandbox } from "@vercel/sandbox";
import { refusal, withSandbox } from "./support.mjs";

const claims = JSON.parse(Buffer.from(process.env.HUTCH_TOKEN.split(".")[1], "base64url").toString());
const credentials = { token: process.env.HUTCH_TOKEN, teamId: claims.owner_id, projectId: claims.project_id };

test("explicit credentials work as well as those from the environment", async () => {
  await withSandbox(credentials, async (sandbox) => {
    assert.equal((await sandbox.runCommand("true")).exitCode, 0);
  });
});

test("what can't be meant is refused with the field's name", async () => {
  for (const [options, field] of [
    [{ name: "not a name" }, "name"],
    [{ timeout: 1 }, "timeout"],
    [{ ports: [80] }, "ports"],
    [{ resources: { vcpus: 3 } }, "vcpus"],
    [{ image: "no/such/image:latest" }, ""],
  ]) {
    const { status, code, message } = await refusal(Sandbox.create({ persistent: false, ...options }));
    assert.ok(status === 400 || status === 404, JSON.stringify(options));
    assert.match(code, /^[a-z_]+$/);
    assert.ok(message.includes(field), message);
  }
});

test("a token that does not verify is 401, a foreign team or project 403, an unknown name 404", async () => {
  const broken = credentials.token.slice(0, -6) + "AAAAAA";
  assert.equal((await refusal(Sandbox.list({ ...credentials, token: broken }))).status, 401);
  assert.equal((await refusal(Sandbox.list({ ...credentials, token: "opaque" }))).status, 401);
  assert.equal((await refusal(Sandbox.list({ ...credentials, projectId: "prj_someoneelses" }))).status, 403);
  assert.equal((await refusal(Sandbox.get({ ...credentials, name: "nobody" }))).status, 404);
});
