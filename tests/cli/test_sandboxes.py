"""Sandboxes, files, logs, tokens and the environment through the command line."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Hutch, run_hutch
from tests.conftest import CHECKOUT, RunningServer

pytestmark = [pytest.mark.sandbox, pytest.mark.root]


@pytest.fixture
def sandbox(hutch: Hutch) -> Iterator[str]:
    name = f"cli-{os.getpid()}"
    assert hutch("create", "--name", name, "--ephemeral", "--tag", "kind=test", "-p", "3000").out == f"{name}\n"
    yield name
    assert hutch("rm", "--force", name).code == 0


def test_a_sandbox_is_listed_shown_stopped_and_deleted(hutch: Hutch, sandbox: str) -> None:
    listed = json.loads(hutch("ls", "--json").out)["sandboxes"]
    assert [(item["name"], item["status"], item["tags"]) for item in listed] == [(sandbox, "running", {"kind": "test"})]
    assert hutch("ls").out.splitlines()[1].split()[:2] == [sandbox, "running"]
    shown = json.loads(hutch("get", "--json", sandbox).out)
    assert shown["routes"][0]["port"] == 3000
    assert sandbox in hutch("get", sandbox).out
    stopped = json.loads(hutch("stop", "--json", sandbox).out)
    assert stopped["status"] == "stopped"
    assert stopped["activeCpuDurationMs"] > 0
    assert json.loads(hutch("ls", "--json").out)["sandboxes"] == []
    assert len(json.loads(hutch("ls", "-a", "--json").out)["sandboxes"]) == 1
    assert hutch("exec", sandbox, "true").code == 125
    assert hutch("rm", sandbox).out == f"{sandbox}\n"
    gone = hutch("rm", sandbox)
    assert (gone.code, gone.out) == (1, "")
    assert f"Named sandbox '{sandbox}' not found" in gone.err


def test_files_and_directories_are_copied_both_ways(hutch: Hutch, sandbox: str, tmp_path: Path) -> None:
    blob = os.urandom(700_001)
    tree = tmp_path / "tree"
    (tree / "deep" / "empty").mkdir(parents=True)
    (tree / "blob").write_bytes(blob)
    (tree / "deep" / "grüße 🐇").write_text("text")
    (tree / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (tree / "run.sh").chmod(0o755)

    assert hutch("cp", str(tree / "blob"), f"{sandbox}:/tmp/renamed").code == 0
    assert hutch("cp", f"{sandbox}:/tmp/renamed", str(tmp_path / "back")).code == 0
    assert (tmp_path / "back").read_bytes() == blob
    assert hutch("cp", str(tree), f"{sandbox}:").code == 0
    assert hutch("exec", sandbox, "/vercel/tree/run.sh").out == "ran\n"
    assert hutch("cp", f"{sandbox}:tree", str(tmp_path / "copy")).code == 0
    assert subprocess.run(["diff", "-r", str(tree), str(tmp_path / "copy")], check=False).returncode == 0
    assert hutch("cp", "-", f"{sandbox}:piped", stdin=b"from a pipe").code == 0
    assert hutch("cp", f"{sandbox}:piped", "-").out == "from a pipe"
    missing = hutch("cp", f"{sandbox}:nothing", str(tmp_path / "none"))
    assert missing.code == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "copy", "tree"]


def test_what_can_not_be_copied_is_refused(hutch: Hutch, sandbox: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "neither a file nor a directory" in hutch("cp", str(tmp_path / "pipe"), f"{sandbox}:x").err
    assert "no file" in hutch("cp", str(tmp_path / "none"), f"{sandbox}:x").err
    assert "Exactly one" in hutch("cp", "a", "b").err
    assert hutch("cp", str(CHECKOUT / "pyproject.toml"), f"{sandbox}:/root/x").code == 1
    assert hutch("exec", sandbox, "ls").out == "bin\n"


def test_a_hostile_sandbox_writes_nothing_outside_the_copy(hutch: Hutch, sandbox: str, tmp_path: Path) -> None:
    hutch(
        "exec",
        sandbox,
        "sh",
        "-c",
        "mkdir evil && ln -s /etc/passwd evil/link && ln -s .. evil/up && echo x > evil/file && mkfifo evil/pipe",
    )
    done = hutch("cp", f"{sandbox}:evil", str(tmp_path / "evil"))
    assert done.code == 1
    assert sorted(path.name for path in tmp_path.iterdir()) in (["evil"], [])
    assert not (tmp_path / "evil" / "link").exists()


def test_logs_are_replayed_listed_and_followed(hutch: Hutch, sandbox: str) -> None:
    assert hutch("logs", sandbox).code == 1
    hutch("exec", sandbox, "sh", "-c", "echo one; echo two >&2")
    replayed = hutch("logs", sandbox)
    assert (replayed.out, replayed.err) == ("one\n", "two\n")
    command = hutch("exec", "-d", sandbox, "--", "sh", "-c", "echo later; sleep 0.5; echo last").out.strip()
    assert hutch("logs", sandbox, command).out == "later\nlast\n"
    listed = json.loads(hutch("logs", "--list", "--json", sandbox).out)["commands"]
    assert listed[0]["id"] == command
    assert hutch("logs", sandbox, "cmd_nothing").code == 1


def test_names_that_none_can_have_are_not_found(hutch: Hutch) -> None:
    hostile = ["", ".", "..", "../sessions", "a b", "a/b", "ä" * 300, "x" * 5000, "a\x1b[31m"]
    for command in ("stop", "rm"):
        done = hutch(command, "--", *hostile)
        assert (done.code, done.out) == (1, "")
        assert done.err.count("not found") == len(hostile)
        assert "\x1b" not in done.err
    for arguments in (["get", "--", "a\x1b[31m"], ["logs", "--", ".."], ["exec", "--", "", "true"], ["cp", "..:x", "here"]):
        done = hutch(*arguments)
        assert done.code in (1, 125), (arguments, done)
        assert "not found" in done.err
        assert "\x1b" not in done.err
        assert "Traceback" not in done.err


def test_a_token_is_made_used_listed_and_revoked(hutch: Hutch, server: RunningServer) -> None:
    made = json.loads(hutch("token", "create", "--team", "cli-team", "--project", "web", "--ttl", "1h", "--json").out)
    other = server.environment | {"HUTCH_TOKEN": made["token"]}
    assert run_hutch("ls", "--json", environment=other).out == '{"sandboxes": []}\n'
    assert run_hutch("token", "create", "--role", "admin", environment=other).code == 1
    assert hutch("token", "revoke", made["id"]).code == 0
    refused = run_hutch("ls", environment=other)
    assert refused.code == 1
    assert "not valid" in refused.err
    mine = json.loads(hutch("token", "ls", "--json").out)["tokens"]
    assert any(item["id"] == made["id"] and item["revoked"] for item in mine)
    assert hutch("token", "create", "--ttl", "soon").code == 1


def test_env_is_what_a_shell_reads_back(hutch: Hutch, server: RunningServer) -> None:
    script = hutch("env").out
    printed = subprocess.check_output(["sh", "-c", f"{script}\nenv -0"], env={"PATH": os.environ["PATH"]})
    seen = dict(item.split("=", 1) for item in printed.decode().split("\0") if "=" in item)
    wanted = json.loads(hutch("env", "--format", "json").out)
    assert {name: seen[name] for name in wanted} == wanted
    assert wanted["VERCEL_OIDC_TOKEN"] == server.where.token
    assert hutch("env", "--data-dir", str(server.data_dir)).out == script


def test_the_data_directory_finds_the_server(hutch: Hutch, server: RunningServer) -> None:
    bare = {key: value for key, value in server.environment.items() if not key.startswith("HUTCH_")}
    assert run_hutch("ls", "--data-dir", str(server.data_dir), environment=bare).code == 0
    nowhere = run_hutch("ls", "--data-dir", "/nonexistent", environment=bare)
    assert nowhere.code == 1
    assert "hutch serve" in nowhere.err
