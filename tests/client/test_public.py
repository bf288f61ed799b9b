"""What is public, and that both flavours are one."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import hutch
from hutch import client
from hutch.client import AsyncClient, Client
from hutch.client._async import runner as async_runner
from hutch.client._sync import runner
from scripts.write_sync_client import differences

PUBLIC = [
    "AsyncClient AsyncCommand AsyncDrive AsyncFilesystem AsyncImage AsyncInteractiveSession AsyncSandbox AsyncSession",
    "AsyncSnapshot Client Command CommandFailedError CompletedCommand DirectoryEntry Drive DriveMount Duration FileStat",
    "Filesystem Finished GitSource Image InteractiveSession NetworkPolicy Output Retry Sandbox SandboxResources Server Session",
    "Snapshot SnapshotRetention SnapshotSource Started TarballSource find_server models server_file",
]
PAIRS = [
    (AsyncClient, Client),
    (client.AsyncSandbox, client.Sandbox),
    (client.AsyncSession, client.Session),
    (client.AsyncCommand, client.Command),
    (client.AsyncFilesystem, client.Filesystem),
    (client.AsyncSnapshot, client.Snapshot),
    (client.AsyncDrive, client.Drive),
    (client.AsyncImage, client.Image),
    (client.AsyncInteractiveSession, client.InteractiveSession),
    (async_runner.Runner, runner.Runner),
]


def test_what_is_exported_is_what_is_promised() -> None:
    assert client.__all__ == " ".join(PUBLIC).split()
    for name in client.__all__:
        assert getattr(client, name) is not None


def test_the_blocking_flavour_is_written_from_the_other_one() -> None:
    assert differences() == []


@pytest.mark.parametrize(("waiting", "blocking"), PAIRS)
def test_both_flavours_have_the_same_methods(waiting: type, blocking: type) -> None:
    renamed = {"aclose": "close"}
    names = {renamed.get(name, name) for name in dir(waiting) if not name.startswith("_")}
    assert names == {name for name in dir(blocking) if not name.startswith("_")}
    for name, method in inspect.getmembers(blocking, inspect.isfunction):
        assert not inspect.iscoroutinefunction(method), name


@pytest.mark.parametrize(("waiting", "blocking"), PAIRS)
def test_classes_and_what_is_not_plain_say_what_they_do(waiting: type, blocking: type) -> None:
    assert waiting.__doc__
    assert blocking.__doc__
    assert "Async" not in (blocking.__doc__ or "")


def test_importing_hutch_imports_nothing_and_asking_for_the_client_no_server() -> None:
    script = (
        "import sys, hutch\n"
        "assert not {'httpx', 'hutch.client', 'asyncio'} & set(sys.modules), 'heavy'\n"
        "hutch.Client, hutch.AsyncClient\n"
        "server = ('fastapi', 'sqlalchemy', 'pydantic', 'hutch.api', 'hutch.host')\n"
        "heavy = {name for name in sys.modules if name.startswith(server)}\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_name_that_hutch_does_not_have() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Clint'"):
        hutch.Clint  # noqa: B018


def test_a_client_shows_its_server_and_never_its_token() -> None:
    with Client(url="http://127.0.0.1:1", token="a.b.c") as made:
        assert repr(made) == "Client('http://127.0.0.1:1')"
        assert "a.b.c" not in repr(made.server)
