"""Data directories whose paths are unusual: a whole server, sandboxes and all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hutch.client import AsyncClient
from hutch.isolation.gvisor import LINKS
from tests import leaks
from tests.chaos.test_server_kills import kill_everything
from tests.conftest import SETTLE_S, start_server, stop_server, wait_until

pytestmark = [pytest.mark.root, pytest.mark.sandbox]

ODD = "a b,c:d='\"\\e%f#?ü — 漢字"
LONG_BYTES = 300


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path
    while len(os.fsencode(path)) < LONG_BYTES:
        path /= ODD
    path.mkdir(parents=True)
    before, links = leaks.snapshot(path), set(LINKS.iterdir())
    yield path
    assert not leaks.new(before, leaks.snapshot(path))
    assert not {link for link in set(LINKS.iterdir()) - links if link.is_symlink() and path in link.readlink().parents}


@pytest.mark.timeout(180)
async def test_a_server_works_wherever_its_data_is(data_dir: Path, tmp_path: Path) -> None:
    log = tmp_path / "serve.log"
    process, where = start_server(data_dir, log)
    try:
        async with AsyncClient(where) as client:
            made = await client.sandboxes.create(network_policy={"allow": ["example.test"]}, ports=[3000])
            name, session = made.sandbox.name, made.session.id
            assert await client.commands.run(session, ["sh", "-c", "echo kept > kept; cat kept"]) == (0, "kept\n", "")
            forked, *_ = await client.sandboxes.fork(name, memory=True)
            assert await client.commands.run(forked.session.id, ["cat", "kept"]) == (0, "kept\n", "")
            await client.sandboxes.delete(forked.sandbox.name)
            runsc = data_dir / "host" / "runsc"
            wait_until(lambda: len(list(runsc.glob("*.sock"))) == len(leaks.machines(data_dir)), SETTLE_S, "sockets to go")
            # The host goes away and comes back: it finds the sandbox, its gateway and its ingress.
            kill_everything(process)
            process, where = start_server(data_dir, log)
        async with AsyncClient(where) as client:
            assert await client.commands.run(session, ["cat", "kept"]) == (0, "kept\n", "")
            stop_server(process, log)
            process, where = start_server(data_dir, log)
        async with AsyncClient(where) as client:
            resumed = await client.sandboxes.resume(name)
            assert resumed.session.id != session
            assert await client.commands.run(resumed.session.id, ["cat", "kept"]) == (0, "kept\n", "")
            await client.sandboxes.delete(name)
    finally:
        stop_server(process, log)
    assert "AF_UNIX" not in log.read_text()
