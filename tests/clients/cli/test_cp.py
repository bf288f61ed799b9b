"""`sandbox cp`: single files both ways. (It copies no directories: that is the command line's own limit.)"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.clients.cli.conftest import CommandLine

pytestmark = [pytest.mark.clients, pytest.mark.sandbox, pytest.mark.root, pytest.mark.timeout(180)]


@pytest.mark.section("9.1")
@pytest.mark.section("9.2")
def test_a_file_goes_in_and_out_unchanged(cli: CommandLine, box: str, tmp_path: Path) -> None:
    """§9.1, §9.2: bytes of every value, relative to the sandbox's working directory or by absolute path; parents are made."""
    content = bytes(range(256)) * 4096 + os.urandom(1000)
    (tmp_path / "in").write_bytes(content)
    for place in ("file.bin", "deep/er/file.bin", "/tmp/file.bin"):
        cli.good("cp", str(tmp_path / "in"), f"{box}:{place}")
        cli.good("cp", f"{box}:{place}", str(tmp_path / "out"))
        assert (tmp_path / "out").read_bytes() == content, place
    counted = cli.good("exec", box, "sh", "-c", "wc -c < /vercel/deep/er/file.bin; stat -c %U /vercel/deep /vercel/file.bin")
    assert counted == f"{len(content)}\nubuntu\nubuntu\n"


@pytest.mark.section("9.1")
@pytest.mark.section("9.2")
def test_empty_and_large_files(cli: CommandLine, box: str, tmp_path: Path) -> None:
    """§9.1, §9.2: nothing is a file too, and 48 MiB are one."""
    for size in (0, 48 << 20):
        (tmp_path / "in").write_bytes(os.urandom(size))
        cli.good("copy", str(tmp_path / "in"), f"{box}:sized")
        cli.good("copy", f"{box}:sized", str(tmp_path / "out"))
        assert (tmp_path / "out").read_bytes() == (tmp_path / "in").read_bytes()


@pytest.mark.section("9.1")
@pytest.mark.section("9.2")
def test_odd_names(cli: CommandLine, box: str, tmp_path: Path) -> None:
    """§9.1, §9.2: blanks, quotes, newlines, leading dashes, other scripts, and names longer than a plain tar can hold."""
    # Without colons: the command line reads a name with one as NAME:PATH.
    for name in ("a b", "'\"`$x;&", "line\nline", "-n", "naïve 漢字 🦫", ".hidden", "x" * 200, "\\back"):
        (tmp_path / "in").write_text(name)
        cli.good("cp", str(tmp_path / "in"), f"{box}:odd/{name}")
        cli.good("cp", f"{box}:odd/{name}", str(tmp_path / "out"))
        assert (tmp_path / "out").read_text() == name
    listed = cli.good("exec", box, "python3", "-c", "import os; print(len(os.listdir('odd')))")
    assert listed == "8\n"


@pytest.mark.section("9.2")
def test_from_one_sandbox_into_another(cli: CommandLine, box: str, tmp_path: Path) -> None:
    """§9.2: both sides may be sandboxes."""
    cli.good("create", "--silent", "--non-persistent", "--name", "other")
    cli.good("exec", box, "sh", "-c", "echo across > file")
    cli.good("cp", f"{box}:file", "other:file")
    assert cli.good("exec", "other", "cat", "file") == "across\n"


@pytest.mark.section("13.3")
def test_a_stopped_sandbox_is_started_for_it(cli: CommandLine, tmp_path: Path) -> None:
    """§13.3: reading answers 410, the SDK below resumes and reads once more."""
    cli.good("create", "--silent", "--name", "asleep")
    cli.good("exec", "asleep", "sh", "-c", "echo kept > file")
    cli.good("stop", "asleep")
    cli.good("cp", "asleep:file", str(tmp_path / "out"))
    assert (tmp_path / "out").read_text() == "kept\n"


@pytest.mark.section("9.2")
@pytest.mark.section("4.5")
def test_what_is_not_there_is_said(cli: CommandLine, box: str, tmp_path: Path) -> None:
    """§4.5, §9.2: a missing file is a 404, which the command line tells without an exit code; a directory is refused."""
    missing = cli("cp", f"{box}:no/such/file", str(tmp_path / "out"))
    assert "File not found: no/such/file" in missing.err
    assert not (tmp_path / "out").exists()
    directory = cli("cp", f"{box}:/tmp", str(tmp_path / "out"))
    assert directory.code == 1 or "File not found" in directory.err
    assert not (tmp_path / "out").exists()
    unknown = cli("cp", "no-such-sandbox:file", str(tmp_path / "out"))
    assert unknown.code == 1
    assert "not found" in unknown.err


@pytest.mark.section("9.1")
def test_a_place_that_is_not_the_users_is_refused(cli: CommandLine, box: str, tmp_path: Path) -> None:
    """§9.1: writing is done as the default user; root's directories stay root's."""
    (tmp_path / "in").write_text("x")
    done = cli("cp", str(tmp_path / "in"), f"{box}:/etc/planted")
    assert done.code == 1
    assert cli("exec", box, "test", "-e", "/etc/planted").code == 1
