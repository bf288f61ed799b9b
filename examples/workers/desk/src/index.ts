import { createHmac, timingSafeEqual } from "node:crypto";
import { Worker, j } from "@notionhq/workers";
import * as Builder from "@notionhq/workers/builder";
import * as Schema from "@notionhq/workers/schema";

const worker = new Worker();

// What the desk knows of a person who writes. A real one would ask its own service, with `worker.credential`.
const plans: Record<string, string> = { "ada@example.com": "team", "bob@example.com": "free" };

worker.tool("plan_of", {
  title: "Plan of a customer",
  description: "Says which plan a customer is on.",
  schema: j.object({ email: j.email().describe("Address of the customer.") }),
  outputSchema: j.object({ plan: j.string().nullable() }),
  hints: { readOnlyHint: true },
  execute: ({ email }) => ({ plan: plans[email] ?? null }),
});

const tickets = worker.database("tickets", {
  type: "managed",
  initialTitle: "Tickets",
  primaryKeyProperty: "Id",
  schema: {
    properties: {
      Subject: Schema.title(),
      Id: Schema.richText(),
      State: Schema.select([{ name: "open" }, { name: "closed" }]),
      Seen: Schema.number(),
    },
  },
});

// The first run has two tickets; each one after it closes the oldest that is open and brings another: what a real desk's API would answer.
worker.sync("new_tickets", {
  database: tickets,
  mode: "incremental",
  schedule: "manual",
  execute: async (runs: number = 0) => {
    const ticket = (number: number, state: string) => ({
      type: "upsert" as const,
      key: `T-${number}`,
      properties: {
        Subject: Builder.title(`Ticket ${number}`),
        Id: Builder.richText(`T-${number}`),
        State: Builder.select(state),
        Seen: Builder.number(runs + 1),
      },
    });
    const changes = runs === 0 ? [ticket(1, "open"), ticket(2, "open")] : [ticket(runs, "closed"), ticket(runs + 2, "open")];
    return { changes, hasMore: false, nextState: runs + 1 };
  },
});

// Whoever sends signs the body with the secret that both know.
worker.webhook("mail", {
  title: "Mail",
  description: "Takes mail for the desk.",
  verify: ({ rawBody, headers }) => {
    const expected = createHmac("sha256", process.env.MAIL_SECRET ?? "").update(rawBody).digest("hex");
    const given = headers["x-signature"] ?? "";
    const valid = given.length === expected.length && timingSafeEqual(Buffer.from(given), Buffer.from(expected));
    return valid ? { status: 200, body: "thank you" } : { status: 401, body: "this is not signed by us" };
  },
  execute: async (events) => {
    for (const { deliveryId, body } of events) console.log(`mail ${deliveryId} from ${(body as { from?: string }).from}`);
  },
});

worker.automation("escalate", {
  title: "Call the person on duty",
  description: "What the button on a ticket does.",
  execute: async ({ actionType }) => console.log(`called, because of: ${actionType}`),
});

export default worker;
