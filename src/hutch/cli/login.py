"""`hutch login`, `logout` and `whoami`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import time
import webbrowser
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated
from urllib.parse import parse_qs, urlsplit

import typer

from hutch.cli import options, output
from hutch.cli.connection import interruptible, with_client
from hutch.client import AsyncClient, Server
from hutch.client.models import EndedLogin
from hutch.client.places import named_url
from hutch.client.saved import login_file, save, saved
from hutch.errors import BadRequestError, ForbiddenError, HutchError, UnavailableError
from hutch.login.secrets import challenge_of

MAX_HEAD_BYTES = 16 * 1024
HEAD_TIMEOUT_S = 10.0
LOCAL = ("127.0.0.1", "localhost", "::1")


def login(
    url: Annotated[str | None, typer.Argument(help="The server. Default: HUTCH_URL, else that of the last login.")] = None,
    team: Annotated[
        str | None, typer.Option("--team", help="Id or slug. Default: the browser asks where there are several.")
    ] = None,
    project: Annotated[
        str | None, typer.Option("--project", help="Id or slug; the login holds for this one only. Default: all of the team.")
    ] = None,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Show a code to type in any browser, on this machine or another.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Log in to a server with your organisation's account, in a browser."""

    async def work() -> int:
        kept = login_file(os.environ)
        if kept is None:
            raise BadRequestError("no_home", "There is nowhere to keep a login: set HOME or XDG_CONFIG_HOME.")
        base = _server_url(url, kept)
        if base.startswith("http://") and urlsplit(base).hostname not in LOCAL:
            output.note(f"{base} has no TLS: whoever can listen on the way there can have your login")
        verifier = secrets.token_urlsafe(32)
        async with AsyncClient(Server(base, "")) as client:
            ways = _by_code if no_browser else _by_browser
            ended = await ways(client, verifier, team, project)
        team_id = ended.team.id if ended.team is not None else ""
        project_id = ended.project.id if ended.project is not None else ""
        try:
            save(kept, Server(base, ended.token, team_id, project_id, ended.ingress_url), ended.expires_at)
        except OSError as error:
            raise UnavailableError("login_not_kept", f"The login can't be kept in {kept}: {error.strerror or error}.") from error
        shown = {
            "url": base,
            "identity": ended.identity,
            "email": ended.email or None,
            "team": ended.team.slug if ended.team is not None else None,
            "project": ended.project.slug if ended.project is not None else None,
            "role": ended.role,
            "expires_at": ended.expires_at,
        }
        if as_json:
            output.write_json(shown)
        else:
            who = ended.email or ended.identity
            output.write_line(
                f"Logged in at {base} as {who}: {ended.role} of {shown['team']}, until {output.moment(ended.expires_at)}."
            )
        return 0

    raise typer.Exit(interruptible(work, as_json=as_json))


def _server_url(given: str | None, kept: Path) -> str:
    """The base URL of the server that is meant. Raises `BadRequestError`."""
    if given is not None:
        return named_url(given, "The server")
    if os.environ.get("HUTCH_URL"):
        return named_url(os.environ["HUTCH_URL"])
    with contextlib.suppress(HutchError):
        before = saved(kept)
        if before is not None:
            return before.url
    raise BadRequestError("server_unknown", "Name the server, for example: hutch login https://hutch.example.com.")


# -- with a code ------------------------------------------------------------------------------------


async def _by_code(client: AsyncClient, verifier: str, team: str | None, project: str | None) -> EndedLogin:
    """Show where to go and what to type there, and ask until somebody has decided."""
    begun = await client.logins.begin(challenge_of(verifier), team=team, project=project)
    output.note(f"Open {begun.url} in a browser, and type there: {begun.user_code}")
    while time.time() * 1000 < begun.expires_at:
        await asyncio.sleep(begun.interval_s)
        ended = await client.logins.end(begun.code, verifier)
        if ended.token:
            return ended
    raise ForbiddenError("login_over", "Nobody logged in in time. Begin again.")


# -- with a browser of this machine -----------------------------------------------------------------


async def _by_browser(client: AsyncClient, verifier: str, team: str | None, project: str | None) -> EndedLogin:
    """Open a browser, and wait on a port of this machine for what it brings."""
    state = secrets.token_urlsafe(32)
    async with _Return.listening(state) as back:
        begun = await client.logins.begin(challenge_of(verifier), port=back.port, state=state, team=team, project=project)
        output.note(f"Log in in your browser. If none opens, open {begun.url}")
        await asyncio.to_thread(_open, begun.url)
        try:
            async with asyncio.timeout(max(1.0, begun.expires_at / 1000 - time.time())):
                code = await back.code
        except TimeoutError:
            raise ForbiddenError("login_over", "Nobody logged in in time. Begin again.") from None
        # The server's own page, of the place that it named itself.
        place = f"{begun.url.partition('?')[0]}/done"
        try:
            if not code:
                raise ForbiddenError("login_denied", "The login was cancelled in the browser.")
            ended = await client.logins.end(code, verifier)
        except HutchError:
            back.answer(f"{place}?failed=1")
            raise
        back.answer(place)
        return ended


def _open(url: str) -> None:
    # A browser's own words belong to nobody's output.
    with contextlib.suppress(webbrowser.Error, OSError):
        webbrowser.open(url)


class _Return:
    """A port of this machine that waits for one request: a browser's that comes back with this login's state."""

    def __init__(self, state: str) -> None:
        self._state = state
        loop = asyncio.get_running_loop()
        self.code: asyncio.Future[str] = loop.create_future()
        self._answer: asyncio.Future[str] = loop.create_future()
        self._answered = asyncio.Event()
        self.port = 0

    @classmethod
    @contextlib.asynccontextmanager
    async def listening(cls, state: str) -> AsyncIterator[_Return]:
        made = cls(state)
        server = await asyncio.start_server(made._serve, "127.0.0.1", 0, limit=MAX_HEAD_BYTES)
        made.port = server.sockets[0].getsockname()[1]
        try:
            yield made
            if made._answer.done():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(HEAD_TIMEOUT_S):
                        await made._answered.wait()
        finally:
            server.close()
            if not made._answer.done():
                made._answer.cancel()

    def answer(self, url: str) -> None:
        """Where the browser goes from here."""
        self._answer.set_result(url)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(HEAD_TIMEOUT_S):
                head = await reader.readuntil(b"\r\n\r\n")
            code = self._code_of(head)
            if code is None or self.code.done():
                writer.write(_plain(404, "Not Found"))
            else:
                self.code.set_result(code)
                with contextlib.suppress(asyncio.CancelledError):
                    writer.write(_plain(303, "See Other", await self._answer))
            await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            pass
        finally:
            writer.close()
            if self._answer.done():
                self._answered.set()

    def _code_of(self, head: bytes) -> str | None:
        """The code of a request that is this login's, empty where it was cancelled; None for any other request."""
        lines = head.decode("latin-1").split("\r\n")
        method, _, rest = lines[0].partition(" ")
        hosts = [line.partition(":")[2].strip() for line in lines[1:] if line.lower().startswith("host:")]
        target = urlsplit(rest.partition(" ")[0])
        if method != "GET" or target.path != "/" or hosts != [f"127.0.0.1:{self.port}"]:
            return None
        query = parse_qs(target.query, keep_blank_values=True)
        if not secrets.compare_digest(query.get("state", [""])[0].encode(), self._state.encode()):
            return None
        codes = query.get("code", [""])
        return codes[0] if len(codes) == 1 else None


def _plain(status: int, phrase: str, location: str = "") -> bytes:
    head = f"HTTP/1.1 {status} {phrase}\r\ncontent-length: 0\r\ncache-control: no-store\r\nconnection: close\r\n"
    return (head + (f"location: {location}\r\n" if location else "") + "\r\n").encode("ascii", "replace")


# -- afterwards -------------------------------------------------------------------------------------


def logout(as_json: options.AsJson = False) -> None:
    """Revoke the token of the last login, and forget it."""

    async def work() -> int:
        kept = login_file(os.environ)
        try:
            server = saved(kept) if kept is not None else None
        except HutchError:
            server = None
        revoked = False
        if server is not None:
            async with AsyncClient(server) as client:
                with contextlib.suppress(HutchError):
                    await client.tokens.revoke((await client.whoami()).token_id)
                    revoked = True
        if kept is not None:
            kept.unlink(missing_ok=True)
        if as_json:
            output.write_json({"revoked": revoked})
        elif server is not None and not revoked:
            output.note("the server could not be told; the token holds there until it expires")
        return 0

    raise typer.Exit(interruptible(work, as_json=as_json))


def whoami(data_dir: options.DataDir = None, as_json: options.AsJson = False) -> None:
    """Show who you are to the server, and what you may do there."""

    async def work(client: AsyncClient) -> None:
        found = await client.whoami()
        if as_json:
            output.write_json(found)
            return
        member = found.member
        rows = [
            ("server", client.server.url),
            ("who", (member.email or member.identity) if member is not None else "a token of no member"),
            ("name", member.name if member is not None else ""),
            ("team", found.team.slug if found.team is not None else ""),
            ("project", found.project.slug if found.project is not None else "all"),
            ("role", found.role),
            ("token", found.token_id),
        ]
        for name, value in rows:
            if value:
                output.write_line(f"{name:8} {value}")

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))
