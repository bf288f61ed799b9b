"""The command line by itself: no server, bad input, and its own documentation."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import typer.main

from hutch.cli import options, reference
from hutch.cli.app import assembled
from hutch.cli.copy import Remote, remote
from hutch.cli.env import variables
from hutch.cli.env_formats import Format, rendered
from hutch.cli.errors import printable
from hutch.client import Server
from hutch.errors import BadRequestError
from tests.cli.conftest import run_hutch

NOWHERE = {"PATH": os.environ["PATH"], "HUTCH_URL": "http://127.0.0.1:9", "HUTCH_TOKEN": "x"}


def test_the_reference_is_up_to_date() -> None:
    assert reference.PAGE.read_text() == reference.reference(), "run: python -m hutch.cli.reference"


def test_every_command_and_option_has_a_help_text() -> None:
    def visit(command: object, path: str) -> None:
        for name, child in getattr(command, "commands", {}).items():
            if not child.hidden:
                assert child.help, f"{path} {name}"
                visit(child, f"{path} {name}")
        for parameter in getattr(command, "params", []):
            assert getattr(parameter, "help", None), f"{path} {parameter.name}"

    visit(typer.main.get_command(assembled()), "hutch")


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["ls", "--nonsense"], ["run"], ["exec", "name"], ["create", "--vcpus", "many"], ["token"], []]
)
def test_a_wrong_command_line_is_2_and_shows_usage(arguments: list[str]) -> None:
    done = run_hutch(*arguments, environment=NOWHERE)
    assert done.code == 2
    assert "Usage: hutch" in done.err + done.out
    assert "Traceback" not in done.err


def test_a_server_that_does_not_answer_is_reported() -> None:
    done = run_hutch("ls", environment=NOWHERE)
    assert done.code == 1
    assert "127.0.0.1:9" in done.err
    done = run_hutch("ls", "--json", environment=NOWHERE)
    assert json.loads(done.err)["error"]["code"] == "server_unreachable"
    assert run_hutch("run", "true", environment=NOWHERE).code == 125


def test_version_and_help_need_no_server() -> None:
    assert run_hutch("--version", environment=NOWHERE).out.startswith("hutch ")
    assert "run" in run_hutch("--help", environment=NOWHERE).out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_offered(shell: str) -> None:
    done = run_hutch("--show-completion", shell, environment=NOWHERE | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"})
    assert done.code == 0
    assert "hutch" in done.out


def test_config_shows_values_sources_and_no_secrets() -> None:
    environment = NOWHERE | {"HUTCH_POOL__SIZE": "7", "HUTCH_DATABASE__URL": "postgresql://user:hunter2@db/hutch"}
    done = run_hutch("config", "show", "--json", environment=environment)
    found = {item["key"]: item for item in json.loads(done.out)["settings"]}
    assert (found["pool.size"]["value"], found["pool.size"]["source"], found["pool.size"]["origin"]) == (
        7,
        "env",
        "HUTCH_POOL__SIZE",
    )
    assert found["server.listen"]["source"] == "default"
    plain = run_hutch("config", "show", environment=environment)
    assert "hunter2" not in done.out + plain.out
    bad = run_hutch("config", "show", environment=NOWHERE | {"HUTCH_POOL__SIZE": "lots"})
    assert bad.code == 1
    assert "HUTCH_POOL__SIZE" in bad.err


@pytest.mark.parametrize(
    ("text", "ms"), [("90s", 90_000), ("5m", 300_000), ("2h", 7_200_000), ("1d", 86_400_000), ("500ms", 500), ("7", 7000)]
)
def test_durations(text: str, ms: int) -> None:
    assert options.duration_ms(text, "--timeout") == ms


@pytest.mark.parametrize("text", ["", "s", "-1s", "1.5h", "1 day", "1w", "9" * 40, "１s"])
def test_durations_that_are_none(text: str) -> None:
    with pytest.raises(BadRequestError, match="--timeout"):
        options.duration_ms(text, "--timeout")


def test_pairs_take_values_from_here_only_where_that_is_meant() -> None:
    assert options.pairs(["A=1", "B=x=y", "C="], "--env") == {"A": "1", "B": "x=y", "C": ""}
    assert options.pairs(["HERE"], "--env", {"HERE": "value"}) == {"HERE": "value"}
    for bad in ("=x", "NOWHERE"):
        with pytest.raises(BadRequestError, match="KEY=VALUE"):
            options.pairs([bad], "--env", {})


def test_a_remote_path_is_told_apart_from_a_local_one() -> None:
    assert remote("box:/tmp/x") == Remote("box", "/tmp/x")
    assert remote("box:") == Remote("box", "")
    assert remote("./a:b") is None
    assert remote("/tmp/a:b") is None
    assert remote(":x") is None
    assert remote("plain") is None


def test_env_twice_is_the_same_as_once_and_keeps_what_is_there() -> None:
    server = Server("http://127.0.0.1:1", "t'o k$en", "team_1", "prj_1")
    once = variables(server, {"NODE_OPTIONS": "--max-old-space-size=64", "PYTHONPATH": "/mine"})
    assert once["NODE_OPTIONS"].startswith("--max-old-space-size=64 --import file://")
    assert once["PYTHONPATH"].endswith(":/mine")
    assert variables(server, once) == once
    script = rendered(once, Format.SH)
    shown = subprocess.check_output(["sh", "-c", f'{script}\nprintf %s "$HUTCH_TOKEN"'], env={"PATH": os.environ["PATH"]})
    assert shown.decode() == server.token


def test_nothing_a_terminal_would_obey_is_printed() -> None:
    assert printable("a\x1b]0;title\x07b\x9b31m\u202e\nc") == "a�]0;title�b�31m�\nc"


def test_the_host_and_debug_commands_import_nothing_of_the_client() -> None:
    script = "import sys, hutch.cli; assert not {'typer', 'httpx', 'rich'} & set(sys.modules), sorted(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
