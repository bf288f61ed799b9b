// The AI SDK with one tool: Python, in a sandbox. The model here is a script, so that the program runs anywhere; put
// `model: "anthropic/claude-sonnet-4.5"` or any other in its place, and nothing else changes.

import { Sandbox } from "@vercel/sandbox";
import { generateText, isStepCount, tool } from "ai";
import { MockLanguageModelV4 } from "ai/test";
import { z } from "zod";

const QUESTION = "How many primes are there below 10000, and what is their sum?";
const CODE = `
sieve = [True] * 10000
sieve[:2] = [False, False]
for n in range(2, 100):
    if sieve[n]:
        sieve[n * n :: n] = [False] * len(sieve[n * n :: n])
primes = [n for n, prime in enumerate(sieve) if prime]
print(len(primes), sum(primes))
`;

const usage = { inputTokens: { total: 0 }, outputTokens: { total: 0 } };
const model = new MockLanguageModelV4({
  async doGenerate({ prompt }) {
    const last = prompt.at(-1);
    if (last.role !== "tool") {
      const call = { type: "tool-call", toolCallId: "1", toolName: "python", input: JSON.stringify({ code: CODE }) };
      return { content: [call], finishReason: { unified: "tool-calls" }, usage, warnings: [] };
    }
    const [count, sum] = last.content[0].output.value.stdout.split(/\s+/);
    const text = `There are ${count} primes below 10000; their sum is ${sum}.`;
    return { content: [{ type: "text", text }], finishReason: { unified: "stop" }, usage, warnings: [] };
  },
});

const sandbox = await Sandbox.create({ persistent: false, networkPolicy: "deny-all" });
try {
  const python = tool({
    description: "Runs Python without network, and returns what it printed.",
    inputSchema: z.object({ code: z.string() }),
    async execute({ code }) {
      const ran = await sandbox.runCommand({ cmd: "python3", args: ["-c", code], timeoutMs: 30_000 });
      return { exitCode: ran.exitCode, stdout: await ran.stdout(), stderr: await ran.stderr() };
    },
  });
  const answer = await generateText({ model, prompt: QUESTION, tools: { python }, stopWhen: isStepCount(5) });
  console.log(answer.text);
} finally {
  await sandbox.delete();
}
