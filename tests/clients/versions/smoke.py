"""What vercel-sandbox 0.4.0 has, with nothing but the variables of `hutch env`."""

from __future__ import annotations

import asyncio

import vercel.sandbox
import vercel.sandbox.sync
from vercel.sandbox import NetworkPolicy, NetworkPolicyRule, NetworkPolicyTransform


def synchronous() -> None:
    sandbox = vercel.sandbox.sync.create_sandbox(persistent=True, env={"COLOUR": "blue"}, execution_time_limit=60)
    try:
        done = sandbox.run_process("sh", ["-c", "echo $COLOUR; echo problem >&2; exit 3"], stdout=-1, stderr=-1)
        assert (done.returncode, done.stdout, done.stderr) == (3, "blue\n", "problem\n"), done
        process = sandbox.create_process("sleep", ["600"])
        process.terminate()
        assert process.wait() == 143
        sandbox.fs.write_text("made/f", "kept")
        assert sandbox.fs.read_text("made/f") == "kept"
        assert [entry.path for entry in sandbox.fs.listdir("made")] == ["f"]
        rule = NetworkPolicyRule(transform=[NetworkPolicyTransform(headers={"authorization": "secret"})])
        policy = NetworkPolicy.custom({"example.com": [], "api.example.com": [rule]})
        session = sandbox.update_network_policy(policy)
        assert session.network_policy is not None
        assert "secret" not in repr(session.network_policy)
        sandbox.extend_execution_time_limit(5)
        sandbox.stop()
        assert sandbox.fs.read_text("made/f") == "kept", "it resumes"
        snapshot = sandbox.snapshot()
        assert vercel.sandbox.sync.get_snapshot(snapshot_id=snapshot.id).id == snapshot.id
        assert vercel.sandbox.sync.resume_sandbox(name=sandbox.name).name == sandbox.name
        assert sandbox.name in [one.name for one in vercel.sandbox.sync.query_sandboxes()]
        for one in list(vercel.sandbox.sync.query_snapshots(name=sandbox.name)):
            one.delete()
    finally:
        sandbox.destroy()


async def asynchronous() -> None:
    async with vercel.sandbox.create_sandbox(persistent=False) as sandbox:
        process = await sandbox.create_process("echo", ["hello"])
        assert await process.wait() == 0
        await sandbox.fs.write_bytes("f", b"x")
        assert await sandbox.fs.read_bytes("f") == b"x"


synchronous()
asyncio.run(asynchronous())
print("whole")
