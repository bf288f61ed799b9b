import { CREDENTIAL_VALUE, Worker } from "@notionhq/workers";
import * as Builder from "@notionhq/workers/builder";
import * as Schema from "@notionhq/workers/schema";
import { changedPeople, companies, people, type Person } from "./crm.js";

const worker = new Worker();

// Programs never see the token: the gateway adds it to requests to the CRM.
if (process.env.CRM_URL) {
  worker.credential("CRM_TOKEN", {
    network: [
      { domain: new URL(process.env.CRM_URL).hostname, transform: [{ headers: { Authorization: `Bearer ${CREDENTIAL_VALUE}` } }] },
    ],
  });
}

// All syncs together ask no more often.
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

// What changed since the last complete cycle, page by page. `newest` becomes `since` when all pages are read, so that nothing
// is left out if a change comes meanwhile.
type Progress = { since: number; newest: number; after?: string };

worker.sync("changed_people", {
  database: peopleTable,
  mode: "incremental",
  schedule: "1m",
  execute: async (progress?: Progress) => {
    const { since, newest, after } = progress ?? { since: 0, newest: 0 };
    await crm.wait();
    const { items, next } = await changedPeople(since, after);
    const seen = Math.max(newest, ...items.map((person) => person.changed));
    return {
      changes: items.map((person) => (person.deleted ? { type: "delete" as const, key: person.id } : upsert(person))),
      hasMore: next !== undefined,
      nextState: next === undefined ? { since: seen, newest: seen } : { since, newest: seen, after: next },
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
