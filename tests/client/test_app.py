"""The client and the real API in one process, over the transport seam, with a host that ends sessions when asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from hutch.client import AsyncClient, Client, Server
from hutch.errors import GoneError, NotFoundError, UnauthorizedError, UnavailableError
from tests.api.conftest import Api, api, environment, host, installed
from tests.api.fake_host import FakeHost

__all__ = ["api", "environment", "host", "installed"]


@pytest.fixture
async def inside(api: Api) -> AsyncIterator[AsyncClient]:
    """A client whose requests go straight into the application."""
    app = api.server.config.loaded_app
    server = Server("http://hutch.test", api.own.token, api.own.team_id, api.own.project_id or "")
    async with AsyncClient(server, transport=httpx.ASGITransport(app)) as client:
        yield client


async def test_requests_go_into_an_application(inside: AsyncClient) -> None:
    sandbox = await inside.create_sandbox(name="box", tags={"a": "b"})
    assert (await sandbox.run_command("both")).stderr == "err\n"
    assert [record.name async for record in inside.query_sandboxes(tag=("a", "b"))] == ["box"]
    await sandbox.fs.write_text("/vercel/a", "text")
    assert await sandbox.fs.read_text("a") == "text"
    with pytest.raises(NotFoundError):
        await sandbox.fs.read_text("b")
    await sandbox.destroy()
    with pytest.raises(NotFoundError):
        await sandbox.refresh()


async def test_a_session_that_timed_out_is_resumed(inside: AsyncClient, host: FakeHost) -> None:
    resumed: list[str] = []
    sandbox = await inside.create_sandbox(on_resume=lambda found: resumed.append(found.session_id))
    first = sandbox.session
    await host.end(first.id)
    done = await asyncio.gather(*(sandbox.run_command("echo", [str(number)]) for number in range(5)))
    assert [one.stdout for one in done] == [f"{number}\n" for number in range(5)]
    assert resumed == [sandbox.session_id]
    assert sandbox.session_id != first.id
    with pytest.raises(GoneError):
        await first.run_command("echo")


async def test_a_command_whose_session_ends_is_not_run_again(inside: AsyncClient) -> None:
    sandbox = await inside.create_sandbox()
    with pytest.raises(GoneError):
        await sandbox.run_command("gone")
    assert len([session async for session in sandbox.list_sessions()]) == 1


async def test_input_waits_for_a_command_that_does_not_read(inside: AsyncClient, host: FakeHost) -> None:
    sandbox = await inside.create_sandbox()
    command = await sandbox.create_command("cat", stdin=True)
    host.stall_stdin = True
    writing = asyncio.create_task(command.write_stdin("typed"))
    done, _ = await asyncio.wait([writing], timeout=0.3)
    assert not done
    host.stall_stdin = False
    await writing
    await command.close_stdin()
    assert (await command.output()).stdout == "typed"


async def test_whose_token_it_is(inside: AsyncClient, api: Api) -> None:
    assert (await inside.whoami()).role == "admin"
    stranger = AsyncClient(Server("http://hutch.test", "a.b.c"), transport=httpx.ASGITransport(api.server.config.loaded_app))
    async with stranger:
        with pytest.raises(UnauthorizedError):
            await stranger.whoami()


async def test_the_blocking_client_over_a_socket(api: Api) -> None:
    def work() -> str:
        with Client(url=api.url, token=api.own.token) as client, client.create_sandbox() as sandbox:
            assert client.health().status == "ready"
            return sandbox.run_command("cat", input="typed").stdout

    assert await asyncio.to_thread(work) == "typed"


async def test_a_server_that_is_not_there() -> None:
    with Client(url="http://127.0.0.1:1", token="a.b.c") as client, pytest.raises(UnavailableError, match="127.0.0.1:1"):
        client.whoami()
