// The CRM's API: `CRM_URL` is where it is. Without one there are the records of `CRM_SAMPLE`, to try the worker out.

import { RateLimitError } from "@notionhq/workers";

export type Company = { id: string; name: string; stage: string };
export type Person = { id: string; name: string; email: string; company: string; changed: number; deleted?: boolean };
type Records = { companies: Company[]; people: Person[]; delayMs?: number; down?: boolean };
// `next` is what the following page is asked for with; the last page has none.
export type Page<T> = { items: T[]; next?: string };

const SIZE = 2;
const FIRST: Records = {
  companies: [{ id: "acme", name: "Acme", stage: "customer" }],
  people: [{ id: "ada", name: "Ada", email: "ada@acme.example", company: "acme", changed: 1 }],
};

export async function companies(after?: string): Promise<Page<Company>> {
  if (process.env.CRM_URL) return get("companies", { after });
  return page((await sample()).companies, (company) => !after || company.id > after);
}

export async function people(after?: string): Promise<Page<Person>> {
  if (process.env.CRM_URL) return get("people", { after });
  return page((await sample()).people, (person) => !person.deleted && (!after || person.id > after));
}

// Who changed after `since`, the oldest change first; those who were deleted come with `deleted`.
export async function changedPeople(since: number, after?: string): Promise<Page<Person>> {
  if (process.env.CRM_URL) return get("people", { since: String(since), after });
  return { items: (await sample()).people.filter((person) => person.changed > since) };
}

// The request has no token: the gateway adds it on the way.
async function get<T>(path: string, query: Record<string, string | undefined>): Promise<Page<T>> {
  const url = new URL(path, process.env.CRM_URL);
  for (const [name, value] of Object.entries(query)) if (value) url.searchParams.set(name, value);
  const answer = await fetch(url);
  if (answer.status === 429) throw new RateLimitError({ retryAfter: Number(answer.headers.get("retry-after")) || undefined });
  if (!answer.ok) throw new Error(`the CRM answered ${answer.status}`);
  return (await answer.json()) as Page<T>;
}

async function sample(): Promise<Records> {
  const records = process.env.CRM_SAMPLE ? (JSON.parse(process.env.CRM_SAMPLE) as Records) : FIRST;
  if (records.delayMs) await new Promise((resolve) => setTimeout(resolve, records.delayMs));
  if (records.down) throw new Error("the CRM answered 503");
  return records;
}

function page<T extends { id: string }>(items: T[], wanted: (item: T) => boolean): Page<T> {
  const rest = items.filter(wanted).sort((one, other) => (one.id < other.id ? -1 : 1));
  const found = rest.slice(0, SIZE);
  return { items: found, next: rest.length > SIZE ? found.at(-1)?.id : undefined };
}
