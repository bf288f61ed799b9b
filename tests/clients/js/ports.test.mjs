import assert from "node:assert/strict";
import { test, withSandbox } from "./support.mjs";

const PROGRAM = `
const http = require("node:http"), { createHash } = require("node:crypto");
const server = http.createServer((request, response) => {
  let body = "";
  request.on("data", (piece) => (body += piece)).on("end", () => response.end(request.method + " " + request.url + " " + body));
});
server.on("upgrade", (request, socket) => {
  const key = createHash("sha1").update(request.headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest("base64");
  socket.write("HTTP/1.1 101 Switching Protocols\\r\\nConnection: Upgrade\\r\\nUpgrade: websocket\\r\\nSec-WebSocket-Accept: " + key + "\\r\\n\\r\\n");
  socket.write(Buffer.concat([Buffer.from([0x81, 5]), Buffer.from("hello")]));
});
server.listen(3000, "0.0.0.0", () => console.log("listening"));
`;

async function serving(sandbox) {
  const command = await sandbox.runCommand({ cmd: "node", args: ["-e", PROGRAM], detached: true });
  for await (const log of command.logs()) {
    if (log.data.includes("listening")) return;
  }
}

test("sandbox.domain is the address of what listens in the sandbox", async () => {
  await withSandbox({ timeout: 60_000, ports: [3000] }, async (sandbox) => {
    await serving(sandbox);
    const url = sandbox.domain(3000);
    const [route] = sandbox.routes;
    assert.match(route.url, /^http:\/\/sb-[a-z0-9]{12}\.localhost:\d+$/);
    assert.equal(await (await fetch(`${url}/path?q=1`)).text(), "GET /path?q=1 ");
    assert.equal(await (await fetch(url, { method: "POST", body: "given" })).text(), "POST / given");
    assert.equal(await (await fetch(new Request(`${url}/r`, { method: "PUT", body: "x" }))).text(), "PUT /r x");
    assert.equal(await (await fetch(route.url)).text(), "GET / ");
    const socket = new WebSocket(url.replace("https", "wss"));
    const message = await new Promise((resolve, reject) => {
      socket.onmessage = (event) => resolve(event.data);
      socket.onerror = () => reject(new Error("the WebSocket failed"));
    });
    assert.equal(message, "hello");
    socket.close();

    await sandbox.update({ ports: [] });
    assert.equal((await fetch(url)).status, 404);
    await sandbox.update({ ports: [3000, 3001] });
    assert.equal((await fetch(sandbox.domain(3001))).status, 502);
    assert.equal((await fetch(sandbox.domain(3000))).status, 200);
    await sandbox.stop();
    assert.equal((await fetch(sandbox.domain(3000))).status, 410);
  });
});
