// The two services that this worker stands between. No request has a token: the gateway adds them on the way.

import { RateLimitError } from "@notionhq/workers";

export type Rate = { service: string; perMinute: number; since: string };
export type Issue = { number: number; url: string; labels: string[] };
type Page<T> = { items: T[]; next?: string };

export async function rates(after?: string): Promise<Page<Rate>> {
  return ask("ERRORS_URL", "GET", `rates?${query({ after })}`);
}

export async function openIssues(label: string): Promise<Issue[]> {
  const found: Issue[] = [];
  let after: string | undefined;
  do {
    const page: Page<Issue> = await ask("ISSUES_URL", "GET", `issues?${query({ state: "open", label, after })}`);
    found.push(...page.items);
    after = page.next;
  } while (after);
  return found;
}

// The tracker opens one issue for a key, however often it is asked.
export async function openIssue(key: string, issue: { title: string; body: string; labels: string[] }): Promise<Issue> {
  return ask("ISSUES_URL", "POST", "issues", issue, { "idempotency-key": key });
}

export async function closeIssue(number: number, comment: string): Promise<void> {
  await ask("ISSUES_URL", "POST", `issues/${number}/comments`, { body: comment });
  await ask("ISSUES_URL", "PATCH", `issues/${number}`, { state: "closed" });
}

function query(values: Record<string, string | undefined>): URLSearchParams {
  return new URLSearchParams(Object.entries(values).filter((entry): entry is [string, string] => entry[1] !== undefined));
}

async function ask<T>(where: "ERRORS_URL" | "ISSUES_URL", method: string, path: string, body?: object, more = {}): Promise<T> {
  const url = new URL(path, process.env[where]);
  const answer = await fetch(url, {
    method,
    headers: { "content-type": "application/json", ...more },
    body: body && JSON.stringify(body),
  });
  if (answer.status === 429) throw new RateLimitError({ retryAfter: Number(answer.headers.get("retry-after")) || undefined });
  if (!answer.ok) throw new Error(`${method} ${url.host}${url.pathname}: ${answer.status}`);
  return (await answer.json()) as T;
}
