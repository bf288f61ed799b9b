import assert from "node:assert/strict";
import { withSandbox, test } from "./support.mjs";

test("§17.1 sandbox.fs works like node:fs", async () => {
  await withSandbox({}, async ({ fs }) => {
    await fs.mkdir("tree/deep", { recursive: true });
    await fs.writeFile("tree/a.txt", "one\n");
    await fs.appendFile("tree/a.txt", "two\n");
    assert.equal(await fs.readFile("tree/a.txt", "utf8"), "one\ntwo\n");
    await fs.copyFile("tree/a.txt", "tree/b.txt");
    await fs.rename("tree/b.txt", "tree/deep/c.txt");
    assert.deepEqual((await fs.readdir("tree")).sort(), ["a.txt", "deep"]);
    const entries = await fs.readdir("tree", { withFileTypes: true });
    assert.deepEqual(entries.filter((entry) => entry.isDirectory()).map((entry) => entry.name), ["deep"]);
    const stats = await fs.stat("tree/a.txt");
    assert.equal(stats.size, 8);
    assert.ok(stats.isFile());
    assert.ok(Math.abs(Date.now() - stats.mtimeMs) < 120_000);
    await fs.symlink("a.txt", "tree/link");
    assert.equal(await fs.readlink("tree/link"), "a.txt");
    assert.ok((await fs.lstat("tree/link")).isSymbolicLink());
    await fs.chmod("tree/a.txt", 0o600);
    assert.equal((await fs.stat("tree/a.txt")).mode & 0o777, 0o600);
    await fs.truncate("tree/a.txt", 3);
    assert.equal(await fs.readFile("tree/a.txt", "utf8"), "one");
    assert.equal(await fs.realpath("tree/deep/../link"), "/vercel/tree/a.txt");
    assert.match(await fs.mkdtemp("/tmp/x-"), /^\/tmp\/x-.{6}$/);
    assert.equal(await fs.exists("tree/nothing"), false);
    await assert.rejects(fs.readFile("tree/nothing"), { code: "ENOENT" });
    await assert.rejects(fs.rmdir("tree"), { code: "ENOTEMPTY" });
    await fs.unlink("tree/link");
    await fs.rm("tree", { recursive: true });
    assert.equal(await fs.exists("tree"), false);
  });
});

test("§17.1 users have homes of their own", async () => {
  await withSandbox({}, async (sandbox) => {
    assert.equal((await sandbox.getDefaultUser()).username, "ubuntu");
    const user = await sandbox.createUser("alice");
    const who = await user.runCommand("sh", ["-c", "id -un; pwd"]);
    assert.equal(await who.stdout(), "alice\n/home/alice\n");
    const barred = await user.runCommand("sudo", ["-n", "true"]);
    assert.notEqual(barred.exitCode, 0, "only the default user may use sudo");
  });
});
