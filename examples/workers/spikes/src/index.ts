import { createHmac, timingSafeEqual } from "node:crypto";
import { CREDENTIAL_VALUE, Worker } from "@notionhq/workers";
import * as Builder from "@notionhq/workers/builder";
import * as Schema from "@notionhq/workers/schema";
import { closeIssue, openIssue, openIssues, rates, type Rate } from "./services.js";

const worker = new Worker();
const LABEL = "error-rate";

// Programs never see these tokens: the gateway adds each to requests to its own service.
for (const [url, key] of [["ERRORS_URL", "ERRORS_TOKEN"], ["ISSUES_URL", "ISSUES_TOKEN"]]) {
  const where = process.env[url];
  if (!where) throw new Error(`${url} is not set. Before the deploy: ntn workers env set ${url}=https://…`);
  const domain = new URL(where).hostname;
  worker.credential(key, { network: [{ domain, transform: [{ headers: { Authorization: `Bearer ${CREDENTIAL_VALUE}` } }] }] });
}

const tracker = worker.pacer("tracker", { allowedRequests: 20, intervalMs: 1000 });

const services = worker.database("services", {
  type: "managed",
  initialTitle: "Error rates",
  primaryKeyProperty: "Service",
  schema: {
    properties: {
      Service: Schema.title(),
      "Errors per minute": Schema.number(),
      State: Schema.select([{ name: "calm", color: "green" }, { name: "spike", color: "red" }]),
      Issue: Schema.url(),
    },
  },
});

// Opens an issue for a spike that has none, and closes those that are over. The tracker knows what is open, and this worker
// remembers nothing: it may be run twice, or killed and run again. `since`, when the spike began, is the same until it is over,
// so that not even two runs at once open two issues.
async function settle(found: Rate[]): Promise<{ rate: Rate; state: "calm" | "spike"; issue?: string }[]> {
  const limit = Number(process.env.SPIKE_PER_MINUTE ?? 50);
  const open = await openIssues(LABEL);
  const settled = [];
  for (const rate of found) {
    const label = `service:${rate.service}`;
    let issue = open.find((one) => one.labels.includes(label));
    if (issue === undefined && rate.perMinute >= limit) {
      issue = await openIssue(`${LABEL}/${rate.service}/${rate.since}`, {
        title: `${rate.service}: ${rate.perMinute} errors per minute`,
        body: `Since ${rate.since} ${rate.service} has more than ${limit} errors per minute.`,
        labels: [LABEL, label],
      });
      console.log(`opened ${issue.url}`);
    } else if (issue !== undefined && rate.perMinute < limit / 2) {
      // Not at the limit itself, where a rate may come and go.
      await closeIssue(issue.number, `It is over: ${rate.perMinute} errors per minute.`);
      console.log(`closed ${issue.url}`);
      issue = undefined;
    }
    settled.push({ rate, state: issue === undefined ? ("calm" as const) : ("spike" as const), issue: issue?.url });
  }
  return settled;
}

worker.sync("error_rates", {
  database: services,
  schedule: "1m",
  execute: async (after?: string) => {
    await tracker.wait();
    const { items, next } = await rates(after);
    return {
      changes: (await settle(items)).map(({ rate, state, issue }) => ({
        type: "upsert" as const,
        key: rate.service,
        properties: {
          Service: Builder.title(rate.service),
          "Errors per minute": Builder.number(rate.perMinute),
          State: Builder.select(state),
          Issue: issue === undefined ? [] : Builder.url(issue),
        },
      })),
      hasMore: next !== undefined,
      nextState: next,
    };
  },
});

// An error tracker that can call does not have to be waited for. It signs with the secret that both know.
worker.webhook("alarm", {
  title: "Alarm",
  description: "Takes the rate of one service from the error tracker.",
  verify: ({ rawBody, headers }) => {
    const expected = createHmac("sha256", process.env.ALARM_SECRET ?? "").update(rawBody).digest("hex");
    const given = headers["x-signature"] ?? "";
    const valid = process.env.ALARM_SECRET && given.length === expected.length && timingSafeEqual(Buffer.from(given), Buffer.from(expected));
    return valid ? { status: 202 } : { status: 401, body: "this is not signed by us" };
  },
  execute: async (events) => {
    await settle(events.map((event) => event.body as Rate));
  },
});

// The button: looks at every service now.
worker.automation("check", {
  title: "Check error rates",
  description: "Opens issues for spikes, and closes those that are over.",
  execute: async () => {
    let after: string | undefined;
    do {
      const { items, next } = await rates(after);
      await settle(items);
      after = next;
    } while (after);
  },
});

export default worker;
