"""The stream of a machine's memory: QEMU, who writes it and tells of it, is not believed."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hutch.isolation import qemu_memory
from hutch.isolation.qmp import Monitor, MonitorFailed

MIB = 1024 * 1024


class Saying(Monitor):
    """A monitor that gives these answers: of each command the next one, the last of them for ever."""

    def __init__(self, answers: dict[str, list[object]], given: Callable[[int], None] | None = None) -> None:
        self.answers = answers
        self.asked: list[str] = []
        self.closed_ports = set()
        self._given = given

    def ask(self, command: str, **_: object) -> Any:
        self.asked.append(command)
        answers = self.answers.get(command, [{}])
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def give(self, name: str, descriptor: int) -> None:
        self.asked.append(f"give {name}")
        if self._given is not None:
            self._given(os.dup(descriptor))

    def close(self) -> None:
        pass


def writing(*blocks: bytes) -> Callable[[int], None]:
    """A QEMU that writes this to what it is given."""

    def write(descriptor: int) -> None:
        def run() -> None:
            try:
                for block in blocks:
                    os.write(descriptor, block)
            except BrokenPipeError:
                pass
            finally:
                os.close(descriptor)

        threading.Thread(target=run).start()

    return write


DONE: dict[str, list[object]] = {"query-migrate": [{"status": "setup"}, {"status": "active"}, {"status": "completed"}]}


def test_what_is_written_is_kept(tmp_path: Path) -> None:
    asked = Saying(dict(DONE), writing(b"devices", b"memory"))
    qemu_memory.save(asked, tmp_path / "state", 64 * MIB)
    assert (tmp_path / "state").read_bytes() == b"devicesmemory"
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o600
    assert asked.asked.index("give state") < asked.asked.index("migrate")


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"status": "failed", "error-desc": "no such device"}, "failed: no such device"),
        ({"status": "cancelled"}, "cancelled: no reason was given"),
        (["completed"], "a form that is none"),
        ({"status": {}}, "did not end within"),
    ],
)
def test_a_stream_that_fails_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: object, said: str) -> None:
    monkeypatch.setattr(qemu_memory.write, "__kwdefaults__", {"timeout_s": 0.1})
    asked = Saying({"query-migrate": [told]}, writing(b"a part"))
    with pytest.raises(MonitorFailed, match=said):
        qemu_memory.save(asked, tmp_path / "state", 64 * MIB)
    assert list(tmp_path.iterdir()) == []


def test_more_than_a_machine_has_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu_memory, "DEVICES_BYTES", 1000)
    most = qemu_memory.most_bytes(0)
    asked = Saying({"query-migrate": [{"status": "active"}, {"status": "completed"}]}, writing(b"x" * most, b"y"))
    with pytest.raises(OSError, match="more than a machine of this size has"):
        qemu_memory.save(asked, tmp_path / "state", 0)
    assert list(tmp_path.iterdir()) == []


def test_one_who_keeps_the_pipe_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu_memory, "LEFT_TIMEOUT_S", 0.1)
    kept: list[int] = []
    with pytest.raises(MonitorFailed, match="keeps the pipe"):
        qemu_memory.save(Saying(dict(DONE), kept.append), tmp_path / "state", 64 * MIB)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(BrokenPipeError):
        os.write(kept[0], b"later")
    os.close(kept[0])


def test_it_stands_still_once_its_agent_noticed() -> None:
    def port(opened: bool) -> list[object]:
        return [{"label": "console", "frontend-open": True}, {"label": "channel", "frontend-open": opened}]

    asked = Saying({"query-chardev": [port(True), port(True), port(False)]})
    qemu_memory.stand_still(asked)
    assert asked.asked == ["query-chardev"] * 3 + ["stop"]
    # One that is open again by then was closed in between.
    asked = Saying({"query-chardev": [port(True)]})
    asked.closed_ports = {"agent"}
    qemu_memory.stand_still(asked)
    assert asked.asked == ["query-chardev", "stop"]


@pytest.mark.parametrize("told", [None, {}, [7, {"label": []}]])
def test_ports_that_are_none_hold_nothing_up(told: object) -> None:
    asked = Saying({"query-chardev": [told]})
    qemu_memory.stand_still(asked)
    assert asked.asked == ["query-chardev", "stop"]


def test_one_that_runs_goes_on_and_a_stream_to_a_dead_host_is_ended() -> None:
    asked = Saying({"query-status": [{"status": "running"}]})
    qemu_memory.go_on(asked)
    assert asked.asked == ["query-status"]
    states: list[object] = [{"status": "active"}, {"status": "cancelling"}, {"status": "cancelled"}]
    asked = Saying({"query-status": [{"status": "paused"}], "query-migrate": states})
    qemu_memory.go_on(asked)
    assert asked.asked[1:3] == ["query-migrate", "migrate_cancel"]
    assert asked.asked[-1] == "cont"
