"""A real browser, headless, spoken to by its own protocol (CDP) over a WebSocket."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect

FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage"),
    *("--no-first-run", "--remote-debugging-port=0", "--window-size=900,760"),
]
START_S = 30
LOAD_S = 20


class Tab:
    """One page. What a test does in it is done from outside, whatever the page forbids itself."""

    def __init__(self, socket: ClientConnection, session: str) -> None:
        self._socket, self._session, self._next = socket, session, 0

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._next += 1
        await self._socket.send(
            json.dumps({"id": self._next, "sessionId": self._session, "method": method, "params": parameters})
        )
        async with asyncio.timeout(LOAD_S):
            while True:
                message = json.loads(await self._socket.recv())
                if message.get("id") == self._next:
                    assert "error" not in message, message
                    return dict(message["result"])

    async def run(self, script: str) -> Any:
        """The value of a script in the page."""
        result = await self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def until(self, script: str) -> Any:
        """Wait until a script's value is true, also across pages."""
        try:
            async with asyncio.timeout(LOAD_S):
                while True:
                    try:
                        value = await self.run(script)
                    except AssertionError:
                        value = None  # The page went away meanwhile.
                    if value:
                        return value
                    await asyncio.sleep(0.05)
        except TimeoutError:
            shown = await self.run("location.href + '\\n' + document.documentElement.outerHTML")
            pytest.fail(f"never true: {script}\n{str(shown)[:4000]}")

    async def goto(self, url: str) -> None:
        await self.call("Page.navigate", url=url)

    async def picture(self, path: Path) -> None:
        shot = await self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(shot["data"]))


@asynccontextmanager
async def browser(profile: Path) -> AsyncIterator[Tab]:
    program = shutil.which("chromium")
    assert program is not None, "chromium is not installed; `make setup-test` installs it"
    process = await asyncio.create_subprocess_exec(
        program,
        *FLAGS,
        f"--user-data-dir={profile}",
        "about:blank",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(START_S):
            said = b""
            while not said.startswith(b"DevTools listening on "):
                said = await process.stderr.readline()
                assert said, "chromium ended before it listened"
        reading = asyncio.create_task(process.stderr.read())
        address = said.decode().removeprefix("DevTools listening on ").strip()
        async with connect(address, max_size=2**24, proxy=None) as socket:
            opening = Tab(socket, "")
            await socket.send(json.dumps({"id": 0, "method": "Target.createTarget", "params": {"url": "about:blank"}}))
            target = await _answer(socket, 0)
            attach = {"targetId": target["targetId"], "flatten": True}
            await socket.send(json.dumps({"id": -1, "method": "Target.attachToTarget", "params": attach}))
            opening = Tab(socket, (await _answer(socket, -1))["sessionId"])
            yield opening
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _answer(socket: ClientConnection, number: int) -> dict[str, Any]:
    async with asyncio.timeout(LOAD_S):
        while True:
            message = json.loads(await socket.recv())
            if message.get("id") == number:
                return dict(message["result"])
