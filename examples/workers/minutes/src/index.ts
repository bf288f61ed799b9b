import { CREDENTIAL_VALUE, Worker, j } from "@notionhq/workers";
import { pageOf, peopleIn, type Page } from "./page.js";
import { messagesOf, namesOf, putPage, type Thread } from "./services.js";

const worker = new Worker();

// Programs never see these tokens: the gateway adds each to requests to its own service.
for (const [url, key] of [["CHAT_URL", "CHAT_TOKEN"], ["PAGES_URL", "PAGES_TOKEN"]]) {
  const where = process.env[url];
  if (!where) throw new Error(`${url} is not set. Before the deploy: ntn workers env set ${url}=https://…`);
  const domain = new URL(where).hostname;
  worker.credential(key, { network: [{ domain, transform: [{ headers: { Authorization: `Bearer ${CREDENTIAL_VALUE}` } }] }] });
}

async function read(thread: Thread): Promise<Page> {
  const messages = await messagesOf(thread);
  return pageOf(messages, await namesOf(peopleIn(messages)));
}

async function publish(thread: Thread): Promise<{ title: string; url: string }> {
  const page = await read(thread);
  return { title: page.title, url: await putPage(thread, page) };
}

const schema = j.object({
  channel: j.string().describe("Id of the channel."),
  thread: j.string().describe("Id of the thread."),
});

worker.tool("read_thread", {
  title: "Read a thread as a page",
  description: "Returns a chat thread as a page in Markdown, with its decisions and open tasks first. Changes nothing.",
  schema,
  outputSchema: j.object({ title: j.string(), markdown: j.string() }),
  hints: { readOnlyHint: true },
  execute: read,
});

worker.tool("publish_thread", {
  title: "Publish a thread as a page",
  description: "Makes a page of a chat thread, or renews the one that there is, and returns its address.",
  schema,
  outputSchema: j.object({ title: j.string(), url: j.string() }),
  execute: publish,
});

// The button: on a page with a property `Thread`, the address of a thread (…/channels/CHANNEL/threads/THREAD).
worker.automation("publish", {
  title: "Publish the thread",
  description: "Makes a page of the thread that the property Thread names.",
  execute: async ({ pageData }) => {
    const property = pageData?.properties.Thread as { url?: string | null } | undefined;
    const match = /\/channels\/([^/?#]+)\/threads\/([^/?#]+)/.exec(property?.url ?? "");
    if (match === null) throw new Error("The property Thread has no address of a thread.");
    const [channel, thread] = match.slice(1).map(decodeURIComponent);
    console.log(`published ${(await publish({ channel, thread })).url}`);
  },
});

export default worker;
