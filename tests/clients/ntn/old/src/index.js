import { Worker } from "@notionhq/workers";
import { j } from "@notionhq/workers/schema-builder";

const worker = new Worker();

worker.tool("greet", {
  title: "Greet",
  description: "Greets somebody.",
  schema: j.object({ name: j.string() }),
  execute: ({ name }) => {
    console.log("greeting", name);
    return `Hello, ${name}, from ${worker.manifest.sdkVersion}!`;
  },
});
worker.tool("fails", {
  title: "Fails",
  description: "Fails.",
  schema: j.object({}),
  execute: () => {
    throw new Error("no luck");
  },
});
const things = worker.database("things", {
  type: "managed",
  initialTitle: "Things",
  primaryKeyProperty: "Id",
  schema: { properties: { Name: { type: "title" }, Id: { type: "text" } } },
});
worker.sync("things_sync", {
  database: things,
  schedule: "manual",
  execute: async () => ({
    changes: [{ type: "upsert", key: "1", properties: { Name: [["One"]], Id: [["1"]] } }],
    hasMore: false,
  }),
});

export default worker;
