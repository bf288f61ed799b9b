import { Worker } from "@notionhq/workers";
import * as Builder from "@notionhq/workers/builder";
import { j } from "@notionhq/workers/schema-builder";
import * as Schema from "@notionhq/workers/schema";

const worker = new Worker();

const things = worker.database("things", {
  type: "managed",
  initialTitle: "Things",
  primaryKeyProperty: "Id",
  schema: { properties: { Id: Schema.title(), Size: Schema.number() } },
});

// All things there are; rows of others are deleted.
worker.sync("all_things", {
  database: things,
  schedule: "30m",
  execute: async () => ({
    changes: ["first", "second"].map((id, index) => ({
      type: "upsert" as const,
      key: id,
      properties: { Id: Builder.title(id), Size: Builder.number(index + 1) },
    })),
    hasMore: false,
  }),
});

worker.tool("greet", {
  title: "Greet",
  description: "Greet somebody.",
  schema: j.object({ name: j.string() }),
  outputSchema: j.string(),
  hints: { readOnlyHint: true },
  execute: ({ name }) => `Hello, ${name}!`,
});

export default worker;
