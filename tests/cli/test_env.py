"""`hutch env`: what its reader reads back is what was written, whatever the values are."""

from __future__ import annotations

import json
import shutil
import string
import subprocess
from collections.abc import Mapping
from pathlib import Path

import dotenv
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hutch.cli.env_formats import Format, rendered
from hutch.errors import BadRequestError
from tests.cli.conftest import Hutch
from tests.clients.cli.conftest import PACKAGE
from tests.clients.conftest import installed_from_npm, node_tool

HOSTILE = {
    "PLAIN": "http://127.0.0.1:7070",
    "EMPTY": "",
    "BLANKS": "  a  b\t",
    "SINGLE": "it's 'quoted' ''",
    "DOUBLE": 'say "hello" ""',
    "BOTH": "'\"'\"`",
    "LINES": "one\ntwo\n\nthree\n",
    "DOLLAR": "$HOME ${HOME} $(id) $env:PATH",
    "BACKTICK": "`id` `",
    "BACKSLASH": "\\ \\n \\' \\\\ C:\\temp\\",
    "COMMENT": "a # b #c",
    "SEPARATORS": "a;b&c|d>e<f",
    "GLOB": "* ? [a] ~ {a,b} !!",
    "UNICODE": "naïve 漢字 🦫 \u2018\u2019\u201a\u201b\u201c\u00a0",
    "CONTROL": "\x01\x1b[31m\x7f",
    "NODE_OPTIONS": "--import file:///a%20b/c.mjs --max-old-space-size=100",
    "SOMEPATH": "/a:/b c:",
}
SHELLS = ["sh", "bash", "dash"]


def read_back(command: list[str], names: Mapping[str, str]) -> dict[str, str]:
    """What a process that the shell starts has in its environment."""
    done = subprocess.run(command, capture_output=True, check=True, timeout=30)
    assert done.stderr == b"", done.stderr
    found = dict(entry.split("=", 1) for entry in done.stdout.decode().split("\0") if entry)
    return {name: found[name] for name in names}


@pytest.mark.parametrize("shell", SHELLS)
def test_shells_of_the_bourne_family(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "env").write_text(rendered(HOSTILE, Format.SH))
    assert read_back([shell, "-c", f'eval "$(cat {tmp_path}/env)"; env -0'], HOSTILE) == HOSTILE


def test_fish(tmp_path: Path) -> None:
    (tmp_path / "env").write_text(rendered(HOSTILE, Format.FISH))
    for way in (f"cat {tmp_path}/env | source; env -0", f"eval (cat {tmp_path}/env | string collect); env -0"):
        assert read_back(["fish", "--no-config", "-c", way], HOSTILE) == HOSTILE


def test_powershell(tmp_path: Path) -> None:
    if shutil.which("pwsh") is None:
        pytest.skip("pwsh is not installed, and no package repository here has it; its rules are tested without it")
    (tmp_path / "env").write_text(rendered(HOSTILE, Format.POWERSHELL))
    way = f"Get-Content -Raw {tmp_path}/env | Invoke-Expression; env -0"
    wanted = {name: value for name, value in HOSTILE.items() if value}
    assert read_back(["pwsh", "-NoProfile", "-Command", way], wanted) == wanted


POWERSHELL_QUOTES = "'\u2018\u2019\u201a\u201b"


def unquoted_by_powershell(text: str) -> str:
    """A verbatim string by the language specification of PowerShell, 2.3.5.2.1: any of the quotes ends it, two are one."""
    assert text[0] == "'"
    found, at = [], 1
    while text[at] not in POWERSHELL_QUOTES or (at + 1 < len(text) and text[at + 1] in POWERSHELL_QUOTES):
        found.append(text[at])
        at += 2 if text[at] in POWERSHELL_QUOTES else 1
    assert at == len(text) - 1, "ended before its end"
    return "".join(found)


@given(st.text(st.sampled_from(POWERSHELL_QUOTES + string.printable + "$`é漢")))
def test_powershells_rules(value: str) -> None:
    line = rendered({"NAME": value}, Format.POWERSHELL)
    assert line.startswith("$env:NAME = ")
    assert unquoted_by_powershell(line.removeprefix("$env:NAME = ")) == value


@settings(max_examples=60)
@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_any_text_passes_through_a_shell(value: str) -> None:
    assert read_back(["sh", "-c", f"{rendered({'NAME': value}, Format.SH)}; env -0"], {"NAME": value}) == {"NAME": value}


def test_json() -> None:
    assert json.loads(rendered(HOSTILE, Format.JSON)) == HOSTILE


def carried() -> tuple[dict[str, str], set[str]]:
    """What dotenv files can carry, and the names of what is refused."""
    fits = {}
    for name, value in HOSTILE.items():
        try:
            rendered({name: value}, Format.DOTENV)
        except BadRequestError:
            continue
        fits[name] = value
    return fits, set(HOSTILE) - set(fits)


def test_dotenv_refuses_what_its_readers_do_not_agree_on() -> None:
    fits, refused = carried()
    assert refused == {"BOTH", "DOLLAR", "BACKSLASH"}
    with pytest.raises(BadRequestError, match="BOTH can't be written"):
        rendered(HOSTILE, Format.DOTENV)
    assert "LINES" in fits


def test_dotenv_of_python(tmp_path: Path) -> None:
    fits, _ = carried()
    (tmp_path / ".env").write_text(rendered(fits, Format.DOTENV))
    assert dotenv.dotenv_values(tmp_path / ".env") == fits


@pytest.mark.parametrize("reader", ["dotenv", "node"])
def test_dotenv_of_npm_and_node(reader: str, tmp_path: Path) -> None:
    fits, _ = carried()
    (tmp_path / "file").write_text(rendered(fits, Format.DOTENV))
    parse = {
        "dotenv": 'import { parse } from "dotenv";',
        "node": 'import { parseEnv as parse } from "node:util";',
    }[reader]
    read = 'import { readFileSync } from "node:fs"; const text = readFileSync(process.argv[1], "utf8");'
    program = f"{parse} {read} console.log(JSON.stringify(parse(text)))"
    command = [node_tool("node"), "--input-type=module", "-e", program, str(tmp_path / "file")]
    done = subprocess.run(command, cwd=installed_from_npm(PACKAGE), capture_output=True, check=True, timeout=30, text=True)
    assert json.loads(done.stdout) == fits


@pytest.mark.sandbox
@pytest.mark.root
@pytest.mark.parametrize("form", list(Format))
def test_the_command_prints_each(hutch: Hutch, form: Format) -> None:
    done = hutch("env", "--format", form)
    assert (done.code, done.err) == (0, "")
    assert "VERCEL_OIDC_TOKEN" in done.out
    assert "NODE_OPTIONS" in done.out
