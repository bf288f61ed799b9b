"""`ntn login`: its real device flow against a real server, from the code in the terminal to a stored token that works.

`ntn login` asks `http://localhost:3000` (`NOTION_ENV=local`) whatever `NOTION_API_BASE_URL` says. It honours proxies, so that a
test needs no port that may be taken.
"""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.clients.conftest import installed_from_npm, tool_path
from tests.clients.passing import passing
from tests.clients.test_ntn import CLIENT, GREETING, Ntn, project
from tests.conftest import RunningServer

pytestmark = [pytest.mark.root, pytest.mark.sandbox, pytest.mark.timeout(180)]

LOCAL = "localhost:3000"
WAIT_S = 60


@pytest.fixture
def way(watched: RunningServer) -> Iterator[str]:
    """A proxy that takes what is for `localhost:3000` to the server."""

    def path_of(asked: str) -> str:
        there = urlsplit(asked)
        assert there.netloc == LOCAL
        return there.path

    with passing(watched.where.url, path_of) as url:
        yield url


class Terminal:
    """`ntn login` with a terminal of its own."""

    def __init__(self, home: Path, way: str) -> None:
        program = installed_from_npm(CLIENT) / "node_modules" / ".bin" / "ntn"
        (home / "notion").mkdir()
        self.environment = {
            "PATH": tool_path(),
            "HOME": str(home),
            "NOTION_HOME": str(home / "notion"),
            "NOTION_ENV": "local",
            "NOTION_KEYRING": "0",
            "HTTP_PROXY": way,
            "BROWSER": "true",
            "TERM": "xterm",
        }
        self._here, there = pty.openpty()
        self.process = subprocess.Popen(
            [program, "login"], cwd=home, env=self.environment, stdin=there, stdout=there, stderr=there, start_new_session=True
        )
        os.close(there)
        self._raw = b""

    @property
    def said(self) -> str:
        """All of it without colours: a sequence that begins at the end of one piece ends in the next."""
        return re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", self._raw).decode(errors="replace")

    def until(self, pattern: str) -> re.Match[str]:
        """Read until it says that."""
        ends = time.monotonic() + WAIT_S
        while (found := re.search(pattern, self.said)) is None:
            ready, _, _ = select.select([self._here], [], [], max(0, ends - time.monotonic()))
            assert ready, f"it never said {pattern!r}:\n{self.said}"
            try:
                data = os.read(self._here, 65536)
            except OSError:
                data = b""
            assert data, f"it ended without {pattern!r}:\n{self.said}"
            self._raw += data
        return found

    def press_enter(self) -> None:
        os.write(self._here, b"\r")

    def end(self) -> int:
        ends = time.monotonic() + WAIT_S
        while self.process.poll() is None and time.monotonic() < ends:
            ready, _, _ = select.select([self._here], [], [], 0.1)
            if ready:
                try:
                    self._raw += os.read(self._here, 65536)
                except OSError:
                    break
        return self.process.wait(10)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._here)


@pytest.fixture
def terminal(tmp_path: Path, way: str) -> Iterator[Terminal]:
    found = Terminal(tmp_path, way)
    yield found
    found.close()


def owner_token(watched: RunningServer) -> str:
    headers = {"authorization": f"Bearer {watched.where.token}"}
    made = httpx.post(f"{watched.where.url}/api/hutch/v1/tokens", headers=headers, json={"role": "owner"})
    assert made.status_code == 201, made.text
    token: str = made.json()["token"]
    return token


def answer(watched: RunningServer, terminal: Terminal, how: str) -> None:
    code = terminal.until(r"\b[B-Z]{4}-[B-Z]{4}\b")[0]
    form = {"user_code": code, "token": owner_token(watched), "answer": how}
    page = httpx.post(f"{watched.where.url}/api/hutch/v1/worker-login", data=form)
    assert page.status_code == 200, page.text


def test_ntn_logs_in_and_its_stored_token_is_good_for_workers(
    watched: RunningServer, terminal: Terminal, tmp_path: Path, way: str
) -> None:
    answer(watched, terminal, "yes")
    assert terminal.end() == 0, terminal.said
    ((space, token),) = json.loads((tmp_path / "notion" / "auth.json").read_text()).items()
    headers = {"authorization": f"Bearer {token}"}
    who = httpx.get(f"{watched.where.url}/api/hutch/v1/whoami", headers=headers).json()
    assert who["project"]["id"] == space
    assert all(permission.startswith("worker.") or permission == "self" for permission in who["permissions"])
    assert json.loads((tmp_path / "notion" / "config.json").read_text())["defaultWorkspaceIds"] == {"local": space}
    there = project(GREETING, watched, tmp_path)
    stored = Ntn(there.program, there.directory, terminal.environment | {"NO_COLOR": "1"})
    created = stored("create", "--name", "of a login")
    assert created.code == 0, created.err
    assert [worker["name"] for worker in stored.json("list")].count("of a login") == 1
    assert stored("delete", "--yes").code == 0


def test_ntn_says_that_a_login_is_over(watched: RunningServer, terminal: Terminal, tmp_path: Path) -> None:
    answer(watched, terminal, "no")
    assert terminal.end() != 0
    assert "expired" in terminal.said.lower()
    assert not (tmp_path / "notion" / "auth.json").exists()
