import assert from "node:assert/strict";
import { Sandbox } from "@vercel/sandbox";
import { refusal, withSandbox, test } from "./support.mjs";

const RULES = {
  allow: {
    "api.example.com": [
      { match: { path: { startsWith: "/v1/" } }, transform: [{ headers: { authorization: "Bearer secret-value" } }] },
    ],
    "plain.example.com": [],
  },
  subnets: { allow: ["203.0.113.0/24"], deny: ["198.51.100.0/24"] },
};

test("§14.3 a policy is read as it was set, with its values redacted", async () => {
  await withSandbox({ networkPolicy: RULES }, async (sandbox) => {
    const redacted = JSON.parse(JSON.stringify(RULES).replace("Bearer secret-value", "<redacted>"));
    assert.deepEqual(sandbox.networkPolicy, redacted);
    const later = await Sandbox.get({ name: sandbox.name, resume: false });
    assert.deepEqual(later.networkPolicy, redacted);

    // What was read is a policy that can be set; the value is still there, although nobody has seen it.
    await sandbox.updateNetworkPolicy(later.networkPolicy);
    assert.deepEqual(sandbox.currentSession().networkPolicy, redacted);
  });
});

test("§14.3 updates are for the running session and every mode is taken", async () => {
  await withSandbox({}, async (sandbox) => {
    assert.equal(sandbox.networkPolicy, undefined);
    for (const policy of ["deny-all", { allow: ["a.example.com", "*.b.example.com"] }, "allow-all"]) {
      await sandbox.updateNetworkPolicy(policy);
      assert.deepEqual(sandbox.currentSession().networkPolicy, policy);
    }
    await sandbox.update({ networkPolicy: "deny-all" });
    const later = await Sandbox.get({ name: sandbox.name, resume: false });
    assert.equal(later.currentSession().networkPolicy, "deny-all");
  });
});

test("§14.3 a policy that can't be meant is refused and changes nothing", async () => {
  await withSandbox({ networkPolicy: "deny-all" }, async (sandbox) => {
    const said = await refusal(sandbox.updateNetworkPolicy({ allow: ["api*.example.com"] }));
    assert.deepEqual([said.status, said.code], [400, "invalid_network_policy"]);
    assert.match(said.message, /\/allow\/0/);
    const later = await Sandbox.get({ name: sandbox.name, resume: false });
    assert.equal(later.currentSession().networkPolicy, "deny-all");
  });
});

test("§14.1 every kind of rule is taken, and read as far as the SDK shows it", async () => {
  const match = {
    method: ["GET", "POST"],
    path: { regex: "^/v[0-9]+/" },
    queryString: [{ key: { exact: "a" }, value: { startsWith: "b" } }],
    headers: [{ key: { exact: "x-kind" } }],
  };
  const forwarded = [{ match, forwardURL: "https://proxy.example.com/in" }];
  const allow = {
    "forwarded.example.com": forwarded,
    "answered.example.com": [{ response: { statusCode: 403, body: "no", contentType: "text/plain" } }],
    "*.wild.example.com": [],
  };
  await withSandbox({ networkPolicy: { allow } }, async (sandbox) => {
    const read = (await Sandbox.get({ name: sandbox.name })).networkPolicy;
    assert.deepEqual(Object.keys(read.allow), Object.keys(allow), "in the order in which they were given");
    assert.deepEqual(read.allow["forwarded.example.com"], forwarded);
    assert.deepEqual(read.allow["*.wild.example.com"], []);
    for (const wrong of [
      { allow: { "a.example.com": [{ match }] } },
      { allow: { "a.example.com": [{ forwardURL: "https://u:p@proxy.example.com" }] } },
      { subnets: { allow: ["not a range"] } },
    ]) {
      await assert.rejects(sandbox.updateNetworkPolicy(wrong), JSON.stringify(wrong));
    }
  });
});
