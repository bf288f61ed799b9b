// Loads a worker and runs one of its capabilities, or writes its manifest down.
//
//   node runner.mjs ENTRY --manifest FILE      the manifest → FILE
//   node runner.mjs ENTRY --run                loads, then reads {"key", "context"} from standard input to its end, and runs that
//                                              capability; the worker's SDK writes the result
//
// A runner may be started long before there is something to run: it has loaded the worker then, and waits.
//
// The entry is a module whose default export has `run` and `manifest`; a CommonJS build has it one `default` deeper. Nothing is said
// about its class: the worker has an SDK of its own. The exit code is 0 for a success, and 1 for a failure of any kind.
import { writeFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [, , entry, mode, ...rest] = process.argv;

async function worker() {
  const module = await import(pathToFileURL(entry).href);
  const found = module.default?.default ?? module.default;
  if (typeof found?.run !== "function") {
    throw new Error(`${entry} has no Worker as its default export (\`const worker = new Worker(); export default worker;\`)`);
  }
  return found;
}

function input() {
  return new Promise((resolve, reject) => {
    const parts = [];
    process.stdin.on("data", (part) => parts.push(part));
    process.stdin.on("end", () => resolve(Buffer.concat(parts).toString("utf8")));
    process.stdin.on("error", reject);
  });
}

async function main() {
  if (mode === "--manifest") {
    const { manifest } = await worker();
    if (manifest === undefined) throw new Error(`the default export of ${entry} has no manifest: is it a Worker of @notionhq/workers?`);
    writeFileSync(rest[0], JSON.stringify(manifest));
    return 0;
  }
  const loaded = await worker();
  const { key, context } = JSON.parse(await input());
  const result = await loaded.run(key, context);
  // Tools resolve with their error.
  return result?._tag === "error" || result?.name?.match?.(/^(InvalidToolInput|InvalidToolOutput|ToolExecution)Error$/) ? 1 : 0;
}

let code = 1;
try {
  code = await main();
} catch (error) {
  console.error(error);
}
// Workers leave timers and sockets open; both streams are flushed first.
process.stdout.write("", () => process.stderr.write("", () => process.exit(code)));
