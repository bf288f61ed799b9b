"use strict";
const { Worker, j, RateLimitError } = require("@notionhq/workers");

const worker = new Worker();
const PATIENCE_MS = 2000;

async function ask(path, body) {
  const more = body === undefined ? {} : { method: "POST", body: JSON.stringify(body) };
  const answer = await fetch(process.env.API + path, { signal: AbortSignal.timeout(PATIENCE_MS), ...more });
  if (answer.status === 429) throw new RateLimitError({ retryAfter: Number(answer.headers.get("retry-after")) });
  if (!answer.ok) throw new Error(`the API answered ${answer.status}`);
  return answer.json();
}
const database = (key) =>
  worker.database(`${key}_rows`, {
    type: "managed",
    initialTitle: key,
    primaryKeyProperty: "Id",
    schema: { properties: { Name: { type: "title" }, Id: { type: "text" } } },
  });
const change = (item) =>
  item.deleted
    ? { type: "delete", key: item.id }
    : {
        type: "upsert",
        key: item.id,
        properties: { Id: [[item.id]], Name: [[item.name]] },
        upstreamUpdatedAt: new Date(1700000000000 + item.changed * 1000).toISOString(),
      };

worker.sync("full", {
  database: database("full"),
  mode: "replace",
  schedule: "manual",
  execute: async (state) => {
    const page = await ask(`/full?after=${state ?? ""}`);
    return { changes: page.items.map(change), hasMore: page.next !== null, nextState: page.next ?? undefined };
  },
});
worker.sync("delta", {
  database: database("delta"),
  mode: "incremental",
  schedule: "manual",
  execute: async (state) => {
    const page = await ask(`/delta?since=${state ?? 0}`);
    return { changes: page.items.map(change), hasMore: page.more, nextState: page.since };
  },
});
worker.webhook("hook", {
  title: "Hook",
  description: "Has an effect for each event.",
  execute: async ([event]) => {
    await ask("/effect", { kind: "webhook", id: event.deliveryId, number: event.body.number });
  },
});
worker.automation("press", {
  title: "Press",
  description: "Has an effect.",
  execute: async (event) => {
    await ask("/effect", { kind: "automation", id: String(event.number), number: event.number });
  },
});
worker.tool("tell", {
  title: "Tell",
  description: "Has an effect.",
  schema: j.object({ number: j.number() }),
  execute: async ({ number }) => {
    await ask("/effect", { kind: "tool", id: String(number), number });
    return number * 2;
  },
});

module.exports = worker;
module.exports.default = worker;
