"""`hutch run` and `hutch exec`: a program's output, input and exit code, and nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cli.conftest import Hutch
from tests.conftest import CHECKOUT, RunningServer

pytestmark = [pytest.mark.sandbox, pytest.mark.root]


def names(hutch: Hutch) -> list[str]:
    return [sandbox["name"] for sandbox in json.loads(hutch("ls", "--all", "--json").out)["sandboxes"]]


@pytest.fixture
def sandbox(hutch: Hutch) -> Iterator[str]:
    name = hutch("create", "--ephemeral").out.strip()
    yield name
    assert hutch("rm", "--force", name).code == 0


@contextlib.contextmanager
def started(
    server: RunningServer, *arguments: str, stdin: int = subprocess.DEVNULL, stdout: Any = None
) -> Iterator[subprocess.Popen[bytes]]:
    """`hutch …` running beside the test, in a session of its own; killed if the test ends before it does."""
    process = subprocess.Popen(
        [sys.executable, "-m", "hutch", *arguments],
        cwd=CHECKOUT,
        env=server.environment,
        stdin=stdin,
        stdout=stdout,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        with process:
            process.wait()


def test_run_prints_the_output_passes_the_exit_code_and_cleans_up(hutch: Hutch) -> None:
    done = hutch("run", "--", "python3", "-c", "print(1)")
    assert (done.code, done.out, done.err) == (0, "1\n", "")
    done = hutch("run", "--", "sh", "-c", "echo out; echo problem >&2; exit 3")
    assert (done.code, done.out, done.err) == (3, "out\n", "problem\n")
    assert names(hutch) == []


def test_a_program_that_does_not_exist_is_127_with_the_servers_text(hutch: Hutch) -> None:
    done = hutch("run", "no-such-program")
    assert done.code == 127
    assert "executable file not found in $PATH: no-such-program" in done.err
    assert names(hutch) == []


def test_what_the_server_refuses_is_125_and_says_why(hutch: Hutch) -> None:
    done = hutch("run", "--image", "no/such:image", "--", "true")
    assert done.code == 125
    assert "no/such:image" in done.err
    done = hutch("run", "--json", "--timeout", "1ms", "--", "true")
    assert done.code == 125
    assert json.loads(done.err)["error"]["code"] == "bad_request"


def test_options_reach_the_program(hutch: Hutch) -> None:
    script = "echo $COLOUR; id -u; pwd"
    done = hutch("run", "-e", "COLOUR=blue", "--sudo", "-w", "/tmp", "--vcpus", "1", "--timeout", "60s", "--", "sh", "-c", script)
    assert (done.code, done.out) == (0, "blue\n0\n/tmp\n")


def test_json_has_output_and_command(hutch: Hutch) -> None:
    done = hutch("run", "--json", "--", "sh", "-c", "echo out; echo problem >&2; exit 3")
    answer = json.loads(done.out)
    assert done.code == 3
    assert (answer["stdout"], answer["stderr"], answer["command"]["exitCode"]) == ("out\n", "problem\n", 3)


def test_standard_input_is_passed_on(hutch: Hutch, sandbox: str) -> None:
    big = os.urandom(1_500_000).hex().encode()
    done = hutch("exec", "-i", sandbox, "wc", "-c", stdin=big)
    assert (done.code, done.out.strip()) == (0, str(len(big)))
    assert hutch("exec", "-i", sandbox, "head", "-c", "3", stdin=big).out == big[:3].decode()
    assert hutch("exec", sandbox, "cat", stdin=b"ignored").out == ""


def test_output_is_whole_and_a_reader_may_leave(hutch: Hutch, sandbox: str, server: RunningServer) -> None:
    done = hutch("exec", sandbox, "--", "seq", "200000")
    assert done.out == "".join(f"{number}\n" for number in range(1, 200_001))
    piped = subprocess.run(
        ["sh", "-c", f"'{sys.executable}' -m hutch exec {sandbox} -- yes | head -n 2"],
        cwd=CHECKOUT,
        env=server.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert piped.stdout == "y\ny\n"
    assert "Traceback" not in piped.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_program_and_cleans_up(hutch: Hutch, server: RunningServer, number: signal.Signals) -> None:
    with started(server, "run", "--", "sh", "-c", "echo ready; exec sleep 600", stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        assert process.wait(30) == 128 + number
    assert names(hutch) == []


def test_a_signal_before_the_sandbox_is_there_cleans_up_too(hutch: Hutch, server: RunningServer) -> None:
    with started(server, "run", "--", "sleep", "600") as process:
        end = time.monotonic() + 30
        # As soon as it handles the signal, which is about when it asks for the sandbox.
        while not _catches(process.pid, signal.SIGTERM):
            assert time.monotonic() < end
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
    assert names(hutch) == []


def _catches(pid: int, number: signal.Signals) -> bool:
    with open(f"/proc/{pid}/status") as status:
        caught = next(line for line in status if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


class Screen:
    """The other end of a terminal, and what has appeared on it."""

    def __init__(self, rows: int, columns: int) -> None:
        self.descriptor, self.terminal = pty.openpty()
        self.shown = b""
        self.resize(rows, columns)

    def resize(self, rows: int, columns: int) -> None:
        termios.tcsetwinsize(self.descriptor, (rows, columns))

    def type(self, text: bytes) -> None:
        os.write(self.descriptor, text)

    def until(self, wanted: bytes) -> None:
        """Read until it has appeared; what is before it and itself are then done with."""
        while wanted not in self.shown:
            ready, _, _ = select.select([self.descriptor], [], [], 30)
            chunk = os.read(self.descriptor, 4096) if ready else b""
            assert chunk, f"{wanted!r} did not appear after {self.shown!r}"
            self.shown += chunk
        self.shown = self.shown.partition(wanted)[2]


def test_a_terminal_has_our_size_takes_keys_and_passes_the_exit_code(hutch: Hutch, sandbox: str, server: RunningServer) -> None:
    screen = Screen(33, 101)
    with started(server, "exec", "-it", sandbox, "sh", stdin=screen.terminal, stdout=screen.terminal) as process:
        os.close(screen.terminal)
        screen.type(b"stty size; tty\n")
        screen.until(b"33 101")
        screen.until(b"/dev/pts/")
        # gVisor loses some interrupts that come while a program is being started; one that waits for it gets it.
        screen.type(
            b'python3 -c \'from signal import *; pthread_sigmask(0, [2]); print("rea" + "dy", flush=True); sigwait([2])\'\n'
        )
        screen.until(b"ready")
        screen.type(b"\x03")
        screen.type(b"echo after-$((40 + 2))\n")
        screen.until(b"after-42")
        screen.resize(44, 122)
        process.send_signal(signal.SIGWINCH)
        screen.type(b'while [ "$(stty size)" != \'44 122\' ]; do :; done; echo resi""zed; exit 7\n')
        screen.until(b"resized")
        assert process.wait(30) == 7
    os.close(screen.descriptor)


def test_a_terminal_needs_a_terminal(hutch: Hutch) -> None:
    done = hutch("run", "-it", "--", "sh")
    assert done.code == 125
    assert "terminal" in done.err
    assert names(hutch) == []
