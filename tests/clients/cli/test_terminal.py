"""`sandbox sh`, `connect`, `exec -it`, `run -it`, `create --connect` on a real terminal."""

from __future__ import annotations

import hashlib

import pytest

from tests.clients.cli.conftest import CommandLine

pytestmark = [pytest.mark.clients, pytest.mark.sandbox, pytest.mark.root, pytest.mark.timeout(180)]

# In full, because `-it NAME` is read differently: see below.
IT = ("--interactive", "--tty")
PROMPT = r"▲ /vercel/ $"


@pytest.mark.section("10.2")
@pytest.mark.section("10.3")
@pytest.mark.section("10.4")
def test_sh_has_a_prompt_the_terminals_size_and_the_exit_code(cli: CommandLine) -> None:
    """§10.2–10.4: health check, `start` with the size, resize while it runs, exit code from the `exit` frame."""
    with cli.terminal("sh", "--rm", rows=30, cols=100) as terminal:
        terminal.expect(PROMPT)
        terminal.type("stty size; echo $TERM; tty\n")
        terminal.expect(r"\n30 100\nxterm-256color\n/dev/pts/\d+\n")
        terminal.resize(41, 133)
        terminal.expect(PROMPT)
        # The shell is told of the new size by a signal, some time after the window was told.
        terminal.type("until [ \"$(stty size)\" = '41 133' ]; do :; done; echo now $(stty size)\n")
        terminal.expect(r"\nnow 41 133\n")
        terminal.type("exit 7\n")
        assert terminal.ended() == 7
        assert "closed." in terminal.shown
    assert len(cli.good("list", "--all").splitlines()) == 1, "--rm removes the sandbox"


@pytest.mark.section("10.2")
def test_a_program_is_told_of_every_resize(cli: CommandLine, box: str) -> None:
    """§10.2: SIGWINCH for each, and the new size when it asks."""
    program = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGWINCH, lambda *_: print('size', *os.get_terminal_size(), flush=True))\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
    )
    with cli.terminal("exec", *IT, box, "python3", "-c", program) as terminal:
        terminal.expect(r"\nready\n")
        for rows, cols in ((10, 40), (50, 200), (1, 1), (24, 80)):
            terminal.resize(rows, cols)
            terminal.expect(rf"size {cols} {rows}\n")
        terminal.type("\n")
        assert terminal.ended() == 0


@pytest.mark.section("10.2")
@pytest.mark.parametrize(
    ("keys", "program", "code"),
    [
        (b"\x03", "trap - INT; echo ready; sleep 100", 130),
        (b"\x1c", "trap - QUIT; echo ready; sleep 100", 131),
        (b"\x04", "echo ready; cat; exit 5", 5),
    ],
    ids=["interrupt", "quit", "end"],
)
def test_keys_that_mean_something(cli: CommandLine, box: str, keys: bytes, program: str, code: int) -> None:
    """§10.2: the terminal in the sandbox makes signals and the end of input of them; here they are bytes."""
    with cli.terminal("exec", *IT, box, "sh", "-c", program) as terminal:
        terminal.expect(r"\nready\n")
        terminal.type(keys)
        assert terminal.ended() == code


@pytest.mark.section("10.2")
def test_an_interrupt_ends_the_job_not_the_shell(cli: CommandLine, box: str) -> None:
    """§10.2: ^C goes to the foreground job; the shell goes on and knows 130."""
    with cli.terminal("connect", box) as terminal:
        terminal.expect(PROMPT)
        # The job itself says that it has begun: a key before that would be the shell's.
        terminal.type("python3 -c 'print(\"started\", flush=True); import time; time.sleep(100)'\n")
        terminal.expect(r"\nstarted\n")
        terminal.type(b"\x03")
        terminal.expect(PROMPT)
        terminal.type("echo code $?\n")
        terminal.expect(r"\ncode 130\n")
        terminal.type("exit\n")
        assert terminal.ended() == 0


@pytest.mark.section("10.2")
@pytest.mark.section("16.4")
def test_sudo_directory_and_variables(cli: CommandLine, box: str) -> None:
    """§10.2, §16.4: with sudo the command is `sudo` and the rest its arguments; `--workdir`, `--env`."""
    script = "id -un; pwd; echo $WORD; test -t 0 && test -t 1 && echo terminal"
    with cli.terminal("exec", "--sudo", "--workdir", "/tmp", "--env", "WORD=a b", *IT, box, "sh", "-c", script) as terminal:
        terminal.expect(r"\nroot\n/tmp\na b\nterminal\n")
        assert terminal.ended() == 0


@pytest.mark.section("10.2")
def test_a_program_that_is_not_there(cli: CommandLine, box: str) -> None:
    """§10.2: said on the terminal; exit code 127, as a shell has it."""
    with cli.terminal("exec", *IT, box, "no-such-program") as terminal:
        terminal.expect(r"executable file not found in \$PATH: no-such-program")
        assert terminal.ended() == 127


@pytest.mark.section("10.3")
@pytest.mark.parametrize("term", ["dumb", "", None], ids=["dumb", "empty", "none"])
def test_terminals_that_can_little(cli: CommandLine, box: str, term: str | None) -> None:
    """§10.3: the command line asks for `xterm-256color` whatever its own TERM is."""
    with cli.terminal("exec", *IT, box, "sh", "-c", "echo [$TERM]", environment={"TERM": term}) as terminal:
        terminal.expect(r"\[xterm-256color\]\n")
        assert terminal.ended() == 0


@pytest.mark.section("10.2")
def test_a_terminal_without_rows(cli: CommandLine, box: str) -> None:
    """§10.2: no rows are no error. (Without columns the command line's own spinner never ends, before it asks anything.)"""
    with cli.terminal("exec", *IT, box, "sh", "-c", "stty size; exit 8", rows=0, cols=70) as terminal:
        terminal.expect(r"\n\d+ 70\n")
        assert terminal.ended() == 8


@pytest.mark.section("2.2")
@pytest.mark.parametrize("flags", [["-i"], ["-ti"], ["-it", "true"]], ids="".join)
def test_short_flags_as_this_command_line_reads_them(cli: CommandLine, box: str, flags: list[str]) -> None:
    """§2.2: its `-t` takes a value, so `-it NAME` is not what it looks like. docs/clients.md says so."""
    with cli.terminal("exec", *flags, box, "sh", "-c", "test -t 0 && exit 6") as terminal:
        assert terminal.ended() == 6


@pytest.mark.section("10.2")
def test_interactive_wants_a_terminal(cli: CommandLine, box: str) -> None:
    """§10.2: without one the command line refuses before it asks the server."""
    ran = cli("exec", "-i", box, "true")
    assert (ran.code, ran.out) == (1, "")
    assert "requires a terminal" in ran.err


@pytest.mark.section("10.2")
def test_much_output_on_a_terminal(cli: CommandLine, box: str) -> None:
    """§10.2: four megabytes are all shown, in order, before the exit code."""
    lines = 50_000
    with cli.terminal("exec", *IT, box, "sh", "-c", f"seq -f 'line %07.0f {'y' * 64}' {lines}; exit 3") as terminal:
        assert terminal.ended() == 3
        shown = [line.split()[1] for line in terminal.shown.splitlines() if line.startswith("line ")]
    assert shown == [f"{number:07}" for number in range(1, lines + 1)]


@pytest.mark.section("10.2")
def test_much_input_on_a_terminal(cli: CommandLine, box: str) -> None:
    """§10.2: what is typed arrives, byte for byte, also faster than the program reads it."""
    program = "stty raw -echo; echo ready; head -c 200000 | sha256sum; exit 4"
    typed = bytes(range(256)) * 782
    with cli.terminal("exec", *IT, box, "sh", "-c", program) as terminal:
        terminal.expect(r"\nready")
        terminal.type(typed[:200_000])
        terminal.expect(hashlib.sha256(typed[:200_000]).hexdigest())
        assert terminal.ended() == 4


@pytest.mark.section("10.2")
def test_a_closed_window_ends_the_program(cli: CommandLine, box: str) -> None:
    """§10.2: the socket is closed with the command line's end, and what ran on the terminal is hung up on."""
    with cli.terminal("exec", *IT, box, "sh", "-c", "echo $$ > /tmp/pid; echo ready; exec sleep 1000") as terminal:
        terminal.expect(r"\nready\n")
        terminal.hang_up()
        terminal.ended()
    gone = "for i in $(seq 200); do kill -0 $(cat /tmp/pid) 2>/dev/null || exit 0; sleep 0.1; done; exit 1"
    assert cli("exec", "--sudo", box, "sh", "-c", gone).code == 0


@pytest.mark.section("10.1")
@pytest.mark.section("13.3")
def test_connect_starts_a_stopped_sandbox(cli: CommandLine) -> None:
    """§10.1, §13.3: `ssh` is `connect`; the files are those of the last session."""
    cli.good("create", "--silent", "--name", "asleep")
    cli.good("exec", "asleep", "sh", "-c", "echo kept > file")
    cli.good("stop", "asleep")
    with cli.terminal("ssh", "asleep") as terminal:
        terminal.expect(PROMPT)
        terminal.type("cat file; exit\n")
        terminal.expect(r"\nkept\n")
        assert terminal.ended() == 0


@pytest.mark.section("10.3")
def test_create_and_fork_connect_at_once(cli: CommandLine) -> None:
    """§10.3: `--connect` opens `sh` in what was just made."""
    with cli.terminal("create", "--name", "first", "--connect") as terminal:
        terminal.expect(PROMPT)
        terminal.type("echo in the first > file; exit\n")
        assert terminal.ended() == 0
    cli.good("stop", "first")
    with cli.terminal("fork", "first", "--name", "second", "--connect") as terminal:
        terminal.expect(PROMPT)
        terminal.type("cat file; exit\n")
        terminal.expect(r"\nin the first\n")
        assert terminal.ended() == 0


@pytest.mark.section("10.2")
def test_the_session_ends_while_somebody_is_connected(cli: CommandLine, box: str) -> None:
    """§10.2: the socket is closed, and the command line comes back instead of hanging."""
    with cli.terminal("connect", box) as terminal:
        terminal.expect(PROMPT)
        cli.good("stop", box)
        terminal.ended()
        assert "closed." in terminal.shown


@pytest.mark.section("10.2")
def test_run_on_a_terminal_removes_the_sandbox(cli: CommandLine) -> None:
    """§10.2: `run --rm` on a terminal: the exit code is the program's."""
    with cli.terminal("run", "--rm", "--silent", *IT, "sh", "-c", "stty size; exit 42", rows=12, cols=34) as terminal:
        terminal.expect(r"12 34\n")
        assert terminal.ended() == 42
    assert len(cli.good("list", "--all").splitlines()) == 1
