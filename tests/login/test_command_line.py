"""`hutch login`, `logout` and `whoami` as somebody uses them: a process, a browser, a real provider."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from hutch.client.saved import saved
from hutch.errors import UnauthorizedError, UnavailableError
from tests.api.conftest import Api
from tests.conftest import CHECKOUT
from tests.login.chromium import Tab
from tests.login.chromium import browser as chromium
from tests.login.conftest import LOGIN, Browser

TIMEOUT_S = 60


@dataclass
class Process:
    """A command line that runs. `said` is what it wrote on standard error until now."""

    process: asyncio.subprocess.Process
    said: str = ""

    async def until(self, pattern: str) -> str:
        """Read its remarks until one has this; the first group."""
        assert self.process.stderr is not None
        async with asyncio.timeout(TIMEOUT_S):
            while (found := re.search(pattern, self.said)) is None:
                line = await self.process.stderr.readline()
                assert line, f"it ended without {pattern!r}: {self.said}"
                self.said += line.decode()
        return found[1]

    async def end(self) -> tuple[int, str, str]:
        async with asyncio.timeout(TIMEOUT_S):
            out, err = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, out.decode(), self.said + err.decode()


@asynccontextmanager
async def hutch(home: Path, *arguments: str) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "hutch", *arguments),
        cwd=CHECKOUT,
        # No browser opens by itself: `true` takes the address and does nothing.
        env={"PATH": os.environ["PATH"], "HOME": str(home), "BROWSER": "true"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield Process(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def run(home: Path, *arguments: str) -> tuple[int, str, str]:
    async with hutch(home, *arguments) as process:
        return await process.end()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    made = tmp_path / "home"
    made.mkdir()
    return made


async def to_the_end(api: Api, page: Any, browser: Browser, answer: str = "yes") -> httpx.Response:
    """Answer the page that asks, and follow it to the command line's port and back."""
    form = {**page.fields(), "answer": answer}
    response = await browser.http.post(f"{api.url}{LOGIN}/confirm", data=form)
    return await browser.http.get(response.headers["location"], follow_redirects=True)


async def test_a_login_with_a_browser_of_the_machine(api: Api, home: Path) -> None:
    async with hutch(home, "login", api.url) as process:
        url = await process.until(r"open (http\S+)")
        browser = Browser(api, "ada")
        shown = await to_the_end(api, await browser.open(url), browser)
        code, out, err = await process.end()
    assert (code, shown.status_code, "You are logged in" in shown.text) == (0, 200, True), err
    assert str(shown.url) == f"{api.url}{LOGIN}/done"
    assert out.startswith(f"Logged in at {api.url} as ada@example.com: developer of acme, until ")
    kept = home / ".config" / "hutch" / "login.json"
    assert (stat.S_IMODE(kept.stat().st_mode), stat.S_IMODE(kept.parent.stat().st_mode)) == (0o600, 0o700)
    token = json.loads(kept.read_text())["token"]
    assert token not in out + err
    code, out, _ = await run(home, "whoami", "--json")
    who = json.loads(out)
    assert (code, who["member"]["email"], who["team"]["slug"], who["role"]) == (0, "ada@example.com", "acme", "developer")
    code, out, _ = await run(home, "whoami")
    assert re.search(r"^team +acme$", out, re.MULTILINE)
    code, _, err = await run(home, "create", "--name", "box")
    assert code == 0, err
    assert (await run(home, "logout"))[0] == 0
    assert not kept.exists()
    assert (await api.client(token).get("/hutch/v1/whoami")).status_code == 401
    code, _, err = await run(home, "logout", "--json")
    assert (code, err) == (0, "")


async def test_a_login_with_a_code_in_any_browser(api: Api, home: Path) -> None:
    async with hutch(home, "login", f"{api.url}/api", "--no-browser", "--project", "web", "--json") as process:
        place = await process.until(r"Open (http\S+)")
        typed = await process.until(r"type there: (\S+)")
        browser = Browser(api, "bob")
        page = await browser.open(f"{place}?user_code={typed}")
        assert typed in page.text
        assert "You are logged in" in (await browser.submit(page)).text
        code, out, err = await process.end()
    assert code == 0, err
    said = json.loads(out)
    assert (said["url"], said["team"], said["project"], said["role"]) == (api.url, "acme", "web", "owner")
    # The next login knows the server.
    async with hutch(home, "login") as process:
        assert (await process.until(r"open (http\S+)")).startswith(api.url)


async def test_a_login_that_is_cancelled_fails_in_the_terminal_too(api: Api, home: Path) -> None:
    async with hutch(home, "login", api.url, "--json") as process:
        url = await process.until(r"open (http\S+)")
        browser = Browser(api, "ada")
        shown = await to_the_end(api, await browser.open(url), browser, "no")
        code, _, err = await process.end()
    assert "did not end well" in shown.text
    assert (code, json.loads(err.splitlines()[-1])["error"]["code"]) == (1, "login_denied")
    assert not (home / ".config").exists()


async def test_the_port_takes_nothing_but_the_end_of_its_own_login(api: Api, home: Path) -> None:
    async with hutch(home, "login", api.url) as process:
        url = await process.until(r"open (http\S+)")
        browser = Browser(api, "ada")
        page = await browser.open(url)
        form = {**page.fields(), "answer": "yes"}
        response = await browser.http.post(f"{api.url}{LOGIN}/confirm", data=form)
        there = response.headers["location"]
        port = urlsplit(there).port
        assert port is not None
        async with httpx.AsyncClient() as other:
            wrong = f"http://127.0.0.1:{port}"
            for path in ("/", "/?code=x", "/?code=x&state=x", f"/favicon.ico?{urlsplit(there).query}", "/?error=x&state="):
                assert (await other.get(wrong + path)).status_code == 404
            assert (await other.post(there)).status_code == 404
            assert (await other.get(there, headers={"host": f"evil.example:{port}"})).status_code == 404
        for raw in (b"", b"\r\n\r\n", b"x" * 40_000, b"GET \xff HTTP/1.1\r\nHost: x\r\n\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(raw)
            writer.write_eof()
            # What it has not read when it closes makes it a reset.
            with contextlib.suppress(ConnectionResetError):
                assert b"location" not in await reader.read()
            writer.close()
        done = await browser.http.get(there, follow_redirects=True)
        assert "You are logged in" in done.text
        assert (await process.end())[0] == 0


async def test_a_server_without_a_provider_and_one_that_is_not_there(api: Api, home: Path) -> None:
    api.services.provider, provider = None, api.services.provider
    code, _, err = await run(home, "login", api.url, "--json")
    assert (code, json.loads(err)["error"]["code"]) == (1, "sso_not_configured")
    api.services.provider = provider
    code, _, err = await run(home, "login", "--json")
    assert (code, json.loads(err)["error"]["code"]) == (1, "server_unknown")
    code, _, err = await run(home, "login", "ftp://x", "--json")
    assert (code, json.loads(err)["error"]["code"]) == (1, "server_unknown")


async def log_in_at_the_provider(tab: Tab, account: str) -> None:
    """Its two pages: a name and a password, and a yes. Until the page of ours that asks."""
    await tab.until("document.querySelector('input[name=login]') !== null")
    await tab.run(
        f"document.querySelector('input[name=login]').value = '{account}';"
        "document.querySelector('input[name=password]').value = 'x'; document.querySelector('form').submit()"
    )
    await tab.until("document.querySelector('input[name=prompt][value=consent]') !== null")
    await tab.run("document.querySelector('form').submit()")
    await tab.until("location.pathname.endsWith('/login/callback') && document.querySelector('button.main') !== null")


async def test_a_code_is_typed_in_a_real_browser(api: Api, home: Path, tmp_path: Path) -> None:
    """The form of our page leads to the provider, which is another origin."""
    async with hutch(home, "login", api.url, "--no-browser") as process, chromium(tmp_path / "profile") as tab:
        place, typed = await process.until(r"Open (http\S+)"), await process.until(r"type there: (\S+)")
        await tab.goto(place)
        await tab.until("document.querySelector('input[name=user_code]') !== null")
        await tab.run(f"document.querySelector('input[name=user_code]').value = '{typed}'")
        await tab.run("document.querySelector('button.main').click()")
        await log_in_at_the_provider(tab, "ada")
        assert await tab.run("document.querySelector('.code').textContent") == typed
        await tab.run("document.querySelector('button.main').click()")
        await tab.until("document.querySelector('h1')?.textContent === 'You are logged in'")
        code, out, err = await process.end()
    assert (code, "as ada@example.com: developer of acme" in out) == (0, True), err


async def test_a_whole_login_in_a_real_browser(api: Api, home: Path, tmp_path: Path) -> None:
    """Also whether the browser keeps to what our pages forbid: the form leads to the port all the same, and styles apply."""
    async with hutch(home, "login", api.url) as process, chromium(tmp_path / "profile") as tab:
        await tab.goto(await process.until(r"open (http\S+)"))
        await log_in_at_the_provider(tab, "bob")
        assert await tab.run("getComputedStyle(document.querySelector('main')).maxWidth") == "440px"
        assert await tab.run("document.querySelectorAll('input[name=member]').length") == 2
        fetched = "fetch('/healthz').then(() => 'reached', () => 'refused')"
        shown = (
            "new Promise(end => { const one = new Image(); one.onload = () => end('reached'); one.onerror = () => end('refused');"
            " one.src = 'data:image/gif;base64,R0lGODlhAQABAAAAACw=' })"
        )
        for script in (fetched, shown):
            assert await tab.run(script) == "refused"
        pictures = os.environ.get("HUTCH_PICTURES")
        if pictures:
            await tab.picture(Path(pictures) / "confirm.png")
        await tab.run("document.querySelector('button.main').click()")
        await tab.until("location.pathname.endsWith('/login/done') && document.querySelector('h1') !== null")
        assert await tab.run("document.querySelector('h1').textContent") == "You are logged in"
        if pictures:
            await tab.picture(Path(pictures) / "done.png")
            await tab.goto(f"{api.url}{LOGIN}")
            await tab.until("document.querySelector('input[name=user_code]') !== null")
            await tab.picture(Path(pictures) / "code.png")
        code, out, err = await process.end()
    assert (code, "as bob@example.com: owner of acme" in out) == (0, True), err


# -- what is kept -----------------------------------------------------------------------------------


def test_a_login_that_is_over_says_how_to_get_another(tmp_path: Path) -> None:
    path = tmp_path / "login.json"
    path.write_text(json.dumps({"url": "https://x.example", "token": "secret", "expires_at": 1}))
    path.chmod(0o600)
    with pytest.raises(UnauthorizedError, match="hutch login https://x.example"):
        saved(path)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"url": "u", "token": "secret", "expires_at": "x"}', "[" * 100_000, "\udcff"]
)
def test_a_file_that_is_none_is_refused_without_its_content(tmp_path: Path, content: str) -> None:
    path = tmp_path / "login.json"
    path.write_text(content, errors="surrogateescape")
    path.chmod(0o600)
    with pytest.raises(UnavailableError) as refused:
        saved(path)
    assert "secret" not in str(refused.value)


def test_a_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "login.json"
    path.write_text(json.dumps({"url": "https://x.example", "token": "secret", "expires_at": 9_999_999_999_999}))
    path.chmod(0o644)
    with pytest.raises(UnavailableError, match="Others may read"):
        saved(path)
    assert saved(tmp_path / "none.json") is None
