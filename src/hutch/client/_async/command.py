"""One command of a session."""

from __future__ import annotations

import signal as signals
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from hutch.client import models
from hutch.client._async.waiting import sleep
from hutch.client.display import table
from hutch.client.results import CompletedCommand, shown
from hutch.client.wire import STDIN_CHUNK_BYTES, Output, written
from hutch.errors import HutchError, UnavailableError

if TYPE_CHECKING:
    from hutch.client._async.client import AsyncClient

STDIN_PAUSE_S = 0.1
STDIN_ATTEMPTS = 100
"""How often input is offered to a server that is away: for as long as a host needs to start again."""
WAIT_ATTEMPTS = 3


class AsyncCommand:
    """A process that was started. It belongs to its session: when that ends, calls raise `GoneError`, and nothing is resumed."""

    def __init__(self, client: AsyncClient, record: models.Command) -> None:
        self._client = client
        self._written = 0
        self.record = record

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def name(self) -> str:
        """The program: the first word."""
        return self.record.name

    @property
    def args(self) -> list[str]:
        return self.record.args

    @property
    def session_id(self) -> str:
        return self.record.session_id

    @property
    def returncode(self) -> int | None:
        """As it was last heard of; None: it runs."""
        return self.record.exit_code

    async def refresh(self) -> AsyncCommand:
        """Ask how it is."""
        self.record = await self._client.commands.get(self.session_id, self.id)
        return self

    async def wait(self) -> int:
        """Wait until it has ended, however long that takes; its exit code. A connection that breaks is made again."""
        attempt = 0
        while self.record.exit_code is None:
            try:
                self.record = await self._client.commands.get(self.session_id, self.id, wait=True)
            except UnavailableError as error:
                attempt += 1
                if error.code != "server_unreachable" or attempt >= WAIT_ATTEMPTS:
                    raise
        return self.record.exit_code

    def logs(self) -> AsyncGenerator[Output, None]:
        """What it wrote, from its start, then as it comes until it ends. Any number may read, as often as they like. A reader
        that is slow holds the command back. Raises `UnavailableError` when the connection breaks."""
        return self._client.commands.logs(self.session_id, self.id)

    async def output(self) -> CompletedCommand:
        """Wait for its end; all that it wrote, as far as it was kept (`sandbox.log_bytes`)."""
        parts: dict[str, list[str]] = {"stdout": [], "stderr": []}
        async for piece in self.logs():
            parts[piece.stream].append(piece.text)
        await self.wait()
        return CompletedCommand(self.record, "".join(parts["stdout"]), "".join(parts["stderr"]))

    async def communicate(self, input: str | bytes = b"") -> CompletedCommand:
        """Write `input`, close the command's input, wait for its end. A command that reads no more is no error, as with a
        pipe."""
        try:
            await self.write_stdin(input)
            await self.close_stdin()
        except HutchError as error:
            if error.code not in ("command_not_found_or_exited", "command_stdin_unavailable"):
                raise
        return await self.output()

    async def write_stdin(self, data: str | bytes) -> None:
        """Write to the input of a command that was created with `stdin`; waits while it does not read. Raises `BadRequestError`
        `command_stdin_unavailable`, `NotFoundError` when it has ended."""
        rest = data.encode() if isinstance(data, str) else data
        while rest:
            accepted = await self._write(rest[:STDIN_CHUNK_BYTES])
            rest = rest[accepted:]

    async def close_stdin(self) -> None:
        """The command reads to the end of what was written, and no further."""
        await self._client.commands.write_stdin(self.session_id, self.id, b"", offset=self._written, close=True)

    async def _write(self, chunk: bytes) -> int:
        """Write some of it; how much was taken."""
        attempt = 0
        while True:
            try:
                total = await self._client.commands.write_stdin(self.session_id, self.id, chunk, offset=self._written)
            except HutchError as error:
                attempt += 1
                if error.code == "command_stdin_stalled":
                    total = written(error, self._written)
                elif error.retryable and attempt < STDIN_ATTEMPTS:
                    # Bytes that arrived already are skipped by their offset.
                    total = self._written
                else:
                    raise
            accepted = min(max(0, total - self._written), len(chunk))
            if accepted:
                self._written += accepted
                return accepted
            await sleep(STDIN_PAUSE_S)

    async def send_signal(self, signal: int | signals.Signals) -> None:
        """Send a signal to its process, if it has not ended."""
        await self._client.commands.kill(self.session_id, self.id, int(signal))

    async def terminate(self) -> None:
        """SIGTERM."""
        await self.send_signal(signals.SIGTERM)

    async def kill(self) -> None:
        """SIGKILL."""
        await self.send_signal(signals.SIGKILL)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({shown({'id': self.id, 'name': self.name, 'returncode': self.returncode})})"

    def _repr_html_(self) -> str:
        state = "running" if self.returncode is None else self.returncode
        return table("Command", [("id", self.id), ("command", " ".join([self.name, *self.args])), ("exit code", state)])
