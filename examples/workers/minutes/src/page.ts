// A thread as a page in Markdown. What people wrote is text: nothing of it becomes a heading, HTML or a picture of the page.

export type Message = { author: string; at: string; text: string; reactions?: string[] };
export type Page = { title: string; markdown: string };

const DECIDED = "white_check_mark";
const CODE = /(```[\s\S]*?```|`[^`\n]+`)/;
const MARKUP = /<@([\w-]+)>|<(https?:\/\/[^|>\s]+)(?:\|([^>]*))?>/g;

// Whoever is mentioned or has written; their names are asked for.
export function peopleIn(messages: Message[]): string[] {
  const mentioned = messages.flatMap(({ text }) => [...text.matchAll(/<@([\w-]+)>/g)].map((match) => match[1]));
  return [...new Set([...messages.map(({ author }) => author), ...mentioned])].sort();
}

export function pageOf(messages: Message[], names: Map<string, string>): Page {
  if (messages.length === 0) throw new Error("the thread has no messages");
  const name = (id: string) => names.get(id) ?? id;
  const authors = [...new Set(messages.map(({ author }) => name(author)))];
  const title = plain(messages[0].text.split("\n")[0], name).slice(0, 80);
  const decisions = messages.filter(({ reactions }) => reactions?.includes(DECIDED));
  const todos = messages.flatMap(({ author, text }) =>
    [...text.matchAll(/^TODO:? +(.+)$/gm)].map(([, task]) => `- [ ] ${formatted(task, name)} (${escaped(name(author))})`),
  );
  const parts = [
    `# ${escaped(title)}`,
    `*${escaped(authors.join(", "))}; ${shown(messages[0].at)} to ${shown(messages.at(-1)!.at)}*`,
    ...section("Decisions", decisions.map(({ author, text }) => `- ${formatted(text, name).replace(/\n+/g, " ")} (${escaped(name(author))})`)),
    ...section("To do", todos),
    "## Thread",
    ...messages.map(({ author, at, text }) => `**${escaped(name(author))}**, ${shown(at)}\n\n${formatted(text, name)}`),
  ];
  return { title, markdown: parts.join("\n\n") + "\n" };
}

function section(heading: string, lines: string[]): string[] {
  return lines.length === 0 ? [] : [`## ${heading}`, lines.join("\n")];
}

function shown(at: string): string {
  return new Date(at).toISOString().slice(0, 16).replace("T", " ");
}

function plain(text: string, name: (id: string) => string): string {
  return text.replace(MARKUP, (_, id, url, label) => (id ? `@${name(id)}` : label || url));
}

// Code stays as it is; mentions become names, and addresses links.
function formatted(text: string, name: (id: string) => string): string {
  return text
    .split(CODE)
    .map((part, at) => (at % 2 === 1 ? part : outsideCode(part, name)))
    .join("")
    .trim();
}

function outsideCode(text: string, name: (id: string) => string): string {
  let done = "";
  let from = 0;
  for (const match of text.matchAll(MARKUP)) {
    const [all, id, url, label] = match;
    done += escaped(text.slice(from, match.index));
    done += id ? `**@${escaped(name(id))}**` : `[${escaped(label || url)}](<${url.replace(/[<>\\]/g, encodeURIComponent)}>)`;
    from = match.index + all.length;
  }
  return done + escaped(text.slice(from));
}

function escaped(text: string): string {
  return text.replace(/[\\`*_{}[\]<>#|~!]/g, "\\$&").replace(/^(\s*)([-+=]|\d+[.)])/gm, "$1\\$2");
}
