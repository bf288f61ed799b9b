"""`hutch run` and `hutch exec`: a program's output, input and exit code, and nothing left behind."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

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
    command = [sys.executable, "-m", "hutch", "run", "--", "sh", "-c", "echo ready; exec sleep 600"]
    with subprocess.Popen(command, cwd=CHECKOUT, env=server.environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.wait(30) == 128 + number
    assert names(hutch) == []


def test_a_signal_before_the_sandbox_is_there_cleans_up_too(hutch: Hutch, server: RunningServer) -> None:
    command = [sys.executable, "-m", "hutch", "run", "--", "sleep", "600"]
    with subprocess.Popen(command, cwd=CHECKOUT, env=server.environment, stderr=subprocess.PIPE) as process:
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


def test_a_terminal_has_our_size_takes_keys_and_passes_the_exit_code(hutch: Hutch, sandbox: str, server: RunningServer) -> None:
    controller, terminal = pty.openpty()
    os.set_blocking(controller, True)
    _resize(terminal, 33, 101)
    command = [sys.executable, "-m", "hutch", "exec", "-it", sandbox, "sh"]
    with subprocess.Popen(command, cwd=CHECKOUT, env=server.environment, stdin=terminal, stdout=terminal, start_new_session=True) as process:
        os.close(terminal)
        os.write(controller, b"stty size; tty\n")
        _until(controller, b"33 101")
        _until(controller, b"/dev/pts/")
        os.write(controller, b"sleep 600\n")
        _until(controller, b"sleep 600")
        os.write(controller, b"\x03echo after-$((40 + 2))\n")
        _until(controller, b"after-42")
        _resize(controller, 44, 122)
        process.send_signal(signal.SIGWINCH)
        _until(controller, b"$")
        os.write(controller, b"while [ \"$(stty size)\" != '44 122' ]; do :; done; echo resized; exit 7\n")
        _until(controller, b"\nresized")
        assert process.wait(30) == 7
    os.close(controller)


def _resize(descriptor: int, rows: int, columns: int) -> None:
    import fcntl
    import struct
    import termios

    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def _until(descriptor: int, wanted: bytes) -> None:
    """Read until it appears; the test's time limit ends a wait in vain."""
    seen = b""
    while wanted not in seen:
        try:
            chunk = os.read(descriptor, 4096)
        except OSError:
            chunk = b""
        assert chunk, f"ended after {seen!r} before {wanted!r}"
        seen += chunk


def test_a_terminal_needs_a_terminal(hutch: Hutch) -> None:
    done = hutch("run", "-it", "--", "sh")
    assert done.code == 125
    assert "terminal" in done.err
    assert names(hutch) == []
