import assert from "node:assert/strict";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { buffer } from "node:stream/consumers";
import { SandboxUserAlreadyExistsError } from "@vercel/sandbox";
import { test, withSandbox } from "./support.mjs";

test("§17.2 users have files and commands of their own", async () => {
  const here = await mkdtemp(join(tmpdir(), "hutch-"));
  try {
    await withSandbox({}, async (sandbox) => {
      assert.deepEqual(await sandbox.getDefaultUser(), { username: "ubuntu", group: "ubuntu" });
      const alice = await sandbox.createUser("alice");
      const bob = await sandbox.createUser("bob");
      assert.deepEqual([alice.username, alice.homeDir], ["alice", "/home/alice"]);
      await assert.rejects(sandbox.createUser("alice"), SandboxUserAlreadyExistsError);

      await alice.mkDir("notes");
      await alice.writeFiles([{ path: "notes/a.txt", content: "hers", mode: 0o600 }]);
      assert.equal(String(await alice.readFileToBuffer({ path: "notes/a.txt" })), "hers");
      assert.equal(String(await buffer(await alice.readFile({ path: "/home/alice/notes/a.txt" }))), "hers");
      assert.equal(await alice.readFileToBuffer({ path: "nothing" }), null);
      const path = await alice.downloadFile({ path: "notes/a.txt" }, { path: "deep/copy", cwd: here }, { mkdirRecursive: true });
      assert.equal(await readFile(path, "utf8"), "hers");
      await assert.rejects(bob.readFileToBuffer({ path: "/home/alice/notes/a.txt" }));

      const who = await alice.runCommand({ cmd: "sh", args: ["-c", "id -un; pwd; echo $MINE"], env: { MINE: "yes" }, cwd: "/tmp" });
      assert.equal(await who.stdout(), "alice\n/tmp\nyes\n");
      const detached = await alice.runCommand({ cmd: "id", args: ["-un"], detached: true });
      assert.equal((await detached.wait()).exitCode, 0);
      assert.equal(await detached.stdout(), "alice\n");
      const root = await alice.runCommand({ cmd: "id", args: ["-u"], sudo: true });
      assert.equal(await root.stdout(), "0\n");
      assert.equal(await (await sandbox.asUser("root").runCommand("id", ["-un"])).stdout(), "root\n");
    });
  } finally {
    await rm(here, { recursive: true });
  }
});

test("§17.2 a group shares a directory", async () => {
  await withSandbox({}, async (sandbox) => {
    const alice = await sandbox.createUser("alice");
    const bob = await sandbox.createUser("bob");
    const { groupname, sharedDir } = await sandbox.createGroup("team");
    assert.deepEqual([groupname, sharedDir], ["team", "/shared/team"]);
    await sandbox.addUserToGroup("alice", "team");
    await bob.addToGroup("team");
    const wrote = await alice.runCommand("sh", ["-c", "umask 002; echo ours > /shared/team/f"]);
    assert.equal(wrote.exitCode, 0, await wrote.stderr());
    assert.equal(await (await bob.runCommand("sh", ["-c", "echo too >> /shared/team/f; cat /shared/team/f"])).stdout(), "ours\ntoo\n");
    await sandbox.removeUserFromGroup("alice", "team");
    await bob.removeFromGroup("team");
    assert.notEqual((await alice.runCommand("cat", ["/shared/team/f"])).exitCode, 0);
    assert.notEqual((await bob.runCommand("ls", ["/shared/team"])).exitCode, 0);
  });
});

test("§16.4 only the default user has sudo", async () => {
  await withSandbox({}, async (sandbox) => {
    const user = await sandbox.createUser("carol");
    assert.notEqual((await user.runCommand("sudo", ["-n", "true"])).exitCode, 0);
    assert.equal((await sandbox.runCommand("sudo", ["-u", "carol", "--", "id", "-un"])).exitCode, 0);
  });
});
