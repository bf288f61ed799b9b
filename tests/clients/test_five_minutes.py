"""What docs/workers.md promises a newcomer: from nothing to a sync with rows, by its commands and files as they stand there."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hutch.client.places import server_file
from tests import leaks
from tests.clients.conftest import tool_path
from tests.conftest import CHECKOUT, STOP_S, tail, wait_until

pytestmark = [pytest.mark.root, pytest.mark.sandbox, pytest.mark.timeout(600)]

BLOCK = re.compile(r"(?:^`(?P<file>[\w./-]+)`:\n\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
START_S = 300.0


def section(heading: str) -> str:
    page = (CHECKOUT / "docs" / "workers.md").read_text()
    found = re.findall(rf"^## {re.escape(heading)}\n(.*?)(?=^## )", page, re.DOTALL | re.MULTILINE)
    assert len(found) == 1, heading
    return str(found[0])


def script(blocks: list[re.Match[str]]) -> str:
    """Commands and files in the order of the page, as somebody types and saves them in one shell."""
    lines = []
    for block in blocks:
        if block["file"] is None:
            assert block["language"] == "sh", f"a block that is neither a file's nor the shell's: {block['text']}"
            lines.append(block["text"])
        else:
            assert "\nEND OF FILE\n" not in block["text"]
            lines.append(f"cat >'{block['file']}' <<'END OF FILE'\n{block['text']}END OF FILE\n")
    return "".join(lines)


@dataclass(frozen=True, slots=True)
class Newcomer:
    """Somebody with a checkout, and nothing else of Hutch."""

    environment: dict[str, str]
    data_dir: Path
    directory: Path


@pytest.fixture(scope="module")
def newcomer() -> Iterator[Newcomer]:
    """With the server of the page's first command."""
    [first, *_] = BLOCK.finditer(section("Five minutes: from nothing to a sync"))
    assert first["language"] == "sh"
    directory = Path(tempfile.mkdtemp(prefix="newcomer-"))
    data_dir, log = directory / "data", directory / "serve.log"
    servers = ("HUTCH_", "VERCEL_", "NOTION_", "NODE_OPTIONS")
    own = {name: value for name, value in os.environ.items() if not name.startswith(servers)}
    own |= {name: os.environ[name] for name in ("HUTCH_CACHE_DIR",) if name in os.environ}
    places = {"HUTCH_SERVER__DATA_DIR": str(data_dir), "HUTCH_SERVER__LISTEN": "127.0.0.1:0", "TMPDIR": str(directory)}
    environment = own | places | {"PATH": tool_path(), "NOTION_HOME": str(directory / "notion")}
    before = leaks.snapshot(data_dir)
    with log.open("wb") as output:
        make = subprocess.Popen(
            ["sh", "-ec", f"exec {first['text']}"], cwd=CHECKOUT, env=environment, stdout=output, stderr=output
        )
    try:
        wait_until(lambda: server_file(data_dir).exists() or make.poll() is not None, START_S, lambda: tail(log))
        assert make.poll() is None, tail(log)
        yield Newcomer(environment, data_dir, directory)
    finally:
        # `make` hands it on, and waits.
        make.send_signal(signal.SIGTERM)
        make.wait(STOP_S)
    wait_until(
        lambda: not leaks.new(before, leaks.snapshot(data_dir)), 20, lambda: str(leaks.new(before, leaks.snapshot(data_dir)))
    )
    assert not server_file(data_dir).exists(), tail(log)
    shutil.rmtree(directory)


def run(newcomer: Newcomer, text: str) -> str:
    done = subprocess.run(
        ["sh", "-eu"],
        input=text,
        cwd=CHECKOUT,
        env=newcomer.environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_from_nothing_to_a_sync_with_ntn(newcomer: Newcomer) -> None:
    [_, *blocks] = BLOCK.finditer(section("Five minutes: from nothing to a sync"))
    said = run(newcomer, script(blocks))
    table = re.search(r"key,Day,Days to go,updated_at\r?\n((?:\d{4}-.*\n){12})", said, re.MULTILINE)
    assert table is not None, said
    days = [line.split(",")[1] for line in table[1].splitlines()]
    assert days == sorted(set(days)), "twelve full moons, the next one first"
    assert said.count("sync:full_moons") >= 4, "the first cycle and the one that was asked for, in both lists of runs"
    assert '"hasMore":false' in said.replace(" ", ""), "what `exec` shows"


def test_the_same_in_python_with_hutch_worker(newcomer: Newcomer) -> None:
    [_, where, *_] = BLOCK.finditer(section("Five minutes: from nothing to a sync"))
    said = run(newcomer, script([where, *BLOCK.finditer(section("The same with `hutch worker`, in Python"))]))
    assert "first" in said.partition("Created things")[0], "what `dev` shows"
    assert re.search(r"^.*\bfirst,.*\n.*\bsecond,", said, re.MULTILINE), said
    assert "sync:all_things" in said
