import assert from "node:assert/strict";
import { test, withSandbox } from "./support.mjs";

/** A terminal's socket after its `start`, and what it has shown so far. */
async function connected({ url, token }, start) {
  assert.match(url, /^wss?:\/\//);
  assert.ok(token.length > 0);
  assert.ok(!url.includes("?"), "clients add the token as the query");
  const socket = new WebSocket(`${url}?token=${encodeURIComponent(token)}`);
  socket.binaryType = "arraybuffer";
  const seen = { output: "", exit: undefined, close: undefined };
  const waiting = new Set();
  const changed = () => waiting.forEach((check) => check());
  socket.onmessage = ({ data }) => {
    if (typeof data !== "string") seen.output += Buffer.from(data).toString();
    else seen.exit = JSON.parse(data);
    changed();
  };
  socket.onclose = ({ code }) => {
    seen.close = code;
    changed();
  };
  const until = (condition) =>
    new Promise((resolve) => {
      const check = () => condition(seen) && (waiting.delete(check), resolve(seen));
      waiting.add(check);
      check();
    });
  await new Promise((resolve, reject) => Object.assign(socket, { onopen: resolve, onerror: reject }));
  socket.send(JSON.stringify({ type: "start", ...start }));
  return { socket, until };
}

test("§10.2 a terminal takes what is typed, its size, and says how its program ended", async () => {
  await withSandbox({ env: { LAYER: "sandbox", KEPT: "yes" } }, async (sandbox) => {
    const start = { command: "sh", args: [], env: ["TERM=xterm-256color", "LAYER=terminal"], cwd: "/tmp", cols: 100, rows: 30 };
    const { socket, until } = await connected(await sandbox.openInteractive(), start);
    socket.send(Buffer.from("stty size; pwd; echo $TERM-$LAYER-$KEPT\n"));
    await until((seen) => seen.output.includes("30 100") && seen.output.includes("xterm-256color-terminal-yes"));
    socket.send(JSON.stringify({ type: "resize", cols: 120, rows: 40 }));
    socket.send(Buffer.from("stty size; exit 7\n"));
    const seen = await until(({ close }) => close !== undefined);
    assert.match(seen.output, /40 120/);
    assert.match(seen.output, /\/tmp\r\n/);
    assert.deepEqual([seen.exit, seen.close], [{ type: "exit", code: 7 }, 1000]);
  });
});

test("§10.2 sudo in a terminal is root, and a session opens terminals too", async () => {
  await withSandbox({}, async (sandbox) => {
    const start = { command: "sudo", args: ["id", "-u"], env: [], cwd: "/vercel", cols: 0, rows: 0 };
    const { until } = await connected(await sandbox.currentSession().openInteractive(), start);
    const seen = await until(({ close }) => close !== undefined);
    assert.equal(seen.output, "0\r\n");
    assert.equal(seen.exit.code, 0);
  });
});

test("§10.2 a socket that closes hangs its program up", async () => {
  await withSandbox({}, async (sandbox) => {
    const start = { command: "sh", args: ["-c", "trap 'echo hung up > /tmp/hup; exit' HUP; echo ready; while :; do sleep 0.05; done"], env: [] };
    const { socket, until } = await connected(await sandbox.openInteractive(), start);
    await until((seen) => seen.output.includes("ready"));
    socket.close();
    const waited = await sandbox.runCommand("sh", ["-c", "until [ -s /tmp/hup ]; do sleep 0.05; done; cat /tmp/hup"]);
    assert.equal(await waited.stdout(), "hung up\n");
  });
});
