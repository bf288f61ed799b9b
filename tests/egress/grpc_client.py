"""A gRPC client for a sandbox: calls every method of the service in `services.py`, and prints what came of each as JSON."""

from __future__ import annotations

import json
import queue
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import grpc

TARGET = "grpc.test:443"
DEADLINE_S = 20.0
"""The server tells how much of it is left; nothing waits for it."""


def outcome(call: Callable[[], tuple[Any, Iterable[bytes]]]) -> dict[str, Any]:
    """Replies, and status and trailing metadata that came after them."""
    replies: list[str] = []
    try:
        ended, messages = call()
        replies += [message.decode() for message in messages]
    except grpc.RpcError as error:
        ended = error
    trailing = {key: value for key, value in ended.trailing_metadata() or () if isinstance(value, str)}
    return {"code": ended.code().name, "details": ended.details(), "replies": replies, "trailing": trailing}


def chat(channel: grpc.Channel) -> tuple[Any, Iterator[bytes]]:
    """Each message is sent only when the answer to the one before is here."""
    turns: queue.Queue[bytes | None] = queue.Queue()
    call = channel.stream_stream("/test.Echo/Chat")(iter(turns.get, None), timeout=DEADLINE_S)

    def replies() -> Iterator[bytes]:
        for text in (b"one", b"two", b"three"):
            turns.put(text)
            yield next(call)
        turns.put(None)
        yield from call

    return call, replies()


def cancelled(channel: grpc.Channel) -> dict[str, Any]:
    """Give up on a call that the server has begun and would never end."""
    call = channel.unary_stream("/test.Echo/Wait")(b"", timeout=DEADLINE_S)
    call.initial_metadata()
    call.cancel()
    return {"code": call.code().name}


def main() -> None:
    with grpc.secure_channel(TARGET, grpc.ssl_channel_credentials()) as channel:

        def unary(method: str, **options: Any) -> tuple[Any, Iterable[bytes]]:
            reply, ended = channel.unary_unary(f"/test.Echo/{method}").with_call(b"hello", timeout=DEADLINE_S, **options)
            return ended, [reply]

        def streamed(method: str) -> tuple[Any, Iterable[bytes]]:
            call = channel.unary_stream(f"/test.Echo/{method}")(b"3", timeout=DEADLINE_S)
            return call, call

        if "--wait" in sys.argv:
            print(json.dumps({"wait": outcome(lambda: streamed("Wait"))}))
            return
        found = {"say": outcome(lambda: unary("Say"))}
        if "--more" in sys.argv:
            found |= {
                "count": outcome(lambda: streamed("Count")),
                "chat": outcome(lambda: chat(channel)),
                "fail": outcome(lambda: unary("Fail")),
                "squeeze": outcome(lambda: unary("Squeeze")),
                "wait": cancelled(channel),
            }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
