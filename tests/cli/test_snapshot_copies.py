"""A whole server with a blob store, as a user has it: copies, archives, damage."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import leaks
from tests.cli.conftest import Hutch, Ran, run_hutch
from tests.conftest import start_server, stop_server, tail, wait_until

pytestmark = [pytest.mark.root, pytest.mark.sandbox]

STORED_S = 60.0


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def stored(data_dir: Path, tmp_path: Path) -> Iterator[Hutch]:
    """Runs `hutch …` against a server that copies snapshots into a directory."""
    before = leaks.snapshot(data_dir)
    settings = {"HUTCH_POOL__SIZE": "0", "HUTCH_BLOBS__URL": "local"}
    process, server = start_server(data_dir, tmp_path / "log", environment=settings)

    def run(*arguments: str, stdin: bytes = b"") -> Ran:
        own = {"PATH": os.environ["PATH"], "HUTCH_URL": server.url, "HUTCH_TOKEN": server.token}
        return run_hutch(*arguments, environment=own, stdin=stdin)

    try:
        yield run
    finally:
        stop_server(process, tmp_path / "log")
    left = leaks.new(before, leaks.snapshot(data_dir))
    assert not left, left


def test_a_snapshot_is_copied_checked_exported_and_imported(stored: Hutch, data_dir: Path, tmp_path: Path) -> None:
    assert stored("create", "--name", "one").code == 0
    assert stored("exec", "one", "--", "sh", "-c", "head -c 3000000 /dev/urandom > kept; sha256sum kept > sum").code == 0
    assert stored("stop", "one").code == 0

    def shown() -> dict[str, object]:
        return dict(json.loads(stored("snapshot", "ls", "--json").out)["snapshots"][0])

    wait_until(lambda: shown()["storedAt"] is not None, STORED_S, lambda: f"{shown()}\n{tail(tmp_path / 'log')}")
    name = str(shown()["id"])
    verified = stored("snapshot", "verify", name)
    assert (verified.code, verified.out.split(":")[0]) == (0, f"{name} is whole")
    assert "the same as the files on the machine" in verified.out

    tar = tmp_path / "one.tar"
    assert stored("snapshot", "export", name, str(tar)).code == 0
    imported = stored("snapshot", "import", str(tar))
    assert imported.code == 0, imported.err
    created = stored("create", "--name", "two", "--snapshot", imported.out.strip())
    assert created.code == 0, created.err
    assert stored("exec", "two", "--", "sha256sum", "-c", "sum").out == "kept: OK\n"
    assert stored("rm", "two").code == 0
    refused = stored("snapshot", "import", "-", stdin=b"no tar at all")
    assert (refused.code, "(invalid_archive)" in refused.err) == (1, True)

    # What is lost in the store is told; the files on the machine are not touched.
    manifest = json.loads(stored("snapshot", "verify", name, "--json").out)["manifest"]
    (data_dir / "host" / "blobs" / "manifests" / manifest).unlink()
    damaged = stored("snapshot", "verify", name)
    assert (damaged.code, "(snapshot_damaged)" in damaged.err) == (1, True)
    assert stored("exec", "one", "--", "sha256sum", "-c", "sum").out == "kept: OK\n"
    assert stored("rm", "one").code == 0
