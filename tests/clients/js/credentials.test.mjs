import assert from "node:assert/strict";
import { Sandbox } from "@vercel/sandbox";
import { refusal, withSandbox, test } from "./support.mjs";

const token = process.env.HUTCH_TOKEN;
const claims = JSON.parse(Buffer.from(token.split(".")[1], "base64url").toString());
const credentials = { token, teamId: claims.owner_id, projectId: claims.project_id };
// With it the SDK would replace any token of ours before every request.
delete process.env.VERCEL_OIDC_TOKEN;

test("§3.3 explicit credentials need nothing from the environment", async () => {
  await withSandbox(credentials, async (sandbox) => {
    assert.equal((await sandbox.runCommand("true")).exitCode, 0);
  });
});

test("§3.3 a token that does not verify is 401", async () => {
  const forged = token.split(".").with(2, Buffer.alloc(64).toString("base64url")).join(".");
  for (const bad of [forged, "opaque", `${token}x`, "a".repeat(8000)]) {
    assert.equal((await refusal(Sandbox.list({ ...credentials, token: bad }))).status, 401);
  }
});

test("§3.3 a project that is not the team's is 403", async () => {
  assert.equal((await refusal(Sandbox.list({ ...credentials, projectId: "prj_someoneelses" }))).status, 403);
});
