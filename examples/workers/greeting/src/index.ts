import { Worker, j } from "@notionhq/workers";

const worker = new Worker();

worker.tool("greet", {
  title: "Greet",
  description: "Greets somebody, in the language that is asked for.",
  schema: j.object({
    name: j.string().describe("Who is greeted."),
    language: j.enum("en", "de").nullable().describe("English if null."),
  }),
  outputSchema: j.object({ greeting: j.string() }),
  hints: { readOnlyHint: true },
  execute: ({ name, language }) => {
    console.log(`greeting ${name}`);
    return { greeting: `${language === "de" ? "Hallo" : "Hello"}, ${name}!` };
  },
});

export default worker;
