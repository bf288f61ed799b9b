import assert from "node:assert/strict";
import { Sandbox } from "@vercel/sandbox";
import { withSandbox, test } from "./support.mjs";

test("§6.4 updates change what they name and keep the rest", async () => {
  await withSandbox({ timeout: 60_000, tags: { old: "1" }, ports: [3000] }, async (sandbox) => {
    const [kept] = sandbox.routes;
    await sandbox.update({ tags: { fresh: "2" }, ports: [3000, 8080] });
    let later = await Sandbox.get({ name: sandbox.name, resume: false });
    assert.deepEqual(later.tags, { fresh: "2" });
    assert.deepEqual(later.routes.map((route) => route.port), [3000, 8080]);
    assert.equal(later.routes[0].subdomain, kept.subdomain);
    assert.equal(later.timeout, 60_000);

    await sandbox.update({ timeout: 100_000 });
    later = await Sandbox.get({ name: sandbox.name, resume: false });
    assert.equal(later.timeout, 100_000);
    assert.equal(later.currentSession().timeout, 100_000, "the running session is extended by the difference");

    await sandbox.update({ tags: {}, ports: [] });
    later = await Sandbox.get({ name: sandbox.name, resume: false });
    assert.equal(later.tags, undefined);
    assert.deepEqual(later.routes, []);
  });
});

test("§6.4 a network policy is kept and its secrets are not shown", async () => {
  await withSandbox({}, async (sandbox) => {
    await sandbox.updateNetworkPolicy({
      allow: { "api.example.com": [{ transform: [{ headers: { authorization: "Bearer secret" } }] }] },
    });
    const later = await Sandbox.get({ name: sandbox.name, resume: false });
    assert.ok(!JSON.stringify(later.networkPolicy ?? later.currentSession().networkPolicy).includes("secret"));
  });
});
