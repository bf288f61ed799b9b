import { Worker } from "@notionhq/workers";
import * as Builder from "@notionhq/workers/builder";
import * as Schema from "@notionhq/workers/schema";
import { changedPeople, companies, people, type Person } from "./crm.js";

const worker = new Worker();

const crm = worker.pacer("crm", { allowedRequests: 50, intervalMs: 1000 });

const companyTable = worker.database("companies", {
  type: "managed",
  initialTitle: "Companies",
  primaryKeyProperty: "Id",
  schema: {
    properties: {
      Id: Schema.title(),
      Name: Schema.richText(),
      Stage: Schema.select([{ name: "lead", color: "blue" }, { name: "customer", color: "green" }]),
    },
  },
});

const peopleTable = worker.database("people", {
  type: "managed",
  initialTitle: "People",
  primaryKeyProperty: "Id",
  schema: {
    properties: {
      Id: Schema.title(),
      Name: Schema.richText(),
      Email: Schema.email(),
      Company: Schema.relation("companies", { twoWay: true, relatedPropertyName: "People" }),
    },
  },
});

// All companies, every 15 minutes: those that the CRM does not have any more are deleted.
worker.sync("all_companies", {
  database: companyTable,
  schedule: "15m",
  execute: async (after?: string) => {
    await crm.wait();
    const { items, next } = await companies(after);
    return {
      changes: items.map((company) => ({
        type: "upsert" as const,
        key: company.id,
        properties: {
          Id: Builder.title(company.id),
          Name: Builder.richText(company.name),
          Stage: Builder.select(company.stage),
        },
      })),
      hasMore: next !== undefined,
      nextState: next,
    };
  },
});

// All people, when somebody asks for it; between that the sync below has what changed.
worker.sync("all_people", {
  database: peopleTable,
  schedule: "manual",
  execute: async (after?: string) => {
    await crm.wait();
    const { items, next } = await people(after);
    return { changes: items.map(upsert), hasMore: next !== undefined, nextState: next };
  },
});

worker.sync("changed_people", {
  database: peopleTable,
  mode: "incremental",
  schedule: "1m",
  execute: async (since?: number) => {
    await crm.wait();
    const changed = await changedPeople(since ?? 0);
    return {
      changes: changed.map((person) => (person.deleted ? { type: "delete" as const, key: person.id } : upsert(person))),
      hasMore: false,
      nextState: Math.max(since ?? 0, ...changed.map((person) => person.changed)),
    };
  },
});

function upsert(person: Person) {
  return {
    type: "upsert" as const,
    key: person.id,
    upstreamUpdatedAt: new Date(person.changed * 1000).toISOString(),
    properties: {
      Id: Builder.title(person.id),
      Name: Builder.richText(person.name),
      Email: Builder.email(person.email),
      Company: [Builder.relation(person.company)],
    },
  };
}

export default worker;
