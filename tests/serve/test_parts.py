"""Parts of `hutch serve` that need no processes."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from hutch import serve
from hutch.serving import ready
from hutch.serving.children import child_environment
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
