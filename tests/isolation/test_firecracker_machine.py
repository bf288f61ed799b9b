"""`hutch debug firecracker` from end to end, against a stand-in whose guest is the real agent: what works, and every way to fail.

Each with a jailer and without, where that makes a difference. Nothing is left of any of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hutch.host import debug_firecracker, kernel
from hutch.host.cgroups import Cgroups
from tests.isolation import fake_programs
from tests.isolation.fake_firecracker import DIRTY_AT, state_of
from tests.wire.agent import agent_binary

pytestmark = [pytest.mark.root]
GONE_S = 20.0
PLAIN = pytest.mark.parametrize("machine", [False], indirect=True, ids=["plain"])
"""What a jailer has no part in."""


@dataclass
class Machine:
    """The words that start one."""

    base: Path
    jailed: bool
    capsys: pytest.CaptureFixture[str]

    def programs(self, **behaviour: Any) -> list[str]:
        """Options that name stand-ins which behave like this."""
        if not self.jailed:
            return ["--binary", str(fake_programs.script(self.base / "firecracker", "firecracker", **behaviour)), "--no-jailer"]
        binary = self.base / "static" / "firecracker"
        if not binary.exists():
            fake_programs.compiled(binary.parent)
        return ["--binary", str(binary), "--jailer", str(fake_programs.script(self.base / "jailer", "jailer", **behaviour))]

    def call(self, *words: str, root: bool = True, **behaviour: Any) -> tuple[int, dict[str, Any], str]:
        """Exit code, what it told as JSON, and standard error."""
        options = ["--deadline", "30", "--json", "--state-dir", str(self.base / "state"), *self.programs(**behaviour)]
        if root and "restore" not in words:
            options += ["--kernel", str(self.base / "vmlinux"), "--root", str(self.base / "root.img")]
        code = debug_firecracker.main([*options, *words])
        captured = self.capsys.readouterr()
        return code, json.loads(captured.out or "{}"), captured.err


@pytest.fixture(params=[False, True], ids=["plain", "jailed"])
def machine(request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Machine]:
    made = Machine(tmp_path, request.param, capsys)
    (tmp_path / "vmlinux").write_bytes(b"\x7fELF a kernel")
    (tmp_path / "root.img").write_bytes(b"a root" * 100)
    cgroups = set(debug_cgroups())
    yield made
    deadline = time.monotonic() + GONE_S
    while left := processes(tmp_path):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    assert list((tmp_path / "state").glob("*")) == []
    assert kernel.mounts_below(tmp_path) == []
    assert set(debug_cgroups()) <= cgroups


def debug_cgroups() -> list[str]:
    found = Cgroups.detect()
    return [str(path) for root in set(found.roots.values()) for path in root.glob("hutch-debug-firecracker-*")]


def processes(base: Path) -> list[str]:
    listed = subprocess.run(["pgrep", "-af", f"{base}|fake_firecracker.py"], capture_output=True, text=True, check=False)
    return [line for line in listed.stdout.splitlines() if str(base) in line]


# -- what works -------------------------------------------------------------------------------------


def test_a_machine_boots_to_its_agent(machine: Machine) -> None:
    code, told, _ = machine.call("boot")
    assert code == 0
    assert told["firecracker"] == "1.17.0"
    assert told["jailed"] is machine.jailed
    assert told["seccomp"] is True
    assert told["cgroup"] is True
    assert 0 <= told["api_answered_ms"] <= told["started_ms"] <= told["agent_answered_ms"]


def test_a_program_runs_and_its_code_is_ours(machine: Machine) -> None:
    code, told, _ = machine.call("exec", "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (code, told["exit_code"], told["stdout"], told["stderr"]) == (7, 7, "out\n", "err\n")


def test_a_saved_machine_goes_on_in_another_process(machine: Machine) -> None:
    saved = machine.base / "saved"
    code, told, said = machine.call("snapshot", str(saved), "--", "true")
    assert code == 0, said
    assert told["memory_bytes"] == 128 * 1024 * 1024 == (saved / "memory").stat().st_size
    assert {"full_ms", "pause_ms", "state_bytes"} <= set(told)
    assert saved.stat().st_mode & 0o777 == 0o700
    assert (saved / "memory").stat().st_uid == 0
    before = (saved / "memory").read_bytes()
    for _ in range(2):
        code, told, said = machine.call("restore", str(saved), "--", str(agent_binary().resolve()), "--version")
        assert code == 0, said
        assert told["stdout"].startswith("hutch-agent ")
        assert {"restored_ms", "agent_answered_ms", "freshened_ms", "command_ms"} <= set(told)
    assert (saved / "memory").read_bytes() == before


def test_what_changed_is_merged_into_the_first_snapshot(machine: Machine) -> None:
    saved = machine.base / "saved"
    code, told, said = machine.call("snapshot", str(saved), "--diff")
    assert code == 0, said
    assert {"full_ms", "full_pause_ms", "agent_back_ms", "diff_ms"} <= set(told)
    assert 8 <= told["diff_bytes"] < 1024 * 1024
    memory = (saved / "memory").read_bytes()[: DIRTY_AT + 8]
    assert memory.startswith(b"memory")
    assert memory.endswith(b"changed!")
    assert state_of((saved / "state").read_bytes())["kind"] == "Diff"
    assert sorted(entry.name for entry in saved.iterdir()) == ["memory", "snapshot.json", "state"]
    assert machine.call("restore", str(saved))[0] == 0


def test_layers_have_a_disk_of_each_machine_above_them(machine: Machine) -> None:
    layer, saved = machine.base / "layer.erofs", machine.base / "saved"
    layer.write_bytes(b"a layer")
    files = ["--kernel", str(machine.base / "vmlinux"), "--initrd", str(layer), "--layer", str(layer), "--disk-mb", "16"]
    code, _, said = machine.call("snapshot", str(saved), *files, "--disk-rate", "1000000", root=False)
    assert code == 0, said
    config = state_of((saved / "state").read_bytes())["config"]
    assert list(config["drives"]) == ["layer0", "disk"]
    assert config["drives"]["disk"]["rate_limiter"] == {"bandwidth": {"size": 1000000, "refill_time": 1000}}
    assert "hutch.layers=1" in config["/boot-source"]["boot_args"]
    assert (saved / "disk").stat().st_size == 16 * 1024 * 1024
    assert machine.call("restore", str(saved))[0] == 0


def test_the_socket_may_be_there_before_anybody_listens(machine: Machine) -> None:
    code, told, said = machine.call("boot", listen_after_s=0.5)
    assert code == 0, said
    assert told["api_answered_ms"] >= 500


def test_a_file_that_others_may_not_read_is_the_machines_all_the_same(machine: Machine) -> None:
    (machine.base / "root.img").chmod(0o600)
    assert machine.call("boot")[0] == 0


@PLAIN
def test_a_build_without_a_filter_is_told(machine: Machine) -> None:
    assert machine.call("boot", no_filter=True)[1]["seccomp"] is False


def test_a_saved_machine_goes_on_with_and_without_a_jailer(tmp_path: Path, machine: Machine) -> None:
    saved = machine.base / "saved"
    assert machine.call("snapshot", str(saved))[0] == 0
    machine.jailed = not machine.jailed
    assert machine.call("restore", str(saved))[0] == 0


# -- how it fails -----------------------------------------------------------------------------------


def fails(machine: Machine, *words: str, **behaviour: Any) -> str:
    code, told, said = machine.call(*(words or ("boot",)), **behaviour)
    assert code == 1
    assert said.startswith("hutch debug: ")
    assert told["error"]["message"] in said
    return said


def test_a_guest_that_crashes_is_told_though_the_code_is_0(machine: Machine) -> None:
    said = fails(machine, crash_after_start=True)
    assert "ended before its agent answered" in said
    assert "Kernel panic - not syncing" in said


def test_a_refusal_has_its_fault(machine: Machine) -> None:
    said = fails(machine, refuses={"PUT /machine-config": "The memory size (MiB) is invalid."})
    assert "refused PUT /machine-config (400): The memory size (MiB) is invalid." in said


@PLAIN
def test_a_start_that_is_refused_has_what_it_said(machine: Machine) -> None:
    said = fails(machine, refuses={"PUT /actions": "Start microvm error: Cannot load kernel due to invalid elf magic number"})
    assert "invalid elf magic number" in said


def test_a_guest_without_an_agent_has_a_deadline(machine: Machine) -> None:
    console = "[ 1.0] VFS: Unable to mount root fs on unknown-block(0,0)"
    said = fails(machine, "--deadline", "1.5", "boot", no_agent=True, console=console)
    assert "No agent answered within 1.5 s" in said
    assert "the kernel found no root" in said


@PLAIN
def test_silence_of_the_api_has_a_deadline(machine: Machine) -> None:
    assert "did not answer GET /version within 1 s" in fails(
        machine, "--api-deadline", "1", "boot", answers={"GET /version": "hang"}
    )


@PLAIN
@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("", "ended while it was asked"),
        ("nonsense\r\n\r\n", "something that is not HTTP"),
        ("HTTP/1.1 200 \r\nContent-Length: 99\r\n\r\n{", "half an answer"),
        ("HTTP/1.1 200 \r\nContent-Length: 99999999999\r\n\r\n{", "bytes; 1048576 are accepted"),
        ("HTTP/1.1 200 \r\nX: " + "x" * 100_000, "a head of more than"),
    ],
)
def test_hostile_answers_are_no_machine(machine: Machine, answer: str, said: str) -> None:
    assert said in fails(machine, answers={"PUT /machine-config": answer})


def test_a_firecracker_that_ends_at_once_is_told(machine: Machine) -> None:
    assert "FailedToBindSocket" in fails(machine, end_at_once=True)


def test_an_old_firecracker_is_refused(machine: Machine) -> None:
    if machine.jailed:
        fake_programs.compiled(machine.base / "static", version="1.7.0")
    assert "the oldest that can be used is 1.8.0" in fails(machine, version="1.7.0")


def test_a_link_in_place_of_a_snapshot_is_not_followed(machine: Machine, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    said = fails(machine, "snapshot", str(tmp_path / "saved"), state_link=str(secret))
    assert "symbolic links" in said
    assert secret.read_text() == "of the host"
    assert not (tmp_path / "saved" / "snapshot.json").exists()


def changed(name: str, change: Callable[[Path], object]) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        (directory / name).chmod(0o600)
        change(directory / name)

    return apply


@PLAIN
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (changed("memory", lambda file: os.truncate(file, 1000)), "has 1000 bytes; it had 134217728"),
        (changed("memory", Path.unlink), "is not whole"),
        (changed("state", lambda file: file.write_text("{}")), "its checksum differs"),
        (changed("snapshot.json", Path.unlink), "has no snapshot"),
        (changed("snapshot.json", lambda file: file.write_text('{"schema": 1}')), "is broken"),
        (changed("snapshot.json", lambda file: file.write_text("[" * 9999)), "is broken"),
        (changed("snapshot.json", lambda file: file.write_text('{"schema": 99}')), "another release"),
        (changed("../root.img", lambda file: file.write_text("another")), "another one than when"),
    ],
    ids=range(8),
)
def test_a_damaged_snapshot_is_refused(machine: Machine, damage: Callable[[Path], None], said: str) -> None:
    saved = machine.base / "saved"
    assert machine.call("snapshot", str(saved))[0] == 0
    damage(saved)
    assert said in fails(machine, "restore", str(saved))


@PLAIN
def test_a_snapshot_that_firecracker_refuses_is_told(machine: Machine) -> None:
    saved = machine.base / "saved"
    assert machine.call("snapshot", str(saved))[0] == 0
    fault = "Load snapshot error: Failed to restore from snapshot: Invalid version"
    assert fault in fails(machine, "restore", str(saved), refuses={"PUT /snapshot/load": fault})


@PLAIN
def test_a_directory_with_files_is_not_overwritten(machine: Machine) -> None:
    (machine.base / "full").mkdir()
    (machine.base / "full" / "file").touch()
    assert "is not empty" in fails(machine, "snapshot", str(machine.base / "full"))


@PLAIN
def test_a_program_that_is_not_there_is_told(machine: Machine) -> None:
    assert "executable file not found" in fails(machine, "exec", "--", "no-such-program")


@PLAIN
def test_the_command_is_there(machine: Machine) -> None:
    command = [sys.executable, "-m", "hutch", "debug", "firecracker", "--help"]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--no-jailer" in said.stdout


@PLAIN
def test_what_is_missing_on_the_command_line_is_said(machine: Machine) -> None:
    def says(*words: str) -> str:
        assert debug_firecracker.main(words) == 1
        return machine.capsys.readouterr().err

    programs = machine.programs()
    assert "isolation.firecracker.binary" in says("boot")
    assert "runs with your rights" in says(*programs[:2], "--kernel", "/none", "boot")
    assert "can't be used together" in says(*programs, "--jailer", "x", "boot")
    assert "There is no file /none" in says(*programs, "--kernel", "/none", "boot")
    for words in (("exec",), ("boot", "--", "true"), ()):
        with pytest.raises(SystemExit, match="2"):
            debug_firecracker.main([*programs, *words])


@PLAIN
def test_a_program_prints_as_it_goes_and_the_rest_is_told_beside_it(machine: Machine) -> None:
    options = ["--kernel", str(machine.base / "vmlinux"), "--root", str(machine.base / "root.img")]
    words = [*machine.programs(), *options, "exec", "--state-dir", str(machine.base / "state"), "--", "echo", "hello"]
    assert debug_firecracker.main(words) == 0
    captured = machine.capsys.readouterr()
    assert captured.out == "hello\n"
    assert "agent_answered_ms" in captured.err


def test_sigterm_leaves_nothing(machine: Machine) -> None:
    """As a harness with a time limit ends it. The machine's guest has no agent, so the call waits for one."""
    options = [*machine.programs(no_agent=True), "--state-dir", str(machine.base / "state"), "--deadline", "60"]
    options += ["--kernel", str(machine.base / "vmlinux"), "--root", str(machine.base / "root.img"), "boot"]
    code = f"import sys; from hutch.host.debug_firecracker import main; sys.exit(main({options!r}))"
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + GONE_S
    while not list((machine.base / "state").glob("hutch-fc-*/console.log")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # Into the wait for an agent, which nothing outside shows.
    time.sleep(0.5)
    process.terminate()
    assert process.wait(GONE_S) == 143
