"""The multiplexed protocol between control plane, host and agent (`docs/agent-protocol.md`).

    frames.py      bytes ↔ frames, no state beyond a partial frame, no I/O
    mux.py         frames ↔ streams: who may say what when, credit, limits; no I/O
    connection.py  the one file with connections: asyncio streams over a transport
    sockets.py     addresses of Unix sockets, whatever the length of their paths

A *client* opens streams, a *server* answers each with one reply and any number of events and data. Everything a peer
sends is bounded and checked; a breach raises `WireViolation` and the connection is closed.
"""

from hutch.wire.connection import Connection, Stream, connect_unix, serve_unix
from hutch.wire.frames import MAX_PAYLOAD_BYTES, Frame, FrameDecoder, Kind, WireViolation, encode_frame
from hutch.wire.mux import Hello, Mux, Role

__all__ = [
    "MAX_PAYLOAD_BYTES",
    "Connection",
    "Frame",
    "FrameDecoder",
    "Hello",
    "Kind",
    "Mux",
    "Role",
    "Stream",
    "WireViolation",
    "connect_unix",
    "encode_frame",
    "serve_unix",
]
