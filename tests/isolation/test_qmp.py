"""QEMU's monitor: what it says is bounded in size and time, and never believed."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hutch.isolation.qmp import MAX_EVENTS, MAX_LINE_BYTES, MAX_PORTS, Monitor, MonitorFailed

GREETING = b'{"QMP": {"version": {}, "capabilities": []}}\n'
AGREED = b'{"return": {}}\n'


@contextlib.contextmanager
def saying(path: Path, *answers: bytes, stay: bool = True) -> Iterator[None]:
    """A monitor that says the first of `answers` by itself and one more for each line that it gets."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(1)
    ended = threading.Event()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            lines = connection.makefile("rb")
            for number, answer in enumerate(answers):
                if number:
                    json.loads(lines.readline())
                connection.sendall(answer)
            if stay:
                ended.wait(10)
            lines.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        listener.close()


def test_an_answer_is_found_among_events(tmp_path: Path) -> None:
    event = b'{"event": "STOP", "timestamp": {}}\n'
    answers = (GREETING, AGREED, event * 3 + b'{"return": {"status": "paused"}}\n')
    with saying(tmp_path / "q", *answers), Monitor(tmp_path / "q", 5) as monitor:
        assert monitor.status() == "paused"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b'{"error": {"class": "GenericError", "desc": "no such thing"}}\n', "refused `query-status`: no such thing"),
        (b'{"error": 7}\n', "refused `query-status`"),
        (b"nonsense\n", "not JSON"),
        (b"[" * 100_000 + b"\n", "not JSON"),
        (b"\xff\xfe\n", "not JSON"),
        (b"[]\n", "not an object"),
        (b'{"what": 1}\n', "something else"),
        (b'{"return": []}\n', "a form that is none"),
        (b'{"return": {"status": 5}}\n', "a form that is none"),
        (b"x" * (MAX_LINE_BYTES + 100_000), "a line of more than"),
        (b'{"event": "E"}\n' * (MAX_EVENTS + 1), f"told of {MAX_EVENTS} events"),
    ],
)
def test_hostile_answers_end_the_connection(tmp_path: Path, answer: bytes, said: str) -> None:
    monitor_says = saying(tmp_path / "q", GREETING, AGREED, answer)
    with monitor_says, Monitor(tmp_path / "q", 5) as monitor, pytest.raises(MonitorFailed, match=said):
        monitor.status()


def test_ports_that_a_guest_closed_are_known_and_are_few(tmp_path: Path) -> None:
    closed = b'{"event": "VSERPORT_CHANGE", "data": {"id": "%s", "open": false}}\n'
    others = b'{"event": "VSERPORT_CHANGE", "data": {"id": "open", "open": true}}\n'
    others += b'{"event": "VSERPORT_CHANGE", "data": 7}\n{"event": "VSERPORT_CHANGE"}\n{"event": [], "data": {"open": false}}\n'
    flood = b"".join(closed % str(number).encode() for number in range(100))
    answers = (GREETING, AGREED, others + closed % b"agent" + b'{"return": {}}\n', flood + b'{"return": {}}\n')
    with saying(tmp_path / "monitor", *answers), Monitor(tmp_path / "monitor", 5) as asked:
        asked.ask("stop")
        assert asked.closed_ports == {"agent"}
        asked.ask("stop")
        assert len(asked.closed_ports) == MAX_PORTS


def test_a_descriptor_is_given_with_its_question(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "q"))
    listener.listen(1)
    given: list[tuple[bytes, bytes]] = []

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(GREETING)
            connection.recv(1000)
            connection.sendall(AGREED)
            line, descriptors, _, _ = socket.recv_fds(connection, 1000, 2)
            with open(descriptors[0], "rb") as file:
                given.append((line, file.read()))
            connection.sendall(AGREED)

    thread = threading.Thread(target=serve)
    thread.start()
    (tmp_path / "file").write_bytes(b"what is in it")
    with Monitor(tmp_path / "q", 5) as monitor, (tmp_path / "file").open("rb") as file:
        monitor.give("state", file.fileno())
    thread.join()
    listener.close()
    [(line, content)] = given
    assert json.loads(line) == {"execute": "getfd", "arguments": {"fdname": "state"}}
    assert content == b"what is in it"


def test_silence_has_a_deadline(tmp_path: Path) -> None:
    with saying(tmp_path / "q", b""), pytest.raises(MonitorFailed, match=r"did not answer within 0\.2 s"):
        Monitor(tmp_path / "q", 0.2)


def test_an_end_in_the_middle_is_told(tmp_path: Path) -> None:
    with saying(tmp_path / "q", GREETING, b'{"ret', stay=False), pytest.raises(MonitorFailed, match="is gone"):
        Monitor(tmp_path / "q", 5)


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(MonitorFailed, match="can't be reached"):
        Monitor(tmp_path / "q", 5)
