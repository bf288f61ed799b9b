"""The synchronous Python SDK, and both with nothing but the variables of `hutch env`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from vercel.sandbox.sync import SandboxApiError, SyncSandboxClient

pytestmark = [pytest.mark.clients, pytest.mark.sandbox, pytest.mark.root]


def test_a_sandbox_is_created_used_and_destroyed(sync_sdk: SyncSandboxClient) -> None:
    name = f"sync-{os.getpid()}"
    with sync_sdk.create_sandbox(name=name, persistent=False, env={"COLOUR": "blue"}) as sandbox:
        done = sandbox.run_process("sh", ["-c", "echo $COLOUR; echo problem >&2; exit 3"], capture_output=True)
        assert (done.returncode, done.stdout, done.stderr) == (3, "blue\n", "problem\n")
        assert sync_sdk.get_sandbox(name=name).current_session_id == sandbox.current_session_id
    with pytest.raises(SandboxApiError) as error:
        sync_sdk.get_sandbox(name=name)
    assert error.value.status_code == 404


def test_an_image_of_a_registry_runs_as_it_says(sync_sdk: SyncSandboxClient, small_image: str) -> None:
    with sync_sdk.create_sandbox(image=small_image, persistent=False) as sandbox:
        done = sandbox.run_process("sh", ["-c", "id -un; pwd; echo $GREETING"], capture_output=True)
        assert (done.returncode, done.stdout) == (0, "joe\n/srv\nhello\n")


def test_processes_take_input_and_signals(sync_sdk: SyncSandboxClient) -> None:
    with sync_sdk.create_sandbox(persistent=False) as sandbox:
        done = sandbox.run_process("tr", ["a-z", "A-Z"], input="shout", capture_output=True)
        assert done.stdout == "SHOUT"
        process = sandbox.create_process("sleep", ["600"])
        process.kill()
        assert process.wait() == 137
        assert sandbox.run_process("sleep", ["600"], kill_after=0.3).returncode == 137


def test_files_are_written_read_and_listed(sync_sdk: SyncSandboxClient) -> None:
    with sync_sdk.create_sandbox(persistent=False) as sandbox:
        blob = os.urandom(300_001)
        sandbox.fs.write_bytes("deep/blob", blob)
        assert sandbox.fs.read_bytes("deep/blob") == blob
        assert [entry.path for entry in sandbox.fs.listdir("deep")] == ["blob"]
        sandbox.fs.remove("deep", recursive=True)
        assert not sandbox.fs.exists("deep")


UNCHANGED = """
import asyncio
import vercel.sandbox, vercel.sandbox.sync

async def main():
    async with vercel.sandbox.create_sandbox(persistent=False) as sandbox:
        await sandbox.run_process("echo", ["asynchronous"])

with vercel.sandbox.sync.create_sandbox(persistent=False) as sandbox:
    sandbox.run_process("echo", ["synchronous"])
asyncio.run(main())
"""


def test_a_program_needs_no_change_under_hutch_env(client_environment: dict[str, str], leak_check: None, tmp_path: Path) -> None:
    # A sitecustomize that was there before must still run.
    (tmp_path / "sitecustomize.py").write_text("print('mine', flush=True)\n")
    path = os.pathsep.join([client_environment["PYTHONPATH"], str(tmp_path)])
    done = subprocess.run(
        [sys.executable, "-c", UNCHANGED],
        env=client_environment | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "mine\nsynchronous\nasynchronous\n"
