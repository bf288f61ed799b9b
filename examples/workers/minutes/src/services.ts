// The chat, and where pages are put. No request has a token: the gateway adds them on the way.

import { RateLimitError } from "@notionhq/workers";
import type { Message } from "./page.js";

export type Thread = { channel: string; thread: string };

export async function messagesOf({ channel, thread }: Thread): Promise<Message[]> {
  const found: Message[] = [];
  let after: string | undefined;
  do {
    const path = `channels/${encodeURIComponent(channel)}/threads/${encodeURIComponent(thread)}/messages`;
    const page = await ask<{ items: Message[]; next?: string }>("CHAT_URL", "GET", after ? `${path}?after=${after}` : path);
    found.push(...page.items);
    after = page.next;
  } while (after);
  return found;
}

export async function namesOf(ids: string[]): Promise<Map<string, string>> {
  const { items } = await ask<{ items: { id: string; name: string }[] }>("CHAT_URL", "GET", `users?ids=${ids.map(encodeURIComponent)}`);
  return new Map(items.map(({ id, name }) => [id, name]));
}

// The name is the thread's, so that publishing it again replaces its page.
export async function putPage({ channel, thread }: Thread, page: { title: string; markdown: string }): Promise<string> {
  const name = encodeURIComponent(`${channel}-${thread}`);
  return (await ask<{ url: string }>("PAGES_URL", "PUT", `pages/${name}`, page)).url;
}

async function ask<T>(where: "CHAT_URL" | "PAGES_URL", method: string, path: string, body?: object): Promise<T> {
  const url = new URL(path, process.env[where]);
  const answer = await fetch(url, { method, headers: { "content-type": "application/json" }, body: body && JSON.stringify(body) });
  if (answer.status === 429) throw new RateLimitError({ retryAfter: Number(answer.headers.get("retry-after")) || undefined });
  if (!answer.ok) throw new Error(`${method} ${url.host}${url.pathname}: ${answer.status}`);
  return (await answer.json()) as T;
}
