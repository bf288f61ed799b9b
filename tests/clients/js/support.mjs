// What every behaviour's test needs. Sandboxes are ephemeral and deleted, whatever the test does.

import { Sandbox } from "@vercel/sandbox";

export { test } from "./shown.mjs";

/** Runs `body` with a new sandbox and deletes it. */
export async function withSandbox(options, body) {
  const sandbox = await Sandbox.create({ persistent: false, ...options });
  try {
    return await body(sandbox);
  } finally {
    await sandbox.delete().catch((error) => {
      if (error?.response?.status !== 404) throw error;
    });
  }
}

/** What an API error said: its status and `error.code`. Anything that is not one is thrown again. */
export async function refusal(promise) {
  try {
    await promise;
  } catch (error) {
    if (error?.response === undefined) throw error;
    return { status: error.response.status, code: error.json?.error?.code, message: error.json?.error?.message };
  }
  throw new Error("expected the API to refuse");
}

export async function collected(command) {
  return { exitCode: command.exitCode, stdout: await command.stdout(), stderr: await command.stderr() };
}
