"""Parts of `hutch serve` that need no processes."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from asyncio.subprocess import Process
from pathlib import Path

import pytest
from sqlalchemy.exc import DBAPIError

from hutch import serve
from hutch.api.startup import for_ever
from hutch.serving import ready
from hutch.serving.children import Child, child_environment
from hutch.serving.supervisor import base_url, listen
from hutch.settings import HOST_SECRETS, SettingsError, load


def test_a_child_loads_the_same_settings_whatever_their_source(tmp_path: Path) -> None:
    file = tmp_path / "hutch.toml"
    file.write_text(
        "[pool]\nsize = 5\nimages = ['a', 'b:c']\n[database]\nurl = 'postgresql://u:p@h/d'\n[server]\npublic_url = 'https://x.test/'\n"
    )
    environment = {"HUTCH_SANDBOX__REGION": "fra1", "HUTCH_URL": "http://kept", "PATH": "/bin"}
    settings = load(file, environment=environment, flags={"server.listen": "127.0.0.1:0", "isolation.backend": "gvisor"})
    passed = child_environment(settings, environment, {"server.listen": "127.0.0.1:4711"})
    assert passed["PATH"] == "/bin"
    assert passed["HUTCH_URL"] == "http://kept"
    child = load(environment=passed)
    assert child.server.listen == "127.0.0.1:4711"
    for section in type(settings).model_fields:
        if section != "server":
            assert getattr(child, section) == getattr(settings, section), section
    assert child.server.public_url == "https://x.test"


def test_only_the_host_gets_the_keys_of_the_blob_store() -> None:
    environment = {"HUTCH_BLOBS__SECRET_ACCESS_KEY": "s3cret", "HUTCH_BLOBS__URL": "local"}
    settings = load(environment=environment)
    assert child_environment(settings, environment, {})["HUTCH_BLOBS__SECRET_ACCESS_KEY"] == "s3cret"
    confined = child_environment(settings, environment, {}, without=HOST_SECRETS)
    assert "s3cret" not in str(confined)
    assert load(environment=confined).blobs.url == "local"


def test_a_variable_of_the_parent_does_not_beat_its_flag() -> None:
    environment = {"HUTCH_POOL__SIZE": "9"}
    settings = load(environment=environment, flags={"pool.size": 1})
    assert load(environment=child_environment(settings, environment, {})).pool.size == 1


def test_a_ready_file_is_written_whole_and_removed_only_by_its_owner(tmp_path: Path) -> None:
    content = ready.Ready("u", "t", "a", "b", None, None, "gvisor", 4711)
    path = tmp_path / "ready.json"
    path.write_text("old")
    ready.write(path, content)
    assert json.loads(path.read_text())["pid"] == 4711
    assert [file.name for file in tmp_path.iterdir()] == ["ready.json"]
    ready.remove(path, 1)
    assert path.exists()
    ready.remove(path, 4711)
    assert not path.exists()
    ready.remove(path, 4711)


def test_a_ready_file_that_can_not_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "ready.json").mkdir()
    (tmp_path / "ready.json" / "x").write_text("")
    with pytest.raises(OSError, match=r".+"):
        ready.write(tmp_path / "ready.json", ready.Ready("u", "t", "a", "b", None, None, "gvisor", 1))
    assert [file.name for file in tmp_path.iterdir()] == ["ready.json"]


@pytest.mark.parametrize(
    ("address", "host"),
    [("127.0.0.1:0", "127.0.0.1"), ("0.0.0.0:0", "127.0.0.1"), ("[::1]:0", "[::1]"), ("[::]:0", "[::1]"), ("localhost:0", None)],
)
def test_the_url_is_one_that_a_client_on_this_machine_can_use(address: str, host: str | None) -> None:
    if "::" in address and not socket.has_ipv6:
        pytest.fail("this machine has no IPv6")
    settings = load(environment={}, flags={"server.listen": address})
    with listen(settings) as listener:
        url = base_url(settings, listener)
        port = listener.getsockname()[1]
        assert url == f"http://{host or url.removeprefix('http://').rpartition(':')[0]}:{port}"
        socket.create_connection((url.removeprefix("http://").rpartition(":")[0].strip("[]"), port)).close()


def test_a_public_url_wins() -> None:
    settings = load(environment={}, flags={"server.listen": "127.0.0.1:0", "server.public_url": "https://x.test/base/"})
    with listen(settings) as listener:
        assert base_url(settings, listener) == "https://x.test/base"


@pytest.mark.root
def test_a_policy_of_the_operator_that_is_none_starts_nothing(tmp_path: Path) -> None:
    file, data_dir = tmp_path / "policy.json", tmp_path / "data"
    file.write_text('{"allow": ["api*.x"]}')
    settings = load(environment={"HUTCH_EGRESS__POLICY": str(file)}, flags={"server.data_dir": data_dir})
    with pytest.raises(SettingsError, match="/allow/0"):
        serve.run(settings)
    assert not data_dir.exists()


async def test_a_child_that_could_not_be_started_once_is_started_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("hutch.serving.children.FIRST_PAUSE_S", 0.01)
    child = Child("part", ["sleep", "1000"], {"PATH": os.environ["PATH"]})
    tries = 0

    async def start(own: Child) -> Process:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return await own.start()

    kept = asyncio.ensure_future(child.keep(start))
    async with asyncio.timeout(30):
        while child.process is None:
            await asyncio.sleep(0.01)
    assert await child.stop(10)
    await kept
    assert tries == 3
    assert "part could not be started" in caplog.text


async def test_a_loop_that_fails_goes_on(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("hutch.api.startup.AGAIN_S", 0.01)
    tries = 0

    async def loop() -> None:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise DBAPIError("", {}, Exception("nobody thought of it"))
        await asyncio.sleep(1000)

    running = asyncio.ensure_future(for_ever(loop))
    async with asyncio.timeout(30):
        while tries < 3:
            await asyncio.sleep(0.01)
    assert not running.done()
    running.cancel()
    assert caplog.text.count("nobody thought of it") >= 2
