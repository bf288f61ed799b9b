"""gRPC with a real program in a real sandbox, by a real client."""

from __future__ import annotations

import asyncio
import io
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest

from tests.conftest import CHECKOUT
from tests.ingress.conftest import LISTEN_S, PORT, Ingress, sole

pytestmark = [pytest.mark.sandbox, pytest.mark.root]

PROGRAM = Path(__file__).with_name("grpc_program.py")
GUEST_PYTHON = CHECKOUT / ".hutch" / "guest-python"
"""Made by `scripts/setup/run test-tools`."""
DEADLINE_S = 30.0


async def packed() -> AsyncIterator[bytes]:
    """The program, and what it needs beside the image's Python."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", dereference=True) as tar:
        tar.add(GUEST_PYTHON.resolve(), "lib")
        tar.add(PROGRAM, "program.py")
    yield archive.getvalue()


async def test_grpc_calls_reach_a_program(ingress: Ingress) -> None:
    """Unary and streamed, metadata, statuses, messages of some size, cancellation; then the end of the session."""
    made = await ingress.sandbox(listens=False)
    await ingress.client.files.write_archive(made.session.id, packed(), cwd="/vercel")
    target = "{}:{}".format(*ingress.address)
    options = [("grpc.default_authority", ingress.host(sole(made))), ("grpc.enable_http_proxy", 0)]
    async with grpc.aio.insecure_channel(target, options=options) as channel:
        say = channel.unary_unary("/test.Echo/Say")
        with pytest.raises(grpc.aio.AioRpcError) as nobody:
            await say(b"hello", timeout=DEADLINE_S)
        assert nobody.value.code() == grpc.StatusCode.UNAVAILABLE
        start = f"PYTHONPATH=/vercel/lib nohup python3 /vercel/program.py {PORT} > /tmp/log 2>&1 & "
        wait = f"timeout {LISTEN_S} sh -c 'until grep -q listening /tmp/log; do sleep 0.05; done' || cat /tmp/log"
        ran = await ingress.client.commands.run(made.session.id, ["sh", "-c", start + wait])
        assert ran[:2] == (0, ""), ran
        call = say(b"x" * 1_000_000, timeout=DEADLINE_S)
        assert await call == b"x" * 1_000_000
        assert ("x-ended", "say") in list(await call.trailing_metadata())
        chat = channel.stream_stream("/test.Echo/Chat")(timeout=DEADLINE_S)
        for text in (b"one", b"two", b"three"):
            # Each is sent only when the answer to the one before is here.
            await chat.write(text)
            assert await chat.read() == text
        await chat.done_writing()
        assert await chat.read() == grpc.aio.EOF
        assert ("x-ended", "chat") in list(await chat.trailing_metadata())
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await channel.unary_unary("/test.Echo/Fail")(b"", timeout=DEADLINE_S)
        assert (failed.value.code(), failed.value.details()) == (grpc.StatusCode.NOT_FOUND, "no such thing")
        waiting = channel.unary_stream("/test.Echo/Wait")(b"", timeout=DEADLINE_S)
        await waiting.initial_metadata()
        waiting.cancel()
        assert await channel.unary_unary("/test.Echo/WasCancelled")(b"", timeout=DEADLINE_S) == b"yes"
        held = channel.unary_stream("/test.Echo/Wait")(b"", timeout=DEADLINE_S)
        await held.initial_metadata()
        await ingress.client.sandboxes.stop(made.session.id)
        async with asyncio.timeout(20):
            assert await held.code() != grpc.StatusCode.OK
