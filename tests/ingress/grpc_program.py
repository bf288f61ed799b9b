"""A gRPC service for the guest, whose messages are bare bytes: `python3 grpc_program.py PORT`."""

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

gone = threading.Event()


def say(request: bytes, context: grpc.ServicerContext) -> bytes:
    context.set_trailing_metadata((("x-ended", "say"),))
    return request


def chat(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
    yield from requests
    context.set_trailing_metadata((("x-ended", "chat"),))


def fail(_request: bytes, context: grpc.ServicerContext) -> None:
    context.abort(grpc.StatusCode.NOT_FOUND, "no such thing")


def wait(_request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
    """Begin to answer, and never end."""
    ended = threading.Event()
    context.add_callback(ended.set)
    context.send_initial_metadata(())
    ended.wait()
    gone.set()
    yield from ()


def was_cancelled(_request: bytes, _context: grpc.ServicerContext) -> bytes:
    return b"yes" if gone.wait(20) else b"no"


METHODS: dict[str, Any] = {
    "Say": grpc.unary_unary_rpc_method_handler(say),
    "Chat": grpc.stream_stream_rpc_method_handler(chat),
    "Fail": grpc.unary_unary_rpc_method_handler(fail),
    "Wait": grpc.unary_stream_rpc_method_handler(wait),
    "WasCancelled": grpc.unary_unary_rpc_method_handler(was_cancelled),
}
server = grpc.server(ThreadPoolExecutor(8))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", METHODS),))
server.add_insecure_port(f"0.0.0.0:{sys.argv[1]}")
server.start()
print("listening", flush=True)
server.wait_for_termination()
