// ComputeSDK with its own provider for Vercel, unmodified: the same program runs with any other of its providers.

import { vercel } from "@computesdk/vercel";

const WORDS = "the quick brown fox jumps over the lazy dog and the fox sleeps";

const compute = vercel({ token: process.env.VERCEL_TOKEN, teamId: process.env.VERCEL_TEAM_ID, projectId: process.env.VERCEL_PROJECT_ID });
const sandbox = await compute.sandbox.create();
try {
  await sandbox.filesystem.writeFile("words.txt", WORDS);
  const counted = await sandbox.runCommand("tr ' ' '\\n' < words.txt | sort | uniq -c | sort -rn | head -1 | awk '{ print $2, $1 }'");
  const [word, times] = counted.stdout.trim().split(" ");
  console.log(`The most frequent word is "${word}", ${times} times.`);
} finally {
  await sandbox.destroy();
}
