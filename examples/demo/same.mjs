// The program of same.py and same.sh, through @vercel/sandbox. All three print the same lines.

import { Sandbox } from "@vercel/sandbox";

const PROGRAM = "import sys\nfor n in range(1, 6):\n    print(n, n ** n, flush=True)\nprint('done', file=sys.stderr)\nsys.exit(3)\n";

const sandbox = await Sandbox.create({ persistent: false });
try {
  console.log(`created ${sandbox.status}`);
  await sandbox.writeFiles([{ path: "powers.py", content: PROGRAM }]);
  const running = await sandbox.runCommand({ cmd: "python3", args: ["powers.py"], detached: true });
  for await (const { stream, data } of running.logs()) {
    if (stream === "stdout") process.stdout.write(data);
  }
  console.log(`exit code ${(await running.wait()).exitCode}`);
  const counted = await sandbox.runCommand("wc", ["-c", "powers.py"]);
  process.stdout.write(await counted.stdout());
} finally {
  await sandbox.stop();
  await sandbox.delete();
}
const left = await Sandbox.get({ name: sandbox.name }).then(() => "still there", (error) => error.response.status);
console.log(`deleted ${left}`);
